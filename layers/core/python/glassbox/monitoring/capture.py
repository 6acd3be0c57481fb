"""Data capture: the lines of a capture file -> records of predictions.

SageMaker developer guide, "Capture data from real-time endpoint": one JSON object per line, input and output encoded
separately. Counting decodes the output, the time of the inference and the custom attributes; it decodes the input only
of a request with a replay marker, which signs the body.
"""

import base64
import binascii
import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Annotated, NamedTuple

import msgspec

from glassbox.errors import BadInputError, printable
from glassbox.monitoring.response import Prediction, ResponseParser, UnreadableError
from glassbox.replay_marker import KeySource, is_marked, verified_marker
from glassbox.timestamps import parse_hour, parse_timestamp

CHUNK_BYTES = 1 << 16  # larger chunks need fresh memory pages, which cost more than the saved calls
LINE_BYTES = 32 << 20  # fits two bodies of 6 MiB (InvokeEndpoint's limit), escaped or in base64


class Record(msgspec.Struct, frozen=True, gc=False):
    """A captured inference.

    Attributes:
        time: as captured, ISO 8601.
        predictions: one per sample of the batch; none of a replay, which is not traffic.
        replayed: the record carries a replay marker that verifies.
        forged: the record carries a replay marker that does not verify, and counts as traffic.
    """

    time: str
    predictions: Sequence[Prediction]
    replayed: bool = False
    forged: bool = False


class CapturedRequest(NamedTuple):
    """A captured request of InvokeEndpoint.

    Attributes:
        body: None if it was not captured or cannot be decoded.
    """

    event_id: str
    custom_attributes: list[str] | str | None
    body: bytes | None
    content_type: str


class Unreadable(NamedTuple):
    """A line that cannot be counted, with the reason, and its time if that is readable."""

    source: str
    line: int
    reason: str
    time: str | None
    forged: bool = False

    def __str__(self) -> str:
        return printable(f"{self.source}, line {self.line}: {self.reason}")


def read(
    chunks: Iterable[bytes],
    source: str,
    parser: ResponseParser | None = None,
    replay_key: KeySource | None = None,
) -> Iterator[Record | Unreadable]:
    """Read a capture file from chunks of any size, in constant memory.

    Args:
        chunks: the bytes, for example of :func:`chunks`.
        source: the file's name for :class:`Unreadable`.
        parser: parses the responses; None reads the usual forms.
        replay_key: returns the public key of the replays; None counts every request as traffic.

    Raises:
        RetryableError: the key cannot be read now; the caller must not count the file.
    """
    parser = parser or ResponseParser()
    for number, line in enumerate(lines(chunks), 1):
        try:
            yield read_line(line, parser, replay_key)
        except UnreadableError as error:
            if line is None or line.strip():
                yield Unreadable(source, number, str(error), error.time, error.forged)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks."""
    return iter(functools.partial(file.read, CHUNK_BYTES), b"")


def lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield the lines without their ends, or None for a line of more than LINE_BYTES."""
    pieces: list[memoryview] = []  # of a line over several chunks, so that its bytes are copied once
    size = 0
    for chunk in chunks:
        first, last, view = chunk.find(b"\n"), chunk.rfind(b"\n"), memoryview(chunk)
        pieces.append(view if first < 0 else view[:first])
        size += len(pieces[-1])
        if size > LINE_BYTES:
            pieces.clear()
        if first >= 0:
            yield b"".join(pieces) if size <= LINE_BYTES else None
            if first < last:
                yield from chunk[first + 1 : last].split(b"\n")
            pieces = [view[last + 1 :]]
            size = len(pieces[0])
    if size:
        yield b"".join(pieces) if size <= LINE_BYTES else None


# The members of a line that are decoded; msgspec skips all others.


class _Output(msgspec.Struct, gc=False, rename="camel"):
    encoding: str | None = None
    data: str | None = None
    observed_content_type: str | None = None


class _CaptureData(msgspec.Struct, gc=False, rename="camel"):
    endpoint_output: _Output | None = None


class _EventMetadata(msgspec.Struct, gc=False, rename="camel"):
    inference_time: Annotated[str, msgspec.Meta(max_length=40)]
    custom_attributes: list[str] | str | None = None


class _Captured(msgspec.Struct, gc=False, rename="camel"):
    capture_data: _CaptureData
    event_metadata: _EventMetadata


# The time alone, for an invalid record: a record without a time counts in the slot of the previous one.
class _InferenceTime(msgspec.Struct, gc=False, rename="camel"):
    inference_time: Annotated[str, msgspec.Meta(max_length=40)]


class _Timed(msgspec.Struct, gc=False, rename="camel"):
    event_metadata: _InferenceTime


class _Input(msgspec.Struct, gc=False, rename="camel"):
    data: str | None = None
    encoding: str | None = None
    observed_content_type: str | None = None


class _Inputs(msgspec.Struct, gc=False, rename="camel"):
    endpoint_input: _Input | None = None


class _CapturedInput(msgspec.Struct, gc=False, rename="camel"):
    capture_data: _Inputs


class _RequestMetadata(msgspec.Struct, gc=False, rename="camel"):
    event_id: Annotated[str, msgspec.Meta(min_length=1)]
    custom_attributes: list[str] | str | None = None


class _Identified(msgspec.Struct, gc=False, rename="camel"):
    event_metadata: _RequestMetadata


class _CapturedRequest(_CapturedInput, gc=False, rename="camel"):
    event_metadata: _RequestMetadata


_LINE, _TIMED = msgspec.json.Decoder(_Captured), msgspec.json.Decoder(_Timed)
_INPUT = msgspec.json.Decoder(_CapturedInput)
_IDENTIFIED, _REQUEST = msgspec.json.Decoder(_Identified), msgspec.json.Decoder(_CapturedRequest)


def read_line(line: bytes | None, parser: ResponseParser, replay_key: KeySource | None = None) -> Record:
    """Read one line of a capture file.

    Args:
        line: None for a line of more than LINE_BYTES.

    Raises:
        UnreadableError: the line cannot be counted.
        RetryableError: the replay key cannot be read now.
    """
    if line is None:
        raise UnreadableError(f"line: expected at most {LINE_BYTES >> 20} MiB, got more")
    try:
        captured = _LINE.decode(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not a capture record: {error}", _time_of(line)) from error
    output, metadata = captured.capture_data.endpoint_output, captured.event_metadata
    time = metadata.inference_time
    try:
        parse_timestamp(time)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    forged = bool(metadata.custom_attributes) and is_marked(metadata.custom_attributes)
    if forged and _is_replay(line, metadata, replay_key):
        return Record(time, (), True)
    try:
        if output is None:
            raise UnreadableError("captureData.endpointOutput: expected an object, got none")
        if output.data is None or output.encoding is None:
            missing = "data" if output.data is None else "encoding"
            raise UnreadableError(f"endpointOutput.{missing}: expected text, got none")
        predictions = parser.read(output.data, output.encoding, output.observed_content_type)
        return Record(time, predictions, forged=forged)
    except UnreadableError as error:
        error.time, error.forged = time, forged
        raise


def _time_of(line: bytes) -> str | None:
    """Return the time of a line that is not a valid capture record, if it is readable."""
    try:
        time = _TIMED.decode(line).event_metadata.inference_time
        parse_timestamp(time)
    except (ValueError, RecursionError):
        return None
    return time


def _is_replay(line: bytes, metadata: _EventMetadata, replay_key: KeySource | None) -> bool:
    """Return whether the marker of a record verifies; without the input, by its signature and age alone."""
    try:
        captured = _INPUT.decode(line).capture_data.endpoint_input
        body = None if captured is None or captured.data is None else _body(captured.data, captured.encoding)
    except (ValueError, RecursionError):
        return False
    time = parse_timestamp(metadata.inference_time)
    attributes = metadata.custom_attributes
    return bool(replay_key and verified_marker(attributes, body=body, now=time, key=replay_key))


def read_event_id(line: bytes) -> str:
    """Return the event id of a line.

    Raises:
        ValueError: the line has none.
    """
    return _IDENTIFIED.decode(line).event_metadata.event_id


def read_request(line: bytes) -> CapturedRequest:
    """Read the request of a line, to send it again.

    Raises:
        ValueError: the line is not a capture record, or has no event id.
    """
    captured = _REQUEST.decode(line)
    metadata, found = captured.event_metadata, captured.capture_data.endpoint_input or _Input()
    body = None
    if found.data:
        with contextlib.suppress(ValueError):
            body = _body(found.data, found.encoding)
    content_type = found.observed_content_type or "application/octet-stream"
    return CapturedRequest(metadata.event_id, metadata.custom_attributes, body, content_type)


def _body(data: str, encoding: str | None) -> bytes:
    """Return a captured body, decoded from BASE64 or encoded as UTF-8.

    AWS does not document that it captures text byte for byte; ``make smoke`` checks it.

    Raises:
        ValueError: ``data`` is not base64, or holds half of a surrogate pair.
    """
    if encoding != "BASE64":
        return data.encode()
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"captured input: expected base64, got {error}") from error


@dataclass(frozen=True, kw_only=True)
class CaptureFolder:
    """Settings of the folder of the watched endpoint's capture files."""

    endpoint_name: str
    capture_prefix: str

    @property
    def capture_folder(self) -> str:
        """``<prefix>/<endpoint>``."""
        return f"{self.capture_prefix}/{self.endpoint_name}"


@dataclass(frozen=True, kw_only=True)
class CaptureLocation(CaptureFolder):
    """Settings of the bucket and the folder of the watched endpoint's capture files."""

    capture_bucket: str


class CaptureFile(NamedTuple):
    """The endpoint, the variant and the hour in the key of a capture file."""

    endpoint: str
    variant: str
    hour: datetime

    @property
    def variant_key(self) -> str:
        """The key of the variant's counts, ``<endpoint>/<variant>``."""
        return f"{self.endpoint}/{self.variant}"


_KEY = re.compile(
    r"(?:.+/)?(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<variant>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl"
)


def read_key(key: str, folder: str | None = None) -> CaptureFile:
    """Read the key ``<prefix>/<endpoint>/<variant>/yyyy/mm/dd/hh/<file>.jsonl``.

    Args:
        key: its prefix may be empty or contain slashes.
        folder: ``<prefix>/<endpoint>`` of the watched endpoint; None accepts the files of every endpoint.

    Raises:
        BadInputError: the key has another form, or is outside ``folder``.
    """
    if match := _KEY.fullmatch(key) if isinstance(key, str) else None:
        if folder is not None and key[: match.end("endpoint")] != folder:
            raise BadInputError(
                f"{key}: expected a capture file below {folder}/<variant>/, got one of another endpoint or prefix"
            )
        with contextlib.suppress(ValueError):
            return CaptureFile(match["endpoint"], match["variant"], parse_hour(match["hour"]))
    raise BadInputError(f"{key}: expected a capture file (…/endpoint/variant/yyyy/mm/dd/hh/name.jsonl)")
