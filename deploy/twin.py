"""The hooked twin of what an endpoint runs: the same models with `tensors_output`, the same variants and capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import ClientError
from sagemaker.core.resources import EndpointConfig, Model
from sagemaker.core.shapes import Tag

from deploy.watched import HOOK, Watched, given

SUFFIX = "-hooked"
NAME = 63  # characters
TAG = "glassbox"  # its value is the stack: what is ours, and may be deleted

_MODEL = ("execution_role_arn", "vpc_config", "inference_execution_config")
_CONFIG = (
    "data_capture_config",
    "kms_key_id",
    "execution_role_arn",
    "vpc_config",
    "explainer_config",
    "shadow_production_variants",
    "metrics_config",
)


def twin_name(plain: str) -> str:
    """How the twin of a model or endpoint config is called."""
    return plain[: NAME - len(SUFFIX)].rstrip("-") + SUFFIX


def make_twin(
    watched: Watched,
    stack: str,
    bucket: str,
    session: boto3.Session,
    *,
    image: str | None = None,
    model_data: str | None = None,
) -> str:
    """Create the hooked models and their endpoint config, where they are not there; the endpoint is left alone.

    Args:
        bucket: the stack's, which the tensors are written to.
        image: another image for the twin: one that holds the hook, where the endpoint's does not.
        model_data: another model.tar.gz, likewise.

    Returns:
        The name of the hooked endpoint config.
    """
    tags = [Tag(key=TAG, value=stack)]
    tensors = f"s3://{bucket}/tensors/{watched.endpoint.endpoint_name}"
    for name, model in watched.models.items():
        container = model.primary_container
        changed: dict[str, Any] = {"environment": (given(container.environment) or {}) | {HOOK: tensors}}
        changed |= {"image": image} if image else {}
        changed |= {"model_data_url": model_data} if model_data else {}
        _unless_there(
            Model.create,
            model_name=twin_name(name),
            primary_container=container.model_copy(update=changed),
            tags=tags,
            session=session,
            **_kept(model, _MODEL),
        )
    variants = [
        variant.model_copy(update={"model_name": twin_name(variant.model_name)})
        for variant in watched.config.production_variants
    ]
    hooked = twin_name(watched.config.endpoint_config_name)
    _unless_there(
        EndpointConfig.create,
        endpoint_config_name=hooked,
        production_variants=variants,
        tags=tags,
        session=session,
        **_kept(watched.config, _CONFIG),
    )
    return hooked


def delete_twin(hooked: str, stack: str, session: boto3.Session) -> list[str]:
    """Delete a hooked config and its models, if they are there and this stack's; the names of what was deleted."""
    sagemaker = session.client("sagemaker")
    try:
        config = EndpointConfig.get(hooked, session=session)
    except ClientError as error:
        if "could not find" in str(error).lower():
            return []
        raise
    resources: list[tuple[str, Any]] = [(str(config.endpoint_config_arn), config)]
    for name in dict.fromkeys(variant.model_name for variant in config.production_variants):
        model = Model.get(name, session=session)
        resources.append((str(model.model_arn), model))
    deleted = []
    for arn, resource in resources:
        tags = sagemaker.list_tags(ResourceArn=arn)["Tags"]
        if {"Key": TAG, "Value": stack} in tags:
            resource.delete()
            deleted.append(resource.get_name())
    return deleted


def _kept(resource: Any, members: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in members if (value := given(getattr(resource, name))) is not None}


def _unless_there(create: Callable[..., Any], **request: Any) -> None:
    try:
        create(**request)
    except ClientError as error:
        if "already existing" not in str(error):
            raise
