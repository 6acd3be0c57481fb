"""Compute FullGrad's terms of a batch by one forward and one backward pass.

The forward hooks exist during the forward pass of a traced request only; plain requests never run them. Parameters are
frozen, so the backward pass computes the gradients of the input and of the biased modules' outputs and nothing else.
Names and shapes of the tensors: ``glassbox/explanation/trace_format.py``.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor, nn

from exactness import inexact
from glassbox.explanation import trace_format as names

Array = npt.NDArray[Any]

BATCH_NORM = nn.modules.batchnorm._BatchNorm
LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Terms:
    """The terms of N samples, as a trace holds them.

    Attributes:
        logits: (N, K).
        modules: entries of the meta's ``modules``, one per call of a biased module, in the order of the forward pass.
        tensors: name -> array; the first axis is N.
    """

    logits: Tensor
    modules: list[dict[str, Any]]
    tensors: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def first(self, n: int) -> "Terms":
        """Return the first ``n`` samples.

        Copies them if others are cut off, so that the memory of those is freed.
        """
        if n >= len(self.logits):
            return self
        return Terms(self.logits[:n], self.modules, {name: t[:n].copy() for name, t in self.tensors.items()})


class Gradients:
    """Computes the terms of one network's logits.

    Args:
        model: takes (N, C, H, W) float32, returns (N, K) logits. Set to eval mode; its parameters are frozen, and their
            values must not change afterwards.
        trace_form: ``reduced`` or ``full``.
    """

    def __init__(self, model: nn.Module, trace_form: str) -> None:
        self._model, self._trace_form = model.eval().requires_grad_(False), trace_form
        self.model_name = type(model).__name__
        self._modules = biased_modules(model)
        self._biases = {name: effective_bias(module) for name, module in self._modules.items()}
        self._inexact: list[str] | None = None
        self.parameters: dict[str, Array] = {}
        """Name -> array, without an axis for the samples; empty in the reduced form."""
        if trace_form == names.FULL:
            for name, module in self._modules.items():
                self.parameters |= parameters(self.model_name, name, module)

    def compute(self, images: Tensor, targets: Tensor | None = None) -> Terms:
        """Return the terms of each sample's target logit.

        Args:
            images: (N, C, H, W) float32, normalised.
            targets: (N,) int64 classes; by default the predicted ones.
        """
        recording = record(self._model, self._modules, images, targets)
        tensors = (
            reduced(recording, self._biases)
            if self._trace_form == names.REDUCED
            else full(recording, self.model_name)
        )
        tensors |= {names.LOGITS: _numpy(recording.logits), names.TARGET: recording.target.cpu().numpy()}
        modules = [
            self._described(call, gradient.ndim == 4) for call, gradient in recording.gradients.items()
        ]
        return Terms(recording.logits, modules, tensors)

    def inexact_parts(self, images: Tensor) -> list[str]:
        """Return the parts of the network for which FullGrad is not exact, found by the first call."""
        if self._inexact is None:
            self._inexact = inexact(self._model, self._modules, images[:1])
        return self._inexact

    def _described(self, call: str, has_map: bool) -> dict[str, Any]:
        module = self._modules[call.partition("#")[0]]
        eps = getattr(module, "eps", None)
        return {"name": call, "type": type(module).__name__, "eps": eps, "map": has_map}


@dataclass(frozen=True)
class Recording:
    """One forward and backward pass of N samples.

    Attributes:
        logits: (N, K).
        head: the name of the biased module that returned the logits; None if another module did.
        target: (N,) int64, the class whose logit was differentiated.
        image: (N, C, H, W) after the forward pass, since a network may write into its input; ``image_gradient`` too.
        gradients: call -> (N, C, …), the gradient of a biased module's output with the channels first, in the order of
            the forward pass. A call is the module's name, with ``#number`` where the module is called more than once.
    """

    logits: Tensor
    head: str | None
    target: Tensor
    image: Tensor
    image_gradient: Tensor
    gradients: Mapping[str, Tensor]


def record(
    model: nn.Module, modules: Mapping[str, nn.Module], image: Tensor, target: Tensor | None = None
) -> Recording:
    """Run ``model`` forward and backward once, and remove all hooks.

    Args:
        model: its parameters should be frozen.
        modules: those whose outputs' gradients are recorded, see :func:`biased_modules`.
        image: (N, C, H, W).
        target: (N,) int64; by default the predicted classes.

    Raises:
        RuntimeError: by torch, for a target out of range, or logits that do not depend on the image.
    """
    calls: list[tuple[str, torch.Size]] = []
    received: dict[int, Tensor] = {}
    output_of_last: Tensor | None = None

    def on_output(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal output_of_last
        if isinstance(output, Tensor) and output.requires_grad:
            output_of_last = output
            # Registered on the tensor before a later in-place activation changes it: the gradient stays this output's.
            output.register_hook(partial(received.__setitem__, len(calls)))  # type: ignore[no-untyped-call]
            calls.append((name, output.shape))

    # A copy: a network may normalise its input in place, and the caller's tensor must not change.
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        handles = [m.register_forward_hook(partial(on_output, name)) for name, m in modules.items()]
        try:
            logits = model(image)
        finally:
            for handle in handles:
                handle.remove()
        target = logits.detach().argmax(1) if target is None else target
        # Samples do not mix in eval mode, so the gradient of the sum holds the gradient of each sample.
        (image_gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), image)

    times = Counter(name for name, _ in calls)
    seen: Counter[str] = Counter()
    gradients = {}
    for call, (name, shape) in enumerate(calls):
        # A module named "input" gets a number too: the plain name is the input's own map.
        key = f"{name}#{seen[name]}" if times[name] > 1 or name == names.INPUT else name
        seen[name] += 1
        gradient = received[call] if call in received else torch.zeros(shape)  # the output was not used
        gradients[key] = gradient.movedim(-1, 1) if isinstance(modules[name], nn.Linear) else gradient
    head = calls[-1][0] if output_of_last is logits else None
    return Recording(logits.detach(), head, target, image.detach(), image_gradient, gradients)


def biased_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> module of those that add a bias to a linear map.

    These are convolutions, Linear, and BatchNorm with running statistics, whose affine map in eval mode has a bias even
    without parameters.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, LINEAR) and module.bias is not None)
        or (isinstance(module, BATCH_NORM) and module.running_mean is not None)
    }


def effective_bias(module: nn.Module) -> Tensor:
    """Return the (C,) float32 bias of a biased module, β − μ·γ/√(σ² + eps) of a BatchNorm."""
    if not isinstance(module, BATCH_NORM):
        return cast("Tensor", module.bias).detach().float()
    mean, var = (
        cast("Tensor", statistic).double() for statistic in (module.running_mean, module.running_var)
    )
    weight, bias = (1.0, 0.0) if module.weight is None else (module.weight.double(), module.bias.double())
    return (bias - mean * weight / torch.sqrt(var + module.eps)).float()


def reduced(recording: Recording, biases: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the reduced form, the terms' statistics and Σ_c|term| of terms with pixels."""
    terms = {names.INPUT: recording.image * recording.image_gradient}
    for call, gradient in recording.gradients.items():
        bias = biases[call.partition("#")[0]]
        terms[call] = bias.view(-1, *[1] * (gradient.ndim - 2)) * gradient
    channels = torch.tensor([term.shape[1] for term in terms.values()], device=recording.image.device)
    rows, maps = [], {}
    for name, term in terms.items():
        total = term.flatten(1).sum(1, dtype=torch.float64)
        size = term.abs_().flatten(1)
        low, high = size.aminmax(dim=1)
        rows.append((low, high, total, size.sum(1, dtype=torch.float64)))
        if term.ndim == 4:
            maps[names.abs_map(name)] = _numpy(term.sum(1))
    columns = [torch.stack(column, 1).double() for column in zip(*rows, strict=True)]
    stats = torch.stack((channels.expand_as(columns[0]), *columns), 2)
    return {names.STATS_TENSOR: stats.cpu().numpy(), **maps}


def full(recording: Recording, model: str) -> dict[str, Array]:
    """Return the tensors of the full form, without the :func:`parameters`."""
    tensors = {names.model_input(model): recording.image, names.IMAGE_GRADIENT: recording.image_gradient}
    tensors |= {names.output_gradient(key): gradient for key, gradient in recording.gradients.items()}
    if recording.head is not None:
        tensors[names.output(recording.head)] = recording.logits
    return {name: _numpy(tensor) for name, tensor in tensors.items()}


def parameters(model: str, name: str, module: nn.Module) -> dict[str, Array]:
    """Return the tensors that define a module's bias, under smdebug's names."""
    attributes = {"bias": names.parameter(model, name, "bias")}
    if isinstance(module, BATCH_NORM):
        attributes["weight"] = names.parameter(model, name, "weight")
        attributes |= {s: names.running(name, s) for s in ("running_mean", "running_var")}
    tensors = {attributes[attribute]: getattr(module, attribute) for attribute in attributes}
    return {name: _numpy(tensor) for name, tensor in tensors.items() if tensor is not None}


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float32).numpy()
