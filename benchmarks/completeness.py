"""Completeness: how far the terms of the full gradient are from the logit, for every network of tests/zoo.py."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

import zoo
from benchmarks import ROOT
from benchmarks.saliency import Bucket, read
from glassbox.explanation.fullgrad import explain, full_gradient
from recorder import TensorRecorder

SEEDS = 5

PAGE = """# Completeness

A saliency map shows the pixels that a prediction depends on. FullGrad ([Srinivas and Fleuret
2019](https://arxiv.org/abs/1905.00780)) is also complete: the terms of the map add up to the logit.
This holds for networks of linear layers and of activations that are piecewise linear and 0 at 0:

    f(x) = Σ x · ∂f/∂x + Σ b · ∂f/∂b

The **completeness error** |f(x) − Σ terms| shows whether the map explains this logit. Glassbox
stores it with every heat map. Where the sum is exact, the error is the rounding of float32. It
grows with Σ|terms|, not with the logit. A heat map is therefore incomplete if its error exceeds
1e-4 of the logit **and** 1e-6 of Σ|terms|.

The biases b include the implicit ones of BatchNorm, bias − mean · weight / √(variance + eps). The
networks below are untrained. Their BatchNorms have random statistics, with channels of tiny
variance and of variance 0. For these, a formula without eps is wrong by a factor of several, or
NaN.

| network | error / logit, predicted class | error / Σ\\|terms\\|, any class | verdict | named by the hook |
|---|---:|---:|---|---|
{rows}

Each number is the maximum over {seeds} networks with different weights and 2 images each, in
float32. The column of the logit comes from traces of the hook, the column of any class from torch's
autograd. `python -m benchmarks.completeness` writes this page.
"""


def explained(model: torch.nn.Module, image: torch.Tensor) -> list[Any]:
    """Traced by the hook, read, explained."""
    bucket = Bucket()
    recorder = TensorRecorder(
        model,
        "s3://bucket/tensors/zoo",
        client=bucket,
        traces_per_minute=1,
        trace_form="reduced",
        clock=lambda: 0.0,
        utcnow=lambda: datetime.now(UTC),
    )
    n, channels, height, width = image.shape
    recorder.predict(image, np.zeros((n, height, width, channels), np.uint8), {"sha256": "0" * 64}, None)
    recorder.close()
    return explain(read(next(key for key in bucket if "/index/" in key), bucket))


def of_any_class(model: torch.nn.Module, image: torch.Tensor) -> float:
    """The largest error / Σ|terms| of all classes."""
    worst = 0.0
    for target in range(model(image).shape[1]):
        terms = zoo.autograd_terms(model, image, torch.full((len(image),), target), torch.float32)
        parts = {name: (bias.numpy(), gradient.numpy()) for name, (bias, gradient) in terms.modules.items()}
        found = full_gradient(terms.image.numpy(), terms.image_gradient.numpy(), parts)
        error = np.abs(found.total - terms.logits[:, target].double().numpy())
        worst = max(worst, float((error / found.sum_abs).max()))
    return worst


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for name in zoo.ZOO:
        networks = [zoo.build(name, seed) for seed in range(SEEDS)]
        explanations = [e for network in networks for e in explained(*network)]
        verdicts = {e.complete for e in explanations}
        rows.append(
            {
                "network": name,
                "of_logit": max(e.relative_error for e in explanations),
                "of_terms": max(of_any_class(*network) for network in networks),
                "verdict": "mixed"
                if len(verdicts) > 1
                else "complete"
                if verdicts == {True}
                else "incomplete",
                "inexact": list(dict.fromkeys(part for e in explanations for part in e.inexact)),
            }
        )
    return rows


def write() -> None:
    rows = [
        f"| {r['network']} | {r['of_logit']:.1e} | {r['of_terms']:.1e} | {r['verdict']} | {_first(r['inexact'])} |"
        for r in run()
    ]
    page = ROOT / "docs" / "completeness.md"
    page.write_text(PAGE.format(rows="\n".join(rows), seeds=SEEDS))
    print(f"Written: {page.relative_to(ROOT)}")


def _first(parts: list[str]) -> str:
    more = f" (and {len(parts) - 1} more)" if len(parts) > 1 else ""
    return parts[0] + more if parts else "–"


if __name__ == "__main__":
    write()
