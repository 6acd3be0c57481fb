"""local/deploy.py: packaging, change sets, replacement, rollback and errors."""

import io
import json
import os
import shutil
import textwrap
import zipfile
from pathlib import Path

import pytest

from local.deploy import DeployError, deploy
from local.emulator import ACCOUNT, REGION, ROOT

EMBEDDED = Path(__file__).parent / "embedded"
ARN = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"


@pytest.fixture
def deploy_small(embedded_aws, model_data, stub_images, tmp_path):
    """Deploy embedded/template.yaml with a name for stack and endpoint."""

    def run(name, **parameters):
        given = {"EndpointName": name, "ModelDataUrl": model_data, "Image": stub_images["serving"]}
        return deploy(
            EMBEDDED / "template.yaml",
            name,
            given | parameters,
            embedded_aws.session,
            build=tmp_path / "build",
        )

    return run


@pytest.fixture
def answers(embedded_aws):
    """Return the version in the response of the endpoint's model."""
    runtime = embedded_aws.client("sagemaker-runtime")

    def ask(endpoint):
        response = runtime.invoke_endpoint(EndpointName=endpoint, Body=b"{}", ContentType="application/json")
        return json.loads(response["Body"].read())["version"]

    return ask


def test_ref_is_the_arn_and_getatt_the_name(small_stack):
    assert small_stack["ConfigRef"] == f"{ARN}:endpoint-config/{small_stack['Config'].lower()}"
    assert small_stack["EndpointRef"] == f"{ARN}:endpoint/small"


def test_does_not_update_unchanged_functions(embedded_aws, small_stack, model_data, stub_images, tmp_path):
    functions = embedded_aws.client("lambda")
    before = functions.get_function(FunctionName=small_stack["Function"])["Configuration"]
    given = {"EndpointName": "small", "ModelDataUrl": model_data, "Image": stub_images["serving"]}
    again = deploy(EMBEDDED / "template.yaml", "small", given, embedded_aws.session, build=tmp_path)
    assert again == small_stack
    after = functions.get_function(FunctionName=small_stack["Function"])["Configuration"]
    assert (after["RevisionId"], after["LastModified"]) == (before["RevisionId"], before["LastModified"])


def test_replaces_a_changed_model_and_updates_the_endpoint(embedded_aws, deploy_small, answers):
    sagemaker = embedded_aws.client("sagemaker")
    first = deploy_small("replace", Greeting="one")
    assert answers("replace") == "one"
    second = deploy_small("replace", Greeting="two")
    assert answers("replace") == "two"
    assert second["Config"] != first["Config"]
    assert second["EndpointRef"] == first["EndpointRef"]
    configs = [
        c["EndpointConfigName"]
        for c in sagemaker.list_endpoint_configs(NameContains="replace-")["EndpointConfigs"]
    ]
    assert configs == [second["Config"]]
    assert len(sagemaker.list_models(NameContains="replace-")["Models"]) == 1


def test_a_stack_update_keeps_the_instance_count_of_autoscaling(embedded_aws, deploy_small, eventually):
    sagemaker = embedded_aws.client("sagemaker")

    def count():
        (variant,) = sagemaker.describe_endpoint(EndpointName="scales")["ProductionVariants"]
        return variant["CurrentInstanceCount"]

    deploy_small("scales", Greeting="one")
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="scales",
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}],
    )
    eventually(lambda: count() == 2)
    deploy_small("scales", Greeting="two")
    assert count() == 2


def test_deploys_the_model_monitor_schedule_as_a_separate_stack(embedded_aws, stub_images, tmp_path):
    parameters = {
        "MonitoringScheduleName": "hourly-0f6f4a0e",
        "MonitorRoleArn": f"arn:aws:iam::{ACCOUNT}:role/monitor",
        "ReplayKeyArn": f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/0f6f4a0e",
        "Bucket": "amzn-s3-demo-bucket",
        "EndpointName": "small",
        "MonitorImage": stub_images["monitor"],
        "MaxClassShare": "0.5",
        "ClassPath": "predictions[0]",
    }
    deploy(ROOT / "model-monitor.yaml", "monitors", parameters, embedded_aws.session, build=tmp_path)
    sagemaker = embedded_aws.client("sagemaker")
    described = sagemaker.describe_monitoring_schedule(MonitoringScheduleName="hourly-0f6f4a0e")
    job = described["MonitoringScheduleConfig"]["MonitoringJobDefinition"]
    assert job["NetworkConfig"] == {"EnableNetworkIsolation": False}  # without a VpcConfig of an empty list
    assert job["Environment"]["CLASS_PATH"] == "predictions[0]"
    assert "LOW_CONFIDENCE" not in job["Environment"]


def test_omitted_parameters_keep_the_stacks_values(embedded_aws, deploy_small, answers, tmp_path):
    deploy_small("keeps", Greeting="kept")
    deploy(EMBEDDED / "template.yaml", "keeps", {}, embedded_aws.session, build=tmp_path)
    assert answers("keeps") == "kept"


def test_a_failed_update_names_the_resource_and_rolls_back(embedded_aws, deploy_small, answers):
    first = deploy_small("rolls", Greeting="good")
    with pytest.raises(DeployError) as caught:
        deploy_small("rolls", Greeting="bad", Fail="torn weights")
    assert str(caught.value).startswith(
        "rolls is UPDATE_ROLLBACK_COMPLETE: Endpoint (AWS::SageMaker::Endpoint): "
    )
    assert "did not pass the ping health check" in str(caught.value)
    assert "torn weights" in str(caught.value)
    assert answers("rolls") == "good"
    described = embedded_aws.client("sagemaker").describe_endpoint(EndpointName="rolls")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", first["Config"])
    deploy_small("rolls", Greeting="better", Fail="")
    assert answers("rolls") == "better"


def test_a_failed_creation_can_be_retried(embedded_aws, deploy_small, answers):
    with pytest.raises(DeployError, match=r"retried is ROLLBACK_COMPLETE: Endpoint .*out of luck"):
        deploy_small("retried", Fail="out of luck")
    sagemaker = embedded_aws.client("sagemaker")
    assert sagemaker.list_endpoints(NameContains="retried")["Endpoints"] == []
    deploy_small("retried", Greeting="alive")
    assert answers("retried") == "alive"


def test_deleting_the_stack_deletes_its_endpoint(embedded_aws, deploy_small, eventually):
    deploy_small("leaves")
    cloudformation, sagemaker = embedded_aws.client("cloudformation"), embedded_aws.client("sagemaker")
    cloudformation.delete_stack(StackName="leaves")
    eventually(lambda: not sagemaker.list_endpoints(NameContains="leaves")["Endpoints"])
    eventually(lambda: not sagemaker.list_models(NameContains="leaves")["Models"])


def test_accepts_a_template_larger_than_a_request(embedded_aws, tmp_path):
    bucket = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "of-a-large-template"}}
    body = {"Metadata": {"Notes": "x" * 60_000}, "Resources": {"Bucket": bucket}}
    (tmp_path / "template.yaml").write_text(json.dumps(body))
    deploy(tmp_path / "template.yaml", "large", {}, embedded_aws.session, build=tmp_path)
    embedded_aws.client("s3").head_bucket(Bucket="of-a-large-template")


QUEUE_POLICY = """
Resources:
  One: {Type: AWS::SQS::Queue}
  Two: {Type: AWS::SQS::Queue}
  Policy:
    Type: AWS::SQS::QueuePolicy
    Properties:
      Queues: [!Ref One]
      PolicyDocument:
        Statement:
          - Effect: Allow
            Principal: {Service: events.amazonaws.com}
            Action: sqs:SendMessage
            Resource: RESOURCE
"""


STATEMENT = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::" + "b" * 10_240}
TOO_LARGE = {
    "large-environment": (
        {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Role": f"arn:aws:iam::{ACCOUNT}:role/any",
                "Code": {"ZipFile": "-"},
                "Handler": "index.handler",
                "Runtime": "python3.13",
                "Environment": {"Variables": {"NAME": "v" * 4093}},
            },
        },
        "exceeded the 4KB limit",
    ),
    "large-policy": (
        {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "AssumeRolePolicyDocument": {"Statement": []},
                "Policies": [{"PolicyName": "p", "PolicyDocument": {"Statement": [STATEMENT]}}],
            },
        },
        "Maximum policy size of 10240 bytes exceeded",
    ),
    "large-description": (
        {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {
                "AlarmDescription": "d" * 1025,
                "MetricName": "m",
                "Namespace": "n",
                "ComparisonOperator": "GreaterThanThreshold",
                "EvaluationPeriods": 1,
                "Period": 60,
                "Statistic": "Sum",
                "Threshold": 1,
            },
        },
        "length less than or equal to 1024",
    ),
}


def test_refuses_templates_that_aws_refuses(embedded_aws, tmp_path):
    def attempt(name, body, **parameters):
        template = tmp_path / "template.yaml"
        template.write_text(textwrap.dedent(body))
        deploy(template, name, parameters, embedded_aws.session)

    with pytest.raises(DeployError, match="Parameter 'Threshold' has no Default"):
        attempt(
            "refused-1", "Parameters: {Threshold: {Type: Number}}\nResources: {T: {Type: AWS::SNS::Topic}}"
        )
    with pytest.raises(DeployError, match="Unrecognized resource types"):
        attempt("refused-2", "Resources: {T: {Type: AWS::SageMaker::Nonsense}}")
    with pytest.raises(DeployError, match=r"Model \(AWS::SageMaker::Model\): .*unsupported property Colour"):
        attempt(
            "refused-3",
            "Resources: {Model: {Type: AWS::SageMaker::Model, Properties: {ExecutionRoleArn: a, Colour: red}}}",
        )
    with pytest.raises(DeployError, match="F: CodeUri: expected a directory, got nowhere"):
        attempt(
            "refused-4", "Resources: {F: {Type: AWS::Serverless::Function, Properties: {CodeUri: nowhere}}}"
        )
    for name, resource in (
        ("refused-5", "[!GetAtt One.Arn, !GetAtt Two.Arn]"),
        ("refused-6", "!GetAtt Two.Arn"),
    ):
        with pytest.raises(DeployError, match="Invalid value for the parameter Policy"):
            attempt(name, QUEUE_POLICY.replace("RESOURCE", resource))
    for name, (body, reason) in TOO_LARGE.items():
        with pytest.raises(DeployError, match=reason):
            attempt(name, json.dumps({"Resources": {"Large": body}}))


RETAINED = """
Resources:
  Table:
    Type: AWS::DynamoDB::Table
    DeletionPolicy: Retain
    Properties:
      BillingMode: PAY_PER_REQUEST
      AttributeDefinitions: [{AttributeName: pk, AttributeType: S}]
      KeySchema: [{AttributeName: pk, KeyType: HASH}]
      Tags: [{Key: round, Value: "%s"}]
  Bucket:
    Type: AWS::S3::Bucket
    DeletionPolicy: Retain
Outputs:
  Table: {Value: !Ref Table}
  Bucket: {Value: !Ref Bucket}
"""


def test_a_new_stack_does_not_reuse_retained_resources(embedded_aws, tmp_path):
    template, dynamodb = tmp_path / "template.yaml", embedded_aws.client("dynamodb")
    cloudformation = embedded_aws.client("cloudformation")

    def attempt(number):
        template.write_text(RETAINED % number)
        return deploy(template, "retains", {}, embedded_aws.session, build=tmp_path / "build")

    first = attempt(1)
    item = {"pk": {"S": "kept"}}
    dynamodb.put_item(TableName=first["Table"], Item=item)
    assert attempt(2) == first  # an update keeps the names
    cloudformation.delete_stack(StackName="retains")
    cloudformation.get_waiter("stack_delete_complete").wait(StackName="retains", WaiterConfig={"Delay": 1})
    second = attempt(3)
    assert first["Table"] != second["Table"]
    assert first["Bucket"] != second["Bucket"]
    assert dynamodb.get_item(TableName=first["Table"], Key=item)["Item"] == item
    assert "Item" not in dynamodb.get_item(TableName=second["Table"], Key=item)


# ---------------------------------------------------------------- packaging

PACKAGED = """
Transform: AWS::Serverless-2016-10-31
Resources:
  Function:
    Type: AWS::Serverless::Function
    Properties: {Runtime: python3.13, Handler: app.handler, CodeUri: function}
  Built:
    Type: AWS::Serverless::LayerVersion
    Metadata: {BuildMethod: python3.13}
    Properties: {ContentUri: built}
  Plain:
    Type: AWS::Serverless::LayerVersion
    Properties: {ContentUri: plain}
"""


@pytest.fixture
def project(tmp_path):
    """A project whose function and built layer require a wheel."""
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "VALUE = 1\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    root = tmp_path / "project"
    for name in ("function", "built", "plain/python"):
        (root / name).mkdir(parents=True)
    (root / "function" / "app.py").write_text(
        "import tiny\n\ndef handler(event, context):\n    return tiny.VALUE\n"
    )
    (root / "plain" / "python" / "own.py").write_text("")
    (root / "template.yaml").write_text(PACKAGED)
    for name in ("function", "built"):
        (root / name / "requirements.txt").write_text(f"{wheel}\n")
    return root


@pytest.fixture
def archives(embedded_aws):
    """Deploy a project and return file names and bytes of the uploaded archives, by key."""
    s3 = embedded_aws.client("s3")

    def run(root, bucket, stack="packaged"):
        deploy(root / "template.yaml", stack, {}, embedded_aws.session, bucket=bucket)
        found = {}
        for item in s3.list_objects_v2(Bucket=bucket)["Contents"]:
            if not item["Key"].endswith(".zip"):
                continue  # the template
            body = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                names = {n for n in archive.namelist() if "dist-info" not in n and not n.endswith(".pyc")}
                found[item["Key"]] = (names, body)
        return found

    return run


def test_packages_code_as_sam_does(embedded_aws, project, archives):
    found = [names for names, _ in archives(project, "artifacts-1").values()]
    assert sorted(map(sorted, found)) == [
        ["app.py", "requirements.txt", "tiny.py"],
        ["python/own.py"],
        ["python/requirements.txt", "python/tiny.py"],
    ]
    resource = embedded_aws.client("cloudformation").describe_stack_resource(
        StackName="packaged", LogicalResourceId="Function"
    )["StackResourceDetail"]
    response = embedded_aws.client("lambda").invoke(FunctionName=resource["PhysicalResourceId"])
    assert response["Payload"].read() == b"1"


def test_equal_code_gives_equal_archives(project, archives, tmp_path):
    first = archives(project, "artifacts-2")
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".build"))
    (copy / "function" / "__pycache__").mkdir()
    (copy / "function" / "__pycache__" / "app.pyc").write_bytes(b"x")
    os.utime(copy / "function" / "app.py", (1e9, 1e9))
    assert archives(copy, "artifacts-3") == first
    (copy / "function" / "app.py").write_text("def handler(event, context):\n    return 2\n")
    changed = archives(copy, "artifacts-3")
    assert len(changed) == len(first) + 1  # the function's only


def test_installs_requirements_once(project, archives, tmp_path):
    archives(project, "artifacts-4")
    shutil.rmtree(tmp_path / "wheels")  # a second installation would fail
    assert len(archives(project, "artifacts-5")) == 3
    (project / "built" / "requirements.txt").write_text("not-a-file.whl\n")
    with pytest.raises(DeployError, match=r"built/requirements\.txt: pip install failed"):
        archives(project, "artifacts-6")
