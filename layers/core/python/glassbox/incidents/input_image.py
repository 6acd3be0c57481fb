"""A captured request body -> an image for a browser, by the standard library alone.

PNG and JPEG stay unchanged, also those in base64 in a JSON body; a uint8 array (``.npy``) becomes a PNG. A client wrote
the body: its size, and its size after decoding, are bounded.
"""

import base64
import binascii
import copy
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glassbox.errors import BadInputError
from glassbox.monitoring import npy

BODY_BYTES = 1 << 20
SIDE = 4096  # pixels
_ARRAY_PIXELS = 1 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {
    0xC4,
    0xC8,
    0xCC,
}  # SOFn: the markers that hold the size (ITU T.81, B.1.1.3)
_COLOUR_TYPES = {1: 0, 3: 2}  # of PNG, by the number of channels


_TEXT = re.compile(r"(?P<prefix>data:image/(?:png|jpeg);base64,|)(?P<base64>[A-Za-z0-9+/]{24,}={0,2})")
_VALUES = 100_000  # of a JSON body


@dataclass(frozen=True)
class Embedded:
    """An image in base64 in a JSON body, and where it is.

    ``prefix`` is that of a data URI, or empty.
    """

    image: bytes
    document: Any
    path: tuple[str | int, ...]
    prefix: str

    def replaced(self, image: bytes) -> bytes:
        """Return the body with another image in this one's place."""
        text = self.prefix + base64.b64encode(image).decode()
        if not self.path:
            return json.dumps(text).encode()
        document = copy.deepcopy(self.document)
        *parents, last = self.path
        place = document
        for key in parents:
            place = place[key]
        place[last] = text
        return json.dumps(document).encode()


def embedded_image(body: bytes) -> Embedded | None:
    """Return the PNG or JPEG that a JSON body holds in base64, or None for another body.

    Raises:
        BadInputError: the JSON holds none, or several.
    """
    if len(body) > BODY_BYTES or body.lstrip()[:1] not in (b"{", b"[", b'"'):
        return None
    try:
        document = json.loads(body)
        found = list(_embedded(document))
    except (ValueError, RecursionError):
        return None
    if len(found) != 1:
        raise BadInputError(
            f"input: expected JSON with one PNG or JPEG in base64, got {len(found) or 'none'}"
        )
    return found[0]


def _embedded(document: Any) -> Iterator[Embedded]:
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    for _ in range(_VALUES):
        if not waiting:
            return
        path, value = waiting.pop()
        if isinstance(value, str):
            match = _TEXT.fullmatch(value)
            # decoding 24 characters first, because most long texts are no images
            if match and base64.b64decode(match["base64"][:24]).startswith((_PNG, _JPEG)):
                try:
                    image = base64.b64decode(match["base64"], validate=True)
                except binascii.Error:
                    continue
                yield Embedded(image, document, path, match["prefix"])
        elif isinstance(value, dict):
            waiting += [((*path, key), member) for key, member in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, n), member) for n, member in enumerate(value)]
    raise ValueError("too many values")


def browser_image(body: bytes) -> tuple[str, bytes]:
    """Return the media type and the bytes of an image for a browser.

    Args:
        body: a PNG, a JPEG, JSON with one of them in base64, or a ``.npy`` array of uint8 (H, W), (H, W, 1 or 3), or
            (N, H, W, 1 or 3): its first image.

    Raises:
        BadInputError: the body is another format, or too large.
    """
    if len(body) > BODY_BYTES:
        raise BadInputError(f"input: expected at most {BODY_BYTES} bytes, got {len(body)}")
    if body.startswith(npy.MAGIC):
        return "image/png", _array(body)
    if embedded := embedded_image(body):
        body = embedded.image
    if body.startswith(_PNG) and len(body) >= 24:
        kind, size = "image/png", struct.unpack(">II", body[16:24])
    elif body.startswith(_JPEG):
        kind, size = "image/jpeg", _jpeg_size(body)
    else:
        raise BadInputError("input: expected PNG, JPEG, JSON with one of them in base64, or a uint8 array")
    if not all(0 < side <= SIDE for side in size):
        raise BadInputError(f"input: expected sides of 1 to {SIDE} pixels, got {size[0]} x {size[1]}")
    return kind, body


def _array(body: bytes) -> bytes:
    try:
        shape, fortran, code, _, start = npy.read_header(body)
    except ValueError as error:
        raise BadInputError(f"input: {error}") from error
    axes = shape[1:] if len(shape) == 4 else shape
    channels = axes[2] if len(axes) == 3 else 1
    if code[1] != "B" or fortran or len(axes) not in (2, 3) or channels not in _COLOUR_TYPES or 0 in shape:
        raise BadInputError(
            f"input: expected a uint8 array (H, W, 1 or 3) in C order, got one of shape {shape}"
        )
    height, width = axes[:2]
    if height * width > _ARRAY_PIXELS or len(body) - start != math.prod(shape):
        raise BadInputError(
            f"input: shape {shape} has too many pixels, or another size than its {len(body)} bytes"
        )
    row = width * channels
    rows = (b"\0" + body[start + y * row : start + (y + 1) * row] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return _PNG + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg_size(body: bytes) -> tuple[int, int]:
    """Return width and height from the frame header of a JPEG."""
    at = 2
    while at + 9 <= len(body) and body[at] == 0xFF:
        marker, length = body[at + 1], int.from_bytes(body[at + 2 : at + 4])
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", body[at + 5 : at + 9])
            return width, height
        at += 2 + length
    raise BadInputError("input: expected a JPEG with a frame header, got none")
