"""model.tar.gz: what is in it, byte for byte the same each time, and that it loads as the endpoint loads it."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

import package
from resnet import ResNet18

ROOT = Path(__file__).parent.parent.parent
FORMS = "expected FILE.py:CLASS, FOLDER:CLASS or MODULE:CLASS"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save(ResNet18(num_classes=3, width=4).state_dict(), path)
    return path


def config_of(archive):
    with tarfile.open(archive) as packed:
        return json.load(packed.extractfile("model/config.json"))


def test_holds_the_model_and_its_code(tmp_path, weights):
    package.package(weights, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as packed:
        members = packed.getmembers()
        assert [member.name for member in members] == [
            "code/blur_test.py",
            "code/complete_gradients.py",
            "code/decode.py",
            "code/glassbox/__init__.py",
            "code/glassbox/errors.py",
            "code/glassbox/explanation/__init__.py",
            "code/glassbox/explanation/saliency.py",
            "code/glassbox/explanation/trace_format.py",
            "code/glassbox/model_config.py",
            "code/glassbox/network.py",
            "code/glassbox/replay_marker.py",
            "code/glassbox/settings.py",
            "code/gradient_rules.py",
            "code/gradient_self_test.py",
            "code/gradients.py",
            "code/inference.py",
            "code/isolation.py",
            "code/pixel_places.py",
            "code/recorder.py",
            "code/requirements.txt",
            "code/resnet.py",
            "code/trace_memory.py",
            "code/trace_upload.py",
            "code/trace_writer.py",
            "model/config.json",
            "model/model.pt",
        ]
        assert all(m.isfile() and (m.uid, m.gid, m.mtime, m.mode) == (0, 0, 0, 0o644) for m in members)
        assert packed.extractfile("model/model.pt").read() == weights.read_bytes()
        assert packed.extractfile("code/recorder.py").read() == (ROOT / "model_code/recorder.py").read_bytes()


def test_same_content_gives_the_same_bytes(tmp_path, weights):
    package.package(weights, tmp_path / "one.tar.gz")
    os.utime(weights, (1, 1))
    package.package(weights, tmp_path / "other.tar.gz")
    one = (tmp_path / "one.tar.gz").read_bytes()
    assert one == (tmp_path / "other.tar.gz").read_bytes()
    package.package(weights, tmp_path / "other.tar.gz", {"image_size": [64, 64]})
    assert one != (tmp_path / "other.tar.gz").read_bytes()


def test_config_is_given_or_beside_the_weights_or_the_default(tmp_path, weights):
    archive = tmp_path / "model.tar.gz"
    package.package(weights, archive)
    assert config_of(archive) == package.DEFAULT_CONFIG
    weights.with_suffix(".json").write_text('{"image_size": [32, 40]}')
    package.package(weights, archive)
    assert config_of(archive) == package.DEFAULT_CONFIG | {"image_size": [32, 40]}
    package.package(weights, archive, {"labels": ["Stop", "Vorfahrt gewähren", "Пешеход"]})
    assert config_of(archive) == package.DEFAULT_CONFIG | {"labels": ["Stop", "Vorfahrt gewähren", "Пешеход"]}


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "", "[" * 100_000, "\ufeff{}"])
def test_names_a_config_that_is_not_an_object(weights, text):
    weights.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(weights.with_suffix('.json')))}: expected a JSON object"
    ):
        package.model_config(weights)


class TestLabels:
    def test_labels_are_ordered_by_class(self, tmp_path):
        file = tmp_path / "labels.csv"
        file.write_text('class_id,name,sign\n1,"Yield, soon",205\n0,Stop,206\n', encoding="utf-8")
        assert package.read_labels(file) == ["Stop", "Yield, soon"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "line 1: expected the columns class_id and name, got None"),
            ("id,name\n0,Stop\n", r"line 1: expected the columns class_id and name, got \['id', 'name'\]"),
            ("class_id,name\n0,Stop\n2,Yield\n", "got none for 1"),
            ("class_id,name\n1,Stop\n", "got none for 0"),
        ],
    )
    def test_refuses_invalid_label_files(self, tmp_path, text, reason):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=reason):
            package.read_labels(tmp_path / "labels.csv")


def run(*arguments, python=sys.executable):
    return subprocess.run(
        [python, ROOT / "model_code" / "package.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "tensors_output": "s3://not/looked/at"},
    )


class TestCommand:
    def test_packs_a_model_that_loads(self, tmp_path, weights):
        (tmp_path / "labels.csv").write_text("class_id,name\n0,Stop\n1,Yield\n2,Priority\n")
        (tmp_path / "config.json").write_text('{"image_size": [32, 32]}')
        out = tmp_path / "model.tar.gz"
        done = run(
            "--weights", weights, "--out", out, "--labels", tmp_path / "labels.csv",
            "--config", tmp_path / "config.json",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{out}: {out.stat().st_size:,} bytes\n"
        assert config_of(out)["labels"] == ["Stop", "Yield", "Priority"]
        assert config_of(out)["image_size"] == [32, 32]

    def test_names_why_an_archive_does_not_load(self, tmp_path, weights):
        (tmp_path / "labels.csv").write_text("class_id,name\n0,Stop\n")
        out = tmp_path / "model.tar.gz"
        done = run("--weights", weights, "--out", out, "--labels", tmp_path / "labels.csv")
        assert done.returncode == 1
        assert done.stderr.startswith(f"package: {out} does not load: ")
        assert "labels must be null or 3 texts" in done.stderr
        assert not out.exists()

    def test_keeps_the_old_archive_when_the_new_one_does_not_load(self, tmp_path, weights):
        out = tmp_path / "model.tar.gz"
        assert run("--weights", weights, "--out", out).returncode == 0
        before = out.read_bytes()
        (tmp_path / "labels.csv").write_text("class_id,name\n0,Stop\n")
        assert run("--weights", weights, "--out", out, "--labels", tmp_path / "labels.csv").returncode == 1
        assert out.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir() if "tar" in p.name] == ["model.tar.gz"]

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (
                {"--config": '{"means": [1]}'},
                "config: expected the keys architecture, image_size, mean, std, labels, got means",
            ),
            ({"--config": "[1]"}, "expected a JSON object, got a list"),
            (
                {"--config": "{"},
                "config.json: expected a JSON object, got something else: Expecting property",
            ),
            (
                {"--config": "[" * 100_000},
                "config.json: expected a JSON object, got something else: maximum recursion",
            ),
            (
                {"--network": "net.py"},
                "--network net.py: expected FILE.py:CLASS, FOLDER:CLASS or MODULE:CLASS",
            ),
        ],
    )
    def test_names_invalid_options(self, tmp_path, weights, given, reason):
        ((option, value),) = given.items()
        if option == "--config":
            (tmp_path / "config.json").write_text(value)
            value = tmp_path / "config.json"
        done = run("--weights", weights, "--out", tmp_path / "model.tar.gz", option, value)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr

    def test_packs_an_own_network(self, tmp_path):
        net, parts, weights = tmp_path / "net.py", tmp_path / "parts.py", tmp_path / "weights.pt"
        parts.write_text("from torch import nn\ndef head(n): return nn.Linear(3, n)\n")
        net.write_text(
            "import parts\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self, classes):\n        super().__init__()\n        self.fc = parts.head(classes)\n"
            "    def forward(self, x):\n        return self.fc(x.mean((2, 3)))\n"
        )
        torch.save({"fc.weight": torch.randn(4, 3), "fc.bias": torch.randn(4)}, weights)
        out = tmp_path / "model.tar.gz"
        given = ("--network", f"{net}:Net", "--arguments", '{"classes": 4}', "--code", parts)
        done = run("--weights", weights, "--out", out, *given)
        assert (done.returncode, done.stderr) == (0, "")
        assert config_of(out)["architecture"] == "net:Net"
        with tarfile.open(out) as packed:
            assert packed.extractfile("code/net.py").read() == net.read_bytes()
            assert packed.extractfile("code/parts.py").read() == parts.read_bytes()

    def test_packs_no_code_of_an_installed_package(self, tmp_path):
        python = tmp_path / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
        (site_packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
        (site_packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
        (site_packages / "zoo_of_nets").mkdir()
        (site_packages / "zoo_of_nets" / "__init__.py").write_text("")
        (site_packages / "zoo_of_nets" / "models.py").write_text(
            "from torch import nn\n"
            "def tiny(classes):\n"
            "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))\n"
        )
        weights, out = tmp_path / "weights.pt", tmp_path / "model.tar.gz"
        torch.save({"2.weight": torch.randn(4, 3), "2.bias": torch.randn(4)}, weights)
        given = ("--network", "zoo_of_nets.models:tiny", "--arguments", '{"classes": 4}')
        done = run("--weights", weights, "--out", out, *given, python=python)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(
            "zoo_of_nets is not packed: the image of the endpoint must contain it, in the same version\n"
        )
        assert config_of(out)["architecture"] == "zoo_of_nets.models:tiny"
        with tarfile.open(out) as packed:
            assert not [name for name in packed.getnames() if "zoo_of_nets" in name]
        # a package of which the name exists, and the function does not
        given = ("--network", "zoo_of_nets.models:small", "--arguments", '{"classes": 4}')
        done = run("--weights", weights, "--out", tmp_path / "other.tar.gz", *given, python=python)
        assert done.returncode == 1
        assert "zoo_of_nets.models:small: expected a network" in done.stderr
        assert not (tmp_path / "other.tar.gz").exists()

    @pytest.mark.parametrize("given", ["own_net:Net", "own_net/model.py:Net", "own_net/parts/deep.py:Net"])
    def test_packs_a_network_of_several_files(self, tmp_path, given):
        folder, weights = tmp_path / "own_net", tmp_path / "weights.pt"
        (folder / "parts" / "__pycache__").mkdir(parents=True)
        (folder / ".git").mkdir()
        for junk in (".git/config", "parts/__pycache__/heads.pyc", ".DS_Store"):
            (folder / junk).write_text("not packed")
        (folder / "__init__.py").write_text("from .model import Net\n")
        (folder / "parts" / "__init__.py").write_text("")
        (folder / "parts" / "deep.py").write_text("from ..model import Net\n")
        (folder / "parts" / "heads.py").write_text(
            "from torch import nn\ndef head(n): return nn.Linear(3, n)\n"
        )
        (folder / "parts" / "sizes.json").write_text("{}")
        (folder / "model.py").write_text(
            "from torch import nn\nfrom .parts import heads\n"
            "class Net(nn.Module):\n"
            "    def __init__(self, classes):\n        super().__init__()\n        self.fc = heads.head(classes)\n"
            "    def forward(self, x):\n        return self.fc(x.mean((2, 3)))\n"
        )
        torch.save({"fc.weight": torch.randn(4, 3), "fc.bias": torch.randn(4)}, weights)
        out = tmp_path / "model.tar.gz"
        given = f"{tmp_path}/{given}"
        done = run("--weights", weights, "--out", out, "--network", given, "--arguments", '{"classes": 4}')
        assert (done.returncode, done.stderr) == (0, "")
        with tarfile.open(out) as packed:
            own = [name.removeprefix("code/own_net/") for name in packed.getnames() if "own_net" in name]
        assert own == [
            "__init__.py", "model.py", "parts/__init__.py", "parts/deep.py", "parts/heads.py", "parts/sizes.json",
        ]  # fmt: skip

    def test_packs_folders_of_code(self, tmp_path):
        (tmp_path / "blocks").mkdir()
        (tmp_path / "blocks" / "heads.py").write_text(
            "from torch import nn\ndef head(n): return nn.Linear(3, n)\n"
        )
        net, weights, out = tmp_path / "net.py", tmp_path / "weights.pt", tmp_path / "model.tar.gz"
        net.write_text(
            "from blocks.heads import head\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.fc = head(4)\n"
            "    def forward(self, x):\n        return self.fc(x.mean((2, 3)))\n"
        )
        torch.save({"fc.weight": torch.randn(4, 3), "fc.bias": torch.randn(4)}, weights)
        code = ("--code", tmp_path / "blocks", net, tmp_path / "blocks")  # what is given twice is packed once
        done = run("--weights", weights, "--out", out, "--network", f"{net}:Net", *code)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("names", "reason"),
        [
            (["one/parts.py", "two/parts.py"], "expected different names, got code/parts.py twice"),
            (["one/parts/a.py", "two/parts/a.py"], "expected different names, got code/parts/a.py twice"),
            (["glassbox/a.py"], "code/glassbox is a file of ours"),
            (["my-parts/a.py"], "expected the name of a Python package, got 'my-parts'"),
            (["parts/.hidden"], "expected a package folder, got one without a file"),
        ],
    )
    def test_refuses_duplicate_names_of_code(self, tmp_path, weights, names, reason):
        code = []
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
            code.append(file if name.endswith("parts.py") else file.parent)
        with pytest.raises(ValueError, match=re.escape(reason)):
            package.package(weights, tmp_path / "model.tar.gz", code=code)

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ("net.py", FORMS),
            ("nowhere:Net", f"{FORMS} of an installed package, got no module nowhere. Install it, or"),
            ("nowhere.models:Net", f"{FORMS} of an installed package, got no module nowhere. Install it, or"),
            ("torch/nn:Net", f"{FORMS} of an installed package, got no module torch/nn."),
            ("my-net.py:Net", "expected a Python module, got my-net. Rename it."),
            ("net.py:not a name", FORMS),
            (":Net", FORMS),
        ],
    )
    def test_refuses_a_network_that_cannot_be_imported(self, given, reason):
        with pytest.raises(ValueError, match=f"^--network {re.escape(given)}: {re.escape(reason)}"):
            package.network_class(given)

    def test_names_a_killed_process(self, tmp_path):
        net, weights, out = tmp_path / "net.py", tmp_path / "weights.pt", tmp_path / "model.tar.gz"
        net.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
        torch.save({"fc.weight": torch.randn(4, 3)}, weights)
        done = run("--weights", weights, "--out", out, "--network", f"{net}:Net")
        assert (done.returncode, done.stderr) == (
            1, f"package: {out} does not load: its process ended with -9\n")  # fmt: skip

    def test_refuses_the_name_of_a_packed_file(self, tmp_path, weights):
        (tmp_path / "recorder.py").write_text("")
        out = tmp_path / "model.tar.gz"
        done = run("--weights", weights, "--out", out, "--code", tmp_path / "recorder.py")
        assert done.returncode == 1
        assert "code/recorder.py is a file of ours" in done.stderr
        assert not out.exists()

    def test_names_a_missing_file(self, tmp_path):
        done = run("--weights", tmp_path / "none.pt", "--out", tmp_path / "model.tar.gz")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("package: ")
        assert "none.pt" in done.stderr
