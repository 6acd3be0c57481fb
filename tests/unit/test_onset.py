"""When a violation was first seen, by the counts per slot."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from glassbox.diagnosis.onset import onset
from glassbox.monitoring.counts import SLOT, Counts
from glassbox.violation import Violation

START = datetime(2026, 11, 23, 8, tzinfo=UTC)


def violation(check="class_share", predicted_class=14):
    return Violation("signs", check, START, START + timedelta(hours=1), "x", predicted_class=predicted_class)


def slots(shares, size=100):
    """Return slots of ``size`` predictions, with these shares of class 14."""
    return {
        START + i * SLOT: Counts(Counter({14: round(share * size), 3: size - round(share * size)}))
        for i, share in enumerate(shares)
    }


def test_the_time_is_that_after_which_the_share_is_higher():
    found = onset(slots([0.03, 0.02, 0.04, 0.03, 0.5, 0.6, 0.4]), violation())
    assert found.time == START + 4 * SLOT
    assert (found.before, found.of_before) == (pytest.approx(0.03), 400)
    assert (found.after, found.of_after) == (pytest.approx(0.5), 300)
    assert str(found) == (
        "First seen at 2026-11-23 08:40 UTC: class 14 3.0% of 400 before, 50.0% of 300 since."
    )


def test_the_bound_is_that_of_the_likelihood_ratio_test():
    """Of two slots, the change is found where scipy's G-test gives less than 0.001, and not above."""
    seen = set()
    for k in range(4, 40):
        p = chi2_contingency([[3, 97], [k, 100 - k]], correction=False, lambda_="log-likelihood").pvalue
        found = onset(slots([0.03, k / 100]), violation())
        assert (found is not None) == (p < 0.001), k
        seen.add(found is None)
    assert seen == {True, False}


def test_steady_and_falling_shares_have_no_onset():
    rng = np.random.default_rng(4)
    steady = [onset(slots(rng.binomial(100, 0.3, 20) / 100), violation()) for _ in range(200)]
    assert sum(found is not None for found in steady) <= 2
    assert onset(slots([0.6, 0.6, 0.1, 0.1]), violation()) is None


def test_each_check_has_its_share():
    low = {START + i * SLOT: Counts(with_confidence=50, low_confidence=(1, 40)[i]) for i in range(2)}
    assert "predictions of low confidence 2.0% of 50" in str(
        onset(low, violation("low_confidence_share", None))
    )
    bad = {START + i * SLOT: Counts(records=50 - (0, 40)[i], unreadable=(0, 40)[i]) for i in range(2)}
    assert "unreadable responses 0.0% of 50 before, 80.0% of 50" in str(
        onset(bad, violation("unreadable_share", None))
    )


@pytest.mark.parametrize("given", [{}, {START: Counts(Counter({14: 90}))}, slots([0.0, 0.0])])
def test_without_a_time_before_nothing_is_inferred(given):
    assert onset(given, violation()) is None


def test_a_check_without_a_class_has_no_share():
    assert onset(slots([0.03, 0.9]), violation("drift", None)) is None


def test_empty_slots_are_not_places_of_the_change():
    given = slots([0.03, 0.03, 0.9])
    given |= {START + 2 * SLOT: Counts(), START + 3 * SLOT: given[START + 2 * SLOT]}
    assert onset(given, violation()).time == START + 3 * SLOT
