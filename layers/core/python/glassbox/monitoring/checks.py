"""Counts + bounds (+ baseline) -> verdicts. One statistic, one function; every report is made from a Verdict."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glassbox.monitoring.counts import UNKNOWN, Counts, Window
from glassbox.monitoring.drift import distance_by_chance, jensen_shannon_distance
from glassbox.monitoring.response import Label
from glassbox.settings import setting

CLASS_SHARE, LOW_CONFIDENCE_SHARE, DRIFT, UNREADABLE_SHARE = (
    "class_share",
    "low_confidence_share",
    "drift",
    "unreadable_share",
)

# The share of windows, drawn from the baseline itself, that may look further away than the bound allows for.
_FALSE_ALARMS = 0.001
# None of an hour's three records can be read: by chance one hour in a million, where one record in a hundred is bad.
_CERTAINLY_UNREADABLE = 3


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """When a window is a violation; the same names in the template, the function and the monitor container.

    Shares are 0..1. ``drift_threshold`` is a Jensen-Shannon distance (base 2, 0..1). None turns a check off.
    """

    threshold: float = setting(within=(0, 1))
    min_predictions: int = setting(50, within=(1, None))
    unreadable_threshold: float = setting(0.01, within=(0, 1))
    low_confidence: float | None = setting(None, within=(0, 1))
    low_confidence_threshold: float | None = setting(None, within=(0, 1))
    drift_threshold: float | None = setting(None, within=(0, 1))

    def problems(self) -> Iterator[str]:
        """What is wrong between the variables; see :mod:`glassbox.settings`."""
        if self.low_confidence_threshold is not None and self.low_confidence is None:
            yield "LOW_CONFIDENCE_THRESHOLD needs LOW_CONFIDENCE, the probability under which it counts"


@dataclass(frozen=True)
class Verdict:
    """One statistic of one window, held against its bounds.

    ``value`` is None where there is not enough data to judge; then nothing is violated. ``n`` is what was judged:
    predictions, or records for ``unreadable_share``. ``label`` is the class it is about, where there is one.
    ``reason`` is one sentence an operator can act on.
    """

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    window: Window
    n: int
    violated: bool
    reason: str
    label: Label | None = None


@dataclass(frozen=True)
class PublishedViolation:
    """A violation that has been published."""

    check: str
    window: Window


def detail(endpoint: str, variant: str, verdict: Verdict) -> dict[str, Any]:
    """The detail of the ``Glassbox Violation`` event."""
    return {
        "version": 1,
        "endpoint": endpoint,
        "variant": variant,
        "check": verdict.name,
        "value": verdict.value,
        "lower": verdict.lower,
        "upper": verdict.upper,
        "window": {
            "start": f"{verdict.window.start:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{verdict.window.end:%Y-%m-%dT%H:%M:%SZ}",
        },
        "n": verdict.n,
        "class": verdict.label,
        "reason": verdict.reason,
    }


def judge(
    counts: Counts,
    window: Window,
    bounds: Bounds,
    baseline: Mapping[Label, int] | None = None,
    *,
    over: bool = False,
) -> list[Verdict]:
    """Every check that is turned on, in the order of the functions below.

    Args:
        baseline: predictions per class while all was well; without it there is no drift to judge.
        over: whether all records of the window are in; one that has just begun holds a few neighbours only.
    """
    verdicts = [class_share(counts, window, bounds)]
    if bounds.low_confidence_threshold is not None:
        verdicts.append(low_confidence_share(counts, window, bounds, bounds.low_confidence_threshold))
    if bounds.drift_threshold is not None and baseline:
        verdicts.append(drift(counts, window, bounds, bounds.drift_threshold, baseline))
    verdicts.append(unreadable_share(counts, window, bounds, over=over))
    return verdicts


def class_share(counts: Counts, window: Window, bounds: Bounds) -> Verdict:
    """The share of the most predicted class; more than THRESHOLD is a violation."""
    if counts.n < bounds.min_predictions:
        return _not_enough(CLASS_SHARE, bounds.threshold, counts.n, "predictions", window, bounds)
    # of equally frequent classes the first by name, so that every judge names the same
    label, count = min(counts.classes.items(), key=lambda item: (-item[1], str(item[0])))
    share = count / counts.n
    violated = share > bounds.threshold
    name = "Unknown class" if label == UNKNOWN else f"Class {label}"
    return Verdict(
        CLASS_SHARE,
        share,
        None,
        bounds.threshold,
        window,
        counts.n,
        violated,
        f"{name} predicted {share:.2%} of the time: {_compared(violated)} {bounds.threshold:.2%} threshold "
        f"({count} of {counts.n} predictions, {window})",
        label,
    )


def low_confidence_share(counts: Counts, window: Window, bounds: Bounds, threshold: float) -> Verdict:
    """The share of predictions less probable than LOW_CONFIDENCE, among those whose probability is known."""
    if counts.rated < bounds.min_predictions:
        what = "predictions with a probability"
        return _not_enough(LOW_CONFIDENCE_SHARE, threshold, counts.rated, what, window, bounds)
    share = counts.low / counts.rated
    violated = share > threshold
    return Verdict(
        LOW_CONFIDENCE_SHARE,
        share,
        None,
        threshold,
        window,
        counts.rated,
        violated,
        f"{share:.2%} of the predictions are less than {bounds.low_confidence:.0%} probable: "
        f"{_compared(violated)} {threshold:.2%} threshold "
        f"({counts.low} of {counts.rated} predictions, {window})",
    )


def drift(
    counts: Counts, window: Window, bounds: Bounds, threshold: float, baseline: Mapping[Label, int]
) -> Verdict:
    """The Jensen-Shannon distance between the classes of the window and those of the baseline.

    Two samples of one distribution are never alike: the bound is DRIFT_THRESHOLD, widened (in quadrature, as
    independent errors add) by the distance that chance exceeds in one window of a thousand.
    """
    if counts.n < bounds.min_predictions:
        return _not_enough(DRIFT, threshold, counts.n, "predictions", window, bounds)
    m = sum(baseline.values())
    chance = distance_by_chance(baseline, counts.classes, _FALSE_ALARMS)
    upper = min(1.0, math.hypot(threshold, chance))
    distance = jensen_shannon_distance(baseline, counts.classes)
    violated = distance > upper
    grown = max(counts.classes, key=lambda c: (counts.classes[c] / counts.n - baseline.get(c, 0) / m, str(c)))
    return Verdict(
        DRIFT,
        distance,
        None,
        upper,
        window,
        counts.n,
        violated,
        f"The predicted classes are {distance:.3f} away from the baseline (Jensen-Shannon): {_compared(violated)} "
        f"{upper:.3f}, that is {threshold:g} widened for {counts.n} predictions; class {grown} went from "
        f"{baseline.get(grown, 0) / m:.2%} to {counts.classes[grown] / counts.n:.2%} ({window})",
        grown,
    )


def unreadable_share(counts: Counts, window: Window, bounds: Bounds, *, over: bool = False) -> Verdict:
    """The share of records that cannot be read; more than UNREADABLE_THRESHOLD is a violation.

    Where nothing can be read of a window that is ``over``, three records are enough to say so.
    """
    n, threshold = counts.records + counts.unreadable, bounds.unreadable_threshold
    all_bad = not counts.records
    if n < bounds.min_predictions and not (over and all_bad and n >= _CERTAINLY_UNREADABLE):
        return _not_enough(UNREADABLE_SHARE, threshold, n, "records", window, bounds)
    share = counts.unreadable / n
    violated = share > threshold
    return Verdict(
        UNREADABLE_SHARE,
        share,
        None,
        threshold,
        window,
        n,
        violated,
        f"{'None' if all_bad else f'{share:.2%}'} of the captured responses {'can' if all_bad else 'cannot'} be read: "
        f"{_compared(violated)} {threshold:.2%} threshold ({counts.unreadable} of {n} records unreadable, {window})",
    )


def _not_enough(name: str, upper: float, n: int, what: str, window: Window, bounds: Bounds) -> Verdict:
    reason = f"Not enough data: {n} {what}, at least {bounds.min_predictions} are judged ({window})"
    return Verdict(name, None, None, upper, window, n, False, reason)


def _compared(violated: bool) -> str:
    return "Exceeded" if violated else "Within"
