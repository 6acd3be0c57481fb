"""Images of every kind of file are read; a small body takes little memory and time."""

import io
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import decode

NPY, PNG, JPEG = "application/x-npy", "image/png", "image/jpeg"
SIZE = (24, 32)


def read(data, content_type, channels=3, size=SIZE):
    found = decode.read_images(data, content_type, channels, size)
    assert (found.shape[1:], found.dtype) == ((*size, channels), np.uint8)
    assert found.flags["C_CONTIGUOUS"]
    return found


def refusal(data, content_type, size=SIZE):
    with pytest.raises(decode.RequestError) as caught:
        decode.read_images(data, content_type, 3, size)
    assert caught.value.status == 400
    assert re.fullmatch(r"[A-Z].*\.", caught.value.message), "on one line"
    assert len(caught.value.message) < 300
    return caught.value.message


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def encoded(image, kind, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *chunks, bits=8, colour=2):
    """A PNG of these raw rows, each with its filter byte, with further chunks before its data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def npy_header(shape, descr="'|u1'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


COLOUR = pixels(*SIZE, 3)
GREY = pixels(*SIZE)
WIDE = np.zeros((48, 64, 3), np.uint8)
WIDE[:24, :32] = (255, 0, 0)


class TestFiles:
    def test_sixteen_bits_become_eight(self):
        deep = GREY.astype(np.uint16) << 8 | pixels(*SIZE, seed=1)
        np.testing.assert_array_equal(read(encoded(deep, "PNG"), PNG, 1)[0, ..., 0], GREY)
        np.testing.assert_array_equal(read(encoded(deep, "PNG"), PNG)[0, ..., 1], GREY)
        raw = np.dstack([COLOUR, pixels(*SIZE, 3, seed=1)]).reshape(*SIZE, 2, 3).transpose(0, 1, 3, 2)
        rows = b"".join(b"\0" + row.tobytes() for row in raw)
        np.testing.assert_array_equal(read(png(32, 24, rows, bits=16), PNG)[0], COLOUR)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_reads_every_mode_of_png(self, mode):
        given = Image.fromarray(COLOUR).convert(mode)
        np.testing.assert_array_equal(read(encoded(given, "PNG"), PNG)[0], np.asarray(given.convert("RGB")))

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_reads_every_mode_of_jpeg(self, mode):
        red = Image.new("RGB", (32, 24), (250, 10, 10)).convert(mode)
        found = read(encoded(red, "JPEG", quality=95), JPEG)
        wanted = np.asarray(red.convert("RGB")).astype(int)
        assert np.abs(found[0] - wanted).max() <= 12

    def test_keeps_colours_of_transparent_pixels(self):
        clear = np.dstack([COLOUR, np.zeros(SIZE, np.uint8)])
        np.testing.assert_array_equal(read(encoded(clear, "PNG"), PNG)[0], COLOUR)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    @pytest.mark.parametrize("order", [">", "<"])
    def test_turns_images_upright_by_their_exif_orientation(self, orientation, kind, order):
        block = struct.pack(order + "2sHIHHHIHHI", b"MM" if order == ">" else b"II", 42, 8, 1,
                            0x0112, 3, 1, orientation, 0, 0)  # fmt: skip
        data = encoded(WIDE, kind, exif=b"Exif\0\0" + block)
        # row 0 and column 0 of the stored image, as EXIF 2.32 names their sides of the upright one
        sides = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
        found = read(data, f"image/{kind.lower()}", size=(64, 64))[0, ..., 0].astype(float)
        corners = {"tl": (8, 8), "tr": (8, 55), "bl": (55, 8), "br": (55, 55)}
        brightest = max(corners, key=lambda name: found[corners[name]])
        assert set(brightest) == set(sides)

    @pytest.mark.parametrize(
        "exif", [b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"XX" + bytes(20), b"II*\0\xff\xff\xff\xff"]
    )
    def test_ignores_damaged_exif(self, exif):
        found = read(encoded(COLOUR, "PNG", exif=b"Exif\0\0" + exif), PNG)
        np.testing.assert_array_equal(found[0], COLOUR)
        assert len(read(encoded(COLOUR, "JPEG", exif=b"Exif\0\0" + exif), JPEG)) == 1

    def test_reads_the_still_image_of_an_animation(self):
        frames = [Image.fromarray(pixels(*SIZE, 3, seed=i)) for i in range(1, 4)]
        data = encoded(COLOUR, "PNG", save_all=True, append_images=frames)
        assert b"acTL" in data
        np.testing.assert_array_equal(read(data, PNG)[0], COLOUR)

    def test_enlarges_a_single_pixel(self):
        assert (read(encoded(pixels(1, 1, 3), "PNG"), PNG) == pixels(1, 1, 3)).all()
        assert (read(npy(pixels(1, 1, 3)), NPY) == pixels(1, 1, 3)).all()

    @pytest.mark.parametrize("width", [0, 32])
    def test_refuses_an_image_without_pixels(self, width):
        assert (
            refusal(png(width, 0, b""), PNG)
            == "Body: expected a readable PNG image, got another or a damaged file."
        )

    def test_scans_of_an_exif_thumbnail_are_not_counted(self):
        thumbnails = b"Exif\0\0" + encoded(pixels(8, 8, 3), "JPEG", progressive=True) * 5
        assert len(read(encoded(COLOUR, "JPEG", exif=thumbnails), JPEG)) == 1
        progressive = encoded(COLOUR, "JPEG", progressive=True, quality=95)
        np.testing.assert_array_equal(
            read(progressive, JPEG)[0], np.asarray(Image.open(io.BytesIO(progressive)))
        )


class TestArrays:
    @pytest.mark.parametrize("descr", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "|u1"])
    def test_reads_every_byte_order(self, descr):
        array = COLOUR if descr == "|u1" else (COLOUR / 255).astype(descr)
        np.testing.assert_array_equal(read(npy(array), NPY)[0], COLOUR)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64])
    @pytest.mark.parametrize("size", [SIZE, (12, 18)])
    def test_reads_every_memory_order(self, dtype, size):
        array = pixels(3, *SIZE, 3) if dtype == np.uint8 else pixels(3, *SIZE, 3) / 255
        np.testing.assert_array_equal(
            read(npy(np.asfortranarray(array)), NPY, size=size), read(npy(array), NPY, size=size)
        )

    @pytest.mark.parametrize(("value", "hint"), [(255.0, True), (2.0, True), (256.0, False), (-1.0, False)])
    def test_refuses_floats_up_to_255_with_a_hint(self, value, hint):
        array = np.zeros((*SIZE, 3))
        array[0, 0, 0] = value
        message = refusal(npy(array), NPY)
        assert message.startswith("Array: expected uint8, or floats from 0 to 1, got float64.")
        assert message.endswith(" Divide floats from 0 to 255 by 255.") is hint

    @pytest.mark.parametrize(
        "data",
        [
            npy_header(f"(0x{'f' * 8000}, 1, 3)"),  # more digits than Python writes
            npy_header(f"({'1, ' * 3000}3)"),
            npy_header("(1, 1, 3)", str([(f"field{i}", "<f4") for i in range(400)])),
            npy_header("(1, 1, 3)", "[('a\\n\\x1b[31m', '<f4')]"),
        ],
        ids=["digits", "axes", "fields", "a newline"],
    )  # fmt: skip
    def test_messages_stay_short_for_any_header(self, data):
        refusal(data, NPY)

    def test_limits_a_batch_by_the_models_size(self):
        most = decode.BATCH_PIXELS // (1024 * 1024)
        message = refusal(npy(np.zeros((most + 1, 1, 1, 3), np.uint8)), NPY, size=(1024, 1024))
        assert (
            message == f"Array: expected at most {most} images per request, got shape ({most + 1}, 1, 1, 3)."
        )
        assert len(read(npy(np.zeros((64, 1, 1, 3), np.uint8)), NPY, size=(512, 512))) == 64


@pytest.mark.parametrize(
    "content_type",
    ["image/png;", "image/png;;;", 'image/png; name="a;b.jpeg"', "IMAGE/PNG ; q=é", "\timage/png"],
)
def test_ignores_parameters_of_a_content_type(content_type):
    np.testing.assert_array_equal(read(encoded(COLOUR, "PNG"), content_type)[0], COLOUR)


@pytest.mark.parametrize(
    "content_type",
    ["image/webp", "image/gif", "image/png,image/jpeg", ";image/png", "x\n\x1b[31my"],
)
def test_refuses_other_content_types_on_one_line(content_type):
    with pytest.raises(decode.RequestError) as caught:
        read(encoded(COLOUR, "PNG"), content_type)
    assert caught.value.status == 415
    assert caught.value.message.isprintable()


def scans_of(jpeg):
    """The segments before the first scan, and each scan with its tables and data, of a progressive JPEG."""
    starts = [m.start() for m in re.finditer(rb"\xff\xda", jpeg)]
    return jpeg[: starts[0]], [jpeg[a:b] for a, b in zip(starts, [*starts[1:], len(jpeg) - 2], strict=True)]


def with_scans(count, side=2048, between=b""):
    """A JPEG whose last scan is repeated."""
    head, scans = scans_of(encoded(np.zeros((side, side, 3), np.uint8), "JPEG", progressive=True))
    return head + b"".join(scans[:-1]) + (between + scans[-1]) * (count - len(scans) + 1) + b"\xff\xd9"


def exif_bomb():
    """EXIF of 5,000 entries, each of which is the whole block."""
    entries = 5000
    block = struct.pack(">2sHIH", b"MM", 42, 8, entries)
    block += b"".join(struct.pack(">HHII", 1000 + i, 7, 60_000, 8) for i in range(entries))
    body = b"Exif\0\0" + block.ljust(65_000, b"\0")
    start = encoded(COLOUR, "JPEG")
    # without JFIF's density Pillow asks EXIF for it when it opens the file
    jfif = start.index(b"\xff\xe0")
    rest = start[jfif + 2 + int.from_bytes(start[jfif + 2 : jfif + 4], "big") :]
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + rest


def text_bomb():
    """64 texts of 1 MB each, compressed."""
    text = b"Comment\0\0" + zlib.compress(bytes((1 << 20) - 1), 9)
    return png(32, 24, (b"\0" + bytes(96)) * 24, *[chunk(b"zTXt", text)] * 63)


HOSTILE = {
    "a line of 16,777,216 pixels": (png(1 << 24, 1, b"\0" + bytes(3 << 24)), PNG),
    "a column of 4,194,304 pixels": (png(1, 1 << 22, bytes(4 << 22)), PNG),
    "the largest that is read": (png(2048, 2048, (b"\0" + bytes(8192)) * 2048, colour=6), PNG),
    "the longest that is read": (png(1 << 14, 256, (b"\0" + bytes(3 << 14)) * 256), PNG),
    "a column of an array": (npy(np.zeros((1 << 20, 1, 3), np.uint8)), NPY),
    "a progressive JPEG": (with_scans(10), JPEG),
    "a JPEG with directories of EXIF": (exif_bomb(), JPEG),
    "a PNG with texts": (text_bomb(), PNG),
}

PEAK = """
import resource, sys
import numpy as np
import decode

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

kind, data = sys.argv[1], sys.stdin.buffer.read()
decode.read_images(open(sys.argv[2], "rb").read(), "image/png", 3, (24, 32))
before = peak()
try:
    decode.read_images(data, kind, 3, (24, 32))
except decode.RequestError as error:
    print(error.message, file=sys.stderr)
print(peak() - before)
"""


class TestBounds:
    @pytest.mark.parametrize(("data", "kind"), HOSTILE.values(), ids=HOSTILE)
    def test_bounds_memory_and_time_of_any_body(self, data, kind, tmp_path):
        small = tmp_path / "small.png"
        small.write_bytes(encoded(COLOUR, "PNG"))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, kind, small],
            input=data,
            capture_output=True,
            check=True,
            cwd=Path(decode.__file__).parent,
            # SIGXCPU after so many seconds on a CPU, however many programs share it
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (15, 15)),
        )
        kilobytes = int(done.stdout)
        assert kilobytes < 80_000, done.stderr

    @pytest.mark.parametrize(
        "between", [b"", b"\xff\x01", b"\xff\x01\xff\xff\xff", b"\xff\xfe\x00\x04\xff\xd9"]
    )
    def test_counts_scans_like_the_decoder(self, between):
        assert len(read(with_scans(decode.SCANS, 64, between), JPEG)) == 1
        assert refusal(with_scans(decode.SCANS + 1, 64, between), JPEG) == (
            "JPEG: expected at most 32 scans, got more."
        )

    def test_limits_segments_and_chunks(self):
        jpeg, still = encoded(COLOUR, "JPEG"), encoded(COLOUR, "PNG")
        comments = jpeg[:2] + b"\xff\xfe\x00\x02" * decode.PARTS + jpeg[2:]
        assert refusal(comments, JPEG) == "JPEG: expected at most 32768 segments, got more."
        chunks = still[:8] + chunk(b"teXt", b"") * decode.PARTS + still[8:]
        assert refusal(chunks, PNG) == "PNG: expected at most 32768 chunks, got more."

    def test_refuses_a_bomb_by_its_size(self):
        assert refusal(HOSTILE["a line of 16,777,216 pixels"][0], PNG) == (
            "Image: expected at most 4194304 pixels and 16384 per side, got 16777216×1 pixels. Scale it down."
        )
