"""The data of an incident: its state, its endpoint, and the limits that apply to it.

:mod:`glassbox.incidents.decisions` decides how it changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from glassbox.settings import setting
from glassbox.violation import Violation

# An incident is one DynamoDB item (400 KB at most): clients must not be able to make its writes fail.
HEATMAPS_KEPT = 1000  # names of heat maps; those of replays may exceed it
RELATED_KEPT = 32  # violations
FINDINGS_KEPT = 30  # lines

MAX_REPLAY_ATTEMPTS = 5  # while the endpoint does not answer


class State(StrEnum):
    """States of an incident, all open but NORMAL."""

    NORMAL = "NORMAL"
    SWAPPING = "SWAPPING"
    HOOKED = "HOOKED"
    RESTORING = "RESTORING"
    FAILED = "FAILED"
    WATCHING = "WATCHING"


CLOSED = State.NORMAL


class Outcome(StrEnum):
    """Result of an incident handler, which is often the state of the incident."""

    NORMAL = State.NORMAL.value
    SWAPPING = State.SWAPPING.value
    HOOKED = State.HOOKED.value
    RESTORING = State.RESTORING.value
    FAILED = State.FAILED.value
    WATCHING = State.WATCHING.value
    # a violation
    PENDING = "pending"
    JOINED = "joined"
    COOLING_DOWN = "cooling down"
    CAP_REACHED = "cap reached"
    DUPLICATE = "duplicate"
    # an endpoint without an open incident
    STALE_TWIN = "stale twin"
    NO_ENDPOINT = "no endpoint"
    # a restore that is not due
    WAITING = "waiting"
    NOTHING_TO_RESTORE = "nothing to restore"
    # a command
    ABORT = "abort"
    EXTEND = "extend"
    NO_INCIDENT = "no incident to change"
    OPEN = "open"  # left to swap_endpoint
    PAUSED = "paused"
    RESUMED = "resumed"
    DRILL = "drill"
    NOT_UNDERSTOOD = "not understood"
    OF_ANOTHER = "of another endpoint"
    # a diagnosis
    DIAGNOSED = "diagnosed"
    NOT_DIAGNOSED = "not diagnosed"

    @property
    def is_open(self) -> bool:
        """Whether this is the state of an open incident."""
        return any(self.value == state.value for state in State if state is not CLOSED)


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NORMAL: frozenset({State.SWAPPING, State.WATCHING}),
    State.SWAPPING: frozenset({State.HOOKED, State.FAILED}),
    State.HOOKED: frozenset({State.RESTORING, State.FAILED}),
    State.RESTORING: frozenset({State.NORMAL, State.FAILED}),
    State.FAILED: frozenset({State.NORMAL, State.RESTORING}),
    State.WATCHING: frozenset({State.NORMAL}),
}


# EndpointStatus of DescribeEndpoint
IN_SERVICE = "InService"
IN_PROGRESS = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack"})
DELETED = "Deleted"  # not a status of SageMaker: the endpoint does not exist


@dataclass(frozen=True)
class Incident:
    """One incident, as stored in the table.

    Attributes:
        cause: the violation that opened it; ``related_violations`` joined it later.
        since: when it entered its state, or when SageMaker accepted UpdateEndpoint in this state.
        deadline: when the endpoint is restored at the latest; None: the hooked model was never in service.
        keep_hooked_until: an operator keeps the hooked model until then, even if everything is explained.
        aborted: an operator sent ``abort``; the next decision restores the endpoint.
        requested: SageMaker accepted UpdateEndpoint in this state.
        replays: names of the requests that are sent again (None: not yet); ``flagged`` caused the violation.
        unanswered: replays without an answer after ``replay_attempts``, the last at ``last_replay_at``.
        heatmaps: names of the heat maps: of every replay, and up to HEATMAPS_KEPT in all.
        refused: replays whose trace cannot be rendered.
        retries: of a failed restore.
        sent_notifications: keys of the notifications that were published, and ``<key>@<channel>`` of those that one
            channel of two got; ``claims`` are those that an invocation is publishing, with the time of the claim.
        failure: text of the notification of a failure; ``headline`` is its subject.
        report: S3 URI of the incident report, and ``report_link`` its address in the console; ``unreported`` is why it
            is missing.
        findings: one line for each class in the report.
        notify_only: Glassbox does not change the endpoint.
        begins_by: until then the notification of the beginning waits for the diagnosis; None: it is not diagnosed.
        endpoint_modified: when something other than Glassbox created, updated or scaled the endpoint last; None if
            that is not known.
        diagnosis_attempts: invocations that began to diagnose it.
        diagnosis: S3 URI of the diagnosis; ``why`` is its first line.
        is_diagnosed_late: the diagnosis came after the end.
        timeline: one line for each event: time (UTC) and text.
        revision: number of writes; a conditional write compares it to detect a concurrent update.
    """

    endpoint: str
    id: str
    opened: datetime
    state: State
    since: datetime
    plain_config: str
    hooked_config: str
    cause: Violation
    related_violations: frozenset[Violation] = frozenset()
    deadline: datetime | None = None
    keep_hooked_until: datetime | None = None
    aborted: bool = False
    requested: bool = False
    replays: frozenset[str] | None = None
    flagged: frozenset[str] = frozenset()
    unanswered: frozenset[str] = frozenset()
    replay_attempts: int = 0
    last_replay_at: datetime | None = None
    heatmaps: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    retries: int = 0
    sent_notifications: frozenset[str] = frozenset()
    claims: Mapping[str, datetime] = field(default_factory=dict)
    failure: str = ""
    headline: str = ""
    report: str = ""
    report_link: str = ""
    findings: tuple[str, ...] = ()
    unreported: str = ""
    notify_only: bool = False
    begins_by: datetime | None = None
    endpoint_modified: datetime | None = None
    diagnosis_attempts: int = 0
    diagnosis: str = ""
    why: str = ""
    is_diagnosed_late: bool = False
    timeline: tuple[str, ...] = ()
    revision: int = 0

    @property
    def is_open(self) -> bool:
        """Whether this is the open incident of its endpoint, of which there is at most one."""
        return self.state is not CLOSED

    @property
    def collects_live_traffic(self) -> bool:
        """Whether heat maps of live traffic belong to this incident."""
        return self.state in (State.SWAPPING, State.HOOKED, State.RESTORING)

    def covers(self, violation: Violation) -> bool:
        """Return whether this incident has handled the violation or a duplicate of it."""
        return any(violation.is_duplicate_of(known) for known in (self.cause, *self.related_violations))


@dataclass(frozen=True)
class Command:
    """An operator's command.

    Attributes:
        until: end of the extension or the pause; unused by ``abort`` and ``drill``.
        at: when it was sent.
    """

    endpoint: str
    action: Literal["abort", "extend", "pause", "resume", "drill"]
    until: datetime
    at: datetime


@dataclass(frozen=True)
class Report:
    """An incident report by its S3 URI and console address, with one line for each class."""

    uri: str
    findings: tuple[str, ...]
    link: str = ""


@dataclass(frozen=True)
class Diagnosed:
    """A diagnosis by its S3 URI, with its first line."""

    uri: str
    why: str


@dataclass(frozen=True)
class Replays:
    """Result of a replay.

    Attributes:
        names: event ids of the requests.
        flagged: those that caused the violation; the others are for comparison.
        note: problems, for the time line.
        unanswered: those without an answer, to be sent again.
    """

    names: frozenset[str]
    flagged: frozenset[str] = frozenset()
    note: str = ""
    unanswered: frozenset[str] = frozenset()


class Request(NamedTuple):
    """A captured request for InvokeEndpoint.

    Attributes:
        variant: the one that answered the original request.
        complete: ``custom_attributes`` holds the caller's own attributes beside the marker.
    """

    event_id: str
    variant: str
    body: bytes
    content_type: str
    custom_attributes: str
    complete: bool = True


class Response(NamedTuple):
    """The response of InvokeEndpoint."""

    body: bytes
    content_type: str


@dataclass(frozen=True)
class EndpointState:
    """State of an endpoint by DescribeEndpoint.

    Attributes:
        failure: why its last update failed.
        modified: when it was created, updated or scaled last; None if that is not known.
        variants: names of its production variants.
    """

    status: str
    config: str
    failure: str = ""
    modified: datetime | None = field(default=None, compare=False)
    variants: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class EndpointConfigs:
    """The plain and the hooked endpoint config, and the stack whose parameters name them."""

    plain: str
    hooked: str
    stack: str


@dataclass(frozen=True, kw_only=True)
class HeatmapLimit:
    """Setting of the number of heat maps of live traffic of an incident."""

    max_heatmaps: int = setting(24, within=(1, 1000))


@dataclass(frozen=True, kw_only=True)
class Limits(HeatmapLimit):
    """Settings of every incident handler, which only notify if ``react`` is False."""

    react: bool = True
    explain_minutes: float = setting(15.0, within=(0, 24 * 60))
    update_minutes: float = setting(60.0, within=(1, 24 * 60))
    cooldown_minutes: float = setting(30.0, within=(0, 24 * 60))
    incidents_per_day: int = setting(5, within=(1, 1000))
