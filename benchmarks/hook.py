"""A traced inference: bytes in S3 and latency of our recorder, the article's hook and a plain forward."""

import atexit
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import smdebug.pytorch as smd
import torch
from smdebug import modes

from benchmarks.saliency import CLASSES, REQUEST, SIZE, WIDTH, new_recorder, traced
from benchmarks.side_by_side import row, show
from benchmarks.trace import embedded_s3
from glassbox.explanation import trace_format as names
from resnet import ResNet18

ARTICLE = "the article's hook"
REGEX = ".*bn|.*bias|.*downsample|.*ResNet_input|.*image|.*fc_output"
SIZES = ((16, 48, 40), (64, 128, 15), (64, 224, 9))  # width, pixels, rounds


class ArticleHook(smd.Hook):  # type: ignore[misc]  # smdebug is untyped
    """The article's hook, which receives every module's tensors and writes those of REGEX.

    smdebug 1.x has no table of the modules' names; the modules have them instead.
    """

    def image_gradients(self, image: torch.Tensor) -> None:
        """Write the gradient of the image."""
        image.register_hook(self.backward_hook("image"))  # type: ignore[no-untyped-call]

    def forward_hook(self, module: torch.nn.Module, inputs: Any, outputs: torch.Tensor) -> None:
        """Write a module's tensors."""
        name = module._module_name
        self._write_inputs(name, inputs)
        outputs.register_hook(self.backward_hook(f"{name}_output"))  # type: ignore[no-untyped-call]
        if isinstance(module, torch.nn.BatchNorm2d):
            self._write_outputs(f"{name}.running_mean", module.running_mean)
            self._write_outputs(f"{name}.running_var", module.running_var)
        self._write_outputs(name, outputs)
        self.last_saved_step = self.step


class Article:
    """The article's endpoint, whose hook is on a network with gradients of its parameters."""

    def __init__(self, model: torch.nn.Module, destination: str) -> None:
        self._model = model
        every = smd.SaveConfig(mode_save_configs={modes.PREDICT: smd.SaveConfigMode(save_interval=1)})
        self._hook = ArticleHook(destination, save_config=every, include_regex=REGEX)
        self._hook.register_module(model)
        self._hook.set_mode(modes.PREDICT)
        atexit.unregister(self._hook._cleanup)  # the S3 ends before the interpreter

    def predict(self, image: torch.Tensor) -> None:
        """Trace one inference."""
        image = image.clone().requires_grad_()
        self._hook.image_gradients(image)
        logits = self._model(image)
        self._model.zero_grad()
        logits[0, logits.argmax()].backward()

    def close(self) -> None:
        """Write the remaining tensors."""
        self._hook.close()


def network(width: int) -> ResNet18:
    """Return an untrained network of this width."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return ResNet18(CLASSES, width).eval()


def article_bytes() -> int:
    """Return how many bytes the article's hook writes for one inference."""
    with tempfile.TemporaryDirectory() as folder:
        article = Article(network(WIDTH), f"{folder}/run")
        article.predict(torch.randn(1, 3, SIZE, SIZE))
        article.close()
        run = Path(folder, "run")
        written = [*run.glob("events/*/*"), *run.glob("index/*/*")]
        assert len(written) == 2, "expected one events file and one index for one step"
        return sum(file.stat().st_size for file in written)


def our_bytes(trace_form: str) -> int:
    """Return how many bytes our recorder writes for one inference, including the input image."""
    _, bucket = traced(trace_form)
    return sum(len(content) for key, content in bucket.items() if "/collections/" not in key)


class Uploads:
    """An S3 client that counts the complete steps."""

    def __init__(self, client: Any) -> None:
        self._client, self.steps = client, 0

    def put_object(self, **request: Any) -> None:
        """Pass the object to S3."""
        self._client.put_object(**request)
        self.steps += "/index/" in request["Key"]

    def wait_for(self, steps: int) -> None:
        """Wait until this number of steps is complete."""
        while self.steps < steps:
            time.sleep(0.001)


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def traced_request(client: Any, width: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Compare traced requests with a plain forward, one after another and without a pause."""
    model, image = network(width), torch.randn(1, 3, size, size)
    input_image = np.zeros((1, size, size, 3), np.uint8)
    uploads = Uploads(client)
    article, ours = (
        Article(network(width), f"s3://bucket/article/{width}-{size}"),
        new_recorder(model, uploads),
    )

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(image)
        return logits

    def hooked() -> torch.Tensor:
        return ours.predict(image, input_image, REQUEST, None)

    assert torch.equal(hooked(), plain()), "the recorder changes the logits"
    ways = {"plain": plain, "ours": hooked, "article": lambda: article.predict(image)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1, rounds + 3):
        uploads.wait_for(step)
        for name, way in ways.items():
            times[name].append(timed(way))
    alone = {name: median(measured[2:]) for name, measured in times.items()}  # without two warm-up rounds
    article.close()
    pressed = median(timed(hooked) for _ in range(3 * rounds))
    ours.close()
    what, unit = f"traced request, ResNet18 w{width}, {size} px", "× plain forward"
    theirs = alone["article"] / alone["plain"]
    return [
        row(what, "ms", alone["ours"], "a plain forward", alone["plain"]),
        row(what, unit, alone["ours"] / alone["plain"], ARTICLE, theirs, "≤ 1.1×"),
        row(f"{what}, without a pause", unit, pressed / alone["plain"], ARTICLE, theirs),
    ]


def other_requests(client: Any, phases: int) -> dict[str, Any]:
    """Compare untraced requests, 50 a second, on a hooked and on a plain endpoint."""
    model, image = network(16), torch.randn(1, 3, 48, 48)
    input_image = np.zeros((1, 48, 48, 3), np.uint8)
    ours = new_recorder(model, client)
    times: dict[str, list[float]] = {"hooked": [], "plain": []}
    traces = []

    def plain() -> None:
        with torch.inference_mode():
            model(image)

    def request(endpoint: str) -> None:
        began = time.perf_counter()
        if endpoint == "hooked" and ours.wants(b""):
            traces.append(ours.predict(image, input_image, REQUEST, None))
        else:
            plain()
            times[endpoint].append(time.perf_counter() - began)

    with ThreadPoolExecutor(4) as pool:
        for endpoint in phases * ("hooked", "plain"):
            for _ in range(50):
                pool.submit(request, endpoint)
                time.sleep(0.02)
    ours.close()
    assert len(traces) == 10, f"expected 10 traces in less than a minute, got {len(traces)}"
    slower = median(times["hooked"]) / median(times["plain"])
    what = f"untraced request at 50/s, {len(traces)} of {50 * phases} traced, ResNet18 w16, 48 px"
    return row(what, "× plain endpoint", slower, "plain endpoint", 1.0, "≤ 1.1×")


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    what = f"bytes of an inference, ResNet18 w{WIDTH}, {SIZE} px"
    theirs = article_bytes() / 1e6
    rows = [
        row(f"{what}, {trace_form}", "MB", our_bytes(trace_form) / 1e6, ARTICLE, theirs, reach)
        for trace_form, reach in ((names.REDUCED, "≤ 0.20 MB, ≥ 65×"), (names.FULL, ""))
    ]
    with embedded_s3() as client:
        for width, size, rounds in SIZES:
            rows += traced_request(client, width, size, rounds)
        rows.append(other_requests(client, phases=6))
    return rows


if __name__ == "__main__":
    show(__doc__, run())
