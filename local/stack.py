"""The project's stack on the embedded AWS, for the demo, the tests and `python -m local`."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import package
from local.deploy import deploy
from local.emulator import ACCOUNT, REGION, ROOT, EmbeddedAws, RunningAws

ENDPOINT = "traffic-signs"
WEIGHTS = ROOT / "demo" / "weights" / "signs_w16.pt"  # the model of an endpoint for which no other is named
MODELS = "glassbox-models"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"


@dataclass(frozen=True)
class Stack:
    """A deployed stack, its outputs and boto3 clients with the account's root permissions."""

    aws: RunningAws
    outputs: dict[str, str]
    name: str = "glassbox"

    def client(self, service: str) -> Any:
        """Return a boto3 client of the embedded AWS."""
        return self.aws.client(service)

    def resources(self, kind: str) -> dict[str, str]:
        """Return the physical names of the resources of a type (`AWS::SQS::Queue`) by logical id."""
        listed = self.client("cloudformation").describe_stack_resources(StackName=self.name)["StackResources"]
        return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in listed if r["ResourceType"] == kind}

    def set_capture_clock(self, now: datetime) -> None:
        """Set the clock of captured timestamps, which continues from ``now`` (with a time zone)."""
        self.aws.control("clock", now=now.isoformat())

    @functools.cached_property
    def _runtime(self) -> Any:
        return self.client("sagemaker-runtime")

    def predict(self, image: NDArray[np.uint8], **headers: str) -> dict[str, Any]:
        """Send one image, (H, W, 3) uint8, to the stack's endpoint and return its prediction.

        Args:
            image: the request's body, as `.npy`.
            headers: further parameters of InvokeEndpoint.
        """
        answer = self._runtime.invoke_endpoint(
            EndpointName=self.outputs["EndpointName"],
            ContentType="application/x-npy",
            Accept="application/json",
            Body=npy(image),
            **headers,
        )
        [prediction] = json.loads(answer["Body"].read())["predictions"]
        return dict(prediction)


def npy(image: NDArray[np.uint8]) -> bytes:
    """Return an image as `.npy`, the format in which clients send it."""
    body = io.BytesIO()
    np.save(body, image, allow_pickle=False)
    return body.getvalue()


@contextlib.contextmanager
def running_stack(
    parameters: dict[str, str],
    *,
    weights: Path = WEIGHTS,
    name: str = "glassbox",
    aws: EmbeddedAws | None = None,
    also_on: str | None = None,
    update_seconds: float = 0.0,
) -> Iterator[Stack]:
    """Deploy template.yaml with a model behind its endpoint and delete everything at the end.

    Args:
        parameters: the template's, in addition to the endpoint's name, the model and the images.
        weights: the model's state dict.
        aws: where to deploy; without it, an EmbeddedAws with ``also_on`` and ``update_seconds``.
    """
    new = contextlib.nullcontext(aws) if aws else EmbeddedAws(also_on=also_on, update_seconds=update_seconds)
    with new as embedded:
        defaults = {
            "EndpointName": ENDPOINT,
            "ModelDataUrl": upload_model(embedded, weights),
            "ServingImage": f"{REGISTRY}/glassbox-serving:local",
            "MonitorImage": f"{REGISTRY}/glassbox-monitor:local",
            "AwsEndpointUrl": embedded.endpoint_url,
        }
        outputs = deploy(ROOT / "template.yaml", name, defaults | parameters, embedded.session)
        yield Stack(embedded, outputs, name)


def upload_model(aws: EmbeddedAws, weights: Path) -> str:
    """Package the weights with the serving code and return the S3 URI of the model.tar.gz."""
    aws.create_bucket(MODELS)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "model.tar.gz"
        package.package(weights, archive)
        key = f"models/{weights.stem}/model.tar.gz"
        aws.client("s3").upload_file(str(archive), MODELS, key)
    return f"s3://{MODELS}/{key}"
