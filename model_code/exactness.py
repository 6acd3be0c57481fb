"""Find the parts of a network for which FullGrad is not exact, in autograd's graph of a forward pass.

FullGrad assumes a chain of linear maps with biases and of activations that are linear on each piece and 0 at 0. Then
f(x) = Σ x·∂f/∂x + Σ b·∂f/∂b (Srinivas and Fleuret 2019, arXiv:1905.00780, proposition 1). Any other node of the graph
breaks the sum: the completeness error of each heat map measures by how much, and this module names the cause.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glassbox.explanation.trace_format import RANDOM

# Kinds of nodes, by autograd's name of the function.
# fmt: off
_EXACT = frozenset({
    "Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Abs", "Maximum", "Minimum", "Max", "Min", "Amax", "Amin",
    "MaxPool1D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D",
    "FractionalMaxPool2D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "Mean", "Sum", "Cumsum",
    "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleNearestExact2D", "UpsampleLinear1D",
    "UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleTrilinear3D", "PixelShuffle", "PixelUnshuffle",
    "ChannelShuffle", "NativeChannelShuffle", "Im2Col", "Col2Im",
    "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D",
    "ReplicationPad3D", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Slice", "Select", "Index", "IndexSelect",
    "Gather", "Topk", "Sort", "View", "UnsafeView", "ReshapeAlias", "Alias", "AsStrided", "Permute", "Transpose", "T",
    "Squeeze", "Unsqueeze", "Expand", "Repeat", "Roll", "Flip", "Clone", "ToCopy", "Tril", "Triu", "Diagonal",
    "MaskedFill", "Where", "Neg", "CopySlices", "AccumulateGrad",
})
# fmt: on
_SUMS = frozenset({"Add", "Sub", "Rsub"})
_FACTORS = {  # kind -> the operands that are multiplied
    **dict.fromkeys(("Mul", "Div", "Mm", "Bmm", "Mv", "Dot", "Convolution"), slice(0, 2)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv"), slice(1, 3)),
}
_NORMS = frozenset({"NativeBatchNorm", "NativeLayerNorm", "NativeGroupNorm"})
_CLIPS = frozenset({"Hardtanh", "Clamp", "ClampMin", "ClampMax"})
# Calls that combine other values with features -> the arguments that hold the values. Their nodes are exact if the
# values are 0, which the graph does not show.
_PLACES = {
    **dict.fromkeys(("cat", "stack"), slice(0, 1)),
    **dict.fromkeys(("maximum", "minimum"), slice(0, 2)),
    **dict.fromkeys(("fill_", "copy_"), slice(1, 2)),
    "where": slice(1, 3),
    **dict.fromkeys(("constant_pad_nd", "masked_fill", "masked_fill_"), slice(2, 3)),
}
_KNOWN = _EXACT | _SUMS | _FACTORS.keys() | _NORMS | _CLIPS


def inexact(model: nn.Module, biased: Mapping[str, nn.Module], image: Tensor) -> list[str]:
    """Return the parts of ``model`` for which FullGrad is not exact, each with the reason.

    Randomness in eval mode is named first, such as ``F.dropout`` without ``training=self.training``: the explanation is
    then one of a single draw. Two passes over the same image are compared, since a random number may have no effect.

    Functions count like modules; modules that the forward pass does not call do not count. The values of this one pass
    decide if a concatenated, padded or filled constant is 0. The former content of a buffer that features partly
    overwrite is not checked.

    Args:
        model: in eval mode, with frozen parameters. All hooks are removed afterwards.
        biased: name -> the modules whose biases enter the sum.
        image: (N, C, H, W).
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and (name in biased or not any(module.children()))
    }
    with _Constants() as constants:
        logits, owner, blind = _forward(model, modules, image)
    random = _random(model, image, logits, constants.random) if constants.random else []
    flaws = dict.fromkeys(
        blind & biased.keys(), "returns no tensor that depends on the input, so its bias is left out"
    )
    functions: dict[str, str] = {}
    for node in _nodes(logits.grad_fn, set()):
        name = owner.get(node)
        flaw = "takes in a constant" if node in constants.nodes else _flaw(node, name in biased)
        if flaw and name:
            flaws.setdefault(name, flaw)
        elif flaw:
            functions.setdefault(_kind(node), flaw)
    return [
        *random,
        *(f"{name}: {type(modules[name]).__name__} {flaws[name]}" for name in modules if name in flaws),
        *(f"{type(model).__name__}: the function {kind} {flaw}" for kind, flaw in sorted(functions.items())),
    ]


def _random(model: nn.Module, image: Tensor, logits: Tensor, operators: Set[str]) -> list[str]:
    """Return the reason if a second pass over the same image gives other logits, beyond rounding."""
    with torch.enable_grad():  # as in the first pass: without gradients, other kernels may run
        again = model(image.detach().clone().requires_grad_()).detach()
    logits = logits.detach()
    if torch.allclose(again, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max())):
        return []
    return [f"{type(model).__name__}: {RANDOM} ({', '.join(sorted(operators))} in eval mode)"]


class _Constants(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """Finds the nodes of a forward pass with a constant other than 0, and its random operators.

    Sees the calls of this thread only.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: set[Any] = set()
        self.random: set[str] = set()
        self._last: Tensor | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._settle()
        output = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.random.add(function.overloadpacket.__name__.strip("_"))
        values = args[_PLACES.get(function.overloadpacket.__name__, slice(0))]
        if any(map(_is_constant, values)):
            self._last = output
        return output

    def __exit__(self, *error: Any) -> None:
        self._settle()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _settle(self) -> None:
        # autograd creates the node of a call after it returns; for a write into a view, it is the base's node.
        if self._last is not None:
            base = self._last._base if self._last._is_view() else None
            self.nodes.add((self._last if base is None else base).grad_fn)
            self._last = None


def _is_constant(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.requires_grad and bool(value.any())
    return any(map(_is_constant, value)) if isinstance(value, Sequence) else value != 0


def _forward(
    model: nn.Module, modules: Mapping[str, nn.Module], image: Tensor
) -> tuple[Tensor, dict[Any, str], set[str]]:
    """Run the model once.

    Returns:
        The logits, node of their graph -> the module that created it, and the modules without an output that depends on
        the input.
    """
    inputs: dict[nn.Module, set[Any]] = {}
    owner: dict[Any, str] = {}
    blind: set[str] = set()

    # Plain requests in other threads run these hooks too, without gradients.
    def enter(module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            inputs[module] = {a.grad_fn for a in arguments if isinstance(a, Tensor)}

    def leave(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            if isinstance(output, Tensor) and output.requires_grad:
                owner.update(dict.fromkeys(_nodes(output.grad_fn, inputs[module] | owner.keys()), name))
            else:
                blind.add(name)

    handles = []
    with torch.enable_grad():
        try:
            for name, module in modules.items():
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(partial(leave, name)))
            # A copy, because a network may normalise its input in place.
            return model(image.detach().clone().requires_grad_()), owner, blind
        finally:
            for handle in handles:
                handle.remove()


def _nodes(node: Any, stop: Set[Any]) -> Iterator[Any]:
    """Yield the nodes from ``node`` back to the inputs of the graph, or to those in ``stop``."""
    stack, seen = [node], {None, *stop}
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [parent for parent, _ in node.next_functions]


def _kind(node: Any) -> str:
    return re.sub(r"^.*::|Backward\d*$", "", node.name())


def _flaw(node: Any, biased: bool) -> str | None:
    """Return how a node breaks the sum.

    Args:
        biased: whether a module whose bias is part of the sum created the node.
    """
    kind = _kind(node)
    depends = [parent is not None for parent, _ in node.next_functions]  # on the input
    if kind in _FACTORS and (sum(depends[_FACTORS[kind]]) > 1 or (kind == "Div" and any(depends[1:]))):
        return "multiplies or divides by features"
    if kind in _NORMS and not biased:
        return "normalises by the statistics of its own input"
    if kind in _CLIPS and not _is_relu(node):
        return "adds a constant where it clips"
    if not biased and _adds_constant(node, kind, depends):
        return "adds a constant that is the bias of no module"
    return None if kind in _KNOWN else "is not piecewise linear"


def _is_relu(node: Any) -> bool:
    return getattr(node, "_saved_min", None) == 0 and getattr(node, "_saved_max", None) is None


def _adds_constant(node: Any, kind: str, depends: Sequence[bool]) -> bool:
    if kind in _SUMS:
        return sum(depends) < 2
    if kind == "Convolution":
        return any(node._saved_bias_sym_sizes_opt or ()) and not depends[2]
    return kind in _FACTORS and _FACTORS[kind].start == 1 and not depends[0]
