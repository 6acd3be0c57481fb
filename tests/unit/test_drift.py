import math
from collections import Counter

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from glassbox.monitoring.drift import distance_by_chance, jensen_shannon_distance

samples = st.dictionaries(st.integers(0, 9), st.integers(0, 1000), min_size=1).filter(
    lambda c: sum(c.values())
)


@given(samples, samples)
def test_distance_equals_scipys(p, q):
    expected = scipy.spatial.distance.jensenshannon(
        [p.get(c, 0) for c in range(10)], [q.get(c, 0) for c in range(10)], base=2
    )
    assert jensen_shannon_distance(p, q) == pytest.approx(expected, abs=1e-7)
    assert 0 <= jensen_shannon_distance(p, q) <= 1


def test_distance_is_0_for_equal_and_1_for_disjoint_samples():
    assert jensen_shannon_distance({1: 3, 2: 1}, {1: 30, 2: 10}) == pytest.approx(0, abs=1e-8)
    assert jensen_shannon_distance({1: 3}, {2: 5}) == 1
    # by hand: m = (3/4, 1/4), D(p|m) = log2(4/3), D(q|m) = 1/2 log2(2/3) + 1/2 log2(2)
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + 1) / 2) / 2
    assert jensen_shannon_distance({1: 1}, {1: 1, 2: 1}) == pytest.approx(math.sqrt(by_hand))
    with pytest.raises(ValueError, match="at least one count"):
        jensen_shannon_distance({1: 0}, {1: 1})


SHAPES = {
    "uniform": np.ones(43),
    "natural": 1 / np.arange(1, 44),  # as traffic signs are: a few make up most
    "steep": 0.7 ** np.arange(43),
    "two": np.array([0.9, 0.1]),
    "thousand": np.ones(1000),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [50, 400, 5000])
def test_two_samples_of_one_distribution_exceed_the_bound_as_rarely_as_specified(shape, n):
    """Also for rare classes and small samples, which exceed the usual χ² bound in up to 40 of 100 cases."""
    random = np.random.default_rng(n)
    share = SHAPES[shape] / SHAPES[shape].sum()
    runs = 100 if shape == "thousand" else 300
    exceeded = {0.001: 0, 0.1: 0}
    for _ in range(runs):
        p, q = (Counter(dict(enumerate(random.multinomial(size, share).tolist()))) for size in (3000, n))
        for probability in exceeded:
            exceeded[probability] += jensen_shannon_distance(p, q) > distance_by_chance(p, q, probability)
    assert exceeded[0.001] <= 3
    assert exceeded[0.1] <= 0.2 * runs
    assert exceeded[0.1] >= 0.02 * runs or (shape, n) == ("thousand", 50)  # most classes never seen: wide


def test_bound_of_large_samples_is_the_chi_square_bound():
    p, q = dict.fromkeys(range(43), 3000), dict.fromkeys(range(43), 2000)
    chi = scipy.stats.chi2.ppf(0.999, 43)  # one more than K - 1: the sizes are not held fixed
    expected = math.sqrt(chi / (8 * math.log(2)) * (1 / (43 * 3000) + 1 / (43 * 2000)))
    assert distance_by_chance(p, q, 0.001) == pytest.approx(expected, rel=0.002)
    assert distance_by_chance(q, p, 0.001) == pytest.approx(distance_by_chance(p, q, 0.001))


def test_exact_sum_and_approximation_agree_at_the_limit():
    """One class on each side of the limit."""
    just_below, just_above = ({1: t, 2: 10**6} for t in (5000, 5100))
    q = {1: 0, 2: 10**4}
    assert distance_by_chance(just_below, q, 0.01) == pytest.approx(
        distance_by_chance(just_above, q, 0.01), rel=0.03
    )


def test_bound_of_single_counts_is_one():
    assert distance_by_chance({1: 1}, {2: 1}, 0.001) == jensen_shannon_distance({1: 1}, {2: 1}) == 1
