"""The numbers of the latency benchmark, against scipy and the definition of a Poisson process."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.answer_latency import arrivals, ratio_of_medians

THEIRS = np.random.default_rng(0).normal(10, 1, 60)
OURS = THEIRS * 1.2 + np.random.default_rng(1).normal(0, 0.5, 60)


def test_the_ratio_is_that_of_the_medians():
    assert ratio_of_medians(OURS, THEIRS).value == pytest.approx(np.median(OURS) / np.median(THEIRS))


def test_the_interval_is_that_of_a_paired_percentile_bootstrap():
    reference = stats.bootstrap(
        (OURS, THEIRS),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    found = ratio_of_medians(OURS, THEIRS, resamples=20_000)
    assert (found.low, found.high) == pytest.approx(reference, abs=0.01)
    assert found.low < 1.2 < found.high


def test_a_ratio_of_equal_times_has_an_interval_around_one():
    found = ratio_of_medians(THEIRS, np.roll(THEIRS, 1))
    assert found.low < 1 < found.high


def test_an_interval_of_more_rounds_is_narrower():
    few, many = (ratio_of_medians(OURS[:n], THEIRS[::-1][:n]) for n in (10, 60))
    assert many.high - many.low < few.high - few.low


def test_arrivals_are_a_poisson_process():
    times = arrivals(50, 200, 0)
    assert 0 < times[0] < times[-1] < 200
    assert abs(len(times) - 10_000) < 4 * 100
    assert stats.kstest(np.diff(times), stats.expon(scale=1 / 50).cdf).pvalue > 0.01


def test_arrivals_are_the_same_for_the_same_seed():
    assert arrivals(5, 10, 1).tolist() == arrivals(5, 10, 1).tolist()
