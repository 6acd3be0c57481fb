import base64
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from fakes import FakeObjects
from glassbox.explanation import heatmap
from glassbox.explanation.facts import Blurred
from glassbox.incidents import incident_report
from glassbox.incidents.events import read_violation
from glassbox.incidents.incident_report import write_report
from glassbox.incidents.model import Incident, State
from glassbox.incidents.replay import Input
from glassbox.monitoring.counts import Counts
from heatmap_facts import facts

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


CAPTION = r'<div class="soft">([\w-]+)[,<]'


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
    shown = set(re.findall(CAPTION, page))
    assert shown >= set(names)
    assert len(shown) == 60


def test_names_heat_maps_of_another_class_than_the_answered(incident):
    objects = FakeObjects(
        {
            ("bucket", FOLDER + "event-1.json"): changed(answered=25),
            ("bucket", FOLDER + "event-1.png"): b"first",
            ("bucket", FOLDER + "event-2.json"): changed(not_compared="response: <names>"),
            ("bucket", FOLDER + "event-2.png"): b"second",
        }
    )
    report = write_report(
        incident, bucket="bucket", objects=objects, counts=Store(), variants=lambda cause: []
    )
    assert report.findings == ("2 x class 14, probability 75% to 75%, all complete, 1 NOT WHAT WAS ANSWERED",)
    page = objects.get("bucket", "incidents/traffic-signs/id/index.html").decode()
    bad = '<span class="bad">NOT WHAT WAS ANSWERED, the response gives class 25. Complete: completeness error 0.0e+00'
    assert page.count(bad) == page.count('<span class="bad">') == 1
    assert "Not compared with the response: response: &lt;names&gt;" in page


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
    assert page.count("INCOMPLETE, do not rely on it") == 1
    assert '<span class="hit" title="class 14: 322"><i style="height: 100.0%">' in page
    assert '<span title="class 3: 78"><i style="height: 24.2%">' in page
    assert "<td>14</td><td>322</td><td>80.5 %</td>" in page
    assert "400 predictions" in page
    assert incident.cause.reason in page
    assert "&lt;b&gt;not markup&lt;/b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    targets = re.findall(r'href="#(\w+)"', page)
    assert targets == ["predictions", "images", "violations", "timeline"]
    assert all(f'id="{target}"' in page for target in targets)
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
    sentences = re.findall(r"<br>(class [^<]*)\n", page)
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
    assert '<span class="hit" title="class 14: 322">' in page
    assert page.index("Flagged requests") < page.index('"soft">event-1') < page.index("For comparison")


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
    places = [re.search(f'"soft">{name}[,<]', page).start() for name in names]
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
    assert "Not shown: input: expected PNG, JPEG, JSON with one of them in base64, or a uint8 array" in page
    assert "FullGrad" not in page
    assert "400 predictions" in page
    assert report.findings == (
        "400 predictions in the window, the most frequent: 322 x class 14, 78 x class 3",
        "2 flagged inputs are shown",
    )
    _, page = write(watched, FakeObjects())
    assert "The capture files of the window contain no inputs." in page


def test_shows_the_preview_of_a_heat_map_and_its_text(incident):
    request = {"time": "2026-11-23T10:00:01.123Z"}
    quadrants = {"upper_left": 0.1, "upper_right": 0.5, "lower_left": 0.2, "lower_right": 0.2}
    held = json.loads(facts(14))["completeness"] | {"held": {"SiLU": 49}, "relative_error": 1.25e-7}
    changes = {"class_name": "<Stop>", "request": request, "quadrants": quadrants, "completeness": held}
    objects = FakeObjects(
        {
            ("bucket", f"{FOLDER}event-1.json"): changed(**changes),
            ("bucket", f"{FOLDER}event-1.png"): b"large",
            ("bucket", f"{FOLDER}event-1.webp"): b"small",
        }
    )
    _, page = write(incident, objects)
    assert f"data:image/webp;base64,{base64.b64encode(b'small').decode()}" in page
    assert base64.b64encode(b"large").decode() not in page
    seen = "Class 14 (&lt;Stop&gt;), 75.0%: the upper right quarter has 50% of the relevance"
    assert f'alt="{seen}"' in page
    assert "<strong>Class 14 (&lt;Stop&gt;), 75.0%</strong>" in page
    assert "Complete, gates held at 49 places: completeness error 1.2e-07" in page
    assert '<div class="soft">event-1, 2026-11-23 10:00:01.123 UTC</div>' in page
    assert "s3://bucket/saliency/traffic-signs/id/" in page


def test_sixty_heat_maps_are_less_than_two_megabytes(incident):
    """With photos of noise, which compress worst."""
    random = np.random.default_rng(0)
    names = [f"event-{n}" for n in range(60)]
    objects = FakeObjects()
    for name in names:
        image = random.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        drawn = SimpleNamespace(input_image=image, saliency=random.random((224, 224)).astype(np.float32))
        objects.objects["bucket", f"{FOLDER}{name}.json"] = facts(14)
        objects.objects["bucket", f"{FOLDER}{name}.webp"] = heatmap.preview(drawn)
    replays = frozenset(names)
    _, page = write(replace(incident, replays=replays, flagged=replays), objects)
    assert len(re.findall(CAPTION, page)) == 60
    assert len(page.encode()) < 2 << 20


def test_the_chart_has_a_place_for_every_class():
    assert incident_report.bars({14: 322, 3: 78}) == [(c, {14: 322, 3: 78}.get(c, 0)) for c in range(15)]
    assert incident_report.bars({}) == []
    # names, and numbers without an end, have no axis: those that were predicted, the most frequent first
    assert incident_report.bars({"stop": 2, 7: 1}) == [(7, 1), ("stop", 2)]
    many = {c * 10: c + 1 for c in range(500)}
    assert incident_report.bars(many) == [(c * 10, c + 1) for c in range(300, 500)]


def test_no_text_of_the_page_is_smaller_than_twelve_pixels(incident):
    """The page has no scaled text, so the sizes hold at every width."""
    _, page = write(incident, FakeObjects())
    sizes = [float(size) for size in re.findall(r"(?:font|font-size): *(?:\d+ )?(\d+)px", page)]
    assert len(sizes) >= 5
    assert min(sizes) >= 12
    assert "<svg" not in page


def test_the_page_has_dark_colours_with_enough_contrast(incident):
    _, page = write(incident, FakeObjects())
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+)", part)) for part in re.findall(r":root \{(.*?)\}", page)[:2]
    )
    for colours in (light, dark):
        for ink in ("ink", "soft", "bad", "link"):
            for ground in ("ground", "card"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(first, second):
    """Contrast of two colours, WCAG 2.1, 1.4.3."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
