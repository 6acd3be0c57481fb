"""Read a folder of photos, one folder per class, as 8-bit RGB images of one size."""

import struct
import zlib
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from glassbox.errors import BadInputError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
MIN_PHOTOS, MIN_CLASSES = 100, 2
MAX_PHOTOS = 1000  # more would only delay the demo

# Pillow raises each of these for some damaged file.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Photos:
    """The photos of a folder.

    Attributes:
        images: (N, H, W, 3) uint8.
        folders: the name of each image's class folder.
        unreadable: file and reason of each unreadable one.
        found: number of files.
    """

    images: NDArray[np.uint8]
    folders: list[str]
    unreadable: list[str]
    found: int


def read_photos(folder: Path, size: tuple[int, int]) -> Photos:
    """Read at most MAX_PHOTOS photos of ``folder``/<class>/, evenly over the classes.

    Args:
        size: (W, H), to which the photos are resized.

    Raises:
        BadInputError: fewer than MIN_PHOTOS readable photos or fewer than MIN_CLASSES class folders with one.
    """
    by_class = find_photos(folder)
    turns = chain.from_iterable(zip_longest(*by_class.values()))
    chosen = sorted(islice((file for file in turns if file), MAX_PHOTOS))
    images: list[NDArray[np.uint8]] = []
    folders, unreadable = [], []
    for file in chosen:
        try:
            images.append(read_photo(file, size))
            folders.append(file.parent.name)
        except UNREADABLE as error:
            unreadable.append(f"{file}: {error}")
    if len(images) < MIN_PHOTOS or len(set(folders)) < MIN_CLASSES:
        raise BadInputError(
            f"{folder}: expected at least {MIN_PHOTOS} readable images in {MIN_CLASSES} class folders, "
            f"got {len(images)} in {len(set(folders))}; {len(unreadable)} are unreadable, the first: "
            f"{unreadable[0]}. Replace or add images."
        )
    return Photos(np.stack(images), folders, unreadable, sum(map(len, by_class.values())))


def find_photos(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, or raise BadInputError for too few of them."""
    if not folder.is_dir():
        raise BadInputError(
            f"{folder}: expected a folder with one folder of images per class, got no folder."
        )
    by_class = {
        child.name: files
        for child in sorted(folder.iterdir())
        if child.is_dir() and (files := _images(child))
    }
    number = sum(map(len, by_class.values()))
    if number < MIN_PHOTOS or len(by_class) < MIN_CLASSES:
        raise BadInputError(
            f"{folder}: expected at least {MIN_PHOTOS} images in {MIN_CLASSES} class folders, "
            f"got {number} in {len(by_class)}. {_advice(folder)}"
        )
    return by_class


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _advice(folder: Path) -> str:
    """Return where else the images are, or which files are read."""
    if _images(folder):
        return "Move the images of the folder itself into one folder per class."
    for child in sorted(folder.iterdir()):
        if child.is_dir() and any(_images(deeper) for deeper in child.iterdir() if deeper.is_dir()):
            return f"DATA={child} has class folders."
    return f"Add images ({', '.join(sorted(SUFFIXES))}), one folder per class."


def read_photo(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read one image as (H, W, 3) uint8, upright, on a white background, with 8 bits a channel."""
    with Image.open(file) as opened:
        opened.draft("RGB", size)  # a large JPEG is decoded at a fraction of its size
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"expected 8 or 16 bits a channel, got Pillow's mode {image.mode}")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
