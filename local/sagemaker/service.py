"""The SageMaker double: operations by name, their IAM actions, models and endpoint configs."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.capture import Capture
from local.sagemaker.clock import CaptureClock
from local.sagemaker.endpoints import Endpoints
from local.sagemaker.errors import SageMakerError, StartFailedError, invalid
from local.sagemaker.hosting import Hosting
from local.sagemaker.model_data import probe, source_problem, sources
from local.sagemaker.platform import Platform
from local.sagemaker.processing import ProcessingJobs
from local.sagemaker.quotas import Quotas
from local.sagemaker.records import KINDS, Record, Records
from local.sagemaker.runtime import Runtime
from local.sagemaker.shapes import check, input_shape

ECR_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/.+")
DOCKER_MANIFESTS = (  # SageMaker refuses OCI manifests and indexes
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
REVIVAL_SECONDS = 2.0
GRANT_FOR_SERVICE = {"kms:GrantIsForAWSResource": "true"}

# Resource types of an action (service authorization reference); List* has none.
RESOURCES = {
    "CreateModel": ("model",),
    "DescribeModel": ("model",),
    "DeleteModel": ("model",),
    "CreateEndpointConfig": ("endpoint-config",),
    "DescribeEndpointConfig": ("endpoint-config",),
    "DeleteEndpointConfig": ("endpoint-config",),
    "CreateEndpoint": ("endpoint", "endpoint-config"),
    "UpdateEndpoint": ("endpoint", "endpoint-config"),
    "UpdateEndpointWeightsAndCapacities": ("endpoint",),
    "DescribeEndpoint": ("endpoint",),
    "DeleteEndpoint": ("endpoint",),
    "CreateProcessingJob": ("processing-job",),
    "DescribeProcessingJob": ("processing-job",),
    "StopProcessingJob": ("processing-job",),
    "CreateMonitoringSchedule": ("monitoring-schedule",),
    "DescribeMonitoringSchedule": ("monitoring-schedule",),
    "DeleteMonitoringSchedule": ("monitoring-schedule",),
}


class SageMaker:
    """The control plane and runtime of SageMaker for one account and region."""

    def __init__(self, platform: Platform, *, update_seconds: float = 0.0, **capture: Any) -> None:
        """`update_seconds` is passed to Endpoints, `capture` to Capture."""
        self.platform = platform
        self.clock = CaptureClock()
        self.capture = Capture(platform, **capture)
        self.records = Records(platform)
        self._hosting = Hosting(platform)
        self.quotas = Quotas()
        self.endpoints = Endpoints(platform, self.records, self._hosting, self.quotas, update_seconds)
        self.runtime = Runtime(platform, self.endpoints, self.capture, self.clock)
        self._jobs = ProcessingJobs(platform)
        self._closed = threading.Event()
        self._operations = self._table()
        threading.Thread(target=self._revive, name="revival", daemon=True).start()

    def call(self, operation: str, request: Record) -> Record:
        """Execute a control-plane operation, or raise SageMakerError."""
        handler = self._operations.get(operation)
        if handler is None:
            raise SageMakerError(
                "UnknownOperationException", f"{operation} is not part of the SageMaker double"
            )
        check(request, input_shape(operation))
        answer = handler(request)
        if operation.startswith("Create") and request.get("Tags"):
            [arn] = answer.values()
            self.records.tag({"ResourceArn": arn, "Tags": request["Tags"]})
        return answer

    def grants(self, operation: str, request: Record) -> list[tuple[str, str, dict[str, str]]]:
        """Return the (action, resource ARN, condition keys) that IAM must allow for a call."""
        kinds = RESOURCES.get(operation)
        arns = [self._arn_in(request, kind) for kind in kinds] if kinds else [request.get("ResourceArn", "*")]
        needed: list[tuple[str, str, dict[str, str]]] = [(f"sagemaker:{operation}", arn, {}) for arn in arns]
        role = request.get("RoleArn") or request.get("ExecutionRoleArn")
        if role and operation.startswith("Create"):
            needed.append(("iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"}))
        if request.get("Tags") and operation.startswith("Create"):
            needed.append(("sagemaker:AddTags", arns[0], {}))
        if key := self._volume_key(operation, request):
            needed.append(("kms:DescribeKey", key, {}))
            needed.append(("kms:CreateGrant", key, GRANT_FOR_SERVICE))
        return needed

    def _volume_key(self, operation: str, request: Record) -> str:
        """Return the ARN of the KMS key for the volumes that the call creates; empty without one.

        SageMaker creates a grant for the key with the caller's permissions (CreateEndpointConfig, KmsKeyId).
        """
        key = ""
        if operation in ("CreateEndpoint", "UpdateEndpoint"):
            with contextlib.suppress(SageMakerError):  # a missing config is refused later
                config = self.records.get("endpoint-config", request.get("EndpointConfigName", ""))
                key = config.get("KmsKeyId", "")
        elif operation == "CreateProcessingJob":
            key = request.get("ProcessingResources", {}).get("ClusterConfig", {}).get("VolumeKmsKeyId", "")
        if not key or key.startswith("arn:"):
            return key
        name = key if key.startswith("alias/") else f"key/{key}"
        return f"arn:aws:kms:{self.platform.region}:{self.platform.account}:{name}"

    def close(self) -> None:
        """Write buffered captures, then stop servers and jobs."""
        self._closed.set()
        self.endpoints.close()
        self.capture.close()
        self._hosting.close()
        self._jobs.close()

    def _table(self) -> dict[str, Callable[[Record], Record]]:
        records, endpoints, jobs = self.records, self.endpoints, self._jobs
        table: dict[str, Callable[[Record], Record]] = {
            "CreateModel": self._create_model,
            "CreateEndpointConfig": self._create_endpoint_config,
            "CreateMonitoringSchedule": self._create_monitoring_schedule,
            "CreateEndpoint": endpoints.create,
            "UpdateEndpoint": endpoints.update,
            "UpdateEndpointWeightsAndCapacities": endpoints.scale,
            "DescribeEndpoint": endpoints.describe,
            "DeleteEndpoint": endpoints.delete,
            "ListEndpoints": lambda r: records.list("endpoint", "Endpoints", r),
            "ListModels": lambda r: records.list("model", "Models", r),
            "ListEndpointConfigs": lambda r: records.list("endpoint-config", "EndpointConfigs", r),
            "ListMonitoringSchedules": lambda r: records.list(
                "monitoring-schedule", "MonitoringScheduleSummaries", r
            ),
            "CreateProcessingJob": jobs.create,
            "DescribeProcessingJob": jobs.describe,
            "ListProcessingJobs": jobs.list,
            "StopProcessingJob": jobs.stop,
            "AddTags": records.tag,
            "ListTags": records.tags,
        }
        for noun, kind in (
            ("Model", "model"),
            ("EndpointConfig", "endpoint-config"),
            ("MonitoringSchedule", "monitoring-schedule"),
        ):
            table[f"Describe{noun}"] = functools.partial(records.describe, kind)
            table[f"Delete{noun}"] = functools.partial(records.delete, kind)
        return table

    def _arn_in(self, request: Record, kind: str) -> str:
        member = "ProcessingJobName" if kind == "processing-job" else KINDS[kind][1]
        return self.platform.arn(kind, request.get(member, ""))

    def _revive(self) -> None:
        while not self._closed.wait(REVIVAL_SECONDS):
            self._hosting.revive()

    # -- models, endpoint configs, schedules

    def _create_model(self, request: Record) -> Record:
        if "ExecutionRoleArn" not in request:
            raise invalid("The SageMaker double hosts models with ExecutionRoleArn only.")
        if ("PrimaryContainer" in request) == bool(request.get("Containers")):
            raise invalid("Expected either PrimaryContainer or Containers, and not both.")
        for container in request.get("Containers") or [request["PrimaryContainer"]]:
            self._check_container(container, request["ExecutionRoleArn"])
        return {"ModelArn": self.records.add("model", request)["ModelArn"]}

    def _check_container(self, container: Record, role: str) -> None:
        if package := container.get("ModelPackageName"):
            if "Image" in container or "ModelDataUrl" in container:
                raise invalid("Image and ModelDataUrl cannot be specified together with ModelPackageName.")
            if environment := container.get("Environment"):
                pairs = ", ".join(f"{key}={value}" for key, value in environment.items())
                raise invalid(
                    f"Environment variable map cannot be specified both at Model Package {{}} and Model {{{pairs}}}."
                )
            if not package.startswith("arn:"):
                raise invalid("The SageMaker double takes a ModelPackageName by its ARN only.")
            return
        image = container.get("Image", "")
        if not ECR_IMAGE.fullmatch(image):
            raise invalid(
                f'Using non-ECR image "{image}" without Vpc repository access mode is not supported.'
            )
        if (kind := self.platform.manifest_type(image)) not in (None, *DOCKER_MANIFESTS):
            raise invalid(
                f"Unsupported manifest media type {kind} for image {image}. "
                "Ensure that valid manifest media type is used for specified image."
            )
        if "ModelDataUrl" in container and "ModelDataSource" in container:
            raise invalid("Expected either ModelDataUrl or ModelDataSource, and not both.")
        if problem := source_problem(container):
            raise invalid(problem)
        for source in sources(container).values():
            self._check_model_data(source, role)

    def _check_model_data(self, source: Mapping[str, Any], role: str) -> None:
        url = source["S3Uri"]
        try:
            found = probe(self.platform.s3(role), source)
        except StartFailedError as error:
            raise invalid(str(error)) from error
        except (ClientError, BotoCoreError) as error:
            raise invalid(
                f'Could not access model data at {url}. Please ensure that the role "{role}" exists and that its '
                'trust relationship policy allows the action "sts:AssumeRole" for the service principal '
                '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the '
                f"object is located in {self.platform.region}."
            ) from error
        if not found:
            raise invalid(f"Could not find model data at {url}.")

    def _create_endpoint_config(self, request: Record) -> Record:
        production, shadow = request["ProductionVariants"], request.get("ShadowProductionVariants", [])
        for variant in production + shadow:
            if "ModelName" not in variant:
                raise invalid("The SageMaker double hosts variants with a ModelName only.")
            self.records.get("model", variant["ModelName"])
        if shadow and (len(production), len(shadow)) != (1, 1):
            raise invalid("Shadow variants need exactly one production and one shadow variant.")
        return {"EndpointConfigArn": self.records.add("endpoint-config", request)["EndpointConfigArn"]}

    def _create_monitoring_schedule(self, request: Record) -> Record:
        """Store the schedule; unlike AWS, it never starts a job, because the stack's Scheduler does."""
        record = self.records.add(
            "monitoring-schedule",
            request,
            MonitoringScheduleStatus="Scheduled",
            MonitoringType="DataQuality",
            LastModifiedTime=time.time(),
        )
        return {"MonitoringScheduleArn": record["MonitoringScheduleArn"]}
