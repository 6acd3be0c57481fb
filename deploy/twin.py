"""Create and delete the hooked twin of an endpoint config.

The twin has the same variants and data capture, and the same models with ``tensors_output`` in their environment.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.hook import CHANNEL, Hooks, channel_problem, hook_digest, upload_hook, with_hook
from deploy.watched_endpoint import HOOK, REPLAY_KEY, WatchedEndpoint, container_of, is_missing
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.replay_marker import PublicKey

SUFFIX = "-hooked"
NAME_CHARACTERS = 63
TAG = "glassbox"  # its value is the stack's name; delete_twins deletes by this tag
TRIED = "glassbox-tried"  # its value is the digest of the mounted hook, and what `make twin TRY=1` found
OVERRIDDEN = "glassbox-overridden"  # the members of the twin's container that IMAGE and MODEL_DATA replaced
NO_HOOKS = Hooks()
NOTIFY_ONLY = 'Set SET="React=false" to watch and notify without a twin.'

# kind of resource in boto3's operations: its name in SageMaker's API
_KINDS = {"model": "Model", "endpoint_config": "EndpointConfig"}


@dataclass(frozen=True)
class Overrides:
    """Image and model data of a twin, or empty strings for the endpoint's own."""

    image: str = ""
    model_data: str = ""

    @property
    def members(self) -> dict[str, str]:
        """The overridden members of the twin's container."""
        return _without_empty({"Image": self.image, "ModelDataUrl": self.model_data})

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by their make variables."""
        return _without_empty({"IMAGE": self.image, "MODEL_DATA": self.model_data})

    @property
    def replaces_package(self) -> bool:
        """Whether the overrides replace all that a model package provides."""
        return bool(self.image and self.model_data)


def _without_empty(values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def twin_name(plain: str) -> str:
    """Return a unique name for the twin of a model or endpoint config, in lower case as ARNs."""
    name = plain.lower()
    if len(name) + len(SUFFIX) > NAME_CHARACTERS:
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        name = f"{name[: NAME_CHARACTERS - len(SUFFIX) - 9].rstrip('-')}-{digest}"
    return name + SUFFIX


def public_replay_key(key_arn: str, session: boto3.Session) -> PublicKey:
    """Read the public replay key of a stack, or raise DeployError if KMS refuses."""
    try:
        return ReplayKey(session.client("kms"), key_arn).public()
    except GlassboxError as error:
        raise DeployError(
            f"{error}\nAllow kms:GetPublicKey with the public replay key, then retry."
        ) from error


def check_twin(
    endpoint: WatchedEndpoint,
    stack: str,
    overrides: Overrides,
    session: boto3.Session,
    hooks: Hooks = NO_HOOKS,
) -> None:
    """Raise DeployError with every reason why the endpoint cannot have a twin."""
    problems = [
        f"variant {variant['VariantName']}: expected a model, got inference components"
        for variant in endpoint.config["ProductionVariants"]
        if "ModelName" not in variant
    ]
    if endpoint.config.get("EnableNetworkIsolation"):
        problems.append(_isolated(f"endpoint config {endpoint.config_name}"))
    for name, model in endpoint.models.items():
        container = container_of(model)
        if model.get("EnableNetworkIsolation"):
            problems.append(_isolated(f"model {name}"))
        if container is None:
            problems.append(f"model {name}: expected one container, got several")
        elif "ModelPackageName" in container and not overrides.replaces_package:
            problems.append(
                f"model {name}: expected an image, got model package {container['ModelPackageName']}, which accepts no "
                "environment. Set IMAGE=… and MODEL_DATA=s3://… for its twin."
            )
        elif name in hooks.paths and (problem := channel_problem(container)):
            problems.append(f"model {name}: {problem}")
    if problems:
        raise DeployError(
            "\n".join([f"Endpoint {endpoint.name} cannot have a hooked twin:", *problems, NOTIFY_ONLY])
        )
    names = [("model", twin_name(name)) for name in endpoint.models]
    names += [("endpoint_config", twin_name(endpoint.config_name))]
    for kind, name in names:
        found = _find(kind, name, session)
        if found and _tags(_arn(found), session).get(TAG) != stack:
            raise DeployError(
                f"{name} already exists and does not belong to stack {stack}. Delete it; if it is the twin of "
                "another endpoint, give this endpoint its own model and config."
            )


def _isolated(resource: str) -> str:
    return f"{resource}: expected EnableNetworkIsolation=false to write tensors to S3, got true"


def create_twin(
    endpoint: WatchedEndpoint,
    stack: str,
    bucket: str,
    replay_key: str,
    session: boto3.Session,
    overrides: Overrides,
    hooks: Hooks = NO_HOOKS,
) -> str:
    """Create the hooked models and their endpoint config, or nothing.

    The endpoint is not updated.

    Args:
        bucket: the stack's bucket, for the tensors and the hook.
        replay_key: the public key that verifies replays, as ``PublicKey.text``.
        hooks: the models that do not contain the hook. It is uploaded and mounted into their twins.

    Returns:
        The name of the hooked endpoint config.

    Raises:
        DeployError: see :func:`check_twin`; or SageMaker refused one resource, and the others were deleted again.
    """
    check_twin(endpoint, stack, overrides, session, hooks)
    hook = upload_hook(bucket, session) if hooks.paths else ""
    environment = {HOOK: f"s3://{bucket}/tensors/{endpoint.name}", REPLAY_KEY: replay_key}
    with contextlib.ExitStack() as undo:
        for name, model in endpoint.models.items():
            container, overridden = _hooked(container_of(model) or {}, environment, overrides)
            container["Environment"] |= hooks.programs.get(name, {})
            if name in hooks.paths:
                container = with_hook(container, hook, hooks.paths[name])
            member = "PrimaryContainer" if "PrimaryContainer" in model else "Containers"
            wanted = {**model, member: container if member == "PrimaryContainer" else [container]}
            tags = {TAG: stack} | ({OVERRIDDEN: " ".join(overridden)} if overridden else {})
            _create_or_replace("model", twin_name(name), wanted, tags, session, undo)
        variants = [
            {**variant, "ModelName": twin_name(variant["ModelName"])}
            for variant in endpoint.config["ProductionVariants"]
        ]
        wanted = {**endpoint.config, "ProductionVariants": variants}
        hooked = twin_name(endpoint.config_name)
        _create_or_replace("endpoint_config", hooked, wanted, {TAG: stack}, session, undo)
        undo.pop_all()
    return hooked


def _hooked(
    container: Mapping[str, Any], environment: Mapping[str, str], overrides: Overrides
) -> tuple[dict[str, Any], list[str]]:
    """Return the twin's container, and the names of its overridden members."""
    changed = {name: value for name, value in overrides.members.items() if value != container.get(name)}
    twin = {**container, **changed, "Environment": {**container.get("Environment", {}), **environment}}
    if overrides.replaces_package:
        # SageMaker refuses a container with both a model package and an image
        for member in ("ModelPackageName", "InferenceSpecificationName"):
            twin.pop(member, None)
    if overrides.model_data:
        twin.pop("ModelDataSource", None)
    elif "ModelDataSource" in twin:
        # SageMaker describes it beside ModelDataUrl, and refuses both in a request
        twin.pop("ModelDataUrl", None)
    return twin, sorted(changed)


def mounted_hook(config: str, session: boto3.Session) -> str:
    """Return the S3 URI of the hook that a twin's models mount, or an empty string."""
    for name in _models_of(config, session):
        if uri := _mounted(container_of(_find("model", name, session) or {}) or {}):
            return uri
    return ""


def _mounted(container: Mapping[str, Any]) -> str:
    for channel in container.get("AdditionalModelDataSources", ()):
        if channel["ChannelName"] == CHANNEL:
            return str(channel["S3DataSource"]["S3Uri"])
    return ""


def record_trial(config: str, verdict: str, session: boto3.Session) -> None:
    """Record on a twin's models what its trial found.

    A model that is replaced loses the record.
    """
    sagemaker = session.client("sagemaker")
    for name in _models_of(config, session):
        model = _find("model", name, session) or {}
        value = f"{_mounted(container_of(model) or {}).rstrip('/').rpartition('/')[2] or 'own'} {verdict}"
        sagemaker.add_tags(ResourceArn=_arn(model), Tags=[{"Key": TRIED, "Value": value}])


def trial(endpoint: WatchedEndpoint, hooks: Hooks, session: boto3.Session) -> str:
    """Return what the trial of the endpoint's twin found, or an empty string if none was made.

    A trial with another hook than the present one does not count.
    """
    found = set[str]()
    for name in endpoint.models:
        twin = _find("model", twin_name(name), session)
        value = _tags(_arn(twin), session).get(TRIED, "") if twin else ""
        digest, _, verdict = value.partition(" ")
        if digest != (hook_digest() if name in hooks.paths else "own"):
            return ""
        found.add(verdict)
    return ", ".join(sorted(found))


def keep_overrides(
    requested: Overrides, previous: str, endpoint: WatchedEndpoint, session: boto3.Session
) -> Overrides:
    """Return the requested overrides, completed by those of the previous twin.

    Args:
        previous: the endpoint config of the previous twin, or an empty string.

    Raises:
        DeployError: the previous model data belong to another model than the endpoint runs now, or the previous
            twin's model, whose tags record the overrides, was deleted.
    """
    kept = requested
    for name in _models_of(previous, session):
        if (model := _find("model", name, session)) is None:
            if requested.image:
                continue
            raise DeployError(
                f"Model {name} of the previous twin {previous}: expected an existing model, which records IMAGE, got a "
                "deleted one. Set IMAGE=… to an image with the hook, which may be the endpoint's own."
            )
        overridden = _tags(_arn(model), session).get(OVERRIDDEN, "").split()
        container = container_of(model) or {}
        if "Image" in overridden and not requested.image:
            kept = replace(kept, image=container["Image"])
        if "ModelDataUrl" in overridden and not requested.model_data:
            kept = replace(kept, model_data=container["ModelDataUrl"])
            if name not in map(twin_name, endpoint.models):
                raise DeployError(
                    f"MODEL_DATA: expected model data of {', '.join(endpoint.models)}, got {kept.model_data} of the "
                    "previous twin's model. Set MODEL_DATA=s3://…."
                )
    return kept


def delete_twins(stack: str, session: boto3.Session, *, keep: str = "") -> list[str]:
    """Delete a stack's hooked models and configs by tag, except config ``keep`` and its models.

    Returns:
        The names of the deleted resources.
    """
    spared = {keep, *_models_of(keep, session)}
    sagemaker, deleted = session.client("sagemaker"), []
    for kind, noun in _KINDS.items():
        pages = sagemaker.get_paginator(f"list_{kind}s").paginate(NameContains=SUFFIX)
        for found in [found for page in pages for found in page[f"{noun}s"]]:
            name = found[f"{noun}Name"]
            if name not in spared and _tags(_arn(found), session).get(TAG) == stack:
                _delete(kind, name, session)
                deleted.append(name)
    return deleted


def _create_or_replace(
    kind: str,
    name: str,
    wanted: Mapping[str, Any],
    tags: Mapping[str, str],
    session: boto3.Session,
    undo: contextlib.ExitStack,
) -> None:
    """Create a twin's model or endpoint config, or replace one that differs; register the rollback in ``undo``."""
    request = {**_request(kind, wanted, session), f"{_KINDS[kind]}Name": name}
    tags = _own_tags(_tags(_arn(wanted), session)) | dict(tags)
    if found := _find(kind, name, session):
        before = {**_request(kind, found, session), f"{_KINDS[kind]}Name": name}
        if _normal(before) == _normal(request):
            return
        tagged = _own_tags(_tags(_arn(found), session))
        _delete(kind, name, session)
        undo.callback(_create, kind, before, tagged, session)
    try:
        _create(kind, request, tags, session)
    except ClientError as error:
        raise DeployError(f"{name}: SageMaker refuses it: {error.response['Error']['Message']}") from error
    undo.callback(_delete, kind, name, session)


def _request(kind: str, described: Mapping[str, Any], session: boto3.Session) -> dict[str, Any]:
    """Return the members of a description that the Create call accepts."""
    service = session.client("sagemaker").meta.service_model
    members = service.operation_model(f"Create{_KINDS[kind]}").input_shape.members
    return {name: value for name, value in described.items() if name in members}


def _create(kind: str, request: Mapping[str, Any], tags: Mapping[str, str], session: boto3.Session) -> None:
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    _operation("create", kind, session)(**request, Tags=listed)


def _delete(kind: str, name: str, session: boto3.Session) -> None:
    _operation("delete", kind, session)(**{f"{_KINDS[kind]}Name": name})


def _find(kind: str, name: str, session: boto3.Session) -> dict[str, Any] | None:
    """Describe a model or an endpoint config, or return None."""
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
    """Drop the tags of AWS, which no request may set."""
    return {key: value for key, value in tags.items() if not key.lower().startswith("aws:")}


def _normal(value: Any) -> Any:
    """Drop empty members and defaults, which a description may add or omit."""
    if isinstance(value, Mapping):
        parts = {
            name: _normal(part) for name, part in value.items() if (name, part) != ("Mode", "SingleModel")
        }
        return {name: part for name, part in parts.items() if part not in (None, False, "", [], {})}
    return [_normal(part) for part in value] if isinstance(value, list) else value
