"""Durations of an incident's steps on the embedded AWS, by the times of the events, cold and warm.

The time between two of SageMaker's events is the stack's own: an update takes seconds here and minutes on AWS.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.side_by_side import row, show
from demo import signs
from glassbox.violation import VIOLATION_DETAIL_TYPE, VIOLATION_SOURCE
from local.event_queue import EventQueue
from local.stack import Stack, running_stack
from local.waiting import wait_for

Event = dict[str, Any]

PARAMETERS = {"MaxClassShare": "0.5", "CooldownMinutes": "0"}
REQUESTS = 70
EVENT_SECONDS = 120.0  # the longest time until an event
HEATMAPS = 16  # MaxFlaggedReplays and MaxComparisonReplays, by default
REACH = ("< 3 s", "< 2 s", "< 10 s", "< 60 s")


class Bus:
    """The events of the default bus, with the times at which they were sent to a queue."""

    def __init__(self, stack: Stack) -> None:
        self._queue = EventQueue(stack, "all-events")
        self._queue.add_rule({"source": ["aws.s3", "aws.sagemaker", VIOLATION_SOURCE]})
        self.received: list[tuple[float, Event]] = []

    def times(self, matches: Callable[[Event], bool], n: int = 1) -> list[float]:
        """Wait for ``n`` matching events and return the times of all, in seconds."""

        def look() -> list[float] | None:
            for message in self._queue.receive():
                sent = int(message["Attributes"]["SentTimestamp"]) / 1000
                self.received.append((sent, json.loads(message["Body"])))
            self.received.sort(key=lambda item: item[0])
            found = [sent for sent, event in self.received if matches(event)]
            return found if len(found) >= n else None

        return wait_for(look, EVENT_SECONDS, f"{n} events", pause=0.05)


def _object(prefix: str, suffix: str) -> Callable[[Event], bool]:
    def matches(event: Event) -> bool:
        key = str(event["detail"].get("object", {}).get("key", ""))
        return event["detail-type"] == "Object Created" and key.startswith(prefix) and key.endswith(suffix)

    return matches


def _state(status: str) -> Callable[[Event], bool]:
    return lambda event: bool(event["detail"].get("EndpointStatus") == status)


def _violation(event: Event) -> bool:
    return bool(event["detail-type"] == VIOLATION_DETAIL_TYPE)


def _captured_sample(stack: Stack, bus: Bus) -> float:
    """Return when the capture file with the last prediction of the violation's sample arrived."""
    s3, captured = stack.client("s3"), 0
    [sample_size] = {event["detail"]["sample_size"] for _, event in bus.received if _violation(event)}
    for sent, event in bus.received:
        if _object("capture/", ".jsonl")(event):
            place = event["detail"]
            body = s3.get_object(Bucket=place["bucket"]["name"], Key=place["object"]["key"])["Body"].read()
            captured += len(body.splitlines())
            if captured >= sample_size:
                return sent
    raise ValueError(f"violation: expected {sample_size} captured predictions, got {captured}.")


def incident(stack: Stack, bus: Bus, images: list[Any], hour: datetime) -> dict[str, float]:
    """Cause an incident in ``hour`` and return the seconds of its steps."""
    bus.received.clear()
    stack.set_capture_clock(hour + timedelta(minutes=5))
    for image in images:
        stack.predict(image)
    [violated, *_] = bus.times(_violation)
    captured = _captured_sample(stack, bus)
    [updating, *_] = bus.times(_state("UPDATING"))
    [hooked, *_] = bus.times(_state("IN_SERVICE"))
    heatmaps = bus.times(_object("saliency/", ".json"), HEATMAPS)
    bus.times(_state("IN_SERVICE"), 2)
    return {
        "capture file to violation": violated - captured,
        "violation to UpdateEndpoint": updating - violated,
        "InService to the first heat map": heatmaps[0] - hooked,
        f"InService to {HEATMAPS} heat maps": heatmaps[HEATMAPS - 1] - hooked,
    }


def run() -> list[dict[str, Any]]:
    """Measure two incidents."""
    images, classes = signs.dataset(1000, seed=77, size=48)
    stop, others = images[classes == 14], images[classes != 14]
    sent = [stop[i % len(stop)] if i % 7 < 5 else others[i] for i in range(REQUESTS)]
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)
    with running_stack(PARAMETERS) as stack:
        bus = Bus(stack)
        runs = {
            name: incident(stack, bus, sent, hour + i * timedelta(hours=2))
            for i, name in enumerate(("cold", "warm"))
        }
    return [
        row(f"{what}, {name}", "s", seconds, "", None, reach)
        for name, measured in runs.items()
        for (what, seconds), reach in zip(measured.items(), REACH, strict=True)
    ]


if __name__ == "__main__":
    show(__doc__, run())
