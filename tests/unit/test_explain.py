"""The explain function and command: the endpoint's own numbers, for any module, and each refusal with its reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, TiffImagePlugin
from torch import nn

import zoo
from decode import read_images
from glassbox import explain as command
from glassbox.explain import explain
from glassbox.explanation.facts import Refusal, read_facts
from glassbox.explanation.trace_format import REDUCED
from gradient_rules import UnexplainableError
from inference import Classifier
from model_report import TracedModel

ROOT = Path(__file__).parents[2]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


pytestmark = pytest.mark.usefixtures("one_thread")


class Efficient(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in EfficientNet."""

    def __init__(self):
        super().__init__()
        self.stem = zoo.conv_bn(3, 8, stride=2, activation=nn.SiLU())
        self.expand = zoo.conv_bn(8, 16, 1, activation=nn.SiLU())
        self.depthwise = zoo.conv_bn(16, 16, groups=16, activation=nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = zoo.conv_bn(16, 8, 1, activation=nn.Identity()), zoo.head(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(x + self.project(y))


class Vit(nn.Module):
    """Patches, a class token, positions and one encoder layer, as in ViT."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, 2, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.layer(x))[:, 0])


class Residual(nn.Module):
    """A ReLU network with BatchNorm."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem, self.block, self.head = zoo.conv_bn(3, 8), zoo.conv_bn(8, 8), zoo.head(8, classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.block(x))


def built(kind, *arguments):
    torch.manual_seed(0)
    return kind(*arguments).eval()


def input_images(n=1, height=32, width=32, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (Residual, set()),
        (Efficient, {"activation", "gate"}),
        (Vit, {"activation", "attention", "normalization"}),
    ],
)
def test_is_the_heat_map_of_the_endpoint(tmp_path, kind, held):
    network, image = built(kind), input_images()[0]
    (found,) = explain(network, image[None], mean=MEAN, std=STD, labels=list("abcde"))
    Image.fromarray(image).save(tmp_path / "image.png")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    endpoint = TracedModel(Classifier(network, (32, 32), mean, std, list("abcde")), REDUCED)
    endpoint.request((tmp_path / "image.png").read_bytes())
    endpoint.wait_for_steps(1)
    theirs = endpoint.explain()

    ours = found.explanation
    np.testing.assert_allclose(found.saliency, theirs.saliency, rtol=1e-5, atol=1e-6)
    assert (ours.input_image == theirs.input_image).all()
    assert (ours.target, ours.class_name, ours.model) == (theirs.target, theirs.class_name, theirs.model)
    assert (ours.held, ours.unaccounted, ours.complete) == (theirs.held, theirs.unaccounted, True)
    assert ours.held.keys() == held
    assert ours.logit == pytest.approx(theirs.logit, rel=1e-5)
    assert ours.total == pytest.approx(ours.logit, rel=1e-5)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert [layer.contribution for layer in ours.layers] == pytest.approx(
        [layer.contribution for layer in theirs.layers], rel=1e-4, abs=1e-5 * theirs.sum_abs
    )


def test_the_facts_hold_the_share_of_terms_without_a_place():
    """Those of the class token and of the head; all other terms are tokens of the 4×4 patches."""
    (found,) = explain(built(Vit), input_images(), mean=MEAN, std=STD)
    shares = {layer.name: layer.share for layer in found.explanation.layers}
    unplaced = {name for name in shares if name.endswith("/prefix")} | {"head"}
    assert {"token/prefix", "positions/prefix", "layer.norm1/prefix", "norm/prefix"} <= unplaced
    assert 0.1 < found.facts.unplaced_share < 0.9
    assert found.facts.unplaced_share == pytest.approx(sum(shares[name] for name in unplaced))


def test_the_contributions_are_those_of_autograd_in_float64():
    model, images = built(Residual), input_images(3)
    x = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(-1, 1, 1)
    ) / torch.tensor(STD).view(-1, 1, 1)
    terms = zoo.autograd_terms(model, x)
    found = explain(model, images, mean=MEAN, std=STD, targets=terms.target.tolist())
    expected = {"input": (terms.image * terms.image_gradient).flatten(1).sum(1)}
    for name, (bias, gradient) in terms.modules.items():
        expected[name] = (bias.view(-1, *[1] * (gradient.ndim - 2)) * gradient).flatten(1).sum(1)
    for i, one in enumerate(found):
        layers = {layer.name: layer.contribution for layer in one.explanation.layers}
        assert layers.keys() == expected.keys()
        for name, contributions in expected.items():
            tolerance = 1e-5 * one.facts.completeness.sum_abs
            assert layers[name] == pytest.approx(float(contributions[i]), abs=tolerance), name


def test_another_class_and_a_final_softmax():
    network, images = built(Residual), input_images(2)
    logits = explain(network, images, mean=MEAN, std=STD, targets=[4, 2])
    softmax = explain(nn.Sequential(network, nn.Softmax(1)), images, mean=MEAN, std=STD, targets=[4, 2])
    assert [found.facts.predicted_class for found in logits] == [4, 2]
    for one, other in zip(logits, softmax, strict=True):
        assert other.facts.completeness.complete
        np.testing.assert_allclose(other.saliency, one.saliency, rtol=1e-4, atol=1e-5)


def test_restores_the_flags_of_the_module():
    network = built(Residual)
    network.block.train()
    network.head.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    explain(network, input_images())
    assert (network.training, network.block.training, network.stem.training) == (False, True, False)
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {
        "head.2.weight",
        "head.2.bias",
    }
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()
    with pytest.raises(ValueError, match="labels: expected 5, one per class, got 1"):
        explain(network, input_images(), labels=["a"])
    assert network.training


def test_gray_images_and_incomplete_sums():
    class Unmatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x.flatten(1)[:, :6].cumprod(1))

    (found,) = explain(built(Unmatched), input_images(channels=1), mean=[0.5], std=[0.1])
    facts = found.facts
    assert facts.input_image.channels == 1
    assert not facts.completeness.complete
    assert any("Cumprod" in part for part in facts.completeness.unaccounted)
    assert found.png().startswith(b"\x89PNG")


class TestRefusals:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
    def test_names_quantized_modules(self):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).eval()
        quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)
        with pytest.raises(
            UnexplainableError, match=r"^1: expected weights in floating point, got a quantized"
        ):
            explain(quantized, input_images())

    def test_names_a_regression(self):
        with pytest.raises(UnexplainableError, match=r"at least 2 classes, got 1 output unit\. A regression"):
            explain(built(Residual, 1), input_images())

    @pytest.mark.parametrize(
        ("images", "options", "reason"),
        [
            (input_images()[0], {}, r"images: expected uint8 \(N, H, W, 1 or 3\), got uint8 \(32, 32, 3\)"),
            (input_images() / 255, {}, "images: expected uint8 .*, got float64"),
            (input_images(channels=4), {}, r"images: .*, got uint8 \(1, 32, 32, 4\)"),
            (input_images(0), {}, r"images: .*, got uint8 \(0, 32, 32, 3\)"),
            (input_images(channels=1), {}, "mean, std: expected 1 numbers, one per channel, got 3 and 3"),
            (input_images(), {"std": [1]}, "mean, std: expected 3 numbers, one per channel, got 3 and 1"),
            (input_images(2), {"targets": [1]}, "targets: expected 2, one per image, got 1"),
            (input_images(), {"targets": [5]}, "target: expected a class from 0 to 4, got 5"),
        ],
    )
    def test_names_invalid_arguments(self, images, options, reason):
        with pytest.raises(ValueError, match=reason):
            explain(built(Residual), images, **options)


class TestImages:
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_reads_a_png_as_the_endpoint_does(self, tmp_path, mode, channels):
        pixels = input_images(height=40, width=28)[0]
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "image.png")
        expected = read_images((tmp_path / "image.png").read_bytes(), "image/png", channels, (24, 32))
        assert (command.read_image(tmp_path / "image.png", (24, 32), channels) == expected[0]).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turns_a_jpeg_as_the_endpoint_does(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[TiffImagePlugin.OSUBFILETYPE] = 0
        exif[0x0112] = orientation
        Image.fromarray(input_images(height=40, width=28)[0]).save(tmp_path / "image.jpg", exif=exif)
        expected = read_images((tmp_path / "image.jpg").read_bytes(), "image/jpeg", 3, (24, 32))
        assert (command.read_image(tmp_path / "image.jpg", (24, 32), 3) == expected[0]).all()


NET = """
import torch
from torch import nn

def tiny(classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(input_images(2)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / ".hidden").write_text("skipped")
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command in this process, and return its exit status, output and errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            command.main(["--model", "nets.py:tiny", "--out", "out", *arguments])
        sys.modules.pop("nets", None)
        written, code = capsys.readouterr(), ended.value.code
        return int(bool(code)), written.out, code if isinstance(code, str) else ""

    monkeypatch.chdir(folder)
    return run


class TestCommand:
    def test_explains_a_folder_and_names_other_files(self, folder, run):
        (folder / "images" / "notes.txt").write_text("not an image")
        (folder / "config.json").write_text('{"image_size": [20, 24], "labels": ["a", "b", "c", "d"]}')
        torch.manual_seed(7)
        weights = {"0.weight": torch.randn(4, 3, 3, 3), "0.bias": torch.randn(4),
                   "4.weight": torch.randn(4, 4), "4.bias": torch.tensor([9.0, 0, 0, 0])}  # fmt: skip
        torch.save(weights, folder / "weights.pt")
        status, output, error = run("--weights", "weights.pt", "--config", "config.json", "--image", "images")
        assert (status, error) == (1, "")
        first, zero, one, notes = output.splitlines()
        assert first == (
            "images: 20 × 24 px, 3 channel(s), mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]"
        )
        assert zero.startswith("images/0.png: class 0 (a), probability ")
        assert "; complete, error " in one
        assert notes.startswith(
            "images/notes.txt: refused: expected a readable image, got UnidentifiedImageError"
        )
        assert sorted(path.name for path in (folder / "out").iterdir()) == [
            "0.json", "0.png", "1.json", "1.png", "notes.json",
        ]  # fmt: skip
        facts = read_facts((folder / "out" / "1.json").read_bytes())
        assert (facts.class_name, facts.completeness.complete, facts.model) == ("a", True, "Sequential")
        assert isinstance(read_facts((folder / "out" / "notes.json").read_bytes()), Refusal)
        with Image.open(folder / "out" / "0.png") as png:
            assert png.text["complete"] == "yes"

    def test_is_a_program(self, folder):
        done = subprocess.run(
            [sys.executable, "-m", "glassbox.explain", "--model", "nets:tiny", "--arguments", '{"classes": 6}',
             "--image", "images/1.png", "--target", "5", "--out", "out"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/layers/core/python:{ROOT}/model_code"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((folder / "out" / "1.json").read_text())["predicted_class"] == 5

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--weights", "none.pt"], "explain: none.pt: No such file or directory"),
            (["--weights", "nets.py"], "explain: nets.py: expected a state dict of tensors alone"),
            (["--config", "nets.py"], "explain: nets.py: expected a JSON object, got something else"),
            (["--config", "bad.json"], "explain: bad.json: image_size must be two whole numbers"),
            (["--arguments", '{"depth": 1}'], "explain: nets:tiny: expected a network"),
            (["--model", "nets.py:none"], "AttributeError: module 'nets' has no attribute 'none'"),
            (["--model", "missing.py:Net"], "explain: missing.py: expected a Python module, got FileNotFound"),
            (["--model", "nets.py"], "explain: --model nets.py: expected FILE.py:CLASS or MODULE:CLASS"),
            (["--model", "my net:Net"], "explain: --model my net:Net: expected FILE.py:CLASS or MODULE:CLASS"),
            (["--model", "no_such_package.models:net"], "ModuleNotFoundError: No module named 'no_such_package'"),
            (["--model", "json.py:Net"], "because json is not free. Rename it."),
            (["--out", "images"], "explain: --out images: expected another folder than that of the images"),
            (["--image", "empty"], "explain: empty: expected images, got an empty folder"),
            (["--image", "images", "images/1.png"], "--image: expected different names, got 1 twice"),
        ],
    )  # fmt: skip
    def test_names_what_is_wrong_before_the_first_image(self, folder, run, arguments, reason):
        (folder / "bad.json").write_text('{"image_size": 3}')
        (folder / "empty").mkdir()
        status, output, error = run("--image", "images", *arguments)
        assert (status, output) == (1, "")
        assert reason in error
        assert not (folder / "out").exists()

    def test_names_why_an_image_is_not_explained(self, folder, run):
        status, output, _ = run("--arguments", '{"classes": 1}', "--image", "images/0.png")
        assert status == 1
        assert "images/0.png: refused: Sequential: expected scores of at least 2 classes" in output
        assert [path.name for path in (folder / "out").iterdir()] == ["0.json"]

    def test_replaces_the_heat_map_of_an_earlier_run(self, folder, run):
        assert run("--image", "images/0.png")[0] == 0
        assert run("--image", "images/0.png", "--arguments", '{"classes": 1}')[0] == 1
        assert [path.name for path in (folder / "out").iterdir()] == ["0.json"]
