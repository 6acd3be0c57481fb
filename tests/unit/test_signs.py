"""The drawn traffic signs."""

import numpy as np
import pytest
from PIL import Image

from demo import signs

CLASSES = range(43)
MIRRORED = [(19, 20), (33, 34), (36, 37), (38, 39)]


def on_green(class_id, size=48):
    """Return the clean sign on a colour that no sign has, (size, size, 3) float64 in 0..1."""
    image = Image.new("RGBA", (size, size), (0, 255, 0, 255))
    image.alpha_composite(signs.clean(class_id, size))
    return np.asarray(image.convert("RGB")) / 255


def test_classes_have_the_names_and_order_of_gtsrb(shared):
    lines = (shared / "gtsrb" / "labels.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == list(signs.CLASS_NAMES)


def test_the_43_classes_have_different_names():
    assert len(set(signs.CLASS_NAMES)) == 43
    assert (signs.CLASS_NAMES[0], signs.CLASS_NAMES[14], signs.CLASS_NAMES[42]) == (
        "Speed limit (20km/h)",
        "Stop",
        "End of no passing by vehicles over 3.5 metric tons",
    )


@pytest.mark.parametrize("size", [32, 48, 64])
def test_dataset_has_every_class_equally_often_in_the_requested_size(size):
    images, classes = signs.dataset(86, seed=1, size=size)
    assert (images.shape, images.dtype) == ((86, size, size, 3), np.uint8)
    assert (classes.shape, classes.dtype) == ((86,), np.int64)
    assert np.bincount(classes).tolist() == [2] * 43
    assert images.std(axis=(1, 2, 3)).min() > 2


def test_pixels_depend_on_the_seed_only():
    images, classes = signs.dataset(43, seed=3, size=32)
    again, same = signs.dataset(43, seed=3, size=32)
    assert np.array_equal(images, again)
    assert np.array_equal(classes, same)
    others, different = signs.dataset(43, seed=4, size=32)
    assert not np.array_equal(classes, different)
    assert not any(np.array_equal(image, other) for image in images for other in others)


def test_two_images_of_a_sign_differ():
    rng = np.random.default_rng(0)
    first, second = (signs.draw(14, rng, 48).astype(int) for _ in range(2))
    assert np.abs(first - second).mean() > 5


def test_every_sign_is_nearest_to_its_own_template():
    """Of 43 clean signs, the correct one is nearest to a shifted, darker and noisy sign."""
    rng = np.random.default_rng(0)
    templates = np.stack([_standardised(on_green(c)) for c in CLASSES])
    for class_id in CLASSES:
        seen = 0.5 * np.roll(on_green(class_id), 1, axis=1) + rng.normal(0, 0.04, (48, 48, 3))
        assert np.argmax(templates @ _standardised(seen)) == class_id, signs.CLASS_NAMES[class_id]


def _standardised(image):
    centred = image.ravel() - image.mean()
    return centred / np.linalg.norm(centred)


@pytest.mark.parametrize(("left", "right"), MIRRORED)
def test_left_and_right_signs_are_mirror_images(left, right):
    assert np.array_equal(on_green(left), on_green(right)[:, ::-1])


@pytest.mark.parametrize(
    ("class_id", "x", "y", "colour"),
    [
        (14, 0.5, 0.15, (193, 28, 38)),  # the red above STOP
        (17, 0.5, 0.5, (240, 240, 236)),  # the bar of no entry
        (12, 0.5, 0.5, (243, 178, 22)),  # the yellow of "Priority road"
        (35, 0.1, 0.5, (22, 88, 172)),  # the blue of an order
        (13, 0.5, 0.4, (240, 240, 236)),  # a yield sign is empty
        (26, 0.5, 0.46, (193, 28, 38)),  # the top light is red …
        (26, 0.5, 0.8, (20, 132, 70)),  # … the lowest is green
        (0, 0.08, 0.5, (193, 28, 38)),  # the ring of a speed limit
    ],
)
def test_signs_have_the_correct_colours(class_id, x, y, colour):
    pixels = np.asarray(signs.clean(class_id, 128))
    assert tuple(pixels[int(y * 128), int(x * 128)]) == (*colour, 255)


def test_clean_signs_have_transparent_corners():
    corners = [np.asarray(signs.clean(c, 64))[[0, 0, -1, -1], [0, -1, 0, -1], 3] for c in CLASSES]
    assert not np.any(corners)


@pytest.mark.parametrize("class_id", [-1, 43])
def test_refuses_another_class(class_id):
    with pytest.raises(IndexError, match=f"class {class_id}: expected 0 to 42"):
        signs.draw(class_id, np.random.default_rng(0))


def test_writes_a_folder_with_the_layout_of_gtsrb(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "drawn"), "--per-class", "2", "--seed", "5", "--size", "32"]
    signs.main(arguments)
    written = sorted(tmp_path.glob("drawn/*/*"))
    assert [p.relative_to(tmp_path / "drawn").as_posix() for p in written] == [
        f"{c:02d}/{n:04d}.png" for c in CLASSES for n in range(2)
    ]
    first = written[0].read_bytes()
    with Image.open(written[0]) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    signs.main(arguments)
    assert written[0].read_bytes() == first
    assert "86 images of 43 signs" in capsys.readouterr().out
