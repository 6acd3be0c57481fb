import io
import sys
import tarfile
import time
from pathlib import Path

import pytest

from local.deploy import deploy
from local.emulator import ACCOUNT, REGION, EmbeddedAws

EMBEDDED = Path(__file__).parent / "embedded"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
STUBS = {
    "stub-serving": [sys.executable, str(EMBEDDED / "server.py")],
    "stub-monitor": [sys.executable, str(EMBEDDED / "monitor.py")],
}


@pytest.fixture(scope="session")
def embedded_aws():
    """The embedded AWS, started once; `.client(service)` gives boto3 clients with the account's root rights."""
    with EmbeddedAws(images=STUBS, flush_seconds=0.2) as aws:
        yield aws


@pytest.fixture(scope="session")
def stub_images():
    """Image URIs of embedded/server.py and embedded/monitor.py."""
    return {"serving": f"{REGISTRY}/stub-serving:1", "monitor": f"{REGISTRY}/stub-monitor:1"}


@pytest.fixture(scope="session")
def model_data(embedded_aws):
    """The S3 URI of a model.tar.gz for the stub server."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("model/model.pt", "code/inference.py"):
            archive.addfile(tarfile.TarInfo(name))
    s3 = embedded_aws.client("s3")
    s3.create_bucket(Bucket="stub-models", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="stub-models", Key="one/model.tar.gz", Body=buffer.getvalue())
    return "s3://stub-models/one/model.tar.gz"


@pytest.fixture(scope="session")
def eventually():
    """Calls until the answer is truthy, and returns it; fails after `seconds`."""

    def wait(call, seconds=20.0, pause=0.05):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := call():
                return answer
            time.sleep(pause)
        pytest.fail(f"still {answer!r} after {seconds} s")

    return wait


@pytest.fixture(scope="session")
def small_stack(embedded_aws, model_data, stub_images, tmp_path_factory):
    """Outputs of embedded/template.yaml, deployed with an endpoint `small`."""
    parameters = {"EndpointName": "small", "ModelDataUrl": model_data, "Image": stub_images["serving"]}
    build = tmp_path_factory.mktemp("build")
    return deploy(EMBEDDED / "template.yaml", "small", parameters, embedded_aws.session, build=build)
