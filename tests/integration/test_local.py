"""`python -m local`: it deploys the stack, keeps it running and prints how to use it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from resnet import ResNet18

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'model_code'}"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of an untrained network."""
    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    torch.save(ResNet18(width=8).state_dict(), path)
    return path


def local(weights):
    return subprocess.Popen(
        [sys.executable, "-m", "local", "--port", "0", "--weights", str(weights)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        # a background process may inherit that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until_ready(process):
    printed = ""
    while "Ctrl-C stops everything" not in printed:
        line = process.stdout.readline()
        assert line, f"expected it to run, got:\n{printed}"
        printed += line
    return printed


def test_runs_until_interrupted_and_the_printed_commands_work(weights):
    process = local(weights)
    try:
        printed = until_ready(process)
        exports = re.findall(r"export \w+=\S+", printed)
        (command,) = re.findall(r'^  (\S+ -c "import boto3.*?\)")$', printed, re.M | re.S)
        done = subprocess.run(
            ["bash", "-ec", "\n".join([*exports, command])], capture_output=True, text=True, check=False
        )
        assert '"predictions"' in done.stdout, done.stderr
        port = re.search(r"export AWS_ENDPOINT_URL=http://127.0.0.1:(\d+)", printed)[1]
        again = subprocess.run(
            [sys.executable, "-m", "local", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
        assert again.returncode == 1
        assert (
            again.stderr
            == f"make local: 127.0.0.1:{port}: cannot listen: Address already in use. Choose another port.\n"
        )
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    logs = Path(re.search(r"Logs are in (\S+)", printed)[1])
    assert not logs.exists()


def test_exits_with_a_killed_emulator_and_leaves_no_model_server(weights):
    process = local(weights)
    try:
        printed = until_ready(process)
        descendants = psutil.Process(process.pid).children(recursive=True)
        (emulator,) = [child for child in descendants if "local.server" in child.cmdline()]
        assert any("serve.py" in " ".join(child.cmdline()) for child in descendants)
        emulator.kill()
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert rest == ("make local: the embedded AWS: expected to run, got exit status -9. Start it again.\n")
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert alive == []
    assert not Path(re.search(r"Logs are in (\S+)", printed)[1]).exists()
