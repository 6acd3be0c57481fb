"""The double's API: operations by name, as boto3's `sagemaker` and `sagemaker-runtime` clients call them."""

from __future__ import annotations

import copy
import http.client
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.capture import Capture, Exchange
from local.sagemaker.clock import CaptureClock
from local.sagemaker.errors import SageMakerError, StartFailedError, invalid
from local.sagemaker.hosting import Answer, Fleet, Hosting, Variant
from local.sagemaker.platform import Platform, split_s3_uri
from local.sagemaker.processing import ProcessingJobs
from local.sagemaker.shapes import check, input_shape

logger = logging.getLogger("glassbox.sagemaker")

MAX_BODY = 6_291_456
FAILURE_REASON_LENGTH = 1024
ECR_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/.+")

# What each resource is called in the texts, and the member that names it.
KINDS = {
    "model": ("model", "ModelName"),
    "endpoint-config": ("endpoint configuration", "EndpointConfigName"),
    "endpoint": ("endpoint", "EndpointName"),
    "monitoring-schedule": ("monitoring schedule", "MonitoringScheduleName"),
}

# Actions and the resources each is checked against (service authorization reference); List* knows none.
RESOURCES = {
    "CreateModel": ("model",),
    "DescribeModel": ("model",),
    "DeleteModel": ("model",),
    "CreateEndpointConfig": ("endpoint-config",),
    "DescribeEndpointConfig": ("endpoint-config",),
    "DeleteEndpointConfig": ("endpoint-config",),
    "CreateEndpoint": ("endpoint", "endpoint-config"),
    "UpdateEndpoint": ("endpoint", "endpoint-config"),
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
    """Models, endpoint configs, endpoints, processing jobs and monitoring schedules of one account and region."""

    def __init__(self, platform: Platform, *, update_seconds: float = 0.0, **capture: Any) -> None:
        """`update_seconds`: how long creating or updating an endpoint takes at least; `capture`: Capture's options."""
        self.platform = platform
        self.clock = CaptureClock()
        self.capture = Capture(platform, **capture)
        self.hosting = Hosting(platform)
        self.jobs = ProcessingJobs(platform)
        self._update_seconds = update_seconds
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._records: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self._fleets: dict[str, Fleet] = {}
        self._tags: dict[str, list[dict[str, str]]] = {}
        self._closed = threading.Event()
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "CreateModel": self._create_model,
            "CreateEndpointConfig": self._create_endpoint_config,
            "CreateEndpoint": self._create_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "DescribeEndpoint": self._describe_endpoint,
            "DeleteEndpoint": self._delete_endpoint,
            "ListEndpoints": self._list_endpoints,
            "CreateMonitoringSchedule": self._create_monitoring_schedule,
            "DescribeModel": lambda r: self._describe("model", r),
            "DescribeEndpointConfig": lambda r: self._describe("endpoint-config", r),
            "DescribeMonitoringSchedule": lambda r: self._describe("monitoring-schedule", r),
            "DeleteModel": lambda r: self._delete("model", r),
            "DeleteEndpointConfig": lambda r: self._delete("endpoint-config", r),
            "DeleteMonitoringSchedule": lambda r: self._delete("monitoring-schedule", r),
            "ListModels": lambda r: self._list("model", "Models", r),
            "ListEndpointConfigs": lambda r: self._list("endpoint-config", "EndpointConfigs", r),
            "ListMonitoringSchedules": lambda r: self._list(
                "monitoring-schedule", "MonitoringScheduleSummaries", r
            ),
            "ListMonitoringExecutions": lambda _: {"MonitoringExecutionSummaries": []},
            "CreateProcessingJob": self.jobs.create,
            "DescribeProcessingJob": self.jobs.describe,
            "ListProcessingJobs": self.jobs.list,
            "StopProcessingJob": self.jobs.stop,
            "AddTags": self._add_tags,
            "ListTags": lambda r: {"Tags": self._tags.get(r["ResourceArn"], [])},
        }
        threading.Thread(target=self._watch, name="sagemaker-watch", daemon=True).start()

    # -- the two ways in

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """One control-plane operation; raises SageMakerError."""
        handler = self._operations.get(operation)
        if handler is None:
            raise SageMakerError(
                "UnknownOperationException", f"{operation} is not part of the SageMaker double"
            )
        check(request, input_shape(operation))
        answer = handler(request)
        if operation.startswith("Create") and request.get("Tags"):
            [arn] = answer.values()
            self._add_tags({"ResourceArn": arn, "Tags": request["Tags"]})
        return answer

    def grants(self, operation: str, request: dict[str, Any]) -> list[tuple[str, str, dict[str, str]]]:
        """The (action, resource ARN, condition keys) an IAM principal needs for a call."""
        kinds = RESOURCES.get(operation)
        arns = [self._arn_in(request, kind) for kind in kinds] if kinds else [request.get("ResourceArn", "*")]
        needed = [(f"sagemaker:{operation}", arn, {}) for arn in arns]
        role = request.get("RoleArn") or request.get("ExecutionRoleArn")
        if role and operation.startswith("Create"):
            needed.append(("iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"}))
        if request.get("Tags"):
            needed += [("sagemaker:AddTags", arn, {}) for arn in arns[:1]]
        return needed

    def invoke(self, endpoint: str, body: bytes, headers: dict[str, str]) -> tuple[str, Answer]:
        """InvokeEndpoint: the invoked variant and its answer. `headers` as in the HTTP request, keys in lower case.

        Raises SageMakerError: ValidationError, ModelError, or code 413.
        """
        if len(body) > MAX_BODY:
            raise SageMakerError("", f"HTTP content length exceeded {MAX_BODY} bytes.", status=413)
        arrived = self.clock.now()
        fleet = self._serving(endpoint)
        with fleet.lease():
            # The fleet may have been switched between lookup and lease; a lease on the live one is safe.
            if self._fleets.get(endpoint) is not fleet:
                return self.invoke(endpoint, body, headers)
            target = headers.get("x-amzn-sagemaker-target-variant")
            variant = fleet.choose(target)
            if variant is None:
                raise SageMakerError(
                    "ValidationError", f"Variant {target} not found for Request. Endpoint {endpoint}."
                )
            for shadow in fleet.shadow:
                # A shadow's weight, relative to the production variant's, is the share of requests it sees.
                if random.random() * variant.weight >= shadow.weight:
                    continue
                threading.Thread(
                    target=self._shadow, args=(fleet, shadow, arrived, body, headers), daemon=True
                ).start()
            answer = self._ask(fleet, variant, body, headers)
            self._capture(fleet, variant, arrived, body, headers, answer)
        if not 200 <= answer.status < 300:
            raise self._model_error(endpoint, answer)
        return variant.name, answer

    def name_of(self, kind: str, arn: str) -> str | None:
        """The name of a resource by its ARN, which has it in lower case; None when there is none."""
        with self._lock:
            return next((n for n, r in self._records[kind].items() if r[_arn_member(kind)] == arn), None)

    def close(self) -> None:
        """Write the last captures, stop servers and jobs."""
        self._closed.set()
        self.capture.close()
        self.hosting.close()
        self.jobs.close()

    # -- invoking

    def _serving(self, endpoint: str) -> Fleet:
        with self._lock:
            fleet = self._fleets.get(endpoint)
        if fleet is None:
            raise SageMakerError(
                "ValidationError", f"Endpoint {endpoint} of account {self.platform.account} not found."
            )
        return fleet

    def _ask(self, fleet: Fleet, variant: Variant, body: bytes, headers: dict[str, str]) -> Answer:
        forwarded = {
            name: headers[name.lower()]
            for name in (
                "Content-Type",
                "Accept",
                "X-Amzn-SageMaker-Custom-Attributes",
                "X-Amzn-SageMaker-Inference-Id",
            )
            if headers.get(name.lower())
        }
        try:
            return fleet.instance(variant).invoke(body, forwarded)
        except TimeoutError:
            text = (
                "Your invocation timed out while waiting for a response from container primary. Review the latency "
                "metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
            )
            return Answer(0, text.encode(), None, None)
        except (OSError, http.client.HTTPException) as error:
            return Answer(500, f"No answer from container primary: {error}".encode(), None, None)

    def _shadow(
        self, fleet: Fleet, variant: Variant, arrived: Any, body: bytes, headers: dict[str, str]
    ) -> None:
        with fleet.lease():
            answer = self._ask(fleet, variant, body, headers)
            self._capture(fleet, variant, arrived, body, headers, answer)

    def _capture(
        self,
        fleet: Fleet,
        variant: Variant,
        arrived: Any,
        body: bytes,
        headers: dict[str, str],
        answer: Answer,
    ) -> None:
        config = fleet.config.get("DataCaptureConfig")
        if config:
            exchange = Exchange(
                time=arrived,
                request=body,
                request_type=headers.get("content-type"),
                response=answer.body,
                response_type=answer.content_type,
                inference_id=headers.get("x-amzn-sagemaker-inference-id"),
                custom_attributes=headers.get("x-amzn-sagemaker-custom-attributes"),
            )
            self.capture.add(fleet.endpoint, variant.name, config, variant.role_arn, exchange)

    def _model_error(self, endpoint: str, answer: Answer) -> SageMakerError:
        text = answer.body.decode(errors="replace")
        kind = "client" if 400 <= answer.status < 500 else "server"
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        region, account = self.platform.region, self.platform.account
        return SageMakerError(
            "ModelError",
            f'Received {kind} error ({answer.status}) from primary with message "{text}". See '
            f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group} "
            f"in account {account} for more information.",
            status=424,
            OriginalStatusCode=answer.status,
            OriginalMessage=text,
            LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        )

    # -- records

    def _arn_in(self, request: dict[str, Any], kind: str) -> str:
        if kind == "processing-job":
            return self.platform.arn(kind, request.get("ProcessingJobName", ""))
        return self.platform.arn(kind, request.get(KINDS[kind][1], ""))

    def _add(self, kind: str, request: dict[str, Any], **more: Any) -> dict[str, Any]:
        word, member = KINDS[kind]
        arn = self.platform.arn(kind, request[member])
        now = time.time()
        with self._lock:
            if request[member] in self._records[kind]:
                raise invalid(f'Cannot create already existing {word} "{arn}".')
            record = {k: v for k, v in copy.deepcopy(request).items() if k != "Tags"}
            record |= {_arn_member(kind): arn, "CreationTime": now, **more}
            self._records[kind][request[member]] = record
        return record

    def _get(self, kind: str, name: str) -> dict[str, Any]:
        word, _ = KINDS[kind]
        with self._lock:
            if name not in self._records[kind]:
                raise invalid(f'Could not find {word} "{self.platform.arn(kind, name)}".')
            return self._records[kind][name]

    def _describe(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            return copy.deepcopy(self._get(kind, request[KINDS[kind][1]]))

    def _add_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            tags = {tag["Key"]: tag["Value"] for tag in self._tags.get(request["ResourceArn"], [])}
            tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
            self._tags[request["ResourceArn"]] = [{"Key": k, "Value": v} for k, v in tags.items()]
            return {"Tags": self._tags[request["ResourceArn"]]}

    def _delete(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            record = self._get(kind, request[KINDS[kind][1]])
            del self._records[kind][request[KINDS[kind][1]]]
            self._tags.pop(record[_arn_member(kind)], None)
        return {}

    def _list(self, kind: str, member: str, request: dict[str, Any]) -> dict[str, Any]:
        _, name = KINDS[kind]
        shown = (name, _arn_member(kind), "CreationTime", "LastModifiedTime", "MonitoringScheduleStatus")
        with self._lock:
            found = [r for r in self._records[kind].values() if request.get("NameContains", "") in r[name]]
            return {member: [{k: r[k] for k in shown if k in r} for r in found]}

    # -- models and endpoint configs

    def _create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        if "ExecutionRoleArn" not in request or "PrimaryContainer" not in request:
            raise invalid("The SageMaker double hosts models with ExecutionRoleArn and PrimaryContainer.")
        container = request["PrimaryContainer"]
        image = container.get("Image", "")
        if not ECR_IMAGE.fullmatch(image):
            raise invalid(
                f'Using non-ECR image "{image}" without Vpc repository access mode is not supported.'
            )
        if url := container.get("ModelDataUrl"):
            self._check_model_data(url, request["ExecutionRoleArn"])
        return {"ModelArn": self._add("model", request)["ModelArn"]}

    def _check_model_data(self, url: str, role: str) -> None:
        bucket, key = split_s3_uri(url)
        try:
            self.platform.s3(role).head_object(Bucket=bucket, Key=key)
        except StartFailedError as error:
            raise invalid(str(error)) from error
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "404":
                raise invalid(f"Could not find model data at {url}.") from error
            raise invalid(
                f'Could not access model data at {url}. Please ensure that the role "{role}" exists and that its '
                'trust relationship policy allows the action "sts:AssumeRole" for the service principal '
                '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the '
                f"object is located in {self.platform.region}."
            ) from error

    def _create_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        production, shadow = request["ProductionVariants"], request.get("ShadowProductionVariants", [])
        for variant in production + shadow:
            if "ModelName" not in variant:
                raise invalid("The SageMaker double hosts variants with a ModelName only.")
            self._get("model", variant["ModelName"])
        if shadow and (len(production), len(shadow)) != (1, 1):
            raise invalid("Shadow variants need exactly one production and one shadow variant.")
        return {"EndpointConfigArn": self._add("endpoint-config", request)["EndpointConfigArn"]}

    def _create_monitoring_schedule(self, request: dict[str, Any]) -> dict[str, Any]:
        record = self._add(
            "monitoring-schedule",
            request,
            MonitoringScheduleStatus="Scheduled",
            MonitoringType="DataQuality",
            LastModifiedTime=time.time(),
        )
        return {"MonitoringScheduleArn": record["MonitoringScheduleArn"]}

    # -- endpoints

    def _create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._get("endpoint-config", request["EndpointConfigName"])
            record = self._add("endpoint", request, EndpointStatus="Creating", LastModifiedTime=time.time())
        self._roll_out(record, request["EndpointConfigName"])
        return {"EndpointArn": record["EndpointArn"]}

    def _update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            record = self._get("endpoint", request["EndpointName"])
            self._get("endpoint-config", request["EndpointConfigName"])
            if record["EndpointStatus"] != "InService":
                raise invalid(f'Cannot update in-progress endpoint "{record["EndpointArn"]}".')
            record.pop("FailureReason", None)
            record.update(
                EndpointStatus="Updating",
                LastModifiedTime=time.time(),
                PendingDeploymentSummary={
                    "EndpointConfigName": request["EndpointConfigName"],
                    "StartTime": time.time(),
                },
            )
        self._roll_out(record, request["EndpointConfigName"])
        return {"EndpointArn": record["EndpointArn"]}

    def _roll_out(self, record: dict[str, Any], config_name: str) -> None:
        with self._lock:
            config = copy.deepcopy(self._get("endpoint-config", config_name))
            variants = config["ProductionVariants"] + config.get("ShadowProductionVariants", [])
            models = {v["ModelName"]: copy.deepcopy(self._get("model", v["ModelName"])) for v in variants}
        self._announce(record)
        threading.Thread(
            target=self._blue_green, args=(record, config, models), name="sagemaker-roll-out", daemon=True
        ).start()

    def _blue_green(
        self, record: dict[str, Any], config: dict[str, Any], models: dict[str, dict[str, Any]]
    ) -> None:
        """Start the new fleet beside the old one, switch, then drain and stop the old one; or keep the old one."""
        name = record["EndpointName"]
        began = time.monotonic()
        try:
            fleet = self.hosting.start(name, config, models)
        except StartFailedError as error:
            self._settle(record, failure=str(error))
            return
        if self._closed.wait(max(0.0, self._update_seconds - (time.monotonic() - began))):
            return
        with self._lock:
            if self._records["endpoint"].get(name) is not record:  # deleted meanwhile
                old: Fleet | None = fleet
            else:
                old = self._fleets.get(name)
                self._fleets[name] = fleet
                record["EndpointConfigName"] = config["EndpointConfigName"]
        self._settle(record)
        if old:
            self.hosting.retire(old)

    def _settle(self, record: dict[str, Any], failure: str | None = None) -> None:
        with self._lock:
            if record["EndpointStatus"] == "Deleting":
                return
            serving = record["EndpointName"] in self._fleets
            record.pop("PendingDeploymentSummary", None)
            record.update(EndpointStatus="InService" if serving else "Failed", LastModifiedTime=time.time())
            if failure:
                record["FailureReason"] = failure[:FAILURE_REASON_LENGTH]
            self._changed.notify_all()
        self._announce(record)

    def await_settled(self, name: str, seconds: float = 300.0) -> dict[str, Any]:
        """Block until the endpoint is neither Creating nor Updating; its description."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._get("endpoint", name)["EndpointStatus"] not in ("Creating", "Updating"), seconds
            )
        return self._describe_endpoint({"EndpointName": name})

    def _announce(self, record: dict[str, Any]) -> None:
        """`SageMaker Endpoint State Change`; its status is UPPER_SNAKE, unlike the API's."""
        with self._lock:
            config = self._records["endpoint-config"].get(record["EndpointConfigName"], {})
            detail = {
                "EndpointName": record["EndpointName"],
                "EndpointArn": record["EndpointArn"],
                "EndpointConfigName": record["EndpointConfigName"],
                "ProductionVariants": [
                    {
                        "DesiredWeight": float(v.get("InitialVariantWeight", 1)),
                        "DesiredInstanceCount": float(v.get("InitialInstanceCount", 1)),
                    }
                    for v in config.get("ProductionVariants", [])
                ],
                "EndpointStatus": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record["EndpointStatus"]).upper(),
                "CreationTime": float(int(record["CreationTime"] * 1000)),
                "LastModifiedTime": float(int(record["LastModifiedTime"] * 1000)),
                "Tags": {},
            }
            if "FailureReason" in record:
                detail["FailureReason"] = record["FailureReason"]
        self.platform.emit("SageMaker Endpoint State Change", detail, [record["EndpointArn"]])

    def _describe_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            record = self._get("endpoint", request["EndpointName"])
            described = copy.deepcopy(record)
            fleet = self._fleets.get(record["EndpointName"])
        if fleet is None:
            return described
        described["ProductionVariants"] = [_variant_summary(v) for v in fleet.production]
        if fleet.shadow:
            described["ShadowProductionVariants"] = [_variant_summary(v) for v in fleet.shadow]
        if capture := fleet.config.get("DataCaptureConfig"):
            enabled = capture.get("EnableCapture", False)
            described["DataCaptureConfig"] = {
                "EnableCapture": enabled,
                "CaptureStatus": "Started" if enabled else "Stopped",
                "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                "DestinationS3Uri": capture["DestinationS3Uri"],
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        return described

    def _delete_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            record = self._get("endpoint", request["EndpointName"])
            if record["EndpointStatus"] in ("Creating", "Updating"):
                raise invalid(f'Cannot update in-progress endpoint "{record["EndpointArn"]}".')
            record.update(EndpointStatus="Deleting", LastModifiedTime=time.time())
            fleet = self._fleets.pop(record["EndpointName"], None)
            del self._records["endpoint"][record["EndpointName"]]
        self._announce(record)
        if fleet:
            threading.Thread(target=self.hosting.retire, args=(fleet,), daemon=True).start()
        return {}

    def _list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        shown = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        with self._lock:
            found = [
                {k: r[k] for k in shown}
                for r in self._records["endpoint"].values()
                if request.get("NameContains", "") in r["EndpointName"]
                and request.get("StatusEquals", r["EndpointStatus"]) == r["EndpointStatus"]
            ]
        return {"Endpoints": found}

    def _watch(self) -> None:
        while not self._closed.wait(2.0):
            self.hosting.revive()


def _arn_member(kind: str) -> str:
    return "".join(part.title() for part in kind.split("-")) + "Arn"


def _variant_summary(variant: Variant) -> dict[str, Any]:
    count = len(variant.instances)
    return {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": count,
        "DesiredInstanceCount": count,
    }
