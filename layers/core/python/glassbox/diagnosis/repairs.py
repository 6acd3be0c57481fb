"""Repairs of an image: each undoes one kind of damage, and changes an undamaged image little."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from glassbox.diagnosis.pixels import Pixels

Repair = Callable[[Pixels], Pixels]

UNCHANGED, ENCODED = "unchanged", "decoded and encoded again"


def _by_pillow(change: Callable[[Image.Image], Image.Image]) -> Repair:
    return lambda pixels: np.asarray(change(Image.fromarray(pixels)))


def _jpeg(quality: int) -> Repair:
    def compressed(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream, formats=["JPEG"]).convert("RGB")

    return _by_pillow(compressed)


def _gamma(exponent: float) -> Repair:
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda pixels: table[pixels]


def _stretch(pixels: Pixels) -> Pixels:
    low, high = np.percentile(pixels, (2, 98))
    scaled = (pixels.astype(np.float32) - low) / max(float(high - low), 1.0) * 255
    return np.asarray(scaled.round().clip(0, 255).astype(np.uint8))


def _times_255(pixels: Pixels) -> Pixels:
    return np.asarray(np.minimum(pixels.astype(np.uint16) * 255, 255).astype(np.uint8))


def _sharpen(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(radius=2, percent=200, threshold=0))


#: Repairs by name, in the order in which a report lists them.
REPAIRS: Mapping[str, Repair] = {
    "channels swapped": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    "turned by 180 degrees": lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1]),
    "mirrored top to bottom": lambda pixels: np.ascontiguousarray(pixels[::-1]),
    "values times 255": _times_255,
    "brightened (gamma 0.4)": _gamma(0.4),
    "darkened (gamma 2)": _gamma(2.0),
    "contrast stretched": _stretch,
    "sharpened": _by_pillow(_sharpen),
    "smoothed (3 x 3 median)": _by_pillow(lambda image: image.filter(ImageFilter.MedianFilter(3))),
    "reduced to 4 bits": lambda pixels: np.asarray(pixels // 16 * 17),
    "compressed (JPEG 50)": _jpeg(50),
}
#: Repairs that remove small changes anywhere in an image, and little else.
SQUEEZERS = ("smoothed (3 x 3 median)", "reduced to 4 bits", "compressed (JPEG 50)")
