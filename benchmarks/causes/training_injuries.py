"""The damage that the combiner is fitted on, with random severity. The benchmark uses other code: bench_injuries."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.causes.windows import PREPROCESSING, Classifier, Images, Injury, Pool

Random = np.random.Generator


def _each(change: Callable[[Image.Image], Image.Image]) -> Callable[[Images], Images]:
    return lambda images: np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def _clipped(values: NDArray[Any]) -> Images:
    return np.asarray(values.round().clip(0, 255).astype(np.uint8))


def dark(images: Images, random: Random) -> Images:
    """Multiply by 0.08 to 0.4."""
    factor = random.uniform(0.08, 0.4, (len(images), 1, 1, 1))
    return _clipped(images * factor)


def dim(images: Images, random: Random) -> Images:
    """Subtract 40 to 140, and darken the corners."""
    y, x = np.mgrid[-1 : 1 : images.shape[1] * 1j, -1 : 1 : images.shape[2] * 1j]
    vignette = 1 - random.uniform(0, 0.5) * np.minimum(1, (x * x + y * y) / 2)[..., None]
    return _clipped((images - random.uniform(40, 140, (len(images), 1, 1, 1))) * vignette)


def bright(images: Images, random: Random) -> Images:
    """Add 60 to 180 and clip."""
    return _clipped(images + random.uniform(60, 180, (len(images), 1, 1, 1)))


def pale(images: Images, random: Random) -> Images:
    """Shrink the contrast around the mean to 0.06 to 0.3."""
    mean = images.mean((1, 2, 3), keepdims=True)
    return _clipped(mean + random.uniform(0.06, 0.3, (len(images), 1, 1, 1)) * (images - mean))


def blurred(images: Images, random: Random) -> Images:
    """Blur by a Gaussian of 1.2 to 4 pixels."""
    radius = random.uniform(1.2, 4)
    return _each(lambda image: image.filter(ImageFilter.GaussianBlur(radius)))(images)


def defocused(images: Images, random: Random) -> Images:
    """Average over a square of 2 to 4 pixels around each pixel."""
    radius = random.uniform(1.5, 4)
    return _each(lambda image: image.filter(ImageFilter.BoxBlur(radius)))(images)


def smeared(images: Images, random: Random) -> Images:
    """Mix each pixel with the one before it on its diagonal, 0.75 to 0.93."""
    share = random.uniform(0.75, 0.93)
    out = images.astype(np.float32)
    for row in range(1, images.shape[1]):
        out[:, row, 1:] = share * out[:, row - 1, :-1] + (1 - share) * out[:, row, 1:]
    return _clipped(out)


def speckled(images: Images, random: Random) -> Images:
    """Multiply each value by 1 plus noise of 0.2 to 0.7."""
    return _clipped(images * (1 + random.normal(0, random.uniform(0.2, 0.7), images.shape)))


def defective(images: Images, random: Random) -> Images:
    """Give 3 to 30 % of the pixels a random colour."""
    hit = random.random(images.shape[:3]) < random.uniform(0.03, 0.3)
    return np.where(hit[..., None], random.integers(0, 256, images.shape), images).astype(np.uint8)


def noisy(images: Images, random: Random) -> Images:
    """Add Gaussian noise of 18 to 70."""
    return _clipped(images + random.normal(0, random.uniform(18, 70), images.shape))


def coarse(images: Images, random: Random) -> Images:
    """Shrink by 2.5 to 5 by averaging, and enlarge."""
    small = max(6, int(images.shape[2] / random.uniform(2.5, 5)))
    box, bilinear = Image.Resampling.BOX, Image.Resampling.BILINEAR
    return _each(lambda image: image.resize((small, small), box).resize(image.size, bilinear))(images)


def swapped(images: Images, random: Random) -> Images:
    """Reverse the channels."""
    return np.ascontiguousarray(images[..., ::-1])


def scaled(images: Images, random: Random) -> Images:
    """Divide by 255, or by 18 to 200."""
    divisor = 255.0 if random.random() < 0.5 else random.uniform(18, 200)
    return _clipped(images / divisor)


def turned(images: Images, random: Random) -> Images:
    """Mirror top to bottom, or turn by 180 degrees."""
    flipped = images[:, ::-1] if random.random() < 0.5 else images[:, ::-1, ::-1]
    return np.ascontiguousarray(flipped)


def broken(images: Images, random: Random) -> Images:
    """Repeat one row over a part of the image, or make all of it constant with little noise."""
    out = images.copy()
    if random.random() < 0.5:
        start = int(images.shape[1] * random.uniform(0, 0.4))
        out[:, start:] = out[:, start : start + 1]
        out[:, start:] = out[:, start:, :1]
        return out
    return _clipped(np.full_like(images, int(random.integers(0, 255))) + random.normal(0, 1.0, images.shape))


def cut(images: Images, random: Random) -> Images:
    """Write one value over the right or the lower 40 to 95 % of the image."""
    out, kept = images.copy(), random.uniform(0.05, 0.6)
    start = int(kept * images.shape[1])
    value = random.choice([0, 0, 16, 128, 255])
    if random.random() < 0.5:
        out[:, :, start:] = value
    else:
        out[:, start:] = value
    return out


def striped(images: Images, random: Random) -> Images:
    """Lose each row with a probability of 0.4 to 0.9."""
    out = images.copy()
    out[:, random.random(images.shape[1]) < random.uniform(0.4, 0.9)] = random.choice([0, 0, 255])
    return out


def requantised(images: Images, random: Random) -> Images:
    """Show one image again and again, each time with another brightness of up to 4 %."""
    one = images[random.integers(len(images))].astype(np.float32)
    return _clipped(one[None] * random.uniform(0.96, 1.04, (len(images), 1, 1, 1)))


def repeated(images: Images, random: Random) -> Images:
    """Show one image again and again, now and then with a little noise."""
    one = images[random.integers(len(images))]
    noise = random.normal(0, random.choice([0.0, 0.0, 1.5, 3.0]), images.shape)
    return _clipped(one[None] + noise)


def under(images: Images, random: Random) -> Images:
    """Expose 1.5 to 5 stops less, in linear light."""
    return _exposed(images, -random.uniform(1.5, 5, (len(images), 1, 1, 1)))


def over(images: Images, random: Random) -> Images:
    """Expose 1 to 3.5 stops more, in linear light."""
    return _exposed(images, random.uniform(1, 3.5, (len(images), 1, 1, 1)))


def _exposed(images: Images, stops: NDArray[np.float64]) -> Images:
    return _clipped(255 * np.clip((images / 255) ** 2.2 * 2.0**stops, 0, 1) ** (1 / 2.2))


def curved(images: Images, random: Random) -> Images:
    """Lower the middle tones by an exponential curve."""
    k = random.uniform(3, 9, (len(images), 1, 1, 1))
    return _clipped(255 * np.expm1(k * images / 255) / np.expm1(k))


def hazy(images: Images, random: Random) -> Images:
    """Mix with air of one colour, 0.55 to 0.95, unevenly."""
    air = random.uniform(70, 235) + random.uniform(-12, 12, 3)
    top, bottom = random.uniform(0.55, 0.95), random.uniform(0.55, 0.95)
    share = np.linspace(top, bottom, images.shape[1])[None, :, None, None]
    return _clipped((1 - share) * images + share * air)


def shaken(images: Images, random: Random) -> Images:
    """Average over a random walk of the camera, of 5 to 13 steps."""
    steps, angle, length = int(random.integers(5, 14)), random.uniform(0, np.pi), random.uniform(0.6, 1.2)
    direction = np.array([np.sin(angle), np.cos(angle)]) * length
    path = np.cumsum(direction + random.normal(0, 0.25, (steps, 2)), 0)
    margin, (height, width) = 9, images.shape[1:3]
    path = np.clip(np.rint(path - path.mean(0)), -margin, margin).astype(int) + margin
    padding = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    padded = np.pad(images.astype(np.float32), padding, mode="edge")
    return _clipped(np.mean([padded[:, y : y + height, x : x + width] for y, x in path], 0))


def resampled(images: Images, random: Random) -> Images:
    """Shrink by 2.2 to 6 and enlarge again, by two random kernels."""
    kernels = [getattr(Image.Resampling, name) for name in ("NEAREST", "BILINEAR", "BICUBIC", "BOX")]
    down, up = random.choice(4, 2)
    small = max(6, int(images.shape[2] / random.uniform(2.2, 6)))
    return _each(lambda image: image.resize((small, small), kernels[down]).resize(image.size, kernels[up]))(
        images
    )


def compressed(images: Images, random: Random) -> Images:
    """Compress as JPEG of quality 2 to 14."""
    return _each(_coded("JPEG", int(random.integers(2, 15)), subsampling=int(random.integers(3))))(images)


def _coded(kind: str, quality: int, **options: int) -> Callable[[Image.Image], Image.Image]:
    def coded(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, kind, quality=quality, **options)
        return Image.open(stream).convert("RGB")

    return coded


def grainy(images: Images, random: Random) -> Images:
    """Count photons, 4 to 30 of white."""
    white = random.uniform(4, 30)
    return _clipped(random.poisson(images / 255 * white) / white * 255.0)


def dead_pixels(images: Images, random: Random) -> Images:
    """Set 3 to 30 % of the pixels to 0 or 255."""
    hit = random.random(images.shape[:3]) < random.uniform(0.03, 0.3)
    return np.where(hit[..., None], random.choice([0, 255], images.shape[:3])[..., None], images).astype(
        np.uint8
    )


def blackout(images: Images, random: Random) -> Images:
    """Write one value below a row of the upper half, or everywhere."""
    out = images.copy()
    out[:, int(images.shape[1] * max(0, random.uniform(-0.15, 0.5))) :] = random.choice([0, 0, 0, 255, 64])
    return out


def shifted(images: Images, random: Random) -> Images:
    """Show one image again and again, each time shifted by a pixel at most."""
    one = images[random.integers(len(images))]
    return np.stack([np.roll(one, tuple(by), (0, 1)) for by in random.integers(-1, 2, (len(images), 2))])


def recoded(images: Images, random: Random) -> Images:
    """Show one image again and again, each time compressed as WebP of another quality."""
    one = Image.fromarray(images[random.integers(len(images))])
    return np.stack(
        [np.asarray(_coded("WEBP", int(random.integers(50, 98)))(one)) for _ in range(len(images))]
    )


def tilted(images: Images, random: Random) -> Images:
    """Turn by 60 to 120 degrees."""
    angle = float(random.uniform(60, 120)) * random.choice([-1, 1])
    return _each(lambda image: image.rotate(angle, Image.Resampling.BILINEAR))(images)


def moved(images: Images, random: Random) -> Images:
    """Move the content to the right by 30 to 60 %."""
    by, width = int(images.shape[2] * random.uniform(0.3, 0.6)), images.shape[2]
    return np.ascontiguousarray(np.pad(images, [(0, 0), (0, 0), (by, 0), (0, 0)], mode="edge")[:, :, :width])


def posterised(images: Images, random: Random) -> Images:
    """Keep 2 or 3 values of each channel."""
    most = int(random.integers(1, 3))
    return _clipped(np.round(images / 255 * most) / most * 255.0)


def channel_lost(images: Images, random: Random) -> Images:
    """Set one channel to 0."""
    out = images.copy()
    out[..., int(random.integers(3))] = 0
    return out


def two_swapped(images: Images, random: Random) -> Images:
    """Swap green with red or with blue."""
    return np.ascontiguousarray(images[..., [1, 0, 2] if random.random() < 0.5 else [0, 2, 1]])


def grey(images: Images, random: Random) -> Images:
    """Remove the colours."""
    luma = images.mean(3, keepdims=True)
    return _clipped(np.repeat(luma, 3, 3))


def far(images: Images, random: Random) -> Images:
    """Shrink the image to a third inside a grey frame."""
    size = images.shape[1]
    small = int(size * random.uniform(0.3, 0.5))

    def framed(image: Image.Image) -> Image.Image:
        frame = Image.new("RGB", image.size, (128, 128, 128))
        at = (size - small) // 2
        frame.paste(image.resize((small, small), Image.Resampling.BILINEAR), (at, at))
        return frame

    return _each(framed)(images)


def wavy(images: Images, random: Random) -> Images:
    """Shift each row by a wave."""
    rows = np.arange(images.shape[1])
    shift = np.round(random.uniform(4, 9) * np.sin(rows / random.uniform(3, 7))).astype(int)
    columns = (np.arange(images.shape[2])[None, :] + shift[:, None]) % images.shape[2]
    return np.asarray(images[:, rows[:, None], columns])


def inverted(images: Images, random: Random) -> Images:
    """Show the negative."""
    return _clipped(255.0 - images)


def close(images: Images, random: Random) -> Images:
    """Show only the middle third, enlarged."""
    size = images.shape[1]
    start, side = size // 3, max(8, int(size * random.uniform(0.25, 0.4)))
    box = (start, start, start + side, start + side)
    return _each(lambda image: image.crop(box).resize(image.size, Image.Resampling.BILINEAR))(images)


def attack(classifier: Classifier) -> Injury:
    """Return an attack by projected gradient descent to one class.

    Method: Madry et al. 2018; ε of 4/255 to 16/255.
    """

    def attacked(images: Images, random: Random) -> Images:
        epsilon = float(random.choice([4, 6, 8, 12, 16])) / 255
        target = int(random.integers(43))
        mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        start = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        noise = torch.from_numpy(random.uniform(-epsilon, epsilon, start.shape).astype(np.float32))
        moved = (start + noise).clamp(0, 1)
        for _ in range(15):
            moved.requires_grad_(True)
            logits = classifier.network((moved - mean) / std)
            loss = torch.nn.functional.cross_entropy(
                logits, torch.full((len(images),), target), reduction="sum"
            )
            (slope,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() - epsilon / 5 * slope.sign()
            moved = torch.minimum(torch.maximum(moved, start - epsilon), start + epsilon).clamp(0, 1)
        return (moved * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return attacked


#: Injuries by the cause of :data:`glassbox.diagnosis.combiner.CAUSES`; prevalence and attack are made apart.
INJURIES: Mapping[str, tuple[Injury, ...]] = {
    "too dark": (dark, dim, under, curved),
    "too bright": (bright, over),
    "low contrast": (pale, hazy),
    "blur or low resolution": (blurred, defocused, smeared, shaken, coarse, resampled, compressed),
    "noise": (noisy, speckled, defective, grainy, dead_pixels),
    "channels swapped": (swapped,),
    "wrong scaling": (scaled,),
    "upside down": (turned,),
    "broken sensor": (broken, cut, striped, blackout),
    "one image again and again": (repeated, requantised, shifted, recoded),
    "another": (
        grey,
        far,
        wavy,
        inverted,
        close,
        tilted,
        moved,
        posterised,
        channel_lost,
        two_swapped,
    ),
}


class Camera:
    """Ordinary differences of exposure, contrast, colour, focus and noise between images.

    Each camera has its own amount of each, and each class its own mean, so that the fit does not learn one camera's
    images. ``plain`` changes nothing.
    """

    def __init__(self, random: Random, classes: int, *, plain: bool = False) -> None:
        self._plain, self._random = plain, random
        u = random.uniform
        self._exposure, self._mean_exposure, self._contrast = u(0, 0.35), u(-0.35, 0.35), u(0, 0.25)
        self._colour, self._blur, self._noise = u(0, 0.06), u(0, 1.0), u(0, 8)
        self._class_exposure = random.normal(0, u(0, 0.3), classes)
        self._class_contrast = random.normal(0, u(0, 0.2), classes)
        self._class_colour = random.normal(0, u(0, 0.05), (classes, 3))
        self._class_blur = np.abs(random.normal(0, u(0, 0.8), classes))
        self._class_noise = np.abs(random.normal(0, u(0, 5), classes))

    def __call__(self, pool: Pool) -> Pool:
        """Return the images as this camera takes them."""
        if self._plain:
            return pool
        normal, k, n = self._random.normal, pool.classes, len(pool.images)

        def each(of: float, by_class: NDArray[np.float64]) -> NDArray[np.float64]:
            return (normal(0, of, n) + by_class[k])[:, None, None, None]

        values = pool.images.astype(np.float32)
        contrast = np.exp(each(self._contrast, self._class_contrast)).clip(0.4, 1.5)
        mean = values.mean((1, 2, 3), keepdims=True)
        values = np.clip((mean + contrast * (values - mean)) / 255, 0, 1)
        values = 255 * values ** np.exp(self._mean_exposure + each(self._exposure, self._class_exposure))
        colour = normal(0, self._colour, (n, 1, 1, 3)) + self._class_colour[k][:, None, None, :]
        images = _clipped(values * np.exp(colour))
        radii = (np.abs(normal(0, self._blur, n)) + self._class_blur[k]).clip(0, 1.6)
        soft = [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(radius))))
            for image, radius in zip(images, radii, strict=True)
        ]
        noise = (np.abs(normal(0, self._noise, n)) + self._class_noise[k])[:, None, None, None]
        return Pool(_clipped(np.stack(soft) + normal(0, 1, images.shape) * noise), k)
