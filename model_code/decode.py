"""Read the images of a request within bounds: a small body must not cost much memory or time."""

import io
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

# Of one image as it is sent. Decoding one holds at most about 60 MB.
PIXELS = 1 << 22
LONGEST_SIDE = 1 << 14  # Pillow's resampling tables take 16 bytes a row and a column
SCANS = 32  # of a JPEG; progressive encoders write about 10, and each costs a pass over all coefficients
PARTS = 1 << 15  # segments of a JPEG, chunks of a PNG
# Of all images of a request.
BATCH = 64
BATCH_PIXELS = 1 << 24  # at the model's size: 200 MB as float32

NO_NPY = "The body is not an array in the .npy format."
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

# JPEG, ITU-T T.81, B.1.1: markers without a length are 0x01 and 0xd0 to 0xd8; 0xff00 is a stuffed byte of data.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
_SCAN, _END, _EXIF, _COMMENT = 0xDA, 0xD9, 0xE1, 0xFE
# What decoding needs of the application segments: JFIF's and Adobe's, which say how colours are stored.
_DROPPED = frozenset(range(0xE1, 0xF0)) - {0xEE} | {_COMMENT}

# What decoding needs of a PNG's chunks. Without the chunks of its animation, the file is the still image.
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


class RequestError(Exception):
    """The request cannot be answered: an HTTP status, and one sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def read_images(data: bytes, content_type: str | None, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Return the images of a body at the model's size: (N, H, W, C) uint8, in C order.

    The order in memory of an .npy body is not kept: strides choose a convolution's kernel, and kernels round
    differently. The same pixels must give the same answer.

    Raises:
        RequestError: 400 (no image, or too large) or 415.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "application/x-npy":
        return np.stack([_resized(image, size) for image in _npy(data, channels, size)])
    if kind == "image/png":
        return _file(data, "PNG", _png, channels, size)[None]
    if kind == "image/jpeg":
        return _file(data, "JPEG", _jpeg, channels, size)[None]
    raise RequestError(
        415, f"The content type is {kind[:100]!r}; application/x-npy, image/png and image/jpeg are read."
    )


def _npy(data: bytes, channels: int, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W, C) uint8, in C order."""
    shape, dtype, offset = _npy_header(data)
    said, kind = str(shape)[:100], str(dtype)[:100]
    # `type(…) is int`: a header may say True, which numpy lets pass
    if (
        len(shape) not in (3, 4)
        or not all(type(side) is int and side >= 1 for side in shape)
        or shape[-1] != channels
    ):
        raise RequestError(
            400, f"The array has shape {said}; (H, W, {channels}) or (N, H, W, {channels}) is read."
        )
    _check_bounds(f"The array has shape {said}", *shape[-3:-1])
    most = min(BATCH, BATCH_PIXELS // math.prod(size))
    if len(shape) == 4 and shape[0] > most:
        raise RequestError(400, f"The array has shape {said}; at most {most} images a request are read.")
    if math.prod(shape) * dtype.itemsize != len(data) - offset:
        raise RequestError(400, f"The array's header promises {said} {kind}, which the body does not hold.")
    unread = f"The array is {kind}; uint8, or floats from 0 to 1, are read."
    if dtype != np.uint8 and dtype.kind != "f":
        raise RequestError(400, unread)
    array = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1, *shape[-3:])
    if dtype != np.uint8:
        # `not all(inside)`, so that NaN counts as outside
        if not ((array >= 0) & (array <= 1)).all():
            scaled = array.min() >= 0 and 1 < array.max() <= 255
            raise RequestError(400, unread + (" Divide floats from 0 to 255 by 255." if scaled else ""))
        array = (array * 255).round().astype(np.uint8)
    return np.ascontiguousarray(array)


def _npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and the offset of the values, read before np.load allocates what the header asks for."""
    stream = io.BytesIO(data)
    try:
        shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
        str(shape)  # the messages quote it, and int has a limit of digits
    except Exception as error:
        # Whatever numpy raises at foreign bytes (a SyntaxError, a TokenError, …): it is of no fixed kind.
        raise RequestError(400, NO_NPY) from error
    if dtype.hasobject:
        raise RequestError(400, "The array holds pickled objects, which are not read.")
    return shape, dtype, stream.tell()


def _file(
    data: bytes,
    kind: str,
    opened: Callable[[bytes], tuple[Image.Image, int]],
    channels: int,
    size: tuple[int, int],
) -> np.ndarray:
    """(H, W, C) uint8, upright by its EXIF orientation."""
    try:
        image, orientation = opened(data)
        with image:
            _check_bounds(f"The picture has {image.width}×{image.height} pixels", image.height, image.width)
            if image.mode == "I;16":  # of 16 bits a colour, Pillow takes the high byte by itself
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = upright(image.convert("RGB" if channels == 3 else "L"), orientation)
            # a copy, since Pillow's memory is read-only and torch wants to write
            pixels = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    except RequestError:
        raise
    except Exception as error:
        # As above: at a broken file, Pillow raises even an AssertionError.
        raise RequestError(400, f"The body is not a {kind} picture that can be read.") from error
    return pixels.reshape(*size, channels)


def _check_bounds(found: str, height: int, width: int) -> None:
    if height * width > PIXELS or max(height, width) > LONGEST_SIDE:
        raise RequestError(
            400, f"{found}; at most {PIXELS} pixels, and {LONGEST_SIDE} a side, are read: scale it down."
        )


def _png(data: bytes) -> tuple[Image.Image, int]:
    """The image, undecoded, and its orientation. Texts and profiles are left out: Pillow decompresses up to 64 MB."""
    kept = [data[:8]]
    for kind, chunk in _png_chunks(data):
        if kind in _CHUNKS:
            kept.append(chunk)
    # Not Image.open, which refuses what is very large without saying how large it is.
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
    raise RequestError(400, f"The PNG has more than {PARTS} chunks, which are not read.")


def _jpeg(data: bytes) -> tuple[Image.Image, int]:
    """The image, undecoded, and its orientation. Pillow, which reads EXIF when it opens, gets a file without.

    A directory of EXIF may hold the same 64 KB 5,000 times.
    """
    kept, orientation, scans, position = [data[:2]], 1, 0, 2
    for kind, start, position in _jpeg_segments(data):
        scans += kind == _SCAN
        if scans > SCANS:
            raise RequestError(400, f"The JPEG has more than {SCANS} scans, which are not read.")
        if scans == 1 and kind == _SCAN:
            kept.append(data[start:])
        elif not scans and kind not in _DROPPED:
            kept.append(data[start:position])
        elif not scans and kind == _EXIF and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 4 : position])
    return JpegImageFile(io.BytesIO(b"".join(kept))), orientation


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of every segment; what lies between two is the data of a scan."""
    position = 2
    for _ in range(PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END:
            return
        # Its length, for EXIF holds a thumbnail with scans of its own.
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[1][0], found.end() - 2, position
    raise RequestError(400, f"The JPEG has more than {PARTS} segments, which are not read.")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror an image that was stored in this EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def exif_orientation(exif: bytes) -> int:
    """Return the orientation that a block of EXIF gives: 1 to 8; 1 (upright) where it gives none or is damaged."""
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


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8, bilinear."""
    if image.shape[:2] == size:
        return image
    plain = image if image.shape[2] == 3 else image[..., 0]
    resized = Image.fromarray(plain).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size, -1)
