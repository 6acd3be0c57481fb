"""What an operator can observe of the stack: endpoint, events, notifications, counts and heat maps."""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from rich.console import Console

from demo.report import EndpointState, Heatmap, Notification, Step
from glassbox.aws.counts_table import CountsTable
from glassbox.explanation.facts import Facts
from glassbox.explanation.trace_format import REPLAY_EVENT_ID
from glassbox.monitoring.counts import WINDOW, Window, total
from glassbox.violation import VIOLATION_DETAIL_TYPE, VIOLATION_SOURCE, ViolationDetail
from local.event_queue import EventQueue
from local.stack import Stack
from local.waiting import wait_for

REACTION_SECONDS = 120.0  # the longest time for any one reaction of AWS
PAIR_ID = re.compile(r"(clean|adversarial)-\d+")


class DemoError(Exception):
    """The demo observed something else than it expected."""


class Progress:
    """The steps of the demo, printed with their time and kept for the report."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._began = time.monotonic()
        self.steps: list[Step] = []

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._began

    def add(self, text: str) -> None:
        """Print a step and keep it."""
        self.steps.append(Step(round(self.seconds(), 2), text))
        self._console.print(f"[dim]{self.seconds():6.1f} s[/]  {text}")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show a spinner, on a terminal only."""
        with self._console.status(text):
            yield


class Observer:
    """Follows the endpoint's status and config, the violation events and the topic in a thread."""

    def __init__(self, stack: Stack, progress: Progress) -> None:
        self._endpoint, self._seconds = stack.outputs["EndpointName"], progress.seconds
        self._sagemaker = stack.client("sagemaker")
        self._queue = EventQueue(stack, "demo")
        self._queue.subscribe(stack.outputs["Topic"])
        self._queue.add_rule({"source": [VIOLATION_SOURCE], "detail-type": [VIOLATION_DETAIL_TYPE]})
        self.configs: list[EndpointState] = []
        self.violations: list[tuple[float, ViolationDetail]] = []
        self.notifications: list[Notification] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Observer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            live = self._sagemaker.describe_endpoint(EndpointName=self._endpoint)
            state = EndpointState(self._seconds(), live["EndpointStatus"], live["EndpointConfigName"])
            if not self.configs or not _same(self.configs[-1], state):
                self.configs.append(state)
            for message in self._queue.receive():
                self._keep(json.loads(message["Body"]))

    def _keep(self, body: dict[str, Any]) -> None:
        if "detail" in body:
            self.violations.append((self._seconds(), msgspec.convert(body["detail"], ViolationDetail)))
        elif "subject" in (notification := json.loads(body["Message"])):  # an alarm's message has none
            self.notifications.append(
                msgspec.convert(notification | {"seconds": self._seconds()}, Notification)
            )

    def first_violation(self) -> tuple[float, ViolationDetail] | None:
        """Return when the first violation event arrived and its detail, or None before that."""
        return self.violations[0] if self.violations else None

    def in_service(self, config: str, times: int = 1) -> float | None:
        """Return when ``config`` was observed in service for the n-th time, or None."""
        times_seen = [s.seconds for s in self.configs if (s.status, s.config) == ("InService", config)]
        return times_seen[times - 1] if len(times_seen) >= times else None

    def wait_in_service(self, config: str, times: int = 1) -> float:
        """Wait for ``in_service``, or raise DemoError with SageMaker's reason if an update failed."""

        def look() -> float | None:
            live = self._sagemaker.describe_endpoint(EndpointName=self._endpoint)
            if reason := live.get("FailureReason"):
                raise DemoError(f"{self._endpoint}: the update of the endpoint failed: {reason}")
            return self.in_service(config, times)

        return wait_for(look, REACTION_SECONDS, f"{config} in service")


def _same(one: EndpointState, other: EndpointState) -> bool:
    return (one.status, one.config) == (other.status, other.config)


def wait_for_counts(stack: Stack, hour: datetime, number: int) -> dict[int, int]:
    """Wait until ``number`` predictions of an hour are counted and return the counts by class."""
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    variant_key, window = f"{stack.outputs['EndpointName']}/AllTraffic", Window(hour, hour + WINDOW)

    def look() -> dict[Any, int] | None:
        counts = total(table.read(variant_key, window).values())
        return dict(counts.classes) if counts.sample_size >= number else None

    classes = wait_for(look, REACTION_SECONDS, f"{number} counted predictions")
    if sum(classes.values()) != number:
        raise DemoError(f"{variant_key}: expected {number} counted predictions, got {sum(classes.values())}.")
    return classes


def read_heatmaps(
    stack: Stack, requests: Mapping[str, datetime]
) -> tuple[list[Heatmap], dict[str, bytes]] | None:
    """Return all heat maps and their previews, or None until each of ``requests`` has one.

    Args:
        requests: when the demo sent each request, by id.
    """
    s3, bucket = stack.client("s3"), stack.outputs["Bucket"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="saliency/")
    written = {o["Key"]: o["LastModified"] for page in pages for o in page.get("Contents", ())}
    facts_keys = {Path(key).stem: key for key in written if key.endswith(".json")}
    if not requests.keys() <= facts_keys.keys():
        return None
    heatmaps, images = [], {}
    for name, key in sorted(facts_keys.items()):
        facts = msgspec.json.decode(s3.get_object(Bucket=bucket, Key=key)["Body"].read(), type=Facts)
        image_key = key.removesuffix("json") + "png"
        sent = requests.get(name)
        pair = PAIR_ID.fullmatch(name)
        heatmaps.append(
            Heatmap(
                id=name,
                kind=pair[1] if pair else "flagged" if facts.request.get(REPLAY_EVENT_ID) else "live",
                predicted_class=facts.predicted_class,
                class_name=facts.class_name,
                probability=facts.probability,
                completeness_error=facts.completeness.relative_error,
                complete=facts.completeness.complete,
                key=image_key,
                delay=(written[image_key] - sent).total_seconds() if sent else None,
            )
        )
        preview = image_key.removesuffix("png") + "webp"
        images[name] = s3.get_object(Bucket=bucket, Key=preview)["Body"].read()
    return heatmaps, images


def read_incident_report(stack: Stack) -> bytes:
    """Return the HTML of the only incident report in the bucket."""
    s3, bucket = stack.client("s3"), stack.outputs["Bucket"]
    found = s3.list_objects_v2(Bucket=bucket, Prefix="incidents/")["Contents"]
    [report] = (one for one in found if one["Key"].endswith("/index.html"))
    html: bytes = s3.get_object(Bucket=bucket, Key=report["Key"])["Body"].read()
    return html
