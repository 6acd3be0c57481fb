"""From a violation to the swapped endpoint: one open incident per endpoint, one swap, one message.

Three roads lead here: our own event (``Glassbox Violation``, seconds after a capture file), the monitor container's
report in S3 (durable), and the end of its job (``SageMaker Processing Job State Change``, best effort). All become
one :class:`Violation`.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from glassbox.errors import BadInputError, RetryableError

VIOLATION_SOURCE = "glassbox"
VIOLATION_DETAIL_TYPE = "Glassbox Violation"
MONITOR_DETAIL_TYPE = "SageMaker Processing Job State Change"

MONITOR_CHECK = "monitor"
SCHEDULE = "hourly"  # the name that start_monitor's jobs file their reports under

_COMPLETED_WITH_VIOLATIONS = "CompletedWithViolations"
_REPORT_KEY = re.compile(
    r"monitoring/(?P<endpoint>[A-Za-z0-9-]{1,63})/(?P<schedule>[A-Za-z0-9-]{1,63})"
    r"/(?P<hour>\d{4}/\d\d/\d\d/\d\d)/constraint_violations\.json"
)


@dataclass(frozen=True)
class Violation:
    """A window of predictions that broke a bound.

    ``reason`` is one sentence an operator can act on; ``check`` is ``class_share``, ``drift``, … or ``monitor``
    for the monitor container's, which does not name its checks.
    """

    endpoint: str
    check: str
    window_start: datetime
    window_end: datetime
    reason: str

    @property
    def incident_id(self) -> str:
        """The same for every delivery of the same violation; fit for an S3 key."""
        return f"{self.window_start:%Y%m%dt%H%M}-{self.check.replace('_', '-')}"


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
        window_start=_time(detail["window"]["start"]),
        window_end=_time(detail["window"]["end"]),
        reason=str(detail["reason"]),
    )


def _read_job(detail: Mapping[str, Any]) -> Violation:
    environment, message = detail["Environment"], str(detail["ExitMessage"]).strip()
    status, _, reason = message.partition(":")
    if status != _COMPLETED_WITH_VIOLATIONS:
        raise ValueError(f"exit message {message!r}")
    return Violation(
        endpoint=str(environment["sagemaker_endpoint_name"]),
        check=MONITOR_CHECK,
        window_start=_time(environment["start_time"]),
        window_end=_time(environment["end_time"]),
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
        reason=str(found[0]["description"]),
    )


def _check_name(raw: Any) -> str:
    if not re.fullmatch(r"[a-z][a-z_]{0,40}", str(raw)):
        raise ValueError(f"check {raw!r} is not a name")
    return str(raw)


def _time(raw: Any) -> datetime:
    # AWS's own sample prints blanks inside ("T16: 20: 00Z")
    parsed = datetime.fromisoformat(str(raw).replace(" ", ""))
    return parsed.replace(tzinfo=parsed.tzinfo or UTC).astimezone(UTC)


@dataclass(frozen=True)
class Incident:
    """The open incident of an endpoint, as the table holds it."""

    endpoint: str
    id: str
    reason: str
    opened: datetime
    swapping: bool = False  # UpdateEndpoint was accepted
    told: bool = False  # ops know that it began
    pictured: bool = False  # ops know where the pictures appear


@dataclass(frozen=True)
class Live:
    """What an endpoint is running: ``EndpointStatus`` and ``EndpointConfigName`` of DescribeEndpoint."""

    status: str
    config: str


@dataclass(frozen=True)
class Notice:
    """A message to ops. The subject is ASCII, at most 100 characters (SNS)."""

    subject: str
    text: str
    attributes: Mapping[str, str]


class Endpoint(Protocol):
    """See :class:`glassbox.aws.endpoint.SageMakerEndpoint`."""

    def describe(self, name: str) -> Live: ...
    def update(self, name: str, config: str) -> None: ...


class Incidents(Protocol):
    """See :class:`glassbox.aws.incidents_table.IncidentsTable`."""

    def open(self, incident: Incident) -> Incident: ...
    def current(self, endpoint: str) -> Incident | None: ...
    def mark(self, incident: Incident, step: str) -> bool: ...


class Notices(Protocol):
    """See :class:`glassbox.aws.notices.Topic`."""

    def publish(self, notice: Notice) -> None: ...


def swap(
    violation: Violation,
    *,
    plain_config: str,
    hooked_config: str,
    endpoint: Endpoint,
    incidents: Incidents,
    notices: Notices,
    now: datetime,
) -> str:
    """Swap the endpoint to the hooked config, once per incident, and tell ops.

    Every step is recorded after it is done and skipped once recorded, so that the same violation may arrive
    any number of times; another violation joins the open incident.

    Returns:
        What was done: ``"swapped"``, ``"joined"`` (another incident is open), ``"known"`` (nothing left to do)
        or ``"foreign config"`` (the endpoint runs neither of the two configs and is left alone).

    Raises:
        RetryableError: the endpoint is in the middle of an update, or AWS is.
        BadInputError: there is no such endpoint.
    """
    incident = incidents.open(Incident(violation.endpoint, violation.incident_id, violation.reason, now))
    if incident.id != violation.incident_id:
        return "joined"
    if incident.told:
        return "known"
    if not incident.swapping:
        live = endpoint.describe(violation.endpoint)
        if live.config not in (plain_config, hooked_config):
            notices.publish(_foreign_notice(violation, live.config, plain_config, hooked_config))
            incidents.mark(incident, "told")
            return "foreign config"
        if live.config == plain_config:
            if live.status != "InService":
                raise RetryableError(
                    f"endpoint {violation.endpoint} is {live.status}, not InService: not swapped yet"
                )
            endpoint.update(violation.endpoint, hooked_config)
        incidents.mark(incident, "swapping")
    notices.publish(_opening_notice(violation, incident, plain_config, hooked_config))
    incidents.mark(incident, "told")
    return "swapped"


def _opening_notice(violation: Violation, incident: Incident, plain: str, hooked: str) -> Notice:
    return Notice(
        subject=f"Glassbox: violation on {violation.endpoint}, swapping to the hooked model"[:100],
        text="\n".join(
            (
                violation.reason,
                "",
                f"Endpoint   {violation.endpoint}",
                f"Check      {violation.check}",
                f"Window     {_span(violation)}",
                f"Incident   {incident.id}",
                "",
                f"The endpoint is being swapped from {plain} to its debugger-hooked twin {hooked}.",
                "It goes on serving; traced requests become saliency pictures.",
                "",
                "To put it back by hand:",
                _update_command(violation.endpoint, plain),
            )
        ),
        attributes={"event": "swapping", "endpoint": violation.endpoint, "incident": incident.id},
    )


def _foreign_notice(violation: Violation, live: str, plain: str, hooked: str) -> Notice:
    return Notice(
        subject=f"Glassbox: violation on {violation.endpoint}, NOT swapped"[:100],
        text="\n".join(
            (
                violation.reason,
                "",
                f"Window     {_span(violation)}",
                "",
                f"The endpoint runs the config {live}, which is neither {plain} nor its hooked twin {hooked},",
                "so it was left alone. If a new model was deployed, make a hooked twin of its config and give both",
                "names to the stack (PlainConfigName, HookedConfigName).",
            )
        ),
        attributes={"event": "not-swapped", "endpoint": violation.endpoint},
    )


def first_picture_notice(incident: Incident, pictures: str) -> Notice:
    """Tells once per incident where its pictures are appearing (``pictures`` is an S3 URI)."""
    return Notice(
        subject=f"Glassbox: first saliency picture of {incident.endpoint}"[:100],
        text="\n".join(
            (
                incident.reason,
                "",
                "The hooked model answers, and its traced requests are being drawn. Pictures and facts:",
                pictures,
                "",
                f"aws s3 sync {pictures} .",
            )
        ),
        attributes={"event": "first-picture", "endpoint": incident.endpoint, "incident": incident.id},
    )


def _span(violation: Violation) -> str:
    return f"{violation.window_start:%Y-%m-%d %H:%M} to {violation.window_end:%H:%M} UTC"


def _update_command(endpoint: str, config: str) -> str:
    return f"aws sagemaker update-endpoint --endpoint-name {endpoint} --endpoint-config-name {config}"
