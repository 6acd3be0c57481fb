"""Find the flagged inputs in the capture files of the window, and send them to the hooked model again."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from glassbox.errors import BadInputError, RetryableError, printable
from glassbox.incidents.model import MAX_REPLAY_ATTEMPTS, Incident, Replays, Request
from glassbox.monitoring.capture import (
    CapturedRequest,
    CaptureLocation,
    lines,
    read_event_id,
    read_key,
    read_line,
    read_request,
)
from glassbox.monitoring.checks import LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE
from glassbox.monitoring.counts import UNKNOWN, ResponseSettings, is_known
from glassbox.monitoring.response import PredictedClass, Prediction, UnreadableError
from glassbox.ports import Objects, Runtime, SigningKey
from glassbox.replay_marker import (
    ATTRIBUTES_CHARACTERS,
    TRACE,
    ReplayMarker,
    marker_event_id,
    own_attributes,
    write_marker,
)
from glassbox.settings import setting
from glassbox.timestamps import parse_timestamp
from glassbox.violation import Violation

# of the window's capture files, spread evenly: a busy hour must be explained as fast as a quiet one
BYTES_READ = 128 << 20
# each may take as long as the read timeout: an endpoint that does not answer is left until the next sweep
_UNANSWERED_IN_A_ROW = 2
# With the read timeout of the last request, it must fit into the function's timeout (120 s): an invocation that is
# killed records nothing, so a client that slows the endpoint down could hide its attack.
SEND_SECONDS = 45
_REASON_CHARACTERS = 200


class Captured(NamedTuple):
    """A captured request, whose class is None if its response is unreadable."""

    time: datetime
    key: str
    line: int
    event_id: str
    predicted_class: PredictedClass | None
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(ResponseSettings, CaptureLocation):
    """The capture files, how their responses are read, and how many requests are replayed.

    Attributes:
        max_flagged_replays: flagged inputs, spread over the window.
        max_comparison_replays: other inputs.
    """

    max_flagged_replays: int = setting(12, within=(1, 100))
    max_comparison_replays: int = setting(4, within=(0, 100))


@dataclass(frozen=True, kw_only=True)
class ReplayDependencies:
    """Dependencies of the replay. ``clock`` returns seconds."""

    settings: ReplaySettings
    captures: Objects
    key: SigningKey
    runtime: Runtime
    clock: Callable[[], float] = time.monotonic


def replay(incident: Incident, dependencies: ReplayDependencies) -> Replays:
    """Send the flagged inputs again, and others for comparison.

    A duplicate changes nothing: the event id names the heat map of a request. Each request carries a signed marker,
    and the caller's own attributes where they fit. An incident with ``unanswered`` replays sends only those.

    A violation without a variant (of an operator or the monitor) includes all variants but the shadows.

    Returns:
        The event ids that were sent, and those that the endpoint did not answer. The note lists the problems: missing
        capture files or inputs, unreadable capture lines, requests that the hooked model refused, attributes that did
        not fit.

    Raises:
        RetryableError: S3 or KMS does not answer.
    """
    skipped: list[str] = []
    clock, end = dependencies.clock, dependencies.clock() + SEND_SECONDS
    records = list(_records(incident.cause, dependencies, skipped))
    if incident.unanswered:
        chosen = [record for record in records if record.event_id in incident.unanswered]
        flagged = incident.flagged
    else:
        chosen, others = select_records(records, incident.cause, dependencies.settings)
        flagged = frozenset(record.event_id for record in chosen)
        chosen += others
    # each try begins with another request: two that kill the container must not block the others
    first = incident.replay_attempts * len(chosen) // MAX_REPLAY_ATTEMPTS
    requests = itertools.chain.from_iterable(
        _requests(part, incident.id, dependencies, skipped) for part in (chosen[first:], chosen[:first])
    )
    sent = _send(requests, incident.endpoint, dependencies.runtime, lambda: clock() >= end)
    unanswered = sent.unanswered
    if sent.away:
        unanswered = (
            {record.event_id for record in chosen} - sent.answered - {name for name, _ in sent.refused}
        )
    names = frozenset(sent.answered | unanswered)
    notes = list(_notes(sent))
    if not names and not sent.refused:
        gone = (
            "the capture files hold no record of the window"
            if not records
            else "the capture files contain no inputs"
        )
        notes.append(f"{gone}, so live traffic is explained instead")
    if skipped:
        notes.append(f"{len(skipped)} capture lines are unreadable, the first: {skipped[0]}")
    return Replays(names, names & flagged, "; ".join(notes), frozenset(unanswered))


@dataclass
class _Sent:
    """Event ids by outcome; ``refused`` with reasons; ``away``: the rest was not sent."""

    answered: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    away: bool = False
    slow: bool = False
    error: str = ""


def _send(
    requests: Iterable[Request], endpoint: str, runtime: Runtime, out_of_time: Callable[[], bool]
) -> _Sent:
    sent, in_a_row = _Sent(), 0
    for request in requests:
        if out_of_time() and (sent.answered or sent.refused or sent.unanswered):
            sent.away, sent.slow = True, True
            break
        try:
            runtime.invoke(endpoint, request)
        except BadInputError as error:
            sent.refused.append((request.event_id, str(error)))
        except RetryableError as error:
            sent.unanswered.add(request.event_id)
            sent.error, in_a_row = str(error), in_a_row + 1
            if in_a_row == _UNANSWERED_IN_A_ROW:
                sent.away = True
                break
            continue
        else:
            sent.answered.add(request.event_id)
            sent.cut += not request.complete
        in_a_row = 0
    return sent


def _notes(sent: _Sent) -> Iterator[str]:
    if sent.refused:
        yield f"{len(sent.refused)} were refused, the first: {sent.refused[0][1]}"
    if sent.unanswered:
        yield f"the endpoint does not answer: {sent.error}"
    if sent.slow:
        yield f"the endpoint answered too slowly to send all within {SEND_SECONDS} seconds"
    if sent.cut:
        yield f"{sent.cut} were sent without the caller's custom attributes, which did not fit beside the marker"


class Input(NamedTuple):
    """An input from a capture file, with its prediction and request body.

    Attributes:
        variant: the one that answered the request.
        flagged: its prediction broke the bound; the others are for comparison.
    """

    event_id: str
    variant: str
    predicted_class: PredictedClass | None
    confidence: float | None
    body: bytes
    content_type: str
    flagged: bool


#: How little each answer of a window, a class and its probability, fits the reference.
Surprises = Callable[[Sequence[tuple[PredictedClass | None, float | None]]], Sequence[float]]


def captured_inputs(
    incident: Incident, dependencies: ReplayDependencies, surprises: Surprises | None = None
) -> list[Input]:
    """Return the inputs that :func:`replay` would send, the flagged ones first.

    Args:
        surprises: where no class broke the bound (drift), the most surprising inputs are flagged, not those of the
            most frequent class.

    Raises:
        RetryableError: S3 or KMS does not answer.
    """
    skipped: list[str] = []
    records = list(_records(incident.cause, dependencies, skipped))
    chosen, others = select_records(records, incident.cause, dependencies.settings, surprises)
    flagged = set(chosen)
    found = [
        Input(
            record.event_id,
            read_key(record.key).variant,
            record.predicted_class,
            record.confidence,
            request.body,
            request.content_type,
            record in flagged,
        )
        for record, request in _read_again([*chosen, *others], dependencies, skipped)
        if request.body is not None
    ]
    return sorted(found, key=lambda one: not one.flagged)


def select_records(
    records: Sequence[Captured],
    cause: Violation,
    settings: ReplaySettings,
    surprises: Surprises | None = None,
) -> tuple[list[Captured], list[Captured]]:
    """Return the flagged records and the others, each cut to its limit.

    Args:
        surprises: see :func:`captured_inputs`.
    """
    if not records:
        return [], []
    records = sorted(records, key=lambda record: record[:3])
    flagged = _flagged(records, cause, settings, surprises)
    return (
        _spread([record for record in records if record in flagged], settings.max_flagged_replays),
        _spread([record for record in records if record not in flagged], settings.max_comparison_replays),
    )


def variants_of(violation: Violation, dependencies: ReplayDependencies) -> list[str]:
    """Return the violation's variant, or all variants with captures but the shadows."""
    if violation.variant:
        return [violation.variant]
    settings = dependencies.settings
    found = dependencies.captures.folders(settings.capture_bucket, f"{settings.capture_folder}/")
    return [variant for variant in found if variant not in settings.shadows]


def _flagged(
    records: Sequence[Captured], cause: Violation, settings: ReplaySettings, surprises: Surprises | None
) -> set[Captured]:
    """Return the records that broke the bound, or else the most surprising, or those of the most frequent class."""

    def broke_the_bound(record: Captured) -> bool:
        return _broke_the_bound(record.predicted_class, record.confidence, cause, settings)

    if broke := set(filter(broke_the_bound, records)):
        return broke
    if surprises is not None:
        scores = surprises([(record.predicted_class, record.confidence) for record in records])
        # equal ones by SageMaker's random id: so they are spread over the window, and no client chooses them
        ranked = sorted(zip(scores, records, strict=True), key=lambda pair: (-pair[0], pair[1].event_id))
        return {record for _, record in ranked[: settings.max_flagged_replays]}
    found = Counter(record.predicted_class for record in records)
    most = max(found, key=lambda c: (found[c], str(c)))
    return {record for record in records if record.predicted_class == most}


def _broke_the_bound(
    predicted_class: PredictedClass | None,
    confidence: float | None,
    cause: Violation,
    settings: ReplaySettings,
) -> bool:
    if cause.check == UNREADABLE_SHARE or predicted_class is None:
        return predicted_class is None
    if cause.check == LOW_CONFIDENCE_SHARE:
        return confidence is not None and confidence < (settings.low_confidence or 0)
    known = is_known(predicted_class, settings.num_classes)
    return cause.predicted_class == (predicted_class if known else UNKNOWN)


def _spread(records: Sequence[Captured], n: int) -> list[Captured]:
    if len(records) <= n:
        return list(records)
    return [records[i * (len(records) - 1) // max(1, n - 1)] for i in range(n)]


def _files(violation: Violation, dependencies: ReplayDependencies) -> list[str]:
    """Return the capture files of the window, thinned out evenly to BYTES_READ."""
    found: list[tuple[str, int]] = []
    settings = dependencies.settings
    # the hour of a file's folder is that of its first record: the previous hour may hold some of the window
    hour = violation.window_start.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    while hour < violation.window_end:
        for variant in variants_of(violation, dependencies):
            under = f"{settings.capture_folder}/{variant}/{hour:%Y/%m/%d/%H}/"
            listed = dependencies.captures.listed(settings.capture_bucket, under)
            found += [(key, size) for key, size, _ in listed if key.endswith(".jsonl")]
        hour += timedelta(hours=1)
    step = max(1, -(-sum(size for _, size in found) // BYTES_READ))
    return [key for key, _ in found[::step]]


def _records(
    violation: Violation, dependencies: ReplayDependencies, skipped: list[str]
) -> Iterator[Captured]:
    """Yield the window's records; a line that cannot be read is named in ``skipped``.

    A batch stands for its first prediction that broke the bound, else for its first.
    """
    settings = dependencies.settings
    parser = settings.parser()

    def is_flagged(one: Prediction) -> bool:
        return _broke_the_bound(one.predicted_class, one.confidence, violation, settings)

    for key in _files(violation, dependencies):
        for number, line in enumerate(_lines(key, dependencies)):
            time, prediction = None, None
            try:
                event_id = marker_event_id(read_event_id(line))
                record = read_line(line, parser, dependencies.key.public)
                if record.predictions:  # neither a replay nor an empty batch
                    time = record.time
                    # not always the first: a client could put a harmless sample first
                    prediction = next(filter(is_flagged, record.predictions), record.predictions[0])
            except UnreadableError as error:
                if violation.check == UNREADABLE_SHARE:
                    time = error.time
            except (ValueError, RecursionError) as error:
                skipped += [_skipped(key, number, error)] if line.strip() else []
                continue
            if time and violation.window_start <= parse_timestamp(time) < violation.window_end:
                seen = (prediction.predicted_class, prediction.confidence) if prediction else (None, None)
                yield Captured(parse_timestamp(time), key, number, event_id, *seen)


def _requests(
    chosen: Sequence[Captured], incident: str, dependencies: ReplayDependencies, skipped: list[str]
) -> Iterator[Request]:
    for record, captured in _read_again(chosen, dependencies, skipped):
        if captured.body is not None:
            variant = read_key(record.key).variant
            yield _request(captured, captured.body, variant, incident, dependencies.key)


def _read_again(
    chosen: Sequence[Captured], dependencies: ReplayDependencies, skipped: list[str]
) -> Iterator[tuple[Captured, CapturedRequest]]:
    """Yield the chosen records with their inputs, file by file, with one input in memory at a time."""
    for key in dict.fromkeys(record.key for record in chosen):
        wanted = {record.line: record for record in chosen if record.key == key}
        for number, line in enumerate(_lines(key, dependencies)):
            if number in wanted:
                try:
                    request = read_request(line)
                except (ValueError, RecursionError) as error:
                    skipped.append(_skipped(key, number, error))
                    continue
                yield wanted[number], request


def _skipped(key: str, number: int, error: Exception) -> str:
    return printable(f"{key}, line {number + 1}: {error}", _REASON_CHARACTERS)


def _lines(key: str, dependencies: ReplayDependencies) -> Iterator[bytes]:
    chunks = dependencies.captures.chunks(dependencies.settings.capture_bucket, key)
    try:
        yield from (line or b"" for line in lines(chunks))
    except BadInputError:
        return  # the file was deleted: the replay sends the inputs of the other files


def _request(captured: CapturedRequest, body: bytes, variant: str, incident: str, key: SigningKey) -> Request:
    event_id = marker_event_id(captured.event_id)
    marker = write_marker(ReplayMarker(TRACE, incident, event_id), body, key.sign)
    attributes = ",".join([*own_attributes(captured.custom_attributes), marker])
    # long attributes are dropped, not refused: else a client could use them to avoid an explanation
    complete = len(attributes) <= ATTRIBUTES_CHARACTERS and attributes.isascii() and attributes.isprintable()
    return Request(
        event_id,
        variant,
        body,
        captured.content_type,
        attributes if complete else marker,
        complete,
    )
