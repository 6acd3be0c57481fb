import base64
import json
import re
from collections import Counter
from datetime import UTC, datetime

import pytest

from fakes import FakeObjects
from glassbox.incident import Incident, State
from glassbox.page import write_page
from glassbox.tally import Counts
from glassbox.violation import read_violation

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


class Store:
    def read(self, stream, window):
        assert (stream, window.start) == ("traffic-signs/AllTraffic", START)
        return {START: Counts(classes=Counter({14: 322, 3: 78}))}, []


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    timeline = ("2026-11-23T10:21:05Z opened: <b>not markup</b>",)
    return Incident(
        "traffic-signs", "id", START, State.RESTORING, START, "plain", "hooked", cause, timeline=timeline
    )


def facts(label, faithful=True):
    facts = {"class": label, "label": None, "probability": 0.75, "completeness": {"faithful": faithful}}
    return json.dumps(facts).encode()


def test_the_page_shows_everything_and_needs_nothing(incident):
    folder = "saliency/traffic-signs/id/"
    objects = FakeObjects(
        {
            ("bucket", folder + "event-1.json"): facts(14),
            ("bucket", folder + "event-1.png"): b"first",
            ("bucket", folder + "event-2.json"): facts(3, faithful=False),
            ("bucket", folder + "event-2.png"): b"second",
            ("bucket", "saliency/traffic-signs/another/event-3.json"): facts(14),
        }
    )
    report = write_page(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    assert report.uri == "s3://bucket/incidents/traffic-signs/id/index.html"
    assert report.findings == (
        "1 x class 3, probability 75% to 75%, 1 NOT FAITHFUL",
        "1 x class 14, probability 75% to 75%, all faithful",
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    flagged, compared = page.index("Flagged:"), page.index("For comparison")
    assert flagged < page.index(base64.b64encode(b"first").decode()) < compared
    assert compared < page.index(base64.b64encode(b"second").decode())
    assert page.count("not faithful") == 1
    assert "class 14: 322" in page
    assert "400 predictions" in page
    assert incident.cause.reason in page
    assert "&lt;b&gt;not markup&lt;/b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    again = dict(objects.objects)
    write_page(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    assert objects.objects == again


def test_an_incident_without_pictures_says_so(incident):
    objects = FakeObjects()
    write_page(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    assert "No picture of the flagged class was made." in page
