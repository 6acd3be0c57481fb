"""The assumptions of `make smoke`: each check returns whether AWS behaves as assumed, and what was seen."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from deploy import stack
from deploy.polling import poll
from deploy.smoke.inbox import Message, object_key
from deploy.smoke.rehearsal import ATTRIBUTES, TEXT, NotChecked, Rehearsal, metadata
from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.processing_job import MonitorSettings, start_monitor

ODD_KEY = "smoke/a b+c=d%20é.txt"
ROLE_SECONDS, JOB_SECONDS = 60.0, 960.0

# Assumptions that need more than one account's APIs and an hour, and why.
NOT_CHECKED = {
    "a failed update leaves the endpoint InService on its former config, with FailureReason": "SageMaker takes up to "
    "an hour to give up on a container",
    "CreateMonitoringSchedule is refused to new accounts": "the answer depends on the account's history",
    "an update to a config with a volume key needs kms:CreateGrant for the caller": "it needs a KMS key and a change "
    "of its policy",
    "a model of a ModelPackageName takes no Environment": "it needs a registered model package",
    "AsyncInferenceConfig cannot be removed by an update": "it needs a second endpoint",
    "one side of a record is absent where CaptureOptions lists one": "it needs a second deployment of the endpoint",
    "metrics in /opt/ml/output/metrics/cloudwatch are published for plain jobs": "the monitor writes none there",
    "chat applications drop messages of another format": "it needs a chat channel",
}

Outcome = tuple[bool, str]  # whether the assumption holds, and what was seen
Check = Callable[[Rehearsal], Outcome]


@dataclass(frozen=True)
class Assumption:
    """What Glassbox assumes of AWS, and its check."""

    text: str
    check: Check


BEFORE_DEPLOY: list[Assumption] = []
AFTER_DEPLOY: list[Assumption] = []  # in the order of the checks


def assumption(text: str, into: list[Assumption] = AFTER_DEPLOY) -> Callable[[Check], Check]:
    """Register a function as the check of an assumption."""

    def register(check: Check) -> Check:
        into.append(Assumption(text, check))
        return check

    return register


@assumption("a queue policy with two resources in a statement is refused", into=BEFORE_DEPLOY)
def one_resource_a_statement(rehearsal: Rehearsal) -> Outcome:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": [rehearsal.inbox.arn, f"{rehearsal.inbox.arn}-dlq"],
    }
    try:
        rehearsal.inbox.set_policy(statement)
    except ClientError as error:
        return True, f"refused, {_error(error)}"
    rehearsal.inbox.reset_policy()
    return False, "accepted"


@assumption("an alarm's notification reaches the encrypted topic")
def alarm_to_topic(rehearsal: Rehearsal) -> Outcome:
    cloudwatch = rehearsal.client("cloudwatch")
    found = rehearsal.client("cloudformation").describe_stack_resources(StackName=rehearsal.name)
    alarm = next(
        resource["PhysicalResourceId"]
        for resource in found["StackResources"]
        if resource["ResourceType"] == "AWS::CloudWatch::Alarm"
    )
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="OK", StateReason="smoke")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="smoke")
    arrived = rehearsal.inbox.find(
        lambda m: alarm in m.get("Message", "") and '"ALARM"' in m["Message"], rehearsal.patience
    )
    items = cloudwatch.describe_alarm_history(AlarmName=alarm, HistoryItemType="Action")["AlarmHistoryItems"]
    action = items[0]["HistorySummary"] if items else "no action in the alarm's history"
    return bool(arrived), f"{action}; the notification {'arrived' if arrived else 'did not arrive'}"


@assumption("an npy body is captured as BASE64, a JSON response as text, byte for byte")
def captured_bodies(rehearsal: Rehearsal) -> Outcome:
    data = rehearsal.traffic.record["captureData"]
    request, response = data["endpointInput"], data["endpointOutput"]
    same_request = base64.b64decode(request["data"]) == rehearsal.traffic.body
    same_response = _bytes(response) == rehearsal.traffic.answer
    encodings = (request["encoding"], response["encoding"])
    seen = f"input {encodings[0]}, {_equal(same_request)}; output {encodings[1]}, {_equal(same_response)}"
    return encodings == ("BASE64", "JSON") and same_request and same_response, seen


@assumption("a text body is captured byte for byte")
def captured_text(rehearsal: Rehearsal) -> Outcome:
    if not rehearsal.traffic.text_records:
        raise NotChecked("the refused text request has no record")
    request = rehearsal.traffic.text_records[0]["endpointInput"]
    same = _bytes(request) == TEXT
    return same, f"{request['encoding']}, {_equal(same)}"


@assumption("an error response is captured with its body, with null, or not at all")
def captured_refusal(rehearsal: Rehearsal) -> Outcome:
    captured = [data.get("endpointOutput") for data in rehearsal.traffic.text_records]
    return True, f"captured as {json.dumps(captured[0])[:200]}" if captured else "not captured"


@assumption("customAttributes is the request's, verbatim, as one element")
def custom_attributes(rehearsal: Rehearsal) -> Outcome:
    found = metadata(rehearsal.traffic.record).get("customAttributes")
    return found == [ATTRIBUTES], json.dumps(found)


@assumption("eventMetadata has eventId and inferenceTime, other members are ignored")
def metadata_members(rehearsal: Rehearsal) -> Outcome:
    found = set(metadata(rehearsal.traffic.record))
    return {"eventId", "inferenceTime"} <= found, ", ".join(sorted(found))


@assumption("a capture file is written once")
def written_once(rehearsal: Rehearsal) -> Outcome:
    _ = rehearsal.traffic
    # S3 may deliver an event twice; a second write of a file has another sequencer
    sequencers: dict[str, set[str | None]] = {key: set() for key in rehearsal.captured_keys()}
    for message in rehearsal.inbox.messages:
        if (key := object_key(message)) in sequencers:
            sequencers[key].add(message["detail"]["object"].get("sequencer"))
    rewritten = [key for key, found in sequencers.items() if len(found) > 1]
    return not rewritten, f"{len(sequencers)} files, {len(rewritten)} of them written again"


@assumption("the key in an S3 event is raw, not URL-encoded")
def key_in_events(rehearsal: Rehearsal) -> Outcome:
    rehearsal.client("s3").put_object(Bucket=rehearsal.bucket, Key=ODD_KEY, Body=b"smoke")
    found = rehearsal.inbox.find(lambda m: object_key(m).startswith("smoke"), rehearsal.patience)
    if not found:
        raise NotChecked(f"no event of the object arrived within {rehearsal.patience:.0f} s")
    return object_key(found[0]) == ODD_KEY, object_key(found[0])


@assumption("a missing object without ListBucket answers 403")
def missing_object(rehearsal: Rehearsal) -> Outcome:
    iam, role = rehearsal.client("iam"), f"{rehearsal.name}-reader"
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{rehearsal.partition}:iam::{rehearsal.account}:root"},
        "Action": "sts:AssumeRole",
    }
    read = {
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": f"arn:{rehearsal.partition}:s3:::{rehearsal.bucket}/*",
    }
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=_policy(trust))["Role"]["Arn"]
    rehearsal.undo(f"role {role}", iam.delete_role, RoleName=role)
    iam.put_role_policy(RoleName=role, PolicyName="read", PolicyDocument=_policy(read))
    rehearsal.undo(f"policy of role {role}", iam.delete_role_policy, RoleName=role, PolicyName="read")
    s3 = _client_of_role(arn, rehearsal)

    def allowed() -> bool:
        with contextlib.suppress(ClientError):
            s3.get_object(Bucket=rehearsal.bucket, Key=ODD_KEY)["Body"].read()
            return True
        return False

    # S3 refuses every request until IAM has propagated the policy
    if not poll(allowed, min(ROLE_SECONDS, rehearsal.patience)):
        raise NotChecked("the role could not read an existing object")
    try:
        s3.get_object(Bucket=rehearsal.bucket, Key="smoke/none")
    except ClientError as error:
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return status == 403, f"{status} {error.response['Error']['Code']}"
    return False, "no error"


def _client_of_role(arn: str, rehearsal: Rehearsal) -> Any:
    """Return an S3 client with a role's credentials. Raises NotChecked if STS refuses the role."""
    refusals: list[str] = []

    def credentials() -> dict[str, str]:
        try:
            answer = rehearsal.client("sts").assume_role(RoleArn=arn, RoleSessionName="smoke")
        except ClientError as error:  # IAM has not propagated the role yet
            refusals.append(_error(error))
            return {}
        found: dict[str, str] = answer["Credentials"]
        return found

    found = poll(credentials, min(ROLE_SECONDS, rehearsal.patience))
    if not found:
        raise NotChecked(f"STS did not let the role be assumed, {refusals[-1]}")
    return rehearsal.session.client(
        "s3",
        aws_access_key_id=found["AccessKeyId"],
        aws_secret_access_key=found["SecretAccessKey"],
        aws_session_token=found["SessionToken"],
    )


@assumption("CreateModel accepts AdditionalModelDataSources with ModelDataUrl")
def additional_data(rehearsal: Rehearsal) -> Outcome:
    sagemaker, name = rehearsal.client("sagemaker"), f"{rehearsal.name}-additional"
    plain = sagemaker.describe_endpoint_config(EndpointConfigName=rehearsal.stack.outputs.plain_config)
    model = sagemaker.describe_model(ModelName=plain["ProductionVariants"][0]["ModelName"])
    data = model["PrimaryContainer"]["ModelDataUrl"]
    source = {"S3Uri": data, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    container = {
        "Image": model["PrimaryContainer"]["Image"],
        "ModelDataUrl": data,
        "AdditionalModelDataSources": [{"ChannelName": "glassbox", "S3DataSource": source}],
    }
    rehearsal.undo(f"model {name}", sagemaker.delete_model, ModelName=name)
    try:
        sagemaker.create_model(
            ModelName=name, ExecutionRoleArn=model["ExecutionRoleArn"], PrimaryContainer=container
        )
    except ClientError as error:
        return False, f"refused, {_error(error)}"
    return True, "accepted by CreateModel"


@assumption("an update ends InService on the wanted config")
def swap(rehearsal: Rehearsal) -> Outcome:
    sagemaker, hooked = rehearsal.client("sagemaker"), rehearsal.stack.outputs.hooked_config
    arn = sagemaker.describe_endpoint(EndpointName=rehearsal.name)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox:smoke", "Value": "rehearsal"}])
    began = time.monotonic()
    sagemaker.update_endpoint(
        EndpointName=rehearsal.name, EndpointConfigName=hooked, RetainAllVariantProperties=True
    )
    after = rehearsal.settled()
    ok = (after["EndpointStatus"], after["EndpointConfigName"]) == ("InService", hooked)
    seen = (
        f"{after['EndpointStatus']} on {after['EndpointConfigName']} after {time.monotonic() - began:.0f} s"
    )
    return ok, seen


@assumption("an update to the same config is refused or redeploys")
def same_config(rehearsal: Rehearsal) -> Outcome:
    live = rehearsal.settled()["EndpointConfigName"]
    try:
        rehearsal.client("sagemaker").update_endpoint(EndpointName=rehearsal.name, EndpointConfigName=live)
    except ClientError as error:
        return True, f"refused, {_error(error)}"
    return True, f"accepted, {rehearsal.settled()['EndpointStatus']} again on {live}"


@assumption("endpoint events name the config, and the status in UPPER_SNAKE")
def endpoint_events(rehearsal: Rehearsal) -> Outcome:
    kind = "SageMaker Endpoint State Change"
    rehearsal.inbox.find(
        lambda m: m.get("detail", {}).get("EndpointStatus") == "IN_SERVICE", rehearsal.patience
    )
    found = rehearsal.events(kind)
    if not found:
        raise NotChecked(f"no {kind} arrived within {rehearsal.patience:.0f} s; such events are best effort")
    statuses = [m["detail"]["EndpointStatus"] for m in found]
    members = {"EndpointName", "EndpointArn", "EndpointConfigName", "EndpointStatus"}
    ok = all(status.isupper() for status in statuses) and all(members <= set(m["detail"]) for m in found)
    return ok, f"{', '.join(statuses)} with {', '.join(sorted(found[-1]['detail']))}"


@assumption("endpoint events carry the owner's tags, or none")
def endpoint_tags(rehearsal: Rehearsal) -> Outcome:
    found = rehearsal.events("SageMaker Endpoint State Change")
    if not found:
        raise NotChecked("no endpoint event arrived")
    return True, json.dumps(found[-1]["detail"].get("Tags", "no member Tags"))


@assumption("a job's event contains ExitMessage and Environment")
def job_event(rehearsal: Rehearsal) -> Outcome:
    name = _start_monitor(rehearsal)
    job = _finished(rehearsal, name)
    if job["ProcessingJobStatus"] != "Completed":
        return False, f"job {name} is {job['ProcessingJobStatus']}: {job.get('FailureReason', '')}"

    def ended(message: Message) -> bool:
        detail = message.get("detail", {})
        return (detail.get("ProcessingJobName"), detail.get("ProcessingJobStatus")) == (name, "Completed")

    found = rehearsal.inbox.find(ended, rehearsal.patience)
    if not found:
        raise NotChecked(
            f"no event of job {name} arrived within {rehearsal.patience:.0f} s; such events are best effort"
        )
    detail = found[0]["detail"]
    isolated = detail.get("NetworkConfig", {}).get("EnableNetworkIsolation")
    environment = detail.get("Environment", {})
    same_endpoint = environment.get("sagemaker_endpoint_name") == rehearsal.name
    return "Completed" in detail.get("ExitMessage", "") and same_endpoint, (
        f"ExitMessage {detail.get('ExitMessage')!r}, Environment with {len(environment)} entries, "
        f"EnableNetworkIsolation {isolated!r}, MonitoringScheduleArn {detail.get('MonitoringScheduleArn')!r}"
    )


def _start_monitor(rehearsal: Rehearsal) -> str:
    """Start the monitor for the current hour, as start_monitor does for the last one; return the job's name."""
    image = rehearsal.stack.parameters.get("MonitorImage")
    if not image:
        raise NotChecked("no monitor image was pushed (make images, make push)")
    _ = rehearsal.traffic
    role = rehearsal.client("iam").get_role(
        RoleName=stack.resource(rehearsal.name, "MonitorRole", rehearsal.client("cloudformation"))
    )
    settings = MonitorSettings(
        threshold=1.0,
        endpoint_name=rehearsal.name,
        capture_bucket=rehearsal.bucket,
        capture_prefix=rehearsal.stack.parameters.get("CapturePrefix", "capture"),
        bucket=rehearsal.bucket,
        monitor_image=image,
        monitor_role_arn=role["Role"]["Arn"],
        replay_key_arn=rehearsal.stack.outputs.replay_key_arn,
    )
    started = start_monitor(
        datetime.now(UTC) + timedelta(hours=1),
        settings=settings,
        replay_key=ReplayKey(rehearsal.client("kms"), settings.replay_key_arn).public,
        captures=Objects(rehearsal.client("s3")),
        jobs=ProcessingJobs(rehearsal.client("sagemaker")),
    )
    if started.job is None:
        raise NotChecked("the hour of the captures has ended: run again")
    rehearsal.undo(f"job {started.job}", _stop_job, rehearsal=rehearsal, name=started.job)
    return started.job


@assumption("a job with an empty S3 prefix fails")
def job_without_data(rehearsal: Rehearsal) -> Outcome:
    name, sagemaker = f"class-monitor-{rehearsal.name}-empty", rehearsal.client("sagemaker")
    like = sagemaker.describe_processing_job(ProcessingJobName=_start_monitor(rehearsal))
    kept = ("AppSpecification", "RoleArn", "ProcessingResources", "StoppingCondition", "Environment")
    prefix = rehearsal.stack.parameters.get("CapturePrefix", "capture")
    empty = {
        "S3Uri": f"s3://{rehearsal.bucket}/{prefix}/{rehearsal.name}/none",
        "LocalPath": "/opt/ml/processing/input/endpoint",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
    }
    sagemaker.create_processing_job(
        ProcessingJobName=name,
        ProcessingInputs=[{"InputName": "capture", "S3Input": empty}],
        **{member: like[member] for member in kept if member in like},
    )
    rehearsal.undo(f"job {name}", _stop_job, rehearsal=rehearsal, name=name)
    job = _finished(rehearsal, name)
    status = job["ProcessingJobStatus"]
    return status == "Failed", f"{status} {job.get('FailureReason', '')}"


def _stop_job(rehearsal: Rehearsal, name: str) -> None:
    sagemaker = rehearsal.client("sagemaker")
    if sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] == "InProgress":
        sagemaker.stop_processing_job(ProcessingJobName=name)


def _finished(rehearsal: Rehearsal, name: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = rehearsal.client("sagemaker").describe_processing_job(ProcessingJobName=name)
        return job if job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped") else None

    if (job := poll(ended, rehearsal.patience + JOB_SECONDS)) is None:
        raise NotChecked(f"job {name} did not end in time")
    return job


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _error(error: ClientError) -> str:
    return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}"


def _bytes(side: dict[str, Any]) -> bytes:
    data: str = side["data"]
    return base64.b64decode(data) if side["encoding"] == "BASE64" else data.encode()


def _equal(same: bool) -> str:
    return "byte for byte" if same else "with other bytes"
