"""An incident, what is known of its endpoint, and the limits that it keeps.

Data alone: :mod:`glassbox.incidents.workflow` changes it, :mod:`glassbox.incidents.notifications` tells of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from glassbox.settings import setting
from glassbox.violation import Violation

# An incident is one DynamoDB item (400 KB at most), and every write of it must succeed whatever clients send.
HEATMAPS_KEPT = 1000  # names of pictures that no replay asked for
RELATED_KEPT = 32  # violations that joined
FINDINGS_KEPT = 30  # lines about the pictures

SENDS = 5  # how often a replay is sent that the endpoint does not answer


class State(StrEnum):
    """States of an incident; NORMAL is the only one that is not open."""

    NORMAL = "NORMAL"
    SWAPPING = "SWAPPING"
    HOOKED = "HOOKED"
    RESTORING = "RESTORING"
    FAILED = "FAILED"
    WATCHING = "WATCHING"


CLOSED = State.NORMAL


class Outcome(StrEnum):
    """Result of an incident handler; the first six are the states of an incident."""

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


DELETED = "Deleted"  # none of SageMaker's: there is no such endpoint


@dataclass(frozen=True)
class Incident:
    """One incident, as the table holds it.

    Attributes:
        cause: the violation that opened it; ``related_violations`` are those that joined it later.
        since: when the present state was entered, or UpdateEndpoint was accepted in it.
        deadline: when explaining ends, at the latest (None: the hooked model was never in service).
        keep_hooked_until: an operator wants the hooked model kept until then, whatever is drawn by then.
        aborted: an operator wants the endpoint restored now.
        requested: UpdateEndpoint was accepted for the present state.
        replays: names of the requests that are sent again (None: not yet); ``flagged`` are those behind the violation.
        unsent: those of them that the endpoint has not answered yet, ``sends`` times tried, last at ``sent``.
        heatmaps: names of what was drawn: every replay, and at most HEATMAPS_KEPT names in all.
        refused: replays whose trace cannot be drawn.
        retries: how often it was tried again to restore the endpoint.
        sent_notifications: names of the notifications that were published; ``claims`` are those that an invocation
            is publishing, with the time of the claim.
        failure: what ops are told of a failure, whole; ``headline`` is its subject.
        report: S3 URI of the page; ``findings`` are the key facts of its pictures, a line each; ``unreported`` is why
            there is none.
        notify_only: the endpoint is left alone.
        timeline: what happened, a line each: time (UTC) and text.
        revision: counts the writes, so that two writers cannot overlook one another.
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
    unsent: frozenset[str] = frozenset()
    sends: int = 0
    sent: datetime | None = None
    heatmaps: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    retries: int = 0
    sent_notifications: frozenset[str] = frozenset()
    claims: Mapping[str, datetime] = field(default_factory=dict)
    failure: str = ""
    headline: str = ""
    report: str = ""
    findings: tuple[str, ...] = ()
    unreported: str = ""
    notify_only: bool = False
    timeline: tuple[str, ...] = ()
    revision: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the incident is open; at most one incident of an endpoint is."""
        return self.state is not CLOSED

    @property
    def collects_live_traffic(self) -> bool:
        """Whether heat maps of live traffic belong to this incident."""
        return self.state in (State.SWAPPING, State.HOOKED, State.RESTORING)

    def covers(self, violation: Violation) -> bool:
        """Whether the violation is one that this incident has handled."""
        return any(violation.is_duplicate_of(known) for known in (self.cause, *self.related_violations))


@dataclass(frozen=True)
class Command:
    """An operator's command for the open incident: ``abort``, or ``extend`` the hooked model ``until`` then."""

    endpoint: str
    action: Literal["abort", "extend"]
    until: datetime


@dataclass(frozen=True)
class Report:
    """The page of an incident: its S3 URI, and the key facts of its pictures, a line each."""

    uri: str
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Replays:
    """The names under which requests are sent again, and what an operator has to know about them.

    ``flagged`` are those behind the violation, the others are for comparison; ``unsent`` are those that the endpoint
    did not answer: they are sent again later.
    """

    names: frozenset[str]
    flagged: frozenset[str] = frozenset()
    note: str = ""
    unsent: frozenset[str] = frozenset()


class Request(NamedTuple):
    """A captured request as the endpoint takes it; ``variant`` is the one that answered it.

    ``complete``: the caller's own attributes are all in ``custom_attributes``, beside the marker.
    """

    event_id: str
    variant: str
    body: bytes
    content_type: str
    custom_attributes: str
    complete: bool = True


@dataclass(frozen=True)
class EndpointState:
    """State of an endpoint (DescribeEndpoint): status, config, and why the last update failed."""

    status: str
    config: str
    failure: str = ""


@dataclass(frozen=True)
class EndpointConfigs:
    """The two endpoint configs that Glassbox knows, and the stack whose parameters name them."""

    plain: str
    hooked: str
    stack: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long, how often and how many: settings of every function that works on an incident. Times in minutes.

    ``react`` False is notify-only: a violation opens an incident, and the endpoint is left alone.
    """

    react: bool = True
    explain_minutes: float = setting(15.0, within=(0, 24 * 60))
    update_minutes: float = setting(60.0, within=(1, 24 * 60))
    cooldown_minutes: float = setting(30.0, within=(0, 24 * 60))
    incidents_per_day: int = setting(5, within=(1, 1000))
    max_heatmaps: int = setting(24, within=(1, 1000))
