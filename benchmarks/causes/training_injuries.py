"""The damage that the combiner is fitted on, with random severity. The benchmark uses other code: bench_injuries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.causes.windows import PREPROCESSING, Classifier, Images, Injury

Random = np.random.Generator


def _each(change: Callable[[Image.Image], Image.Image]) -> Callable[[Images], Images]:
    return lambda images: np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def _clipped(values: NDArray[Any]) -> Images:
    return np.asarray(values.round().clip(0, 255).astype(np.uint8))


def dark(images: Images, random: Random) -> Images:
    """Multiply by 0.05 to 0.4."""
    factor = random.uniform(0.05, 0.4, (len(images), 1, 1, 1))
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
    """Halve or quarter the size by averaging, or compress strongly as JPEG."""
    from io import BytesIO

    def compressed(image: Image.Image) -> Image.Image:
        stream = BytesIO()
        image.save(stream, "JPEG", quality=int(random.integers(4, 16)))
        return Image.open(stream).convert("RGB")

    def scaled(image: Image.Image) -> Image.Image:
        small = max(6, int(image.width / random.uniform(2.5, 5)))
        return image.resize((small, small), Image.Resampling.BOX).resize(
            image.size, Image.Resampling.BILINEAR
        )

    return _each(compressed if random.random() < 0.5 else scaled)(images)


def swapped(images: Images, random: Random) -> Images:
    """Reverse the channels."""
    return np.ascontiguousarray(images[..., ::-1])


def scaled(images: Images, random: Random) -> Images:
    """Divide by 255, or by 64 to 200."""
    divisor = 255.0 if random.random() < 0.6 else random.uniform(64, 200)
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
    "too dark": (dark, dim),
    "too bright": (bright,),
    "low contrast": (pale,),
    "blur": (blurred, defocused, smeared),
    "noise": (noisy, speckled, defective),
    "low resolution": (coarse,),
    "channels swapped": (swapped,),
    "wrong scaling": (scaled,),
    "upside down": (turned,),
    "broken sensor": (broken, cut, striped),
    "one image again and again": (repeated, requantised),
    "another": (grey, far, wavy, inverted, close),
}
