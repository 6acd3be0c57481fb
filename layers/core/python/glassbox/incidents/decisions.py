"""Decide the next step of an incident: pure functions of the incident, the endpoint, the time and the limits.

::

    NORMAL ──violation──▶ SWAPPING ──serves hooked──▶ HOOKED ──restore reason──▶ RESTORING ──serves plain──▶ NORMAL
                              └────────────┬─────────────┴─────────────────────────┘
                                        FAILED ──serves another config──▶ NORMAL
                                           └──serves hooked: retry, or abort──▶ RESTORING

    NORMAL ──violation, notify-only──▶ WATCHING ──window has ended, or abort──▶ NORMAL

Each function returns a :class:`Decision`. :mod:`glassbox.incidents.workflow` makes the call that a decision names,
passes the result to the matching ``after_…`` function, saves the incident and sends the notification. An endpoint that
serves neither the plain nor the hooked config was deployed by someone else: no decision updates it.
``tests/unit/test_decisions.py`` lists every transition as a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from glassbox.errors import printable
from glassbox.incidents import notifications
from glassbox.incidents.model import (
    DELETED,
    FINDINGS_KEPT,
    IN_SERVICE,
    SENDS,
    TRANSITIONS,
    Command,
    EndpointConfigs,
    EndpointState,
    Incident,
    Limits,
    Outcome,
    Replays,
    Report,
    State,
)
from glassbox.incidents.notifications import Notice
from glassbox.replay_marker import LIFETIME
from glassbox.violation import OPERATOR_CHECK, Violation

IN_PROGRESS = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack"})  # EndpointStatus

# The invocation that changes the state sends the notification. After this time, any later invocation does: also where
# the claim of an invocation that crashed is left.
CLAIM_EXPIRES = timedelta(minutes=1)
REPLAY_INTERVAL = timedelta(minutes=1)
# a failed restore is retried after 10, 20, 40, … minutes
FIRST_RETRY, LONGEST_RETRY = timedelta(minutes=10), timedelta(hours=4)
DAY = timedelta(days=1)
# An id contains the second of the opening and names a folder, so no two incidents share one.
_ID_INTERVAL = timedelta(seconds=1)
# Markers expire LIFETIME after the opening: replays sent later would be counted as traffic.
_REPLAY_MARGIN = timedelta(hours=1)

# An incident is one DynamoDB item (400 KB at most), and every write of it must succeed: its texts are bounded.
_RELATED_REASON_CHARACTERS = 400
_LINES_KEPT, _FIRST_LINES, _LINE_CHARACTERS = 60, 20, 240
_FAILURE_CHARACTERS, _UNREPORTED_CHARACTERS = 4000, 1000


class Action(StrEnum):
    """Calls to make before their result is recorded."""

    OPEN = "write the new incident"
    SWAP = "UpdateEndpoint to the hooked config"
    RESTORE = "UpdateEndpoint to the plain config"
    REPLAY = "send the flagged inputs again"
    REPORT = "write the incident report"


@dataclass(frozen=True)
class Refusal:
    """Result of a failed call, which may succeed later if it is retryable."""

    reason: str
    retryable: bool = False


@dataclass(frozen=True)
class Notification:
    """A notice that ops get once for each incident and key."""

    key: str
    notice: Notice


@dataclass(frozen=True)
class Decision:
    """The next step of an incident.

    ``Decision(incident)`` is to wait for the next event.

    Attributes:
        incident: to be saved if it differs.
        action: the call to make now. Its ``after_…`` function decides the rest.
        notification: to be sent once, after ``incident`` is saved.
        related: a violation to add to the incident.
        outcome: result of the handler; None means the state of the incident.
        again: call :func:`decide` for the new state and the same endpoint state.
        retry: the error to raise, so that Lambda retries the message.
    """

    incident: Incident
    action: Action | None = None
    notification: Notification | None = None
    related: Violation | None = None
    outcome: Outcome | None = None
    again: bool = False
    retry: str = ""


# ---------------------------------------------------------------- a violation


def past_since(violation: Violation, now: datetime) -> datetime:
    """Return the earliest opening time of the incidents that may cover a violation."""
    # A message that was redriven from a dead-letter queue may be older than a day. A window is a day at most, so an
    # incident that covers this one was opened at most a day before it starts.
    return min(now, violation.window_start) - DAY


def decide_violation(
    violation: Violation,
    last: Incident | None,
    past: Sequence[Incident],
    now: datetime,
    limits: Limits,
    configs: EndpointConfigs,
) -> Decision:
    """Decide whether a violation opens an incident or joins one.

    Args:
        last: the open incident of the endpoint, or the last one.
        past: its closed incidents since :func:`past_since`; only needed while none is open.

    Returns:
        OPEN if the incident is new; :func:`decide_swap` follows unless there is an outcome.
    """
    if last is not None and last.is_open:
        return _violation_while_open(violation, last, limits)
    for incident in past:
        if incident.covers(violation):
            return _join(incident, violation)
    if last is not None and violation.check != OPERATOR_CHECK:  # cooldown and cap do not limit an operator
        cooled_down = last.since + timedelta(minutes=limits.cooldown_minutes)
        if now < cooled_down:
            notice = notifications.cooling_down(last, violation, cooled_down)
            notification = Notification(f"cooldown {violation.check}", notice)
            return Decision(last, notification=notification, outcome=Outcome.COOLING_DOWN)
        if sum(incident.opened >= now - DAY for incident in past) >= limits.incidents_per_day:
            notification = Notification("cap", notifications.cap_reached(last, violation, limits))
            return Decision(last, notification=notification, outcome=Outcome.CAP_REACHED)
    opened = now if last is None else max(now, last.opened + _ID_INTERVAL)
    new = _new_incident(violation, opened, limits, configs)
    if new.notify_only:
        return Decision(new, Action.OPEN, _opened(new, limits), outcome=Outcome.WATCHING)
    return Decision(new, Action.OPEN)


def _violation_while_open(violation: Violation, incident: Incident, limits: Limits) -> Decision:
    if violation != incident.cause:
        return _join(incident, violation)
    if incident.state is State.WATCHING:
        return Decision(incident, notification=_opened(incident, limits), outcome=Outcome.WATCHING)
    if incident.state is State.SWAPPING and not incident.requested:
        return Decision(incident)
    return Decision(incident, outcome=Outcome.DUPLICATE)


def _join(incident: Incident, violation: Violation) -> Decision:
    related = replace(violation, reason=printable(violation.reason, _RELATED_REASON_CHARACTERS))
    return Decision(incident, related=related, outcome=Outcome.JOINED)


def _new_incident(violation: Violation, now: datetime, limits: Limits, configs: EndpointConfigs) -> Incident:
    return Incident(
        endpoint=violation.endpoint,
        id=f"{now:%Y%m%dt%H%M%S}-{violation.check.replace('_', '-')}",
        opened=now,
        state=State.SWAPPING if limits.react else State.WATCHING,
        since=now,
        plain_config=configs.plain,
        hooked_config=configs.hooked,
        cause=violation,
        notify_only=not limits.react,
        timeline=(_line(now, f"opened: {violation.reason}"),),
    )


# ---------------------------------------------------------------- an open incident and its endpoint


def decide(
    incident: Incident,
    live: EndpointState | Refusal | None,
    now: datetime,
    limits: Limits,
    configs: EndpointConfigs,
) -> Decision:
    """Decide the next step of an open incident, given the state of its endpoint.

    Args:
        live: result of DescribeEndpoint; None in notify-only mode, which leaves the endpoint alone.
    """
    if live is None:
        return _watching(incident, now, limits)
    if isinstance(live, Refusal):
        return _describe_refused(incident, live, now, limits)
    match incident.state:
        case State.SWAPPING:
            return _swapping(incident, live, now, limits, configs)
        case State.HOOKED:
            return _hooked(incident, live, now, configs)
        case State.RESTORING:
            return _restoring(incident, live, now, limits, configs)
        case State.FAILED:
            return _failed(incident, live, now, limits)
        case _:
            return Decision(incident)


def _watching(incident: Incident, now: datetime, limits: Limits) -> Decision:
    return _close(incident, now, limits) if now >= _report_due(incident) else Decision(incident)


def _swapping(
    incident: Incident, live: EndpointState, now: datetime, limits: Limits, configs: EndpointConfigs
) -> Decision:
    if _serves(live, incident.hooked_config):
        deadline = now + timedelta(minutes=limits.explain_minutes)
        after = _move(incident, State.HOOKED, now, "the hooked model is in service", deadline=deadline)
        return Decision(after, notification=_opened(after, limits), again=True)
    if not incident.requested:
        return decide_swap(incident, live, now, limits, configs)
    if _serves(live, incident.plain_config):
        return _fail(incident, now, notifications.rolled_back(incident, live))
    return _await_update(incident, live, now, limits, configs)


def decide_swap(
    incident: Incident,
    live: EndpointState | Refusal,
    now: datetime,
    limits: Limits,
    configs: EndpointConfigs,
    *,
    opened: bool = False,
) -> Decision:
    """Decide whether to swap the endpoint, which SageMaker has not accepted yet.

    Args:
        opened: this invocation opened the incident, so it notifies of a pending swap.
    """
    if incident.aborted:
        return _fail(incident, now, notifications.aborted(incident))
    if isinstance(live, Refusal):
        return after_swap(incident, live, now, limits, opened=opened)
    if live.status != DELETED and live.config not in (incident.plain_config, incident.hooked_config):
        return _fail(incident, now, notifications.foreign_config(incident, live, configs))
    if live.status in IN_PROGRESS:
        return _wait_to_swap(incident, f"the endpoint is {live.status}", now, limits, opened)
    if live.status != IN_SERVICE:
        return _fail(incident, now, notifications.broken_endpoint(incident, live))
    if live.config == incident.hooked_config:
        return after_swap(incident, None, now, limits)
    return Decision(incident, Action.SWAP)


def after_swap(
    incident: Incident, refusal: Refusal | None, now: datetime, limits: Limits, *, opened: bool = False
) -> Decision:
    """Decide what follows UpdateEndpoint to the hooked config, refused or accepted (None)."""
    if refusal is None:
        after = _accepted(incident, incident.hooked_config, now)
        return Decision(after, notification=_opened(after, limits), outcome=Outcome.SWAPPING)
    if refusal.retryable:
        return _wait_to_swap(incident, refusal.reason, now, limits, opened)
    return _fail(incident, now, notifications.refused(incident, refusal.reason))


def _wait_to_swap(incident: Incident, reason: str, now: datetime, limits: Limits, opened: bool) -> Decision:
    if _overdue(incident.since, limits, now):
        return _fail(incident, now, notifications.refused(incident, reason))
    pending = Notification("opened", notifications.pending(incident, reason, limits))
    # another invocation may be between UpdateEndpoint and its record: it sends the notification
    is_due = opened or now >= incident.since + CLAIM_EXPIRES
    return Decision(incident, notification=pending if is_due else None, outcome=Outcome.PENDING)


def _hooked(incident: Incident, live: EndpointState, now: datetime, configs: EndpointConfigs) -> Decision:
    if live.status in IN_PROGRESS:
        return Decision(incident)
    if _serves(live, incident.plain_config):
        after = _move(incident, State.RESTORING, now, "the endpoint serves the plain config already")
        return Decision(after, again=True)
    if not _serves(live, incident.hooked_config):
        return _fail_lost(incident, live, now, configs)
    if incident.aborted:
        return _begin_restore(incident, now, "an operator aborted it")
    is_resend_due = incident.unsent and incident.sent and now >= incident.sent + REPLAY_INTERVAL
    if incident.replays is None or is_resend_due:
        if now >= incident.opened + LIFETIME - _REPLAY_MARGIN:
            return after_replay(incident, Refusal("the incident is too old, replay markers expire"), now)
        return Decision(incident, Action.REPLAY)
    return Decision(incident)


def after_replay(incident: Incident, sent: Replays | Refusal, now: datetime) -> Decision:
    """Record a replay, whose unanswered requests are sent up to SENDS times."""
    if isinstance(sent, Refusal):
        if sent.retryable:
            return Decision(incident, retry=sent.reason)
        sent = Replays(frozenset(), note=sent.reason)
    names, unsent, sends = sent.names, sent.unsent, incident.sends + 1
    note = f"replayed {len(names - unsent)} requests"
    if unsent and sends >= SENDS:
        note += f", gave up {len(unsent)} that the endpoint did not answer in {sends} tries"
        names, unsent = names - unsent, frozenset()
    elif unsent:
        note += f", {len(unsent)} not answered yet"
    answered = (incident.replays or frozenset()) - incident.unsent
    after = replace(
        incident,
        replays=answered | names,
        flagged=(incident.flagged & answered) | (sent.flagged & names),
        unsent=unsent,
        sends=sends,
        sent=now,
    )
    return Decision(noted(after, now, note + (f": {sent.note}" if sent.note else "")))


def _restoring(
    incident: Incident, live: EndpointState, now: datetime, limits: Limits, configs: EndpointConfigs
) -> Decision:
    if _serves(live, incident.plain_config):
        return _close(incident, now, limits)
    if _serves(live, incident.hooked_config):
        if not incident.requested:
            return Decision(incident, Action.RESTORE)
        return _fail_to_restore(incident, now, live.failure or "SageMaker rolled the update back")
    return _await_update(incident, live, now, limits, configs)


def after_restore(incident: Incident, refusal: Refusal | None, now: datetime, limits: Limits) -> Decision:
    """Decide what follows UpdateEndpoint to the plain config, refused or accepted (None)."""
    if refusal is None:
        return Decision(_accepted(incident, incident.plain_config, now))
    if refusal.retryable and not incident.retries and not _overdue(incident.since, limits, now):
        return Decision(incident)
    return _fail_to_restore(incident, now, refusal.reason)


def _failed(incident: Incident, live: EndpointState, now: datetime, limits: Limits) -> Decision:
    if live.status != IN_SERVICE:
        return Decision(incident)
    if live.config == incident.hooked_config:
        if incident.deadline is None:
            return _begin_restore(incident, now, "the swap completed after it was given up", deadline=now)
        if now >= next_retry(incident):
            retries = incident.retries + 1
            return _begin_restore(incident, now, f"retry {retries}", retries=retries)
        return Decision(incident)
    if "failed" not in incident.sent_notifications:  # ops must get the failure before the incident ends
        return Decision(incident)
    if live.config == incident.plain_config and incident.heatmaps:
        return _close(incident, now, limits)
    return Decision(_move(incident, State.NORMAL, now, f"{live.config} is in service"))


def next_retry(failed: Incident) -> datetime:
    """Return when Glassbox tries again to restore the endpoint of a failed incident."""
    wait: timedelta = FIRST_RETRY * (1 << min(failed.retries, 10))
    return failed.since + min(LONGEST_RETRY, wait)


def _describe_refused(incident: Incident, refusal: Refusal, now: datetime, limits: Limits) -> Decision:
    if incident.state is State.FAILED:  # ops were notified; every sweep calls DescribeEndpoint again
        return Decision(incident)
    ends = (incident.deadline, incident.keep_hooked_until) if incident.state is State.HOOKED else ()
    due = max([incident.since, *(end for end in ends if end)])
    if refusal.retryable and not _overdue(due, limits, now):
        return Decision(incident, retry=refusal.reason)
    return _fail(incident, now, notifications.not_seen(incident, refusal.reason))


# ---------------------------------------------------------------- the way back, and an operator


def is_restorable(incident: Incident) -> bool:
    """Return whether the incident is HOOKED, or FAILED and aborted by an operator."""
    return incident.state is State.HOOKED or (incident.state is State.FAILED and incident.aborted)


def restore_reason(incident: Incident, limits: Limits, now: datetime) -> str:
    """Return why to restore the endpoint now, or an empty string."""
    if incident.aborted:
        return "an operator aborted it"
    if incident.keep_hooked_until is not None and now < incident.keep_hooked_until:
        return ""
    if incident.deadline is not None and now >= incident.deadline:
        return f"the time limit is reached with {len(incident.heatmaps)} heat maps"
    if incident.replays is None:  # live traffic must not end the incident before the flagged inputs are sent
        return ""
    if incident.replays:
        if not incident.replays <= incident.heatmaps | incident.refused:
            return ""
        refused = len(incident.replays - incident.heatmaps)
        also = f", except {refused} that cannot be rendered" if refused else ""
        return f"all {len(incident.replays)} replayed requests are explained{also}"
    return f"{limits.max_heatmaps} heat maps exist" if len(incident.heatmaps) >= limits.max_heatmaps else ""


def decide_restore(
    incident: Incident,
    live: EndpointState | Refusal,
    reason: str,
    now: datetime,
    limits: Limits,
    configs: EndpointConfigs,
) -> Decision:
    """Decide whether to restore the endpoint, given a :func:`restore_reason`."""
    if isinstance(live, Refusal):
        return _describe_refused(incident, live, now, limits)
    if _serves(live, incident.hooked_config):
        return _begin_restore(incident, now, reason)
    if live.status == DELETED:  # confirm reports it
        return Decision(incident, outcome=Outcome.NOTHING_TO_RESTORE)
    is_late = incident.deadline is not None and _overdue(incident.deadline, limits, now)
    if live.status in IN_PROGRESS and not is_late:
        return Decision(incident, outcome=Outcome.WAITING)
    if incident.state is State.FAILED or _serves(live, incident.plain_config):
        return Decision(incident, outcome=Outcome.NOTHING_TO_RESTORE)
    return _fail_lost(incident, live, now, configs)


def decide_command(incident: Incident, command: Command, now: datetime) -> Decision:
    """Record an operator's command, which the next decisions follow."""
    if command.action == "abort" and incident.is_open:
        # every abort is answered: where nothing is left to restore, by the notification of the failure once more
        again = _unsent(incident, "failed") if incident.state is State.FAILED else incident
        return Decision(noted(replace(again, aborted=True), now, "an operator: abort"), outcome=Outcome.ABORT)
    if command.action == "extend" and incident.state in (State.SWAPPING, State.HOOKED, State.WATCHING):
        until = max(command.until, incident.keep_hooked_until or command.until)
        what = "watch" if incident.notify_only else "keep the hooked model"
        note = f"an operator: {what} until {until:%Y-%m-%d %H:%M:%S} UTC"
        after = noted(replace(incident, keep_hooked_until=until), now, note)
        return Decision(after, outcome=Outcome.EXTEND)
    return Decision(incident, outcome=Outcome.NO_INCIDENT)


def after_report(incident: Incident, made: Report | Refusal, now: datetime, limits: Limits) -> Decision:
    """End the incident with its report, or without one that cannot be written."""
    if isinstance(made, Report):
        return _closed(incident, now, report=made.uri, findings=made.findings[:FINDINGS_KEPT])
    if made.retryable and not incident.aborted and not _overdue(_report_due(incident), limits, now):
        return Decision(incident, retry=made.reason)
    return _closed(incident, now, unreported=printable(made.reason, _UNREPORTED_CHARACTERS))


def decide_between_incidents(
    endpoint: str, live: EndpointState, configs: EndpointConfigs
) -> tuple[Outcome, Notice | None]:
    """Decide whether an endpoint without an open incident serves a known config."""
    if live.status == DELETED:
        return Outcome.NO_ENDPOINT, None
    if live.status == IN_SERVICE and live.config not in (configs.plain, configs.hooked):
        return Outcome.STALE_TWIN, notifications.stale_twin(endpoint, live, configs)
    return Outcome.NORMAL, None


# ---------------------------------------------------------------- notifications


def is_unclaimed(incident: Incident, key: str, at: datetime) -> bool:
    """Return whether a notification was not sent and no invocation is sending it."""
    claimed = incident.claims.get(key)
    return key not in incident.sent_notifications and (claimed is None or at >= claimed + CLAIM_EXPIRES)


def late_notification(incident: Incident, now: datetime, limits: Limits) -> Notification | None:
    """Return what is due CLAIM_EXPIRES after a change, if its invocation did not send it."""
    if now < incident.since + CLAIM_EXPIRES:
        return None
    if incident.state is State.FAILED:
        return Notification("failed", notifications.failed(incident))
    if not incident.is_open:
        return end_notification(incident)
    if incident.state is State.SWAPPING and not incident.requested:
        return None
    return _opened(incident, limits)


def end_notification(closed: Incident) -> Notification | None:
    """Return the notification of an incident's end, unless it ended as FAILED."""
    if closed.report or closed.unreported:
        return Notification("closed", notifications.closed(closed))
    return None


def _opened(incident: Incident, limits: Limits) -> Notification:
    return Notification("opened", notifications.opened(incident, limits))


# ---------------------------------------------------------------- changes of the incident


def _begin_restore(incident: Incident, now: datetime, reason: str, **changes: Any) -> Decision:
    after = _move(incident, State.RESTORING, now, reason, requested=False, aborted=False, **changes)
    return Decision(_unsent(after, "failed"), again=True)  # a second failure is notified again


def _unsent(incident: Incident, key: str) -> Incident:
    """Forget that a notification was sent, or is being sent: it is sent again."""
    claims = {claim: since for claim, since in incident.claims.items() if claim != key}
    return replace(incident, sent_notifications=incident.sent_notifications - {key}, claims=claims)


def _close(incident: Incident, now: datetime, limits: Limits) -> Decision:
    if _overdue(_report_due(incident), limits, now, 2):  # an invocation that was killed has raised nothing
        return _closed(incident, now, unreported="writing it timed out; see the log of confirm_endpoint")
    return Decision(incident, Action.REPORT)


def _closed(incident: Incident, now: datetime, **changes: Any) -> Decision:
    note = "the plain config is in service"
    if incident.state is State.WATCHING:
        note = "an operator aborted it" if incident.aborted else "the window has ended"
    after = _move(incident, State.NORMAL, now, note, **changes)
    return Decision(after, notification=Notification("closed", notifications.closed(after)))


def _await_update(
    incident: Incident, live: EndpointState, now: datetime, limits: Limits, configs: EndpointConfigs
) -> Decision:
    if live.status in IN_PROGRESS and not _overdue(incident.since, limits, now):
        return Decision(incident)
    return _fail_lost(incident, live, now, configs)


def _fail_lost(incident: Incident, live: EndpointState, now: datetime, configs: EndpointConfigs) -> Decision:
    """Fail because someone else deployed another config, or the endpoint is broken."""
    if live.status == IN_SERVICE:
        return _fail(incident, now, notifications.superseded(incident, live, configs))
    return _fail(incident, now, notifications.broken_endpoint(incident, live))


def _fail_to_restore(incident: Incident, now: datetime, reason: str) -> Decision:
    retry = next_retry(replace(incident, since=now))
    return _fail(incident, now, notifications.not_restored(incident, reason, retry))


def _fail(incident: Incident, now: datetime, notice: Notice) -> Decision:
    changes = {"failure": notice.text[:_FAILURE_CHARACTERS], "headline": notice.subject, "aborted": False}
    after = _move(incident, State.FAILED, now, notice.text.partition("\n")[0], **changes)
    return Decision(after, notification=Notification("failed", notice), outcome=Outcome.FAILED)


def _move(incident: Incident, state: State, now: datetime, note: str, **changes: Any) -> Incident:
    if state not in TRANSITIONS[incident.state]:
        raise ValueError(f"incident {incident.id}: no transition from {incident.state} to {state}")
    return noted(replace(incident, state=state, since=now, **changes), now, f"{state}: {note}")


def _accepted(incident: Incident, config: str, now: datetime) -> Incident:
    """SageMaker accepted UpdateEndpoint; from now on, the update may take ``update_minutes``."""
    return noted(replace(incident, requested=True, since=now), now, f"UpdateEndpoint to {config}")


def noted(incident: Incident, now: datetime, text: str) -> Incident:
    """Add a line to the time line, which keeps its first and last lines."""
    lines = (*incident.timeline, _line(now, text))
    if len(lines) > _LINES_KEPT:
        lines = (*lines[:_FIRST_LINES], "(lines omitted)", *lines[_FIRST_LINES + 1 - _LINES_KEPT :])
    return replace(incident, timeline=lines)


def _line(now: datetime, text: str) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S}Z {printable(text, _LINE_CHARACTERS)}"


def _serves(live: EndpointState, config: str) -> bool:
    # a failed update returns to the old config without an error: InService alone proves nothing
    return live.status == IN_SERVICE and live.config == config


def _overdue(since: datetime, limits: Limits, now: datetime, times: int = 1) -> bool:
    """Whether more time has passed than an update of the endpoint may take."""
    return now > since + times * timedelta(minutes=limits.update_minutes)


def _report_due(incident: Incident) -> datetime:
    """Return when the incident can be closed: at the end of its window in notify-only mode, else now."""
    if incident.state is not State.WATCHING or incident.aborted:
        return incident.since
    return max(incident.cause.window_end, incident.keep_hooked_until or incident.cause.window_end)
