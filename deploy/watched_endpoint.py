"""Read what an existing endpoint runs and captures, and check that Glassbox can watch it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.account import account_id

HOOK = "tensors_output"  # the environment variable that enables the hook
REPLAY_KEY = "REPLAY_KEY"  # the environment variable with the public replay key
_PREFIX = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
_S3_URI = re.compile(r"s3://([^/]+)/?(.*)")
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


class EndpointParameters(TypedDict):
    """The stack parameters that follow from the endpoint, by their names in the template."""

    EndpointName: str
    EndpointArn: str
    PlainConfigName: str
    PlainConfigArn: str
    CaptureBucket: str
    CapturePrefix: str
    CaptureKeyArn: str
    EndpointKeyArn: str
    EndpointRoleArns: str
    ShadowVariants: str


@dataclass(frozen=True)
class WatchedEndpoint:
    """An endpoint, its config and its production variants' models, as boto3 describes them.

    ``bucket`` and ``prefix`` are the destination of its data capture. ``capture_key`` and ``volume_key`` are the KMS
    keys of captures and instance volumes: the ARN, or the configured value if KMS refuses to resolve it, or empty.
    """

    endpoint: Mapping[str, Any]
    config: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    bucket: str
    prefix: str
    capture_key: str
    volume_key: str

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return str(self.endpoint["EndpointName"])

    @property
    def config_name(self) -> str:
        """The name of its endpoint config."""
        return str(self.config["EndpointConfigName"])

    @property
    def roles(self) -> list[str]:
        """The execution roles of the models, which the hooked models write tensors with."""
        return sorted({str(model["ExecutionRoleArn"]) for model in self.models.values()})

    @property
    def instances(self) -> dict[str, int]:
        """Number of running instances by type."""
        return instances_of(self.endpoint, self.config)

    @property
    def parameters(self) -> EndpointParameters:
        """The stack parameters that follow from the endpoint."""
        shadows = self.config.get("ShadowProductionVariants", ())
        return {
            "EndpointName": self.name,
            "EndpointArn": self.endpoint["EndpointArn"],
            "PlainConfigName": self.config_name,
            "PlainConfigArn": self.config["EndpointConfigArn"],
            "CaptureBucket": self.bucket,
            "CapturePrefix": self.prefix,
            "CaptureKeyArn": self.capture_key if is_key_arn(self.capture_key) else "",
            "EndpointKeyArn": self.volume_key if is_key_arn(self.volume_key) else "",
            "EndpointRoleArns": ",".join(self.roles),
            "ShadowVariants": ",".join(variant["VariantName"] for variant in shadows),
        }

    def lines(self) -> list[str]:
        """Describe the endpoint, each variant and the data capture, one line each."""
        capture = self.config["DataCaptureConfig"]
        modes = " and ".join(f"{mode.lower()}s" for mode in sorted(capture_modes(capture)))
        return [
            f"endpoint {self.name} is {self.endpoint['EndpointStatus']} on config {self.config_name}",
            *(f"  {self._variant(variant)}" for variant in self.config["ProductionVariants"]),
            f"  captures {capture['InitialSamplingPercentage']} % of the requests, {modes}, to "
            f"s3://{self.bucket}/{self.prefix}/",
        ]

    def _variant(self, variant: Mapping[str, Any]) -> str:
        """Describe a variant."""
        name = variant.get("ModelName")
        container = container_of(self.models[name]) if name else None
        image = (
            container.get("Image") or container.get("ModelPackageName") if container else "several containers"
        )
        model = f"model {name} ({image})" if name else "inference components"
        count = variant.get("InitialInstanceCount") or "a managed number of"
        return f"variant {variant['VariantName']}: {count} x {variant.get('InstanceType') or 'any type'}, {model}"

    def notes(self, *, twin: bool = True) -> list[str]:
        """Describe what limits Glassbox on this endpoint, with a hooked twin or without."""
        notes = []
        if twin and "Input" not in capture_modes(self.config["DataCaptureConfig"]):
            notes.append(
                "The endpoint captures no inputs: Glassbox explains live traffic instead of the flagged inputs."
            )
        for key, what, parameter in (
            (self.capture_key, "captures", "CaptureKeyArn"),
            (self.volume_key if twin else "", "instance volumes", "EndpointKeyArn"),
        ):
            if key and not is_key_arn(key):
                notes.append(
                    f"{parameter}: expected the ARN of {key}, which encrypts the {what}, got no answer from KMS. "
                    f"Set SET={parameter}=…."
                )
        if twin and any("VpcConfig" in model for model in self.models.values()):
            notes.append(
                "The models are in a VPC: allow writes to the stack's bucket in the policy of its S3 endpoint."
            )
        return notes


def instances_of(endpoint: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Count an endpoint's instances by type, including shadow variants.

    The config's initial count applies where the endpoint reports no current count.
    """
    kinds = ("ProductionVariants", "ShadowProductionVariants")
    live = {
        variant["VariantName"]: variant.get("CurrentInstanceCount")
        for kind in kinds
        for variant in endpoint.get(kind, ())
    }
    found: dict[str, int] = {}
    for variant in [variant for kind in kinds for variant in config.get(kind, ())]:
        if instance := variant.get("InstanceType"):
            count = live.get(variant["VariantName"]) or variant.get("InitialInstanceCount", 1)
            found[instance] = found.get(instance, 0) + count
    return found


def container_of(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a model's only container, or None if it has several."""
    containers = [model["PrimaryContainer"]] if "PrimaryContainer" in model else model.get("Containers", [])
    return dict(containers[0]) if len(containers) == 1 else None


def capture_modes(capture: Mapping[str, Any]) -> set[str]:
    """Return which of ``Input`` and ``Output`` a DataCaptureConfig captures."""
    modes = {option["CaptureMode"] for option in capture["CaptureOptions"]}
    return (modes - {"InputAndOutput"}) | ({"Input", "Output"} if "InputAndOutput" in modes else set())


def is_refused(error: ClientError) -> bool:
    """Return whether AWS refused a call for a missing permission."""
    return error.response["Error"]["Code"] in _REFUSED


def is_missing(error: ClientError) -> bool:
    """Return whether SageMaker did not find the resource."""
    return "could not find" in str(error).lower()


def read_endpoint(name: str, session: boto3.Session) -> WatchedEndpoint:
    """Read what an endpoint runs and captures.

    Raises:
        DeployError: Glassbox cannot watch it; the message lists all reasons, one line each.
    """
    sagemaker = session.client("sagemaker")
    try:
        endpoint = sagemaker.describe_endpoint(EndpointName=name)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    except ClientError as error:
        message = error.response["Error"]["Message"]
        raise DeployError(
            f"ENDPOINT: expected an endpoint in {session.region_name}, got {name}: {message}"
        ) from error
    problems: list[str] = []
    if endpoint["EndpointStatus"] != "InService":
        problems.append(
            f"EndpointStatus: expected InService, got {endpoint['EndpointStatus']}. Wait, then retry."
        )
    if "AsyncInferenceConfig" in config:
        problems.append(
            "AsyncInferenceConfig: expected none, got an asynchronous endpoint. Glassbox watches real-time endpoints "
            "only."
        )
    bucket, prefix = _capture_location(endpoint, config, session, problems)
    models = _models(config, sagemaker, problems)
    if problems:
        raise DeployError("\n".join([f"Glassbox cannot watch endpoint {name}:", *dict.fromkeys(problems)]))
    key = config["DataCaptureConfig"].get("KmsKeyId") or _default_key(bucket, session.client("s3"))
    return WatchedEndpoint(
        _without_metadata(endpoint),
        _without_metadata(config),
        models,
        bucket,
        prefix,
        _key_arn(key, session),
        _key_arn(config.get("KmsKeyId", ""), session),
    )


def _models(config: Mapping[str, Any], sagemaker: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return the production variants' models by name; append the reasons against them to ``problems``."""
    models = {}
    for variant in config["ProductionVariants"]:
        if "ServerlessConfig" in variant:
            problems.append(
                f"variant {variant['VariantName']}: expected instances, got ServerlessConfig, which has no data "
                "capture."
            )
        elif model := variant.get("ModelName"):
            try:
                models[model] = _without_metadata(sagemaker.describe_model(ModelName=model))
            except ClientError as error:
                if not is_missing(error):
                    raise
                problems.append(
                    f"model {model}: expected an existing model, got a deleted one. A restore to it would fail. "
                    "Update the endpoint to a config with an existing model."
                )
    for name, model in models.items():
        for container in (model.get("PrimaryContainer", {}), *model.get("Containers", ())):
            if container.get("Mode") == "MultiModel":
                problems.append(
                    f"model {name}: expected Mode SingleModel, got MultiModel. Its captures do not name the model "
                    "that predicted."
                )
            if HOOK in container.get("Environment", {}):
                problems.append(
                    f"model {name}: expected an environment without {HOOK}, got a hooked model. Wait until the "
                    "incident is closed, then retry."
                )
    return models


def _without_metadata(response: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name != "ResponseMetadata"}


def _capture_location(
    endpoint: Mapping[str, Any], config: Mapping[str, Any], session: boto3.Session, problems: list[str]
) -> tuple[str, str]:
    """Return bucket and prefix of the data capture; append the reasons against it to ``problems``."""
    capture = config.get("DataCaptureConfig")
    status = endpoint.get("DataCaptureConfig", {}).get("CaptureStatus")
    if capture is None or capture.get("EnableCapture") is False or status == "Stopped":
        problems.append(
            f"endpoint config {config['EndpointConfigName']}: expected an enabled DataCaptureConfig, got none. Create "
            "a config that captures inputs and outputs (100 %), update the endpoint to it, then retry."
        )
        return "", ""
    if "Output" not in capture_modes(capture):
        problems.append(
            "CaptureOptions: expected CaptureMode Output, got Input only. Glassbox counts the outputs: add it."
        )
    if not capture["InitialSamplingPercentage"]:
        problems.append(
            "InitialSamplingPercentage: expected more than 0, got 0. Capture at least 1 % of the requests."
        )
    uri = capture["DestinationS3Uri"]
    match = _S3_URI.fullmatch(uri)
    if match is None:
        problems.append(f"DestinationS3Uri: expected s3://bucket/prefix, got {uri}")
        return "", ""
    bucket, prefix = match[1], match[2].strip("/")
    if not _PREFIX.fullmatch(prefix):
        problems.append(
            f"DestinationS3Uri: expected a prefix of letters, digits and ._=- between slashes, got {uri}"
        )
    if problem := _bucket_problem(bucket, session):
        problems.append(f"capture bucket {bucket}: {problem}")
    return bucket, prefix


def _bucket_problem(bucket: str, session: boto3.Session) -> str:
    """Return why EventBridge of this account and region gets no events of a bucket, or an empty string."""
    account = account_id(session)
    try:
        found = session.client("s3").head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
    except ClientError as error:
        if (code := error.response["Error"]["Code"]) == "404":
            return "expected an existing bucket, got none. Create it."
        if code == "403":
            return (
                f"expected a bucket of account {account} that you may s3:ListBucket, got a refusal. S3 sends events "
                "to EventBridge in the bucket's account: capture to a bucket of this account."
            )
        raise
    region = found.get("BucketRegion", session.region_name)
    if region != session.region_name:
        return (
            f"expected region {session.region_name}, as the endpoint's, got {region}. S3 sends events to EventBridge "
            f"in the bucket's region: capture to a bucket in {session.region_name}."
        )
    return ""


def is_key_arn(key: str) -> bool:
    """Return whether this is the ARN of a KMS key, not an alias or an ID."""
    return key.startswith("arn:") and ":key/" in key


def _key_arn(key: str, session: boto3.Session) -> str:
    """Resolve a KMS key's ID, alias or ARN to its ARN; return it unchanged if KMS refuses or has no such key."""
    if not key or is_key_arn(key):
        return key
    try:
        return str(session.client("kms").describe_key(KeyId=key)["KeyMetadata"]["Arn"])
    except ClientError as error:
        if is_refused(error) or error.response["Error"]["Code"] == "NotFoundException":
            return key
        raise


def _default_key(bucket: str, s3: Any) -> str:
    """Return the KMS key of a bucket's default encryption, or an empty string."""
    try:
        found = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ServerSideEncryptionConfigurationNotFoundError":
            return ""
        raise
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in found]
    return next((d["KMSMasterKeyID"] for d in defaults if "KMSMasterKeyID" in d), "")


def read_notifications(bucket: str, s3: Any) -> tuple[bool, int]:
    """Return whether a bucket sends events to EventBridge, and how many other notifications."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    others = sum(len(found.get(f"{kind}Configurations", ())) for kind in ("Topic", "Queue", "LambdaFunction"))
    return "EventBridgeConfiguration" in found, others


def enable_eventbridge(bucket: str, s3: Any) -> None:
    """Let a bucket send events to EventBridge, and keep its other notifications."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    if "EventBridgeConfiguration" in found:
        return
    found.pop("ResponseMetadata", None)
    # PutBucketNotificationConfiguration replaces the whole configuration, so the request repeats the existing ones
    s3.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration=found | {"EventBridgeConfiguration": {}},
        SkipDestinationValidation=True,  # the caller may have no permission for the other destinations
    )
