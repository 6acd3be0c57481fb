"""The folders that `make demo DATA=…` reads, and the pixels of each kind of image file."""

import numpy as np
import pytest
from PIL import Image

from demo import photos
from glassbox.errors import BadInputError

SIZE = (12, 8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def flat(mode, colour):
    return Image.new(mode, (40, 30), colour)


@pytest.fixture
def folder(tmp_path):
    """A folder of 100 images in two classes."""
    folder = tmp_path / "photos"
    for number in range(100):
        save(folder / f"{'cat' if number % 2 else 'dog'}/{number:03d}.png", flat("RGB", (number, 20, 30)))
    return folder


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "rgb"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "png", (255, 255, 255)),  # transparent pixels become white
        ("LA", (10, 0), "png", (255, 255, 255)),
        ("I;16", 0x8000, "png", (128, 128, 128)),
        ("I;16", 0x8000, "tiff", (128, 128, 128)),
        ("I;16", 0xFFFF, "png", (255, 255, 255)),
        ("P", 0, "gif", (0, 0, 0)),
        ("CMYK", (0, 0, 0, 255), "jpg", (0, 0, 0)),
        ("L", 77, "JPEG", (77, 77, 77)),
        ("RGB", (10, 20, 30), "ppm", (10, 20, 30)),
        ("RGB", (10, 20, 30), "bmp", (10, 20, 30)),
    ],
)
def test_reads_every_kind_of_image_as_8_bit_rgb(tmp_path, mode, colour, suffix, rgb):
    path = save(tmp_path / f"image.{suffix}", flat(mode, colour))
    pixels = photos.read_photo(path, SIZE)
    assert (pixels.shape, pixels.dtype) == ((8, 12, 3), np.uint8)
    assert np.abs(pixels.astype(int) - rgb).max() <= 1


def test_a_large_jpeg_keeps_its_colours_and_orientation(tmp_path):
    image = Image.fromarray(
        np.repeat([[[200, 0, 0]], [[0, 0, 200]]], 320, axis=1).repeat(240, 0).astype("u1")
    )
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = save(tmp_path / "large.jpg", image.resize((640, 480)), quality=95, exif=exif)
    pixels = photos.read_photo(path, SIZE).astype(int)
    assert np.abs(pixels[0] - (0, 0, 200)).max() < 12
    assert np.abs(pixels[-1] - (200, 0, 0)).max() < 12


def test_refuses_32_bit_images_by_mode(tmp_path):
    path = save(tmp_path / "depth.tiff", flat("F", 0.5))
    with pytest.raises(ValueError, match="8 or 16 bits a channel, got Pillow's mode F"):
        photos.read_photo(path, SIZE)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"P6 4 4 255 "]
)
def test_skips_an_unreadable_image_and_returns_the_reason(folder, content):
    (folder / "cat" / "broken.png").write_bytes(content)
    found = photos.read_photos(folder, SIZE)
    assert len(found.images) == len(found.folders) == 100
    (reason,) = found.unreadable
    assert reason.startswith(f"{folder / 'cat' / 'broken.png'}: ")


def test_skips_a_truncated_image(folder):
    path = save(folder / "dog" / "cut.jpg", Image.effect_noise((640, 480), 90))
    path.write_bytes(path.read_bytes()[:-5000])
    assert len(photos.read_photos(folder, SIZE).unreadable) == 1


def test_the_class_of_each_image_is_its_folder(folder):
    found = photos.read_photos(folder, SIZE)
    assert all(
        (pixels[0, 0, 0] % 2 == 1) == (name == "cat")
        for pixels, name in zip(found.images, found.folders, strict=True)
    )


def test_samples_many_images_evenly_over_the_classes(folder, monkeypatch):
    for number in range(7):
        save(folder / f"rare/{number}.png", flat("L", number))
    monkeypatch.setattr(photos, "MAX_PHOTOS", 100)
    found = photos.read_photos(folder, SIZE)
    assert (len(found.images), found.found) == (100, 107)
    assert {name: found.folders.count(name) for name in set(found.folders)} == {
        "rare": 7,
        "cat": 47,
        "dog": 46,
    }


def test_does_not_count_other_files(folder):
    (folder / "labels.csv").write_text("id,name")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "001.png").unlink()
    with pytest.raises(
        BadInputError, match=r"at least 100 images in 2 class folders, got 99 in 2\. Add images"
    ):
        photos.read_photos(folder, SIZE)


def test_error_names_the_first_unreadable_image(folder):
    broken = folder / "cat" / "001.png"
    broken.write_bytes(b"no")
    with pytest.raises(BadInputError, match="got 99 in 2; 1 are unreadable, the first:") as failed:
        photos.read_photos(folder, SIZE)
    assert str(broken) in str(failed.value)


def test_refuses_one_class(folder):
    for path in (folder / "dog").iterdir():
        path.rename(folder / "cat" / f"dog-{path.name}")
    with pytest.raises(BadInputError, match="got 100 in 1"):
        photos.read_photos(folder, SIZE)


def test_error_names_class_folders_one_level_deeper(folder):
    with pytest.raises(BadInputError, match=f"got 0 in 0. DATA={folder} has class folders"):
        photos.read_photos(folder.parent, SIZE)


def test_error_advises_class_folders_for_images_without_them(folder):
    for path in [*folder.glob("*/*.png")]:
        path.rename(folder / path.name)
    with pytest.raises(BadInputError, match="into one folder per class"):
        photos.read_photos(folder, SIZE)


def test_refuses_a_missing_folder(tmp_path):
    with pytest.raises(BadInputError, match=r"nowhere: expected a folder .* got no folder"):
        photos.read_photos(tmp_path / "nowhere", SIZE)
