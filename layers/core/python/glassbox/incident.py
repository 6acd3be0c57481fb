"""The incident of an endpoint: from a violation to the endpoint back as it was.

::

    NORMAL ──violation──▶ SWAPPING ──in service, hooked──▶ HOOKED ──enough pictures, or time up──▶ RESTORING ──▶ NORMAL
                              └──────────────────┬────────────┴────────────────────────────────────────┘
                                              FAILED ──another config is in service──▶ NORMAL

Three entries, one per function: :func:`swap` (a violation), :func:`confirm` (the endpoint changed its state) and
:func:`restore` (a picture was made). A scheduled sweep calls the last two as well, so an event that was lost only
costs time. Each compares what the table says with what is live, does what is missing, and records it after it is
done: any of them may be called twice, late or in another order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from glassbox import message
from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.settings import setting
from glassbox.violation import Violation


class State(StrEnum):
    """Where an incident stands."""

    NORMAL = "NORMAL"
    SWAPPING = "SWAPPING"
    HOOKED = "HOOKED"
    RESTORING = "RESTORING"
    FAILED = "FAILED"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NORMAL: frozenset({State.SWAPPING}),
    State.SWAPPING: frozenset({State.HOOKED, State.FAILED}),
    State.HOOKED: frozenset({State.RESTORING, State.FAILED}),
    State.RESTORING: frozenset({State.NORMAL, State.FAILED}),
    State.FAILED: frozenset({State.NORMAL}),
}

# EndpointStatus of DescribeEndpoint
IN_SERVICE = "InService"
_UNDER_WAY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack"})

# Whoever moves an incident tells ops. When nobody has after this time, it is told by whoever comes.
_TELLING = timedelta(minutes=1)


@dataclass(frozen=True)
class Incident:
    """One incident, as the table holds it.

    Attributes:
        cause: the violation that opened it; ``joined`` are those that came on top.
        since: when the present state was entered.
        deadline: when explaining ends, at the latest.
        requested: UpdateEndpoint was accepted for the present state.
        replays: names of the flagged requests that were sent again (None: not yet).
        pictures: names of what was drawn.
        told: which messages ops have got.
        report: S3 URI of the page; ``findings`` are the key facts of its pictures, a line each.
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
    joined: frozenset[Violation] = frozenset()
    deadline: datetime | None = None
    requested: bool = False
    replays: frozenset[str] | None = None
    pictures: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    failure: str = ""
    report: str = ""
    findings: tuple[str, ...] = ()
    timeline: tuple[str, ...] = ()
    revision: int = 0

    @property
    def is_open(self) -> bool:
        """Whether pictures that are made now belong to it."""
        return self.state in (State.SWAPPING, State.HOOKED, State.RESTORING)

    def covers(self, violation: Violation) -> bool:
        """Whether the violation is one that this incident has handled."""
        return any(violation.same_matter(known) for known in (self.cause, *self.joined))


@dataclass(frozen=True)
class Report:
    """The page of an incident: its S3 URI, and the key facts of its pictures, a line each."""

    uri: str
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Replays:
    """The names under which flagged requests were sent again, and what an operator has to know about them."""

    names: frozenset[str]
    note: str = ""


@dataclass(frozen=True)
class Live:
    """What an endpoint is running (DescribeEndpoint): status, config, and why the last update failed."""

    status: str
    config: str
    failure: str = ""


@dataclass(frozen=True)
class Configs:
    """The two endpoint configs that Glassbox knows, and the stack whose parameters name them."""

    plain: str
    hooked: str
    stack: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long, how often and how many: settings of every function that works on an incident. Times in minutes."""

    explain_minutes: float = setting(15.0, within=(0, 24 * 60))
    update_minutes: float = setting(60.0, within=(1, 24 * 60))
    cooldown_minutes: float = setting(30.0, within=(0, 24 * 60))
    incidents_per_day: int = setting(5, within=(1, 1000))
    pictures: int = setting(24, within=(1, 1000))


class Endpoint(Protocol):
    """See :class:`glassbox.aws.endpoint.SageMakerEndpoint`."""

    def describe(self, name: str) -> Live: ...
    def update(self, name: str, config: str, *, guarded: bool) -> None: ...


class Incidents(Protocol):
    """See :class:`glassbox.aws.incidents_table.IncidentsTable`."""

    def current(self, endpoint: str) -> Incident | None: ...
    def past(self, endpoint: str, since: datetime) -> Sequence[Incident]: ...
    def open(self, incident: Incident) -> None: ...
    def save(self, before: Incident, after: Incident) -> None: ...
    def attach(self, incident: Incident, violation: Violation) -> None: ...
    def add_picture(self, incident: Incident, name: str) -> None: ...
    def first_sight(self, endpoint: str, config: str) -> bool: ...


class Notices(Protocol):
    """See :class:`glassbox.aws.notices.Topic`."""

    def publish(self, notice: message.Notice) -> None: ...


@dataclass(frozen=True)
class Desk:
    """What every reaction works with."""

    configs: Configs
    limits: Limits
    endpoint: Endpoint
    incidents: Incidents
    notices: Notices


def swap(violation: Violation, desk: Desk, now: datetime) -> str:
    """A violation: open an incident or join one, and swap the endpoint to the hooked config.

    Returns:
        ``swapping``, ``pending`` (the endpoint is in the middle of an update, or AWS refused for now: the next state
        change or the sweep takes it up), ``joined`` (an incident is open, or this window was handled already),
        ``cooling down``, ``cap reached``, ``known`` (a repetition) or ``failed``.

    Raises:
        RetryableError: the table or the topic does not answer.
    """
    incident = desk.incidents.current(violation.endpoint)
    if incident is None or incident.state is State.NORMAL:
        refusal = _refusal(violation, desk, now)
        if refusal:
            return refusal
        incident = _new_incident(violation, desk.configs, now)
        try:
            desk.incidents.open(incident)
        except ConflictError:
            return swap(violation, desk, now)  # another violation was first: join its incident
    elif violation != incident.cause:
        desk.incidents.attach(incident, violation)
        return "joined"
    elif incident.requested or incident.state is not State.SWAPPING:
        return "known"
    return _begin_swap(incident, desk, now)


def _refusal(violation: Violation, desk: Desk, now: datetime) -> str:
    past = desk.incidents.past(violation.endpoint, now - timedelta(days=1))
    for incident in past:
        if incident.covers(violation):
            desk.incidents.attach(incident, violation)
            return "joined"
    if past and now < past[-1].since + timedelta(minutes=desk.limits.cooldown_minutes):
        return "cooling down"
    if len(past) >= desk.limits.incidents_per_day:
        _tell(past[-1], "cap", message.cap_reached(past[-1], violation, desk.limits), desk)
        return "cap reached"
    return ""


def _new_incident(violation: Violation, configs: Configs, now: datetime) -> Incident:
    return Incident(
        endpoint=violation.endpoint,
        id=f"{now:%Y%m%dt%H%M%S}-{violation.check.replace('_', '-')}",
        opened=now,
        state=State.SWAPPING,
        since=now,
        plain_config=configs.plain,
        hooked_config=configs.hooked,
        cause=violation,
        timeline=(_line(now, f"opened: {violation.reason}"),),
    )


def _begin_swap(incident: Incident, desk: Desk, now: datetime) -> str:
    try:
        live = desk.endpoint.describe(incident.endpoint)
        if live.config not in (incident.plain_config, incident.hooked_config):
            _fail(incident, message.foreign_config(incident, live, desk.configs), desk, now)
            return "failed"
        if live.status == IN_SERVICE and live.config == incident.plain_config:
            desk.endpoint.update(incident.endpoint, incident.hooked_config, guarded=True)
        elif live.status in _UNDER_WAY:
            return "pending"
        elif live.status != IN_SERVICE:
            _fail(incident, message.broken_endpoint(incident, live), desk, now)
            return "failed"
    except BadInputError as error:
        _fail(incident, message.refused(incident, str(error)), desk, now)
        return "failed"
    except RetryableError as error:
        if overdue(incident, desk.limits, now):
            _fail(incident, message.refused(incident, str(error)), desk, now)
            return "failed"
        return "pending"
    note = _line(now, f"UpdateEndpoint to {incident.hooked_config}")
    incident = _save(incident, desk, requested=True, timeline=(*incident.timeline, note))
    _tell(incident, "opened", message.opened(incident, desk.limits), desk)
    return "swapping"


def confirm(
    endpoint: str,
    desk: Desk,
    now: datetime,
    *,
    replay: Callable[[Incident], Replays],
    report: Callable[[Incident], Report],
) -> str:
    """The endpoint's state changed, or the sweep came round: verify what is live and go on from there.

    Args:
        replay: sends the flagged inputs to the hooked model again; the names of the pictures to expect.
        report: writes the incident's page.

    Returns:
        The state the incident is in, or ``stale twin`` where somebody deployed a config that Glassbox does not know.
    """
    incident = desk.incidents.current(endpoint)
    live = desk.endpoint.describe(endpoint)
    if incident is None or incident.state is State.NORMAL:
        return _between_incidents(endpoint, incident, live, desk, now)
    if incident.state is State.SWAPPING:
        incident = _after_swapping(incident, live, desk, now)
    if incident.state is State.HOOKED:
        incident = _while_hooked(incident, live, desk, now, replay)
    elif incident.state is State.RESTORING:
        incident = _after_restoring(incident, live, desk, now, report)
    elif incident.state is State.FAILED:
        if now >= incident.since + _TELLING:
            incident = _tell(incident, "failed", message.failed(incident), desk)
        # whatever else it runs by now: the next violation opens an incident of its own
        off_the_hook = live.status == IN_SERVICE and live.config != incident.hooked_config
        if off_the_hook and "failed" in incident.told:
            incident = _move(incident, State.NORMAL, desk, now, f"{live.config} is in service")
    return str(incident.state)


def _between_incidents(endpoint: str, last: Incident | None, live: Live, desk: Desk, now: datetime) -> str:
    if last is not None and not last.failure and now >= last.since + _TELLING:
        _tell(last, "closed", message.closed(last), desk)
    if live.status == IN_SERVICE and live.config not in (desk.configs.plain, desk.configs.hooked):
        if desk.incidents.first_sight(endpoint, live.config):
            desk.notices.publish(message.stale_twin(endpoint, live, desk.configs))
        return "stale twin"
    return str(State.NORMAL)


def _after_swapping(incident: Incident, live: Live, desk: Desk, now: datetime) -> Incident:
    if _serves(live, incident.hooked_config):
        deadline = now + timedelta(minutes=desk.limits.explain_minutes)
        if incident.deadline is not None:  # an operator aborted or extended while the swap was under way
            deadline = incident.deadline
        incident = _move(
            incident, State.HOOKED, desk, now, "the hooked model is in service", deadline=deadline
        )
        return _tell(incident, "opened", message.opened(incident, desk.limits), desk)
    if not incident.requested:
        if incident.deadline is not None and now >= incident.deadline:
            return _fail(incident, message.aborted(incident), desk, now)
        _begin_swap(incident, desk, now)
        return desk.incidents.current(incident.endpoint) or incident
    if live.status == IN_SERVICE:
        return _fail(incident, message.rolled_back(incident, live), desk, now)
    if live.status not in _UNDER_WAY or overdue(incident, desk.limits, now):
        return _fail(incident, message.broken_endpoint(incident, live), desk, now)
    return incident


def _while_hooked(
    incident: Incident, live: Live, desk: Desk, now: datetime, replay: Callable[[Incident], Replays]
) -> Incident:
    if live.status == IN_SERVICE and live.config != incident.hooked_config:
        return _fail(incident, message.foreign_config(incident, live, desk.configs), desk, now)
    if incident.replays is None:
        replays = replay(incident)
        note = _line(
            now,
            f"replayed {len(replays.names)} flagged requests" + (f": {replays.note}" if replays.note else ""),
        )
        incident = _save(incident, desk, replays=replays.names, timeline=(*incident.timeline, note))
    return incident


def restore(endpoint: str, desk: Desk, now: datetime) -> str:
    """A picture was made, or the sweep came round: swap back when there are enough pictures or the time is up.

    Returns:
        ``restoring``, or why not: ``waiting``, ``nothing to restore``.
    """
    incident = desk.incidents.current(endpoint)
    if incident is None or incident.state is not State.HOOKED:
        return "nothing to restore"
    reason = _enough(incident, desk.limits, now)
    if not reason:
        return "waiting"
    incident = _move(incident, State.RESTORING, desk, now, reason, requested=False)
    _begin_restore(incident, desk, now)
    return "restoring"


@dataclass(frozen=True)
class Command:
    """What an operator asks of the open incident: ``extend`` by ``minutes``, or ``abort``."""

    endpoint: str
    action: str
    minutes: float = 0


def read_command(event: Mapping[str, Any]) -> Command:
    """Read a ``Glassbox Command`` event; BadInputError when it is none that can be obeyed."""
    try:
        detail = event["detail"]
        command = Command(str(detail["endpoint"]), str(detail["action"]), float(detail.get("minutes", 15)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInputError(f"event {event.get('id')}: not a command, {error!r}") from error
    if command.action not in ("extend", "abort") or not 0 < command.minutes <= 24 * 60:
        raise BadInputError(f"event {event.get('id')}: not a command, {command}")
    return command


def obey(command: Command, desk: Desk, now: datetime) -> str:
    """Move the deadline of the open incident; what is due then is done by :func:`restore`, or when it is hooked."""
    incident = desk.incidents.current(command.endpoint)
    if incident is None or incident.state not in (State.SWAPPING, State.HOOKED):
        return "no incident to change"
    deadline = (
        now if command.action == "abort" else (incident.deadline or now) + timedelta(minutes=command.minutes)
    )
    note = _line(now, f"an operator: {command.action}, explaining ends at {deadline:%H:%M:%S} UTC")
    _save(incident, desk, deadline=deadline, timeline=(*incident.timeline, note))
    return command.action


def _enough(incident: Incident, limits: Limits, now: datetime) -> str:
    if incident.deadline is not None and now >= incident.deadline:
        return f"the time is up with {len(incident.pictures)} pictures"
    if incident.replays:
        done = incident.replays <= incident.pictures
        return f"all {len(incident.replays)} flagged requests are explained" if done else ""
    return f"{limits.pictures} pictures are made" if len(incident.pictures) >= limits.pictures else ""


def _begin_restore(incident: Incident, desk: Desk, now: datetime) -> None:
    try:
        desk.endpoint.update(incident.endpoint, incident.plain_config, guarded=False)
    except BadInputError as error:
        _fail(incident, message.not_restored(incident, str(error)), desk, now)
    except RetryableError as error:
        if overdue(incident, desk.limits, now):
            _fail(incident, message.not_restored(incident, str(error)), desk, now)
    else:
        note = _line(now, f"UpdateEndpoint to {incident.plain_config}")
        _save(incident, desk, requested=True, timeline=(*incident.timeline, note))


def _after_restoring(
    incident: Incident, live: Live, desk: Desk, now: datetime, report: Callable[[Incident], Report]
) -> Incident:
    if _serves(live, incident.plain_config):
        made, note = report(incident), "the plain config is in service"
        changes = {"report": made.uri, "findings": made.findings}
        incident = _move(incident, State.NORMAL, desk, now, note, **changes)
        return _tell(incident, "closed", message.closed(incident), desk)
    if live.status == IN_SERVICE and not incident.requested:
        _begin_restore(incident, desk, now)
    elif live.status == IN_SERVICE or live.status not in _UNDER_WAY or overdue(incident, desk.limits, now):
        return _fail(incident, message.not_restored(incident, live.failure or live.status), desk, now)
    return incident


def _fail(incident: Incident, notice: message.Notice, desk: Desk, now: datetime) -> Incident:
    failure = notice.text.partition("\n")[0]
    incident = _move(incident, State.FAILED, desk, now, failure, failure=failure)
    return _tell(incident, "failed", notice, desk)


def overdue(incident: Incident, limits: Limits, now: datetime) -> bool:
    """Whether the present state lasts longer than an update of the endpoint may take."""
    return now > incident.since + timedelta(minutes=limits.update_minutes)


def _serves(live: Live, config: str) -> bool:
    # a failed update returns silently to the old config: InService alone is no success
    return live.status == IN_SERVICE and live.config == config


def _move(incident: Incident, state: State, desk: Desk, now: datetime, note: str, **changes: Any) -> Incident:
    if state not in TRANSITIONS[incident.state]:
        raise ValueError(f"{incident.state} does not lead to {state}")
    timeline = (*incident.timeline, _line(now, f"{state}: {note}"))
    return _save(incident, desk, state=state, since=now, timeline=timeline, **changes)


def _save(incident: Incident, desk: Desk, **changes: Any) -> Incident:
    after = replace(incident, revision=incident.revision + 1, **changes)
    desk.incidents.save(incident, after)
    return after


def _tell(incident: Incident, what: str, notice: message.Notice, desk: Desk) -> Incident:
    if what in incident.told:
        return incident
    desk.notices.publish(notice)
    return _save(incident, desk, told=incident.told | {what})


def _line(now: datetime, text: str) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S}Z {text}"
