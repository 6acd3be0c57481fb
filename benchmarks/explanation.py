"""CPU time of an explanation, with the blur test and without it, in plain forward passes of the network."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import zoo
from benchmarks.side_by_side import show
from glassbox.explanation.trace_format import REDUCED
from gradients import Gradients
from resnet import ResNet18

ROUNDS = 9
SMOOTH = ("SiLU", "LayerNorm", "sigmoid gate")


def cpu_milliseconds(ways: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least CPU time of one call of each way over alternating rounds, on one thread.

    Other processes of the machine only add to it.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, way in ways.items():
            began = time.thread_time()
            way()
            times[name].append(1e3 * (time.thread_time() - began))
    return {name: min(measured[1:]) for name, measured in times.items()}


def cost(what: str, model: nn.Module, image: torch.Tensor) -> dict[str, Any]:
    """Return one row, in milliseconds of a forward pass and in multiples of it."""

    def plain() -> None:
        with torch.inference_mode():
            model(image)

    terms, blurred = (Gradients(model, REDUCED, blur_test=blur_test) for blur_test in (False, True))
    times = cpu_milliseconds(
        {
            "plain": plain,
            "terms": partial(terms.compute, image),
            "blurred": partial(blurred.compute, image),
        }
    )
    return {
        "network": what,
        "forward, ms": times["plain"],
        "explanation, forwards": times["terms"] / times["plain"],
        "with the blur test": times["blurred"] / times["plain"],
        "blur test alone": (times["blurred"] - times["terms"]) / times["plain"],
    }


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [
        cost(f"ResNet18 w{width}, {size} px", ResNet18(43, width).eval(), torch.randn(1, 3, size, size))
        for width, size in ((16, 48), (64, 128), (64, 224))
    ]
    for name in SMOOTH:
        model, images = zoo.build(name)
        rows.append(cost(f"{name}, {images.shape[2]} px", model, images[:1]))
    return rows


if __name__ == "__main__":
    show(__doc__, run())
