"""make plan, deploy, twin, explain, remove, push: the stack on AWS, for an endpoint or with one of its own.

Credentials and region are those of the AWS SDK (AWS_PROFILE, AWS_REGION, …).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from sagemaker.core.helper.session_helper import Session as SageMakerSession
from sagemaker.core.resources import Endpoint
from sagemaker.core.s3 import S3Uploader

from deploy import DeployError, images, stack
from deploy.alarms import check_alarm
from deploy.explain import OPERATOR, command, explain
from deploy.quotas import swap_lines
from deploy.twin import IMAGE, MODEL_DATA, check_twin, delete_twins, make_twin, twin_name, with_kept
from deploy.watched import Watched, events_are_on, is_missing, is_refused, read_endpoint, turn_events_on
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.incidents.events import COMMAND_DETAIL_TYPE
from glassbox.incidents.model import State
from glassbox.replay_marker import PublicKey

WEIGHTS = stack.ROOT / "demo" / "weights" / "signs_w16.pt"
RESTORE_SECONDS = 3600.0
ENDPOINT_NAME = 63  # characters
TO_BE_UPLOADED = "s3://to-be/uploaded"  # the model of a stack's own endpoint, until it is
DERIVED = (  # what the watched endpoint decides
    "EndpointName",
    "EndpointArn",
    "PlainConfigName",
    "PlainConfigArn",
    "HookedConfigName",
    "CaptureBucket",
    "CapturePrefix",
    "EndpointRoleArns",
    "ModelDataUrl",
)
CHANGING = (State.SWAPPING, State.HOOKED, State.RESTORING)  # an incident has, or may have, the endpoint
SETTINGS = {IMAGE: "IMAGE", MODEL_DATA: "MODEL_DATA"}  # as make calls them


@dataclass(frozen=True)
class Plan:
    """What `deploy` would do: the stack's parameters, the twin's own image and model data, and all of it in words.

    `reacts`: whether a violation swaps the endpoint; without that, it gets no hooked twin.
    """

    parameters: dict[str, str]
    watched: Watched | None
    reacts: bool
    overrides: dict[str, str]
    words: list[str]


def make_plan(options: argparse.Namespace, session: boto3.Session) -> Plan:
    """Read what is there, change nothing, and return what `deploy` would do.

    Raises:
        DeployError: it cannot be done; why, and what to do about it.
    """
    template = stack.built()
    cloudformation = session.client("cloudformation")
    there = stack.find(options.stack, cloudformation)
    never_made = bool(there) and there["StackStatus"] in stack.NEVER_MADE
    before = {} if never_made else stack.parameters_of(there)
    _check_options(options, template, before)
    if there and before:
        stack.check_settled(options.stack, there["StackStatus"])
        _check_same(options, before)
        stack.check_storage(options.stack, template, there)
        _check_no_incident(options.stack, stack.outputs_of(there), session)
    reacts = stack.value_of("React", template, before | options.set) != "false"
    watched = read_endpoint(options.endpoint, session) if options.endpoint else None
    # a new endpoint of the stack's own is nobody else's: _own_name looks
    name = options.endpoint or before.get("EndpointName")
    notes = _check_alone(options.stack, name, cloudformation) if name else []
    overrides: dict[str, str] = {}
    if watched:
        if reacts:
            overrides = with_kept(
                _overrides_of(options), before.get("HookedConfigName", ""), watched, session
            )
            check_twin(watched, options.stack, overrides, session)
        parameters = _watching(watched, before, twin=reacts)
    else:
        parameters = _owning(options, before, session)
    if monitor := _image(images.MONITOR, before.get("MonitorImage", ""), session):
        parameters["MonitorImage"] = monitor
    parameters |= _asked(options)
    if problems := stack.problems(template, parameters, before):  # those that follow from the endpoint too
        raise DeployError("\n".join(problems))
    account = session.client("sts").get_caller_identity()["Account"]
    becomes = "would be updated" if before else "would be created"
    if there and never_made:
        becomes = f"is {there['StackStatus']}, would be deleted and created again"
    in_words = stack.contents(template, before | parameters)
    words = [
        f"Account {account}, region {session.region_name}: stack {options.stack} {becomes}, with "
        + ", ".join(f"{number} {word}{'s' * (number > 1)}" for word, number in in_words.items()),
        *_changes(before, parameters),
        "",
    ]
    if watched:
        words += _words_for(watched, overrides, options, session, twin=reacts)
    else:
        words += _words_for_own(options, before | parameters, session)
    if reacts:
        instance = stack.value_of("InstanceType", template, before | parameters)
        fleet = watched.instances if watched else {instance: 1}
        words += swap_lines(fleet, session, new=not (watched or before))
        words += _key_policy((before | parameters).get("EndpointKeyArn", ""), options.stack, account)
    words += [f"Note: {note}" for note in notes]
    if not (before | parameters).get("MonitorImage"):
        words.append(
            "Note: no monitor image was pushed (make images, make push): the hourly job is left out."
        )
    return Plan(parameters, watched, reacts, overrides, words)


def _asked(options: argparse.Namespace) -> dict[str, str]:
    """Return the parameters given by hand; SET="Name=" gives an empty value."""
    named = {"MaxClassShare": options.threshold, "NotificationEmail": options.email, "Stage": options.stage}
    return {name: value for name, value in named.items() if value} | options.set


def _check_options(options: argparse.Namespace, template: dict[str, Any], before: dict[str, str]) -> None:
    """Raise DeployError for every option that cannot work, before anything is read or uploaded."""
    image = {"ServingImage": options.image} if options.image else {}
    named = {"EndpointName": _endpoint_name(options)}
    problems = stack.problems(template, named | _asked(options) | image, before)
    wanted = stack.value_of("Architecture", template, before | _asked(options))
    if not problems and wanted != (built := stack.built_for()):
        problems.append(
            f"Stack {options.stack} is for {wanted}, what was built for {built}: ARCHITECTURE={wanted} builds for it"
        )
    problems += [
        f"{name}: it follows from ENDPOINT={options.endpoint}, and cannot be given as {value!r}"
        for name, value in options.set.items()
        if options.endpoint and name in DERIVED
    ]
    if options.model and "ModelDataUrl" in options.set:
        problems.append("MODEL and ModelDataUrl: expected one of them, got both")
    if options.model and options.endpoint:
        problems.append(
            "MODEL is for an endpoint of the stack's own: MODEL_DATA=s3://… gives the twin another model"
        )
    if options.model and not options.model.is_file():
        problems.append(f"MODEL: expected a file, got {options.model}")
    if problems:
        raise DeployError("\n".join(problems))


def _check_same(options: argparse.Namespace, before: dict[str, str]) -> None:
    """Raise DeployError where a stack would go over to another endpoint."""
    own, endpoint = bool(before.get("ModelDataUrl")), before.get("EndpointName")
    wanted = options.endpoint or options.set.get("EndpointName", endpoint)
    if own == bool(options.endpoint) or endpoint != wanted:
        what = f"has an endpoint of its own, {endpoint}" if own else f"watches ENDPOINT={endpoint}"
        raise DeployError(f"Stack {options.stack} {what}, and keeps to it: STACK=… names another stack")


def _check_no_incident(name: str, outputs: Mapping[str, str], session: boto3.Session) -> None:
    """Raise DeployError while an incident changes the endpoint: an update would undo its swap, or fail on it."""
    incident = IncidentsTable(session.client("dynamodb"), outputs["IncidentsTable"]).current(
        outputs["EndpointName"]
    )
    if incident and incident.state in CHANGING:
        raise DeployError(
            f"Stack {name}: incident {incident.id} of endpoint {incident.endpoint} is {incident.state}. Wait until "
            "the incident is over, or abort it (docs/operations.md), then try again."
        )


def _check_alone(name: str, endpoint: str, cloudformation: Any) -> list[str]:
    """Raise DeployError where another stack watches the endpoint; return what could not be read, in words.

    Two stacks would take one another's hooked config for a deployment of the endpoint's owner.
    """
    try:
        others = [other for other in stack.watchers(endpoint, cloudformation) if other != name]
    except ClientError as error:
        if not is_refused(error):
            raise
        return [
            "Other stacks could not be read (cloudformation:DescribeStacks): only one may watch an endpoint."
        ]
    if others:
        raise DeployError(
            f"Endpoint {endpoint} is watched by stack {others[0]}, and only one stack may watch an endpoint: "
            f"STACK={others[0]} updates that one, make remove STACK={others[0]} removes it"
        )
    return []


def _watching(watched: Watched, before: dict[str, str], *, twin: bool) -> dict[str, str]:
    found = watched.parameters | {"HookedConfigName": twin_name(watched.config_name)}
    if not twin:  # nothing writes tensors, so no role is let into the stack's bucket
        found |= {"HookedConfigName": "", "EndpointRoleArns": ""}
    # the ARN of a key may have been given by hand: it stays where the endpoint does not tell another
    kept = {"CaptureKeyArn"} | ({"EndpointKeyArn"} if watched.volume_key else set())
    return {name: value for name, value in found.items() if value or (before.get(name) and name not in kept)}


def _owning(options: argparse.Namespace, before: dict[str, str], session: boto3.Session) -> dict[str, str]:
    serving = options.image or _image(images.SERVING, before.get("ServingImage", ""), session)
    if not serving:
        raise DeployError(
            f"The serving image is not in {images.registry(session)}: make images, make push; or IMAGE=… names another"
        )
    # a new stack's model is uploaded later; an existing one keeps its model, unless another is given
    uploaded = {} if before and not options.model else {"ModelDataUrl": TO_BE_UPLOADED}
    return {"ServingImage": serving} | uploaded | ({} if before else _own_name(options, session))


def _endpoint_name(options: argparse.Namespace) -> str:
    """Return the name of the watched endpoint, or the stack's name for an endpoint of its own."""
    return str(
        options.endpoint or options.set.get("EndpointName") or options.stack[:ENDPOINT_NAME].strip("-")
    )


def _own_name(options: argparse.Namespace, session: boto3.Session) -> dict[str, str]:
    """Return the name of a new stack's own endpoint: the stack's, unless one is given. An existing one is refused."""
    name = _endpoint_name(options)
    try:
        session.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return {"EndpointName": name}
        raise
    raise DeployError(
        f"Endpoint {name} already exists in {session.region_name} and does not belong to stack {options.stack}: "
        f"SET=EndpointName=… names the stack's own otherwise, ENDPOINT={name} watches that one"
    )


def _image(repository: str, before: str, session: boto3.Session) -> str:
    """Return the image that was pushed last, unless the stack has one from elsewhere."""
    ours = f"{images.registry(session)}/{repository}:"
    theirs = before and not before.startswith(ours)
    return before if theirs else images.pushed(repository, session) or before


def _overrides_of(options: argparse.Namespace) -> dict[str, str]:
    """Return image and model data of the twin, where they are given."""
    given = {IMAGE: options.image, MODEL_DATA: options.model_data}
    return {member: value for member, value in given.items() if value}


def _kept(overrides: dict[str, str], options: argparse.Namespace) -> list[str]:
    return [
        f"The twin keeps {SETTINGS[member]}={value}, as the one before ({SETTINGS[member]}=… names another)."
        for member, value in overrides.items()
        if member not in _overrides_of(options)
    ]


def _changes(before: dict[str, str], parameters: dict[str, str]) -> list[str]:
    if not before:
        return []
    changed = [
        f"  {name}: {before.get(name) or 'empty'} -> {value or 'empty'}"
        for name, value in parameters.items()
        if before.get(name, "") != value and value != TO_BE_UPLOADED
    ]
    kept = 'Parameters that are not given stay as they are (SET="Name=" empties one).'
    return ["", kept] + (["Would change:", *changed] if changed else [])


def _words_for(
    watched: Watched,
    overrides: dict[str, str],
    options: argparse.Namespace,
    session: boto3.Session,
    *,
    twin: bool,
) -> list[str]:
    on, others = events_are_on(watched.bucket, session.client("s3"))
    words = ["It would watch:", *(f"  {line}" for line in watched.lines()), ""]
    if twin:
        words += _words_for_twin(watched, overrides)
    if on:
        words += [f"Bucket {watched.bucket} already notifies EventBridge of its objects.", ""]
    else:
        kept = f"; its {others} other notification{'s stay' if others > 1 else ' stays'}" if others else ""
        words += [f"Bucket {watched.bucket} would notify EventBridge of its objects{kept}.", ""]
    name, plain = watched.name, watched.config_name
    if not twin:
        words.append(
            f"Endpoint {name} is never changed (React=false): violations are counted and notified only."
        )
    else:
        words.append(
            f"Endpoint {name} is left alone until a violation. Then it goes to {twin_name(plain)}, and back to {plain}."
        )
    words += [f"Note: {note}" for note in [*_kept(overrides, options), *watched.notes(twin=twin)]]
    if twin and IMAGE not in overrides:
        words.append(
            "Note: the twin runs the endpoint's own image and code, which must contain the hook (docs/your-model.md)."
        )
    return words


def _words_for_twin(watched: Watched, overrides: dict[str, str]) -> list[str]:
    changed = [f"{SETTINGS[member].lower().replace('_', ' ')} {value}" for member, value in overrides.items()]
    plain = watched.config_name
    return [
        "Its hooked twin would be created:",
        *(
            f"  model {twin_name(model)}: {model} with {', '.join([*changed, 'the hook on'])}"
            for model in watched.models
        ),
        f"  endpoint config {twin_name(plain)}: {plain} with the models above",
        "",
    ]


def _key_policy(key: str, name: str, account: str) -> list[str]:
    """Return what the policy of the instance volumes' key must allow; nothing without such a key."""
    if not key:
        return []
    partition = key.split(":")[1]
    # CloudFormation shortens the stack's name in a role's: its first 24 characters are always there
    roles = f"arn:{partition}:iam::{account}:role/{name[:24]}*"
    root = {"AWS": f"arn:{partition}:iam::{account}:root"}
    only = {"ArnLike": {"aws:PrincipalArn": roles}}
    for_aws = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    allow = {"Effect": "Allow", "Principal": root, "Resource": "*"}
    return [
        f"Key {key} encrypts the instances' volumes: its policy must let the stack's functions update the endpoint. "
        "The default key policy does. Otherwise add:",
        f"  {json.dumps(allow | {'Action': 'kms:DescribeKey', 'Condition': only})}",
        f"  {json.dumps(allow | {'Action': 'kms:CreateGrant', 'Condition': only | for_aws})}",
    ]


def _words_for_own(
    options: argparse.Namespace, parameters: dict[str, str], session: boto3.Session
) -> list[str]:
    words = [f"Among them its own endpoint {parameters['EndpointName']}, with {parameters['ServingImage']}."]
    if parameters["ModelDataUrl"] == TO_BE_UPLOADED:
        model = options.model or WEIGHTS.relative_to(stack.ROOT)
        words.append(
            f"{model} would be uploaded to s3://{_models_bucket(session)}/, which is created where it is missing."
        )
    return words


def plan(options: argparse.Namespace, session: boto3.Session) -> None:
    """Say in words what deploy would do."""
    print("\n".join(make_plan(options, session).words))


def deploy(options: argparse.Namespace, session: boto3.Session) -> None:
    """Create or update the stack, for the endpoint or with one of its own, and the endpoint's hooked twin."""
    found = make_plan(options, session)
    print("\n".join(found.words), flush=True)
    _ask(options)
    parameters, watched = dict(found.parameters), found.watched
    cloudformation = session.client("cloudformation")
    there = stack.describe(options.stack, cloudformation)
    if there and there["StackStatus"] in stack.NEVER_MADE:
        stack.delete(options.stack, cloudformation)
        there = None
    if there:  # one may have begun since the plan was read
        _check_no_incident(options.stack, stack.outputs_of(there), session)
    if watched:
        turn_events_on(watched.bucket, session.client("s3"))
        if found.reacts and there:  # before the update: the stack never names a config that does not exist
            _make_twin(watched, options.stack, stack.outputs_of(there), session, found.overrides)
    elif parameters.get("ModelDataUrl") == TO_BE_UPLOADED:
        parameters["ModelDataUrl"] = _upload_model(options.model or WEIGHTS, session)
    stack.sam_deploy(options.stack, parameters, session.region_name)
    _, outputs = stack.existing(options.stack, cloudformation)
    if watched:
        if found.reacts and not there:
            _make_first_twin(watched, options.stack, outputs, session, found.overrides)
        _delete_others(parameters.get("HookedConfigName", ""), options.stack, session)
    print("\nDone.")
    if options.email:
        print(
            f"Confirm the subscription e-mail sent to {options.email}; no notifications are sent until then."
        )
    print(_check_alarm(options.stack, session))
    if not found.reacts:
        return
    print("Try it, on the endpoint's own traffic of the last hour:")
    detail = json.dumps(json.dumps({"endpoint": outputs["EndpointName"], "action": "open"}))
    print(
        f"  aws events put-events --entries 'Source={OPERATOR},DetailType={COMMAND_DETAIL_TYPE},Detail={detail}'"
    )


def _check_alarm(name: str, session: boto3.Session) -> str:
    """Return what the test of an alarm showed; a refused call must not fail a deployment that is complete."""
    try:
        return check_alarm(name, session)
    except (ClientError, BotoCoreError) as error:
        return f"Alarms: whether they notify was not tested: {error}"


def _make_twin(
    watched: Watched, name: str, outputs: dict[str, str], session: boto3.Session, overrides: dict[str, str]
) -> str:
    """Create the twin with the stack's bucket and public replay key: its network may have no way to KMS."""
    key = _public_key(outputs, session).text
    return make_twin(watched, name, outputs["Bucket"], key, session, overrides)


def _public_key(outputs: dict[str, str], session: boto3.Session) -> PublicKey:
    try:
        return ReplayKey(session.client("kms"), outputs["ReplayKeyArn"]).public()
    except GlassboxError as error:
        raise DeployError(
            f"{error}\nThe public replay key is needed: kms:GetPublicKey must be allowed."
        ) from error


def _make_first_twin(
    watched: Watched, name: str, outputs: dict[str, str], session: boto3.Session, overrides: dict[str, str]
) -> None:
    """Create a new stack's twin; where that fails, raise DeployError and say that the stack has none."""
    try:
        _make_twin(watched, name, outputs, session, overrides)
    except (DeployError, ClientError, BotoCoreError) as error:
        raise DeployError(
            f"{error}\nStack {name} exists, but cannot swap until make twin succeeds (IMAGE and MODEL_DATA as here)"
        ) from error


def _ask(options: argparse.Namespace) -> None:
    """Raises DeployError unless somebody says yes."""
    if options.yes:
        return
    try:
        answer = input("\nGo on? [y/N] ")
    except EOFError:  # nobody is there to be asked
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise DeployError("Nothing was done (YES=1 does not ask).")


def twin(options: argparse.Namespace, session: boto3.Session) -> None:
    """Create the twin of what the endpoint runs now, update the stack to both, and delete the old twin."""
    cloudformation = session.client("cloudformation")
    parameters, outputs = stack.existing(options.stack, cloudformation)
    if parameters.get("ModelDataUrl"):
        raise DeployError(
            f"Stack {options.stack} has an endpoint of its own: its model is changed by the parameter ModelDataUrl, "
            "and its twin with it"
        )
    _check_reacts(options.stack, parameters)
    _check_no_incident(options.stack, outputs, session)
    watched = read_endpoint(parameters["EndpointName"], session)
    overrides = with_kept(_overrides_of(options), parameters["HookedConfigName"], watched, session)
    hooked = _make_twin(watched, options.stack, outputs, session, overrides)
    turn_events_on(watched.bucket, session.client("s3"))
    stack.change_parameters(options.stack, _watching(watched, parameters, twin=True), cloudformation)
    print(f"{watched.name} runs {watched.config_name}; its hooked twin is {hooked}.")
    print("".join(f"{line}\n" for line in _kept(overrides, options)), end="")
    _delete_others(hooked, options.stack, session)


def _check_reacts(name: str, parameters: Mapping[str, str]) -> None:
    """Raise DeployError for a stack that only notifies."""
    if parameters.get("React") == "false":
        raise DeployError(
            f"Stack {name}: expected React=true, got false. It has no hooked twin; "
            'make deploy … SET="React=true" gives it one.'
        )


def _delete_others(hooked: str, name: str, session: boto3.Session) -> None:
    """Delete the stack's twins except `hooked`."""
    for deleted in delete_twins(name, session, but=hooked):
        print(f"deleted: {deleted}")


def explain_image(options: argparse.Namespace, session: boto3.Session) -> None:
    """Explain one image now: the endpoint is swapped for it, and put back."""
    parameters, outputs = stack.existing(options.stack, session.client("cloudformation"))
    _check_reacts(options.stack, parameters)
    if options.endpoint and options.endpoint != outputs["EndpointName"]:
        raise DeployError(
            f"Stack {options.stack} watches {outputs['EndpointName']}: STACK=… names that of {options.endpoint}"
        )
    print(
        f"{outputs['EndpointName']} would go to its hooked twin for some minutes; it keeps serving.",
        flush=True,
    )
    _ask(options)
    picture = explain(options.image, outputs, stack.ROOT / "out" / "explain", session, print)
    print(f"The picture: {picture.relative_to(stack.ROOT)}")


def remove(options: argparse.Namespace, session: boto3.Session) -> None:
    """End an open incident, delete twin and stack; a watched endpoint serves on with its own config."""
    cloudformation = session.client("cloudformation")
    parameters, outputs = stack.existing(options.stack, cloudformation)
    deleted = []
    own, name = bool(parameters.get("ModelDataUrl")), outputs["EndpointName"]
    also = ""
    if own:
        also = f" and its endpoint {name}, WHICH SERVES REQUESTS,"
    elif parameters.get("HookedConfigName"):
        also = f" and the hooked twin of {name}"
    print(f"Stack {options.stack}{also} would be deleted. Bucket and tables stay.", flush=True)
    _ask(options)
    _save_replay_key(outputs, session)
    if not own:
        with stack.violations_paused(options.stack, session):
            _restore(outputs, session)
            # before the stack: after any failure from here on, make remove finds the rest
            deleted = delete_twins(options.stack, session)
    stack.delete(options.stack, cloudformation)
    print(f"Stack {options.stack} is deleted" + "".join(f", {name}" for name in deleted) + ".")
    if not own:
        print(f"Endpoint {name} serves its own config.")
        print(f"Bucket {parameters['CaptureBucket']} still notifies EventBridge of its objects.")
    print("These keep what was recorded:")
    print(f"  s3://{outputs['Bucket']}, tables {outputs['CountsTable']} and {outputs['IncidentsTable']}")


def _save_replay_key(outputs: dict[str, str], session: boto3.Session) -> None:
    """Keep the public replay key: without it, no later baseline can tell replays from traffic."""
    if "ReplayKeyArn" not in outputs:  # a stack of an earlier storage version has none
        return
    s3, key = session.client("s3"), f"monitoring/{outputs['EndpointName']}/replay-key/public.pem"
    place = {"Bucket": outputs["Bucket"], "Key": key}
    try:
        pem = _public_key(outputs, session).pem.encode()
        s3.put_object(**place, Body=pem, ContentType="application/x-pem-file")
    except DeployError:
        # a removal that was interrupted has saved it, and may have deleted the key
        if not s3.list_objects_v2(Bucket=outputs["Bucket"], Prefix=key).get("KeyCount"):
            raise
    print(f"The public replay key is saved: s3://{outputs['Bucket']}/{key} (make baseline REPLAY_KEY=…)")


def _restore(outputs: dict[str, str], session: boto3.Session) -> None:
    """Abort an open incident, as an operator would, and wait until the stack has restored the endpoint."""
    name, plain, hooked = outputs["EndpointName"], outputs["PlainConfig"], outputs.get("HookedConfig", "")
    incidents = IncidentsTable(session.client("dynamodb"), outputs["IncidentsTable"])
    by_hand = (
        f"Restore it, then try again:\naws sagemaker update-endpoint --endpoint-name {name} "
        f"--endpoint-config-name {plain} --retain-all-variant-properties"
    )
    deadline, told = time.monotonic() + RESTORE_SECONDS, False
    while time.monotonic() < deadline:
        try:
            endpoint = Endpoint.get(name, session=session)
        except ClientError as error:
            if is_missing(error):
                return  # its owner deleted it
            raise
        on_hooked = endpoint.endpoint_config_name == hooked
        incident = incidents.current(name)
        over = incident is None or incident.state not in CHANGING
        if over and endpoint.endpoint_status == "InService":
            if on_hooked:
                raise DeployError(f"{name} is on {hooked}, and no open incident would restore it. {by_hand}")
            return
        if incident and incident.state in (State.SWAPPING, State.HOOKED) and not told:
            print(f"{name} has an open incident: aborting it and restoring {plain}", flush=True)
            command(name, "abort", session)
            told = True
        time.sleep(2)
    raise DeployError(
        f"{name} is still {endpoint.endpoint_status} on {endpoint.endpoint_config_name}. {by_hand}"
    )


def push(options: argparse.Namespace, session: boto3.Session) -> None:
    """The images to the account's registry."""
    for uri in images.push(session) or ["Both images are there already."]:
        print(uri)


def _models_bucket(session: boto3.Session) -> str:
    account = session.client("sts").get_caller_identity()["Account"]
    return f"sagemaker-{session.region_name}-{account}"  # as the SageMaker SDK calls its own


def _upload_model(model: Path, session: boto3.Session) -> str:
    """Package a state dict (a model.tar.gz is taken as it is) and upload it; its S3 URI."""
    import package  # its pins are the model's, not this tool's: the standard library is all it needs

    s3, bucket = session.client("s3"), _models_bucket(session)
    try:
        s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=bucket.rpartition("-")[2])
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise DeployError(f"Bucket {bucket} is not this account's to use: {error}") from error
        where = {} if session.region_name == "us-east-1" else {"LocationConstraint": session.region_name}
        s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {}))
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.tar.gz"
        if model.name.endswith(".tar.gz"):
            archive.write_bytes(model.read_bytes())
        else:
            package.package(model, archive)
        # named by its content: an endpoint config never serves another model than it did
        target = f"s3://{bucket}/glassbox/{package.digest(archive)}"
        uploader = SageMakerSession(boto_session=session)
        S3Uploader.upload(str(archive), target, sagemaker_session=uploader)
    return f"{target}/model.tar.gz"


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not Parameter=value")
    return key, value


COMMANDS: dict[str, Callable[[argparse.Namespace, boto3.Session], None]] = {
    "plan": plan,
    "deploy": deploy,
    "twin": twin,
    "explain": explain_image,
    "remove": remove,
    "push": push,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in COMMANDS.items():
        one: Any = commands.add_parser(name, help=does.__doc__)
        if name != "push":
            one.add_argument("--stack", default="glassbox")
        if name in ("plan", "deploy", "twin"):
            one.add_argument("--image", default="", help="the twin's, or the stack's own endpoint's")
            one.add_argument("--model-data", default="", help="another model.tar.gz in S3, for the twin")
        if name in ("plan", "deploy"):
            one.add_argument(
                "--endpoint", default="", help="one that is there; otherwise the stack makes one"
            )
            one.add_argument("--model", type=Path, help="for the stack's own: a state dict or a model.tar.gz")
            one.add_argument("--threshold", default="", help="largest share of one class")
            one.add_argument("--email", default="")
            one.add_argument("--stage", default="")
            one.add_argument("--set", type=_setting, nargs="*", default=[], metavar="Parameter=value")
        if name == "explain":
            one.add_argument("--image", type=Path, required=True, help="a picture, or an array in .npy")
            one.add_argument("--endpoint", default="", help="that of the stack")
        if name in ("deploy", "explain", "remove"):
            one.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args()
    options.set = dict(getattr(options, "set", ()))
    return options


def main() -> None:
    options = _options()
    session = boto3.Session()
    try:
        if not session.region_name:
            raise DeployError("No region is set: AWS_REGION=… names one")
        COMMANDS[options.command](options, session)
    except (DeployError, ClientError, BotoCoreError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


if __name__ == "__main__":
    main()
