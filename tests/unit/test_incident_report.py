import base64
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fakes import FakeObjects
from glassbox.explanation.facts import (
    Blurred,
    ClassProbability,
    Completeness,
    Display,
    Facts,
    ImageSize,
    LayerShare,
    to_json,
)
from glassbox.incidents.events import read_violation
from glassbox.incidents.incident_report import write_report
from glassbox.incidents.model import Incident, State
from glassbox.incidents.replay import Input
from glassbox.monitoring.counts import Counts

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


class Store:
    def read(self, variant_key, window):
        assert (variant_key, window.start) == ("traffic-signs/AllTraffic", START)
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


def facts(predicted_class, complete=True, blurred=None):
    return to_json(
        Facts(
            predicted_class=predicted_class,
            class_name=None,
            probability=0.75,
            logit=8.0,
            top=(ClassProbability(predicted_class, 0.75),),
            completeness=Completeness(
                complete=complete,
                logit=8.0,
                sum=8.0,
                residual=0.0,
                relative_error=0.0,
                sum_abs=9.0,
                held={},
                unaccounted=(),
            ),
            layers=(LayerShare("input", "input", 8.0, 1.0),),
            display=Display((1.0, 99.5), 0.0, 1.0),
            input_image=ImageSize(48, 48, 3),
            model="ResNet18",
            trace_form="reduced",
            step=0,
            sample=0,
            request={},
            blurred=blurred,
        )
    )


def changed(**members):
    """Facts with other members; those of ``completeness`` cannot be changed one by one."""
    return json.dumps(json.loads(facts(14)) | members).encode()


def test_shows_every_replay_beside_a_large_batch(incident):
    """All samples of a large batch are rendered, and the report still shows every other replay."""
    folder, names = "saliency/traffic-signs/id/", [f"event-{n}" for n in range(1, 17)]
    incident = replace(incident, replays=frozenset(names), flagged=frozenset(names[:12]))
    samples = [f"event-1-{n}" for n in range(1, 200)]
    objects = FakeObjects({("bucket", f"{folder}{name}.json"): facts(14) for name in names + samples})
    objects.objects |= {("bucket", f"{folder}{name}.png"): name.encode() for name in names + samples}
    write_report(incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [])
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    shown = set(re.findall(r'alt="\w+ of ([\w-]+)"', page))
    assert shown >= set(names)
    assert len(shown) == 60


def test_the_report_is_complete_and_loads_nothing(incident):
    folder = "saliency/traffic-signs/id/"
    objects = FakeObjects(
        {
            ("bucket", folder + "event-1.json"): facts(14),
            ("bucket", folder + "event-1.png"): b"first",
            ("bucket", folder + "event-2.json"): facts(3, complete=False),
            ("bucket", folder + "event-2.png"): b"second",
            ("bucket", folder + "a-run-000007.json"): facts(3),
            ("bucket", folder + "a-run-000007.png"): b"third",
            ("bucket", "saliency/traffic-signs/another/event-3.json"): facts(14),
        }
    )
    report = write_report(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    assert report.uri == "s3://bucket/incidents/traffic-signs/id/index.html"
    assert report.findings == (
        "2 x class 3, probability 75% to 75%, 1 INCOMPLETE",
        "1 x class 14, probability 75% to 75%, all complete",
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    order = [
        "Flagged requests",
        b"first",
        "For comparison",
        b"second",
        "Live traffic during the incident",
        b"third",
    ]
    places = [page.index(x if isinstance(x, str) else base64.b64encode(x).decode()) for x in order]
    assert places == sorted(places)
    assert page.count("incomplete") == 1
    assert re.search('fill="#c4262e"><title>class 14: 322', page)
    assert re.search('fill="#2f6fb0"><title>class 3: 78', page)
    assert "400 predictions" in page
    assert incident.cause.reason in page
    assert "&lt;b&gt;not markup&lt;/b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    again = dict(objects.objects)
    write_report(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    assert objects.objects == again


def test_reports_an_incident_without_heat_maps(incident):
    objects = FakeObjects()
    write_report(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: [cause.variant]
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    assert "No flagged request was explained" in page


def test_states_what_blurring_does_to_the_probability(incident):
    folder = "saliency/traffic-signs/id/"
    objects = FakeObjects(
        {
            ("bucket", f"{folder}event-1.json"): facts(14, blurred=Blurred(0.12, 0.7)),
            ("bucket", f"{folder}event-1.png"): b"",
            ("bucket", f"{folder}event-2.json"): facts(3),
            ("bucket", f"{folder}event-2.png"): b"",
        }
    )
    _, page = write(incident, objects)
    sentences = re.findall(r"<br>(class [^<]*)</div>", page)
    assert sentences == [
        "class 14 falls from 0.75 to 0.12 when the best 10 % is blurred; to 0.70 for a random 10 %"
    ]


def test_marks_the_most_frequent_flagged_class_when_the_violation_has_none(incident, load_event):
    cause = replace(
        read_violation(load_event("monitor-job-violations"), FakeObjects()),
        window_start=START,
        window_end=START + timedelta(hours=1),
    )
    folder = "saliency/traffic-signs/id/"
    objects = FakeObjects(
        {
            ("bucket", f"{folder}event-{n}.{kind}"): facts(predicted_class)
            for n, predicted_class in ((1, 14), (2, 3))
            for kind in ("json", "png")
        }
    )
    incident = replace(incident, cause=cause)
    write_report(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda _: ["AllTraffic"]
    )
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    assert re.search('fill="#c4262e"><title>class 14: 322', page)
    assert page.index("Flagged requests") < page.index("saliency of event-1") < page.index("For comparison")


FOLDER = "saliency/traffic-signs/id/"


def write(incident, objects, **options):
    options = {"counts": Store(), "variants": lambda cause: ["AllTraffic"]} | options
    report = write_report(incident, bucket="bucket", objects=objects, **options)
    return report, objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b'{"predicted_class": 14}',
        changed(predicted_class="14"),
        changed(predicted_class=None),
        changed(class_name=7),
        changed(probability=None),
        changed(probability=float("nan")),
        changed(completeness=[]),
        changed(predicted_class=14).replace(b'"predicted_class": 14', b'"predicted_class": 1e400'),
    ],
)
def test_names_a_heat_map_that_is_unreadable(incident, body):
    objects = FakeObjects(
        {
            ("bucket", FOLDER + "a.json"): body,
            ("bucket", FOLDER + "a.png"): b"first",
            ("bucket", FOLDER + "event-1.json"): facts(14),
            ("bucket", FOLDER + "event-1.png"): b"second",
            ("bucket", FOLDER + "event-2.json"): facts(3),
        }
    )
    report, page = write(incident, objects)
    assert base64.b64encode(b"second").decode() in page
    assert base64.b64encode(b"first").decode() not in page
    assert "Without a heat map" in page
    assert report.findings[0] == "1 x class 14, probability 75% to 75%, all complete"
    assert {line.partition(":")[0] for line in report.findings[1:]} == {"a", "event-2"}  # its PNG is missing
    assert all(len(line) < 300 for line in report.findings)


def test_shows_a_heat_map_or_a_reason_for_every_replay(incident):
    objects = FakeObjects(
        {
            ("bucket", FOLDER + "event-1.json"): json.dumps({"refused": "tensor <x> is missing"}).encode(),
        }
    )
    report, page = write(incident, objects)
    assert report.findings == (
        "event-1: cannot be rendered: tensor <x> is missing",
        "event-2: replayed, but the endpoint wrote no readable trace",
    )
    assert "event-1: cannot be rendered: tensor &lt;x&gt; is missing" in page


def test_names_a_few_missing_heat_maps_in_the_notification_and_all_in_the_report(incident):
    lost = frozenset(f"event-{n:03d}" for n in range(200))
    report, page = write(replace(incident, replays=lost), FakeObjects())
    assert report.findings[-1] == "and 195 more without a heat map"
    assert len(report.findings) == 6
    assert all(name in page for name in lost)


def test_groups_the_samples_of_a_batch_with_their_request(incident):
    names = ("event-1", "event-1-1", "event-2", "event-2-1", "event-12-1")
    objects = FakeObjects(
        {
            ("bucket", f"{FOLDER}{name}.{kind}"): facts(14) if kind == "json" else name.encode()
            for name in names
            for kind in ("json", "png")
        }
    )
    _, page = write(incident, objects)
    groups = [
        page.index(title)
        for title in ("Flagged requests", "For comparison", "Live traffic during the incident")
    ]
    places = [page.index(f'saliency of {name}"') for name in names]
    of = [sum(start < place for start in groups) for place in places]
    assert of == [1, 1, 2, 2, 3]


PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (8).to_bytes(4) * 2


def test_shows_inputs_or_the_reason_for_a_missing_one_in_notify_only_mode(incident):
    found = [
        Input("event-1", "AllTraffic", "<b>Stop</b>", 0.93, PNG, "image/png", True),
        Input("event-2", "AllTraffic", 14, None, b"\0" * 10, "application/octet-stream", True),
        Input("event-3", "AllTraffic", 3, None, PNG, "image/png", False),
    ]
    watched = replace(incident, notify_only=True, replays=None, flagged=frozenset())
    report, page = write(watched, FakeObjects(), inputs=lambda incident: found)
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page
    assert "class &lt;b&gt;Stop&lt;/b&gt;, 0.930" in page
    assert "Not shown: input: expected PNG, JPEG or a uint8 array" in page
    assert "FullGrad" not in page
    assert "400 predictions" in page
    assert report.findings == (
        "400 predictions in the window, the most frequent: 322 x class 14, 78 x class 3",
        "2 flagged inputs are shown",
    )
    _, page = write(watched, FakeObjects())
    assert "The capture files of the window contain no inputs." in page
