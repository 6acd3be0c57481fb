"""The contract of the monitor container, as a process where the contract concerns processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

import evaluation
import glassbox
import replays
from captures import ARTICLE, FakeCaptures, FakeCounts, FakeEvents, created, file, line
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import BadInputError, RetryableError
from glassbox.monitoring.baseline import fetch_baseline, read_baseline
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.monitoring.counts import Confidences, Counts
from glassbox.monitoring.monitor_files import (
    constraints,
    file_metrics,
    statistics,
)

SCRIPT = Path(evaluation.__file__)

# As SageMaker sets it, with spaces in the times.
ENVIRONMENT = {
    "dataset_format": '{"sagemakerCaptureJson": {"captureIndexNames": ["endpointInput","endpointOutput"]}}',
    "dataset_source": "/opt/ml/processing/endpointdata",
    "output_path": "/opt/ml/processing/resultdata",
    "publish_cloudwatch_metrics": "Disabled",
    "sagemaker_endpoint_name": "traffic-signs",
    "sagemaker_monitoring_schedule_name": "hourly",
    "start_time": "2026-11-23T10: 00: 00Z",
    "end_time": "2026-11-23T11: 00: 00Z",
    "THRESHOLD": "0.5",
    "PYTHONPATH": str(Path(glassbox.__file__).parents[1]),  # in the image the core is in the script's folder
}
NAMES = ("statistics", "constraints", "constraint_violations")


class Job:
    """A processing job below ``root`` instead of /opt/ml."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "processing" / "endpointdata"
        self.folder.mkdir(parents=True)
        self.result = None

    def capture(
        self,
        data,
        variant="AllTraffic",
        hour="2026/11/23/10",
        name="00-01-871-uuid",
        endpoint="traffic-signs",
    ):
        path = self.folder / endpoint / variant / hour / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def run(self, **environment):
        variables = ENVIRONMENT | {"OPT_ML": str(self.root), "PATH": os.environ["PATH"]} | environment
        self.result = subprocess.run(
            [sys.executable, SCRIPT],
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return self.result.returncode

    @property
    def log(self):
        return self.result.stdout

    @property
    def message(self):
        return (self.root / "output" / "message").read_text()

    def report(self, name):
        return json.loads((self.root / "processing" / "resultdata" / f"{name}.json").read_text())

    @property
    def metrics(self):
        path = self.root / "output" / "metrics" / "cloudwatch" / "cloudwatch_metrics.jsonl"
        return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else None


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "opt" / "ml")


REASON = (
    "Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold "
    "(322 of 400 predictions, 2026-11-23 10:00 to 11:00 UTC)"
)


def test_container_fulfils_the_contract_for_the_reference_case(job):
    job.capture(file(ARTICLE[:200]), name="a")
    job.capture(file(ARTICLE[200:], "2026-11-23T10:59:59Z"), name="b")
    assert job.run() == 0
    counted = {label: 322 if label == 14 else 2 for label in range(40)}
    assert f"INFO Predicted classes {counted}\n" in job.log
    assert f"WARNING {REASON}\n" in job.log
    assert job.message == f"CompletedWithViolations: {REASON}"
    assert job.report("constraint_violations") == {
        "violations": [
            {
                "feature_name": "PredictedClass",
                "constraint_check_type": "baseline_drift_check",
                "description": REASON,
            }
        ]
    }
    assert job.metrics is None


def test_container_and_function_give_the_same_verdict(job):
    job.capture(file(ARTICLE))
    job.run()
    key = "capture/traffic-signs/AllTraffic/2026/11/23/10/x.jsonl"
    dependencies = CountingDependencies(
        settings=CountingSettings(threshold=0.5),
        replay_key=None,
        captures=FakeCaptures({key: file(ARTICLE)}),
        counts=FakeCounts(),
        events=FakeEvents(),
    )
    counted = count_file(created(key), datetime(2026, 11, 23, 10, 21, tzinfo=UTC), dependencies)
    fast = check_file(counted, dependencies)
    assert [v.reason for v in fast.violations] == [
        v["description"] for v in job.report("constraint_violations")["violations"]
    ]


def test_monitor_files_have_the_documented_schema(job):
    job.capture(
        b"".join(
            line({"predictions": [{"class": c, "probability": p}]}) + b"\n"
            for c, p in [(14, 1.0), (14, 0.25), (9, 0.55), (9, 0.2)]
        )
        + line("[[3]]")
        + b"\noops\n"
    )
    assert job.run() == 0
    assert job.report("statistics") == {
        "version": 0,
        "dataset": {"item_count": 6},
        "features": [
            {
                "name": "PredictedClass",
                "inferred_type": "String",
                "string_statistics": {
                    "common": {"num_present": 5, "num_missing": 1},
                    "distinct_count": 3,
                    "distribution": {
                        "categorical": {
                            "buckets": [
                                {"value": "3", "count": 1},
                                {"value": "9", "count": 2},
                                {"value": "14", "count": 2},
                            ]
                        }
                    },
                },
            },
            {
                "name": "Confidence",
                "inferred_type": "Fractional",
                "numerical_statistics": {
                    "common": {"num_present": 4, "num_missing": 1},
                    "mean": 0.5,
                    "sum": 2.0,
                    "std_dev": pytest.approx(0.3181981, abs=1e-6),  # of 1, 0.25, 0.55, 0.2, by hand
                    "min": 0.2,
                    "max": 1.0,
                    "distribution": {
                        "kll": {
                            "buckets": [
                                {"lower_bound": i / 10, "upper_bound": (i + 1) / 10, "count": n}
                                for i, n in enumerate([0, 0, 2, 0, 0, 1, 0, 0, 0, 1])
                            ]
                        }
                    },
                },
            },
        ],
    }
    suggested = job.report("constraints")
    assert suggested["version"] == 0
    assert suggested["monitoring_config"]["evaluate_constraints"] == "Enabled"
    assert suggested["features"] == [
        {
            "name": "PredictedClass",
            "inferred_type": "String",
            "completeness": pytest.approx(5 / 6),
            "string_constraints": {"domains": ["3", "9", "14"]},
        },
        {
            "name": "Confidence",
            "inferred_type": "Fractional",
            "completeness": pytest.approx(4 / 5),
            "num_constraints": {"is_non_negative": True},
        },
    ]
    assert job.report("constraint_violations") == {"violations": []}
    assert job.message == "Completed: 5 predictions, no violation"


def test_empty_hour_completes_without_data(job):
    job.capture(b"", name="empty")
    job.capture(file([14] * 60, "2026-11-23T11:00:00Z"), name="later")
    assert job.run(publish_cloudwatch_metrics="Enabled") == 0
    assert job.message == "Completed: no data from 2026-11-23 10:00 to 11:00 UTC"
    assert job.report("constraint_violations") == {"violations": []}
    assert job.report("statistics")["dataset"] == {"item_count": 0}
    assert "Predicted classes {}" in job.log


def test_missing_folder_completes_without_data_and_is_logged(job):
    assert job.run(dataset_source="/opt/ml/processing/elsewhere") == 0
    assert job.message.startswith("Completed: no data")
    assert "elsewhere does not exist" in job.log


def test_container_checks_the_endpoints_window_without_shadows(job):
    inside = file([3] * 30 + [5] * 30, "2026-11-23T10:30:00Z")
    job.capture(inside)
    job.capture(
        file([14] * 500, "2026-11-23T09:59:59Z") + file([7], "2026-11-23T10:00:00Z"), hour="2026/11/23/09"
    )
    job.capture(file([14] * 500, "2026-11-23T11:00:00Z"), name="late")
    job.capture(file([14] * 500), "Canary")
    job.capture(file([14] * 500), endpoint="traffic-signs-2")
    assert job.run(SHADOW_VARIANTS="Canary,Other") == 0
    assert "Predicted classes {3: 30, 5: 30, 7: 1}" in job.log
    assert job.report("constraint_violations") == {"violations": []}


def test_container_checks_each_variant_and_names_it(job):
    job.capture(file([14] * 60), "Blue")
    job.capture(file(range(43)) + file(range(43)), "Green")
    assert job.run() == 0
    (violation,) = job.report("constraint_violations")["violations"]
    assert violation["description"].startswith("Class 14 predicted 100.00%")
    assert violation["description"].endswith(", variant Blue")


REPLAYS = b"".join(line([[14]], customAttributes=[replays.marker()]) + b"\n" for _ in range(100))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_container_excludes_replayed_requests(job, processes):
    job.capture(REPLAYS)
    job.capture(REPLAYS, "Green")
    key = job.root / "processing" / "replay-key" / "public.pem"
    key.parent.mkdir(parents=True)
    key.write_text(replays.KEY.pem)
    assert job.run(REPLAY_KEY="/opt/ml/processing/replay-key/public.pem", PROCESSES=processes) == 0
    assert job.message.startswith("Completed: no data")


def test_container_counts_forged_markers_as_traffic(job):
    key = job.root / "public.pem"
    key.write_text(replays.KEY.pem)
    job.capture(b"".join(line([[14]], customAttributes=[replays.FORGED]) + b"\n" for _ in range(100)))
    assert job.run(REPLAY_KEY=str(key)) == 0
    assert job.message.startswith("CompletedWithViolations: Class 14 predicted 100.00%")


def test_container_reads_the_replay_key_from_kms_in_a_model_monitor_schedule(tmp_path):
    with mock_aws():
        kms = boto3.client("kms")
        arn = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
        settings = evaluation.Settings(threshold=0.5, replay_key_arn=arn)
        key = evaluation.read_replay_key(settings, tmp_path)
        assert key.verifies(b"message", ReplayKey(kms, arn).sign(b"message"))
        gone = evaluation.Settings(threshold=0.5, replay_key_arn=arn[:-1])
        with pytest.raises(RetryableError, match="kms get_public_key failed"):
            evaluation.read_replay_key(gone, tmp_path)


def test_container_fails_when_a_marker_needs_a_missing_key(job):
    job.capture(REPLAYS)
    job.capture(REPLAYS, "Green")
    assert job.run() == 1
    assert "Set REPLAY_KEY to the PEM file" in job.message
    assert job.run(REPLAY_KEY=str(job.root / "gone.pem")) == 1
    assert "gone.pem: cannot read the replay key: No such file" in job.message


def test_container_counts_files_outside_the_usual_folders(job):
    (job.folder / "loose.jsonl").write_bytes(file(ARTICLE[:200]))
    without_endpoint = job.folder / "AllTraffic" / "2026" / "11" / "23" / "10" / "a.jsonl"
    without_endpoint.parent.mkdir(parents=True)
    without_endpoint.write_bytes(file(ARTICLE[200:]))
    assert job.run() == 0
    assert job.message == f"CompletedWithViolations: {REASON}"


def test_container_reports_an_unreadable_hour_and_completes(job):
    path = job.capture(b"oops\n" * 9 + line("[[14]]")[:-30])
    assert job.run() == 0
    assert job.message.startswith(
        "CompletedWithViolations: None of the captured responses can be read: Exceeded 1.00%"
    )
    assert job.report("constraint_violations")["violations"] == [
        {
            "feature_name": "PredictedClass",
            "constraint_check_type": "completeness_check",
            "description": job.message.removeprefix("CompletedWithViolations: "),
        }
    ]
    assert f"WARNING unreadable: {path}, line 1: not a capture record" in job.log
    assert f"{path}, line 10: not a capture record: Input data was truncated" in job.log


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"THRESHOLD": None}, ["THRESHOLD is not set"]),
        ({"THRESHOLD": ""}, ["THRESHOLD is not set"]),
        ({"THRESHOLD": "nan", "MIN_PREDICTIONS": "0"}, ["THRESHOLD='nan'", "MIN_PREDICTIONS='0'"]),
        (
            {"THRESHOLD": "1.5", "UNREADABLE_THRESHOLD": "-1", "publish_cloudwatch_metrics": "perhaps"},
            ["THRESHOLD='1.5'", "UNREADABLE_THRESHOLD='-1'", "PUBLISH_CLOUDWATCH_METRICS='perhaps'"],
        ),
        ({"end_time": None}, ["start_time needs end_time"]),
        ({"start_time": "yesterday"}, ["invalid ISO 8601 timestamp: 'yesterday'"]),
        ({"start_time": "2026-11-23T11:00:00Z"}, ["expected a time before end_time"]),
        ({"DRIFT_THRESHOLD": "0.1"}, ["DRIFT_THRESHOLD needs BASELINE_STATISTICS"]),
        ({"LOW_CONFIDENCE_THRESHOLD": "0.1"}, ["LOW_CONFIDENCE_THRESHOLD needs LOW_CONFIDENCE"]),
        ({"CLASS_PATH": "a."}, ["CLASS_PATH='a.': invalid JMESPath"]),
        (
            {"THRESHOLD": "nan", "CLASS_PATH": "a.", "CONFIDENCE_PATH": "]", "DRIFT_THRESHOLD": "0.1"}
            | {"start_time": "yesterday", "end_time": "today", "LOW_CONFIDENCE_THRESHOLD": "0.1"},
            [
                "THRESHOLD='nan'",
                "CLASS_PATH='a.': invalid JMESPath",
                "CONFIDENCE_PATH=']': invalid JMESPath",
                "DRIFT_THRESHOLD needs",
                "LOW_CONFIDENCE_THRESHOLD needs",
                "start_time: invalid ISO 8601 timestamp: 'yesterday'",
                "end_time: invalid ISO 8601 timestamp: 'today'",
            ],
        ),
    ],
)
@pytest.mark.parametrize("hour", ["full", "empty"])
def test_container_stops_with_a_message_when_settings_are_wrong(job, wrong, named, hour):
    if hour == "full":
        job.capture(file(ARTICLE))
    assert job.run(**wrong) == 1
    for problem in named:
        assert problem in job.message
    assert not (job.root / "processing" / "resultdata").exists()


def test_container_writes_a_message_after_an_unexpected_error(job):
    job.capture(file(ARTICLE))
    (job.root / "processing" / "resultdata").write_text("a file where the folder belongs")
    assert job.run() == 1
    assert "FileExistsError" in job.message
    assert "Traceback" in job.log


def test_exit_message_is_at_most_1024_bytes_of_utf8(job):
    for number in range(40):
        job.capture(file(["é" * 60] * 60), f"variant-{number}")
    assert job.run() == 0
    raw = (job.root / "output" / "message").read_bytes()
    assert 1000 < len(raw) <= 1024
    assert raw.decode().startswith("CompletedWithViolations: Class ééé")
    assert len(job.report("constraint_violations")["violations"]) == 40


def test_container_writes_cloudwatch_lines_when_enabled(job):
    job.capture(file([3, 5, 5] * 20))
    assert job.run(publish_cloudwatch_metrics="Enabled") == 0
    common = {
        "Timestamp": "2026-11-23T11:00:00Z",
        "Dimensions": [
            {"Name": "Endpoint", "Value": "traffic-signs"},
            {"Name": "MonitoringSchedule", "Value": "hourly"},
        ],
    }
    data, confidence, classes, confidences = job.metrics
    assert data == {
        "MetricName": "feature_data_PredictedClass",
        "StatisticValues": {"Minimum": 3, "Maximum": 5, "SampleCount": 60, "Sum": 260},
        **common,
    }
    assert confidence["MetricName"] == "feature_data_Confidence"
    assert confidence["StatisticValues"]["Sum"] == pytest.approx(54)
    assert classes == {"MetricName": "feature_non_null_PredictedClass", "Value": 60, **common}
    assert confidences == {"MetricName": "feature_non_null_Confidence", "Value": 60, **common}


def baseline_file(job, classes):
    counts = Counts(Counter(dict.fromkeys(classes, 100)))
    path = job.root / "processing" / "baseline" / "statistics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(statistics(counts, Confidences())))
    return "/opt/ml/processing/baseline/statistics.json"


def test_container_reports_drift_as_violation_and_metric(job):
    job.capture(file(list(range(40)) * 2 + [14] * 60))
    baseline = baseline_file(job, range(40))
    variables = {
        "baseline_statistics": baseline,
        "DRIFT_THRESHOLD": "0.1",
        "publish_cloudwatch_metrics": "Enabled",
    }
    assert job.run(**variables) == 0
    assert "The predicted classes are 0." in job.message
    assert "class 14 went from 2.50% to 44.29%" in job.message
    assert [
        m["Value"] for m in job.metrics if m["MetricName"] == "feature_baseline_drift_PredictedClass"
    ] == [pytest.approx(0.41, abs=0.05)]


def test_container_stops_when_the_baseline_is_unreadable(job):
    job.capture(file(ARTICLE))
    path = job.root / "processing" / "baseline.json"
    path.write_text('{"features": []}')
    assert job.run(baseline_statistics="/opt/ml/processing/baseline.json", DRIFT_THRESHOLD="0.1") == 1
    assert f"{path}: no counts of PredictedClass" in job.message


def test_several_processes_count_the_same_as_one(job):
    for number in range(12):
        job.capture(file([number, 14], f"2026-11-23T10:{number * 5:02d}:00Z"), name=str(number))
    settings = CountingSettings(threshold=0.5)
    paths = evaluation.capture_files(job.folder)
    one, two = (evaluation.measure(paths, settings, processes=n) for n in (1, 2))
    assert len(paths) == 12
    assert one == two
    assert evaluation.merged(two)[0].sample_size == 24


def test_memory_does_not_grow_with_the_files(job):
    """60 MB in one file and a line of 36 MB, in a process that may use 150 MB more than Python."""
    record = line([[14]])
    with job.capture(b"").open("wb") as stream:
        for _ in range(60):
            stream.write((record + b"\n") * ((1 << 20) // len(record)))
        stream.write(b"x" * (36 << 20))
    program = (
        "import resource, sys, runpy; base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('grown', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, SCRIPT],
        env=ENVIRONMENT | {"OPT_ML": str(job.root), "PROCESSES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "expected at most 32 MiB" in result.stdout
    assert int(result.stdout.rpartition("grown ")[2]) < 150


# ---------------------------------------------------------------- the parts of a report


def test_read_baseline_returns_the_counts_of_statistics():
    counts = Counts(Counter({0: 5, 14: 7, "Stop": 3, "unknown": 1}))
    text = json.dumps(statistics(counts, Confidences())).encode()
    assert read_baseline(text, "x") == counts.classes


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"features": [{"name": "PredictedClass"}]}', b"\xff"])
def test_read_baseline_refuses_other_documents(text):
    with pytest.raises(BadInputError, match=r"s3://b/k: no counts of PredictedClass"):
        read_baseline(text, "s3://b/k")


@pytest.mark.parametrize("buckets", [{}, {"1": 0}, {"1": 5, "2": -1}])
def test_read_baseline_refuses_empty_and_negative_counts(buckets):
    with pytest.raises(BadInputError, match="empty"):
        read_baseline(json.dumps(statistics(Counts(Counter(buckets)), Confidences())).encode(), "x")


@pytest.mark.parametrize(
    "bucket",
    [
        pytest.param({"value": None, "count": 5}, id="null-class"),
        pytest.param({"value": [], "count": 5}, id="list-class"),
        pytest.param({"value": True, "count": 5}, id="bool-class"),
        pytest.param({"value": 1.5, "count": 5}, id="fraction-class"),
        pytest.param({"value": "1" * 5000, "count": 5}, id="class-of-5000-digits"),
        pytest.param({"value": "a\n\x1b[31mb", "count": 5}, id="class-with-control-characters"),
        pytest.param({"value": "x" * 65, "count": 5}, id="class-of-65-characters"),
        pytest.param({"value": "1", "count": 10**400}, id="count-of-400-digits"),
        pytest.param({"value": "1", "count": 1e300}, id="count-beyond-exact-floats"),
        pytest.param({"value": "1", "count": 0.5}, id="fraction-count"),
        pytest.param({"value": "1", "count": True}, id="bool-count"),
        pytest.param({"value": "1", "count": "5"}, id="text-count"),
        pytest.param({"value": "1"}, id="no-count"),
        pytest.param([], id="list"),
        pytest.param(None, id="null"),
    ],
)
def test_read_baseline_refuses_malformed_buckets(bucket):
    document = statistics(Counts(Counter({1: 5})), Confidences())
    feature = document["features"][0]["string_statistics"]["distribution"]["categorical"]
    feature["buckets"] = [bucket]
    with pytest.raises(BadInputError, match="x: no counts of PredictedClass"):
        read_baseline(json.dumps(document).encode(), "x")


def test_read_baseline_accepts_class_numbers_as_numbers():
    document = statistics(Counts(Counter({5: 7})), Confidences())
    buckets = document["features"][0]["string_statistics"]["distribution"]["categorical"]["buckets"]
    buckets[0]["value"] = 5
    assert read_baseline(json.dumps(document).encode(), "x") == {5: 7}


@pytest.mark.parametrize("depth", [900, 100_000])
def test_read_baseline_refuses_deeply_nested_lists(depth):
    with pytest.raises(BadInputError, match="no counts"):
        read_baseline(b'{"features":' + b"[" * depth + b"]" * depth + b"}", "x")


def test_fetch_baseline_reads_from_s3():
    class Objects:
        def get(self, bucket, key):
            assert (bucket, key) == ("bucket", "baseline/statistics.json")
            return json.dumps(statistics(Counts(Counter({1: 2})), Confidences())).encode()

    assert fetch_baseline("s3://bucket/baseline/statistics.json", Objects()) == {1: 2}
    assert fetch_baseline(None, Objects()) is None


def test_only_the_named_classes_have_a_metric_of_their_own():
    counts = Counts(
        Counter(dict.fromkeys(range(1000), 2) | {"Stop": 3, "unknown": 4}),
        with_confidence=9,
        low_confidence=5,
        unreadable=6,
        replayed=7,
        records=1,
    )
    of_all = {
        "Predictions": 2007,
        "UnreadableRecords": 6,
        "ReplayedRecords": 7,
        "ForgedMarkers": 0,
        "LowConfidencePredictions": 5,
    }
    assert file_metrics(counts) == of_all
    named = {"Class14": 2, "ClassStop": 3, "Class2000": 0}
    assert file_metrics(counts, ["14", "Stop", "2000"]) == of_all | named


def test_constraints_of_no_records_are_valid():
    assert constraints(Counts(), Confidences())["features"][0]["completeness"] == 1.0
