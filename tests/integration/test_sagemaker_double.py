"""The SageMaker double implements the contracts that the stack depends on."""

import base64
import io
import json
import re
import tarfile
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError, ParamValidationError

from glassbox.aws.objects import Objects
from glassbox.errors import BadInputError, RetryableError
from local.emulator import ACCOUNT, REGION
from local.event_queue import EventQueue

ARN = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
INSTANCE = {"InstanceType": "ml.t2.medium", "InitialInstanceCount": 1}


@pytest.fixture(scope="session")
def sagemaker(embedded_aws):
    return embedded_aws.client("sagemaker")


@pytest.fixture(scope="session")
def runtime(embedded_aws):
    return embedded_aws.client("sagemaker-runtime")


@pytest.fixture(scope="session")
def bucket(embedded_aws):
    embedded_aws.client("s3").create_bucket(
        Bucket="double-data", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    return "double-data"


def make_role(aws, name, statements, service="sagemaker.amazonaws.com"):
    iam = aws.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))["Role"]
    iam.put_role_policy(
        RoleName=name,
        PolicyName="p",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
    )
    return role["Arn"]


def allow(action, resource="*", **more):
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


@pytest.fixture(scope="session")
def role(embedded_aws, bucket):
    statements = [
        allow("s3:GetObject", ["arn:aws:s3:::stub-models/*", f"arn:aws:s3:::{bucket}/*"]),
        allow("s3:ListBucket", [f"arn:aws:s3:::{bucket}", "arn:aws:s3:::stub-models"]),
        allow("s3:PutObject", [f"arn:aws:s3:::{bucket}/capture/*", f"arn:aws:s3:::{bucket}/reports/*"]),
    ]
    return make_role(embedded_aws, "double", statements)


@pytest.fixture(scope="session")
def make_model(sagemaker, role, stub_images, model_data):
    def make(name, environment=None, **container):
        sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=role,
            PrimaryContainer={
                "Image": stub_images["serving"],
                "ModelDataUrl": model_data,
                "Environment": {"VERSION": name, **(environment or {})},
                **container,
            },
        )
        return name

    return make


@pytest.fixture(scope="session")
def make_config(sagemaker, make_model, bucket):
    """Create a model and an endpoint config of one name; `capture` overrides DataCaptureConfig members."""

    def make(name, environment=None, capture=None, **more):
        make_model(name, environment)
        config = {
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": f"s3://{bucket}/capture",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {
                "JsonContentTypes": ["application/json"],
                "CsvContentTypes": ["text/csv"],
            },
        }
        variant = {"VariantName": "AllTraffic", "ModelName": name, **INSTANCE}
        sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            **{
                "ProductionVariants": [variant],
                "DataCaptureConfig": config | (capture or {}),
                **more,
            },
        )
        return name

    return make


@pytest.fixture
def make_endpoint(sagemaker, make_config, eventually):
    """Create an endpoint with a config of the same name; it is deleted after the test."""
    made = []

    def make(name, config=None, **more):
        config = config or make_config(name, **more)
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        made.append(name)
        settled(sagemaker, name, eventually)
        return name

    yield make
    for name in made:
        settled(sagemaker, name, eventually)
        sagemaker.delete_endpoint(EndpointName=name)


def settled(sagemaker, name, eventually):
    def description():
        described = sagemaker.describe_endpoint(EndpointName=name)
        return described if described["EndpointStatus"] in ("InService", "Failed") else None

    return eventually(description)


def ask(runtime, endpoint, wish=None, **more):
    response = runtime.invoke_endpoint(
        EndpointName=endpoint,
        **({"Body": json.dumps(wish or {}).encode(), "ContentType": "application/json"} | more),
    )
    return json.loads(response["Body"].read())


@pytest.fixture
def captured(embedded_aws, bucket):
    """Return the captured records of an endpoint as (key, record), ordered by key."""
    s3 = embedded_aws.client("s3")

    def read(endpoint):
        embedded_aws.control("flush")
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"capture/{endpoint}/").get("Contents", [])
        return [
            (item["Key"], json.loads(line))
            for item in listed
            for line in s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read().splitlines()
        ]

    return read


@pytest.fixture(scope="module")
def events(embedded_aws):
    """Collect all SageMaker events from now on; return those of a detail type."""
    queue = EventQueue(embedded_aws, "sagemaker-events")
    queue.add_rule({"source": ["aws.sagemaker"]})
    received = []

    def collect(detail_type, **detail):
        while messages := queue.receive():
            received.extend(json.loads(message["Body"]) for message in messages)
        return [
            event
            for event in received
            if event["detail-type"] == detail_type and detail.items() <= event["detail"].items()
        ]

    return collect


def error_of(call, *args, **kwargs):
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


# ---------------------------------------------------------------- errors


def test_errors_have_the_codes_and_texts_of_aws(sagemaker, runtime, make_config, make_endpoint):
    name = make_endpoint("errors")
    assert error_of(sagemaker.describe_endpoint, EndpointName="None") == (
        "ValidationException",
        f'Could not find endpoint "{ARN}:endpoint/none".',
    )
    assert error_of(sagemaker.update_endpoint, EndpointName=name, EndpointConfigName="none") == (
        "ValidationException",
        f'Could not find endpoint configuration "{ARN}:endpoint-config/none".',
    )
    with pytest.raises(ClientError, match=f'Cannot create already existing model "{ARN}:model/errors"'):
        make_config("errors")
    assert error_of(sagemaker.create_endpoint, EndpointName=name, EndpointConfigName=name) == (
        "ValidationException",
        f'Cannot create already existing endpoint "{ARN}:endpoint/errors".',
    )
    assert error_of(runtime.invoke_endpoint, EndpointName="none", Body=b"x") == (
        "ValidationError",
        f"Endpoint none of account {ACCOUNT} not found.",
    )
    assert error_of(sagemaker.create_training_job, **TRAINING_JOB)[0] == "UnknownOperationException"
    with pytest.raises(ParamValidationError):
        sagemaker.create_endpoint(EndpointName=name)


TRAINING_JOB = {
    "TrainingJobName": "t",
    "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/double",
    "AlgorithmSpecification": {"TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": "s3://b/p"},
    "ResourceConfig": {},
    "StoppingCondition": {},
}


def test_refuses_an_invalid_request_with_each_invalid_member(sagemaker, make_model):
    make_model("shape")
    variant = {"VariantName": "bad_name", "ModelName": "shape", "InitialVariantWeight": 1, **INSTANCE}
    code, message = error_of(
        sagemaker.create_endpoint_config, EndpointConfigName="-bad", ProductionVariants=[variant]
    )
    assert code == "ValidationException"
    assert message.startswith("2 validation errors detected: Value '-bad' at 'endpointConfigName' failed")
    assert "Value 'bad_name' at 'productionVariants.1.member.variantName'" in message


def test_a_model_needs_its_data_an_ecr_image_and_a_role_that_trusts_sagemaker(
    embedded_aws, sagemaker, make_model, model_data, stub_images
):
    with pytest.raises(
        ClientError, match=r"Could not find model data at s3://stub-models/none/model\.tar\.gz"
    ):
        make_model("m1", ModelDataUrl="s3://stub-models/none/model.tar.gz")
    embedded_aws.client("s3").create_bucket(
        Bucket="not-ours", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    with pytest.raises(ClientError, match=r'Could not access model data at s3://not-ours/m.*"s3:GetObject"'):
        make_model("m1", ModelDataUrl="s3://not-ours/m")
    with pytest.raises(ClientError, match='Using non-ECR image "python:3"'):
        make_model("m1", Image="python:3")
    wrong = make_role(embedded_aws, "lambda-only", [allow("s3:*")], service="lambda.amazonaws.com")
    container = {"Image": stub_images["serving"], "ModelDataUrl": model_data}
    code, message = error_of(
        sagemaker.create_model, ModelName="m1", ExecutionRoleArn=wrong, PrimaryContainer=container
    )
    assert code == "ValidationException"
    assert message.startswith(f"Could not assume role {wrong}.")
    assert not sagemaker.list_models(NameContains="m1")["Models"]


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("application/vnd.oci.image.manifest.v1+json", True),
        ("application/vnd.oci.image.index.v1+json", True),
        ("application/vnd.docker.distribution.manifest.list.v2+json", True),
        ("application/vnd.docker.distribution.manifest.v2+json", False),
    ],
)
def test_refuses_an_image_with_an_oci_manifest(embedded_aws, sagemaker, role, stub_images, kind, refused):
    ecr, image = embedded_aws.client("ecr"), stub_images["serving"]
    ecr.create_repository(repositoryName="stub-serving")
    try:
        pushed = ecr.put_image(
            repositoryName="stub-serving", imageTag="1", imageManifest="{}", imageManifestMediaType=kind
        )
        digest = pushed["image"]["imageId"]["imageDigest"]
        for named in (image, f"{image.rpartition(':')[0]}@{digest}"):
            request = {"ExecutionRoleArn": role, "PrimaryContainer": {"Image": named}}
            if refused:
                assert error_of(sagemaker.create_model, ModelName="oci", **request) == (
                    "ValidationException",
                    f"Unsupported manifest media type {kind} for image {named}. "
                    "Ensure that valid manifest media type is used for specified image.",
                )
            else:
                sagemaker.create_model(ModelName="oci", **request)
                sagemaker.delete_model(ModelName="oci")
    finally:
        ecr.delete_repository(repositoryName="stub-serving", force=True)


# ---------------------------------------------------------------- model data


def channel(uri, name="glassbox", kind="S3Prefix", compression="None"):
    source = {"S3Uri": uri, "S3DataType": kind, "CompressionType": compression}
    return {"ChannelName": name, "S3DataSource": source}


@pytest.fixture(scope="session")
def hook(embedded_aws, bucket):
    """The prefix of two objects, one of them in a folder."""
    s3 = embedded_aws.client("s3")
    s3.put_object(Bucket=bucket, Key="hook/1/start.py", Body=b"first")
    s3.put_object(Bucket=bucket, Key="hook/1/package/code.py", Body=b"second")
    s3.put_object(Bucket=bucket, Key="hook/10/other.py", Body=b"of another prefix")
    return f"s3://{bucket}/hook/1/"


@pytest.mark.parametrize("member", ["ModelDataUrl", "ModelDataSource"])
def test_mounts_additional_model_data_beside_either_model_data(
    embedded_aws, sagemaker, runtime, role, bucket, hook, model_data, stub_images, eventually, member
):
    name = f"additional-{member.lower()}"
    archive = channel(model_data, "archive", "S3Object", "Gzip")
    channels = [channel(hook), archive, channel(f"{hook}start.py", "v1.0_file", "S3Object")]
    data = model_data if member == "ModelDataUrl" else {"S3DataSource": archive["S3DataSource"]}
    container = {
        "Image": stub_images["serving"],
        member: data,
        "AdditionalModelDataSources": channels,
        "Environment": {
            "PYTHONPATH": "/opt/ml/additional-model-data-sources/glassbox:/opt/mlx:/opt/ml/model"
        },
    }
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    described = sagemaker.describe_model(ModelName=name)["PrimaryContainer"]
    assert described == container
    variant = {"VariantName": "AllTraffic", "ModelName": name, **INSTANCE}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    try:
        assert settled(sagemaker, name, eventually)["EndpointStatus"] == "InService"
        mounted = ask(runtime, name, {"tree": "additional-model-data-sources"})
        assert mounted == {
            "glassbox/start.py": ["first", 0o444],
            "glassbox/package/code.py": ["second", 0o444],
            "archive/model/model.pt": ["", 0o444],
            "archive/code/inference.py": ["", 0o444],
            "v1.0_file/start.py": ["first", 0o444],
        }
        assert set(ask(runtime, name, {"tree": "model"})) == {"model/model.pt", "code/inference.py"}
        seen = ask(runtime, name, {"environment": 1})
        assert seen["PYTHONPATH"] == (
            f"{seen['OPT_ML']}/additional-model-data-sources/glassbox:/opt/mlx:{seen['OPT_ML']}/model"
        )
    finally:
        sagemaker.delete_endpoint(EndpointName=name)


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([channel("s3://double-data/hook/1/", "a b")], "channelName.*regular expression pattern"),
        ([channel("s3://double-data/hook/1/", "..")], "Channel name .. in .* is not a valid folder name"),
        ([channel("s3://double-data/hook/1/")] * 2, "Channel name glassbox in .* is not unique"),
        (
            [channel("s3://double-data/hook/1/", f"c{i}") for i in range(6)],
            "additionalModelDataSources.*length between 0 and 5",
        ),
        ([channel("s3://double-data/hook/1")], "must end with a forward slash"),
        ([channel("s3://double-data/hook/1/", compression="Gzip")], "Gzip is not supported with .* S3Prefix"),
        ([channel("s3://double-data/hook/1/", kind="Folder")], "satisfy enum value set"),
        ([channel("s3://double-data/hook/2/")], "Could not find model data at s3://double-data/hook/2/"),
        (
            [channel("s3://double-data/none", kind="S3Object")],
            "Could not find model data at s3://double-data/n",
        ),
    ],
)
def test_refuses_invalid_additional_model_data(sagemaker, make_model, hook, sources, reason):
    with pytest.raises(ClientError, match=reason):
        make_model("additional-refused", AdditionalModelDataSources=sources)
    assert not sagemaker.list_models(NameContains="additional-refused")["Models"]


@pytest.mark.parametrize("missing", ["s3:ListBucket", "s3:GetObject"])
def test_additional_model_data_need_a_role_that_lists_and_gets_the_prefix(
    embedded_aws, sagemaker, bucket, hook, stub_images, missing
):
    rights = {
        "s3:ListBucket": allow(
            "s3:ListBucket", f"arn:aws:s3:::{bucket}", Condition={"StringLike": {"s3:prefix": "hook/1/*"}}
        ),
        "s3:GetObject": allow("s3:GetObject", f"arn:aws:s3:::{bucket}/hook/1/*"),
    }
    container = {"Image": stub_images["serving"], "AdditionalModelDataSources": [channel(hook)]}
    name = f"channel-{missing[3:]}"
    complete = make_role(embedded_aws, name, list(rights.values()))
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=complete, PrimaryContainer=container)
    lacking = make_role(embedded_aws, f"{name}-less", [v for k, v in rights.items() if k != missing])
    with pytest.raises(ClientError, match=f"Could not access model data at {hook}.*{lacking}"):
        sagemaker.create_model(ModelName=f"{name}-less", ExecutionRoleArn=lacking, PrimaryContainer=container)


def test_objects_that_are_no_file_names_or_clash_fail_the_endpoint(
    embedded_aws, sagemaker, bucket, make_model, eventually
):
    s3 = embedded_aws.client("s3")
    for number, (keys, reason) in enumerate(
        [(("a/../b",), "is not a file name"), (("a/",), "is not a file name"), (("a", "a/b"), "clashes")]
    ):
        prefix, name = f"odd/{number}/", f"odd-{number}"
        for key in keys:
            s3.put_object(Bucket=bucket, Key=prefix + key, Body=b"x")
        make_model(name, AdditionalModelDataSources=[channel(f"s3://{bucket}/{prefix}")])
        variant = {"VariantName": "AllTraffic", "ModelName": name, **INSTANCE}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        described = settled(sagemaker, name, eventually)
        assert described["EndpointStatus"] == "Failed"
        assert reason in described["FailureReason"]
        sagemaker.delete_endpoint(EndpointName=name)


def test_a_model_overrides_the_images_own_environment(
    sagemaker, runtime, make_model, make_endpoint, stub_images
):
    image = stub_images["serving"].replace("stub-serving", "stub-environment")
    make_model("image-environment", {"PYTHONPATH": "/model"}, Image=image)
    variant = {"VariantName": "AllTraffic", "ModelName": "image-environment", **INSTANCE}
    sagemaker.create_endpoint_config(EndpointConfigName="image-environment", ProductionVariants=[variant])
    seen = ask(runtime, make_endpoint("image-environment", "image-environment"), {"environment": 1})
    assert (seen["STAGE"], seen["PYTHONPATH"]) == ("image", "/model")
    described = sagemaker.describe_model(ModelName="image-environment")["PrimaryContainer"]
    assert described["Environment"] == {"VERSION": "image-environment", "PYTHONPATH": "/model"}


# ---------------------------------------------------------------- IAM


@pytest.fixture
def as_user(embedded_aws):
    """Create a client with these permissions only."""
    made = []

    def client(service, *statements):
        iam, name = embedded_aws.client("iam"), f"user-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=name)
        made.append(name)
        if statements:
            document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return embedded_aws.session.client(
            service,
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
        )

    return client


@pytest.mark.parametrize(("listing", "answered"), [(False, 403), (True, 404)])
def test_a_missing_object_is_404_with_list_bucket_only(as_user, bucket, embedded_aws, listing, answered):
    embedded_aws.client("s3").put_object(Bucket=bucket, Key="there", Body=b"1")
    rights = [allow("s3:GetObject", f"arn:aws:s3:::{bucket}/*")]
    s3 = as_user("s3", *rights, *([allow("s3:ListBucket", f"arn:aws:s3:::{bucket}")] if listing else []))
    assert s3.get_object(Bucket=bucket, Key="there")["Body"].read() == b"1"
    for call in (s3.get_object, s3.head_object):
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, Key="missing")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == answered
    code = error_of(s3.get_object, Bucket=bucket, Key="missing")[0]
    assert code == {403: "AccessDenied", 404: "NoSuchKey"}[answered]


def test_refuses_invalid_container_definitions(sagemaker, role, stub_images, model_data):
    container = {"Image": stub_images["serving"], "ModelDataUrl": model_data}
    package = f"{ARN}:model-package/signs/3"
    source = {"S3DataSource": {"S3Uri": model_data, "S3DataType": "S3Object", "CompressionType": "Gzip"}}
    for members, message in (
        (
            {"PrimaryContainer": {"ModelPackageName": package, "Environment": {"A": "1"}}},
            "Environment variable map cannot be specified both at Model Package {} and Model {A=1}.",
        ),
        ({"PrimaryContainer": {"ModelPackageName": package, **container}}, "together with ModelPackageName"),
        (
            {"PrimaryContainer": {**container, "ModelDataSource": source}},
            "either ModelDataUrl or ModelDataSource",
        ),
        ({"PrimaryContainer": container, "Containers": [container]}, "either PrimaryContainer or Containers"),
        ({}, "either PrimaryContainer or Containers"),
    ):
        with pytest.raises(ClientError) as caught:
            sagemaker.create_model(ModelName="refused", ExecutionRoleArn=role, **members)
        assert caught.value.response["Error"]["Code"] == "ValidationException"
        assert message in caught.value.response["Error"]["Message"]


def test_enforces_the_instance_quota_and_an_update_needs_twice_the_instances(
    embedded_aws, sagemaker, make_config, make_endpoint
):
    name = "ml.c5.9xlarge"
    variant = {"VariantName": "AllTraffic", "InitialInstanceCount": 2, "InstanceType": name}
    config = make_config("quota", ProductionVariants=[{**variant, "ModelName": "quota"}])
    embedded_aws.control("quotas", **{name: 1})
    try:
        with pytest.raises(ClientError) as caught:
            sagemaker.create_endpoint(EndpointName="quota", EndpointConfigName=config)
        assert caught.value.response["Error"]["Code"] == "ResourceLimitExceeded"
        assert (
            f"'{name} for endpoint usage' is 1 Instances, with current utilization of 0 Instances and a request delta "
            "of 2 Instances"
        ) in str(caught.value)
        embedded_aws.control("quotas", **{name: 3})
        make_endpoint("quota", config)
        with pytest.raises(ClientError, match="current utilization of 2 Instances and a request delta of 2"):
            sagemaker.update_endpoint(EndpointName="quota", EndpointConfigName=config)
        assert sagemaker.describe_endpoint(EndpointName="quota")["EndpointStatus"] == "InService"
        pages = embedded_aws.client("service-quotas").get_paginator("list_service_quotas")
        listed = [quota for page in pages.paginate(ServiceCode="sagemaker") for quota in page["Quotas"]]
        assert len({quota["QuotaName"] for quota in listed}) == len(listed) > 100
        assert {q["Value"] for q in listed if q["QuotaName"] == f"{name} for endpoint usage"} == {3.0}
    finally:
        embedded_aws.control("quotas")


def test_refuses_a_bucket_of_an_unexpected_owner(embedded_aws, bucket):
    s3 = embedded_aws.client("s3")
    s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=ACCOUNT)
    with pytest.raises(ClientError) as caught:
        s3.head_bucket(Bucket=bucket, ExpectedBucketOwner="999999999999")
    assert caught.value.response["Error"]["Code"] == "403"


def test_update_endpoint_needs_the_endpoint_and_the_config(as_user, make_endpoint, make_config):
    name, config = make_endpoint("iam-update"), make_config("iam-update-b")
    endpoint_only = as_user("sagemaker", allow("sagemaker:UpdateEndpoint", f"{ARN}:endpoint/{name}"))
    code, message = error_of(endpoint_only.update_endpoint, EndpointName=name, EndpointConfigName=config)
    assert code == "AccessDeniedException"
    assert re.fullmatch(
        r"User: arn:aws:iam::\d{12}:user/user-\w+ is not authorized to perform: sagemaker:UpdateEndpoint on resource: "
        rf"{ARN}:endpoint-config/{config} because no identity-based policy allows the sagemaker:UpdateEndpoint action",
        message,
    )
    resources = [f"{ARN}:endpoint/{name}", f"{ARN}:endpoint-config/{config}"]
    both = as_user("sagemaker", allow("sagemaker:UpdateEndpoint", resources))
    assert both.update_endpoint(EndpointName=name, EndpointConfigName=config)["EndpointArn"].endswith(name)


def test_update_endpoint_to_encrypted_volumes_needs_a_grant_on_the_key(as_user, make_endpoint, make_config):
    """CreateEndpointConfig, KmsKeyId: the caller of UpdateEndpoint needs access to the key."""
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11"
    name, config = make_endpoint("iam-key"), make_config("iam-key-b", KmsKeyId=key)
    update = allow("sagemaker:UpdateEndpoint")
    request = {"EndpointName": name, "EndpointConfigName": config}
    describe, grant = allow("kms:DescribeKey", key), allow("kms:CreateGrant", key)
    users_only = grant | {"Condition": {"Bool": {"kms:GrantIsForAWSResource": "false"}}}
    for statements, refused in (
        ([update], "kms:DescribeKey"),
        ([update, describe], "kms:CreateGrant"),
        ([update, describe, users_only], "kms:CreateGrant"),
        ([update, describe, grant | {"Resource": f"{key}0"}], "kms:CreateGrant"),
    ):
        code, message = error_of(as_user("sagemaker", *statements).update_endpoint, **request)
        assert code == "AccessDeniedException"
        assert f"is not authorized to perform: {refused} on resource: {key}" in message
    for_service = grant | {"Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}}
    allowed = as_user("sagemaker", update, describe, for_service)
    assert allowed.update_endpoint(**request)["EndpointArn"].endswith(name)


def test_invoke_endpoint_is_allowed_by_endpoint(as_user, make_endpoint):
    make_endpoint("iam-a")
    make_endpoint("iam-b")
    runtime = as_user("sagemaker-runtime", allow("sagemaker:InvokeEndpoint", f"{ARN}:endpoint/iam-a"))
    assert ask(runtime, "iam-a")["version"] == "iam-a"
    assert error_of(ask, runtime, "iam-b")[0] == "AccessDeniedException"
    denied = as_user(
        "sagemaker-runtime", allow("sagemaker:*"), allow("sagemaker:InvokeEndpoint") | {"Effect": "Deny"}
    )
    assert "with an explicit deny" in error_of(ask, denied, "iam-a")[1]


def test_create_model_needs_pass_role_for_sagemaker(as_user, role, stub_images):
    request = {"ExecutionRoleArn": role, "PrimaryContainer": {"Image": stub_images["serving"]}}
    create = allow("sagemaker:CreateModel")
    condition = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    without = as_user("sagemaker", create)
    assert "iam:PassRole" in error_of(without.create_model, ModelName="pass", **request)[1]
    elsewhere = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}
    wrong = as_user("sagemaker", create, allow("iam:PassRole", role, Condition=elsewhere))
    assert "iam:PassRole" in error_of(wrong.create_model, ModelName="pass", **request)[1]
    right = as_user("sagemaker", create, allow("iam:PassRole", role, Condition=condition))
    assert right.create_model(ModelName="pass", **request)["ModelArn"] == f"{ARN}:model/pass"


def test_refuses_an_invalid_signature(embedded_aws, as_user, make_endpoint):
    make_endpoint("signed")
    honest = as_user("sagemaker-runtime", allow("sagemaker:InvokeEndpoint"))
    assert ask(honest, "signed")["version"] == "signed"
    key = honest._request_signer._credentials.access_key
    forger = embedded_aws.session.client(
        "sagemaker-runtime", aws_access_key_id=key, aws_secret_access_key="wrong"
    )
    assert "signature" in error_of(ask, forger, "signed")[1]


# ---------------------------------------------------------------- hosting


def test_a_container_gets_the_environment_of_the_hosting_contract(
    embedded_aws, make_endpoint, make_config, runtime
):
    name = make_endpoint("contract", make_config("contract", {"GREETING": "hello"}))
    environment = ask(runtime, name, {"environment": True})
    assert environment["GREETING"] == "hello"
    assert environment["AWS_ENDPOINT_URL"] == embedded_aws.endpoint_url
    assert environment["AWS_REGION"] == environment["AWS_DEFAULT_REGION"] == REGION
    assert environment["AWS_ACCESS_KEY_ID"].startswith("ASIA")  # the model's role, not root
    assert environment["OPT_ML"].endswith("/opt/ml")
    assert "VIRTUAL_ENV" not in environment
    [log] = (embedded_aws.directory / "logs" / "endpoints" / name).iterdir()
    assert "model files: ['inference.py', 'model.pt']" in log.read_text()


def test_passes_headers_to_the_container_and_back(make_endpoint, runtime):
    name = make_endpoint("headers")
    response = runtime.invoke_endpoint(
        EndpointName=name,
        Body=json.dumps({"echo": True}),
        ContentType="application/json",
        InferenceId="id-1",
        CustomAttributes="a=b,c",
    )
    seen = json.loads(response["Body"].read())
    assert seen["X-Amzn-SageMaker-Inference-Id"] == "id-1"
    assert seen["X-Amzn-SageMaker-Custom-Attributes"] == "a=b,c"
    assert response["InvokedProductionVariant"] == "AllTraffic"
    assert response["CustomAttributes"] == "served-by=stub"
    assert response["ContentType"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(("status", "kind"), [(400, "client"), (500, "server")])
def test_a_model_error_contains_the_containers_response(make_endpoint, runtime, status, kind):
    name = make_endpoint(f"model-error-{status}")
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        ask(runtime, name, {"status": status, "text": "no image"})
    response = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert (response["OriginalStatusCode"], response["OriginalMessage"]) == (status, "no image")
    assert response["Error"]["Message"].startswith(
        f'Received {kind} error ({status}) from primary with message "no image". See https://'
    )


def test_refuses_requests_over_6_mebibytes(make_endpoint, runtime):
    name = make_endpoint("large")
    limit = 6 * 1024 * 1024
    assert ask(runtime, name, Body=b"x" * limit, ContentType="application/x-npy")["bytes"] == limit
    with pytest.raises(ClientError) as caught:
        ask(runtime, name, Body=b"x" * (limit + 1), ContentType="application/x-npy")
    assert caught.value.response["Error"]["Code"] == "413"


def test_variants_get_traffic_by_weight_or_by_name(sagemaker, make_model, make_endpoint, runtime):
    variants = [
        {"VariantName": v, "ModelName": make_model(f"weight-{v}"), "InitialVariantWeight": w, **INSTANCE}
        for v, w in (("a", 3), ("b", 1))
    ]
    sagemaker.create_endpoint_config(EndpointConfigName="weights", ProductionVariants=variants)
    name = make_endpoint("weights", "weights")
    versions = [ask(runtime, name)["version"] for _ in range(200)]
    assert 110 < versions.count("weight-a") < 190  # 150 expected, 6.5 standard deviations to either side
    assert ask(runtime, name, TargetVariant="b")["version"] == "weight-b"
    code, message = error_of(ask, runtime, name, TargetVariant="c")
    assert code == "ValidationError"
    assert "c" in message


def test_replaces_an_instance_that_ends(make_endpoint, make_config, runtime, eventually):
    variant = {"VariantName": "AllTraffic", "ModelName": "two", **INSTANCE, "InitialInstanceCount": 2}
    name = make_endpoint("two", make_config("two", ProductionVariants=[variant]))
    pids = {ask(runtime, name)["pid"] for _ in range(40)}
    assert len(pids) == 2
    with pytest.raises(runtime.exceptions.ModelError):
        ask(runtime, name, {"die": True})

    def after():
        now = {ask(runtime, name)["pid"] for _ in range(20)}
        return len(now) == 2 and now != pids

    eventually(after)


# ---------------------------------------------------------------- updates


def test_an_update_can_retain_the_scaled_instance_count_and_weight(
    sagemaker, make_endpoint, make_config, eventually
):
    endpoint, other = make_endpoint("scaled"), make_config("scaled-other")

    def counts(**update):
        if update:
            sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=other, **update)
        (variant,) = settled(sagemaker, endpoint, eventually)["ProductionVariants"]
        return variant["CurrentInstanceCount"], variant["CurrentWeight"]

    assert counts() == (1, 1.0)
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[
            {"VariantName": "AllTraffic", "DesiredInstanceCount": 2, "DesiredWeight": 0.5}
        ],
    )
    assert counts() == (2, 0.5)
    assert counts(RetainAllVariantProperties=True) == (2, 0.5)
    excluded = [{"VariantPropertyType": "DesiredInstanceCount"}]
    assert counts(RetainAllVariantProperties=True, ExcludeRetainedVariantProperties=excluded) == (1, 0.5)
    assert counts(RetainAllVariantProperties=False) == (1, 1.0)


def test_no_request_fails_during_an_update(
    sagemaker, runtime, make_endpoint, make_config, events, eventually
):
    name, after = make_endpoint("swap"), make_config("swap-b", {"SLOW_START": "0.7"})
    answers, failures, stop = [], [], threading.Event()

    def traffic():
        while not stop.is_set():
            try:
                answers.append(ask(runtime, name, {"sleep": 0.01})["version"])
            except ClientError as error:
                failures.append(str(error))

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=after)
    described = sagemaker.describe_endpoint(EndpointName=name)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("Updating", "swap")
    code, message = error_of(sagemaker.update_endpoint, EndpointName=name, EndpointConfigName=after)
    assert (code, message) == (
        "ValidationException",
        f'Cannot update in-progress endpoint "{ARN}:endpoint/swap".',
    )
    described = settled(sagemaker, name, eventually)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", after)
    assert failures == []
    turn = answers.index(after)
    assert turn > 20  # the old model served while the new one started
    assert set(answers[:turn]) == {"swap"}
    assert set(answers[turn + 8 :]) == {after}
    eventually(lambda: len(events("SageMaker Endpoint State Change", EndpointName=name)) >= 4)


def test_the_old_model_finishes_a_long_request(sagemaker, runtime, make_endpoint, make_config, eventually):
    name, after = make_endpoint("drain"), make_config("drain-b")
    answer = []
    slow = threading.Thread(target=lambda: answer.append(ask(runtime, name, {"sleep": 1.5})["version"]))
    slow.start()
    time.sleep(0.2)
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=after)
    assert settled(sagemaker, name, eventually)["EndpointConfigName"] == after
    assert ask(runtime, name)["version"] == after
    slow.join()
    assert answer == ["drain"]


def test_keeps_the_old_model_in_service_when_the_new_one_does_not_start(
    sagemaker, runtime, make_endpoint, make_config, events, eventually
):
    name, broken = make_endpoint("rollback"), make_config("rollback-b", {"FAIL": "weights are torn"})
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=broken)
    described = settled(sagemaker, name, eventually)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "rollback")
    assert described["FailureReason"].startswith(
        "The primary container for production variant AllTraffic did not pass the ping health check. "
    )
    assert "cannot load the model: weights are torn" in described["FailureReason"]
    assert ask(runtime, name)["version"] == "rollback"
    statuses = eventually(
        lambda: [
            e["detail"]["EndpointStatus"]
            for e in events("SageMaker Endpoint State Change", EndpointName=name)
        ]
    )
    eventually(lambda: len(events("SageMaker Endpoint State Change", EndpointName=name)) == 4)
    assert set(statuses) <= {"CREATING", "IN_SERVICE", "UPDATING"}


def test_the_endpoint_is_failed_when_its_first_model_does_not_start(
    sagemaker, runtime, make_endpoint, make_config
):
    name = make_endpoint("stillborn", make_config("stillborn", {"FAIL": "no memory"}))
    assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Failed"
    assert error_of(ask, runtime, name)[0] == "ValidationError"


def test_reports_unknown_images_and_malicious_archives(embedded_aws, sagemaker, make_model, make_endpoint):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../outside"))
    s3 = embedded_aws.client("s3")
    s3.put_object(Bucket="stub-models", Key="evil/model.tar.gz", Body=buffer.getvalue())
    s3.put_object(Bucket="stub-models", Key="no/model.tar.gz", Body=b"no archive")
    unknown = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/unknown:1"
    for name, container, reason in (
        ("image", {"Image": unknown}, "Please make sure all images included in the model"),
        (
            "evil",
            {"ModelDataUrl": "s3://stub-models/evil/model.tar.gz"},
            "Failed to extract model data archive",
        ),
        (
            "torn",
            {"ModelDataUrl": "s3://stub-models/no/model.tar.gz"},
            "Failed to extract model data archive",
        ),
    ):
        variant = {"VariantName": "v", "ModelName": make_model(name, **container), **INSTANCE}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        make_endpoint(name, name)
        described = sagemaker.describe_endpoint(EndpointName=name)
        assert described["EndpointStatus"] == "Failed"
        assert described["FailureReason"].startswith(reason)
    assert not list(embedded_aws.directory.rglob("outside"))


def test_keeps_tags_until_their_resource_is_deleted(sagemaker, role, stub_images):
    tag = {"Key": "team", "Value": "signs"}
    arn = sagemaker.create_model(
        ModelName="tagged",
        ExecutionRoleArn=role,
        PrimaryContainer={"Image": stub_images["serving"]},
        Tags=[tag],
    )["ModelArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "stage", "Value": "test"}])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [tag, {"Key": "stage", "Value": "test"}]
    sagemaker.delete_model(ModelName="tagged")
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == []


def test_deletes_an_endpoint(sagemaker, runtime, make_config, eventually):
    make_config("gone")
    sagemaker.create_endpoint(EndpointName="gone", EndpointConfigName="gone")
    settled(sagemaker, "gone", eventually)
    sagemaker.delete_endpoint(EndpointName="gone")
    assert error_of(ask, runtime, "gone")[0] == "ValidationError"
    assert error_of(sagemaker.describe_endpoint, EndpointName="gone")[1].startswith("Could not find endpoint")
    assert "gone" not in [e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"]]


def test_the_endpoint_event_has_the_documented_shape(make_endpoint, events, eventually):
    began = time.time()
    name = make_endpoint("event-shape")
    [creating, in_service] = eventually(
        lambda: (
            (found := events("SageMaker Endpoint State Change", EndpointName=name))
            and len(found) == 2
            and found
        )
    )
    assert creating["detail"]["EndpointStatus"] == "CREATING"
    assert in_service["source"] == "aws.sagemaker"
    assert in_service["resources"] == [f"{ARN}:endpoint/{name}"]
    detail = in_service["detail"]
    times = {key: detail.pop(key) for key in ("CreationTime", "LastModifiedTime")}
    assert all(began - 1 <= value / 1000 <= time.time() + 1 for value in times.values())
    assert detail == {
        "EndpointName": name,
        "EndpointArn": f"{ARN}:endpoint/{name}",
        "EndpointConfigName": name,
        "ProductionVariants": [{"DesiredWeight": 1.0, "DesiredInstanceCount": 1.0}],
        "EndpointStatus": "IN_SERVICE",
        "Tags": {},
    }


# ---------------------------------------------------------------- data capture


def test_captured_records_and_keys_have_the_documented_format(embedded_aws, make_endpoint, runtime, captured):
    name = make_endpoint("capture")
    embedded_aws.control("clock", now="2026-11-23T10:59:59.700Z")
    try:
        body = b"\x93NUMPY\x01\x00\xff"
        ask(
            runtime,
            name,
            Body=body,
            ContentType="application/x-npy",
            InferenceId="i-1",
            CustomAttributes="k=v, flag",
        )
        time.sleep(0.4)
        ask(runtime, name, {"status": 200, "text": "[\n  14\n]"})
        [(key, first), (other, second)] = captured(name)
    finally:
        embedded_aws.control("clock", offset_seconds=0)
    folder = f"capture/{name}/AllTraffic/2026/11/23"
    assert re.fullmatch(rf"{folder}/10/59-59-\d{{3}}-[0-9a-f-]{{36}}\.jsonl", key)
    assert re.fullmatch(rf"{folder}/11/00-00-\d{{3}}-[0-9a-f-]{{36}}\.jsonl", other)
    event_id = first["eventMetadata"].pop("eventId")
    assert str(uuid.UUID(event_id)) == event_id
    answer = first["captureData"]["endpointOutput"].pop("data")
    assert json.loads(answer)["bytes"] == len(body)
    assert first == {
        "captureData": {
            "endpointInput": {
                "observedContentType": "application/x-npy",
                "mode": "INPUT",
                "data": base64.b64encode(body).decode(),
                "encoding": "BASE64",
            },
            "endpointOutput": {
                "observedContentType": "application/json; charset=utf-8",
                "mode": "OUTPUT",
                "encoding": "JSON",
            },
        },
        "eventMetadata": {
            "inferenceId": "i-1",
            "customAttributes": ["k=v, flag"],
            "inferenceTime": "2026-11-23T10:59:59Z",
        },
        "eventVersion": "0",
    }
    assert second["eventMetadata"].keys() == {"eventId", "inferenceTime"}
    assert second["captureData"]["endpointOutput"]["data"] == "[\n  14\n]"
    assert second["captureData"]["endpointInput"]["encoding"] == "JSON"


def test_captures_base64_without_configured_content_types(
    sagemaker, make_config, make_endpoint, runtime, captured, bucket
):
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{bucket}/capture",
        "CaptureOptions": [{"CaptureMode": "Output"}],
    }
    make_config("plain-model")
    variant = {"VariantName": "v", "ModelName": "plain-model", **INSTANCE}
    sagemaker.create_endpoint_config(
        EndpointConfigName="base64", ProductionVariants=[variant], DataCaptureConfig=capture
    )
    name = make_endpoint("base64", "base64")
    ask(runtime, name, {"text": '{"class": 14}'})
    [(_, record)] = captured(name)
    assert record["captureData"] == {
        "endpointOutput": {
            "observedContentType": "application/json; charset=utf-8",
            "mode": "OUTPUT",
            "data": base64.b64encode(b'{"class": 14}').decode(),
            "encoding": "BASE64",
        }
    }


@pytest.mark.parametrize(("percentage", "low", "high"), [(0, 0, 0), (50, 62, 138), (100, 200, 200)])
def test_captures_the_configured_sample(make_endpoint, make_config, runtime, captured, percentage, low, high):
    name = f"sampled-{percentage}"
    make_endpoint(name, make_config(name, capture={"InitialSamplingPercentage": percentage}))
    for _ in range(200):
        ask(runtime, name)
    assert low <= len(captured(name)) <= high  # at 50 %: 100 expected, 5.4 standard deviations to either side


def test_captures_failed_requests_and_nothing_when_disabled(make_endpoint, make_config, runtime, captured):
    name = make_endpoint("errors-captured")
    with pytest.raises(runtime.exceptions.ModelError):
        ask(runtime, name, {"status": 400, "text": '{"message": "no image"}'})
    [(_, record)] = captured(name)
    assert record["captureData"]["endpointOutput"]["data"] == '{"message": "no image"}'
    make_endpoint("uncaptured", make_config("uncaptured", capture={"EnableCapture": False}))
    ask(runtime, "uncaptured")
    assert captured("uncaptured") == []


def test_capture_needs_the_write_permission_of_the_models_role(
    embedded_aws, make_endpoint, make_config, runtime, eventually
):
    make_config("forbidden", capture={"DestinationS3Uri": "s3://double-data/elsewhere"})
    name = make_endpoint("forbidden", "forbidden")
    assert ask(runtime, name)["version"] == "forbidden"  # the response is not affected
    eventually(lambda: "forbidden: lost 1 captured records" in embedded_aws.log.read_text())
    assert "is not authorized to perform: s3:PutObject" in embedded_aws.log.read_text()


def test_captures_the_shadow_variant_and_discards_its_response(
    sagemaker, make_model, make_endpoint, make_config, runtime, captured, eventually
):
    shadow = {"VariantName": "shadow", "ModelName": make_model("the-shadow"), **INSTANCE}
    name = make_endpoint("shadowed", make_config("shadowed", ShadowProductionVariants=[shadow]))
    assert {ask(runtime, name, InferenceId=f"s-{n}")["version"] for n in range(5)} == {"shadowed"}
    records = eventually(lambda: (found := captured(name)) and len(found) == 10 and found)
    ids = {"AllTraffic": set(), "shadow": set()}
    for key, record in records:
        ids[key.split("/")[2]].add(record["eventMetadata"]["inferenceId"])
    assert ids["AllTraffic"] == ids["shadow"] == {f"s-{n}" for n in range(5)}
    assert (
        sagemaker.describe_endpoint(EndpointName=name)["ShadowProductionVariants"][0]["VariantName"]
        == "shadow"
    )


# ---------------------------------------------------------------- processing jobs


@pytest.fixture
def job_ended(sagemaker, eventually):
    """Returns the description of a job once it has ended."""

    def ended(name):
        def description():
            described = sagemaker.describe_processing_job(ProcessingJobName=name)
            return (
                described if described["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped") else None
            )

        return eventually(description)

    return ended


@pytest.fixture
def run_job(sagemaker, role, stub_images, bucket, embedded_aws, job_ended):
    """Run a job on capture lines and return its description at its end."""

    def run(name, environment=None, *, wait=True, **more):
        root = "/opt/ml/processing"
        s3 = embedded_aws.client("s3")
        s3.put_object(Bucket=bucket, Key=f"in/{name}/a/1.jsonl", Body=b"{}\n{}\n")
        s3.put_object(Bucket=bucket, Key=f"in/{name}/b/2.jsonl", Body=b"{}\n")
        source = {"S3Uri": f"s3://{bucket}/in/{name}", "LocalPath": f"{root}/input/endpoint"}
        target = {"S3Uri": f"s3://{bucket}/reports/{name}", "LocalPath": f"{root}/output"}
        request = {
            "ProcessingJobName": name,
            "RoleArn": role,
            "AppSpecification": {"ImageUri": stub_images["monitor"]},
            "Environment": {"sagemaker_endpoint_name": "traffic-signs", **(environment or {})},
            "ProcessingInputs": [
                {
                    "InputName": "capture",
                    "S3Input": {**source, "S3DataType": "S3Prefix", "S3InputMode": "File"},
                }
            ],
            "ProcessingOutputConfig": {
                "Outputs": [{"OutputName": "report", "S3Output": {**target, "S3UploadMode": "EndOfJob"}}]
            },
            "ProcessingResources": {
                "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 20}
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": 1800},
        }
        sagemaker.create_processing_job(**(request | more))
        return job_ended(name) if wait else None

    return run


def test_a_job_reads_inputs_and_writes_outputs_and_message(run_job, embedded_aws, bucket, events, eventually):
    message = "CompletedWithViolations: Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold\n"
    job = run_job("good", {"MESSAGE": message})
    assert job["ProcessingJobStatus"] == "Completed"
    assert job["ExitMessage"] == message
    s3 = embedded_aws.client("s3")
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="reports/good/")["Contents"]
    assert [item["Key"] for item in listed] == ["reports/good/sub/report.json"]  # not the symlink
    report = json.loads(s3.get_object(Bucket=bucket, Key=listed[0]["Key"])["Body"].read())
    assert report["lines"] == 3
    assert report["environment"]["sagemaker_endpoint_name"] == "traffic-signs"
    assert report["hosts"] == ["algo-1"]
    found = eventually(
        lambda: (
            (e := events("SageMaker Processing Job State Change", ProcessingJobName="good"))
            and len(e) == 2
            and e
        )
    )
    assert [e["detail"]["ProcessingJobStatus"] for e in found] == ["InProgress", "Completed"]


def test_the_job_event_has_the_captured_shape(run_job, role, stub_images, bucket, events, eventually):
    began = time.time()
    job = run_job("shape", {"MESSAGE": "Completed: fine"})
    [event] = eventually(
        lambda: events(
            "SageMaker Processing Job State Change",
            ProcessingJobName="shape",
            ProcessingJobStatus="Completed",
        )
    )
    assert event["resources"] == [job["ProcessingJobArn"]]
    detail = event["detail"]
    for member in ("ProcessingEndTime", "ProcessingStartTime", "LastModifiedTime", "CreationTime"):
        assert isinstance(moment := detail.pop(member), int)
        assert began - 1 <= moment / 1000 <= time.time() + 1
    assert detail == {
        "SdkResponseMetadata": "",
        "SdkHttpMetadata": "",
        "ProcessingInputs": [
            {
                "InputName": "capture",
                "AppManaged": "False",
                "S3Input": {
                    "S3Uri": f"s3://{bucket}/in/shape",
                    "LocalPath": "/opt/ml/processing/input/endpoint",
                    "S3DataType": "S3_PREFIX",
                    "S3InputMode": "FILE",
                    "S3DataDistributionType": "FULLYREPLICATED",
                    "S3CompressionType": "",
                },
                "DatasetDefinition": "",
            }
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "report",
                    "S3Output": {
                        "S3Uri": f"s3://{bucket}/reports/shape",
                        "LocalPath": "/opt/ml/processing/output",
                        "S3UploadMode": "END_OF_JOB",
                    },
                    "FeatureStoreOutput": "",
                    "AppManaged": "False",
                }
            ],
            "KmsKeyId": "",
        },
        "ProcessingJobName": "shape",
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": "ml.m5.large",
                "VolumeSizeInGB": 20,
                "VolumeKmsKeyId": "",
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 1800},
        "AppSpecification": {
            "ImageUri": stub_images["monitor"],
            "ContainerEntrypoint": "",
            "ContainerArguments": "",
        },
        "Environment": {"sagemaker_endpoint_name": "traffic-signs", "MESSAGE": "Completed: fine"},
        "NetworkConfig": {
            "EnableInterContainerTrafficEncryption": "False",
            "EnableNetworkIsolation": "False",
            "VpcConfig": "",
        },
        "RoleArn": role,
        "ExperimentConfig": {
            "ExperimentName": "",
            "TrialName": "",
            "TrialComponentDisplayName": "",
            "RunName": "",
        },
        "ProcessingJobArn": f"{ARN}:processing-job/shape",
        "ProcessingJobStatus": "Completed",
        "ExitMessage": "Completed: fine",
        "FailureReason": "",
        "LastModifiedBy": "",
        "CreatedBy": "",
        "MonitoringScheduleArn": "",
        "AutoMLJobArn": "",
        "TrainingJobArn": "",
        "Tags": {},
    }


def test_a_job_with_an_exit_code_fails_and_keeps_its_message(run_job):
    job = run_job("bad", {"EXIT": "3", "MESSAGE": "THRESHOLD is missing"})
    assert (job["ProcessingJobStatus"], job["ExitMessage"]) == ("Failed", "THRESHOLD is missing")
    assert job["FailureReason"] == "AlgorithmError: See job logs for more information, exit code: 3"


def test_the_exit_message_is_at_most_1_kibibyte_of_utf8(run_job):
    long = run_job("long", {"MESSAGE": "é" + "x" * 253, "EXIT": "0"})
    assert long["ExitMessage"] == "é" + "x" * 253
    latin = run_job("latin", {"MESSAGE": "é and more", "ENCODING": "latin-1"})
    assert latin["ProcessingJobStatus"] == "Failed"
    assert "UTF-8" in latin["FailureReason"]


def _by_manifest(uri):
    source = {"S3Uri": uri, "LocalPath": "/opt/ml/processing/input/endpoint"}
    return [{"InputName": "c", "S3Input": {**source, "S3DataType": "ManifestFile", "S3InputMode": "File"}}]


def test_a_manifest_lists_the_files_of_a_job(run_job, embedded_aws, bucket):
    s3, uri = embedded_aws.client("s3"), f"s3://{bucket}/in/manifest.json"
    for name in ("a/1", "a/2", "b/1"):
        s3.put_object(Bucket=bucket, Key=f"in/listed/{name}.jsonl", Body=b"{}\n")

    def run(name, manifest, **more):
        s3.put_object(Bucket=bucket, Key="in/manifest.json", Body=json.dumps(manifest).encode())
        return run_job(name, ProcessingInputs=_by_manifest(uri), **more)

    prefix = {"prefix": f"s3://{bucket}/in/listed/"}
    assert run("by-manifest", [prefix, "a/1.jsonl", "b/1.jsonl"])["ProcessingJobStatus"] == "Completed"
    report = s3.get_object(Bucket=bucket, Key="reports/by-manifest/sub/report.json")["Body"].read()
    assert json.loads(report)["lines"] == 2
    assert "404" in run("listed-and-gone", [prefix, "a/1.jsonl", "gone.jsonl"])["FailureReason"]
    assert "not in the expected format" in run("no-manifest", ["a/1.jsonl"])["FailureReason"]


def test_a_job_fails_when_its_inputs_exceed_the_volume(run_job, embedded_aws, bucket):
    """The manifest lists a file of 101 MB ten times; the volume has 1 GB."""
    s3, uri = embedded_aws.client("s3"), f"s3://{bucket}/in/full.json"
    s3.put_object(Bucket=bucket, Key="in/full/0.jsonl", Body=bytes(101_000_000))
    manifest = [{"prefix": f"s3://{bucket}/in/full/"}, *["0.jsonl"] * 10]
    s3.put_object(Bucket=bucket, Key="in/full.json", Body=json.dumps(manifest).encode())
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
    job = run_job("full", ProcessingInputs=_by_manifest(uri), ProcessingResources={"ClusterConfig": cluster})
    s3.delete_object(Bucket=bucket, Key="in/full/0.jsonl")
    assert "No space left on device" in job["FailureReason"]


def test_a_missing_object_is_a_bad_input_with_list_bucket_only(embedded_aws, bucket):
    def read(name, *statements):
        arn = make_role(embedded_aws, name, [allow("s3:GetObject", f"arn:aws:s3:::{bucket}/*"), *statements])
        given = embedded_aws.control("credentials", role=arn, service="sagemaker.amazonaws.com")
        names = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
        keys = {f"aws_{name.lower()}": given[f"AWS_{name}"] for name in names}
        client = boto3.client("s3", endpoint_url=embedded_aws.endpoint_url, region_name=REGION, **keys)
        objects = Objects(client)
        with pytest.raises((BadInputError, RetryableError)) as error:
            objects.get(bucket, "in/nothing/of/the/kind")
        return error

    without = read("reads", allow("s3:ListBucket", f"arn:aws:s3:::{bucket}-other"))
    assert without.type is RetryableError
    assert "does not exist, or s3:GetObject is not allowed" in str(without.value)
    assert read("reads-and-lists", allow("s3:ListBucket", f"arn:aws:s3:::{bucket}")).type is BadInputError


def test_a_job_fails_with_the_reason_without_input_permission_or_image(run_job, bucket):
    nothing = {"S3Uri": f"s3://{bucket}/in/nothing", "LocalPath": "/opt/ml/processing/input"}
    given = [{"InputName": "c", "S3Input": {**nothing, "S3DataType": "S3Prefix", "S3InputMode": "File"}}]
    job = run_job("empty", ProcessingInputs=given)
    assert job["ProcessingJobStatus"] == "Failed"
    assert f'No S3 objects found under S3 URL "s3://{bucket}/in/nothing"' in job["FailureReason"]
    target = {"S3Uri": f"s3://{bucket}/elsewhere", "LocalPath": "/opt/ml/processing/output"}
    output = {"Outputs": [{"OutputName": "r", "S3Output": {**target, "S3UploadMode": "EndOfJob"}}]}
    job = run_job("no-right", ProcessingOutputConfig=output)
    assert "is not authorized to perform: s3:PutObject" in job["FailureReason"]
    job = run_job(
        "no-image", AppSpecification={"ImageUri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/none:1"}
    )
    assert job["FailureReason"].startswith("ClientError: Cannot pull the image")


def test_job_names_are_unique_and_jobs_can_be_stopped_and_listed(run_job, job_ended, sagemaker):
    run_job("once", {"SLEEP": "30"}, wait=False)
    code, message = error_of(run_job, "once")
    assert code == "ResourceInUse"
    assert message.startswith("Job name must be unique within an AWS account and region")
    time.sleep(0.3)
    sagemaker.stop_processing_job(ProcessingJobName="once")
    assert job_ended("once")["ProcessingJobStatus"] == "Stopped"
    found = sagemaker.list_processing_jobs(NameContains="onc", StatusEquals="Stopped")[
        "ProcessingJobSummaries"
    ]
    assert [job["ProcessingJobName"] for job in found] == ["once"]
    assert error_of(sagemaker.describe_processing_job, ProcessingJobName="never")[1] == (
        "Could not find requested job with name: never"
    )


def test_chaos_emits_every_event_twice(embedded_aws, run_job, events, eventually):
    embedded_aws.control("chaos", duplicate_deliveries=True)
    try:
        run_job("twice")
        # the last event is sent after the job has ended
        eventually(
            lambda: len(events("SageMaker Processing Job State Change", ProcessingJobName="twice")) == 4
        )
    finally:
        embedded_aws.control("chaos", duplicate_deliveries=False)


# ---------------------------------------------------------------- schedules


def test_stores_a_monitoring_schedule(sagemaker, role, stub_images):
    definition = {
        "MonitoringAppSpecification": {"ImageUri": stub_images["monitor"]},
        "MonitoringInputs": [{"EndpointInput": {"EndpointName": "e", "LocalPath": "/opt/ml/processing/in"}}],
        "MonitoringOutputConfig": {
            "MonitoringOutputs": [{"S3Output": {"S3Uri": "s3://b/r", "LocalPath": "/opt/ml/processing/out"}}]
        },
        "MonitoringResources": {
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 20}
        },
        "RoleArn": role,
    }
    config = {
        "ScheduleConfig": {"ScheduleExpression": "cron(0 * ? * * *)"},
        "MonitoringJobDefinition": definition,
    }
    sagemaker.create_monitoring_schedule(MonitoringScheduleName="hourly", MonitoringScheduleConfig=config)
    described = sagemaker.describe_monitoring_schedule(MonitoringScheduleName="hourly")
    assert described["MonitoringScheduleStatus"] == "Scheduled"
    assert described["MonitoringScheduleConfig"] == config
    [summary] = sagemaker.list_monitoring_schedules()["MonitoringScheduleSummaries"]
    assert summary["MonitoringScheduleArn"] == f"{ARN}:monitoring-schedule/hourly"
    assert datetime.now(UTC) - summary["CreationTime"] < timedelta(minutes=1)
    sagemaker.delete_monitoring_schedule(MonitoringScheduleName="hourly")
    assert sagemaker.list_monitoring_schedules()["MonitoringScheduleSummaries"] == []
