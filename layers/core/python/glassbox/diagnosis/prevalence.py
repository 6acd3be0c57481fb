"""Whether other shares of the true classes explain a window's predictions, by the reference's confusion matrix.

Black box shift estimation (Lipton et al. 2018, arXiv:1802.03916) in its maximum-likelihood form (Saerens et al. 2002):
a model that errs as in the reference period predicts Σₜ P(p | t) w(t). The shares w that fit the counts best are
found by expectation maximisation, which keeps them at 0 or above. If even these do not fit, the inputs differ.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glassbox.diagnosis.reference import Reference
from glassbox.monitoring.drift import distance_by_chance, jensen_shannon_distance
from glassbox.monitoring.response import PredictedClass

FEWEST = 5  # images of each true class: a confusion matrix of fewer is chance
_STEPS = 1000
_SMALLEST_STEP = 1e-9
_CHANCE = 0.001  # probability with which a true change of prevalence does not fit


@dataclass(frozen=True)
class Prevalence:
    """The shares of the true classes that explain a window best.

    Attributes:
        before: share of each true class in the reference, 0..1; ``now`` in the window.
        distance: Jensen-Shannon distance of the window's predictions from those that ``now`` gives, 0..1.
        chance: the distance that chance exceeds in one window of a thousand.
    """

    before: Mapping[PredictedClass, float]
    now: Mapping[PredictedClass, float]
    distance: float
    chance: float

    @property
    def explains(self) -> bool:
        """Whether the shares fit the window's predictions."""
        return self.distance <= self.chance

    @property
    def grown(self) -> PredictedClass:
        """The true class whose share grew most."""
        return max(self.now, key=lambda c: (self.now[c] - self.before[c], str(c)))

    def __str__(self) -> str:
        if not self.explains:
            return (
                f"no shares of the true classes explain the predictions (distance {self.distance:.3f}, "
                f"at most {self.chance:.3f} by chance)"
            )
        grown = self.grown
        return (
            "other shares of the true classes explain the predictions: "
            f"class {grown} from {self.before[grown]:.0%} to {self.now[grown]:.0%}"
        )


def prevalence(reference: Reference, predicted: Mapping[PredictedClass, int]) -> Prevalence | None:
    """Return the shares of the true classes that explain predictions best.

    None if the reference has fewer than FEWEST images of a true class, or nothing was predicted.

    Args:
        predicted: predictions per class of a window.
    """
    true_counts: Counter[PredictedClass] = Counter()
    for (true_class, _), count in reference.confusion.items():
        true_counts[true_class] += count
    if not true_counts or min(true_counts.values()) < FEWEST or not sum(predicted.values()):
        return None
    true_classes = list(true_counts)
    answers = list({answer for _, answer in reference.confusion} | predicted.keys())
    observed = np.array([predicted.get(answer, 0) for answer in answers], np.float64)
    errs = _confusion(reference, true_classes, answers)
    before = np.array([true_counts[c] for c in true_classes], np.float64) / true_counts.total()
    now = _likeliest(errs, observed)
    total = int(observed.sum())
    # as counts of a sample as large as the reference's, whose own chance then counts, too
    expected = {
        answer: round(share * true_counts.total()) for answer, share in zip(answers, errs @ now, strict=True)
    }
    counts = {answer: int(count) for answer, count in zip(answers, observed, strict=True)}
    return Prevalence(
        dict(zip(true_classes, map(float, before), strict=True)),
        dict(zip(true_classes, map(float, now), strict=True)),
        jensen_shannon_distance(expected, counts) if total else 0.0,
        distance_by_chance(expected, counts, _CHANCE),
    )


def _confusion(
    reference: Reference, true_classes: list[PredictedClass], answers: list[PredictedClass]
) -> NDArray[np.float64]:
    """Return P(answer | true class), (A, T): one image's weight is spread over all answers (Laplace)."""
    counts = np.full((len(answers), len(true_classes)), 1 / len(answers))
    row = {answer: i for i, answer in enumerate(answers)}
    column = {true_class: i for i, true_class in enumerate(true_classes)}
    for (true_class, answer), count in reference.confusion.items():
        counts[row[answer], column[true_class]] += count
    return np.asarray(counts / counts.sum(0))


def _likeliest(errs: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares w (T,) of the largest likelihood Σₐ observed(a) log (errs w)(a)."""
    shares = np.full(errs.shape[1], 1 / errs.shape[1])
    for _ in range(_STEPS):
        moved = shares * (errs.T @ (observed / (errs @ shares))) / observed.sum()
        if np.abs(moved - shares).max() < _SMALLEST_STEP:
            break
        shares = moved
    return shares
