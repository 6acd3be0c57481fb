"""`make demo` on the embedded AWS, by the files that it writes."""

import json
import re

import pytest

from demo import scene, story

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert story.main(["--out", str(out)]) == 0
    return json.loads((out / "report.json").read_text()), (out / "index.html").read_text()


def test_counts_every_captured_prediction_once(result):
    counts = result[0]["counts"]
    assert counts["normal"]["captured"] == sum(counts["normal"]["classes"].values()) == scene.NORMAL
    assert counts["attack"]["captured"] == sum(counts["attack"]["classes"].values()) == 400
    assert counts["attack"]["classes"]["14"] == 322
    assert counts["attack"]["target_share"] == pytest.approx(0.805)


def test_the_violation_reports_the_attack(result):
    violation = result[0]["violation"]
    assert (violation["check"], violation["class"], violation["upper"]) == ("class_share", 14, 0.5)
    assert 0.5 < violation["value"] <= 0.805
    assert 50 <= violation["sample_size"] <= 400


def test_swaps_and_restores_the_endpoint_once_without_a_failed_request(result):
    states = [
        (s["status"], "hooked" if "Hooked" in s["config"] else "plain") for s in result[0]["endpoint_configs"]
    ]
    swap = [("InService", "plain"), ("Updating", "plain"), ("InService", "hooked")]
    assert states == [*swap, ("Updating", "hooked"), ("InService", "plain")]
    assert result[0]["failed_requests"] == 0


def test_explains_the_flagged_inputs(result):
    flagged = [h for h in result[0]["heatmaps"] if h["kind"] == "flagged"]
    assert len(flagged) == 16
    assert sum(h["predicted_class"] == 14 for h in flagged) == 12


def test_every_pair_has_complete_heatmaps(result):
    heatmaps = {h["id"]: h for h in result[0]["heatmaps"]}
    for number in range(scene.PAIRS):
        clean, adversarial = heatmaps[f"clean-{number}"], heatmaps[f"adversarial-{number}"]
        assert clean["predicted_class"] != 14
        assert adversarial["predicted_class"] == 14
        for heatmap in (clean, adversarial):
            assert 0 < heatmap["probability"] <= 1
            assert heatmap["completeness_error"] < 1e-4
            assert heatmap["complete"]


def test_heatmaps_arrive_within_seconds_of_their_requests(result):
    assert 0 < result[0]["timings"]["request_to_heatmap_max"] < 30  # a limit for a hang, not a usual value


def test_notifies_of_the_swap_and_of_the_restore(result):
    swap, restore = result[0]["notifications"]
    assert "Class 14 predicted" in swap["text"]
    assert "aws events put-events" in swap["text"]
    assert "restored" in restore["subject"]
    assert re.search(r"aws s3 presign s3://\S+/incidents/traffic-signs/\S+/index.html", restore["text"])
    assert "NORMAL: the plain config is in service" in restore["text"]


def test_the_page_shows_the_pairs_without_external_resources(result):
    page = result[1]
    assert page.count('alt="adversarial"') == page.count('alt="difference"') == scene.PAIRS
    assert not re.search(r'src="(?!data:)', page)
