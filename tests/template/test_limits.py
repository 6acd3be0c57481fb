"""The template against AWS's quotas, with every name and parameter at its maximum length.

Sources: the quota pages of CloudFormation, IAM, Lambda, EventBridge, CloudWatch and S3; SageMaker's API reference.
"""

import json
import re

import pytest
from cfnlint.helpers import REGIONS
from cfnlint.schema.manager import ProviderSchemaManager

STACK = "s" * 128
ACCOUNT = "111122223333"
REGION = "ap-southeast-7"
PARTITION = "aws-us-gov"


def listed(value):
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def longest(template):
    """The longest value of each parameter."""

    def value(name, parameter):
        if "AllowedValues" in parameter:
            return max(map(str, parameter["AllowedValues"]), key=len)
        if parameter["Type"] == "Number":
            return "0." + "1" * 16
        if parameter["Type"] == "CommaDelimitedList":
            return ["x" * 24] * 16
        return "x" * parameter["MaxLength"]

    return {name: value(name, p) for name, p in template["Parameters"].items()}


@pytest.fixture(scope="module")
def grown(template, resolve, longest):
    """Resolves a part of the template with every value at its maximum length."""
    made = {
        "AWS::Sqs::Queue": (80, "sqs"),
        "AWS::Events::Rule": (64, "events"),
        "AWS::DynamoDB::Table": (255, "dynamodb"),
        "AWS::SNS::Topic": (256, "sns"),
        "AWS::IAM::Role": (64, "iam"),
        "AWS::S3::Bucket": (63, "s3"),
        "AWS::Logs::LogGroup": (200, "logs"),
        "AWS::KMS::Key": (36, "kms"),
        "AWS::SageMaker::EndpointConfig": (63, "sagemaker"),
        "AWS::SageMaker::Endpoint": (63, "sagemaker"),
    }
    names = {
        "AWS::StackName": STACK,
        "AWS::Region": REGION,
        "AWS::AccountId": ACCOUNT,
        "AWS::Partition": PARTITION,
    }
    for name, resource in template["Resources"].items():
        length, service = made.get(resource["Type"], (80, "sqs"))
        arn = f"arn:{PARTITION}:{service}:{REGION}:{ACCOUNT}:{'n' * length}"
        names |= {name: arn, f"{name}.Arn": arn}
        names |= {
            f"{name}.QueueName": "n" * 80,
            f"{name}.EndpointConfigName": "n" * 63,
            f"{name}.ModelName": "n" * 63,
        }
    uris = {
        "ModelDataUrl": f"s3://{'b' * 63}/{'k' * 955}",
        "BaselineStatistics": f"s3://{'b' * 63}/{'k' * 443}",
        "ServingImage": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com.cn/{'n' * 150}:{'t' * 64}",
        "MonitorImage": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com.cn/{'n' * 150}:{'t' * 64}",
        "ModelMonitorSchedule": "false",
        "TopicKeyArn": "",
    }
    return lambda part: resolve(part, **(longest | names | uris))


def of(template, kind):
    return {name: r for name, r in template["Resources"].items() if r["Type"] == kind}


def test_every_text_parameter_is_bounded_in_length(template):
    """A value of a monitor job's environment has at most 256 characters, an alarm's name 255."""
    texts = {
        name: p["MaxLength"]
        for name, p in template["Parameters"].items()
        if p["Type"] == "String" and "AllowedValues" not in p
    }
    assert {texts[name] for name in ("ClassPath", "ConfidencePath", "ShadowVariants")} == {256}
    assert texts["RollbackAlarm"] == 255


def test_environments_are_within_4_kilobytes(template, grown):
    shared = grown(template["Globals"]["Function"]["Environment"]["Variables"])
    for name, function in of(template, "AWS::Serverless::Function").items():
        variables = shared | grown(function["Properties"]["Environment"]["Variables"])
        assert sum(len(key) + len(str(value)) for key, value in variables.items()) <= 4096, name
        assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]+", key) for key in variables), name
        assert len(function["Properties"]["Description"]) <= 256


def test_role_policies_are_within_10240_characters_and_their_sids_are_unique(template, grown):
    for name, role in of(template, "AWS::IAM::Role").items():
        properties = grown(role["Properties"])
        policies = [policy["PolicyDocument"] for policy in properties["Policies"]]
        assert sum(len(re.sub(r"\s", "", json.dumps(policy))) for policy in policies) <= 10_240, name
        assert len(re.sub(r"\s", "", json.dumps(properties["AssumeRolePolicyDocument"]))) <= 2048, name
        for policy in policies:
            sids = [statement["Sid"] for statement in policy["Statement"] if "Sid" in statement]
            assert len(sids) == len(set(sids)), name
            assert all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids), name


def test_resource_policies_are_within_their_sizes(template, grown):
    for name, kind, member, size in (
        ("BucketPolicy", "AWS::S3::BucketPolicy", "PolicyDocument", 20_480),
        ("TopicPolicy", "AWS::SNS::TopicPolicy", "PolicyDocument", 30_720),
        ("TopicKey", "AWS::KMS::Key", "KeyPolicy", 32_768),
    ):
        resource = template["Resources"][name]
        assert resource["Type"] == kind
        assert len(json.dumps(grown(resource["Properties"][member]))) <= size, name


def test_rules_are_within_the_quotas_of_eventbridge(template, grown):
    for name, rule in of(template, "AWS::Events::Rule").items():
        properties = grown(rule["Properties"])
        assert len(properties["Targets"]) <= 5, name
        assert len({target["Id"] for target in properties["Targets"]}) == len(properties["Targets"]), name
        pattern = json.dumps(properties.get("EventPattern", {}), separators=(",", ":"))
        assert len(pattern) <= 2048, name
        assert pattern.count("*") <= 2, name  # EventBridge refuses patterns whose wildcards are too complex
        assert "**" not in pattern, name
        assert len(properties["Description"]) <= 512
        for target in properties["Targets"]:
            transformer = target.get("InputTransformer", {"InputTemplate": "", "InputPathsMap": {}})
            assert len(transformer["InputTemplate"]) <= 8192, name
            assert len(transformer["InputPathsMap"]) <= 100, name
            assert not {path for path in transformer["InputPathsMap"] if path.startswith("AWS")}, name
            assert 60 <= target["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 86_400, name
            assert target["RetryPolicy"]["MaximumRetryAttempts"] <= 185, name


def test_alarms_are_within_the_limits_of_cloudwatch(template, grown):
    for name, alarm in of(template, "AWS::CloudWatch::Alarm").items():
        properties = grown(alarm["Properties"])
        assert len(properties["AlarmDescription"]) <= 1024, name
        assert properties["Period"] * properties["EvaluationPeriods"] <= 86_400, name
        assert properties["Period"] % 60 == 0, name
        assert len(properties["AlarmActions"]) <= 5, name


def test_functions_and_queues_are_within_the_limits_of_lambda_and_sqs(template):
    shared = template["Globals"]["Function"]
    for name, function in of(template, "AWS::Serverless::Function").items():
        properties = shared | function["Properties"]
        assert properties["Timeout"] <= 900, name
        assert 128 <= properties["MemorySize"] <= 10_240, name
        assert len(shared["Layers"]) + len(function["Properties"].get("Layers", [])) <= 5, name
        for event in properties.get("Events", {}).values():
            assert event["Properties"]["BatchSize"] <= 10, name  # more needs a batching window
            concurrency = event["Properties"].get("ScalingConfig", {"MaximumConcurrency": 2})[
                "MaximumConcurrency"
            ]
            assert 2 <= concurrency <= 1000, name
    for name, queue in of(template, "AWS::SQS::Queue").items():
        assert queue["Properties"].get("VisibilityTimeout", 0) <= 43_200, name
        assert 60 <= queue["Properties"]["MessageRetentionPeriod"] <= 1_209_600, name


def test_requests_to_sagemaker_are_within_its_api_limits(template, grown):
    for name in ("PlainConfig", "HookedConfig"):
        capture = grown(template["Resources"][name]["Properties"]["DataCaptureConfig"])
        assert len(capture["DestinationS3Uri"]) <= 512, name
    environment = grown(template["Resources"]["HookedModel"]["Properties"]["PrimaryContainer"]["Environment"])
    assert all(len(str(value)) <= 1024 for value in environment.values())


def test_names_of_a_long_stack_name_fit(template, grown):
    for name, group in of(template, "AWS::Logs::LogGroup").items():
        assert len(grown(group["Properties"]["LogGroupName"])) <= 512, name
    dashboard = template["Resources"]["Dashboard"]["Properties"]
    assert len(grown(dashboard["DashboardName"])) <= 255  # people look for it by its name
    own = {
        "AWS::Logs::LogGroup",
        "AWS::Serverless::LayerVersion",
        "AWS::SageMaker::Endpoint",
        "AWS::CloudWatch::Dashboard",
    }
    for name, resource in template["Resources"].items():
        if resource["Type"] not in own:
            kind = resource["Type"].rpartition("::")[2]
            assert not {"Name", f"{kind}Name"} & set(resource["Properties"]), name


def test_the_template_is_within_the_quotas_of_cloudformation(template):
    assert len(template["Parameters"]) <= 200
    assert len(template["Outputs"]) <= 200
    assert len(template["Resources"]) <= 450  # of 500; SAM makes a mapping for each function's queue
    assert len(template["Description"].encode()) <= 1024
    assert len(template["Mappings"]) <= 200
    for name, parameter in template["Parameters"].items():
        assert len(parameter["Description"]) <= 4000, name
        assert re.fullmatch("[A-Za-z0-9]{1,255}", name)


def test_every_region_that_has_endpoints_has_every_type(template):
    """A stack fails in a region that lacks a type, so Model Monitor's schedule has its own template."""
    of_sam = {
        "AWS::Serverless::Function": ["AWS::Lambda::Function", "AWS::Lambda::EventSourceMapping"],
        "AWS::Serverless::LayerVersion": ["AWS::Lambda::LayerVersion"],
    }
    types = {t for r in template["Resources"].values() for t in of_sam.get(r["Type"], [r["Type"]])}
    schemas = ProviderSchemaManager()
    regions = [
        region for region in REGIONS if "AWS::SageMaker::Endpoint" in schemas.get_resource_types(region)
    ]
    assert len(regions) > 30
    for region in regions:
        assert types <= set(schemas.get_resource_types(region)), region
    without = [
        r for r in regions if "AWS::SageMaker::MonitoringSchedule" not in schemas.get_resource_types(r)
    ]
    assert "eu-central-2" in without
