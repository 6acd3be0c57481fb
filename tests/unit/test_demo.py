"""What `make demo` says to somebody's own images and weights, before anything is started."""

import numpy as np
import pytest
import torch
from PIL import Image

from local import demo
from resnet import ResNet18


@pytest.fixture
def weights(tmp_path):
    """Saves a small untrained ResNet18, with this config beside it."""

    def save(classes=43, channels=3, config=None):
        torch.manual_seed(0)
        path = tmp_path / "model.pt"
        torch.save(ResNet18(classes, 4, channels).state_dict(), path)
        if config is not None:
            path.with_suffix(".json").write_text(config)
        return path

    return save


@pytest.fixture
def images(tmp_path):
    """A folder of images: how many of each class."""

    def save(**counts):
        random = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / "images" / name.lstrip("c")
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path / "images"

    return save


def said(capsys, data, weights, out):
    """The one sentence that the demo ends with."""
    assert demo.main(["--data", str(data), "--weights", str(weights), "--out", str(out)]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence.removeprefix("The demo failed: ")


def test_a_folder_that_is_no_class_number_is_named(capsys, images, weights, tmp_path):
    folder = images(c00001=1, stop=1, c2=1)
    assert said(capsys, folder, weights(), tmp_path) == (
        f"{folder}: stop is no class number: each folder is named by its class, 0, 1, … as the model counts them "
        "(14 is stop)"
    )


def test_a_model_that_does_not_know_the_class_attacked_for_says_so(capsys, images, weights, tmp_path):
    path = weights(classes=14)
    assert said(capsys, images(c1=1), path, tmp_path) == (
        f"{path} knows 14 classes: the attack aims at class 14, counted from 0"
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "a picture of (1, 3, 48, 48) does not go through it"),
        ('{"mean": [0.5], "std": [0.5]}', "the demo needs a ResNet18 for RGB pictures"),
    ],
)
def test_a_model_of_one_channel_is_refused(capsys, images, weights, tmp_path, config, reason):
    assert reason in said(capsys, images(c1=1), weights(channels=1, config=config), tmp_path)


def test_another_network_is_refused(capsys, images, weights, tmp_path):
    path = weights(config='{"architecture": "net:Net"}')
    assert "the demo needs a ResNet18" in said(capsys, images(c1=1), path, tmp_path)


def test_too_few_images_are_counted(capsys, images, weights, tmp_path):
    folder = images(c1=3, c2=1)
    sentence = said(capsys, folder, weights(), tmp_path)
    assert sentence.startswith(
        f"too few for the attack: of 4 photos of {folder} the model takes 4 for another"
    )
    assert sentence.endswith("400 and 322 are needed")


def test_a_folder_without_images_says_what_is_expected(capsys, weights, tmp_path):
    assert "one folder per class number" in said(capsys, tmp_path / "nowhere", weights(), tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x80\x02csomewhere\nelse\n."])
def test_weights_that_are_none_say_so(capsys, images, tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in said(capsys, images(c1=1), path, tmp_path)
