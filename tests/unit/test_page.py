import base64
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

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
        return {START: Counts(classes=Counter({14: 322, 3: 78}))}


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident(
        "traffic-signs",
        "id",
        START,
        State.RESTORING,
        START,
        "plain",
        "hooked",
        cause,
        replays=frozenset({"event-1", "event-2"}),
        flagged=frozenset({"event-1"}),
        timeline=("2026-11-23T10:21:05Z opened: <b>not markup</b>",),
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
            ("bucket", folder + "a-run-000007.json"): facts(3),
            ("bucket", folder + "a-run-000007.png"): b"third",
            ("bucket", "saliency/traffic-signs/another/event-3.json"): facts(14),
        }
    )
    report = write_page(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    assert report.uri == "s3://bucket/incidents/traffic-signs/id/index.html"
    assert report.findings == (
        "2 x class 3, probability 75% to 75%, 1 NOT FAITHFUL",
        "1 x class 14, probability 75% to 75%, all faithful",
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    order = ["Flagged:", b"first", "For comparison", b"second", "Live traffic meanwhile", b"third"]
    places = [page.index(x if isinstance(x, str) else base64.b64encode(x).decode()) for x in order]
    assert places == sorted(places)
    assert page.count("not faithful") == 1
    assert re.search('fill="#c4262e"><title>class 14: 322', page)
    assert re.search('fill="#2f6fb0"><title>class 3: 78', page)
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
    assert "None of the flagged requests was explained" in page


def test_of_the_monitors_incident_the_flagged_class_is_marked_though_it_names_none(incident, load_event):
    cause = replace(
        read_violation(load_event("monitor-job-violations"), FakeObjects()),
        window_start=START,
        window_end=START + timedelta(hours=1),
    )
    folder = "saliency/traffic-signs/id/"
    objects = FakeObjects(
        {
            ("bucket", f"{folder}event-{n}.{kind}"): facts(label)
            for n, label in ((1, 14), (2, 3))
            for kind in ("json", "png")
        }
    )
    incident = replace(incident, cause=cause)
    write_page(incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda _: ["AllTraffic"])
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    assert re.search('fill="#c4262e"><title>class 14: 322', page)
    assert page.index("Flagged:") < page.index("saliency of event-1") < page.index("For comparison")
