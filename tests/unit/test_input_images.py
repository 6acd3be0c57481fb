"""The reference of a diagnosis, made from captured inputs by ``make baseline``."""

import base64
import hashlib
import io
import json
from collections import Counter

import numpy as np
import pytest

import baseline
import input_images
import replays
from captures import record
from demo import signs
from glassbox.diagnosis import pixels
from glassbox.diagnosis.reference import read_reference
from glassbox.errors import BadInputError
from glassbox.monitoring.response import Prediction

IMAGES, CLASSES = signs.dataset(60, 21, 32)
BODIES = [pixels.written(image) for image in IMAGES]


def captured(body, predicted_class, confidence, **metadata):
    """Return a line of a capture file with this input."""
    answer = {"predictions": [{"class": predicted_class, "label": None, "probability": confidence}]}
    one = record(answer, **metadata)
    one["captureData"]["endpointInput"]["data"] = base64.b64encode(body).decode()
    return json.dumps(one).encode() + b"\n"


def lines(bodies=BODIES):
    return [
        captured(body, int(c), 0.5 + n / 200)
        for n, (body, c) in enumerate(zip(bodies, CLASSES, strict=False))
    ]


@pytest.fixture
def run(tmp_path):
    """Return a function that computes the baseline of these lines, and returns the exit status."""
    folder = tmp_path / "captures" / "traffic-signs" / "AllTraffic" / "2026" / "11" / "23" / "10"
    folder.mkdir(parents=True)

    def computed(content, *arguments):
        (folder / "a.jsonl").write_bytes(b"".join(content))
        return baseline.main([str(tmp_path / "captures"), "--out", str(tmp_path / "out"), *arguments])

    return computed


def test_reference_describes_the_captured_inputs(run, tmp_path):
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(b"weights")
    assert run(lines(), "--model", str(archive)) == 0
    found = read_reference((tmp_path / "out" / "reference.npz").read_bytes())
    assert found.classes == Counter(map(int, CLASSES))
    assert found.confidence_quartile == pytest.approx(np.percentile([0.5 + n / 200 for n in range(60)], 25))
    np.testing.assert_allclose(found.center, np.median([pixels.measure(i) for i in IMAGES], 0), rtol=1e-5)
    assert found.model == hashlib.sha256(b"weights").hexdigest()
    assert not found.confusion
    assert (tmp_path / "out" / "statistics.json").exists()


def test_true_classes_are_those_of_the_folders_of_the_same_bytes(run, tmp_path):
    for number, body in enumerate(BODIES[:10]):
        folder = tmp_path / "images" / ("07" if number < 6 else "stop")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(body)
    (tmp_path / "images" / "stop" / "0.png").write_bytes(BODIES[0])  # of two classes: of none
    assert run(lines(), "--images", str(tmp_path / "images")) == 0
    found = read_reference((tmp_path / "out" / "reference.npz").read_bytes())
    expected = Counter((7 if n < 6 else "stop", int(CLASSES[n])) for n in range(1, 10))
    assert found.confusion == expected


def test_replays_and_shadow_variants_and_batches_are_left_out(run, tmp_path, monkeypatch):
    marked = captured(BODIES[0], 14, 0.1, customAttributes=[replays.marker(BODIES[0])])
    two = json.loads(captured(BODIES[0], 14, 0.1))
    two["captureData"]["endpointOutput"]["data"] = json.dumps(
        {"predictions": 2 * [{"class": 14, "probability": 0.1}]}
    )
    (tmp_path / "public.pem").write_text(replays.KEY.pem)
    monkeypatch.setenv("SHADOW_VARIANTS", "Shadow")
    shadow = tmp_path / "captures" / "traffic-signs" / "Shadow" / "2026" / "11" / "23" / "10"
    shadow.mkdir(parents=True)
    (shadow / "a.jsonl").write_bytes(marked + captured(BODIES[0], 14, 0.1))
    key = ("--replay-key", str(tmp_path / "public.pem"))
    assert run([*lines(), marked, json.dumps(two).encode() + b"\n"], *key) == 0
    found = read_reference((tmp_path / "out" / "reference.npz").read_bytes())
    assert found.classes == Counter(map(int, CLASSES))


def test_inputs_that_are_not_images_have_a_baseline_without_a_reference(run, tmp_path, caplog):
    assert run(lines([b"1,2,3"] * 60)) == 0
    assert "No reference.npz: reference: expected at least 20 images, got 0" in caplog.text
    assert (
        "the first other input: input: expected PNG, JPEG, JSON with one of them in base64, or a uint8 array"
        in caplog.text
    )
    assert (tmp_path / "out" / "statistics.json").exists()
    assert not (tmp_path / "out" / "reference.npz").exists()


@pytest.mark.parametrize("argument", ["--model", "--images"])
def test_a_missing_archive_or_folder_is_an_error(run, tmp_path, caplog, argument):
    assert run(lines(), argument, str(tmp_path / "missing")) == 1
    assert f"{tmp_path / 'missing'}: " in caplog.text


def test_damaged_lines_and_inputs_are_skipped(run, tmp_path):
    no_input = json.loads(lines()[0])
    del no_input["captureData"]["endpointInput"]
    bad_input = json.loads(lines()[0])
    bad_input["captureData"]["endpointInput"]["data"] = "%"
    content = [*lines(), b"oops\n", *(json.dumps(one).encode() + b"\n" for one in (no_input, bad_input))]
    assert run(content) == 0
    assert read_reference((tmp_path / "out" / "reference.npz").read_bytes()).classes.total() == 60


def test_every_input_is_chosen_with_equal_probability(monkeypatch):
    """20 of 60, by 600 seeds: each count is binomial, and within 5 deviations of its mean."""
    monkeypatch.setattr(input_images, "IMAGES", 20)
    given = [input_images.CapturedInput(bytes([n]), Prediction(1)) for n in range(60)]
    counts = Counter(one.body[0] for seed in range(600) for one in input_images._chosen(iter(given), seed))
    assert counts.total() == 600 * 20
    deviation = (600 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(counts[n] - 200) < 5 * deviation for n in range(60))


def test_a_body_over_the_limit_is_cut_before_it_is_kept(run, tmp_path, caplog):
    stream = io.BytesIO()
    np.save(stream, np.zeros((1024, 1025), np.uint8))
    assert run([captured(stream.getvalue(), 1, 0.5)] * 2) == 0
    assert "expected at most 1048576 bytes, got 1048577" in caplog.text


def test_an_unreadable_archive_is_named(tmp_path):
    with pytest.raises(BadInputError, match="cannot read the model archive: Is a directory"):
        input_images.fingerprint(tmp_path)
