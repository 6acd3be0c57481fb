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
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from glassbox.errors import BadInputError

VIOLATION_SOURCE = "glassbox"
VIOLATION_DETAIL_TYPE = "Glassbox Violation"
MONITOR_DETAIL_TYPE = "SageMaker Processing Job State Change"
COMMAND_DETAIL_TYPE = "Glassbox Command"
MONITOR_CHECK = "monitor"
OPERATOR_CHECK = "operator"
SCHEDULE = "hourly"  # the name that start_monitor's jobs file their reports under

_COMPLETED_WITH_VIOLATIONS = "CompletedWithViolations"
_REPORT_KEY = re.compile(
    r"monitoring/(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<schedule>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/constraint_violations\.json"
)


@dataclass(frozen=True)
class Violation:
    """A window of predictions that broke a bound.

    ``reason`` is one sentence an operator can act on. ``check`` is ``class_share``, ``drift``, …, ``monitor``
    for the monitor container's, which does not name its checks, or ``operator``. ``label`` is the dominating class,
    where there is one.
    """

    endpoint: str
    check: str
    window_start: datetime
    window_end: datetime
    reason: str
    variant: str | None = None
    label: int | str | None = None

    def same_matter(self, other: "Violation") -> bool:
        """The same check (the monitor does not name its own) in windows that overlap."""
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
    readers: Mapping[str, Callable[[Mapping[str, Any]], Violation | None]] = {
        VIOLATION_DETAIL_TYPE: _read_ours,
        MONITOR_DETAIL_TYPE: _read_job,
        COMMAND_DETAIL_TYPE: functools.partial(_read_command, time=event.get("time")),
        "Object Created": functools.partial(_read_report, reports=reports),
    }
    try:
        return readers[event["detail-type"]](event["detail"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInputError(f"event {event.get('id')}: not a violation, {error!r}") from error


def _read_ours(detail: Mapping[str, Any]) -> Violation:
    return Violation(
        endpoint=str(detail["endpoint"]),
        check=_check_name(detail["check"]),
        window_start=read_time(detail["window"]["start"]),
        window_end=read_time(detail["window"]["end"]),
        reason=str(detail["reason"]),
        variant=detail.get("variant"),
        label=detail.get("class"),
    )


def _read_command(detail: Mapping[str, Any], time: Any) -> Violation:
    """An operator's ``open``: the hour up to the command is explained."""
    if detail["action"] != "open":
        raise ValueError(f"action {detail['action']!r}")
    now = read_time(time)
    reason = str(detail.get("reason") or "opened by an operator")
    return Violation(str(detail["endpoint"]), OPERATOR_CHECK, now - timedelta(hours=1), now, reason)


def _read_job(detail: Mapping[str, Any]) -> Violation:
    environment, message = detail["Environment"], str(detail["ExitMessage"]).strip()
    status, _, reason = message.partition(":")
    if status != _COMPLETED_WITH_VIOLATIONS:
        raise ValueError(f"exit message {message!r}")
    return Violation(
        endpoint=str(environment["sagemaker_endpoint_name"]),
        check=MONITOR_CHECK,
        window_start=read_time(environment["start_time"]),
        window_end=read_time(environment["end_time"]),
        reason=reason.strip() or "the monitor container found violations",
    )


def _read_report(detail: Mapping[str, Any], reports: Reports) -> Violation | None:
    bucket, key = detail["bucket"]["name"], detail["object"]["key"]
    match = _REPORT_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is no monitor report")
    found = json.loads(reports.get(bucket, key))["violations"]
    if not found:
        return None
    start = datetime.strptime(match["hour"], "%Y/%m/%d/%H").replace(tzinfo=UTC)
    if match["schedule"] != SCHEDULE:
        start -= timedelta(hours=1)  # Model Monitor files a report under the hour it ran in
    return Violation(
        endpoint=match["endpoint"],
        check=MONITOR_CHECK,
        window_start=start,
        window_end=start + timedelta(hours=1),
        reason="; ".join(str(violation["description"]) for violation in found),
    )


def _check_name(raw: Any) -> str:
    if not re.fullmatch(r"[a-z][a-z_]{0,40}", str(raw)):
        raise ValueError(f"check {raw!r} is not a name")
    return str(raw)


def read_time(raw: Any) -> datetime:
    """An ISO 8601 time in UTC; AWS's own sample prints blanks inside (``T16: 20: 00Z``)."""
    parsed = datetime.fromisoformat(str(raw).replace(" ", ""))
    return parsed.replace(tzinfo=parsed.tzinfo or UTC).astimezone(UTC)
