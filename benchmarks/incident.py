"""An incident on the embedded AWS, by the events on its bus: how long each reaction takes, cold and warm.

What is between two of SageMaker's events is the stack's own: an update takes seconds here and minutes on AWS.
"""

import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from benchmarks.side_by_side import row, show
from demo import signs
from local.stack import Stack, running_stack

PARAMETERS = {"MaxClassShare": "0.5", "CooldownMinutes": "0"}
REQUESTS, PATIENCE = 70, 120.0
HEATMAPS = 16  # MaxFlaggedReplays and MaxComparisonReplays, by default


class Bus:
    """Every event of the default bus, with the time at which it was sent to a queue."""

    def __init__(self, stack: Stack) -> None:
        self._sqs, events = stack.client("sqs"), stack.client("events")
        self._url = self._sqs.create_queue(QueueName="everything")["QueueUrl"]
        asked = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        arn = asked["Attributes"]["QueueArn"]
        allow = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        self._sqs.set_queue_attributes(QueueUrl=self._url, Attributes={"Policy": policy})
        pattern = json.dumps({"source": ["aws.s3", "aws.sagemaker", "glassbox"]})
        events.put_rule(Name="everything", EventPattern=pattern)
        events.put_targets(Rule="everything", Targets=[{"Id": "queue", "Arn": arn}])
        self.seen: list[tuple[float, dict[str, Any]]] = []

    def times(self, is_one: Callable[[dict[str, Any]], bool], n: int = 1) -> list[float]:
        """Waits for ``n`` events; when each was sent, in seconds."""
        deadline = time.monotonic() + PATIENCE
        while len(found := [at for at, event in self.seen if is_one(event)]) < n:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {n} events within {PATIENCE:g} s")
            answer = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                AttributeNames=["SentTimestamp"],
            )
            for message in answer.get("Messages", ()):
                sent = int(message["Attributes"]["SentTimestamp"]) / 1000
                self.seen.append((sent, json.loads(message["Body"])))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
            self.seen.sort(key=lambda one: one[0])
        return found


def _object(prefix: str, suffix: str) -> Callable[[dict[str, Any]], bool]:
    def matches(event: dict[str, Any]) -> bool:
        key = event["detail"].get("object", {}).get("key", "")
        return event["detail-type"] == "Object Created" and key.startswith(prefix) and key.endswith(suffix)

    return matches


def _state(status: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["detail"].get("EndpointStatus") == status


def _violation(event: dict[str, Any]) -> bool:
    return event["detail-type"] == "Glassbox Violation"


def _broke_the_bound(stack: Stack, bus: Bus) -> float:
    """When the capture file came with which there were as many predictions as the violation speaks of."""
    s3, counted = stack.client("s3"), 0
    (wanted,) = {event["detail"]["sample_size"] for _, event in bus.seen if _violation(event)}
    for at, event in bus.seen:
        if _object("capture/", ".jsonl")(event):
            place = event["detail"]
            body = s3.get_object(Bucket=place["bucket"]["name"], Key=place["object"]["key"])["Body"].read()
            counted += len(body.splitlines())
            if counted >= wanted:
                return at
    raise ValueError(f"{counted} predictions captured, {wanted} judged")


def incident(stack: Stack, bus: Bus, bodies: list[bytes], hour: datetime) -> dict[str, float]:
    """Seconds of each reaction to a burst in ``hour``."""
    bus.seen.clear()
    stack.set_capture_clock(hour + timedelta(minutes=5))
    runtime = stack.client("sagemaker-runtime")
    for body in bodies:
        runtime.invoke_endpoint(EndpointName="traffic-signs", ContentType="application/x-npy", Body=body)
    (violated, *_) = bus.times(_violation)
    captured = _broke_the_bound(stack, bus)
    (updating, *_) = bus.times(_state("UPDATING"))
    (hooked, *_) = bus.times(_state("IN_SERVICE"))
    pictures = bus.times(_object("saliency/", ".json"), HEATMAPS)
    bus.times(_state("IN_SERVICE"), 2)
    return {
        "capture file to violation": violated - captured,
        "violation to UpdateEndpoint": updating - violated,
        "InService to the first picture": pictures[0] - hooked,
        f"InService to {HEATMAPS} pictures": pictures[HEATMAPS - 1] - hooked,
    }


REACH = ("< 3 s", "< 2 s", "< 10 s", "< 60 s")


def run() -> list[dict[str, Any]]:
    images, labels = signs.dataset(1000, seed=77, size=48)
    stop, others = images[labels == 14], images[labels != 14]
    bodies = []
    for i in range(REQUESTS):
        buffer = io.BytesIO()
        image = stop[i % len(stop)] if i % 7 < 5 else others[i]
        np.save(buffer, image, allow_pickle=False)
        bodies.append(buffer.getvalue())
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)
    with running_stack(PARAMETERS) as stack:
        bus = Bus(stack)
        runs = {
            name: incident(stack, bus, bodies, hour + i * timedelta(hours=2))
            for i, name in enumerate(("cold", "warm"))
        }
    return [
        row(f"{what}, {name}", "s", seconds, "", None, reach)
        for name, measured in runs.items()
        for (what, seconds), reach in zip(measured.items(), REACH, strict=True)
    ]


if __name__ == "__main__":
    show(__doc__, run())
