"""Carry out the decisions on an incident: load, describe the endpoint, decide, act, save, notify once.

:mod:`glassbox.incidents.decisions` is the state machine. The entry points are :func:`swap` (a violation),
:func:`confirm` (the endpoint changed its state), :func:`restore` (a heat map) and :func:`apply_command` (an operator).
A scheduled sweep calls confirm and restore as well, so a lost event only delays the next step. Each may be called
twice, late or in any order: it describes the endpoint before every UpdateEndpoint, and records a call after AWS has
accepted it.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ParamSpec, TypeVar

from glassbox.errors import BadInputError, ConflictError, GlassboxError, RetryableError
from glassbox.incidents import decisions, notifications
from glassbox.incidents.decisions import (
    CLAIM_EXPIRES,
    EVENTS,
    TOPIC,
    Action,
    CallFailure,
    Context,
    Decision,
    Notification,
)
from glassbox.incidents.messages import NOTIFICATION_DETAIL_TYPE, facts_of
from glassbox.incidents.model import (
    Command,
    EndpointConfigs,
    EndpointState,
    Incident,
    Limits,
    Outcome,
    Replays,
    Report,
)
from glassbox.incidents.notifications import Notice
from glassbox.ports import Endpoint, EventBus, IncidentsStore, Topic
from glassbox.violation import OPERATOR_CHECK, VIOLATION_SOURCE, Violation

P = ParamSpec("P")
T = TypeVar("T")
_ATTEMPTS = 5
_UNTIL_SENT = (Outcome.COOLING_DOWN, Outcome.CAP_REACHED)


@dataclass(frozen=True)
class IncidentDependencies:
    """Dependencies of the incident handlers; ``clock`` returns the present time, UTC."""

    configs: EndpointConfigs
    limits: Limits
    endpoint: Endpoint
    incidents: IncidentsStore
    notices: Topic
    events: EventBus
    clock: Callable[[], datetime]

    def context(self, now: datetime) -> Context:
        """Return what every decision at this time depends on."""
        return Context(now, self.limits, self.configs)

    def channels(self) -> Mapping[str, Callable[[Notice], None]]:
        """Return what publishes a notice by channel, each of which must get every notice."""
        return {TOPIC: self.notices.publish, EVENTS: self._put_event}

    def _put_event(self, notice: Notice) -> None:
        self.events.put(VIOLATION_SOURCE, NOTIFICATION_DETAIL_TYPE, facts_of(notice))


def retry_on_conflict(handle: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """Re-read the incident and retry after a concurrent update."""

    @functools.wraps(handle)
    def retry(*args: P.args, **kwargs: P.kwargs) -> Outcome:
        conflict = None
        for _ in range(_ATTEMPTS):
            try:
                return handle(*args, **kwargs)
            except ConflictError as error:
                conflict = error
        raise RetryableError(f"gave up after {_ATTEMPTS} concurrent updates: {conflict}") from conflict

    return retry


@retry_on_conflict
def swap(
    violation: Violation,
    dependencies: IncidentDependencies,
    now: datetime,
    *,
    request_diagnosis: Callable[[Incident], None] | None = None,
) -> Outcome:
    """Open an incident for a violation or join one, and swap the endpoint to the hooked config.

    Args:
        request_diagnosis: queues the diagnosis of a new incident; None makes none. A failure does not delay the
            swap.

    Returns:
        SWAPPING (UpdateEndpoint was accepted), WATCHING (notify-only), PENDING (an update is in progress, or AWS
        refused it: the next state change or sweep retries), JOINED (an incident is open, or one has handled
        this window), COOLING_DOWN, CAP_REACHED, PAUSED, DUPLICATE or FAILED.

    Raises:
        RetryableError: the table, the topic or the queue of the diagnosis does not answer.
    """
    incidents, context = dependencies.incidents, dependencies.context(now)
    last = incidents.current(violation.endpoint)
    past: Sequence[Incident] = ()
    if last is None or not last.is_open:
        past = incidents.past(violation.endpoint, decisions.past_since(violation, now))
    diagnose = request_diagnosis is not None
    decision = decisions.decide_violation(violation, last, past, context, diagnose=diagnose)
    opened = decision.action is Action.OPEN
    if opened and _is_paused(violation, dependencies, now):
        return Outcome.PAUSED
    if opened:
        if diagnose:
            live = _attempt(lambda: dependencies.endpoint.describe(violation.endpoint))
            decision = decisions.with_last_update(decision, live, last)
        decision = _open(last, decision, dependencies, context)
    incident, not_requested = decision.incident, None
    if request_diagnosis and decisions.wants_diagnosis(incident, violation):
        not_requested = _attempt(lambda: request_diagnosis(incident))
    if decision.outcome is None:
        live = _attempt(lambda: dependencies.endpoint.describe(incident.endpoint))
        decision = decisions.decide_swap(incident, live, context, opened=opened)
        if decision.action:
            decision = _update_endpoint(decision, dependencies, context, opened=opened)
    incident = record(incident, decision, dependencies)
    if not_requested:  # every retry of the message requests it again
        raise RetryableError(
            f"incident {incident.id}: its diagnosis was not requested: {not_requested.reason}"
        )
    note = decision.notification
    # The sweep sends no notification of these outcomes again, so the message is retried until it was sent.
    if note and decision.outcome in _UNTIL_SENT and note.key not in incident.sent_notifications:
        raise RetryableError(f"incident {incident.id}: another invocation is sending {note.key!r}")
    return decision.outcome or Outcome(decision.incident.state)


@retry_on_conflict
def confirm(
    endpoint: str,
    dependencies: IncidentDependencies,
    now: datetime,
    *,
    replay: Callable[[Incident], Replays],
    has_hook: Callable[[Incident], bool],
    report: Callable[[Incident], Report],
) -> Outcome:
    """Verify what the endpoint serves, and take the next step of its incident.

    Args:
        replay: sends the flagged inputs to the hooked model again.
        has_hook: returns whether the hook has loaded in the hooked model.
        report: writes the incident report.

    Returns:
        The state of the incident; STALE_TWIN (the endpoint serves neither config) or NO_ENDPOINT without one.

    Raises:
        RetryableError: AWS does not answer.
    """
    context = dependencies.context(now)
    incident = dependencies.incidents.current(endpoint)
    if incident is None or not incident.is_open:
        return _between_incidents(endpoint, incident, dependencies, context)

    def act(decision: Decision) -> Decision:
        incident = decision.incident
        if decision.action is Action.REPLAY:
            return decisions.after_replay(incident, _attempt(lambda: replay(incident)), context)
        if decision.action is Action.FIND_HOOK:
            return decisions.after_find_hook(incident, _attempt(lambda: has_hook(incident)), context)
        if decision.action is Action.REPORT:
            return decisions.after_report(incident, _attempt(lambda: report(incident)), context)
        return _update_endpoint(decision, dependencies, context)

    live = None if incident.notify_only else _attempt(lambda: dependencies.endpoint.describe(endpoint))
    decision = decisions.decide(incident, live, context)
    incident = _carry_out(incident, decision, live, dependencies, context, act)
    # after the work: a topic that refuses must not delay it
    late = decisions.late_notification(incident, context)
    return Outcome(notify_once(incident, late, dependencies).state)


@retry_on_conflict
def restore(endpoint: str, dependencies: IncidentDependencies, now: datetime) -> Outcome:
    """Restore the plain config when there are enough heat maps or the time limit is reached.

    Returns:
        RESTORING, or why not: WAITING, NOTHING_TO_RESTORE or FAILED.

    Raises:
        RetryableError: the table, the topic or SageMaker does not answer.
    """
    incident = dependencies.incidents.current(endpoint)
    if incident is None or not decisions.is_restorable(incident):
        return Outcome.NOTHING_TO_RESTORE
    context = dependencies.context(now)
    reason = decisions.restore_reason(incident, context)
    if not reason:
        return Outcome.WAITING
    live = _attempt(lambda: dependencies.endpoint.describe(endpoint))
    decision = decisions.decide_restore(incident, live, reason, context)
    act = functools.partial(_update_endpoint, dependencies=dependencies, context=context)
    incident = _carry_out(incident, decision, live, dependencies, context, act)
    return decision.outcome or Outcome(incident.state)


@retry_on_conflict
def apply_command(command: Command, dependencies: IncidentDependencies, now: datetime) -> Outcome:
    """Record an operator's command, which :func:`restore` and :func:`confirm` carry out.

    ``abort`` restores the endpoint and ends the incident, if need be without a report. ``extend`` keeps the hooked
    model, or watches, until the given time.

    Returns:
        ABORT, EXTEND or NO_INCIDENT.
    """
    incident = dependencies.incidents.current(command.endpoint)
    if incident is None:
        return Outcome.NO_INCIDENT
    decision = decisions.decide_command(incident, command, dependencies.context(now))
    record(incident, decision, dependencies)
    return decision.outcome or Outcome.NO_INCIDENT


def _is_paused(violation: Violation, dependencies: IncidentDependencies, now: datetime) -> bool:
    """Return whether a pause keeps a violation from opening an incident, and notify of it once for each check."""
    until = dependencies.incidents.paused_until(violation.endpoint)
    if violation.check == OPERATOR_CHECK or until is None or now >= until:
        return False
    what = f"paused {until:%Y-%m-%dT%H:%M:%S} {violation.check}"
    report_once(violation.endpoint, what, notifications.paused(violation, until), dependencies)
    return True


def _open(
    last: Incident | None, decision: Decision, dependencies: IncidentDependencies, context: Context
) -> Decision:
    """Notify of the end of the last incident, then write the new one over it."""
    if last is not None:
        end = decisions.end_notification(last)
        sent = _attempt(lambda: notify_once(last, end, dependencies))
        reason = ""
        if isinstance(sent, CallFailure):  # a topic that refuses must not delay a swap
            reason = sent.reason
        elif end and end.key not in sent.sent_notifications:
            reason = "another invocation was sending it"  # and may have crashed
        if reason:
            note = f"the end of incident {last.id} was not sent: {reason}"
            decision = replace(
                decision, incident=decisions.with_timeline_line(decision.incident, context.now, note)
            )
    dependencies.incidents.open(decision.incident, last)
    return decision


def _between_incidents(
    endpoint: str, last: Incident | None, dependencies: IncidentDependencies, context: Context
) -> Outcome:
    if last is not None:
        last = notify_once(last, decisions.late_notification(last, context), dependencies)
    if not dependencies.limits.react:
        return Outcome.NORMAL
    live = dependencies.endpoint.describe(endpoint)
    outcome, notice = decisions.decide_between_incidents(endpoint, live, dependencies.configs)
    if notice and outcome is Outcome.STALE_TWIN:
        report_once(endpoint, live.config, notice, dependencies)
    elif notice and dependencies.incidents.current(endpoint) == last:  # no incident has swapped it meanwhile
        report_once(endpoint, f"{live.config}#{last.id if last else ''}", notice, dependencies)
    return outcome


def _carry_out(
    incident: Incident,
    decision: Decision,
    live: EndpointState | CallFailure | None,
    dependencies: IncidentDependencies,
    context: Context,
    act: Callable[[Decision], Decision],
) -> Incident:
    """Act, save and notify as decided, and decide again in a new state that has work to do."""
    while True:
        if decision.action:
            decision = act(decision)
        if decision.retry:
            raise RetryableError(decision.retry)
        incident = record(incident, decision, dependencies)
        # another invocation may have moved the incident while this one published: `live` is then too old
        if not decision.again or incident.state is not decision.incident.state:
            return incident
        decision = decisions.decide(incident, live, context)


def _update_endpoint(
    decision: Decision, dependencies: IncidentDependencies, context: Context, *, opened: bool = False
) -> Decision:
    incident, update = decision.incident, dependencies.endpoint.update
    if decision.action is Action.SWAP:
        answer = _attempt(lambda: update(incident.endpoint, incident.hooked_config, guarded=True))
        return decisions.after_swap(incident, answer, context, opened=opened)
    answer = _attempt(lambda: update(incident.endpoint, incident.plain_config, guarded=False))
    return decisions.after_restore(incident, answer, context)


def _attempt(call: Callable[[], T]) -> T | CallFailure:
    try:
        return call()
    except BadInputError as error:
        return CallFailure(str(error))
    except RetryableError as error:
        return CallFailure(str(error), retryable=True)


def notify_once(
    incident: Incident, notification: Notification | None, dependencies: IncidentDependencies
) -> Incident:
    """Claim a notification, publish it to each channel, and record it as sent.

    A channel that refuses delays no other: a later invocation publishes to that channel alone.

    Concurrent invocations find the claim and publish nothing. After a crash, a later invocation takes over the stale
    claim and publishes: ops may get that message twice, and never miss it.
    """
    return record(incident, Decision(incident, notification=notification), dependencies)


def record(before: Incident, decision: Decision, dependencies: IncidentDependencies) -> Incident:
    """Save a decision and claim its notification in one write, then publish the notification."""
    if decision.related:
        dependencies.incidents.attach(before, decision.related)
    after, notification, at = decision.incident, decision.notification, dependencies.clock()
    if notification and not decisions.is_unclaimed(after, notification.key, at):
        notification = None
    if notification:
        after = replace(after, claims={**after.claims, notification.key: at})
    if after != before:
        after = _save(before, after, dependencies)
    if notification is None:
        return after
    sent, refusals = set(), []
    for channel, publish in dependencies.channels().items():
        if decisions.is_sent(after, notification.key, channel):
            continue
        try:
            publish(notification.notice)
            sent.add(channel)
        except GlassboxError as error:  # the next invocation may publish to this channel at once
            refusals.append(error)
    after = _release(after, notification.key, at, dependencies, sent)
    if refusals:
        raise _combined(refusals)
    return after


def _combined(errors: Sequence[GlassboxError]) -> GlassboxError:
    """Return one error for all: a retry may succeed if one of them is retryable."""
    if len(errors) == 1:
        return errors[0]
    kind = RetryableError if any(isinstance(error, RetryableError) for error in errors) else BadInputError
    return kind("; ".join(map(str, errors)))


def _release(
    incident: Incident, key: str, at: datetime, dependencies: IncidentDependencies, sent: Collection[str]
) -> Incident:
    """Record the channels that got the notification, and remove the claim that was made ``at`` this time.

    Another invocation may have replaced the claim: then it publishes, and nothing is recorded.
    """
    for _ in range(_ATTEMPTS):
        if incident.claims.get(key) != at:
            return incident
        claims = {claim: since for claim, since in incident.claims.items() if claim != key}
        try:
            after = decisions.with_sent(replace(incident, claims=claims), key, sent)
            return _save(incident, after, dependencies)
        except ConflictError:
            current = dependencies.incidents.current(incident.endpoint)
            if current is None or current.id != incident.id:
                return incident
            incident = current
    raise RetryableError(f"incident {incident.id}: gave up after {_ATTEMPTS} concurrent updates")


def _save(before: Incident, after: Incident, dependencies: IncidentDependencies) -> Incident:
    after = replace(after, revision=before.revision + 1)
    dependencies.incidents.save(before, after)
    return after


def report_once(endpoint: str, what: str, notice: Notice, dependencies: IncidentDependencies) -> None:
    """Publish a notification without an incident once to each channel, see :func:`notify_once`.

    Args:
        what: it is about, the same at every call.
    """
    incidents, at, refusals = dependencies.incidents, dependencies.clock(), []
    for channel, publish in dependencies.channels().items():
        report = what if channel == TOPIC else f"{what}@{channel}"
        if not incidents.claim_report(endpoint, report, at, at - CLAIM_EXPIRES):
            continue
        try:
            publish(notice)
        except GlassboxError as error:  # the next invocation may publish to this channel at once
            incidents.claim_report(endpoint, report, at - 2 * CLAIM_EXPIRES, at)
            refusals.append(error)
        else:
            incidents.record_report(endpoint, report)
    if refusals:
        raise _combined(refusals)
