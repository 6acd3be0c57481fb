import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glassbox.diagnosis.pixels import decode
from glassbox.errors import BadInputError
from glassbox.incidents.input_image import BODY_BYTES, browser_image, embedded_image


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


def text(image):
    return base64.b64encode(image).decode()


LARGE = np.random.default_rng(8).integers(0, 256, (12, 20, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "form",
    [
        lambda image: {"image": text(image)},
        lambda image: {"instances": [{"id": "a" * 200, "b64": text(image)}], "other": [1.5, None, True]},
        lambda image: {"inputs": f"data:image/png;base64,{text(image)}"},
        lambda image: [text(image)],
        text,
    ],
)
def test_an_image_in_base64_in_json_is_shown_and_replaced(kind, form):
    image, other = encoded(LARGE, kind), encoded(LARGE[::-1], "PNG")
    body = json.dumps(form(image)).encode()
    assert browser_image(body) == (f"image/{kind.lower()}", image)
    found = embedded_image(body)
    assert found.replaced(image) == body
    assert json.loads(found.replaced(other)) == form(other)
    decoded = decode(body)
    assert decoded.pixels.shape == (12, 20, 3)
    assert np.array_equal(decode(decoded.encode(decoded.pixels)).pixels.shape, (12, 20, 3))


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({}, "none"),
        ({"a": "x" * 100}, "none"),
        ({"a": text(b"GIF89a" + bytes(40))}, "none"),
        ({"a": text(encoded(LARGE, "PNG"))[:-3]}, "none"),
        ([text(encoded(LARGE, "PNG"))] * 2, "2"),
        ({"inputs": [[0.5, 0.25]]}, "none"),
    ],
)
def test_json_without_one_image_is_refused(document, found):
    with pytest.raises(BadInputError, match=f"expected JSON with one PNG or JPEG in base64, got {found}"):
        browser_image(json.dumps(document).encode())


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"[" + b"0," * 200_000 + b"0]", b"{}" * 2])
def test_other_json_is_refused(body):
    with pytest.raises(BadInputError, match="input: expected PNG, JPEG, JSON"):
        browser_image(body)


def test_an_image_in_json_has_the_limits_of_an_image():
    huge = bytearray(encoded(LARGE, "PNG"))
    huge[16:24] = (100_000).to_bytes(4) * 2
    with pytest.raises(BadInputError, match="expected sides of 1 to 4096 pixels"):
        browser_image(json.dumps({"image": text(bytes(huge))}).encode())
