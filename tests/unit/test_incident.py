"""Scenarios of an incident: events twice, late, lost or out of order, and refusals of AWS."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.incidents.events import read_command, read_violation
from glassbox.incidents.messages import SUBJECT_CHARACTERS
from glassbox.incidents.model import (
    HEATMAPS_KEPT,
    RELATED_KEPT,
    TRANSITIONS,
    Command,
    EndpointState,
    Limits,
    Outcome,
    Replays,
    State,
)
from notices import every_notification
from world import IDS, World, following


@pytest.fixture
def world():
    return World()


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


def test_swaps_explains_and_restores_the_endpoint(world, violation):
    world.run(violation)
    assert world.endpoint.updates == ["hooked", "plain"]
    assert world.endpoint.guarded == [True, False]  # an alarm may undo the swap, but not the restore
    assert world.notified == ["swapping", "restored"]
    begun, ended = world.notices.published
    assert violation.reason in begun.text
    assert violation.reason in ended.text
    assert "aws s3 presign s3://bucket/incidents/traffic-signs/index.html" in ended.text
    assert "2 x class 14 (Stop), all complete" in ended.text
    states = [line.split()[1].rstrip(":") for line in world.incident.timeline]
    assert states == [
        "opened",
        "UpdateEndpoint",
        "HOOKED",
        "replayed",
        "RESTORING",
        "UpdateEndpoint",
        "NORMAL",
    ]


def test_duplicate_events_change_nothing(world, violation):
    for _ in range(2):
        world.swap(violation)
    world.endpoint.settle()
    for _ in range(2):
        world.confirm()
    world.draw(*IDS, *IDS)
    for _ in range(2):
        world.restore()
    world.endpoint.settle()
    for _ in range(2):
        world.confirm()
    assert world.endpoint.updates == ["hooked", "plain"]
    assert world.notified == ["swapping", "restored"]
    assert world.replayed == 1


def test_invocations_between_an_update_and_its_record_change_nothing(world, violation):
    accept = world.endpoint.update

    def update(*arguments, **options):
        accept(*arguments, **options)
        assert world.confirm() == Outcome.SWAPPING
        assert world.swap(violation) == Outcome.PENDING

    world.endpoint.update = update
    assert world.swap(violation) == Outcome.SWAPPING
    assert world.notified == ["swapping"]
    assert (
        world.notices.published[0].subject
        == "Glassbox traffic-signs: violation, swapping to the hooked model"
    )


def test_early_events_change_nothing(world, violation):
    assert world.confirm() == Outcome.NORMAL
    assert world.restore() == Outcome.NOTHING_TO_RESTORE
    world.swap(violation)
    assert world.restore() == Outcome.NOTHING_TO_RESTORE
    assert world.confirm() == Outcome.SWAPPING
    assert world.endpoint.updates == ["hooked"]


def test_the_sweep_alone_completes_an_incident_when_events_are_lost(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    for _ in range(20):
        world.later(2)
        world.confirm()
        world.restore()
        if world.endpoint.live.status == "Updating":
            world.endpoint.settle()
    assert world.incident.state is State.NORMAL
    assert world.notified == ["swapping", "restored"]
    assert any("the time limit is reached with 0 heat maps" in line for line in world.incident.timeline)


def hooked(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    assert world.confirm() == Outcome.HOOKED
    assert world.replayed == 1


def test_restores_the_endpoint_two_minutes_after_the_replays_if_the_hook_did_not_load(world, violation):
    hooked(world, violation)
    world.hooked = False
    world.later(1)
    assert (world.confirm(), world.restore()) == (Outcome.HOOKED, Outcome.WAITING)
    world.later(1)
    assert [world.confirm() for _ in range(3)] == [Outcome.RESTORING] * 3
    assert world.endpoint.updates == ["hooked", "plain"]
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    (line,) = [line for line in world.incident.timeline if "the hook did not load" in line]
    assert "RESTORING" in line
    assert "Python with -I or -E" in world.notices.published[-1].text
    assert world.notified == ["swapping", "restored"]


def test_waits_for_the_traces_of_a_hook_that_has_loaded(world, violation):
    hooked(world, violation)
    for _ in range(5):
        world.later(2)
        assert (world.confirm(), world.restore()) == (Outcome.HOOKED, Outcome.WAITING)
    world.draw(*IDS)
    assert world.restore() == Outcome.RESTORING


def test_an_s3_that_does_not_answer_for_the_hook_leaves_the_time_limit(world, violation):
    hooked(world, violation)
    world.hooked = False
    world.refuse("has_hook", RetryableError("slow down"))
    for _ in range(7):
        world.later(2)
        assert (world.confirm(), world.restore()) == (Outcome.HOOKED, Outcome.WAITING)
    world.later(2)
    assert world.restore() == Outcome.RESTORING
    assert "the time limit is reached" in world.incident.timeline[-2]


def test_another_violation_joins_the_open_incident(world, violation, load_event):
    world.swap(violation)
    other = read_violation(load_event("monitor-job-violations"), FakeObjects())
    assert world.swap(other) == Outcome.JOINED
    assert world.swap(other) == Outcome.JOINED
    assert world.incident.related_violations == {other}
    assert world.endpoint.updates == ["hooked"]
    assert world.notified == ["swapping"]


def test_a_late_monitor_violation_joins_the_closed_incident(world, violation, load_event):
    world.run(violation)
    world.later(80)
    late = read_violation(load_event("monitor-job-violations"), FakeObjects())
    assert world.swap(late) == Outcome.JOINED
    assert world.incident.related_violations == {late}
    assert world.endpoint.updates == ["hooked", "plain"]


def test_opens_no_incident_during_the_cooldown(world, violation):
    world.run(violation)
    world.later(5)
    drift = following(violation, 0, "drift")
    assert [world.swap(drift), world.swap(drift)] == [Outcome.COOLING_DOWN, Outcome.COOLING_DOWN]
    assert world.notified == ["swapping", "restored", "cooling-down"]
    assert "opens no incident before 10:51 UTC" in world.notices.published[-1].text
    world.later(30)
    assert world.swap(drift) == Outcome.SWAPPING


def test_a_violation_in_the_cooldown_is_retried_until_its_notification_was_sent(world, violation):
    """The write that claimed the notification may have been repeated, or its invocation has crashed."""
    world.run(violation)
    world.later(5)
    drift = following(violation, 0, "drift")
    claimed = replace(
        world.incident, claims={"cooldown drift": world.now}, revision=world.incident.revision + 1
    )
    world.incidents.save(world.incident, claimed)
    with pytest.raises(RetryableError, match="another invocation is sending 'cooldown drift'"):
        world.swap(drift)
    assert world.notified == ["swapping", "restored"]
    world.later(2)
    assert world.swap(drift) == Outcome.COOLING_DOWN
    assert world.notified == ["swapping", "restored", "cooling-down"]


@pytest.mark.parametrize("incidents", [1, 3])
def test_an_operator_opens_an_incident_despite_cooldown_and_cap(world, violation, load_event, incidents):
    for hours in range(incidents):
        world.run(following(violation, 2 * hours))
        world.later(120 if incidents > 1 else 1)
    assert world.swap(read_violation(load_event("command-open"), FakeObjects())) == Outcome.SWAPPING


def test_a_violation_that_was_handled_days_ago_joins_its_incident(world, violation):
    world.run(violation)
    world.later(3 * 24 * 60)
    assert world.swap(violation) == Outcome.JOINED
    assert world.endpoint.updates == ["hooked", "plain"]


def test_notifies_once_of_the_daily_cap(world, violation):
    for hours in range(3):
        world.run(following(violation, 2 * hours))
        world.later(120)
    for _ in range(2):
        assert world.swap(following(violation, 8)) == Outcome.CAP_REACHED
    assert world.notified.count("cap-reached") == 1
    world.later(24 * 60)
    assert world.swap(following(violation, 30)) == Outcome.SWAPPING


def test_swaps_an_updating_endpoint_after_its_update(world, violation):
    world.endpoint.live = EndpointState("Updating", "plain")
    assert world.swap(violation) == Outcome.PENDING
    assert world.confirm() == Outcome.SWAPPING
    assert world.endpoint.updates == []
    assert "The swap is pending: the endpoint is Updating" in world.notices.published[0].text
    world.later(55)
    world.endpoint.live = EndpointState("InService", "plain")
    world.confirm()
    assert world.endpoint.updates == ["hooked"]
    world.later(50)  # the hour of the update begins when SageMaker accepts it
    assert world.confirm() == Outcome.SWAPPING
    assert world.notified == ["swapping"]


def test_gives_up_the_swap_when_an_update_takes_too_long(world, violation):
    world.endpoint.live = EndpointState("Updating", "plain")
    world.swap(violation)
    world.later(61)
    assert world.confirm() == Outcome.FAILED
    notice = world.notices.published[-1]
    assert notice.subject == "Glassbox traffic-signs: violation, NOT swapped: endpoint busy"
    assert notice.text.startswith(
        "The endpoint was still Updating after 60 minutes. Glassbox gave up the swap.\n"
    )
    world.endpoint.live = EndpointState("InService", "plain")
    assert world.confirm() == Outcome.NORMAL


def test_restores_when_a_swap_completes_after_it_was_given_up(world, violation):
    world.swap(violation)
    world.later(61)
    assert world.confirm() == Outcome.FAILED
    world.endpoint.settle()
    assert world.confirm() == Outcome.RESTORING
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    assert world.endpoint.updates == ["hooked", "plain"]
    assert world.notified == ["swapping", "failed", "restored"]


def test_explains_without_an_update_when_the_endpoint_is_already_hooked(world, violation):
    world.endpoint.live = EndpointState("InService", "hooked")
    assert world.swap(violation) == Outcome.SWAPPING
    assert world.confirm() == Outcome.HOOKED
    assert world.endpoint.updates == []
    assert world.replayed == 1


def test_never_updates_an_unknown_config(world, violation):
    world.endpoint.live = EndpointState("InService", "another-config")
    assert world.swap(violation) == Outcome.FAILED
    assert world.endpoint.updates == []
    (notice,) = world.notices.published
    assert "another-config" in notice.text
    assert "make twin STACK=glassbox" in notice.text
    assert world.incident.state is State.FAILED


def test_reports_a_silent_rollback_with_the_reason_of_sagemaker(world, violation):
    world.swap(violation)
    world.endpoint.roll_back("did not pass the ping health check")
    assert [world.confirm(), world.confirm()] == [Outcome.FAILED, Outcome.NORMAL]
    assert world.notified == ["swapping", "failed"]
    assert "did not pass the ping health check" in world.notices.published[-1].text
    assert any("FAILED: SageMaker rolled the swap back" in line for line in world.incident.timeline)


def test_sends_a_failure_later_when_sns_refuses(world, violation):
    world.endpoint.live = EndpointState("InService", "another-config")
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    assert world.swap(violation) == Outcome.DUPLICATE
    assert world.incident.state is State.FAILED
    world.later(2)
    world.confirm()
    assert world.notified == ["failed"]
    (notice,) = world.notices.published
    assert notice.subject == "Glassbox traffic-signs: violation, NOT swapped: unknown endpoint config"
    assert "make twin STACK=glassbox" in notice.text


def test_reports_a_failed_endpoint_with_the_commands_to_create_it_again(world, violation):
    world.swap(violation)
    world.endpoint.live = EndpointState("Failed", "plain", "no capacity")
    assert world.confirm() == Outcome.FAILED
    assert "no capacity" in world.notices.published[-1].text
    # UpdateEndpoint refuses a failed endpoint
    assert "aws sagemaker delete-endpoint" in world.notices.published[-1].text
    assert "update-endpoint" not in world.notices.published[-1].text


@pytest.mark.parametrize("status", ["Failed", "OutOfService"])
def test_reports_at_once_when_the_endpoint_breaks_on_the_hooked_model(world, violation, status):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.endpoint.live = EndpointState(status, "hooked")
    assert world.confirm() == Outcome.FAILED
    assert world.notices.published[-1].subject == f"Glassbox traffic-signs: the endpoint is {status}"


@pytest.mark.parametrize("hooked", [False, True])
def test_reports_once_when_the_endpoint_is_deleted_during_an_incident(world, violation, hooked):
    world.swap(violation)
    world.endpoint.settle()
    if hooked:
        world.confirm()
    world.endpoint.delete()
    assert [world.confirm(), world.confirm(), world.restore()] == [
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.NOTHING_TO_RESTORE,
    ]
    assert world.notified == ["swapping", "failed"]
    assert "aws sagemaker create-endpoint" in world.notices.published[-1].text


def test_accepts_a_missing_endpoint_between_incidents(world):
    world.endpoint.delete()
    assert world.confirm() == Outcome.NO_ENDPOINT
    assert world.notified == []


def test_reports_an_update_that_takes_over_an_hour(world, violation):
    world.swap(violation)
    world.later(59)
    assert world.confirm() == Outcome.SWAPPING
    world.later(2)
    assert world.confirm() == Outcome.FAILED


def test_reports_a_missing_hooked_config(world, violation):
    world.endpoint.refuse = [BadInputError('Could not find endpoint configuration "hooked".')]
    assert world.swap(violation) == Outcome.FAILED
    assert "Could not find endpoint configuration" in world.notices.published[-1].text


def test_reports_a_missing_endpoint_once(world, violation):
    world.endpoint.delete()
    assert world.swap(violation) == Outcome.FAILED
    assert 'Could not find endpoint "traffic-signs"' in world.notices.published[-1].text
    assert [world.confirm(), world.confirm()] == [Outcome.FAILED, Outcome.FAILED]
    assert world.notified == ["failed"]


def test_replays_later_when_s3_refuses(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.replays = RetryableError("S3 is away")
    with pytest.raises(RetryableError):
        world.confirm()
    assert (world.incident.state, world.incident.replays) == (State.HOOKED, None)
    world.replays = Replays(IDS)
    world.confirm()
    assert world.incident.replays == IDS
    assert world.notified == ["swapping"]


def test_retries_a_throttled_swap_and_reports_it_only_when_it_lasts(world, violation):
    world.endpoint.refuse = [RetryableError("ResourceLimitExceeded")] * 3
    assert world.swap(violation) == Outcome.PENDING
    assert "The swap is pending: ResourceLimitExceeded" in world.notices.published[0].text
    world.later(2)
    world.confirm()
    assert world.notified == ["swapping"]
    world.later(60)
    world.confirm()
    assert world.notified == ["swapping", "failed"]
    assert "ResourceLimitExceeded" in world.notices.published[-1].text


def test_reports_a_missing_plain_config_while_the_endpoint_keeps_serving(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.refuse = [BadInputError('Could not find endpoint configuration "plain".')]
    world.restore()
    assert world.incident.state is State.FAILED
    assert world.endpoint.live == EndpointState("InService", "hooked")
    assert "NOT restored" in world.notices.published[-1].subject
    assert "--endpoint-config-name plain" in world.notices.published[-1].text


def test_reports_a_restore_that_rolls_back(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.roll_back("no capacity")
    assert world.confirm() == Outcome.FAILED
    assert "no capacity" in world.notices.published[-1].text


def test_never_overwrites_a_deployment_during_an_incident(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.endpoint.deploy("a-new-model")
    assert world.confirm() == Outcome.FAILED
    assert world.endpoint.updates == ["hooked"]
    assert "Someone deployed a-new-model" in world.notices.published[-1].text
    # with the twin of the new model, the next violation is explained
    assert world.confirm() == Outcome.NORMAL
    world.later(60)
    world.endpoint.live = EndpointState("InService", "plain")
    world.run(replace(violation, window_start=violation.window_end, window_end=world.now))


@pytest.mark.parametrize("first", ["restore", "confirm"])
def test_never_overwrites_a_deployment_when_the_heat_maps_are_complete(world, violation, first):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.deploy("a-new-model")
    assert getattr(world, first)() == Outcome.FAILED
    for _ in range(3):
        world.confirm()
        world.restore()
    assert world.endpoint.updates == ["hooked"]
    assert world.endpoint.live.config == "a-new-model"
    assert world.notified == ["swapping", "failed", "stale-twin"]


def test_waits_for_a_deployment_in_progress(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.live = EndpointState("Updating", "hooked")
    assert [world.restore(), world.confirm()] == [Outcome.WAITING, Outcome.HOOKED]
    world.endpoint.deploy("a-new-model")
    world.confirm()
    assert world.endpoint.updates == ["hooked"]
    assert "a-new-model" in world.notices.published[-1].text


def test_never_overwrites_a_deployment_during_a_restore(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.deploy("a-new-model")
    assert world.confirm() == Outcome.FAILED
    assert world.endpoint.updates == ["hooked", "plain"]
    assert "Someone deployed a-new-model" in world.notices.published[-1].text
    assert "update-endpoint" not in world.notices.published[-1].text


def test_restores_after_a_system_update(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.live = EndpointState("SystemUpdating", "hooked")
    assert world.restore() == Outcome.WAITING
    world.endpoint.live = EndpointState("InService", "hooked")
    assert world.restore() == Outcome.RESTORING
    # and an update that does not end is reported
    world.endpoint.settle()
    world.confirm()
    world.later(60)
    world.swap(following(violation, 2))
    world.endpoint.settle()
    world.confirm()
    world.endpoint.live = EndpointState("SystemUpdating", "hooked")
    world.later(15 + 61)
    assert world.restore() == Outcome.FAILED
    assert "the endpoint is SystemUpdating" in world.notices.published[-1].subject


def test_ends_the_incident_when_an_operator_restores_the_plain_config(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.endpoint.deploy("plain")
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "restored"]
    assert world.endpoint.updates == ["hooked"]


def test_measures_the_time_of_a_restore_from_its_acceptance(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.refuse = [RetryableError("throttled")]
    world.restore()
    world.later(58)
    assert world.confirm() == Outcome.RESTORING
    assert world.endpoint.updates == ["hooked", "plain"]
    world.later(50)
    assert world.confirm() == Outcome.RESTORING
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL


def test_reports_a_stale_twin_later_when_sns_refuses(world):
    world.endpoint.deploy("a-new-model")
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.confirm()
    assert [world.confirm(), world.confirm()] == [Outcome.STALE_TWIN, Outcome.STALE_TWIN]
    assert world.notified == ["stale-twin"]


def test_reports_an_unknown_config_once(world):
    world.endpoint.live = EndpointState("InService", "a-new-model")
    assert [world.confirm(), world.confirm()] == [Outcome.STALE_TWIN, Outcome.STALE_TWIN]
    assert world.notified == ["stale-twin"]
    assert "make twin STACK=glassbox" in world.notices.published[0].text


def test_ends_at_max_heatmaps_when_there_are_no_replays(world, violation):
    note = "the capture files contain no inputs, so live traffic is explained instead"
    world.replays = Replays(frozenset(), note=note)
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    assert any("the capture files contain no inputs" in line for line in world.incident.timeline)
    world.draw("live-1")
    assert world.restore() == Outcome.WAITING
    world.draw(*(f"live-{n}" for n in range(6)))
    assert world.restore() == Outcome.RESTORING


def test_sends_each_notification_later_when_sns_refuses(world, violation):
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    assert world.notified == ["swapping"]
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.confirm()
    world.confirm()
    assert world.notified == ["swapping"]  # the invocation that moved the incident may still be publishing
    world.later(2)
    for _ in range(2):
        world.confirm()
    assert world.notified == ["swapping", "restored"]
    assert world.endpoint.updates == ["hooked", "plain"]


def test_refuses_a_write_after_a_concurrent_update(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    stale = world.incident
    world.confirm()
    with pytest.raises(ConflictError):
        world.incidents.save(stale, replace(stale, state=State.HOOKED, revision=stale.revision + 1))


def test_a_command_is_retried_after_a_concurrent_update(world, violation, load_event):
    world.swap(violation)
    world.endpoint.settle()
    world.incidents.meanwhile = [world.confirm]
    assert world.apply(read_command(load_event("command-abort"))) == Outcome.ABORT
    assert world.replayed == 1
    assert world.restore() == Outcome.RESTORING


def test_a_command_between_read_and_write_is_applied(world, violation, load_event):
    abort = read_command(load_event("command-abort"))
    world.swap(violation)
    world.endpoint.settle()
    world.incidents.meanwhile = [lambda: world.apply(abort)]
    assert world.confirm() == Outcome.RESTORING
    assert world.replayed == 0


def test_raises_retryable_after_repeated_conflicts(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    extend = Command("traffic-signs", "extend", world.now, world.now)
    world.incidents.meanwhile = [
        lambda: world.apply(extend),
        lambda: None,
    ] * 9
    with pytest.raises(RetryableError, match="gave up after 5 concurrent updates"):
        world.confirm()


def test_an_abort_restores_the_endpoint(world, violation, load_event):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    assert world.apply(read_command(load_event("command-abort"))) == Outcome.ABORT
    assert world.restore() == Outcome.RESTORING


def test_an_abort_before_the_swap_prevents_it(world, violation, load_event):
    world.endpoint.live = EndpointState("Updating", "plain")
    world.swap(violation)
    world.apply(read_command(load_event("command-abort")))
    world.endpoint.live = EndpointState("InService", "plain")
    assert world.swap(violation) == Outcome.FAILED  # a duplicate
    world.confirm()
    assert world.endpoint.updates == []
    assert "aborted" in world.notices.published[-1].subject


def test_an_abort_during_the_swap_restores_without_a_replay(world, violation, load_event):
    world.swap(violation)
    world.apply(read_command(load_event("command-abort")))
    world.endpoint.settle()
    assert world.confirm() == Outcome.RESTORING
    assert world.replayed == 0
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "restored"]


def test_an_abort_retries_a_failed_restore_at_once(world, violation, load_event):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    gone = BadInputError('Could not find endpoint configuration "plain".')
    world.endpoint.refuse = [gone, gone]
    world.restore()
    abort = read_command(load_event("command-abort"))
    for sweep in range(3):
        assert world.restore() == Outcome.NOTHING_TO_RESTORE
        assert world.notified.count("failed") == 1, sweep
    world.apply(abort)
    world.restore()
    assert world.notified.count("failed") == 2
    world.apply(abort)
    assert world.restore() == Outcome.RESTORING
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "failed", "failed", "restored"]


@pytest.mark.parametrize("deliveries", [1, 2])
def test_an_extension_keeps_the_hooked_model(world, violation, load_event, deliveries):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    for _ in range(deliveries):  # 30 minutes, at 10:30
        world.apply(read_command(load_event("command-extend")))
    world.draw(*IDS)  # everything is explained
    world.now = datetime(2026, 11, 23, 10, 59, 59, tzinfo=UTC)
    assert world.restore() == Outcome.WAITING
    world.later(1)
    assert world.restore() == Outcome.RESTORING


def test_an_extension_before_the_swap_shortens_nothing(world, violation, load_event):
    world.endpoint.live = EndpointState("Updating", "plain")
    world.swap(violation)
    world.apply(read_command(load_event("command-extend")))
    world.now = datetime(2026, 11, 23, 10, 55, tzinfo=UTC)
    world.endpoint.live = EndpointState("InService", "plain")
    world.confirm()
    world.endpoint.settle()
    assert world.confirm() == Outcome.HOOKED
    world.later(14)  # explaining lasts 15 minutes, the extension ended after 5
    assert world.restore() == Outcome.WAITING
    world.later(1)
    assert world.restore() == Outcome.RESTORING


def test_a_command_without_an_incident_changes_nothing(world, load_event):
    assert world.apply(read_command(load_event("command-abort"))) == Outcome.NO_INCIDENT


@pytest.mark.parametrize(
    "detail",
    [{}, {"endpoint": "e", "action": "delete"}, {"endpoint": "e", "action": "extend", "minutes": -1}],
)
def test_refuses_an_invalid_command(detail):
    with pytest.raises(BadInputError, match="not a command"):
        read_command({"id": "1", "detail": detail})


@pytest.mark.parametrize("start", State)
def test_every_state_leads_to_every_other(start):
    reached, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += TRANSITIONS[state]
    assert reached == set(State)


def test_notifications_of_an_incident_fit_sns(world, violation):
    world.run(violation)
    for notice in world.notices.published:
        assert len(notice.subject) <= SUBJECT_CHARACTERS
        assert notice.subject.isascii()
        assert max(map(len, notice.text.splitlines())) < 140


class Bus:
    """Deliver some events twice and some never, in any order; the sweep always runs."""

    def __init__(self, world, random):
        self.world, self.random, self.waiting = world, random, []

    def send(self, event):
        self.waiting += [event] * self.random.choices((0, 1, 2), (2, 5, 3))[0]

    def deliver(self):
        self.random.shuffle(self.waiting)
        while self.waiting:
            self.waiting.pop()()

    def sweep(self):
        self.world.confirm()
        self.world.restore()


@pytest.mark.parametrize("seed", range(5))
def test_twenty_incidents_with_lost_and_duplicate_events_end_in_normal(violation, seed):
    world, random = World(), Random(seed)
    world.dependencies = replace(
        world.dependencies, limits=Limits(incidents_per_day=1000, cooldown_minutes=0, explain_minutes=15)
    )
    bus = Bus(world, random)
    for number in range(20):
        cause = following(violation, 2 * number)
        bus.send(lambda cause=cause: world.swap(cause))
        world.swap(cause)  # the queue redelivers a violation until it is handled
        for _ in range(30):
            world.later(2)
            if world.endpoint.live.status == "Updating":
                world.endpoint.settle()
                bus.send(world.confirm)
            if world.incident.replays:
                for name in sorted(world.incident.replays - world.incident.heatmaps)[: random.randint(0, 2)]:
                    world.draw(name)
                    bus.send(world.restore)
            bus.deliver()
            bus.sweep()
        assert world.incident.state is State.NORMAL
        assert world.incident.heatmaps == IDS
        world.later(60)
    assert world.endpoint.updates == ["hooked", "plain"] * 20
    assert world.notified == ["swapping", "restored"] * 20
    assert world.replayed == 20
    assert len(world.incidents.closed) == 20


# ---------------------------------------------------------------- limits


def test_measures_the_cooldown_from_the_end_of_the_incident(world, violation):
    world.swap(violation)
    world.later(40)  # longer than the cooldown
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()
    world.confirm()
    world.later(29)
    assert world.swap(following(violation, 0, "drift")) == Outcome.COOLING_DOWN
    world.later(1)
    assert world.swap(following(violation, 0, "drift")) == Outcome.SWAPPING


def test_a_shorter_extension_does_not_replace_a_longer_one(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    far, near = world.now + timedelta(minutes=90), world.now + timedelta(minutes=30)
    for until in (far, near):
        assert world.apply(Command("traffic-signs", "extend", until, world.now)) == Outcome.EXTEND
    assert world.incident.keep_hooked_until == far
    world.later(89)
    assert world.restore() == Outcome.WAITING
    world.later(1)
    assert world.restore() == Outcome.RESTORING


def test_stays_failed_until_the_notification_is_sent(world, violation):
    world.swap(violation)
    world.endpoint.roll_back("no capacity")
    world.notices.away = 100
    with pytest.raises(RetryableError):
        world.confirm()
    for _ in range(5):
        world.later(2)
        with pytest.raises(RetryableError):
            world.confirm()
        assert world.incident.state is State.FAILED
    world.notices.away = 0
    assert world.confirm() == Outcome.FAILED
    assert world.notified == ["swapping", "failed"]
    assert world.confirm() == Outcome.NORMAL


def test_heat_maps_of_live_traffic_do_not_end_an_incident_with_replays(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*(f"live-{n}" for n in range(100)))
    assert world.restore() == Outcome.WAITING
    world.draw(*IDS)
    assert world.restore() == Outcome.RESTORING


def test_heat_maps_of_live_traffic_do_not_end_an_incident_before_the_replay(world, violation):
    """A batch of a client is rendered in seconds, the replay takes minutes: an attack could end the incident."""
    world.swap(violation)
    world.endpoint.settle()
    world.replays = RetryableError("S3 is away")
    with pytest.raises(RetryableError):
        world.confirm()
    world.draw(*(f"live-{n}" for n in range(100)))
    assert world.restore() == Outcome.WAITING
    world.replays = Replays(IDS, IDS)
    assert world.confirm() == Outcome.HOOKED
    assert world.incident.flagged == IDS
    world.replays = RetryableError("S3 is away")
    world.later(15)  # the deadline ends it
    assert world.restore() == Outcome.RESTORING


def test_a_replay_that_cannot_be_rendered_counts_as_explained(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw("event-1")
    assert world.restore() == Outcome.WAITING
    world.incidents.add_refusal(world.incident, "event-2")
    assert world.restore() == Outcome.RESTORING
    assert any(
        "all 2 replayed requests are explained, except 1 that cannot" in x for x in world.incident.timeline
    )


def test_sends_the_opening_notification_after_sns_refused_it_twice(world, violation):
    world.notices.away = 2
    with pytest.raises(RetryableError):
        world.swap(violation)
    world.endpoint.settle()
    with pytest.raises(RetryableError):
        world.confirm()
    world.later(2)
    assert world.confirm() == Outcome.HOOKED
    assert world.notified == ["swapping"]
    assert world.replayed == 1


def test_completes_an_incident_while_sns_refuses_everything(world, violation):
    world.notices.away = 10_000
    world.tick(violation, minutes=3 * 60)
    assert (world.incident.state, world.endpoint.updates) == (State.NORMAL, ["hooked", "plain"])
    world.notices.away = 0
    world.tick(violation, minutes=4)
    assert world.notified == ["restored"]


def test_retries_a_refused_restore_with_growing_delays_and_notifies_each_time(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.endpoint.refuse = [BadInputError("AccessDeniedException: no")] * 4
    tried = []
    world.restore()
    while world.incident.state is State.FAILED:
        before = world.notified.count("failed")
        world.later(2)
        world.confirm()
        if world.notified.count("failed") > before or world.incident.state is State.RESTORING:
            tried.append((world.now - world.incident.opened).total_seconds() / 60)
    assert tried == [10, 30, 70, 150]
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", *["failed"] * 4, "restored"]
    failures = [n for n in world.notices.published if n.attributes["event"] == "failed"]
    assert [re.search(r"Tries so far: (\d)", n.text)[1] for n in failures] == ["1", "2", "3", "4"]
    assert "Glassbox retries at 10:31 UTC" in failures[0].text
    assert "policy" in failures[0].text


def test_reports_a_missing_permission_at_once_with_what_to_do(world, violation):
    error = "AccessDeniedException: not authorized to perform: kms:CreateGrant"
    world.endpoint.refuse = [BadInputError(error)]
    assert world.swap(violation) == Outcome.FAILED
    text = world.notices.published[-1].text
    assert "kms:CreateGrant" in text
    assert "EndpointKeyArn" in text


def test_reports_a_denied_describe_endpoint_and_not_a_deleted_endpoint(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.refuse("describe", BadInputError("AccessDeniedException: sagemaker:DescribeEndpoint"))
    assert world.confirm() == Outcome.FAILED
    assert "DescribeEndpoint" in world.notices.published[-1].text
    assert "create-endpoint" not in world.notices.published[-1].text
    world.allow()
    world.later(10)
    assert world.confirm() == Outcome.RESTORING
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL


@pytest.mark.parametrize("first", ["restore", "confirm"])
def test_the_first_handler_reports_a_refused_describe_endpoint(world, violation, first, load_event):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.refuse("describe", BadInputError("AccessDeniedException: no"))
    assert getattr(world, first)() == Outcome.FAILED
    assert world.notified == ["swapping", "failed"]
    world.apply(read_command(load_event("command-abort")))
    assert [world.restore(), world.confirm()] == [
        Outcome.FAILED,
        Outcome.FAILED,
    ]  # no message returns to its queue
    assert world.notified == ["swapping", "failed"]


# ---------------------------------------------------------------- replays that the endpoint does not answer


def test_gives_up_an_unanswered_replay_after_five_tries(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.replays = Replays(IDS, IDS, "the endpoint does not answer: 500", frozenset({"event-2"}))
    world.confirm()
    world.draw("event-1")
    for _ in range(3):
        assert world.confirm() == Outcome.HOOKED  # duplicate events are not tries
    assert world.replayed == 1
    world.replays = Replays(frozenset({"event-2"}), frozenset({"event-2"}), "500", frozenset({"event-2"}))
    for tries in range(2, 6):
        assert world.restore() == Outcome.WAITING
        world.later(2)
        world.confirm()
        assert (world.replayed, world.incident.replay_attempts) == (tries, tries)
    assert world.incident.replays == world.incident.flagged == {"event-1"}
    assert world.incident.unanswered == frozenset()
    assert any("gave up 1 that the endpoint did not answer in 5 tries" in x for x in world.incident.timeline)
    world.later(2)
    world.confirm()
    assert world.replayed == 5
    assert world.restore() == Outcome.RESTORING


def test_waits_for_replays_that_are_answered_later(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.replays = Replays(IDS, IDS, unanswered=IDS)
    world.confirm()
    world.later(2)
    world.replays = Replays(IDS, IDS)
    world.confirm()
    assert (world.incident.replays, world.incident.unanswered) == (IDS, frozenset())
    world.draw(*IDS)
    assert world.restore() == Outcome.RESTORING


def test_explains_live_traffic_when_the_capture_files_are_unreadable(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.replays = BadInputError("no such bucket")
    assert world.confirm() == Outcome.HOOKED
    assert world.incident.replays == frozenset()
    assert any("no such bucket" in line for line in world.incident.timeline)


# ---------------------------------------------------------------- reports that cannot be written


def after_the_restore(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()


def test_ends_without_a_report_when_s3_refuses_it_for_an_hour(world, violation):
    after_the_restore(world, violation)
    world.refuse("report", RetryableError("S3 is away"))
    for _ in range(30):
        with pytest.raises(RetryableError, match="S3 is away"):
            world.confirm()
        assert world.swap(following(violation, 0, "drift")) == Outcome.JOINED
        world.later(2)
    world.later(2)
    assert world.confirm() == Outcome.NORMAL
    ended = world.notices.published[-1]
    assert ended.subject == "Glassbox traffic-signs: restored, NO report"
    assert "could not write the report: S3 is away" in ended.text
    assert f"saliency/traffic-signs/{world.incident.id}/" in ended.text
    assert "presign" not in ended.text


def test_ends_without_a_report_at_once_when_s3_refuses_it_for_good(world, violation):
    after_the_restore(world, violation)
    world.refuse("report", BadInputError("s3://bucket: NoSuchBucket"))
    assert world.confirm() == Outcome.NORMAL
    assert "NoSuchBucket" in world.notices.published[-1].text


def test_ends_without_a_report_when_each_invocation_is_killed(world, violation):
    after_the_restore(world, violation)
    world.refuse("report", MemoryError())
    with pytest.raises(MemoryError):
        world.confirm()
    world.later(121)
    assert world.confirm() == Outcome.NORMAL
    assert "the log of confirm_endpoint" in world.notices.published[-1].text


def test_an_abort_ends_an_incident_without_its_report(world, violation, load_event):
    after_the_restore(world, violation)
    world.refuse("report", RetryableError("S3 is away"))
    assert world.apply(read_command(load_event("command-abort"))) == Outcome.ABORT
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "restored"]


def test_sends_an_end_without_a_report_later_when_sns_refuses(world, violation):
    after_the_restore(world, violation)
    world.refuse("report", BadInputError("gone"))
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.confirm()
    world.later(2)
    for _ in range(2):
        assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "restored"]


# ---------------------------------------------------------------- one definition of an open incident


@pytest.mark.parametrize("state", State)
def test_opens_an_incident_only_where_none_is_open(world, violation, state):
    world.run(violation)
    world.incidents.items["traffic-signs"] = replace(world.incident, state=state)
    if world.incident.is_open:
        with pytest.raises(ConflictError):
            world.incidents.open(world.incident, world.incident)
    else:
        world.incidents.open(world.incident, world.incident)


# ---------------------------------------------------------------- sizes


def test_bounds_the_names_of_heat_maps_without_losing_replays(world, violation, load_event):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.draw(*(f"foreign-{n}" for n in range(10_000)))
    assert len(world.incident.heatmaps) == HEATMAPS_KEPT
    world.draw(*IDS)
    assert world.incident.heatmaps >= IDS
    assert world.restore() == Outcome.RESTORING
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL


def test_bounds_related_violations_and_the_timeline(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    for n in range(500):
        other = replace(following(violation, n / 1000, "drift"), reason="x" * 2000)
        assert world.swap(other) == Outcome.JOINED
        until = world.now + timedelta(minutes=n)
        assert world.apply(Command("traffic-signs", "extend", until, world.now)) == Outcome.EXTEND
    assert len(world.incident.related_violations) == RELATED_KEPT
    assert max(len(related.reason) for related in world.incident.related_violations) <= 400
    lines = world.incident.timeline
    assert len(lines) == 60
    assert "opened" in lines[0]
    assert f"{world.now + timedelta(minutes=499):%H:%M:%S}" in lines[-1]
    assert lines.count("(lines omitted)") == 1


def test_every_notification_fits_sns_and_has_its_own_headline(violation):
    notices = every_notification(violation)
    for notice in notices:
        assert notice.subject.isascii()
        assert notice.subject.startswith(f"Glassbox {'e' * 63}: ")
    # the topic cuts the subject
    heads = [notice.subject[:SUBJECT_CHARACTERS].removeprefix(f"Glassbox {'e' * 63}: ") for notice in notices]
    assert heads == [
        "violation, swapping to the",
        "violation (notify-only)",
        "violation, swap pending",
        "restored, report is ready",
        "restored, NO report",
        "incident closed, report is",
        "diagnosed after its end",
        "diagnosed after its end",
        "failed",
        "another violation, no inci",
        "another violation, no inci",
        "a new config is live, its ",
        "on the hooked model withou",
        "violation while paused, no",
        "DRILL, no violation",
        "command not understood, no",
        "aborted by an operator",
        "violation, NOT swapped: un",
        "incident closed: a new con",
        "the endpoint is UpdateRoll",
        "the hooked model did not s",
        "violation, NOT swapped: Sa",
        "violation, NOT swapped: en",
        "NOT restored, still on the",
        "DescribeEndpoint fails, st",
    ]


def test_a_reason_stays_on_one_line_of_the_notification(world, violation):
    reason = "Class 14\nTo stop it now:\nrm -rf /\x1b[31m"
    world.swap(replace(violation, reason=reason))
    lines = world.notices.published[0].text.split("\n")
    assert lines[0] == r"Class 14\nTo stop it now:\nrm -rf /\x1b[31m"
    assert "rm -rf /" not in lines
