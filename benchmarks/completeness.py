"""Completeness errors of every network of tests/zoo.py; writes docs/completeness.md."""

from typing import Any

import numpy as np
import torch

import zoo
from benchmarks import ROOT
from benchmarks.saliency import read, traced
from glassbox.explanation.fullgrad import Explanation, explain, full_gradient

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

| network | error / logit, predicted class | error / Σ\\|terms\\|, any class | verdict | named by the recorder |
|---|---:|---:|---|---|
{rows}

Each number is the maximum over {seeds} networks with different weights and 2 images each, in float32. The
column of the logit comes from traces of the recorder, the column of any class from torch's
autograd. `make bench MODULE=completeness` writes this page.
"""


def explained(model: torch.nn.Module, images: torch.Tensor) -> list[Explanation]:
    """Explain images from their trace."""
    return explain(read(*traced("reduced", model, images)))


def worst_of_all_classes(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Return the largest error / Σ|terms| of all classes."""
    worst = 0.0
    for target in range(model(image).shape[1]):
        terms = zoo.autograd_terms(model, image, torch.full((len(image),), target), torch.float32)
        parts = {name: (bias.numpy(), gradient.numpy()) for name, (bias, gradient) in terms.modules.items()}
        found = full_gradient(terms.image.numpy(), terms.image_gradient.numpy(), parts)
        error = np.abs(found.total - terms.logits[:, target].double().numpy())
        worst = max(worst, float((error / found.sum_abs).max()))
    return worst


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    torch.set_num_threads(1)
    rows = []
    for name in zoo.ZOO:
        networks = [zoo.build(name, seed) for seed in range(SEEDS)]
        explanations = [e for network in networks for e in explained(*network)]
        verdicts = {"complete" if e.complete else "incomplete" for e in explanations}
        rows.append(
            {
                "network": name,
                "of_logit": max(e.relative_error or 0.0 for e in explanations),
                "of_terms": max(worst_of_all_classes(*network) for network in networks),
                "verdict": " and ".join(sorted(verdicts)),
                "inexact": list(dict.fromkeys(part for e in explanations for part in e.inexact)),
            }
        )
    return rows


def write() -> None:
    """Write docs/completeness.md."""
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
