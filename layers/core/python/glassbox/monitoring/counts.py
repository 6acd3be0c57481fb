"""Records -> counts per window.

Counts are stored per **slot**, ten minutes of event time (UTC), and checked per **window**: WINDOW_HOURS from the start
of any slot (a hopping window), so one of them contains a burst around the full hour completely. The clock hour is the
one-hour window that starts at :00, the sum of six slots.
"""

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from glassbox.errors import SettingsError
from glassbox.monitoring.capture import Record, Unreadable
from glassbox.monitoring.response import PredictedClass, ResponseParser
from glassbox.settings import names, setting
from glassbox.timestamps import parse_timestamp

SLOT = timedelta(minutes=10)
WINDOW = timedelta(hours=1)  # of the monitor container; WINDOW_HOURS is that of count_predictions
LONGEST_WINDOW = timedelta(hours=24)
RETENTION = timedelta(days=90)  # of the counts, from the start of their slot; later records do not count
MAX_CLASSES = 10_000
UNKNOWN = "unknown"
EXAMPLES = 20  # unreadable lines in the log of a file
BUCKETS = 10  # of the confidences
_BATCH = 256  # records that are counted together


@dataclass(frozen=True, kw_only=True)
class ResponsePaths:
    """How responses are read."""

    class_path: str | None = None
    confidence_path: str | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the paths."""
        for paths in ({"class_path": self.class_path}, {"confidence_path": self.confidence_path}):
            try:
                ResponseParser(**paths)
            except SettingsError as error:
                yield str(error)

    def parser(self) -> ResponseParser:
        """Return a parser of the responses."""
        return ResponseParser(self.class_path, self.confidence_path)


@dataclass(frozen=True, kw_only=True)
class ResponseSettings(ResponsePaths):
    """How captured responses are read, and which of them count."""

    low_confidence: float | None = setting(None, within=(0, 1))
    num_classes: int | None = setting(None, within=(1, MAX_CLASSES))
    shadow_variants: str = ""

    @property
    def shadows(self) -> frozenset[str]:
        """The variants in SHADOW_VARIANTS, whose responses no client gets."""
        return names(self.shadow_variants)


@dataclass(frozen=True, order=True)
class Window:
    """A span of event time, [start, end), UTC."""

    start: datetime
    end: datetime

    def __contains__(self, time: datetime) -> bool:
        return self.start <= time < self.end

    def __str__(self) -> str:
        day = "%Y-%m-%d " if self.end - self.start >= timedelta(days=1) else ""
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:{day}%H:%M} UTC"

    def overlaps(self, other: "Window") -> bool:
        """Return whether the two windows overlap."""
        return self.start < other.end and other.start < self.end


def slot_start(time: datetime) -> datetime:
    """Return the start of the slot that contains ``time``."""
    return time.replace(minute=time.minute // 10 * 10, second=0, microsecond=0)


def windows(slots: Iterable[datetime], length: timedelta) -> list[Window]:
    """Return every window of ``length`` that contains one of the slots, the latest first."""
    starts = {slot - n * SLOT for slot in slots for n in range(length // SLOT)}
    return [Window(start, start + length) for start in sorted(starts, reverse=True)]


@dataclass
class Counts:
    """The counts of a span of time, which add up.

    Attributes:
        classes: predictions per class.
        with_confidence: predictions with a confidence; ``low_confidence`` of them are below LOW_CONFIDENCE.
        records: readable records of traffic (a batch is one record), without the ``unreadable`` ones.
        replayed: records of replayed requests, in none of the other numbers.
        forged: records with a replay marker that does not verify; they count as traffic, too.
    """

    classes: Counter[PredictedClass] = field(default_factory=Counter)
    with_confidence: int = 0
    low_confidence: int = 0
    records: int = 0
    unreadable: int = 0
    replayed: int = 0
    forged: int = 0

    @property
    def sample_size(self) -> int:
        """The number of predictions."""
        return self.classes.total()

    def add(self, records: Sequence[Record | Unreadable], low_confidence: float | None) -> list[float]:
        """Count records together, which is several times faster than one by one.

        Returns:
            The confidences of the predictions that have one.
        """
        readable = [record for record in records if isinstance(record, Record)]
        live = [record for record in readable if not record.replayed]
        predictions = [prediction for record in live for prediction in record.predictions]
        confidences = [p.confidence for p in predictions if p.confidence is not None]
        self.unreadable += len(records) - len(readable)
        self.replayed += len(readable) - len(live)
        self.forged += sum([record.forged for record in records])
        self.records += len(live)
        self.with_confidence += len(confidences)
        if low_confidence is not None:
            self.low_confidence += sum([confidence < low_confidence for confidence in confidences])
        self.classes.update([prediction.predicted_class for prediction in predictions])
        return confidences

    def __iadd__(self, other: "Counts") -> Self:
        self.classes.update(other.classes)
        self.with_confidence += other.with_confidence
        self.low_confidence += other.low_confidence
        self.records += other.records
        self.unreadable += other.unreadable
        self.replayed += other.replayed
        self.forged += other.forged
        return self


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum of some counts."""
    result = Counts()
    for part in counts:
        result += part
    return result


@dataclass
class Confidences:
    """Sums and ten equal buckets of many confidences (0..1), in constant memory."""

    sample_size: int = 0
    sum: float = 0.0
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, values: Sequence[float]) -> None:
        """Add confidences."""
        self.sample_size += len(values)
        self.sum += sum(values)
        self.squares += sum([value * value for value in values])
        self.minimum = min(self.minimum, min(values, default=math.inf))
        self.maximum = max(self.maximum, max(values, default=-math.inf))
        for bucket, count in Counter([int(value * BUCKETS) for value in values]).items():
            self.buckets[min(bucket, BUCKETS - 1)] += count

    def __iadd__(self, other: "Confidences") -> Self:
        self.sample_size += other.sample_size
        self.sum += other.sum
        self.squares += other.squares
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        return self


@dataclass
class Tally:
    """Counts per slot, confidences, and the first EXAMPLES unreadable lines."""

    slots: dict[datetime, Counts] = field(default_factory=dict)
    confidences: Confidences = field(default_factory=Confidences)
    examples: list[Unreadable] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """The sum of all slots."""
        return total(self.slots.values())

    def __iadd__(self, other: "Tally") -> Self:
        for start, counts in other.slots.items():
            self.slots[start] = total((self.slots.get(start, Counts()), counts))
        self.confidences += other.confidences
        self.examples = (self.examples + other.examples)[:EXAMPLES]
        return self


def tally(
    records: Iterable[Record | Unreadable],
    hour: datetime,
    *,
    low_confidence: float | None = None,
    num_classes: int | None = None,
    within: Window | None = None,
) -> Tally:
    """Count the records of one file.

    Args:
        hour: the hour of the file's folder. An unreadable line without a time counts in the slot of the previous
            line, or at the start of this hour.
        low_confidence: the probability below which a prediction counts as low; None counts none.
        num_classes: the number of classes. All other numbers, and all names, count as ``unknown``. With None, names
            and the numbers below MAX_CLASSES are classes.
        within: records outside are left out.
    """
    result = Tally(defaultdict(Counts))
    slot = slot_start(hour) if within is None or hour in within else None
    records = iter(records)
    while some := list(itertools.islice(records, _BATCH)):
        slots = {
            time: _slot(time) if within is None or parse_timestamp(time) in within else None
            for time in {record.time for record in some}
            if time
        }
        for at, consecutive in _groups(some, slots, slot):
            slot = at
            if slot:
                counts = result.slots[slot]
                result.confidences.add(counts.add(consecutive, low_confidence))
                if len(counts.classes) > 2 * MAX_CLASSES:  # merged before unlimited names fill the memory
                    counts.classes = _known(counts.classes, num_classes)
                bad = [record for record in consecutive if isinstance(record, Unreadable)]
                result.examples += bad[: EXAMPLES - len(result.examples)]
    for counts in result.slots.values():
        counts.classes = _known(counts.classes, num_classes)
    return Tally(dict(result.slots), result.confidences, result.examples)


def _groups(
    records: Sequence[Record | Unreadable], slots: Mapping[str, datetime | None], slot: datetime | None
) -> Iterator[tuple[datetime | None, Sequence[Record | Unreadable]]]:
    """Group consecutive records by slot; a record without a time is in the slot of the previous one."""
    if set(slots.values()) <= {slot}:  # the usual case
        yield slot, records
        return

    def slot_of(record: Record | Unreadable) -> datetime | None:
        nonlocal slot
        slot = slots[record.time] if record.time else slot
        return slot

    for at, consecutive in itertools.groupby(records, slot_of):
        yield at, list(consecutive)


@functools.lru_cache(maxsize=4096)
def _slot(time: str) -> datetime:
    return slot_start(parse_timestamp(time))


def _known(counted: Mapping[PredictedClass, int], num_classes: int | None) -> Counter[PredictedClass]:
    """Return the counts of the first MAX_CLASSES known classes, and UNKNOWN for all others together."""
    known: Counter[PredictedClass] = Counter()
    for predicted_class, count in counted.items():
        fits = len(known) < MAX_CLASSES or predicted_class in known
        known[predicted_class if fits and is_known(predicted_class, num_classes) else UNKNOWN] += count
    return known


def is_known(predicted_class: PredictedClass, num_classes: int | None) -> bool:
    """Return whether a class is one of ``num_classes`` as in :func:`tally`."""
    if isinstance(predicted_class, int):
        return 0 <= predicted_class < (num_classes or MAX_CLASSES)
    return num_classes is None
