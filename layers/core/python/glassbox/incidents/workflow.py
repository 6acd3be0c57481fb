"""The incident of an endpoint: from a violation to the endpoint back as it was.

::

    NORMAL ──violation──▶ SWAPPING ──in service, hooked──▶ HOOKED ──enough pictures, or time up──▶ RESTORING ──▶ NORMAL
                              └──────────────────┬────────────┴────────────────────────────────────────┘
                                              FAILED ──another config is in service──▶ NORMAL
                                                 └──still hooked: tried again, or an operator asks──▶ RESTORING

    NORMAL ──violation, notify-only──▶ WATCHING ──the window is over──▶ NORMAL

Three entries, one per function: :func:`swap` (a violation), :func:`confirm` (the endpoint changed its state) and
:func:`restore` (a picture was made). A scheduled sweep calls the last two as well, so an event that was lost only
costs time. Each compares what the table says with what is live, does what is missing, and records it after it is
done: any of them may be called twice, late or in another order. An endpoint whose live config is neither the plain
nor the hooked one is somebody else's, and never updated.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec

from glassbox.errors import BadInputError, ConflictError, GlassboxError, RetryableError, printable
from glassbox.incidents import notifications
from glassbox.incidents.model import (
    DELETED,
    FINDINGS_KEPT,
    IN_SERVICE,
    SENDS,
    TRANSITIONS,
    EndpointConfigs,
    EndpointState,
    Incident,
    Limits,
    Outcome,
    Replays,
    Report,
    State,
)
from glassbox.ports import Endpoint, IncidentsStore, Topic
from glassbox.timestamps import parse_timestamp
from glassbox.violation import OPERATOR_CHECK, Violation

_UNDER_WAY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack"})

# The function that changes the state sends the notification. After this time, any later invocation does: also where
# a claim shows that one began to send it and did not finish.
_TELLING = timedelta(minutes=1)

# An endpoint that stays hooked is restored again after 10, 20, 40, … minutes, at most every 4 hours.
_FIRST_RETRY, _LONGEST_RETRY = timedelta(minutes=10), timedelta(hours=4)

# A replay that the endpoint did not answer is sent again, until it was sent so often.
_RESEND = timedelta(minutes=1)

# An incident is one DynamoDB item (400 KB at most), and every write of it must succeed whatever clients send: the
# names of pictures that nobody asked for, the violations that join and the lines of the time line are bounded.
_RELATED_REASON_CHARACTERS = 400
_LINES_KEPT, _FIRST_LINES, _LINE_CHARACTERS = 60, 20, 240
_FAILURE_CHARACTERS, _UNREPORTED_CHARACTERS = 4000, 1000


@dataclass(frozen=True)
class IncidentDependencies:
    """Dependencies of the incident handlers. ``clock`` returns the present time, UTC."""

    configs: EndpointConfigs
    limits: Limits
    endpoint: Endpoint
    incidents: IncidentsStore
    notices: Topic
    clock: Callable[[], datetime]


P = ParamSpec("P")
_ATTEMPTS = 5


def _retry_on_conflict(react: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """Re-read the incident and retry after a concurrent update."""

    @functools.wraps(react)
    def retry(*args: P.args, **kwargs: P.kwargs) -> Outcome:
        conflict = None
        for _ in range(_ATTEMPTS):
            try:
                return react(*args, **kwargs)
            except ConflictError as error:
                conflict = error
        raise RetryableError(f"gave up after {_ATTEMPTS} concurrent updates: {conflict}") from conflict

    return retry


@_retry_on_conflict
def swap(violation: Violation, dependencies: IncidentDependencies, now: datetime) -> Outcome:
    """A violation: open an incident or join one, and swap the endpoint to the hooked config.

    Returns:
        SWAPPING (UpdateEndpoint was accepted), WATCHING (notify-only), PENDING (an update is in progress, or AWS
        refused for now: the next state change or sweep retries), JOINED (an incident is open, or one has handled
        this window), COOLING_DOWN, CAP_REACHED, DUPLICATE or FAILED.

    Raises:
        RetryableError: the table or the topic does not answer.
    """
    incident = dependencies.incidents.current(violation.endpoint)
    if incident is None or not incident.is_open:
        refusal = _refusal(violation, incident, dependencies, now)
        if refusal:
            return refusal
        incident = _new_incident(violation, incident, dependencies, now)
        dependencies.incidents.open(incident)
        if not incident.notify_only:
            return _begin_swap(incident, dependencies, now, opened=True)
    if violation != incident.cause:
        _join(incident, violation, dependencies)
        return Outcome.JOINED
    if incident.state is State.WATCHING:
        _tell(incident, "opened", notifications.opened(incident, dependencies.limits), dependencies)
        return Outcome.WATCHING
    if incident.requested or incident.state is not State.SWAPPING:
        return Outcome.DUPLICATE
    return _begin_swap(incident, dependencies, now)


def _refusal(
    violation: Violation, last: Incident | None, dependencies: IncidentDependencies, now: datetime
) -> Outcome | None:
    """Why a violation opens no incident, if it does not; ops are told once an incident, and check."""
    yesterday = now - timedelta(days=1)
    # a message that was brought back from a dead-letter queue may be older than a day
    past = dependencies.incidents.past(violation.endpoint, min(yesterday, violation.window_start))
    for incident in past:
        if incident.covers(violation):
            _join(incident, violation, dependencies)
            return Outcome.JOINED
    if last is None or violation.check == OPERATOR_CHECK:  # an operator knows
        return None
    cooled_down = last.since + timedelta(minutes=dependencies.limits.cooldown_minutes)
    if now < cooled_down:
        notice = notifications.cooling_down(last, violation, cooled_down)
        _tell(last, f"cooldown {violation.check}", notice, dependencies)
        return Outcome.COOLING_DOWN
    if sum(incident.opened >= yesterday for incident in past) >= dependencies.limits.incidents_per_day:
        _tell(last, "cap", notifications.cap_reached(last, violation, dependencies.limits), dependencies)
        return Outcome.CAP_REACHED
    return None


def _join(incident: Incident, violation: Violation, dependencies: IncidentDependencies) -> None:
    dependencies.incidents.attach(
        incident, replace(violation, reason=printable(violation.reason, _RELATED_REASON_CHARACTERS))
    )


def _new_incident(
    violation: Violation, last: Incident | None, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    timeline = [_line(now, f"opened: {violation.reason}")]
    if last is not None:  # the new item replaces its item
        try:
            _tell_end(last, dependencies)
        except (BadInputError, RetryableError) as error:  # a topic that refuses must not hold a swap up
            timeline.append(_line(now, f"ops were not told the end of incident {last.id}: {error}"))
    return Incident(
        endpoint=violation.endpoint,
        id=f"{now:%Y%m%dt%H%M%S}-{violation.check.replace('_', '-')}",
        opened=now,
        state=State.SWAPPING if dependencies.limits.react else State.WATCHING,
        since=now,
        plain_config=dependencies.configs.plain,
        hooked_config=dependencies.configs.hooked,
        cause=violation,
        notify_only=not dependencies.limits.react,
        timeline=tuple(timeline),
    )


def _begin_swap(
    incident: Incident, dependencies: IncidentDependencies, now: datetime, *, opened: bool = False
) -> Outcome:
    if incident.aborted:
        _fail(incident, notifications.aborted(incident), dependencies, now)
        return Outcome.FAILED
    try:
        live = dependencies.endpoint.describe(incident.endpoint)
        if _serves(live, incident.plain_config):
            dependencies.endpoint.update(incident.endpoint, incident.hooked_config, guarded=True)
    except BadInputError as error:
        _fail(incident, notifications.refused(incident, str(error)), dependencies, now)
        return Outcome.FAILED
    except RetryableError as error:
        return _wait(incident, str(error), dependencies, now, opened)
    if live.status == DELETED:
        _fail(incident, notifications.broken_endpoint(incident, live), dependencies, now)
        return Outcome.FAILED
    if live.config not in (incident.plain_config, incident.hooked_config):
        _fail(incident, notifications.foreign_config(incident, live, dependencies.configs), dependencies, now)
        return Outcome.FAILED
    if live.status in _UNDER_WAY:
        return _wait(incident, f"the endpoint is {live.status}", dependencies, now, opened)
    if live.status != IN_SERVICE:
        _fail(incident, notifications.broken_endpoint(incident, live), dependencies, now)
        return Outcome.FAILED
    incident = _requested(incident, incident.hooked_config, dependencies, now)
    _tell(incident, "opened", notifications.opened(incident, dependencies.limits), dependencies)
    return Outcome.SWAPPING


def _wait(
    incident: Incident, reason: str, dependencies: IncidentDependencies, now: datetime, opened: bool
) -> Outcome:
    if overdue(incident, dependencies.limits, now):
        _fail(incident, notifications.refused(incident, reason), dependencies, now)
        return Outcome.FAILED
    # whoever did not open it may see the update of who did, and who is about to tell
    if opened or now >= incident.since + _TELLING:
        _tell(incident, "opened", notifications.pending(incident, reason, dependencies.limits), dependencies)
    return Outcome.PENDING


@_retry_on_conflict
def confirm(
    endpoint: str,
    dependencies: IncidentDependencies,
    now: datetime,
    *,
    replay: Callable[[Incident], Replays],
    report: Callable[[Incident], Report],
) -> Outcome:
    """The endpoint's state changed, or the sweep came round: verify what is live and go on from there.

    Args:
        replay: sends the flagged inputs to the hooked model again; the names of the pictures to expect.
        report: writes the incident's page.

    Returns:
        The state of the incident; STALE_TWIN (the endpoint serves neither config) or NO_ENDPOINT without one.
    """
    incident = dependencies.incidents.current(endpoint)
    if incident is None or not incident.is_open:
        return _between_incidents(endpoint, incident, dependencies, now)
    if incident.state is State.WATCHING:
        incident = _while_watching(incident, dependencies, now, report)
    else:
        try:
            live = dependencies.endpoint.describe(endpoint)
        except (BadInputError, RetryableError) as error:
            incident = _cannot_look(incident, error, dependencies, now)
        else:
            incident = _go_on(incident, live, dependencies, now, replay, report)
    return Outcome(_tell_late(incident, dependencies, now).state)


def _go_on(
    incident: Incident,
    live: EndpointState,
    dependencies: IncidentDependencies,
    now: datetime,
    replay: Callable[[Incident], Replays],
    report: Callable[[Incident], Report],
) -> Incident:
    if incident.state is State.SWAPPING:
        incident = _after_swapping(incident, live, dependencies, now)
        # `live` is older than an incident that others have changed meanwhile: only the hooked model leads on
        if not _serves(live, incident.hooked_config) or incident.state is not State.HOOKED:
            return incident
    if incident.state is State.HOOKED:
        return _while_hooked(incident, live, dependencies, now, replay, report)
    if incident.state is State.RESTORING:
        return _after_restoring(incident, live, dependencies, now, report)
    return _after_failing(incident, live, dependencies, now, report)


def _cannot_look(
    incident: Incident, error: GlassboxError, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    """DescribeEndpoint is refused: nothing is done without a look, and ops are told when it lasts."""
    if incident.state is State.FAILED:  # ops know; every sweep looks again
        return incident
    ended = [
        time
        for time in (incident.deadline, incident.keep_hooked_until)
        if time and incident.state is State.HOOKED
    ]
    if isinstance(error, RetryableError) and not _late(
        max([incident.since, *ended]), dependencies.limits, now
    ):
        raise error
    return _fail(incident, notifications.not_seen(incident, str(error)), dependencies, now)


def _tell_late(incident: Incident, dependencies: IncidentDependencies, now: datetime) -> Incident:
    """Send what its sender could not: after the work, so that a topic that refuses holds nothing up."""
    if now < incident.since + _TELLING:
        return incident
    if incident.state is State.FAILED:
        return _tell(incident, "failed", notifications.failed(incident), dependencies)
    if incident.state is State.NORMAL or (incident.state is State.SWAPPING and not incident.requested):
        return incident
    return _tell(incident, "opened", notifications.opened(incident, dependencies.limits), dependencies)


def _between_incidents(
    endpoint: str, last: Incident | None, dependencies: IncidentDependencies, now: datetime
) -> Outcome:
    if last is not None and now >= last.since + _TELLING:
        _tell_end(last, dependencies)
    if not dependencies.limits.react:
        return Outcome.NORMAL
    live = dependencies.endpoint.describe(endpoint)
    if live.status == DELETED:
        return Outcome.NO_ENDPOINT
    if live.status == IN_SERVICE and live.config not in (
        dependencies.configs.plain,
        dependencies.configs.hooked,
    ):
        _report_config(endpoint, live, dependencies)
        return Outcome.STALE_TWIN
    return Outcome.NORMAL


def _tell_end(last: Incident, dependencies: IncidentDependencies) -> None:
    """Publish the end of a closed incident; one that ended as FAILED has none but its failure."""
    if last.report or last.unreported:
        _tell(last, "closed", notifications.closed(last), dependencies)


def _report_config(endpoint: str, live: EndpointState, dependencies: IncidentDependencies) -> None:
    """Publish the notification of an unknown config once, see :func:`_tell`."""
    incidents, at = dependencies.incidents, dependencies.clock()
    if incidents.was_config_reported(endpoint, live.config):
        return
    if not incidents.claim_config_report(endpoint, live.config, at, at - _TELLING):
        return
    try:
        dependencies.notices.publish(notifications.stale_twin(endpoint, live, dependencies.configs))
    except GlassboxError:  # the next invocation may publish at once
        incidents.claim_config_report(endpoint, live.config, at - 2 * _TELLING, at)
        raise
    incidents.record_config_report(endpoint, live.config)


def _while_watching(
    incident: Incident,
    dependencies: IncidentDependencies,
    now: datetime,
    report: Callable[[Incident], Report],
) -> Incident:
    ended = max(incident.cause.window_end, incident.keep_hooked_until or incident.cause.window_end)
    if incident.aborted:
        return _close(incident, dependencies, now, report, "an operator aborted it")
    return (
        incident
        if now < ended
        else _close(incident, dependencies, now, report, "the window is over", due=ended)
    )


def _after_swapping(
    incident: Incident, live: EndpointState, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    if _serves(live, incident.hooked_config):
        deadline = now + timedelta(minutes=dependencies.limits.explain_minutes)
        note = "the hooked model is in service"
        incident = _move(incident, State.HOOKED, dependencies, now, note, deadline=deadline)
        return _tell(incident, "opened", notifications.opened(incident, dependencies.limits), dependencies)
    if not incident.requested:
        _begin_swap(incident, dependencies, now)
        return dependencies.incidents.current(incident.endpoint) or incident
    if _serves(live, incident.plain_config):
        return _fail(incident, notifications.rolled_back(incident, live), dependencies, now)
    if live.status not in _UNDER_WAY or overdue(incident, dependencies.limits, now):
        return _lose(incident, live, dependencies, now)
    return incident


def _while_hooked(
    incident: Incident,
    live: EndpointState,
    dependencies: IncidentDependencies,
    now: datetime,
    replay: Callable[[Incident], Replays],
    report: Callable[[Incident], Report],
) -> Incident:
    if live.status in _UNDER_WAY:  # somebody updates it: it goes on from what comes out of that
        return incident
    if _serves(live, incident.plain_config):
        incident = _move(incident, State.RESTORING, dependencies, now, "somebody put the plain config back")
        return _close(incident, dependencies, now, report)
    if not _serves(live, incident.hooked_config):
        return _lose(incident, live, dependencies, now)
    if incident.aborted:
        return _restore(incident, dependencies, now, "an operator aborted it")
    if incident.replays is None or (incident.unsent and incident.sent and now >= incident.sent + _RESEND):
        return _send(incident, dependencies, now, replay)
    return incident


def _send(
    incident: Incident,
    dependencies: IncidentDependencies,
    now: datetime,
    replay: Callable[[Incident], Replays],
) -> Incident:
    """Send the flagged inputs again, or those that the endpoint did not answer last time."""
    try:
        sent = replay(incident)
    except BadInputError as error:
        sent = Replays(frozenset(), note=str(error))
    names, unsent, sends = sent.names, sent.unsent, incident.sends + 1
    note = f"replayed {len(names - unsent)} requests"
    if unsent and sends >= SENDS:
        note += f", gave up {len(unsent)} that the endpoint did not answer in {sends} tries"
        names, unsent = names - unsent, frozenset()
    elif unsent:
        note += f", {len(unsent)} not answered yet"
    answered = (incident.replays or frozenset()) - incident.unsent
    return _save(
        incident,
        dependencies,
        replays=answered | names,
        flagged=(incident.flagged & answered) | (sent.flagged & names),
        unsent=unsent,
        sends=sends,
        sent=now,
        timeline=_noted(incident, now, note + (f": {sent.note}" if sent.note else "")),
    )


def _after_failing(
    incident: Incident,
    live: EndpointState,
    dependencies: IncidentDependencies,
    now: datetime,
    report: Callable[[Incident], Report],
) -> Incident:
    if live.status != IN_SERVICE:
        return incident
    if (
        live.config == incident.hooked_config
    ):  # restoring waits for no notification: the end is told in any case
        if incident.deadline is None:
            return _restore(incident, dependencies, now, "the swap came through after all", deadline=now)
        if now >= next_retry(incident):
            return _restore(incident, dependencies, now, "tried again", retries=incident.retries + 1)
        return incident
    if "failed" not in incident.sent_notifications:
        return incident
    if live.config == incident.plain_config and incident.heatmaps:
        return _close(incident, dependencies, now, report)
    # the next violation opens an incident of its own
    return _move(incident, State.NORMAL, dependencies, now, f"{live.config} is in service")


def next_retry(failed: Incident) -> datetime:
    """When it is tried again to restore the endpoint of an incident that has failed."""
    wait: timedelta = _FIRST_RETRY * (1 << min(failed.retries, 10))
    return failed.since + min(_LONGEST_RETRY, wait)


@_retry_on_conflict
def restore(endpoint: str, dependencies: IncidentDependencies, now: datetime) -> Outcome:
    """A picture was made, or the sweep came round: swap back when there are enough pictures or the time is up.

    Returns:
        RESTORING, or why not: WAITING, NOTHING_TO_RESTORE or FAILED.

    Raises:
        RetryableError: the table, the topic or SageMaker does not answer.
    """
    incident = dependencies.incidents.current(endpoint)
    asked = incident is not None and incident.state is State.FAILED and incident.aborted
    if incident is None or not (incident.state is State.HOOKED or asked):
        return Outcome.NOTHING_TO_RESTORE
    reason = _restore_reason(incident, dependencies.limits, now)
    if not reason:
        return Outcome.WAITING
    try:
        live = dependencies.endpoint.describe(endpoint)
    except (BadInputError, RetryableError) as error:
        _cannot_look(incident, error, dependencies, now)
        return Outcome.FAILED
    if _serves(live, incident.hooked_config):
        _restore(incident, dependencies, now, reason)
        return Outcome.RESTORING
    if live.status == DELETED:
        return Outcome.NOTHING_TO_RESTORE  # which confirm tells
    if live.status in _UNDER_WAY and not (
        incident.deadline and _late(incident.deadline, dependencies.limits, now)
    ):
        return Outcome.WAITING  # somebody updates it: confirm goes on from what comes out of that
    if asked or _serves(live, incident.plain_config):
        return Outcome.NOTHING_TO_RESTORE
    _lose(incident, live, dependencies, now)
    return Outcome.FAILED


@dataclass(frozen=True)
class Command:
    """What an operator asks of the open incident: ``abort``, or ``extend``: keep the hooked model ``until`` then."""

    endpoint: str
    action: str
    until: datetime


def read_command(event: Mapping[str, Any]) -> Command:
    """Read a ``Glassbox Command`` event; BadInputError for an unknown or malformed command.

    ``minutes`` are counted from the time of the event, so that it may come twice.
    """
    if not isinstance(event, Mapping):
        raise BadInputError(f"not a command: expected a JSON object, got {type(event).__name__}")
    try:
        detail, minutes = event["detail"], float(event["detail"].get("minutes", 15))
        if detail["action"] not in ("extend", "abort") or not 0 < minutes <= 24 * 60:
            raise ValueError(f"action {detail['action']!r}, minutes {minutes:g}")
        until = parse_timestamp(event["time"]) + timedelta(minutes=minutes)
        return Command(str(detail["endpoint"]), detail["action"], until)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInputError(f"event {event.get('id')}: not a command, {error!r}") from error


@_retry_on_conflict
def apply_command(command: Command, dependencies: IncidentDependencies, now: datetime) -> Outcome:
    """Record an operator's command; :func:`restore` and :func:`confirm` do it.

    ``abort`` restores the endpoint and ends the incident, if need be without a report; ``extend`` keeps the hooked
    model, or watches on, until then.

    Returns:
        ABORT, EXTEND or NO_INCIDENT.
    """
    incident = dependencies.incidents.current(command.endpoint)
    if incident is None or not incident.is_open:
        return Outcome.NO_INCIDENT
    if command.action == "abort":
        _save(incident, dependencies, aborted=True, timeline=_noted(incident, now, "an operator: abort"))
    elif incident.state in (State.SWAPPING, State.HOOKED, State.WATCHING):
        until = max(command.until, incident.keep_hooked_until or command.until)
        kept = "watch" if incident.notify_only else "keep the hooked model"
        note = f"an operator: {kept} until {until:%Y-%m-%d %H:%M:%S} UTC"
        _save(incident, dependencies, keep_hooked_until=until, timeline=_noted(incident, now, note))
    else:
        return Outcome.NO_INCIDENT
    return Outcome(command.action)


def _restore_reason(incident: Incident, limits: Limits, now: datetime) -> str:
    """Return why to restore the endpoint now; empty for not yet."""
    if incident.aborted:
        return "an operator aborted it"
    if incident.keep_hooked_until is not None and now < incident.keep_hooked_until:
        return ""
    if incident.deadline is not None and now >= incident.deadline:
        return f"the time is up with {len(incident.heatmaps)} pictures"
    if incident.replays is None:  # live traffic must not end it before the flagged inputs were sent
        return ""
    if incident.replays:
        if not incident.replays <= incident.heatmaps | incident.refused:
            return ""
        refused = len(incident.replays - incident.heatmaps)
        also = f", except {refused} that cannot be drawn" if refused else ""
        return f"all {len(incident.replays)} replayed requests are explained{also}"
    return f"{limits.max_heatmaps} pictures are made" if len(incident.heatmaps) >= limits.max_heatmaps else ""


def _restore(
    incident: Incident, dependencies: IncidentDependencies, now: datetime, reason: str, **changes: Any
) -> Incident:
    """Of an endpoint that serves the hooked config."""
    # a second failure is notified again
    sent = incident.sent_notifications - {"failed"}
    claims = {what: since for what, since in incident.claims.items() if what != "failed"}
    incident = _move(
        incident,
        State.RESTORING,
        dependencies,
        now,
        reason,
        requested=False,
        aborted=False,
        sent_notifications=sent,
        claims=claims,
        **changes,
    )
    return _begin_restore(incident, dependencies, now)


def _begin_restore(incident: Incident, dependencies: IncidentDependencies, now: datetime) -> Incident:
    try:
        dependencies.endpoint.update(incident.endpoint, incident.plain_config, guarded=False)
    except BadInputError as error:
        return _fail_to_restore(incident, str(error), dependencies, now)
    except RetryableError as error:
        if incident.retries or overdue(incident, dependencies.limits, now):
            return _fail_to_restore(incident, str(error), dependencies, now)
        return incident
    return _requested(incident, incident.plain_config, dependencies, now)


def _fail_to_restore(
    incident: Incident, reason: str, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    retry = next_retry(replace(incident, since=now))
    return _fail(incident, notifications.not_restored(incident, reason, retry), dependencies, now)


def _after_restoring(
    incident: Incident,
    live: EndpointState,
    dependencies: IncidentDependencies,
    now: datetime,
    report: Callable[[Incident], Report],
) -> Incident:
    if _serves(live, incident.plain_config):
        return _close(incident, dependencies, now, report)
    if _serves(live, incident.hooked_config):
        if not incident.requested:
            return _begin_restore(incident, dependencies, now)
        return _fail_to_restore(incident, live.failure or "SageMaker rolled it back", dependencies, now)
    if live.status not in _UNDER_WAY or overdue(incident, dependencies.limits, now):
        return _lose(incident, live, dependencies, now)
    return incident


def _close(
    incident: Incident,
    dependencies: IncidentDependencies,
    now: datetime,
    report: Callable[[Incident], Report],
    note: str = "the plain config is in service",
    *,
    due: datetime | None = None,
) -> Incident:
    """End the incident with its report; when that cannot be written for too long, without one.

    Args:
        due: since when it could have been closed; None is since it is in its state.
    """
    due = due or incident.since
    changes: dict[str, Any] = {}
    try:
        if _late(due, dependencies.limits, now, 2):  # an invocation that was killed has raised nothing
            raise BadInputError("writing it did not end; the log of confirm_endpoint says more")
        made = report(incident)
        changes = {"report": made.uri, "findings": made.findings[:FINDINGS_KEPT]}
    except BadInputError as error:
        changes = {"unreported": printable(error, _UNREPORTED_CHARACTERS)}
    except RetryableError as error:
        if not incident.aborted and not _late(due, dependencies.limits, now):
            raise
        changes = {"unreported": printable(error, _UNREPORTED_CHARACTERS)}
    # claimed in the same write: from then on another incident may take its place in the table
    at = dependencies.clock()
    changes["claims"] = {**incident.claims, "closed": at}
    incident = _move(incident, State.NORMAL, dependencies, now, note, **changes)
    return _publish(incident, "closed", notifications.closed(incident), at, dependencies)


def _lose(
    incident: Incident, live: EndpointState, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    """The endpoint runs what somebody else deployed, or it is broken."""
    if live.status == IN_SERVICE:
        return _fail(
            incident, notifications.superseded(incident, live, dependencies.configs), dependencies, now
        )
    return _fail(incident, notifications.broken_endpoint(incident, live), dependencies, now)


def _fail(
    incident: Incident, notice: notifications.Notice, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    said, failure = notice.text.partition("\n")[0], notice.text[:_FAILURE_CHARACTERS]
    incident = _move(
        incident,
        State.FAILED,
        dependencies,
        now,
        said,
        failure=failure,
        headline=notice.subject,
        aborted=False,
    )
    return _tell(incident, "failed", notice, dependencies)


def overdue(incident: Incident, limits: Limits, now: datetime) -> bool:
    """Whether the present state lasts longer than an update of the endpoint may take."""
    return _late(incident.since, limits, now)


def _late(since: datetime, limits: Limits, now: datetime, times: int = 1) -> bool:
    return now > since + times * timedelta(minutes=limits.update_minutes)


def _serves(live: EndpointState, config: str) -> bool:
    # a failed update returns silently to the old config: InService alone is no success
    return live.status == IN_SERVICE and live.config == config


def _move(
    incident: Incident,
    state: State,
    dependencies: IncidentDependencies,
    now: datetime,
    note: str,
    **changes: Any,
) -> Incident:
    if state not in TRANSITIONS[incident.state]:
        raise ValueError(f"{incident.state} does not lead to {state}")
    timeline = _noted(incident, now, f"{state}: {note}")
    return _save(incident, dependencies, state=state, since=now, timeline=timeline, **changes)


def _requested(
    incident: Incident, config: str, dependencies: IncidentDependencies, now: datetime
) -> Incident:
    timeline = _noted(incident, now, f"UpdateEndpoint to {config}")
    return _save(incident, dependencies, requested=True, since=now, timeline=timeline)


def _save(incident: Incident, dependencies: IncidentDependencies, **changes: Any) -> Incident:
    after = replace(incident, revision=incident.revision + 1, **changes)
    dependencies.incidents.save(incident, after)
    return after


def _tell(
    incident: Incident, what: str, notice: notifications.Notice, dependencies: IncidentDependencies
) -> Incident:
    """Publish a notification once: claim it, publish it, record it as sent.

    Concurrent invocations see the claim and publish nothing. After a crash, a later invocation takes the stale claim
    over and publishes: ops may get that message twice, and never miss it.
    """
    at, claimed = dependencies.clock(), incident.claims.get(what)
    if what in incident.sent_notifications or (claimed is not None and at < claimed + _TELLING):
        return incident
    incident = _save(incident, dependencies, claims={**incident.claims, what: at})
    return _publish(incident, what, notice, at, dependencies)


def _publish(
    incident: Incident,
    what: str,
    notice: notifications.Notice,
    at: datetime,
    dependencies: IncidentDependencies,
) -> Incident:
    """Publish a notification that was claimed ``at`` this time, and record it as sent."""
    try:
        dependencies.notices.publish(notice)
    except GlassboxError:  # the next invocation may publish at once
        _release(incident, what, at, dependencies)
        raise
    return _release(incident, what, at, dependencies, sent=True)


def _release(
    incident: Incident, what: str, at: datetime, dependencies: IncidentDependencies, *, sent: bool = False
) -> Incident:
    """Remove the claim that was made ``at`` this time, unless another invocation has replaced it."""
    for _ in range(_ATTEMPTS):
        if incident.claims.get(what) != at:
            return incident
        claims = {claim: since for claim, since in incident.claims.items() if claim != what}
        notified = incident.sent_notifications | ({what} if sent else set())
        try:
            return _save(incident, dependencies, claims=claims, sent_notifications=notified)
        except ConflictError:
            current = dependencies.incidents.current(incident.endpoint)
            if current is None or current.id != incident.id:
                return incident
            incident = current
    raise RetryableError(
        f"incident {incident.id}: gave up after {_ATTEMPTS} concurrent updates. Lambda retries."
    )


def _noted(incident: Incident, now: datetime, text: str) -> tuple[str, ...]:
    """The time line and one line more; of many, the first and the last."""
    lines = (*incident.timeline, _line(now, text))
    if len(lines) <= _LINES_KEPT:
        return lines
    return (*lines[:_FIRST_LINES], "(some lines are left out)", *lines[_FIRST_LINES + 1 - _LINES_KEPT :])


def _line(now: datetime, text: str) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S}Z {printable(text, _LINE_CHARACTERS)}"
