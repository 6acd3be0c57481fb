"""The whole loop on the embedded AWS, as `make demo` runs it; what it left behind is what is judged."""

import json
import re

import pytest

from demo import scene, story

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert story.main(["--out", str(out)]) == 0
    return json.loads((out / "report.json").read_text()), (out / "index.html").read_text()


def test_every_captured_prediction_is_counted_once(told):
    counts = told[0]["counts"]
    assert counts["normal"]["captured"] == sum(counts["normal"]["classes"].values()) == scene.NORMAL
    assert counts["attack"]["captured"] == sum(counts["attack"]["classes"].values()) == 400
    assert counts["attack"]["classes"]["14"] == 322
    assert counts["attack"]["target_share"] == pytest.approx(0.805)


def test_the_violation_is_that_of_the_attack(told):
    violation = told[0]["violation"]
    assert (violation["check"], violation["class"], violation["upper"]) == ("class_share", 14, 0.5)
    assert 0.5 < violation["value"] <= 0.805
    assert 50 <= violation["sample_size"] <= 400


def test_the_endpoint_is_swapped_once_and_restored_and_answers_throughout(told):
    seen = [
        (s["status"], "hooked" if "Hooked" in s["config"] else "plain") for s in told[0]["endpoint_configs"]
    ]
    swap = [("InService", "plain"), ("Updating", "plain"), ("InService", "hooked")]
    assert seen == [*swap, ("Updating", "hooked"), ("InService", "plain")]
    assert told[0]["failed_requests"] == 0


def test_what_was_flagged_is_explained(told):
    flagged = [p for p in told[0]["pictures"] if p["kind"] == "flagged"]
    assert len(flagged) == 16
    assert sum(p["class"] == 14 for p in flagged) == 12


def test_every_pair_has_complete_pictures(told):
    pictures = {p["id"]: p for p in told[0]["pictures"]}
    for number in range(scene.PAIRS):
        clean, adversarial = pictures[f"clean-{number}"], pictures[f"adversarial-{number}"]
        assert clean["class"] != 14
        assert adversarial["class"] == 14
        for picture in (clean, adversarial):
            assert 0 < picture["probability"] <= 1
            assert picture["completeness_error"] < 1e-4
            assert picture["complete"]


def test_a_picture_comes_within_seconds_of_its_request(told):
    assert (
        0 < told[0]["timings"]["request_to_picture_max"] < 30
    )  # a bound on hanging; the README says what is usual


def test_ops_are_told_when_it_begins_and_when_it_is_over(told):
    begun, over = told[0]["messages"]
    assert "Class 14 predicted" in begun["text"]
    assert "aws events put-events" in begun["text"]
    assert "restored" in over["subject"]
    assert re.search(r"aws s3 presign s3://\S+/incidents/traffic-signs/\S+/index.html", over["text"])
    assert "NORMAL: the plain config is in service" in over["text"]


def test_the_page_shows_the_pairs_and_needs_nothing_from_elsewhere(told):
    page = told[1]
    assert page.count('alt="adversarial"') == page.count('alt="difference"') == scene.PAIRS
    assert not re.search(r'src="(?!data:)', page)
