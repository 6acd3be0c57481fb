import functools
import io
import sys
import tarfile
from pathlib import Path

import pytest

from local.deploy import deploy
from local.emulator import ACCOUNT, REGION, EmbeddedAws
from local.waiting import wait_for

EMBEDDED = Path(__file__).parent / "embedded"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
STUBS = {
    "stub-serving": [sys.executable, str(EMBEDDED / "server.py")],
    "stub-environment": ["STAGE=image", "PYTHONPATH=/image", sys.executable, str(EMBEDDED / "server.py")],
    "stub-monitor": [sys.executable, str(EMBEDDED / "monitor.py")],
}


@pytest.fixture(scope="session")
def embedded_aws():
    """The embedded AWS, started once per session."""
    with EmbeddedAws(images=STUBS, flush_seconds=0.2) as aws:
        yield aws


@pytest.fixture(scope="session")
def stub_images():
    """Image URIs for embedded/server.py and embedded/monitor.py."""
    return {"serving": f"{REGISTRY}/stub-serving:1", "monitor": f"{REGISTRY}/stub-monitor:1"}


@pytest.fixture(scope="session")
def model_data(embedded_aws):
    """The S3 URI of a model.tar.gz for the stub server."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("model/model.pt", "code/inference.py"):
            archive.addfile(tarfile.TarInfo(name))
    embedded_aws.create_bucket("stub-models")
    embedded_aws.client("s3").put_object(Bucket="stub-models", Key="one/model.tar.gz", Body=buffer.getvalue())
    return "s3://stub-models/one/model.tar.gz"


@pytest.fixture(scope="session")
def eventually():
    """Call a function until its result is truthy, for 20 s or `seconds`, and return the result."""
    return functools.partial(wait_for, seconds=20.0, pause=0.05)


@pytest.fixture(scope="session")
def small_stack(embedded_aws, model_data, stub_images, tmp_path_factory):
    """The outputs of embedded/template.yaml, deployed with an endpoint `small`."""
    parameters = {"EndpointName": "small", "ModelDataUrl": model_data, "Image": stub_images["serving"]}
    build = tmp_path_factory.mktemp("build")
    return deploy(EMBEDDED / "template.yaml", "small", parameters, embedded_aws.session, build=build)
