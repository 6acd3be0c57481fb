"""From the terms of a full gradient to the map: ours, the article's loop, and other libraries' whole call."""

import functools
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


class Bucket(dict[str, bytes]):
    """Stands for S3 where S3 is not what is measured."""

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self[Key] = bytes(Body)


@functools.cache
def network() -> ResNet18:
    """Untrained, with statistics that training could have left in its BatchNorms."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ResNet18(CLASSES, WIDTH).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def traced(form: str) -> tuple[str, Bucket]:
    """One inference traced by our hook: the key of its index, and all that it wrote."""
    bucket = Bucket()
    recorder = TensorRecorder(
        network(),
        "s3://bucket/tensors/signs",
        client=bucket,
        traces_per_minute=1,
        trace_form=form,
        clock=lambda: 0.0,
        utcnow=lambda: datetime.now(UTC),
    )
    picture = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    recorder.predict(
        image(), picture, {"inference_id": "id", "custom_attributes": None, "sha256": "0" * 64}, None
    )
    recorder.close()
    return next(key for key in bucket if "/index/" in key), bucket


def read(key: str, bucket: Bucket) -> Trace:
    index = read_index(key, bucket[key])
    return read_trace(index, bucket[index.events_key])


def terms(trace: Trace) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
    """The arguments of ``full_gradient``, and of the article's loop, from a full trace."""
    tensors, model = trace.tensors, trace.meta.model
    modules = {}
    for module in trace.meta.modules:
        bias = tensors[names.parameter(model, module.name, "bias")]
        if module.type == "BatchNorm2d":
            weight = tensors[names.parameter(model, module.name, "weight")]
            mean, var = (tensors[names.running(module.name, s)] for s in ("running_mean", "running_var"))
            bias = effective_bias_bn(weight, bias, mean, var, module.eps)
        modules[module.name] = (bias.astype(np.float32), tensors[names.output_gradient(module.name)])
    return tensors[names.model_input(model)], tensors[names.IMAGE_GRADIENT], modules


def article_loop(image: Array, image_gradient: Array, modules: dict[str, tuple[Array, Array]]) -> Array:
    """The article's way: scipy.ndimage.zoom for every channel of every layer."""

    def normalized(x: Array) -> Array:
        return (x - x.min()) / (x.max() - x.min())

    saliency = normalized(np.abs(image * image_gradient)[0]).sum(0)
    for bias, gradient in modules.values():
        if gradient.ndim == 4:
            for channel in normalized(np.abs(bias.reshape(-1, 1, 1) * gradient[0])):
                saliency = saliency + scipy.ndimage.zoom(channel, image.shape[2] / gradient.shape[2], order=1)
    return saliency


def authors_map(image: torch.Tensor, image_gradient: torch.Tensor, modules: dict[str, Any]) -> torch.Tensor:
    """The authors' way: torch, every channel interpolated to the size of the picture."""

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
    """Model and picture in, map out: ours hooks, writes the trace, reads it back and explains it."""
    what, peer = f"picture to map, {NETWORK}", "grad-cam, FullGrad"
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
    full, reduced = read(*traced("full")), read(*traced("reduced"))
    arguments = terms(full)
    tensors = torch.from_numpy(arguments[0].copy()), torch.from_numpy(arguments[1].copy())
    modules = {k: (torch.from_numpy(b), torch.from_numpy(g.copy())) for k, (b, g) in arguments[2].items()}
    ours = full_gradient(*arguments).saliency[0]
    theirs = article_loop(*arguments)
    assert np.abs(ours - theirs).max() < 1e-2 * np.ptp(theirs), "the two do not draw the same map"

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
        row(f"map from full tensors, {NETWORK}", "ms", times["full"], *article, reach="≥ 1,000×, < 4 ms"),
        row(f"map from full tensors, {NETWORK}", "ms", times["full"], *authors),
        row(f"map from a reduced trace, {NETWORK}", "ms", times["reduced"], *article),
        whole_call_ratio(rounds=5),
    ]


if __name__ == "__main__":
    show(__doc__, run())
