"""The incident of an endpoint: from a violation to the endpoint back as it was.

::

    NORMAL ──violation──▶ SWAPPING ──in service, hooked──▶ HOOKED ──enough pictures, or time up──▶ RESTORING ──▶ NORMAL
                              └──────────────────┬────────────┴────────────────────────────────────────┘
                                              FAILED ──another config is in service──▶ NORMAL
                                                 └──the swap came through after all, or an operator asks──▶ RESTORING

Three entries, one per function: :func:`swap` (a violation), :func:`confirm` (the endpoint changed its state) and
:func:`restore` (a picture was made). A scheduled sweep calls the last two as well, so an event that was lost only
costs time. Each compares what the table says with what is live, does what is missing, and records it after it is
done: any of them may be called twice, late or in another order. An endpoint whose live config is neither the plain
nor the hooked one is somebody else's, and never updated.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ParamSpec, Protocol

from glassbox import message
from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.settings import setting
from glassbox.violation import OPERATOR_CHECK, Violation, read_time


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
    State.FAILED: frozenset({State.NORMAL, State.RESTORING}),
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
        since: when the present state was entered, or UpdateEndpoint was accepted in it.
        deadline: when explaining ends, at the latest (None: the hooked model was never in service).
        hold: until when an operator wants the hooked model kept, whatever is drawn by then.
        aborted: an operator wants the endpoint restored now.
        requested: UpdateEndpoint was accepted for the present state.
        replays: names of the requests that were sent again (None: not yet); ``flagged`` are those behind the violation.
        pictures: names of what was drawn.
        told: which messages ops have got.
        failure: what ops are told of a failure, whole; ``headline`` is its subject.
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
    hold: datetime | None = None
    aborted: bool = False
    requested: bool = False
    replays: frozenset[str] | None = None
    flagged: frozenset[str] = frozenset()
    pictures: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    failure: str = ""
    headline: str = ""
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
    """The names under which requests were sent again, and what an operator has to know about them.

    ``flagged`` are those behind the violation, the others are for comparison.
    """

    names: frozenset[str]
    flagged: frozenset[str] = frozenset()
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
    def has_seen(self, endpoint: str, config: str) -> bool: ...
    def see(self, endpoint: str, config: str) -> None: ...


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


P = ParamSpec("P")
_LOOKS = 5


def _looking_again(react: Callable[P, str]) -> Callable[P, str]:
    """Where somebody else changed the incident between a look at it and a write, go on from what it is now."""

    @functools.wraps(react)
    def look(*args: P.args, **kwargs: P.kwargs) -> str:
        conflict = None
        for _ in range(_LOOKS):
            try:
                return react(*args, **kwargs)
            except ConflictError as error:
                conflict = error
        raise RetryableError(f"{_LOOKS} times somebody else was faster: {conflict}") from conflict

    return look


@_looking_again
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
        refusal = _refusal(violation, incident, desk, now)
        if refusal:
            return refusal
        incident = _new_incident(violation, desk.configs, now)
        desk.incidents.open(incident)
        return _begin_swap(incident, desk, now, opened=True)
    if violation != incident.cause:
        desk.incidents.attach(incident, violation)
        return "joined"
    if incident.requested or incident.state is not State.SWAPPING:
        return "known"
    return _begin_swap(incident, desk, now)


def _refusal(violation: Violation, last: Incident | None, desk: Desk, now: datetime) -> str:
    """Why a violation opens no incident, if it does not; ops are told once an incident, and check."""
    yesterday = now - timedelta(days=1)
    # a message that was brought back from a dead-letter queue may be older than a day
    past = desk.incidents.past(violation.endpoint, min(yesterday, violation.window_start))
    for incident in past:
        if incident.covers(violation):
            desk.incidents.attach(incident, violation)
            return "joined"
    if last is None or violation.check == OPERATOR_CHECK:  # an operator knows
        return ""
    cooled_down = last.since + timedelta(minutes=desk.limits.cooldown_minutes)
    if now < cooled_down:
        notice = message.cooling_down(last, violation, cooled_down)
        _tell(last, f"cooldown {violation.check}", notice, desk)
        return "cooling down"
    if sum(incident.opened >= yesterday for incident in past) >= desk.limits.incidents_per_day:
        _tell(last, "cap", message.cap_reached(last, violation, desk.limits), desk)
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


def _begin_swap(incident: Incident, desk: Desk, now: datetime, *, opened: bool = False) -> str:
    if incident.aborted:
        _fail(incident, message.aborted(incident), desk, now)
        return "failed"
    try:
        live = desk.endpoint.describe(incident.endpoint)
        if _serves(live, incident.plain_config):
            desk.endpoint.update(incident.endpoint, incident.hooked_config, guarded=True)
    except BadInputError as error:
        _fail(incident, message.refused(incident, str(error)), desk, now)
        return "failed"
    except RetryableError as error:
        return _wait(incident, str(error), desk, now, opened)
    if live.config not in (incident.plain_config, incident.hooked_config):
        _fail(incident, message.foreign_config(incident, live, desk.configs), desk, now)
        return "failed"
    if live.status in _UNDER_WAY:
        return _wait(incident, f"the endpoint is {live.status}", desk, now, opened)
    if live.status != IN_SERVICE:
        _fail(incident, message.broken_endpoint(incident, live), desk, now)
        return "failed"
    incident = _requested(incident, incident.hooked_config, desk, now)
    _tell(incident, "opened", message.opened(incident, desk.limits), desk)
    return "swapping"


def _wait(incident: Incident, reason: str, desk: Desk, now: datetime, opened: bool) -> str:
    if overdue(incident, desk.limits, now):
        _fail(incident, message.refused(incident, reason), desk, now)
        return "failed"
    # whoever did not open it may see the update of who did, and who is about to tell
    if opened or now >= incident.since + _TELLING:
        _tell(incident, "opened", message.pending(incident, reason, desk.limits), desk)
    return "pending"


@_looking_again
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
        The state the incident is in; ``stale twin`` where somebody deployed a config that Glassbox does not know, or
        ``no endpoint``.
    """
    incident = desk.incidents.current(endpoint)
    between = incident is None or incident.state is State.NORMAL
    try:
        live = desk.endpoint.describe(endpoint)
    except BadInputError as error:
        if incident is None or between:
            return "no endpoint"
        live = Live("Deleted", "", str(error))
    if incident is None or between:
        return _between_incidents(endpoint, incident, live, desk, now)
    if incident.state is State.SWAPPING:
        incident = _after_swapping(incident, live, desk, now)
        if incident.state is State.HOOKED:
            incident = _while_hooked(incident, live, desk, now, replay, report)
    elif incident.state is State.HOOKED:
        incident = _while_hooked(incident, live, desk, now, replay, report)
    elif incident.state is State.RESTORING:
        incident = _after_restoring(incident, live, desk, now, report)
    elif incident.state is State.FAILED:
        incident = _after_failing(incident, live, desk, now, report)
    return str(incident.state)


def _between_incidents(endpoint: str, last: Incident | None, live: Live, desk: Desk, now: datetime) -> str:
    if last is not None and last.report and now >= last.since + _TELLING:
        _tell(last, "closed", message.closed(last), desk)
    if live.status == IN_SERVICE and live.config not in (desk.configs.plain, desk.configs.hooked):
        if not desk.incidents.has_seen(endpoint, live.config):
            desk.notices.publish(message.stale_twin(endpoint, live, desk.configs))
            desk.incidents.see(endpoint, live.config)
        return "stale twin"
    return str(State.NORMAL)


def _after_swapping(incident: Incident, live: Live, desk: Desk, now: datetime) -> Incident:
    if _serves(live, incident.hooked_config):
        deadline = now + timedelta(minutes=desk.limits.explain_minutes)
        note = "the hooked model is in service"
        incident = _move(incident, State.HOOKED, desk, now, note, deadline=deadline)
        return _tell(incident, "opened", message.opened(incident, desk.limits), desk)
    if not incident.requested:
        _begin_swap(incident, desk, now)
        return desk.incidents.current(incident.endpoint) or incident
    if _serves(live, incident.plain_config):
        return _fail(incident, message.rolled_back(incident, live), desk, now)
    if live.status not in _UNDER_WAY or overdue(incident, desk.limits, now):
        return _lose(incident, live, desk, now)
    return incident


def _while_hooked(
    incident: Incident,
    live: Live,
    desk: Desk,
    now: datetime,
    replay: Callable[[Incident], Replays],
    report: Callable[[Incident], Report],
) -> Incident:
    if live.status in _UNDER_WAY:  # somebody updates it: it goes on from what comes out of that
        return incident
    if _serves(live, incident.plain_config):
        incident = _move(incident, State.RESTORING, desk, now, "somebody put the plain config back")
        return _close(incident, desk, now, report)
    if not _serves(live, incident.hooked_config):
        return _lose(incident, live, desk, now)
    if incident.aborted:
        return _restore(incident, desk, now, "an operator aborted it")
    if incident.replays is None:
        sent = replay(incident)
        note = f"replayed {len(sent.names)} requests" + (f": {sent.note}" if sent.note else "")
        timeline = (*incident.timeline, _line(now, note))
        incident = _save(incident, desk, replays=sent.names, flagged=sent.flagged, timeline=timeline)
    return incident


def _after_failing(
    incident: Incident, live: Live, desk: Desk, now: datetime, report: Callable[[Incident], Report]
) -> Incident:
    if now >= incident.since + _TELLING:
        incident = _tell(incident, "failed", message.failed(incident), desk)
    if live.status != IN_SERVICE or "failed" not in incident.told:
        return incident
    if live.config != incident.hooked_config:  # the next violation opens an incident of its own
        if live.config == incident.plain_config and incident.pictures:
            return _close(incident, desk, now, report)
        return _move(incident, State.NORMAL, desk, now, f"{live.config} is in service")
    if incident.deadline is None:
        return _restore(incident, desk, now, "the swap came through after all", deadline=now)
    return incident


@_looking_again
def restore(endpoint: str, desk: Desk, now: datetime) -> str:
    """A picture was made, or the sweep came round: swap back when there are enough pictures or the time is up.

    Returns:
        ``restoring``, or why not: ``waiting``, ``nothing to restore``, ``failed`` (somebody else has deployed).

    Raises:
        RetryableError: the table, the topic or SageMaker does not answer.
    """
    incident = desk.incidents.current(endpoint)
    asked = incident is not None and incident.state is State.FAILED and incident.aborted
    if incident is None or not (incident.state is State.HOOKED or asked):
        return "nothing to restore"
    reason = _enough(incident, desk.limits, now)
    if not reason:
        return "waiting"
    try:
        live = desk.endpoint.describe(endpoint)
    except BadInputError:
        return "nothing to restore"  # it was deleted, which confirm tells
    if _serves(live, incident.hooked_config):
        _restore(incident, desk, now, reason)
        return "restoring"
    if live.status in _UNDER_WAY and not (incident.deadline and _late(incident.deadline, desk.limits, now)):
        return "waiting"  # somebody updates it: confirm goes on from what comes out of that
    if asked or _serves(live, incident.plain_config):
        return "nothing to restore"
    _lose(incident, live, desk, now)
    return "failed"


@dataclass(frozen=True)
class Command:
    """What an operator asks of the open incident: ``abort``, or ``extend``: keep the hooked model ``until`` then."""

    endpoint: str
    action: str
    until: datetime


def read_command(event: Mapping[str, Any]) -> Command:
    """Read a ``Glassbox Command`` event; BadInputError when it is none that can be obeyed.

    ``minutes`` are counted from the time of the event, so that it may come twice.
    """
    if not isinstance(event, Mapping):
        raise BadInputError(f"not a command: expected a JSON object, got {type(event).__name__}")
    try:
        detail, minutes = event["detail"], float(event["detail"].get("minutes", 15))
        if detail["action"] not in ("extend", "abort") or not 0 < minutes <= 24 * 60:
            raise ValueError(f"action {detail['action']!r}, minutes {minutes:g}")
        until = read_time(event["time"]) + timedelta(minutes=minutes)
        return Command(str(detail["endpoint"]), detail["action"], until)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInputError(f"event {event.get('id')}: not a command, {error!r}") from error


@_looking_again
def obey(command: Command, desk: Desk, now: datetime) -> str:
    """Note what an operator wants; it is done by :func:`restore`, and by :func:`confirm` when it is hooked."""
    incident = desk.incidents.current(command.endpoint)
    obeyed_in = {State.SWAPPING, State.HOOKED} | ({State.FAILED} if command.action == "abort" else set())
    if incident is None or incident.state not in obeyed_in:
        return "no incident to change"
    if command.action == "abort":
        timeline = (*incident.timeline, _line(now, "an operator: abort"))
        _save(incident, desk, aborted=True, timeline=timeline)
    else:
        hold = max(command.until, incident.hold or command.until)
        note = _line(now, f"an operator: keep the hooked model until {hold:%H:%M:%S} UTC")
        _save(incident, desk, hold=hold, timeline=(*incident.timeline, note))
    return command.action


def _enough(incident: Incident, limits: Limits, now: datetime) -> str:
    """Why the endpoint is to be restored; empty while it is not."""
    if incident.aborted:
        return "an operator aborted it"
    if incident.hold is not None and now < incident.hold:
        return ""
    if incident.deadline is not None and now >= incident.deadline:
        return f"the time is up with {len(incident.pictures)} pictures"
    if incident.replays:
        done = incident.replays <= incident.pictures
        return f"all {len(incident.replays)} replayed requests are explained" if done else ""
    return f"{limits.pictures} pictures are made" if len(incident.pictures) >= limits.pictures else ""


def _restore(incident: Incident, desk: Desk, now: datetime, reason: str, **changes: Any) -> Incident:
    """Of an endpoint that serves the hooked config."""
    told = incident.told - {"failed"}  # should it fail once more, that is news
    incident = _move(
        incident, State.RESTORING, desk, now, reason, requested=False, aborted=False, told=told, **changes
    )
    return _begin_restore(incident, desk, now)


def _begin_restore(incident: Incident, desk: Desk, now: datetime) -> Incident:
    try:
        desk.endpoint.update(incident.endpoint, incident.plain_config, guarded=False)
    except BadInputError as error:
        return _fail(incident, message.not_restored(incident, str(error)), desk, now)
    except RetryableError as error:
        if overdue(incident, desk.limits, now):
            return _fail(incident, message.not_restored(incident, str(error)), desk, now)
        return incident
    return _requested(incident, incident.plain_config, desk, now)


def _after_restoring(
    incident: Incident, live: Live, desk: Desk, now: datetime, report: Callable[[Incident], Report]
) -> Incident:
    if _serves(live, incident.plain_config):
        return _close(incident, desk, now, report)
    if _serves(live, incident.hooked_config):
        if not incident.requested:
            return _begin_restore(incident, desk, now)
        return _fail(incident, message.not_restored(incident, live.failure or "rolled back"), desk, now)
    if live.status not in _UNDER_WAY or overdue(incident, desk.limits, now):
        return _lose(incident, live, desk, now)
    return incident


def _close(incident: Incident, desk: Desk, now: datetime, report: Callable[[Incident], Report]) -> Incident:
    made = report(incident)
    changes = {"report": made.uri, "findings": made.findings}
    incident = _move(incident, State.NORMAL, desk, now, "the plain config is in service", **changes)
    return _tell(incident, "closed", message.closed(incident), desk)


def _lose(incident: Incident, live: Live, desk: Desk, now: datetime) -> Incident:
    """The endpoint runs what somebody else deployed, or it is broken."""
    if live.status == IN_SERVICE:
        return _fail(incident, message.superseded(incident, live, desk.configs), desk, now)
    return _fail(incident, message.broken_endpoint(incident, live), desk, now)


def _fail(incident: Incident, notice: message.Notice, desk: Desk, now: datetime) -> Incident:
    said = notice.text.partition("\n")[0]
    incident = _move(
        incident, State.FAILED, desk, now, said, failure=notice.text, headline=notice.subject, aborted=False
    )
    return _tell(incident, "failed", notice, desk)


def overdue(incident: Incident, limits: Limits, now: datetime) -> bool:
    """Whether the present state lasts longer than an update of the endpoint may take."""
    return _late(incident.since, limits, now)


def _late(since: datetime, limits: Limits, now: datetime) -> bool:
    return now > since + timedelta(minutes=limits.update_minutes)


def _serves(live: Live, config: str) -> bool:
    # a failed update returns silently to the old config: InService alone is no success
    return live.status == IN_SERVICE and live.config == config


def _move(incident: Incident, state: State, desk: Desk, now: datetime, note: str, **changes: Any) -> Incident:
    if state not in TRANSITIONS[incident.state]:
        raise ValueError(f"{incident.state} does not lead to {state}")
    timeline = (*incident.timeline, _line(now, f"{state}: {note}"))
    return _save(incident, desk, state=state, since=now, timeline=timeline, **changes)


def _requested(incident: Incident, config: str, desk: Desk, now: datetime) -> Incident:
    timeline = (*incident.timeline, _line(now, f"UpdateEndpoint to {config}"))
    return _save(incident, desk, requested=True, since=now, timeline=timeline)


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
