"""The class of the response is compared with the explained one, in every form that the monitor reads."""

import json

import numpy as np
import pytest

from glassbox.explanation.answers import compare
from glassbox.explanation.fullgrad import Explanation
from glassbox.explanation.trace_format import RESPONSE
from glassbox.explanation.trace_reader import Meta, Trace
from glassbox.monitoring.response import ResponseParser

PROBABILITIES = np.array([0.05, 0.15, 0.05, *[0.0] * 11, 0.75])


def explanation(class_name="Stop", probability=0.75, probabilities=PROBABILITIES):
    """The explanation of class 14 of 15."""
    return Explanation(
        step=0,
        sample=0,
        model="ResNet",
        trace_form="reduced",
        input_image=np.zeros((4, 4, 3), np.uint8),
        saliency=np.zeros((4, 4), np.float32),
        target=14,
        class_name=class_name,
        logit=8.0,
        probability=probability,
        probabilities=probabilities,
        total=8.0,
        sum_abs=9.0,
        layers=(),
        held={},
        unaccounted=(),
        request={},
    )


def compared(body, *, path=None, samples=1, content=None, **changes):
    """The explanations of class 14 after the comparison with a response of these bytes."""
    meta = Meta("reduced", "ResNet", (), {}, (), {"samples": str(samples)})
    tensor = np.frombuffer(body, np.uint8) if content is None else content
    return compare(
        [explanation(**changes)] * samples,
        Trace("key", 0, meta, {RESPONSE: tensor}),
        ResponseParser(path),
    )


def scores(predicted_class):
    return [[0.9 if c == predicted_class else 0.1 / 14 for c in range(15)]]


@pytest.mark.parametrize(
    "form",
    [
        lambda c: {"predictions": [{"class": c, "probability": 0.75}]},
        lambda c: [[c]],
        lambda c: {"predicted_class": c},
        scores,
    ],
)
@pytest.mark.parametrize(("given", "other"), [(14, None), (3, 3), (0, 0)])
def test_every_form_gives_the_answered_class(form, given, other):
    (found,) = compared(json.dumps(form(given)).encode())
    assert (found.answered, found.not_compared) == (other, None)


@pytest.mark.parametrize(("body", "other"), [(b"14\n", None), (b"99\n", 99), (b"[[-1]]", -1)])
def test_a_class_may_be_none_of_the_networks(body, other):
    (found,) = compared(body)
    assert (found.answered, found.not_compared) == (other, None)


def test_the_class_path_finds_the_class():
    body = json.dumps({"result": {"top": [[3, 0.5], [14, 0.3]]}}).encode()
    assert compared(body, path="result.top[0][0]")[0].answered == 3
    assert compared(body, path="result.top[1][0]")[0].answered is None
    assert compared(body, path="other")[0].not_compared == "CLASS_PATH finds nothing in the response"


def test_each_sample_has_its_own_answer():
    first, second = compared(b"[14, 3]", samples=2)
    assert (first.answered, second.answered) == (None, 3)


def test_probabilities_that_a_response_rounds_to_one_number_are_no_other_answer():
    """The parser takes the first of two equal scores; the network had another by 0.004."""
    near = np.array([0.5 - 0.002, *[0.0] * 13, 0.5 + 0.002])
    rounded = json.dumps([[0.5, *[0.0] * 13, 0.5]]).encode()
    (same,) = compared(rounded, probabilities=near, probability=0.502)
    assert same.answered is None
    far = np.array([0.49, *[0.0] * 13, 0.51])
    (other,) = compared(rounded, probabilities=far, probability=0.51)
    assert other.answered == 0


def test_a_name_is_compared_with_the_name_of_the_class():
    body = json.dumps([{"class": "Stop"}]).encode()
    assert compared(body)[0].answered is None
    assert compared(json.dumps([{"class": "Yield"}]).encode())[0].answered == "Yield"
    (unnamed,) = compared(body, class_name=None)
    assert unnamed.answered is None
    assert unnamed.not_compared == "the response names classes, and the network numbers them"


@pytest.mark.parametrize(
    ("body", "samples", "reason"),
    [
        (b"", 1, "the hook does not see the response, or it is too large"),
        (b"<html>", 1, "the response is not a CSV of numbers"),
        (b"[14, 3]", 3, "response: expected 3 predictions, one per image, got 2"),
        (b"[" * 5000, 1, ""),
        (b"\xff\xfe\x00", 1, "not UTF-8"),
    ],
)
def test_what_cannot_be_compared_has_a_reason(body, samples, reason):
    for found in compared(body, samples=samples):
        assert found.answered is None
        assert found.not_compared
        assert reason in found.not_compared


@pytest.mark.parametrize("content", [np.zeros(3, np.float32), np.zeros((2, 2), np.uint8)])
def test_a_tensor_of_another_kind_is_not_read(content):
    (found,) = compared(b"", content=content)
    assert found.not_compared == "the hook does not see the response, or it is too large"


def test_a_trace_without_a_response_is_unchanged():
    explained = [explanation()]
    trace = Trace("key", 0, Meta("reduced", "ResNet", (), {}, (), {"samples": "1"}), {})
    assert compare(explained, trace, ResponseParser()) == explained
