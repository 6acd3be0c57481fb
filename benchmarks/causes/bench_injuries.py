"""The damage of the benchmark, at five severities. None of this code is used by the fit.

``HELD_OUT`` are two causes that the combiner never saw: it must call them unknown. They were chosen before the fit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import foolbox
import numpy as np
import torch
from foolbox.models.pytorch import PyTorchModel
from numpy.typing import NDArray
from PIL import Image

from benchmarks.causes.windows import PREPROCESSING, Classifier, Images

Random = np.random.Generator
Severe = Callable[[Images, int, Random], Images]
SEVERITIES = range(5)


def _each(change: Callable[[Image.Image], Image.Image], images: Images) -> Images:
    return np.stack([np.asarray(change(Image.fromarray(image)).convert("RGB")) for image in images])


def _bytes(values: NDArray[Any]) -> Images:
    return np.asarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def under_exposed(images: Images, severity: int, random: Random) -> Images:
    """Gamma of 2 to 4."""
    return _bytes(255 * (images / 255) ** (2.0, 2.5, 3.0, 3.5, 4.0)[severity])


def over_exposed(images: Images, severity: int, random: Random) -> Images:
    """Multiply by 2 to 5 and clip."""
    return _bytes(images * (2.0, 2.5, 3.0, 4.0, 5.0)[severity])


def fog(images: Images, severity: int, random: Random) -> Images:
    """Mix with light grey, 0.6 to 0.92."""
    share = (0.6, 0.7, 0.8, 0.87, 0.92)[severity]
    return _bytes((1 - share) * images + share * 190)


def motion(images: Images, severity: int, random: Random) -> Images:
    """Average over a horizontal or vertical path of 5 to 13 pixels."""
    length = (5, 7, 9, 11, 13)[severity]
    axis = 1 + int(random.integers(2))
    half = length // 2
    padded = np.pad(images.astype(np.float32), [(0, 0), (half, half), (half, half), (0, 0)], mode="edge")
    size = images.shape[1]
    parts = []
    for shift in range(length):
        rows = slice(shift, shift + size) if axis == 1 else slice(half, half + size)
        columns = slice(shift, shift + size) if axis == 2 else slice(half, half + size)
        parts.append(padded[:, rows, columns])
    return _bytes(np.mean(parts, axis=0))


def impulses(images: Images, severity: int, random: Random) -> Images:
    """Set 4 to 25 % of the pixels to black or white."""
    share = (0.04, 0.08, 0.12, 0.18, 0.25)[severity]
    hit = random.random(images.shape[:3]) < share
    value = np.where(random.random(images.shape[:3]) < 0.5, 0, 255).astype(np.uint8)
    return np.where(hit[..., None], value[..., None], images)


def blocky(images: Images, severity: int, random: Random) -> Images:
    """Repeat each pixel of an image that is 3 to 6 times smaller.

    The two mildest are WebP of low quality.
    """
    if severity < 2:

        def compressed(image: Image.Image) -> Image.Image:
            stream = io.BytesIO()
            image.save(stream, "WEBP", quality=(4, 0)[severity])
            return Image.open(stream)

        return _each(compressed, images)
    factor = (0, 0, 3, 4, 6)[severity]
    small = images[:, ::factor, ::factor]
    grown = np.repeat(np.repeat(small, factor, 1), factor, 2)
    return np.ascontiguousarray(grown[:, : images.shape[1], : images.shape[2]])


def bgr(images: Images, severity: int, random: Random) -> Images:
    """Write blue, green, red."""
    return np.stack([images[..., 2], images[..., 1], images[..., 0]], -1)


def floats_as_bytes(images: Images, severity: int, random: Random) -> Images:
    """Write 0..1 as bytes, or 0..2 to 0..8."""
    return _bytes(images / 255 * (1, 1, 2, 4, 8)[severity])


def upside_down(images: Images, severity: int, random: Random) -> Images:
    """Turn by 180 degrees."""
    return np.ascontiguousarray(np.rot90(images, 2, axes=(1, 2)))


def dead(images: Images, severity: int, random: Random) -> Images:
    """Black out the lower 60 to 100 % of the rows."""
    rows = images.shape[1]
    out = images.copy()
    out[:, round(rows * (1 - (0.6, 0.7, 0.8, 0.9, 1.0)[severity])) :] = 0
    return out


def frozen(images: Images, severity: int, random: Random) -> Images:
    """Show one image, the milder ones again compressed with another quality each time."""
    one = Image.fromarray(images[int(random.integers(len(images)))])

    def sent(_: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        one.save(stream, "JPEG", quality=int(random.integers((60, 75, 85, 95, 95)[severity], 97)))
        return Image.open(stream)

    return np.stack([np.asarray(one)] * len(images)) if severity == 4 else _each(sent, images)


def covered(images: Images, severity: int, random: Random) -> Images:
    """Cover 25 to 60 % of the width by a dark, textured object (held out)."""
    out, size = images.copy(), images.shape[1]
    wide = round(size * (0.25, 0.33, 0.42, 0.5, 0.6)[severity])
    for image in out:
        left = int(random.integers(0, size - wide + 1))
        image[:, left : left + wide] = random.integers(20, 110, (size, wide, 1))
    return out


def tinted(images: Images, severity: int, random: Random) -> Images:
    """Weaken green and blue, as a sodium lamp or a failing white balance does (held out)."""
    strength = (0.6, 0.5, 0.4, 0.3, 0.2)[severity]
    return _bytes(images * np.array([1.0, 0.5 + strength / 2, strength]))


CAUSES: Mapping[str, Severe] = {
    "too dark": under_exposed,
    "too bright": over_exposed,
    "low contrast": fog,
    "blur": motion,
    "noise": impulses,
    "low resolution": blocky,
    "channels swapped": bgr,
    "wrong scaling": floats_as_bytes,
    "upside down": upside_down,
    "broken sensor": dead,
    "one image again and again": frozen,
}
#: The cause that a damage has, where it has another name: an operator acts alike on both.
CAUSE_OF = {"blur": "blur or low resolution", "low resolution": "blur or low resolution"}
HELD_OUT: Mapping[str, Severe] = {"covered": covered, "tinted": tinted}


def pgd(classifier: Classifier) -> Severe:
    """Return Foolbox's targeted PGD at ε 2, 4, 8, 8 and 12 /255."""

    def attacked(images: Images, severity: int, random: Random) -> Images:
        epsilon = (2, 4, 8, 8, 12)[severity] / 255
        steps = 40
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=2.5 * epsilon / steps)
        goal = foolbox.criteria.TargetedMisclassification(
            torch.full((len(images),), int(random.integers(43)))
        )
        return _attacked(classifier, attack, images, goal, epsilon)

    return attacked


#: Attacks that the fit never saw, untargeted, with their largest change; (None: as small as it can be).
ATTACKS = {
    "FGSM 4/255": (lambda: foolbox.attacks.FGSM(), 4 / 255),
    "FGSM 8/255": (lambda: foolbox.attacks.FGSM(), 8 / 255),
    "PGD L2 0.5": (lambda: foolbox.attacks.L2PGD(steps=20), 0.5),
    "PGD L2 1.0": (lambda: foolbox.attacks.L2PGD(steps=20), 1.0),
    "DeepFool L2": (lambda: foolbox.attacks.deepfool.L2DeepFoolAttack(steps=20), 2.0),
    "Carlini-Wagner L2": (
        lambda: foolbox.attacks.carlini_wagner.L2CarliniWagnerAttack(
            binary_search_steps=2, steps=60, stepsize=0.02
        ),
        2.0,
    ),
}


def untargeted(classifier: Classifier, name: str, images: Images, labels: NDArray[Any]) -> Images:
    """Return the images attacked by one of ATTACKS away from their labels."""
    make, epsilon = ATTACKS[name]
    goal = foolbox.criteria.Misclassification(torch.from_numpy(labels.astype(np.int64)))
    return _attacked(classifier, make(), images, goal, epsilon)  # type: ignore[no-untyped-call]


def patched(images: Images, classifier: Classifier, target: int, steps: int = 60) -> Images:
    """Return the images with a patch in a corner that is optimised for a class.

    The patch has 12 x 12 pixels (Brown et al. 2017).
    """
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    start = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    patch = torch.full((1, 3, 12, 12), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([patch], lr=0.1)
    goal = torch.full((len(images),), target)
    for _ in range(steps):
        shown = start.clone()
        shown[:, :, 2:14, 2:14] = patch.clamp(0, 1)
        loss = torch.nn.functional.cross_entropy(classifier.network((shown - mean) / std), goal)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    out = images.copy()
    out[:, 2:14, 2:14] = _bytes((patch.detach().clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy())
    return out


def _attacked(classifier: Classifier, attack, images: Images, goal, epsilon: float) -> Images:  # type: ignore[no-untyped-def]
    preprocessing = {**PREPROCESSING, "axis": -3}
    model = PyTorchModel(classifier.network, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    clean = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    _, changed, _ = attack(model, clean, goal, epsilons=epsilon)
    return _bytes((changed * 255).permute(0, 2, 3, 1).numpy())
