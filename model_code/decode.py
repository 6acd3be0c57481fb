"""Read the images of a request within bounds: a small body must not cost much memory or time."""

import importlib.util
import io
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

_ToolkitError: Any = Exception
if importlib.util.find_spec("sagemaker_inference"):
    _ToolkitError = importlib.import_module("sagemaker_inference.errors").BaseInferenceToolkitError

Array = npt.NDArray[Any]

# Limits of one encoded image. Decoding one takes at most about 60 MB.
PIXELS = 1 << 22
LONGEST_SIDE = 1 << 14  # Pillow's resampling tables take 16 bytes a row and a column
SCANS = 32  # of a JPEG; progressive encoders write about 10, and each costs a pass over all coefficients
PARTS = 1 << 15  # segments of a JPEG, chunks of a PNG
# Limits of all images of a request.
BATCH = 64
BATCH_PIXELS = 1 << 24  # at the model's size: 200 MB as float32

NO_NPY = "Body: expected an array in the .npy format, got something else."
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

# JPEG, ITU-T T.81, B.1.1: markers without a length are 0x01 and 0xd0 to 0xd8; 0xff00 is a stuffed byte of data.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
_SCAN, _END, _EXIF, _COMMENT = 0xDA, 0xD9, 0xE1, 0xFE
# JFIF's and Adobe's application segments are kept, because they define how colours are stored.
_DROPPED = frozenset(range(0xE1, 0xF0)) - {0xEE} | {_COMMENT}

# The chunks that decoding needs. Without the animation's chunks, the file is the still image.
_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class RequestError(_ToolkitError):  # type: ignore[misc]  # the toolkit is untyped
    """An HTTP status and one sentence for the client, for a request that cannot be answered.

    The SageMaker inference toolkit answers with the status of its own error only: 500 for each other one.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = self.status_code = status
        self.message = self.phrase = message
        Exception.__init__(self, message)


def read_images(data: bytes, content_type: str | None, channels: int, size: tuple[int, int]) -> Array:
    """Return the images of a body at the model's size: (N, H, W, C) uint8, in C order.

    The memory order of an .npy body is not kept: torch selects a convolution's kernel by the strides, and kernels round
    differently. The same pixels must give the same answer.

    Raises:
        RequestError: 400 (not an image, or too large) or 415.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "application/x-npy":
        return np.stack([_resized(image, size) for image in _npy(data, channels, size)])
    if kind == "image/png":
        return _file(data, "PNG", _png, channels, size)[None]
    if kind == "image/jpeg":
        return _file(data, "JPEG", _jpeg, channels, size)[None]
    raise RequestError(
        415, f"Content-Type: expected application/x-npy, image/png or image/jpeg, got {kind[:100]!r}."
    )


def _npy(data: bytes, channels: int, size: tuple[int, int]) -> Array:
    """Return (N, H, W, C) uint8, in C order."""
    shape, dtype, offset = _npy_header(data)
    found, kind = str(shape)[:100], str(dtype)[:100]
    # `type(…) is int`: numpy accepts True as a side in a header.
    if (
        len(shape) not in (3, 4)
        or not all(type(side) is int and side >= 1 for side in shape)
        or shape[-1] != channels
    ):
        raise RequestError(
            400, f"Array: expected shape (H, W, {channels}) or (N, H, W, {channels}), got {found}."
        )
    _check_bounds(f"shape {found}", *shape[-3:-1])
    most = min(BATCH, BATCH_PIXELS // math.prod(size))
    if len(shape) == 4 and shape[0] > most:
        raise RequestError(400, f"Array: expected at most {most} images per request, got shape {found}.")
    if math.prod(shape) * dtype.itemsize != len(data) - offset:
        raise RequestError(
            400, f"Array: expected the bytes of shape {found} {kind}, got {len(data) - offset} bytes."
        )
    unread = f"Array: expected uint8, or floats from 0 to 1, got {kind}."
    if dtype != np.uint8 and dtype.kind != "f":
        raise RequestError(400, unread)
    array = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1, *shape[-3:])
    if dtype != np.uint8:
        # `not all(inside)`, because NaN counts as outside.
        if not ((array >= 0) & (array <= 1)).all():
            scaled = array.min() >= 0 and 1 < array.max() <= 255
            raise RequestError(400, unread + (" Divide floats from 0 to 255 by 255." if scaled else ""))
        array = (array * 255).round().astype(np.uint8)
    return np.ascontiguousarray(array)


def _npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and offset of the values, before np.load allocates by the header."""
    stream = io.BytesIO(data)
    try:
        shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)  # type: ignore[no-untyped-call]
        str(shape)  # raises for integers of too many digits, which the messages could not quote
    except Exception as error:
        # For other bytes numpy raises a SyntaxError, a TokenError and more.
        raise RequestError(400, NO_NPY) from error
    if dtype.hasobject:
        raise RequestError(400, "Array: expected numbers, got pickled objects.")
    return shape, dtype, stream.seek(0, io.SEEK_CUR)


def _file(
    data: bytes,
    kind: str,
    opened: Callable[[bytes], tuple[Image.Image, int]],
    channels: int,
    size: tuple[int, int],
) -> Array:
    """Return (H, W, C) uint8, turned upright by its EXIF orientation."""
    try:
        image, orientation = opened(data)
        with image:
            _check_bounds(f"{image.width}×{image.height} pixels", image.height, image.width)
            if image.mode == "I;16":  # for 16 bits per colour Pillow itself takes the high byte
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = upright(image.convert("RGB" if channels == 3 else "L"), orientation)
            # A copy, because Pillow's memory is read-only and torch needs a writable array.
            pixels = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    except RequestError:
        raise
    except Exception as error:
        # For a broken file Pillow raises any error, even an AssertionError.
        raise RequestError(
            400, f"Body: expected a readable {kind} image, got another or a damaged file."
        ) from error
    return pixels.reshape(*size, channels)


def _check_bounds(found: str, height: int, width: int) -> None:
    if height * width > PIXELS or max(height, width) > LONGEST_SIDE:
        raise RequestError(
            400,
            f"Image: expected at most {PIXELS} pixels and {LONGEST_SIDE} per side, got {found}. Scale it down.",
        )


def _png(data: bytes) -> tuple[Image.Image, int]:
    """Return the undecoded image and its orientation.

    Texts and profiles are left out, because Pillow decompresses up to 64 MB of them.
    """
    kept = [data[:8]]
    for kind, chunk in _png_chunks(data):
        if kind in _CHUNKS:
            kept.append(chunk)
    # Not Image.open, which rejects very large images without their size.
    image = PngImageFile(io.BytesIO(b"".join(kept)))
    return image, exif_orientation(image.info.get("exif", b""))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG_SIGNATURE)
    for _ in range(PARTS):
        if position >= len(data):
            return
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position:end]
        position = end
    raise RequestError(400, f"PNG: expected at most {PARTS} chunks, got more.")


def _jpeg(data: bytes) -> tuple[Image.Image, int]:
    """Return the undecoded image and its orientation.

    Pillow gets the file without its EXIF, because it reads EXIF on opening, and a directory may refer to the same 64 KB
    5,000 times.
    """
    kept, orientation, scans, position = [data[:2]], 1, 0, 2
    for kind, start, position in _jpeg_segments(data):
        scans += kind == _SCAN
        if scans > SCANS:
            raise RequestError(400, f"JPEG: expected at most {SCANS} scans, got more.")
        if scans == 1 and kind == _SCAN:
            kept.append(data[start:])
        elif not scans and kind not in _DROPPED:
            kept.append(data[start:position])
        elif not scans and kind == _EXIF and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 4 : position])
    return JpegImageFile(io.BytesIO(b"".join(kept))), orientation


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of every segment; the bytes between two are the data of a scan."""
    position = 2
    for _ in range(PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END:
            return
        # Skip by the length, because EXIF may contain a thumbnail with scans.
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[1][0], found.end() - 2, position
    raise RequestError(400, f"JPEG: expected at most {PARTS} segments, got more.")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror an image stored in this EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in a block of EXIF, 1 to 8, or 1 (upright) if it is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if exif[:2] == b"II" else "big")

    directory = number(4, 4)
    for at in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(exif)), 12):
        if number(at, 2) == _ORIENTATION:
            return number(at + 8, 2)
    return 1


def _resized(image: Array, size: tuple[int, int]) -> Array:
    """Return (H, W, C) uint8, resized bilinearly."""
    if image.shape[:2] == size:
        return image
    plain = image if image.shape[2] == 3 else image[..., 0]
    resized = Image.fromarray(plain).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size, -1)
