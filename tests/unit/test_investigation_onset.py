"""The time of the onset in a diagnosis that the investigation writes."""

from collections import Counter
from datetime import UTC, datetime, timedelta

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


def test_a_diagnosis_names_when_the_violation_was_first_seen():
    cause = Violation("signs", "class_share", START, END, "x", "AllTraffic", 14)
    incident = Incident("signs", replays.INCIDENT, END, State.HOOKED, END, "plain", "hooked", cause)
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
    found = read_diagnosis(objects.get("bucket", made.uri.removeprefix("s3://bucket/")))
    assert found.history == (
        "First seen at 2026-11-23 10:30 UTC: class 14 0.0% of 1470 before, 100.0% of 30 since.",
    )
