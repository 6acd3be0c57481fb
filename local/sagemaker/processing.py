"""Processing jobs as local processes, by the contract of "Build your own processing container"."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.errors import SageMakerError, StartFailedError, invalid
from local.sagemaker.hosting import container_environment
from local.sagemaker.platform import Platform, split_s3_uri

logger = logging.getLogger("glassbox.processing")

EXIT_MESSAGE_BYTES = 1024
DEFAULT_RUNTIME_SECONDS = 86_400
OPT_ML = "/opt/ml"


class ProcessingJobs:
    """Runs each job in a thread: inputs from S3, the image's command, outputs to S3, the message, the events."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._lock = threading.Lock()
        self._jobs: dict[str, dict[str, Any]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = False

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateProcessingJob; a name is used once."""
        if any("S3Input" not in given for given in request.get("ProcessingInputs", [])):
            raise invalid("The SageMaker double takes ProcessingInputs with an S3Input only.")
        if request["AppSpecification"].get("ContainerEntrypoint"):
            raise invalid("The SageMaker double runs an image by its own entrypoint only.")
        name = request["ProcessingJobName"]
        arn = self._platform.arn("processing-job", name)
        now = time.time()
        job = {
            **{k: v for k, v in copy.deepcopy(request).items() if k != "Tags"},
            "ProcessingJobArn": arn,
            "ProcessingJobStatus": "InProgress",
            "CreationTime": now,
            "LastModifiedTime": now,
        }
        with self._lock:
            if name in self._jobs:
                raise SageMakerError(
                    "ResourceInUse",
                    "Job name must be unique within an AWS account and region, and a job with this name already "
                    f"exists ({arn})",
                )
            self._jobs[name] = job
        try:
            self._platform.assume(request["RoleArn"])
        except StartFailedError as error:
            with self._lock:
                del self._jobs[name]
            raise invalid(str(error)) from error
        self._announce(job)
        threading.Thread(target=self._run, args=(job,), name=f"job-{name}", daemon=True).start()
        return {"ProcessingJobArn": arn}

    def describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """DescribeProcessingJob."""
        return copy.deepcopy(self._get(request))

    def list(self, request: dict[str, Any]) -> dict[str, Any]:
        """ListProcessingJobs, newest first."""
        shown = (
            "ProcessingJobName",
            "ProcessingJobArn",
            "CreationTime",
            "ProcessingEndTime",
            "LastModifiedTime",
            "ProcessingJobStatus",
            "FailureReason",
            "ExitMessage",
        )
        with self._lock:
            jobs = [
                {k: job[k] for k in shown if k in job}
                for job in self._jobs.values()
                if request.get("NameContains", "") in job["ProcessingJobName"]
                and request.get("StatusEquals", job["ProcessingJobStatus"]) == job["ProcessingJobStatus"]
            ]
        jobs.sort(key=lambda job: job["CreationTime"], reverse=True)
        return {"ProcessingJobSummaries": jobs[: request.get("MaxResults", 100)]}

    def stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """StopProcessingJob: SIGTERM; the job ends as Stopped."""
        job = self._get(request)
        with self._lock:
            if job["ProcessingJobStatus"] != "InProgress":
                raise invalid(
                    f"The request was rejected because the processing job is in status {job['ProcessingJobStatus']}."
                )
            job.update(ProcessingJobStatus="Stopping", LastModifiedTime=time.time())
            process = self._processes.get(job["ProcessingJobName"])
        self._announce(job)
        if process:
            process.terminate()
        return {}

    def close(self) -> None:
        """Kill what is running."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.kill()
            process.wait()

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ProcessingJobName"]
        with self._lock:
            if name not in self._jobs:
                raise invalid(f"Could not find requested job with name: {name}")
            return self._jobs[name]

    def _run(self, job: dict[str, Any]) -> None:
        directory = self._platform.directory / "jobs" / job["ProcessingJobName"]
        root = directory / "opt" / "ml"
        failure = None
        try:
            job["ProcessingStartTime"] = time.time()
            s3 = self._platform.s3(job["RoleArn"])
            self._download(s3, job, root)
            _write_config(job, root)
            code = self._execute(job, directory)
            self._upload(s3, job, root)
            if code:
                failure = f"AlgorithmError: See job logs for more information, exit code: {code}"
        except StartFailedError as error:
            failure = str(error)
        except (ClientError, BotoCoreError, OSError) as error:
            logger.exception("processing job %s", job["ProcessingJobName"])
            failure = f"InternalServerError: {error}"
        message, unreadable = _exit_message(root / "output" / "message")
        self._finish(job, failure or unreadable, message)
        shutil.rmtree(directory, ignore_errors=True)

    def _finish(self, job: dict[str, Any], failure: str | None, message: str | None) -> None:
        now = time.time()
        with self._lock:
            stopped = job["ProcessingJobStatus"] == "Stopping"
            status = "Stopped" if stopped else "Failed" if failure else "Completed"
            job.update(ProcessingJobStatus=status, ProcessingEndTime=now, LastModifiedTime=now)
            if message is not None:
                job["ExitMessage"] = message
            if status == "Failed":
                job["FailureReason"] = str(failure)[:1024]
        self._announce(job)

    def _download(self, s3: Any, job: dict[str, Any], root: Path) -> None:
        for given in job.get("ProcessingInputs", []):
            source = given["S3Input"]
            bucket, prefix = split_s3_uri(source["S3Uri"])
            target = _local(root, source["LocalPath"])
            try:
                if source["S3DataType"] == "ManifestFile":
                    bucket, prefix, keys = _manifest(source["S3Uri"], s3)
                else:
                    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
                    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
                if not keys:
                    raise StartFailedError(
                        "ClientError: Data download failed:No S3 objects found under S3 URL "
                        f'"{source["S3Uri"]}" given in input data source. Please ensure that the bucket exists in '
                        f"the selected region ({self._platform.region}), that objects exist under that S3 prefix, and "
                        f'that the role "{job["RoleArn"]}" has "s3:ListBucket" permissions on bucket "{bucket}".'
                    )
                room = job["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] * 1e9
                for key in keys:
                    path = target / (key[len(prefix) :].lstrip("/") or Path(key).name)
                    if key.endswith("/") or not path.resolve().is_relative_to(target.resolve()):
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    s3.download_file(bucket, key, str(path))
                    room -= path.stat().st_size
                    if room < 0:
                        raise StartFailedError(
                            "ClientError: Data download failed:No space left on device: "
                            f"{source['S3Uri']} does not fit the job's volume"
                        )
            except ClientError as error:
                raise StartFailedError(f"ClientError: Data download failed:{error}") from error

    def _execute(self, job: dict[str, Any], directory: Path) -> int:
        specification = job["AppSpecification"]
        command = self._platform.command(specification["ImageUri"])
        if command is None:
            raise StartFailedError(
                f"ClientError: Cannot pull the image {specification['ImageUri']}: no local command stands for it."
            )
        command = command + specification.get("ContainerArguments", [])
        environment = job.get("Environment", {}) | self._platform.environment(job["RoleArn"])
        log = self._platform.directory / "logs" / "processing" / f"{job['ProcessingJobName']}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._closed or job["ProcessingJobStatus"] == "Stopping":
                return 0
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    cwd=directory,
                    env=container_environment(directory, environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self._processes[job["ProcessingJobName"]] = process
        limit = job.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise StartFailedError("ClientError: The job exceeded its MaxRuntimeInSeconds.") from None
        finally:
            with self._lock:
                del self._processes[job["ProcessingJobName"]]

    def _upload(self, s3: Any, job: dict[str, Any], root: Path) -> None:
        for output in job.get("ProcessingOutputConfig", {}).get("Outputs", []):
            target = output["S3Output"]
            bucket, prefix = split_s3_uri(target["S3Uri"])
            source = _local(root, target["LocalPath"])
            for path in sorted(source.rglob("*")):
                if path.is_symlink() or not path.is_file():  # as on SageMaker, symlinks are left out
                    continue
                key = f"{prefix}/{path.relative_to(source).as_posix()}".lstrip("/")
                try:
                    s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
                except ClientError as error:
                    raise StartFailedError(
                        f"ClientError: Failed to upload output to s3://{bucket}/{key}: {error}"
                    ) from error

    def _announce(self, job: dict[str, Any]) -> None:
        with self._lock:
            detail = event_detail(job)
        self._platform.emit("SageMaker Processing Job State Change", detail, [job["ProcessingJobArn"]])


def _manifest(uri: str, s3: Any) -> tuple[str, str, list[str]]:
    """Bucket, prefix and keys of a manifest: `[{"prefix": "s3://bucket/a/"}, "b/c", "b/d"]`."""
    bucket, key = split_s3_uri(uri)
    try:
        first, *rest = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        prefix = first["prefix"]
        if not prefix.startswith("s3://") or not all(isinstance(suffix, str) for suffix in rest):
            raise ValueError(prefix)
    except (ValueError, TypeError, KeyError) as error:
        raise StartFailedError(
            f"ClientError: Data download failed:Manifest {uri} is not in the expected format"
        ) from error
    bucket, _, prefix = prefix.removeprefix("s3://").partition("/")
    return bucket, prefix, [prefix + suffix for suffix in rest]


def _local(root: Path, path: str) -> Path:
    """/opt/ml/processing/x below the job's own root; raises StartFailedError for any other place."""
    place = root / Path(path).relative_to(OPT_ML) if Path(path).is_relative_to(OPT_ML) else None
    if place is None or ".." in place.parts or not Path(path).is_relative_to(f"{OPT_ML}/processing"):
        raise StartFailedError(f"ClientError: LocalPath {path} must begin with {OPT_ML}/processing/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _write_config(job: dict[str, Any], root: Path) -> None:
    config = root / "config"
    config.mkdir(parents=True, exist_ok=True)
    (root / "output").mkdir(exist_ok=True)
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"]}
    (config / "resourceconfig.json").write_text(json.dumps(hosts))
    members = (
        "ProcessingJobArn",
        "ProcessingJobName",
        "AppSpecification",
        "Environment",
        "ProcessingInputs",
        "ProcessingOutputConfig",
        "ProcessingResources",
        "RoleArn",
        "StoppingCondition",
    )
    (config / "processingjobconfig.json").write_text(json.dumps({k: job[k] for k in members if k in job}))


def _exit_message(path: Path) -> tuple[str | None, str | None]:
    """The message's first KB, or why it cannot be read."""
    try:
        raw = path.read_bytes()[:EXIT_MESSAGE_BYTES]
    except OSError:
        return None, None
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        # A character cut at the limit is no fault of the writer's.
        if error.start >= EXIT_MESSAGE_BYTES - 3:
            return raw[: error.start].decode(), None
        return None, "ClientError: The exit message is not UTF-8."


def event_detail(job: dict[str, Any]) -> dict[str, Any]:
    """The `detail` of `SageMaker Processing Job State Change`.

    As captured from AWS: null is "", booleans are "True" and "False", times are epoch milliseconds.
    """
    inputs = [
        {
            "InputName": given["InputName"],
            "AppManaged": "False",
            "S3Input": {
                "S3Uri": given["S3Input"]["S3Uri"],
                "LocalPath": given["S3Input"].get("LocalPath", ""),
                "S3DataType": {"S3Prefix": "S3_PREFIX", "ManifestFile": "MANIFEST_FILE"}[
                    given["S3Input"]["S3DataType"]
                ],
                "S3InputMode": given["S3Input"].get("S3InputMode", "File").upper(),
                "S3DataDistributionType": given["S3Input"]
                .get("S3DataDistributionType", "FullyReplicated")
                .upper(),
                "S3CompressionType": given["S3Input"].get("S3CompressionType", ""),
            },
            "DatasetDefinition": "",
        }
        for given in job.get("ProcessingInputs", [])
    ]
    output_config = job.get("ProcessingOutputConfig", {})
    outputs = [
        {
            "OutputName": output["OutputName"],
            "S3Output": {
                "S3Uri": output["S3Output"]["S3Uri"],
                "LocalPath": output["S3Output"].get("LocalPath", ""),
                "S3UploadMode": {"EndOfJob": "END_OF_JOB", "Continuous": "CONTINUOUS"}[
                    output["S3Output"]["S3UploadMode"]
                ],
            },
            "FeatureStoreOutput": "",
            "AppManaged": "False",
        }
        for output in output_config.get("Outputs", [])
    ]
    application = job["AppSpecification"]
    network = job.get("NetworkConfig", {})
    cluster = {"VolumeKmsKeyId": "", **job["ProcessingResources"]["ClusterConfig"]}

    def milliseconds(member: str) -> int | str:
        return int(job[member] * 1000) if member in job else ""

    return {
        "SdkResponseMetadata": "",
        "SdkHttpMetadata": "",
        "ProcessingInputs": inputs,
        "ProcessingOutputConfig": {"Outputs": outputs, "KmsKeyId": output_config.get("KmsKeyId", "")},
        "ProcessingJobName": job["ProcessingJobName"],
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": job.get("StoppingCondition", {"MaxRuntimeInSeconds": DEFAULT_RUNTIME_SECONDS}),
        "AppSpecification": {
            "ImageUri": application["ImageUri"],
            "ContainerEntrypoint": application.get("ContainerEntrypoint", ""),
            "ContainerArguments": application.get("ContainerArguments", ""),
        },
        "Environment": job.get("Environment", {}),
        "NetworkConfig": {
            "EnableInterContainerTrafficEncryption": str(
                network.get("EnableInterContainerTrafficEncryption", False)
            ),
            "EnableNetworkIsolation": str(network.get("EnableNetworkIsolation", False)),
            "VpcConfig": network.get("VpcConfig", ""),
        },
        "RoleArn": job["RoleArn"],
        "ExperimentConfig": {
            "ExperimentName": "",
            "TrialName": "",
            "TrialComponentDisplayName": "",
            "RunName": "",
        },
        "ProcessingJobArn": job["ProcessingJobArn"],
        "ProcessingJobStatus": job["ProcessingJobStatus"],
        "ExitMessage": job.get("ExitMessage", ""),
        "FailureReason": job.get("FailureReason", ""),
        "ProcessingEndTime": milliseconds("ProcessingEndTime"),
        "ProcessingStartTime": milliseconds("ProcessingStartTime"),
        "LastModifiedTime": milliseconds("LastModifiedTime"),
        "CreationTime": milliseconds("CreationTime"),
        "LastModifiedBy": "",
        "CreatedBy": "",
        "MonitoringScheduleArn": "",
        "AutoMLJobArn": "",
        "TrainingJobArn": "",
        "Tags": {},
    }
