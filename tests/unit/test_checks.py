import math
from collections import Counter
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from captures import ARTICLE
from glassbox.errors import SettingsError
from glassbox.monitoring.checks import Bounds, check_window, class_share, drift, violation_detail
from glassbox.monitoring.checks import low_confidence_share as low_share
from glassbox.monitoring.checks import unreadable_share as bad_share
from glassbox.monitoring.counts import UNKNOWN, Counts, Window
from glassbox.settings import from_env

WINDOW = Window(datetime(2026, 11, 23, 10, tzinfo=UTC), datetime(2026, 11, 23, 11, tzinfo=UTC))
HALF = Bounds(threshold=0.5)


def counts(classes=(), **numbers):
    classes = Counter(classes)
    return Counts(classes, **{"records": classes.total()} | numbers)


def test_class_share_of_the_reference_case_uses_the_words_of_the_article():
    verdict = class_share(counts(ARTICLE), WINDOW, HALF)
    assert (verdict.check, verdict.value, verdict.lower, verdict.upper) == ("class_share", 0.805, None, 0.5)
    assert (verdict.sample_size, verdict.predicted_class, verdict.violated, verdict.window) == (
        400,
        14,
        True,
        WINDOW,
    )
    assert verdict.reason == (
        "Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold "
        "(322 of 400 predictions, 2026-11-23 10:00 to 11:00 UTC)"
    )


@pytest.mark.parametrize(
    ("classes", "violated"),
    [({1: 25, 2: 25}, False), ({1: 26, 2: 24}, True), ({1: 50}, True), ({1: 26, 2: 23}, None)],
)
def test_class_share_is_violated_above_the_threshold_with_enough_predictions(classes, violated):
    verdict = class_share(counts(classes), WINDOW, HALF)
    assert verdict.violated is bool(violated)
    assert (verdict.value is None) is (violated is None)
    if violated is None:
        assert verdict.reason.startswith("Not enough data: 49 predictions, expected at least 50")


def test_class_share_names_the_same_class_in_any_order():
    one, other = (class_share(counts(c), WINDOW, HALF) for c in ({3: 30, 14: 30}, {14: 30, 3: 30}))
    assert one == other


def test_class_share_includes_unknown_and_named_classes():
    unknown = class_share(counts({UNKNOWN: 60, 1: 1}), WINDOW, HALF)
    assert (unknown.violated, unknown.predicted_class) == (True, "unknown")
    assert unknown.reason.startswith("Unknown class predicted 98.36%")
    assert class_share(counts({"Stop": 60}), WINDOW, HALF).reason.startswith("Class Stop predicted 100.00%")


LOW = Bounds(threshold=0.5, low_confidence=0.6, low_confidence_threshold=0.2)


@pytest.mark.parametrize(("low", "violated"), [(20, False), (21, True)])
def test_low_confidence_share_counts_predictions_with_a_confidence(low, violated):
    verdict = low_share(counts({1: 500}, with_confidence=100, low_confidence=low), WINDOW, LOW, 0.2)
    assert (verdict.value, verdict.sample_size, verdict.violated) == (low / 100, 100, violated)
    assert f"{low}.00% of the predictions are less than 60% probable" in verdict.reason


def test_low_confidence_share_excludes_predictions_without_a_confidence():
    verdict = low_share(counts({1: 500}, with_confidence=49, low_confidence=49), WINDOW, LOW, 0.2)
    assert (verdict.value, verdict.violated) == (None, False)
    assert "49 predictions with a probability" in verdict.reason


@pytest.mark.parametrize(
    ("readable", "unreadable", "violated"),
    [
        (99, 1, False),
        (98, 2, True),
        (48, 1, None),
        (0, 50, True),
        (0, 49, None),
        (0, 3, None),
        (0, 0, None),
        (1, 9, None),
    ],
)
def test_unreadable_share_is_relative_to_all_records(readable, unreadable, violated):
    verdict = bad_share(counts({1: readable}, unreadable=unreadable), WINDOW, HALF)
    assert verdict.violated is bool(violated)
    assert (verdict.value is None) is (violated is None)
    assert verdict.sample_size == readable + unreadable


@pytest.mark.parametrize(
    ("readable", "unreadable", "violated"), [(0, 3, True), (0, 2, None), (0, 0, None), (1, 3, None)]
)
def test_unreadable_share_needs_three_records_of_a_closed_window(readable, unreadable, violated):
    verdict = bad_share(counts({1: readable}, unreadable=unreadable), WINDOW, HALF, window_closed=True)
    assert verdict.violated is bool(violated)
    assert (verdict.value is None) is (violated is None)


def test_unreadable_share_reports_that_all_records_are_unreadable():
    assert check_window(counts(unreadable=7), WINDOW, HALF, window_closed=True)[-1].reason == (
        "None of the captured responses can be read: Exceeded 1.00% threshold "
        "(7 of 7 records unreadable, 2026-11-23 10:00 to 11:00 UTC)"
    )


DRIFT = Bounds(threshold=0.9, drift_threshold=0.1)


def test_drift_detects_a_real_change_in_a_small_window():
    baseline = dict.fromkeys(range(43), 100)
    attacked = counts([14] * 60 + list(range(40)))
    verdict = drift(attacked, WINDOW, DRIFT, 0.1, baseline)
    assert verdict.violated
    assert verdict.predicted_class == 14
    assert verdict.value == pytest.approx(
        scipy.spatial.distance.jensenshannon([100] * 43, [attacked.classes[c] for c in range(43)], base=2)
    )
    assert "class 14 went from 2.33% to 61.00%" in verdict.reason
    assert drift(attacked, WINDOW, DRIFT, 0.9, baseline).violated is False


def test_drift_bound_is_the_threshold_for_large_samples_and_wider_for_small_ones():
    baseline = dict.fromkeys(range(43), 10**8)

    def upper(n):
        return drift(counts(dict.fromkeys(range(43), n)), WINDOW, DRIFT, 0.1, baseline).upper

    assert upper(10**8) == pytest.approx(0.1, abs=1e-4)
    assert upper(2) > upper(20) > upper(200) > 0.1
    # by hand, 8,600 predictions: 0.01 + χ²(43, 0.999) / (8 ln 2) / 8,600
    assert upper(200) == pytest.approx(
        math.sqrt(0.01 + scipy.stats.chi2.ppf(0.999, 43) / (8 * math.log(2)) / 8600), rel=0.003
    )


def test_drift_raises_no_false_alarm_for_a_small_window_of_the_baseline():
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, 44)
    share /= share.sum()
    baseline = Counter(dict(enumerate(random.multinomial(3000, share).tolist())))
    windows = [counts(dict(enumerate(random.multinomial(50, share).tolist()))) for _ in range(300)]
    verdicts = [drift(window, WINDOW, DRIFT, 0.1, baseline) for window in windows]
    assert sum(v.value > 0.1 for v in verdicts) > 250  # the bare threshold would have
    assert not any(v.violated for v in verdicts)


def test_drift_needs_enough_predictions():
    verdict = drift(counts({1: 49}), WINDOW, DRIFT, 0.1, {2: 100})
    assert (verdict.value, verdict.violated) == (None, False)


def test_check_window_runs_the_enabled_checks_only():
    def names(bounds, baseline=None):
        return [v.check for v in check_window(counts(ARTICLE), WINDOW, bounds, baseline)]

    assert names(HALF) == ["class_share", "unreadable_share"]
    assert names(LOW) == ["class_share", "low_confidence_share", "unreadable_share"]
    assert names(DRIFT, {1: 5}) == ["class_share", "drift", "unreadable_share"]


def test_every_reason_names_window_and_sample_size():
    everything = Bounds(threshold=0.5, low_confidence=0.6, low_confidence_threshold=0.2, drift_threshold=0.1)
    for seen in (
        counts(ARTICLE, with_confidence=400, low_confidence=300, unreadable=100),
        counts({1: 3}, unreadable=1),
    ):
        for verdict in check_window(seen, WINDOW, everything, {1: 50, 2: 50}):
            assert "2026-11-23 10:00 to 11:00 UTC" in verdict.reason
            assert str(verdict.sample_size) in verdict.reason
            assert "\n" not in verdict.reason
            if verdict.value is not None:
                assert verdict.violated is (verdict.value > verdict.upper)
                assert "Exceeded" in verdict.reason if verdict.violated else "Within" in verdict.reason


def test_violation_detail_is_the_documented_event(load_event):
    event = load_event("violation")
    detail = violation_detail("traffic-signs", "AllTraffic", class_share(counts(ARTICLE), WINDOW, HALF))
    sent = msgspec.to_builtins(detail)
    assert sent.pop("reason").startswith(event["detail"].pop("reason"))
    assert sent == event["detail"]


def test_bounds_require_a_threshold_in_the_environment():
    bounds = from_env(Bounds, {"THRESHOLD": "0.5", "DRIFT_THRESHOLD": ""})
    assert bounds == Bounds(threshold=0.5)
    assert (bounds.min_predictions, bounds.unreadable_threshold, bounds.drift_threshold) == (50, 0.01, None)
    wrong = {"THRESHOLD": "nan", "MIN_PREDICTIONS": "0", "UNREADABLE_THRESHOLD": "2", "LOW_CONFIDENCE": "x"}
    with pytest.raises(SettingsError) as error:
        from_env(Bounds, wrong)
    assert all(name in str(error.value) for name in wrong)
    with pytest.raises(SettingsError, match="THRESHOLD is not set"):
        from_env(Bounds, {})
    with pytest.raises(SettingsError, match="LOW_CONFIDENCE_THRESHOLD needs LOW_CONFIDENCE"):
        from_env(Bounds, {"THRESHOLD": "0.5", "LOW_CONFIDENCE_THRESHOLD": "0.1"})
