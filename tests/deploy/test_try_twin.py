"""The trial of a twin deletes its endpoint in every case, and nothing that belongs to others."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

import captures
from deploy import DeployError, try_twin
from deploy.watched_endpoint import WatchedEndpoint

REGION, BUCKET = "eu-west-1", "captures"


def missing(name):
    error = {"Error": {"Code": "ValidationException", "Message": f'Could not find "{name}".'}}
    return ClientError(error, "Describe")


class SageMaker:
    """One endpoint and one endpoint config, with the statuses that the endpoint passes through."""

    def __init__(self, statuses=("Creating", "InService"), owner="", config_owner=""):
        self.statuses, self.calls = list(statuses), []
        self.found = {"endpoint": owner, "endpoint_config": config_owner}  # name of the stack, or empty

    def describe_endpoint_config(self, EndpointConfigName):
        if EndpointConfigName == "twin":
            shadow = [{"VariantName": "S", "ModelName": "m", "InstanceType": "ml.m5.large"}]
            variant = {"VariantName": "Blue", "ModelName": "m-hooked", "InstanceType": "ml.m5.large"}
            return {
                "EndpointConfigArn": "arn:twin",
                "ProductionVariants": [variant | {"InitialInstanceCount": 4, "InitialVariantWeight": 0.5}],
                "ShadowProductionVariants": shadow,
                "DataCaptureConfig": {"EnableCapture": True},
                "KmsKeyId": "alias/volumes",
            }
        return self._described("endpoint_config", {"EndpointConfigArn": "arn:endpoint_config"})

    def describe_endpoint(self, EndpointName):
        described = self._described("endpoint", {"EndpointArn": "arn:endpoint"})
        status = self.statuses[0] if len(self.statuses) == 1 else self.statuses.pop(0)
        return described | {"EndpointStatus": status, "FailureReason": "no capacity"}

    def _described(self, kind, answer):
        if not self.found[kind]:
            raise missing(kind)
        return answer

    def list_tags(self, ResourceArn):
        return {"Tags": [{"Key": "glassbox", "Value": self.found[ResourceArn.removeprefix("arn:")]}]}

    def create_endpoint_config(self, Tags, **request):
        self.calls.append(("create_endpoint_config", request))
        (self.found["endpoint_config"],) = [tag["Value"] for tag in Tags]

    def create_endpoint(self, Tags, **request):
        self.calls.append(("create_endpoint", request))
        (self.found["endpoint"],) = [tag["Value"] for tag in Tags]

    def delete_endpoint(self, EndpointName):
        self.calls.append("delete_endpoint")
        self.found["endpoint"] = ""

    def delete_endpoint_config(self, EndpointConfigName):
        assert not self.found["endpoint"]
        self.calls.append("delete_endpoint_config")
        self.found["endpoint_config"] = ""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("deploy.polling.INTERVAL_SECONDS", 0)


def run(sagemaker, inside=lambda: None, printed=None):
    session = SimpleNamespace(client=lambda _: sagemaker)
    report = (lambda _: None) if printed is None else printed.append
    with try_twin._endpoint("stack", "twin", session, report) as name:
        assert name == "twin-try"
        inside()


def test_the_endpoint_has_one_instance_per_variant_and_captures_nothing():
    sagemaker, printed = SageMaker(), []
    run(sagemaker, printed=printed)
    (_, config), (_, endpoint), *deleted = sagemaker.calls
    assert config == {
        "EndpointConfigName": "twin-try",
        "ProductionVariants": [
            {
                "VariantName": "Blue",
                "ModelName": "m-hooked",
                "InstanceType": "ml.m5.large",
                "InitialInstanceCount": 1,
                "InitialVariantWeight": 1.0,
            }
        ],
        "KmsKeyId": "alias/volumes",
    }
    assert endpoint == {"EndpointName": "twin-try", "EndpointConfigName": "twin-try"}
    assert deleted == ["delete_endpoint", "delete_endpoint_config"]
    assert printed == ["starting endpoint twin-try of 1 instance", "deleting endpoint twin-try"]


@pytest.mark.parametrize("error", [DeployError, KeyboardInterrupt, SystemExit])
def test_the_endpoint_is_deleted_after_an_error(error):
    def fails():
        raise error

    sagemaker = SageMaker()
    with pytest.raises(error):
        run(sagemaker, fails)
    assert sagemaker.calls[2:] == ["delete_endpoint", "delete_endpoint_config"]


def test_an_endpoint_that_does_not_start_is_deleted():
    sagemaker = SageMaker(["Creating", "Failed"])
    with pytest.raises(DeployError, match="twin-try: expected InService, got Failed: no capacity"):
        run(sagemaker)
    assert sagemaker.calls[2:] == ["delete_endpoint", "delete_endpoint_config"]


def test_an_interrupted_start_is_deleted_once_it_has_started():
    sagemaker = SageMaker(["Creating", "Creating", "InService"])

    def interrupted(**_):
        sagemaker.found["endpoint"] = "stack"
        raise KeyboardInterrupt

    sagemaker.create_endpoint = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(sagemaker)
    assert sagemaker.calls[1:] == ["delete_endpoint", "delete_endpoint_config"]


def test_what_a_killed_run_left_is_deleted_first():
    sagemaker = SageMaker(owner="stack", config_owner="stack")
    run(sagemaker)
    assert sagemaker.calls[:2] == ["delete_endpoint", "delete_endpoint_config"]
    assert sagemaker.calls[4:] == ["delete_endpoint", "delete_endpoint_config"]


@pytest.mark.parametrize("owners", [("another", ""), ("", "another")])
def test_nothing_of_others_is_deleted(owners):
    sagemaker = SageMaker(owner=owners[0], config_owner=owners[1])
    with pytest.raises(DeployError, match="twin-try already exists and does not belong to stack stack"):
        run(sagemaker)
    assert sagemaker.calls == []


# ---------------------------------------------------------------- the request


@pytest.fixture
def s3():
    with mock_aws():
        client = boto3.client("s3", region_name=REGION)
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield client


def sample(s3, path=""):
    variant = {"VariantName": "AllTraffic", "ModelName": "signs"}
    config = {"EndpointConfigName": "v1", "ProductionVariants": [variant]}
    endpoint = WatchedEndpoint({"EndpointName": "traffic-signs"}, config, {}, BUCKET, "capture", "", "")
    return try_twin.read_sample(path, endpoint, SimpleNamespace(client=lambda _: s3))


def put(s3, age_hours, name, *data):
    hour = datetime.now(UTC) - timedelta(hours=age_hours)
    key = f"capture/traffic-signs/AllTraffic/{hour:%Y/%m/%d/%H}/{name}.jsonl"
    records = []
    for content in data:
        record = captures.record({"predictions": [{"class": 3}]})
        if content:
            record["captureData"]["endpointInput"] = captures.side(content, "BASE64", "image/png", "INPUT")
        else:
            del record["captureData"]["endpointInput"]
        records.append(json.dumps(record))
    s3.put_object(Bucket=BUCKET, Key=key, Body="\n".join(["{broken", *records]).encode())


def test_sends_the_newest_captured_input(s3):
    put(s3, 3, "00", "b2xk")
    put(s3, 1, "10", "bmV3")
    put(s3, 1, "20", None)
    found = sample(s3)
    assert (found.body, found.content_type) == (b"new", "image/png")
    assert found.source.endswith("/10.jsonl")


def test_asks_for_a_file_without_a_captured_input(s3, tmp_path):
    put(s3, 1, "10", None)
    with pytest.raises(DeployError, match=r"captured input of the last 24 hours.*Set TRY=image\.png"):
        sample(s3)
    (tmp_path / "sign.png").write_bytes(b"png")
    assert sample(s3, str(tmp_path / "sign.png"))[:2] == (b"png", "image/png")
    for name in ("missing.png", "sign.txt"):
        with pytest.raises(DeployError, match=r"TRY: expected 1 or a file that ends in \.png"):
            sample(s3, str(tmp_path / name))
