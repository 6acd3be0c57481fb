"""The hooked twin of what an endpoint runs: the same models with `tensors_output`, the same variants and capture."""

from __future__ import annotations

import hashlib
from typing import Any

import boto3
from botocore.exceptions import ClientError
from pydantic import BaseModel
from sagemaker.core.resources import EndpointConfig, Model
from sagemaker.core.shapes import Tag
from sagemaker.core.utils.utils import Unassigned

from deploy import DeployError
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
    """How the twin of a model or endpoint config is called: in lower case, as ARNs are; one name for each."""
    name = plain.lower()
    if len(name) + len(SUFFIX) > NAME:
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        name = f"{name[: NAME - len(SUFFIX) - 9].rstrip('-')}-{digest}"
    return name + SUFFIX


def make_twin(
    watched: Watched,
    stack: str,
    bucket: str,
    session: boto3.Session,
    *,
    image: str | None = None,
    model_data: str | None = None,
) -> str:
    """Create the hooked models and their endpoint config; the endpoint, which does not run them, is left alone.

    Args:
        bucket: the stack's, which the tensors are written to.
        image: another image for the twin: one that holds the hook, where the endpoint's does not.
        model_data: another model.tar.gz, likewise.

    Returns:
        The name of the hooked endpoint config.

    Raises:
        DeployError: something else than this stack's has a twin's name.
    """
    tensors = f"s3://{bucket}/tensors/{watched.endpoint.endpoint_name}"
    for name, model in watched.models.items():
        container = model.primary_container
        changed: dict[str, Any] = {"environment": (given(container.environment) or {}) | {HOOK: tensors}}
        changed |= {"image": image} if image else {}
        changed |= {"model_data_url": model_data} if model_data else {}
        if model_data or given(container.model_data_url):
            changed["model_data_source"] = Unassigned()  # the same said twice is refused
        _make(
            Model,
            twin_name(name),
            stack,
            session,
            primary_container=container.model_copy(update=changed),
            **_kept(model, _MODEL),
        )
    variants = [
        variant.model_copy(update={"model_name": twin_name(variant.model_name)})
        for variant in watched.config.production_variants
    ]
    hooked = twin_name(watched.config.endpoint_config_name)
    _make(
        EndpointConfig,
        hooked,
        stack,
        session,
        production_variants=variants,
        **_kept(watched.config, _CONFIG),
    )
    return hooked


def delete_twin(hooked: str, stack: str, session: boto3.Session) -> list[str]:
    """Delete a hooked config and its models, if they are there and this stack's; the names of what was deleted."""
    try:
        config = EndpointConfig.get(hooked, session=session)
    except ClientError as error:
        if "could not find" in str(error).lower():
            return []
        raise
    names = dict.fromkeys(variant.model_name for variant in config.production_variants)
    deleted = []
    for resource in (config, *(Model.get(name, session=session) for name in names)):
        if _is_ours(resource, stack, session):
            resource.delete()
            deleted.append(resource.get_name())
    return deleted


def _make(
    kind: type[Model] | type[EndpointConfig], name: str, stack: str, session: boto3.Session, **wanted: Any
) -> None:
    """Create a model or an endpoint config; one of its name is left if it is the same, made again if it is ours."""
    named = {"model_name" if kind is Model else "endpoint_config_name": name}
    create = {**named, **wanted, "tags": [Tag(key=TAG, value=stack)], "session": session}
    try:
        kind.create(**create)
    except ClientError as error:
        if "already existing" not in str(error):
            raise
        there = kind.get(name, session=session)
        if all(_plain(getattr(there, member)) == _plain(value) for member, value in wanted.items()):
            return
        if not _is_ours(there, stack, session):
            raise DeployError(
                f"{name} is there, is another one than is wanted, and is not of stack {stack}: delete it first"
            ) from error
        there.delete()
        kind.create(**create)


def _is_ours(resource: Any, stack: str, session: boto3.Session) -> bool:
    arn = resource.model_arn if isinstance(resource, Model) else resource.endpoint_config_arn
    return {"Key": TAG, "Value": stack} in session.client("sagemaker").list_tags(ResourceArn=arn)["Tags"]


def _kept(resource: Any, members: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in members if (value := given(getattr(resource, name))) is not None}


def _plain(value: Any) -> Any:
    """Without the members that were not given, so that two descriptions can be compared."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if given(part) is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else given(value)
