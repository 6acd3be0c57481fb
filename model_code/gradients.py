"""Compute the terms of class scores as a trace holds them.

Names and shapes of the tensors: ``glassbox/explanation/trace_format.py``; the terms: ``complete_gradients.py``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from blur_test import blurred_probabilities
from complete_gradients import Decomposition, Term, complete_gradients
from glassbox.explanation import trace_format as names
from glassbox.explanation.saliency import saliency_of
from gradient_self_test import SelfTestError, self_test
from trace_memory import is_out_of_memory

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

BATCH_NORM = nn.modules.batchnorm._BatchNorm
BIASED = (nn.modules.conv._ConvNd, nn.Linear, BATCH_NORM)
"""Modules whose terms the full form holds as parameters and a gradient."""


@dataclass(frozen=True)
class SampleTerms:
    """The terms of one sample, as a trace holds them.

    Attributes:
        output: (1, K), the scores as the network returned them.
        calls: name of a term -> number of its operator in the forward pass.
        terms: name of a term -> entry of the meta's ``terms``; without the input.
        stats: name of a term -> its row of ``glassbox/stats``; empty in the full form.
        tensors: name -> array; the first axis is 1.
        held, unaccounted: see :class:`complete_gradients.Decomposition`.
        blurred: the sample's entry of the meta's ``blurred``; None if it was not measured.
    """

    output: Tensor
    calls: Mapping[str, int]
    terms: Mapping[str, dict[str, Any]]
    stats: Mapping[str, list[float]]
    tensors: Mapping[str, Array]
    held: Mapping[str, int]
    unaccounted: list[str]
    blurred: dict[str, float] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) + 40 * len(self.stats)


class Gradients:
    """Computes the terms of one network's logits.

    Args:
        model: takes (N, C, H, W) float32, returns (N, K) logits, in eval mode. The full form holds the parameters of
            the time when the trace is written.
        trace_form: ``reduced`` or ``full``.
        blur_test: measure ``blurred``, by two more forward passes for each image.
        memory: returns the bytes that an image may take on a device, or None; by default they are unbounded.
    """

    def __init__(
        self,
        model: nn.Module,
        trace_form: str,
        *,
        blur_test: bool = False,
        memory: Callable[[torch.device], int | None] = lambda _: None,
    ) -> None:
        self._model, self._trace_form = model, trace_form
        self._blur_test, self._memory = blur_test, memory
        # A scripted module has the class's name in this attribute.
        self.model_name = str(getattr(model, "original_name", type(model).__name__))
        self._modules = dict(model.named_modules())
        self.parameters: dict[str, Array] = {}
        """Name -> array, without an axis for the samples; empty in the reduced form."""
        if trace_form == names.FULL:
            for name, module in self._modules.items():
                self.parameters.update(parameters(self.model_name, name, module))

    def compute(self, image: Tensor, target: int | None = None) -> SampleTerms:
        """Return the terms of the target logit of one image.

        Args:
            image: (1, C, H, W) float32, normalised.
            target: class; by default the predicted one.

        Raises:
            UnexplainableError: see :func:`complete_gradients.complete_gradients`.
            SelfTestError: the installed torch does not behave as the rules expect.
            MemoryError, RuntimeError: by the network, also in the blur test if memory is full.
        """
        error = self_test_error()
        if error is not None:
            raise error
        full = self._trace_form == names.FULL
        targets = None if target is None else [target]
        memory = self._memory(image.device)
        (found,) = complete_gradients(self._model, image, targets, keep_values=full, memory=memory)
        tensors = self._full(image, found) if full else _maps(found)
        tensors.update(
            {
                names.LOGITS: _numpy(found.logits[None]),
                names.TARGET: np.array([found.target], np.int64),
            }
        )
        unaccounted = list(found.unaccounted)
        if found.random:
            unaccounted.insert(
                0, f"{self.model_name}: {names.RANDOM} ({', '.join(found.random)} in eval mode)"
            )
        return SampleTerms(
            output=found.output[None],
            calls={term.name: term.call for term in found.terms},
            terms={term.name: self._described(term) for term in found.terms[1:]},
            stats={} if full else {term.name: _statistics(term) for term in found.terms},
            tensors=tensors,
            held=found.held,
            unaccounted=unaccounted,
            blurred=self._blurred(image, found) if self._blur_test else None,
        )

    def _blurred(self, image: Tensor, found: Decomposition) -> dict[str, float] | None:
        """Return what :func:`blur_test.blurred_probabilities` measures, or None if it fails."""
        try:
            measured = blurred_probabilities(self._model, image, found.target, heat_map(found))
        except (
            Exception
        ) as error:  # the network's code may raise anything, and the trace is complete without it
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            logger.warning("%s: blurred image: %s: %s", self.model_name, type(error).__name__, reason)
            return None
        return measured and {"best": measured[0], "random": measured[1]}

    def _described(self, term: Term) -> dict[str, Any]:
        module = self._modules.get(term.module)
        eps = module.eps if isinstance(module, BATCH_NORM) else None
        has_map = term.map is not None
        return {"name": term.name, "type": term.type, "rule": term.rule, "eps": eps, "map": has_map}

    def _full(self, image: Tensor, found: Decomposition) -> dict[str, Array]:
        """Return the full form, without the :func:`parameters`."""
        input_term, *others = found.terms
        tensors = {
            names.model_input(self.model_name): _numpy(image),
            names.IMAGE_GRADIENT: _numpy(_kept(input_term.gradient)),
        }
        for term in others:
            if _is_bias_of(term, self._modules.get(term.module)):
                tensors[names.output_gradient(term.name)] = _numpy(_kept(term.gradient))
            else:
                tensors[names.term_values(term.name)] = _numpy(_kept(term.values))
        if found.head:
            tensors[names.output(found.head)] = _numpy(found.logits[None])
        return tensors


def merged(samples: Sequence[SampleTerms]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return entries of the meta and the tensors of all samples, whose first axis is N.

    A sample without a term of another sample, such as a value that it did not clip, holds zeros.

    Raises:
        ValueError: the samples took different paths through the network.
    """
    calls = {name: call for sample in samples for name, call in sample.calls.items()}
    described = {name: term for sample in samples for name, term in sample.terms.items()}
    names_of_terms = sorted(described, key=lambda name: calls[name])
    tensors = {name: _stacked(name, samples) for sample in samples for name in sample.tensors}
    if samples[0].stats:
        zeros = {
            name: [row[0], 0.0, 0.0, 0.0, 0.0] for sample in samples for name, row in sample.stats.items()
        }
        rows = [
            [{**zeros, **sample.stats}[name] for name in (names.INPUT, *names_of_terms)] for sample in samples
        ]
        tensors[names.STATS_TENSOR] = np.array(rows, np.float64)
    meta = {
        "terms": [described[name] for name in names_of_terms],
        "held": {rule: places for sample in samples for rule, places in sample.held.items()},
        "unaccounted": list(dict.fromkeys(part for sample in samples for part in sample.unaccounted)),
        "blurred": [sample.blurred for sample in samples],
    }
    return meta, tensors


def _stacked(name: str, samples: Sequence[SampleTerms]) -> Array:
    found = [sample.tensors.get(name) for sample in samples]
    shapes = {tensor.shape for tensor in found if tensor is not None}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: expected one shape, got {sorted(shapes)}. The samples took different paths."
        )
    (shape,) = shapes
    return np.concatenate([np.zeros(shape, np.float32) if tensor is None else tensor for tensor in found])


@functools.lru_cache(maxsize=1)
def self_test_error() -> SelfTestError | None:
    """Run the self-test once per process, and return its error, if any."""
    try:
        self_test()
    except SelfTestError as error:
        return error
    return None


def _is_bias_of(term: Term, module: nn.Module | None) -> bool:
    """Return whether a term is the bias of its module times a gradient (1, C, …)."""
    if term.gradient is None or term.values is None or term.rule not in ("bias", "batch norm"):
        return False
    return isinstance(module, BIASED) and len(term.gradient) == 1 and term.gradient.shape == term.values.shape


def _kept(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("expected kept values, got none")
    return tensor


def _maps(found: Decomposition) -> dict[str, Array]:
    return {names.abs_map(t.name): _numpy(t.map[None]) for t in found.terms if t.map is not None}


def heat_map(found: Decomposition) -> npt.NDArray[np.float32]:
    """Return the heat map (H, W) that the stack renders from the trace of these terms."""
    stats = np.array([[_statistics(term) for term in found.terms]])
    maps = [None if term.map is None else _numpy(term.map[None]) for term in found.terms]
    saliency: npt.NDArray[np.float32] = saliency_of(stats, maps)[0]
    return saliency


def _statistics(term: Term) -> list[float]:
    return [term.channels, term.minimum, term.maximum, term.total, term.sum_abs]


def parameters(model: str, name: str, module: nn.Module) -> dict[str, Array]:
    """Return the tensors that define a module's bias, under smdebug's names."""
    if not isinstance(module, BIASED):
        return {}
    tensors = {names.parameter(model, name, "bias"): module.bias}
    if isinstance(module, BATCH_NORM):
        tensors[names.parameter(model, name, "weight")] = module.weight
        tensors.update({names.running(name, s): getattr(module, s) for s in ("running_mean", "running_var")})
    return {key: _numpy(tensor) for key, tensor in tensors.items() if tensor is not None}


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float32).numpy()
