"""The rules of :mod:`complete_gradients`: what each operator and each kind of autograd node adds to a class score.

A **rule** takes one call of an operator before it runs, because an in-place operator overwrites its operands, and
returns a function that makes the call's :class:`Record` once the output exists. A record holds the constants that the
call adds and, where the true gradient does not keep Euler's identity <g_y, y> = Σ <g_u, u> + <g_y, c>, the gradient
that does. Derived from FullGrad (arXiv:1905.00780), Euler's identity for functions of degree 1, and the published idea
of LibraGrad (arXiv:2411.16760).

=============  ======================================================================================================
rule           meaning
=============  ======================================================================================================
bias           convolution, linear and matrix products add a bias
batch norm     eval mode: β − μ·γ/√(σ² + eps) is added
normalization  LayerNorm, GroupNorm, InstanceNorm, RMSNorm: 1/σ is held, the mean is linear, β is added
activation     SiLU, GELU, Hardswish, Mish, ELU, tanh, …: s(x) = s(0) + x · [(s(x) − s(0))/x], the bracket is held
gate           sigmoid, softmax, exp, norms, variances, denominators: held; it is a constant where it is added
product        of two factors that both carry gradient: each gets one half
attention      fused attention: the weights are held, the values carry the gradient
clip           ReLU6, clamp, maximum with a constant: true gradient; the clipped value is a constant
constant       all else that enters by addition, concatenation, padding, filling or assignment
=============  ======================================================================================================
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pixel_places import Pixels

# Every kind of node in a graph is in one of these tables, or its call made a record, or it is reported as unaccounted.
# fmt: off
LINEAR = frozenset({  # linear, or homogeneous of degree 1, in all operands together; no constant can enter
    "Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "RreluWithNoiseFunctional", "Hardshrink", "Abs", "Neg",
    "Max", "Min", "Amax", "Amin", "Aminmax", "Cummax", "Cummin", "Median", "Nanmedian", "Kthvalue", "Mode", "Topk",
    "Sort", "Mean", "Sum", "Nansum", "Cumsum", "Trace", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D", "MaxPool1D", "MaxPool2D", "MaxPool2DWithIndices",
    "MaxPool3DWithIndices", "MkldnnMaxPool2D", "MkldnnMaxPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D",
    "FractionalMaxPool2D", "FractionalMaxPool3D", "MaxUnpool2D", "MaxUnpool3D", "UpsampleNearest1D",
    "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleNearestExact1D", "UpsampleNearestExact2D",
    "UpsampleNearestExact3D", "UpsampleLinear1D", "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleBicubic2D",
    "UpsampleBicubic2DAa", "UpsampleLanczos2DAa", "UpsampleTrilinear3D", "PixelShuffle", "PixelUnshuffle",
    "ChannelShuffle", "NativeChannelShuffle", "Im2Col", "Col2Im", "Unfold", "ReflectionPad1D", "ReflectionPad2D",
    "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D", "Split", "SplitWithSizes",
    "SplitWithSizesCopy", "UnsafeSplit", "UnsafeSplitWithSizes", "Chunk", "Unbind", "Slice", "Select", "Narrow",
    "NarrowCopy", "Index", "UnsafeIndex", "UnsafeMaskedIndex", "IndexSelect", "Gather", "Take", "MaskedSelect", "View",
    "UnsafeView", "ReshapeAlias", "ReshapeCopy", "MkldnnReshape", "Alias", "AsStrided", "Permute", "Transpose", "T",
    "Squeeze", "Unsqueeze", "Expand", "Repeat", "Roll", "Flip", "Rot90", "Clone", "LazyClone", "ToCopy", "ToMkldnn",
    "ToDense", "Tril", "Triu", "Diagonal", "DiagEmbed", "Lift", "LiftFresh", "PinMemory", "NativeDropout",
    "FusedDropout", "FftR2C", "FftC2R", "FftC2C", "ViewAsReal", "ViewAsComplex", "Conj", "ConjPhysical", "NegView",
    "Complex", "GridSampler2D", "GridSampler3D", "CudnnGridSampler", "GridSampler2DCpuFallback", "Deg2Rad", "Rad2Deg",
    "AccumulateGrad",
})
GATES = frozenset({  # held: their value is a constant coefficient
    "Sigmoid", "Hardsigmoid", "Softmax", "SafeSoftmax", "MaskedSoftmax", "LogSoftmax", "Logsumexp", "Exp", "Exp2",
    "Rsqrt", "Sqrt", "Reciprocal", "LinalgVectorNorm", "Norm", "Var", "Std", "VarMean", "StdMean", "Log", "Log2",
    "Log10", "Cos", "Cosh", "Acos", "Erfc", "Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc", "Cdist", "EuclideanDist",
})
# fmt: on
OPENED = frozenset({"Sigmoid", "Hardsigmoid"})
"""Gates that a network may use as its activation; opened if every path to the image leads through a gate."""

FACTORS: dict[str, tuple[int, ...]] = {  # kind -> the operands that are multiplied with one another
    **dict.fromkeys(
        ("Mul", "Mm", "Bmm", "Mv", "Dot", "Vdot", "Convolution", "MkldnnConvolution", "Linear"), (0, 1)
    ),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv", "Addr", "Addcmul"), (1, 2)),
}
CARRIERS: dict[str, tuple[int, ...]] = {  # kind -> the operands that carry gradient; all others are held
    **dict.fromkeys(("Div", "Pow", "PreluKernel", "FusedRmsNorm"), (0,)),
    **dict.fromkeys(("GridSampler2D", "GridSampler3D", "CudnnGridSampler", "GridSampler2DCpuFallback"), (0,)),
    **dict.fromkeys(("NativeBatchNorm", "NativeBatchNormLegit", "NativeBatchNormLegitNoTraining"), (0, 2)),
    **dict.fromkeys(
        ("CudnnBatchNorm", "MiopenBatchNorm", "BatchNormWithUpdate", "BatchNormNoUpdate"), (0, 2)
    ),
    **dict.fromkeys(("NativeLayerNorm", "NativeGroupNorm"), (0, 2)),
    "Addcdiv": (0, 1),
}
ATTENTION = "ScaledDotProduct"  # how the kinds of fused attention begin; operands: query, key, value
BY_NODE = frozenset({"Mul", "Mm", "Bmm", "Mv", "Dot", "Vdot", "Div"})
"""Kinds that FACTORS or CARRIERS cover without a record: they add no constant of their own."""


class UnexplainableError(ValueError):
    """The network cannot be explained, for the reason in the message."""


@dataclass(frozen=True)
class Region:
    """The part of a tensor that an in-place operator wrote through a view."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    base: Tensor

    @staticmethod
    def of(view: Tensor, base: Tensor) -> Region:
        """Return the region of ``view`` in ``base``."""
        offset = int(view.storage_offset()) - int(base.storage_offset())
        return Region(tuple(view.shape), view.stride(), offset, base.detach())

    def __call__(self, whole: Tensor) -> Tensor:
        """Return the region of ``whole``, a tensor of the base's shape, as a view of a copy."""
        base = self.base
        laid = torch.empty_strided(base.shape, base.stride(), dtype=whole.dtype, device=whole.device)
        return laid.copy_(whole).as_strided(self.size, self.stride, self.offset)

    def rest(self) -> Tensor:
        """Return a copy of the base with zeros in the region."""
        base = self.base
        rest = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device).copy_(
            base
        )
        rest.as_strided(self.size, self.stride, self.offset).zero_()
        return rest


@dataclass
class Record:
    """What one call adds, and how its node passes gradients on.

    Attributes:
        constants: each broadcasts to the output, or to ``region`` of it.
        backward: (gradients of the operands, gradients of the outputs) -> gradients of the operands.
        held: the rule that holds a coefficient, otherwise empty.
        is_gate: the output is held.
        unknown: why no rule covers the call, otherwise empty.
        name: the module or parameter that the constant comes from, otherwise the operator.
        occurrence: how many earlier records have the name.
        index: number of the call.
        rows: the pixels of the output's rows, see :meth:`pixel_places.Places.of_rows`.
        is_last: whether the constant is a vector along the last axis of the output.
        shape: of the output as the network uses it: a Linear layer computes (1, T, C) as (T, C).
        rest: what a constant tensor holds beside ``region``.
    """

    op: str
    rule: str
    constants: list[Tensor] = field(default_factory=list)
    backward: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]] | None = None
    held: str = ""
    is_gate: bool = False
    unknown: str = ""
    name: str = ""
    occurrence: int = 0
    index: int = 0
    shape: tuple[int, ...] = ()
    rows: Pixels | None = None
    is_last: bool = False
    region: Region | None = None
    rest: Tensor | None = None


@dataclass
class Call:
    """One call of an operator, before it runs.

    Attributes:
        op: name of the operator, without the underscore of its in-place form.
        carries: whether a value carries gradient from the image; all else is a constant.
        opened: whether the gates in :data:`OPENED` serve as activations.
    """

    op: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    carries: Callable[[Any], bool]
    opened: bool

    def argument(self, position: int, name: str, default: Any) -> Any:
        """Return an argument that may be given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def is_linear_write(self) -> bool:
        """Return whether an in-place operator keeps Euler's identity, also inside a larger tensor."""
        return self.op in AFFINE or (
            self.op in _LINEAR_WRITES and not any(map(self.carries, tensors_in(self.args[1:])))
        )


def linear(call: Call) -> Callable[[Any], Record]:
    """Add no constant."""
    return lambda output: Record(call.op, "constant")


def unknown(call: Call) -> Callable[[Any], Record]:
    """Report an in-place operator whose node autograd hides in that of the larger tensor."""
    return lambda output: Record(call.op, "constant", unknown=f"{call.op} in place into a view")


def _affine(call: Call) -> Callable[[Any], Record]:
    # The constant is the value where every operand that carries gradient is 0.
    constants = []
    if call.op in _HAS_CONSTANT or any(map(_is_value, _constant_operands(call))):
        with torch.no_grad():
            value = _value_at_zero(call)
            if value.is_floating_point():
                # Infinite padding has no gradient before a maximum, and 0 · ∞ is NaN. If it has one, so is the score.
                value = value.nan_to_num(math.nan, 0.0, 0.0)
        constants = [value] if bool(value.any()) else []
    return lambda output: Record(call.op, "constant", constants)


def _constant_operands(call: Call) -> list[Any]:
    operands = [*call.args[:2], *(call.args[2:] if call.op in _MANY_OPERANDS else ())]
    flat = [v for o in operands for v in (o if isinstance(o, (tuple, list)) else [o])]
    return [v for v in flat if not call.carries(v)]


def _is_value(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, (int, float, complex)) and not isinstance(value, bool) and value != 0


def _value_at_zero(call: Call) -> Tensor:
    def at_zero(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(at_zero, value))
        if not isinstance(value, Tensor):
            return value
        return torch.zeros_like(value) if call.carries(value) else value.detach()

    args = [at_zero(value) for value in call.args]
    if call.in_place and not call.carries(call.args[0]):
        args[0] = args[0].clone()
    value: Tensor = call.func(*args, **{name: at_zero(v) for name, v in call.kwargs.items()})
    return value


def _convolution(call: Call) -> Callable[[Any], Record]:
    bias = call.argument(2, "bias", None)

    def finish(output: Tensor) -> Record:
        channels_last = call.op == "linear"
        shape = (-1,) if channels_last else (-1, *[1] * (output.ndim - 2))
        return Record(call.op, "bias", _shift(call, bias, shape))

    return finish


def _shift(call: Call, bias: Tensor | None, shape: Sequence[int]) -> list[Tensor]:
    return [] if bias is None or call.carries(bias) else [bias.detach().reshape(shape)]


def _matrix_product(call: Call) -> Callable[[Any], Record]:
    # beta · self + alpha · a @ b
    added = call.args[0]
    constants = [] if call.carries(added) else [added.detach() * call.kwargs.get("beta", 1)]
    return lambda output: Record(call.op, "bias", constants)


def _interpolated(call: Call) -> Callable[[Any], Record]:
    # start + weight · (end − start), affine for a constant weight
    weight = call.argument(2, "weight", None)
    if call.carries(weight):
        return lambda output: Record(
            call.op, "constant", unknown="lerp by a weight that depends on the image"
        )
    return _affine(call)


def _elementwise_product(call: Call) -> Callable[[Any], Record]:
    # self + value · a · b, or self + value · a / b
    added = call.args[0]
    constants = [] if call.carries(added) else [added.detach().clone()]
    return lambda output: Record(call.op, "constant", constants)


def _batch_norm(call: Call) -> Callable[[Any], Record]:
    x, weight, bias, mean, var = call.args[:5]
    training = call.op == "_batch_norm_with_update" or (call.op in _WITH_TRAINING_FLAG and call.args[5])
    eps = call.args[7] if call.op == "cudnn_batch_norm" else call.args[-1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    if training and mean is not None:
        raise UnexplainableError(
            "batch norm: expected eval mode, got train mode. Call eval() on the network."
        )
    if training:
        return functools.partial(
            _normalized, call, weight, bias, shape, (0, *range(2, x.ndim)), lambda rstd: rstd.reshape(shape)
        )
    # The running statistics are constants: a batch norm in eval mode is affine.
    scale = (1.0 if weight is None else weight.double()) / torch.sqrt(var.double() + eps)
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    constant = shift.detach().to(x.dtype).reshape(shape)
    return lambda output: Record(call.op, "batch norm", [constant])


def _layer_norm(call: Call) -> Callable[[Any], Record]:
    _, normalized, weight, bias = call.args[:4]
    dims = tuple(range(-len(normalized), 0))
    return functools.partial(_normalized, call, weight, bias, tuple(normalized), dims, lambda rstd: rstd)


def _normalized(
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    dims: Sequence[int],
    spread: Callable[[Tensor], Tensor],
    output: Any,
) -> Record:
    """(x − mean) · [1/σ] · weight + bias, the bracket held; ``output`` is (y, mean, 1/σ)."""
    scale = spread(output[2].detach())

    def backward(inputs: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
        g = outputs[0] if weight is None else outputs[0] * weight.detach().reshape(shape)
        return ((g - g.mean(dims, keepdim=True)) * scale, *inputs[1:])

    return Record(call.op, "normalization", _shift(call, bias, shape), backward, "normalization")


def _group_norm(call: Call) -> Callable[[Any], Record]:
    x, weight, bias, _, _, _, groups = call.args[:7]
    shape = (1, -1, *[1] * (x.ndim - 2))

    def finish(output: Any) -> Record:
        scale = output[2].detach().reshape(len(x), groups, 1)

        def backward(inputs: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
            g = outputs[0] if weight is None else outputs[0] * weight.detach().reshape(shape)
            grouped = g.reshape(len(g), groups, -1)
            return (((grouped - grouped.mean(-1, keepdim=True)) * scale).reshape(g.shape), *inputs[1:])

        return Record(call.op, "normalization", _shift(call, bias, shape), backward, "normalization")

    return finish


def _rms_norm(call: Call) -> Callable[[Any], Record]:
    weight = call.args[2]

    def finish(output: Any) -> Record:
        scale = output[1].detach() if weight is None else output[1].detach() * weight.detach()
        return Record(
            call.op,
            "normalization",
            backward=lambda inputs, outputs: (outputs[0] * scale, *inputs[1:]),
            held="normalization",
        )

    return finish


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {"silu": torch.sigmoid, "hardswish": functional.hardsigmoid}
"""s(x) / x in closed form: faster than the quotient."""


def _activation(call: Call) -> Callable[[Any], Record]:
    # s(x) = x · [s(x) / x], the bracket held
    x = call.args[0].detach()
    known = _SLOPES[call.op](x) if call.op in _SLOPES else None
    x = x.clone() if call.in_place and known is None else x

    def finish(output: Tensor) -> Record:
        slope = output.detach() / x if known is None else known
        # 0/0
        undefined = known is None and not bool(slope.sum().isfinite())
        backward = functools.partial(_sloped, slope, slope.isnan() if undefined else None)
        return Record(call.op, "activation", backward=backward, held="activation")

    return finish


def _offset_activation(
    function: Callable[[Call, Tensor], Tensor], at_zero: Callable[[Call], float]
) -> Callable[[Call], Callable[[Any], Record]]:
    """Return the rule of a function s: s(0) + x · [(s(x) − s(0)) / x], the bracket held."""

    def rule(call: Call) -> Callable[[Any], Record]:
        offset, x = at_zero(call), call.args[0].detach()
        # In float64: the difference loses digits near 0.
        wide = x.double()
        slope = ((function(call, wide) - offset) / wide).to(x.dtype)
        backward = functools.partial(_sloped, slope, slope.isnan())
        return lambda output: Record(call.op, "activation", [x.new_tensor(offset)], backward, "activation")

    return rule


def _sloped(
    slope: Tensor, undefined: Tensor | None, inputs: Sequence[Any], outputs: Sequence[Any]
) -> Sequence[Any]:
    held = outputs[0] * slope
    if undefined is not None:  # the derivative takes its place
        held = torch.where(undefined, inputs[0].nan_to_num(0.0, 0.0, 0.0), held)
    return (held, *inputs[1:])


def _opened(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Callable[[Any], Record]]:
    """Return the rule of a gate that is 1/2 at 0: an activation where gates are opened."""
    activation = _offset_activation(lambda call, x: function(x), lambda call: 0.5)
    return lambda call: (activation if call.opened else linear)(call)


def _softplus(call: Call, x: Tensor) -> Tensor:
    return functional.softplus(x, _beta(call), call.argument(2, "threshold", 20))


def _beta(call: Call) -> float:
    return float(call.argument(1, "beta", 1))


def _power(call: Call) -> Callable[[Any], Record]:
    base, exponent = call.args[:2]
    if isinstance(base, Tensor) and call.carries(base):
        positive = (exponent > 0).all() if isinstance(exponent, Tensor) else exponent > 0
        if positive:
            return _activation(call)
    return lambda output: Record(call.op, "gate", is_gate=True)


def _glu(call: Call) -> Callable[[Any], Record]:
    # a · [σ(b)], the bracket held
    x, dim = call.args[0], call.argument(1, "dim", -1)
    gate = torch.sigmoid(x.detach().chunk(2, dim)[1])

    def backward(inputs: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
        g = outputs[0] * gate
        return (torch.cat((g, torch.zeros_like(g)), dim), *inputs[1:])

    return lambda output: Record(call.op, "gate", backward=backward, held="gate")


def _clip(outside: Callable[[Call, Tensor], Tensor]) -> Callable[[Call], Callable[[Any], Record]]:
    """Return the rule of an operator whose gradient is 0 where it clips: there its value is a constant."""

    def rule(call: Call) -> Callable[[Any], Record]:
        clipped = outside(call, call.args[0].detach())

        def finish(output: Tensor) -> Record:
            constant = torch.where(clipped, output.detach(), output.new_zeros(()))
            return Record(call.op, "clip", [constant] if bool(constant.any()) else [])

        return finish

    return rule


def _outside_clamp(call: Call, x: Tensor) -> Tensor:
    low = None if call.op == "clamp_max" else call.argument(1, "min", None)
    high = call.argument(1 if call.op == "clamp_max" else 2, "max", None)
    # at the bounds torch's gradient is 1
    above = torch.zeros_like(x, dtype=torch.bool) if high is None else x > high
    return above if low is None else above | (x < low)


def _outside_hardtanh(call: Call, x: Tensor) -> Tensor:
    # at the bounds torch's gradient is 0
    low, high = call.argument(1, "min_val", -1), call.argument(2, "max_val", 1)
    return torch.le(x, low) | torch.ge(x, high)


def _outside_threshold(call: Call, x: Tensor) -> Tensor:
    return torch.le(x, call.argument(1, "threshold", 0))


def _extremum(call: Call) -> Callable[[Any], Record]:
    # With a constant: the constant where it wins, one half of it where both are equal, as torch's gradient is.
    a, b = call.args[:2]
    if call.carries(a) and call.carries(b):
        return linear(call)
    carrying, constant = (a, b) if call.carries(a) else (b, a)

    def finish(output: Tensor) -> Record:
        x, c, y = carrying.detach(), constant.detach(), output.detach()
        won = torch.where(y == x, torch.where(x == c, c * 0.5, torch.zeros_like(c)), c)
        return Record(call.op, "clip", [won] if bool(won.any()) else [])

    return finish


# fmt: off
AFFINE = frozenset({
    "add", "sub", "rsub", "cat", "stack", "where", "masked_fill", "constant_pad_nd", "index_put", "_index_put_impl",
    "_unsafe_index_put", "scatter", "scatter_add", "index_add", "index_copy", "index_fill", "slice_scatter",
    "select_scatter", "diagonal_scatter", "as_strided_scatter", "masked_scatter", "copy", "fill", "zero", "put",
})
_LINEAR_WRITES = frozenset({"mul", "div", "neg", "relu", "leaky_relu", "abs"})
_HAS_CONSTANT = frozenset({"constant_pad_nd", "masked_fill", "fill", "index_fill", "scatter"})
_MANY_OPERANDS = frozenset({
    "where", "index_put", "_index_put_impl", "_unsafe_index_put", "scatter_add", "index_add", "index_copy", "scatter",
    "masked_scatter", "put",
})
_ODD = (  # s(0) = 0
    "silu", "gelu", "hardswish", "mish", "elu", "celu", "selu", "tanh", "softshrink", "erf", "atan", "asinh", "sinh",
    "tan", "sin", "asin", "atanh", "expm1", "log1p",
)
_WITH_TRAINING_FLAG = ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")
_BATCH_NORMS = (
    *_WITH_TRAINING_FLAG, "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update",
)
# fmt: on

RULES: dict[str, Callable[[Call], Callable[[Any], Record]]] = {
    **dict.fromkeys(AFFINE, _affine),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution", "linear"), _convolution),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "addr"), _matrix_product),
    **dict.fromkeys(("addcmul", "addcdiv"), _elementwise_product),
    "lerp": _interpolated,
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": _rms_norm,
    **dict.fromkeys(_ODD, _activation),
    "softplus": _offset_activation(_softplus, lambda call: math.log(2) / _beta(call)),
    "log_sigmoid_forward": _offset_activation(
        lambda call, x: functional.logsigmoid(x), lambda call: -math.log(2)
    ),
    "sigmoid": _opened(torch.sigmoid),
    "hardsigmoid": _opened(functional.hardsigmoid),
    "pow": _power,
    "glu": _glu,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clip(_outside_clamp)),
    "hardtanh": _clip(_outside_hardtanh),
    "threshold": _clip(_outside_threshold),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _extremum),
}
"""Operator -> its rule."""


@functools.lru_cache(maxsize=4096)
def kind(name: str) -> str:
    """Return the kind of an autograd node from its name: ``Add`` for ``AddBackward0``."""
    return re.sub(r"^.*::|Backward\d*$", "", name)


def carriers(node: Any, of_kind: str) -> list[tuple[Any, int]]:
    """Return the operands of a node that carry gradient to the image, with their positions."""
    parents = [(parent, i) for i, (parent, _) in enumerate(node.next_functions)]
    positions = (2,) if of_kind.startswith(ATTENTION) else CARRIERS.get(of_kind)
    return parents if positions is None else [(p, i) for p, i in parents if i in positions]


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Return the tensors among arguments, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
