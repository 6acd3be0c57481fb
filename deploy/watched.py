"""The endpoint that is to be watched, as it is: what it runs, and what it captures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.utils.utils import Unassigned

from deploy import DeployError

HOOK = "tensors_output"  # the variable that turns the hook on
_PREFIX = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")


@dataclass(frozen=True)
class Watched:
    """An endpoint, its config and the models of its variants, as SageMaker describes them.

    `bucket` and `prefix` are where its data capture writes to, `key` is the KMS key it is encrypted with, or empty.
    """

    endpoint: Endpoint
    config: EndpointConfig
    models: dict[str, Model]
    bucket: str
    prefix: str
    key: str

    @property
    def roles(self) -> list[str]:
        """The models' execution roles: with them, the hooked model writes its tensors."""
        return sorted({str(model.execution_role_arn) for model in self.models.values()})

    @property
    def parameters(self) -> dict[str, str]:
        """What the stack's parameters say of it."""
        shadows = given(self.config.shadow_production_variants) or []
        return {
            "EndpointName": str(self.endpoint.endpoint_name),
            "EndpointArn": str(self.endpoint.endpoint_arn),
            "PlainConfigName": str(self.config.endpoint_config_name),
            "PlainConfigArn": str(self.config.endpoint_config_arn),
            "CaptureBucket": self.bucket,
            "CapturePrefix": self.prefix,
            "CaptureKeyArn": self.key if _is_key_arn(self.key) else "",
            "EndpointRoleArns": ",".join(self.roles),
            "ShadowVariants": ",".join(variant.variant_name for variant in shadows),
        }

    def lines(self) -> list[str]:
        """It in words."""
        config = self.config
        capture = config.data_capture_config
        modes = " and ".join(sorted(f"{option.capture_mode.lower()}s" for option in capture.capture_options))
        lines = [
            f"endpoint {self.endpoint.endpoint_name} is {self.endpoint.endpoint_status} on config "
            f"{config.endpoint_config_name}"
        ]
        for variant in config.production_variants:
            container = self.models[variant.model_name].primary_container
            lines.append(
                f"  variant {variant.variant_name}: {given(variant.initial_instance_count) or 'a managed number of'} x "
                f"{given(variant.instance_type) or 'any type'}, "
                f"model {variant.model_name} ({container.image})"
            )
        lines.append(
            f"  captures {capture.initial_sampling_percentage} % of the requests, {modes}, to "
            f"s3://{self.bucket}/{self.prefix}/"
        )
        return lines

    def notes(self) -> list[str]:
        """What its owner should know before."""
        capture = self.config.data_capture_config
        notes = []
        if "Input" not in {option.capture_mode for option in capture.capture_options}:
            notes.append(
                "Its inputs are not captured, so live traffic is explained instead of what was flagged."
            )
        if self.key and not _is_key_arn(self.key):
            notes.append(
                f"Its captures are encrypted with {self.key}: SET=CaptureKeyArn=… gives the ARN of that key."
            )
        if any(given(model.vpc_config) for model in self.models.values()):
            notes.append(
                "Its models are in a VPC, whose S3 endpoint has to let them write to the stack's bucket."
            )
        if any(given(model.enable_network_isolation) for model in self.models.values()):
            notes.append("Its models are isolated from the network; the twin is not, since it writes to S3.")
        return notes


def given(value: Any) -> Any:
    """A member as SageMaker gave it; None where it did not."""
    return None if isinstance(value, Unassigned) else value


def read_endpoint(name: str, session: boto3.Session) -> Watched:
    """Raises DeployError with everything that keeps it from being watched."""
    try:
        endpoint = Endpoint.get(name, session=session)
        config = EndpointConfig.get(endpoint.endpoint_config_name, session=session)
    except ClientError as error:
        where = f" (region {session.region_name})"
        raise DeployError(error.response["Error"]["Message"] + where) from error
    problems: list[str] = []
    if endpoint.endpoint_status != "InService":
        problems.append(f"it is {endpoint.endpoint_status}: wait until it is InService")
    bucket, prefix = _captured(config, problems)
    models = {}
    for variant in given(config.production_variants) or []:
        if given(variant.serverless_config):
            problems.append(f"variant {variant.variant_name} is serverless, which has no data capture")
        elif not given(variant.model_name):
            problems.append(f"variant {variant.variant_name} has no model of its own (inference components)")
        else:
            models[variant.model_name] = Model.get(variant.model_name, session=session)
    for model_name, model in models.items():
        if not given(model.primary_container):
            problems.append(
                f"model {model_name} has several containers, of which only one could carry the hook"
            )
        elif HOOK in (given(model.primary_container.environment) or {}):
            problems.append(f"model {model_name} is hooked already: wait until the incident is over")
    if problems:
        raise DeployError("\n".join([f"Endpoint {name} cannot be watched as it is:", *problems]))
    key = given(config.data_capture_config.kms_key_id) or _default_key(bucket, session.client("s3"))
    return Watched(endpoint, config, models, bucket, prefix, str(key))


def _captured(config: EndpointConfig, problems: list[str]) -> tuple[str, str]:
    capture = given(config.data_capture_config)
    if capture is None or given(capture.enable_capture) is False:
        problems.append(
            f"its config {config.endpoint_config_name} has no data capture: make one that has a DataCaptureConfig "
            "(inputs and outputs, 100 %), update the endpoint to it, and come back"
        )
        return "", ""
    if "Output" not in {option.capture_mode for option in capture.capture_options}:
        problems.append("its data capture leaves out the outputs, which is what is counted")
    bucket, _, prefix = str(capture.destination_s3_uri).removeprefix("s3://").partition("/")
    if not _PREFIX.fullmatch(prefix.strip("/")):
        problems.append(
            f"it captures to {capture.destination_s3_uri}: a prefix of letters, digits and ._=- is needed"
        )
    return bucket, prefix.strip("/")


def _is_key_arn(key: str) -> bool:
    return ":key/" in key  # and no alias, and no bare id


def _default_key(bucket: str, s3: Any) -> str:
    """The KMS key that a bucket encrypts with by default; empty without one."""
    try:
        found = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ServerSideEncryptionConfigurationNotFoundError":
            return ""
        raise
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in found]
    return next((d["KMSMasterKeyID"] for d in defaults if "KMSMasterKeyID" in d), "")


def events_are_on(bucket: str, s3: Any) -> tuple[bool, int]:
    """Whether a bucket tells EventBridge of its objects, and how many other notifications it has."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    others = sum(len(found.get(f"{kind}Configurations", ())) for kind in ("Topic", "Queue", "LambdaFunction"))
    return "EventBridgeConfiguration" in found, others


def turn_events_on(bucket: str, s3: Any) -> bool:
    """Let a bucket tell EventBridge, beside whatever it tells others; False when it does already."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    if "EventBridgeConfiguration" in found:
        return False
    found.pop("ResponseMetadata", None)
    # putting replaces the whole configuration: what is there goes along
    s3.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration=found | {"EventBridgeConfiguration": {}},
        SkipDestinationValidation=True,  # the others are not ours to try
    )
    return True
