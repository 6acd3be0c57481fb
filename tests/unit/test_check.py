"""make check-model, as a process, for complete, random and missing models."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import package
from resnet import ResNet18

CHECK = Path(package.__file__).parent / "check.py"
OWN = """
from torch import nn

class Smooth(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).mean((2, 3)))
"""


def check(*arguments, **environment):
    return subprocess.run(
        [sys.executable, CHECK, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(ResNet18(num_classes=3, width=4).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_reports_modules_completeness_latency_and_bytes(tmp_path, weights):
    image, heatmap_path = tmp_path / "sign.png", tmp_path / "heatmap_path.png"
    Image.new("RGB", (90, 60), "orange").save(image)
    # The environment of the shell must not turn tracing on.
    done = check(weights, "--image", image, "--heatmap", heatmap_path, tensors_output="s3://not/used")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    parameters = sum(p.numel() for p in ResNet18(num_classes=3, width=4).parameters())
    assert first == (
        f"{weights}: ResNet18, {parameters:,} parameters, images of 48 × 48 px and 3 channel(s), without labels"
    )
    assert "22 terms, with their share of Σ|terms|:" in lines
    assert re.search(r"^  layer1\.0\.bn1 +BatchNorm2d +\d+\.\d%$", done.stdout, re.M)
    assert re.search(rf"^{re.escape(str(image))}: class [012], probability \d", done.stdout, re.M)
    assert re.search(r"^Completeness: .* away: complete$", done.stdout, re.M)
    assert re.search(r"^Blur test: class [012] .* when the best 10 % is blurred", done.stdout, re.M)
    assert re.search(r"\d ms plain, [\d.]+ ms traced \([\d.]+x\)$", done.stdout, re.M)
    sizes = re.search(r"Bytes of a trace: (.*) reduced, (.*) full$", done.stdout, re.M).groups()
    reduced, full = (int(size.replace(",", "")) for size in sizes)
    assert 10_000 < reduced < full
    assert "WARNING" not in done.stdout
    with Image.open(heatmap_path) as heatmap:
        assert heatmap.format == "PNG"


def packed(folder, name, source):
    """Pack a network of a convolution and a linear layer, with random weights."""
    torch.manual_seed(0)
    weights = {
        "conv.weight": torch.randn(4, 1, 3, 3),
        "conv.bias": torch.randn(4),
        "fc.weight": torch.randn(3, 4),
        "fc.bias": torch.randn(3),
    }
    torch.save(weights, folder / "weights.pt")
    code = folder / f"{name.lower()}.py"
    code.write_text(source)
    config = {
        "architecture": f"{name.lower()}:{name}",
        "image_size": [32, 40],
        "mean": [0.5],
        "std": [0.25],
    }
    package.package(folder / "weights.pt", folder / "model.tar.gz", config, code=[code])
    return folder / "model.tar.gz"


def test_counts_the_held_coefficients_of_a_smooth_network(tmp_path):
    done = check(packed(tmp_path, "Smooth", OWN))
    assert (done.returncode, done.stderr) == (0, "")
    assert "away: complete" in done.stdout
    assert "Held coefficients: activation 1" in done.stdout
    assert "WARNING" not in done.stdout
    assert "images of 32 × 40 px and 1 channel(s)" in done.stdout


def test_reports_a_random_network_as_incomplete(tmp_path):
    dropout = "nn.functional.dropout(self.conv(x).relu())"
    source = OWN.replace("Smooth", "Dropping").replace("self.act(self.conv(x))", dropout)
    done = check(packed(tmp_path, "Dropping", source))
    assert (done.returncode, done.stderr) == (0, "")
    assert "away: INCOMPLETE" in done.stdout
    assert (
        "WARNING: the sum may miss a part: Dropping: gives different logits for the same image "
        "(bernoulli in eval mode)" in done.stdout
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"no weights", "expected a state dict of tensors alone"),
    ],
)
def test_names_why_a_model_does_not_load(tmp_path, content, reason):
    if content:
        (tmp_path / "model").write_bytes(content)
    done = check(tmp_path / "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("check-model: ")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
