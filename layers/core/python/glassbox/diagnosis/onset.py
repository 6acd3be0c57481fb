"""When a violation was first seen: the time after which its share is higher, by the counts per slot."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from glassbox.monitoring.checks import LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE
from glassbox.monitoring.counts import SLOT, Counts
from glassbox.violation import Violation

_NEAR = 3  # slots around an onset in which its cause ends
UPDATE_MINUTES = _NEAR * SLOT // timedelta(minutes=1)
_PRIOR = 0.2  # share of the unexplained violations whose cause is an update
_SEEN_IN_TIME = 0.95  # share of those whose onset is in these slots
_CHANCE = 0.001  # probability with which counts of one share seem to change


@dataclass(frozen=True)
class Onset:
    """A change of a share.

    Attributes:
        time: start of the first slot after it.
        before: the share until then, 0..1, of ``of_before`` records; ``after`` of ``of_after``.
        what: the share's name.
    """

    time: datetime
    before: float
    of_before: int
    after: float
    of_after: int
    what: str

    def __str__(self) -> str:
        return (
            f"First seen at {self.time:%Y-%m-%d %H:%M} UTC: {self.what} {self.before:.1%} of {self.of_before} "
            f"before, {self.after:.1%} of {self.of_after} since."
        )


def onset(slots: Mapping[datetime, Counts], violation: Violation) -> Onset | None:
    """Return the most likely time at which the violation's share grew.

    The share is binomial, with one value before and another after (a likelihood-ratio test, corrected for the number
    of possible times). None if no time is certain, or the check does not name what grew.

    Args:
        slots: the counts of the window and of the time before, per start of a slot.
    """
    what = _share(violation)
    if what is None:
        return None
    times = sorted(slots)
    numbers = [_of(slots[time], violation) for time in times]
    k_all, n_all = sum(k for k, _ in numbers), sum(n for _, n in numbers)
    found: tuple[float, Onset] | None = None
    k_before = n_before = places = 0
    for time, (k, n) in zip(times, numbers, strict=True):
        if n and n_before:
            places += 1
            k_after, n_after = k_all - k_before, n_all - n_before
            before, after = k_before / n_before, k_after / n_after
            gain = (
                _log_likelihood(k_before, n_before)
                + _log_likelihood(k_after, n_after)
                - _log_likelihood(k_all, n_all)
            )
            if after > before and (found is None or gain > found[0]):
                found = gain, Onset(time, before, n_before, after, n_after, what)
        k_before, n_before = k_before + k, n_before + n
    if found is None or 2 * found[0] < _bound(places):
        return None
    return found[1]


@dataclass(frozen=True)
class Update:
    """An update of the endpoint before the violation.

    Attributes:
        chance: probability that it is the cause, if nothing else is, 0..1.
    """

    time: datetime
    chance: float
    onset: Onset | None = None

    def __str__(self) -> str:
        return f"The endpoint was updated last at {self.time:%Y-%m-%d %H:%M} UTC."


def update(time: datetime, onset: Onset | None, slots: int) -> Update:
    """Return an update, and how probable it is that it caused what began at the onset.

    By Bayes: an update that is the cause ends within two slots before the onset or in it, any other one falls there by
    chance. Without an onset, nothing is inferred.

    Args:
        slots: in which the onset was searched.
    """
    if onset is None or not onset.time - 2 * SLOT <= time < onset.time + SLOT:
        return Update(time, 0.0, onset)
    by_chance = min(1.0, _NEAR / max(1, slots))
    causes = _PRIOR * _SEEN_IN_TIME
    return Update(time, causes / (causes + (1 - _PRIOR) * by_chance), onset)


def _share(violation: Violation) -> str | None:
    if violation.check == UNREADABLE_SHARE:
        return "unreadable responses"
    if violation.check == LOW_CONFIDENCE_SHARE:
        return "predictions of low confidence"
    return None if violation.predicted_class is None else f"class {violation.predicted_class}"


def _of(counts: Counts, violation: Violation) -> tuple[int, int]:
    """Return what the share counts in a slot, and of how many."""
    if violation.check == UNREADABLE_SHARE:
        return counts.unreadable, counts.records + counts.unreadable
    if violation.check == LOW_CONFIDENCE_SHARE:
        return counts.low_confidence, counts.with_confidence
    predicted_class = violation.predicted_class
    return 0 if predicted_class is None else counts.classes[predicted_class], counts.sample_size


def _log_likelihood(k: int, n: int) -> float:
    """Return the logarithm of the largest likelihood of k of n."""
    return sum(count * math.log(count / n) for count in (k, n - k) if count)


def _bound(places: int) -> float:
    """Return the χ² of one degree of freedom that chance exceeds at any of the places (Bonferroni)."""
    return statistics.NormalDist().inv_cdf(1 - _CHANCE / places / 2) ** 2
