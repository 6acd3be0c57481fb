"""A traced step as smdebug wrote it -> named tensors, with numpy and the standard library only.

smdebug writes a step as two objects: ``<run>/index/…json`` says where each tensor lies in ``<run>/events/…tfevents``,
and comes last. The events file is a sequence of TFRecord frames, each one protobuf ``Event`` with one tensor
(tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/{summary,tensor}.proto).
smdebug leaves the checksums of the frames out; Glassbox's hook puts one of all events into the index's ``meta``.
The tensors are views on the bytes that were read: nothing is copied, and nothing is allocated that a file asks for.
"""

import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from glassbox.errors import BadInputError, printable
from glassbox.explanation import trace_format

Array = npt.NDArray[Any]

MAX_INDEX_BYTES = 4 << 20
MAX_META_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8

_INDEX_KEY = re.compile(r"(?P<run>.*/|)index/[0-9]+/(?P<step>[0-9]{1,18})_(?P<worker>[A-Za-z0-9_.-]+)\.json")

# tensorflow/core/framework/types.proto; a big-endian writer does not exist.
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

# A protobuf field is known by its number and wire type: 0 a varint, 2 a length and that many bytes.
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


@dataclass(frozen=True)
class Index:
    """Where the tensors of one step lie."""

    key: str
    step: int
    events_key: str
    ranges: Mapping[str, tuple[int, int]]
    """Name of a tensor -> first byte and number of bytes of its frame."""
    crc32: int | None
    """Of the whole events; None where the writer gave none."""


@dataclass(frozen=True)
class Module:
    """A biased module as the hook described it; ``eps`` is 0 where the type has none."""

    name: str
    type: str
    has_map: bool
    eps: float = 0.0


@dataclass(frozen=True)
class Meta:
    """``glassbox/meta``, checked; see :mod:`glassbox.explanation.trace_format`.

    ``refused`` is why the request has no trace, otherwise empty.
    """

    form: str
    model: str
    modules: tuple[Module, ...]
    inexact: tuple[str, ...]
    class_names: tuple[str | None, ...] | None
    request: Mapping[str, str | None]
    refused: str = ""


@dataclass(frozen=True)
class Trace:
    """One traced request: its tensors, read-only views on the events, and what the hook said about them."""

    key: str
    step: int
    meta: Meta
    tensors: Mapping[str, Array]


def read_index(key: str, data: bytes) -> Index:
    """Read smdebug's index of one step.

    The events lie where the index's own key says; an index that names another file is refused, so that no content
    of a bucket decides what is read next.

    Args:
        key: S3 key (or path) of the index, ``<run>/index/<step//1000:09d>/<step:012d>_<worker>.json``.
        data: its content.

    Raises:
        BadInputError: this is no index, or it is broken; names key and reason.
    """
    match = _INDEX_KEY.fullmatch(key)
    if match is None:
        raise BadInputError(f"{key}: not the key of a step's index")
    if len(data) > MAX_INDEX_BYTES:
        raise BadInputError(f"{key}: {len(data)} bytes, an index has at most {MAX_INDEX_BYTES}")
    events = f"events/{match['step']}/{match['step']}_{match['worker']}.tfevents"
    try:
        content = _object(_json(data))
        meta = _object(content.get("meta"))
        if meta.get("event_file_name") != events:
            raise ValueError(f"names {meta.get('event_file_name')!r} as its events, {events!r} is expected")
        ranges = _ranges(content.get("tensor_payload"))
    except ValueError as error:
        raise BadInputError(f"{key}: {error}") from error
    return Index(key, int(match["step"]), match["run"] + events, ranges, meta.get("crc32"))


def read_tensors(index: Index, events: bytes) -> dict[str, Array]:
    """Every tensor that ``index`` names, from the content of ``index.events_key``.

    Reads any step that smdebug wrote, not only Glassbox's own. The arrays are read-only views on ``events``.

    Raises:
        BadInputError: the events are truncated or corrupt, or do not hold what the index says.
    """
    if index.crc32 is not None and index.crc32 != zlib.crc32(events):
        raise BadInputError(f"{index.events_key}: not what was written: another checksum than in the index")
    view = memoryview(events)
    tensors = {}
    for name, (start, length) in index.ranges.items():
        try:
            tensors[name] = _read_frame(view, start, length, name, index.step)
        except ValueError as error:
            raise BadInputError(f"{index.events_key}: tensor {name!r}: {error}") from error
    return tensors


def read_trace(index: Index, events: bytes) -> Trace:
    """The trace of one request, as Glassbox's hook wrote it.

    Raises:
        BadInputError: as :func:`read_tensors`; or the step is not Glassbox's, or of an unknown version.
    """
    tensors = read_tensors(index, events)
    try:
        meta = _read_meta(tensors.get(trace_format.META))
    except ValueError as error:
        raise BadInputError(f"{index.events_key}: {trace_format.META}: {error}") from error
    return Trace(index.events_key, index.step, meta, tensors)


def read_request(index: Index, events: bytes) -> Mapping[str, str | None]:
    """Return ``request`` of the step's meta, also of a step that :func:`read_trace` refuses; empty if unreadable."""
    place = index.ranges.get(trace_format.META)
    if place is None:
        return {}
    try:
        meta = _read_frame(memoryview(events), *place, trace_format.META, index.step)
        request = _object(_object(_json(_meta_bytes(meta))).get("request"))
        return {name: _text_or_none(value, name) for name, value in request.items()}
    except ValueError:
        return {}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {_short(value)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {_short(value)}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, not {_short(value)}")
    return value


def _text_or_none(value: Any, what: str) -> str | None:
    return None if value is None else _text(value, what)


def _read_class_name(value: Any) -> str | None:
    class_name = _text_or_none(value, "class_names")
    # it enters e-mails
    return None if class_name is None else printable(class_name, trace_format.CLASS_NAME_CHARACTERS)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:57] + "…"


def _ranges(payload: Any) -> dict[str, tuple[int, int]]:
    entries = _list(payload, "tensor_payload")
    if not 0 < len(entries) <= MAX_TENSORS:
        raise ValueError(f"names {len(entries)} tensors, 1 to {MAX_TENSORS} are read")
    ranges: dict[str, tuple[int, int]] = {}
    for entry in map(_object, entries):
        name = _text(entry.get("tensorname"), "tensorname")
        start, length = entry.get("start_idx"), entry.get("length")
        # `type(…) is int`: True is an int to isinstance.
        if not (type(start) is int and type(length) is int and start >= 0 and length > 0):
            raise ValueError(f"tensor {name!r}: no range of bytes: {_short((start, length))}")
        if name in ranges:
            raise ValueError(f"tensor {name!r} is named twice")
        ranges[name] = (start, length)
    return ranges


def _read_frame(view: memoryview, start: int, length: int, name: str, step: int) -> Array:
    """One TFRecord frame: uint64 n, uint32 checksum of n, n bytes, uint32 footer (which smdebug leaves constant)."""
    if start + length > len(view):
        raise ValueError(f"bytes {start} to {start + length} are named, the file has {len(view)}")
    if length < 16 or struct.unpack_from("<Q", view, start)[0] != length - 16:
        raise ValueError(f"no record of {length} bytes begins at byte {start}")
    event = _fields(view[start + 12 : start + length - 4])
    value = _fields(_bytes(_fields(_bytes(event, _EVENT_SUMMARY)), _SUMMARY_VALUE))
    found = bytes(_bytes(value, _VALUE_TAG)).decode()
    if found != name:
        raise ValueError(f"{found!r} lies in its place")
    if event.get(_EVENT_STEP, 0) != step:
        raise ValueError(f"belongs to step {event.get(_EVENT_STEP, 0)}, not {step}")
    return _read_tensor(_bytes(value, _VALUE_TENSOR))


def _read_tensor(message: memoryview) -> Array:
    tensor = _fields(message)
    dtype = _DTYPES.get(cast("int", tensor.get(_TENSOR_DTYPE, 0)))
    if dtype is None:
        raise ValueError(f"unknown dtype {tensor.get(_TENSOR_DTYPE, 0)}")
    shape = [
        cast("int", _fields(cast("memoryview", size)).get(_DIM_SIZE, 0))
        for field, size in _walk(cast("memoryview", tensor.get(_TENSOR_SHAPE, memoryview(b""))))
        if field == _SHAPE_DIM
    ]
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, at most {MAX_DIMENSIONS} are read")
    content = cast("memoryview", tensor.get(_TENSOR_CONTENT, memoryview(b"")))
    if math.prod(shape) * np.dtype(dtype).itemsize != len(content):
        raise ValueError(f"shape {tuple(shape)} of {dtype} does not fit {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _bytes(message: Mapping[int, int | memoryview], field: int) -> memoryview:
    found = message.get(field)
    if found is None:
        raise ValueError("no tensor in its record")
    return cast("memoryview", found)


def _fields(message: memoryview) -> dict[int, int | memoryview]:
    """Field -> value; of a repeated field the last, as protobuf reads a field that is not repeated."""
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
        raise ValueError("not there: no step of Glassbox's hook")
    meta = _object(_json(_meta_bytes(tensor)))
    if meta.get("version") != trace_format.VERSION:
        raise ValueError(
            f"written by version {_short(meta.get('version'))} of the hook, version {trace_format.VERSION} is read"
        )
    if meta.get("form") not in (trace_format.REDUCED, trace_format.FULL):
        raise ValueError(f"unknown form {_short(meta.get('form'))}")
    modules = tuple(_read_module(module) for module in _list(meta.get("modules"), "modules"))
    if len({module.name for module in modules}) != len(modules):
        raise ValueError("a module is named twice")
    class_names = meta.get("class_names")
    return Meta(
        form=meta["form"],
        model=_text(meta.get("model"), "model"),
        modules=modules,
        inexact=tuple(_text(part, "inexact") for part in _list(meta.get("inexact"), "inexact")),
        class_names=None
        if class_names is None
        else tuple(map(_read_class_name, _list(class_names, "class_names"))),
        request={name: _text_or_none(v, name) for name, v in _object(meta.get("request")).items()},
        refused=printable(_text(meta.get("refused", ""), "refused"), trace_format.REASON_CHARACTERS),
    )


def _meta_bytes(tensor: Array) -> bytes:
    if tensor.dtype != np.uint8 or tensor.ndim != 1 or tensor.size > MAX_META_BYTES:
        raise ValueError(f"{tensor.dtype} {tensor.shape} holds no text")
    return tensor.tobytes()


def _read_module(entry: Any) -> Module:
    module = _object(entry)
    eps = module.get("eps")
    if not (eps is None or (isinstance(eps, int | float) and 0 <= eps < 1)):
        raise ValueError(f"eps must be a number from 0 to 1, not {_short(eps)}")
    has_map = module.get("map")
    if not isinstance(has_map, bool):
        raise ValueError(f"map must be true or false, not {_short(has_map)}")
    return Module(
        _text(module.get("name"), "module name"),
        _text(module.get("type"), "module type"),
        has_map,
        float(eps or 0),
    )
