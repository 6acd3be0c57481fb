"""Evidence of a window -> calibrated probabilities of its causes: multinomial logistic regression.

``weights.json`` holds the coefficients; ``benchmarks/fit_causes.py`` fits them.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: The causes of the combiner; the last one stands for damage of another kind.
CAUSES = (
    "attack",
    "too dark",
    "too bright",
    "low contrast",
    "blur",
    "noise",
    "low resolution",
    "channels swapped",
    "wrong scaling",
    "upside down",
    "broken sensor",
    "one image again and again",
    "prevalence",
    "another",
)


@dataclass(frozen=True)
class Weights:
    """Coefficients of one regression and its temperature.

    ``slopes`` (K, D) and ``intercepts`` (K,) are of the standardised evidence.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    slopes: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    temperature: float

    def probabilities(self, evidence: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability of each of CAUSES, (..., K), for evidence (..., D)."""
        standard = np.clip((evidence - self.mean) / self.scale, -6, 6)
        logits = (standard @ self.slopes.T + self.intercepts) / self.temperature
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(raised / raised.sum(-1, keepdims=True))


def fit(
    evidence: NDArray[np.float64], causes: Sequence[str], *, ridge: float = 1e-2, steps: int = 600
) -> Weights:
    """Fit the regression by gradient descent with momentum.

    Every cause has the same total weight.

    Args:
        evidence: (N, D).
        causes: N of CAUSES.
        ridge: penalty of the squared slopes.
    """
    index = np.array([CAUSES.index(cause) for cause in causes])
    mean, scale = evidence.mean(0), np.maximum(evidence.std(0), 0.05)
    x = np.clip((evidence - mean) / scale, -6, 6)
    truth = np.eye(len(CAUSES))[index]
    share = np.maximum(truth.sum(0), 1)
    weight = (1 / share[index])[:, None] / len(set(index.tolist()))
    slopes, intercepts = np.zeros((len(CAUSES), x.shape[1])), np.zeros(len(CAUSES))
    moved, shifted = np.zeros_like(slopes), np.zeros_like(intercepts)
    for _ in range(steps):
        logits = x @ slopes.T + intercepts
        raised = np.exp(logits - logits.max(1, keepdims=True))
        error = (raised / raised.sum(1, keepdims=True) - truth) * weight
        moved = 0.9 * moved - 0.5 * (error.T @ x + ridge * slopes)
        shifted = 0.9 * shifted - 0.5 * error.sum(0)
        slopes, intercepts = slopes + moved, intercepts + shifted
    return Weights(mean, scale, slopes, intercepts, 1.0)


def calibrated(weights: Weights, evidence: NDArray[np.float64], causes: Sequence[str]) -> Weights:
    """Return the weights with the most likely temperature for held-out evidence.

    Method: Guo et al. 2017.
    """
    index = np.array([CAUSES.index(cause) for cause in causes])

    def loss(temperature: float) -> float:
        tried = _with_temperature(weights, temperature).probabilities(evidence)
        return float(-np.log(tried[np.arange(len(index)), index] + 1e-12).mean())

    return _with_temperature(weights, min(np.geomspace(0.25, 8, 60), key=loss))


def _with_temperature(weights: Weights, temperature: float) -> Weights:
    return Weights(weights.mean, weights.scale, weights.slopes, weights.intercepts, float(temperature))


def to_json(weights: Mapping[str, Weights], evidence: Sequence[str]) -> str:
    """Return the text of ``weights.json`` for regressions by name, rounded."""
    found = {
        name: {
            "temperature": round(one.temperature, 4),
            **{
                key: np.round(getattr(one, key), 4).tolist()
                for key in ("mean", "scale", "slopes", "intercepts")
            },
        }
        for name, one in weights.items()
    }
    return json.dumps({"causes": CAUSES, "evidence": list(evidence), "regressions": found}) + "\n"


@functools.cache
def load(name: str) -> Weights:
    """Return a regression of ``weights.json``: ``with_reference`` or ``without``."""
    text = importlib.resources.files("glassbox.diagnosis").joinpath("weights.json").read_text()
    one = json.loads(text)["regressions"][name]
    arrays = {key: np.array(one[key]) for key in ("mean", "scale", "slopes", "intercepts")}
    return Weights(**arrays, temperature=one["temperature"])
