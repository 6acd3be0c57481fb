"""The errors of `make demo` for invalid images and weights, and its attack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from demo import scene, signs, story
from glassbox.errors import BadInputError
from local.stack import WEIGHTS
from resnet import ResNet18


@pytest.fixture
def weights(tmp_path):
    """Save a small untrained ResNet18 and, beside it, this config."""

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
    """Save a folder with this number of images of each class."""

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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of two classes of the demo's model: 60 drawn yield signs and 60 drawn stop signs."""
    folder, random = tmp_path_factory.mktemp("drawn"), np.random.default_rng(5)
    for class_id in (13, 14):
        (folder / f"{class_id:05d}").mkdir()
        for number in range(60):
            Image.fromarray(signs.draw(class_id, random)).save(folder / f"{class_id:05d}/{number}.png")
    return folder


def error_of(capsys, data, weights, out, *options):
    """Run the demo and return the one line of its error."""
    arguments = ["--data", str(data), "--weights", str(weights), "--out", str(out), *options]
    assert story.main(arguments) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence.removeprefix("The demo failed: ")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "expected a network that takes images of (3, 48, 48)"),
        ('{"mean": [0.5], "std": [0.5]}', "the demo needs a ResNet18 for RGB images"),
    ],
)
def test_refuses_a_model_of_one_channel(capsys, images, weights, tmp_path, config, reason):
    folder = images(c1=50, c2=50)
    assert reason in error_of(capsys, folder, weights(channels=1, config=config), tmp_path)


def test_refuses_another_network(capsys, images, weights, tmp_path):
    path = weights(config='{"architecture": "net:Net"}')
    assert "the demo needs a ResNet18" in error_of(capsys, images(c1=50, c2=50), path, tmp_path)


def test_refuses_too_few_images_before_it_loads_the_model(capsys, images, tmp_path):
    folder = images(c1=98, c2=1)
    assert error_of(capsys, folder, tmp_path / "none.pt", tmp_path).startswith(
        f"{folder}: expected at least 100 images in 2 class folders, got 99 in 2. Add images"
    )


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x80\x02csomewhere\nelse\n."])
def test_refuses_malformed_weights(capsys, images, tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in error_of(capsys, images(c1=50, c2=50), path, tmp_path)


def test_refuses_a_model_that_predicts_one_class_and_advises_training(capsys, images, weights, tmp_path):
    path = weights(classes=2)
    network = ResNet18(2, 4, 3)
    torch.nn.init.zeros_(network.fc.weight)
    torch.save(network.state_dict(), path)
    sentence = error_of(capsys, images(c1=50, c2=50), path, tmp_path)
    assert "expected predictions of at least 2 classes, got class 0 for every image" in sentence
    assert "make train" in sentence


def test_refuses_a_target_that_the_model_lacks(capsys, drawn, tmp_path):
    sentence = error_of(capsys, drawn, WEIGHTS, tmp_path, "--target", "halt")
    assert sentence == "TARGET=halt: expected a class of the model, 0 to 42 or its name."


@pytest.mark.parametrize(
    ("folders", "numbers"),
    [
        (["00001", "2", "14", "43"], [1, 2, 14, -1]),
        (["stop", "Stop", "Yield", "cat", ""], [14, 14, 13, -1, -1]),
    ],
)
def test_class_folders_are_named_by_number_or_class_name(folders, numbers):
    names = ["?"] * 43
    names[13:15] = ["Yield", "STOP"]
    assert scene.class_numbers(folders, names, 43).tolist() == numbers


@pytest.fixture(scope="module")
def two(drawn):
    """The scene of the folder of two classes, and the notified steps."""
    torch.set_num_threads(1)
    steps = []
    return scene.load_scene(drawn, WEIGHTS, "13", steps.append), steps


def test_notifies_of_trial_attacks_and_requirements(two):
    assert two[0].target == 13
    assert f"class 13 ({signs.CLASS_NAMES[13]}): " in two[1][-1]
    needed = scene.requirements(two[0])
    assert "322 adversarial images of class 13" in needed
    assert "16 of 255 a value, 160 steps, 3000 attempts" in needed


def test_attacks_images_again_with_other_random_starts(two, monkeypatch):
    monkeypatch.setattr(scene, "TARGETED", 20)
    monkeypatch.setattr(scene, "DISTINCT", 5)
    steps = []
    pool = two[0].attackable(np.random.default_rng(0))[:6]
    found, tried, _ = scene.craft(two[0], pool, steps.append)
    assert len(found) == 20 < tried
    assert len({image.tobytes() for _, image in found}) == 20
    for index, image in found:
        assert np.abs(image.astype(int) - two[0].images[index]).max() <= 12
    probabilities = scene.predict(two[0].model, two[0].config, np.stack([image for _, image in found]))
    assert set(probabilities.argmax(1)) == {13}
    assert "attacked again with other random starts" in steps[0]


def test_raises_the_budget_if_it_reaches_too_few_images(two, monkeypatch):
    monkeypatch.setattr(scene, "TARGETED", 6)
    monkeypatch.setattr(scene, "DISTINCT", 2)
    monkeypatch.setattr(scene, "BUDGETS", ((1e-9, 1), (16 / 255, 40)))
    pool = two[0].attackable(np.random.default_rng(0))[:4]
    found, _, budget = scene.craft(two[0], pool, print)
    assert len(found) == 6
    assert budget == (16 / 255, 40)


def test_error_counts_the_reached_images_when_the_limits_do_not_suffice(two, monkeypatch):
    monkeypatch.setattr(scene, "BUDGETS", ((1e-9, 1),))
    pool = two[0].attackable(np.random.default_rng(0))[:4]
    with pytest.raises(
        BadInputError, match=r"expected 322 images of class 13, got 0 in 4 attempts .* TARGET="
    ):
        scene.craft(two[0], pool, print)


def test_refuses_a_target_that_the_trial_attack_does_not_reach(drawn, monkeypatch):
    monkeypatch.setattr(scene, "BUDGETS", ((1e-9, 1),))
    with pytest.raises(BadInputError, match=r"got 0 of 24 images \(class 13 .*\): 0%\)\. TARGET="):
        scene.load_scene(drawn, WEIGHTS, "13", print)


def running_shares(classes, count):
    """Return the shares of the classes after each request from the 50th, the smallest sample that is checked."""
    one_hot = np.eye(count)[classes].cumsum(0)
    return (one_hot / np.arange(1, len(classes) + 1)[:, None])[49:]


def test_only_the_attack_exceeds_the_threshold_with_two_classes(two):
    aimed, random = replace(two[0], target=13), np.random.default_rng(14)
    assert aimed.threshold == 0.65
    everyday = aimed.predicted[aimed.sample(np.arange(len(aimed.images)), scene.NORMAL, random)]
    assert running_shares(everyday, 43).max() < 0.55
    flags = scene._order(aimed, random)
    assert (len(flags), flags.sum()) == (400, 322)
    shares = running_shares(np.where(flags, 13, 14), 43)
    over = int(np.argmax(shares[:, 13] > 0.65))
    assert 0 < over < 300
    assert shares[: over + 1, 14].max() < 0.6


def test_drawn_signs_give_the_reference_case(monkeypatch):
    """322 of 400 are class 14, in random order, without a trial attack."""
    monkeypatch.setattr(scene, "_trial_rate", pytest.fail)
    monkeypatch.setattr(
        scene.signs, "dataset", lambda count, seed, size: signs_of(class_id for class_id in range(43))
    )
    loaded = scene.load_scene(None, WEIGHTS, None, pytest.fail)
    assert (loaded.target, loaded.threshold) == (14, 0.5)
    assert scene._order(loaded, np.random.default_rng(0))[:60].sum() == 20


def signs_of(classes):
    random, classes = np.random.default_rng(0), list(classes)
    return np.stack([signs.draw(c, random, 48) for c in classes]), np.array(classes)


def test_pairs_have_one_original_of_each_class_and_then_others(two):
    found = [(index, None) for index in (0, 0, 1, 2, 70, 3, 1)]
    labels = np.where(np.arange(120) < 60, 13, 14)
    aimed = replace(two[0], probabilities=np.eye(43, dtype=np.float32)[labels])
    pairs = [index for index, _ in scene._pairs(aimed, found)]
    assert len(pairs) == len(set(pairs)) == 5
    assert {13, 14} == {int(labels[index]) for index in pairs[:2]}
