"""The hooked twin of an endpoint's config: the same models with `tensors_output`, the same variants and capture."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.watched import HOOK, REPLAY_KEY, Watched, container_of, is_missing

SUFFIX = "-hooked"
NAME = 63  # characters
TAG = "glassbox"  # its value is the stack's name: delete_twins deletes by it
OVERRIDDEN = "glassbox-overridden"  # the members of the twin's container that IMAGE and MODEL_DATA replaced
IMAGE, MODEL_DATA = "Image", "ModelDataUrl"
NOTIFY_ONLY = 'SET="React=false" watches and notifies without a twin.'

# kind of resource: its word in the operations' names
_KINDS = {"model": "Model", "endpoint_config": "EndpointConfig"}


def twin_name(plain: str) -> str:
    """Return the name of the twin of a model or endpoint config: lower case as in ARNs, one name for each."""
    name = plain.lower()
    if len(name) + len(SUFFIX) > NAME:
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        name = f"{name[: NAME - len(SUFFIX) - 9].rstrip('-')}-{digest}"
    return name + SUFFIX


def check_twin(watched: Watched, stack: str, overrides: Mapping[str, str], session: boto3.Session) -> None:
    """Raise DeployError, naming every reason why the endpoint can have no twin.

    Args:
        overrides: as for `make_twin`.
    """
    problems = [
        f"variant {variant['VariantName']} has inference components and no model of its own"
        for variant in watched.config["ProductionVariants"]
        if "ModelName" not in variant
    ]
    if watched.config.get("EnableNetworkIsolation"):
        problems.append("its endpoint config has network isolation, and cannot write tensors to S3")
    for name, model in watched.models.items():
        container = container_of(model)
        if model.get("EnableNetworkIsolation"):
            problems.append(f"model {name} has network isolation, and cannot write tensors to S3")
        if container is None:
            problems.append(f"model {name} has several containers, of which one alone could carry the hook")
        elif "ModelPackageName" in container and not {IMAGE, MODEL_DATA} <= overrides.keys():
            problems.append(
                f"model {name} is made of model package {container['ModelPackageName']}, which takes no environment: "
                "IMAGE=… and MODEL_DATA=s3://… name the image and model data of its twin"
            )
    if problems:
        raise DeployError(
            "\n".join([f"Endpoint {watched.name} cannot have a hooked twin:", *problems, NOTIFY_ONLY])
        )
    needed = [("model", twin_name(name)) for name in watched.models]
    needed += [("endpoint_config", twin_name(watched.config_name))]
    for kind, name in needed:
        there = _find(kind, name, session)
        if there and _tags(_arn(there), session).get(TAG) != stack:
            raise DeployError(
                f"{name}, the twin's name, already exists and does not belong to stack {stack}: delete it, or, where "
                "it is the twin of another endpoint, give this one a model and a config of its own"
            )


def make_twin(
    watched: Watched,
    stack: str,
    bucket: str,
    replay_key: str,
    session: boto3.Session,
    overrides: Mapping[str, str],
) -> str:
    """Create the hooked models and their endpoint config, or nothing; the endpoint is left alone.

    Args:
        bucket: the stack's, for the tensors.
        replay_key: the public key that the twin verifies replays with, as `PublicKey.text`.
        overrides: IMAGE and MODEL_DATA of the twin, where they differ from the endpoint's own.

    Returns:
        The name of the hooked endpoint config.

    Raises:
        DeployError: see `check_twin`; or SageMaker refused one of the creations, and the others were undone.
    """
    check_twin(watched, stack, overrides, session)
    environment = {
        HOOK: f"s3://{bucket}/tensors/{watched.name}",
        REPLAY_KEY: replay_key,
    }
    with contextlib.ExitStack() as undo:
        for name, model in watched.models.items():
            container, given = _hooked(container_of(model) or {}, environment, overrides)
            member = "PrimaryContainer" if "PrimaryContainer" in model else "Containers"
            wanted = {**model, member: container if member == "PrimaryContainer" else [container]}
            tags = {TAG: stack} | ({OVERRIDDEN: " ".join(given)} if given else {})
            _make("model", twin_name(name), wanted, tags, session, undo)
        variants = [
            {**variant, "ModelName": twin_name(variant["ModelName"])}
            for variant in watched.config["ProductionVariants"]
        ]
        wanted = {**watched.config, "ProductionVariants": variants}
        hooked = twin_name(watched.config_name)
        _make("endpoint_config", hooked, wanted, {TAG: stack}, session, undo)
        undo.pop_all()
    return hooked


def _hooked(
    container: Mapping[str, Any], environment: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the twin's container, and which of its members `overrides` replaced."""
    given = {member: value for member, value in overrides.items() if value != container.get(member)}
    twin = {**container, **given, "Environment": {**container.get("Environment", {}), **environment}}
    if {IMAGE, MODEL_DATA} <= overrides.keys():
        # a container is made of a package or of an image, and SageMaker refuses both together
        for member in ("ModelPackageName", "InferenceSpecificationName"):
            twin.pop(member, None)
    if MODEL_DATA in overrides:
        twin.pop("ModelDataSource", None)
    elif "ModelDataSource" in twin:  # it holds what ModelDataUrl does, and SageMaker refuses both together
        twin.pop(MODEL_DATA, None)
    return twin, sorted(given)


def with_kept(
    asked: Mapping[str, str], before: str, watched: Watched, session: boto3.Session
) -> dict[str, str]:
    """Return IMAGE and MODEL_DATA as asked; where they are not, those given for the twin `before`.

    Raises:
        DeployError: model data was given for the twin of another model than the endpoint runs now, or the model that
            records what was given is gone.
    """
    overrides = dict(asked)
    for name in _models_of(before, session):
        if (model := _find("model", name, session)) is None:
            if IMAGE in asked:
                continue
            raise DeployError(
                f"{name} of the twin {before} is gone, and with it whether it had an image of its own: IMAGE=… names "
                "that, or the endpoint's if it holds the hook"
            )
        for member in set(_tags(_arn(model), session).get(OVERRIDDEN, "").split()) - set(asked):
            overrides[member] = (container_of(model) or {})[member]
            if member == MODEL_DATA and name not in map(twin_name, watched.models):
                raise DeployError(
                    f"MODEL_DATA={overrides[member]} was given for the twin of another model than "
                    f"{', '.join(watched.models)}, which runs now: MODEL_DATA=s3://… names the model data of its twin"
                )
    return overrides


def delete_twins(stack: str, session: boto3.Session, *, but: str = "") -> list[str]:
    """Delete every hooked model and config of a stack, except the config `but` and its models.

    It goes by their tags, and so finds what an interrupted deletion left.

    Returns:
        The names of what was deleted.
    """
    spared = {but, *_models_of(but, session)}
    sagemaker, deleted = session.client("sagemaker"), []
    for kind, noun in _KINDS.items():
        pages = sagemaker.get_paginator(f"list_{kind}s").paginate(NameContains=SUFFIX)
        for found in [found for page in pages for found in page[f"{noun}s"]]:
            name = found[f"{noun}Name"]
            if name not in spared and _tags(_arn(found), session).get(TAG) == stack:
                _delete(kind, name, session)
                deleted.append(name)
    return deleted


def _make(
    kind: str,
    name: str,
    wanted: Mapping[str, Any],
    tags: Mapping[str, str],
    session: boto3.Session,
    undo: contextlib.ExitStack,
) -> None:
    """Create a model or an endpoint config from the description of its plain one, unless it is there and the same.

    `undo` gets what takes that back.
    """
    request = {**_request(kind, wanted, session), f"{_KINDS[kind]}Name": name}
    tags = _own_tags(_tags(_arn(wanted), session)) | tags
    if there := _find(kind, name, session):
        before = {**_request(kind, there, session), f"{_KINDS[kind]}Name": name}
        if _normal(before) == _normal(request):
            return
        tagged = _own_tags(_tags(_arn(there), session))
        _delete(kind, name, session)
        undo.callback(_create, kind, before, tagged, session)
    try:
        _create(kind, request, tags, session)
    except ClientError as error:
        raise DeployError(f"{name} could not be created: {error.response['Error']['Message']}") from error
    undo.callback(_delete, kind, name, session)


def _request(kind: str, described: Mapping[str, Any], session: boto3.Session) -> dict[str, Any]:
    """Return those members of a description that its Create call takes."""
    service = session.client("sagemaker").meta.service_model
    members = service.operation_model(f"Create{_KINDS[kind]}").input_shape.members
    return {name: value for name, value in described.items() if name in members}


def _create(kind: str, request: Mapping[str, Any], tags: Mapping[str, str], session: boto3.Session) -> None:
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    _operation("create", kind, session)(**request, Tags=listed)


def _delete(kind: str, name: str, session: boto3.Session) -> None:
    _operation("delete", kind, session)(**{f"{_KINDS[kind]}Name": name})


def _find(kind: str, name: str, session: boto3.Session) -> dict[str, Any] | None:
    """Return the description of a model or an endpoint config; None where there is none."""
    try:
        found: dict[str, Any] = _operation("describe", kind, session)(**{f"{_KINDS[kind]}Name": name})
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def _operation(verb: str, kind: str, session: boto3.Session) -> Callable[..., Any]:
    operation: Callable[..., Any] = getattr(session.client("sagemaker"), f"{verb}_{kind}")
    return operation


def _models_of(config: str, session: boto3.Session) -> list[str]:
    found = _find("endpoint_config", config, session) if config else None
    return [variant["ModelName"] for variant in found["ProductionVariants"]] if found else []


def _arn(described: Mapping[str, Any]) -> str:
    return str(described.get("EndpointConfigArn") or described["ModelArn"])


def _tags(arn: str, session: boto3.Session) -> dict[str, str]:
    pages = session.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}


def _own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Without AWS's own tags, which no request may set."""
    return {key: value for key, value in tags.items() if not key.lower().startswith("aws:")}


def _normal(value: Any) -> Any:
    """Without empty members and defaults, which a description may add or leave out."""
    if isinstance(value, Mapping):
        parts = {
            name: _normal(part) for name, part in value.items() if (name, part) != ("Mode", "SingleModel")
        }
        return {name: part for name, part in parts.items() if part not in (None, False, "", [], {})}
    return [_normal(part) for part in value] if isinstance(value, list) else value
