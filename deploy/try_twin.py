"""Try the hooked twin on an endpoint of its own: one request, its heat map or the reason why there is none."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.explain import CONTENT_TYPES
from deploy.polling import poll
from deploy.stack import Outputs
from deploy.twin import NAME_CHARACTERS, TAG, record_trial
from deploy.watched_endpoint import WatchedEndpoint, is_missing
from glassbox.aws.objects import Objects
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.explanation.facts import Facts, Refusal, describe_answer, describe_blurred, read_facts
from glassbox.incidents.hook_hello import describe_hook
from glassbox.incidents.notifications import HOOK_NOT_LOADED
from glassbox.monitoring.capture import lines, read_request
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker

SUFFIX = "-try"
START_SECONDS, RESULT_SECONDS, DELETE_SECONDS = 3600.0, 180.0, 1800.0
CAPTURE_HOURS = 24
MEMBERS = (  # of a variant that the trial keeps
    "VariantName",
    "ModelName",
    "InstanceType",
    "VolumeSizeInGB",
    "ModelDataDownloadTimeoutInSeconds",
    "ContainerStartupHealthCheckTimeoutInSeconds",
    "InferenceAmiVersion",
    "EnableSSMAccess",
)


class Sample(NamedTuple):
    """A request body with its content type, and where it is from."""

    body: bytes
    content_type: str
    source: str


def read_sample(path: str, endpoint: WatchedEndpoint, session: boto3.Session) -> Sample:
    """Return an image file, or without a path the newest captured input of the endpoint.

    Raises:
        DeployError: the file has no supported type, or the last 24 hours have no captured input.
    """
    if path:
        file = Path(path)
        content_type = CONTENT_TYPES.get(file.suffix.lower())
        if content_type is None or not file.is_file():
            raise DeployError(
                f"TRY: expected 1 or a file that ends in {', '.join(CONTENT_TYPES)}, got {path}"
            )
        return Sample(file.read_bytes(), content_type, path)
    objects = Objects(session.client("s3"))
    variants = [variant["VariantName"] for variant in endpoint.config["ProductionVariants"]]
    now = datetime.now(UTC)
    for hour in (now - timedelta(hours=n) for n in range(CAPTURE_HOURS)):
        for variant in variants:
            folder = f"{endpoint.prefix}/{endpoint.name}/{variant}/{hour:%Y/%m/%d/%H}/".lstrip("/")
            for key in sorted((key for key, *_ in objects.listed(endpoint.bucket, folder)), reverse=True):
                for line in lines(objects.chunks(endpoint.bucket, key)):
                    with contextlib.suppress(ValueError, RecursionError):  # the next line may be readable
                        captured = read_request(line or b"")
                        if captured.body is not None:
                            return Sample(
                                captured.body, captured.content_type, f"s3://{endpoint.bucket}/{key}"
                            )
    raise DeployError(
        f"TRY: expected a captured input of the last {CAPTURE_HOURS} hours in "
        f"s3://{endpoint.bucket}/{endpoint.prefix}/, got none. Set TRY=image.png."
    )


def try_twin(
    sample: Sample, stack: str, outputs: Outputs, session: boto3.Session, report: Callable[[str], None]
) -> str:
    """Send one marked request to an endpoint of the twin's config, and return the result.

    The endpoint is created for it and deleted in every case. A tag of the twin's models records the result.

    Args:
        report: called with a line of text per step.

    Returns:
        One line: the heat map with its completeness, or the reason why there is none.

    Raises:
        DeployError: the endpoint does not start or refuses the request, or neither a trace nor a refusal came.
    """
    began = datetime.now(UTC)
    with _endpoint(stack, outputs.hooked_config, session, report) as name:
        incident, replay = f"{began:%Y%m%dt%H%M%S}-try", f"try-{uuid.uuid4().hex[:12]}"
        key = ReplayKey(session.client("kms"), outputs.replay_key_arn)
        try:
            marker = write_marker(ReplayMarker(TRACE, incident, replay), sample.body, key.sign)
        except GlassboxError as error:
            raise DeployError(
                f"{error}\nAllow kms:Sign with {outputs.replay_key_arn}, then retry."
            ) from error
        report(f"sending {sample.source}")
        try:
            session.client("sagemaker-runtime").invoke_endpoint(
                EndpointName=name,
                ContentType=sample.content_type,
                Body=sample.body,
                CustomAttributes=marker,
            )
        except ClientError as error:
            raise DeployError(
                f"Endpoint {name} refuses {sample.source}: {error.response['Error']['Message']}"
            ) from error
        sent = datetime.now(UTC)
        objects, result = (
            Objects(session.client("s3")),
            f"saliency/{outputs.endpoint_name}/{incident}/{replay}",
        )

        def found() -> Facts | Refusal | None:
            # a batch has a number after the name
            keys = [key for key, *_ in objects.listed(outputs.bucket, result) if key.endswith(".json")]
            return read_facts(objects.get(outputs.bucket, keys[0])) if keys else None

        facts = poll(found, RESULT_SECONDS)
        if facts is None:
            hellos = describe_hook(began, outputs.endpoint_name, outputs.bucket, objects)
            reason = "; ".join(hellos) + ": the hook has loaded" if hellos else HOOK_NOT_LOADED
            raise DeployError(
                f"Twin {outputs.hooked_config}: expected a trace or a refusal within {RESULT_SECONDS:g} s, got none: "
                f"{reason}. The log group is /aws/sagemaker/Endpoints/{name}."
            )
        record_trial(outputs.hooked_config, _verdict(facts), session)
        return _result(facts, (datetime.now(UTC) - sent).total_seconds())


def _verdict(facts: Facts | Refusal) -> str:
    if isinstance(facts, Refusal):
        return "refused"
    if facts.answered is not None:
        return "of another class than answered"
    return "complete" if facts.completeness.complete else "incomplete"


def _result(facts: Facts | Refusal, seconds: float) -> str:
    if isinstance(facts, Refusal):
        return f"refused: {facts.refused}"
    found = facts.completeness
    complete = "complete" if found.complete else f"INCOMPLETE, {found.residual:g} of {found.logit:g} missing"
    blurred = (
        f"; {describe_blurred(facts.predicted_class, facts.probability, facts.blurred)}"
        if facts.blurred
        else ""
    )
    unread = f"; not compared with the response: {facts.not_compared}" if facts.not_compared else ""
    return (
        f"{describe_answer(facts.answered)}class {facts.predicted_class} of {facts.model}, {complete}, heat map after "
        f"{seconds:.0f} s{blurred}{unread}"
    )


@contextlib.contextmanager
def _endpoint(
    stack: str, config: str, session: boto3.Session, report: Callable[[str], None]
) -> Iterator[str]:
    """Yield a new endpoint of one instance per variant of a config, and delete it in every case.

    Raises:
        DeployError: it does not start, or another endpoint has its name.
    """
    sagemaker, name = session.client("sagemaker"), f"{config[: NAME_CHARACTERS - len(SUFFIX)]}{SUFFIX}"
    _delete(name, stack, sagemaker)  # of a run that was killed
    described = sagemaker.describe_endpoint_config(EndpointConfigName=config)
    variants = [
        {member: variant[member] for member in MEMBERS if member in variant}
        | {"InitialInstanceCount": 1, "InitialVariantWeight": 1.0}
        for variant in described["ProductionVariants"]
    ]
    given = {k: described[k] for k in ("KmsKeyId", "VpcConfig", "ExecutionRoleArn") if k in described}
    tags = [{"Key": TAG, "Value": stack}]
    try:
        sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=variants, Tags=tags, **given
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
        report(f"starting endpoint {name} of {len(variants)} instance{'s' * (len(variants) > 1)}")
        _await_start(name, sagemaker)
        yield name
    finally:
        report(f"deleting endpoint {name}")
        _delete(name, stack, sagemaker)


def _await_start(name: str, sagemaker: Any) -> None:
    status = ""

    def started() -> bool:
        nonlocal status
        found = sagemaker.describe_endpoint(EndpointName=name)
        status = found["EndpointStatus"]
        if status in ("Failed", "OutOfService"):
            raise DeployError(
                f"Endpoint {name}: expected InService, got {status}: {found.get('FailureReason')}"
            )
        return bool(status == "InService")

    if not poll(started, START_SECONDS):
        raise DeployError(
            f"Endpoint {name}: expected InService within {START_SECONDS / 60:g} minutes, got {status}"
        )


def _delete(name: str, stack: str, sagemaker: Any) -> None:
    """Delete the endpoint and the config of a trial, if they exist.

    SageMaker refuses to delete an endpoint while it starts, so this waits.

    Raises:
        DeployError: they belong to something else, or the endpoint did not disappear.
    """
    if _belongs(sagemaker.describe_endpoint, {"EndpointName": name}, stack, sagemaker) and not poll(
        lambda: _is_deleted(name, sagemaker), DELETE_SECONDS
    ):
        raise DeployError(
            f"Endpoint {name}: expected its deletion within {DELETE_SECONDS / 60:g} minutes. "
            "Delete it: it costs money."
        )
    config = {"EndpointConfigName": name}
    if _belongs(sagemaker.describe_endpoint_config, config, stack, sagemaker):
        sagemaker.delete_endpoint_config(**config)


def _belongs(describe: Callable[..., Any], request: dict[str, str], stack: str, sagemaker: Any) -> bool:
    """Return whether a resource exists, or raise DeployError if it is not the stack's."""
    try:
        found = describe(**request)
    except ClientError as error:
        if is_missing(error):
            return False
        raise
    arn = found.get("EndpointArn") or found["EndpointConfigArn"]
    tags = {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
    if tags.get(TAG) != stack:
        (name,) = request.values()
        raise DeployError(f"{name} already exists and does not belong to stack {stack}. Delete it.")
    return True


def _is_deleted(name: str, sagemaker: Any) -> bool:
    """Request the deletion of an endpoint once it has started, and return whether it is gone."""
    try:
        if sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] not in ("Creating", "Deleting"):
            sagemaker.delete_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return True
        raise
    return False
