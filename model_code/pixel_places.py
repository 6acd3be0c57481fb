"""Find the place in the image of the values of a term, by the shape of the term or by the moves that led to it.

Feature maps, channels last and tokens in rows have a place by their shape. The tokens of attention windows do not: they
are views, permutations and rolls of a feature map. The same moves, applied to the numbers of the pixels, return where
each token comes from.

Needs torch 2.1 or later and the standard library; runs on Python 3.8 or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PREFIXES = (0, 1, 2, 4, 5)
"""Tokens before a grid: class, distillation and register tokens."""

SCALES = (1, 2, 4, 8)
"""A feature map of an unlisted size has the size of a listed one divided by one of these, rounded up."""

_MOVES = frozenset({"permute", "transpose", "select", "slice", "roll"})
_SAME_ORDER = frozenset({
    "view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "clone", "alias",
})  # fmt: skip
_PAD = "constant_pad_nd"


class Part(NamedTuple):
    """Part of a term.

    Attributes:
        suffix: of the term's name.
        values: (1, C, h, w) if they have pixels, otherwise (1, …).
        has_pixels: whether the values have a place in the image.
    """

    suffix: str
    values: Tensor
    has_pixels: bool


@dataclass(frozen=True)
class Pixels:
    """Where the values of a tensor are.

    Attributes:
        numbers: int64 of the tensor's shape; 1 + number of the pixel, row by row; 0 for padding.
        size: (h, w) of the feature map.
    """

    numbers: Tensor
    size: tuple[int, int]


class Places:
    """The places of the values in one forward pass.

    Args:
        size: (H, W) of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._grids = [size]
        self._moved: Any = WeakTensorKeyDictionary()  # tensor -> Pixels
        self._latest: dict[int, Pixels] = {}  # number of rows -> their pixels, (rows,)

    def add(self, size: tuple[int, ...]) -> None:
        """Note the size of a feature map."""
        if len(size) == 2 and size not in self._grids:
            self._grids.append((size[0], size[1]))

    def move(self, op: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Apply a move of values to the numbers of their pixels."""
        if op not in _MOVES and op not in _SAME_ORDER and op != _PAD:
            return
        before = self._moved.get(args[0]) or self._of_map(args[0])
        if before is None or (op in _SAME_ORDER and before.numbers.numel() != output.numel()):
            return
        if op in _SAME_ORDER:
            # The memory of the numbers is laid out differently, so that the same view may be impossible.
            numbers = before.numbers.reshape(output.shape)
        elif op == _PAD:
            numbers = func(before.numbers, args[1])
        else:
            numbers = func(before.numbers, *args[1:], **kwargs)
        self._moved[output] = Pixels(numbers, before.size)

    def of_rows(self, operands: Iterable[Tensor], output: Tensor) -> Pixels | None:
        """Return the pixels of the rows (…, C) of a layer's output, (rows,), or None.

        An operand that was only moved decides. Otherwise, such as after attention, it is the latest order of as many
        rows.
        """
        if output.ndim < 2 or not output.shape[-1]:
            return None
        rows = output.numel() // output.shape[-1]
        for operand in (output, *operands):  # an operator in place returns its operand
            found = self._moved.get(operand)
            if found is not None and found.numbers.numel() == rows * operand.shape[-1]:
                numbers = found.numbers.reshape(rows, -1)
                if numbers.stride(1) and not bool((numbers == numbers[:, :1]).all()):
                    return None  # a row holds several pixels
                self._latest[rows] = Pixels(numbers[:, 0], found.size)
                break
        latest = self._latest.get(rows)
        if latest is not None:
            numbers = latest.numbers.reshape(*output.shape[:-1], 1).expand(output.shape)
            self._moved[output] = Pixels(numbers, latest.size)
        return latest

    def parts(self, values: Tensor, *, is_map: bool, is_last: bool, rows: Pixels | None) -> Iterator[Part]:
        """Yield the parts of a term.

        Of tokens, those before the grid and those of a window's padding are parts of their own. All else, such as heads
        of attention, has no place in the image.

        Args:
            values: of any shape, for one image.
            is_map: whether the channels are certain to come first.
            is_last: whether they are likely to come last.
            rows: from :meth:`of_rows`.
        """
        if values.ndim < 2:
            values = values.reshape(1, -1)
        if values.ndim == 3 and values.shape[1] == 1 < values.shape[0]:
            values = values.transpose(0, 1)
        found = self._parts_by_shape(values, is_map, is_last) or _parts_in_rows(values, rows)
        yield from found or [Part("", values if len(values) == 1 else values.reshape(1, -1), False)]

    def _parts_by_shape(self, values: Tensor, is_map: bool, is_last: bool) -> list[Part]:
        if len(values) == 1 and values.ndim == 4:
            sizes = self._sizes()
            first, last = (tuple(values.shape[i : i + 2]) in sizes for i in (2, 1))
            if is_map or (first and not (is_last and last)):
                return [Part("", values, True)]
            return [Part("", values.movedim(-1, 1), True)] if last else []
        grid = self._grid(values.shape[1]) if len(values) == 1 and values.ndim == 3 else None
        if grid is None:
            return []
        prefix = values.shape[1] - grid[0] * grid[1]
        tokens = values[:, prefix:].reshape(1, *grid, -1).movedim(-1, 1)
        parts = [Part("", tokens, True)]
        return [*parts, Part("/prefix", values[:, :prefix], False)] if prefix else parts

    def _of_map(self, tensor: Tensor) -> Pixels | None:
        """Return the pixels of a feature map, whose channels come first or last."""
        if tensor.ndim != 4 or len(tensor) != 1:
            return None
        sizes = self._sizes()
        for first in (2, 1):
            height, width = tensor.shape[first : first + 2]
            if (height, width) in sizes:
                numbers = torch.arange(1, height * width + 1, device=tensor.device)
                shape = (1, 1, height, width) if first == 2 else (1, height, width, 1)
                return Pixels(numbers.reshape(shape).expand(tensor.shape), (height, width))
        return None

    def _sizes(self) -> list[tuple[int, int]]:
        """Return the possible sizes of feature maps of more than one pixel, the latest first."""
        sizes = [(-(-h // n), -(-w // n)) for h, w in reversed(self._grids) for n in SCALES]
        return [size for size in sizes if size != (1, 1)]

    def _grid(self, tokens: int) -> tuple[int, int] | None:
        """Return the size of the feature map that a sequence of tokens is made of."""
        sizes = self._sizes()
        for prefix in PREFIXES:
            for h, w in sizes:
                if h * w == tokens - prefix:
                    return h, w
        return None


def _parts_in_rows(values: Tensor, rows: Pixels | None) -> list[Part]:
    if rows is None or len(rows.numbers) * values.shape[-1] != values.numel():
        return []
    inside = rows.numbers > 0
    pixels = rows.numbers[inside] - 1
    if not len(pixels) or int(pixels.bincount().max()) > 1:
        return []
    flat = values.reshape(len(rows.numbers), -1)
    height, width = rows.size
    placed = flat.new_zeros(height * width, flat.shape[1])
    placed[pixels] = flat[inside]
    parts = [Part("", placed.reshape(1, height, width, -1).movedim(-1, 1), True)]
    return parts if bool(inside.all()) else [*parts, Part("/padding", flat[~inside][None], False)]
