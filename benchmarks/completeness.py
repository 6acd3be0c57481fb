"""Completeness errors of every network of tests/zoo.py; writes docs/completeness.md."""

from typing import Any

import torch

import zoo
from benchmarks import ROOT
from benchmarks.saliency import read, traced
from complete_gradients import complete_gradients
from glassbox.explanation.fullgrad import Explanation, explain

SEEDS = 5

PAGE = """# Completeness

A saliency map shows the pixels that a prediction depends on. FullGrad ([Srinivas and Fleuret
2019](https://arxiv.org/abs/1905.00780)) is also complete: the terms of the map add up to the logit.
For networks of linear layers and of activations that are piecewise linear and 0 at 0:

    f(x) = Σ x · ∂f/∂x + Σ c · ∂f/∂c        c the biases and all other constants

Other networks contain gates, normalisers and attention. Glassbox holds these coefficients: they are
constants in the backward pass, as in [LibraGrad](https://arxiv.org/abs/2411.16760). The terms then
add up to the logit, too. The heat map states "gates held at N places". For these networks the
error proves that no term is missing. It does not prove that the network is linear.

| part of a network | rule |
|---|---|
| convolution, Linear, BatchNorm in eval mode, ReLU, pooling | true gradient; biases are constants |
| ReLU6, clamp, maximum with a constant | true gradient; the clipped value is a constant |
| SiLU, GELU, Hardswish, Mish, ELU, tanh, … | s(x) = x · [s(x)/x], the bracket is held |
| sigmoid, softmax, exp, norms, denominators | held |
| LayerNorm, GroupNorm, InstanceNorm | 1/σ is held, the mean is linear, β is a constant |
| product of two factors | one is held: all to the other; none is held: one half each |
| attention | the weights are held |
| class token, positions, padding, concatenated or written values | constants where they enter |
| final softmax or sigmoid | removed: the score before it is explained |

A term has a map if its values have places in the image: feature maps, channels last, and tokens in
rows. Tokens of attention windows are put back in place. Terms of heads, of class tokens and of the
padding of windows only enter the sum. The facts state their share of Σ|terms|, `unplaced_share`.

Parts without a rule are named in the heat map, which is then marked incomplete. `make check-model`
names them before a deployment.

The **completeness error** |f(x) − Σ terms| shows whether the map explains this logit. Glassbox
stores it with every heat map. Where the sum is complete, the error is the rounding of float32. It
grows with Σ|terms|, not with the logit. A heat map is therefore incomplete if its error exceeds
1e-5 of the logit **and** 1e-7 of Σ|terms|.

The rules were tried on CPUs with torch 2.1.2 and 2.13.0. With torch 2.13.0, 46 architectures of
torchvision and timm were complete, and 19 of 20 drawn at random from other families. The other is
not a classifier and was refused. [architectures.md](architectures.md) lists them. CUDA was not
tried.

The biases b include the implicit ones of BatchNorm, bias − mean · weight / √(variance + eps). The
networks below are untrained. Their BatchNorms have random statistics, with channels of tiny
variance and of variance 0. For these, a formula without eps is wrong by a factor of several, or
NaN.

| network | error / logit, predicted class | error / Σ\\|terms\\|, any class | verdict | held places |
|---|---:|---:|---|---:|
{rows}

Each number is the maximum over {seeds} networks with different weights and 2 images each, in
float32. The column of the logit comes from traces of the recorder.
`make bench MODULE=completeness` writes this page.
## Blur test

A complete sum does not prove that the marked pixels matter. [pixel-flipping.md](pixel-flipping.md)
compares our map with others on four small networks. Glassbox also stores two more
numbers with every heat map: the probability of the class after a blur of the best 10 % of the
cells, and after a blur of a random 10 %. The hash of the image is the seed of the random cells.

The heat map and the incident report state both: "class 14 falls from 0.93 to 0.12 when the best
10 % is blurred; to 0.90 for a random 10 %". If both are alike, the map explains little of this
prediction. One random draw varies, so compare several heat maps.

A cell is 1/16 of each side. The blur is close to a Gaussian with a standard deviation of 1/16 of
the side. The twin runs the two forward passes after it has answered. The CPU time of an explanation
of a ResNet18 at 224 px grows from 2.6 to 5.1 plain forward passes (`make bench
MODULE=explanation`).

`BLUR_TEST=Disabled` in the twin's environment switches this off. If a pass fails, the heat map has
no such numbers, and the log has the reason.
"""


def explained(model: torch.nn.Module, images: torch.Tensor) -> list[Explanation]:
    """Explain images from their trace."""
    return explain(read(*traced("reduced", model, images)))


def worst_of_all_classes(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Return the largest error / Σ|terms| of all classes."""
    with torch.no_grad():
        classes = model(image).shape[1]
    found = [d for target in range(classes) for d in complete_gradients(model, image, [target] * len(image))]
    return max(decomposition.residual / decomposition.sum_abs for decomposition in found)


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
                "held": max(e.held_places for e in explanations),
            }
        )
    return rows


def write() -> None:
    """Write docs/completeness.md."""
    rows = [
        f"| {r['network']} | {r['of_logit']:.1e} | {r['of_terms']:.1e} | {r['verdict']} | {r['held']} |"
        for r in run()
    ]
    page = ROOT / "docs" / "completeness.md"
    page.write_text(PAGE.format(rows="\n".join(rows), seeds=SEEDS))
    print(f"Written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    write()
