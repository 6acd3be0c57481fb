import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import captures
import replays
from fakes import FakeObjects
from glassbox.errors import BadInputError, RetryableError
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import MAX_REPLAY_ATTEMPTS, Incident, State
from glassbox.incidents.replay import ReplayDependencies, ReplaySettings, captured_inputs, replay
from glassbox.replay_marker import TRACE, ReplayMarker, marker_event_id, verified_marker

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
FOLDER = "capture/traffic-signs/AllTraffic/2026/11/23/10/"


class Key:
    """A replay key that refuses to sign."""

    sign, public = staticmethod(replays.sign), staticmethod(replays.key)


class FakeRuntime:
    """An endpoint that refuses the bodies in ``bad``."""

    def __init__(self, bad=()):
        self.requests, self.bad = [], bad

    def invoke(self, endpoint, request):
        if request.event_id in self.bad:
            raise BadInputError("ModelError: not an image")
        self.requests.append(request)


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident("traffic-signs", replays.INCIDENT, START, State.HOOKED, START, "plain", "hooked", cause)


def line(n, response, minute=0, **metadata):
    response = [[response]] if isinstance(response, int) else response
    record = captures.record(
        response, f"2026-11-23T10:{minute:02d}:{n % 60:02d}Z", eventId=f"event-{n}", **metadata
    )
    return json.dumps(record).encode() + b"\n"


def run(incident, files, runtime=None, **options):
    runtime = runtime or FakeRuntime()
    objects = FakeObjects({("bucket", key): body for key, body in files.items()})
    return replay(incident, dependencies(objects, runtime, **options)), runtime


def dependencies(objects, runtime, *, key=Key, clock=time.monotonic, **options):
    location = {"endpoint_name": "traffic-signs", "capture_bucket": "bucket", "capture_prefix": "capture"}
    numbers = {"max_flagged_replays": 3, "max_comparison_replays": 2}
    settings = ReplaySettings(**location | numbers | options)
    return ReplayDependencies(settings=settings, captures=objects, key=key, runtime=runtime, clock=clock)


def test_sends_the_dominating_class_and_some_others_unchanged(incident):
    lines = [line(n, 14 if n % 2 else n % 7) for n in range(20)]
    done, runtime = run(
        incident, {FOLDER + "a.jsonl": b"".join(lines[:9]), FOLDER + "b.jsonl": b"".join(lines[9:])}
    )
    sent = {request.event_id: request for request in runtime.requests}
    assert done.names == sent.keys()
    assert [int(name.removeprefix("event-")) % 2 for name in sent].count(1) == 3
    assert len(sent) == 5
    request = next(iter(sent.values()))
    assert request.body.startswith(b"\x93NUMPY")
    assert request.content_type == "application/x-npy"
    assert verified(request) == ReplayMarker(TRACE, replays.INCIDENT, request.event_id)
    assert done.flagged == {name for name in sent if int(name.removeprefix("event-")) % 2}


def verified(request):
    return verified_marker(request.custom_attributes, body=request.body, now=START, key=replays.key)


def own(request):
    return request.custom_attributes.split(",")[:-1]


def test_sends_the_callers_attributes_without_any_marker_in_them(incident):
    given = ["camera=7,glassbox-incident=x,glassbox=1,lane=2", "Glassbox=x,x=glassbox=1"]
    done, runtime = run(incident, {FOLDER + "a.jsonl": line(1, 14, customAttributes=given)})
    (request,) = runtime.requests
    assert own(request) == ["camera=7", "lane=2", "x=glassbox=1"]
    assert verified(request).event_id == "event-1"
    assert done.note == ""


@pytest.mark.parametrize("attributes", ["x" * 900, "a=\u00e4", "a=\r\nb", "a=\x1b[31m"])
def test_sends_a_request_without_attributes_that_do_not_fit(incident, attributes):
    done, runtime = run(incident, {FOLDER + "a.jsonl": line(1, 14, customAttributes=[attributes])})
    (request,) = runtime.requests
    assert own(request) == []
    assert verified(request).event_id == "event-1"
    assert "1 were sent without the caller's custom attributes" in done.note
    assert done.names == {"event-1"}


def test_sends_attributes_up_to_the_last_character(incident):
    free = 1024 - len(replays.marker(event_id="event-1")) - 1
    for size, fits in ((free, True), (free + 1, False)):
        body = line(1, 14, customAttributes=["x" * size])
        _, runtime = run(incident, {FOLDER + "a.jsonl": body})
        assert (own(runtime.requests[0]) == ["x" * size]) is fits
        assert len(runtime.requests[0].custom_attributes) <= 1024


def test_hashes_an_event_id_of_another_form(incident):
    record = captures.record([[14]], "2026-11-23T10:00:01Z", eventId="../../x")
    done, runtime = run(incident, {FOLDER + "a.jsonl": json.dumps(record).encode()})
    (request,) = runtime.requests
    assert request.event_id == marker_event_id("../../x") == verified(request).event_id
    assert done.names == done.flagged == {request.event_id}


def test_replays_a_request_with_a_forged_marker(incident):
    body = b"".join(line(n, 14, customAttributes=[replays.FORGED]) for n in range(9))
    done, _ = run(incident, {FOLDER + "a.jsonl": body}, max_flagged_replays=9)
    assert len(done.flagged) == 9


def test_sends_nothing_when_kms_does_not_sign(incident):
    class Away(Key):
        @staticmethod
        def sign(message):
            raise RetryableError("KMS is away")

    runtime = FakeRuntime()
    with pytest.raises(RetryableError, match="KMS is away"):
        run(incident, {FOLDER + "a.jsonl": line(1, 14)}, runtime, key=Away)
    assert runtime.requests == []


@pytest.mark.parametrize(("flagged", "lines"), [(4, {0, 19, 39, 59}), (1, {0}), (100, set(range(60)))])
def test_spreads_the_chosen_requests_over_the_window(incident, flagged, lines):
    body = b"".join(line(n, 14, minute=n) for n in range(60))
    done, _ = run(incident, {FOLDER + "a.jsonl": body}, max_flagged_replays=flagged)
    assert done.names == done.flagged == {f"event-{n}" for n in lines}


def caused_by(incident, check, predicted_class=None):
    return replace(incident, cause=replace(incident.cause, check=check, predicted_class=predicted_class))


@pytest.mark.parametrize("check", ["operator", "monitor"])
def test_explains_the_most_frequent_class_when_the_violation_has_none(incident, check):
    body = b"".join(line(n, 3 if n % 3 else 8) for n in range(9))
    done, _ = run(caused_by(incident, check), {FOLDER + "a.jsonl": body}, max_flagged_replays=9)
    assert done.flagged == {f"event-{n}" for n in range(9) if n % 3}
    assert done.names - done.flagged == {"event-0", "event-6"}


def test_explains_improbable_predictions_for_low_confidence(incident):
    def response(probability):
        return {"predictions": [{"class": 14, "probability": probability}]}

    body = b"".join(line(n, response(0.2 if n in (2, 5) else 0.9)) for n in range(9))
    options = {"max_flagged_replays": 9, "max_comparison_replays": 1, "low_confidence": 0.5}
    done, _ = run(caused_by(incident, "low_confidence_share"), {FOLDER + "a.jsonl": body}, **options)
    assert done.flagged == {"event-2", "event-5"}
    assert len(done.names) == 3


def test_explains_unknown_classes_for_their_violation(incident):
    body = b"".join(line(n, 50 if n in (1, 7) else 3) for n in range(9))
    cause = caused_by(incident, "class_share", "unknown")
    done, _ = run(
        cause, {FOLDER + "a.jsonl": body}, max_flagged_replays=9, max_comparison_replays=0, num_classes=43
    )
    assert done.names == {"event-1", "event-7"}


def test_flags_a_batch_for_any_of_its_predictions(incident):
    """A client must not hide an attack behind a harmless first image in each batch."""
    batch = {"predictions": [{"class": c, "label": None, "probability": 0.9} for c in (3, 3, 14)]}
    lines = [line(n, batch if n % 4 == 0 else 14 if n == 1 else 3) for n in range(20)]
    done, _ = run(incident, {FOLDER + "a.jsonl": b"".join(lines)}, max_flagged_replays=10)
    assert done.flagged == {f"event-{n}" for n in (0, 1, 4, 8, 12, 16)}


def test_explains_unreadable_responses_for_their_violation(incident):
    body = b"".join(line(n, {"code": 500, "message": "out of memory"} if n < 2 else 3) for n in range(9))
    done, _ = run(caused_by(incident, "unreadable_share"), {FOLDER + "a.jsonl": body})
    assert done.flagged == {"event-0", "event-1"}
    assert len(done.names) == 4


def test_ignores_other_hours_replays_and_unreadable_responses(incident):
    body = b"".join(
        (
            line(1, 14),
            line(2, 14, customAttributes=[replays.marker()]),
            b"{broken\n",
            json.dumps(captures.record([[14]], "2026-11-23T09:59:59Z", eventId="before")).encode() + b"\n",
            json.dumps(captures.record([[14]], "2026-11-23T11:00:00Z", eventId="after")).encode() + b"\n",
        )
    )
    done, _ = run(incident, {FOLDER + "a.jsonl": body})
    assert done.names == {"event-1"}


def test_reads_the_files_of_the_hour_before_the_window(incident):
    done, _ = run(incident, {FOLDER.replace("/10/", "/09/") + "a.jsonl": line(1, 14)})
    assert done.names == {"event-1"}


@pytest.mark.parametrize(
    "files", [{}, {FOLDER + "a.jsonl": b""}, {FOLDER + "a.jsonl": line(7, 14).replace(b"T10:", b"T13:")}]
)
def test_notes_capture_files_without_a_record_of_the_window(incident, files):
    done, _ = run(incident, files)
    assert done.names == frozenset()
    assert "the capture files hold no record of the window" in done.note


def test_ignores_files_deleted_after_listing(incident):
    class Vanishing(FakeObjects):
        def chunks(self, bucket, key):
            raise BadInputError(f"s3://{bucket}/{key}: NoSuchKey")
            yield

    objects = Vanishing({("bucket", FOLDER + "a.jsonl"): line(1, 14)})
    assert "no record of the window" in replay(incident, dependencies(objects, FakeRuntime())).note


def test_notes_a_capture_of_outputs_only(incident):
    record = captures.record([[14]], "2026-11-23T10:00:01Z", eventId="event-1")
    del record["captureData"]["endpointInput"]
    done, runtime = run(incident, {FOLDER + "a.jsonl": json.dumps(record).encode()})
    assert runtime.requests == []
    assert "contain no inputs" in done.note


def test_counts_a_refused_request_and_sends_the_others(incident):
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14) for n in range(3))}
    done, _ = run(incident, files, FakeRuntime(bad={"event-1"}))
    assert done.names == {"event-0", "event-2"}
    assert done.note == "1 were refused, the first: ModelError: not an image"


class FailingRuntime(FakeRuntime):
    """An endpoint that does not answer the requests in ``down``, or any if it is None."""

    def __init__(self, down=None):
        super().__init__()
        self.down, self.tried = down, []

    def invoke(self, endpoint, request):
        self.tried.append(request.event_id)
        if self.down is None or request.event_id in self.down:
            raise RetryableError("ModelError 500: worker died")
        super().invoke(endpoint, request)


def test_counts_refused_requests_with_equal_ids_one_by_one(incident):
    body = b"".join(line(n, 14).replace(f"event-{n}".encode(), b"event-1") for n in range(3))
    done, _ = run(incident, {FOLDER + "a.jsonl": body}, FakeRuntime(bad={"event-1"}))
    assert done.note.startswith("3 were refused")


def test_stops_sending_when_the_endpoint_does_not_answer(incident):
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14) for n in range(5))}
    away = FailingRuntime()
    done, _ = run(incident, files, away, max_flagged_replays=5)
    assert len(away.tried) == 2
    assert done.names == done.unanswered == done.flagged == {f"event-{n}" for n in range(5)}
    assert done.note == "the endpoint does not answer: ModelError 500: worker died"
    again = replace(
        incident, replays=done.names, flagged=done.flagged, unanswered=done.unanswered, replay_attempts=1
    )
    done, _ = run(again, files, max_flagged_replays=5)
    assert (done.names, done.unanswered, done.note) == ({f"event-{n}" for n in range(5)}, frozenset(), "")


def test_sends_the_rest_later_when_the_endpoint_is_slow(incident):
    """Lambda would kill the function at every try before it records what it sent."""
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14 if n % 2 else 3) for n in range(60))}
    seconds = [0.0]

    class Slow(FakeRuntime):
        def invoke(self, endpoint, request):
            super().invoke(endpoint, request)
            seconds[0] += 20

    options = {"max_flagged_replays": 12, "max_comparison_replays": 4, "clock": lambda: seconds[0]}
    done, runtime = run(incident, files, Slow(), **options)
    assert (len(done.names), len(done.unanswered), len(runtime.requests)) == (16, 13, 3)
    assert "too slowly" in done.note
    assert len(done.flagged) == 12
    answered = done.names - done.unanswered
    for attempts in range(1, MAX_REPLAY_ATTEMPTS):
        later = replace(
            incident,
            replays=done.names,
            flagged=done.flagged,
            unanswered=done.unanswered,
            replay_attempts=attempts,
        )
        done, _ = run(later, files, Slow(), **options)
        answered |= done.names - done.unanswered
    assert len(answered) == 15  # three at each of five tries


def test_sends_only_the_unsent_replays_of_an_incident(incident):
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14) for n in range(9))}
    again = replace(
        incident,
        replays=frozenset({"event-1", "event-2", "event-3"}),
        flagged=frozenset({"event-1", "event-2"}),
        unanswered=frozenset({"event-2", "event-3"}),
        replay_attempts=1,
    )
    done, runtime = run(again, files)
    assert {request.event_id for request in runtime.requests} == done.names == {"event-2", "event-3"}
    assert done.flagged == {"event-2"}


@pytest.mark.parametrize("position", range(12))
def test_two_inputs_that_kill_the_container_do_not_block_the_others(incident, position):
    files = {FOLDER + "a.jsonl": b"".join(line(n, 14) for n in range(12))}
    down = {f"event-{position}", f"event-{(position + 1) % 12}"}
    answered = set()
    for attempts in range(5):
        unanswered = {f"event-{n}" for n in range(12)} - answered
        before = replace(
            incident,
            replays=frozenset(unanswered),
            unanswered=frozenset(unanswered),
            replay_attempts=attempts,
        )
        done, runtime = run(before, files, FailingRuntime(down), max_flagged_replays=12)
        answered |= {request.event_id for request in runtime.requests}
        assert done.names - done.unanswered <= answered
    assert answered == {f"event-{n}" for n in range(12)} - down


DEEP = b'{"eventMetadata": {"eventId": "deep", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}\n"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (DEEP, "recursion"),
        (line(7, 14).replace(b"event-7", b"event-\xff"), "utf-8"),
        (b"\xff\xfe\x00{\n", ""),
        (line(7, 14).replace(b"event-7", b""), "length >= 1 - at `$.eventMetadata.eventId`"),
        (line(7, 14).replace(b'"application/x-npy"', b"[]"), "observedContentType"),
        (b"[]\n", ""),
        (b'{"eventMetadata": 7}\n', ""),
        (b"x" * 100 + b"\n", ""),
    ],
    ids=[
        "deep",
        "event id not UTF-8",
        "not UTF-8",
        "no event id",
        "content type a list",
        "list",
        "number",
        "text",
    ],
)
def test_notes_an_unreadable_capture_line_and_sends_the_others(incident, bad, reason):
    lines = [line(n, 14) for n in range(3)]
    files = {FOLDER + "a.jsonl": lines[0] + bad + b"\n" + b"".join(lines[1:])}
    done, _ = run(incident, files, max_flagged_replays=9)
    assert done.names == {"event-0", "event-1", "event-2"}
    assert done.note.startswith(f"1 capture lines are unreadable, the first: {FOLDER}a.jsonl, line 2: ")
    assert reason.lower() in done.note.lower()
    assert len(done.note) < 400


def test_returns_the_captured_inputs_unchanged(incident):
    body = b"".join(line(n, 14 if n % 2 else 3) for n in range(8))
    objects = FakeObjects({("bucket", FOLDER + "a.jsonl"): body})
    found = captured_inputs(incident, dependencies(objects, FakeRuntime(), max_flagged_replays=2))
    assert [(i.event_id, i.predicted_class, i.content_type, i.flagged) for i in found] == [
        ("event-1", 14, "application/x-npy", True),
        ("event-7", 14, "application/x-npy", True),
        ("event-0", 3, "application/x-npy", False),
        ("event-6", 3, "application/x-npy", False),
    ]
    assert {i.variant for i in found} == {"AllTraffic"}
    assert found[0].body.startswith(b"\x93NUMPY")


def test_where_no_class_broke_the_bound_the_most_surprising_inputs_are_flagged(incident):
    drift = replace(incident, cause=replace(incident.cause, check="drift", predicted_class=None))
    body = b"".join(line(n, 3 if n in (2, 5) else 14) for n in range(8))
    objects = FakeObjects({("bucket", FOLDER + "a.jsonl"): body})
    given = dependencies(objects, FakeRuntime(), max_flagged_replays=2)
    asked = []

    def surprises(answers):
        asked.extend(label for label, _ in answers)
        return [label == 3 for label, _ in answers]

    found = captured_inputs(drift, given, surprises)
    assert [one.event_id for one in found if one.flagged] == ["event-2", "event-5"]
    assert asked.count(14) == 6 and asked.count(3) == 2
    usual = captured_inputs(drift, given)
    assert {one.predicted_class for one in usual if one.flagged} == {14}
    # a class that broke the bound is flagged, however usual it is
    share = captured_inputs(incident, given, surprises)
    assert {one.predicted_class for one in share if one.flagged} == {14}


def test_reads_the_captures_of_another_variant(incident):
    blue = replace(incident, cause=replace(incident.cause, variant="Blue"))
    done, _ = run(blue, {FOLDER.replace("AllTraffic", "Blue") + "a.jsonl": line(1, 14)})
    assert done.names == {"event-1"}


@pytest.mark.parametrize("event", ["command-open", "monitor-job-violations"])
def test_a_violation_without_a_variant_includes_all_but_the_shadows(incident, load_event, event):
    cause = replace(
        read_violation(load_event(event), FakeObjects()),
        window_start=START,
        window_end=START + timedelta(hours=1),
    )
    files = {
        FOLDER.replace("AllTraffic", variant) + "a.jsonl": line(n, 14)
        for n, variant in enumerate(("Blue", "Green", "Shadow"))
    }
    done, runtime = run(replace(incident, cause=cause), files, shadow_variants="Shadow")
    assert done.names == {"event-0", "event-1"}
    assert {r.event_id: r.variant for r in runtime.requests} == {"event-0": "Blue", "event-1": "Green"}
