"""Add the maps of a logit's terms to one heat map over the input image.

The render function and the endpoint both call it, so that both see the same map. Needs numpy and the standard library
only, because ``package.py`` puts it into ``model.tar.gz``; runs on Python 3.8 or later.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glassbox.explanation import trace_format

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

RESCALE_EPS = 1e-6
"""Added to the denominator of the rescaling, as in the authors' code."""

FLAT = 1e-6
"""A layer whose |terms| differ by less than this share is left out of the map: the difference is rounding."""

CHANNELS, MIN_ABS, MAX_ABS, SUM, SUM_ABS = range(len(trace_format.STATS))


def saliency_of(stats: Float64, maps: Sequence[Float32 | None]) -> Float32:
    """Rescale each layer's map, and sum them at the size of the first, which is the input's.

    Σ_c (|t| − min) / (max − min + 1e-6) = (Σ_c|t| − C·min) / (max − min + 1e-6), and interpolation is linear: so the
    channels of a layer and the layers of a size are added before they are interpolated.
    """
    low, high = stats[..., MIN_ABS], stats[..., MAX_ABS]
    scale = np.where(high - low > FLAT * high, 1 / (high - low + RESCALE_EPS), 0)
    offset = (stats[..., CHANNELS] * low * scale).astype(np.float32)[..., None, None]
    scale = scale.astype(np.float32)[..., None, None]
    by_size: dict[tuple[int, ...], Float32] = {}
    for layer, sum_abs in enumerate(maps):
        if sum_abs is None:
            continue
        rescaled = sum_abs * scale[:, layer]
        rescaled -= offset[:, layer]
        if sum_abs.shape in by_size:
            by_size[sum_abs.shape] += rescaled
        else:
            by_size[sum_abs.shape] = rescaled
    total, *others = by_size.values()
    _, height, width = total.shape
    for smaller in others:
        total += _interpolate(_interpolate(smaller, width, 2), height, 1)
    # Σ|t| is rounded, so it may be below C·min.
    return np.maximum(total, 0).astype(np.float32, copy=False)


def _interpolate(maps: Float32, size: int, axis: int) -> Float32:
    """Interpolate linearly along one axis; the corners keep their values (``align_corners=True``)."""
    left, right, weight = _neighbours(maps.shape[axis], size)
    found, beside = maps.take(left, axis), maps.take(right, axis)
    beside -= found
    beside *= weight.reshape(-1, *[1] * (maps.ndim - 1 - axis))
    found += beside
    return found


@functools.lru_cache(maxsize=64)
def _neighbours(n_in: int, n_out: int) -> tuple[Array, Array, Float32]:
    """Return for every new point its left and right old point, and its position between them, 0 to 1."""
    position = np.linspace(0, n_in - 1, n_out) if n_out > 1 else np.zeros(1)
    left = position.astype(int)
    return left, np.minimum(left + 1, n_in - 1), (position - left).astype(np.float32)
