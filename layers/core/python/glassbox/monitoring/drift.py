"""The distance between two samples of classes, and the distance that chance explains."""

import math
import statistics
from collections.abc import Mapping

from glassbox.monitoring.response import PredictedClass

_LARGE = 50  # expected count from which the second-order expansion is as accurate as the sum


def jensen_shannon_distance(p: Mapping[PredictedClass, int], q: Mapping[PredictedClass, int]) -> float:
    """Return the square root of the Jensen-Shannon divergence (base 2) of two samples, 0..1.

    Lin, Divergence measures based on the Shannon entropy, 1991.

    Raises:
        ValueError: a sample has no counts.
    """
    n, m = sum(p.values()), sum(q.values())
    if not n or not m:
        raise ValueError("Jensen-Shannon distance: expected at least one count per sample, got none")
    divergence = math.fsum(_term(p.get(c, 0) / n, q.get(c, 0) / m) for c in p.keys() | q.keys())
    return math.sqrt(max(0.0, divergence))  # rounding may leave -1e-17


def distance_by_chance(
    p: Mapping[PredictedClass, int], q: Mapping[PredictedClass, int], exceeded: float
) -> float:
    """Return the distance that two samples of one distribution exceed with this probability.

    Under that hypothesis, each of the t counts of a class belongs to either sample at random: binomially, in
    proportion to the samples' sizes. This gives the mean and the variance of the class's share of the divergence, for
    rare classes too, where the usual χ² approximation does not hold. The sum over the classes is approximated by a
    scaled χ² of that mean and variance (Satterthwaite 1946) with the quantile of Wilson and Hilferty (1931). The
    sizes vary, as with one more class: with few classes the bound is slightly wide, never narrow.
    """
    n, m = sorted((sum(p.values()), sum(q.values())))
    totals = [p.get(c, 0) + q.get(c, 0) for c in p.keys() | q.keys()]
    moments = {t: _moments(t, n, m) for t in set(totals)}
    mean = math.fsum(moments[t][0] for t in totals)
    variance = math.fsum(moments[t][1] for t in totals)
    if variance <= 0:  # two samples of one count each
        return min(1.0, math.sqrt(mean))
    freedom = 2 * mean * mean / variance
    z = statistics.NormalDist().inv_cdf(1 - exceeded)
    root = 1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))
    return min(1.0, math.sqrt(mean * max(0.0, root) ** 3))


def _moments(t: int, n: int, m: int) -> tuple[float, float]:
    """Return mean and variance of the divergence of a class with t counts, split at random; n <= m."""
    w = n / (n + m)
    if t * w > _LARGE:
        mean = (1 / n + 1 / m) / (8 * math.log(2))
        return mean, 2 * mean * mean
    probability, mean, square = math.exp(t * math.log1p(-w)), 0.0, 0.0
    for a in range(t + 1):
        term = _term(a / n, (t - a) / m)
        mean += probability * term
        square += probability * term * term
        if a > t * w and probability < 1e-12:
            break
        probability *= (t - a) / (a + 1) * w / (1 - w)
    return mean, square - mean * mean


def _term(a: float, b: float) -> float:
    """Return the divergence of a class with share a of one sample and share b of the other."""
    middle = (a + b) / 2
    return sum(x / 2 * math.log2(x / middle) for x in (a, b) if x)
