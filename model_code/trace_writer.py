"""Write the files of a traced step as smdebug 1.0.34 does: events, index and collections.

A step is two objects: TFRecord frames that hold one protobuf ``Event`` per tensor, and a JSON index that names the
position of each frame. ``smdebug.trials.create_trial`` and :mod:`glassbox.explanation.trace_reader` read them. The
bytes are those of smdebug's own writers, but for the checksum of the events in the index.

Sources: TensorFlow's record_writer.h (frames), event.proto, summary.proto and tensor.proto (field numbers).
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Mapping

import numpy.typing as npt

WORKER = "worker_0"
MODE = "PREDICT"
_MODE_NUMBER = "3"  # of PREDICT in smdebug's ModeKeys

# DataType of types.proto
_DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}

_VARINT, _DOUBLE, _BYTES = 0, 1, 2  # protobuf wire types

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


def write_step(folder: Path, step: int, tensors: Tensors) -> tuple[Path, Path]:
    """Write a step, and return the paths of its events and its index.

    Upload the index last: it triggers the rendering.
    The ``meta`` of the index holds ``crc32``, the checksum of the events, because the frames have none of their own.

    Raises:
        ValueError: a tensor's dtype is not one of ``types.proto``.
        OSError: the disk refuses a file.
    """
    name = f"{step:012d}_{WORKER}"
    events_path = folder / "events" / f"{step:012d}" / f"{name}.tfevents"
    index_path = folder / "index" / f"{step // 1000:09d}" / f"{name}.json"
    locations, position, checksum = [], 0, 0
    events_path.parent.mkdir(parents=True)
    with events_path.open("wb") as events:
        for tag, tensor in tensors.items():
            frame = _frame(_event(tag, tensor, step, time.time()))
            events.write(frame)
            locations.append({"tensorname": tag, "start_idx": position, "length": len(frame)})
            position += len(frame)
            checksum = zlib.crc32(frame, checksum)
    meta = {
        "mode": MODE,
        "mode_step": step,
        "event_file_name": events_path.relative_to(folder).as_posix(),
        "crc32": checksum,
    }
    index = {"meta": meta, "tensor_payload": locations, "shape_payload": []}
    index_path.parent.mkdir(parents=True)
    index_path.write_text(json.dumps(index), encoding="utf-8")
    return events_path, index_path


def write_collections(folder: Path, names: Iterable[str]) -> Path:
    """Write the list of the run's tensors, which ``create_trial`` reads before the steps."""
    default = {
        "name": "default",
        "include_regex": [],
        "tensor_names": sorted(names),
        "reduction_config": None,
        "save_config": None,
        "save_histogram": True,
    }
    path = folder / "collections" / "000000000" / f"{WORKER}_collections.json"
    path.parent.mkdir(parents=True)
    collections = {"collections": {"default": default}, "_meta": {"num_workers": 1}}
    path.write_text(json.dumps(collections), encoding="utf-8")
    return path


def _event(tag: str, tensor: Array, step: int, wall_time: float) -> bytes:
    value = b"".join(
        (
            _field(1, tag),
            _field(8, _tensor(tag, tensor)),
            _field(9, _plugin("mode_step", str(step)) + _plugin("mode", _MODE_NUMBER)),
        )
    )
    wall = _varint(1 << 3 | _DOUBLE) + struct.pack("<d", wall_time)
    return wall + _number(2, step) + _field(5, _field(1, value))


def _tensor(tag: str, tensor: Array) -> bytes:
    if tensor.dtype.name not in _DTYPES:
        raise ValueError(f"tensor {tag}: expected a dtype of {', '.join(_DTYPES)}, got {tensor.dtype}")
    # smdebug names a dimension by its size
    shape = b"".join(_field(2, _number(1, size) + _field(2, f"{tag}_{size}")) for size in tensor.shape)
    content = tensor.astype(tensor.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
    return (
        _number(1, _DTYPES[tensor.dtype.name]) + _field(2, shape) + (_field(4, content) if content else b"")
    )


def _plugin(name: str, content: str) -> bytes:
    return _field(1, _field(1, name) + _field(2, content))


def _field(number: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | _BYTES) + _varint(len(raw)) + raw


def _number(number: int, value: int) -> bytes:
    """Return a field of an int64 or an enum; protobuf leaves out a zero."""
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _frame(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + _masked_crc32c(length) + record + _FOOTER


def _masked_crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc32c_table() -> Iterator[int]:
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


_CRC32C = tuple(_crc32c_table())
# smdebug computes no checksum of the record; it writes that of this text instead.
_FOOTER = _masked_crc32c(b"0x12345678")
