"""From the terms of a full gradient to the heat map: our code, the article's loop, other libraries."""

import functools
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import scipy.ndimage
import torch

from benchmarks.side_by_side import milliseconds, row, show
from glassbox.explanation import trace_format as names
from glassbox.explanation.fullgrad import effective_bias_bn, explain, full_gradient
from glassbox.explanation.trace_reader import Array, Trace, read_index, read_trace
from recorder import TensorRecorder
from resnet import ResNet18

NETWORK = "ResNet18 w64, 128 px"
WIDTH, SIZE, CLASSES = 64, 128, 43
REQUEST = {"inference_id": "id", "custom_attributes": None, "sha256": "0" * 64}


class Bucket(dict[str, bytes]):
    """An S3 in memory, for measurements that do not include S3."""

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        """Store an object."""
        self[Key] = bytes(Body)


@functools.cache
def network() -> ResNet18:
    """Return an untrained network whose BatchNorms have random statistics."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ResNet18(CLASSES, WIDTH).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def image() -> torch.Tensor:
    """Return a random normalised image, (1, 3, SIZE, SIZE)."""
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def new_recorder(model: torch.nn.Module, client: Any, trace_form: str = names.REDUCED) -> TensorRecorder:
    """Return a recorder that writes to s3://bucket/tensors."""
    return TensorRecorder(
        model,
        "s3://bucket/tensors",
        client=client,
        traces_per_minute=10,
        trace_form=trace_form,
        clock=time.monotonic,
        utcnow=lambda: datetime.now(UTC),
    )


def traced(
    trace_form: str, model: torch.nn.Module | None = None, images: torch.Tensor | None = None
) -> tuple[str, Bucket]:
    """Trace one inference and return the key of its index and all written objects."""
    bucket, images = Bucket(), image() if images is None else images
    recorder = new_recorder(network() if model is None else model, bucket, trace_form)
    n, channels, height, width = images.shape
    input_images = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)
    recorder.predict(images, input_images, REQUEST, None)
    recorder.close()
    return next(key for key in bucket if "/index/" in key), bucket


def read(key: str, bucket: Bucket) -> Trace:
    """Read the trace of an index key."""
    index = read_index(key, bucket[key])
    return read_trace(index, bucket[index.events_key])


def terms(trace: Trace) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
    """Return the arguments of ``full_gradient`` and of the article's loop from a full trace."""
    tensors, model = trace.tensors, trace.meta.model
    modules = {}
    for module in trace.meta.terms:
        bias = tensors[names.parameter(model, module.name, "bias")]
        if module.type == "BatchNorm2d":
            assert module.eps is not None
            weight = tensors[names.parameter(model, module.name, "weight")]
            mean, var = (tensors[names.running(module.name, s)] for s in ("running_mean", "running_var"))
            bias = effective_bias_bn(weight, bias, mean, var, module.eps)
        modules[module.name] = (bias.astype(np.float32), tensors[names.output_gradient(module.name)])
    return tensors[names.model_input(model)], tensors[names.IMAGE_GRADIENT], modules


def article_loop(image: Array, image_gradient: Array, modules: dict[str, tuple[Array, Array]]) -> Array:
    """Compute the map as the article does, with scipy.ndimage.zoom for every channel."""

    def normalized(x: Array) -> Array:
        return np.asarray((x - x.min()) / (x.max() - x.min()))

    saliency: Array = normalized(np.abs(image * image_gradient)[0]).sum(0)
    for bias, gradient in modules.values():
        if gradient.ndim == 4:
            for channel in normalized(np.abs(bias.reshape(-1, 1, 1) * gradient[0])):
                saliency = saliency + scipy.ndimage.zoom(channel, image.shape[2] / gradient.shape[2], order=1)
    return saliency


def authors_map(image: torch.Tensor, image_gradient: torch.Tensor, modules: dict[str, Any]) -> torch.Tensor:
    """Compute the map as FullGrad's authors do, with torch, interpolating every channel."""

    def rescaled(term: torch.Tensor) -> torch.Tensor:
        term = term.abs() - term.abs().amin()
        return term / (term.amax() + 1e-6)

    saliency = rescaled(image * image_gradient).sum(1)
    for bias, gradient in modules.values():
        if gradient.ndim == 4:
            term = rescaled(bias.view(1, -1, 1, 1) * gradient)
            size = image.shape[2:]
            saliency += torch.nn.functional.interpolate(term, size, mode="bilinear", align_corners=True).sum(
                1
            )
    return saliency


def whole_call_ratio(rounds: int) -> dict[str, Any]:
    """Compare complete calls from image to heat map, ours with writing and reading a trace."""
    what, peer = f"image to heat map, {NETWORK}", "grad-cam, FullGrad"
    ways = {"ours": lambda: explain(read(*traced("reduced")))}
    try:
        from pytorch_grad_cam import FullGrad
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except (ImportError, RuntimeError):
        return row(what, "ms", milliseconds(ways, rounds)["ours"], f"{peer}: not installed", None)
    theirs = FullGrad(network(), [])
    ways["theirs"] = lambda: theirs(image().requires_grad_(), [ClassifierOutputTarget(0)])
    measured = milliseconds(ways, rounds)
    return row(what, "ms", measured["ours"], peer, measured["theirs"])


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    full, reduced = read(*traced("full")), read(*traced("reduced"))
    arguments = terms(full)
    tensors = torch.from_numpy(arguments[0].copy()), torch.from_numpy(arguments[1].copy())
    modules = {k: (torch.from_numpy(b), torch.from_numpy(g.copy())) for k, (b, g) in arguments[2].items()}
    ours = full_gradient(*arguments).saliency[0]
    theirs = article_loop(*arguments)
    assert np.abs(ours - theirs).max() < 1e-2 * np.ptp(theirs), "the two heat maps differ"

    times = milliseconds(
        {
            "full": lambda: full_gradient(*arguments),
            "reduced": lambda: explain(reduced),
            "article": lambda: article_loop(*arguments),
            "authors": lambda: authors_map(*tensors, modules),
        },
        rounds=5,
    )
    article, authors = ("article's loop", times["article"]), ("authors' loop in torch", times["authors"])
    return [
        row(
            f"heat map from full tensors, {NETWORK}", "ms", times["full"], *article, reach="≥ 1,000×, < 4 ms"
        ),
        row(f"heat map from full tensors, {NETWORK}", "ms", times["full"], *authors),
        row(f"heat map from a reduced trace, {NETWORK}", "ms", times["reduced"], *article),
        whole_call_ratio(rounds=5),
    ]


if __name__ == "__main__":
    show(__doc__, run())
