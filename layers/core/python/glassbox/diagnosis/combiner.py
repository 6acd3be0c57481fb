"""Evidence -> calibrated probabilities, by two multinomial logistic regressions.

``weights.json`` holds the coefficients; ``benchmarks/causes/fit.py`` fits them.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What one image alone can look like.
LOOKS = (
    "attack",
    "too dark",
    "too bright",
    "low contrast",
    "blur or low resolution",
    "noise",
    "channels swapped",
    "wrong scaling",
    "upside down",
    "broken sensor",
    "another",
    "usual",
)
#: The causes of a window; "another" stands for damage of another kind, "usual" for no cause.
CAUSES = (*LOOKS[:-2], "one image again and again", "prevalence", "another", "usual")


_ARRAYS = ("mean", "scale", "slopes", "intercepts")


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
        """Return the probability of each outcome, (..., K), for evidence (..., D)."""
        standard = np.clip((evidence - self.mean) / self.scale, -6, 6)
        logits = (standard @ self.slopes.T + self.intercepts) / self.temperature
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(raised / raised.sum(-1, keepdims=True))


@dataclass(frozen=True)
class Regressions:
    """The regression of one image's LOOKS, and that of the window's CAUSES."""

    looks: Weights
    causes: Weights


def to_json(regressions: Mapping[str, Regressions]) -> str:
    """Return the text of ``weights.json`` for regressions by name, rounded."""
    found = {
        name: {"looks": _rounded(one.looks), "causes": _rounded(one.causes)}
        for name, one in regressions.items()
    }
    return json.dumps({"looks": LOOKS, "causes": CAUSES, "regressions": found}) + "\n"


def _rounded(weights: Weights) -> dict[str, object]:
    arrays = {key: np.round(getattr(weights, key), 4).tolist() for key in _ARRAYS}
    return {"temperature": round(weights.temperature, 4), **arrays}


@functools.cache
def load(name: str) -> Regressions:
    """Return the regressions of ``weights.json``: ``with_reference`` or ``without``."""
    text = importlib.resources.files("glassbox.diagnosis").joinpath("weights.json").read_text()
    one = json.loads(text)["regressions"][name]
    return Regressions(_read(one["looks"]), _read(one["causes"]))


def _read(one: dict[str, Any]) -> Weights:
    return Weights(**{key: np.array(one[key]) for key in _ARRAYS}, temperature=one["temperature"])
