"""Measure whether a class score depends on the pixels that a heat map marks.

A small completeness error proves that the terms add up to the score, not that the marked pixels matter. Here a tenth of
the image is blurred twice: the cells of the highest relevance, and as many random ones. A map that marks what the
network uses lowers the class's probability by the first more than by the second.

Runs on Python 3.8 or later.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from complete_gradients import plain_logits

CELLS = 16
"""Along each side of the image; a smaller image has a cell for each pixel."""

SHARE = 0.1
"""Of the cells, which are blurred."""

Bools = npt.NDArray[np.bool_]


def blurred_probabilities(
    model: nn.Module, image: Tensor, target: int, saliency: npt.NDArray[np.float32]
) -> tuple[float, float] | None:
    """Return p(target) after blurring the best tenth of the cells, and a random tenth.

    The hash of the image is the seed of the random cells, so the same image always gives the same numbers. Takes two
    forward passes.

    Args:
        model: see :func:`complete_gradients.plain_logits`.
        image: (1, C, H, W) float32, normalised.
        target: class.
        saliency: (H, W), the relevance of each pixel.

    Returns:
        Two probabilities, 0 to 1; None for a map that marks nothing, because all cells are equal.

    Raises:
        UnexplainableError, RuntimeError: see :func:`complete_gradients.plain_logits`.
        ArithmeticError: the network returned NaN or infinity.
    """
    ranked = _best(saliency)
    if ranked is None:
        return None
    smooth = _blurred(image)
    masks = [torch.from_numpy(mask).to(image.device) for mask in (ranked, _random(image, saliency.shape))]
    images = torch.cat([torch.where(mask, smooth, image) for mask in masks])
    probabilities = plain_logits(model, images).double().softmax(1)[:, target]
    if not probabilities.isfinite().all():
        raise ArithmeticError("logits of a blurred image: expected finite values, got NaN or infinity")
    best, random = probabilities.tolist()
    return best, random


def _best(saliency: npt.NDArray[np.float32]) -> Bools | None:
    """Return (H, W), whether a pixel is in the best cells; None if all cells are equal."""
    rows, columns = map(_cells, saliency.shape)
    sums = np.zeros((rows[-1] + 1, columns[-1] + 1))
    np.add.at(sums, (rows[:, None], columns), saliency)
    means = sums / np.outer(np.bincount(rows), np.bincount(columns))
    if means.max() - means.min() <= 1e-6 * means.max():  # the difference is rounding
        return None
    order = np.argsort(-means, axis=None, kind="stable")
    return _mask(order, means.shape)[rows[:, None], columns]


def _random(image: Tensor, shape: tuple[int, ...]) -> Bools:
    """Return (H, W), whether a pixel is in the random cells of this image."""
    rows, columns = map(_cells, shape)
    seed = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
    cells = (rows[-1] + 1, columns[-1] + 1)
    order = np.random.default_rng(list(seed)).permutation(cells[0] * cells[1])
    return _mask(order, cells)[rows[:, None], columns]


def _cells(size: int) -> npt.NDArray[np.int_]:
    """Return the cell of each pixel along one side."""
    return np.arange(size) * min(CELLS, size) // size


def _mask(order: npt.NDArray[np.int_], cells: tuple[int, ...]) -> Bools:
    mask = np.zeros(len(order), bool)
    mask[order[: max(1, round(SHARE * len(order)))]] = True
    return mask.reshape(cells)


def _blurred(image: Tensor) -> Tensor:
    """Return the image after three box filters along each side, which are close to a Gaussian filter.

    A box is an eighth of the side, two cells; the standard deviation is half of that.
    """
    smooth = image.double()
    for dim in (2, 3):
        for _ in range(3):
            smooth = _box_filtered(smooth, dim)
    return smooth.to(image.dtype)


def _box_filtered(image: Tensor, dim: int) -> Tensor:
    """Return the mean of the pixels of each box along ``dim``; at the border the box is smaller."""
    size = image.shape[dim]
    reach = max(1, size // 16)
    at = torch.arange(size, device=image.device)
    first, end = (at - reach).clamp(min=0), (at + reach + 1).clamp(max=size)
    # Differences of running sums: the time does not grow with the box.
    sums = torch.cat((torch.zeros_like(image.narrow(dim, 0, 1)), image.cumsum(dim)), dim)
    sides = (-1, 1) if dim == 2 else (-1,)
    return (sums.index_select(dim, end) - sums.index_select(dim, first)) / (end - first).reshape(sides)
