"""The time of the onset in a diagnosis that the investigation writes."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

import replays
from fakes import FakeObjects
from glassbox.diagnosis.investigation import DiagnosisSettings, InvestigationDependencies, investigate
from glassbox.incidents.diagnosis import read_diagnosis
from glassbox.incidents.model import Incident, State
from glassbox.incidents.replay import ReplayDependencies, ReplaySettings
from glassbox.monitoring.counts import SLOT, Counts
from glassbox.violation import Violation

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
END = START + timedelta(hours=1)


class Slots:
    """A counts table whose last half hour is all of class 14; it records the reads."""

    def __init__(self):
        self.reads = []

    def read(self, variant_key, window):
        self.reads.append((variant_key, window.start, window.end))
        times = [window.start + i * SLOT for i in range((window.end - window.start) // SLOT)]
        late = END - 3 * SLOT
        return {t: Counts(Counter({14 if t >= late else 3: 10}), records=10) for t in times}


class Runtime:
    def invoke(self, endpoint, request):
        raise AssertionError("nothing was captured")


class Key:
    sign, public = staticmethod(replays.sign), staticmethod(replays.key)


def diagnosed(modified=None):
    cause = Violation("signs", "class_share", START, END, "x", "AllTraffic", 14)
    incident = Incident(
        "signs",
        replays.INCIDENT,
        END,
        State.HOOKED,
        END,
        "plain",
        "hooked",
        cause,
        endpoint_modified=modified,
    )
    objects, slots = FakeObjects(), Slots()
    settings = ReplaySettings(endpoint_name="signs", capture_bucket="bucket", capture_prefix="capture")
    replayed = ReplayDependencies(settings=settings, captures=objects, key=Key, runtime=Runtime())
    made = investigate(
        incident,
        InvestigationDependencies(
            settings=DiagnosisSettings(), replays=replayed, counts=slots, bucket="bucket"
        ),
    )
    assert slots.reads == [("signs/AllTraffic", START - timedelta(hours=24), END)]
    return read_diagnosis(objects.get("bucket", made.uri.removeprefix("s3://bucket/")))


FIRST_SEEN = "First seen at 2026-11-23 10:30 UTC: class 14 0.0% of 1470 before, 100.0% of 30 since."


def test_a_diagnosis_names_when_the_violation_was_first_seen():
    assert diagnosed().history == (FIRST_SEEN,)


def test_an_update_at_the_onset_is_the_cause_of_what_nothing_else_explains():
    found = diagnosed(END - timedelta(minutes=32))
    assert found.cause.name == "the deployment"
    by_chance = 3 / 150  # slots around the onset, of those of 25 hours
    expected = 0.2 * 0.95 / (0.2 * 0.95 + 0.8 * by_chance)
    assert found.cause.probability == pytest.approx(expected)
    assert found.cause.evidence == (
        "it began within 30 minutes of the endpoint's update at 10:28 UTC, and nothing else explains it",
    )
    assert found.history == (FIRST_SEEN, "The endpoint was updated last at 2026-11-23 10:28 UTC.")
    assert found.command == "aws sagemaker describe-endpoint --endpoint-name signs"


# two slots before the onset at 10:30, and the end of its own slot, are the last that count
@pytest.mark.parametrize(("minute", "counts"), [(9, False), (10, True), (39, True), (40, False)])
def test_an_update_at_another_time_is_only_named(minute, counts):
    found = diagnosed(START + timedelta(minutes=minute))
    assert (found.cause is not None) is counts
    assert len(found.history) == 2
