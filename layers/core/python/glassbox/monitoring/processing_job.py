"""Every hour: the monitor container as a processing job over the hour before."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from glassbox.errors import BadInputError, ConflictError
from glassbox.events import SCHEDULE
from glassbox.monitoring.capture import moment
from glassbox.monitoring.count_file import CountingSettings
from glassbox.monitoring.counts import WINDOW, Window
from glassbox.replay_marker import PublicKey
from glassbox.settings import names

_ROOT = "/opt/ml/processing"
_JOB_NAME_CHARACTERS = 63
_INPUTS = 10  # that a processing job may have
_KEY_FILE = "public.pem"


@dataclass(frozen=True, kw_only=True)
class MonitorSettings(CountingSettings):
    """Where captures lie and what the job runs on; the bounds are handed on to the container."""

    endpoint_name: str
    capture_bucket: str
    capture_prefix: str
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
        """See :class:`glassbox.settings.Checked`."""
        yield from super().problems()
        if bool(names(self.subnet_ids)) != bool(names(self.security_group_ids)):
            yield "SUBNET_IDS and SECURITY_GROUP_IDS need each other"


class Folders(Protocol):
    """See :class:`glassbox.aws.objects.Objects`."""

    def folders(self, bucket: str, prefix: str) -> list[str]: ...
    def any(self, bucket: str, prefix: str) -> bool: ...
    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> None: ...


class ProcessingJobs(Protocol):
    """See :class:`glassbox.aws.processing.ProcessingJobs`."""

    def create(self, request: Mapping[str, Any]) -> None: ...


def read_time(scheduled: Mapping[str, Any]) -> datetime:
    """The ``time`` of the schedule's message (``<aws.scheduler.scheduled-time>``); BadInputError without one."""
    try:
        return moment(scheduled["time"])
    except (LookupError, TypeError, ValueError) as error:
        raise BadInputError(f"not a message of the schedule: {error!r}") from error


class Started(NamedTuple):
    """What was done: ``"started"``, ``"started before"`` or ``"no data"``.

    ``left_out`` are the directories, below the endpoint's, for which the job had no room.
    """

    outcome: str
    job: str | None = None
    left_out: Sequence[str] = ()


def start_monitor(
    scheduled: datetime,
    *,
    settings: MonitorSettings,
    replay_key: Callable[[], PublicKey],
    captures: Folders,
    jobs: ProcessingJobs,
) -> Started:
    """Start the job that judges the last full hour before ``scheduled``.

    Its inputs are that hour's directory of each variant and the one before, since a file lies under the hour of its
    first record. Where a job cannot take them all, some of the hour before are left out: then the first records of
    the hour, in files begun before it, are missing from the report.

    The public key of the replays is one more input, since an isolated job cannot ask KMS for it.

    The name of the job is made from the window, so that SageMaker itself refuses it a second time.

    Args:
        replay_key: gives that key.

    Raises:
        BadInputError: the hour's own directories are more than a job may have, or SageMaker refuses the request.
        RetryableError: AWS does not answer.
    """
    end = scheduled.replace(minute=0, second=0, microsecond=0)
    window = Window(end - WINDOW, end)
    folders, left_out = _folders(window, settings, captures)
    if not folders:
        return Started("no data")
    name = job_name(settings.endpoint_name, window.start)
    captures.put(
        settings.bucket,
        f"{_key_folder(settings)}/{_KEY_FILE}",
        replay_key().pem.encode(),
        "application/x-pem-file",
    )
    try:
        jobs.create(_request(name, window, _inputs(folders, settings), settings))
    except ConflictError:
        return Started("started before", name, left_out)
    return Started("started", name, left_out)


def job_name(endpoint: str, start: datetime) -> str:
    """The job for the hour from ``start``; at most 63 characters, one name per endpoint and hour."""
    stamp = f"{start:%Y%m%dt%H%M}"
    room = _JOB_NAME_CHARACTERS - len("class-monitor--") - len(stamp)
    if len(endpoint) > room:
        endpoint = f"{endpoint[: room - 9].rstrip('-')}-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}"
    return f"class-monitor-{endpoint}-{stamp}"


def _folders(window: Window, settings: MonitorSettings, captures: Folders) -> tuple[list[str], list[str]]:
    """The directories below the endpoint's that hold something, as many as a job takes, and those left out.

    Shadows have none.
    """
    root = f"{settings.capture_prefix}/{settings.endpoint_name}/"
    variants = [v for v in captures.folders(settings.capture_bucket, root) if v not in settings.shadows]

    def filled(hour: datetime) -> list[str]:
        folders = [f"{variant}/{hour:%Y/%m/%d/%H}" for variant in variants]
        return [f for f in folders if captures.any(settings.capture_bucket, f"{root}{f}/")]

    hour, before = filled(window.start), filled(window.start - timedelta(hours=1))
    room = _INPUTS - 1 - len(hour) - (settings.baseline_statistics is not None)
    if room < 0:
        raise BadInputError(f"{len(hour)} variants from {window}: a processing job takes {_INPUTS} inputs")
    return sorted(hour + before[:room]), before[room:]


def _inputs(folders: Sequence[str], settings: MonitorSettings) -> list[dict[str, Any]]:
    """One input per directory, the replay key, and the baseline if there is one."""
    endpoint = settings.endpoint_name
    inputs = [
        _input(
            f"capture-{number}",
            f"s3://{settings.capture_bucket}/{settings.capture_prefix}/{endpoint}/{folder}",
            f"{_ROOT}/input/endpoint/{endpoint}/{folder}",
        )
        for number, folder in enumerate(folders, 1)
    ]
    inputs.append(
        _input("replay-key", f"s3://{settings.bucket}/{_key_folder(settings)}", f"{_ROOT}/replay-key")
    )
    if settings.baseline_statistics:
        inputs.append(_input("baseline", settings.baseline_statistics, f"{_ROOT}/baseline"))
    return inputs


def _key_folder(settings: MonitorSettings) -> str:
    return f"monitoring/{settings.endpoint_name}/replay-key"


def _input(name: str, uri: str, path: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": path,
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


def _request(
    name: str, window: Window, inputs: list[dict[str, Any]], settings: MonitorSettings
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
                "VolumeSizeInGB": 20,
                **({"VolumeKmsKeyId": settings.monitor_key_arn} if settings.monitor_key_arn else {}),
            }
        },
        "NetworkConfig": _network(settings),
        "StoppingCondition": {"MaxRuntimeInSeconds": 1800},
    }


def _network(settings: MonitorSettings) -> dict[str, Any]:
    """The job's network: SageMaker's own unless subnets are given."""
    network: dict[str, Any] = {"EnableNetworkIsolation": settings.monitor_network_isolation}
    if subnets := sorted(names(settings.subnet_ids)):
        network["VpcConfig"] = {
            "Subnets": subnets,
            "SecurityGroupIds": sorted(names(settings.security_group_ids)),
        }
    return network


def _environment(window: Window, settings: MonitorSettings) -> dict[str, str]:
    """The contract's environment and the bounds, under the names they have everywhere."""
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
        "start_time": f"{window.start:%Y-%m-%dT%H:%M:%SZ}",
        "end_time": f"{window.end:%Y-%m-%dT%H:%M:%SZ}",
    }
