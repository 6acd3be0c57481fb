"""Read the account and decide what `make deploy` changes; change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import ROOT, DeployError, images, stack
from deploy.account import account_id, models_bucket, registry
from deploy.hook import CHANNEL, PREFIX, Hooks, read_hooks
from deploy.incident import check_no_incident
from deploy.model_fingerprint import model_fingerprint
from deploy.model_upload import SAMPLE_WEIGHTS
from deploy.quotas import quota_lines
from deploy.stack import Stack
from deploy.template import (
    built_architecture,
    count_resources,
    parameter_problems,
    read_built,
    value_of,
)
from deploy.twin import NAME_CHARACTERS, NO_HOOKS, Overrides, check_twin, keep_overrides, trial, twin_name
from deploy.watched_endpoint import (
    WatchedEndpoint,
    is_missing,
    is_refused,
    read_endpoint,
    read_notifications,
)

TO_BE_UPLOADED = "s3://to-be/uploaded"  # stands for the model of a stack's own endpoint until its upload
DERIVED = (  # with ENDPOINT, these parameters follow from the endpoint
    "EndpointName",
    "EndpointArn",
    "PlainConfigName",
    "PlainConfigArn",
    "HookedConfigName",
    "CaptureBucket",
    "CapturePrefix",
    "EndpointRoleArns",
    "ModelDataUrl",
    "ModelFingerprint",
)


@dataclass(frozen=True)
class DeployOptions:
    """The arguments of `make plan` and `make deploy`.

    Without ``endpoint``, the stack creates its own, from ``model``. ``overrides`` are those of the twin;
    ``overrides.image`` is the image of the stack's own endpoint. ``parameters`` are the template's.
    """

    stack: str
    endpoint: str = ""
    overrides: Overrides = field(default_factory=Overrides)
    model: Path | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The changes of `make deploy`, and ``lines`` that describe them.

    ``parameters`` are the stack's changed ones. ``endpoint`` is None for an endpoint of the stack's own. With
    ``reacts``, a violation swaps the endpoint, which needs a hooked twin. ``hooks`` are mounted into the twin.
    """

    options: DeployOptions
    parameters: dict[str, str]
    endpoint: WatchedEndpoint | None
    reacts: bool
    overrides: Overrides
    hooks: Hooks = NO_HOOKS
    lines: Sequence[str] = ()


def make_plan(options: DeployOptions, session: boto3.Session) -> Plan:
    """Return what `make deploy` does, or raise DeployError with every problem."""
    template = read_built()
    cloudformation = session.client("cloudformation")
    found = stack.find(options.stack, cloudformation)
    current = found if found and found.was_created else None
    before = dict(current.parameters) if current else {}
    _check_options(options, template, before)
    if current:
        stack.check_settled(current)
        _check_same_endpoint(options, current)
        stack.check_storage(current, template)
        check_no_incident(current, session)
    reacts = value_of("React", template, before | dict(options.parameters)) != "false"
    endpoint = read_endpoint(options.endpoint, session) if options.endpoint else None
    # the endpoint of a new stack does not exist yet: _new_endpoint_name checks it
    name = options.endpoint or before.get("EndpointName")
    notes = _check_only_watcher(options.stack, name, cloudformation) if name else []
    overrides, hooks = options.overrides, NO_HOOKS
    if endpoint and reacts:
        overrides = keep_overrides(overrides, before.get("HookedConfigName", ""), endpoint, session)
        hooks = read_hooks(
            endpoint, replaced=bool(overrides.members), model_data=overrides.model_data, session=session
        )
        check_twin(endpoint, options.stack, overrides, session, hooks)
    if endpoint:
        fingerprint = ""
        if value_of("Reference", template, before | dict(options.parameters)):
            fingerprint, note = model_fingerprint(endpoint, session)
            notes += [note] if note else []
        parameters = watching_parameters(endpoint, before, reacts=reacts, fingerprint=fingerprint)
    else:
        parameters = _own_parameters(options, before, session)
    if monitor := _latest_image(images.MONITOR, before.get("MonitorImage", ""), session):
        parameters["MonitorImage"] = monitor
    parameters |= options.parameters
    if problems := parameter_problems(template, parameters, before):  # now with the derived parameters
        raise DeployError("\n".join(problems))
    plan = Plan(options, parameters, endpoint, reacts, overrides, hooks)
    lines = _lines(plan, found, template, session)
    return replace(plan, lines=[*lines, *(f"Note: {note}" for note in notes)])


# ---------------------------------------------------------------- checks


def _check_options(options: DeployOptions, template: Mapping[str, Any], before: Mapping[str, str]) -> None:
    """Raise DeployError for options that cannot work, before anything is read or uploaded."""
    image = {"ServingImage": options.overrides.image} if options.overrides.image else {}
    named = {"EndpointName": _endpoint_name(options)}
    problems = parameter_problems(template, {**named, **options.parameters, **image}, before)
    architecture = value_of("Architecture", template, {**before, **options.parameters})
    if not problems and architecture != (built := built_architecture()):
        problems.append(
            f"Architecture: expected a build for {architecture}, as stack {options.stack} has it, got one for {built}. "
            f"Set ARCHITECTURE={architecture}."
        )
    problems += [
        f"{name}: expected no value, since it follows from ENDPOINT={options.endpoint}, got {value!r}. Remove it from "
        "SET."
        for name, value in options.parameters.items()
        if options.endpoint and name in DERIVED
    ]
    if options.model and "ModelDataUrl" in options.parameters:
        problems.append("MODEL: expected either MODEL or SET=ModelDataUrl=…, got both. Remove one.")
    if options.model and options.endpoint:
        problems.append(
            f"MODEL: expected no value with ENDPOINT={options.endpoint}, got {options.model}. MODEL_DATA=s3://… sets "
            "the model data of the twin."
        )
    if options.model and not options.model.is_file():
        problems.append(f"MODEL: expected a file, got {options.model}")
    if problems:
        raise DeployError("\n".join(problems))


def _check_same_endpoint(options: DeployOptions, current: Stack) -> None:
    """Raise DeployError if the options name another endpoint than the stack's."""
    endpoint = current.parameters["EndpointName"]
    requested = options.endpoint or options.parameters.get("EndpointName", endpoint)
    if current.owns_endpoint != bool(options.endpoint) and endpoint == requested:
        return
    expected = f"its own endpoint {endpoint}" if current.owns_endpoint else f"ENDPOINT={endpoint}"
    got = f"EndpointName={requested}" if current.owns_endpoint else "no ENDPOINT"
    raise DeployError(
        f"Stack {current.name}: expected {expected}, got "
        f"{f'ENDPOINT={options.endpoint}' if options.endpoint else got}. Set STACK=… to deploy another stack."
    )


def _check_only_watcher(name: str, endpoint: str, cloudformation: Any) -> list[str]:
    """Raise DeployError if another stack watches the endpoint; return a note if this could not be read.

    Each of two stacks would take the other's hooked config for a deployment of the endpoint's owner.
    """
    try:
        others = [other for other in stack.watchers(endpoint, cloudformation) if other != name]
    except ClientError as error:
        if not is_refused(error):
            raise
        return [
            "cloudformation:DescribeStacks was refused: other stacks of this endpoint were not checked. Only one stack "
            "may watch an endpoint."
        ]
    if others:
        raise DeployError(
            f"ENDPOINT: expected an endpoint without a stack, got {endpoint}, which stack {others[0]} watches. Set "
            f"STACK={others[0]} to update that stack, or run make remove STACK={others[0]}."
        )
    return []


# ---------------------------------------------------------------- parameters


def watching_parameters(
    endpoint: WatchedEndpoint, before: Mapping[str, str], *, reacts: bool, fingerprint: str = ""
) -> dict[str, str]:
    """Return the parameters of a stack that watches the endpoint.

    An empty value is left out, unless it replaces a value that ``before`` has.

    Args:
        fingerprint: of the model, see :func:`deploy.model_fingerprint.model_fingerprint`.
    """
    derived = {name: str(value) for name, value in endpoint.parameters.items()}
    derived["ModelFingerprint"] = fingerprint
    derived["HookedConfigName"] = twin_name(endpoint.config_name) if reacts else ""
    if not reacts:  # nothing writes tensors, so no role needs access to the stack's bucket
        derived["EndpointRoleArns"] = ""
    # the user may have set the ARN of a key that the endpoint does not name
    kept = {"CaptureKeyArn"} | ({"EndpointKeyArn"} if endpoint.volume_key else set())
    return {
        name: value for name, value in derived.items() if value or (before.get(name) and name not in kept)
    }


def _own_parameters(
    options: DeployOptions, before: Mapping[str, str], session: boto3.Session
) -> dict[str, str]:
    """Return the parameters of a stack with an endpoint of its own."""
    image = options.overrides.image or _latest_image(images.SERVING, before.get("ServingImage", ""), session)
    if not image:
        raise DeployError(
            f"ServingImage: expected {images.SERVING} in {registry(session)}, got none. Run make images and make push, "
            "or set IMAGE=…."
        )
    parameters = {"ServingImage": image}
    if options.model or not before:  # an existing stack keeps its model
        parameters["ModelDataUrl"] = TO_BE_UPLOADED
    if not before:
        parameters["EndpointName"] = _new_endpoint_name(options, session)
    return parameters


def _endpoint_name(options: DeployOptions) -> str:
    """Return the name of the watched endpoint; the own one is named after the stack by default."""
    own = options.parameters.get("EndpointName") or options.stack[:NAME_CHARACTERS].strip("-")
    return options.endpoint or own


def _new_endpoint_name(options: DeployOptions, session: boto3.Session) -> str:
    """Return the name of a new stack's own endpoint. Raises DeployError if such an endpoint exists."""
    name = _endpoint_name(options)
    try:
        session.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return name
        raise
    raise DeployError(
        f"EndpointName: {name} already exists in {session.region_name} and does not belong to stack {options.stack}. "
        f"Set SET=EndpointName=… to another name, or ENDPOINT={name} to watch it."
    )


def _latest_image(repository: str, before: str, session: boto3.Session) -> str:
    """Return the last pushed image, or the stack's image if that is of another repository."""
    ours = f"{registry(session)}/{repository}:"
    theirs = before and not before.startswith(ours)
    return before if theirs else images.pushed(repository, session) or before


# ---------------------------------------------------------------- the description


def _lines(plan: Plan, found: Stack | None, template: Mapping[str, Any], session: boto3.Session) -> list[str]:
    account, endpoint = account_id(session), plan.endpoint
    before = dict(found.parameters) if found and found.was_created else {}
    parameters = before | plan.parameters
    lines = [
        f"Account {account}, region {session.region_name}: {_stack_line(plan.options.stack, found)} with "
        + ", ".join(
            f"{number} {name}{'s' * (number > 1)}"
            for name, number in count_resources(template, parameters).items()
        ),
        *_change_lines(before, plan.parameters),
        "",
    ]
    lines += _watching_lines(plan, endpoint, session) if endpoint else _own_lines(plan, parameters, session)
    if plan.reacts:
        instance = value_of("InstanceType", template, parameters)
        fleet = endpoint.instances if endpoint else {instance: 1}
        lines += quota_lines(fleet, session, new=not (endpoint or before))
        lines += _key_policy_lines(parameters.get("EndpointKeyArn", ""), plan.options.stack, account)
    if not parameters.get("MonitorImage"):
        lines.append(
            "Note: ECR contains no monitor image, so the stack has no hourly job. Run make images and make push."
        )
    return lines


def _stack_line(name: str, found: Stack | None) -> str:
    if found is None:
        return f"would create stack {name}"
    if found.was_created:
        return f"would update stack {name}"
    return f"would delete stack {name} ({found.status}) and create it again"


def _change_lines(before: Mapping[str, str], parameters: Mapping[str, str]) -> list[str]:
    if not before:
        return []
    changed = [
        f"  {name}: {before.get(name) or 'empty'} -> {value or 'empty'}"
        for name, value in parameters.items()
        if before.get(name, "") != value and value != TO_BE_UPLOADED
    ]
    kept = 'Parameters without a new value keep theirs (SET="Name=" empties one).'
    return ["", kept] + (["Would change:", *changed] if changed else [])


def _watching_lines(plan: Plan, endpoint: WatchedEndpoint, session: boto3.Session) -> list[str]:
    name, plain, bucket = endpoint.name, endpoint.config_name, endpoint.bucket
    lines = ["Would watch:", *(f"  {line}" for line in endpoint.lines()), ""]
    if plan.reacts:
        lines += _twin_lines(endpoint, plan.overrides, plan.hooks)
    enabled, others = read_notifications(bucket, session.client("s3"))
    if enabled:
        lines += [f"Bucket {bucket} already sends its events to EventBridge.", ""]
    else:
        kept = f" and keep its {others} other notification{'s' * (others > 1)}" if others else ""
        lines += [f"Would send the events of bucket {bucket} to EventBridge{kept}.", ""]
    if plan.reacts:
        lines.append(
            f"A violation swaps endpoint {name} to {twin_name(plain)} until its images are explained; deploy never "
            "updates it."
        )
    else:
        lines.append(f"Glassbox never updates endpoint {name} (React=false); it counts and notifies only.")
    notes = [*kept_lines(plan.options.overrides, plan.overrides), *endpoint.notes(twin=plan.reacts)]
    notes += plan.hooks.notes
    if plan.reacts and not plan.overrides.image and not (plan.hooks.paths or plan.hooks.notes):
        notes.append(
            "the twin runs the endpoint's own image and code, which must contain the hook (docs/your-model.md)."
        )
    if plan.reacts:
        verdict = trial(endpoint, plan.hooks, session)
        notes.append(f"twin tried: {verdict}" if verdict else "twin not tried yet: make twin TRY=1 tries it.")
    return lines + [f"Note: {note}" for note in notes]


def _twin_lines(endpoint: WatchedEndpoint, overrides: Overrides, hooks: Hooks) -> list[str]:
    changes = [f"{name}={value}" for name, value in overrides.settings.items()]
    plain, lines = endpoint.config_name, ["Would create the hooked twin:"]
    for model in endpoint.models:
        path = hooks.paths.get(model)
        mounted = [f"channel {CHANNEL}", f"PYTHONPATH={path}"] if path else []
        with_changes = ", ".join([*changes, *mounted, "the hook enabled"])
        lines.append(f"  model {twin_name(model)}: {model} with {with_changes}")
    lines.append(f"  endpoint config {twin_name(plain)}: {plain} with the models above")
    if hooks.paths:
        roles = ", ".join(sorted({endpoint.models[model]["ExecutionRoleArn"] for model in hooks.paths}))
        lines.append(f"  {PREFIX} in the stack's bucket: the hook, which {roles} may list and read")
    return [*lines, ""]


def kept_lines(requested: Overrides, overrides: Overrides) -> list[str]:
    """Describe the overrides that the twin keeps from the previous one."""
    return [
        f"The twin keeps {name}={value} of the previous twin. Set {name}=… to change it."
        for name, value in overrides.settings.items()
        if name not in requested.settings
    ]


def _own_lines(plan: Plan, parameters: Mapping[str, str], session: boto3.Session) -> list[str]:
    lines = [f"The stack's own endpoint: {parameters['EndpointName']}, image {parameters['ServingImage']}"]
    if parameters["ModelDataUrl"] == TO_BE_UPLOADED:
        model = plan.options.model or SAMPLE_WEIGHTS.relative_to(ROOT)
        lines.append(f"Would upload {model} to s3://{models_bucket(session)}/ (created if it is missing).")
    return lines


def _key_policy_lines(key: str, name: str, account: str) -> list[str]:
    """Return the statements that the policy of the volumes' key needs; nothing without such a key."""
    if not key:
        return []
    partition = key.split(":")[1]
    # CloudFormation shortens the stack's name in a role's name, but keeps at least 24 characters
    roles = f"arn:{partition}:iam::{account}:role/{name[:24]}*"
    root = {"AWS": f"arn:{partition}:iam::{account}:root"}
    only = {"ArnLike": {"aws:PrincipalArn": roles}}
    for_aws = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    allow = {"Effect": "Allow", "Principal": root, "Resource": "*"}
    return [
        f"Key {key} encrypts the instance volumes. UpdateEndpoint needs its policy to allow the stack's functions two "
        "actions. The default key policy does; add to another one:",
        f"  {json.dumps(allow | {'Action': 'kms:DescribeKey', 'Condition': only})}",
        f"  {json.dumps(allow | {'Action': 'kms:CreateGrant', 'Condition': only | for_aws})}",
    ]
