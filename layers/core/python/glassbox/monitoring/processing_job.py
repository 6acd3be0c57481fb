"""The hourly processing job: the monitor container over the previous hour."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from glassbox.errors import BadInputError, ConflictError
from glassbox.monitoring.capture import CaptureLocation
from glassbox.monitoring.count_file import CountingSettings
from glassbox.monitoring.counts import WINDOW, Window
from glassbox.ports import Objects, ProcessingJobs
from glassbox.replay_marker import PublicKey
from glassbox.settings import names
from glassbox.timestamps import format_timestamp
from glassbox.violation import SCHEDULE

_ROOT = "/opt/ml/processing"
_JOB_NAME_CHARACTERS = 63
_KEY_FILE = "public.pem"
# The volume holds the capture files, 10 % more, and this for the files that the job writes.
_SPARE_GIGABYTES = 10
# CreateProcessingJob refused 700 GB without a reason and accepted 600 GB, both within the default quota of 1,024 GB:
# https://github.com/aws/sagemaker-python-sdk/issues/4939
_MAX_GIGABYTES = 600


@dataclass(frozen=True, kw_only=True)
class MonitorSettings(CountingSettings, CaptureLocation):
    """The capture files, the bounds that the container gets, and the job's resources."""

    bucket: str
    monitor_image: str
    monitor_role_arn: str
    replay_key_arn: str
    monitor_instance_type: str = "ml.m5.large"
    monitor_key_arn: str | None = None
    monitor_network_isolation: bool = False
    subnet_ids: str = ""
    security_group_ids: str = ""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the network's variables."""
        if bool(names(self.subnet_ids)) != bool(names(self.security_group_ids)):
            yield "SUBNET_IDS needs SECURITY_GROUP_IDS, and SECURITY_GROUP_IDS needs SUBNET_IDS"


class Outcome(StrEnum):
    """What :func:`start_monitor` did."""

    STARTED = "started"
    STARTED_BEFORE = "started before"
    NO_DATA = "no data"


class Started(NamedTuple):
    """The outcome, the job, and the number and size of its capture files."""

    outcome: Outcome
    job: str | None = None
    files: int = 0
    gigabytes: float = 0.0


def start_monitor(
    scheduled: datetime,
    *,
    settings: MonitorSettings,
    replay_key: Callable[[], PublicKey],
    captures: Objects,
    jobs: ProcessingJobs,
) -> Started:
    """Start the job that checks the last full hour before ``scheduled``.

    A manifest names its files: all files of that hour's folders, and of the previous hour's those that were written
    since the window began, since they may hold the window's first records. The size of the volume follows from the
    files.

    The public key of the replays is another input, since a job with network isolation cannot call KMS.

    The job's name follows from the window, so SageMaker refuses a second job for it.

    Args:
        replay_key: returns that key.

    Raises:
        BadInputError: the files exceed one job's volume, or SageMaker refuses the request.
        RetryableError: S3, KMS or SageMaker does not answer.
    """
    end = scheduled.replace(minute=0, second=0, microsecond=0)
    window = Window(end - WINDOW, end)
    files = dict(_files(window, settings, captures))
    if not files:
        return Started(Outcome.NO_DATA)
    gigabytes = sum(files.values()) / 1e9
    volume = _SPARE_GIGABYTES + math.ceil(1.1 * gigabytes)
    if volume > _MAX_GIGABYTES:
        raise BadInputError(
            f"{window}: {len(files)} capture files of {gigabytes:,.0f} GB: expected a volume of at most "
            f"{_MAX_GIGABYTES} GB, got {volume:,} GB. Lower SamplingPercentage, or leave MonitorImage empty: "
            "count_predictions checks without a volume."
        )
    name = job_name(settings.endpoint_name, window.start)
    put = functools.partial(captures.put, settings.bucket)
    put(f"{_key_folder(settings)}/{_KEY_FILE}", replay_key().pem.encode(), "application/x-pem-file")
    manifest = f"monitoring/{settings.endpoint_name}/manifests/{window.start:%Y/%m/%d/%H}.json"
    put(manifest, _manifest(files, settings), "application/json")
    try:
        jobs.create(_request(name, window, _inputs(manifest, settings), volume, settings))
    except ConflictError:
        return Started(Outcome.STARTED_BEFORE, name, len(files), gigabytes)
    return Started(Outcome.STARTED, name, len(files), gigabytes)


def job_name(endpoint: str, start: datetime) -> str:
    """Return the job's name, unique per endpoint and hour, at most 63 characters."""
    stamp = f"{start:%Y%m%dt%H%M}"
    available = _JOB_NAME_CHARACTERS - len("class-monitor--") - len(stamp)
    if len(endpoint) > available:
        endpoint = (
            f"{endpoint[: available - 9].rstrip('-')}-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}"
        )
    return f"class-monitor-{endpoint}-{stamp}"


def _files(window: Window, settings: MonitorSettings, captures: Objects) -> Iterator[tuple[str, int]]:
    """Yield key, relative to the prefix, and size of every file that may hold records of the window."""
    root = f"{settings.capture_folder}/"
    for variant in captures.folders(settings.capture_bucket, root):
        if variant in settings.shadows:
            continue
        for hour in (window.start - timedelta(hours=1), window.start):
            for key, size, modified in captures.listed(
                settings.capture_bucket, f"{root}{variant}/{hour:%Y/%m/%d/%H}/"
            ):
                # a file's folder is the hour of its first record; data capture writes it after its last one
                if key.endswith(".jsonl") and (hour == window.start or modified >= window.start):
                    yield key.removeprefix(f"{settings.capture_prefix}/"), size


def _manifest(files: Iterable[str], settings: MonitorSettings) -> bytes:
    """Return the manifest of S3DataType ManifestFile: a prefix, and keys below it.

    The keys begin with the endpoint. SageMaker may store the files below LocalPath by these keys or by the full keys:
    in both cases the last seven parts contain endpoint, variant and hour.
    """
    prefix = {"prefix": f"s3://{settings.capture_bucket}/{settings.capture_prefix}/"}
    return json.dumps([prefix, *sorted(files)]).encode()


def _inputs(manifest: str, settings: MonitorSettings) -> list[dict[str, Any]]:
    """Return the inputs: the manifest of the capture files, the replay key, and the baseline if set."""
    ours = f"s3://{settings.bucket}"
    inputs = [
        _input("captures", f"{ours}/{manifest}", f"{_ROOT}/input/endpoint", "ManifestFile"),
        _input("replay-key", f"{ours}/{_key_folder(settings)}", f"{_ROOT}/replay-key"),
    ]
    if settings.baseline_statistics:
        inputs.append(_input("baseline", settings.baseline_statistics, f"{_ROOT}/baseline"))
    return inputs


def _key_folder(settings: MonitorSettings) -> str:
    return f"monitoring/{settings.endpoint_name}/replay-key"


def _input(name: str, uri: str, path: str, data_type: str = "S3Prefix") -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": path,
            "S3DataType": data_type,
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


def _request(
    name: str, window: Window, inputs: list[dict[str, Any]], volume: int, settings: MonitorSettings
) -> dict[str, Any]:
    return {
        "ProcessingJobName": name,
        "AppSpecification": {"ImageUri": settings.monitor_image},
        "RoleArn": settings.monitor_role_arn,
        "Environment": _environment(window, settings),
        "ProcessingInputs": inputs,
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "report",
                    "S3Output": {
                        "S3Uri": f"s3://{settings.bucket}/monitoring/{settings.endpoint_name}/{SCHEDULE}"
                        f"/{window.start:%Y/%m/%d/%H}",
                        "LocalPath": f"{_ROOT}/output",
                        "S3UploadMode": "EndOfJob",
                    },
                }
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": settings.monitor_instance_type,
                "VolumeSizeInGB": volume,
                **({"VolumeKmsKeyId": settings.monitor_key_arn} if settings.monitor_key_arn else {}),
            }
        },
        "NetworkConfig": _network(settings),
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def _network(settings: MonitorSettings) -> dict[str, Any]:
    """Return the job's network: SageMaker's own unless subnets are set."""
    network: dict[str, Any] = {"EnableNetworkIsolation": settings.monitor_network_isolation}
    if subnets := sorted(names(settings.subnet_ids)):
        network["VpcConfig"] = {
            "Subnets": subnets,
            "SecurityGroupIds": sorted(names(settings.security_group_ids)),
        }
    return network


def _environment(window: Window, settings: MonitorSettings) -> dict[str, str]:
    """Return the contract's environment and the bounds, under their usual names."""
    bounds = {
        field.name.upper(): str(value)
        for field in dataclasses.fields(CountingSettings)
        if (value := getattr(settings, field.name)) not in (None, "")
    }
    if settings.baseline_statistics:
        del bounds["BASELINE_STATISTICS"]
        bounds["baseline_statistics"] = f"{_ROOT}/baseline/{settings.baseline_statistics.rpartition('/')[2]}"
    return bounds | {
        "dataset_format": '{"sagemakerCaptureJson": {"captureIndexNames": ["endpointInput","endpointOutput"]}}',
        "dataset_source": f"{_ROOT}/input/endpoint",
        "output_path": f"{_ROOT}/output",
        "replay_key": f"{_ROOT}/replay-key/{_KEY_FILE}",
        "publish_cloudwatch_metrics": "Disabled",
        "sagemaker_endpoint_name": settings.endpoint_name,
        "sagemaker_monitoring_schedule_name": SCHEDULE,
        "start_time": format_timestamp(window.start),
        "end_time": format_timestamp(window.end),
    }
