"""Read a traced step as smdebug wrote it into named tensors, with numpy and msgspec only.

smdebug writes a step as two objects: ``<run>/events/…tfevents`` holds the tensors, and ``<run>/index/…json``, written
last, the byte range of each. The events file is a sequence of TFRecord frames, each one protobuf ``Event`` with one
tensor (tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/{summary,tensor}.proto).
smdebug leaves out the frames' checksums; Glassbox's recorder adds one of all events to the index's ``meta``.
The tensors are views on the bytes read: nothing is copied, and no size in a file decides how much is allocated.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt

from glassbox.errors import BadInputError, printable
from glassbox.explanation import trace_format
from glassbox.explanation.facts import Blurred

Array = npt.NDArray[Any]
T = TypeVar("T")

MAX_INDEX_BYTES = 4 << 20
MAX_META_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8

_INDEX_KEY = re.compile(r"(?P<run>.*/|)index/[0-9]+/(?P<step>[0-9]{1,18})_(?P<worker>[A-Za-z0-9_.-]+)\.json")

# tensorflow/core/framework/types.proto; all writers are little-endian.
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    8: "<c8",
    9: "<i8",
    10: "|b1",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}

# Protobuf identifies a field by its number and wire type: 0 a varint, 2 a length and that many bytes.
_VARINT, _BYTES = 0, 2
_EVENT_STEP = 2 << 3 | _VARINT
_EVENT_SUMMARY = 5 << 3 | _BYTES
_SUMMARY_VALUE = 1 << 3 | _BYTES
_VALUE_TAG = 1 << 3 | _BYTES
_VALUE_TENSOR = 8 << 3 | _BYTES
_TENSOR_DTYPE = 1 << 3 | _VARINT
_TENSOR_SHAPE = 2 << 3 | _BYTES
_TENSOR_CONTENT = 4 << 3 | _BYTES
_SHAPE_DIM = 2 << 3 | _BYTES
_DIM_SIZE = 1 << 3 | _VARINT


class _TensorRange(msgspec.Struct):
    tensorname: str
    start_idx: Annotated[int, msgspec.Meta(ge=0)]
    length: Annotated[int, msgspec.Meta(gt=0)]


class _IndexMeta(msgspec.Struct):
    event_file_name: str
    crc32: int | None = None


class _IndexFile(msgspec.Struct):
    meta: _IndexMeta
    tensor_payload: Annotated[list[_TensorRange], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]


@dataclass(frozen=True)
class Index:
    """The byte ranges of one step's tensors."""

    key: str
    step: int
    events_key: str
    ranges: Mapping[str, tuple[int, int]]
    """Name of a tensor -> first byte and number of bytes of its frame."""
    crc32: int | None
    """Of the whole events file; None if the writer gave none."""


class Term(msgspec.Struct, frozen=True):
    """What a constant adds to the logit, and by which rule; ``eps`` is that of a BatchNorm."""

    name: str
    type: str
    rule: str
    has_map: bool = msgspec.field(name="map")
    eps: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None


class Meta(msgspec.Struct, frozen=True):
    """``glassbox/meta``, which :mod:`glassbox.explanation.trace_format` documents.

    ``refused`` is empty for a trace.
    """

    trace_form: Literal["reduced", "full"]
    model: str
    terms: tuple[Term, ...]
    held: Mapping[str, int]
    unaccounted: tuple[str, ...]
    request: Mapping[str, str | None]
    class_names: tuple[str | None, ...] | None = None
    blurred: tuple[Blurred | None, ...] | None = None
    refused: str = ""


class _Version(msgspec.Struct):
    version: object = None


class _Requested(msgspec.Struct):
    request: Mapping[str, str | None]


@dataclass(frozen=True)
class Trace:
    """The meta of a traced request, and its tensors as read-only views on the events."""

    key: str
    step: int
    meta: Meta
    tensors: Mapping[str, Array]


def read_index(key: str, data: bytes) -> Index:
    """Read smdebug's index of one step.

    The index's own key decides where the events are. An index that names another file is refused, so no content of a
    bucket decides what is read next.

    Args:
        key: S3 key (or path) of the index, ``<run>/index/<step//1000:09d>/<step:012d>_<worker>.json``.
        data: its content.

    Raises:
        BadInputError: not an index, or a damaged one; names key and reason.
    """
    match = _INDEX_KEY.fullmatch(key)
    if match is None:
        raise BadInputError(f"{key}: expected the key of a step's index, got another")
    if len(data) > MAX_INDEX_BYTES:
        raise BadInputError(f"{key}: expected at most {MAX_INDEX_BYTES} bytes, got {len(data)}")
    events = f"events/{match['step']}/{match['step']}_{match['worker']}.tfevents"
    try:
        content = _decoded(data, _IndexFile)
        if content.meta.event_file_name != events:
            raise ValueError(f"event_file_name: expected {events!r}, got {content.meta.event_file_name!r}")
        ranges = {entry.tensorname: (entry.start_idx, entry.length) for entry in content.tensor_payload}
        if len(ranges) != len(content.tensor_payload):
            raise ValueError("tensor_payload: expected every tensor once, got a name twice")
    except ValueError as error:
        raise BadInputError(f"{key}: {error}") from error
    return Index(key, int(match["step"]), match["run"] + events, ranges, content.meta.crc32)


def read_tensors(index: Index, events: bytes) -> dict[str, Array]:
    """Return every tensor of ``index``, as read-only views on ``events``.

    Reads any step that smdebug wrote, not only Glassbox's own.

    Args:
        events: the content of ``index.events_key``.

    Raises:
        BadInputError: the events are truncated or corrupt, or contradict the index.
    """
    if index.crc32 is not None and index.crc32 != zlib.crc32(events):
        raise BadInputError(
            f"{index.events_key}: expected the index's checksum, got another. The file was changed."
        )
    view = memoryview(events)
    tensors = {}
    for name, (start, length) in index.ranges.items():
        try:
            tensors[name] = _read_frame(view, start, length, name, index.step)
        except ValueError as error:
            raise BadInputError(f"{index.events_key}: tensor {name!r}: {error}") from error
    return tensors


def read_trace(index: Index, events: bytes) -> Trace:
    """Return the trace of one request, as Glassbox's recorder wrote it.

    Raises:
        BadInputError: as :func:`read_tensors`; or another program or another version wrote the step.
    """
    tensors = read_tensors(index, events)
    try:
        meta = _read_meta(tensors.get(trace_format.META))
    except ValueError as error:
        raise BadInputError(f"{index.events_key}: {trace_format.META}: {error}") from error
    return Trace(index.events_key, index.step, meta, tensors)


def read_request(index: Index, events: bytes) -> Mapping[str, str | None]:
    """Return the meta's ``request``, empty if unreadable.

    It is readable even for steps that :func:`read_trace` refuses, such as those of another version.
    """
    place = index.ranges.get(trace_format.META)
    if place is None:
        return {}
    try:
        meta = _read_frame(memoryview(events), *place, trace_format.META, index.step)
        return _decoded(_meta_bytes(meta), _Requested).request
    except ValueError:
        return {}


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def _read_frame(view: memoryview, start: int, length: int, name: str, step: int) -> Array:
    """Read one TFRecord frame: uint64 n, uint32 checksum of n, n bytes, uint32 footer (constant in smdebug)."""
    if start + length > len(view):
        raise ValueError(f"expected bytes {start} to {start + length}, got a file of {len(view)}")
    if length < 16 or struct.unpack_from("<Q", view, start)[0] != length - 16:
        raise ValueError(f"expected a record of {length} bytes at byte {start}, got none")
    event = _fields(view[start + 12 : start + length - 4])
    value = _fields(_bytes(_fields(_bytes(event, _EVENT_SUMMARY)), _SUMMARY_VALUE))
    found = bytes(_bytes(value, _VALUE_TAG)).decode()
    if found != name:
        raise ValueError(f"expected this tensor, found {found!r}")
    if event.get(_EVENT_STEP, 0) != step:
        raise ValueError(f"expected step {step}, got {event.get(_EVENT_STEP, 0)}")
    return _read_tensor(_bytes(value, _VALUE_TENSOR))


def _read_tensor(message: memoryview) -> Array:
    tensor = _fields(message)
    dtype = _DTYPES.get(cast("int", tensor.get(_TENSOR_DTYPE, 0)))
    if dtype is None:
        raise ValueError(f"dtype: expected one of {sorted(_DTYPES)}, got {tensor.get(_TENSOR_DTYPE, 0)}")
    shape = [
        cast("int", _fields(cast("memoryview", size)).get(_DIM_SIZE, 0))
        for field, size in _walk(cast("memoryview", tensor.get(_TENSOR_SHAPE, memoryview(b""))))
        if field == _SHAPE_DIM
    ]
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape: expected at most {MAX_DIMENSIONS} dimensions, got {len(shape)}")
    content = cast("memoryview", tensor.get(_TENSOR_CONTENT, memoryview(b"")))
    if math.prod(shape) * np.dtype(dtype).itemsize != len(content):
        raise ValueError(f"content: expected {dtype} {tuple(shape)}, got {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _bytes(message: Mapping[int, int | memoryview], field: int) -> memoryview:
    found = message.get(field)
    if found is None:
        raise ValueError("expected a tensor in the record, got none")
    return cast("memoryview", found)


def _fields(message: memoryview) -> dict[int, int | memoryview]:
    """Return field -> value; the last value of a repeated field, as protobuf reads singular fields."""
    return dict(_walk(message))


def _walk(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position, end = 0, len(message)
    while position < end:
        field, position = _varint(message, position)
        wire = field & 7
        if wire == _VARINT:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire == _BYTES:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("corrupt record")
        if position + size > end:
            raise ValueError("truncated record")
        yield field, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
    raise ValueError("truncated record")


def _read_meta(tensor: Array | None) -> Meta:
    if tensor is None:
        raise ValueError(
            "expected the meta of Glassbox's recorder, got none. Another program wrote the step."
        )
    content = _meta_bytes(tensor)
    version = _decoded(content, _Version).version
    if version != trace_format.VERSION:
        raise ValueError(
            f"version: expected {trace_format.VERSION}, got {printable(repr(version), 60)}. "
            "Pack and deploy the model with this version of Glassbox."
        )
    meta = _decoded(content, Meta)
    if len({term.name for term in meta.terms}) != len(meta.terms):
        raise ValueError("terms: expected every name once, got a name twice")
    # These texts enter e-mails.
    class_names = meta.class_names and tuple(
        None if name is None else printable(name, trace_format.CLASS_NAME_CHARACTERS)
        for name in meta.class_names
    )
    refused = printable(meta.refused, trace_format.REASON_CHARACTERS)
    return msgspec.structs.replace(meta, class_names=class_names, refused=refused)


def _meta_bytes(tensor: Array) -> bytes:
    if tensor.dtype != np.uint8 or tensor.ndim != 1 or tensor.size > MAX_META_BYTES:
        raise ValueError(
            f"expected at most {MAX_META_BYTES} bytes of text, got {tensor.dtype} {tensor.shape}"
        )
    return tensor.tobytes()
