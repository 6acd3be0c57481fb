"""Decompose a class score of (almost) any torch network into terms that add up to it, by one forward and backward pass.

For a class score f and an image x::

    f(x) = Σ x · g_x + Σ_c Σ c · g_c

where c runs over every constant that the network adds (biases, BatchNorm shifts, class tokens, position embeddings,
clipped values, …) and g is the gradient that arrives where x or c enters. For networks of linear maps and piecewise
linear activations g is the true gradient, and this is FullGrad (Srinivas and Fleuret 2019, arXiv:1905.00780,
proposition 1). Elsewhere coefficients such as gates, normalisers and attention weights are held, see
:mod:`gradient_rules`.

The forward pass runs under a ``TorchDispatchMode``. The mode runs below autograd, so it sees every operator with its
real arguments, also those of functional code, of ``nn.MultiheadAttention`` and of TorchScript, and changes none. It
notes the constants and coefficients of each call together with the autograd node that the call created. Hooks on the
nodes then read gradients (prehooks) and replace them (hooks). The modules get no hook.

No term is computed from the score or from the residual. A node without a rule is treated as linear, counted, and named
in ``unaccounted``.

Needs torch 2.1 or later and the standard library; runs on Python 3.8 or later.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradient_rules import (
    ATTENTION,
    BY_NODE,
    FACTORS,
    GATES,
    LINEAR,
    OPENED,
    RULES,
    Call,
    Record,
    Region,
    UnexplainableError,
    carriers,
    kind,
    linear,
    tensors_in,
    unknown,
)
from isolation import PrivateRandom, light_copy
from pixel_places import Places

RELATIVE_TOLERANCE = 1e-5
"""Of the score: a residual up to this share is forgiven."""

ROUNDING_TOLERANCE = 1e-7
"""Of Σ|terms|: a residual up to this share is the rounding of float32, however small the score is."""

INPUT = "input"

_LOCK = threading.RLock()  # the pass changes flags of the process and of the module, and restores them


def _renew_lock() -> None:
    # The thread that held the lock at the fork does not exist in the child, and never releases it there.
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class Term:
    """What one constant, or the input, adds to the score.

    Attributes:
        name: of the module or the parameter, otherwise of the operator; ``name#0``, ``name#1``, … if it occurs again.
            ``name/prefix`` are the tokens before the grid, ``name/padding`` those that fill up windows, ``name/rest``
            what surrounds a written region.
        module: path of the module, otherwise empty.
        type: class of the module, otherwise the operator.
        rule: see :mod:`gradient_rules`; of the input ``input``.
        channels: that ``map`` adds up.
        minimum, maximum: of |term|.
        total, sum_abs: Σ term, Σ|term|.
        map: (h, w), Σ|term| over the channels; None where the term has no place in the image.
        values: (1, C, h, w) or (1, C, …), the term; kept on request.
        gradient: of the output that the constant is a part of; kept on request.
        call: number of the operator in the forward pass; of the input −1.
    """

    name: str
    module: str
    type: str
    rule: str
    channels: int
    minimum: float
    maximum: float
    total: float
    sum_abs: float
    map: Tensor | None
    values: Tensor | None = None
    gradient: Tensor | None = None
    call: int = -1


@dataclass(frozen=True)
class Decomposition:
    """The terms of one class score of one image.

    Attributes:
        output: (K,), the scores as the network returned them.
        logits: (K,), the scores before a final softmax or sigmoid.
        target: the class whose score is decomposed.
        terms: the input first, then constants in the order of the forward pass.
        held: rule -> places where a coefficient is held. Empty for a piecewise linear network.
        unaccounted: what no rule covers; its part may be missing in the sum.
        random: operators of random numbers, if a second pass returns other logits; otherwise empty.
        peeled: the final function that was removed, such as ``softmax``; otherwise empty.
        head: name of the term whose module returned the logits; otherwise empty.
        calls: operators that the forward pass called.
    """

    output: Tensor
    logits: Tensor
    target: int
    terms: list[Term]
    held: Mapping[str, int]
    unaccounted: list[str]
    random: list[str]
    peeled: str
    head: str
    calls: int

    @property
    def score(self) -> float:
        """The decomposed logit."""
        return float(self.logits[self.target])

    @property
    def total(self) -> float:
        """Σ of all terms."""
        return sum(term.total for term in self.terms)

    @property
    def sum_abs(self) -> float:
        """Σ of the absolute values of all terms."""
        return sum(term.sum_abs for term in self.terms)

    @property
    def residual(self) -> float:
        """|score − Σ terms|."""
        return abs(self.score - self.total)

    @property
    def complete(self) -> bool:
        """Whether the terms add up to the score, with nothing unaccounted for and nothing random.

        A residual up to 1e-5 of the score, or up to 1e-7 of Σ|terms|, is forgiven.
        """
        forgiven = max(RELATIVE_TOLERANCE * abs(self.score), ROUNDING_TOLERANCE * self.sum_abs)
        return not self.unaccounted and not self.random and self.residual <= forgiven


def complete_gradients(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | None = None,
    *,
    scores_of: Callable[[Any], Tensor] | None = None,
    keep_values: bool = False,
    memory: int | None = None,
) -> list[Decomposition]:
    """Decompose a class score of each image into terms that add up to it.

    Each image runs alone, so that no term of another sample enters. The random state and the parameters, buffers,
    gradients, flags, hooks and attributes of ``model`` do not change, also not meanwhile: see :mod:`isolation`. A
    network that writes into its parameters, buffers or tensors of its attributes, is of half precision, or was made in
    inference mode, runs as a deep copy (in float32).

    Args:
        model: in eval mode.
        images: (N, C, H, W), floating point.
        targets: N classes; by default the predicted ones.
        scores_of: takes the output of ``model`` for one image and returns its scores (1, K); default :func:`scores`.
        keep_values: keep the values and the gradient of each term.
        memory: bytes that an image may take; None is unbounded. They are estimated from the outputs of all operators.

    Raises:
        UnexplainableError: the network is in train mode, its scores do not depend on the image, or are not (1, K), it
            draws random numbers that only the generator of the process gives, or it needs more than ``memory``.
        RuntimeError: by torch or by the network.
    """
    if images.ndim != 4 or not images.is_floating_point():
        found = f"{images.dtype} {tuple(images.shape)}"
        raise UnexplainableError(f"images: expected floating point (N, C, H, W), got {found}")
    with _LOCK, torch.inference_mode(False), torch.enable_grad(), _full_precision(images), _unscripted():
        network, images = _computable(_Network(model), images.detach(), memory)
        decompositions = []
        for i in range(len(images)):
            run = _Run(
                images[i : i + 1],
                None if targets is None else int(targets[i]),
                scores_of or scores,
                keep_values,
                memory,
            )
            try:
                decompositions.append(run(network.fresh()))
            except _WritesToItselfError:
                network = network.copied(memory)
                decompositions.append(run(network.fresh()))
        return decompositions


def plain_logits(
    model: nn.Module,
    images: Tensor,
    *,
    scores_of: Callable[[Any], Tensor] | None = None,
    memory: int | None = None,
) -> Tensor:
    """Return the logits (N, K) of passes without a gradient, before a final softmax or sigmoid.

    Each image runs alone, and ``model`` is left as :func:`complete_gradients` leaves it.

    Args:
        model, images, scores_of, memory: see :func:`complete_gradients`; ``memory`` bounds a copy of the network.

    Raises:
        UnexplainableError: the network is in train mode, its scores are not (1, K), or its copy needs too much memory.
        RuntimeError: by torch or by the network.
    """
    with _LOCK, torch.inference_mode(False), torch.no_grad(), _full_precision(images), _unscripted():
        network, images = _computable(_Network(model), images.detach(), memory)
        rows = []
        for image in images:
            run = _Run(image[None], None, scores_of or scores, keep_values=False)
            try:
                rows.append(run.plain(network.fresh()))
            except _WritesToItselfError:
                network = network.copied(memory)
                rows.append(run.plain(network.fresh()))
        return torch.cat(rows)


class _WritesToItselfError(Exception):
    """The network writes into its own parameters or buffers."""


class _Network:
    """A network and the names of its tensors."""

    def __init__(self, model: nn.Module, owned: bool = True) -> None:
        self.model, self._owned = model, owned
        self.modules = dict(model.named_modules())
        self.tensors: list[Tensor] = []
        self._names: dict[int, str] = {}
        self._storages: set[int] = set()
        for path, module in self.modules.items():
            # A frozen ScriptModule has no such attribute; of other modules, all but these are the same in both modes.
            if getattr(module, "training", False) and (module is model or isinstance(module, _MODAL)):
                place = path or type(model).__name__
                raise UnexplainableError(
                    f"{place}: expected eval mode, got train mode. Call eval() on the network."
                )
            for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                self.tensors.append(tensor)
                if tensor.layout == torch.strided and tensor.numel():
                    self._names.setdefault(tensor.data_ptr(), f"{path}.{leaf}" if path else leaf)
                    self._storages.add(_storage(tensor))
            for tensor in tensors_in([*vars(module).values()]):
                if tensor.layout == torch.strided and tensor.numel():
                    self._storages.add(_storage(tensor))

    def copied(self, memory: int | None) -> _Network:
        """Return a deep copy, which may be written into.

        Raises:
            UnexplainableError: it takes more than ``memory`` bytes.
        """
        _must_fit(sum(t.nbytes for t in self.tensors), memory, "a copy of the network")
        return _Network(copy.deepcopy(self.model), owned=False)

    def fresh(self) -> _Network:
        """Return the network for one image, whose modules no other thread uses.

        Without trainable parameters autograd also keeps less: nothing that their own gradients need.
        """
        return _Network(light_copy(self.model), self._owned)

    def must_not_write(self, tensor: Tensor) -> bool:
        """Return whether a tensor shares memory with the owner's parameters or buffers."""
        return self._owned and _storage(tensor) in self._storages

    def name(self, tensors: Iterator[Tensor]) -> str:
        """Return the path of the first of ``tensors`` that is the network's: of its module for a bias; or nothing."""
        for tensor in tensors:
            name = self._names.get(tensor.data_ptr()) if tensor.layout == torch.strided else None
            if name:
                module, _, leaf = name.rpartition(".")
                return (module or leaf) if leaf in _OF_MODULE else name
        return ""


_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_OF_MODULE = frozenset({"bias", "weight", "running_mean", "running_var"})


def _must_fit(needed: int, memory: int | None, what: str) -> None:
    if memory is not None and needed > memory:
        raise UnexplainableError(
            f"memory: expected at most {memory / _MIB:.1f} MiB for an explanation, got {needed / _MIB:.1f} MiB for "
            f"{what}. Set TRACE_MEMORY_MIB to more, or give the endpoint more memory."
        )


_MIB = 1 << 20


def _computable(network: _Network, images: Tensor, memory: int | None) -> tuple[_Network, Tensor]:
    """Return the network, or a copy of it that autograd can differentiate in float32, and the images for it."""
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in network.tensors)
    if half or any(t.is_inference() for t in network.tensors):
        network = network.copied(memory)
    if half:
        network, images = _Network(network.model.float(), owned=False), images.float()
    return network, images.clone() if images.is_inference() else images


@contextlib.contextmanager
def _full_precision(images: Tensor) -> Iterator[None]:
    """Switch off autocast and TF32, whose rounding is larger than the tolerances."""
    with torch.autocast(images.device.type, enabled=False), contextlib.ExitStack() as stack:
        if images.device.type == "cuda":
            stack.enter_context(without_tf32())
        yield


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 on CUDA in full precision, and restore the flags afterwards.

    The flags belong to the process: other threads' CUDA operators meanwhile run in full precision, too.
    """
    flags: list[tuple[Any, str, Any]]
    flags = [(m, "allow_tf32", False) for m in (torch.backends.cuda.matmul, torch.backends.cudnn)]
    try:
        before = [(module, name, getattr(module, name)) for module, name, _ in flags]
    except RuntimeError:  # since torch 2.9, where the process has used the new flags
        convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        flags = [(m, "fp32_precision", "ieee") for m in (torch.backends.cuda.matmul, convolution)]
        before = [(module, name, getattr(module, name)) for module, name, _ in flags]
    try:
        for module, name, value in flags:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _unscripted() -> contextlib.AbstractContextManager[Any]:
    # TorchScript's executor would fuse operators into nodes of its own from the second call on.
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def scores(output: Any) -> Tensor:
    """Return the class scores in the output of a network.

    They are the output itself, its ``logits``, or its first tensor.

    Raises:
        UnexplainableError: the output holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    parts = (
        output.values()
        if isinstance(output, Mapping)
        else output
        if isinstance(output, (tuple, list))
        else ()
    )
    for part in (logits, *parts):
        if isinstance(part, Tensor):
            return part
    raise UnexplainableError(f"output: expected class scores (N, K), got {type(output).__name__}")


@dataclass(frozen=True)
class _Run:
    """The passes for one image."""

    image: Tensor
    target: int | None
    scores_of: Callable[[Any], Tensor]
    keep_values: bool
    memory: int | None = None

    def __call__(self, network: _Network) -> Decomposition:
        gates, numbers = GATES, PrivateRandom()
        forward = self._forward(network, gates, numbers)
        forward.must_depend_on_image()
        if forward.holds(forward.logits.grad_fn):
            gates = GATES - OPENED
            forward = self._forward(network, gates, numbers)
        if forward.holds(forward.logits.grad_fn):
            raise UnexplainableError(
                "scores: expected a gradient to the image, got none: every path to it leads through a gate"
            )
        random: list[str] = []
        if numbers.drawn:
            with torch.no_grad():  # keeps no second graph in memory
                again = self._forward(network, gates, numbers).logits
            tolerance = 1e-4 * float(again.abs().max())
            if not torch.allclose(again, forward.logits.detach(), rtol=1e-4, atol=tolerance):
                random = sorted(numbers.drawn)
        return self._backward(forward, random)

    def plain(self, network: _Network) -> Tensor:
        """Return the logits (1, K) of a pass without a gradient."""
        return self._forward(network, GATES, PrivateRandom()).logits

    def _forward(self, network: _Network, gates: frozenset[str], numbers: PrivateRandom) -> _Forward:
        leaf = self.image.clone().requires_grad_(torch.is_grad_enabled())
        # A network may write into its input, which a leaf would refuse.
        forward = _Forward(network, leaf, leaf.clone(), gates, numbers, self.memory)
        with forward:
            output = self.scores_of(network.model(forward.entered))
        forward.finish(output)
        return forward

    def _backward(self, forward: _Forward, random: list[str]) -> Decomposition:
        logits = forward.logits.detach()[0]
        target = int(logits.argmax()) if self.target is None else self.target
        if not 0 <= target < len(logits):
            raise UnexplainableError(f"target: expected a class from 0 to {len(logits) - 1}, got {target}")
        backward = _Backward(forward, self.keep_values)
        (gradient,) = torch.autograd.grad(forward.logits[0, target], forward.leaf, allow_unused=True)
        if gradient is None:
            raise UnexplainableError(forward.no_gradient())
        backward.book_input(self.image, gradient)
        return Decomposition(
            output=forward.output.detach()[0],
            logits=logits,
            target=target,
            terms=backward.terms(),
            held=dict(backward.held),
            unaccounted=[
                f"{what} ({n} places)" if n > 1 else what for what, n in sorted(backward.unaccounted.items())
            ],
            random=random,
            peeled=forward.peeled,
            head=forward.head,
            calls=forward.count,
        )


class _Forward(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of a forward pass, each with the autograd node that it created."""

    def __init__(
        self,
        network: _Network,
        leaf: Tensor,
        entered: Tensor,
        gates: frozenset[str],
        numbers: PrivateRandom,
        memory: int | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = numbers
        self._memory, self._kept, self._largest = memory, 0, 0
        self.network, self.leaf, self.entered = network, leaf, entered
        self.records: dict[Any, list[Record]] = {}
        self.count = 0
        self.places = Places((leaf.shape[2], leaf.shape[3]))
        self.output = self.logits = leaf
        self.peeled = self.head = self.quantized = ""
        self._gates, self._opened = gates, gates.isdisjoint(OPENED)
        self._held: dict[Any, bool] = {None: True}
        self._pending: list[tuple[Tensor, Any, Record]] = []
        self._last: tuple[Tensor, Record] | None = None
        self._squashed: tuple[Tensor, Tensor, str] | None = None
        self._entered_storage = _storage(entered)
        self._times: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would make a later torch import the code of torch.compile in the first call, which takes 2 s. Two threads
        # that import it at once get a deadlock error, and one of them may be the owner's.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._settle()
        kwargs = kwargs or {}
        self.count += 1
        op, in_place, is_random = _described(func)
        if func.namespace == "quantized":
            self.quantized = op
        finish: Callable[[Any], Record] | None = None
        node: Any = None
        region: Region | None = None
        if in_place and isinstance(args[0], Tensor):
            written = args[0]
            if self.network.must_not_write(written):
                raise _WritesToItselfError
            if self._is_unseen(written):
                return self._write_unseen(func, args, kwargs, is_random)
            finish = self._rule(Call(op, func, args, kwargs, True, self.carries, self._opened))
            if finish is not None:
                node = _node(written)
                base = written._base
                region = Region.of(written, base) if base is not None else None
        elif op in RULES:
            finish = self._rule(Call(op, func, args, kwargs, False, self.carries, self._opened))
        rest = region.rest() if region is not None and not self.carries(args[0]) else None
        output = self._numbers(func, args, kwargs) if is_random else func(*args, **kwargs)
        self._note(op, args, output)
        if torch.is_grad_enabled():
            self._count(args, output)
            self._place(op, in_place, func, args, kwargs, output)
        if finish is not None:
            record = finish(output)
            record.region, record.rest = region, rest
            first = output[0] if isinstance(output, (tuple, list)) else output
            self._keep(record, op, args, first)
            self._pending.append((first, node, record))
        return output

    def _count(self, args: Any, output: Any) -> None:
        """Count the memory of new tensors as if autograd kept all of them."""
        if self._memory is not None:
            given = {_storage(tensor) for tensor in _strided(args)}
            self.keep(sum(t.nbytes for t in _strided([output]) if _storage(t) not in given))

    def keep(self, size: int) -> None:
        """Count bytes that stay in memory until the end of the pass.

        Raises:
            UnexplainableError: the pass needs more memory than it may take.
        """
        self._kept, self._largest = self._kept + size, max(self._largest, size)
        needed = self._kept + _GRADIENTS * self._largest
        _must_fit(needed, self._memory, f"the first {self.count} operators")

    def _keep(self, record: Record, op: str, args: Any, output: Tensor) -> None:
        """Number and name a record, and note the place of its values."""
        record.index, record.shape = self.count, tuple(output.shape)
        if record.constants and op not in _MAPS:
            record.rows = self.places.of_rows(tensors_in(args), output)
            # A vector is added along the last axis.
            record.is_last = any(t.shape == output.shape[-1:] for t in tensors_in(args))
        record.name = self._name(op, args)
        record.occurrence = self._times[record.name]
        self._times[record.name] += 1
        self._last = (output, record)

    def _place(self, op: str, in_place: bool, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not in_place:
            self.places.move(op, func, args, kwargs, output)
        if op == "mm":  # a Linear layer, whose bias may be added by another operator
            self.places.of_rows(tensors_in(args), output)

    def _rule(self, call: Call) -> Callable[[Any], Record] | None:
        if not torch.is_grad_enabled():
            return None
        into_view = call.in_place and call.args[0]._base is not None
        rule = RULES.get(call.op)
        if rule is None and not into_view:
            return None
        if not any(map(self.carries, tensors_in(call.args))):
            return None
        if into_view and not call.is_linear_write():
            return unknown(call)
        return (rule or linear)(call)

    def _settle(self) -> None:
        """Find the nodes of earlier calls: autograd attaches a node after the call has returned."""
        if not self._pending:
            return
        left = []
        for output, before, record in self._pending:
            node = _node(output)
            if node is None or node is before:
                left.append((output, before, record))
                continue
            self.records.setdefault(node, []).append(record)
            if record.is_gate:
                self._held[node] = True
        self._pending = left

    def _is_unseen(self, written: Tensor) -> bool:
        """Return whether autograd does not see a write: under no_grad, or through a detached view."""
        if torch.is_grad_enabled() and written.requires_grad:
            return False
        return _storage(written) == self._entered_storage or (written.requires_grad and self.carries(written))

    def _write_unseen(self, func: Any, args: Any, kwargs: Any, is_random: bool) -> Any:
        # The change is a constant of the tensor that autograd takes for unchanged.
        written = self.entered if _storage(args[0]) == self._entered_storage else args[0]
        before = written.detach().clone()
        output = self._numbers(func, args, kwargs) if is_random else func(*args, **kwargs)
        with torch.no_grad():
            change = written.detach() - before
        op = func.overloadpacket.__name__
        name = op.strip("_")
        record = Record(op, "constant", [change], name=name, index=self.count, shape=tuple(change.shape))
        record.occurrence = self._times[name]
        self._times[name] += 1
        self.records.setdefault(written.grad_fn, []).append(record)
        return output

    def _note(self, op: str, args: Any, output: Any) -> None:
        """Note sizes of feature maps, the shape that a view gives a matrix product, and what a squashing takes."""
        if op in _VIEWS and self._last and args[0] is self._last[0] and args[0].ndim == 2:
            self._last[1].shape = tuple(output.shape)
            return
        self._last = None
        if op in _MAPS or "pool" in op:
            first = output[0] if isinstance(output, tuple) else output
            size = tuple(first.shape[2:])
            self.places.add(size)
        elif op in ("_softmax", "_log_softmax", "sigmoid"):
            self._squashed = (output, args[0], op.strip("_"))

    def _name(self, op: str, args: Any) -> str:
        # The first operand of these is an input, which may be a parameter: a class token, for example.
        operands = args[1:] if op in ("convolution", "_convolution", "linear") else args
        return self.network.name(tensors_in(operands)) or op.strip("_")

    def numbered(self, record: Record) -> str:
        """Return the name of a record, with its number where the name occurs again."""
        again = self._times[record.name] > 1 or record.name == INPUT
        return f"{record.name}#{record.occurrence}" if again else record.name

    def carries(self, value: Any) -> bool:
        """Return whether a tensor carries gradient from the image; all else is a constant."""
        return isinstance(value, Tensor) and value.requires_grad and not self.holds(value.grad_fn)

    def holds(self, node: Any) -> bool:
        """Return whether every path from a node to the image leads through what is held."""
        held, stack = self._held, [node]
        while stack:
            node = stack[-1]
            if node in held:
                stack.pop()
                continue
            of_kind = kind(node.name())
            if of_kind in self._gates:
                held[node] = True
            elif of_kind == "AccumulateGrad":
                held[node] = node.variable is not self.leaf
            else:
                parents = [parent for parent, _ in carriers(node, of_kind)]
                ahead = [parent for parent in parents if parent not in held]
                if ahead:
                    stack += ahead
                else:
                    held[node] = all(held[parent] for parent in parents)
        return held[node]

    def finish(self, output: Tensor) -> None:
        """Take the logits, or what enters a final softmax or sigmoid.

        Raises:
            UnexplainableError: the scores are not (1, K).
        """
        self._settle()
        self.output = output
        if self._squashed is not None and output is self._squashed[0]:
            _, output, self.peeled = self._squashed
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UnexplainableError(f"scores: expected (1, K) for one image, got {shape}")
        head = self.records.get(output.grad_fn)
        self.head = self.numbered(head[-1]) if head and head[-1].name in self.network.modules else ""
        self.logits, self._squashed, self._last = output, None, None

    def must_depend_on_image(self) -> None:
        """Raise UnexplainableError if autograd found no path from the logits to the image."""
        if self.logits.grad_fn is None:
            raise UnexplainableError(self.no_gradient())

    def no_gradient(self) -> str:
        """Return why the logits have no gradient to the image."""
        if self.quantized:
            return (
                f"the network is quantized: integer operations have no gradient ({self.quantized}). Serve it before "
                "its quantization."
            )
        return (
            "scores: expected a gradient to the image, got none: for autograd they do not depend on it. Detached and "
            "compiled layers have no gradient."
        )


# Tensors of the size of the largest output that a backward pass holds at once: measured up to 6.5, for a ResNet.
_GRADIENTS = 8

_VIEWS = frozenset({"view", "_unsafe_view", "_reshape_alias"})
_MAPS = frozenset({  # their output is (N, C, h, w)
    "convolution", "_convolution", "mkldnn_convolution", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm", "native_group_norm",
})  # fmt: skip


class _Backward:
    """Hooks on the nodes that carry gradient; collects the terms of the backward pass."""

    def __init__(self, forward: _Forward, keep_values: bool) -> None:
        self._forward, self._keep = forward, keep_values
        self._booked: list[tuple[Term, Tensor]] = []
        self.held: Counter[str] = Counter()
        self.unaccounted: Counter[str] = Counter()
        gates: set[Any] = set()
        seen: set[Any] = set()
        stack: list[Any] = [forward.logits.grad_fn]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            of_kind = kind(node.name())
            parents = [parent for parent, _ in carriers(node, of_kind) if parent is not None]
            gates |= {parent for parent in parents if forward.holds(parent)}
            stack += [parent for parent in parents if not forward.holds(parent)]
            self._hook(node, of_kind)
        for node in gates:
            if kind(node.name()) != "AccumulateGrad":
                node.register_prehook(_stop)
                self.held["gate"] += 1

    def _hook(self, node: Any, of_kind: str) -> None:
        parents, sent = node.next_functions, {i for _, i in carriers(node, of_kind)}
        held = frozenset(i for i, (parent, _) in enumerate(parents) if parent is not None and i not in sent)
        if held:
            node.register_hook(functools.partial(_drop, held))
            self.held["attention" if of_kind.startswith(ATTENTION) else "gate"] += 1
        factors = FACTORS.get(of_kind)
        if factors and all(i < len(parents) and not self._forward.holds(parents[i][0]) for i in factors):
            node.register_hook(functools.partial(_halve, frozenset(factors)))
            self.held["product"] += 1
        records = self._forward.records.get(node, [])
        for record in records:
            self._apply(node, record)
        if not (records or of_kind in LINEAR or of_kind in BY_NODE or of_kind.startswith(ATTENTION)):
            self.unaccounted[f"{of_kind}: no rule for this autograd node"] += 1

    def _apply(self, node: Any, record: Record) -> None:
        for constant in record.constants:
            node.register_prehook(functools.partial(self._book, record, constant, record.region))
        if record.rest is not None and bool(record.rest.any()):
            node.register_prehook(functools.partial(self._book, record, record.rest, None, suffix="/rest"))
        if record.backward is not None:
            node.register_hook(record.backward)
        if record.held:
            self.held[record.held] += 1
        if record.unknown:
            self.unaccounted[f"{record.unknown}: no rule"] += 1

    def _book(
        self,
        record: Record,
        constant: Tensor,
        region: Region | None,
        gradients: Sequence[Any],
        suffix: str = "",
    ) -> None:
        gradient = gradients[0]
        if gradient is not None:
            gradient = gradient if region is None else region(gradient)
            self._add(record, self._forward.numbered(record) + suffix, constant, gradient)

    def book_input(self, image: Tensor, gradient: Tensor) -> None:
        """Book image · gradient, the first term."""
        record = Record(INPUT, INPUT, name=INPUT, index=-1, shape=tuple(image.shape))
        self._add(record, INPUT, image, gradient)

    def _add(self, record: Record, name: str, constant: Tensor, gradient: Tensor) -> None:
        values = gradient * constant.to(gradient.dtype)
        if values.is_complex():
            values = (gradient.conj() * constant).real
        if values.numel() == math.prod(record.shape):
            values = values.reshape(record.shape)
        module = self._forward.network.modules.get(record.name)
        parts = self._forward.places.parts(
            values,
            is_map=record.op in _MAPS,
            is_last=record.is_last,
            rows=record.rows,
        )
        if self._keep:
            self._forward.keep(values.nbytes + gradient.nbytes)
        for suffix, part, has_pixels in parts:
            numbers, folded = _reduced(part, has_pixels)
            term = Term(
                name=name + suffix,
                module="" if module is None else record.name,
                type=record.op.strip("_") if module is None else type(module).__name__,
                rule=record.rule,
                channels=part.shape[1],
                minimum=0.0,
                maximum=0.0,
                total=0.0,
                sum_abs=0.0,
                map=folded,
                values=part if self._keep else None,
                gradient=gradient if self._keep else None,
                call=record.index,
            )
            self._booked.append((term, numbers))

    def terms(self) -> list[Term]:
        """Return all terms, the input first."""
        # One transfer from the device for the numbers of all terms.
        rows = torch.stack([numbers for _, numbers in self._booked]).tolist()
        terms = [
            replace(term, minimum=low, maximum=high, total=total, sum_abs=sum_abs)
            for (term, _), (low, high, total, sum_abs) in zip(self._booked, rows)
        ]
        return sorted(terms, key=_call)


def _call(term: Term) -> int:
    return term.call


def _stop(gradients: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(gradients)


def _drop(held: frozenset[int], inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(None if i in held else g for i, g in enumerate(inputs))


def _halve(factors: frozenset[int], inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(g * 0.5 if g is not None and i in factors else g for i, g in enumerate(inputs))


def _reduced(values: Tensor, has_pixels: bool) -> tuple[Tensor, Tensor | None]:
    """Return minimum, maximum, Σ and Σ|term| as (4,) float64, and Σ|term| over the channels as (h, w)."""
    # float32 over the channels, float64 over the rest: as exact as the terms, and several times faster.
    total = values.sum(1).sum(dtype=torch.float64)
    values = values.abs()
    low, high = values.aminmax()
    folded = values.sum(1)
    sum_abs = folded.sum(dtype=torch.float64)
    numbers = torch.stack((low.double(), high.double(), total, sum_abs))
    return numbers, folded[0] if has_pixels else None


@functools.lru_cache(maxsize=4096)
def _described(func: Any) -> tuple[str, bool, bool]:
    """Return an operator's name without the underscore of its in-place form, whether it is that form, and random."""
    name = func.overloadpacket.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place else name, in_place, torch.Tag.nondeterministic_seeded in func.tags


def _node(tensor: Tensor) -> Any:
    """Return the node of the last write to a tensor; of a view, that of its base."""
    base = tensor._base
    return tensor.grad_fn if base is None else base.grad_fn


def _strided(values: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(values) if tensor.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
