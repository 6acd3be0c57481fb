"""The .npy format of numeric arrays, read with the standard library: the counting function has no NumPy.

numpy.lib.format: magic, version, header length, a Python dict as text, then the values. The three members of the dict
are found with regular expressions; the text is never evaluated.
"""

import math
import re
import struct
from collections.abc import Sequence
from typing import Any

MAGIC = b"\x93NUMPY"

_HEADER_BYTES = 10_000  # as numpy.load allows
_VALUES = 4 << 20
_DESCR = re.compile(r"""(['"])descr\1\s*:\s*(['"])([<>|=])([iuf])([1248])\2\s*[,}]""")
_ORDER = re.compile(r"""(['"])fortran_order\1\s*:\s*(True|False)\s*[,}]""")
_SHAPE = re.compile(r"""(['"])shape\1\s*:\s*\(((?:\s*\d{1,9}\s*,)*(?:\s*\d{1,9})?\s*)\)\s*[,}]""")
_FORMATS = {
    **{("i", size): code for size, code in zip((1, 2, 4, 8), "bhiq", strict=True)},
    **{("u", size): code for size, code in zip((1, 2, 4, 8), "BHIQ", strict=True)},
    **{("f", size): code for size, code in zip((2, 4, 8), "efd", strict=True)},
}


def read(body: bytes, *, rows: int) -> Any:
    """Return an array of at most two axes as numbers in (lists of) lists.

    An array of more axes loses its axes of length 1 after the first: (N, K, 1, 1) is read as (N, K).

    Args:
        rows: the largest first axis of an array of two axes.

    Raises:
        ValueError: the body is not such an array, holds objects, or differs in size from its shape.
    """
    shape, fortran, code, size, start = read_header(body)
    count = math.prod(shape)
    if count > _VALUES or len(body) - start != count * size:
        raise ValueError(
            f"shape {shape} of {size}-byte values: expected {count * size} bytes, got {len(body) - start}"
        )
    axes = _two_axes(shape)
    if len(axes) == 2 and axes[0] > rows:
        raise ValueError(f"shape {shape}: expected at most {rows} rows")
    values = struct.unpack_from(f"{code[0]}{count}{code[1]}", body, start)
    if not axes:
        return values[0]
    if len(axes) == 1:
        return list(values)
    n, k = axes
    return [list(values[i::n]) if fortran else list(values[i * k : (i + 1) * k]) for i in range(n)]


def read_header(body: bytes) -> tuple[tuple[int, ...], bool, str, int, int]:
    """Return shape, Fortran order, format of :mod:`struct`, bytes per value, and offset."""
    if not body.startswith(MAGIC) or len(body) < 12 or body[6] not in (1, 2, 3):
        raise ValueError("expected the .npy format, version 1 to 3")
    start = 10 if body[6] == 1 else 12
    length = int.from_bytes(body[8:start], "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"header: expected at most {_HEADER_BYTES} bytes, got {length}")
    header = body[start : start + length].decode("latin-1")
    descr, order, shape = (pattern.findall(header) for pattern in (_DESCR, _ORDER, _SHAPE))
    if len(descr) != 1 or len(order) != 1 or len(shape) != 1:
        raise ValueError("expected one dtype of i, u or f with 1 to 8 bytes; pickled objects are not read")
    *_, byte_order, kind, width = descr[0][1:]
    if (kind, int(width)) not in _FORMATS:
        raise ValueError(f"dtype {kind}{width}: expected i, u or f with 1 to 8 bytes")
    axes = tuple(int(axis) for axis in shape[0][1].split(",") if axis.strip())
    letter = _FORMATS[kind, int(width)]
    return (
        axes,
        order[0][1] == "True",
        (">" if byte_order == ">" else "<") + letter,
        int(width),
        start + length,
    )


def _two_axes(shape: Sequence[int]) -> list[int]:
    axes = list(shape)
    for i in range(len(axes) - 1, 0, -1):
        if len(axes) > 2 and axes[i] == 1:
            del axes[i]
    if len(axes) > 2:
        raise ValueError(f"shape {tuple(shape)}: expected one or two axes")
    return axes
