"""A captured request body <-> pixels, and what can be measured on one image."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from glassbox.errors import BadInputError
from glassbox.incidents.input_image import browser_image, embedded_image
from glassbox.monitoring import npy

Pixels = NDArray[np.uint8]
PNG, JPEG = "PNG", "JPEG"
JPEG_QUALITY = 95  # of a repaired copy; with full colour resolution
SMALLEST = 8  # pixels of a side
_SIDE = 160  # pixels; larger images are measured at this size
_MIDDLE = 32 * 8  # pixels of a side that show the blocks of a large image
_SPIKE = 0.1  # of the range of luma
_BLOCK = 8  # pixels of a JPEG block

#: The measurements of :func:`measure`, in the order of its vector.
MEASURES = (
    "brightness",  # median luma, 0..1
    "dark",  # 5th percentile of luma, 0..1
    "light",  # 95th percentile of luma, 0..1
    "black",  # share of values of at most 2
    "white",  # share of values of at least 253
    "sharpness",  # log of the Laplacian's variance over the luma's
    "detail",  # log of the share of the luma's deviation that halving the size removes
    "noise",  # log of the noise's deviation, by the median of the diagonal details (Donoho 1994), calm tiles
    "spikes",  # log of the share of pixels that differ from all neighbours by a tenth of the range, calm tiles
    "blocks",  # step across the borders of 8 x 8 blocks over that within them, log
    "red over blue",  # log of the channels' means
    "green over red",
    "saturation",  # mean of the largest minus the smallest channel, 0..1
    "light above",  # mean luma of the upper half minus the lower half, -1..1
    "entropy",  # of the luma's histogram, bits
    "flat rows",  # share of the rows with a deviation below half a step
    "levels",  # log2 of the number of different values
)


@dataclass(frozen=True)
class Decoded:
    """The pixels (H, W, 3) of a body, and how to write others as the same kind of body."""

    pixels: Pixels
    encode: Callable[[Pixels], bytes]


def decode(body: bytes) -> Decoded:
    """Return the pixels of an image.

    It is a PNG, a JPEG, JSON with one of them in base64, or a ``.npy`` array of uint8, of shape (H, W) or
    (H, W, 1 or 3), with N = 1 before or not.

    Raises:
        BadInputError: the body is another format, too large, or holds several images.
    """
    kind, image = browser_image(body)
    try:
        with Image.open(io.BytesIO(image), formats=[PNG, JPEG]) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadInputError(f"input: {error}") from error
    if min(pixels.shape[:2]) < SMALLEST:
        raise BadInputError(f"input: expected sides of at least {SMALLEST} pixels, got {pixels.shape[:2]}")
    if body.startswith(npy.MAGIC):
        shape = npy.read_header(body)[0]
        if len(shape) == 4 and shape[0] != 1:
            raise BadInputError(f"input: expected one image, got {shape[0]}")
        is_grey = len(shape) == 2 or shape[-1] == 1
        return Decoded(pixels, lambda changed: _npy(changed[..., 1] if is_grey else changed, shape))
    name = PNG if kind == "image/png" else JPEG
    if embedded := embedded_image(body):
        return Decoded(pixels, lambda changed: embedded.replaced(written(changed, name)))
    return Decoded(pixels, lambda changed: written(changed, name))


def written(pixels: Pixels, name: str = PNG) -> bytes:
    """Return an image as PNG or JPEG."""
    stream = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if name == JPEG else {}
    Image.fromarray(pixels).save(stream, name, **options)
    return stream.getvalue()


def _npy(pixels: Pixels, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(pixels).reshape(shape), allow_pickle=False)
    return stream.getvalue()


def measure(pixels: Pixels) -> NDArray[np.float32]:
    """Return the MEASURES of an image, (len(MEASURES),)."""
    small = _reduced(pixels)
    values = small.astype(np.float32) / 255
    luma = np.asarray(values @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)
    dark, median, light = np.percentile(luma, (5, 50, 95))
    deviation = float(luma.std()) + 1e-3
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    height, width = luma.shape[0] // 2 * 2, luma.shape[1] // 2 * 2
    even = luma[:height, :width]
    a, b, c, d = even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2]
    halved = np.repeat(np.repeat((a + b + c + d) / 4, 2, 0), 2, 1)
    diagonal = (a - b - c + d) / 2
    neighbours = np.stack([luma[:-2, 1:-1], luma[2:, 1:-1], luma[1:-1, :-2], luma[1:-1, 2:]])
    inner = luma[1:-1, 1:-1]
    apart = np.maximum(inner - neighbours.max(0), neighbours.min(0) - inner)
    red, green, blue = values.reshape(-1, 3).mean(0) + 0.02
    counts = np.bincount((luma * 63.999).astype(np.int64).ravel(), minlength=64) / luma.size
    present = counts[counts > 0]
    half = luma.shape[0] // 2
    return np.array(
        [
            median,
            dark,
            light,
            (small <= 2).mean(),
            (small >= 253).mean(),
            np.log(float(laplacian.var()) / deviation**2 + 1e-4),
            np.log(float((even - halved).std()) / deviation + 1e-3),
            np.log(_calm(np.abs(diagonal), np.median) / 0.6745 + 1e-3),
            np.log(_calm(apart > _SPIKE, np.mean) + 1e-3),
            _blocks(luma if small is pixels else _middle(pixels)),
            np.log(red / blue),
            np.log(green / red),
            (values.max(2) - values.min(2)).mean(),
            luma[:half].mean() - luma[half:].mean(),
            -(present * np.log2(present)).sum(),
            (luma.std(1) < 0.5 / 255).mean(),
            np.log2(np.count_nonzero(np.bincount(small.ravel(), minlength=256))),
        ],
        np.float32,
    )


def _calm(details: NDArray[Any], of: Callable[[NDArray[Any]], Any]) -> float:
    """Return the 10th percentile of a statistic of 4 x 4 tiles of (H, W) details.

    Noise of a sensor is everywhere; an object with a rough surface is not.
    """
    tiles = [tile for rows in np.array_split(details, 4) for tile in np.array_split(rows, 4, axis=1)]
    return float(np.percentile([of(tile) for tile in tiles if tile.size], 10))


def _reduced(pixels: Pixels) -> Pixels:
    """Return every n-th pixel of a large image: averaging would remove the noise that is measured."""
    step = max(1, -(-min(pixels.shape[:2]) // _SIDE))
    return pixels if step == 1 else np.ascontiguousarray(pixels[::step, ::step])


def _middle(pixels: Pixels) -> NDArray[np.float32]:
    """Return the green values of the middle of a large image, 0..1, cut at borders of blocks."""
    top, left = (max(0, (side - _MIDDLE) // 2) // _BLOCK * _BLOCK for side in pixels.shape[:2])
    green = pixels[top : top + _MIDDLE, left : left + _MIDDLE, 1]
    return np.asarray(green.astype(np.float32) / np.float32(255))


def _blocks(luma: NDArray[np.float32]) -> float:
    """Return the log ratio of the steps across the borders of 8 x 8 blocks to the steps within them."""
    across: list[float] = []
    within: list[float] = []
    for steps in (np.abs(np.diff(luma, axis=1)).mean(0), np.abs(np.diff(luma, axis=0)).mean(1)):
        at_border = np.arange(len(steps)) % _BLOCK == _BLOCK - 1
        if at_border.any():
            across.append(float(steps[at_border].mean()))
            within.append(float(steps[~at_border].mean()))
    return float(np.log((sum(across) + 1e-3) / (sum(within) + 1e-3))) if across else 0.0


def fingerprint(pixels: Pixels) -> str:
    """Return the sha256 of the pixels and their shape, in hex."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def difference_hash(pixels: Pixels) -> int:
    """Return a hash of 64 bits that similar images share.

    A bit is whether one of 8 x 9 averaged pixels is brighter than its right neighbour.
    """
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
    luma = np.asarray(small, np.int16)
    bits = (luma[:, 1:] > luma[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def thumbnail(pixels: Pixels) -> NDArray[np.float32]:
    """Return a vector (192,) of unit length by which similar images are found.

    It holds 8 x 8 averaged pixels, less their mean.
    """
    small = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX)
    vector = np.asarray(small, np.float32).ravel() / 255
    vector = vector - vector.mean()
    return np.asarray(vector / (np.linalg.norm(vector) + 1e-6), np.float32)
