import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from demo import signs
from glassbox.errors import BadInputError
from resnet import ResNet18, from_state_dict

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "demo" / "weights" / "signs_w16.pt"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    """An image folder of three classes, two images each: all red, all green, all blue."""
    for name, colour in {"2": (255, 0, 0), "9": (0, 255, 0), "10": (0, 0, 255)}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, size in enumerate([(30, 20), (64, 64)]):
            Image.new("RGB", size, colour).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def committed():
    return from_state_dict(torch.load(WEIGHTS, weights_only=True))


def test_committed_weights_classify_signs_of_another_seed():
    assert train.accuracy(committed(), train.drawn(430, seed=20_26, size=48)) >= 0.95


def test_committed_config_is_of_the_weights():
    config = json.loads(WEIGHTS.with_suffix(".json").read_text())
    network = committed()
    assert config == {
        "architecture": "resnet18",
        "image_size": [48, 48],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "labels": list(signs.CLASS_NAMES),
    }
    assert (network.fc.out_features, network.conv1.out_channels) == (43, 16)
    assert all(v.dtype == torch.float32 for k, v in network.state_dict().items() if "num_batches" not in k)
    assert WEIGHTS.stat().st_size < 3 << 20


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_network():
    samples = train.drawn(344, seed=0, size=32)
    losses, networks = [], []
    for _ in range(2):
        torch.manual_seed(0)
        network = ResNet18(43, width=8)
        losses.append(list(train.fit(network, samples, epochs=4, seed=0)))
        networks.append(network.state_dict())
    assert losses[0][-1] < 0.95 * losses[0][0]
    # threads may sum in another order, and training multiplies what that rounds
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    for key, value in networks[0].items():
        torch.testing.assert_close(value, networks[1][key], rtol=0.05, atol=0.05)


def test_turns_photos_upright(tmp_path):
    """Orientation 6: what is stored at the left belongs to the top."""
    (tmp_path / "0").mkdir()
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "0" / "a.png", exif=exif)
    (image,) = train.read_folder(tmp_path, 32, ["0"]).images
    assert (image[:, :16] == 255).all()
    assert (image[:, 16:] == 0).all()


def test_command_trains_on_a_folder_and_writes_a_servable_model(folder, tmp_path, capsys):
    (tmp_path / "names.csv").write_text("class_id,name\n10,blue\n2,red\n9,green\n")
    out = tmp_path / "models" / "three.pt"
    sources = ["--data", folder, "--test", folder, "--labels", tmp_path / "names.csv", "--out", out]
    sizes = ["--epochs", 2, "--width", 8, "--size", 32, "--threads", 1]
    train.main([str(argument) for argument in sources + sizes])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch   1 of 2", "epoch   2 of 2"]
    assert "of 6 held-out images" in lines[2]
    network = from_state_dict(torch.load(out, weights_only=True))
    assert (network.fc.out_features, network.conv1.out_channels) == (3, 8)
    config = json.loads((tmp_path / "models" / "three.json").read_text())
    assert (config["labels"], config["image_size"]) == (["red", "green", "blue"], [32, 32])


def test_command_trains_on_drawn_signs(tmp_path, capsys):
    out = tmp_path / "drawn.pt"
    arguments = ["--out", out, "--drawn", 43, "--epochs", 1, "--width", 4, "--size", 32, "--threads", 1]
    train.main([str(argument) for argument in arguments])
    assert "of 2150 held-out images" in capsys.readouterr().out
    assert json.loads(out.with_suffix(".json").read_text())["labels"] == list(signs.CLASS_NAMES)


def test_class_folders_with_numbers_are_sorted_as_numbers(folder):
    assert train.class_folders(folder) == ["2", "9", "10"]


def test_reads_a_folder_in_the_order_of_the_classes(folder):
    samples = train.read_folder(folder, 32, ["2", "9", "10"])
    assert (samples.images.shape, samples.images.dtype) == ((6, 3, 32, 32), torch.uint8)
    assert samples.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert (samples.images.flatten(2).float().mean(2) == torch.eye(3).repeat_interleave(2, 0) * 255).all()


def test_ignores_files_that_are_not_images(folder):
    (folder / "2" / "GT-2.csv").write_text("Filename;Width\n")
    (folder / "README.md").write_text("read me")
    assert len(train.read_folder(folder, 32, ["2", "9", "10"]).images) == 6


@pytest.mark.parametrize("content", [b"", b"not a image", b"\x89PNG\r\n\x1a\n cut off"])
def test_names_an_unreadable_image(folder, content):
    (folder / "9" / "7.png").write_bytes(content)
    with pytest.raises(BadInputError, match=r"9/7\.png: expected an image that Pillow reads"):
        train.read_folder(folder, 32, ["2", "9", "10"])


def test_names_a_truncated_image(folder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = folder / "10" / "cut.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadInputError, match=r"10/cut\.png"):
        train.read_folder(folder, 32, ["2", "9", "10"])


def test_refuses_a_test_folder_with_an_unknown_class(folder):
    with pytest.raises(BadInputError, match=r"data/10: expected one of the 2 classes"):
        train.read_folder(folder, 32, ["2", "9"])


def test_ignores_leading_zeros_of_classes(folder):
    assert train.read_folder(folder, 32, ["00010", "00002", "00009"]).classes.tolist() == [1, 1, 2, 2, 0, 0]


def test_refuses_a_folder_without_images(tmp_path):
    with pytest.raises(BadInputError, match=f"{tmp_path}: expected one folder of images"):
        train.class_folders(tmp_path)
    with pytest.raises(BadInputError, match="missing: expected one folder of images"):
        train.class_folders(tmp_path / "missing")
    (tmp_path / "0").mkdir()
    with pytest.raises(BadInputError, match="expected images"):
        train.read_folder(tmp_path, 32, ["0"])


def test_command_reports_errors_without_a_traceback(folder, tmp_path, capsys):
    (folder / "9" / "7.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        train.main(["--data", str(folder), "--test", str(folder), "--out", str(tmp_path / "m.pt")])
    assert stopped.value.code == 1
    assert "9/7.png: expected an image that Pillow reads" in capsys.readouterr().err
    assert not (tmp_path / "m.pt").exists()


@pytest.mark.parametrize("option", ["--epochs=0", "--drawn=-5", "--width=1.5", "--size=", "--threads=two"])
def test_command_refuses_other_than_positive_whole_numbers(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--out", str(tmp_path / "m.pt"), option])
    assert stopped.value.code == 2
    assert "expected a whole number above 0" in capsys.readouterr().err


def test_command_names_a_missing_label_file(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(
            [
                "--data",
                str(folder),
                "--test",
                str(folder),
                "--out",
                str(tmp_path / "m.pt"),
                "--labels",
                str(tmp_path / "no.csv"),
            ]
        )
    assert stopped.value.code == 1
    assert "no.csv" in capsys.readouterr().err


def test_trains_when_one_image_is_left_for_the_last_batch():
    samples = train.drawn(train.BATCH + 1, seed=0, size=32)
    (loss,) = train.fit(ResNet18(43, width=4), samples, epochs=1, seed=0)
    assert np.isfinite(loss)


def test_command_requires_a_test_folder(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--data", str(folder), "--out", str(tmp_path / "m.pt")])
    assert stopped.value.code == 2
    assert "--data needs --test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        ([f"{i:05d}" for i in range(43)], list(signs.CLASS_NAMES)),
        ([str(i) for i in range(42)], [str(i) for i in range(42)]),
        (["cat", "dog"], ["cat", "dog"]),
    ],
)
def test_labels_are_gtsrbs_or_the_folders_names(folders, labels):
    assert train.class_labels(folders) == labels


@pytest.mark.parametrize(
    ("content", "names"),
    [("id,label\n0,a\n", "line 1"), ("class_id,name\n0,a\n", "got none for 01"), ("", "line 1")],
)
def test_refuses_a_label_file_without_every_class(tmp_path, content, names):
    path = tmp_path / "names.csv"
    path.write_text(content)
    with pytest.raises(BadInputError, match=rf"names\.csv: .*{names}"):
        train.class_labels(["00", "01"], path)


def test_augmentation_stays_in_range_and_is_never_mirrored():
    arrow = torch.from_numpy(np.asarray(signs.clean(38, 48).convert("RGB")).copy()).permute(2, 0, 1)
    samples = train.augmented(arrow.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    assert (samples.shape, samples.dtype) == ((200, 3, 48, 48), torch.float32)
    assert 0 <= samples.min() <= samples.max() <= 1
    assert (samples - samples[0]).abs().mean((1, 2, 3))[1:].min() > 0.01
    mean = (samples.mean((0, 1)) - samples.mean()).flatten()
    as_drawn, mirrored = (mean @ (a - a.mean()).flatten() for a in _both_ways(arrow.float().mean(0)))
    assert as_drawn > 2 * mirrored


def _both_ways(image):
    return image, image.flip(-1)
