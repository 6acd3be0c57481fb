import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import captures
from fakes import FakeObjects
from glassbox.errors import BadInputError, RetryableError
from glassbox.incident import Incident, State
from glassbox.replay import replay
from glassbox.response import ResponseForm
from glassbox.violation import read_violation

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
FOLDER = "capture/traffic-signs/AllTraffic/2026/11/23/10/"


class FakeRuntime:
    """Takes requests; refuses the bodies in ``bad``."""

    def __init__(self, bad=()):
        self.requests, self.bad = [], bad

    def invoke(self, endpoint, request):
        if request.event_id in self.bad:
            raise BadInputError("ModelError: not an image")
        self.requests.append(request)


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident("traffic-signs", "id", START, State.HOOKED, START, "plain", "hooked", cause)


def line(n, response, minute=0, **metadata):
    response = [[response]] if isinstance(response, int) else response
    record = captures.record(
        response, f"2026-11-23T10:{minute:02d}:{n % 60:02d}Z", eventId=f"event-{n}", **metadata
    )
    return json.dumps(record).encode() + b"\n"


def run(incident, files, runtime=None, **options):
    runtime = runtime or FakeRuntime()
    objects = FakeObjects({("bucket", key): body for key, body in files.items()})
    options = {"flagged": 3, "compared": 2, "form": ResponseForm()} | options
    return replay(
        incident, bucket="bucket", prefix="capture", captures=objects, runtime=runtime, **options
    ), runtime


def test_the_dominating_class_and_some_others_are_sent_as_they_were_captured(incident):
    lines = [line(n, 14 if n % 2 else n % 7) for n in range(20)]
    replays, runtime = run(
        incident, {FOLDER + "a.jsonl": b"".join(lines[:9]), FOLDER + "b.jsonl": b"".join(lines[9:])}
    )
    sent = {request.event_id: request for request in runtime.requests}
    assert replays.names == sent.keys()
    assert [int(name.removeprefix("event-")) % 2 for name in sent].count(1) == 3
    assert len(sent) == 5
    request = next(iter(sent.values()))
    assert request.body.startswith(b"\x93NUMPY")
    assert request.content_type == "application/x-npy"
    assert request.custom_attributes == f"glassbox-replay={request.event_id},glassbox-incident=id"
    assert replays.flagged == {name for name in sent if int(name.removeprefix("event-")) % 2}


def test_the_callers_own_attributes_are_kept(incident):
    body = line(1, 14, customAttributes=["camera=7", "lane=2"])
    _, runtime = run(incident, {FOLDER + "a.jsonl": body})
    assert (
        runtime.requests[0].custom_attributes
        == "camera=7,lane=2,glassbox-replay=event-1,glassbox-incident=id"
    )
    _, runtime = run(incident, {FOLDER + "a.jsonl": line(1, 14, customAttributes=["x" * 1020])})
    assert runtime.requests[0].custom_attributes == "glassbox-replay=event-1,glassbox-incident=id"


@pytest.mark.parametrize(("flagged", "lines"), [(4, {0, 19, 39, 59}), (1, {0}), (100, set(range(60)))])
def test_the_chosen_are_spread_over_the_window(incident, flagged, lines):
    body = b"".join(line(n, 14, minute=n) for n in range(60))
    replays, _ = run(incident, {FOLDER + "a.jsonl": body}, flagged=flagged)
    assert replays.names == replays.flagged == {f"event-{n}" for n in lines}


def caused_by(incident, check, label=None):
    return replace(incident, cause=replace(incident.cause, check=check, label=label))


@pytest.mark.parametrize("check", ["operator", "monitor"])
def test_without_a_class_to_blame_the_most_frequent_one_is_explained(incident, check):
    body = b"".join(line(n, 3 if n % 3 else 8) for n in range(9))
    replays, _ = run(caused_by(incident, check), {FOLDER + "a.jsonl": body}, flagged=9)
    assert replays.flagged == {f"event-{n}" for n in range(9) if n % 3}
    assert replays.names - replays.flagged == {"event-0", "event-6"}


def test_of_low_confidence_the_improbable_ones_are_explained(incident):
    def response(probability):
        return {"predictions": [{"class": 14, "probability": probability}]}

    body = b"".join(line(n, response(0.2 if n in (2, 5) else 0.9)) for n in range(9))
    options = {"flagged": 9, "compared": 1, "low_confidence": 0.5}
    replays, _ = run(caused_by(incident, "low_confidence_share"), {FOLDER + "a.jsonl": body}, **options)
    assert replays.flagged == {"event-2", "event-5"}
    assert len(replays.names) == 3


def test_of_unknown_classes_those_are_explained(incident):
    body = b"".join(line(n, 50 if n in (1, 7) else 3) for n in range(9))
    cause = caused_by(incident, "class_share", "unknown")
    replays, _ = run(cause, {FOLDER + "a.jsonl": body}, flagged=9, compared=0, classes=43)
    assert replays.names == {"event-1", "event-7"}


def test_of_unreadable_responses_those_are_explained(incident):
    body = b"".join(line(n, {"code": 500, "message": "out of memory"} if n < 2 else 3) for n in range(9))
    replays, _ = run(caused_by(incident, "unreadable_share"), {FOLDER + "a.jsonl": body})
    assert replays.flagged == {"event-0", "event-1"}
    assert len(replays.names) == 4


def test_only_the_window_and_no_replays_and_nothing_unreadable(incident):
    body = b"".join(
        (
            line(1, 14),
            line(2, 14, customAttributes=["glassbox-replay=event-1"]),
            b"{broken\n",
            json.dumps(captures.record([[14]], "2026-11-23T09:59:59Z", eventId="before")).encode() + b"\n",
            json.dumps(captures.record([[14]], "2026-11-23T11:00:00Z", eventId="after")).encode() + b"\n",
        )
    )
    replays, _ = run(incident, {FOLDER + "a.jsonl": body})
    assert replays.names == {"event-1"}


def test_a_file_of_the_hour_before_may_hold_the_windows_first_records(incident):
    replays, _ = run(incident, {FOLDER.replace("/10/", "/09/") + "a.jsonl": line(1, 14)})
    assert replays.names == {"event-1"}


def test_no_capture_files_left_is_said(incident):
    replays, _ = run(incident, {})
    assert replays.names == frozenset()
    assert "no capture file" in replays.note


def test_files_deleted_between_listing_and_reading_are_passed_over(incident):
    class Vanishing(FakeObjects):
        def chunks(self, bucket, key):
            raise BadInputError(f"s3://{bucket}/{key}: NoSuchKey")
            yield

    objects = Vanishing({("bucket", FOLDER + "a.jsonl"): line(1, 14)})
    options = {"flagged": 3, "compared": 2, "form": ResponseForm(), "runtime": FakeRuntime()}
    assert (
        "no capture file"
        in replay(incident, bucket="bucket", prefix="capture", captures=objects, **options).note
    )


def test_a_capture_of_outputs_only_is_said(incident):
    record = captures.record([[14]], "2026-11-23T10:00:01Z", eventId="event-1")
    del record["captureData"]["endpointInput"]
    replays, runtime = run(incident, {FOLDER + "a.jsonl": json.dumps(record).encode()})
    assert runtime.requests == []
    assert "holds no inputs" in replays.note


def test_a_request_that_the_model_refuses_is_counted_and_the_others_are_sent(incident):
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14) for n in range(3))}
    replays, _ = run(incident, files, FakeRuntime(bad={"event-1"}))
    assert replays.names == {"event-0", "event-2"}
    assert replays.note == "1 were refused, the first: ModelError: not an image"


def test_an_endpoint_that_does_not_answer_is_tried_again(incident):
    class Away:
        def invoke(self, endpoint, request):
            raise RetryableError("timed out")

    with pytest.raises(RetryableError):
        run(incident, {FOLDER + "a.jsonl": line(1, 14)}, Away())


def test_another_variant_is_read_where_it_lies(incident):
    blue = replace(incident, cause=replace(incident.cause, variant="Blue"))
    replays, _ = run(blue, {FOLDER.replace("AllTraffic", "Blue") + "a.jsonl": line(1, 14)})
    assert replays.names == {"event-1"}


@pytest.mark.parametrize("event", ["command-open", "monitor-job-violations"])
def test_a_violation_that_names_no_variant_is_about_all_but_the_shadows(incident, load_event, event):
    cause = replace(
        read_violation(load_event(event), FakeObjects()),
        window_start=START,
        window_end=START + timedelta(hours=1),
    )
    files = {
        FOLDER.replace("AllTraffic", variant) + "a.jsonl": line(n, 14)
        for n, variant in enumerate(("Blue", "Green", "Shadow"))
    }
    options = {"shadows": frozenset({"Shadow"})}
    replays, runtime = run(replace(incident, cause=cause), files, **options)
    assert replays.names == {"event-0", "event-1"}
    assert {r.event_id: r.variant for r in runtime.requests} == {"event-0": "Blue", "event-1": "Green"}
