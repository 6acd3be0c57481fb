"""make check-endpoint, with the scripts of model owners, as processes; and with archives that cannot be checked."""

import ast
import dataclasses
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import package
from check_endpoint import CheckError, check, report
from resnet import ResNet18

ROOT = Path(__file__).parents[2]
OWNERS = ROOT / "tests" / "owners.py"
CASES = re.findall(r"^def (\w+)\(x\):", OWNERS.read_text(), re.MULTILINE)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_pytorch_serving_container") is None,
    reason="sagemaker-pytorch-inference is not installed",
)

# The body names the case.
SCRIPT = """
import owners, torch

def model_fn(model_dir):
    torch.set_num_threads(1)
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {case.__name__: case(image)[0] for case in owners.CASES}

def input_fn(body, content_type):
    return bytes(body).decode()

def predict_fn(case, model):
    return model[case]()

def output_fn(prediction, accept):
    return prediction.contiguous().numpy().tobytes().hex()
"""

NET = """
import io, numpy as np, torch
from torch import nn
from PIL import Image

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Linear(4, 5)
    def forward(self, x):
        return self.fc(self.act(self.conv(x)).mean((2, 3)))

def model_fn(model_dir):
    torch.manual_seed(0)
    return Net().eval()

def input_fn(body, content_type):
    if content_type != "application/x-image":
        raise ValueError(f"no {content_type}")
    pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB").resize((16, 16)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255

def predict_fn(image, model):
    with torch.no_grad():
        return model(image)
"""


def packed(folder, **files):
    """Write an archive; the names of its files have a slash for each double underscore."""
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(name.replace("__", "/") + ("" if isinstance(content, bytes) else ".py"))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return folder / "model.tar.gz"


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (20, 20), "orange").save(tmp_path / "sign.png")
    return tmp_path / "sign.png"


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """The verdict on each owner's script, by its name."""
    folder = tmp_path_factory.mktemp("owners")
    images = [folder / case for case in CASES]
    for path in images:
        path.write_text(path.name)
    archive = packed(folder, code__inference=SCRIPT, code__owners=OWNERS.read_text())
    return dict(zip(CASES, check(archive, images, content_type="text/plain"), strict=True))


REFUSED = {
    "several": "not explained: the answer is made of several networks: several, several",
    "forgot_eval": (
        "forgot_eval: not explained: network.bn: expected eval mode, got train mode. Call eval() on the network."
    ),
    "layer_by_layer": (
        "Conv2d: not explained: the last call of a module returns no class scores (1, K), but torch.float32 "
        "(1, 6, 6, 6). Layers that are called one by one outside a forward cannot be explained"
    ),
    "quantized": (
        "quantized: not explained: the network is quantized: integer operations have no gradient (linear_dynamic). "
        "Serve it before its quantization."
    ),
    "two_images": "two_images: not explained: expected one image tensor as argument, got 2",
    "numpy_only": (
        "not explained: the network runs outside PyTorch, or its input is not a float tensor (N, C, H, W)"
    ),
}
NAME = {"prepared_in_forward": "prepared_in_forward_inner", "parallel": "DataParallel"}
ROUNDED = {"half", "autocast"}  # repeated in float32


def row(case, verdict):
    """Return the row of docs/your-model.md."""
    (definition,) = [node for node in ast.parse(OWNERS.read_text()).body if getattr(node, "name", "") == case]
    found = verdict.explanation
    if found is None:
        text = f"not explained: {verdict.reason}"
    else:
        text = "complete" if found.complete else f"incomplete: {found.unaccounted[0].partition(': ')[2]}"
        text += f", gates held at {found.held_places} places" * bool(found.held_places)
    return f"| `{case}` | {ast.get_docstring(definition)} | {text} |"


class TestOwners:
    @pytest.mark.parametrize("case", [case for case in CASES if case not in REFUSED])
    def test_an_explained_network_has_its_line(self, owners, case):
        verdict = owners[case]
        assert (verdict.network, verdict.reason) == (NAME.get(case, case), "")
        found = verdict.explanation
        assert abs(found.total - found.logit) <= max(1e-5 * abs(found.logit), 1e-7 * found.sum_abs)
        assert found.complete != (case in ROUNDED)
        assert verdict.multiple > 0
        assert re.match(
            rf"{verdict.network}: explained: class \d, probability [\d.]+%; {'IN' * (case in ROUNDED)}COMPLETE".lower(),
            verdict.line().lower(),
        )

    @pytest.mark.parametrize("case", REFUSED)
    def test_a_refused_network_has_its_reason(self, owners, case):
        assert owners[case].explanation is None
        assert owners[case].line() == REFUSED[case]

    def test_the_page_has_the_verdict_on_every_script(self, owners):
        table = "\n".join(row(case, verdict) for case, verdict in owners.items())
        page = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
        listed = re.findall(r"^\| `\w+` \| .*$", page.partition("### Scripts of owners")[2], re.MULTILINE)
        assert listed == table.splitlines(), f"docs/your-model.md: expected\n{table}"

    def test_no_answer_changes(self, owners):
        assert [case for case, verdict in owners.items() if not verdict.is_same] == []

    def test_a_repeat_in_another_precision_is_a_warning(self, owners):
        (_, unread, warning, same) = report([owners["half"]], [Path("half")], with_details=False)
        assert unread.startswith("WARNING: not compared with the response: the response is not")
        assert warning == (
            "WARNING: the sum may miss a part: half: the explained pass returned other logits than the answer"
        )
        assert same == "The answers are equal byte for byte with and without the hook"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "model_code" / "check_endpoint.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package.CORE.parent), **environment},
    )


def test_the_command_prints_a_line_and_writes_the_heat_map(tmp_path, image):
    archive = packed(tmp_path, code__inference=NET)
    # Variables of the shell change neither process.
    done = run(
        archive,
        image,
        "--heatmaps",
        tmp_path / "maps",
        "--details",
        tensors_output="s3://b/x",
        BLUR_TEST="Disabled",
    )
    first, *others = done.stdout.splitlines()
    assert re.fullmatch(
        r"sign\.png: Net: explained: class \d, probability [\d.]+%; complete, gates held at 1 place, error \S+ of "
        r"the logit and \S+ of Σ\|terms\|; class \d .* when the best 10 % is blurred; .*; CPU time of "
        r"[\d.]+ plain requests",
        first,
    )
    assert "Held coefficients: activation 1" in others
    assert others[-2:] == [
        "The answers are equal byte for byte with and without the hook",
        f"Heat map: {tmp_path / 'maps' / 'sign.png'}",
    ]
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "maps" / "sign.png") as drawn:
        assert drawn.format == "PNG"


def test_an_archive_that_contains_the_hook_is_checked_with_its_own(tmp_path, image):
    torch.manual_seed(0)
    torch.save(ResNet18(num_classes=3, width=4).state_dict(), tmp_path / "weights.pt")
    package.package(tmp_path / "weights.pt", tmp_path / "model.tar.gz")
    (verdict,) = check(tmp_path / "model.tar.gz", [image])
    assert verdict.explanation.complete
    assert (verdict.network, verdict.explanation.held_places, verdict.is_same) == ("ResNet18", 0, True)


def test_a_script_module_without_code_is_answered_by_the_toolkit(tmp_path, image):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    torch.jit.trace(Small().eval(), torch.zeros(1, 3, 16, 16)).save(tmp_path / "saved.pt")
    archive = packed(tmp_path, **{"model.pt": (tmp_path / "saved.pt").read_bytes()})
    (verdict,) = check(archive, [image])
    assert verdict.explanation.complete


def test_a_changed_answer_is_a_warning_and_a_failure(owners):
    changed = dataclasses.replace(owners["no_grad"], is_same=False)
    *_, last = report([changed], [Path("x.png")], with_details=False)
    assert last == "WARNING: the hook changes the answer to x.png"


def test_a_regression_is_refused(tmp_path, image):
    source = NET.replace("nn.Linear(4, 5)", "nn.Linear(4, 1)")
    (verdict,) = check(packed(tmp_path, code__inference=source), [image])
    assert verdict.line() == (
        "Net: not explained: expected scores of at least 2 classes, got 1 output unit. A regression has no class to "
        "explain"
    )


# The owner's code answers the second most probable class.
SECOND = """
import json

def output_fn(scores, accept):
    second = scores[0].argsort(descending=True)[1]
    return json.dumps({"found": {"class": int(second)}, "all": scores[0].tolist()})
"""


def test_another_class_than_the_networks_is_a_warning(tmp_path, image):
    archive = packed(tmp_path, code__inference=NET + SECOND)
    done = run(archive, image, "--class-path", "found.class")
    network = int(re.search(r"explained: class (\d)", done.stdout)[1])
    found = re.search(
        r"WARNING: the response gives class (\d), the network (\d)\. The heat map explains the network's class\.",
        done.stdout,
    )
    assert int(found[2]) == network != int(found[1])
    # The answer is as the owner wants it.
    assert (done.returncode, done.stderr) == (0, "")


def test_a_path_that_finds_nothing_is_a_warning(tmp_path, image):
    done = run(packed(tmp_path, code__inference=NET + SECOND), image, "--class-path", "other")
    assert "WARNING: not compared with the response: CLASS_PATH finds nothing in the response" in done.stdout
    assert done.returncode == 0


def test_an_invalid_path_is_refused(tmp_path, image):
    done = run(packed(tmp_path, code__inference=NET), image, "--class-path", "[")
    assert done.stderr.startswith("check-endpoint: CLASS_PATH='[': invalid JMESPath: ")
    assert (done.returncode, done.stdout) == (1, "")


def test_an_answer_of_a_dict_is_sent_as_json(tmp_path, image):
    source = NET.replace("def input_fn", "def prepared").replace("def predict_fn", "def predicted") + (
        "\ndef transform_fn(model, body, content_type, accept):\n"
        "    return {'scores': predicted(prepared(body, content_type), model).tolist()}\n"
    )
    (verdict,) = check(packed(tmp_path, code__inference=source), [image], content_type="application/x-image")
    assert verdict.explanation.complete
    assert verdict.is_same


AUDITED = """
import sys
log = open({log!r}, "a")
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        place = arguments[1][0] if event == "socket.connect" else arguments[0]
        print(event, place, file=log, flush=True)
sys.addaudithook(note)
"""
TRYING = """
import boto3
from botocore.config import Config
def try_aws():
    try:
        boto3.client("s3", config=Config(retries={"total_max_attempts": 1})).get_object(Bucket="a", Key="b")
    except Exception as error:
        print("aws:", error, file=log, flush=True)
try_aws()
"""


def test_no_process_connects_to_another_machine(tmp_path, image):
    log = tmp_path / "log"
    archive = packed(tmp_path, code__inference=AUDITED.format(log=str(log)) + TRYING + NET)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(AUDITED.format(log=str(log)))
    path = os.pathsep.join([str(tmp_path / "audit"), str(package.CORE.parent)])
    done = run(
        archive, image, PYTHONPATH=path, AWS_PROFILE="production", HTTPS_PROXY="http://proxy.example.com"
    )
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    # Each of the two processes tries, and the hook uploads.
    assert sum(line.startswith("aws: An error occurred (403)") for line in lines) == 2
    assert {line.split()[1] for line in lines if line.startswith("socket.")} == {"127.0.0.1"}


class TestProblems:
    """One sentence each, without a traceback."""

    def test_a_mistake_in_the_code(self, tmp_path, image):
        archive = packed(tmp_path, code__inference="def model_fn(model_dir):\n    return undefined\n")
        done = run(archive, image)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"check-endpoint: {archive}: the model does not load: NameError: name 'undefined' is not defined\n"
        )

    def test_a_mistake_in_a_request(self, tmp_path, image):
        source = NET.replace("return model(image)", "return model(image, 2)")
        with pytest.raises(
            CheckError, match=r"sign\.png: expected an answer, got an error for every content type\."
        ):
            check(packed(tmp_path, code__inference=source), [image])

    def test_a_process_that_ends(self, tmp_path, image):
        source = NET.replace("return model(image)", "import os; os._exit(7)")
        with pytest.raises(CheckError, match="its process ended with status 7"):
            check(packed(tmp_path, code__inference=source), [image])

    def test_a_request_that_hangs(self, tmp_path, image):
        source = NET.replace("return Net().eval()", "import time; time.sleep(1000)")
        with pytest.raises(CheckError, match=r"expected an answer within 5 s, got none\. Set SECONDS=…"):
            check(packed(tmp_path, code__inference=source), [image], seconds=5)

    def test_no_code_and_no_script_module(self, tmp_path, image):
        archive = packed(tmp_path, **{"weights.bin": b"0"})
        with pytest.raises(
            CheckError, match=r"Without code/inference\.py, the toolkit loads a TorchScript file"
        ):
            check(archive, [image])

    def test_a_text_file_as_image(self, tmp_path):
        (tmp_path / "x.png").write_text("text")
        with pytest.raises(
            CheckError, match=r"x\.png: expected an image, got a file that Pillow cannot read"
        ):
            check(tmp_path / "absent", [tmp_path / "x.png"])

    def test_another_file_than_an_archive(self, tmp_path, image):
        (tmp_path / "model.tar.gz").write_bytes(b"no tar")
        with pytest.raises(
            CheckError, match=r"expected a tar archive such as model\.tar\.gz, got another file"
        ):
            check(tmp_path / "model.tar.gz", [image])

    def test_an_archive_that_leaves_its_folder(self, tmp_path, image):
        with pytest.raises(tarfile.OutsideDestinationError):
            check(packed(tmp_path, **{"../x": b"0"}), [image])
        assert not (tmp_path.parent / "x").exists()

    def test_a_damaged_archive(self, tmp_path, image):
        archive = packed(tmp_path, code__inference=NET, weights=os.urandom(100_000))
        archive.write_bytes(archive.read_bytes()[:50_000])
        with pytest.raises(ValueError, match=r"model\.tar\.gz: expected a whole archive, got a damaged one"):
            check(archive, [image])

    def test_an_archive_of_too_many_bytes(self, tmp_path, image, monkeypatch):
        monkeypatch.setattr(package, "MAX_BYTES", 3)
        with pytest.raises(ValueError, match="and 3 bytes decompressed, got more"):
            check(packed(tmp_path, a=b"12", b=b"34"), [image])

    def test_an_image_larger_than_a_request(self, tmp_path):
        (tmp_path / "x.png").write_bytes(bytes(6 * 2**20 + 1))
        with pytest.raises(CheckError, match="expected at most 6291456 bytes"):
            check(tmp_path / "absent", [tmp_path / "x.png"])

    def test_a_python_without_the_toolkit(self, tmp_path, image):
        base = shutil.which(
            f"python{sys.version_info.major}.{sys.version_info.minor}", path=sys.base_prefix + "/bin"
        )
        with pytest.raises(
            CheckError, match=r"got no module \w+\. Run .* -m pip install sagemaker-inference"
        ):
            check(packed(tmp_path, code__inference=NET), [image], python=base)

    def test_no_interpreter(self, tmp_path, image):
        with pytest.raises(CheckError, match="PYTHON: expected a Python interpreter, got /absent"):
            check(packed(tmp_path, code__inference=NET), [image], python="/absent")
