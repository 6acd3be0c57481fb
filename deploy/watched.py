"""What an existing endpoint runs and captures, and whether Glassbox can watch it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError

HOOK = "tensors_output"  # the environment variable that turns the hook on
REPLAY_KEY = "REPLAY_KEY"  # the one that holds the public key of the replays
_PREFIX = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
_S3_URI = re.compile(r"s3://([^/]+)/?(.*)")
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


@dataclass(frozen=True)
class Watched:
    """An endpoint, its config and its production variants' models, as the Describe calls of boto3 return them.

    `bucket` and `prefix` are the destination of its data capture. `capture_key` and `volume_key` are the KMS keys of
    captures and of the instances' volumes, by ARN where it could be found, or empty.
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
        """The models' execution roles: the hooked models write their tensors with them."""
        return sorted({str(model["ExecutionRoleArn"]) for model in self.models.values()})

    @property
    def instances(self) -> dict[str, int]:
        """How many instances of which type it runs now."""
        return instances_of(self.endpoint, self.config)

    @property
    def parameters(self) -> dict[str, str]:
        """The stack's parameters that follow from the endpoint."""
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
        """Describe the endpoint, a variant and its capture in words, a line each."""
        capture = self.config["DataCaptureConfig"]
        modes = " and ".join(f"{mode.lower()}s" for mode in sorted(capture_modes(capture)))
        return [
            f"endpoint {self.name} is {self.endpoint['EndpointStatus']} on config {self.config_name}",
            *(f"  {self._variant(variant)}" for variant in self.config["ProductionVariants"]),
            f"  captures {capture['InitialSamplingPercentage']} % of the requests, {modes}, to "
            f"s3://{self.bucket}/{self.prefix}/",
        ]

    def _variant(self, variant: Mapping[str, Any]) -> str:
        name = variant.get("ModelName")
        container = container_of(self.models[name]) if name else None
        image = (
            container.get("Image") or container.get("ModelPackageName") if container else "several containers"
        )
        model = f"model {name} ({image})" if name else "inference components"
        count = variant.get("InitialInstanceCount") or "a managed number of"
        return f"variant {variant['VariantName']}: {count} x {variant.get('InstanceType') or 'any type'}, {model}"

    def notes(self, *, twin: bool = True) -> list[str]:
        """Return in words what limits watching, with a hooked twin or without."""
        notes = []
        if twin and "Input" not in capture_modes(self.config["DataCaptureConfig"]):
            notes.append(
                "Its inputs are not captured: Glassbox explains live traffic instead of the flagged inputs."
            )
        for key, what, parameter in (
            (self.capture_key, "captures", "CaptureKeyArn"),
            (self.volume_key if twin else "", "instance volumes", "EndpointKeyArn"),
        ):
            if key and not is_key_arn(key):
                notes.append(
                    f"Its {what} are encrypted with {key}, whose ARN could not be read: SET={parameter}=… gives it."
                )
        if twin and any("VpcConfig" in model for model in self.models.values()):
            notes.append(
                "Its models are in a VPC: the VPC's S3 endpoint must let them write to the stack's bucket."
            )
        return notes


def instances_of(endpoint: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Count an endpoint's instances by type, shadow variants included: as they are now, or as its config begins."""
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
    """Return a model's only container; None where it has several."""
    containers = [model["PrimaryContainer"]] if "PrimaryContainer" in model else model.get("Containers", [])
    return dict(containers[0]) if len(containers) == 1 else None


def capture_modes(capture: Mapping[str, Any]) -> set[str]:
    """Return which of Input and Output a DataCaptureConfig captures."""
    modes = {option["CaptureMode"] for option in capture["CaptureOptions"]}
    return (modes - {"InputAndOutput"}) | ({"Input", "Output"} if "InputAndOutput" in modes else set())


def is_refused(error: ClientError) -> bool:
    """Whether AWS refused a call for want of a permission."""
    return error.response["Error"]["Code"] in _REFUSED


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker does not know what was asked for."""
    return "could not find" in str(error).lower()


def read_endpoint(name: str, session: boto3.Session) -> Watched:
    """Read what an endpoint runs and captures.

    Raises:
        DeployError: Glassbox cannot watch it; all reasons, a line each.
    """
    sagemaker = session.client("sagemaker")
    try:
        endpoint = sagemaker.describe_endpoint(EndpointName=name)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    except ClientError as error:
        raise DeployError(f"{error.response['Error']['Message']} (region {session.region_name})") from error
    problems: list[str] = []
    if endpoint["EndpointStatus"] != "InService":
        problems.append(f"it is {endpoint['EndpointStatus']}: wait until it is InService")
    if "AsyncInferenceConfig" in config:
        problems.append(
            "it is asynchronous (AsyncInferenceConfig): Glassbox counts and replays real-time requests only"
        )
    bucket, prefix = _captured(endpoint, config, session, problems)
    models = _models(config, sagemaker, problems)
    if problems:
        raise DeployError("\n".join([f"Endpoint {name} cannot be watched:", *dict.fromkeys(problems)]))
    key = config["DataCaptureConfig"].get("KmsKeyId") or _default_key(bucket, session.client("s3"))
    return Watched(
        _without_metadata(endpoint),
        _without_metadata(config),
        models,
        bucket,
        prefix,
        _key_arn(key, session),
        _key_arn(config.get("KmsKeyId", ""), session),
    )


def _models(config: Mapping[str, Any], sagemaker: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return the production variants' models by name; append to `problems` what makes them unusable."""
    models = {}
    for variant in config["ProductionVariants"]:
        if "ServerlessConfig" in variant:
            problems.append(f"variant {variant['VariantName']} is serverless, which has no data capture")
        elif model := variant.get("ModelName"):
            try:
                models[model] = _without_metadata(sagemaker.describe_model(ModelName=model))
            except ClientError as error:
                if not is_missing(error):
                    raise
                problems.append(
                    f"model {model} of its config was deleted: SageMaker could not update the endpoint back to it"
                )
    for name, model in models.items():
        for container in (model.get("PrimaryContainer", {}), *model.get("Containers", ())):
            if container.get("Mode") == "MultiModel":
                problems.append(
                    f"model {name} has Mode MultiModel: captures do not tell which of its models predicted"
                )
            if HOOK in container.get("Environment", {}):
                problems.append(f"model {name} is hooked already: wait until the incident is over")
    return models


def _without_metadata(response: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name != "ResponseMetadata"}


def _captured(
    endpoint: Mapping[str, Any], config: Mapping[str, Any], session: boto3.Session, problems: list[str]
) -> tuple[str, str]:
    """Return bucket and prefix of the data capture; append to `problems` what makes it unusable."""
    capture = config.get("DataCaptureConfig")
    status = endpoint.get("DataCaptureConfig", {}).get("CaptureStatus")
    if capture is None or capture.get("EnableCapture") is False or status == "Stopped":
        problems.append(
            f"its config {config['EndpointConfigName']} has no data capture: create a config with a DataCaptureConfig "
            "(inputs and outputs, 100 %), update the endpoint to it, and try again"
        )
        return "", ""
    if "Output" not in capture_modes(capture):
        problems.append(
            "its data capture leaves out the outputs, which Glassbox counts: add CaptureMode Output"
        )
    if not capture["InitialSamplingPercentage"]:
        problems.append(
            "its data capture samples 0 % of the requests: InitialSamplingPercentage must be above 0"
        )
    uri = capture["DestinationS3Uri"]
    match = _S3_URI.fullmatch(uri)
    if match is None:
        problems.append(f"its DestinationS3Uri: expected s3://bucket/prefix, got {uri}")
        return "", ""
    bucket, prefix = match[1], match[2].strip("/")
    if not _PREFIX.fullmatch(prefix):
        problems.append(
            f"its DestinationS3Uri: expected a prefix of letters, digits and ._=- between slashes, got {uri}"
        )
    if why := _elsewhere(bucket, session):
        problems.append(f"its capture bucket {bucket} {why}")
    return bucket, prefix


def _elsewhere(bucket: str, session: boto3.Session) -> str:
    """Return why EventBridge would not tell this account and region of a bucket's objects; empty where it would."""
    account = session.client("sts").get_caller_identity()["Account"]
    try:
        found = session.client("s3").head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
    except ClientError as error:
        if (code := error.response["Error"]["Code"]) == "404":
            return "does not exist: create it, or no request is captured"
        if code == "403":
            return (
                f"belongs to another account than {account}, or you may not s3:ListBucket it: S3 sends its events to "
                "EventBridge of the bucket's own account, so capture to a bucket of this account"
            )
        raise
    region = found.get("BucketRegion", session.region_name)
    if region != session.region_name:
        return (
            f"is in region {region}, the endpoint in {session.region_name}: S3 sends its events to EventBridge of the "
            f"bucket's own region, so capture to a bucket in {session.region_name}"
        )
    return ""


def is_key_arn(key: str) -> bool:
    """Whether this is the ARN of a KMS key, and neither an alias nor a bare ID."""
    return key.startswith("arn:") and ":key/" in key


def _key_arn(key: str, session: boto3.Session) -> str:
    """Return the ARN of a KMS key that is given by ID, alias or ARN; what was given where KMS does not tell."""
    if not key or is_key_arn(key):
        return key
    try:
        return str(session.client("kms").describe_key(KeyId=key)["KeyMetadata"]["Arn"])
    except ClientError as error:
        if is_refused(error) or error.response["Error"]["Code"] == "NotFoundException":
            return key
        raise


def _default_key(bucket: str, s3: Any) -> str:
    """Return the KMS key that a bucket encrypts with by default; empty without one."""
    try:
        found = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ServerSideEncryptionConfigurationNotFoundError":
            return ""
        raise
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in found]
    return next((d["KMSMasterKeyID"] for d in defaults if "KMSMasterKeyID" in d), "")


def events_are_on(bucket: str, s3: Any) -> tuple[bool, int]:
    """Return whether a bucket notifies EventBridge, and how many other notifications it has."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    others = sum(len(found.get(f"{kind}Configurations", ())) for kind in ("Topic", "Queue", "LambdaFunction"))
    return "EventBridgeConfiguration" in found, others


def turn_events_on(bucket: str, s3: Any) -> bool:
    """Let a bucket notify EventBridge, beside its other notifications; return False where it does already."""
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    if "EventBridgeConfiguration" in found:
        return False
    found.pop("ResponseMetadata", None)
    # PutBucketNotificationConfiguration replaces the whole configuration, so the existing ones are sent again
    s3.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration=found | {"EventBridgeConfiguration": {}},
        SkipDestinationValidation=True,  # the deployer may not be allowed to reach the other destinations
    )
    return True
