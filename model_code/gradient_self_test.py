"""The start-up test of :mod:`complete_gradients`: every rule on a small network, with the torch that is installed.

The rules use operators, node kinds and hooks of torch that a release may rename or change. Where this test fails, no
explanation can be trusted, and the endpoint must make none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from complete_gradients import Decomposition, complete_gradients


class SelfTestError(RuntimeError):
    """The installed torch does not behave as the rules expect."""


@dataclass(frozen=True)
class Case:
    """A function of feature maps (1, 8, 6, 6), and the rule that it needs.

    ``needs`` names the operator in ``RULES``, or the node kind in another table, without which the sum is incomplete.
    """

    function: Callable[[Tensor], Tensor]
    rule: str
    needs: str


def _ones(*shape: int) -> Tensor:
    return torch.linspace(0.5, 1.5, steps=torch.Size(shape).numel()).reshape(shape)


def _written(x: Tensor, value: Any) -> Tensor:
    x = x.clone()
    x[:, :3] = value
    return x


def _into_constant(x: Tensor) -> Tensor:
    full = torch.full_like(x, 0.5)
    full[:, 2:5] = x[:, :3]
    return full


def _attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(2 * x, x + 1, x - 1)  # four axes: fused


CASES = {
    "convolution": Case(lambda x: F.conv2d(x, _ones(4, 8, 3, 3), _ones(4)), "bias", "convolution"),
    "linear": Case(lambda x: F.linear(x, _ones(4, 6), _ones(4)), "bias", "addmm"),
    "linear without features": Case(lambda x: F.linear(x.mean((2, 3)), _ones(4, 8), _ones(4)), "bias", "addmm"),
    "batch norm": Case(
        lambda x: F.batch_norm(x, _ones(8), _ones(8), _ones(8), _ones(8)), "batch norm", "native_batch_norm"
    ),
    "instance norm": Case(
        lambda x: F.instance_norm(x, weight=_ones(8), bias=_ones(8)), "normalization", "native_batch_norm"
    ),
    "layer norm": Case(
        lambda x: F.layer_norm(x, (6,), _ones(6), _ones(6)), "normalization", "native_layer_norm"
    ),
    "group norm": Case(
        lambda x: F.group_norm(x, 2, _ones(8), _ones(8)), "normalization", "native_group_norm"
    ),
    "SiLU": Case(F.silu, "activation", "silu"),
    "SiLU in place": Case(lambda x: F.silu(x * 2, inplace=True), "activation", "silu"),
    "GELU": Case(F.gelu, "activation", "gelu"),
    "GELU by tanh": Case(lambda x: F.gelu(x, approximate="tanh"), "activation", "gelu"),
    "Hardswish": Case(F.hardswish, "activation", "hardswish"),
    "Mish": Case(F.mish, "activation", "mish"),
    "ELU": Case(F.elu, "activation", "elu"),
    "ELU in place": Case(lambda x: F.elu(x * 2, inplace=True), "activation", "elu"),
    "tanh": Case(torch.tanh, "activation", "tanh"),
    "softplus": Case(F.softplus, "activation", "softplus"),
    "log sigmoid": Case(F.logsigmoid, "activation", "log_sigmoid_forward"),
    "square": Case(lambda x: x**2, "activation", "pow"),
    "sigmoid gate": Case(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), "gate", "Sigmoid"),
    "sigmoid that is added": Case(lambda x: x + x.sigmoid(), "constant", "add"),
    "hard sigmoid gate": Case(lambda x: x * F.hardsigmoid(x), "gate", "Hardsigmoid"),
    "softmax": Case(lambda x: x * x.softmax(1), "gate", "Softmax"),
    "exp": Case(lambda x: x * x.exp(), "gate", "Exp"),
    "denominator": Case(lambda x: x / (1 + x.abs().sum()), "gate", "Div"),
    "variance": Case(lambda x: x * x.var(1, keepdim=True), "gate", "Var"),
    "inverse root": Case(lambda x: x * torch.rsqrt(x.square().mean() + 1e-6), "gate", "Rsqrt"),
    "negative power": Case(lambda x: x * (x.abs() + 1) ** -0.5, "gate", "pow"),
    "GLU": Case(lambda x: F.glu(x, 1), "gate", "glu"),
    "product": Case(lambda x: x * x.flip(1), "product", "Mul"),
    "matrix product": Case(lambda x: x[:, :4] @ x[:, 4:], "product", "Bmm"),
    "attention": Case(_attention, "attention", "ScaledDotProduct"),
    "ReLU6": Case(lambda x: F.relu6(8 * x), "clip", "hardtanh"),
    "clamp": Case(lambda x: x.clamp(-0.2, 0.3), "clip", "clamp"),
    "threshold": Case(lambda x: F.threshold(x, 0.1, 0.5), "clip", "threshold"),
    "maximum": Case(lambda x: torch.maximum(x, torch.full((1,), 0.2)), "clip", "maximum"),
    "addition": Case(lambda x: x + _ones(8, 1, 1), "constant", "add"),
    "addition of a number": Case(lambda x: x + 0.5, "constant", "add"),
    "subtraction": Case(lambda x: x - _ones(8, 1, 1), "constant", "sub"),
    "reversed subtraction": Case(lambda x: 1 - x, "constant", "rsub"),
    "concatenation": Case(lambda x: torch.cat((x, _ones(1, 2, 6, 6)), 1), "constant", "cat"),
    "stack": Case(lambda x: torch.stack((x, _ones(1, 8, 6, 6))), "constant", "stack"),
    "padding": Case(lambda x: F.pad(x, (1, 1), value=0.5), "constant", "constant_pad_nd"),
    "where": Case(lambda x: torch.where(x > 0, x, _ones(8, 1, 1)), "constant", "where"),
    "masked fill": Case(lambda x: x.masked_fill(x < 0, 0.5), "constant", "masked_fill"),
    "written into": Case(lambda x: _written(x, _ones(3, 1, 1)), "constant", "copy"),
    "number written into": Case(lambda x: _written(x, 0.5), "constant", "fill"),
    "written into a constant": Case(_into_constant, "constant", "rest"),
    "scatter": Case(
        lambda x: x.scatter(1, torch.zeros(1, 1, 6, 6, dtype=torch.long), _ones(1, 1, 6, 6)), "constant", "scatter"
    ),
    "interpolation": Case(lambda x: torch.lerp(x, torch.full_like(x, 0.5), 0.3), "constant", "lerp"),
    "addcmul": Case(lambda x: torch.addcmul(_ones(8, 1, 1), x, _ones(8, 1, 1)), "constant", "addcmul"),
}  # fmt: skip


class Between(nn.Module):
    """A function between a convolution and a linear layer, with fixed weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.function = function
        self.weight, self.bias = (torch.randn(s, generator=generator) for s in ((8, 3, 3, 3), (8,)))
        self.last = torch.randn(5, 640, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        features = self.function(F.conv2d(x, self.weight, self.bias) / 4).flatten(1).flatten(0)
        return (features @ self.last[:, : len(features)].t())[None]


def decompose(case: Case) -> Decomposition:
    """Return the decomposition of the case's network for a fixed image."""
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return complete_gradients(Between(case.function).eval(), image)[0]


def self_test() -> None:
    """Decompose the network of every case.

    Raises:
        SelfTestError: a sum is incomplete; the message names torch's version and the case.
    """
    for name, case in CASES.items():
        try:
            found = decompose(case)
            if found.complete:
                continue
            reason = (
                f"expected a complete sum, got an error of {found.residual:.1e} of the score {found.score:.1e}; "
                f"unaccounted: {', '.join(found.unaccounted) or 'nothing'}"
            )
        except Exception as error:  # torch may raise anything where an interface has changed
            reason = f"{type(error).__name__}: {error}"
        raise SelfTestError(f"self-test of the gradients with torch {torch.__version__}: {name}: {reason}")
