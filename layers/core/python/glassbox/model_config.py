"""The preparation of a model's input, as ``config.json`` in model.tar.gz holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassbox.errors import BadInputError

SIDE = 1024  # of the model's input
RESNET18 = "resnet18"
FLOAT32_MAX, FLOAT32_TINY = 3.4028234663852886e38, 1.1754943508222875e-38

_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ModelConfig:
    """``config.json``, checked.

    Attributes:
        architecture: ``resnet18`` or ``module:Class`` in ``code/``.
        image_size: (H, W).
        mean: 1 or 3 numbers, for channels in 0 to 1; and so is ``std``.
        labels: the K classes' names, or None.
        arguments: of ``Class``.
    """

    architecture: str
    image_size: tuple[int, int]
    mean: list[float]
    std: list[float]
    labels: list[str] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> ModelConfig:
    """Read ``config.json``.

    Raises:
        BadInputError: names every problem.
    """
    try:
        content = {**json.loads(path.read_text(encoding="utf-8"))}
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: expected a JSON object, got something else: {error}") from error
    try:
        return to_config(content)
    except ValueError as error:
        raise BadInputError(f"{path}: {error}") from error


def to_config(content: Mapping[str, Any]) -> ModelConfig:
    """Check the members of ``config.json``, ignoring further ones.

    Raises:
        ValueError: names every problem.
    """

    def numbers(value: object) -> bool:
        # As float32 holds them: a number in JSON may be NaN, infinite, or larger than any float.
        return isinstance(value, list) and all(
            type(v) in (int, float) and abs(v) <= FLOAT32_MAX for v in value
        )

    names = ("architecture", "image_size", "mean", "std", "labels")
    architecture, size, mean, std, labels = (content.get(name) for name in names)
    arguments = content.get("arguments", {})
    problems = {
        "architecture must be 'resnet18' or 'module:Class'": isinstance(architecture, str)
        and bool(architecture == RESNET18 or _CLASS.fullmatch(architecture)),
        "arguments must be an object": isinstance(arguments, dict),
        f"image_size must be two whole numbers (H, W) from 1 to {SIDE}": isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= SIDE for side in size),
        "mean must be 1 or 3 numbers": isinstance(mean, list) and numbers(mean) and len(mean) in (1, 3),
        "std must be as many numbers, above 0": isinstance(std, list)
        and numbers(std)
        and len(std) == len(mean if isinstance(mean, list) else ())
        and all(deviation >= FLOAT32_TINY for deviation in std),
        "labels must be null or texts": labels is None
        or (isinstance(labels, list) and all(isinstance(label, str) for label in labels)),
    }
    if not all(problems.values()):
        raise ValueError("; ".join(problem for problem, fine in problems.items() if not fine))
    height, width = size  # type: ignore[misc]  # checked above, where mypy cannot follow
    return ModelConfig(architecture, (height, width), mean, std, labels, arguments)  # type: ignore[arg-type]
