"""The violation event, which the monitoring publishes and the incidents react to."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from glassbox.monitoring.response import CLASS_CHARACTERS, PredictedClass

VIOLATION_SOURCE = "glassbox"
VIOLATION_DETAIL_TYPE = "Glassbox Violation"
MONITOR_CHECK = "monitor"
OPERATOR_CHECK = "operator"
SCHEDULE = "hourly"  # names the folder of the monitor files that start_monitor's jobs write

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9-]{1,63}\Z")]  # of an endpoint or a variant
_Check = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z_]{0,40}\Z")]
_ClassNumber = Annotated[int, msgspec.Meta(gt=-(1 << 31), lt=1 << 31)]
_ClassName = Annotated[str, msgspec.Meta(min_length=1, max_length=CLASS_CHARACTERS)]


@dataclass(frozen=True)
class Violation:
    """A window of predictions that broke a bound.

    Attributes:
        check: ``class_share``, ``drift``, …; ``monitor`` for the monitor container, which does not name its checks;
            ``operator`` for a command.
        reason: one sentence that an operator can act on.
        predicted_class: the dominating class; None where the check has none.
    """

    endpoint: str
    check: str
    window_start: datetime
    window_end: datetime
    reason: str
    variant: str | None = None
    predicted_class: PredictedClass | None = None

    def is_duplicate_of(self, other: "Violation") -> bool:
        """Return whether both report the same check for overlapping windows.

        ``monitor`` matches any check; an operator's violation is a duplicate of itself only.
        """
        if OPERATOR_CHECK in (self.check, other.check):
            return self == other
        same_check = self.check == other.check or MONITOR_CHECK in (self.check, other.check)
        return same_check and self.window_start < other.window_end and other.window_start < self.window_end


class WindowDetail(msgspec.Struct, frozen=True):
    """The window of a violation event, [start, end), as ISO 8601 timestamps."""

    start: str
    end: str


class ViolationDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The ``detail`` of a ``Glassbox Violation`` event, version 1."""

    endpoint: Name
    variant: Name | None = None
    check: _Check
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    window: WindowDetail
    sample_size: int | None = None
    predicted_class: _ClassNumber | _ClassName | None = msgspec.field(name="class", default=None)
    reason: str
    version: Literal[1] = 1
