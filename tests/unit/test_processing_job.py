import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import botocore.session
import pytest
from botocore.validate import validate_parameters

import evaluation
import replays
from glassbox.errors import BadInputError, ConflictError, RetryableError, SettingsError
from glassbox.monitoring.processing_job import MonitorSettings, job_name, start_monitor
from glassbox.replay_marker import PublicKey
from glassbox.settings import from_env

TEN_PAST = datetime(2026, 11, 23, 11, 10, tzinfo=UTC)
ROLE = "arn:aws:iam::111122223333:role/monitor"
ENVIRONMENT = {
    "ENDPOINT_NAME": "traffic-signs",
    "CAPTURE_BUCKET": "amzn-s3-demo-bucket",
    "CAPTURE_PREFIX": "capture",
    "BUCKET": "amzn-s3-demo-bucket",
    "MONITOR_IMAGE": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/class-monitor:1",
    "MONITOR_ROLE_ARN": ROLE,
    "REPLAY_KEY_ARN": "arn:aws:kms:eu-west-1:111122223333:key/0f6f4a0e",
    "THRESHOLD": "0.5",
}
SETTINGS = from_env(MonitorSettings, ENVIRONMENT)


class FakeFolders:
    """The capture bucket: keys of ``size`` bytes each, written at ``modified`` or in the hour of their folder."""

    def __init__(self, *keys, size=1000, modified=None):
        self.keys, self.size, self.modified, self.written = keys, size, modified or {}, {}

    def put(self, bucket, key, body, content_type):
        self.written[bucket, key] = body

    def folders(self, bucket, prefix):
        assert bucket == "amzn-s3-demo-bucket"
        return sorted({k.removeprefix(prefix).split("/")[0] for k in self.keys if k.startswith(prefix)})

    def listed(self, bucket, prefix):
        assert bucket == "amzn-s3-demo-bucket"
        for key in sorted(k for k in self.keys if k.startswith(prefix)):
            hour = datetime.strptime("/".join(key.split("/")[-5:-1]), "%Y/%m/%d/%H").replace(tzinfo=UTC)
            yield key, self.size, self.modified.get(key, hour + timedelta(minutes=21))


class FakeJobs:
    """Refuses a second job of a name, as SageMaker does."""

    def __init__(self, error=None):
        self.requests, self.error = [], error

    def create(self, request):
        if self.error:
            raise self.error
        if request["ProcessingJobName"] in [r["ProcessingJobName"] for r in self.requests]:
            raise ConflictError("ResourceInUse")
        self.requests.append(request)


def capture(hour, variant="AllTraffic", endpoint="traffic-signs"):
    return f"capture/{endpoint}/{variant}/2026/11/23/{hour:02d}/20-02-871-uuid.jsonl"


def manifest(captures, hour="2026/11/23/10"):
    """The keys in the job's manifest, below the capture prefix."""
    body = captures.written["amzn-s3-demo-bucket", f"monitoring/traffic-signs/manifests/{hour}.json"]
    prefix, *keys = json.loads(body)
    assert prefix == {"prefix": "s3://amzn-s3-demo-bucket/capture/"}
    return keys


def start(captures, jobs, settings=SETTINGS, scheduled=TEN_PAST):
    return start_monitor(scheduled, settings=settings, replay_key=replays.key, captures=captures, jobs=jobs)


def test_manifest_names_the_files_that_may_hold_the_hours_records():
    """All files of the hour's folder; of the previous folder, those written since the hour began."""
    jobs, late = FakeJobs(), capture(9).replace("20-02", "59-30")
    written = {
        capture(9): datetime(2026, 11, 23, 9, 59, 59, tzinfo=UTC),
        late: datetime(2026, 11, 23, 10, 0, tzinfo=UTC),
    }
    notes = capture(10).replace(".jsonl", ".txt")
    captures = FakeFolders(
        capture(8), capture(9), late, capture(10), capture(11), notes, size=500, modified=written
    )
    assert start(captures, jobs) == ("started", "class-monitor-traffic-signs-20261123t1000", 2, 1e-6)
    assert manifest(captures) == [key.removeprefix("capture/") for key in (late, capture(10))]
    (request,) = jobs.requests
    inputs = {i["InputName"]: i["S3Input"] for i in request["ProcessingInputs"]}
    assert inputs.keys() == {"captures", "replay-key"}
    assert inputs["captures"] == {
        "S3Uri": "s3://amzn-s3-demo-bucket/monitoring/traffic-signs/manifests/2026/11/23/10.json",
        "LocalPath": "/opt/ml/processing/input/endpoint",
        "S3DataType": "ManifestFile",
        "S3InputMode": "File",
        "S3DataDistributionType": "FullyReplicated",
    }
    assert (inputs["replay-key"]["S3Uri"], inputs["replay-key"]["LocalPath"]) == (
        "s3://amzn-s3-demo-bucket/monitoring/traffic-signs/replay-key",
        "/opt/ml/processing/replay-key",
    )
    environment = request["Environment"]
    assert (environment["start_time"], environment["end_time"]) == (
        "2026-11-23T10:00:00Z",
        "2026-11-23T11:00:00Z",
    )
    assert request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"] == (
        "s3://amzn-s3-demo-bucket/monitoring/traffic-signs/hourly/2026/11/23/10"
    )


def test_job_gets_the_replay_key_as_a_file():
    jobs, captures = FakeJobs(), FakeFolders(capture(10))
    start(captures, jobs)
    pem = captures.written["amzn-s3-demo-bucket", "monitoring/traffic-signs/replay-key/public.pem"]
    assert PublicKey.from_pem(pem) == replays.KEY
    assert jobs.requests[0]["Environment"]["replay_key"] == "/opt/ml/processing/replay-key/public.pem"


def test_no_job_starts_without_the_replay_key():
    def unreadable():
        raise RetryableError("KMS is away")

    jobs = FakeJobs()
    with pytest.raises(RetryableError, match="KMS is away"):
        start_monitor(
            TEN_PAST,
            settings=SETTINGS,
            replay_key=unreadable,
            captures=FakeFolders(capture(10)),
            jobs=jobs,
        )
    assert jobs.requests == []


def test_request_is_valid_for_botocore():
    jobs = FakeJobs()
    start(FakeFolders(capture(10)), jobs)
    model = botocore.session.get_session().get_service_model("sagemaker")
    validate_parameters(jobs.requests[0], model.operation_model("CreateProcessingJob").input_shape)


def test_request_contains_network_and_volume_key():
    jobs = FakeJobs()
    start(FakeFolders(capture(10)), jobs)
    key = "arn:aws:kms:eu-west-1:111122223333:key/volume"
    given = {
        "SUBNET_IDS": "subnet-2, subnet-1",
        "SECURITY_GROUP_IDS": "sg-1",
        "MONITOR_KEY_ARN": key,
        "MONITOR_NETWORK_ISOLATION": "true",
    }
    guarded = FakeJobs()
    start(FakeFolders(capture(10)), guarded, from_env(MonitorSettings, ENVIRONMENT | given))
    (request,), (guarded_request,) = jobs.requests, guarded.requests
    assert request["NetworkConfig"] == {"EnableNetworkIsolation": False}
    assert "VolumeKmsKeyId" not in request["ProcessingResources"]["ClusterConfig"]
    assert guarded_request["NetworkConfig"] == {
        "EnableNetworkIsolation": True,
        "VpcConfig": {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]},
    }
    assert guarded_request["ProcessingResources"]["ClusterConfig"]["VolumeKmsKeyId"] == key
    model = botocore.session.get_session().get_service_model("sagemaker")
    validate_parameters(guarded_request, model.operation_model("CreateProcessingJob").input_shape)


@pytest.mark.parametrize("given", [{"SUBNET_IDS": "subnet-1"}, {"SECURITY_GROUP_IDS": "sg-1"}])
def test_subnets_and_security_groups_require_each_other(given):
    with pytest.raises(SettingsError, match="SUBNET_IDS needs SECURITY_GROUP_IDS"):
        from_env(MonitorSettings, ENVIRONMENT | given)


def test_container_accepts_the_environment_of_the_job(tmp_path):
    everything = replace(
        SETTINGS,
        min_predictions=10,
        low_confidence=0.6,
        low_confidence_threshold=0.2,
        drift_threshold=0.1,
        baseline_statistics="s3://amzn-s3-demo-bucket/baseline/statistics.json",
        class_path="results[].id",
        num_classes=43,
        shadow_variants="Canary",
    )
    jobs = FakeJobs()
    start(FakeFolders(capture(10)), jobs, everything)
    environment = jobs.requests[0]["Environment"]
    assert all(len(value) <= 256 for value in environment.values())
    understood = from_env(evaluation.Settings, {name.upper(): value for name, value in environment.items()})
    for name in (
        "threshold",
        "min_predictions",
        "unreadable_threshold",
        "low_confidence",
        "low_confidence_threshold",
    ):
        assert getattr(understood, name) == getattr(everything, name)
    for name in ("drift_threshold", "class_path", "confidence_path", "num_classes", "shadows"):
        assert getattr(understood, name) == getattr(everything, name)
    assert understood.baseline_statistics == "/opt/ml/processing/baseline/statistics.json"
    assert understood.window.start == datetime(2026, 11, 23, 10, tzinfo=UTC)
    baseline = jobs.requests[0]["ProcessingInputs"][-1]["S3Input"]
    assert (baseline["S3Uri"], baseline["LocalPath"]) == (
        everything.baseline_statistics,
        "/opt/ml/processing/baseline",
    )


def test_empty_hour_starts_no_job():
    jobs = FakeJobs()
    others = (capture(8), capture(11), capture(10, endpoint="traffic-signs-2"))
    assert start(FakeFolders(*others), jobs).outcome == "no data"
    assert jobs.requests == []


def test_duplicate_of_the_schedule_starts_no_second_job():
    jobs, captures = FakeJobs(), FakeFolders(capture(10))
    assert start(captures, jobs)[0] == "started"
    assert start(captures, jobs, scheduled=TEN_PAST.replace(minute=13))[0] == "started before"
    assert len(jobs.requests) == 1


def test_manifest_includes_all_variants_but_the_shadows():
    """A manifest takes any number of variants, while a job takes ten inputs."""
    jobs, variants = FakeJobs(), [f"v{n:02d}" for n in range(40)]
    captures = FakeFolders(*(capture(10, variant) for variant in [*variants, "Canary"]))
    start(captures, jobs, replace(BASELINE, shadow_variants="Canary"))
    assert manifest(captures) == [f"traffic-signs/{v}/2026/11/23/10/20-02-871-uuid.jsonl" for v in variants]
    assert len(jobs.requests[0]["ProcessingInputs"]) == 3


BASELINE = replace(
    SETTINGS, baseline_statistics="s3://amzn-s3-demo-bucket/baseline/statistics.json", drift_threshold=0.1
)


@pytest.mark.parametrize(
    ("gigabytes", "volume"), [(0.0001, 11), (20, 32), (49.9, 65), (500, 560), (536, 600)]
)
def test_volume_fits_the_files_and_a_reserve(gigabytes, volume):
    jobs, files = FakeJobs(), [capture(10).replace("uuid", str(n)) for n in range(100)]
    start(FakeFolders(*files, size=int(gigabytes * 1e7)), jobs)
    assert jobs.requests[0]["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] == volume


def test_files_beyond_the_largest_volume_are_refused():
    jobs, files = FakeJobs(), [capture(10).replace("uuid", str(n)) for n in range(100)]
    message = (
        r"2026-11-23 10:00 to 11:00 UTC: 100 capture files of 540 GB: expected a volume of at most 600 GB, got 604 GB. "
        "Lower SamplingPercentage"
    )
    with pytest.raises(BadInputError, match=message):
        start(FakeFolders(*files, size=int(5.4e9)), jobs)
    assert jobs.requests == []


def test_window_at_midnight_is_the_last_hour_of_the_previous_day():
    jobs = FakeJobs()
    captures = FakeFolders("capture/traffic-signs/AllTraffic/2026/11/22/23/x.jsonl")
    outcome = start(captures, jobs, scheduled=datetime(2026, 11, 23, 0, 10, tzinfo=UTC))
    assert outcome == ("started", "class-monitor-traffic-signs-20261122t2300", 1, 1e-6)
    assert manifest(captures, "2026/11/22/23") == ["traffic-signs/AllTraffic/2026/11/22/23/x.jsonl"]


@pytest.mark.parametrize("error", [RetryableError("away"), BadInputError("no such role")])
def test_other_errors_of_sagemaker_are_raised(error):
    with pytest.raises(type(error)):
        start(FakeFolders(capture(10)), FakeJobs(error))


def test_job_names_are_short_and_unique_per_endpoint_and_hour():
    long = ["x" * 62 + "a", "x" * 62 + "b", "x-" * 31 + "x", "short"]
    names = [job_name(endpoint, TEN_PAST) for endpoint in long]
    assert len(set(names)) == 4
    pattern = r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
    assert all(re.fullmatch(pattern, name) for name in names)


def test_settings_error_names_all_missing_settings():
    with pytest.raises(SettingsError) as error:
        from_env(MonitorSettings, {"THRESHOLD": "2", "CONFIDENCE_PATH": "a."})
    for name in (*ENVIRONMENT, "THRESHOLD='2'", "CONFIDENCE_PATH='a.': invalid JMESPath"):
        assert name in str(error.value)
