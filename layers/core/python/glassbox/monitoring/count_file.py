"""A capture file has arrived -> its counts, once, and a judgement of every window it touches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from glassbox.errors import SettingsError
from glassbox.monitoring.capture import CaptureFile, read, read_key
from glassbox.monitoring.checks import Bounds, PublishedViolation, Verdict, judge, violation_detail
from glassbox.monitoring.counts import (
    MAX_CLASSES,
    RETENTION,
    SLOT,
    Counts,
    Tally,
    Window,
    tally,
    total,
    windows,
)
from glassbox.monitoring.response import PredictedClass, ResponseParser
from glassbox.ports import CountsStore, EventBus, Objects
from glassbox.queue_message import S3Object
from glassbox.replay_marker import KeySource
from glassbox.settings import names, setting
from glassbox.violation import VIOLATION_DETAIL_TYPE, VIOLATION_SOURCE


@dataclass(frozen=True, kw_only=True)
class CountingSettings(Bounds):
    """How captured responses are read and judged: the same for the function and the monitor container."""

    class_path: str | None = None
    confidence_path: str | None = None
    num_classes: int | None = setting(None, within=(1, MAX_CLASSES))
    baseline_statistics: str | None = None
    shadow_variants: str = ""

    def problems(self) -> Iterator[str]:
        """What is wrong between the variables, and with the paths."""
        yield from super().problems()
        if self.drift_threshold is not None and self.baseline_statistics is None:
            yield "DRIFT_THRESHOLD needs BASELINE_STATISTICS, the distribution to drift from"
        for paths in ({"class_path": self.class_path}, {"confidence_path": self.confidence_path}):
            try:
                ResponseParser(**paths)
            except SettingsError as error:
                yield str(error)

    @property
    def shadows(self) -> frozenset[str]:
        """The variants that answer nobody (SHADOW_VARIANTS, separated by commas)."""
        return names(self.shadow_variants)


@dataclass(frozen=True)
class Counted:
    """What a capture file holds; ``new`` is False when it had been counted before.

    ``expired`` is the number of records older than RETENTION: they are told as unreadable, and not in the tally.
    """

    file: CaptureFile
    tally: Tally
    new: bool
    expired: int = 0

    @property
    def counts(self) -> Counts:
        """The counts of the whole file, as its metrics tell them."""
        return total((self.tally.counts, Counts(unreadable=self.expired)))


@dataclass(frozen=True)
class Judged:
    """``verdicts`` are those of the window up to the file's latest slot, ``violations`` what was published now."""

    verdicts: list[Verdict]
    violations: list[Verdict]


def count_file(
    source: S3Object,
    *,
    settings: CountingSettings,
    parser: ResponseParser,
    replay_key: KeySource,
    captures: Objects,
    counts: CountsStore,
    arrived: datetime,
    folder: str | None = None,
) -> Counted:
    """Count a capture file.

    Slots that were older than RETENTION when the file arrived are left out: their items have expired, and with them
    the memory of what was counted.

    Args:
        arrived: the time of the event, and not of this call: a redelivery must leave out the same slots.
        folder: ``<prefix>/<endpoint>`` of the watched endpoint; None takes every endpoint's files.
        replay_key: gives the public key of the replays; asked for only where a marker needs it.

    Raises:
        BadInputError: the key is not that of a capture file of this endpoint, or the file does not exist.
        RetryableError: AWS does not answer.
    """
    file = read_key(source.key, folder)
    counted = tally(
        read(captures.chunks(source.bucket, source.key), source.uri, parser, replay_key),
        file.hour,
        low_confidence=settings.low_confidence,
        num_classes=settings.num_classes,
    )
    expired = total(counted.slots.pop(slot) for slot in list(counted.slots) if slot + RETENTION <= arrived)
    new = not counted.slots or counts.add(source.version, file.variant_key, counted.slots)
    return Counted(file, counted, new, expired.records + expired.unreadable + expired.replayed)


def judge_file(
    counted: Counted,
    *,
    settings: CountingSettings,
    length: timedelta,
    baseline: Mapping[PredictedClass, int] | None,
    counts: CountsStore,
    events: EventBus,
) -> Judged:
    """Judge every window that a counted file touched, and publish what is violated.

    Also where the file had been counted before, so that a crash between counting and judging loses nothing. A
    violation is published first and recorded after: a crash between those may publish it twice. One whose window
    overlaps a recorded one of the same check is the same violation.

    The counts are read after they were written, consistently: of files counted at the same time, the one that is
    written last is judged with all of them.

    Args:
        length: of a window, a multiple of SLOT.
        baseline: predictions per class while all was well; needed for the drift check only.

    Raises:
        RetryableError: AWS does not answer.
    """
    if not counted.tally.slots:
        return Judged([], [])
    touched = windows(counted.tally.slots, length)
    span = Window(touched[-1].start, touched[0].end)
    slots = counts.read(counted.file.variant_key, span)
    published = counts.published(counted.file.variant_key, span)
    judged = {
        window: judge(total(c for start, c in slots.items() if start in window), window, settings, baseline)
        for window in touched
    }
    endpoint, variant, _ = counted.file
    violations = []
    if variant not in settings.shadows:  # a shadow is counted and judged, but no reason to act
        for verdict in (v for verdicts in judged.values() for v in verdicts if v.violated):
            if any(t.check == verdict.check and t.window.overlaps(verdict.window) for t in published):
                continue
            detail = msgspec.to_builtins(violation_detail(endpoint, variant, verdict))
            events.put(VIOLATION_SOURCE, VIOLATION_DETAIL_TYPE, detail)
            counts.record(counted.file.variant_key, verdict)
            published.append(PublishedViolation(verdict.check, verdict.window))
            violations.append(verdict)
    latest = max(counted.tally.slots) + SLOT
    return Judged(judged[Window(latest - length, latest)], violations)
