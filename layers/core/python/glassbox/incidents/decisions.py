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

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from glassbox.errors import printable
from glassbox.incidents import notifications
from glassbox.incidents.model import (
    DELETED,
    FINDINGS_KEPT,
    IN_PROGRESS,
    IN_SERVICE,
    MAX_REPLAY_ATTEMPTS,
    TRANSITIONS,
    Command,
    Diagnosed,
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

# The invocation that changes the state sends the notification. After this time, any later invocation does: also where
# the claim of an invocation that crashed is left.
TOPIC, EVENTS = CHANNELS = ("topic", "events")  # that each notification is published to
CLAIM_EXPIRES = timedelta(minutes=1)
# The notification of the beginning waits so long for the diagnosis, so that it can name the cause.
BEGINS_WITHIN = timedelta(minutes=1)
DIAGNOSIS = "diagnosis"  # key of the claim of the invocation that diagnoses
MAX_DIAGNOSES = 2  # invocations that begin one: the first may be killed
REPLAY_INTERVAL = timedelta(minutes=1)
# A hook that has loaded writes its hello object at the first request, and the first trace comes within seconds.
HELLO_DELAY = timedelta(minutes=2)
# a failed restore is retried after 10, 20, 40, … minutes
FIRST_RETRY, LONGEST_RETRY = timedelta(minutes=10), timedelta(hours=4)
DAY = timedelta(days=1)
# An id contains the second of the opening and names a folder, so no two incidents share one.
_ID_INTERVAL = timedelta(seconds=1)
# Markers expire LIFETIME after the opening: replays sent later would be counted as traffic.
_REPLAY_MARGIN = timedelta(hours=1)

# An incident is one DynamoDB item (400 KB at most), and every write of it must succeed: its texts are bounded.
_RELATED_REASON_CHARACTERS = 400
_TIMELINE_LINES, _FIRST_LINES, _TIMELINE_CHARACTERS = 60, 20, 240
_NOTICE_CHARACTERS, _UNREPORTED_CHARACTERS, _WHY_CHARACTERS = 4000, 1000, 300


@dataclass(frozen=True)
class Context:
    """The time and the settings that every decision depends on."""

    now: datetime
    limits: Limits
    configs: EndpointConfigs

    def is_overdue(self, since: datetime, times: int = 1) -> bool:
        """Return whether more time has passed than ``times`` updates of the endpoint may take."""
        return self.now > since + times * timedelta(minutes=self.limits.update_minutes)


class Action(StrEnum):
    """Calls to make before their result is recorded."""

    OPEN = "write the new incident"
    SWAP = "UpdateEndpoint to the hooked config"
    RESTORE = "UpdateEndpoint to the plain config"
    REPLAY = "send the flagged inputs again"
    FIND_HOOK = "look for the hook's hello object"
    REPORT = "write the incident report"


@dataclass(frozen=True)
class CallFailure:
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
    context: Context,
    *,
    diagnose: bool = False,
) -> Decision:
    """Decide whether a violation opens an incident or joins one.

    Args:
        last: the open incident of the endpoint, or the last one.
        past: its closed incidents since :func:`past_since`; only needed while none is open.
        diagnose: a new incident will be diagnosed.

    Returns:
        OPEN if the incident is new; :func:`decide_swap` follows unless there is an outcome.
    """
    if last is not None and last.is_open:
        return _violation_while_open(violation, last, context)
    for incident in past:
        if incident.covers(violation):
            return _join(incident, violation)
    if last is not None and violation.check != OPERATOR_CHECK:  # cooldown and cap do not limit an operator
        cooled_down = last.since + timedelta(minutes=context.limits.cooldown_minutes)
        if context.now < cooled_down:
            notice = notifications.cooling_down(last, violation, cooled_down)
            notification = Notification(f"cooldown {violation.check}", notice)
            return Decision(last, notification=notification, outcome=Outcome.COOLING_DOWN)
        if sum(incident.opened >= context.now - DAY for incident in past) >= context.limits.incidents_per_day:
            notification = Notification("cap", notifications.cap_reached(last, violation, context.limits))
            return Decision(last, notification=notification, outcome=Outcome.CAP_REACHED)
    opened = context.now if last is None else max(context.now, last.opened + _ID_INTERVAL)
    new = _new_incident(violation, opened, context)
    if diagnose:
        new = replace(new, begins_by=opened + BEGINS_WITHIN)
    if new.notify_only:
        return Decision(new, Action.OPEN, _begins(new, context), outcome=Outcome.WATCHING)
    return Decision(new, Action.OPEN)


def _violation_while_open(violation: Violation, incident: Incident, context: Context) -> Decision:
    if violation != incident.cause:
        return _join(incident, violation)
    if incident.state is State.WATCHING:
        return Decision(incident, notification=_begins(incident, context), outcome=Outcome.WATCHING)
    if incident.state is State.SWAPPING and not incident.requested:
        return Decision(incident)
    return Decision(incident, outcome=Outcome.DUPLICATE)


def _join(incident: Incident, violation: Violation) -> Decision:
    related = replace(violation, reason=printable(violation.reason, _RELATED_REASON_CHARACTERS))
    return Decision(incident, related=related, outcome=Outcome.JOINED)


def _new_incident(violation: Violation, opened: datetime, context: Context) -> Incident:
    return Incident(
        endpoint=violation.endpoint,
        id=f"{opened:%Y%m%dt%H%M%S}-{violation.check.replace('_', '-')}",
        opened=opened,
        state=State.SWAPPING if context.limits.react else State.WATCHING,
        since=opened,
        plain_config=context.configs.plain,
        hooked_config=context.configs.hooked,
        cause=violation,
        notify_only=not context.limits.react,
        timeline=(_line(opened, f"opened: {violation.reason}"),),
    )


# ---------------------------------------------------------------- an open incident and its endpoint


def decide(
    incident: Incident,
    live: EndpointState | CallFailure | None,
    context: Context,
) -> Decision:
    """Decide the next step of an open incident, given the state of its endpoint.

    Args:
        live: result of DescribeEndpoint; None in notify-only mode, which leaves the endpoint alone.
    """
    if live is None:
        return _watching(incident, context)
    if isinstance(live, CallFailure):
        return _describe_failed(incident, live, context)
    match incident.state:
        case State.SWAPPING:
            return _swapping(incident, live, context)
        case State.HOOKED:
            return _hooked(incident, live, context)
        case State.RESTORING:
            return _restoring(incident, live, context)
        case State.FAILED:
            return _failed(incident, live, context)
        case _:
            return Decision(incident)


def _watching(incident: Incident, context: Context) -> Decision:
    return _close(incident, context) if context.now >= _report_due(incident) else Decision(incident)


def _swapping(incident: Incident, live: EndpointState, context: Context) -> Decision:
    if _serves(live, incident.hooked_config):
        deadline = context.now + timedelta(minutes=context.limits.explain_minutes)
        after = _move(incident, State.HOOKED, context, "the hooked model is in service", deadline=deadline)
        return Decision(after, notification=_begins(after, context), again=True)
    if not incident.requested:
        return decide_swap(incident, live, context)
    if _serves(live, incident.plain_config):
        return _fail(incident, context, notifications.rolled_back(incident, live))
    return _await_update(incident, live, context)


def decide_swap(
    incident: Incident, live: EndpointState | CallFailure, context: Context, *, opened: bool = False
) -> Decision:
    """Decide whether to swap the endpoint while SageMaker has not accepted UpdateEndpoint yet.

    Args:
        opened: this invocation opened the incident, so it notifies of a pending swap.
    """
    if incident.aborted:
        return _fail(incident, context, notifications.aborted(incident))
    if isinstance(live, CallFailure):
        return after_swap(incident, live, context, opened=opened)
    if live.status != DELETED and live.config not in (incident.plain_config, incident.hooked_config):
        return _fail(incident, context, notifications.foreign_config(incident, live, context.configs))
    if live.status in IN_PROGRESS:
        busy = notifications.endpoint_busy(incident, live, context.limits)
        return _wait_to_swap(incident, f"the endpoint is {live.status}", busy, context, opened=opened)
    if live.status != IN_SERVICE:
        return _fail(incident, context, notifications.broken_endpoint(incident, live))
    if live.config == incident.hooked_config:
        return after_swap(incident, None, context)
    return Decision(incident, Action.SWAP)


def after_swap(
    incident: Incident, failure: CallFailure | None, context: Context, *, opened: bool = False
) -> Decision:
    """Decide what follows UpdateEndpoint to the hooked config, refused or accepted (None)."""
    if failure is None:
        after = _accepted(incident, incident.hooked_config, context)
        return Decision(after, notification=_begins(after, context), outcome=Outcome.SWAPPING)
    refused = notifications.refused(incident, failure.reason)
    if failure.retryable:
        return _wait_to_swap(incident, failure.reason, refused, context, opened=opened)
    return _fail(incident, context, refused)


def _wait_to_swap(
    incident: Incident, reason: str, if_overdue: Notice, context: Context, *, opened: bool
) -> Decision:
    if context.is_overdue(incident.since):
        return _fail(incident, context, if_overdue)
    pending = Notification("opened", notifications.pending(incident, reason, context.limits))
    # another invocation may be between UpdateEndpoint and its record: it sends the notification
    is_due = (opened or context.now >= incident.since + CLAIM_EXPIRES) and _may_begin(incident, context)
    return Decision(incident, notification=pending if is_due else None, outcome=Outcome.PENDING)


def _hooked(incident: Incident, live: EndpointState, context: Context) -> Decision:
    if live.status in IN_PROGRESS:
        return Decision(incident)
    if _serves(live, incident.plain_config):
        after = _move(incident, State.RESTORING, context, "the endpoint serves the plain config already")
        return Decision(after, again=True)
    if not _serves(live, incident.hooked_config):
        return _fail_lost(incident, live, context)
    if incident.aborted:
        return _begin_restore(incident, context, "an operator aborted it")
    is_resend_due = (
        incident.unanswered
        and incident.last_replay_at
        and context.now >= incident.last_replay_at + REPLAY_INTERVAL
    )
    if incident.replays is None or is_resend_due:
        if context.now >= incident.opened + LIFETIME - _REPLAY_MARGIN:
            return after_replay(
                incident, CallFailure("the incident is too old, replay markers expire"), context
            )
        return Decision(incident, Action.REPLAY)
    return Decision(incident, Action.FIND_HOOK if _is_hook_silent(incident, context) else None)


def _is_hook_silent(incident: Incident, context: Context) -> bool:
    """Return whether the endpoint has answered replays for a while, and neither a trace nor a refusal came."""
    answered = (incident.replays or frozenset()) - incident.unanswered
    if not answered or incident.heatmaps or incident.refused or incident.last_replay_at is None:
        return False
    if incident.keep_hooked_until is not None and context.now < incident.keep_hooked_until:
        return False
    return context.now >= incident.last_replay_at + HELLO_DELAY


def after_find_hook(incident: Incident, has_hook: bool | CallFailure, context: Context) -> Decision:
    """Restore the endpoint if its hook did not load."""
    if isinstance(has_hook, CallFailure) or has_hook:  # the time limit holds without an answer of S3
        return Decision(incident)
    return _begin_restore(incident, context, notifications.HOOK_NOT_LOADED)


def after_replay(incident: Incident, sent: Replays | CallFailure, context: Context) -> Decision:
    """Record a replay, whose unanswered requests are sent up to MAX_REPLAY_ATTEMPTS times."""
    if isinstance(sent, CallFailure):
        if sent.retryable:
            return Decision(incident, retry=sent.reason)
        sent = Replays(frozenset(), note=sent.reason)
    names, unanswered, attempts = sent.names, sent.unanswered, incident.replay_attempts + 1
    note = f"replayed {len(names - unanswered)} requests"
    if unanswered and attempts >= MAX_REPLAY_ATTEMPTS:
        note += f", gave up {len(unanswered)} that the endpoint did not answer in {attempts} tries"
        names, unanswered = names - unanswered, frozenset()
    elif unanswered:
        note += f", {len(unanswered)} not answered yet"
    answered = (incident.replays or frozenset()) - incident.unanswered
    after = replace(
        incident,
        replays=answered | names,
        flagged=(incident.flagged & answered) | (sent.flagged & names),
        unanswered=unanswered,
        replay_attempts=attempts,
        last_replay_at=context.now,
    )
    return Decision(with_timeline_line(after, context.now, note + (f": {sent.note}" if sent.note else "")))


def _restoring(incident: Incident, live: EndpointState, context: Context) -> Decision:
    if _serves(live, incident.plain_config):
        return _close(incident, context)
    if _serves(live, incident.hooked_config):
        if not incident.requested:
            return Decision(incident, Action.RESTORE)
        return _fail_to_restore(incident, context, live.failure or "SageMaker rolled the update back")
    return _await_update(incident, live, context)


def after_restore(incident: Incident, failure: CallFailure | None, context: Context) -> Decision:
    """Decide what follows UpdateEndpoint to the plain config, refused or accepted (None)."""
    if failure is None:
        return Decision(_accepted(incident, incident.plain_config, context))
    if failure.retryable and not incident.retries and not context.is_overdue(incident.since):
        return Decision(incident)
    return _fail_to_restore(incident, context, failure.reason)


def _failed(incident: Incident, live: EndpointState, context: Context) -> Decision:
    if live.status != IN_SERVICE:
        return Decision(incident)
    if live.config == incident.hooked_config:
        if incident.deadline is None:
            return _begin_restore(
                incident, context, "the swap completed after it was given up", deadline=context.now
            )
        if context.now >= next_retry(incident):
            retries = incident.retries + 1
            return _begin_restore(incident, context, f"retry {retries}", retries=retries)
        return Decision(incident)
    if not is_sent(incident, "failed", TOPIC):  # ops must get the failure before the incident ends
        return Decision(incident)
    if live.config == incident.plain_config and incident.heatmaps:
        return _close(incident, context)
    return Decision(_move(incident, State.NORMAL, context, f"{live.config} is in service"))


def next_retry(failed: Incident) -> datetime:
    """Return when Glassbox tries again to restore the endpoint of a failed incident."""
    wait: timedelta = FIRST_RETRY * (1 << min(failed.retries, 10))
    return failed.since + min(LONGEST_RETRY, wait)


def _describe_failed(incident: Incident, failure: CallFailure, context: Context) -> Decision:
    if incident.state is State.FAILED:  # ops were notified; every sweep calls DescribeEndpoint again
        return Decision(incident)
    ends = (incident.deadline, incident.keep_hooked_until) if incident.state is State.HOOKED else ()
    due = max([incident.since, *(end for end in ends if end)])
    if failure.retryable and not context.is_overdue(due):
        return Decision(incident, retry=failure.reason)
    return _fail(incident, context, notifications.not_seen(incident, failure.reason))


# ---------------------------------------------------------------- the way back, and an operator


def is_restorable(incident: Incident) -> bool:
    """Return whether the incident is HOOKED, or FAILED and aborted by an operator."""
    return incident.state is State.HOOKED or (incident.state is State.FAILED and incident.aborted)


def restore_reason(incident: Incident, context: Context) -> str:
    """Return why to restore the endpoint now, or an empty string."""
    if incident.aborted:
        return "an operator aborted it"
    if incident.keep_hooked_until is not None and context.now < incident.keep_hooked_until:
        return ""
    if incident.deadline is not None and context.now >= incident.deadline:
        return f"the time limit is reached with {len(incident.heatmaps)} heat maps"
    if incident.replays is None:  # live traffic must not end the incident before the flagged inputs are sent
        return ""
    if incident.replays:
        if not incident.replays <= incident.heatmaps | incident.refused:
            return ""
        refused = len(incident.replays - incident.heatmaps)
        also = f", except {refused} that cannot be rendered" if refused else ""
        return f"all {len(incident.replays)} replayed requests are explained{also}"
    most = context.limits.max_heatmaps
    return f"{most} heat maps exist" if len(incident.heatmaps) >= most else ""


def decide_restore(
    incident: Incident,
    live: EndpointState | CallFailure,
    reason: str,
    context: Context,
) -> Decision:
    """Decide whether to restore the endpoint, given a :func:`restore_reason`."""
    if isinstance(live, CallFailure):
        return _describe_failed(incident, live, context)
    if _serves(live, incident.hooked_config):
        return _begin_restore(incident, context, reason)
    if live.status == DELETED:  # confirm reports it
        return Decision(incident, outcome=Outcome.NOTHING_TO_RESTORE)
    is_late = incident.deadline is not None and context.is_overdue(incident.deadline)
    if live.status in IN_PROGRESS and not is_late:
        return Decision(incident, outcome=Outcome.WAITING)
    if incident.state is State.FAILED or _serves(live, incident.plain_config):
        return Decision(incident, outcome=Outcome.NOTHING_TO_RESTORE)
    return _fail_lost(incident, live, context)


def decide_command(incident: Incident, command: Command, context: Context) -> Decision:
    """Record an operator's command, which the next decisions follow."""
    if command.action == "abort" and incident.is_open:
        # every abort is answered: where nothing is left to restore, by the notification of the failure once more
        again = _notify_again(incident, "failed") if incident.state is State.FAILED else incident
        after = with_timeline_line(replace(again, aborted=True), context.now, "an operator: abort")
        return Decision(after, outcome=Outcome.ABORT)
    if command.action == "extend" and incident.state in (State.SWAPPING, State.HOOKED, State.WATCHING):
        until = max(command.until, incident.keep_hooked_until or command.until)
        what = "watch" if incident.notify_only else "keep the hooked model"
        note = f"an operator: {what} until {until:%Y-%m-%d %H:%M:%S} UTC"
        after = with_timeline_line(replace(incident, keep_hooked_until=until), context.now, note)
        return Decision(after, outcome=Outcome.EXTEND)
    return Decision(incident, outcome=Outcome.NO_INCIDENT)


def after_report(incident: Incident, made: Report | CallFailure, context: Context) -> Decision:
    """End the incident with its report, or without one that cannot be written."""
    if isinstance(made, Report):
        return _closed(
            incident, context, report=made.uri, report_link=made.link, findings=made.findings[:FINDINGS_KEPT]
        )
    if made.retryable and not incident.aborted and not context.is_overdue(_report_due(incident)):
        return Decision(incident, retry=made.reason)
    return _closed(incident, context, unreported=printable(made.reason, _UNREPORTED_CHARACTERS))


def decide_between_incidents(
    endpoint: str, live: EndpointState, configs: EndpointConfigs
) -> tuple[Outcome, Notice | None]:
    """Decide whether an endpoint without an open incident serves the plain config."""
    if live.status == DELETED:
        return Outcome.NO_ENDPOINT, None
    if live.status == IN_SERVICE and live.config not in (configs.plain, configs.hooked):
        return Outcome.STALE_TWIN, notifications.stale_twin(endpoint, live, configs)
    if live.status == IN_SERVICE and live.config == configs.hooked:
        return Outcome.NORMAL, notifications.hooked_without_incident(endpoint, configs)
    return Outcome.NORMAL, None


# ---------------------------------------------------------------- notifications


def is_unclaimed(incident: Incident, key: str, at: datetime) -> bool:
    """Return whether a notification was not sent and no invocation is sending it."""
    claimed = incident.claims.get(key)
    return key not in incident.sent_notifications and (claimed is None or at >= claimed + CLAIM_EXPIRES)


def is_sent(incident: Incident, key: str, channel: str) -> bool:
    """Return whether a channel got a notification."""
    return not incident.sent_notifications.isdisjoint({key, *_partly(key, (channel,))})


def with_sent(incident: Incident, key: str, channels: Collection[str]) -> Incident:
    """Return the incident after these channels got a notification.

    ``sent_notifications`` has the key once all channels got it; until then the key and channel of each that did.
    """
    now = _partly(key, channels)
    by_all = _partly(key, CHANNELS) <= incident.sent_notifications | now
    return replace(incident, sent_notifications=incident.sent_notifications | ({key} if by_all else now))


def _partly(key: str, channels: Collection[str]) -> frozenset[str]:
    return frozenset(f"{key}@{channel}" for channel in channels)


def late_notification(incident: Incident, context: Context) -> Notification | None:
    """Return what is due CLAIM_EXPIRES after a change, if its invocation did not send it."""
    is_late = context.now >= incident.since + CLAIM_EXPIRES
    if incident.state is State.FAILED:
        return Notification("failed", notifications.failed(incident)) if is_late else None
    if not incident.is_open:
        due = (_unannounced(incident), _addendum(incident), end_notification(incident))
        return next(filter(None, due), None) if is_late else None
    if incident.state is State.SWAPPING and not incident.requested:
        return None
    # what waited for the diagnosis was not sent by it: it is due at once
    return _begins(incident, context) if is_late or incident.begins_by else None


def _unannounced(closed: Incident) -> Notification | None:
    """Return the failure that ended an incident and that the event bus refused."""
    if is_sent(closed, "failed", EVENTS) or not is_sent(closed, "failed", TOPIC) or end_notification(closed):
        return None
    return Notification("failed", notifications.failed(closed))


def end_notification(closed: Incident) -> Notification | None:
    """Return the notification of an incident's end, unless it ended as FAILED."""
    if closed.report or closed.unreported:
        return Notification("closed", notifications.closed(closed))
    return None


def _begins(incident: Incident, context: Context) -> Notification | None:
    if not _may_begin(incident, context):
        return None
    return Notification("opened", notifications.opened(incident, context.limits))


def _may_begin(incident: Incident, context: Context) -> bool:
    return not incident.begins_by or bool(incident.why) or context.now >= incident.begins_by


# ---------------------------------------------------------------- the diagnosis


def with_last_update(
    decision: Decision, live: EndpointState | CallFailure, last: Incident | None
) -> Decision:
    """Return the decision with the time of the endpoint's last update in its new incident.

    The restore of the last incident does not count as one. An endpoint that does not answer delays nothing.
    """
    if isinstance(live, CallFailure) or live.modified is None:
        return decision
    if last is not None and live.modified <= last.since:
        return decision
    return replace(decision, incident=replace(decision.incident, endpoint_modified=live.modified))


def wants_diagnosis(incident: Incident, violation: Violation) -> bool:
    """Return whether this violation's message has to request a diagnosis."""
    return (
        incident.cause == violation
        and incident.begins_by is not None
        and not incident.diagnosis_attempts
        and not incident.why
    )


def begin_diagnosis(incident: Incident, expires: timedelta, context: Context) -> Decision | None:
    """Claim the diagnosis of an incident, open or closed.

    Returns None if another invocation has made it or is making it, or the incident is too old.

    Args:
        expires: after this time, an invocation that began it has ended.
        context: its time is the same in every try of an invocation.
    """
    claimed = incident.claims.get(DIAGNOSIS)
    if claimed == context.now:  # this invocation's own write, whose response was lost
        return Decision(incident)
    is_running = claimed is not None and context.now < claimed + expires
    is_too_old = context.now >= incident.opened + LIFETIME - _REPLAY_MARGIN
    if incident.why or incident.diagnosis_attempts >= MAX_DIAGNOSES or is_running or is_too_old:
        return None
    claims = {**incident.claims, DIAGNOSIS: context.now}
    return Decision(replace(incident, claims=claims, diagnosis_attempts=incident.diagnosis_attempts + 1))


def after_diagnosis(incident: Incident, made: Diagnosed, context: Context) -> Decision:
    """Record a diagnosis, and notify of what waited for it.

    Of an open incident that is its beginning, of an ended one the addendum.
    """
    claims = {key: since for key, since in incident.claims.items() if key != DIAGNOSIS}
    why = printable(made.why, _WHY_CHARACTERS)
    after = replace(
        incident, claims=claims, diagnosis=made.uri, why=why, is_diagnosed_late=not incident.is_open
    )
    after = with_timeline_line(after, context.now, f"diagnosed: {why}")
    notification = None
    if not after.is_open:
        notification = _addendum(after)
    elif after.state is not State.FAILED and (after.requested or after.state is not State.SWAPPING):
        notification = _begins(after, context)
    return Decision(after, notification=notification, outcome=Outcome.DIAGNOSED)


def _addendum(closed: Incident) -> Notification | None:
    """Return the notification of a diagnosis that came after the incident's end was notified."""
    is_end_sent = is_sent(closed, "closed", TOPIC) or end_notification(closed) is None
    if not closed.is_diagnosed_late or not is_end_sent:
        return None
    return Notification("diagnosed", notifications.diagnosed(closed))


# ---------------------------------------------------------------- changes of the incident


def _begin_restore(incident: Incident, context: Context, reason: str, **changes: Any) -> Decision:
    after = _move(incident, State.RESTORING, context, reason, requested=False, aborted=False, **changes)
    return Decision(_notify_again(after, "failed"), again=True)  # a second failure is notified again


def _notify_again(incident: Incident, key: str) -> Incident:
    """Forget that a notification was sent, or is being sent: it is sent again."""
    claims = {claim: since for claim, since in incident.claims.items() if claim != key}
    sent = incident.sent_notifications - {key, *_partly(key, CHANNELS)}
    return replace(incident, sent_notifications=sent, claims=claims)


def _close(incident: Incident, context: Context) -> Decision:
    if context.is_overdue(_report_due(incident), 2):  # an invocation that was killed has raised nothing
        return _closed(incident, context, unreported="writing it timed out; see the log of confirm_endpoint")
    return Decision(incident, Action.REPORT)


def _closed(incident: Incident, context: Context, **changes: Any) -> Decision:
    note = "the plain config is in service"
    if incident.state is State.WATCHING:
        note = "an operator aborted it" if incident.aborted else "the window has ended"
    after = _move(incident, State.NORMAL, context, note, **changes)
    return Decision(after, notification=Notification("closed", notifications.closed(after)))


def _await_update(incident: Incident, live: EndpointState, context: Context) -> Decision:
    if live.status in IN_PROGRESS and not context.is_overdue(incident.since):
        return Decision(incident)
    return _fail_lost(incident, live, context)


def _fail_lost(incident: Incident, live: EndpointState, context: Context) -> Decision:
    """Fail because someone else deployed another config, or the endpoint is broken."""
    if live.status == IN_SERVICE:
        return _fail(incident, context, notifications.superseded(incident, live, context.configs))
    return _fail(incident, context, notifications.broken_endpoint(incident, live))


def _fail_to_restore(incident: Incident, context: Context, reason: str) -> Decision:
    retry = next_retry(replace(incident, since=context.now))
    return _fail(incident, context, notifications.not_restored(incident, reason, retry))


def _fail(incident: Incident, context: Context, notice: Notice) -> Decision:
    changes = {"failure": notice.text[:_NOTICE_CHARACTERS], "headline": notice.subject, "aborted": False}
    after = _move(incident, State.FAILED, context, notice.text.partition("\n")[0], **changes)
    return Decision(after, notification=Notification("failed", notice), outcome=Outcome.FAILED)


def _move(incident: Incident, state: State, context: Context, note: str, **changes: Any) -> Incident:
    if state not in TRANSITIONS[incident.state]:
        raise ValueError(f"incident {incident.id}: no transition from {incident.state} to {state}")
    after = replace(incident, state=state, since=context.now, **changes)
    return with_timeline_line(after, context.now, f"{state}: {note}")


def _accepted(incident: Incident, config: str, context: Context) -> Incident:
    """SageMaker accepted UpdateEndpoint; from now on, the update may take ``update_minutes``."""
    after = replace(incident, requested=True, since=context.now)
    return with_timeline_line(after, context.now, f"UpdateEndpoint to {config}")


def with_timeline_line(incident: Incident, now: datetime, text: str) -> Incident:
    """Add a line to the time line, which keeps its first and last lines."""
    lines = (*incident.timeline, _line(now, text))
    if len(lines) > _TIMELINE_LINES:
        lines = (*lines[:_FIRST_LINES], "(lines omitted)", *lines[_FIRST_LINES + 1 - _TIMELINE_LINES :])
    return replace(incident, timeline=lines)


def _line(now: datetime, text: str) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S}Z {printable(text, _TIMELINE_CHARACTERS)}"


def _serves(live: EndpointState, config: str) -> bool:
    # a failed update returns to the old config without an error: InService alone proves nothing
    return live.status == IN_SERVICE and live.config == config


def _report_due(incident: Incident) -> datetime:
    """Return when the incident can be closed: at the end of its window in notify-only mode, else now."""
    if incident.state is not State.WATCHING or incident.aborted:
        return incident.since
    return max(incident.cause.window_end, incident.keep_hooked_until or incident.cause.window_end)
