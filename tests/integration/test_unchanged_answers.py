"""The hook changes no answer: owners' scripts under gunicorn with forked workers, with the hook and without it."""

import dataclasses

import pytest

from benchmarks.served import ATTRIBUTES, Answer, write_hook
from benchmarks.unchanged_answers import REPLAYS, compare, difference, requests
from local.pytorch_inference import PYTHON

COUNT = 60
# Draws one random number after each call of a network, as a careless hook does.
CARELESS = """
import torch
from torch import nn

plain = nn.Module.__call__

def call(network, *args, **kwargs):
    output = plain(network, *args, **kwargs)
    torch.rand(1)
    return output

nn.Module.__call__ = call
"""

needs_servers = pytest.mark.skipif(
    not PYTHON.exists(), reason=".venv-torchserve: make test installs gunicorn and Flask into it"
)


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    return write_hook(tmp_path_factory.mktemp("hook"))


@needs_servers
class TestScripts:
    @pytest.mark.parametrize("owner", ["random_numbers", "input_gradient", "two_networks"])
    def test_answers_are_the_same_with_live_traces_and_replays(self, owner, hook):
        outcome = compare(owner, COUNT, hook)
        assert outcome.differences == []
        assert outcome.statuses == {"200 OK": COUNT - 1, "400 BAD REQUEST": 1}
        assert outcome.replayed == COUNT // REPLAYS
        refuses = owner == "two_networks"
        assert outcome.refused == (outcome.replayed if refuses else 0)
        assert (outcome.live > 0) is not refuses

    def test_a_hook_that_draws_a_random_number_is_found(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(CARELESS)
        outcome = compare("random_numbers", 6, tmp_path)  # without a replay, whose trace never comes
        assert len(outcome.differences) == 6
        assert all(": body of " in found or ": headers: " in found for found in outcome.differences)


class TestRequests:
    def test_come_in_each_form_and_some_are_replays_or_invalid(self):
        asked = list(requests(100, 0))
        assert {request.content_type for request in asked} == {
            "application/json",
            "application/x-npy",
            "image/png",
        }
        assert sum(ATTRIBUTES in request.headers for request in asked) == 100 // REPLAYS
        assert len({request.body for request in asked}) == 100

    def test_are_the_same_for_the_same_seed(self):
        assert [a.body for a in requests(9, 1)] == [a.body for a in requests(9, 1)]
        assert [a.body for a in requests(9, 1)] != [a.body for a in requests(9, 2)]


class TestDifference:
    ANSWER = Answer("200 OK", (("Content-Type", "text/plain"), ("X-Owner", "1")), b"0.25")

    def test_of_the_same_answer_is_none(self):
        assert difference(self.ANSWER, dataclasses.replace(self.ANSWER)) == ""

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"status": "200 Ok"}, "status: expected 200 OK, got 200 Ok"),
            ({"headers": ANSWER.headers[::-1]}, "headers: expected"),
            ({"headers": ANSWER.headers[:1]}, "headers: expected"),
            ({"body": b"0.24"}, "body of 4 bytes: other from byte 3 of 4"),
            ({"body": b"0.2"}, "body of 4 bytes: other from byte 3 of 3"),
            ({"body": b"0.250"}, "body of 4 bytes: other from byte 4 of 5"),
        ],
    )
    def test_names_what_differs_first(self, change, found):
        assert difference(self.ANSWER, dataclasses.replace(self.ANSWER, **change)).startswith(found)
