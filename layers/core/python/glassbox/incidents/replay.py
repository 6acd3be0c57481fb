"""The flagged inputs, found in the window's capture files and sent to the hooked model again."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from glassbox.errors import BadInputError, RetryableError, printable
from glassbox.incidents.model import SENDS, Incident, Replays, Request
from glassbox.monitoring.capture import input_body, lines, read_key, read_line
from glassbox.monitoring.checks import LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE
from glassbox.monitoring.counts import UNKNOWN, is_known
from glassbox.monitoring.response import PredictedClass, Prediction, ResponseParser, UnreadableError
from glassbox.ports import Objects, Runtime, SigningKey
from glassbox.replay_marker import (
    ATTRIBUTES_CHARACTERS,
    TRACE,
    ReplayMarker,
    marker_event_id,
    own_attributes,
    write_marker,
)
from glassbox.timestamps import parse_timestamp
from glassbox.violation import Violation

# of a window's capture files, spread over it, so that a busy hour is explained as quickly as a quiet one
BYTES_READ = 128 << 20
# each may take as long as the client waits for an answer: an endpoint that is away is left alone until the next sweep
_UNANSWERED_IN_A_ROW = 2
# the last request may take as long again, and all of it must fit into the function's timeout (120 s): an invocation
# that is killed records nothing, and a client who slows the endpoint down would hide its attack
SEND_SECONDS = 45
_REASON_CHARACTERS = 200


class Captured(NamedTuple):
    """A captured request: when it came, where it lies, and what was predicted (None: that cannot be read)."""

    time: datetime
    key: str
    line: int
    event_id: str
    predicted_class: PredictedClass | None
    confidence: float | None = None


def replay(
    incident: Incident,
    *,
    bucket: str,
    prefix: str,
    max_flagged_replays: int,
    max_comparison_replays: int,
    shadows: frozenset[str] = frozenset(),
    parser: ResponseParser,
    low_confidence: float | None = None,
    num_classes: int | None = None,
    captures: Objects,
    runtime: Runtime,
    key: SigningKey,
    clock: Callable[[], float] = time.monotonic,
) -> Replays:
    """Send the inputs behind the violation again, and others for comparison.

    Sending one twice is harmless: the picture of a request is named by its event id. Each carries a signed marker; the
    caller's own attributes go with it where they fit. Of an incident that has ``unsent`` replays, those are sent.

    Args:
        max_flagged_replays: inputs behind the violation, spread over the window.
        max_comparison_replays: other inputs.
        low_confidence, num_classes: as in :func:`glassbox.monitoring.counts.tally`.
        shadows: variants that answer nobody. A violation that names no variant (an operator's, the monitor's) is about
            all the others.

    Returns:
        The event ids that were sent, and those that the endpoint did not answer. The note says what is missing and
        why: no capture files, no captured inputs, capture lines that cannot be read, requests that the hooked model
        refused, or attributes that did not fit.

    Raises:
        RetryableError: S3 or KMS does not answer.
    """
    skipped: list[str] = []
    end = clock() + SEND_SECONDS
    keys = _files(incident.cause, bucket, prefix, shadows, captures)
    read = _records(keys, incident.cause, bucket, parser, low_confidence, num_classes, captures, key, skipped)
    records = list(read)
    if incident.unsent:
        chosen = [record for record in records if record.event_id in incident.unsent]
        behind = incident.flagged
    else:
        chosen, others = _choose(
            records, incident.cause, max_flagged_replays, max_comparison_replays, low_confidence, num_classes
        )
        behind = frozenset(record.event_id for record in chosen)
        chosen += others
    # another one first at every try: two that kill the container must not hide the others
    first = incident.sends * len(chosen) // SENDS
    requests = itertools.chain.from_iterable(
        _requests(part, incident.id, bucket, captures, key, skipped)
        for part in (chosen[first:], chosen[:first])
    )
    sent = _send(requests, incident.endpoint, runtime, lambda: clock() >= end)
    unsent = sent.unsent
    if sent.away:
        unsent = {record.event_id for record in chosen} - sent.answered - {name for name, _ in sent.refused}
    names = frozenset(sent.answered | unsent)
    notes = list(_notes(sent))
    if not names and not sent.refused:
        gone = "no capture file of the window is left" if not records else "the capture holds no inputs"
        notes.append(f"{gone}, so live traffic is explained instead")
    if skipped:
        notes.append(f"{len(skipped)} capture lines could not be read, the first: {skipped[0]}")
    return Replays(names, names & behind, "; ".join(notes), frozenset(unsent))


@dataclass
class _Sent:
    """The event ids of requests by outcome; ``refused`` with reasons. ``away``: no answer, the rest was not tried."""

    answered: set[str] = field(default_factory=set)
    unsent: set[str] = field(default_factory=set)
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
        if out_of_time() and (sent.answered or sent.refused or sent.unsent):
            sent.away, sent.slow = True, True
            break
        try:
            runtime.invoke(endpoint, request)
        except BadInputError as error:
            sent.refused.append((request.event_id, str(error)))
        except RetryableError as error:
            sent.unsent.add(request.event_id)
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
    if sent.unsent:
        yield f"the endpoint does not answer: {sent.error}"
    if sent.slow:
        yield f"the endpoint answered too slowly to send all within {SEND_SECONDS} seconds"
    if sent.cut:
        yield f"{sent.cut} were sent without the caller's custom attributes, which did not fit beside the marker"


class Input(NamedTuple):
    """A flagged input, as it was captured: its event id, what was predicted, and the request's body."""

    event_id: str
    predicted_class: PredictedClass | None
    confidence: float | None
    body: bytes
    content_type: str


def flagged_inputs(
    incident: Incident,
    *,
    bucket: str,
    prefix: str,
    max_flagged_replays: int,
    shadows: frozenset[str] = frozenset(),
    parser: ResponseParser,
    low_confidence: float | None = None,
    num_classes: int | None = None,
    captures: Objects,
    key: SigningKey,
) -> list[Input]:
    """Return up to ``max_flagged_replays`` inputs behind the violation, spread over the window; see :func:`replay`.

    Raises:
        RetryableError: S3 or KMS does not answer.
    """
    skipped: list[str] = []
    keys = _files(incident.cause, bucket, prefix, shadows, captures)
    read = _records(keys, incident.cause, bucket, parser, low_confidence, num_classes, captures, key, skipped)
    records = list(read)
    chosen, _ = _choose(records, incident.cause, max_flagged_replays, 0, low_confidence, num_classes)
    found = ((record, _body(whole)) for record, whole in _read_again(chosen, bucket, captures, skipped))
    return [
        Input(record.event_id, record.predicted_class, record.confidence, *body)
        for record, body in found
        if body
    ]


def _choose(
    records: Sequence[Captured],
    cause: Violation,
    max_flagged_replays: int,
    max_comparison_replays: int,
    low_confidence: float | None,
    num_classes: int | None,
) -> tuple[list[Captured], list[Captured]]:
    """The records behind the violation and the others, each spread over the window."""
    if not records:
        return [], []
    records = sorted(records, key=lambda record: record[:3])
    behind = _behind(records, cause, low_confidence, num_classes)
    return (
        _spread([record for record in records if record in behind], max_flagged_replays),
        _spread([record for record in records if record not in behind], max_comparison_replays),
    )


def variants_of(
    violation: Violation, *, bucket: str, prefix: str, shadows: frozenset[str], captures: Objects
) -> list[str]:
    """The variants that a violation is about: the one that it names, or all that have captures and answer somebody."""
    if violation.variant:
        return [violation.variant]
    found = captures.folders(bucket, f"{prefix}/{violation.endpoint}/")
    return [variant for variant in found if variant not in shadows]


def _behind(
    records: Sequence[Captured], cause: Violation, low_confidence: float | None, num_classes: int | None
) -> set[Captured]:
    """The records that broke the bound; where the violation does not tell (an operator's), the most frequent class."""

    def is_behind(record: Captured) -> bool:
        return _broke_the_bound(record.predicted_class, record.confidence, cause, low_confidence, num_classes)

    found = Counter(record.predicted_class for record in records)
    most = max(found, key=lambda c: (found[c], str(c)))
    return set(filter(is_behind, records)) or {record for record in records if record.predicted_class == most}


def _broke_the_bound(
    predicted_class: PredictedClass | None,
    confidence: float | None,
    cause: Violation,
    low_confidence: float | None,
    num_classes: int | None,
) -> bool:
    if cause.check == UNREADABLE_SHARE or predicted_class is None:
        return predicted_class is None
    if cause.check == LOW_CONFIDENCE_SHARE:
        return confidence is not None and confidence < (low_confidence or 0)
    return cause.predicted_class == (predicted_class if is_known(predicted_class, num_classes) else UNKNOWN)


def _spread(records: Sequence[Captured], n: int) -> list[Captured]:
    if len(records) <= n:
        return list(records)
    return [records[i * (len(records) - 1) // max(1, n - 1)] for i in range(n)]


def _files(
    violation: Violation, bucket: str, prefix: str, shadows: frozenset[str], captures: Objects
) -> list[str]:
    """The capture files of the window, thinned out evenly to BYTES_READ."""
    found: list[tuple[str, int]] = []
    # a file lies under the hour of its first record, so the hour before holds some of the window too
    hour = violation.window_start.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    while hour < violation.window_end:
        for variant in variants_of(
            violation, bucket=bucket, prefix=prefix, shadows=shadows, captures=captures
        ):
            under = f"{prefix}/{violation.endpoint}/{variant}/{hour:%Y/%m/%d/%H}/"
            found += [(key, size) for key, size in captures.sizes(bucket, under) if key.endswith(".jsonl")]
        hour += timedelta(hours=1)
    step = max(1, -(-sum(size for _, size in found) // BYTES_READ))
    return [key for key, _ in found[::step]]


class _Metadata(msgspec.Struct, rename="camel"):
    event_id: str
    custom_attributes: list[str] | str | None = None


class _Named(msgspec.Struct, rename="camel"):
    event_metadata: _Metadata


class _Input(msgspec.Struct, rename="camel"):
    data: str | None = None
    encoding: str = "JSON"
    observed_content_type: str | None = None


class _Sides(msgspec.Struct, rename="camel"):
    endpoint_input: _Input | None = None


class _Whole(msgspec.Struct, rename="camel"):
    capture_data: _Sides
    event_metadata: _Metadata


_NAMED, _WHOLE = msgspec.json.Decoder(_Named), msgspec.json.Decoder(_Whole)


def _records(
    keys: Iterable[str],
    violation: Violation,
    bucket: str,
    parser: ResponseParser,
    low_confidence: float | None,
    num_classes: int | None,
    captures: Objects,
    replay_key: SigningKey,
    skipped: list[str],
) -> Iterator[Captured]:
    """The window's records; a batch stands for its first prediction that broke the bound, else for its first.

    A line that cannot be read is named in ``skipped``, and the others are not lost."""

    def blamed(one: Prediction) -> bool:
        return _broke_the_bound(one.predicted_class, one.confidence, violation, low_confidence, num_classes)

    for key in keys:
        for number, line in enumerate(_lines(bucket, key, captures)):
            time, prediction = None, None
            try:
                captured_id = _NAMED.decode(line).event_metadata.event_id
                if not captured_id:
                    raise ValueError("eventMetadata.eventId is empty")
                event_id = marker_event_id(captured_id)
                record = read_line(line, parser, replay_key.public)
                if record.predictions:  # neither a replay nor an empty batch
                    time = record.time
                    # not the first alone: a client could hide the attack behind it
                    prediction = next(filter(blamed, record.predictions), record.predictions[0])
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
    chosen: Sequence[Captured],
    incident: str,
    bucket: str,
    captures: Objects,
    signing_key: SigningKey,
    skipped: list[str],
) -> Iterator[Request]:
    for record, whole in _read_again(chosen, bucket, captures, skipped):
        request = _request(whole, read_key(record.key).variant, incident, signing_key)
        if request:
            yield request


def _read_again(
    chosen: Sequence[Captured], bucket: str, captures: Objects, skipped: list[str]
) -> Iterator[tuple[Captured, _Whole]]:
    """The chosen records with their inputs, file by file: of a batch, one input is held at a time."""
    for key in dict.fromkeys(record.key for record in chosen):
        wanted = {record.line: record for record in chosen if record.key == key}
        for number, line in enumerate(_lines(bucket, key, captures)):
            if number in wanted:
                try:
                    whole = _WHOLE.decode(line)
                except (ValueError, RecursionError) as error:
                    skipped.append(_skipped(key, number, error))
                    continue
                yield wanted[number], whole


def _skipped(key: str, number: int, error: Exception) -> str:
    return printable(f"{key}, line {number + 1}: {error}", _REASON_CHARACTERS)


def _lines(bucket: str, key: str, captures: Objects) -> Iterator[bytes]:
    try:
        yield from (line or b"" for line in lines(captures.chunks(bucket, key)))
    except BadInputError:
        return  # deleted meanwhile: what is left is explained


def _request(captured: _Whole, variant: str, incident: str, key: SigningKey) -> Request | None:
    metadata, found = captured.event_metadata, _body(captured)
    if found is None:
        return None
    body, content_type = found
    event_id = marker_event_id(metadata.event_id)
    marker = write_marker(ReplayMarker(TRACE, incident, event_id), body, key.sign)
    attributes = ",".join([*own_attributes(metadata.custom_attributes), marker])
    # without them rather than not at all: a client must not hide from an explanation by long attributes
    complete = len(attributes) <= ATTRIBUTES_CHARACTERS and attributes.isascii() and attributes.isprintable()
    return Request(
        event_id,
        variant,
        body,
        content_type,
        attributes if complete else marker,
        complete,
    )


def _body(captured: _Whole) -> tuple[bytes, str] | None:
    """The input's bytes and content type, where it was captured."""
    side = captured.capture_data.endpoint_input
    if side is None or not side.data:
        return None
    try:
        body = input_body(side.data, side.encoding)
    except ValueError:
        return None
    return body, side.observed_content_type or "application/octet-stream"
