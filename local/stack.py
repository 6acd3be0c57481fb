"""The project's own stack on the embedded AWS, ready to use: for the demo, the tests and `python -m local`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from local.deploy import deploy
from local.emulator import ACCOUNT, REGION, ROOT, EmbeddedAws, RunningAws

WEIGHTS = ROOT / "demo" / "weights" / "signs_w16.pt"
MODELS = "glassbox-models"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"


@dataclass(frozen=True)
class Stack:
    """A deployed stack: its outputs, and clients with the account's root rights."""

    aws: RunningAws
    outputs: dict[str, str]
    name: str = "glassbox"

    def client(self, service: str) -> Any:
        """A boto3 client of the embedded AWS."""
        return self.aws.client(service)

    def resources(self, kind: str) -> dict[str, str]:
        """The names of the stack's resources of a kind (`AWS::SQS::Queue`), by logical id."""
        listed = self.client("cloudformation").describe_stack_resources(StackName=self.name)["StackResources"]
        return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in listed if r["ResourceType"] == kind}

    def set_capture_clock(self, now: datetime) -> None:
        """Let data capture stamp inferences as if it were `now` (with a zone); the clock ticks on from there."""
        self.aws.control("clock", now=now.isoformat())


@contextlib.contextmanager
def running_stack(
    parameters: dict[str, str],
    *,
    weights: Path = WEIGHTS,
    name: str = "glassbox",
    aws: EmbeddedAws | None = None,
    **options: Any,
) -> Iterator[Stack]:
    """template.yaml on an embedded AWS with the weights' model behind the endpoint; all gone when the block ends.

    `parameters` are the template's, on top of endpoint name, model and images; `options` are EmbeddedAws's, unless
    there is one.
    """
    with contextlib.nullcontext(aws) if aws else EmbeddedAws(**options) as embedded:
        model = upload_model(embedded, weights)
        given = {
            "EndpointName": "traffic-signs",
            "ModelDataUrl": model,
            "ServingImage": f"{REGISTRY}/glassbox-serving:local",
            "MonitorImage": f"{REGISTRY}/glassbox-monitor:local",
            "AwsEndpointUrl": embedded.endpoint_url,
        }
        outputs = deploy(ROOT / "template.yaml", name, given | parameters, embedded.session)
        yield Stack(embedded, outputs, name)


def upload_model(aws: EmbeddedAws, weights: Path) -> str:
    """Package the weights with the serving code; the model.tar.gz's S3 URI."""
    import package

    s3 = aws.client("s3")
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=MODELS, CreateBucketConfiguration={"LocationConstraint": REGION})
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "model.tar.gz"
        package.package(weights, archive)
        key = f"models/{weights.stem}/model.tar.gz"
        s3.upload_file(str(archive), MODELS, key)
    return f"s3://{MODELS}/{key}"
