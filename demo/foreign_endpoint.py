"""An endpoint of another owner on the embedded AWS, which contains no code of ours, and the stack that watches it."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deploy.apply import renew_twin
from deploy.plan import watching_parameters
from deploy.twin import Overrides
from deploy.watched_endpoint import read_endpoint
from local.deploy import deploy
from local.emulator import REGION, ROOT, EmbeddedAws
from local.pytorch_inference import PYTHON, REPOSITORY
from local.stack import ENDPOINT, MODELS, REGISTRY, Stack
from local.waiting import wait_for

AWS_IMAGES = "763104351884"  # the account of AWS's deep learning containers
IMAGE = f"{AWS_IMAGES}.dkr.ecr.{REGION}.amazonaws.com/{REPOSITORY}:2.6.0-cpu-py312-ubuntu22.04-sagemaker"
COMMAND = [str(PYTHON), str(ROOT / "local" / "pytorch_inference.py")]
CAPTURES, ROLE, NAME = "acme-captures", "acme-endpoint", "acme-signs"
START_SECONDS = 120.0


@contextlib.contextmanager
def running_foreign_stack(
    archive: Path, parameters: dict[str, str], environment: dict[str, str]
) -> Iterator[Stack]:
    """Serve an owner's archive, deploy a stack that watches it, and create the twin.

    AWS's PyTorch image serves it.

    Args:
        archive: the owner's model.tar.gz.
        parameters: the template's, in addition to those that follow from the endpoint.
        environment: the variables of the owner's model.

    Raises:
        DeployError: the endpoint cannot have a twin.
        TimeoutError: the endpoint does not start.
    """
    with EmbeddedAws(images={REPOSITORY: COMMAND}) as aws:
        create_endpoint(aws, archive, environment)
        defaults = {
            **watching_parameters(read_endpoint(ENDPOINT, aws.session), {}, reacts=True),
            "MonitorImage": f"{REGISTRY}/glassbox-monitor:local",
            "AwsEndpointUrl": aws.endpoint_url,
        }
        outputs = deploy(ROOT / "template.yaml", "glassbox", defaults | parameters, aws.session)
        renew_twin("glassbox", Overrides(), aws.session)
        yield Stack(aws, outputs)


def pack(network: torch.nn.Module, config: dict[str, Any], out: Path) -> None:
    """Write a ResNet18 as an archive without the hook.

    It holds weights, a config and a script for SageMaker's toolkit.

    Args:
        config: ``mean``, ``std`` and ``labels``, or None for these.
    """
    weights = io.BytesIO()
    torch.save(network.state_dict(), weights)
    files = {
        "model.pth": weights.getvalue(),
        "config.json": json.dumps(config).encode(),
        "code/inference.py": (ROOT / "demo" / "owner" / "inference.py").read_bytes(),
        "code/network.py": (ROOT / "demo" / "owner" / "network.py").read_bytes(),
    }
    with tarfile.open(out, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def create_endpoint(aws: EmbeddedAws, archive: Path, environment: dict[str, str]) -> None:
    """Create an owner's endpoint and wait until it is in service.

    Its role may read the model and write captures, nothing else.

    Raises:
        TimeoutError: the endpoint does not start.
    """
    for bucket in (MODELS, CAPTURES):
        aws.create_bucket(bucket)
    aws.client("s3").upload_file(str(archive), MODELS, "acme/model.tar.gz")
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{CAPTURES}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": NAME,
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.xlarge",
        "InitialVariantWeight": 1.0,
    }
    container = {
        "Image": IMAGE,
        "ModelDataUrl": f"s3://{MODELS}/acme/model.tar.gz",
        "Environment": environment,
    }
    sagemaker = aws.client("sagemaker")
    sagemaker.create_model(ModelName=NAME, ExecutionRoleArn=_role(aws), PrimaryContainer=container)
    sagemaker.create_endpoint_config(
        EndpointConfigName=NAME, ProductionVariants=[variant], DataCaptureConfig=capture
    )
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=NAME)
    wait_for(lambda: _in_service(sagemaker), START_SECONDS, f"{ENDPOINT}: InService")


def _in_service(sagemaker: Any) -> bool:
    found = sagemaker.describe_endpoint(EndpointName=ENDPOINT)
    if found["EndpointStatus"] == "Failed":
        raise RuntimeError(f"{ENDPOINT}: expected a running endpoint, got: {found['FailureReason']}")
    return bool(found["EndpointStatus"] == "InService")


def _role(aws: EmbeddedAws) -> str:
    iam = aws.client("iam")
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    rights = [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{MODELS}/*"},
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{CAPTURES}/*"},
    ]
    role = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=_policy(trust))["Role"]["Arn"]
    iam.put_role_policy(RoleName=ROLE, PolicyName="endpoint", PolicyDocument=_policy(*rights))
    return f"{role}"


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
