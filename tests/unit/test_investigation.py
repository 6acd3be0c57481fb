"""What a diagnosis reads, asks and writes."""

import base64
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import captures
import replays
from demo import signs
from fakes import FakeObjects
from glassbox.diagnosis.investigation import DiagnosisSettings, InvestigationDependencies, investigate
from glassbox.diagnosis.pixels import decode
from glassbox.diagnosis.reference import Sample, make_reference, write_reference
from glassbox.errors import BadInputError, RetryableError
from glassbox.incidents.diagnosis import read_diagnosis
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Incident, Response, State
from glassbox.incidents.replay import ReplayDependencies, ReplaySettings
from glassbox.monitoring.counts import Counts
from glassbox.replay_marker import REPAIR, verified_marker

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
FOLDER = "capture/traffic-signs/AllTraffic/2026/11/23/10/"
IMAGES, _ = signs.dataset(20, seed=3, size=48)


class Key:
    sign, public = staticmethod(replays.sign), staticmethod(replays.key)


class CountsOf:
    def read(self, variant_key, window):
        assert variant_key == "traffic-signs/AllTraffic"
        return {START: Counts(classes=Counter({14: 322, 3: 78}), records=400)}


class Endpoint:
    """An endpoint that predicts class 14 for dark images."""

    def __init__(self, fail=None):
        self.requests, self.fail = [], fail

    def invoke(self, endpoint, request):
        assert endpoint == "traffic-signs"
        if self.fail:
            raise self.fail
        self.requests.append(request)
        predicted = 14 if decode(request.body).pixels.mean() < 45 else 3
        answer = {"predictions": [{"class": predicted, "probability": 0.9}]}
        return Response(json.dumps(answer).encode(), "application/json")


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident("traffic-signs", replays.INCIDENT, START, State.HOOKED, START, "plain", "hooked", cause)


def npy(image):
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


def line(number, image, predicted):
    record = captures.record([[predicted]], f"2026-11-23T10:00:{number:02d}Z", eventId=f"event-{number}")
    record["captureData"]["endpointInput"]["data"] = base64.b64encode(npy(image)).decode()
    return json.dumps(record).encode() + b"\n"


def capture_file():
    dark = [line(n, (IMAGES[n] * 0.1).astype(np.uint8), 14) for n in range(6)]
    return b"".join(dark + [line(n, IMAGES[n], 3) for n in range(6, 9)])


def dependencies(objects, endpoint, *, clock=lambda: 0.0, **options):
    settings = ReplaySettings(
        endpoint_name="traffic-signs",
        capture_bucket="bucket",
        capture_prefix="capture",
        max_flagged_replays=4,
        max_comparison_replays=2,
    )
    replayed = ReplayDependencies(settings=settings, captures=objects, key=Key, runtime=endpoint)
    return InvestigationDependencies(
        settings=DiagnosisSettings(**options),
        replays=replayed,
        counts=CountsOf(),
        bucket="stack",
        clock=clock,
    )


def run(incident, endpoint, objects=None, **options):
    objects = objects or FakeObjects({("bucket", FOLDER + "a.jsonl"): capture_file()})
    made = investigate(incident, dependencies(objects, endpoint, **options))
    key = f"incidents/traffic-signs/{incident.id}/diagnosis.json"
    assert made.uri == f"s3://stack/{key}"
    found = read_diagnosis(objects.get("stack", key))
    assert made.why == found.headline
    return found


def test_asks_about_the_captured_inputs_by_signed_repairs(incident):
    endpoint = Endpoint()
    found = run(incident, endpoint)
    assert found.requests == len(endpoint.requests) > 12
    for request in endpoint.requests:
        marker = verified_marker(request.custom_attributes, body=request.body, now=START, key=replays.key)
        assert (marker.purpose, marker.incident) == (REPAIR, incident.id)
        assert (request.variant, request.content_type) == ("AllTraffic", "application/x-npy")
        assert request.body.startswith(b"\x93NUMPY")
    assert len({request.event_id for request in endpoint.requests}) == len(endpoint.requests)
    (brightened,) = (r for r in found.repairs if r.name.startswith("brightened"))
    assert (brightened.back, brightened.flagged, brightened.changed, brightened.comparisons) == (4, 4, 0, 2)
    assert found.affected == pytest.approx(322 / 400)


def test_the_time_limit_ends_the_questions(incident):
    seconds = iter(range(0, 10_000, 10))
    endpoint = Endpoint()
    found = run(incident, endpoint, clock=lambda: float(next(seconds)), diagnose_minutes=1)
    assert len(endpoint.requests) == 5
    assert "the questions ended early: 1 minutes are over" in found.missing


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (
            RetryableError("ThrottlingException"),
            "the questions ended early: the endpoint does not answer: Thro",
        ),
        (BadInputError("ModelError: 400"), "the endpoint changed, or answers at random"),
    ],
)
def test_an_endpoint_that_refuses_is_named(incident, error, missing):
    found = run(incident, Endpoint(error))
    assert found.cause is None
    assert any(line.startswith(missing) for line in found.missing)


def test_an_unreadable_answer_has_no_class(incident):
    endpoint = Endpoint()
    endpoint.invoke = lambda name, request: Response(b"<html>", "text/html")
    found = run(incident, endpoint)
    assert found.missing[0].startswith("the endpoint changed")


def test_the_reference_is_read_and_a_wrong_one_is_named(incident):
    reference = write_reference(make_reference([Sample(image, 3, 0.5) for image in IMAGES]))
    objects = FakeObjects(
        {("bucket", FOLDER + "a.jsonl"): capture_file(), ("bucket", "baseline/reference.npz"): reference}
    )
    found = run(incident, Endpoint(), objects, reference="s3://bucket/baseline/reference.npz")
    assert not any("reference" in line for line in found.missing)
    assert len(found.examples[0].nearest) == 3
    found = run(incident, Endpoint(), reference="s3://bucket/elsewhere.npz")
    assert found.missing[0].startswith("the reference cannot be used: s3://bucket/elsewhere.npz: NoSuchKey")


@pytest.mark.parametrize(
    ("of", "endpoints", "refused"),
    [("a" * 64, "a" * 64, False), ("a" * 64, "b" * 64, True), ("", "b" * 64, False), ("a" * 64, "", False)],
)
def test_the_reference_of_another_model_is_refused(incident, of, endpoints, refused):
    reference = write_reference(make_reference([Sample(image, 3, 0.5) for image in IMAGES], of))
    objects = FakeObjects({("bucket", FOLDER + "a.jsonl"): capture_file(), ("bucket", "r.npz"): reference})
    found = run(incident, Endpoint(), objects, reference="s3://bucket/r.npz", model_fingerprint=endpoints)
    line = (
        "the reference cannot be used: it is of model aaaaaaaaaaaa, the endpoint's is bbbbbbbbbbbb (sha256). Make one "
        "of its captures (make baseline)"
    )
    assert found.missing[:1] == ((line,) if refused else ())
    assert bool(found.examples[0].nearest) is not refused


def test_captures_without_inputs_are_named(incident):
    found = run(incident, Endpoint(), FakeObjects({("bucket", FOLDER + "a.jsonl"): b""}))
    assert found.requests == 0
    assert "no flagged input was captured" in found.headline + "".join(found.missing)


def test_the_claim_outlives_the_time_limit():
    from glassbox.incidents.diagnosing import EXPIRES

    assert timedelta(minutes=10) < EXPIRES  # the largest DIAGNOSE_MINUTES
