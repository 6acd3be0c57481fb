"""`make plan CHECK=1`: the archive of a live endpoint is downloaded and its code tried on this machine."""

import dataclasses
import io
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import check
from deploy.check import CheckOptions, check_lines
from deploy.watched_endpoint import WatchedEndpoint

BUCKET = "checked-models"
OPTIONS = CheckOptions(tool=Path(sys.executable))
BROKEN = "def model_fn(model_dir):\n    return undefined\n"
NET = """
import os, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

def model_fn(model_dir):
    assert os.environ["TEAM"] == "acme"
    torch.manual_seed(0)
    return Net().eval()

def input_fn(body, content_type):
    assert content_type == "image/png"
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
"""


@pytest.fixture(scope="module")
def s3(embedded_aws):
    embedded_aws.create_bucket(BUCKET)
    return embedded_aws.client("s3")


@pytest.fixture
def lines(embedded_aws, s3):
    """Return the lines for a container, whose archive contains a program if there is one."""

    def lines(program=None, options=OPTIONS, **container):
        if program is not None:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
                entry = tarfile.TarInfo("code/inference.py")
                entry.size = len(program)
                archive.addfile(entry, io.BytesIO(program.encode()))
            s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=buffer.getvalue())
            container = {"ModelDataUrl": f"s3://{BUCKET}/model.tar.gz", **container}
        model = {"ModelName": "signs", "PrimaryContainer": container}
        config = {"EndpointConfigName": "v1", "ProductionVariants": []}
        endpoint = WatchedEndpoint(
            {"EndpointName": "shop"}, config, {"signs": model}, "captures", "c", "", ""
        )
        return list(check_lines(endpoint, options, SimpleNamespace(client=embedded_aws.client)))

    return lines


def test_prints_the_line_of_the_network(lines):
    first, second, third = lines(NET, Environment={"TEAM": "acme"})
    assert first == f"Model signs: runs s3://{BUCKET}/model.tar.gz on this machine."
    assert second.startswith("  stop-sign.png: Net: explained: class ")
    assert third == "  The answers are equal byte for byte with and without the hook"


def test_prints_why_the_model_does_not_load(lines):
    _, reason = lines(BROKEN)
    assert reason == "  check-endpoint: the model does not load: NameError: name 'undefined' is not defined"


def test_the_whole_check_has_a_time_limit(lines):
    options = dataclasses.replace(OPTIONS, seconds=0.1)
    assert lines(BROKEN, options)[1:] == [
        "  Not tried: expected an end within 0.1 s, got none. Set SECONDS=…"
    ]


def test_an_environment_that_is_not_installed(lines):
    options = dataclasses.replace(OPTIONS, tool=Path("/absent/python"))
    assert lines(BROKEN, options)[1:] == [
        "  Not tried: expected /absent/python, got no such file. Run make check, which installs it."
    ]


def test_an_archive_beyond_the_limit_is_not_downloaded(lines, monkeypatch):
    monkeypatch.setattr(check, "MAX_ARCHIVE", 10)
    (line,) = lines(BROKEN)
    assert line.startswith(
        f"Model signs: not tried: s3://{BUCKET}/model.tar.gz: expected at most 10 bytes, got "
    )


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ({}, "expected model data in a model.tar.gz, got none"),
        (
            {"ModelDataSource": {"S3DataSource": {"S3Uri": "s3://b/m/", "S3DataType": "S3Prefix"}}},
            "expected model data in a model.tar.gz, got s3://b/m/",
        ),
        ({"ModelDataUrl": f"s3://{BUCKET}/absent"}, "An error occurred (NoSuchKey)"),
    ],
)
def test_model_data_that_cannot_be_read(lines, container, reason):
    (line,) = lines(**container)
    assert line.startswith(f"Model signs: not tried: {reason}")
