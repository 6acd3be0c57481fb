"""FullGrad: attribute a logit to every part of the network, as a map over the input image.

S. Srinivas, F. Fleuret: Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019
(arXiv:1905.00780). For a network of linear layers and piecewise linear activations (equation 3 and proposition 1)::

    f(x) = Σ x · ∂f/∂x + Σ_m Σ b_m · ∂f/∂z_m        z_m the output of the module m, b_m its bias

The terms of this sum make the map (equation 8, ψ as in the authors' code: absolute value, rescaling to 0..1 over
channels and pixels, bilinear interpolation). The distance of their sum from the logit is the completeness error.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glassbox.errors import BadInputError
from glassbox.explanation import trace_format
from glassbox.explanation.facts import Blurred
from glassbox.explanation.saliency import CHANNELS, MAX_ABS, MIN_ABS, SUM, SUM_ABS, saliency_of
from glassbox.explanation.trace_reader import Array, Term, Trace

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

RELATIVE_TOLERANCE, ROUNDING_TOLERANCE = 1e-5, 1e-7

MAP_TOLERANCE = 1e-5
"""Between a reduced map in float32 and its statistics; the recorder's differ by 1e-7."""


@dataclass(frozen=True, eq=False)
class FullGradient:
    """The full gradient of N logits.

    Attributes:
        saliency: (N, H, W) float32 ≥ 0, the sum of the layers' maps, not rescaled at the end.
        total: (N,) float64, Σ of all terms, which equals the logit.
        sum_abs: (N,) float64, Σ of their absolute values.
    """

    saliency: Float32
    total: Float64
    sum_abs: Float64


@dataclass(frozen=True)
class Layer:
    """The contribution of one module (or of the input) to the logit."""

    name: str
    type: str
    contribution: float
    """Σ of its terms; the contributions of all layers sum to the logit."""
    share: float
    """Σ|terms| of the layer / Σ|terms| of all, 0..1."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The attribution of one sample's ``target`` logit, and its completeness error."""

    step: int
    sample: int
    model: str
    trace_form: str
    input_image: npt.NDArray[np.uint8]
    """(H, W, C), C 1 or 3."""
    saliency: Float32
    """(H, W), ≥ 0, not rescaled."""
    target: int
    class_name: str | None
    logit: float
    probability: float
    probabilities: Float64
    """(K,) softmax of the logits."""
    total: float
    """Σ of all terms."""
    sum_abs: float
    """Σ of their absolute values."""
    layers: tuple[Layer, ...]
    held: Mapping[str, int]
    """Rule -> places where a coefficient is held; empty for a piecewise linear network."""
    unaccounted: tuple[str, ...]
    """What the sum may miss."""
    request: Mapping[str, str | None]
    blurred: Blurred | None = None
    """None if the endpoint did not measure it."""
    unplaced_share: float = 0.0
    """Σ|terms| without a place in the image / Σ|terms|, 0..1: the part that the map does not show."""
    answered: int | str | None = None
    """The class of the response, if it is another than ``target``."""
    not_compared: str | None = None
    """Why the response was not compared with ``target``."""

    @property
    def top(self) -> list[tuple[int, float]]:
        """The three most probable classes and their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[:3]
        return [(int(c), float(self.probabilities[c])) for c in order]

    @property
    def residual(self) -> float:
        """|logit − Σ terms|, the completeness error."""
        return abs(self.logit - self.total)

    @property
    def relative_error(self) -> float | None:
        """The completeness error relative to the logit, None for a logit of 0."""
        relative = self.residual / abs(self.logit) if self.logit else math.inf
        return relative if math.isfinite(relative) else None

    @property
    def complete(self) -> bool:
        """Whether the terms sum to the logit within rounding, and all parts are accounted for.

        Up to 1e-5 of the logit is forgiven, or up to 1e-7 of Σ|terms|: rounding grows with Σ|terms|, so a small logit
        made of large terms may miss the first. A sum that holds by chance is not complete: networks that are random in
        eval mode are unaccounted for, since their terms sum to the logit of one draw.
        """
        return not self.unaccounted and (
            self.residual <= RELATIVE_TOLERANCE * abs(self.logit)
            or self.residual <= ROUNDING_TOLERANCE * self.sum_abs
        )

    @property
    def held_places(self) -> int:
        """Number of places where a coefficient is held."""
        return sum(self.held.values())


def effective_bias_bn(weight: Array, bias: Array, mean: Array, var: Array, eps: float) -> Float64:
    """Return the bias of a BatchNorm in eval mode, bias − mean · weight / √(var + eps).

    All arrays are (C,). Without eps, a channel of variance 0 gives NaN, and small variances a wrong bias.
    """
    return np.asarray(
        bias.astype(np.float64) - mean.astype(np.float64) * weight / np.sqrt(var.astype(np.float64) + eps)
    )


def full_gradient(
    image: Array, image_gradient: Array, bias_terms: Mapping[str, tuple[Array, Array]]
) -> FullGradient:
    """Sum the terms of every part, and build the map.

    Args:
        image: (N, C, H, W) float32, the normalised input.
        image_gradient: the gradient of the logit with respect to ``image``.
        bias_terms: module -> its (effective) bias (C,) and the gradient of the logit with respect to its output,
            (N, C, h, w) or, for modules without a map, (N, C). The latter only enter ``total`` and ``sum_abs``.

    Raises:
        ValueError: shapes differ.
    """
    reduced = [_reduce_image(image, image_gradient)]
    for name, (bias, gradient) in bias_terms.items():
        if len(gradient) != len(image):
            raise ValueError(f"{name}: expected a gradient of {len(image)} samples, got {gradient.shape}")
        reduced.append(_reduce_bias(name, bias, gradient))
    stats = np.stack([s for s, _ in reduced], 1)
    return FullGradient(
        saliency_of(stats, [m for _, m in reduced]), stats[..., SUM].sum(1), stats[..., SUM_ABS].sum(1)
    )


def explain(trace: Trace) -> list[Explanation]:
    """Explain every sample of a traced step, full or reduced.

    Raises:
        BadInputError: a tensor is missing, has another shape or dtype than the format, or is not finite; or the maps of
            a reduced trace contradict its statistics.
    """
    try:
        return _explain(trace)
    except ValueError as error:
        raise BadInputError(f"{trace.key}: {error}") from error


def _explain(trace: Trace) -> list[Explanation]:
    meta = trace.meta
    input_image = _tensor(trace, trace_format.INPUT_IMAGE, "u1", 4)
    n, height, width, channels = input_image.shape
    if channels not in (1, 3) or n * height * width > trace_format.STEP_PIXELS:
        raise ValueError(
            f"{trace_format.INPUT_IMAGE}: expected (N, H, W, 1 or 3) and at most {trace_format.STEP_PIXELS} pixels, "
            f"got {input_image.shape}"
        )
    logits = _tensor(trace, trace_format.LOGITS, "f4", 2, n).astype(np.float64)
    target = _tensor(trace, trace_format.TARGET, "i8", 1, n)
    if not ((target >= 0) & (target < logits.shape[1])).all():
        raise ValueError(
            f"{trace_format.TARGET}: expected classes 0 to {logits.shape[1] - 1}, got {target.tolist()}"
        )
    if meta.class_names is not None and len(meta.class_names) != n:
        raise ValueError(f"class_names: expected {n}, one per sample, got {len(meta.class_names)}")
    if meta.blurred is not None and len(meta.blurred) != n:
        raise ValueError(f"blurred: expected {n}, one per sample, got {len(meta.blurred)}")
    # A broken file may overflow here; the check of the results below refuses it.
    with np.errstate(all="ignore"):
        stats, maps = (_reduced if meta.trace_form == trace_format.REDUCED else _full)(trace, n)
        saliency = saliency_of(stats, maps)
        if saliency.shape != (n, height, width):
            raise ValueError(f"heat map: expected {(n, height, width)}, got {saliency.shape}")
        totals = stats.sum(1)
        unplaced = stats[:, [map_ is None for map_ in maps], SUM_ABS].sum(1)
        unplaced_share = unplaced / np.where(totals[:, SUM_ABS] > 0, totals[:, SUM_ABS], 1.0)
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
    if not all(np.isfinite(values).all() for values in (logits, totals, saliency)):
        raise ValueError("expected finite logits, terms and maps, got NaN or infinity")
    return [
        Explanation(
            step=trace.step,
            sample=i,
            model=meta.model,
            trace_form=meta.trace_form,
            input_image=input_image[i],
            saliency=saliency[i],
            target=int(target[i]),
            class_name=meta.class_names[i] if meta.class_names else None,
            logit=float(logits[i, target[i]]),
            probability=float(probabilities[i, target[i]]),
            probabilities=probabilities[i],
            total=float(totals[i, SUM]),
            sum_abs=float(totals[i, SUM_ABS]),
            layers=_layers(stats[i], meta.terms),
            held=meta.held,
            unaccounted=meta.unaccounted,
            request=meta.request,
            blurred=meta.blurred[i] if meta.blurred else None,
            unplaced_share=float(unplaced_share[i]),
        )
        for i in range(n)
    ]


def _layers(stats: Float64, terms: Iterable[Term]) -> tuple[Layer, ...]:
    sum_abs = stats[:, SUM_ABS].sum() or 1.0
    parts = [(trace_format.INPUT, "input"), *((term.name, term.type) for term in terms)]
    return tuple(
        Layer(name, kind, float(row[SUM]), float(row[SUM_ABS] / sum_abs))
        for (name, kind), row in zip(parts, stats, strict=True)
    )


def _tensor(trace: Trace, name: str, dtype: str, ndim: int | None = None, n: int | None = None) -> Array:
    tensor = trace.tensors.get(name)
    if tensor is None:
        raise ValueError(f"{name}: expected a tensor, got none")
    if (
        tensor.dtype != dtype
        or not tensor.size
        or (ndim and tensor.ndim != ndim)
        or (n and tensor.shape[:1] != (n,))
    ):
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} {_expected_shape(ndim, n)}, got {tensor.dtype} {tensor.shape}"
        )
    return tensor


def _expected_shape(ndim: int | None, n: int | None) -> str:
    return f"of {ndim or 'any'} dimensions" + (f" and {n} samples" if n else "")


def _reduced(trace: Trace, n: int) -> tuple[Float64, list[Float32 | None]]:
    names = [trace_format.INPUT, *(term.name for term in trace.meta.terms)]
    stats = _tensor(trace, trace_format.STATS_TENSOR, "f8", 3, n)
    if stats.shape[1:] != (len(names), len(trace_format.STATS)):
        raise ValueError(
            f"{trace_format.STATS_TENSOR}: expected {(n, len(names), len(trace_format.STATS))}, got {stats.shape}"
        )
    channels, low, high, total, sum_abs = stats.transpose(2, 0, 1)
    if not ((channels >= 1) & (channels == np.floor(channels))).all():
        raise ValueError(
            f"{trace_format.STATS_TENSOR}: expected whole numbers of channels from 1, got others"
        )
    above = 1 + MAP_TOLERANCE
    if not ((low >= 0) & (low <= high) & (high <= above * sum_abs) & (abs(total) <= above * sum_abs)).all():
        raise ValueError(
            f"{trace_format.STATS_TENSOR}: expected |sum| ≤ Σ|terms| and 0 ≤ min ≤ max ≤ Σ|terms|, got a contradiction"
        )
    drawn = [0, *(i for i, term in enumerate(trace.meta.terms, 1) if term.has_map)]
    maps = {i: _tensor(trace, trace_format.abs_map(names[i]), "f4", 3, n) for i in drawn}
    contradicted = ~_fit(stats[:, drawn], list(maps.values()))
    if contradicted.any():
        sample, layer = np.argwhere(contradicted)[0]
        name = trace_format.abs_map(names[drawn[layer]])
        raise ValueError(f"{name}: the map of sample {sample} contradicts {trace_format.STATS_TENSOR}")
    return stats, [maps.get(i) for i in range(len(names))]


def _fit(stats: Float64, maps: list[Float32]) -> npt.NDArray[np.bool_]:
    """Return (N, L), whether each map Σ_c|term| has the sum and the range of its statistics."""
    channels, low, high, _, sum_abs = stats.transpose(2, 0, 1)
    # All maps in one array: the number of calls does not grow with the layers.
    pixels = np.concatenate([m.reshape(len(m), -1) for m in maps], 1)
    begins = np.cumsum([0, *(m[0].size for m in maps[:-1])])
    darkest, brightest = (f.reduceat(pixels, begins, 1) for f in (np.minimum, np.maximum))
    total = np.add.reduceat(pixels, begins, 1, dtype=np.float64)
    below, above = 1 - MAP_TOLERANCE, 1 + MAP_TOLERANCE
    return np.asarray(
        (darkest >= below * channels * low)
        & (brightest <= above * channels * high)
        & (brightest >= below * high)
        & (abs(total - sum_abs) <= MAP_TOLERANCE * sum_abs)
    )


def _full(trace: Trace, n: int) -> tuple[Float64, list[Float32 | None]]:
    image = _tensor(trace, trace_format.model_input(trace.meta.model), "f4", 4, n)
    reduced = [_reduce_image(image, _tensor(trace, trace_format.IMAGE_GRADIENT, "f4", 4, n))]
    for term in trace.meta.terms:
        values = trace_format.term_values(term.name)
        if values in trace.tensors:
            found = _reduce(_tensor(trace, values, "f4", None, n).copy())
        else:
            gradient = _tensor(trace, trace_format.output_gradient(term.name), "f4", None, n)
            found = _reduce_bias(term.name, _bias(trace, term), gradient)
        reduced.append(found)
    return np.stack([stats for stats, _ in reduced], 1), [map_ for _, map_ in reduced]


def _bias(trace: Trace, term: Term) -> Array:
    def vector(name: str, default: float | None = None) -> Array:
        if default is not None and name not in trace.tensors:
            return np.full_like(mean, default)
        return _tensor(trace, name, "f4", 1)

    weight, bias = (trace_format.parameter(trace.meta.model, term.name, p) for p in ("weight", "bias"))
    statistics = [trace_format.running(term.name, s) for s in ("running_mean", "running_var")]
    if not term.type.startswith("BatchNorm") and statistics[0] not in trace.tensors:
        return vector(bias)
    mean, var = map(vector, statistics)
    # A BatchNorm with affine=False has neither parameter.
    return effective_bias_bn(vector(weight, 1.0), vector(bias, 0.0), mean, var, term.eps or 0.0)


def _reduce_image(image: Array, gradient: Array) -> tuple[Float64, Float32 | None]:
    if image.shape != gradient.shape:
        raise ValueError(f"image gradient: expected {image.shape}, got {gradient.shape}")
    return _reduce(image * gradient)


def _reduce_bias(name: str, bias: Array, gradient: Array) -> tuple[Float64, Float32 | None]:
    if gradient.shape[1:2] != bias.shape:
        raise ValueError(f"{name}: expected a gradient of {len(bias)} channels, got {gradient.shape}")
    return _reduce(bias.astype(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 2)) * gradient)


def _reduce(term: Float32) -> tuple[Float64, Float32 | None]:
    """Return the statistics (N, 5) of a term (N, C, …) and, of a feature map, Σ_c|term| (N, h, w).

    Overwrites ``term``. A product with ones sums the channels three times as fast as ``sum``; the pixels are summed in
    float64.
    """
    n, channels, *size = term.shape
    term = np.ascontiguousarray(term).reshape(n, channels, -1)
    ones = np.ones(channels, term.dtype)
    stats = np.empty((n, len(trace_format.STATS)))
    stats[:, CHANNELS] = channels
    stats[:, SUM] = (ones @ term).sum(1, dtype=np.float64)
    np.abs(term, out=term)
    flat, sum_abs = term.reshape(n, -1), ones @ term
    stats[:, MIN_ABS], stats[:, MAX_ABS] = flat.min(1), flat.max(1)
    stats[:, SUM_ABS] = sum_abs.sum(1, dtype=np.float64)
    return stats, sum_abs.reshape(n, *size) if len(size) == 2 else None
