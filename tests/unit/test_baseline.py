import json

import pytest

import baseline
import replays
from captures import file, line
from glassbox.monitoring.baseline import read_baseline


@pytest.fixture
def captures(tmp_path):
    for endpoint, classes in (("traffic-signs", [3, 3, 14]), ("other", [7])):
        folder = tmp_path / "captures" / endpoint / "AllTraffic" / "2026" / "11" / "23" / "10"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(file(classes) + b"oops\n" + line({"best": 5}) + b"\n")
    return tmp_path / "captures"


def test_baseline_is_readable_by_the_drift_check(captures, tmp_path, capsys):
    out = tmp_path / "baseline"
    assert baseline.main([str(captures), "--out", str(out), "--endpoint", "traffic-signs"]) == 0
    assert read_baseline((out / "statistics.json").read_bytes(), "x") == {3: 2, 14: 1}
    constraints = json.loads((out / "constraints.json").read_text())
    assert constraints["features"][0]["string_constraints"] == {"domains": ["3", "14"]}
    assert constraints["features"][0]["completeness"] == pytest.approx(3 / 5)


def test_baseline_reads_responses_by_the_settings_of_the_function(captures, tmp_path, monkeypatch):
    monkeypatch.setenv("CLASS_PATH", "best")
    assert baseline.main([str(captures), "--out", str(tmp_path)]) == 0
    assert read_baseline((tmp_path / "statistics.json").read_bytes(), "x") == {5: 2}


def test_baseline_skips_replays_with_the_key_and_fails_without(captures, tmp_path, caplog):
    marked = b"".join(line([[14]], customAttributes=[replays.marker()]) + b"\n" for _ in range(9))
    (captures / "traffic-signs" / "AllTraffic" / "b.jsonl").write_bytes(marked)
    arguments = [str(captures), "--out", str(tmp_path), "--endpoint", "traffic-signs"]
    assert baseline.main(arguments) == 1
    assert "make baseline REPLAY_KEY=public.pem" in caplog.text
    (tmp_path / "public.pem").write_text(replays.KEY.pem)
    assert baseline.main([*arguments, "--replay-key", str(tmp_path / "public.pem")]) == 0
    assert read_baseline((tmp_path / "statistics.json").read_bytes(), "x") == {3: 2, 14: 1}


def test_baseline_fails_without_captures_or_with_wrong_settings(captures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert baseline.main([str(tmp_path / "elsewhere"), "--out", str(out)]) == 1
    monkeypatch.setenv("NUM_CLASSES", "many")
    assert baseline.main([str(captures), "--out", str(out)]) == 1
    assert not out.exists()
