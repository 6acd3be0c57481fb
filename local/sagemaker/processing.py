"""Processing jobs as local processes."""

from __future__ import annotations

import copy
import logging
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.container import start_container
from local.sagemaker.errors import SageMakerError, StartFailedError, invalid
from local.sagemaker.job_event import DEFAULT_RUNTIME_SECONDS, event_detail
from local.sagemaker.job_files import download_inputs, read_exit_message, upload_outputs, write_config
from local.sagemaker.platform import Platform

logger = logging.getLogger("glassbox.processing")


class ProcessingJobs:
    """Runs each job in a thread, from its inputs in S3 to its exit message and events."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._lock = threading.Lock()
        self._jobs: dict[str, dict[str, Any]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = False

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """Handle CreateProcessingJob, which accepts each name once."""
        if any("S3Input" not in item for item in request.get("ProcessingInputs", [])):
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
        """Handle DescribeProcessingJob."""
        return copy.deepcopy(self._get(request))

    def list(self, request: dict[str, Any]) -> dict[str, Any]:
        """Handle ListProcessingJobs, newest first."""
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
        """Handle StopProcessingJob with SIGTERM, after which the status is Stopped."""
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
        """Kill all running jobs."""
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
            download_inputs(s3, job, root)
            write_config(job, root)
            code = self._execute(job, directory)
            upload_outputs(s3, job, root)
            if code:
                failure = f"AlgorithmError: See job logs for more information, exit code: {code}"
        except StartFailedError as error:
            failure = str(error)
        except (ClientError, BotoCoreError, OSError) as error:
            logger.exception("processing job %s", job["ProcessingJobName"])
            failure = f"InternalServerError: {error}"
        message, unreadable = read_exit_message(root / "output" / "message")
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

    def _execute(self, job: dict[str, Any], directory: Path) -> int:
        specification = job["AppSpecification"]
        command = self._platform.command(specification["ImageUri"])
        if command is None:
            raise StartFailedError(
                f"ClientError: Cannot pull the image {specification['ImageUri']}. "
                "(The embedded AWS has no command for it.)"
            )
        command = command + specification.get("ContainerArguments", [])
        environment = job.get("Environment", {}) | self._platform.environment(job["RoleArn"])
        log = self._platform.directory / "logs" / "processing" / f"{job['ProcessingJobName']}.log"
        with self._lock:
            if self._closed or job["ProcessingJobStatus"] == "Stopping":
                return 0
            process = start_container(command, directory, environment, log)
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

    def _announce(self, job: dict[str, Any]) -> None:
        with self._lock:
            detail = event_detail(job)
        self._platform.emit("SageMaker Processing Job State Change", detail, [job["ProcessingJobArn"]])
