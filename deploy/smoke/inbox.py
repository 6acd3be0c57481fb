"""An SQS queue that collects the events and notifications of a rehearsal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import boto3

from deploy.account import account_id
from deploy.polling import poll

Message = dict[str, Any]


class Inbox:
    """A queue for the EventBridge rules and topics named ``<name>-…``.

    ``messages`` keeps every received message.
    """

    def __init__(self, name: str, session: boto3.Session) -> None:
        account, region = account_id(session), session.region_name
        partition = session.get_partition_for_region(region)
        self.sqs = session.client("sqs")
        self.url = self.sqs.create_queue(QueueName=f"{name}-inbox")["QueueUrl"]
        self.arn = f"arn:{partition}:sqs:{region}:{account}:{name}-inbox"
        self.messages: list[Message] = []
        self._statements = [
            self._allow("events.amazonaws.com", f"arn:{partition}:events:{region}:{account}:rule/{name}-*"),
            self._allow("sns.amazonaws.com", f"arn:{partition}:sns:{region}:{account}:{name}-*"),
        ]
        self.reset_policy()

    def _allow(self, service: str, source: str) -> dict[str, Any]:
        return {
            "Effect": "Allow",
            "Principal": {"Service": service},
            "Action": "sqs:SendMessage",
            "Resource": self.arn,
            "Condition": {"ArnLike": {"aws:SourceArn": source}},
        }

    def set_policy(self, *statements: dict[str, Any]) -> None:
        """Replace the queue's policy."""
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"Policy": policy})

    def reset_policy(self) -> None:
        """Set the policy that the inbox needs."""
        self.set_policy(*self._statements)

    def find(self, matches: Callable[[Message], bool], seconds: float) -> list[Message]:
        """Return the matching messages, waiting at most ``seconds`` for the first."""

        def received() -> list[Message]:
            self.receive()
            return [message for message in self.messages if matches(message)]

        return poll(received, seconds, interval=0.0)

    def receive(self) -> None:
        """Receive up to ten messages, waiting two seconds for the first."""
        answer = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=2)
        for message in answer.get("Messages", ()):
            self.messages.append(json.loads(message["Body"]))
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])


def object_key(message: Message) -> str:
    """Return the object key of an S3 event, or an empty string."""
    return str(message.get("detail", {}).get("object", {}).get("key", ""))
