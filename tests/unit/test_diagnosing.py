"""When an incident is diagnosed, and what ops get of it."""

import contextlib
from dataclasses import replace
from datetime import timedelta

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError, RetryableError
from glassbox.incidents import decisions, notifications
from glassbox.incidents.decisions import CallFailure, Decision
from glassbox.incidents.diagnosing import (
    EXPIRES,
    DiagnosisRequest,
    diagnose_incident,
    read_request,
    request_diagnosis,
)
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Diagnosed, EndpointState, Limits, Outcome, State
from glassbox.incidents.workflow import swap
from world import IDS, World, following

WHY = "Evidence of an attack: probability 93 %, JPEG brought back 9 of 12"


class Queue:
    def __init__(self):
        self.sent, self.error = [], None

    def send(self, message, delay=timedelta()):
        if self.error:
            raise self.error
        self.sent.append((message, delay))


class DiagnosedWorld(World):
    """A world whose new incidents are diagnosed."""

    def __init__(self, **limits):
        super().__init__(**limits)
        self.diagnoses, self.confirmations = Queue(), Queue()
        self.investigated, self.investigation = 0, lambda: None

    def swap(self, violation):
        return swap(violation, self.dependencies, self.now, request_diagnosis=self.request)

    def request(self, incident):
        request_diagnosis(incident, diagnoses=self.diagnoses, confirmations=self.confirmations)

    def investigate(self, incident):
        self.investigated += 1
        self.investigation()
        return Diagnosed("s3://bucket/incidents/traffic-signs/diagnosis.json", WHY)

    def diagnose(self, request=None):
        request = request or DiagnosisRequest("traffic-signs", self.incident.id)
        return diagnose_incident(
            request, self.dependencies, self.now, investigate=self.investigate, report=self.report
        )


class Killed(BaseException):
    """Lambda ended the invocation."""


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


@pytest.fixture
def world():
    return DiagnosedWorld()


def first_line(notice):
    return notice.text.split("\n")[0]


def test_a_new_incident_requests_its_diagnosis_and_a_sweep_in_a_minute(world, violation):
    assert world.swap(violation) == Outcome.SWAPPING
    assert world.diagnoses.sent == [
        ({"endpoint": "traffic-signs", "incident": world.incident.id}, timedelta())
    ]
    assert world.confirmations.sent == [({"sweep": True}, timedelta(minutes=1))]
    assert read_request(world.diagnoses.sent[0][0]) == DiagnosisRequest("traffic-signs", world.incident.id)


def test_the_beginning_is_notified_with_the_cause(world, violation):
    world.swap(violation)
    assert world.notified == []
    world.later(0.5)
    assert world.diagnose() == Outcome.DIAGNOSED
    assert world.notified == ["swapping"]
    assert first_line(world.notices.published[0]) == WHY
    assert violation.reason in world.notices.published[0].text
    assert world.incident.why == WHY and world.incident.diagnosis.endswith("/diagnosis.json")
    assert any("diagnosed: Evidence" in line for line in world.incident.timeline)


def test_the_beginning_waits_a_minute_for_the_diagnosis_and_is_sent_once(world, violation):
    world.swap(violation)
    world.later(59 / 60)
    world.confirm()
    assert world.notified == []
    world.later(1 / 60)
    world.confirm()
    assert world.notified == ["swapping"]
    assert first_line(world.notices.published[0]) == violation.reason
    world.later(1)
    world.diagnose()
    world.confirm()
    assert world.notified == ["swapping"]


@pytest.mark.parametrize("minutes", [0, 0.5, 3])
def test_the_end_names_the_cause(world, violation, minutes):
    world.swap(violation)
    world.later(minutes)
    world.diagnose()
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()
    assert world.confirm() == Outcome.NORMAL
    assert world.notified == ["swapping", "restored"]
    assert first_line(world.notices.published[-1]) == WHY


def test_a_diagnosis_after_the_end_rewrites_the_report_and_sends_one_addendum(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.later(2)
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()
    world.confirm()
    assert world.notified == ["swapping", "restored"]
    assert world.reported == 1
    for _ in range(2):
        world.diagnose()
        world.later(3)
        world.confirm()
    assert world.notified == ["swapping", "restored", "diagnosed"]
    assert world.reported == 2
    assert first_line(world.notices.published[-1]) == WHY


def test_an_addendum_that_the_topic_refused_is_sent_by_a_sweep(world, violation):
    world.run(violation)
    world.refuse("publish", RetryableError("throttled"))
    with pytest.raises(RetryableError):
        world.diagnose()
    world.allow()
    assert world.diagnose() == Outcome.NOT_DIAGNOSED  # the retry of the message
    world.later(3)
    world.confirm()
    world.confirm()
    assert world.notified.count("diagnosed") == 1


def test_a_beginning_that_the_topic_refused_is_sent_by_a_sweep(world, violation):
    world.swap(violation)
    world.refuse("publish", RetryableError("throttled"))
    with pytest.raises(RetryableError):
        world.diagnose()
    world.allow()
    world.later(1)
    world.confirm()
    assert world.notified == ["swapping"]
    assert first_line(world.notices.published[0]) == WHY


def test_a_duplicate_message_investigates_once(world, violation):
    world.swap(violation)
    inner = []

    def deliver_again():
        world.later(0.1)
        inner.append(world.diagnose())

    world.investigation = deliver_again
    assert world.diagnose() == Outcome.DIAGNOSED
    assert inner == [Outcome.NOT_DIAGNOSED]
    assert world.diagnose() == Outcome.NOT_DIAGNOSED
    assert world.investigated == 1


def test_an_invocation_that_was_killed_is_repeated_once(world, violation):
    world.swap(violation)

    def killed():
        raise Killed

    world.investigation = killed
    for delay in (timedelta(), EXPIRES - timedelta(seconds=1), timedelta(seconds=1), EXPIRES):
        world.now += delay
        with contextlib.suppress(Killed):
            world.diagnose()
    assert world.investigated == 2
    assert world.incident.diagnosis_attempts == 2


def test_a_claim_whose_response_was_lost_is_its_own(world, violation):
    world.swap(violation)
    save = world.incidents.save

    def twice(before, after):
        save(before, after)
        world.incidents.save = save
        save(before, after)

    world.incidents.save = twice
    assert world.diagnose() == Outcome.DIAGNOSED
    assert (world.investigated, world.incident.diagnosis_attempts) == (1, 1)


def test_an_incident_whose_markers_expire_is_not_diagnosed(world, violation):
    world.swap(violation)
    world.later(23 * 60)  # repaired inputs would be counted as traffic soon
    assert world.diagnose() == Outcome.NOT_DIAGNOSED
    assert world.investigated == 0


def test_a_conflicting_write_does_not_repeat_the_investigation(world, violation):
    world.swap(violation)
    world.investigation = lambda: world.incidents.save(
        world.incident, replace(world.incident, aborted=True, revision=world.incident.revision + 1)
    )
    assert world.diagnose() == Outcome.DIAGNOSED
    assert world.investigated == 1
    assert world.incident.aborted and world.incident.why == WHY


def test_an_incident_that_another_has_followed_is_not_diagnosed(world, violation):
    world.run(violation)
    old = DiagnosisRequest("traffic-signs", world.incident.id)
    world.later(60)
    world.run(following(violation, 3))
    assert world.diagnose(old) == Outcome.NOT_DIAGNOSED
    assert world.diagnose(DiagnosisRequest("another", old.incident)) == Outcome.NOT_DIAGNOSED
    assert world.investigated == 0


def test_a_queue_that_refuses_does_not_delay_the_swap_and_is_asked_again(world, violation):
    world.diagnoses.error = RetryableError("SQS is away")
    with pytest.raises(RetryableError, match="its diagnosis was not requested: SQS is away"):
        world.swap(violation)
    assert world.endpoint.updates == ["hooked"]
    world.diagnoses.error = None
    assert world.swap(violation) == Outcome.DUPLICATE
    assert len(world.diagnoses.sent) == 1


def test_a_duplicate_violation_after_the_diagnosis_began_requests_none(world, violation):
    world.swap(violation)
    world.diagnose()
    assert world.swap(violation) == Outcome.DUPLICATE
    assert len(world.diagnoses.sent) == 1


def test_joined_and_suppressed_violations_request_no_diagnosis(world, violation):
    world.swap(violation)
    assert world.swap(replace(violation, check="drift")) == Outcome.JOINED
    world.endpoint.settle()
    world.confirm()
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()
    world.confirm()
    assert world.swap(following(violation, 2)) == Outcome.COOLING_DOWN
    assert len(world.diagnoses.sent) == 1


def test_the_addendum_to_an_incident_without_a_report_names_the_diagnosis(world, violation):
    world.run(violation)
    closed = replace(
        world.incident, report="", unreported="S3 denied it", why=WHY, diagnosis="s3://b/diagnosis.json"
    )
    text = notifications.diagnosed(closed).text
    assert "aws s3 cp s3://b/diagnosis.json -" in text and "written again" not in text


def test_a_swap_that_failed_is_diagnosed_without_a_beginning(world, violation):
    world.refuse("update", BadInputError("denied"))
    assert world.swap(violation) == Outcome.FAILED
    world.diagnose()
    assert world.incident.state is State.FAILED and world.incident.why == WHY
    assert world.notified == ["failed"]


def test_a_pending_swap_is_notified_with_the_cause_once_the_diagnosis_is_made(world, violation):
    world.endpoint.live = replace(world.endpoint.live, status="Updating")
    assert world.swap(violation) == Outcome.PENDING
    world.diagnose()
    assert world.notified == []
    world.later(1)
    assert world.confirm() == Outcome.SWAPPING
    assert first_line(world.notices.published[0]) == WHY
    assert "The swap is pending" in world.notices.published[0].text


def test_notify_only_is_diagnosed(violation):
    world = DiagnosedWorld()
    world.dependencies = replace(world.dependencies, limits=Limits(react=False))
    assert world.swap(violation) == Outcome.WATCHING
    assert world.notified == []
    world.diagnose()
    assert world.notified == ["watching"]
    assert first_line(world.notices.published[0]) == WHY


@pytest.mark.parametrize(
    "message", [{}, {"endpoint": "e"}, {"endpoint": 1, "incident": "i"}, {"sweep": True}]
)
def test_a_message_that_requests_no_diagnosis_is_refused(message):
    with pytest.raises(BadInputError, match="expected endpoint and incident of a diagnosis"):
        read_request(message)


def test_an_incident_holds_when_the_endpoint_was_updated_last(world, violation):
    updated = world.now - timedelta(minutes=7)
    world.endpoint.live = replace(world.endpoint.live, modified=updated)
    world.swap(violation)
    assert world.incident.endpoint_modified == updated
    world.diagnose()  # and it is kept
    assert world.incident.endpoint_modified == updated


def test_a_restore_does_not_count_as_an_update(world, violation):
    world.swap(violation)
    closed = replace(world.incident, state=State.NORMAL, since=world.now + timedelta(minutes=5))
    decision = Decision(replace(closed, id="the next"))
    for minutes, expected in ((4, None), (5, None), (6, world.now + timedelta(minutes=6))):
        live = EndpointState("InService", "plain", modified=world.now + timedelta(minutes=minutes))
        found = decisions.with_last_update(decision, live, closed)
        assert found.incident.endpoint_modified == expected


@pytest.mark.parametrize(
    "live", [EndpointState("InService", "plain"), CallFailure("throttled", retryable=True)]
)
def test_an_endpoint_that_does_not_name_its_update_delays_nothing(world, violation, live):
    world.swap(violation)
    decision = Decision(world.incident)
    assert decisions.with_last_update(decision, live, None) == decision
