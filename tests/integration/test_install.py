"""`pip install`: what the wheel holds, and that the explain command runs from it without the repository."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRADIENTS = {
    "blur_test",
    "complete_gradients",
    "gradient_rules",
    "gradient_self_test",
    "gradients",
    "isolation",
    "pixel_places",
    "trace_memory",
}


def pip(*arguments):
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the tracked files; setuptools writes its build folder beside them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(
        ["cp", "--parents", "-t", source, *archive.decode().split("\0")[:-1]], cwd=ROOT, check=True
    )
    pip("wheel", "-q", "--no-deps", "-w", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


def explained(python, folder, **environment):
    """Run the command on an image of the repository, and return the text chunks of the heat map."""
    arguments = [
        "--model", ROOT / "model_code/resnet.py:ResNet18", "--arguments", '{"width": 16}',
        "--weights", ROOT / "demo/weights/signs_w16.pt", "--config", ROOT / "demo/weights/signs_w16.json",
        "--image", ROOT / "events/stop-sign.png", "--out", "out",
    ]  # fmt: skip
    return subprocess.run(
        [python, "-P", "-m", "glassbox.explain", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_the_wheel_holds_the_core_and_the_gradients(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    core = ROOT / "layers/core/python"
    tracked = subprocess.run(["git", "ls-files", core], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {Path(name).relative_to("layers/core/python").as_posix() for name in tracked.stdout.split()}
    assert names == expected | {f"{name}.py" for name in GRADIENTS}


def test_the_command_runs_from_the_wheel(wheel, tmp_path):
    pip("install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    done = explained(sys.executable, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "stop-sign.png: class 14 (Stop), probability 99.4%" in done.stdout
    assert (tmp_path / "out" / "stop-sign.png").is_file()


@pytest.mark.skipif("GLASSBOX_LONG" not in os.environ, reason="installs torch; make test-all runs it")
def test_the_extra_installs_what_the_command_imports(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", f"{wheel}[torch]"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    done = explained(python, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stop-sign.png: class 14 (Stop), probability 99.4%; complete" in done.stdout.replace(
        ", score 11.41", ""
    )
