"""Counts + bounds (+ baseline) -> verdicts. Each check is one function; every output is made from its Verdict."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from glassbox.monitoring.counts import UNKNOWN, Counts, ResponseSettings, Window
from glassbox.monitoring.drift import distance_by_chance, jensen_shannon_distance
from glassbox.monitoring.response import PredictedClass
from glassbox.settings import setting
from glassbox.timestamps import format_timestamp
from glassbox.violation import ViolationDetail, WindowDetail

CLASS_SHARE, LOW_CONFIDENCE_SHARE, DRIFT, UNREADABLE_SHARE = (
    "class_share",
    "low_confidence_share",
    "drift",
    "unreadable_share",
)

# The share of windows without drift whose distance may exceed the bound by chance.
_FALSE_ALARMS = 0.001
# With one bad record in a hundred, all three records of an hour are unreadable in one hour of a million.
_CERTAINLY_UNREADABLE = 3


@dataclass(frozen=True, kw_only=True)
class Bounds(ResponseSettings):
    """The bounds of the checks, named as in the template and the monitor container.

    Shares are 0..1. ``drift_threshold`` is a Jensen-Shannon distance (base 2, 0..1). None turns a check off.
    """

    threshold: float = setting(within=(0, 1))
    min_predictions: int = setting(50, within=(1, None))
    unreadable_threshold: float = setting(0.01, within=(0, 1))
    low_confidence_threshold: float | None = setting(None, within=(0, 1))
    drift_threshold: float | None = setting(None, within=(0, 1))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the variables."""
        if self.low_confidence_threshold is not None and self.low_confidence is None:
            yield "LOW_CONFIDENCE_THRESHOLD needs LOW_CONFIDENCE, the probability below which a prediction counts"


@dataclass(frozen=True)
class Verdict:
    """The result of one check of one window.

    Attributes:
        value: None if the sample is too small to check; then ``violated`` is False.
        sample_size: predictions, or records for ``unreadable_share``.
        reason: one sentence that an operator can act on.
        predicted_class: the class that the check is about; None where it is about all.
    """

    check: str
    value: float | None
    lower: float | None
    upper: float | None
    window: Window
    sample_size: int
    violated: bool
    reason: str
    predicted_class: PredictedClass | None = None


@dataclass(frozen=True)
class PublishedViolation:
    """A violation that was published."""

    check: str
    window: Window


def violation_detail(endpoint: str, variant: str, verdict: Verdict) -> ViolationDetail:
    """Return the detail of the event that publishes a violated verdict."""
    window = WindowDetail(format_timestamp(verdict.window.start), format_timestamp(verdict.window.end))
    return ViolationDetail(
        endpoint=endpoint,
        variant=variant,
        check=verdict.check,
        value=verdict.value,
        lower=verdict.lower,
        upper=verdict.upper,
        window=window,
        sample_size=verdict.sample_size,
        predicted_class=verdict.predicted_class,
        reason=verdict.reason,
    )


def check_window(
    counts: Counts,
    window: Window,
    bounds: Bounds,
    baseline: Mapping[PredictedClass, int] | None = None,
    *,
    window_closed: bool = False,
) -> list[Verdict]:
    """Return the verdict of every check that is turned on, in the order of the functions below.

    Args:
        baseline: predictions per class in the reference period; None turns the drift check off.
        window_closed: False while the window is still open.
    """
    verdicts = [class_share(counts, window, bounds)]
    if bounds.low_confidence_threshold is not None:
        verdicts.append(low_confidence_share(counts, window, bounds, bounds.low_confidence_threshold))
    if bounds.drift_threshold is not None and baseline:
        verdicts.append(drift(counts, window, bounds, bounds.drift_threshold, baseline))
    verdicts.append(unreadable_share(counts, window, bounds, window_closed=window_closed))
    return verdicts


def class_share(counts: Counts, window: Window, bounds: Bounds) -> Verdict:
    """Check that the share of the most predicted class is at most THRESHOLD."""
    if counts.sample_size < bounds.min_predictions:
        return _not_enough(CLASS_SHARE, bounds.threshold, counts.sample_size, "predictions", window, bounds)
    # of equally frequent classes the first by name, so that the function and the container name the same class
    predicted_class, count = min(counts.classes.items(), key=lambda item: (-item[1], str(item[0])))
    share = count / counts.sample_size
    violated = share > bounds.threshold
    name = "Unknown class" if predicted_class == UNKNOWN else f"Class {predicted_class}"
    return Verdict(
        CLASS_SHARE,
        share,
        None,
        bounds.threshold,
        window,
        counts.sample_size,
        violated,
        f"{name} predicted {share:.2%} of the time: {_compared(violated)} {bounds.threshold:.2%} threshold "
        f"({count} of {counts.sample_size} predictions, {window})",
        predicted_class,
    )


def low_confidence_share(counts: Counts, window: Window, bounds: Bounds, threshold: float) -> Verdict:
    """Check the share of predictions below LOW_CONFIDENCE, among those with a probability."""
    if counts.with_confidence < bounds.min_predictions:
        what = "predictions with a probability"
        return _not_enough(LOW_CONFIDENCE_SHARE, threshold, counts.with_confidence, what, window, bounds)
    share = counts.low_confidence / counts.with_confidence
    violated = share > threshold
    return Verdict(
        LOW_CONFIDENCE_SHARE,
        share,
        None,
        threshold,
        window,
        counts.with_confidence,
        violated,
        f"{share:.2%} of the predictions are less than {bounds.low_confidence:.0%} probable: "
        f"{_compared(violated)} {threshold:.2%} threshold "
        f"({counts.low_confidence} of {counts.with_confidence} predictions, {window})",
    )


def drift(
    counts: Counts, window: Window, bounds: Bounds, threshold: float, baseline: Mapping[PredictedClass, int]
) -> Verdict:
    """Check the Jensen-Shannon distance between the classes of the window and of the baseline.

    Two samples of one distribution differ by chance: the bound is DRIFT_THRESHOLD, widened (in quadrature, as
    independent errors add) by the distance that chance exceeds in one window of a thousand.
    """
    if counts.sample_size < bounds.min_predictions:
        return _not_enough(DRIFT, threshold, counts.sample_size, "predictions", window, bounds)
    chance = distance_by_chance(baseline, counts.classes, _FALSE_ALARMS)
    upper = min(1.0, math.hypot(threshold, chance))
    distance = jensen_shannon_distance(baseline, counts.classes)
    violated = distance > upper
    n, m = counts.sample_size, sum(baseline.values())
    grown = max(counts.classes, key=lambda c: (counts.classes[c] / n - baseline.get(c, 0) / m, str(c)))
    return Verdict(
        DRIFT,
        distance,
        None,
        upper,
        window,
        counts.sample_size,
        violated,
        f"The predicted classes are {distance:.3f} away from the baseline (Jensen-Shannon): {_compared(violated)} "
        f"{upper:.3f} ({threshold:g} widened for {counts.sample_size} predictions); class {grown} went from "
        f"{baseline.get(grown, 0) / m:.2%} to {counts.classes[grown] / n:.2%} ({window})",
        grown,
    )


def unreadable_share(
    counts: Counts, window: Window, bounds: Bounds, *, window_closed: bool = False
) -> Verdict:
    """Check that the share of unreadable records is at most UNREADABLE_THRESHOLD.

    Three records are enough when the window is closed and all of them are unreadable.
    """
    sample_size, threshold = counts.records + counts.unreadable, bounds.unreadable_threshold
    all_bad = not counts.records
    if sample_size < bounds.min_predictions and not (
        window_closed and all_bad and sample_size >= _CERTAINLY_UNREADABLE
    ):
        return _not_enough(UNREADABLE_SHARE, threshold, sample_size, "records", window, bounds)
    share = counts.unreadable / sample_size
    violated = share > threshold
    return Verdict(
        UNREADABLE_SHARE,
        share,
        None,
        threshold,
        window,
        sample_size,
        violated,
        f"{'None' if all_bad else f'{share:.2%}'} of the captured responses {'can' if all_bad else 'cannot'} be read: "
        f"{_compared(violated)} {threshold:.2%} threshold "
        f"({counts.unreadable} of {sample_size} records unreadable, {window})",
    )


def _not_enough(
    check: str, upper: float, sample_size: int, what: str, window: Window, bounds: Bounds
) -> Verdict:
    reason = f"Not enough data: {sample_size} {what}, expected at least {bounds.min_predictions} ({window})"
    return Verdict(check, None, None, upper, window, sample_size, False, reason)


def _compared(violated: bool) -> str:
    return "Exceeded" if violated else "Within"
