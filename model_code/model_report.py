"""Report on an unpacked model: its terms, its completeness error, its latency and the bytes of a trace.

``check.py`` runs it in a process of its own, in which ``inference`` and the other modules are those of the archive.
"""

import argparse
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps

import inference
from glassbox.explanation import heatmap
from glassbox.explanation.describe import details, warnings
from glassbox.explanation.fullgrad import Explanation, explain
from glassbox.explanation.trace_format import FULL, REDUCED
from glassbox.explanation.trace_reader import read_index, read_trace
from recorder import TensorRecorder

ROUNDS, WARM_UP = 20, 3
PAUSE = (
    0.05  # seconds between traced requests: the upload's thread still frees memory after a step is uploaded
)
PNG = "image/png"


class Bucket(dict[str, bytes]):
    """S3 in memory, for the uploads of the recorder."""

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        """Keep the object."""
        self[Key] = bytes(Body)

    def indexes(self) -> list[str]:
        """Return the keys of the complete steps."""
        return sorted(key for key in self if "/index/" in key)


class TracedModel:
    """The model with a recorder that uploads into a bucket in memory."""

    def __init__(self, plain: inference.Classifier, trace_form: str) -> None:
        self.bucket = Bucket()
        self._recorder = TensorRecorder(
            plain.network,
            "s3://checked/tensors/model",
            client=self.bucket,
            traces_per_minute=sys.maxsize,
            trace_form=trace_form,
            clock=time.monotonic,
            utcnow=lambda: datetime.now(UTC),
        )
        self._model = dataclasses.replace(plain, recorder=self._recorder)

    def request(self, body: bytes) -> None:
        """Send one traced request and wait for its answer, not for its upload."""
        inference.transform_fn(self._model, body, PNG, "application/json")

    def wait_for_steps(self, count: int) -> None:
        """Wait until this many steps are uploaded."""
        deadline = time.monotonic() + 60
        while len(self.bucket.indexes()) < count:
            if self._recorder.dropped or time.monotonic() > deadline:
                raise RuntimeError("the trace was dropped: the lines above give the reason")
            time.sleep(0.001)

    def explain(self) -> Explanation:
        """Return the explanation of the first step, as the stack computes it."""
        key = self.bucket.indexes()[0]
        index = read_index(key, self.bucket[key])
        (explanation,) = explain(read_trace(index, self.bucket[index.events_key]))
        return explanation

    def step_bytes(self) -> int:
        """Return the bytes of the first step, index and events."""
        key = self.bucket.indexes()[0]
        return len(self.bucket[key]) + len(self.bucket[read_index(key, self.bucket[key]).events_key])


def report(name: str, root: Path, image: Path | None, heatmap_path: Path | None) -> Iterator[str]:
    """Yield the lines of the report.

    Args:
        name: of the model, for the first line.
        root: the unpacked model.tar.gz.
        image: the input image to explain; noise without one.
        heatmap_path: where the heat map is written.
    """
    plain = inference.model_fn(str(root))
    yield from _described(name, plain)
    body = _png(image, plain)
    traced = TracedModel(plain, REDUCED)
    traced.request(body)
    traced.wait_for_steps(1)
    explanation = traced.explain()
    yield from _explained(explanation, image)
    if heatmap_path:
        heatmap_path.write_bytes(heatmap.render(explanation))
        yield f"Heat map: {heatmap_path}"
    yield from _measured(plain, traced, body)
    full = TracedModel(plain, FULL)
    full.request(body)
    full.wait_for_steps(1)
    yield f"Bytes of a trace: {traced.step_bytes():,} reduced, {full.step_bytes():,} full"


def _described(name: str, model: inference.Classifier) -> Iterator[str]:
    parameters = sum(p.numel() for p in model.network.parameters())
    height, width = model.image_size
    yield (
        f"{name}: {type(model.network).__name__}, {parameters:,} parameters, images of {height} × {width} px "
        f"and {len(model.mean)} channel(s), {'with' if model.labels else 'without'} labels"
    )
    yield ""


def _explained(e: Explanation, image: Path | None) -> Iterator[str]:
    class_name = f" ({e.class_name})" if e.class_name else ""
    yield f"{image or 'Noise'}: class {e.target}{class_name}, probability {e.probability:.1%}, logit {e.logit:.4g}"
    yield from details(e)
    yield from warnings(e)


def _measured(plain: inference.Classifier, traced: TracedModel, body: bytes) -> Iterator[str]:
    def request() -> None:
        inference.transform_fn(plain, body, PNG, "application/json")

    torch.set_num_threads(1)
    before = _milliseconds(request, lambda number: None)
    steps = len(traced.bucket.indexes())
    after = _milliseconds(lambda: traced.request(body), lambda number: traced.wait_for_steps(steps + number))
    yield (
        f"A request, one thread, median of {ROUNDS}: {before:.1f} ms plain, {after:.1f} ms traced "
        f"({after / before:.1f}x)"
    )


def _milliseconds(call: Callable[[], None], wait: Callable[[int], None]) -> float:
    """Return the median duration of ``call``; ``wait`` gets the number of each call."""
    taken = []
    for number in range(1, WARM_UP + ROUNDS + 1):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
        wait(number)
        time.sleep(PAUSE)
    return 1e3 * median(taken[WARM_UP:])


def _png(image: Path | None, model: inference.Classifier) -> bytes:
    channels, body = len(model.mean), io.BytesIO()
    if image:
        with Image.open(image) as given:
            ImageOps.exif_transpose(given).convert("RGB" if channels == 3 else "L").save(body, "PNG")
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (*model.image_size, channels), np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(body, "PNG")
    return body.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Report on an unpacked model.")
    parser.add_argument("root", type=Path)
    parser.add_argument("name")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--heatmap", type=Path)
    options = parser.parse_args()
    try:
        for line in report(options.name, options.root, options.image, options.heatmap):
            print(line, flush=True)
    except Exception as error:  # the model's own code runs here, and may raise anything
        sys.exit(f"check-model: {type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
