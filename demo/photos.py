"""Read a folder of photos, one folder per class, as the demo sends them: 8-bit RGB of one size."""

import struct
import zlib
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
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
    """``images`` (N, H, W, 3) uint8 with their class folders' names; ``unreadable`` are the reasons, one a file."""

    images: np.ndarray
    folders: list[str]
    unreadable: list[str]
    found: int


def read_photos(folder: Path, size: tuple[int, int]) -> Photos:
    """Read at most MAX_PHOTOS photos below ``folder``/<class>/, evenly over the classes, resized to ``size`` (W, H).

    Raises:
        BadInputError: fewer than MIN_PHOTOS readable photos or fewer than MIN_CLASSES class folders with one.
    """
    by_class = find_photos(folder)
    turns = chain.from_iterable(zip_longest(*by_class.values()))
    chosen = sorted(islice((file for file in turns if file), MAX_PHOTOS))
    images, folders, unreadable = [], [], []
    for file in chosen:
        try:
            images.append(read_photo(file, size))
            folders.append(file.parent.name)
        except UNREADABLE as error:
            unreadable.append(f"{file}: {error}")
    if len(images) < MIN_PHOTOS or len(set(folders)) < MIN_CLASSES:
        raise BadInputError(
            f"{folder}: expected at least {MIN_PHOTOS} readable pictures in {MIN_CLASSES} class folders, "
            f"got {len(images)} in {len(set(folders))}; {len(unreadable)} are unreadable, the first: "
            f"{unreadable[0]}. Replace or add pictures."
        )
    return Photos(np.stack(images), folders, unreadable, sum(map(len, by_class.values())))


def find_photos(folder: Path) -> dict[str, list[Path]]:
    """Return the picture files of each class folder, by their suffix; BadInputError where there are too few."""
    if not folder.is_dir():
        raise BadInputError(
            f"{folder}: expected a folder with one folder of pictures per class, got no folder."
        )
    by_class = {
        child.name: files
        for child in sorted(folder.iterdir())
        if child.is_dir() and (files := _pictures(child))
    }
    number = sum(map(len, by_class.values()))
    if number < MIN_PHOTOS or len(by_class) < MIN_CLASSES:
        raise BadInputError(
            f"{folder}: expected at least {MIN_PHOTOS} pictures in {MIN_CLASSES} class folders, "
            f"got {number} in {len(by_class)}. {_advice(folder)}"
        )
    return by_class


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _advice(folder: Path) -> str:
    """Where else the pictures are, or which files are read."""
    if _pictures(folder):
        return "Move the pictures that are in the folder itself into one folder per class."
    for child in sorted(folder.iterdir()):
        if child.is_dir() and any(_pictures(deeper) for deeper in child.iterdir() if deeper.is_dir()):
            return f"DATA={child} has class folders."
    return f"Add pictures ({', '.join(sorted(SUFFIXES))}), one folder per class."


def read_photo(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Read one picture as (H, W, 3) uint8: upright, on white where it is transparent, 16 bits scaled to 8."""
    with Image.open(file) as opened:
        opened.draft("RGB", size)  # a large JPEG is decoded at a fraction of its size
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"expected 8 or 16 bits a channel, got Pillow's mode {image.mode}")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
