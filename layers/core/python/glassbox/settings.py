"""Settings: environment variables, parsed once; one error names every problem.

A settings class is a frozen dataclass; each field is one variable, in capitals::

    @dataclass(frozen=True)
    class CountSettings:
        counts_table: str
        threshold: float = setting(within=(0, 1))
        min_predictions: int = setting(50, within=(1, None))
        drift_threshold: float | None = setting(None, within=(0, 1))

    settings = from_env(CountSettings, os.environ)

An empty variable counts as unset: CloudFormation passes an omitted parameter as an empty string.

A settings class is composed of mixins. Each class may define ``problems(self) -> Iterable[str]``, which yields a
sentence for each wrong combination of variables; :func:`from_env` calls all of them. There a value that could not be
parsed is its text: it is wrong, but set.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from glassbox.errors import SettingsError, printable

T = TypeVar("T")

_LARGEST = 1 << 53  # larger integers are not exact as floats
_SHOWN = 80  # characters of a value in an error


_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", "enabled"), True),
    **dict.fromkeys(("false", "no", "off", "0", "disabled"), False),
}


def names(listed: str) -> frozenset[str]:
    """Return the names in a comma-separated setting."""
    return frozenset(filter(None, map(str.strip, listed.split(","))))


def setting(
    default: Any = dataclasses.MISSING, *, within: tuple[float | None, float | None] = (None, None)
) -> Any:
    """Define a field with a default, or with inclusive bounds (None is unbounded)."""
    return dataclasses.field(default=default, metadata={"within": within})


def from_env(cls: type[T], env: Mapping[str, str]) -> T:
    """Read ``cls`` from ``env``.

    Fields are str, int, float or bool, each optionally ``| None``. Booleans are the words Enabled/Disabled,
    true/false, yes/no, on/off and 1/0.

    Raises:
        SettingsError: one error that names every missing, unreadable or out-of-range variable.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, raw = field.name.upper(), env.get(field.name.upper(), "").strip()
        if not raw:
            if field.default is dataclasses.MISSING:
                values[field.name] = None
                problems.append(f"{name} is not set")
            continue
        try:
            values[field.name] = _parse(hints[field.name], raw, field.metadata.get("within", (None, None)))
        except ValueError as error:
            values[field.name] = raw
            problems.append(f"{name}={printable(raw, _SHOWN)!r} {error}")
    settings = cls(**values)
    for mixin in cls.__mro__:  # so that no mixin has to call the next one
        if "problems" in vars(mixin):
            problems += vars(mixin)["problems"](settings)
    if problems:
        raise SettingsError(f"{cls.__name__}: " + "; ".join(problems))
    return settings


def _parse(hint: Any, raw: str, within: tuple[float | None, float | None]) -> Any:
    kind = _without_none(hint)
    if kind is bool:
        if raw.lower() not in _WORDS:
            raise ValueError(f"must be one of {', '.join(_WORDS)}")
        return _WORDS[raw.lower()]
    if kind not in (int, float):
        return raw
    try:
        number = kind(raw)
    except ValueError:
        raise ValueError("is not a whole number" if kind is int else "is not a number") from None
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError("is not a finite number")
    if abs(number) > _LARGEST:
        raise ValueError(f"must be at most {_LARGEST}")
    low, high = within
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
        raise ValueError("must be " + " and ".join(filter(None, bounds)))
    return number


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, getattr(types, "UnionType", Union)):  # of `int | None`, since Python 3.10
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    return hint
