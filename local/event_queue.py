"""A queue that receives what a topic and EventBridge rules deliver: how clients observe the stack."""

from __future__ import annotations

import json
from typing import Any, Protocol


class Clients(Protocol):
    """An embedded AWS, or a stack on it."""

    def client(self, service: str) -> Any:
        """Return a boto3 client."""


class EventQueue:
    """An SQS queue to which SNS and EventBridge may send."""

    def __init__(self, aws: Clients, name: str) -> None:
        self._aws, self._sqs, self._name = aws, aws.client("sqs"), name
        self._url = self._sqs.create_queue(QueueName=name)["QueueUrl"]
        described = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        self._arn = described["Attributes"]["QueueArn"]
        allow = {
            "Effect": "Allow",
            "Principal": {"Service": ["sns.amazonaws.com", "events.amazonaws.com"]},
            "Action": "sqs:SendMessage",
            "Resource": self._arn,
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        self._sqs.set_queue_attributes(QueueUrl=self._url, Attributes={"Policy": policy})

    def subscribe(self, topic_arn: str) -> None:
        """Subscribe the queue to a topic."""
        self._aws.client("sns").subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=self._arn)

    def add_rule(self, pattern: dict[str, Any]) -> None:
        """Send the events of the default bus that match the pattern to the queue."""
        events, rule = self._aws.client("events"), f"{self._name}-rule"
        events.put_rule(Name=rule, EventPattern=json.dumps(pattern))
        events.put_targets(Rule=rule, Targets=[{"Id": "queue", "Arn": self._arn}])

    def receive(self) -> list[dict[str, Any]]:
        """Return at most 10 messages, with their SentTimestamp, and delete them."""
        answer = self._sqs.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, AttributeNames=["SentTimestamp"]
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        for message in messages:
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return messages
