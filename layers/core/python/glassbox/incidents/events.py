"""The EventBridge events that report a violation, or that change an open incident.

==========================================  ==============================================================
detail type                                 sent
==========================================  ==============================================================
``Glassbox Violation``                      by count_predictions, seconds after a capture file
``Object Created``                          by S3, for the monitor container's ``constraint_violations.json``
``SageMaker Processing Job State Change``   by SageMaker, when the monitor job ends (best effort)
``Glassbox Command``                        by an operator
==========================================  ==============================================================
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec

from glassbox.errors import BadInputError, is_printable, printable
from glassbox.incidents.model import Command
from glassbox.ports import Objects
from glassbox.queue_message import event_time, read_object
from glassbox.timestamps import parse_hour, parse_timestamp
from glassbox.violation import (
    MONITOR_CHECK,
    OPERATOR_CHECK,
    SCHEDULE,
    VIOLATION_DETAIL_TYPE,
    Name,
    Violation,
    ViolationDetail,
)

OPERATOR_SOURCE = "glassbox.operator"
COMMAND_DETAIL_TYPE = "Glassbox Command"

REASON_CHARACTERS = 2000
_DESCRIPTIONS, _DESCRIPTION_CHARACTERS = 10, 180  # of constraint_violations.json, in the reason
_WINDOW = timedelta(days=1)  # at most: the replay lists the capture files of every hour in it
_COMPLETED_WITH_VIOLATIONS = "CompletedWithViolations"
_MONITOR_FILE = re.compile(
    r"monitoring/(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<schedule>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/constraint_violations\.json"
)


class _OpenCommand(msgspec.Struct):
    action: Literal["open"]
    endpoint: Name
    reason: str | None = None


class _ChangeCommand(msgspec.Struct):
    action: Literal["abort", "extend", "pause", "resume", "drill"]
    endpoint: Name
    minutes: Annotated[float, msgspec.Meta(gt=0, le=24 * 60)] = 15


class _Environment(msgspec.Struct):
    sagemaker_endpoint_name: Name
    start_time: str
    end_time: str


class _MonitorJob(msgspec.Struct, rename="pascal"):
    environment: _Environment
    exit_message: str


class _Described(msgspec.Struct):
    description: str


class _ConstraintViolations(msgspec.Struct):
    violations: list[_Described]


def read_violation(event: Mapping[str, Any], objects: Objects) -> Violation | None:
    """Read an EventBridge event that reports a violation.

    Returns:
        None for a ``constraint_violations.json`` without violations.

    Raises:
        BadInputError: the event has another detail type, or a field is missing or malformed.
        RetryableError: S3 does not return the file now.
    """
    if not isinstance(event, Mapping):
        raise BadInputError(f"not a violation: expected a JSON object, got {type(event).__name__}")
    detail_type = event.get("detail-type")
    if not isinstance(detail_type, str) or detail_type not in _READERS:
        raise BadInputError(
            f"event {event.get('id')}: not a violation: detail-type: expected {', '.join(_READERS)}, got "
            f"{detail_type!r}"
        )
    try:
        return _READERS[detail_type](event, objects)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"event {event.get('id')}: not a violation: {error}") from error


def read_command(event: Mapping[str, Any]) -> Command:
    """Read an operator's command, but for ``open``.

    Its ``minutes`` count from the time of the event, so that a duplicate changes nothing.

    Raises:
        BadInputError: the event is not a command, or a field is missing or malformed.
    """
    if not isinstance(event, Mapping):
        raise BadInputError(f"not a command: expected a JSON object, got {type(event).__name__}")
    try:
        detail = msgspec.convert(event.get("detail"), _ChangeCommand, strict=False)  # "15" is a number, too
        at = parse_timestamp(str(event.get("time")))
        until = at if detail.action == "resume" else at + timedelta(minutes=detail.minutes)
    except (ValueError, OverflowError) as error:
        raise BadInputError(f"event {event.get('id')}: not a command: {error}") from error
    return Command(detail.endpoint, detail.action, until, at)


def _read_own(event: Mapping[str, Any], objects: Objects) -> Violation:
    detail = msgspec.convert(event.get("detail"), ViolationDetail)
    if isinstance(detail.predicted_class, str) and not is_printable(detail.predicted_class):
        raise ValueError(f"class {detail.predicted_class!r}: expected printable text")
    start, end = parse_timestamp(detail.window.start), parse_timestamp(detail.window.end)
    violation = Violation(
        detail.endpoint, detail.check, start, end, detail.reason, detail.variant, detail.predicted_class
    )
    return _checked(violation)


def _read_monitor_file(event: Mapping[str, Any], objects: Objects) -> Violation | None:
    file = read_object(event)
    match = _MONITOR_FILE.fullmatch(file.key)
    if match is None:
        raise ValueError(f"{file.key}: expected the key of a constraint_violations.json")
    found = msgspec.json.decode(objects.get(file.bucket, file.key), type=_ConstraintViolations).violations
    if not found:
        return None
    start = parse_hour(match["hour"])
    if match["schedule"] != SCHEDULE:
        start -= timedelta(hours=1)  # Model Monitor writes into the folder of the hour in which it runs
    described = [printable(violation.description, _DESCRIPTION_CHARACTERS) for violation in found]
    more = len(described) - _DESCRIPTIONS
    reason = "; ".join(described[:_DESCRIPTIONS]) + (f"; and {more:,} more" if more > 0 else "")
    return _checked(Violation(match["endpoint"], MONITOR_CHECK, start, start + timedelta(hours=1), reason))


def _read_monitor_job(event: Mapping[str, Any], objects: Objects) -> Violation:
    job = msgspec.convert(event.get("detail"), _MonitorJob)
    status, _, reason = job.exit_message.strip().partition(":")
    if status != _COMPLETED_WITH_VIOLATIONS:
        raise ValueError(f"exit message: expected {_COMPLETED_WITH_VIOLATIONS}, got {job.exit_message!r}")
    endpoint = job.environment.sagemaker_endpoint_name
    start, end = parse_timestamp(job.environment.start_time), parse_timestamp(job.environment.end_time)
    reason = reason.strip() or "the monitor container found violations"
    return _checked(Violation(endpoint, MONITOR_CHECK, start, end, reason))


def _read_open_command(event: Mapping[str, Any], objects: Objects) -> Violation:
    """Read the command ``open``, which explains the hour before it."""
    command, now = msgspec.convert(event.get("detail"), _OpenCommand), event_time(event)
    reason = command.reason or "opened by an operator"
    return _checked(Violation(command.endpoint, OPERATOR_CHECK, now - timedelta(hours=1), now, reason))


def _checked(violation: Violation) -> Violation:
    """Return the violation with a reason of one short line; ValueError for an impossible window."""
    start, end = violation.window_start, violation.window_end
    if not start < end <= start + _WINDOW:
        raise ValueError(f"window {start} to {end}: expected the end after the start, by at most {_WINDOW}")
    return replace(violation, reason=printable(violation.reason, REASON_CHARACTERS))


_READERS: Mapping[str, Callable[[Mapping[str, Any], Objects], Violation | None]] = {
    VIOLATION_DETAIL_TYPE: _read_own,
    "Object Created": _read_monitor_file,
    "SageMaker Processing Job State Change": _read_monitor_job,
    COMMAND_DETAIL_TYPE: _read_open_command,
}
