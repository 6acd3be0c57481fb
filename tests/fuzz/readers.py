"""The readers of what comes from outside, with valid input for each."""

import base64
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

import captures
import decode
import replays
import traces
import zoo
from demo import signs
from glassbox import model_config, queue_message, replay_marker, settings
from glassbox.diagnosis import pixels, reference
from glassbox.errors import GlassboxError
from glassbox.explanation import facts, trace_reader
from glassbox.incidents import diagnosis, events, input_image
from glassbox.incidents.diagnosing import read_request as read_diagnosis_request
from glassbox.incidents.replay import ReplaySettings
from glassbox.monitoring import baseline, capture, npy, response
from glassbox.monitoring.count_file import CountingSettings

EVENTS = Path(__file__).parents[2] / "events"
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of input.

    Attributes:
        read: reads input, and raises one of ``refusals`` if it is bad.
        parses: whether input passes the first parse: JSON, a header, a signature of the format.
        modules: whose branches are covered.
    """

    seeds: list[bytes]
    read: Callable[[bytes], Any]
    parses: Callable[[bytes], bool]
    modules: tuple[str, ...]
    refusals: tuple[type[Exception], ...] = field(default=(GlassboxError,))


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")  # what a message and an environment can hold


RESPONSES = [
    {"predictions": [{"class": 14, "label": "Stop", "probability": 0.9, "top3": []}]},
    [[14]],
    [0.1, 0.7, 0.2],
    [[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]],
    {"predictions": [[0.1, 0.9]]},
    {"outputs": {"logits": [-1.5, 3.25]}},
    [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}],
    {"predicted_label": 3, "score": 0.4},
    "14",
]


def _capture_lines() -> list[bytes]:
    lines = [captures.line(one) for one in RESPONSES]
    lines.append(captures.line([[14]], customAttributes=[replays.marker()]))
    lines.append(captures.line("14,0.9", encoding="CSV", content_type="text/csv"))
    lines.append(captures.line([[14]], encoding="BASE64", content_type="application/json"))
    return lines


def _read_capture(data: bytes) -> Any:
    found = list(capture.read([data], "file.jsonl", response.ResponseParser(), replays.key))
    for line in capture.lines([data]):
        for reader in (capture.read_event_id, capture.read_request):
            try:
                reader(line or b"")
            except (ValueError, RecursionError):
                continue
    return found


def _read_response(data: bytes) -> Any:
    kind = ("JSON", "application/json"), ("CSV", "text/csv"), ("BASE64", "application/x-npy")
    encoding, content_type = kind[0 if data[:1] in b'{["' else 1 if data[:1].isdigit() else 2]
    return response.ResponseParser().read(_text(data), encoding, content_type)


def _array(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def _responses() -> list[bytes]:
    arrays = [_array(np.float32([[0.1, 0.7, 0.2]])), _array(np.int64([14, 3]))]
    return [json.dumps(one).encode() for one in RESPONSES] + [
        b"14,0.9\n3,0.5",
        *(base64.b64encode(one) for one in arrays),
    ]


class _Files:
    """S3 that holds a monitor's report."""

    def get(self, bucket: str, key: str, at_most: int = 0) -> bytes:
        return b'{"violations": [{"description": "class 14 has 80 %"}]}'


def _read_event(data: bytes) -> Any:
    event = queue_message.read_event(_text(data))
    found = []
    for reader in (
        lambda: events.read_violation(event, _Files()),
        lambda: events.read_command(event),
        lambda: queue_message.read_object(event),
        lambda: queue_message.event_time(event),
        lambda: read_diagnosis_request(event),
    ):
        try:
            found.append(reader())
        except GlassboxError:
            continue
    return found


def _events() -> list[bytes]:
    # as functions read them: the message in a batch of SQS, not the batch
    texts = [json.loads(file.read_text()) for file in sorted(EVENTS.glob("*.json"))]
    bodies = [record["body"] for one in texts for record in one.get("Records", [])]
    return [json.dumps(one).encode() for one in texts] + [body.encode() for body in bodies]


@functools.cache
def _trace() -> tuple[str, bytes, bytes]:
    """Return the key and the content of an index, and its events."""
    model, image = zoo.build("1×1 maps, one channel")
    tensors = traces.reduced(zoo.autograd_terms(model, image), model, class_names=["Stop", "Yield"])
    with tempfile.TemporaryDirectory() as folder:
        index = traces.write_step(Path(folder) / "run", tensors, step=7)
        content = (Path(folder) / "run" / index).read_bytes()
        events = json.loads(content)["meta"]["event_file_name"]
        return f"tensors/signs/run/{index}", content, (Path(folder) / "run" / events).read_bytes()


def _read_index(data: bytes) -> Any:
    key, _, content = _trace()
    return trace_reader.read_trace(trace_reader.read_index(key, data), content)


def _read_content(data: bytes) -> Any:
    # without the checksum, which would hide everything behind it
    key, content, _ = _trace()
    index = dataclasses.replace(trace_reader.read_index(key, content), crc32=None)
    trace_reader.read_request(index, data)
    return trace_reader.read_trace(index, data)


def _is_image(data: bytes) -> bool:
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", npy.MAGIC))


def _images() -> list[bytes]:
    image = signs.dataset(1, seed=3, size=24)[0][0]
    made = [pixels.written(image, "PNG"), pixels.written(image, "JPEG"), _array(image), _array(image[None])]
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return [*made, _array(image[..., :1]), stream.getvalue()]


def _read_image(data: bytes) -> Any:
    input_image.browser_image(data)
    return pixels.decode(data)


def _read_body(data: bytes) -> Any:
    for signature, kind in ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg")):
        if data.startswith(signature):
            return decode.read_images(data, kind, 3, (24, 24))
    return decode.read_images(data, "application/x-npy", 3, (24, 24))


def _reference() -> bytes:
    images, classes = signs.dataset(20, seed=4, size=16)
    samples = [reference.Sample(i, int(c), 0.9, int(c)) for i, c in zip(images, classes, strict=True)]
    return reference.write_reference(reference.make_reference(samples))


def _read_settings(data: bytes) -> Any:
    # one variable a line, as the template sets them
    pairs = (line.partition("=") for line in _text(data).split("\n"))
    env = {name: value for name, _, value in pairs}
    for kind in (ReplaySettings, CountingSettings):
        try:
            settings.from_env(kind, env)
        except GlassboxError:
            continue


SETTINGS = (
    b"ENDPOINT_NAME=signs\nCAPTURE_BUCKET=bucket\nCAPTURE_PREFIX=capture\nNUM_CLASSES=43\nLOW_CONFIDENCE=0.5"
    b"\nMAX_FLAGGED_REPLAYS=12\nMAX_COMPARISON_REPLAYS=4\nCLASS_PATH=predictions[].class\nSHADOW_VARIANTS=a,b"
    b"\nDRIFT_THRESHOLD=0.2\nBASELINE_STATISTICS=s3://bucket/statistics.json"
)


def _read_marker(data: bytes) -> Any:
    text = _text(data)
    replay_marker.own_attributes(text)
    replay_marker.is_marked([text, text])
    return replay_marker.verified_marker(
        text, body=replays.BODY, now=NOW + timedelta(minutes=1), key=replays.key
    )


def _baseline() -> bytes:
    buckets = [{"value": str(c), "count": 10.0 + c} for c in range(5)]
    statistics = {
        "version": 0.0,
        "features": [
            {
                "name": baseline.CLASS_FEATURE,
                "inferred_type": "String",
                "string_statistics": {"distribution": {"categorical": {"buckets": buckets}}},
            }
        ],
    }
    return json.dumps(statistics).encode()


def _config() -> bytes:
    return json.dumps(
        {
            "architecture": "resnet18",
            "image_size": [48, 48],
            "mean": [0.5] * 3,
            "std": [0.2] * 3,
            "labels": ["a"],
        }
    ).encode()


def _read_config(data: bytes) -> Any:
    content = msgspec.json.decode(data)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return model_config.to_config(content)


def _diagnosis() -> bytes:
    made = diagnosis.Diagnosis(
        causes=(diagnosis.Cause("too dark", 0.9, ("2.5 deviations darker than usual",)),),
        repairs=(
            diagnosis.Repair(
                name="brightened", flagged=12, back=9, comparisons=4, changed=0, interval=(0.4, 0.9)
            ),
        ),
        missing=("no reference",),
    )
    return diagnosis.write_diagnosis(made)


def _facts() -> bytes:
    made = facts.Facts(
        predicted_class=14,
        class_name="Stop",
        probability=0.9,
        logit=9.5,
        top=(facts.ClassProbability(14, 0.9),),
        completeness=facts.Completeness(True, 9.5, 9.5, 0.0, 0.0, 20.0, {"SiLU": 3}, ()),
        layers=(facts.LayerShare("conv1", "Conv2d", 1.5, 0.1),),
        display=facts.Display((0.0, 99.0), 0.0, 1.0),
        input_image=facts.ImageSize(48, 48, 3),
        model="ResNet",
        trace_form="reduced",
        step=7,
        sample=0,
        request={"inference_id": "request-1"},
    )
    return facts.to_json(made)


def readers() -> dict[str, Reader]:
    """Return the readers by name."""
    _, index, content = _trace()
    return {
        "capture": Reader(
            _capture_lines(), _read_capture, _is_json, ("monitoring.capture", "monitoring.response")
        ),
        "response": Reader(
            _responses(),
            _read_response,
            lambda data: _is_json(data) or data[:1].isdigit() or data.startswith(b"k05VTVBZ"),
            ("monitoring.response", "monitoring.npy"),
            (ValueError, GlassboxError),
        ),
        "event": Reader(_events(), _read_event, _is_json, ("queue_message", "incidents.events")),
        "trace index": Reader([index], _read_index, _is_json, ("explanation.trace_reader",)),
        "trace": Reader([content], _read_content, lambda data: len(data) > 12, ("explanation.trace_reader",)),
        "image": Reader(
            _images(),
            _read_image,
            _is_image,
            ("incidents.input_image", "diagnosis.pixels", "monitoring.npy"),
        ),
        "request": Reader(_images()[:4], _read_body, _is_image, ("decode",), (decode.RequestError,)),
        "settings": Reader([SETTINGS], _read_settings, lambda data: b"=" in data, ("settings",)),
        "baseline": Reader(
            [_baseline()],
            lambda data: baseline.read_baseline(data, "s3://x"),
            _is_json,
            ("monitoring.baseline",),
        ),
        "marker": Reader(
            [replays.marker().encode(), b"a=1," + replays.marker().encode()],
            _read_marker,
            lambda data: b"glassbox" in data,
            ("replay_marker",),
        ),
        "reference": Reader(
            [_reference()],
            reference.read_reference,
            lambda data: data.startswith(b"PK"),
            ("diagnosis.reference",),
        ),
        "diagnosis": Reader([_diagnosis()], diagnosis.read_diagnosis, _is_json, ("incidents.diagnosis",)),
        "facts": Reader([_facts()], facts.read_facts, _is_json, ("explanation.facts",), (ValueError,)),
        "model config": Reader(
            [_config()], _read_config, _is_json, ("model_config",), (ValueError, GlassboxError)
        ),
    }
