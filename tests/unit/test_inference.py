"""The model's own code: what it answers, and what it refuses with which words."""

import hashlib
import importlib
import io
import json
import pickle
import re
import struct
import sys
import zlib
from datetime import UTC, datetime
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws
from PIL import Image

import inference
import replays
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import BadInputError, SettingsError
from glassbox.model_config import to_config
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker
from resnet import ResNet18

CONFIG = {
    "architecture": "resnet18",
    "image_size": [24, 32],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "labels": ["Stop", "Yield", "No entry", "Priority", "Road work"],
}
NPY, PNG, JPEG, JSON = "application/x-npy", "image/png", "image/jpeg", "application/json"


def unpacked(folder, config=CONFIG, **sizes):
    """An unpacked model.tar.gz of a small network."""
    torch.manual_seed(0)
    (folder / "model").mkdir(parents=True)
    network = ResNet18(**{"num_classes": 5, "width": 4} | sizes)
    torch.save(network.state_dict(), folder / "model" / "model.pt")
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("tensors_output", "TRACES_PER_MINUTE", "TRACE_FORM", "BLUR_TEST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return inference.model_fn(str(unpacked(tmp_path_factory.mktemp("model"))))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def encoded(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def image_array(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def answer(classifier, data, kind=NPY, accept=JSON, context=None):
    body, content_type = inference.transform_fn(classifier, data, kind, accept, context)
    assert content_type == JSON
    return json.loads(body)["predictions"]


def same(found, expected):
    """Whether two answers agree within rounding: kernels may differ with alignment, threads and batch."""
    return len(found) == len(expected) and all(
        [(top["class"], top["label"]) for top in one["top3"]]
        == [(top["class"], top["label"]) for top in other["top3"]]
        and [top["probability"] for top in one["top3"]]
        == pytest.approx([top["probability"] for top in other["top3"]], rel=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


def refusal(classifier, data, kind=NPY, accept=JSON):
    with pytest.raises(inference.RequestError) as caught:
        inference.transform_fn(classifier, data, kind, accept)
    message = caught.value.message
    assert re.fullmatch(r"[A-Z].*\.", message), "one sentence, on one line"
    return caught.value.status, message


def independent(classifier, array):
    """Softmax of the network's logits for one image of the model's size, from numpy."""
    x = (array / 255 - np.array(CONFIG["mean"])) / np.array(CONFIG["std"])
    with torch.no_grad():
        logits = classifier.network(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32))
    return logits[0].double().softmax(0).numpy()


class TestAnswer:
    def test_holds_the_three_most_probable_classes(self, classifier):
        array = image_array(24, 32, 3)
        (prediction,) = answer(classifier, npy(array))
        probabilities = independent(classifier, array)
        best = np.argsort(-probabilities)[:3]
        assert [top["class"] for top in prediction["top3"]] == best.tolist()
        np.testing.assert_allclose(
            [t["probability"] for t in prediction["top3"]], probabilities[best], rtol=1e-5
        )
        assert [top["label"] for top in prediction["top3"]] == [CONFIG["labels"][i] for i in best]
        assert {k: prediction[k] for k in ("class", "label", "probability")} == prediction["top3"][0]

    def test_batch_keeps_its_order(self, classifier):
        batch = image_array(7, 24, 32, 3)
        together = answer(classifier, npy(batch))
        assert len(together) == 7
        for array, prediction in zip(batch, together, strict=True):
            (alone,) = answer(classifier, npy(array))
            assert alone["class"] == prediction["class"]
            assert alone["probability"] == pytest.approx(prediction["probability"], rel=1e-5)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_are_rounded_to_eight_bits(self, classifier, dtype):
        array = image_array(24, 32, 3)
        exact = answer(classifier, npy(array))
        assert same(answer(classifier, npy((array / 255).astype(dtype))), exact)
        if dtype != np.float16:
            assert same(answer(classifier, npy(((array + 0.4) / 255).clip(0, 1).astype(dtype))), exact)

    def test_images_are_resized_bilinearly(self, classifier):
        array = image_array(61, 40, 3)
        resized = np.asarray(Image.fromarray(array).resize((32, 24), Image.Resampling.BILINEAR))
        assert same(answer(classifier, npy(array)), answer(classifier, npy(resized)))

    def test_files_equal_arrays_of_their_pixels(self, classifier):
        array = image_array(24, 32, 3)
        assert same(answer(classifier, encoded(array, "PNG"), PNG), answer(classifier, npy(array)))
        jpeg = encoded(array, "JPEG", quality=95)
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert same(answer(classifier, jpeg, JPEG), answer(classifier, npy(pixels)))

    def test_grey_palette_and_transparent_images_become_rgb(self, classifier):
        grey = image_array(24, 32)
        expected = answer(classifier, npy(np.repeat(grey[..., None], 3, 2)))
        assert same(answer(classifier, encoded(grey, "PNG"), PNG), expected)
        stream = io.BytesIO()
        Image.fromarray(grey).convert("P").save(stream, "PNG")
        assert same(answer(classifier, stream.getvalue(), PNG), expected)
        opaque = np.dstack([*[grey] * 3, np.full_like(grey, 255)])
        assert same(answer(classifier, encoded(opaque, "PNG"), PNG), expected)

    def test_memory_order_does_not_matter(self, classifier):
        array = image_array(2, 24, 32, 3)
        assert same(answer(classifier, npy(np.asfortranarray(array))), answer(classifier, npy(array)))

    def test_network_for_grey_images_without_labels(self, tmp_path):
        config = CONFIG | {"mean": [0.5], "std": [0.25], "labels": None}
        classifier = inference.model_fn(str(unpacked(tmp_path, config, in_channels=1, num_classes=2)))
        grey = image_array(50, 40)
        (prediction,) = answer(classifier, encoded(grey, "PNG"), PNG)
        assert same([prediction], answer(classifier, npy(grey[..., None])))
        assert [top["label"] for top in prediction["top3"]] == [None, None]
        assert sum(top["probability"] for top in prediction["top3"]) == pytest.approx(1)
        status, message = refusal(classifier, npy(image_array(24, 32, 3)))
        assert (status, message) == (
            400,
            "Array: expected shape (H, W, 1) or (N, H, W, 1), got (24, 32, 3).",
        )

    @pytest.mark.parametrize("data", [bytearray, memoryview, bytes])
    def test_accepts_every_type_of_body(self, classifier, data):
        body = npy(image_array(24, 32, 3))
        assert same(answer(classifier, data(body)), answer(classifier, body))

    @pytest.mark.parametrize(
        "kind", ["application/x-npy; charset=binary", "Application/X-NPY", " application/x-npy"]
    )
    def test_content_type_may_have_parameters_and_capitals(self, classifier, kind):
        assert len(answer(classifier, npy(image_array(24, 32, 3)), kind)) == 1

    @pytest.mark.parametrize(
        "accept", [JSON, "", None, "*/*", "application/*;q=0.8", "text/html, APPLICATION/JSON;q=0.9"]
    )
    def test_accepts_ranges_that_include_json(self, classifier, accept):
        assert len(answer(classifier, npy(image_array(24, 32, 3)), accept=accept)) == 1

    def test_raises_for_logits_that_are_not_finite(self, tmp_path):
        classifier = inference.model_fn(str(unpacked(tmp_path)))
        torch.nn.init.constant_(classifier.network.fc.bias, torch.nan)
        with pytest.raises(ArithmeticError, match="expected finite logits"):
            inference.transform_fn(classifier, npy(image_array(24, 32, 3)), NPY, JSON)


def png_header(width, height, bits=8, colour=2):
    """Return a PNG whose header declares this size and whose pixel data is 9 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def npy_header(text, version=b"\x01\x00"):
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode()


class Exploding:
    """Unpickled, it would raise."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


ARRAY = image_array(24, 32, 3)
NO_NPY = "Body: expected an array in the .npy format, got something else."
PICKLED = "Array: expected numbers, got pickled objects."
BYTES = "Array: expected the bytes of shape (24, 32, 3) uint8, got"
NUMBERS = "Array: expected uint8, or floats from 0 to 1, got"
NO_PNG = "Body: expected a readable PNG image, got another or a damaged file."
NO_JPEG = "Body: expected a readable JPEG image, got another or a damaged file."
SHAPES = "Array: expected shape (H, W, 3) or (N, H, W, 3), got"
LARGE = "Image: expected at most 4194304 pixels and 16384 per side, got"
BAD = {
    "nothing": (b"", NPY, NO_NPY),
    "text": (b"[[1, 2, 3]]", NPY, NO_NPY),
    "a pickle": (pickle.dumps(Exploding()), NPY, NO_NPY),
    "a zip of arrays": (b"PK\x03\x04" + bytes(64), NPY, NO_NPY),
    "a pickled array": (npy(np.array([Exploding()], object)), NPY, PICKLED),
    "pickles in fields": (
        npy(np.zeros((2, 2, 3), [("a", object)])), NPY, PICKLED),
    "an unknown version": (b"\x93NUMPY\x09\x00" + npy(ARRAY)[8:], NPY, NO_NPY),
    "half a header": (npy(ARRAY)[:40], NPY, NO_NPY),
    "a header that is code": (npy_header("__import__('os')"), NPY, NO_NPY),
    "a header of brackets": (npy_header("(" * 9000, b"\x02\x00"), NPY, NO_NPY),
    "a header with a wrong dtype": (
        npy_header("{'descr': 'what', 'fortran_order': False, 'shape': (1, 1, 3)}"), NPY, NO_NPY),
    "a header with negative sizes": (
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1, 3)}") + bytes(3), NPY,
        f"{SHAPES} (-1, -1, 3)."),
    "a header that promises a terabyte": (
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 3)}"), NPY,
        f"{LARGE} shape (1000000, 1000000, 3). Scale it down."),
    "a header of truths": (
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (True, True, 3)}") + bytes(3), NPY,
        f"{SHAPES} (True, True, 3)."),
    "an array in each field": (
        npy_header("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (2, 2, 3)}") + bytes(96), NPY,
        f"{NUMBERS} ('<f4', (2,))."),
    "half an array": (npy(ARRAY)[:-1], NPY, f"{BYTES} 2303 bytes."),
    "more than an array": (npy(ARRAY) + b"\0", NPY, f"{BYTES} 2305 bytes."),
    "channels first": (npy(ARRAY.transpose(2, 0, 1)), NPY, f"{SHAPES} (3, 24, 32)."),
    "one channel": (npy(ARRAY[..., 0]), NPY, f"{SHAPES} (24, 32)."),
    "five axes": (npy(ARRAY[None, None]), NPY, f"{SHAPES} (1, 1, 24, 32, 3)."),
    "an empty batch": (npy(ARRAY[None][:0]), NPY, f"{SHAPES} (0, 24, 32, 3)."),
    "no pixel": (npy(ARRAY[:0]), NPY, f"{SHAPES} (0, 32, 3)."),
    "too many images": (
        npy(np.zeros((65, 1, 1, 3), np.uint8)), NPY,
        "Array: expected at most 64 images per request, got shape (65, 1, 1, 3)."),
    "integers": (npy(ARRAY.astype(np.int64)), NPY, f"{NUMBERS} int64."),
    "truths": (npy(ARRAY > 7), NPY, f"{NUMBERS} bool."),
    "texts": (npy(np.full((2, 2, 3), "a")), NPY, f"{NUMBERS} <U1."),
    "complex numbers": (npy(ARRAY * 1j), NPY, f"{NUMBERS} complex128."),
    "floats up to 255": (
        npy(ARRAY / 1.0), NPY, f"{NUMBERS} float64. Divide floats from 0 to 255 by 255."),
    "negative floats": (npy(ARRAY / -255.0), NPY, f"{NUMBERS} float64."),
    "not a number": (npy(np.full((2, 2, 3), np.nan)), NPY, f"{NUMBERS} float64."),
    "no png": (b"GIF89a" + bytes(64), PNG, NO_PNG),
    "an empty png": (b"", PNG, NO_PNG),
    "a jpeg called png": (encoded(ARRAY, "JPEG"), PNG, NO_PNG),
    "a png called jpeg": (encoded(ARRAY, "PNG"), JPEG, NO_JPEG),
    "half a png": (encoded(ARRAY, "PNG")[:200], PNG, NO_PNG),
    "half a jpeg": (encoded(ARRAY, "JPEG")[:700], JPEG, NO_JPEG),
    "a png of nothing": (png_header(24, 32), PNG, NO_PNG),
    "a bomb": (png_header(5000, 5000), PNG, f"{LARGE} 5000×5000 pixels. Scale it down."),
    "a bomb that Pillow warns of": (
        png_header(11000, 11000), PNG, f"{LARGE} 11000×11000 pixels. Scale it down."),
    "a bomb that Pillow refuses": (
        png_header(20000, 20000), PNG, f"{LARGE} 20000×20000 pixels. Scale it down."),
}  # fmt: skip


class TestRefusal:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(("data", "kind", "message"), BAD.values(), ids=BAD)
    def test_refuses_invalid_bodies(self, classifier, data, kind, message):
        assert refusal(classifier, data, kind) == (400, message)

    @pytest.mark.parametrize("kind", ["", None, "text/csv", JSON, "image/gif", "image/*", "x" * 500])
    def test_refuses_other_content_types(self, classifier, kind):
        status, message = refusal(classifier, npy(ARRAY), kind)
        assert status == 415
        assert message.startswith("Content-Type: expected application/x-npy, image/png or image/jpeg, got '")
        assert len(message) < 200

    @pytest.mark.parametrize(
        "accept", ["text/csv", "image/png", "application/x-npy", "text/html, text/plain"]
    )
    def test_rejects_unsupported_accept_headers(self, classifier, accept):
        status, message = refusal(classifier, npy(ARRAY), accept=accept)
        assert (status, message) == (406, f"Accept: expected application/json, got {accept!r}.")

    @pytest.mark.parametrize("kind", [NPY, PNG, JPEG])
    @settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damaged_bodies_are_answered_or_refused(self, classifier, kind, data):
        """An answer, or a refusal: nothing else comes out, and nothing large is allocated on the way."""
        good = npy(ARRAY) if kind == NPY else encoded(ARRAY, kind.removeprefix("image/").upper())
        broken = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            broken[data.draw(st.integers(0, len(good) - 1) | st.integers(0, 130))] = data.draw(
                st.integers(0, 255)
            )
        if data.draw(st.booleans()):
            del broken[data.draw(st.integers(0, len(good))) :]
        try:
            assert len(answer(classifier, bytes(broken), kind)) >= 1
        except inference.RequestError as error:
            assert error.status == 400


class ToolkitContext:
    """A request's context as TorchServe gives it to the toolkit."""

    system_properties = {"model_dir": "."}  # noqa: RUF012

    def __init__(self, **headers):
        self.request_processor, self.headers, self.status = [self], headers, None

    def get_request_properties(self):
        return self.headers

    def get_all_request_header(self, _):
        return self.headers

    def set_response_content_type(self, *_):
        pass

    def set_response_status(self, code, phrase):
        self.status = code, phrase


class TestToolkit:
    """Requests through the transformer of the SageMaker inference toolkit."""

    @pytest.fixture
    def transform(self, classifier):
        transformer = pytest.importorskip("sagemaker_inference.transformer").Transformer()
        environment = importlib.import_module("sagemaker_inference.environment").Environment()
        transformer._model, transformer._transform_fn = classifier, inference.transform_fn
        transformer._environment, transformer._initialized = environment, True

        def transform(body, **headers):
            context = ToolkitContext(**headers)
            transformer._context = context
            (answer,) = transformer.transform([{"body": bytearray(body)}], context)
            return context.status, answer

        return transform

    def test_answers(self, transform):
        status, answer = transform(npy(ARRAY), **{"Content-Type": NPY, "Accept": "*/*"})
        assert status is None
        assert len(json.loads(answer)["predictions"]) == 1

    @pytest.mark.parametrize(
        ("headers", "expected", "message"),
        [
            ({"Content-Type": PNG}, 400, NO_PNG),
            ({"Content-Type": NPY, "Accept": "text/csv"}, 406, "Accept: expected application/json"),
            ({"Content-Type": "image/gif"}, 415, "Content-Type: expected application/x-npy, image/png or"),
            ({"Content-Type": JSON}, 415, "Content-Type: expected application/x-npy, image/png or"),
            ({"Content-Type": "text/csv"}, 415, "Content-Type: expected application/x-npy, image/png or"),
        ],
    )
    def test_a_refusal_keeps_its_status_and_sentence(self, transform, headers, expected, message):
        (code, phrase), answer = transform(b'{"instances": []}', **headers)
        assert code == expected
        assert phrase.startswith(message)
        assert answer.splitlines()[0] == phrase


class Recorder:
    """A recorder that keeps its calls."""

    def __init__(self, network, wanted=True):
        self.network, self.wanted, self.asked, self.traced, self.closed = network, wanted, [], [], 0

    def wants(self, *request):
        self.asked.append(request)
        return {"wanted": "yes"} if self.wanted else None

    def predict(self, image, input_image, request, labels):
        self.traced.append((image, input_image, request, labels))
        with torch.no_grad():
            return self.network(image)

    def close(self):
        self.closed += 1


def toolkit(headers):
    """The context of the PyTorch inference toolkit."""
    return SimpleNamespace(get_all_request_header=lambda index: headers if index == 0 else None)


HEADERS = {
    "X-Amzn-SageMaker-Inference-Id": "id-7",
    "X-Amzn-SageMaker-Custom-Attributes": "a=1,glassbox=9",
}


class TestTracing:
    @pytest.mark.parametrize(
        ("context", "inference_id", "attributes"),
        [
            (None, None, None),
            (SimpleNamespace(headers={}), None, None),
            (SimpleNamespace(headers=HEADERS), "id-7", "a=1,glassbox=9"),
            (
                SimpleNamespace(headers={k.lower(): v for k, v in HEADERS.items()}),
                "id-7",
                "a=1,glassbox=9",
            ),
            (toolkit(HEADERS), "id-7", "a=1,glassbox=9"),
            (toolkit({k.upper(): v for k, v in HEADERS.items()}), "id-7", "a=1,glassbox=9"),
        ],
    )
    def test_recorder_gets_input_image_and_request(self, tmp_path, context, inference_id, attributes):
        plain = inference.model_fn(str(unpacked(tmp_path)))
        recorder = Recorder(plain.network)
        hooked = inference.Classifier(**{**vars(plain), "recorder": recorder})
        body = encoded(image_array(50, 60, 3), "PNG")
        assert same(answer(hooked, body, PNG, context=context), answer(plain, body, PNG, context=context))

        assert recorder.asked == [(body, attributes, inference_id)]
        ((image, seen, request, labels),) = recorder.traced
        assert (image.shape, image.dtype) == ((1, 3, 24, 32), torch.float32)
        assert (seen.shape, seen.dtype) == ((1, 24, 32, 3), np.uint8)
        mean, std = np.array(CONFIG["mean"]), np.array(CONFIG["std"])
        np.testing.assert_allclose(image[0].permute(1, 2, 0), (seen[0] / 255 - mean) / std, atol=1e-6)
        assert labels == CONFIG["labels"]
        assert request == {"wanted": "yes"}
        hooked.close()
        plain.close()
        assert recorder.closed == 1

    def test_unwanted_and_refused_requests_are_not_traced(self, tmp_path):
        plain = inference.model_fn(str(unpacked(tmp_path)))
        recorder = Recorder(plain.network, wanted=False)
        hooked = inference.Classifier(**{**vars(plain), "recorder": recorder})
        assert same(answer(hooked, npy(ARRAY)), answer(plain, npy(ARRAY)))
        assert (recorder.asked, recorder.traced) == ([(npy(ARRAY), None, None)], [])
        refusal(hooked, b"")
        assert len(recorder.asked) == 1, "a refused request is not counted as traffic"


class TestModel:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"architecture": "vgg"}, "architecture must be 'resnet18' or 'module:Class'"),
            ({"architecture": "os:path.join"}, "architecture must be"),
            ({"architecture": "../net:Net"}, "architecture must be"),
            ({"arguments": [1]}, "arguments must be an object"),
            ({"image_size": None}, "image_size must be two whole numbers (H, W) from 1 to 1024"),
            ({"image_size": [48, 0]}, "image_size must be"),
            ({"image_size": [48, 48.5]}, "image_size must be"),
            ({"image_size": [48, True]}, "image_size must be"),
            ({"image_size": [2000, 48]}, "image_size must be"),
            ({"image_size": 48}, "image_size must be"),
            ({"mean": [0.5, 0.5]}, "mean must be 1 or 3 numbers"),
            ({"mean": [0.5]}, "std must be as many numbers, above 0"),
            ({"std": [0.1, 0.2, "0.3"]}, "std must be as many numbers, above 0"),
            ({"std": [0.1, 0.2, 0]}, "std must be as many numbers, above 0"),
            ({"mean": [0.5, np.nan, 0.5]}, "mean must be 1 or 3 numbers"),
            ({"mean": [0.5, np.inf, 0.5]}, "mean must be 1 or 3 numbers"),
            ({"mean": [0.5, 10**400, 0.5]}, "mean must be 1 or 3 numbers"),
            ({"mean": [0.5, 1e39, 0.5]}, "mean must be 1 or 3 numbers"),
            ({"std": [0.1, np.nan, 0.1]}, "std must be as many numbers, above 0"),
            ({"std": [], "mean": []}, "mean must be 1 or 3 numbers"),
            ({"std": [], "mean": 0}, "mean must be 1 or 3 numbers"),
            ({"architecture": ["resnet18"]}, "architecture must be"),
            ({"architecture": "net..part:Net"}, "architecture must be"),
            ({"std": [0.1, 1e-60, 0.1]}, "std must be as many numbers, above 0"),
            ({"labels": [1, 2, 3, 4, 5]}, "labels must be null or texts"),
            (
                {"labels": [0], "mean": 0},
                "mean must be 1 or 3 numbers; std must be as many numbers, above 0; labels",
            ),
        ],
    )
    def test_refuses_an_invalid_config(self, tmp_path, change, problem):
        unpacked(tmp_path, CONFIG | change)
        with pytest.raises(BadInputError, match=re.escape(problem)) as caught:
            inference.model_fn(str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}/model/config.json: ")

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", "3", "[" * 100_000])
    def test_refuses_a_config_that_is_not_an_object(self, tmp_path, text):
        unpacked(tmp_path)
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(BadInputError, match=r"config\.json: expected a JSON object"):
            inference.model_fn(str(tmp_path))

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"labels": ["Stop"]}, "labels must be null or 5 texts, found 1"),
            (
                {"mean": [0.5], "std": [0.5]},
                "expected a network that takes images of (1, 24, 32) (channels, height, width), got RuntimeError",
            ),
        ],
    )
    def test_refuses_a_config_of_another_network(self, tmp_path, change, problem):
        unpacked(tmp_path, CONFIG | change)
        with pytest.raises(BadInputError, match=re.escape(problem)):
            inference.model_fn(str(tmp_path))

    @pytest.mark.parametrize(
        "change",
        [
            lambda good: b"",
            lambda good: b"text",
            lambda good: b"no weights",
            lambda good: good[:1000],
            lambda good: good[:-5],
            lambda good: good[len(good) // 2 :],
        ],
    )
    def test_refuses_unreadable_weights(self, tmp_path, change):
        weights = unpacked(tmp_path) / "model" / "model.pt"
        weights.write_bytes(change(weights.read_bytes()))
        with pytest.raises(BadInputError, match="expected a state dict of tensors alone") as caught:
            inference.model_fn(str(tmp_path))
        assert str(caught.value).startswith(f"{weights}: ")

    @settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damaged_weights_load_or_raise_bad_input(self, tmp_path_factory, data):
        """In the format before zip files, of which nothing has a checksum."""
        stream = io.BytesIO()
        torch.save({"a": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
        damaged = bytearray(stream.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        weights = tmp_path_factory.mktemp("damaged") / "model.pt"
        weights.write_bytes(damaged)
        with pytest.raises(BadInputError):
            inference.load_network(weights, to_config(CONFIG))

    @pytest.mark.parametrize("name", ["model.pt", "config.json"])
    def test_names_missing_files(self, tmp_path, name):
        (unpacked(tmp_path) / "model" / name).unlink()
        with pytest.raises(BadInputError, match=rf"model/{name}: No such file or directory"):
            inference.model_fn(str(tmp_path))

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"\x40\0\0\0\0\0\0\0" + b'{"fc.weight":{"dtype":"F32"}}'.ljust(80), "a safetensors file"),
            (b"\x89HDF\r\n\x1a\n" + bytes(80), "an HDF5 file"),
        ],
    )
    def test_names_files_of_other_frameworks(self, tmp_path, content, found):
        (unpacked(tmp_path) / "model" / "model.pt").write_bytes(content)
        with pytest.raises(BadInputError, match=f"expected a state dict of tensors alone, .* got {found}"):
            inference.model_fn(str(tmp_path))

    def test_names_torchscript_archives(self, tmp_path):
        unpacked(tmp_path)
        scripted = torch.jit.trace(torch.nn.Linear(3, 4).eval(), torch.zeros(1, 3))
        torch.jit.save(scripted, tmp_path / "model" / "model.pt")
        with pytest.raises(BadInputError, match=r"got a TorchScript archive\. Save torch\.jit\.load"):
            inference.model_fn(str(tmp_path))

    def test_refuses_weights_that_are_not_finite(self, tmp_path):
        unpacked(tmp_path)
        weights = ResNet18(num_classes=5, width=4).state_dict()
        weights["layer1.0.bn1.running_var"][2] = torch.nan
        torch.save(weights, tmp_path / "model" / "model.pt")
        with pytest.raises(BadInputError, match=r"got NaN or infinity in layer1\.0\.bn1\.running_var"):
            inference.model_fn(str(tmp_path))

    def test_loads_training_checkpoints(self, tmp_path):
        unpacked(tmp_path)
        weights = torch.load(tmp_path / "model" / "model.pt", weights_only=True)
        wrapped = {"epoch": 7, "state_dict": {f"model.{key}": value for key, value in weights.items()}}
        torch.save(wrapped, tmp_path / "model" / "model.pt")
        network = inference.model_fn(str(tmp_path)).network
        assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())

    def test_weights_are_never_unpickled(self, tmp_path):
        unpacked(tmp_path)
        torch.save({"conv1.weight": Exploding()}, tmp_path / "model" / "model.pt")
        with pytest.raises(BadInputError, match="expected a state dict of tensors alone"):
            inference.model_fn(str(tmp_path))

    def test_is_plain_without_tensors_output(self, tmp_path, monkeypatch):
        unpacked(tmp_path)
        assert inference.model_fn(str(tmp_path)).recorder is None
        monkeypatch.setenv("tensors_output", " ")
        assert inference.model_fn(str(tmp_path)).recorder is None
        monkeypatch.setenv("tensors_output", "s3://bucket/tensors/signs")
        hooked = inference.model_fn(str(tmp_path))
        hooked.close()
        assert type(hooked.recorder).__name__ == "TensorRecorder"

    def test_verifies_replays_with_the_key_of_the_environment(self, tmp_path, monkeypatch, caplog):
        unpacked(tmp_path)
        incident = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator"
        marker = replays.marker(incident=incident)
        monkeypatch.setenv("tensors_output", "s3://bucket/tensors/signs")
        monkeypatch.setenv("TRACES_PER_MINUTE", "0")
        for key, verified in ((replays.KEY.text, True), ("", False)):
            monkeypatch.setenv("REPLAY_KEY", key)
            hooked = inference.model_fn(str(tmp_path))
            hooked.close()
            assert bool(hooked.recorder.wants(replays.BODY, marker)) is verified
        assert "REPLAY_KEY, REPLAY_KEY_ARN: expected one of them" in caplog.text
        monkeypatch.setenv("REPLAY_KEY", "x")
        with pytest.raises(BadInputError, match="replay key"):
            inference.model_fn(str(tmp_path))

    def test_reads_the_replay_key_from_kms(self, tmp_path, monkeypatch):
        unpacked(tmp_path)
        with mock_aws():
            kms = boto3.client("kms")
            arn = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
            monkeypatch.setenv("tensors_output", "s3://bucket/tensors/signs")
            monkeypatch.setenv("REPLAY_KEY_ARN", arn)
            marker = ReplayMarker(TRACE, f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator", "event-1")
            marked = write_marker(marker, b"body", ReplayKey(kms, arn).sign)
            hooked = inference.model_fn(str(tmp_path))
            hooked.close()
            assert hooked.recorder.wants(b"body", marked)["replay_event_id"] == "event-1"
            monkeypatch.setenv("REPLAY_KEY_ARN", arn[:-1])
            with pytest.raises(ClientError, match="NotFound"):
                inference.model_fn(str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("TRACES_PER_MINUTE", "-1"),
            ("TRACES_PER_MINUTE", "many"),
            ("TRACE_FORM", "half"),
            ("BLUR_TEST", "sometimes"),
            ("tensors_output", "bucket/x"),
        ],
    )
    def test_refuses_invalid_settings(self, tmp_path, monkeypatch, name, value):
        unpacked(tmp_path)
        monkeypatch.setenv("tensors_output", "s3://bucket/tensors/signs")
        monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match=rf"{name}\b.*{value!r}"):
            inference.model_fn(str(tmp_path))


NETWORK = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes, flat=True):
        super().__init__()
        self.conv, self.fc, self.flat = nn.Conv2d(3, 4, 3), nn.Linear(4, classes), flat

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.fc(x) if self.flat else [x]
"""


class TestOwnNetwork:
    """A class in code/, named by config.json."""

    @pytest.fixture
    def tiny(self, tmp_path, monkeypatch):
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "tiny_net.py").write_text(NETWORK)
        monkeypatch.syspath_prepend(tmp_path / "code")
        monkeypatch.delitem(sys.modules, "tiny_net", raising=False)
        return importlib.import_module("tiny_net").Tiny

    def archive(self, folder, network, **config):
        unpacked(folder, CONFIG | {"architecture": "tiny_net:Tiny", "arguments": {"classes": 5}} | config)
        torch.save(network.state_dict(), folder / "model" / "model.pt")
        return inference.model_fn(str(folder))

    def test_builds_the_class_with_its_arguments(self, tmp_path, tiny):
        network = tiny(5)
        classifier = self.archive(tmp_path, network)
        assert not classifier.network.training
        array = image_array(24, 32, 3)
        (prediction,) = answer(classifier, npy(array))
        best = int(independent(classifier, array).argmax())
        assert (prediction["class"], prediction["label"]) == (best, CONFIG["labels"][best])
        for name, weight in network.state_dict().items():
            assert torch.equal(classifier.network.state_dict()[name], weight)

    @pytest.mark.parametrize(
        ("architecture", "arguments", "reason"),
        [
            (
                "nowhere_net:Tiny",
                {},
                "expected a network of the module nowhere_net, .* ModuleNotFoundError: No module",
            ),
            (
                "tiny_net:Huge",
                {},
                r"expected a network of the module tiny_net, .* AttributeError: module .* 'Huge'",
            ),
            ("tiny_net:Tiny", {}, "expected a network of the module tiny_net, .* TypeError: .*'classes'"),
            (
                "tiny_net:Tiny",
                {"classes": -1},
                "expected a network of the module tiny_net, .* RuntimeError: ",
            ),
            (
                "tiny_net:Tiny",
                {"depth": 3},
                r"expected a network of the module tiny_net, .* arguments {'depth': 3}, got TypeError: .*'depth'",
            ),
            ("collections:OrderedDict", {}, "expected a torch.nn.Module, got a OrderedDict"),
        ],
    )
    def test_names_why_a_class_cannot_be_built(self, tmp_path, tiny, architecture, arguments, reason):
        with pytest.raises(BadInputError, match=f"^{architecture}: {reason}"):
            self.archive(tmp_path, tiny(5), architecture=architecture, arguments=arguments)

    def test_refuses_a_network_for_other_images(self, tmp_path, tiny):
        module = tmp_path / "code" / "narrow_net.py"
        module.write_text(NETWORK.replace("x = self.conv(x)", "n, c, h = x.shape; x = self.conv(x)"))
        with pytest.raises(
            BadInputError,
            match=r"images of \(3, 24, 32\) .channels, height, width., got ValueError: too many",
        ):
            self.archive(tmp_path, tiny(5), architecture="narrow_net:Tiny")

    def test_refuses_weights_of_another_network(self, tmp_path, tiny):
        with pytest.raises(
            BadInputError, match=r"tiny_net:Tiny: expected its own weights, got others: .*fc\.weight"
        ):
            self.archive(tmp_path, tiny(4))

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
    def test_loads_weights_with_a_wrappers_prefix(self, tmp_path, tiny, prefix):
        network = tiny(5)
        weights = network.state_dict()
        saved = SimpleNamespace(state_dict=lambda: {f"{prefix}{key}": v for key, v in weights.items()})
        found = self.archive(tmp_path, saved).network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in weights.items())

    def own(self, tmp_path, tiny, forward, classes=5):
        """The archive of a network that ends with this expression of the logits ``z``."""
        module = NETWORK.replace(
            "return self.fc(x) if self.flat else [x]", f"z = self.fc(x); return {forward}"
        )
        name = f"net_{hashlib.sha256(forward.encode()).hexdigest()[:8]}"
        (tmp_path / "code" / f"{name}.py").write_text("import collections, torch\n" + module)
        config = {"architecture": f"{name}:Tiny", "arguments": {"classes": classes}, "labels": None}
        return self.archive(tmp_path, tiny(classes), **config)

    @pytest.mark.parametrize(
        ("forward", "found"),
        [
            ("(z, x)", r"a tuple\. Return the tensor of logits alone from forward\(\)\."),
            ("{'logits': z}", "a dict"),
            ("collections.namedtuple('ImageClassifierOutput', 'logits')(z)", "a ImageClassifierOutput"),
            ("None", "a NoneType"),
            ("z[0]", r"\(5,\) for 2 images"),
            ("z[:1]", r"\(1, 5\) for 2 images"),
            ("z[:, :, None]", r"\(2, 5, 1\) for 2 images"),
            ("z[:, :1]", "1 output unit, whose softmax is 1 for every image"),
            ("z[:, :0]", "0 output unit"),
            ("z.argmax(1, keepdim=True).expand(2, 3)", r"torch\.int64\. Return floats"),
            ("z / 0", "NaN or infinity for an image of noise"),
            ("z.softmax(1)", r"probabilities\. Leave out the softmax"),
        ],
    )
    def test_refuses_a_network_without_logits(self, tmp_path, tiny, forward, found):
        wanted = r"^net_\w+:Tiny: expected logits of the shape \(N, K\) with K >= 2 classes, got "
        with pytest.raises(BadInputError, match=wanted + found):
            self.own(tmp_path, tiny, forward)

    def test_refuses_one_output_unit_with_advice(self, tmp_path, tiny):
        with pytest.raises(BadInputError, match=r"return torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"):
            self.own(tmp_path, tiny, "z", classes=1)

    def test_accepts_one_output_unit_made_two(self, tmp_path, tiny):
        classifier = self.own(tmp_path, tiny, "torch.cat([torch.zeros_like(z), z], 1)", classes=1)
        (prediction,) = answer(classifier, npy(image_array(24, 32, 3)))
        assert 0.5 < prediction["probability"] < 1

    def test_accepts_log_probabilities(self, tmp_path, tiny):
        classifier = self.own(tmp_path, tiny, "z.log_softmax(1)")
        (prediction,) = answer(classifier, npy(ARRAY))
        x = (ARRAY / 255 - np.array(CONFIG["mean"])) / np.array(CONFIG["std"])
        with torch.inference_mode():
            log = classifier.network(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32))
        assert prediction["probability"] == pytest.approx(log.max().exp().item(), rel=1e-5)

    @pytest.mark.parametrize("asserted", ["False, 'Input size is 24, expected 224'", "1 / 0"])
    def test_names_any_error_of_the_networks_code(self, tmp_path, tiny, asserted):
        module = NETWORK.replace("x = self.conv(x)", f"assert {asserted}; x = self.conv(x)")
        (tmp_path / "code" / "strict_net.py").write_text(module)
        with pytest.raises(BadInputError, match=r"got (AssertionError: Input size is 24|ZeroDivisionError)"):
            self.archive(tmp_path, tiny(5), architecture="strict_net:Tiny")
        sys.modules.pop("strict_net")

    def test_input_is_contiguous(self, tmp_path, tiny):
        """A network of Linear layers flattens its input by ``view``, which only a contiguous tensor allows."""
        module = NETWORK.replace("x = self.conv(x)", "x.view(len(x), -1); x = self.conv(x)")
        (tmp_path / "code" / "flat_net.py").write_text(module)
        classifier = self.archive(tmp_path, tiny(5), architecture="flat_net:Tiny")
        for body, kind in [
            (npy(ARRAY), NPY),
            (npy(np.asfortranarray(ARRAY)), NPY),
            (encoded(ARRAY, "PNG"), PNG),
        ]:
            assert len(answer(classifier, body, kind)) == 1

    def test_refuses_a_list_of_logits(self, tmp_path, tiny):
        arguments = {"classes": 5, "flat": False}
        with pytest.raises(
            BadInputError, match=r"expected logits of the shape \(N, K\) .* got a list\. Return the tensor"
        ):
            self.archive(tmp_path, tiny(5), arguments=arguments)
