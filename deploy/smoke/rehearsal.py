"""The throw-away stack of `make smoke`: deploy it, send requests, and remove all that was created."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from deploy import ROOT, DeployError, stack
from deploy.account import account_id, models_bucket
from deploy.polling import poll
from deploy.smoke.inbox import Inbox, Message, object_key
from deploy.stack import Stack

UPDATE_SECONDS = 3600.0  # SageMaker ends an endpoint's update within an hour
ATTRIBUTES = 'team=a&b; note="caf%C3%A9", x=1'
TEXT = b'5.1,"caf\xc3\xa9"\r\n\t0.20 ,1e-3\n'
MISSING = (
    "NoSuch",
    "NotFound",
    "NonExistent",
    "NoSuchEntity",
    "ResourceNotFound",
    "does not exist",
    "could not find",
)


class NotChecked(Exception):  # noqa: N818 (an outcome, no error)
    """A check has no result, for the reason in the message."""


@dataclass(frozen=True)
class Traffic:
    """An image request with its answer, and the capture records of it and of a text request."""

    body: bytes
    answer: bytes
    records: list[dict[str, Any]]

    @property
    def record(self) -> dict[str, Any]:
        """The record of the request that carried an inference id."""
        return next(record for record in self.records if metadata(record).get("inferenceId"))

    @property
    def text_records(self) -> list[dict[str, Any]]:
        """The capture data of the text request."""
        captured = [record["captureData"] for record in self.records]
        return [data for data in captured if "text/csv" in json.dumps(data)]


@dataclass
class Rehearsal:
    """The throw-away stack ``name``, and the calls that remove everything in reverse order.

    ``patience`` is how many seconds AWS may take to deliver. ``left`` collects what could not be removed.
    """

    name: str
    session: boto3.Session
    patience: float
    left: list[str] = field(default_factory=list)
    model: str = ""

    def __post_init__(self) -> None:
        self.account = account_id(self.session)
        self.partition = self.session.get_partition_for_region(self.session.region_name)
        self._undo = contextlib.ExitStack()

    def client(self, service: str) -> Any:
        """Return a boto3 client."""
        return self.session.client(service)

    def undo(self, what: str, call: Callable[..., Any], **arguments: Any) -> None:
        """Make a call at the end, and record a failure unless the resource is missing."""
        self._undo.callback(self._try, what, functools.partial(call, **arguments))

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except (ClientError, BotoCoreError, DeployError) as error:
            if not any(text in str(error) for text in MISSING):
                self.left.append(f"{what}: {error}")

    def remove(self) -> None:
        """Undo everything, and ignore a second Ctrl-C."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(f"removing what was created for {self.name} …", flush=True)
        self._undo.close()
        for what in self.left:
            print(f"LEFT: {what}")
        if not self.left:
            print("removed: everything except the records of processing jobs, which SageMaker keeps")

    # ---------------------------------------------------------------- the stack

    @functools.cached_property
    def stack(self) -> Stack:
        """The deployed stack."""
        return stack.existing(self.name, self.client("cloudformation"))

    @property
    def bucket(self) -> str:
        """The stack's bucket."""
        return self.stack.outputs.bucket

    @functools.cached_property
    def inbox(self) -> Inbox:
        """The queue for events and notifications."""
        inbox = Inbox(self.name, self.session)
        self.undo(f"queue {inbox.url}", inbox.sqs.delete_queue, QueueUrl=inbox.url)
        return inbox

    def listen(self, rule: str, pattern: dict[str, Any]) -> None:
        """Send the events of a pattern to the inbox."""
        events, full = self.client("events"), f"{self.name}-{rule}"
        self.undo(f"rule {full}", events.delete_rule, Name=full)
        events.put_rule(Name=full, EventPattern=json.dumps(pattern))
        self.undo(f"target of rule {full}", events.remove_targets, Rule=full, Ids=["inbox"])
        events.put_targets(Rule=full, Targets=[{"Id": "inbox", "Arn": self.inbox.arn}])

    def deploy(self, arguments: list[str]) -> None:
        """Run `make deploy` for a stack with its own endpoint and a bound that no traffic violates."""
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
        done = subprocess.run([*command, *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise DeployError(f"Stack {self.name}: make deploy failed, see its output above")
        sns, topic = self.client("sns"), self.stack.outputs.topic
        subscription = sns.subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=self.inbox.arn, ReturnSubscriptionArn=True
        )
        arn = subscription["SubscriptionArn"]
        self.undo(f"subscription {arn}", sns.unsubscribe, SubscriptionArn=arn)
        self.listen("objects", {"source": ["aws.s3"], "detail": {"bucket": {"name": [self.bucket]}}})

    def _remember_models(self) -> None:
        """Remove the model that `make deploy` uploads, unless it existed before or another stack uses it."""
        s3, bucket = self.client("s3"), models_bucket(self.session)
        before: set[str] | None
        try:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="glassbox/")
            before = {item["Key"] for page in pages for item in page.get("Contents", ())}
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
        """Return whether a stack has this model: models with the same content share one key."""
        stacks = stack.all_stacks(self.client("cloudformation"))
        return any(found.parameters.get("ModelDataUrl") == model for found in stacks)

    def _delete_stack(self) -> None:
        """Delete the stack in any state, and the buckets and tables that its template retains."""
        cloudformation = self.client("cloudformation")
        found = stack.describe(self.name, cloudformation)
        if found is None:
            return
        self.model = found.parameters.get("ModelDataUrl", "")
        with contextlib.suppress(ClientError, DeployError):
            self.settled()  # SageMaker does not delete an endpoint during its update
        resources = cloudformation.describe_stack_resources(StackName=self.name)["StackResources"]
        created = [(r["ResourceType"], r.get("PhysicalResourceId", "")) for r in resources]
        stack.delete(self.name, cloudformation)
        for kind, name in created:
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

    # ---------------------------------------------------------------- the endpoint

    def settled(self) -> dict[str, Any]:
        """Describe the endpoint when no update of it is in progress."""
        sagemaker = self.client("sagemaker")

        def described() -> dict[str, Any] | None:
            endpoint: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=self.name)
            return None if endpoint["EndpointStatus"].endswith("ing") else endpoint

        if (endpoint := poll(described, UPDATE_SECONDS)) is None:
            raise DeployError(
                f"Endpoint {self.name}: expected InService, got an update for {UPDATE_SECONDS:.0f} s"
            )
        return endpoint

    @functools.cached_property
    def traffic(self) -> Traffic:
        """Send an image and a text, and wait for the capture records.

        Raises:
            NotChecked: no records arrived.
        """
        runtime, image = self.client("sagemaker-runtime"), io.BytesIO()
        np.save(image, np.full((48, 48, 3), 120, np.uint8))
        body = image.getvalue()
        response = runtime.invoke_endpoint(
            EndpointName=self.name,
            ContentType="application/x-npy",
            Body=body,
            CustomAttributes=ATTRIBUTES,
            InferenceId=f"{self.name}-id",
        )
        answer = response["Body"].read()
        with contextlib.suppress(ClientError):  # the sample model refuses text
            runtime.invoke_endpoint(EndpointName=self.name, ContentType="text/csv", Body=TEXT)
        records = poll(self._records, self.patience, interval=0.0)
        if not records:
            raise NotChecked(f"no capture file arrived within {self.patience:.0f} s")
        return Traffic(body, answer, records)

    def _records(self) -> list[dict[str, Any]]:
        """Read the capture files; empty until the image's record is there."""
        self.inbox.receive()
        lines = [line for key in sorted(set(self.captured_keys())) for line in self._read(key).splitlines()]
        records = [json.loads(line) for line in lines if line]
        return records if any(metadata(record).get("inferenceId") for record in records) else []

    def captured_keys(self) -> list[str]:
        """Return the keys of the capture files in the received events, once per event."""
        keys = map(object_key, self.inbox.messages)
        return [key for key in keys if f"/{self.name}/" in key and key.endswith(".jsonl")]

    def _read(self, key: str) -> str:
        found = self.client("s3").get_object(Bucket=self.bucket, Key=key)
        return str(found["Body"].read().decode())

    def events(self, detail_type: str) -> list[Message]:
        """Return the received events of a type."""
        return [m for m in self.inbox.messages if m.get("detail-type") == detail_type]


def metadata(record: dict[str, Any]) -> dict[str, Any]:
    """Return the eventMetadata of a capture record."""
    found: dict[str, Any] = record["eventMetadata"]
    return found
