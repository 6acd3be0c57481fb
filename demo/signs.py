"""Drawn traffic signs: images for the demo and the tests that need no download.

Classes, order and names are those of the German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012,
doi:10.1016/j.neunet.2012.02.016). Each image shows a sign as a camera may: rotated and tilted, near or far, in front of
sky, leaves or houses, in sun, shade or haze, blurred and noisy.

The same seed gives the same pixels, for the pinned numpy and Pillow.
"""

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from demo.canvas import Canvas
from demo.pictograms import SIGNS

Pixels = NDArray[np.floating[Any]]

CLASS_NAMES: tuple[str, ...] = tuple(name for name, _ in SIGNS)


def draw(class_id: int, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Draw a sign of the class as a camera may show it, (size, size, 3) uint8, RGB.

    Raises:
        IndexError: the class does not exist.
    """
    if not 0 <= class_id < len(CLASS_NAMES):
        raise IndexError(f"class {class_id}: expected 0 to {len(CLASS_NAMES) - 1}.")
    scene = _background(rng, size) * _exposure(rng)
    sign, alpha = _posed(class_id, rng, size)
    sign = _weathered(sign, rng) * _exposure(rng) * _shade(rng, size)
    return _photographed(scene + (sign - scene) * alpha, rng)


def dataset(count: int, seed: int, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images (count, size, size, 3) of all classes equally often, in random order.

    Returns:
        The images, uint8, and their classes, (count,).
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.arange(count) % len(CLASS_NAMES))
    images = np.empty((count, size, size, 3), np.uint8)
    for index, class_id in enumerate(classes):
        images[index] = draw(class_id, rng, size)
    return images, classes


@functools.cache
def clean(class_id: int, size: int = 64) -> Image.Image:
    """Draw only the sign, upright, as large as the image, RGBA with a clear background."""
    image = Image.new("RGBA", (4 * size, 4 * size))
    _, sign = SIGNS[class_id]
    sign(Canvas(image))
    return image.resize((size, size), Image.Resampling.BOX)


# The camera ----------------------------------------------------------------------------------------------------

# Backgrounds: the colours of their darkest and lightest parts, and the number of patches along a side.
SCENES = (
    ((120, 160, 205), (235, 242, 250), (2,)),  # sky
    ((200, 205, 210), (250, 250, 250), (2, 3)),  # clouds
    ((12, 20, 10), (110, 135, 70), (4, 9, 19)),  # leaves
    ((30, 25, 20), (215, 220, 225), (6, 13, 27)),  # branches
    ((90, 50, 35), (205, 170, 140), (3, 12)),  # bricks
    ((60, 62, 66), (170, 168, 165), (2, 5)),  # tarmac
)


def _background(rng: np.random.Generator, size: int) -> Pixels:
    """Draw one background, or two with a horizon between them, and in half of the images a post."""
    scene = _scene(rng, size)
    if rng.random() < 0.5:
        horizon = rng.integers(size // 4, size)
        scene[horizon:] = _scene(rng, size)[horizon:]
    if rng.random() < 0.5:
        left, width = rng.integers(3 * size // 8, 5 * size // 8), rng.integers(size // 20 + 1, size // 9 + 2)
        scene[size // 2 :, left : left + width] = rng.uniform(50, 200)
    return scene


def _scene(rng: np.random.Generator, size: int) -> Pixels:
    dark, light, patches = SCENES[rng.integers(len(SCENES))]
    field = np.mean([_field(rng, size, n) for n in patches], axis=0)
    scene: Pixels = np.asarray(dark, np.float32) + np.subtract(light, dark).astype(np.float32) * field
    return scene


def _field(rng: np.random.Generator, size: int, patches: int) -> Pixels:
    """Return smooth noise (size, size, 1) in 0..1 with this many patches along a side."""
    coarse = Image.fromarray(rng.random((patches, patches), np.float32))
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return field.clip(0, 1)[..., None]


def _posed(class_id: int, rng: np.random.Generator, size: int) -> tuple[Pixels, Pixels]:
    """Return the rotated, tilted and shifted sign: colours (size, size, 3), 0..255, and opacity, 0..1."""
    sign = clean(class_id, 3 * size // 2)
    angle, stretch, reach = math.radians(rng.normal(0, 5)), rng.uniform(0.88, 1.12), rng.uniform(0.68, 0.98)
    cos, sin, half = math.cos(angle) / reach, math.sin(angle) / reach, sign.width / 2
    (dx, dy), (tilt_x, tilt_y) = rng.uniform(-0.08, 0.08, 2), rng.uniform(-0.15, 0.15, 2)
    # from a pixel of the image to -1..1, to the point of the sign that it shows, to the pixel of the sign
    scaled = np.array([[2 / size, 0, -1 - dx], [0, 2 / size, -1 - dy], [0, 0, 1]])
    turned = np.array([[cos * stretch, -sin, 0], [sin, cos, 0], [tilt_x, tilt_y, 1]])
    matrix = np.array([[half, 0, half], [0, half, half], [0, 0, 1]]) @ turned @ scaled
    coefficients = (matrix / matrix[2, 2]).ravel()[:8]
    posed = sign.transform((size, size), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    pixels = np.asarray(posed, np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255


def _weathered(sign: Pixels, rng: np.random.Generator) -> Pixels:
    """Fade the sign towards grey and add dirt."""
    faded = sign + rng.uniform(0, 0.3) * (rng.uniform(90, 160) - sign)
    clean_share: Pixels = 1 - rng.uniform(0, 0.35) * _field(rng, sign.shape[0], 4)
    return faded * clean_share


def _exposure(rng: np.random.Generator) -> Pixels:
    """Return a factor per colour (3,): rarely very dark or overexposed, slightly tinted."""
    light = np.exp(np.clip(rng.normal(-0.15, 0.5), -1.6, 0.4))
    return np.asarray(light * np.exp(rng.normal(0, 0.1, 3)), np.float32)


def _shade(rng: np.random.Generator, size: int) -> Pixels:
    """Return a factor per pixel (size, size, 1): a gradient, or a shadow over a part of the sign."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    across: Pixels = (math.cos(angle) * x + math.sin(angle) * y)[..., None]
    if rng.random() < 0.3:
        shadow = ((across - rng.uniform(-0.5, 0.5)) / 0.1).clip(0, 1)
        return np.asarray(1 - rng.uniform(0.2, 0.6) * shadow)
    return np.asarray(1 + rng.uniform(0, 0.3) * across)


def _photographed(scene: Pixels, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply haze, distance, blur and sensor noise."""
    size = scene.shape[0]
    haze = rng.uniform(0, 0.35) * (rng.random() < 0.4)
    scene = scene + haze * (rng.uniform(120, 230) - scene)
    image = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        far = image.resize(tuple(rng.integers(size // 3, size + 1, 2)), Image.Resampling.BILINEAR)
        image = far.resize((size, size), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(abs(rng.normal(0, size / 100))))
    noise = rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(0, 10))
    return (np.asarray(image, np.float32) + noise).round().clip(0, 255).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write an image folder with the layout of GTSRB, <class>/<number>.png."""
    parser = argparse.ArgumentParser(prog="python -m demo.signs", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--per-class", type=int, default=20, help="images of each of the 43 signs (default: 20)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same images (default: 0)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels (default: 64)")
    options = parser.parse_args(arguments)
    for class_id in range(len(CLASS_NAMES)):
        rng = np.random.default_rng((options.seed, class_id))
        folder = options.out / f"{class_id:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(options.per_class):
            Image.fromarray(draw(class_id, rng, options.size)).save(folder / f"{number:04d}.png")
    print(f"{len(CLASS_NAMES) * options.per_class} images of {len(CLASS_NAMES)} signs in {options.out}")


if __name__ == "__main__":
    main()
