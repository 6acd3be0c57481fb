"""make smoke: rehearse on a throw-away stack what Glassbox assumes of AWS and no public source proves.

Each check prints one line: what is assumed, what was seen, and ok, DIFFERENT or why it was not checked. All that was
made is removed, also after Ctrl-C. The exit code is 1 where something is DIFFERENT, failed, or could not be removed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import io
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from deploy import DeployError, stack
from deploy.__main__ import _models_bucket
from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.monitoring.processing_job import MonitorSettings, start_monitor

PAUSE = 2.0
UPDATE_SECONDS = 3600.0  # the most that an endpoint's update takes
ATTRIBUTES = 'team=a&b; note="caf%C3%A9", x=1'
TEXT = b'5.1,"caf\xc3\xa9"\r\n\t0.20 ,1e-3\n'
ODD_KEY = "smoke/a b+c=d%20é.txt"
MISSING = (
    "NoSuch",
    "NotFound",
    "NonExistent",
    "NoSuchEntity",
    "ResourceNotFound",
    "does not exist",
    "could not find",
)

# What stands in the contracts as likely or unknown, and takes more than one account's APIs and an hour.
NOT_CHECKED = {
    "a failed update leaves the endpoint InService on its former config, with FailureReason": "SageMaker takes up to "
    "an hour to give up on a container",
    "CreateMonitoringSchedule is refused to new accounts": "the answer depends on the account's history",
    "an update to a config with a volume key needs kms:CreateGrant for the caller": "it takes a KMS key whose policy "
    "this tool would have to change",
    "a model of a ModelPackageName takes no Environment": "it takes a registered model package",
    "AsyncInferenceConfig cannot be removed by an update": "it takes a second endpoint",
    "one side of a record is absent where CaptureOptions lists one": "it takes a second deployment of the endpoint",
    "metrics in /opt/ml/output/metrics/cloudwatch are published for plain jobs": "the monitor writes none there",
    "chat applications drop messages of another form": "it takes a chat channel",
}


class NotChecked(Exception):  # noqa: N818 (an outcome, no error)
    """Why a check could not be made."""


Seen = tuple[bool, str]


class Inbox:
    """A queue behind EventBridge rules and the stack's topic; it keeps every message that came."""

    def __init__(self, name: str, account: str, region: str, partition: str, session: boto3.Session) -> None:
        self.sqs = session.client("sqs")
        self.url = self.sqs.create_queue(QueueName=f"{name}-inbox")["QueueUrl"]
        self.arn = f"arn:{partition}:sqs:{region}:{account}:{name}-inbox"
        self.messages: list[dict[str, Any]] = []
        rules = f"arn:{partition}:events:{region}:{account}:rule/{name}-*"
        self._allowed = [
            self._allow("events.amazonaws.com", rules),
            self._allow("sns.amazonaws.com", f"arn:{partition}:sns:{region}:{account}:{name}-*"),
        ]
        self.set_policy(self._allowed)

    def _allow(self, service: str, source: str) -> dict[str, Any]:
        return {
            "Effect": "Allow",
            "Principal": {"Service": service},
            "Action": "sqs:SendMessage",
            "Resource": self.arn,
            "Condition": {"ArnLike": {"aws:SourceArn": source}},
        }

    def set_policy(self, statements: list[dict[str, Any]] | None = None) -> None:
        """Set the queue's policy; by default the one that the inbox needs."""
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements or self._allowed})
        self.sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"Policy": policy})

    def find(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 0.0) -> list[dict[str, Any]]:
        """The messages that are wanted, as soon as there is one, or none after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            self.receive()
            found = [message for message in self.messages if wanted(message)]
            if found or time.monotonic() > deadline:
                return found

    def receive(self) -> None:
        """Take up to ten messages, waiting two seconds for the first."""
        answer = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=2)
        for message in answer.get("Messages", ()):
            self.messages.append(json.loads(message["Body"]))
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])


@dataclass
class Rehearsal:
    """The throw-away stack `name`, and what undoes all that was made for it, the latest first."""

    name: str
    session: boto3.Session
    patience: float
    left: list[str] = field(default_factory=list)
    model: str = ""

    def __post_init__(self) -> None:
        self.account = self.session.client("sts").get_caller_identity()["Account"]
        self.region = self.session.region_name
        self.partition = self.session.get_partition_for_region(self.region)
        self._undo = contextlib.ExitStack()

    def client(self, service: str) -> Any:
        return self.session.client(service)

    def undo(self, what: str, call: Callable[..., Any], **arguments: Any) -> None:
        """Undo something at the end; what fails for another reason than that it is gone is told as left."""
        self._undo.callback(self._try, what, functools.partial(call, **arguments))

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except (ClientError, BotoCoreError, DeployError) as error:
            if not any(text in str(error) for text in MISSING):
                self.left.append(f"{what}: {error}")

    def remove(self) -> None:
        """Undo everything. Another Ctrl-C does not stop it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(f"removing what was made for {self.name} …", flush=True)
        self._undo.close()
        for what in self.left:
            print(f"LEFT: {what}")
        if not self.left:
            print("removed: everything but the records of processing jobs, which SageMaker keeps")

    # -- the stack

    @functools.cached_property
    def outputs(self) -> dict[str, str]:
        return stack.existing(self.name, self.client("cloudformation"))[1]

    @functools.cached_property
    def parameters(self) -> dict[str, str]:
        return stack.existing(self.name, self.client("cloudformation"))[0]

    @functools.cached_property
    def inbox(self) -> Inbox:
        inbox = Inbox(self.name, self.account, self.region, self.partition, self.session)
        self.undo(f"queue {inbox.url}", inbox.sqs.delete_queue, QueueUrl=inbox.url)
        return inbox

    def listen(self, rule: str, pattern: dict[str, Any]) -> None:
        """Send events of a pattern to the inbox."""
        events, full = self.client("events"), f"{self.name}-{rule}"
        self.undo(f"rule {full}", events.delete_rule, Name=full)
        events.put_rule(Name=full, EventPattern=json.dumps(pattern))
        self.undo(f"target of rule {full}", events.remove_targets, Rule=full, Ids=["inbox"])
        events.put_targets(Rule=full, Targets=[{"Id": "inbox", "Arn": self.inbox.arn}])

    def deploy(self, arguments: list[str]) -> None:
        """`make deploy` of a stack with an endpoint of its own, which never reacts to its traffic."""
        self._remember_models()
        self.undo(f"stack {self.name}", self._delete_stack)
        command = [
            sys.executable,
            "-m",
            "deploy",
            "deploy",
            "--stack",
            self.name,
            "--threshold",
            "1",
            "--yes",
        ]
        done = subprocess.run([*command, *arguments], cwd=stack.ROOT, check=False)
        if done.returncode:
            raise DeployError(f"{self.name}: make deploy failed, see above")
        topic = self.outputs["Topic"]
        subscription = self.client("sns").subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=self.inbox.arn, ReturnSubscriptionArn=True
        )
        arn = subscription["SubscriptionArn"]
        self.undo(f"subscription {arn}", self.client("sns").unsubscribe, SubscriptionArn=arn)
        self.listen(
            "objects", {"source": ["aws.s3"], "detail": {"bucket": {"name": [self.outputs["Bucket"]]}}}
        )

    def _remember_models(self) -> None:
        """Remove the model that make deploy uploads for this stack, unless it was there before, or another stack's."""
        s3, bucket = self.client("s3"), _models_bucket(self.session)
        before: set[str] | None = set()
        try:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="glassbox/"):
                before |= {item["Key"] for item in page.get("Contents", ())}
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise
            before = None

        def remove() -> None:
            key = self.model.removeprefix(f"s3://{bucket}/")
            if self.model and key not in (before or ()) and not self._is_used(self.model):
                s3.delete_object(Bucket=bucket, Key=key)
            if before is None and not s3.list_objects_v2(Bucket=bucket, MaxKeys=1).get("Contents"):
                s3.delete_bucket(Bucket=bucket)

        self.undo(f"model in {bucket}", remove)

    def _is_used(self, model: str) -> bool:
        """Whether a stack is deployed with this model: it is named by its content, and so may be shared."""
        pages = self.client("cloudformation").get_paginator("describe_stacks").paginate()
        found = [stack.parameters_of(found) for page in pages for found in page["Stacks"]]
        return any(parameters.get("ModelDataUrl") == model for parameters in found)

    def _delete_stack(self) -> None:
        """Delete the stack in whatever state it is, with what its template keeps: buckets and tables."""
        cloudformation = self.client("cloudformation")
        found = stack.describe(self.name, cloudformation)
        if found is None:
            return
        self.model = stack.parameters_of(found).get("ModelDataUrl", "")
        with contextlib.suppress(ClientError, DeployError):
            self.settled()  # an endpoint that is updated cannot be deleted
        resources = cloudformation.describe_stack_resources(StackName=self.name)["StackResources"]
        made = [(r["ResourceType"], r.get("PhysicalResourceId", "")) for r in resources]
        stack.delete(self.name, cloudformation)
        for kind, name in made:
            if name and kind == "AWS::S3::Bucket":
                self._try(f"bucket {name}", functools.partial(self._delete_bucket, name))
            if name and kind == "AWS::DynamoDB::Table":
                table = functools.partial(self.client("dynamodb").delete_table, TableName=name)
                self._try(f"table {name}", table)
        logs = f"/aws/sagemaker/Endpoints/{self.name}"
        self._try(f"log group {logs}", lambda: self.client("logs").delete_log_group(logGroupName=logs))

    def _delete_bucket(self, name: str) -> None:
        s3 = self.client("s3")
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
            for item in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                s3.delete_object(Bucket=name, Key=item["Key"], VersionId=item["VersionId"])
        s3.delete_bucket(Bucket=name)

    # -- the endpoint

    def settled(self) -> dict[str, Any]:
        """The endpoint, once no update of it is in progress."""
        sagemaker, deadline = self.client("sagemaker"), time.monotonic() + UPDATE_SECONDS
        while True:
            endpoint: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=self.name)
            if not endpoint["EndpointStatus"].endswith("ing"):
                return endpoint
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{self.name} is {endpoint['EndpointStatus']} for over {UPDATE_SECONDS:.0f} s"
                )
            time.sleep(PAUSE)

    @functools.cached_property
    def traffic(self) -> dict[str, Any]:
        """What was sent, and the capture records of it; NotChecked where none arrived."""
        runtime, image = self.client("sagemaker-runtime"), io.BytesIO()
        np.save(image, np.full((48, 48, 3), 120, np.uint8))
        body = image.getvalue()
        request = {"EndpointName": self.name, "ContentType": "application/x-npy", "Body": body}
        answer = runtime.invoke_endpoint(
            **request, CustomAttributes=ATTRIBUTES, InferenceId=f"{self.name}-id"
        )
        sent = {"body": body, "answer": answer["Body"].read()}
        try:
            runtime.invoke_endpoint(EndpointName=self.name, ContentType="text/csv", Body=TEXT)
        except ClientError as error:
            sent["refusal"] = error.response["Error"]["Message"]
        records = self._records()
        if not records:
            raise NotChecked(f"no capture file arrived within {self.patience:.0f} s")
        return {**sent, "records": records}

    def _records(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            self.inbox.receive()
            lines = [line for key in sorted(set(self.captured())) for line in self._read(key).splitlines()]
            records = [json.loads(line) for line in lines if line]
            if any(_metadata(record).get("inferenceId") for record in records):
                return records
        return []

    def captured(self) -> list[str]:
        """The keys of the capture files that events named, once per event."""
        return [
            _key(m) for m in self.inbox.messages if f"/{self.name}/" in _key(m) and _key(m).endswith(".jsonl")
        ]

    def _read(self, key: str) -> str:
        found = self.client("s3").get_object(Bucket=self.outputs["Bucket"], Key=key)
        return str(found["Body"].read().decode())

    def record(self) -> dict[str, Any]:
        """The record of the request that carried an id."""
        records = self.traffic["records"]
        return next(record for record in records if _metadata(record).get("inferenceId"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """SageMaker's events of a kind that have arrived."""
        return [m for m in self.inbox.messages if m.get("detail-type") == kind]


def _key(message: dict[str, Any]) -> str:
    return str(message.get("detail", {}).get("object", {}).get("key", ""))


def _metadata(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["eventMetadata"]
    return found


# ---------------------------------------------------------------------------- the checks


def one_resource_a_statement(r: Rehearsal) -> Seen:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": [r.inbox.arn, f"{r.inbox.arn}-dlq"],
    }
    try:
        r.inbox.set_policy([statement])
    except ClientError as error:
        return True, f"refused, {_said(error)}"
    r.inbox.set_policy()
    return False, "accepted"


def captured_bodies(r: Rehearsal) -> Seen:
    data = r.record()["captureData"]
    given, answered = data["endpointInput"], data["endpointOutput"]
    same = base64.b64decode(given["data"]) == r.traffic["body"]
    text = _bytes(answered) == r.traffic["answer"]
    forms = (given["encoding"], answered["encoding"])
    seen = f"input {forms[0]}, {_equal(same)}; output {forms[1]}, {_equal(text)}"
    return forms == ("BASE64", "JSON") and same and text, seen


def captured_text(r: Rehearsal) -> Seen:
    found = [x["captureData"] for x in r.traffic["records"] if "text/csv" in json.dumps(x["captureData"])]
    if not found:
        raise NotChecked("the refused text request left no record")
    given = found[0]["endpointInput"]
    same = _bytes(given) == TEXT
    return same, f"{given['encoding']}, {_equal(same)}"


def captured_refusal(r: Rehearsal) -> Seen:
    answered = [
        x["captureData"].get("endpointOutput")
        for x in r.traffic["records"]
        if "text/csv" in json.dumps(x["captureData"])
    ]
    return True, f"captured as {json.dumps(answered[0])[:200]}" if answered else "not captured"


def custom_attributes(r: Rehearsal) -> Seen:
    found = _metadata(r.record()).get("customAttributes")
    return found == [ATTRIBUTES], json.dumps(found)


def metadata_members(r: Rehearsal) -> Seen:
    found = set(_metadata(r.record()))
    return {"eventId", "inferenceTime"} <= found, ", ".join(sorted(found))


def written_once(r: Rehearsal) -> Seen:
    keys = r.traffic and r.captured()
    again = {key for key in keys if keys.count(key) > 1}
    # an event may be delivered twice; a file that was appended to has another sequencer
    sequencers = {
        key: {m["detail"]["object"].get("sequencer") for m in r.inbox.messages if _key(m) == key}
        for key in again
    }
    appended = [key for key, found in sequencers.items() if len(found) > 1]
    return not appended, f"{len(set(keys))} files, {len(appended)} of them written again"


def key_in_events(r: Rehearsal) -> Seen:
    r.client("s3").put_object(Bucket=r.outputs["Bucket"], Key=ODD_KEY, Body=b"smoke")
    found = r.inbox.find(lambda m: _key(m).startswith("smoke"), r.patience)
    if not found:
        raise NotChecked(f"no event of the object came within {r.patience:.0f} s")
    return _key(found[0]) == ODD_KEY, _key(found[0])


def missing_object(r: Rehearsal) -> Seen:
    iam, role = r.client("iam"), f"{r.name}-reader"
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{r.partition}:iam::{r.account}:root"},
        "Action": "sts:AssumeRole",
    }
    read = {
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": f"arn:{r.partition}:s3:::{r.outputs['Bucket']}/*",
    }
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=_policy(trust))["Role"]["Arn"]
    r.undo(f"role {role}", iam.delete_role, RoleName=role)
    iam.put_role_policy(RoleName=role, PolicyName="read", PolicyDocument=_policy(read))
    r.undo(f"policy of role {role}", iam.delete_role_policy, RoleName=role, PolicyName="read")
    given = _assume(r, arn)
    s3 = r.session.client(
        "s3",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
    )
    deadline, answers = time.monotonic() + min(60.0, r.patience), []
    while time.monotonic() < deadline:  # until IAM knows the policy everywhere, everything is refused
        with contextlib.suppress(ClientError):
            s3.get_object(Bucket=r.outputs["Bucket"], Key=ODD_KEY)["Body"].read()
            break
        time.sleep(PAUSE)
    else:
        raise NotChecked("the role could not read an object that is there")
    try:
        s3.get_object(Bucket=r.outputs["Bucket"], Key="smoke/none")
    except ClientError as error:
        answers = [error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]]
    return answers[:1] == [403], " ".join(map(str, answers))


def _assume(r: Rehearsal, arn: str) -> dict[str, str]:
    deadline = time.monotonic() + min(60.0, r.patience)
    while True:
        try:
            answer = r.client("sts").assume_role(RoleArn=arn, RoleSessionName="smoke")
        except ClientError as error:
            if time.monotonic() > deadline:
                raise NotChecked(f"the role could not be assumed, {_said(error)}") from error
            time.sleep(PAUSE)
        else:
            found: dict[str, str] = answer["Credentials"]
            return found


def alarm_to_topic(r: Rehearsal) -> Seen:
    cloudwatch = r.client("cloudwatch")
    resources = r.client("cloudformation").describe_stack_resources(StackName=r.name)["StackResources"]
    alarm = next(x["PhysicalResourceId"] for x in resources if x["ResourceType"] == "AWS::CloudWatch::Alarm")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="OK", StateReason="smoke")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="smoke")
    arrived = r.inbox.find(lambda m: alarm in m.get("Message", "") and '"ALARM"' in m["Message"], r.patience)
    items = cloudwatch.describe_alarm_history(AlarmName=alarm, HistoryItemType="Action")["AlarmHistoryItems"]
    said = items[0]["HistorySummary"] if items else "no action in the alarm's history"
    return bool(arrived), f"{said}; the notification {'arrived' if arrived else 'did not arrive'}"


def additional_data(r: Rehearsal) -> Seen:
    sagemaker, name = r.client("sagemaker"), f"{r.name}-additional"
    plain = sagemaker.describe_endpoint_config(EndpointConfigName=r.outputs["PlainConfig"])
    model = sagemaker.describe_model(ModelName=plain["ProductionVariants"][0]["ModelName"])
    data = model["PrimaryContainer"]["ModelDataUrl"]
    source = {"S3Uri": data, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    container = {
        "Image": model["PrimaryContainer"]["Image"],
        "ModelDataUrl": data,
        "AdditionalModelDataSources": [{"ChannelName": "glassbox", "S3DataSource": source}],
    }
    r.undo(f"model {name}", sagemaker.delete_model, ModelName=name)
    try:
        sagemaker.create_model(
            ModelName=name, ExecutionRoleArn=model["ExecutionRoleArn"], PrimaryContainer=container
        )
    except ClientError as error:
        return False, f"refused, {_said(error)}"
    return True, "accepted by CreateModel"


def swap(r: Rehearsal) -> Seen:
    sagemaker, hooked = r.client("sagemaker"), r.outputs["HookedConfig"]
    arn = sagemaker.describe_endpoint(EndpointName=r.name)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox:smoke", "Value": "rehearsal"}])
    wanted = {"EndpointName": r.name, "EndpointConfigName": hooked, "RetainAllVariantProperties": True}
    began = time.monotonic()
    sagemaker.update_endpoint(**wanted)
    after = r.settled()
    ok = (after["EndpointStatus"], after["EndpointConfigName"]) == ("InService", hooked)
    seen = (
        f"{after['EndpointStatus']} on {after['EndpointConfigName']} after {time.monotonic() - began:.0f} s"
    )
    return ok, seen


def same_config(r: Rehearsal) -> Seen:
    live = r.settled()["EndpointConfigName"]
    try:
        r.client("sagemaker").update_endpoint(EndpointName=r.name, EndpointConfigName=live)
    except ClientError as error:
        return True, f"refused, {_said(error)}"
    return True, f"accepted, {r.settled()['EndpointStatus']} again on {live}"


def endpoint_events(r: Rehearsal) -> Seen:
    kind = "SageMaker Endpoint State Change"
    r.inbox.find(lambda m: m.get("detail", {}).get("EndpointStatus") == "IN_SERVICE", r.patience)
    found = r.events(kind)
    if not found:
        raise NotChecked(f"no {kind} came within {r.patience:.0f} s; such events are best effort")
    statuses = [m["detail"]["EndpointStatus"] for m in found]
    members = {"EndpointName", "EndpointArn", "EndpointConfigName", "EndpointStatus"}
    ok = all(status.isupper() for status in statuses) and all(members <= set(m["detail"]) for m in found)
    return ok, f"{', '.join(statuses)} with {', '.join(sorted(found[-1]['detail']))}"


def endpoint_tags(r: Rehearsal) -> Seen:
    found = r.events("SageMaker Endpoint State Change")
    if not found:
        raise NotChecked("no endpoint event came")
    return True, json.dumps(found[-1]["detail"].get("Tags", "no member Tags"))


def job_event(r: Rehearsal) -> Seen:
    name = _start_monitor(r)
    job = _finished(r, name)
    if job["ProcessingJobStatus"] != "Completed":
        return False, f"job {name} is {job['ProcessingJobStatus']}: {job.get('FailureReason', '')}"

    def ended(message: dict[str, Any]) -> bool:
        detail = message.get("detail", {})
        return detail.get("ProcessingJobName") == name and detail.get("ProcessingJobStatus") == "Completed"

    found = r.inbox.find(ended, r.patience)
    if not found:
        raise NotChecked(
            f"no event of job {name} came within {r.patience:.0f} s; such events are best effort"
        )
    detail = found[0]["detail"]
    isolated = detail.get("NetworkConfig", {}).get("EnableNetworkIsolation")
    ok = "Completed" in detail.get("ExitMessage", "") and detail.get("Environment", {}).get(
        "sagemaker_endpoint_name"
    ) == (r.name)
    return ok, (
        f"ExitMessage {detail.get('ExitMessage')!r}, Environment with {len(detail.get('Environment', {}))} entries, "
        f"EnableNetworkIsolation {isolated!r}, MonitoringScheduleArn {detail.get('MonitoringScheduleArn')!r}"
    )


def _start_monitor(r: Rehearsal) -> str:
    """Start the monitor over the present hour, as its function does over the last one."""
    image = r.parameters.get("MonitorImage")
    if not image:
        raise NotChecked("no monitor image was pushed (make images, make push)")
    if not r.traffic["records"]:
        raise NotChecked("there are no captures")
    role = r.client("iam").get_role(
        RoleName=stack.resource(r.name, "MonitorRole", r.client("cloudformation"))
    )
    settings = MonitorSettings(
        threshold=1.0,
        endpoint_name=r.name,
        capture_bucket=r.outputs["Bucket"],
        capture_prefix=r.parameters.get("CapturePrefix", "capture"),
        bucket=r.outputs["Bucket"],
        monitor_image=image,
        monitor_role_arn=role["Role"]["Arn"],
        replay_key_arn=r.outputs["ReplayKeyArn"],
    )
    started = start_monitor(
        datetime.now(UTC) + timedelta(hours=1),
        settings=settings,
        replay_key=ReplayKey(r.client("kms"), settings.replay_key_arn).public,
        captures=Objects(r.client("s3")),
        jobs=ProcessingJobs(r.client("sagemaker")),
    )
    if started.job is None:
        raise NotChecked("the hour of the captures is over: run again")
    r.undo(f"job {started.job}", _stop_job, r=r, name=started.job)
    return started.job


def job_without_data(r: Rehearsal) -> Seen:
    name, sagemaker = f"class-monitor-{r.name}-empty", r.client("sagemaker")
    like = sagemaker.describe_processing_job(ProcessingJobName=_start_monitor(r))
    kept = ("AppSpecification", "RoleArn", "ProcessingResources", "StoppingCondition", "Environment")
    empty = {
        "S3Uri": f"s3://{r.outputs['Bucket']}/{r.parameters.get('CapturePrefix', 'capture')}/{r.name}/none",
        "LocalPath": "/opt/ml/processing/input/endpoint",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
    }
    sagemaker.create_processing_job(
        ProcessingJobName=name,
        ProcessingInputs=[{"InputName": "capture", "S3Input": empty}],
        **{member: like[member] for member in kept if member in like},
    )
    r.undo(f"job {name}", _stop_job, r=r, name=name)
    job = _finished(r, name)
    return job[
        "ProcessingJobStatus"
    ] == "Failed", f"{job['ProcessingJobStatus']} {job.get('FailureReason', '')}"


def _stop_job(r: Rehearsal, name: str) -> None:
    sagemaker = r.client("sagemaker")
    if sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] == "InProgress":
        sagemaker.stop_processing_job(ProcessingJobName=name)


def _finished(r: Rehearsal, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + max(r.patience, 60.0) + 900.0
    while time.monotonic() < deadline:
        job: dict[str, Any] = r.client("sagemaker").describe_processing_job(ProcessingJobName=name)
        if job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"):
            return job
        time.sleep(PAUSE)
    raise NotChecked(f"job {name} did not end in time")


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _said(error: ClientError) -> str:
    return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}"


def _bytes(side: dict[str, Any]) -> bytes:
    data: str = side["data"]
    return base64.b64decode(data) if side["encoding"] == "BASE64" else data.encode()


def _equal(same: bool) -> str:
    return "byte for byte" if same else "with other bytes"


# In the order in which they are made: what is assumed, and the check. Before the deployment, and after.
BEFORE: list[tuple[str, Callable[[Rehearsal], Seen]]] = [
    ("a queue policy with two resources in a statement is refused", one_resource_a_statement),
]
AFTER: list[tuple[str, Callable[[Rehearsal], Seen]]] = [
    ("an alarm's notification reaches the encrypted topic", alarm_to_topic),
    ("an npy body is captured as BASE64, a JSON answer as text, byte for byte", captured_bodies),
    ("a text body is captured byte for byte", captured_text),
    ("an error answer is captured with its body, with null, or not at all", captured_refusal),
    ("customAttributes is the request's, verbatim, as one element", custom_attributes),
    ("eventMetadata has eventId and inferenceTime, other members are ignored", metadata_members),
    ("a capture file is written once", written_once),
    ("the key in an S3 event is raw, not URL-encoded", key_in_events),
    ("a missing object without ListBucket answers 403", missing_object),
    ("AdditionalModelDataSources may stand beside ModelDataUrl", additional_data),
    ("an update ends InService on the wanted config", swap),
    ("an update to the same config is refused or redeploys", same_config),
    ("endpoint events name the config, and the status in UPPER_SNAKE", endpoint_events),
    ("endpoint events carry the owner's tags, or none", endpoint_tags),
    ("a job's event holds ExitMessage and Environment", job_event),
    ("a job with an empty S3 prefix fails", job_without_data),
]


def check(r: Rehearsal, checks: list[tuple[str, Callable[[Rehearsal], Seen]]]) -> Iterator[bool]:
    """Make the checks and print a line each; whether each is other than assumed."""
    for assumed, make in checks:
        different = False
        try:
            ok, seen = make(r)
            different, verdict = not ok, f"seen: {seen}; {'ok' if ok else 'DIFFERENT'}"
        except NotChecked as reason:
            verdict = f"seen: nothing; not checked because {reason}"
        except (ClientError, BotoCoreError, GlassboxError) as error:
            verdict = f"seen: nothing; not checked because of {error}"
        print(f"assumed: {assumed}; {' '.join(verdict.split())}", flush=True)
        yield different


def rehearse(r: Rehearsal, arguments: list[str]) -> int:
    """Deploy, check and remove; the number of assumptions that do not hold."""
    try:
        different = list(check(r, BEFORE))
        r.listen("endpoints", {"source": ["aws.sagemaker"], "detail": {"EndpointName": [r.name]}})
        jobs = {"ProcessingJobName": [{"prefix": f"class-monitor-{r.name}"}]}
        r.listen("jobs", {"source": ["aws.sagemaker"], "detail": jobs})
        r.deploy(arguments)
        different += check(r, AFTER)
        for assumed, reason in NOT_CHECKED.items():
            print(f"assumed: {assumed}; seen: nothing; not checked because {reason}")
        return sum(different)
    finally:
        r.remove()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="make smoke", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--image", default="", help="serving image (default: what make push pushed)")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds that AWS may take to deliver")
    parser.add_argument("--set", nargs="*", default=[], metavar="Parameter=value", help="of the stack")
    options = parser.parse_args()
    session, name = boto3.Session(), f"glassbox-smoke-{secrets.token_hex(3)}"
    if not session.region_name:
        sys.exit("No region is set: AWS_REGION=… names one")
    signal.signal(signal.SIGTERM, _interrupt)
    print(
        f"Stack {name}: takes about an hour on AWS, with one or two instances at a time. Ctrl-C removes it."
    )
    given = ["--image", options.image] if options.image else []
    given += ["--set", *options.set] if options.set else []
    r = Rehearsal(name, session, options.patience)
    try:
        different = rehearse(r, given)
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except (DeployError, ClientError, BotoCoreError) as error:
        sys.exit(str(error))
    print(f"{different} of {len(BEFORE) + len(AFTER)} assumptions are DIFFERENT")
    sys.exit(1 if different or r.left else 0)


if __name__ == "__main__":
    main()
