"""The state machine of an incident as tables: what each decision function returns, without dependencies or fakes.

Each row of a table is a set of situations and the decision in all of them. A test proves that the rows of the main
table cover every situation exactly once.
"""

import ast
import itertools
import operator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from glassbox.incidents import decisions
from glassbox.incidents.decisions import Action, CallFailure, Context
from glassbox.incidents.model import (
    DELETED,
    MAX_REPLAY_ATTEMPTS,
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
from glassbox.violation import Violation

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
CONFIGS = EndpointConfigs("plain", "hooked", "glassbox")
LIMITS = Limits(
    explain_minutes=15, update_minutes=60, cooldown_minutes=30, incidents_per_day=3, max_heatmaps=6
)


def at(now):
    """Return the context of a decision at this time."""
    return Context(now, LIMITS, CONFIGS)


CAUSE = Violation("traffic-signs", "class_share", NOW - HOUR, NOW + HOUR, "class 14: 80 %", "AllTraffic", 14)
IDS = frozenset({"a", "b"})


def incident(state, **changes):
    """Return an incident that entered its state at NOW."""
    return Incident(
        "traffic-signs",
        "20261123t102105-class-share",
        NOW - HOUR,
        State(state),
        NOW,
        "plain",
        "hooked",
        CAUSE,
        **changes,
    )


def rows(table):
    """Return a table's rows as dictionaries by column name."""
    head, *body = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    assert all(len(row) == len(head) for row in body)
    return [pytest.param(dict(zip(head, row, strict=True)), id=" ".join(row[:4])) for row in body]


COMPARE = {"<": operator.lt, "≤": operator.le, ">": operator.gt, "≥": operator.ge}


def times(row):
    """Return the TIMES that a row's column ``minutes`` names, as ``any``, ``< 1`` or ``≥ 1, ≤ 60``."""
    conditions = [] if row["minutes"] == "any" else [part.split() for part in row["minutes"].split(", ")]
    return [t for t in TIMES if all(COMPARE[sign](t, int(n) * MINUTE) for sign, n in conditions)]


KEYS = {"FAILED": "failed", "NORMAL": "closed"}  # of the notification of entering a state; else "opened"


def headline(decision):
    """Return the headline of the subject of a decision's notification."""
    if decision.notification is None:
        return ""
    assert decision.notification.key == KEYS.get(decision.incident.state, "opened")
    return decision.notification.notice.subject.removeprefix("Glassbox traffic-signs: ")


def assert_decided(decision, row, status=""):
    """Compare a decision with the last columns of a row; the headline begins as in the row."""
    assert decision.incident.state.value == row["state"]
    assert (decision.action.name if decision.action else "") == row.get("action", "")
    expected = row["notification"].replace("STATUS", status)
    assert headline(decision)[: len(expected) or None] == expected


# ---------------------------------------------------------------- an open incident and its endpoint

FAILED = {"deadline": NOW, "sent_notifications": frozenset({"failed"})}
INCIDENTS = {
    "SWAPPING": incident("SWAPPING"),
    "SWAPPING, aborted": incident("SWAPPING", aborted=True),
    "SWAPPING, accepted": incident("SWAPPING", requested=True),
    "HOOKED": incident("HOOKED"),
    "HOOKED, replayed": incident("HOOKED", replays=IDS, last_replay_at=NOW),
    "HOOKED, traced": incident("HOOKED", replays=IDS, last_replay_at=NOW, heatmaps=frozenset("a")),
    "HOOKED, refused": incident("HOOKED", replays=IDS, last_replay_at=NOW, refused=frozenset("a")),
    "HOOKED, no answer": incident("HOOKED", replays=IDS, unanswered=IDS, last_replay_at=NOW),
    "HOOKED, no inputs": incident("HOOKED", replays=frozenset(), last_replay_at=NOW),
    "HOOKED, extended": incident(
        "HOOKED", replays=IDS, last_replay_at=NOW, keep_hooked_until=NOW + 10 * MINUTE
    ),
    "HOOKED, unanswered": incident("HOOKED", replays=IDS, unanswered=frozenset("a"), last_replay_at=NOW),
    "HOOKED, aborted": incident("HOOKED", aborted=True),
    "RESTORING": incident("RESTORING"),
    "RESTORING, accepted": incident("RESTORING", requested=True),
    "FAILED": incident("FAILED", **FAILED),
    "FAILED, explained": incident("FAILED", **FAILED, heatmaps=IDS),
    "FAILED, never hooked": incident("FAILED", **FAILED | {"deadline": None}),
    "FAILED, not notified": incident("FAILED", deadline=NOW, heatmaps=IDS),
    "FAILED, twice": incident("FAILED", **FAILED, retries=1),
}
STATUSES = {
    "InService": ["InService"],
    "in progress": ["Creating", "Updating", "SystemUpdating", "RollingBack"],
    "broken": ["Failed", "OutOfService", "UpdateRollbackFailed", "Deleting"],
    "Deleted": [DELETED],
}
GROUPS = {
    "any": {"plain", "hooked", "other"},
    "ours": {"plain", "hooked"},
    "not hooked": {"plain", "other"},
    "not in service": {"in progress", "broken", "Deleted"},
    "down": {"broken", "Deleted"},
}
# the time in the state: each limit, and one second before or after it
TIMES = [
    *(timedelta(0), MINUTE - SECOND, MINUTE, 2 * MINUTE - SECOND, 2 * MINUTE),
    *(10 * MINUTE - SECOND, 10 * MINUTE, 20 * MINUTE - SECOND, 20 * MINUTE),
    *(HOUR, HOUR + SECOND, 2 * HOUR, 2 * HOUR + SECOND),
]

DECIDE = """
incident             | endpoint       | serves     | minutes   | state     | action  | notification
SWAPPING             | InService      | plain      | any       | SWAPPING  | SWAP    |
SWAPPING             | InService      | hooked     | any       | HOOKED    |         | violation, swapping
SWAPPING             | in progress    | ours       | < 1       | SWAPPING  |         |
SWAPPING             | in progress    | ours       | ≥ 1, ≤ 60 | SWAPPING  |         | violation, swap pending
SWAPPING             | in progress    | ours       | > 60      | FAILED    |         | violation, NOT swapped: endpoint
SWAPPING             | broken         | ours       | any       | FAILED    |         | the endpoint is STATUS
SWAPPING             | Deleted        | any        | any       | FAILED    |         | the endpoint is STATUS
SWAPPING             | InService      | other      | any       | FAILED    |         | violation, NOT swapped: unknown
SWAPPING             | in progress    | other      | any       | FAILED    |         | violation, NOT swapped: unknown
SWAPPING             | broken         | other      | any       | FAILED    |         | violation, NOT swapped: unknown
SWAPPING, aborted    | InService      | hooked     | any       | HOOKED    |         | violation, swapping
SWAPPING, aborted    | InService      | not hooked | any       | FAILED    |         | aborted by an operator
SWAPPING, aborted    | not in service | any        | any       | FAILED    |         | aborted by an operator
SWAPPING, accepted   | InService      | hooked     | any       | HOOKED    |         | violation, swapping
SWAPPING, accepted   | InService      | plain      | any       | FAILED    |         | the hooked model did not start
SWAPPING, accepted   | InService      | other      | any       | FAILED    |         | incident closed: a new config
SWAPPING, accepted   | in progress    | any        | ≤ 60      | SWAPPING  |         |
SWAPPING, accepted   | in progress    | any        | > 60      | FAILED    |         | the endpoint is STATUS
SWAPPING, accepted   | down           | any        | any       | FAILED    |         | the endpoint is STATUS
HOOKED               | InService      | hooked     | any       | HOOKED    | REPLAY  |
HOOKED, replayed     | InService      | hooked     | < 2       | HOOKED    |         |
HOOKED, replayed     | InService      | hooked     | ≥ 2       | HOOKED    | FIND_HOOK |
HOOKED, traced       | InService      | hooked     | any       | HOOKED    |         |
HOOKED, refused      | InService      | hooked     | any       | HOOKED    |         |
HOOKED, no answer    | InService      | hooked     | < 1       | HOOKED    |         |
HOOKED, no answer    | InService      | hooked     | ≥ 1       | HOOKED    | REPLAY  |
HOOKED, no inputs    | InService      | hooked     | any       | HOOKED    |         |
HOOKED, extended     | InService      | hooked     | < 10      | HOOKED    |         |
HOOKED, extended     | InService      | hooked     | ≥ 10      | HOOKED    | FIND_HOOK |
HOOKED, unanswered   | InService      | hooked     | < 1       | HOOKED    |         |
HOOKED, unanswered   | InService      | hooked     | ≥ 1       | HOOKED    | REPLAY  |
HOOKED, aborted      | InService      | hooked     | any       | RESTORING |         |
HOOKED*              | InService      | plain      | any       | RESTORING |         |
HOOKED*              | InService      | other      | any       | FAILED    |         | incident closed: a new config
HOOKED*              | in progress    | any        | any       | HOOKED    |         |
HOOKED*              | down           | any        | any       | FAILED    |         | the endpoint is STATUS
RESTORING            | InService      | hooked     | any       | RESTORING | RESTORE |
RESTORING, accepted  | InService      | hooked     | any       | FAILED    |         | NOT restored
RESTORING*           | InService      | plain      | ≤ 120     | RESTORING | REPORT  |
RESTORING*           | InService      | plain      | > 120     | NORMAL    |         | restored, NO report
RESTORING*           | InService      | other      | any       | FAILED    |         | incident closed: a new config
RESTORING*           | in progress    | any        | ≤ 60      | RESTORING |         |
RESTORING*           | in progress    | any        | > 60      | FAILED    |         | the endpoint is STATUS
RESTORING*           | down           | any        | any       | FAILED    |         | the endpoint is STATUS
FAILED*              | not in service | any        | any       | FAILED    |         |
FAILED               | InService      | hooked     | < 10      | FAILED    |         |
FAILED               | InService      | hooked     | ≥ 10      | RESTORING |         |
FAILED, explained    | InService      | hooked     | < 10      | FAILED    |         |
FAILED, explained    | InService      | hooked     | ≥ 10      | RESTORING |         |
FAILED, not notified | InService      | hooked     | < 10      | FAILED    |         |
FAILED, not notified | InService      | hooked     | ≥ 10      | RESTORING |         |
FAILED, twice        | InService      | hooked     | < 20      | FAILED    |         |
FAILED, twice        | InService      | hooked     | ≥ 20      | RESTORING |         |
FAILED, never hooked | InService      | hooked     | any       | RESTORING |         |
FAILED, not notified | InService      | not hooked | any       | FAILED    |         |
FAILED, explained    | InService      | plain      | ≤ 120     | FAILED    | REPORT  |
FAILED, explained    | InService      | plain      | > 120     | NORMAL    |         | restored, NO report
FAILED, explained    | InService      | other      | any       | NORMAL    |         |
FAILED               | InService      | not hooked | any       | NORMAL    |         |
FAILED, twice        | InService      | not hooked | any       | NORMAL    |         |
FAILED, never hooked | InService      | not hooked | any       | NORMAL    |         |
"""

SITUATIONS = [
    (name, kind, status, serves, time)
    for name, kind, serves, time in itertools.product(
        INCIDENTS, STATUSES, ("plain", "hooked", "other"), TIMES
    )
    for status in STATUSES[kind]
]


def matches(row, name, kind, serves, time):
    return (
        (row["incident"] == name or (row["incident"][-1] == "*" and name.startswith(row["incident"][:-1])))
        and kind in GROUPS.get(row["endpoint"], {row["endpoint"]})
        and serves in GROUPS.get(row["serves"], {row["serves"]})
        and time in times(row)
    )


@pytest.mark.parametrize("row", rows(DECIDE))
def test_decides_by_state_endpoint_and_time(row):
    matched = [s for s in SITUATIONS if matches(row, s[0], s[1], *s[3:])]
    assert matched
    for name, _, status, serves, time in matched:
        before = INCIDENTS[name]
        live = EndpointState(status, "" if status == DELETED else serves)
        decision = decisions.decide(before, live, at(NOW + time))
        assert_decided(decision, row, status)
        # a new state with work to do is decided in the same invocation
        has_moved = decision.incident.state is not before.state
        assert decision.again == (has_moved and decision.incident.state in (State.HOOKED, State.RESTORING))
        assert decision.incident.since == (NOW + time if has_moved else NOW)
        if decision.action:
            assert decision.incident == before  # a call is recorded after it was made


def test_the_table_covers_every_situation_once():
    table = [param.values[0] for param in rows(DECIDE)]
    for name, kind, _, serves, time in SITUATIONS:
        found = [row for row in table if matches(row, name, kind, serves, time)]
        assert len(found) == 1, (name, kind, serves, time, found)


def test_updates_an_endpoint_only_from_the_other_of_its_two_configs():
    for name, _, status, serves, time in SITUATIONS:
        decision = decisions.decide(INCIDENTS[name], EndpointState(status, serves), at(NOW + time))
        if decision.action in (Action.SWAP, Action.RESTORE):
            other = {Action.SWAP: "plain", Action.RESTORE: "hooked"}[decision.action]
            assert (status, serves) == ("InService", other)


@pytest.mark.parametrize(
    ("failure", "reason"), [("no capacity", "no capacity"), ("", "SageMaker rolled the update back")]
)
def test_a_failed_restore_names_the_reason_of_sagemaker(failure, reason):
    live = EndpointState("InService", "hooked", failure)
    now = NOW + 3 * MINUTE
    failed = decisions.decide(INCIDENTS["RESTORING, accepted"], live, at(now)).incident
    assert f"could not restore the endpoint to plain: {reason}" in failed.failure
    assert "Glassbox retries at 10:34 UTC" in failed.failure  # 10 minutes after the failure


def test_explains_for_the_time_limit_from_when_the_hooked_model_is_in_service():
    after = decisions.decide(
        INCIDENTS["SWAPPING, accepted"], EndpointState("InService", "hooked"), at(NOW + MINUTE)
    ).incident
    assert after.deadline == NOW + 16 * MINUTE


@pytest.mark.parametrize(
    ("before", "retries", "note"),
    [
        ("HOOKED, aborted", 0, "an operator aborted it"),
        ("HOOKED", 0, "the endpoint serves the plain config already"),
        ("FAILED", 1, "retry 1"),
        ("FAILED, twice", 2, "retry 2"),
        ("FAILED, never hooked", 0, "the swap completed after it was given up"),
    ],
)
def test_restoring_begins_without_what_the_last_try_left(before, retries, note):
    serves = "plain" if before == "HOOKED" else "hooked"
    started = replace(
        INCIDENTS[before],
        requested=serves == "hooked",
        claims={"failed": NOW, "opened": NOW} if serves == "hooked" else {},
    )
    after = decisions.decide(started, EndpointState("InService", serves), at(NOW + 20 * MINUTE)).incident
    assert (after.state, after.requested, after.aborted, after.retries) == (
        State.RESTORING,
        False,
        False,
        retries,
    )
    assert after.timeline[-1] == f"2026-11-23T10:41:05Z RESTORING: {note}"
    if serves == "hooked":  # a second failure is notified again
        assert "failed" not in after.sent_notifications | set(after.claims)
        assert "opened" in after.claims


# ---------------------------------------------------------------- DescribeEndpoint is refused

REFUSED = """
incident  | refused  | minutes | state     | retry | notification
SWAPPING  | for now  | ≤ 60    | SWAPPING  | yes   |
SWAPPING  | for now  | > 60    | FAILED    |       | DescribeEndpoint fails
HOOKED    | for now  | ≤ 60    | HOOKED    | yes   |
HOOKED    | for now  | > 60    | FAILED    |       | DescribeEndpoint fails
RESTORING | for now  | ≤ 60    | RESTORING | yes   |
RESTORING | for now  | > 60    | FAILED    |       | DescribeEndpoint fails
FAILED    | for now  | any     | FAILED    |       |
SWAPPING  | for good | any     | FAILED    |       | DescribeEndpoint fails
HOOKED    | for good | any     | FAILED    |       | DescribeEndpoint fails
RESTORING | for good | any     | FAILED    |       | DescribeEndpoint fails
FAILED    | for good | any     | FAILED    |       |
"""


@pytest.mark.parametrize("row", rows(REFUSED))
def test_retries_or_fails_when_describe_endpoint_fails(row):
    refusal = CallFailure("no", retryable=row["refused"] == "for now")
    for time in times(row):
        decision = decisions.decide(incident(row["incident"]), refusal, at(NOW + time))
        assert_decided(decision, row)
        assert decision.retry == ("no" if row["retry"] else "")


@pytest.mark.parametrize("end", ["deadline", "keep_hooked_until"])
@pytest.mark.parametrize(("late", "state"), [(timedelta(0), State.HOOKED), (SECOND, State.FAILED)])
def test_a_hooked_model_is_due_from_the_end_of_its_time(end, late, state):
    hooked = incident("HOOKED", **{end: NOW + 5 * HOUR})
    decision = decisions.decide(hooked, CallFailure("no", retryable=True), at(NOW + 6 * HOUR + late))
    assert decision.incident.state is state


# ---------------------------------------------------------------- AWS answers a call

ANSWERED = """
call    | incident        | answer   | minutes   | state     | accepted | notification
SWAP    | SWAPPING        | yes      | any       | SWAPPING  | yes      | violation, swapping
SWAP    | SWAPPING        | for now  | < 1       | SWAPPING  |          |
SWAP    | SWAPPING        | for now  | ≥ 1, ≤ 60 | SWAPPING  |          | violation, swap pending
SWAP    | SWAPPING        | for now  | > 60      | FAILED    |          | violation, NOT swapped: SageMaker
SWAP    | SWAPPING        | for good | any       | FAILED    |          | violation, NOT swapped: SageMaker
RESTORE | RESTORING       | yes      | any       | RESTORING | yes      |
RESTORE | RESTORING       | for now  | ≤ 60      | RESTORING |          |
RESTORE | RESTORING       | for now  | > 60      | FAILED    |          | NOT restored
RESTORE | RESTORING again | for now  | any       | FAILED    |          | NOT restored
RESTORE | RESTORING       | for good | any       | FAILED    |          | NOT restored
"""
ANSWERS = {"yes": None, "for now": CallFailure("no", retryable=True), "for good": CallFailure("no")}
AFTER = {"SWAP": decisions.after_swap, "RESTORE": decisions.after_restore}


@pytest.mark.parametrize("row", rows(ANSWERED))
def test_records_an_update_that_sagemaker_accepted(row):
    state, _, again = row["incident"].partition(" ")
    before = incident(state, retries=bool(again))
    for time in times(row):
        now = NOW + time
        decision = AFTER[row["call"]](before, ANSWERS[row["answer"]], at(now))
        assert_decided(decision, row)
        accepted = bool(row["accepted"])
        assert decision.incident.requested is accepted
        if accepted:  # the hour of the update begins now
            assert decision.incident.since == now
            assert (
                f"UpdateEndpoint to {'hooked' if row['call'] == 'SWAP' else 'plain'}"
                in (decision.incident.timeline[-1])
            )


def test_the_invocation_that_opens_an_incident_notifies_at_once_of_a_pending_swap():
    for live in (EndpointState("Updating", "plain"), CallFailure("no", retryable=True)):
        decision = decisions.decide_swap(INCIDENTS["SWAPPING"], live, at(NOW), opened=True)
        assert decision.outcome is Outcome.PENDING
        assert headline(decision) == "violation, swap pending"


@pytest.mark.parametrize(
    ("attempts", "unanswered", "kept", "note"),
    [
        (0, "", "ab", "replayed 2 requests"),
        (0, "a", "ab", "replayed 1 requests, 1 not answered yet"),
        (MAX_REPLAY_ATTEMPTS - 2, "a", "ab", "replayed 1 requests, 1 not answered yet"),
        (
            MAX_REPLAY_ATTEMPTS - 1,
            "a",
            "b",
            "replayed 1 requests, gave up 1 that the endpoint did not answer in 5 tries",
        ),
    ],
)
def test_gives_a_replay_up_after_the_last_try(attempts, unanswered, kept, note):
    sent = Replays(IDS, frozenset("a"), "", frozenset(unanswered))
    after = decisions.after_replay(incident("HOOKED", replay_attempts=attempts), sent, at(NOW)).incident
    assert (after.replay_attempts, after.last_replay_at, after.replays) == (
        attempts + 1,
        NOW,
        frozenset(kept),
    )
    assert after.flagged == frozenset("a") & frozenset(kept)
    assert after.unanswered == (frozenset(unanswered) & frozenset(kept))
    assert after.timeline[-1].endswith(note)


def test_a_replay_that_is_refused_for_good_leaves_live_traffic_and_one_for_now_is_retried():
    after = decisions.after_replay(incident("HOOKED"), CallFailure("no such bucket"), at(NOW))
    assert (after.incident.replays, after.retry) == (frozenset(), "")
    assert after.incident.timeline[-1].endswith("replayed 0 requests: no such bucket")
    later = decisions.after_replay(incident("HOOKED"), CallFailure("slow down", retryable=True), at(NOW))
    assert (later.incident, later.retry) == (incident("HOOKED"), "slow down")


def test_restores_the_endpoint_if_no_hook_is_found():
    before = incident("HOOKED", replays=IDS, last_replay_at=NOW)
    later = at(NOW + 2 * MINUTE)
    decision = decisions.after_find_hook(before, False, later)
    assert (decision.incident.state, decision.again) == (State.RESTORING, True)
    assert "RESTORING: the hook did not load" in decision.incident.timeline[-1]
    assert decision.incident.timeline[-1].endswith("its role may not write to the stack's bucket")
    for found in (True, CallFailure("slow down", retryable=True), CallFailure("no such bucket")):
        assert decisions.after_find_hook(before, found, later) == decisions.Decision(before)


REPORTED = """
incident           | report   | minutes | state     | retry | notification
RESTORING          | written  | any     | NORMAL    |       | restored, report is ready
RESTORING          | for good | any     | NORMAL    |       | restored, NO report
RESTORING          | for now  | ≤ 60    | RESTORING | yes   |
RESTORING          | for now  | > 60    | NORMAL    |       | restored, NO report
RESTORING, aborted | for now  | any     | NORMAL    |       | restored, NO report
"""


@pytest.mark.parametrize("row", rows(REPORTED))
def test_ends_an_incident_with_its_report_or_without(row):
    state, _, aborted = row["incident"].partition(", ")
    made = {"written": Report("s3://b/k", tuple("x" * 40)), **ANSWERS}[row["report"]]
    for time in times(row):
        decision = decisions.after_report(incident(state, aborted=bool(aborted)), made, at(NOW + time))
        assert_decided(decision, row)
        assert decision.retry == ("no" if row["retry"] else "")
        if row["report"] == "written":
            assert (decision.incident.report, len(decision.incident.findings)) == ("s3://b/k", 30)


# ---------------------------------------------------------------- notify-only

END = CAUSE.window_end


@pytest.mark.parametrize(
    ("now", "changes", "state", "action", "ended"),
    [
        (END - SECOND, {}, "WATCHING", "", ""),
        (END, {}, "WATCHING", "REPORT", ""),
        (END - SECOND, {"aborted": True}, "WATCHING", "REPORT", ""),
        (END, {"keep_hooked_until": END + SECOND}, "WATCHING", "", ""),
        (END + SECOND, {"keep_hooked_until": END + SECOND}, "WATCHING", "REPORT", ""),
        (END, {"keep_hooked_until": END - SECOND}, "WATCHING", "REPORT", ""),
        (END - SECOND, {"keep_hooked_until": END - HOUR}, "WATCHING", "", ""),
        (END + 2 * HOUR, {}, "WATCHING", "REPORT", ""),
        (END + 2 * HOUR + SECOND, {}, "NORMAL", "", "incident closed, NO report"),
    ],
)
def test_watches_until_the_window_ends_and_leaves_the_endpoint_alone(now, changes, state, action, ended):
    watching = incident("WATCHING", notify_only=True, **changes)
    decision = decisions.decide(watching, None, at(now))
    assert_decided(decision, {"state": state, "action": action, "notification": ended})


# ---------------------------------------------------------------- a violation

OTHER = replace(CAUSE, check="drift")
NEXT = replace(CAUSE, window_start=CAUSE.window_end, window_end=CAUSE.window_end + HOUR)
LAST = incident("NORMAL", report="s3://b/k")  # ended at NOW
DAY = timedelta(days=1)


def opened_before(*ages):
    """Return closed incidents of windows long ago, opened this long before NOW + DAY."""
    old = replace(CAUSE, window_start=NOW - 9 * DAY, window_end=NOW - 9 * DAY + HOUR)
    return [replace(LAST, cause=old, opened=NOW + DAY - age) for age in ages]


@pytest.mark.parametrize(
    ("violation", "last", "past", "now", "outcome"),
    [
        (CAUSE, None, [], NOW, None),
        # duplicates
        (CAUSE, LAST, [LAST], NOW + HOUR, Outcome.JOINED),
        (replace(CAUSE, check="monitor"), LAST, [LAST], NOW + HOUR, Outcome.JOINED),
        (OTHER, LAST, [replace(LAST, related_violations=frozenset({OTHER}))], NOW + HOUR, Outcome.JOINED),
        (OTHER, LAST, [LAST], NOW + HOUR, None),
        (NEXT, LAST, [LAST], NOW + HOUR, None),
        # cooldown
        (NEXT, LAST, [LAST], NOW + 30 * MINUTE - SECOND, Outcome.COOLING_DOWN),
        (NEXT, LAST, [LAST], NOW + 30 * MINUTE, None),
        (replace(NEXT, check="operator"), LAST, [LAST], NOW, None),
        # cap per day
        (NEXT, LAST, opened_before(DAY, HOUR), NOW + DAY, None),
        (NEXT, LAST, opened_before(DAY, HOUR, HOUR), NOW + DAY, Outcome.CAP_REACHED),
        (NEXT, LAST, opened_before(DAY + SECOND, HOUR, HOUR), NOW + DAY, None),
        (replace(NEXT, check="operator"), LAST, opened_before(HOUR, HOUR, HOUR), NOW + DAY, None),
    ],
)
def test_opens_an_incident_unless_handled_cooling_down_or_capped(violation, last, past, now, outcome):
    decision = decisions.decide_violation(violation, last, past, at(now))
    assert (decision.outcome, decision.action) == (outcome, Action.OPEN if outcome is None else None)
    if outcome is None:
        new = decision.incident
        assert (new.state, new.cause, new.opened, new.since) == (State.SWAPPING, violation, now, now)
        assert (new.plain_config, new.hooked_config, new.requested) == ("plain", "hooked", False)
    keys = {Outcome.COOLING_DOWN: f"cooldown {violation.check}", Outcome.CAP_REACHED: "cap"}
    assert (decision.notification.key if decision.notification else None) == keys.get(outcome)
    assert (decision.related is not None) is (outcome is Outcome.JOINED)


def test_notify_only_opens_an_incident_that_watches():
    decision = decisions.decide_violation(
        CAUSE, None, [], Context(NOW, replace(LIMITS, react=False), CONFIGS)
    )
    assert (decision.incident.state, decision.incident.notify_only) == (State.WATCHING, True)
    assert (decision.action, decision.outcome) == (Action.OPEN, Outcome.WATCHING)
    assert headline(decision) == "violation (notify-only)"


@pytest.mark.parametrize(
    ("before", "violation", "outcome"),
    [
        (incident("SWAPPING"), CAUSE, None),  # swap the endpoint now
        (incident("SWAPPING", requested=True), CAUSE, Outcome.DUPLICATE),
        (incident("HOOKED"), CAUSE, Outcome.DUPLICATE),
        (incident("RESTORING"), CAUSE, Outcome.DUPLICATE),
        (incident("FAILED"), CAUSE, Outcome.DUPLICATE),
        (incident("WATCHING", notify_only=True), CAUSE, Outcome.WATCHING),
        *((incident(state), NEXT, Outcome.JOINED) for state in State if state is not State.NORMAL),
    ],
)
def test_a_violation_joins_the_open_incident_unless_it_opened_it(before, violation, outcome):
    decision = decisions.decide_violation(violation, before, [], at(NOW))
    assert (decision.outcome, decision.incident, decision.action) == (outcome, before, None)
    assert decision.related == (violation if outcome is Outcome.JOINED else None)
    assert (decision.notification is not None) is (outcome is Outcome.WATCHING)


def test_past_incidents_reach_back_a_day_before_the_window_or_before_now():
    """An incident is opened after its window starts, and a window lasts a day at most."""
    assert decisions.past_since(replace(CAUSE, window_start=NOW + DAY), NOW) == NOW - DAY
    assert decisions.past_since(CAUSE, NOW + 3 * DAY) == CAUSE.window_start - DAY


# ---------------------------------------------------------------- restoring, and an operator's command


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"replays": IDS}, ""),
        ({"replays": IDS, "heatmaps": frozenset("a")}, ""),
        ({"replays": IDS, "heatmaps": IDS}, "all 2 replayed requests are explained"),
        (
            {"replays": IDS, "heatmaps": frozenset("a"), "refused": frozenset("b")},
            "all 2 replayed requests are explained, except 1 that cannot be rendered",
        ),
        ({"replays": IDS, "heatmaps": frozenset("uvwxyz")}, ""),  # of live traffic
        ({"heatmaps": frozenset("uvwxyz")}, ""),  # the flagged inputs are not sent yet
        ({"replays": frozenset(), "heatmaps": frozenset("vwxyz")}, ""),
        ({"replays": frozenset(), "heatmaps": frozenset("uvwxyz")}, "6 heat maps exist"),
        ({"deadline": NOW + SECOND}, ""),
        ({"deadline": NOW}, "the time limit is reached with 0 heat maps"),
        ({"deadline": NOW, "keep_hooked_until": NOW + SECOND}, ""),
        ({"deadline": NOW, "keep_hooked_until": NOW}, "the time limit is reached with 0 heat maps"),
        ({"replays": IDS, "heatmaps": IDS, "keep_hooked_until": NOW + SECOND}, ""),
        ({"deadline": NOW, "keep_hooked_until": NOW + HOUR, "aborted": True}, "an operator aborted it"),
    ],
)
def test_restores_when_explained_when_time_is_up_or_when_aborted(changes, reason):
    assert decisions.restore_reason(incident("HOOKED", **changes), at(NOW)) == reason


RESTORE = """
incident        | endpoint    | serves     | minutes | state     | outcome            | notification
HOOKED          | InService   | hooked     | any     | RESTORING |                    |
HOOKED          | InService   | plain      | any     | HOOKED    | NOTHING_TO_RESTORE |
HOOKED          | InService   | other      | any     | FAILED    | FAILED             | incident closed: a new config
HOOKED          | in progress | any        | ≤ 60    | HOOKED    | WAITING            |
HOOKED          | in progress | any        | > 60    | FAILED    | FAILED             | the endpoint is STATUS
HOOKED          | broken      | any        | any     | FAILED    | FAILED             | the endpoint is STATUS
HOOKED          | Deleted     | any        | any     | HOOKED    | NOTHING_TO_RESTORE |
FAILED, aborted | InService   | hooked     | any     | RESTORING |                    |
FAILED, aborted | InService   | not hooked | any     | FAILED    | NOTHING_TO_RESTORE |
FAILED, aborted | in progress | any        | ≤ 60    | FAILED    | WAITING            |
FAILED, aborted | in progress | any        | > 60    | FAILED    | NOTHING_TO_RESTORE |
FAILED, aborted | down        | any        | any     | FAILED    | NOTHING_TO_RESTORE |
"""
RESTORABLE = {
    "HOOKED": incident("HOOKED", deadline=NOW),
    "FAILED, aborted": incident("FAILED", deadline=NOW, aborted=True),
}


@pytest.mark.parametrize("row", rows(RESTORE))
def test_restores_an_endpoint_that_serves_the_hooked_config(row):
    matched = [
        s
        for s in SITUATIONS
        if s[0] == "HOOKED" and matches(row | {"incident": "HOOKED"}, "HOOKED", s[1], *s[3:])
    ]
    assert matched
    for _, _, status, serves, time in matched:
        live = EndpointState(status, serves)
        decision = decisions.decide_restore(RESTORABLE[row["incident"]], live, "it is time", at(NOW + time))
        assert_decided(decision, row, status)
        assert (decision.outcome.name if decision.outcome else "") == row["outcome"]
        assert decision.again is (row["state"] == "RESTORING")


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("aborted", [False, True])
def test_only_a_hooked_or_an_aborted_failed_incident_is_restorable(state, aborted):
    expected = state is State.HOOKED or (state is State.FAILED and aborted)
    assert decisions.is_restorable(incident(state, aborted=aborted)) is expected


@pytest.mark.parametrize("state", State)
def test_an_abort_is_recorded_in_every_open_incident(state):
    decision = decisions.decide_command(incident(state), Command("traffic-signs", "abort", NOW, NOW), at(NOW))
    assert decision.incident.aborted is (state is not State.NORMAL)
    assert decision.outcome is (Outcome.NO_INCIDENT if state is State.NORMAL else Outcome.ABORT)
    assert decision.incident.state is state


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(("until", "kept"), [(-SECOND, timedelta(0)), (SECOND, SECOND)])
def test_an_extension_only_lengthens_and_only_what_still_runs(state, until, kept):
    command = Command("traffic-signs", "extend", NOW + until, NOW)
    decision = decisions.decide_command(incident(state, keep_hooked_until=NOW), command, at(NOW))
    if state in (State.SWAPPING, State.HOOKED, State.WATCHING):
        assert decision.outcome is Outcome.EXTEND
        assert decision.incident.keep_hooked_until == NOW + kept
    else:
        assert decision == decisions.Decision(
            incident(state, keep_hooked_until=NOW), outcome=Outcome.NO_INCIDENT
        )


@pytest.mark.parametrize(
    ("status", "config", "outcome"),
    [
        ("InService", "plain", Outcome.NORMAL),
        ("InService", "hooked", Outcome.NORMAL),
        ("InService", "other", Outcome.STALE_TWIN),
        ("Updating", "other", Outcome.NORMAL),
        ("Failed", "other", Outcome.NORMAL),
        (DELETED, "", Outcome.NO_ENDPOINT),
    ],
)
def test_reports_a_config_that_glassbox_cannot_swap(status, config, outcome):
    found, notice = decisions.decide_between_incidents(
        "traffic-signs", EndpointState(status, config), CONFIGS
    )
    assert found is outcome
    event = notice.attributes["event"] if notice else None
    hooked = (status, config) == ("InService", "hooked")
    expected = "hooked-without-incident" if hooked else None
    assert event == ("stale-twin" if outcome is Outcome.STALE_TWIN else expected)


# ---------------------------------------------------------------- notifications


@pytest.mark.parametrize(
    ("before", "key"),
    [
        (incident("SWAPPING"), None),
        (incident("SWAPPING", requested=True), "opened"),
        (incident("HOOKED"), "opened"),
        (incident("RESTORING"), "opened"),
        (incident("WATCHING", notify_only=True), "opened"),
        (incident("FAILED", headline="h", failure="f"), "failed"),
        (incident("NORMAL", report="s3://b/k"), "closed"),
        (incident("NORMAL", unreported="no"), "closed"),
        (incident("NORMAL"), None),
    ],
)
def test_any_invocation_sends_a_notification_a_minute_after_the_change(before, key):
    assert decisions.late_notification(before, at(NOW + 59 * SECOND)) is None
    late = decisions.late_notification(before, at(NOW + MINUTE))
    assert (late.key if late else None) == key


@pytest.mark.parametrize(
    ("sent", "claimed", "unclaimed"),
    [
        ((), None, True),
        ((), 59 * SECOND, False),
        ((), MINUTE, True),
        (("opened",), None, False),
        (("opened",), MINUTE, False),
        (("failed",), None, True),
    ],
)
def test_a_claim_holds_for_a_minute_and_what_was_sent_is_not_sent_again(sent, claimed, unclaimed):
    claims = {} if claimed is None else {"opened": NOW}
    before = incident("HOOKED", sent_notifications=frozenset(sent), claims=claims)
    assert decisions.is_unclaimed(before, "opened", NOW + (claimed or timedelta(0))) is unclaimed


@pytest.mark.parametrize(("lines", "omits"), [(59, False), (60, True), (61, True)])
def test_the_timeline_keeps_its_first_and_last_lines(lines, omits):
    before = incident("HOOKED", timeline=tuple(map(str, range(lines))))
    after = decisions.with_timeline_line(before, NOW, "last").timeline
    assert len(after) == 60
    assert ("(lines omitted)" in after) is omits
    assert (after[0], after[19], after[-1]) == ("0", "19", "2026-11-23T10:21:05Z last")


# ---------------------------------------------------------------- pure functions


def test_decisions_import_data_and_texts_only():
    tree = ast.parse(Path(decisions.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {
        "collections.abc",
        "dataclasses",
        "datetime",
        "enum",
        "typing",
        "glassbox.errors",
        "glassbox.incidents",
        "glassbox.incidents.model",
        "glassbox.incidents.notifications",
        "glassbox.replay_marker",
        "glassbox.violation",
    }
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"datetime.now", "datetime.utcnow", "open", "print"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Try)]  # a refusal is an input
