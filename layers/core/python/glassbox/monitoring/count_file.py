"""A capture file -> its counts, added once, and the checks of every window that it touches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from glassbox.monitoring.capture import CaptureFile, read, read_key
from glassbox.monitoring.checks import Bounds, PublishedViolation, Verdict, check_window, violation_detail
from glassbox.monitoring.counts import (
    RETENTION,
    SLOT,
    WINDOW,
    Counts,
    Tally,
    Window,
    tally,
    total,
    windows,
)
from glassbox.monitoring.response import PredictedClass
from glassbox.ports import CountsStore, EventBus, Objects
from glassbox.queue_message import S3Object
from glassbox.replay_marker import KeySource
from glassbox.violation import VIOLATION_DETAIL_TYPE, VIOLATION_SOURCE


@dataclass(frozen=True, kw_only=True)
class CountingSettings(Bounds):
    """How the function and the monitor container read and check captured responses."""

    baseline_statistics: str | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the variables."""
        if self.drift_threshold is not None and self.baseline_statistics is None:
            yield "DRIFT_THRESHOLD needs BASELINE_STATISTICS, the distribution to drift from"


@dataclass(frozen=True, kw_only=True)
class CountingDependencies:
    """Dependencies of counting and checking.

    Attributes:
        replay_key: returns the public key of the replays; called only for a record with a replay marker.
        length: of a window, a multiple of SLOT.
        baseline: predictions per class in the reference period, for the drift check.
        folder: ``<prefix>/<endpoint>`` of the watched endpoint; None accepts the files of every endpoint.
    """

    settings: CountingSettings
    replay_key: KeySource
    captures: Objects
    counts: CountsStore
    events: EventBus
    length: timedelta = WINDOW
    baseline: Mapping[PredictedClass, int] | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Counted:
    """What a capture file holds.

    Attributes:
        new: False when the file was counted before.
        expired: the number of records older than RETENTION, which the tally leaves out.
    """

    file: CaptureFile
    tally: Tally
    new: bool
    expired: int = 0

    @property
    def counts(self) -> Counts:
        """The counts of the whole file for its metrics, expired records as unreadable."""
        return total((self.tally.counts, Counts(unreadable=self.expired)))


@dataclass(frozen=True)
class Checked:
    """The verdicts of the window up to the file's latest slot, and the published violations."""

    verdicts: list[Verdict]
    violations: list[Verdict]


def count_file(source: S3Object, arrived: datetime, dependencies: CountingDependencies) -> Counted:
    """Count a capture file.

    Slots that were older than RETENTION when the file arrived are left out: their items have expired, so a
    duplicate could no longer be recognised.

    Args:
        arrived: the time of the event, not of this call: a redelivery must leave out the same slots.

    Raises:
        BadInputError: the key is not that of a capture file of this endpoint, or the file does not exist.
        RetryableError: S3, DynamoDB or KMS does not answer.
    """
    settings = dependencies.settings
    file = read_key(source.key, dependencies.folder)
    chunks = dependencies.captures.chunks(source.bucket, source.key)
    counted = tally(
        read(chunks, source.uri, settings.parser(), dependencies.replay_key),
        file.hour,
        low_confidence=settings.low_confidence,
        num_classes=settings.num_classes,
    )
    expired = total(counted.slots.pop(slot) for slot in list(counted.slots) if slot + RETENTION <= arrived)
    new = not counted.slots or dependencies.counts.add(source.version, file.variant_key, counted.slots)
    return Counted(file, counted, new, expired.records + expired.unreadable + expired.replayed)


def check_file(counted: Counted, dependencies: CountingDependencies) -> Checked:
    """Check every window that a counted file touches, and publish the violations.

    A file that was counted before is checked too, so a crash between counting and checking loses nothing. A
    violation is published first and recorded after; a crash between the two may publish it twice. A violation is
    suppressed when its window overlaps a recorded one of the same check.

    The counts are read consistently after they were written: of files counted concurrently, the checks of the last
    one see all of them.

    Raises:
        RetryableError: DynamoDB or EventBridge does not answer.
    """
    if not counted.tally.slots:
        return Checked([], [])
    settings, counts, length = dependencies.settings, dependencies.counts, dependencies.length
    endpoint, variant, _ = counted.file
    touched = windows(counted.tally.slots, length)
    span = Window(touched[-1].start, touched[0].end)
    slots = counts.read(counted.file.variant_key, span)
    published = counts.published(counted.file.variant_key, span)
    checked = {}
    for window in touched:
        within = total(slot for start, slot in slots.items() if start in window)
        checked[window] = check_window(within, window, settings, dependencies.baseline)
    violations = []
    if variant not in settings.shadows:  # no client gets its responses: counted and checked, never published
        for verdict in (v for verdicts in checked.values() for v in verdicts if v.violated):
            if any(p.check == verdict.check and p.window.overlaps(verdict.window) for p in published):
                continue
            detail = msgspec.to_builtins(violation_detail(endpoint, variant, verdict))
            dependencies.events.put(VIOLATION_SOURCE, VIOLATION_DETAIL_TYPE, detail)
            counts.record(counted.file.variant_key, verdict)
            published.append(PublishedViolation(verdict.check, verdict.window))
            violations.append(verdict)
    latest = max(counted.tally.slots) + SLOT
    return Checked(checked[Window(latest - length, latest)], violations)
