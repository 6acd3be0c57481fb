"""The hooked twin of what an endpoint runs: the same models with `tensors_output`, the same variants and capture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
GIVEN = "glassbox-given"  # which members of its container are not the plain model's
IMAGE, MODEL_DATA = "image", "model_data_url"

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
    watched: Watched, stack: str, bucket: str, session: boto3.Session, instead: Mapping[str, str]
) -> str:
    """Create the hooked models and their endpoint config; the endpoint, which does not run them, is left alone.

    Args:
        bucket: the stack's, which the tensors are written to.
        instead: IMAGE and MODEL_DATA of the twin, where they are not to be the endpoint's own.

    Returns:
        The name of the hooked endpoint config.

    Raises:
        DeployError: something else than this stack's has a twin's name.
    """
    check_names(watched, stack, session)
    tensors = f"s3://{bucket}/tensors/{watched.endpoint.endpoint_name}"
    for name, model in watched.models.items():
        container = model.primary_container
        given_here = {
            member: value for member, value in instead.items() if value != getattr(container, member)
        }
        changed: dict[str, Any] = {"environment": (given(container.environment) or {}) | {HOOK: tensors}}
        changed |= given_here
        if MODEL_DATA in instead or given(container.model_data_url):
            changed["model_data_source"] = Unassigned()  # the same said twice is refused
        _make(
            Model,
            twin_name(name),
            {TAG: stack} | ({GIVEN: " ".join(given_here)} if given_here else {}),
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
        {TAG: stack},
        session,
        production_variants=variants,
        **_kept(watched.config, _CONFIG),
    )
    return hooked


def with_kept(
    asked: Mapping[str, str], before: str, watched: Watched, session: boto3.Session
) -> dict[str, str]:
    """What is asked of IMAGE and MODEL_DATA; where nothing is, what was given for the twin `before`.

    Raises:
        DeployError: model data was given for the twin of another model than the endpoint runs now, or what was given
            is not to be had any more.
    """
    instead = dict(asked)
    for name in _models_of(before, session):
        if (model := _find(Model, name, session)) is None:
            if IMAGE in asked:
                continue
            raise DeployError(
                f"{name} of the twin {before} is gone, and with it whether it had an image of its own: IMAGE=… names "
                "that, or the endpoint's if it holds the hook"
            )
        for member in set(_tags(_arn(model), session).get(GIVEN, "").split()) - set(asked):
            instead[member] = getattr(model.primary_container, member)
            if member == MODEL_DATA and name not in map(twin_name, watched.models):
                raise DeployError(
                    f"MODEL_DATA={instead[member]} was given for the twin of another model than "
                    f"{', '.join(watched.models)}, which runs now: MODEL_DATA=s3://… names what its twin is to run"
                )
    return instead


def check_names(watched: Watched, stack: str, session: boto3.Session) -> None:
    """Raises DeployError when something that is not this stack's has a name that the twin needs."""
    needed = [(Model, twin_name(name)) for name in watched.models]
    needed += [(EndpointConfig, twin_name(watched.config.endpoint_config_name))]
    for kind, name in needed:
        there = _find(kind, name, session)
        if there and _tags(_arn(there), session).get(TAG) != stack:
            raise DeployError(
                f"{name}, as the twin would be called, is there already and not of stack {stack}: delete it, or, where "
                "it is the twin of another endpoint, give this one a model and a config of its own"
            )


def delete_twins(stack: str, session: boto3.Session, *, but: str = "") -> list[str]:
    """Delete every hooked model and config that is this stack's, except the config `but` and its models.

    It goes by their tags, so that what an interrupted deletion left is found too.

    Returns:
        The names of what was deleted.
    """
    spared = {but, *_models_of(but, session)}
    deleted = []
    for kind in (Model, EndpointConfig):
        for found in kind.get_all(name_contains=SUFFIX, session=session):
            name = found.get_name()
            if name not in spared and _tags(_arn(found), session).get(TAG) == stack:
                found.delete()
                deleted.append(name)
    return deleted


def _make(
    kind: type[Model] | type[EndpointConfig],
    name: str,
    tags: Mapping[str, str],
    session: boto3.Session,
    **wanted: Any,
) -> None:
    """Create a model or an endpoint config; one of its name is left if it is the same, and made again if not."""
    named = {"model_name" if kind is Model else "endpoint_config_name": name}
    tagged = [Tag(key=key, value=value) for key, value in tags.items()]
    create = {**named, **wanted, "tags": tagged, "session": session}
    if there := _find(kind, name, session):
        if all(_plain(getattr(there, member)) == _plain(value) for member, value in wanted.items()):
            return
        there.delete()
    kind.create(**create)


def _find(kind: type[Model] | type[EndpointConfig], name: str, session: boto3.Session) -> Any:
    """A model or an endpoint config, or None."""
    try:
        return kind.get(name, session=session)
    except ClientError as error:
        if "could not find" in str(error).lower():
            return None
        raise


def _models_of(config: str, session: boto3.Session) -> list[str]:
    found = _find(EndpointConfig, config, session) if config else None
    return [variant.model_name for variant in found.production_variants] if found else []


def _arn(resource: Any) -> str:
    return str(resource.model_arn if isinstance(resource, Model) else resource.endpoint_config_arn)


def _tags(arn: str, session: boto3.Session) -> dict[str, str]:
    tags = session.client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
    return {tag["Key"]: tag["Value"] for tag in tags}


def _kept(resource: Any, members: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in members if (value := given(getattr(resource, name))) is not None}


def _plain(value: Any) -> Any:
    """Without the members that were not given, so that two descriptions can be compared."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if given(part) is not None}
    return [_plain(part) for part in value] if isinstance(value, list) else given(value)
