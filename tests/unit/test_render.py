"""Steps that smdebug's writer wrote are rendered as heat maps in S3."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

import traces
import zoo
from fakes import FakeIncidents, FakeObjects
from glassbox.errors import BadInputError
from glassbox.explanation.render import render_step
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Incident, State
from glassbox.monitoring.response import ResponseParser

RUN = "20261123T101512Z-host-1-5f0c9a3e"
INDEX = f"tensors/traffic-signs/{RUN}/index/000000000/000000000000_worker_0.json"
START = datetime(2026, 11, 23, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def network():
    model, image = zoo.build("1×1 maps, one channel")
    return model, zoo.autograd_terms(model, image, dtype=torch.float32)


@pytest.fixture
def step(network, tmp_path):
    """Lays a step of two samples into a fake bucket; the ids are those of a verified marker."""

    def write(event_id=None, incident=None):
        model, terms = network
        request = {
            "inference_id": "../../etc/passwd",
            "custom_attributes": "glassbox=1.trace.20261123t100000-x.unverified..x.x",
            "sha256": "0" * 64,
            "time": "2026-11-23T10:00:01.123Z",
        }
        request |= {"replay_event_id": event_id} if event_id is not None else {}
        request |= {"replay_incident": incident} if incident is not None else {}
        traces.write_step(tmp_path, traces.reduced(terms, model, request=request))
        files = {
            p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
        }
        return FakeObjects(
            {("bucket", f"tensors/traffic-signs/{RUN}/{name}"): b for name, b in files.items()}
        )

    return write


@pytest.fixture
def incident(load_event):
    cause = read_violation(load_event("violation"), FakeObjects())
    return Incident("traffic-signs", "the-incident", START, State.HOOKED, START, "plain", "hooked", cause)


def render(objects, incidents, key=INDEX, max_heatmaps=24, class_path=None):
    return render_step(
        key,
        bucket="bucket",
        endpoint="traffic-signs",
        max_heatmaps=max_heatmaps,
        responses=ResponseParser(class_path),
        objects=objects,
        incidents=incidents,
    )


def names(objects):
    return {key for _, key in objects.objects if key.startswith("saliency/")}


def test_live_samples_get_heat_maps_named_by_run_and_step(step):
    objects = step()
    drawn = render(objects, FakeIncidents())
    stem = f"saliency/traffic-signs/live/{RUN}-000000"
    assert names(objects) == {f"{stem}{n}.{kind}" for n in ("", "-1") for kind in ("png", "webp", "json")}
    assert objects.get("bucket", f"{stem}.webp")[8:12] == b"WEBP"
    assert [heat_map.key for heat_map in drawn] == [f"{stem}.png", f"{stem}-1.png"]
    assert objects.get("bucket", f"{stem}.png").startswith(b"\x89PNG")
    facts = json.loads(objects.get("bucket", f"{stem}.json"))
    assert facts["completeness"]["complete"] is drawn[0].complete is True


def test_duplicate_events_write_the_same_objects(step):
    objects = step()
    render(objects, FakeIncidents())
    once = dict(objects.objects)
    render(objects, FakeIncidents())
    assert objects.objects == once


def test_replay_is_named_by_its_event_id_in_its_incident(step, incident):
    objects, incidents = step("0f6f4a0e-5f39", incident.id), FakeIncidents()
    incidents.open(incident)
    render(objects, incidents)
    assert f"saliency/traffic-signs/{incident.id}/0f6f4a0e-5f39.png" in names(objects)
    assert incidents.current("traffic-signs").heatmaps == {"0f6f4a0e-5f39", "0f6f4a0e-5f39-1"}


def test_replay_belongs_to_the_incident_that_sent_it(step, incident):
    incidents, late = FakeIncidents(), step("event-1", "an-earlier-one")
    incidents.open(incident)
    render(late, incidents)
    assert "saliency/traffic-signs/an-earlier-one/event-1.png" in names(late)
    assert incidents.current("traffic-signs").heatmaps == frozenset()
    own = step("event-1", incident.id)
    render(own, incidents)
    assert f"saliency/traffic-signs/{incident.id}/event-1.png" in names(own)
    assert incidents.current("traffic-signs").heatmaps == {"event-1", "event-1-1"}


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "x" * 65, "ä", None])
def test_ids_that_are_unsafe_in_keys_are_ignored(step, name):
    for ids in ((name, "an-incident"), ("event-1", name)):
        objects = step(*ids)
        render(objects, FakeIncidents())
        assert all(key.startswith(f"saliency/traffic-signs/live/{RUN}-000000") for key in names(objects))


def test_only_replays_are_rendered_above_max_heatmaps(step, incident):
    incidents = FakeIncidents()
    incidents.open(replace(incident, heatmaps=frozenset("ab")))
    objects = step()
    assert render(objects, incidents, max_heatmaps=2) == []
    assert names(objects) == set()
    assert len(render(step(), incidents, max_heatmaps=3)) == 1  # of the two in the step
    assert len(render(step("c", incident.id), incidents, max_heatmaps=2)) == 2


def test_heat_maps_after_the_incident_are_live_traffic(step, incident):
    incidents = FakeIncidents()
    incidents.open(replace(incident, state=State.NORMAL))
    objects = step()
    render(objects, incidents)
    assert all("/live/" in key for key in names(objects))


@pytest.mark.parametrize(
    "key",
    [
        INDEX.replace("traffic-signs", "traffic-signs-2"),
        INDEX.replace("tensors/", "saliency/"),
        INDEX.replace(RUN, "../secret"),
        INDEX.replace("worker_0.json", "worker_0.tfevents"),
    ],
)
def test_refuses_other_keys_without_reading(key):
    with pytest.raises(BadInputError, match="expected the index of a step"):
        render(FakeObjects({("bucket", key): b"{}"}), FakeIncidents(), key)


def test_names_missing_events(step):
    objects = step()
    del objects.objects[
        "bucket", INDEX.replace("index/000000000/", "events/000000000000/").replace("json", "tfevents")
    ]
    with pytest.raises(BadInputError, match="tfevents"):
        render(objects, FakeIncidents())


def broken(objects, network, tmp_path, request):
    """A step whose tensors fit one another and cannot be explained: a logit is not a number."""
    model, terms = network
    tensors = traces.reduced(terms, model, request=request)
    tensors["glassbox/logits"] = np.full_like(tensors["glassbox/logits"], np.nan)
    traces.write_step(tmp_path / "broken", tensors)
    for path in (tmp_path / "broken").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "broken").as_posix()
            objects.objects["bucket", f"tensors/traffic-signs/{RUN}/{name}"] = path.read_bytes()


def test_writes_a_refusal_when_a_replay_cannot_be_explained(network, tmp_path, incident):
    objects, incidents = FakeObjects(), FakeIncidents()
    incidents.open(replace(incident, replays=frozenset({"event-1"})))
    broken(objects, network, tmp_path, {"replay_event_id": "event-1", "replay_incident": incident.id})
    for _ in range(2):
        (refusal,) = render(objects, incidents)
        assert "finite" in refusal.refused
        assert not refusal.complete
    assert names(objects) == {f"saliency/traffic-signs/{incident.id}/event-1.json"}
    written = json.loads(objects.get("bucket", refusal.key))
    assert written == {"refused": refusal.refused}
    current = incidents.current("traffic-signs")
    assert (current.refused, current.heatmaps) == ({"event-1"}, frozenset())


def unreadable(objects):
    """Cut the end off the events."""
    key = "bucket", INDEX.replace("index/000000000/", "events/000000000000/").replace("json", "tfevents")
    objects.objects[key] = objects.objects[key][:-40]


def test_writes_a_refusal_when_a_trace_with_readable_ids_is_damaged(step, incident):
    objects, incidents = step("event-1", incident.id), FakeIncidents()
    incidents.open(replace(incident, replays=frozenset({"event-1"})))
    unreadable(objects)
    (refusal,) = render(objects, incidents)
    assert "tfevents: tensor" in refusal.refused
    assert names(objects) == {f"saliency/traffic-signs/{incident.id}/event-1.json"}
    assert incidents.current("traffic-signs").refused == {"event-1"}


def test_writes_a_refusal_when_the_endpoint_could_not_trace(network, tmp_path, incident):
    model, terms = network
    request = {"replay_event_id": "event-1", "replay_incident": incident.id}
    meta = json.loads(traces.reduced(terms, model, request=request)["glassbox/meta"].tobytes())
    meta |= {"terms": [], "refused": "RuntimeError: no memory\x1b[31m"}
    traces.write_step(tmp_path, {"glassbox/meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})
    objects, incidents = FakeObjects(), FakeIncidents()
    incidents.open(replace(incident, replays=frozenset({"event-1"})))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            objects.objects["bucket", f"tensors/traffic-signs/{RUN}/{name}"] = path.read_bytes()
    (refusal,) = render(objects, incidents)
    assert refusal.refused == r"the endpoint could not trace it: RuntimeError: no memory\x1b[31m"
    assert incidents.current("traffic-signs").refused == {"event-1"}


def test_raises_for_unreadable_live_traffic(step):
    objects = step()
    unreadable(objects)
    with pytest.raises(BadInputError, match="tfevents: tensor"):
        render(objects, FakeIncidents())
    assert names(objects) == set()


def test_refusal_does_not_replace_a_heat_map(step, network, tmp_path, incident):
    """A replay that was sent twice is traced twice."""
    objects, incidents = step("event-1", incident.id), FakeIncidents()
    incidents.open(replace(incident, replays=frozenset({"event-1"})))
    render(objects, incidents)
    before = objects.get("bucket", f"saliency/traffic-signs/{incident.id}/event-1.json")
    unreadable(objects)
    (refusal,) = render(objects, incidents)
    assert "tfevents: tensor" in refusal.refused
    assert objects.get("bucket", f"saliency/traffic-signs/{incident.id}/event-1.json") == before
    assert incidents.current("traffic-signs").refused == frozenset()


def test_renders_max_heatmaps_of_a_replayed_batch(step, incident):
    """A client decides how large a batch is; drawing it all may take longer than the function may run."""
    incidents, objects = FakeIncidents(), step("event-1", incident.id)
    incidents.open(replace(incident, replays=frozenset({"event-1"})))
    assert len(render(objects, incidents, max_heatmaps=1)) == 1
    assert incidents.current("traffic-signs").heatmaps == {"event-1"}


def test_raises_when_live_traffic_cannot_be_explained(network, tmp_path, incident):
    objects, incidents = FakeObjects(), FakeIncidents()
    incidents.open(incident)
    broken(objects, network, tmp_path, {})
    with pytest.raises(BadInputError, match="finite"):
        render(objects, incidents)
    assert names(objects) == set()
    assert incidents.current("traffic-signs").refused == frozenset()


def test_writes_a_refusal_to_the_incident_of_its_replay(network, tmp_path, incident):
    objects, incidents = FakeObjects(), FakeIncidents()
    incidents.open(incident)
    broken(objects, network, tmp_path, {"replay_event_id": "event-1", "replay_incident": "an-earlier-one"})
    render(objects, incidents)
    assert names(objects) == {"saliency/traffic-signs/an-earlier-one/event-1.json"}
    assert incidents.current("traffic-signs").refused == frozenset()


@pytest.mark.parametrize(
    ("response", "class_path", "answered"),
    [(b"[0, 7]", None, [None, 7]), (b'{"found": [7, 7]}', "found", [7, 7]), (b"", None, [None, None])],
)
def test_the_facts_name_another_class_of_the_response(network, tmp_path, response, class_path, answered):
    model, terms = network
    tensors = traces.reduced(terms, model, request={"sha256": "0" * 64, "samples": "2"})
    targets = tensors["glassbox/target"].tolist()
    assert 7 not in targets
    body = response.replace(b"0", str(targets[0]).encode())
    tensors["glassbox/response"] = np.frombuffer(body, np.uint8)
    traces.write_step(tmp_path, tensors)
    objects = FakeObjects(
        {
            ("bucket", f"tensors/traffic-signs/{RUN}/{p.relative_to(tmp_path).as_posix()}"): p.read_bytes()
            for p in tmp_path.rglob("*")
            if p.is_file()
        }
    )
    render(objects, FakeIncidents(), class_path=class_path)
    found = [
        json.loads(objects.objects["bucket", key]) for key in sorted(names(objects)) if key.endswith(".json")
    ]
    by_sample = {facts["sample"]: facts for facts in found}
    assert [by_sample[i]["answered"] for i in (0, 1)] == answered
    assert all(bool(facts["not_compared"]) == (not response) for facts in found)
