"""A violation: a window of predictions that broke a bound, however it became known.

Four roads lead here: our own event (``Glassbox Violation``, seconds after a capture file), the monitor container's
report in S3 (durable), the end of its job (``SageMaker Processing Job State Change``, best effort), and an operator
(``Glassbox Command``). All become one :class:`Violation`.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from glassbox.errors import BadInputError, is_printable, printable
from glassbox.monitoring.capture import moment
from glassbox.monitoring.response import CLASS_CHARACTERS, PredictedClass

VIOLATION_SOURCE = "glassbox"
VIOLATION_DETAIL_TYPE = "Glassbox Violation"
MONITOR_DETAIL_TYPE = "SageMaker Processing Job State Change"
COMMAND_DETAIL_TYPE = "Glassbox Command"
MONITOR_CHECK = "monitor"
OPERATOR_CHECK = "operator"
SCHEDULE = "hourly"  # the name that start_monitor's jobs file their reports under

REASON_CHARACTERS = 2000
_DESCRIPTIONS, _DESCRIPTION_CHARACTERS = 10, 180  # of a monitor's report that enter the reason
_WINDOW = timedelta(days=1)  # the longest: replaying lists the captures of every hour in it
_CLASSES = 1 << 31

_NAME = re.compile(r"[A-Za-z0-9-]{1,63}")
_COMPLETED_WITH_VIOLATIONS = "CompletedWithViolations"
_REPORT_KEY = re.compile(
    r"monitoring/(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<schedule>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/constraint_violations\.json"
)


@dataclass(frozen=True)
class Violation:
    """A window of predictions that broke a bound.

    ``reason`` is one sentence an operator can act on. ``check`` is ``class_share``, ``drift``, …, ``monitor``
    for the monitor container's, which does not name its checks, or ``operator``. ``predicted_class``
    is the dominating class, where there is one.
    """

    endpoint: str
    check: str
    window_start: datetime
    window_end: datetime
    reason: str
    variant: str | None = None
    predicted_class: PredictedClass | None = None

    def is_duplicate_of(self, other: "Violation") -> bool:
        """Return whether both report the same check (``monitor`` matches any) for overlapping windows."""
        if OPERATOR_CHECK in (self.check, other.check):
            return self == other
        same_check = self.check == other.check or MONITOR_CHECK in (self.check, other.check)
        return same_check and self.window_start < other.window_end and other.window_start < self.window_end


class Reports(Protocol):
    """See :class:`glassbox.aws.objects.Objects`."""

    def get(self, bucket: str, key: str) -> bytes: ...


def read_violation(event: Mapping[str, Any], reports: Reports) -> Violation | None:
    """Read an EventBridge event of any road; None is a monitor's report without violations.

    Raises:
        BadInputError: the event is of another kind, or a field is missing or malformed.
        RetryableError: the report cannot be read now.
    """
    if not isinstance(event, Mapping):
        raise BadInputError(f"not a violation: expected a JSON object, got {type(event).__name__}")
    readers: Mapping[str, Callable[[Mapping[str, Any]], Violation | None]] = {
        VIOLATION_DETAIL_TYPE: _read_ours,
        MONITOR_DETAIL_TYPE: _read_job,
        COMMAND_DETAIL_TYPE: functools.partial(_read_command, time=event.get("time")),
        "Object Created": functools.partial(_read_report, reports=reports),
    }
    try:
        return readers[event["detail-type"]](event["detail"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BadInputError(f"event {event.get('id')}: not a violation, {error!r}") from error


def _read_ours(detail: Mapping[str, Any]) -> Violation:
    return _violation(
        _name(detail["endpoint"]),
        _check_name(detail["check"]),
        read_time(detail["window"]["start"]),
        read_time(detail["window"]["end"]),
        str(detail["reason"]),
        variant=None if detail.get("variant") is None else _name(detail["variant"]),
        predicted_class=_read_class(detail.get("class")),
    )


def _violation(
    endpoint: str,
    check: str,
    start: datetime,
    end: datetime,
    reason: str,
    variant: str | None = None,
    predicted_class: PredictedClass | None = None,
) -> Violation:
    if not start < end <= start + _WINDOW:
        raise ValueError(f"window {start} to {end}: expected at most {_WINDOW}, the end after the start")
    return Violation(
        endpoint, check, start, end, printable(reason, REASON_CHARACTERS), variant, predicted_class
    )


def _name(raw: Any) -> str:
    """The name of an endpoint or a variant."""
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise ValueError(
            f"{printable(repr(raw), 80)}: expected a name of 1 to 63 letters, digits and hyphens"
        )
    return raw


def _read_class(raw: Any) -> PredictedClass | None:
    if raw is None or (type(raw) is int and abs(raw) < _CLASSES):
        return raw
    if isinstance(raw, str) and 0 < len(raw) <= CLASS_CHARACTERS and is_printable(raw):
        return raw
    raise ValueError(f"class {printable(repr(raw), 80)}: expected a number, a name or null")


def _read_command(detail: Mapping[str, Any], time: Any) -> Violation:
    """An operator's ``open``: the hour up to the command is explained."""
    if detail["action"] != "open":
        raise ValueError(f"action {detail['action']!r}")
    now = read_time(time)
    reason = str(detail.get("reason") or "opened by an operator")
    return _violation(_name(detail["endpoint"]), OPERATOR_CHECK, now - timedelta(hours=1), now, reason)


def _read_job(detail: Mapping[str, Any]) -> Violation:
    environment, message = detail["Environment"], str(detail["ExitMessage"]).strip()
    status, _, reason = message.partition(":")
    if status != _COMPLETED_WITH_VIOLATIONS:
        raise ValueError(f"exit message {message!r}")
    return _violation(
        _name(environment["sagemaker_endpoint_name"]),
        MONITOR_CHECK,
        read_time(environment["start_time"]),
        read_time(environment["end_time"]),
        reason.strip() or "the monitor container found violations",
    )


def _read_report(detail: Mapping[str, Any], reports: Reports) -> Violation | None:
    bucket, key = detail["bucket"]["name"], detail["object"]["key"]
    match = _REPORT_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is no monitor report")
    found = json.loads(reports.get(bucket, key))["violations"]
    if not found:
        return None
    start = moment(match["hour"].replace("/", "-", 2).replace("/", "T"))
    if match["schedule"] != SCHEDULE:
        start -= timedelta(hours=1)  # Model Monitor files a report under the hour it ran in
    descriptions = [printable(violation["description"], _DESCRIPTION_CHARACTERS) for violation in found]
    more = len(descriptions) - _DESCRIPTIONS
    reason = "; ".join(descriptions[:_DESCRIPTIONS]) + (f"; and {more:,} more" if more > 0 else "")
    return _violation(match["endpoint"], MONITOR_CHECK, start, start + timedelta(hours=1), reason)


def _check_name(raw: Any) -> str:
    if not re.fullmatch(r"[a-z][a-z_]{0,40}", str(raw)):
        raise ValueError(f"check {raw!r} is not a name")
    return str(raw)


def read_time(raw: Any) -> datetime:
    """Return an ISO 8601 time in UTC; AWS's own sample prints blanks inside (``T16: 20: 00Z``).

    Raises:
        ValueError: it is none, or outside the years 2000 to 2199.
    """
    if not isinstance(raw, str):
        raise ValueError(f"time: expected ISO 8601 text, got {printable(repr(raw), 80)}")
    return moment(raw.replace(" ", ""))
