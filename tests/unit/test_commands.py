"""An operator's events: commands, a pause, a drill, and answers to those with a mistake."""

import copy
from datetime import timedelta

import pytest

from fakes import FakeObjects
from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.errors import RetryableError
from glassbox.incidents.commands import handle_command
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Outcome
from glassbox.timestamps import parse_timestamp
from world import World

OTHERS = {"traffic-lights", "traffic-signs-2", "shop"}  # endpoints of the account
AT = parse_timestamp("2026-11-23T10:30:00Z")  # of the sample events


@pytest.fixture
def world():
    world = World()
    world.now = AT + timedelta(seconds=5)
    return world


@pytest.fixture
def event(load_event):
    def edited(action, **changes):
        made = copy.deepcopy(load_event("command-abort"))
        made["detail"] = {"endpoint": "traffic-signs", "action": action} | changes.pop("detail", {})
        return made | changes

    return edited


def handle(world, event):
    return handle_command(event, "traffic-signs", world.dependencies, world.now, exists=OTHERS.__contains__)


def answers(world):
    return [n for n in world.notices.published if n.event == "not-understood"]


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"detail": {"action": "opne"}}, "action"),
            ({"detail": {"action": 7}}, "action"),
            ({"detail": {"endpoint": "trafic-signs"}}, "endpoint trafic-signs does not exist."),
            ({"detail": {"endpoint": "Traffic-Signs"}}, "endpoint Traffic-Signs does not exist."),
            ({"detail": {"endpoint": None}}, "it names no endpoint."),
            ({"detail": {"minutes": "many"}}, "minutes"),
            ({"detail": {"minutes": 10_000}}, "minutes"),
            ({"detail-type": "Glassbox Comand"}, "it has detail type Glassbox Comand."),
        ],
    )
    def test_are_answered_once_with_what_is_expected(self, world, event, changes, reason):
        made = event("extend", **changes)
        for _ in range(2):
            assert handle(world, made) == Outcome.NOT_UNDERSTOOD
        (notice,) = answers(world)
        assert reason in notice.text
        assert 'endpoint "traffic-signs"' in notice.text
        assert "make abort STACK=glassbox" in notice.text

    def test_without_a_detail_are_answered(self, world, event):
        for detail in (None, [], "text"):
            assert (
                handle(world, event("abort") | {"detail": detail, "id": str(detail)})
                == Outcome.NOT_UNDERSTOOD
            )
        assert len(answers(world)) == 3

    @pytest.mark.parametrize("name", [*sorted(OTHERS), "camera", "a" * 10_000, ""])
    def test_of_another_endpoint_are_left_to_its_stack(self, world, event, name):
        """Ten stacks must not answer each other's commands, nor each mistyped one."""
        assert handle(world, event("abrot", detail={"endpoint": name})) == Outcome.OF_ANOTHER
        assert not world.notices.published

    def test_of_an_account_that_does_not_answer_are_retried(self, world, event):
        def away(name):
            raise RetryableError("throttled")

        made = event("abort", detail={"endpoint": "trafic-signs"})
        with pytest.raises(RetryableError, match="throttled"):
            handle_command(made, "traffic-signs", world.dependencies, world.now, exists=away)

    def test_that_cannot_be_answered_are_retried(self, world, event):
        world.refuse("publish", RetryableError("throttled"))
        with pytest.raises(RetryableError):
            handle(world, event("opne"))
        world.allow()
        assert handle(world, event("opne")) == Outcome.NOT_UNDERSTOOD
        assert len(answers(world)) == 1


class TestCommands:
    def test_of_an_incident_change_it(self, world, event, violation):
        world.swap(violation)
        assert handle(world, event("extend", detail={"minutes": "20"})) == Outcome.EXTEND
        assert world.incident.keep_hooked_until == AT + timedelta(minutes=20)
        assert handle(world, event("abort")) == Outcome.ABORT
        assert world.incident.aborted

    def test_to_open_are_left_to_their_own_rule(self, world, event):
        assert handle(world, event("open")) == Outcome.OPEN
        assert world.incident is None
        assert not world.notices.published

    def test_a_drill_is_sent_once_and_changes_nothing(self, world, event):
        for _ in range(2):
            assert handle(world, event("drill")) == Outcome.DRILL
        (notice,) = world.notices.published
        assert (notice.event, notice.severity) == ("drill", "info")
        assert notice.subject == "Glassbox traffic-signs: DRILL, no violation"
        assert world.incident is None
        assert handle(world, event("drill") | {"id": "another"}) == Outcome.DRILL
        assert len(world.notices.published) == 2


class TestPause:
    def test_keeps_violations_from_opening_an_incident_until_it_ends(self, world, event, violation):
        assert handle(world, event("pause", detail={"minutes": 60})) == Outcome.PAUSED
        for _ in range(2):
            assert world.swap(violation) == Outcome.PAUSED
        assert world.incident is None
        assert not world.endpoint.updates
        (notice,) = world.notices.published
        assert notice.event == "paused"
        assert violation.reason in notice.text
        assert "until 2026-11-23 11:30 UTC" in notice.text
        world.now = AT + timedelta(minutes=60)
        assert world.swap(violation) == Outcome.SWAPPING

    def test_ends_by_a_command_which_an_older_one_does_not_undo(self, world, event, violation):
        pause = event("pause", detail={"minutes": 60})
        handle(world, pause)
        assert handle(world, event("resume", time="2026-11-23T10:31:00Z")) == Outcome.RESUMED
        handle(world, pause)
        world.now = AT + timedelta(minutes=1)
        assert world.swap(violation) == Outcome.SWAPPING

    def test_leaves_an_open_incident_alone(self, world, event, violation):
        world.swap(violation)
        handle(world, event("pause"))
        world.endpoint.settle()
        assert world.confirm() == Outcome.HOOKED

    def test_does_not_limit_an_operator(self, world, event, load_event):
        handle(world, event("pause"))
        opened = read_violation(load_event("command-open"), FakeObjects())
        assert world.swap(opened) == Outcome.SWAPPING


class TestAccount:
    """Which names SageMaker is asked for."""

    class Client:
        def __init__(self):
            self.asked = []

        def list_endpoints(self, NameContains, MaxResults, NextToken=None):
            self.asked.append(NameContains)
            if NextToken is None:
                return {"Endpoints": [{"EndpointName": f"{NameContains}-2"}], "NextToken": "more"}
            return {"Endpoints": [{"EndpointName": "traffic-signs"}]}

    def test_is_searched_over_several_pages_for_the_exact_name(self):
        client = self.Client()
        assert SageMakerEndpoint(client).exists("traffic-signs")
        assert not SageMakerEndpoint(client).exists("traffic")

    @pytest.mark.parametrize("name", ["traffic signs", "traffic_signs", "", "a" * 64])
    def test_is_not_asked_for_a_name_that_sagemaker_refuses(self, name):
        """The mistyped command is answered then, and not retried until it is a dead letter."""
        client = self.Client()
        assert not SageMakerEndpoint(client).exists(name)
        assert not client.asked
