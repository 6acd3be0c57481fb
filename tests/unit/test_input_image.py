import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glassbox.errors import BadInputError
from glassbox.incidents.input_image import BODY_BYTES, browser_image


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def encoded(array, kind, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


PIXELS = np.random.default_rng(7).integers(0, 256, (5, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[None], PIXELS),
        (np.stack([PIXELS, PIXELS[::-1]]), PIXELS),
        (PIXELS[:, :, 0].copy(), PIXELS[:, :, 0]),
        (PIXELS[:, :, :1].copy(), PIXELS[:, :, 0]),
    ],
)
def test_converts_an_array_to_a_png_with_the_same_pixels(array, expected):
    kind, image = browser_image(npy(array))
    assert kind == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), expected)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (encoded(PIXELS, "PNG"), "image/png"),
        (encoded(PIXELS, "JPEG"), "image/jpeg"),
        (encoded(PIXELS, "JPEG", progressive=True), "image/jpeg"),
    ],
)
def test_returns_png_and_jpeg_unchanged(body, kind):
    assert browser_image(body) == (kind, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<svg onload=alert(1)>",
        b"GIF89a" + bytes(20),
        encoded(PIXELS, "PNG")[:20],
        encoded(np.zeros((1, 5000), np.uint8), "PNG"),
        encoded(np.zeros((5000, 1), np.uint8), "JPEG"),
        encoded(PIXELS, "JPEG")[:4],
        encoded(PIXELS, "PNG") + bytes(BODY_BYTES),
        npy(PIXELS.astype(np.float32)),
        npy(np.asfortranarray(PIXELS)),
        npy(PIXELS[:, :, :2].copy()),
        npy(PIXELS[0, 0]),
        npy(np.zeros((0, 9, 3), np.uint8)),
        npy(PIXELS)[:-1],
        npy(np.zeros((2000, 600), np.uint8)),
        npy(np.array([None])),
    ],
)
def test_refuses_what_a_browser_cannot_show_safely(body):
    with pytest.raises(BadInputError, match=r"^input: "):
        browser_image(body)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\1\0"])
)
def test_raises_only_bad_input_errors(body, start):
    try:
        kind, _ = browser_image(start + body)
    except BadInputError:
        return
    assert kind in ("image/png", "image/jpeg")
