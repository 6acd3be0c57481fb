"""A traced inference, to S3: its bytes and its latency, ours beside the article's hook and a plain forward."""

import atexit
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import smdebug.pytorch as smd
import torch
from smdebug import modes

from benchmarks.saliency import CLASSES, SIZE, WIDTH, traced
from benchmarks.side_by_side import row, show
from benchmarks.trace import embedded_s3
from glassbox.explanation import trace_format as names
from local.emulator import REGION
from recorder import TensorRecorder
from resnet import ResNet18

ARTICLE = "the article's hook"
REGEX = ".*bn|.*bias|.*downsample|.*ResNet_input|.*image|.*fc_output"
SIZES = ((16, 48, 40), (64, 128, 15), (64, 224, 9))  # width, pixels, rounds
REQUEST = {"inference_id": "id", "custom_attributes": None, "sha256": "0" * 64}


class ArticleHook(smd.Hook):
    """The article's: every module's inputs, outputs and gradients pass by, and what REGEX names is written.

    Its table of modules' names is gone from smdebug 1.x; the modules have them now.
    """

    def image_gradients(self, image: torch.Tensor) -> None:
        image.register_hook(self.backward_hook("image"))

    def forward_hook(self, module: torch.nn.Module, inputs: Any, outputs: torch.Tensor) -> None:
        name = module._module_name
        self._write_inputs(name, inputs)
        outputs.register_hook(self.backward_hook(f"{name}_output"))
        if isinstance(module, torch.nn.BatchNorm2d):
            self._write_outputs(f"{name}.running_mean", module.running_mean)
            self._write_outputs(f"{name}.running_var", module.running_var)
        self._write_outputs(name, outputs)
        self.last_saved_step = self.step


class Article:
    """The article's endpoint: its hook on a network whose parameters take gradients."""

    def __init__(self, model: torch.nn.Module, destination: str) -> None:
        self._model = model
        every = smd.SaveConfig(mode_save_configs={modes.PREDICT: smd.SaveConfigMode(save_interval=1)})
        self._hook = ArticleHook(destination, save_config=every, include_regex=REGEX)
        self._hook.register_module(model)
        self._hook.set_mode(modes.PREDICT)
        atexit.unregister(self._hook._cleanup)  # by then, the S3 is gone

    def predict(self, image: torch.Tensor) -> None:
        image = image.clone().requires_grad_()
        self._hook.image_gradients(image)
        logits = self._model(image)
        self._model.zero_grad()
        logits[0, logits.argmax()].backward()

    def close(self) -> None:
        self._hook.close()


def network(width: int) -> ResNet18:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return ResNet18(CLASSES, width).eval()


def recorder(model: torch.nn.Module, client: Any) -> TensorRecorder:
    return TensorRecorder(
        model,
        "s3://bucket/ours",
        client=client,
        traces_per_minute=10,
        trace_form=names.REDUCED,
        clock=time.monotonic,
        utcnow=lambda: datetime.now(UTC),
    )


def article_bytes() -> int:
    """What the article's hook writes for one inference."""
    with tempfile.TemporaryDirectory() as folder:
        article = Article(network(WIDTH), f"{folder}/run")
        article.predict(torch.randn(1, 3, SIZE, SIZE))
        article.close()
        run = Path(folder, "run")
        written = [*run.glob("events/*/*"), *run.glob("index/*/*")]
        assert len(written) == 2, "one step is one events file and one index"
        return sum(file.stat().st_size for file in written)


def our_bytes(form: str) -> int:
    """What ours writes for one inference, picture and all."""
    _, bucket = traced(form)
    return sum(len(content) for key, content in bucket.items() if "/collections/" not in key)


class Uploads:
    """Passes objects on to S3, and counts the steps that are complete there."""

    def __init__(self, client: Any) -> None:
        self._client, self.steps = client, 0

    def put_object(self, **request: Any) -> None:
        self._client.put_object(**request)
        self.steps += "/index/" in request["Key"]

    def wait_for(self, steps: int) -> None:
        while self.steps < steps:
            time.sleep(0.001)


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def traced_request(client: Any, width: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Alone, each when the upload of the one before is done; and without a pause, when they overlap."""
    model, image = network(width), torch.randn(1, 3, size, size)
    picture = np.zeros((1, size, size, 3), np.uint8)
    uploads = Uploads(client)
    article, ours = Article(network(width), f"s3://bucket/article/{width}-{size}"), recorder(model, uploads)

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return model(image)

    def hooked() -> torch.Tensor:
        return ours.predict(image, picture, REQUEST, None)

    assert torch.equal(hooked(), plain()), "the hook changes the answer"
    ways = {"plain": plain, "ours": hooked, "article": lambda: article.predict(image)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1, rounds + 3):
        uploads.wait_for(step)
        for name, way in ways.items():
            times[name].append(timed(way))
    alone = {name: median(measured[2:]) for name, measured in times.items()}  # two rounds to warm up
    article.close()
    pressed = median(timed(hooked) for _ in range(3 * rounds))
    ours.close()
    what, unit = f"traced request, ResNet18 w{width}, {size} px", "× plain forward"
    theirs = alone["article"] / alone["plain"]
    return [
        row(what, "ms", alone["ours"], "a plain forward", alone["plain"]),
        row(what, unit, alone["ours"] / alone["plain"], ARTICLE, theirs, "≤ 3×"),
        row(f"{what}, without a pause", unit, pressed / alone["plain"], ARTICLE, theirs),
    ]


def other_requests(client: Any, phases: int) -> dict[str, Any]:
    """50 requests a second, in phases of a second to a hooked and to a plain endpoint: those that are not traced."""
    model, image = network(16), torch.randn(1, 3, 48, 48)
    picture = np.zeros((1, 48, 48, 3), np.uint8)
    ours = recorder(model, client)
    times: dict[str, list[float]] = {"hooked": [], "plain": []}
    traces = []

    def plain() -> None:
        with torch.inference_mode():
            model(image)

    def request(endpoint: str) -> None:
        began = time.perf_counter()
        if endpoint == "hooked" and ours.wants(b""):
            traces.append(ours.predict(image, picture, REQUEST, None))
        else:
            plain()
            times[endpoint].append(time.perf_counter() - began)

    with ThreadPoolExecutor(4) as pool:
        for endpoint in phases * ("hooked", "plain"):
            for _ in range(50):
                pool.submit(request, endpoint)
                time.sleep(0.02)
    ours.close()
    assert len(traces) == 10, f"{len(traces)} traces in less than a minute"
    slower = median(times["hooked"]) / median(times["plain"])
    what = f"untraced request at 50/s, {len(traces)} of {50 * phases} traced, ResNet18 w16, 48 px"
    return row(what, "× plain endpoint", slower, "plain endpoint", 1.0, "≤ 1.1×")


def run() -> list[dict[str, Any]]:
    what = f"bytes of an inference, ResNet18 w{WIDTH}, {SIZE} px"
    theirs = article_bytes() / 1e6
    rows = [
        row(f"{what}, {form}", "MB", our_bytes(form) / 1e6, ARTICLE, theirs, reach)
        for form, reach in ((names.REDUCED, "≤ 0.20 MB, ≥ 65×"), (names.FULL, ""))
    ]
    with embedded_s3() as client:
        client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
        for width, size, rounds in SIZES:
            rows += traced_request(client, width, size, rounds)
        rows.append(other_requests(client, phases=6))
    return rows


if __name__ == "__main__":
    show(__doc__, run())
