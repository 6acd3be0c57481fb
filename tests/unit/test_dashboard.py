"""The dashboard's widget: what it shows of an incident, what it refuses, and the commands of its buttons."""

import html
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fakes import FakeEndpoint, FakeIncidents, FakeObjects
from glassbox.errors import BadInputError
from glassbox.explanation.facts import Refusal, to_json
from glassbox.incidents.dashboard import DESCRIPTION, WidgetDependencies, WidgetSettings, command, widget
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import EndpointState, Incident, State
from glassbox.monitoring.counts import Counts
from heatmap_facts import facts

NOW = datetime(2026, 11, 23, 10, 31, tzinfo=UTC)
FOLDER = "saliency/traffic-signs/the-incident/"
ARN = "arn:aws:lambda:eu-west-1:111122223333:function:glassbox-command"
SETTINGS = WidgetSettings(
    endpoint_name="traffic-signs",
    bucket="bucket",
    incidents_table="incidents",
    counts_table="counts",
    stack_name="glassbox",
    command_function_arn=ARN,
    plain_config="plain",
    hooked_config="hooked",
)


class CountsOf:
    def __init__(self, **by_variant):
        self.by_variant, self.read_windows = by_variant, []

    def read(self, variant_key, window):
        self.read_windows.append(window)
        return {window.start: self.by_variant[variant_key.partition("/")[2]]}


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident(
        "traffic-signs",
        "the-incident",
        NOW - timedelta(minutes=9),
        State.HOOKED,
        NOW,
        "plain",
        "hooked",
        cause,
        replays=frozenset({"event-1", "event-2"}),
        flagged=frozenset({"event-2"}),
        heatmaps=frozenset({"event-1", "event-2"}),
        why="Probable cause (99%): attack",
    )


OBJECTS = {
    ("bucket", FOLDER + "event-1.json"): facts(3),
    ("bucket", FOLDER + "event-1.webp"): b"first",
    ("bucket", FOLDER + "event-2.json"): facts(14),
    ("bucket", FOLDER + "event-2.webp"): b"second",
}


def shown(incident=None, event=None, *, objects=OBJECTS, config="plain", counts=None, past=(), **settings):
    endpoint, incidents = FakeEndpoint(config), FakeIncidents()
    endpoint.live = replace(endpoint.live, variants=("Blue", "Green"))
    incidents.items = {incident.endpoint: incident} if incident else {}
    incidents.past = lambda name, since: list(past)
    counts = counts or CountsOf(
        Blue=Counts(classes=Counter({14: 40}), records=40), Green=Counts(classes=Counter({3: 20}), records=20)
    )
    dependencies = WidgetDependencies(
        settings=replace(SETTINGS, **settings),
        endpoint=endpoint,
        incidents=incidents,
        counts=counts,
        objects=FakeObjects(objects),
    )
    return widget(event or {"widgetContext": {"width": 600}}, dependencies, NOW)


def actions(page):
    tag = rf'<cwdb-action action="call" display="popup" endpoint="{re.escape(ARN)}" confirmation="[^"]+\?">'
    found = re.findall(rf"{tag}(.*?)</cwdb-action>", page)
    assert len(found) == page.count("<cwdb-action")
    return [json.loads(text)["action"] for text in found]


def test_shows_the_open_incident_its_heatmaps_and_the_counts(incident):
    page = shown(incident, config="hooked")
    assert "serves hooked (the hooked model)" in page
    assert "Open incident the-incident: HOOKED" in page
    assert "Probable cause (99%): attack" in page
    assert incident.cause.reason in page
    first, second = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert (first, second) == ("c2Vjb25k", "Zmlyc3Q=")  # the flagged one first
    assert "Class 14, 75.0% (flagged)" in page
    assert "60 predictions in the last hour" in page
    assert "class 14: 40, class 3: 20" in page
    assert actions(page) == ["abort", "extend"]


def test_offers_to_open_an_incident_while_none_is_open(incident):
    closed = replace(
        incident, state=State.NORMAL, report="s3://bucket/x", report_link="https://console/x?a=1&b=2"
    )
    assert actions(shown()) == actions(shown(closed)) == ["open"]
    assert "No incident so far" in shown()
    page = shown(closed)
    assert "Last incident the-incident, ended 2026-11-23 10:31 UTC" in page
    assert '<a href="https://console/x?a=1&amp;b=2">Incident report</a>' in page


def test_counts_of_the_window_of_the_checks():
    counts = CountsOf(Blue=Counts(), Green=Counts())
    assert "0 predictions in the last 2 hours" in (page := shown(counts=counts, window_hours=2))
    assert "Too few to be checked: at least 50 (MinPredictions)" in page
    (window, _) = counts.read_windows
    assert (window.start, window.end) == (
        datetime(2026, 11, 23, 8, 40, tzinfo=UTC),
        datetime(2026, 11, 23, 10, 40, tzinfo=UTC),
    )


def test_lists_earlier_incidents_without_the_last_one(incident):
    earlier = replace(incident, id="earlier", why="", opened=NOW - timedelta(days=1))
    page = shown(replace(incident, state=State.NORMAL), past=[earlier, incident])
    (body,) = re.findall("<tbody>(.*)</tbody>", page, re.DOTALL)
    assert body.count("<tr>") == 1
    assert "2026-11-22 10:31" in body
    assert "not diagnosed" in body


def test_every_text_of_a_client_is_escaped(incident):
    hostile = "<script>alert(1)</script><cwdb-action endpoint='arn'>"
    changed = replace(incident, why=hostile, cause=replace(incident.cause, reason=hostile))
    counts = CountsOf(Blue=Counts(classes=Counter({hostile: 60}), records=60), Green=Counts())
    page = shown(changed, counts=counts)
    assert "<script" not in page
    assert actions(page) == ["abort", "extend"]
    assert html.unescape(page).count(hostile) >= 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({("bucket", FOLDER + "event-2.json"): to_json(Refusal("no <rule>"))}, "no &lt;rule&gt;"),
        ({("bucket", FOLDER + "event-2.json"): b"{}"}, "predicted_class"),
        ({("bucket", FOLDER + "event-2.webp"): None}, "NoSuchKey"),
    ],
)
def test_a_heatmap_that_cannot_be_shown_has_its_reason(incident, changes, reason):
    objects = {key: body for key, body in (OBJECTS | changes).items() if body is not None}
    page = shown(incident, objects=objects)
    assert page.count("data:image/webp") == 1
    assert reason in page


def test_an_incomplete_heatmap_is_marked(incident):
    objects = OBJECTS | {("bucket", FOLDER + "event-2.json"): facts(14, complete=False)}
    assert "Class 14, 75.0% (flagged, do not rely on it)" in shown(incident, objects=objects)


@pytest.mark.parametrize(("heatmaps", "images"), [(0, 0), (1, 1), ("1", 1), (24, 2)])
def test_shows_as_many_heatmaps_as_its_parameter(incident, heatmaps, images):
    assert shown(incident, {"heatmaps": heatmaps}).count("data:image/webp") == images


@pytest.mark.parametrize("event", [{"heatmaps": 25}, {"heatmaps": -1}, {"heatmaps": "many"}, "text"])
def test_other_parameters_are_refused(event):
    with pytest.raises(BadInputError, match="widget: "):
        shown(None, event)


def test_describes_itself():
    assert shown(None, {"describe": True}) == DESCRIPTION


def test_shows_an_endpoint_that_does_not_exist():
    endpoint, incidents = FakeEndpoint("plain"), FakeIncidents()
    endpoint.live = None
    dependencies = WidgetDependencies(
        settings=SETTINGS, endpoint=endpoint, incidents=incidents, counts=CountsOf(), objects=FakeObjects()
    )
    page = widget({}, dependencies, NOW)
    assert "Endpoint traffic-signs: Deleted" in page
    assert "Could not find endpoint" in page


def test_shows_a_failed_incident_with_its_commands(incident):
    failed = replace(incident, state=State.FAILED, failure="The endpoint is Failed.\naws sagemaker …")
    assert "<pre>The endpoint is Failed.\naws sagemaker …</pre>" in shown(failed)


def test_without_a_function_for_commands_reports_are_pages_and_no_button_is_shown(incident):
    closed = replace(incident, state=State.NORMAL, report="s3://bucket/x", report_link="https://console/x")
    page = shown(closed, past=[replace(closed, id="earlier")], command_function_arn="")
    assert "cwdb-action" not in page
    assert "btn" not in page
    assert '<a href="/report/the-incident">Incident report</a>' in page
    assert '<a href="/report/earlier">' in page


def test_a_pause_is_shown_until_it_ends(incident):
    incidents = FakeIncidents()
    dependencies = WidgetDependencies(
        settings=SETTINGS,
        endpoint=FakeEndpoint("plain"),
        incidents=incidents,
        counts=CountsOf(),
        objects=FakeObjects(),
    )
    incidents.pause("traffic-signs", NOW + timedelta(minutes=1), NOW)
    assert "Paused until 2026-11-23 10:32 UTC" in widget({}, dependencies, NOW)
    assert "Paused" not in widget({}, dependencies, NOW + timedelta(minutes=1))


def test_a_config_of_someone_else_is_named():
    assert "(neither the plain nor the hooked config)" in shown(config="theirs")
    assert "neither" not in shown(config="theirs", plain_config="", hooked_config="")  # notify-only


class Bus:
    def __init__(self):
        self.sent = []

    def put(self, *event):
        self.sent.append(event)


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        ({"action": "abort"}, {"action": "abort"}),
        ({"action": "open", "minutes": 5}, {"action": "open"}),
        ({"action": "extend"}, {"action": "extend", "minutes": 30}),
        ({"action": "extend", "minutes": 5, "widgetContext": {}}, {"action": "extend", "minutes": 5}),
    ],
)
def test_a_button_sends_its_command_to_its_own_endpoint(event, detail):
    bus = Bus()
    answer = command(event | {"endpoint": "another"}, "traffic-signs", bus)
    assert bus.sent == [("glassbox.operator", "Glassbox Command", {"endpoint": "traffic-signs"} | detail)]
    assert f"Sent <b>{detail['action']}</b>" in answer


@pytest.mark.parametrize(
    "event",
    [{}, {"action": "delete"}, {"action": "extend", "minutes": 0}, {"action": "extend", "minutes": 1e9}],
)
def test_another_command_is_refused(event):
    bus = Bus()
    with pytest.raises(BadInputError, match="command: "):
        command(event, "traffic-signs", bus)
    assert not bus.sent


def test_the_state_has_the_variants():
    assert EndpointState("InService", "plain", variants=("a",)) == EndpointState("InService", "plain")
