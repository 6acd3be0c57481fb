"""The metric OpenIncidents of confirm_endpoint: 1 while the endpoint has an open incident, else 0."""

import json
from types import SimpleNamespace

import pytest

from fakes import FakeObjects
from glassbox.incidents.events import read_violation
from world import IDS, World

CONTEXT = SimpleNamespace(
    function_name="confirm_endpoint", memory_limit_in_mb=512, invoked_function_arn="arn", aws_request_id="1"
)


def hooked(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()


def restoring(world, violation):
    hooked(world, violation)
    world.draw(*IDS)
    world.restore()


# the state before the sweep, and the metric that the sweep publishes
SITUATIONS = {
    "no incident, endpoint in service": (lambda w, v: None, 0),
    "no incident, endpoint deleted": (lambda w, v: w.endpoint.delete(), 0),
    "no incident, stale twin": (lambda w, v: w.endpoint.deploy("another"), 0),
    "closed incident": (lambda w, v: w.run(v), 0),
    "closed incident, endpoint deleted": (lambda w, v: (w.run(v), w.endpoint.delete()), 0),
    "closed incident, stale twin": (lambda w, v: (w.run(v), w.endpoint.deploy("another")), 0),
    "swapping": (lambda w, v: w.swap(v), 1),
    "hooked": (hooked, 1),
    "restoring": (restoring, 1),
    "failed, endpoint deleted": (lambda w, v: (w.swap(v), w.endpoint.delete()), 1),
    "restored": (lambda w, v: (restoring(w, v), w.endpoint.settle()), 0),
}


@pytest.mark.parametrize(("lead", "value"), SITUATIONS.values(), ids=SITUATIONS)
def test_counts_open_incidents(load_event, lead, value, load_app, capsys):
    world, app = World(), load_app("confirm_endpoint")
    lead(world, read_violation(load_event("violation"), FakeObjects()))
    app.build = lambda: lambda now: world.confirm()
    for _ in range(2):
        record = {"messageId": "1", "eventSource": "aws:sqs", "body": "{}"}
        assert app.handler({"Records": [record]}, CONTEXT) == {"batchItemFailures": []}
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["OpenIncidents"] for line in printed if "OpenIncidents" in line] == [[value]]
        assert (world.incident is not None and world.incident.is_open) is bool(value)
