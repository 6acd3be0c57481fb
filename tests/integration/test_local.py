"""`python -m local`: the project's own template, deployed and left running, usable with what it prints."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch

from model_code.resnet import ResNet18

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network's; what it answers does not matter here."""
    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    torch.save(ResNet18(width=8).state_dict(), path)
    return path


def test_it_runs_until_interrupted_and_is_used_as_printed(weights):
    process = subprocess.Popen(
        [sys.executable, "-m", "local", "--port", "0", "--weights", str(weights)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    try:
        printed = ""
        while "Ctrl-C stops everything" not in printed:
            line = process.stdout.readline()
            assert line, f"it ended:\n{printed}"
            printed += line
        environment = dict(re.findall(r"export (\w+)=(\S+)", printed))
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        body = io.BytesIO()
        np.save(body, np.zeros((48, 48, 3), np.uint8))
        name = re.search(r"invoke-endpoint --endpoint-name (\S+)", printed)[1]
        answer = client.invoke_endpoint(
            EndpointName=name, Body=body.getvalue(), ContentType="application/x-npy"
        )
        assert b'"predictions"' in answer["Body"].read()
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    logs = Path(re.search(r"Logs are in (\S+)", printed)[1])
    assert not logs.exists()
