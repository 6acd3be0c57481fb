"""The facts of a heat map: the JSON object beside its PNG, for those who read it without numpy."""

import contextlib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from glassbox.errors import printable


class Completeness(msgspec.Struct, frozen=True):
    """The distance of the terms' sum from the logit, as in fullgrad's ``Explanation``."""

    complete: bool
    logit: float
    sum: float
    residual: float
    relative_error: float | None
    sum_abs: float
    held: Mapping[str, int]
    unaccounted: tuple[str, ...]


_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Blurred(msgspec.Struct, frozen=True):
    """The class's probability after the endpoint blurred a tenth of the image's cells.

    ``best`` are the cells of the highest relevance, ``random`` are drawn with a seed from the image.
    """

    best: _Probability
    random: _Probability


class LayerShare(msgspec.Struct, frozen=True):
    """What one module (or the input) adds to the logit, and its share of Σ|terms|, 0 to 1."""

    name: str
    type: str
    contribution: float
    share: float


class ClassProbability(msgspec.Struct, frozen=True):
    """One of the most probable classes."""

    class_id: int
    probability: float


class Display(msgspec.Struct, frozen=True):
    """The percentiles of the map that the colours cover, and their values."""

    percentiles: tuple[float, float]
    low: float
    high: float


class Quadrants(msgspec.Struct, frozen=True):
    """Shares of the relevance in the quarters of the image, 0 to 1, of sum 1."""

    upper_left: float
    upper_right: float
    lower_left: float
    lower_right: float

    def __str__(self) -> str:
        shares = {
            "upper left": self.upper_left,
            "upper right": self.upper_right,
            "lower left": self.lower_left,
            "lower right": self.lower_right,
        }
        most = max(shares, key=lambda name: shares[name])
        return f"the {most} quarter has {shares[most]:.0%} of the relevance"


class ImageSize(msgspec.Struct, frozen=True):
    """Size of the input image in pixels."""

    height: int
    width: int
    channels: int


class Facts(msgspec.Struct, frozen=True):
    """Everything known about one heat map.

    ``step`` and ``sample`` locate it in its run. ``unplaced_share`` is the part of Σ|terms|, 0 to 1, that has no place
    in the image, such as the terms of a class token: the completeness error includes it, the map does not show it.
    ``answered`` is the class of the response where it is another than the explained one. ``not_compared`` is the reason
    why the response was not compared with it. Both are None otherwise, and without a response in the trace.
    """

    predicted_class: int
    class_name: str | None
    probability: float
    logit: float
    top: tuple[ClassProbability, ...]
    completeness: Completeness
    layers: tuple[LayerShare, ...]
    display: Display
    input_image: ImageSize
    model: str
    trace_form: str
    step: int
    sample: int
    request: Mapping[str, str | None]
    blurred: Blurred | None = None
    unplaced_share: float | None = None
    quadrants: Quadrants | None = None
    """This and ``unplaced_share`` are None in facts of an earlier version."""
    answered: int | str | None = None
    not_compared: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the heat map is complete, and explains the class that was answered."""
        return self.completeness.complete and self.answered is None


class Refusal(msgspec.Struct, frozen=True):
    """The reason why a replay has no heat map, written in place of its :class:`Facts`."""

    refused: str


def describe_blurred(predicted_class: int, probability: float, blurred: Blurred) -> str:
    """Return what blurring does to the class's probability, without a full stop."""
    before, best, random = (f"{p:.2f}" for p in (probability, blurred.best, blurred.random))
    if best == before:
        change, random = f"stays at {before}", f"at {random}"
    else:
        verb = "falls" if blurred.best < probability else "rises"
        change, random = f"{verb} from {before} to {best}", f"to {random}"
    return f"class {predicted_class} {change} when the best 10 % is blurred; {random} for a random 10 %"


def describe_answer(answered: int | str | None) -> str:
    """Return the warning that the response gives another class, with a space behind it.

    Empty where it does not.
    """
    if answered is None:
        return ""
    return f"NOT WHAT WAS ANSWERED, the response gives class {printable(str(answered), 64)}. "


def to_json(facts: Facts | Refusal) -> bytes:
    """Return readable JSON."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=2)


def read_facts(content: bytes) -> Facts | Refusal:
    """Read what :func:`to_json` wrote.

    Raises:
        ValueError: neither of the two; names the member of Facts that is wrong.
    """
    try:
        with contextlib.suppress(ValueError):
            return msgspec.json.decode(content, type=Refusal)
        return msgspec.json.decode(content, type=Facts)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
