"""React=false: violations are reported, and the endpoint is never changed."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fakes import FakeObjects
from glassbox.aws.bootstrap import IncidentSettings
from glassbox.errors import BadInputError, RetryableError, SettingsError
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Command, EndpointState, Limits, Outcome, State
from glassbox.settings import from_env
from world import World, following

OVER = datetime(2026, 11, 23, 11, tzinfo=UTC)  # the end of the violation's window


@pytest.fixture
def world():
    world = World(react=False)
    # no call to the endpoint: its role has no permission, and the hooked config may not exist
    for call in ("describe", "update", "replay"):
        world.refuse(call, AssertionError(call))
    return world


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


def test_reports_a_violation_without_touching_the_endpoint(world, violation):
    assert world.swap(violation) == Outcome.WATCHING
    assert world.incident.state is State.WATCHING
    world.now = OVER - timedelta(seconds=1)
    assert [world.confirm(), world.restore()] == [Outcome.WATCHING, Outcome.NOTHING_TO_RESTORE]
    world.now = OVER
    assert [world.confirm(), world.confirm()] == [Outcome.NORMAL, Outcome.NORMAL]
    assert world.notified == ["watching", "closed"]
    assert world.reported == 1
    begun, ended = world.notices.published
    assert begun.subject == "Glassbox traffic-signs: violation (notify-only)"
    assert violation.reason in begun.text
    assert "at 11:00 UTC" in begun.text
    assert "swap" not in begun.text
    assert ended.subject == "Glassbox traffic-signs: incident closed, report is ready"
    assert "aws s3 presign s3://bucket/incidents/traffic-signs/index.html" in ended.text
    assert "did not change the endpoint" in ended.text
    assert "serves" not in ended.text
    assert world.endpoint.updates == []


def test_duplicates_and_another_violation_open_one_incident(world, violation):
    assert [world.swap(violation), world.swap(violation)] == [Outcome.WATCHING, Outcome.WATCHING]
    other = following(violation, 0, "drift")
    assert [world.swap(other), world.swap(other)] == [Outcome.JOINED, Outcome.JOINED]
    assert world.incident.related_violations == {other}
    assert world.notified == ["watching"]


def test_cooldown_and_cap_apply(world, violation):
    for hours in range(3):
        assert world.swap(following(violation, 2 * hours)) == Outcome.WATCHING
        world.now = OVER + timedelta(hours=2 * hours)
        assert world.confirm() == Outcome.NORMAL
        world.later(5)
        assert world.swap(following(violation, 2 * hours, "drift")) == Outcome.COOLING_DOWN
        world.later(55)
    assert world.swap(following(violation, 8)) == Outcome.CAP_REACHED
    assert world.notified == ["watching", "closed", "cooling-down"] * 3 + ["cap-reached"]


def test_a_redelivery_sends_what_sns_refused(world, violation):
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    assert world.swap(violation) == Outcome.WATCHING
    assert world.notified == ["watching"]


def test_the_sweep_sends_the_opening_notification_without_a_redelivery(world, violation):
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    world.later(2)
    world.confirm()
    assert world.notified == ["watching"]


def test_the_next_sweep_reports_a_window_that_has_ended(world, load_event):
    assert world.swap(read_violation(load_event("command-open"), FakeObjects())) == Outcome.WATCHING
    world.now = datetime(2026, 11, 23, 10, 30, tzinfo=UTC)
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["watching", "closed"]


def test_an_abort_ends_the_incident_now(world, violation):
    world.swap(violation)
    assert world.apply(Command("traffic-signs", "abort", OVER, world.now)) == Outcome.ABORT
    assert world.restore() == Outcome.NOTHING_TO_RESTORE
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["watching", "closed"]
    assert world.endpoint.updates == []


def test_an_extension_watches_longer(world, violation):
    world.swap(violation)
    until = OVER + timedelta(minutes=30)
    assert world.apply(Command("traffic-signs", "extend", until, world.now)) == Outcome.EXTEND
    assert any("watch until 2026-11-23 11:30:00 UTC" in line for line in world.incident.timeline)
    world.now = until - timedelta(seconds=1)
    assert world.confirm() == Outcome.WATCHING
    world.now = until
    assert world.confirm() == Outcome.NORMAL


@pytest.mark.parametrize("error", [RetryableError("S3 is away"), BadInputError("NoSuchBucket")])
def test_ends_without_a_report_that_cannot_be_written(world, violation, error):
    world.refuse("report", error)
    world.swap(violation)
    world.tick(violation, 3 * 60)
    assert world.incident.state is State.NORMAL
    assert world.notified == ["watching", "closed"]
    assert str(error) in world.notices.published[-1].text


def test_does_not_report_a_config_without_a_twin(world):
    world.endpoint.live = EndpointState("InService", "another")
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == []


def test_restores_an_endpoint_that_was_swapped_before(violation):
    world = World()
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()
    world.dependencies = replace(world.dependencies, limits=Limits(react=False))
    world.tick(violation, 60)
    assert world.incident.state is State.NORMAL
    assert world.endpoint.live.config == "plain"


ENVIRONMENT = {"ENDPOINT_NAME": "traffic-signs", "INCIDENTS_TABLE": "t", "TOPIC_ARN": "a", "STACK_NAME": "s"}


def test_requires_the_configs_unless_react_is_false():
    with pytest.raises(SettingsError, match=r"PLAIN_CONFIG is not set.*HOOKED_CONFIG is not set"):
        from_env(IncidentSettings, ENVIRONMENT)
    with pytest.raises(SettingsError, match="REACT='maybe'"):
        from_env(IncidentSettings, ENVIRONMENT | {"REACT": "maybe"})
    assert from_env(IncidentSettings, ENVIRONMENT | {"REACT": "false", "HOOKED_CONFIG": ""}).react is False
    both = ENVIRONMENT | {"PLAIN_CONFIG": "p", "HOOKED_CONFIG": "h"}
    assert from_env(IncidentSettings, both).react is True


def test_no_notification_mentions_a_swap(world, violation):
    for hours in range(3):
        world.swap(following(violation, 2 * hours))
        world.now = OVER + timedelta(hours=2 * hours)
        world.confirm()
        world.later(5)
        world.swap(following(violation, 2 * hours, "drift"))
        world.later(55)
    world.swap(following(violation, 8))
    assert {"watching", "closed", "cooling-down", "cap-reached"} == set(world.notified)
    for notice in world.notices.published:
        assert not re.search("swap|hooked|serves|restore", notice.subject + notice.text)
