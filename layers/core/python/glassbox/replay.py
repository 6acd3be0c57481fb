"""The flagged inputs, found in the window's capture files and sent to the hooked model again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

import msgspec

from glassbox.capture import input_body, lines, moment, read_key, read_line
from glassbox.errors import BadInputError
from glassbox.incident import Incident, Replays
from glassbox.replay_marker import (
    ATTRIBUTES_CHARACTERS,
    TRACE,
    PublicKey,
    ReplayMarker,
    marker_event_id,
    own_attributes,
    write_marker,
)
from glassbox.response import Label, ResponseForm, UnreadableError
from glassbox.tally import UNKNOWN, is_known
from glassbox.verdict import LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE
from glassbox.violation import Violation

# of a window's capture files, spread over it, so that a busy hour is explained as quickly as a quiet one
BYTES_READ = 128 << 20


class Captured(NamedTuple):
    """A captured request: when it came, where it lies, and what was predicted (None: that cannot be read)."""

    time: datetime
    key: str
    line: int
    event_id: str
    label: Label | None
    confidence: float | None = None


class Request(NamedTuple):
    """A captured request as the endpoint takes it; ``variant`` is the one that answered it.

    ``complete``: the caller's own attributes are all in ``custom_attributes``, beside the marker.
    """

    event_id: str
    variant: str
    body: bytes
    content_type: str
    custom_attributes: str
    complete: bool = True


class Captures(Protocol):
    """See :class:`glassbox.aws.objects.Objects`."""

    def folders(self, bucket: str, prefix: str) -> list[str]: ...
    def sizes(self, bucket: str, prefix: str) -> Iterable[tuple[str, int]]: ...
    def chunks(self, bucket: str, key: str) -> Iterator[bytes]: ...


class Runtime(Protocol):
    """See :class:`glassbox.aws.endpoint.Runtime`."""

    def invoke(self, endpoint: str, request: Request) -> None: ...


class SigningKey(Protocol):
    """See :class:`glassbox.aws.replay_key.ReplayKey`."""

    def sign(self, message: bytes) -> bytes: ...
    def public(self) -> PublicKey: ...


def replay(
    incident: Incident,
    *,
    bucket: str,
    prefix: str,
    flagged: int,
    compared: int,
    shadows: frozenset[str] = frozenset(),
    form: ResponseForm,
    low_confidence: float | None = None,
    classes: int | None = None,
    captures: Captures,
    runtime: Runtime,
    key: SigningKey,
) -> Replays:
    """Send up to ``flagged`` inputs behind the violation again, spread over the window, and ``compared`` others.

    Sending one twice is harmless: the picture of a request is named by its event id. Each carries a signed marker; the
    caller's own attributes go with it where they fit.

    Args:
        low_confidence, classes: as the judge has them.
        shadows: variants that answer nobody. A violation that names no variant (an operator's, the monitor's) is about
            all the others.

    Returns:
        The event ids that were sent. The note says what is missing and why: no capture files, no captured inputs,
        requests that the hooked model refused, or attributes that did not fit.

    Raises:
        RetryableError: the endpoint, S3 or KMS does not answer.
    """
    keys = _files(incident.cause, bucket, prefix, shadows, captures)
    records = sorted(
        _records(keys, incident.cause, bucket, form, captures, key), key=lambda record: record[:3]
    )
    if not records:
        note = "no capture file of the window is left, so live traffic is explained instead"
        return Replays(frozenset(), note=note)
    behind = _behind(records, incident.cause, low_confidence, classes)
    chosen = _spread([record for record in records if record in behind], flagged)
    others = _spread([record for record in records if record not in behind], compared)
    requests = list(_requests([*chosen, *others], incident.id, bucket, captures, key))
    if not requests:
        note = "the capture holds no inputs, so live traffic is explained instead"
        return Replays(frozenset(), note=note)
    sent, refused = set(), []
    for request in requests:
        try:
            runtime.invoke(incident.endpoint, request)
            sent.add(request.event_id)
        except BadInputError as error:
            refused.append(str(error))
    notes = [f"{len(refused)} were refused, the first: {refused[0]}"] if refused else []
    if cut := sum(not request.complete for request in requests):
        notes.append(
            f"{cut} were sent without the caller's custom attributes, which did not fit beside the marker"
        )
    return Replays(
        frozenset(sent), frozenset(sent & {record.event_id for record in chosen}), "; ".join(notes)
    )


def variants_of(
    violation: Violation, *, bucket: str, prefix: str, shadows: frozenset[str], captures: Captures
) -> list[str]:
    """The variants that a violation is about: the one that it names, or all that have captures and answer somebody."""
    if violation.variant:
        return [violation.variant]
    found = captures.folders(bucket, f"{prefix}/{violation.endpoint}/")
    return [variant for variant in found if variant not in shadows]


def _behind(
    records: Sequence[Captured], cause: Violation, low_confidence: float | None, classes: int | None
) -> set[Captured]:
    """The records that broke the bound; where the violation does not tell (an operator's), the most frequent class."""

    def is_behind(record: Captured) -> bool:
        if cause.check == UNREADABLE_SHARE or record.label is None:
            return record.label is None
        if cause.check == LOW_CONFIDENCE_SHARE:
            return record.confidence is not None and record.confidence < (low_confidence or 0)
        return cause.label == (record.label if is_known(record.label, classes) else UNKNOWN)

    found = Counter(record.label for record in records)
    most = max(found, key=lambda label: (found[label], str(label)))
    return set(filter(is_behind, records)) or {record for record in records if record.label == most}


def _spread(records: Sequence[Captured], n: int) -> list[Captured]:
    if len(records) <= n:
        return list(records)
    return [records[i * (len(records) - 1) // max(1, n - 1)] for i in range(n)]


def _files(
    violation: Violation, bucket: str, prefix: str, shadows: frozenset[str], captures: Captures
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
    form: ResponseForm,
    captures: Captures,
    replay_key: SigningKey,
) -> Iterator[Captured]:
    for key in keys:
        for number, line in enumerate(_lines(bucket, key, captures)):
            time, prediction = None, None
            try:
                event_id = marker_event_id(_NAMED.decode(line).event_metadata.event_id)
                record = read_line(line, form, replay_key.public)
                if record.predictions:  # neither a replay nor an empty batch
                    time, prediction = record.time, record.predictions[0]
            except UnreadableError as error:
                if violation.check == UNREADABLE_SHARE:
                    time = error.time
            except msgspec.DecodeError:
                continue  # counted as unreadable already
            if time and violation.window_start <= moment(time) < violation.window_end:
                seen = (prediction.label, prediction.confidence) if prediction else (None, None)
                yield Captured(moment(time), key, number, event_id, *seen)


def _requests(
    chosen: Sequence[Captured], incident: str, bucket: str, captures: Captures, signing_key: SigningKey
) -> Iterator[Request]:
    for key in sorted({record.key for record in chosen}):
        wanted = {record.line for record in chosen if record.key == key}
        for number, line in enumerate(_lines(bucket, key, captures)):
            if number in wanted:
                request = _request(_WHOLE.decode(line), read_key(key).variant, incident, signing_key)
                if request:
                    yield request


def _lines(bucket: str, key: str, captures: Captures) -> Iterator[bytes]:
    try:
        yield from (line or b"" for line in lines(captures.chunks(bucket, key)))
    except BadInputError:
        return  # deleted meanwhile: what is left is explained


def _request(captured: _Whole, variant: str, incident: str, key: SigningKey) -> Request | None:
    side, metadata = captured.capture_data.endpoint_input, captured.event_metadata
    if side is None or not side.data:
        return None
    try:
        body = input_body(side.data, side.encoding)
    except ValueError:
        return None
    event_id = marker_event_id(metadata.event_id)
    marker = write_marker(ReplayMarker(TRACE, incident, event_id), body, key.sign)
    attributes = ",".join([*own_attributes(metadata.custom_attributes), marker])
    # without them rather than not at all: a client must not hide from an explanation by long attributes
    complete = len(attributes) <= ATTRIBUTES_CHARACTERS and attributes.isascii() and attributes.isprintable()
    return Request(
        event_id,
        variant,
        body,
        side.observed_content_type or "application/octet-stream",
        attributes if complete else marker,
        complete,
    )
