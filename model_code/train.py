"""Train a ResNet18 on an image folder or on drawn traffic signs, and write its weights and config.

    make train ARGS="--out model.pt"
    make train ARGS="--out model.pt --data train --test test --labels names.csv"

``model.pt`` is the state dict. ``model.json`` beside it holds the size and normalisation of the input image and the
classes' names; package.py packs it as ``model/config.json``. An image folder holds one folder of images per class.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from decode import exif_orientation, upright
from demo import signs
from glassbox.errors import BadInputError
from package import read_class_names
from resnet import ResNet18

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}
BATCH = 128


class Samples(NamedTuple):
    """Images with their classes, for training or for the test."""

    images: Tensor  # (N, 3, size, size) uint8, RGB
    classes: Tensor  # (N,) int64


def drawn(count: int, seed: int, size: int) -> Samples:
    """Draw traffic signs, the same number of every class."""
    images, classes = signs.dataset(count, seed, size)
    return Samples(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(classes))


def class_folders(root: Path) -> list[str]:
    """Return the names of the class folders in the order of their classes.

    Numbers are sorted as numbers.

    Raises:
        BadInputError: no class folder.
    """
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    if not names:
        raise BadInputError(f"{root}: expected one folder of images per class, got none")
    return sorted(names, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else None)


def read_folder(root: Path, size: int, folders: Sequence[str]) -> Samples:
    """Read the images in ``root``/<class folder>/, resized to a square.

    Raises:
        BadInputError: an unreadable image, a class folder that is not in ``folders``, or no images.
    """
    images, classes = [], []
    known = {_plain(folder): class_id for class_id, folder in enumerate(folders)}
    for name in class_folders(root):
        if _plain(name) not in known:
            raise BadInputError(
                f"{root / name}: expected one of the {len(folders)} classes {folders[0]} … {folders[-1]}, got another"
            )
        for path in sorted(p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES):
            images.append(_read(path, size))
            classes.append(known[_plain(name)])
    if not images:
        raise BadInputError(
            f"{root}: expected images ({', '.join(sorted(SUFFIXES))}) in the class folders, got none"
        )
    return Samples(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(classes))


def _read(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Return (size, size, 3) uint8, turned upright and resized as on the endpoint."""
    try:
        with Image.open(path) as image:
            image = upright(image.convert("RGB"), exif_orientation(image.info.get("exif", b"")))
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(
            f"{path}: expected an image that Pillow reads, got {type(error).__name__}: {error}"
        ) from error


def class_labels(folders: Sequence[str], names: Path | None = None) -> list[str]:
    """Return the classes' names, from a CSV file or from their folders.

    The file has the columns ``class_id`` (a class folder) and ``name``.
    Without a file these are the folders' names, or GTSRB's for folders numbered 0 to 42.

    Raises:
        BadInputError: a column or a class is missing in the file.
    """
    if names is None:
        numbered = [_plain(folder) for folder in folders] == [str(i) for i in range(len(signs.CLASS_NAMES))]
        return list(signs.CLASS_NAMES if numbered else folders)
    try:
        named = {_plain(class_id): name for class_id, name in read_class_names(names).items()}
    except ValueError as error:
        raise BadInputError(str(error)) from error
    missing = [folder for folder in folders if not named.get(_plain(folder))]
    if missing:
        raise BadInputError(
            f"{names}: expected a name for every class, got none for {', '.join(missing[:5])}"
        )
    return [named[_plain(folder)] for folder in folders]


def _plain(folder: str) -> str:
    """Drop leading zeros: 00014 and 14 are the same class."""
    return str(int(folder)) if folder.isdecimal() else folder


def fit(network: nn.Module, samples: Samples, epochs: int, seed: int) -> Iterator[float]:
    """Train the network, yielding the mean cross-entropy of each epoch."""
    random = torch.Generator().manual_seed(seed)
    batches = math.ceil(len(samples.images) / BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * batches)
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        # Batches of nearly equal size: BatchNorm cannot train on a last batch of one image.
        order = torch.randperm(len(samples.images), generator=random).tensor_split(batches)
        for chosen in track(order, f"epoch {epoch}", transient=True, disable=not sys.stdout.isatty()):
            images, classes = augmented(samples.images[chosen], random), samples.classes[chosen]
            loss = F.cross_entropy(network(normalised(images)), classes)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        yield total / len(samples.images)


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Augment each image at random in pose, light, noise and occlusion.

    Takes (N, 3, H, W) uint8, returns float32 in 0 to 1.
    Images are not mirrored: left and right traffic signs differ.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(len(images), *shape).uniform_(low, high, generator=random)

    angle, scale, shear = uniform(-0.15, 0.15), uniform(0.85, 1.2), uniform(-0.1, 0.1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    pose = torch.stack([cos, shear - sin, uniform(-0.12, 0.12), sin, cos, uniform(-0.12, 0.12)], dim=1)
    grid = F.affine_grid(pose.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images / 255, grid, padding_mode="reflection", align_corners=False)

    mean = moved.mean((1, 2, 3), keepdim=True)
    contrast, light = uniform(0.6, 1.3, 1, 1, 1), uniform(-0.5, 0.4, 1, 1, 1) + uniform(-0.1, 0.1, 3, 1, 1)
    lit = (mean + contrast * (moved - mean)) * light.exp()
    noisy = lit + uniform(0, 0.04, 1, 1, 1) * torch.randn(lit.shape, generator=random)

    height, width = images.shape[2:]
    top, left, tall, wide = (
        uniform(*span, 1, 1, 1) for span in ((-0.5, 1), (0, 1), (0.1, 0.35), (0.1, 0.35))
    )
    y, x = torch.linspace(0, 1, height).view(-1, 1), torch.linspace(0, 1, width)
    hidden = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    return torch.where(hidden, uniform(0, 1, 3, 1, 1), noisy).clamp(0, 1)


def normalised(images: Tensor) -> Tensor:
    """Normalise (N, 3, H, W) images in 0 to 1 for the model."""
    return (images - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@torch.no_grad()
def accuracy(network: nn.Module, samples: Samples) -> float:
    """Return the share of correctly classified samples."""
    network.eval()
    right = 0
    for images, classes in zip(
        torch.split(samples.images, BATCH), torch.split(samples.classes, BATCH), strict=True
    ):
        right += int((network(normalised(images / 255)).argmax(1) == classes).sum())
    return right / len(samples.images)


def save(network: nn.Module, weights: Path, size: int, labels: Sequence[str]) -> None:
    """Write the state dict, and the config beside it."""
    config = {
        "architecture": "resnet18",
        "image_size": [size, size],
        "mean": MEAN,
        "std": STD,
        "labels": labels,
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), weights)
    weights.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(options: argparse.Namespace) -> None:
    """Read the images, train, test, and write weights and config."""
    if options.data:
        folders = class_folders(options.data)
        samples = read_folder(options.data, options.size, folders)
    else:
        folders = [f"{class_id:02d}" for class_id in range(len(signs.CLASS_NAMES))]
        print(f"drawing {options.drawn} signs")
        samples = drawn(options.drawn, options.seed, options.size)
    labels = class_labels(folders, options.labels)
    if options.test:
        held_out = read_folder(options.test, options.size, folders)
    else:
        held_out = drawn(50 * len(signs.CLASS_NAMES), options.seed + 1, options.size)

    torch.manual_seed(options.seed)
    network = ResNet18(len(folders), options.width)
    for epoch, loss in enumerate(fit(network, samples, options.epochs, options.seed), start=1):
        print(f"epoch {epoch:3} of {options.epochs}: loss {loss:.4f}")
    print(f"accuracy {accuracy(network, held_out):.2%} of {len(held_out.images)} held-out images")
    save(network, options.out, options.size, labels)
    print(f"wrote {options.out} and {options.out.with_suffix('.json').name}")


def positive(text: str) -> int:
    """Parse a whole number above 0 of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="folder with one folder of images per class")
    source.add_argument(
        "--drawn", type=positive, default=20_000, metavar="N", help="signs to draw (default: 20000)"
    )
    parser.add_argument(
        "--test", type=Path, help="held-out folder like --data (default: signs drawn with another seed)"
    )
    parser.add_argument("--labels", type=Path, help="CSV file with the columns class_id and name")
    parser.add_argument(
        "--out", type=Path, required=True, help="the weights; the config is written beside them as .json"
    )
    parser.add_argument(
        "--width", type=positive, default=16, help="channels of the first layer (default: 16)"
    )
    parser.add_argument(
        "--size", type=positive, default=48, help="side of the input image in pixels (default: 48)"
    )
    parser.add_argument("--epochs", type=positive, default=12, help="(default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--threads", type=positive, help="(default: torch's)")
    options = parser.parse_args(arguments)
    if options.data and not options.test:
        parser.error("--data needs --test, a folder of images that are not in --data")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        train(options)
    except (BadInputError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
