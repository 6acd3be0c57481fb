"""make plan, deploy, twin, explain, remove, push: the stack on AWS, for an endpoint or with one of its own.

Credentials and region are those of the AWS SDK (AWS_PROFILE, AWS_REGION, …).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
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
from deploy.twin import IMAGE, MODEL_DATA, check_names, delete_twins, make_twin, twin_name, with_kept
from deploy.watched import Watched, events_are_on, read_endpoint, turn_events_on
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.incident import State
from glassbox.violation import COMMAND_DETAIL_TYPE

WEIGHTS = stack.ROOT / "local" / "weights" / "signs_w16.pt"
RESTORE_SECONDS = 3600.0
SETTINGS = {IMAGE: "IMAGE", MODEL_DATA: "MODEL_DATA"}  # as make calls them


@dataclass(frozen=True)
class Plan:
    """What `deploy` would do: the stack's parameters, what the twin runs instead of the endpoint's own, and words."""

    parameters: dict[str, str]
    watched: Watched | None
    instead: dict[str, str]
    words: list[str]


def make_plan(options: argparse.Namespace, session: boto3.Session) -> Plan:
    """Reads only. Raises DeployError with what is in the way."""
    template = stack.built()
    there = stack.describe(options.stack, session.client("cloudformation"))
    never_made = bool(there) and there["StackStatus"] in stack.NEVER_MADE
    before = {} if never_made else stack.parameters_of(there)
    _check_options(options, template, before)
    if before:
        _check_same(options, before)
    watched = read_endpoint(options.endpoint, session) if options.endpoint else None
    instead = {}
    if watched:
        check_names(watched, options.stack, session)
        instead = with_kept(_given(options), before.get("HookedConfigName", ""), watched, session)
    parameters = _watching(watched) if watched else _owning(options, before, session)
    if monitor := _image(images.MONITOR, before.get("MonitorImage", ""), session):
        parameters["MonitorImage"] = monitor
    parameters |= _asked(options)
    account = session.client("sts").get_caller_identity()["Account"]
    becomes = "would be updated" if before else "would be made"
    if never_made and there:
        becomes = f"is {there['StackStatus']}, would be deleted and made again"
    in_words = stack.contents(template, before | parameters)
    words = [
        f"Account {account}, region {session.region_name}: stack {options.stack} {becomes}, with "
        + ", ".join(f"{number} {word}{'s' * (number > 1)}" for word, number in in_words.items()),
        *_changes(before, parameters),
        "",
        *(
            _words_for(watched, instead, options, session)
            if watched
            else _words_for_own(options, before | parameters, session)
        ),
    ]
    if not (before | parameters).get("MonitorImage"):
        words.append(
            "Note: no monitor image was pushed (make images, make push): the hourly job is left out."
        )
    return Plan(parameters, watched, instead, words)


def _asked(options: argparse.Namespace) -> dict[str, str]:
    """The parameters that were given by hand; an empty value is one that SET empties."""
    named = {"Threshold": options.threshold, "NotificationEmail": options.email, "Stage": options.stage}
    return {name: value for name, value in named.items() if value} | options.set


def _check_options(options: argparse.Namespace, template: dict[str, Any], before: dict[str, str]) -> None:
    """What can be refused before anything is read or uploaded."""
    image = {"ServingImage": options.image} if options.image else {}
    problems = stack.problems(template, _asked(options) | image, before)
    default = template["Parameters"]["Architecture"]["Default"]
    wanted = (before | _asked(options)).get("Architecture", default)
    if not problems and wanted != (built := stack.built_for()):
        problems.append(
            f"Stack {options.stack} is for {wanted}, what was built for {built}: ARCHITECTURE={wanted} builds for it"
        )
    if options.model and options.endpoint:
        problems.append(
            "MODEL is for an endpoint of the stack's own: MODEL_DATA=s3://… gives the twin another model"
        )
    if options.model and not options.model.is_file():
        problems.append(f"MODEL={options.model} is no file")
    if problems:
        raise DeployError("\n".join(problems))


def _check_same(options: argparse.Namespace, before: dict[str, str]) -> None:
    """A stack keeps to its endpoint: it neither takes over somebody's nor leaves one behind."""
    own, endpoint = bool(before.get("ModelDataUrl")), before.get("EndpointName")
    wanted = options.endpoint or options.set.get("EndpointName", endpoint)
    if own == bool(options.endpoint) or endpoint != wanted:
        what = f"has an endpoint of its own, {endpoint}" if own else f"watches ENDPOINT={endpoint}"
        raise DeployError(f"Stack {options.stack} {what}, and keeps to it: STACK=… names another stack")


def _watching(watched: Watched) -> dict[str, str]:
    hooked = {"HookedConfigName": twin_name(watched.config.endpoint_config_name)}
    # what was given by hand and is not seen here, such as the key of a bucket, stays
    return {name: value for name, value in (watched.parameters | hooked).items() if value}


def _owning(options: argparse.Namespace, before: dict[str, str], session: boto3.Session) -> dict[str, str]:
    serving = options.image or _image(images.SERVING, before.get("ServingImage", ""), session)
    if not serving:
        raise DeployError(
            f"The serving image is not in {images.registry(session)}: make images, make push; or IMAGE=… names another"
        )
    # a new stack's model is uploaded later; one that is there keeps its model, unless it is given another
    uploaded = {} if before and not options.model else {"ModelDataUrl": "s3://to-be/uploaded"}
    return {"ServingImage": serving} | uploaded


def _image(repository: str, before: str, session: boto3.Session) -> str:
    """What was pushed last, unless the stack has an image from elsewhere."""
    ours = f"{images.registry(session)}/{repository}:"
    theirs = before and not before.startswith(ours)
    return before if theirs else images.pushed(repository, session) or before


def _given(options: argparse.Namespace) -> dict[str, str]:
    """Image and model data of the twin, where they are given."""
    given = {IMAGE: options.image, MODEL_DATA: options.model_data}
    return {member: value for member, value in given.items() if value}


def _kept(instead: dict[str, str], options: argparse.Namespace) -> list[str]:
    return [
        f"The twin keeps {SETTINGS[member]}={value}, as the one before ({SETTINGS[member]}=… names another)."
        for member, value in instead.items()
        if member not in _given(options)
    ]


def _changes(before: dict[str, str], parameters: dict[str, str]) -> list[str]:
    if not before:
        return []
    changed = [
        f"  {name}: {before.get(name) or 'empty'} -> {value or 'empty'}"
        for name, value in parameters.items()
        if before.get(name, "") != value and name != "ModelDataUrl"
    ]
    kept = 'Parameters that are not given stay as they are (SET="Name=" empties one).'
    return ["", kept] + (["Would change:", *changed] if changed else [])


def _words_for(
    watched: Watched, instead: dict[str, str], options: argparse.Namespace, session: boto3.Session
) -> list[str]:
    on, others = events_are_on(watched.bucket, session.client("s3"))
    name, plain = watched.endpoint.endpoint_name, watched.config.endpoint_config_name
    words = ["It would watch:", *(f"  {line}" for line in watched.lines()), ""]
    words += ["Besides, would be made:"]
    changed = [f"{SETTINGS[member].lower().replace('_', ' ')} {value}" for member, value in instead.items()]
    words += [
        f"  model {twin_name(model)}: {model} with {', '.join([*changed, 'the hook on'])}"
        for model in watched.models
    ]
    words += [f"  endpoint config {twin_name(plain)}: {plain} with the models above", ""]
    if on:
        words += [f"Bucket {watched.bucket} tells EventBridge already.", ""]
    else:
        kept = f"; its {others} other notification{'s stay' if others > 1 else ' stays'}" if others else ""
        words += [f"Bucket {watched.bucket} would tell EventBridge of its objects{kept}.", ""]
    words += [
        f"Endpoint {name} is left alone until a violation. Then it goes to {twin_name(plain)}, and back to {plain}.",
        *(f"Note: {note}" for note in [*_kept(instead, options), *watched.notes()]),
    ]
    if IMAGE not in instead:
        words.append(
            "Note: the twin runs the endpoint's own image and code, which have to hold the hook (docs/your-model.md)."
        )
    return words


def _words_for_own(
    options: argparse.Namespace, parameters: dict[str, str], session: boto3.Session
) -> list[str]:
    endpoint, image = parameters.get("EndpointName", "traffic-signs"), parameters["ServingImage"]
    words = [f"Among them an endpoint of its own, {endpoint}, with {image}."]
    if "uploaded" in parameters.get("ModelDataUrl", ""):
        model = options.model or WEIGHTS.relative_to(stack.ROOT)
        words.append(
            f"Besides, {model} would be uploaded to s3://{_models_bucket(session)}/, made if need be."
        )
    return words


def plan(options: argparse.Namespace, session: boto3.Session) -> None:
    """Say in words what deploy would do."""
    print("\n".join(make_plan(options, session).words))


def deploy(options: argparse.Namespace, session: boto3.Session) -> None:
    """The stack, for the endpoint or with one of its own, and the endpoint's hooked twin."""
    found = make_plan(options, session)
    print("\n".join(found.words), flush=True)
    _ask(options)
    parameters, watched = dict(found.parameters), found.watched
    cloudformation = session.client("cloudformation")
    there = stack.describe(options.stack, cloudformation)
    if there and there["StackStatus"] in stack.NEVER_MADE:
        stack.delete(options.stack, cloudformation)
        there = None
    if watched:
        turn_events_on(watched.bucket, session.client("s3"))
        if there:  # at no time does the stack name a twin that is not there
            make_twin(watched, options.stack, stack.outputs_of(there)["Bucket"], session, found.instead)
    elif "ModelDataUrl" in parameters:
        parameters["ModelDataUrl"] = _upload_model(options.model or WEIGHTS, session)
    stack.sam_deploy(options.stack, parameters, session.region_name)
    _, outputs = stack.existing(options.stack, cloudformation)
    if watched:
        if not there:
            _make_first_twin(watched, options.stack, outputs["Bucket"], session, found.instead)
        _delete_others(parameters["HookedConfigName"], options.stack, session)
    print("\nDone.")
    if options.email:
        print(f"{options.email} has got a mail to confirm the subscription: nothing is told before.")
    print(_check_alarm(options.stack, session))
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


def _make_first_twin(
    watched: Watched, name: str, bucket: str, session: boto3.Session, instead: dict[str, str]
) -> None:
    """Raises DeployError, saying that there is a stack without a twin."""
    try:
        make_twin(watched, name, bucket, session, instead)
    except (DeployError, ClientError, BotoCoreError) as error:
        raise DeployError(
            f"{error}\nStack {name} is there, but cannot swap until make twin succeeds (IMAGE and MODEL_DATA as here)"
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
    """The twin of what the stack's endpoint runs now, and the stack told of both; the old twin is deleted."""
    cloudformation = session.client("cloudformation")
    parameters, outputs = stack.existing(options.stack, cloudformation)
    if parameters.get("ModelDataUrl"):
        raise DeployError(
            f"Stack {options.stack} has an endpoint of its own: its model is changed by the parameter ModelDataUrl, "
            "and its twin with it"
        )
    watched = read_endpoint(parameters["EndpointName"], session)
    instead = with_kept(_given(options), parameters["HookedConfigName"], watched, session)
    hooked = make_twin(watched, options.stack, outputs["Bucket"], session, instead)
    turn_events_on(watched.bucket, session.client("s3"))
    changed = {k: v for k, v in watched.parameters.items() if v or k == "ShadowVariants"}
    stack.change_parameters(options.stack, changed | {"HookedConfigName": hooked}, cloudformation)
    plain = watched.config.endpoint_config_name
    print(f"{outputs['EndpointName']} runs {plain}; its hooked twin is {hooked}.")
    print("".join(f"{line}\n" for line in _kept(instead, options)), end="")
    _delete_others(hooked, options.stack, session)


def _delete_others(hooked: str, name: str, session: boto3.Session) -> None:
    """What the stack had before the twin `hooked`."""
    for deleted in delete_twins(name, session, but=hooked):
        print(f"deleted: {deleted}")


def explain_image(options: argparse.Namespace, session: boto3.Session) -> None:
    """Explain one image now: the endpoint is swapped for it, and put back."""
    _, outputs = stack.existing(options.stack, session.client("cloudformation"))
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
    """End what is under way, delete the twin and the stack; the endpoint serves on as it was."""
    cloudformation = session.client("cloudformation")
    parameters, outputs = stack.existing(options.stack, cloudformation)
    deleted = []
    own = bool(parameters.get("ModelDataUrl"))
    kept = "its endpoint, WHICH IT SERVES," if own else f"the hooked twin of {outputs['EndpointName']}"
    print(f"Stack {options.stack} and {kept} would be deleted. Bucket and tables stay.", flush=True)
    _ask(options)
    if not own:
        with stack.deaf(options.stack, session):
            _restore(outputs, session)
            # before the stack: whatever fails from here on, another `make remove` finds the rest
            deleted = delete_twins(options.stack, session)
    stack.delete(options.stack, cloudformation)
    print(f"Stack {options.stack} is deleted" + "".join(f", {name}" for name in deleted) + ".")
    if not own:
        print(f"Endpoint {outputs['EndpointName']} is left as it was.")
        print(f"Bucket {parameters['CaptureBucket']} still tells EventBridge of its objects.")
    print("What was recorded is still there:")
    print(f"  s3://{outputs['Bucket']}, tables {outputs['CountsTable']} and {outputs['IncidentsTable']}")


def _restore(outputs: dict[str, str], session: boto3.Session) -> None:
    """Abort the incident that is open, as an operator would, and wait until the stack itself has ended it."""
    name, plain, hooked = (outputs[key] for key in ("EndpointName", "PlainConfig", "HookedConfig"))
    incidents = IncidentsTable(session.client("dynamodb"), outputs["IncidentsTable"])
    by_hand = (
        f"Put it back, then try again:\naws sagemaker update-endpoint --endpoint-name {name} "
        f"--endpoint-config-name {plain} --retain-all-variant-properties"
    )
    deadline, told = time.monotonic() + RESTORE_SECONDS, False
    while time.monotonic() < deadline:
        try:
            endpoint = Endpoint.get(name, session=session)
        except ClientError as error:
            if "could not find" in str(error).lower():
                return  # its owner has deleted it
            raise
        on_hooked = endpoint.endpoint_config_name == hooked
        incident = incidents.current(name)
        over = incident is None or incident.state in (State.NORMAL, State.FAILED)
        if over and endpoint.endpoint_status == "InService":
            if on_hooked:
                raise DeployError(
                    f"{name} is on {hooked}, and no incident is open that would end it. {by_hand}"
                )
            return
        if incident and incident.state in (State.SWAPPING, State.HOOKED) and not told:
            print(f"{name} is in the middle of an incident: it is aborted, and {plain} put back", flush=True)
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
    sys.path.append(str(stack.ROOT / "model_code"))
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
