"""Tries a model offline, before it is deployed: loads it as the endpoint does, traces one request, explains it.

    make check-model MODEL=model.tar.gz [IMAGE=sign.png] [HEATMAP=heatmap.png]

MODEL may also be a state dict that package.py can pack as it is. Nothing is uploaded anywhere. Ends with 1 where the
model does not load or a request fails; a picture that is not exact is a warning.
"""

import argparse
import dataclasses
import importlib
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

CORE = Path(__file__).resolve().parents[1] / "layers" / "core" / "python"
sys.path[0:1] = [str(CORE)]  # instead of this folder: the model's code is to come from its archive

from glassbox.explanation import heatmap  # noqa: E402
from glassbox.explanation.fullgrad import Explanation, explain  # noqa: E402
from glassbox.explanation.trace_format import FULL, REDUCED  # noqa: E402
from glassbox.explanation.trace_reader import read_index, read_trace  # noqa: E402

ROUNDS, WARM_UP = 20, 3
LISTED = 60  # modules
PAUSE = (
    0.05  # seconds between traced requests, which are rare: a thread still cleans up when a step is uploaded
)
PNG = "image/png"


class Bucket(dict[str, bytes]):
    """S3 in memory: what the hook uploads."""

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self[Key] = bytes(Body)

    def indexes(self) -> list[str]:
        """The keys of the complete steps."""
        return sorted(key for key in self if "/index/" in key)


class Traced:
    """The model with its hook on, which writes into a bucket in memory."""

    def __init__(self, inference: Any, recorder: Any, plain: Any, trace_form: str) -> None:
        self.bucket = Bucket()
        self._recorder = recorder.TensorRecorder(
            plain.network,
            "s3://checked/tensors/model",
            client=self.bucket,
            traces_per_minute=sys.maxsize,
            trace_form=trace_form,
            clock=time.monotonic,
            utcnow=lambda: datetime.now(UTC),
        )
        self._transform, self._model = (
            inference.transform_fn,
            dataclasses.replace(plain, recorder=self._recorder),
        )

    def ask(self, body: bytes) -> None:
        """One traced request; returns when it is answered, before it is uploaded."""
        self._transform(self._model, body, PNG, "application/json")

    def settle(self, steps: int) -> None:
        """Wait until so many steps are uploaded."""
        deadline = time.monotonic() + 60
        while len(self.bucket.indexes()) < steps:
            if self._recorder.dropped or time.monotonic() > deadline:
                raise RuntimeError("the trace was dropped: the lines above say why")
            time.sleep(0.001)

    def explain(self) -> Explanation:
        """The picture of the first step, as the stack would draw it."""
        key = self.bucket.indexes()[0]
        index = read_index(key, self.bucket[key])
        (explanation,) = explain(read_trace(index, self.bucket[index.events_key]))
        return explanation

    def step_bytes(self) -> int:
        """Bytes of the first step: its index and its events."""
        key = self.bucket.indexes()[0]
        return len(self.bucket[key]) + len(self.bucket[read_index(key, self.bucket[key]).events_key])


def check(name: str, archive: Path, image: Path | None, out: Path | None) -> Iterator[str]:
    """What there is to say of a model, line by line.

    Args:
        name: what to call it.
        archive: model.tar.gz.
        image: a picture to explain; noise without one.
        out: where the picture that ops would see is written to.
    """
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        sys.path.insert(1, str(Path(folder) / "code"))
        inference, recorder, gradients = map(importlib.import_module, ("inference", "recorder", "gradients"))
        plain = inference.model_fn(folder)
        yield from _described(name, plain, gradients.biased_modules(plain.network))
        body = _png(image, plain)
        traced = Traced(inference, recorder, plain, REDUCED)
        traced.ask(body)
        traced.settle(1)
        explanation = traced.explain()
        yield from _explained(explanation, image)
        if out:
            out.write_bytes(heatmap.render(explanation))
            yield f"What ops would see: {out}"
        yield from _measured(inference, plain, traced, body)
        full = Traced(inference, recorder, plain, FULL)
        full.ask(body)
        full.settle(1)
        yield f"Bytes of a trace: {traced.step_bytes():,} reduced, {full.step_bytes():,} full"


def _described(name: str, model: Any, modules: Any) -> Iterator[str]:
    parameters = sum(p.numel() for p in model.network.parameters())
    height, width = model.image_size
    yield (
        f"{name}: {type(model.network).__name__}, {parameters:,} parameters, images of {height} × {width} px "
        f"and {len(model.mean)} channel(s), {'with' if model.labels else 'without'} labels"
    )
    yield ""
    yield f"{len(modules)} modules add a bias, which enters the sum:"
    for module, kind in list(modules.items())[:LISTED]:
        yield f"  {module:32} {type(kind).__name__}"
    if len(modules) > LISTED:
        yield f"  and {len(modules) - LISTED} more"
    yield ""


def _explained(e: Explanation, image: Path | None) -> Iterator[str]:
    class_name = f" ({e.class_name})" if e.class_name else ""
    yield f"{image or 'Noise'}: class {e.target}{class_name}, probability {e.probability:.1%}, logit {e.logit:.4g}"
    residual = abs(e.total - e.logit)
    yield (
        f"Completeness: sum of contributions: {e.total:.6g}, {residual / max(abs(e.logit), 1e-300):.1e} of the logit "
        f"and {residual / max(e.sum_abs, 1e-300):.1e} of Σ|terms| away: {'complete' if e.complete else 'INCOMPLETE'}"
    )
    for part in e.inexact:
        yield f"WARNING: FullGrad is not exact here: {part}"
    if not e.complete and not e.inexact:
        yield "WARNING: no part of the network explains that the sum does not hold; its pictures will be marked"


def _measured(inference: Any, plain: Any, traced: Traced, body: bytes) -> Iterator[str]:
    def answer() -> None:
        inference.transform_fn(plain, body, PNG, "application/json", None)

    torch.set_num_threads(1)
    before = _milliseconds(answer, lambda number: None)
    steps = len(traced.bucket.indexes())
    hooked = _milliseconds(lambda: traced.ask(body), lambda number: traced.settle(steps + number))
    yield (
        f"A request, one thread, median of {ROUNDS}: {before:.1f} ms plain, {hooked:.1f} ms traced "
        f"({hooked / before:.1f}x)"
    )


def _milliseconds(call: Callable[[], None], afterwards: Callable[[int], None]) -> float:
    taken = []
    for number in range(1, WARM_UP + ROUNDS + 1):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
        afterwards(number)
        time.sleep(PAUSE)
    return 1e3 * median(taken[WARM_UP:])


def _png(image: Path | None, model: Any) -> bytes:
    channels, body = len(model.mean), io.BytesIO()
    if image:
        with Image.open(image) as given:
            ImageOps.exif_transpose(given).convert("RGB" if channels == 3 else "L").save(body, "PNG")
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (*model.image_size, channels), np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(body, "PNG")
    return body.getvalue()


def _packed(model: Path, folder: Path) -> Path:
    """A state dict as model.tar.gz."""
    sys.path.append(str(Path(__file__).resolve().parent))
    package = importlib.import_module("package")
    sys.path.pop()
    package.package(model, folder / "model.tar.gz")
    return folder / "model.tar.gz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model.tar.gz, or a state dict")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--heatmap", type=Path, help="write the heat map to this PNG file")
    chosen = parser.parse_args()
    os.environ.pop("tensors_output", None)
    os.environ.setdefault("SMDEBUG_LOG_LEVEL", "warning")
    try:
        with tempfile.TemporaryDirectory() as folder:
            packed = tarfile.is_tarfile(chosen.model)
            archive = chosen.model if packed else _packed(chosen.model, Path(folder))
            for line in check(str(chosen.model), archive, chosen.image, chosen.heatmap):
                print(line, flush=True)
    except Exception as error:  # the model's own code runs here, and may raise anything
        sys.exit(f"check-model: {type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
