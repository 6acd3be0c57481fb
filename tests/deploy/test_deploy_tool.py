"""Run the deploy tool with the real `sam deploy` on the embedded AWS: `make deploy-test`.

The first tests watch a customer's endpoint, which has its own role, capture bucket and notifications.
"""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from samtranslator.yaml_helper import yaml_parse

from demo import signs
from deploy.images import tag
from deploy.stack import change_parameters
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.replay_marker import PublicKey
from local.deploy import deploy as redeploy
from local.emulator import ACCOUNT, REGION, ROOT, EmbeddedAws
from local.stack import MODELS, REGISTRY, WEIGHTS, upload_model
from local.waiting import wait_for

PYTHON = os.environ.get("GLASSBOX_DEPLOY", "")
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("layers/core/python", "model_code"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not PYTHON, reason="needs .venv-deploy and .venv-sam: make deploy-test"),
]

ENDPOINT, CAPTURES = "Shop-Window", "acme-captures"
SERVING = f"{REGISTRY}/acme-serving:7"
CAPTURE = {
    "EnableCapture": True,
    "InitialSamplingPercentage": 100,
    "DestinationS3Uri": f"s3://{CAPTURES}/sagemaker/captured",
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
}


@pytest.fixture(scope="module")
def aws():
    other = [sys.executable, str(ROOT / "tests" / "integration" / "embedded" / "server.py")]
    with EmbeddedAws(images={"acme-other": other}) as aws:
        yield aws


def command_line(aws, *arguments, **environment):
    """Return the arguments of subprocess for a command of the deploy tool."""
    account = aws.environment | {"AWS_REGION": REGION, "PYTHONPATH": PYTHONPATH}
    return {
        "args": [str(ROOT / PYTHON), "-m", "deploy", *arguments],
        "cwd": ROOT,
        "env": os.environ | account | environment,
        "text": True,
    }


@pytest.fixture(scope="module")
def tool(aws):
    """Run `python -m deploy` as the account's root; return its output, or with `fails` its error."""

    def run(*arguments, fails=False, **environment):
        done = subprocess.run(
            **command_line(aws, *arguments, **environment), capture_output=True, timeout=300
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


def add_role(aws, name):
    """Create a role of an endpoint, which may read models and write captures, and return its ARN."""
    iam = aws.client("iam")
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    rights = [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{MODELS}/*"},
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{CAPTURES}/*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": rights})
    iam.put_role_policy(RoleName=name, PolicyName="endpoint", PolicyDocument=policy)
    return role


@pytest.fixture(scope="module")
def customer(aws):
    """Create a customer's bucket, role, models and endpoints. The role may write captures only."""
    s3, sqs, sagemaker = (aws.client(name) for name in ("s3", "sqs", "sagemaker"))
    s3.create_bucket(Bucket=CAPTURES, CreateBucketConfiguration={"LocationConstraint": REGION})
    queue = sqs.create_queue(QueueName="their-own")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allow = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
    theirs = {"Id": "theirs", "QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
    s3.put_bucket_notification_configuration(
        Bucket=CAPTURES, NotificationConfiguration={"QueueConfigurations": [theirs]}
    )
    model = upload_model(aws, WEIGHTS)
    role = add_role(aws, "acme-endpoint")
    container = {"Image": SERVING, "ModelDataUrl": model, "Environment": {"TEAM": "acme"}}
    for version in ("v1", "v2"):
        sagemaker.create_model(
            ModelName=f"signs-{version}",
            ExecutionRoleArn=role,
            PrimaryContainer=container,
        )
        variant = {
            "VariantName": "Blue",
            "ModelName": f"signs-{version}",
            "InitialInstanceCount": 1,
            "InstanceType": "ml.m5.xlarge",
            "InitialVariantWeight": 1.0,
        }
        sagemaker.create_endpoint_config(
            EndpointConfigName=f"Shop-{version}", ProductionVariants=[variant], DataCaptureConfig=CAPTURE
        )
    sagemaker.create_endpoint_config(EndpointConfigName="no-capture", ProductionVariants=[variant])
    larger = {**variant, "ModelName": "signs-v1", "InstanceType": "ml.m5.2xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="Shop-v1-larger", ProductionVariants=[larger], DataCaptureConfig=CAPTURE
    )
    endpoints = {ENDPOINT: "Shop-v1", "blind": "no-capture", "Shop-Back": "Shop-v1"}
    for endpoint, config in endpoints.items():
        sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    for endpoint in endpoints:
        in_service(sagemaker, endpoint)
    return sagemaker


CONFIGS = {"Shop-v1", "Shop-v1-larger", "Shop-v2", "no-capture"}


def owner_deploys(sagemaker, config):
    sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=config)
    in_service(sagemaker, ENDPOINT)


def in_service(sagemaker, endpoint):
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig={"Delay": 1})


def live(aws):
    endpoint = aws.client("sagemaker").describe_endpoint(EndpointName=ENDPOINT)
    return endpoint["EndpointStatus"], endpoint["EndpointConfigName"]


def stack(aws, name="glassbox"):
    found = aws.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    return {p["ParameterKey"]: p["ParameterValue"] for p in found["Parameters"]}, {
        o["OutputKey"]: o["OutputValue"] for o in found["Outputs"]
    }


def incident(aws):
    return IncidentsTable(aws.client("dynamodb"), stack(aws)[1]["IncidentsTable"]).current(ENDPOINT)


def names(aws, what):
    listed = getattr(aws.client("sagemaker"), f"list_{what}s")()
    key = {"model": "Models", "endpoint_config": "EndpointConfigs"}[what]
    return {item[f"{key[:-1]}Name"] for item in listed[key]}


def buckets(aws):
    return {bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]}


def command(aws, action):
    entry = {"Source": "glassbox.operator", "DetailType": "Glassbox Command"}
    detail = json.dumps({"endpoint": ENDPOINT, "action": action})
    aws.client("events").put_events(Entries=[entry | {"Detail": detail}])


def pause(aws, mapping, on=False):
    found = aws.client("cloudformation").describe_stack_resource(
        StackName="glassbox", LogicalResourceId=mapping
    )
    mapping = found["StackResourceDetail"]["PhysicalResourceId"]
    aws.client("lambda").update_event_source_mapping(UUID=mapping, Enabled=on)


WATCH = ("--endpoint", ENDPOINT, "--threshold", "0.5")


def settings(aws):
    return (
        "--set",
        f"AwsEndpointUrl={aws.endpoint_url}",
        "CooldownMinutes=0",
        "MaxFlaggedReplays=2",
        "MaxComparisonReplays=1",
    )


# ---------------------------------------------------------------- an existing endpoint


def test_plan_describes_the_deployment_and_changes_nothing(aws, tool, customer):
    notifications = aws.client("s3").get_bucket_notification_configuration(Bucket=CAPTURES)
    output = tool("plan", *WATCH, *settings(aws))
    assert f"Account {ACCOUNT}, region {REGION}: would create stack glassbox with" in output
    assert "8 Lambda functions" in output
    assert f"endpoint {ENDPOINT} is InService on config Shop-v1" in output
    assert f"variant Blue: 1 x ml.m5.xlarge, model signs-v1 ({SERVING})" in output
    assert (
        f"captures 100 % of the requests, inputs and outputs, to s3://{CAPTURES}/sagemaker/captured/"
        in output
    )
    assert "endpoint config shop-v1-hooked: Shop-v1 with the models above" in output
    assert (
        f"Would send the events of bucket {CAPTURES} to EventBridge and keep its 1 other notification."
        in output
    )
    assert "so the stack has no hourly job" in output
    assert names(aws, "endpoint_config") == CONFIGS
    again = aws.client("s3").get_bucket_notification_configuration(Bucket=CAPTURES)
    assert {k: v for k, v in again.items() if k != "ResponseMetadata"} == {
        k: v for k, v in notifications.items() if k != "ResponseMetadata"
    }
    with pytest.raises(Exception, match="does not exist"):
        stack(aws)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("missing", "ENDPOINT: expected an endpoint in eu-west-1, got missing: Could not find endpoint"),
        ("blind", "endpoint config no-capture: expected an enabled DataCaptureConfig, got none. Create"),
    ],
)
def test_plan_refuses_an_unsupported_endpoint_with_the_reason(tool, customer, endpoint, reason):
    assert reason in tool("plan", "--endpoint", endpoint, "--threshold", "0.5", fails=True)


@pytest.fixture
def blind_on(aws, customer):
    """Update the endpoint `blind` to a config with these members, and back after the test."""
    made = []

    def move(name, model="signs-v2", **members):
        [variant] = customer.describe_endpoint_config(EndpointConfigName="no-capture")["ProductionVariants"]
        variants = [variant | {"ModelName": model}]
        customer.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, **members)
        made.append(name)
        customer.update_endpoint(EndpointName="blind", EndpointConfigName=name)
        in_service(customer, "blind")

    yield move
    customer.update_endpoint(EndpointName="blind", EndpointConfigName="no-capture")
    in_service(customer, "blind")
    for name in made:
        customer.delete_endpoint_config(EndpointConfigName=name)


def test_plan_refuses_a_capture_bucket_of_another_region_or_account(aws, tool, blind_on):
    """EventBridge of this account and region would never receive its events."""
    far = aws.session.client("s3", region_name="us-west-2")
    far.create_bucket(Bucket="acme-far", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    blind_on("far", DataCaptureConfig=CAPTURE | {"DestinationS3Uri": "s3://acme-far/captured"})
    wanted = ("plan", "--endpoint", "blind", "--threshold", "0.5")
    assert "bucket acme-far: expected region eu-west-1, as the endpoint's, got us-west-2" in tool(
        *wanted, fails=True
    )
    theirs = aws.session.client("s3", aws_access_key_id="999999999999", aws_secret_access_key="test")
    theirs.create_bucket(Bucket="not-acme", CreateBucketConfiguration={"LocationConstraint": REGION})
    blind_on("foreign", DataCaptureConfig=CAPTURE | {"DestinationS3Uri": "s3://not-acme/captured"})
    assert f"bucket not-acme: expected a bucket of account {ACCOUNT}" in tool(*wanted, fails=True)


def test_plan_prints_the_statements_for_the_policy_of_a_volume_key(aws, tool, blind_on):
    key = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    blind_on("with-key", DataCaptureConfig=CAPTURE, KmsKeyId=key.rpartition("/")[2])
    output = tool("plan", "--endpoint", "blind", "--threshold", "0.5", "--stack", "keyed")
    assert f"Key {key} encrypts the instance volumes." in output
    statements = [json.loads(line) for line in output.splitlines() if line.startswith('  {"Effect"')]
    assert [statement["Action"] for statement in statements] == ["kms:DescribeKey", "kms:CreateGrant"]
    for statement in statements:
        assert statement["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        roles = statement["Condition"]["ArnLike"]["aws:PrincipalArn"]
        assert roles == f"arn:aws:iam::{ACCOUNT}:role/keyed*"
    assert statements[1]["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


def test_plan_compares_a_swap_with_the_quota(aws, tool, customer):
    assert "A swap starts 1 more ml.m5.xlarge, 3 of 100 are in use: the quota is sufficient." in tool(
        "plan", *WATCH
    )
    aws.control("quotas", **{"ml.m5.xlarge": 3})
    output = tool("plan", *WATCH)
    aws.control("quotas")
    assert "a swap starts 1 more ml.m5.xlarge, 3 of 3 are in use: QUOTA EXCEEDED" in output


def test_plan_refuses_invalid_options_together(tool, customer):
    options = (
        "--endpoint",
        ENDPOINT,
        "--image",
        "glassbox-serving:latest",
        "--email",
        "ops",
        "--model",
        "none.pt",
    )
    output = tool(
        "plan",
        *options,
        "--set",
        "MaxFlagedReplays=20",
        "MaxComparisonReplays=many",
        "MaxHeatmaps=0",
        "Stage=test",
        fails=True,
    )
    assert output.splitlines() == [
        "MaxClassShare: expected a value, got none. Set THRESHOLD=…: "
        "Largest allowed share of one class in a window, 0 to 1; required, because it depends on your traffic",
        "NotificationEmail: expected an address, such as ops@example.com, got 'ops'",
        "MaxFlagedReplays: expected a parameter of template.yaml. Did you mean MaxFlaggedReplays?",
        "MaxComparisonReplays: expected a number from 0 to 100, got 'many'",
        "MaxHeatmaps: expected a number from 1 to 1000, got '0'",
        "Stage: expected dev or prod, got 'test'",
        "ServingImage: expected an image in ECR, account.dkr.ecr.region.amazonaws.com/name:tag, got "
        "'glassbox-serving:latest'",
        f"MODEL: expected no value with ENDPOINT={ENDPOINT}, got none.pt. MODEL_DATA=s3://… sets the model data of the "
        "twin.",
        "MODEL: expected a file, got none.pt",
    ]


def test_plan_refuses_parameters_that_follow_from_the_endpoint(tool, customer):
    """Deploy deletes a twin whose name is not the stack's HookedConfigName."""
    output = tool("plan", *WATCH, "--set", "HookedConfigName=mine", "ModelDataUrl=s3://b/m", fails=True)
    assert output.splitlines() == [
        f"HookedConfigName: expected no value, since it follows from ENDPOINT={ENDPOINT}, got 'mine'. Remove it from "
        "SET.",
        f"ModelDataUrl: expected no value, since it follows from ENDPOINT={ENDPOINT}, got 's3://b/m'. Remove it from "
        "SET.",
    ]


def test_deploy_changes_nothing_without_a_yes(aws, tool, customer):
    assert "Cancelled: nothing was changed." in tool("deploy", *WATCH, *settings(aws), fails=True)
    assert "EventBridgeConfiguration" not in aws.client("s3").get_bucket_notification_configuration(
        Bucket=CAPTURES
    )


def test_deploy_creates_stack_and_twin_and_does_not_update_the_endpoint(aws, tool, customer):
    before = customer.describe_endpoint(EndpointName=ENDPOINT)["LastModifiedTime"]
    output = tool("deploy", *WATCH, *settings(aws), "--email", "ops@example.com", "--yes")
    assert "Confirm the subscription e-mail sent to ops@example.com" in output
    assert "published a notification to the topic" in output
    parameters, outputs = stack(aws)
    assert (outputs["PlainConfig"], outputs["HookedConfig"]) == ("Shop-v1", "shop-v1-hooked")
    assert parameters["CapturePrefix"] == "sagemaker/captured"
    plain, hooked = (
        customer.describe_endpoint_config(EndpointConfigName=name) for name in ("Shop-v1", "shop-v1-hooked")
    )
    assert hooked["DataCaptureConfig"] == plain["DataCaptureConfig"]
    (variant,) = plain["ProductionVariants"]
    assert hooked["ProductionVariants"] == [{**variant, "ModelName": "signs-v1-hooked"}]
    model, twin = (customer.describe_model(ModelName=name) for name in ("signs-v1", "signs-v1-hooked"))
    tensors = f"s3://{outputs['Bucket']}/tensors/{ENDPOINT}"
    key = ReplayKey(aws.client("kms"), outputs["ReplayKeyArn"]).public()
    environment = {"TEAM": "acme", "tensors_output": tensors, "REPLAY_KEY": key.text}
    assert twin["PrimaryContainer"] == {**model["PrimaryContainer"], "Environment": environment}
    notifications = aws.client("s3").get_bucket_notification_configuration(Bucket=CAPTURES)
    assert "EventBridgeConfiguration" in notifications
    assert [q["Id"] for q in notifications["QueueConfigurations"]] == ["theirs"]
    assert live(aws) == ("InService", "Shop-v1")
    assert customer.describe_endpoint(EndpointName=ENDPOINT)["LastModifiedTime"] == before


def test_a_second_deploy_keeps_the_twin(aws, tool):
    twins = names(aws, "endpoint_config"), names(aws, "model")
    output = tool("deploy", *WATCH, *settings(aws), "--email", "ops@example.com", "--yes")
    assert "would update stack glassbox" in output
    assert "Parameters without a new value keep theirs" in output
    assert f"Bucket {CAPTURES} already sends its events to EventBridge" in output
    assert (names(aws, "endpoint_config"), names(aws, "model")) == twins


def test_plan_refuses_a_twin_of_another_stack(aws, tool, customer):
    """Two endpoints may share a config, but not its twin."""
    output = tool("plan", "--stack", "back", "--endpoint", "Shop-Back", "--threshold", "0.5", fails=True)
    assert "signs-v1-hooked already exists and does not belong to stack back" in output
    assert output.count("\n") == 1


def test_plan_refuses_a_second_stack_for_an_endpoint(aws, tool, customer):
    output = tool("plan", "--stack", "second", "--endpoint", ENDPOINT, "--threshold", "0.5", fails=True)
    assert (
        f"ENDPOINT: expected an endpoint without a stack, got {ENDPOINT}, which stack glassbox watches."
        in output
    )


def test_deploy_replaces_the_twin_after_an_owners_deployment(aws, tool, customer):
    """The new config has the same model, so the hooked model stays."""
    owner_deploys(customer, "Shop-v1-larger")
    output = tool("deploy", *WATCH, *settings(aws), "--yes")
    assert "PlainConfigName: Shop-v1 -> Shop-v1-larger" in output
    assert "deleted: shop-v1-hooked" in output
    assert stack(aws)[1]["HookedConfig"] == "shop-v1-larger-hooked"
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v1-larger-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v1-hooked"}


def test_twin_keeps_a_model_that_both_configs_share(aws, tool, customer):
    owner_deploys(customer, "Shop-v1")
    output = tool("twin")
    assert [line for line in output.splitlines() if "deleted" in line] == ["deleted: shop-v1-larger-hooked"]
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v1-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v1-hooked"}


def hook_files(aws):
    found = aws.client("s3").list_objects_v2(Bucket=stack(aws)[1]["Bucket"], Prefix="hook/")
    return {item["Key"].split("/", 2)[2] for item in found.get("Contents", ())}


def test_the_twin_of_unhooked_code_mounts_the_hook(aws, tool, customer):
    """The owner deploys code without the hook, then code with it again."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("code/inference.py"))
    aws.client("s3").put_object(Bucket=MODELS, Key="foreign/model.tar.gz", Body=buffer.getvalue())
    plain = customer.describe_model(ModelName="signs-v1")
    container = {"Image": f"{REGISTRY}/acme-other:1", "ModelDataUrl": f"s3://{MODELS}/foreign/model.tar.gz"}
    role = add_role(aws, "acme-foreign")
    customer.create_model(ModelName="foreign", ExecutionRoleArn=role, PrimaryContainer=container)
    config = customer.describe_endpoint_config(EndpointConfigName="Shop-v1")
    variant = config["ProductionVariants"][0] | {"ModelName": "foreign"}
    customer.create_endpoint_config(
        EndpointConfigName="foreign",
        ProductionVariants=[variant],
        DataCaptureConfig=config["DataCaptureConfig"],
    )
    owner_deploys(customer, "foreign")
    mount = "/opt/ml/additional-model-data-sources/glassbox"
    for command in (("twin",), ("deploy", *WATCH, *settings(aws), "--yes")):
        output = tool(*command)
        assert f"image {REGISTRY}/acme-other:1: expected a readable config in ECR" in output
        twin = customer.describe_model(ModelName="foreign-hooked")["PrimaryContainer"]
        assert twin["Environment"]["PYTHONPATH"] == mount
        [channel] = twin["AdditionalModelDataSources"]
        assert channel["S3DataSource"]["S3Uri"].startswith(f"s3://{stack(aws)[1]['Bucket']}/hook/")
        assert "sitecustomize.py" in hook_files(aws)
        assert stack(aws)[0]["EndpointRoleArns"] == role
    assert (
        f"model foreign-hooked: foreign with channel glassbox, PYTHONPATH={mount}, the hook enabled" in output
    )
    assert f"hook/ in the stack's bucket: the hook, which {role} may list and read" in output
    owner_deploys(customer, "Shop-v1")
    tool("twin")
    assert stack(aws)[0]["EndpointRoleArns"] == plain["ExecutionRoleArn"]
    assert hook_files(aws) == set()
    customer.delete_endpoint_config(EndpointConfigName="foreign")
    customer.delete_model(ModelName="foreign")
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v1-hooked"}


def test_an_incident_of_a_watched_endpoint_is_explained_and_restored(aws, customer):
    """The hooked model writes into the stack's bucket with the customer's role."""
    # sam deploy uploaded wheels for Lambda's Python; the embedded AWS runs functions on this machine's
    redeploy(ROOT / "template.yaml", "glassbox", {}, aws.session)
    customer.update_endpoint_weights_and_capacities(
        EndpointName=ENDPOINT,
        DesiredWeightsAndCapacities=[{"VariantName": "Blue", "DesiredInstanceCount": 2}],
    )
    in_service(customer, ENDPOINT)
    images, labels = signs.dataset(400, seed=77, size=48)
    runtime = aws.client("sagemaker-runtime")
    for number in range(60):
        of = images[labels != 14] if number % 6 == 0 else images[labels == 14]
        body = io.BytesIO()
        np.save(body, of[number % len(of)], allow_pickle=False)
        runtime.invoke_endpoint(EndpointName=ENDPOINT, ContentType="application/x-npy", Body=body.getvalue())
    wait_for(lambda: incident(aws) and incident(aws).state == "NORMAL", 300)
    assert not incident(aws).failure
    assert incident(aws).replays <= incident(aws).heatmaps
    assert live(aws) == ("InService", "Shop-v1")
    (variant,) = customer.describe_endpoint(EndpointName=ENDPOINT)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 2  # the swaps keep what scaling set


def test_explain_saves_a_heat_map_and_restores_the_endpoint(aws, tool, customer, tmp_path):
    image = tmp_path / "sign.png"
    Image.fromarray(signs.dataset(1, seed=5, size=48)[0][0]).save(image)
    before = incident(aws)
    assert f"ENDPOINT: expected {ENDPOINT}, the endpoint of stack glassbox, got blind." in tool(
        "explain", "--image", str(image), "--endpoint", "blind", fails=True
    )
    assert "Cancelled: nothing was changed." in tool("explain", "--image", str(image), fails=True)
    assert incident(aws) == before
    output = tool("explain", "--image", str(image), "--endpoint", ENDPOINT, "--yes")
    assert "Heat map: out/explain/sign.png" in output
    assert Image.open(ROOT / "out/explain/sign.png").info["complete"] == "yes"
    wait_for(lambda: incident(aws).state == "NORMAL" and incident(aws).id != before.id)
    assert live(aws) == ("InService", "Shop-v1")


def test_twin_follows_an_owners_deployment(aws, tool, customer):
    owner_deploys(customer, "Shop-v2")
    output = tool("twin")
    assert f"{ENDPOINT} runs Shop-v2; its hooked twin is shop-v2-hooked." in output
    assert "deleted: shop-v1-hooked" in output
    assert "deleted: signs-v1-hooked" in output
    parameters, outputs = stack(aws)
    assert (outputs["PlainConfig"], outputs["HookedConfig"]) == ("Shop-v2", "shop-v2-hooked")
    assert parameters["MaxFlaggedReplays"] == "2"
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v2-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v2-hooked"}
    assert "shop-v2-hooked" in tool("twin")  # twice, without a change
    assert live(aws) == ("InService", "Shop-v2")


def container(customer, model):
    return customer.describe_model(ModelName=model)["PrimaryContainer"]


HOOKED_IMAGE = f"{REGISTRY}/glassbox-serving:local"


def test_twin_replaces_only_models_of_its_stack(aws, tool, customer):
    tool("twin", "--image", HOOKED_IMAGE)
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    arn = customer.describe_model(ModelName="signs-v2-hooked")["ModelArn"]
    customer.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox", "Value": "another-stack"}])
    output = tool("twin", "--image", SERVING, fails=True)
    assert "signs-v2-hooked already exists and does not belong to stack glassbox" in output
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    customer.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox", "Value": "glassbox"}])


def test_twin_keeps_an_image_across_models(aws, tool, customer):
    kept = f"keeps IMAGE={HOOKED_IMAGE} of the previous twin"
    assert kept in tool("twin")
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    owner_deploys(customer, "Shop-v1")
    output = tool("plan", *WATCH)
    assert kept in output
    assert f"model signs-v1-hooked: signs-v1 with IMAGE={HOOKED_IMAGE}, the hook enabled" in output
    assert "the twin runs the endpoint's own image" not in output
    assert kept in tool("twin")
    assert container(customer, "signs-v1-hooked")["Image"] == HOOKED_IMAGE
    # the endpoint's own image is not an override
    tool("twin", "--image", SERVING)
    assert "keeps" not in tool("twin")
    assert container(customer, "signs-v1-hooked")["Image"] == SERVING


def test_twin_keeps_model_data_only_for_the_same_model(aws, tool, customer):
    own = container(customer, "signs-v1")["ModelDataUrl"]
    others = f"s3://{MODELS}/hooked/model.tar.gz"
    source = {"Bucket": MODELS, "Key": own.removeprefix(f"s3://{MODELS}/")}
    aws.client("s3").copy_object(Bucket=MODELS, Key="hooked/model.tar.gz", CopySource=source)
    tool("twin", "--model-data", others)
    assert f"keeps MODEL_DATA={others}" in tool("twin")
    assert container(customer, "signs-v1-hooked")["ModelDataUrl"] == others
    owner_deploys(customer, "Shop-v2")
    for command in (("twin",), ("plan", *WATCH), ("deploy", *WATCH, "--yes")):
        output = tool(*command, fails=True)
        assert (
            f"MODEL_DATA: expected model data of signs-v2, got {others} of the previous twin's model."
            in output
        )
        assert stack(aws)[1]["PlainConfig"] == "Shop-v1"
    tool("twin", "--model-data", own)
    assert container(customer, "signs-v2-hooked")["ModelDataUrl"] == own
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v2-hooked"}


def test_twin_requires_an_image_after_its_model_was_deleted(aws, tool, customer):
    customer.delete_model(ModelName="signs-v2-hooked")
    assert "Model signs-v2-hooked of the previous twin shop-v2-hooked: expected an existing model" in tool(
        "twin", fails=True
    )
    tool("twin", "--image", SERVING)
    assert container(customer, "signs-v2-hooked")["Image"] == SERVING


def test_commands_refuse_a_stack_of_another_application(aws, tool, customer):
    cloudformation, theirs = aws.client("cloudformation"), {"StackName": "their-app"}
    body = json.dumps({"Resources": {"Jobs": {"Type": "AWS::SQS::Queue"}}})
    cloudformation.create_stack(**theirs, TemplateBody=body)
    cloudformation.get_waiter("stack_create_complete").wait(**theirs, WaiterConfig={"Delay": 1})
    for command in (("plan", *WATCH), ("deploy", *WATCH, "--yes"), ("remove", "--yes"), ("twin",)):
        output = tool(*command, "--stack", "their-app", fails=True)
        assert (
            "STACK: expected a Glassbox stack or a new name, got their-app, a stack of another application."
            in output
        )
    (resource,) = cloudformation.describe_stack_resources(**theirs)["StackResources"]
    assert resource["ResourceStatus"] == "CREATE_COMPLETE"
    cloudformation.delete_stack(**theirs)


def test_plan_refuses_another_endpoint_for_a_stack(tool):
    output = tool("plan", "--image", SERVING, fails=True)
    assert f"Stack glassbox: expected ENDPOINT={ENDPOINT}, got no ENDPOINT. Set STACK=…" in output
    output = tool("plan", "--endpoint", "another", fails=True)
    assert f"Stack glassbox: expected ENDPOINT={ENDPOINT}, got ENDPOINT=another." in output


def opening(aws):
    """Return the states of the rules and the queue's mapping that open incidents."""
    events, physical = aws.client("events"), aws.client("cloudformation").describe_stack_resource
    rules = ("ViolationRule", "OpenRule", "MonitorJobRule", "MonitorReportRule")
    found = [
        physical(StackName="glassbox", LogicalResourceId=name)["StackResourceDetail"]["PhysicalResourceId"]
        for name in (*rules, "SwapEndpointFunctionQueue")
    ]
    mapping = aws.client("lambda").get_event_source_mapping(UUID=found.pop())
    return {events.describe_rule(Name=name)["State"].title() for name in found} | {mapping["State"]}


def test_an_interrupted_remove_re_enables_the_rules(aws, tool, customer):
    for mapping in ("RenderSaliencyFunctionQueue", "RestoreEndpointFunctionQueue"):
        pause(aws, mapping)  # so that the incident does not end
    command(aws, "open")
    wait_for(lambda: live(aws) == ("InService", "shop-v2-hooked"))
    assert "Wait until it is closed, or abort it" in tool("plan", *WATCH, fails=True)
    removing = subprocess.Popen(
        **command_line(aws, "remove", "--yes"),
        stdout=subprocess.PIPE,
        # a background process may inherit an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while f"Aborting the open incident of {ENDPOINT} and restoring Shop-v2" not in (
        line := removing.stdout.readline()
    ):
        assert line
    assert opening(aws) == {"Disabled"}
    removing.send_signal(signal.SIGINT)
    output, _ = removing.communicate(timeout=60)
    assert removing.returncode != 0
    assert "make remove is resumable" in output
    assert opening(aws) == {"Enabled"}
    assert "shop-v2-hooked" in names(aws, "endpoint_config")


def test_remove_closes_the_incident_and_restores_the_endpoint(aws, tool, customer):
    outputs, open_id = stack(aws)[1], incident(aws).id
    bucket, key = outputs["Bucket"], ReplayKey(aws.client("kms"), outputs["ReplayKeyArn"]).public()
    pause(aws, "RestoreEndpointFunctionQueue", on=True)
    tool("remove", "--yes")
    assert live(aws) == ("InService", "Shop-v2")
    assert names(aws, "endpoint_config") == CONFIGS
    assert names(aws, "model") == {"signs-v1", "signs-v2"}
    with pytest.raises(Exception, match="does not exist"):
        stack(aws)
    saved = aws.client("s3").get_object(Bucket=bucket, Key=f"monitoring/{ENDPOINT}/replay-key/public.pem")
    assert PublicKey.from_pem(saved["Body"].read()) == key
    page = f"incidents/{ENDPOINT}/{open_id}/index.html"
    assert b"abort" in aws.client("s3").get_object(Bucket=bucket, Key=page)["Body"].read()
    assert "STACK: expected an existing stack in eu-west-1, got glassbox." in tool(
        "remove", "--yes", fails=True
    )


def test_deploy_creates_new_storage_after_a_removal(aws, tool, customer):
    """Its twin cannot be created at first; make twin completes the stack."""
    left = buckets(aws), set(aws.client("dynamodb").list_tables()["TableNames"])
    missing = f"s3://{MODELS}/missing.tar.gz"
    output = tool("deploy", *WATCH, *settings(aws), "--model-data", missing, "--yes", fails=True)
    assert f"Could not access model data at {missing}" in output
    assert "Stack glassbox exists without a twin and cannot swap." in output
    assert names(aws, "endpoint_config") == CONFIGS
    outputs = stack(aws)[1]
    assert buckets(aws) - left[0] == {outputs["Bucket"]}
    tables = set(aws.client("dynamodb").list_tables()["TableNames"])
    assert tables - left[1] == {outputs["CountsTable"], outputs["IncidentsTable"]}
    assert tables > left[1]
    assert len([name for name in buckets(aws) if name.startswith("glassbox-bucket")]) == 2
    tool("twin")
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v2-hooked"}


def test_remove_completes_a_partial_deletion(aws, tool, customer):
    physical = aws.client("cloudformation").describe_stack_resource
    rule, mapping = (
        physical(StackName="glassbox", LogicalResourceId=name)["StackResourceDetail"]["PhysicalResourceId"]
        for name in ("ViolationRule", "SwapEndpointFunctionQueue")
    )
    aws.client("events").remove_targets(Rule=rule, Ids=["queue"])
    aws.client("events").delete_rule(Name=rule)
    aws.client("lambda").delete_event_source_mapping(UUID=mapping)
    customer.delete_model(ModelName="signs-v2-hooked")
    assert "Deleted: stack glassbox, shop-v2-hooked\n" in tool("remove", "--yes")
    assert names(aws, "endpoint_config") == CONFIGS


def test_an_endpoint_without_twin_support_is_watched_with_react_false(aws, tool, customer, blind_on, request):
    plain = customer.describe_model(ModelName="signs-v1")
    customer.create_model(
        ModelName="isolated",
        ExecutionRoleArn=plain["ExecutionRoleArn"],
        PrimaryContainer=plain["PrimaryContainer"],
        EnableNetworkIsolation=True,
    )
    request.addfinalizer(lambda: customer.delete_model(ModelName="isolated"))
    blind_on("isolated", model="isolated", DataCaptureConfig=CAPTURE)
    before = names(aws, "model"), names(aws, "endpoint_config")
    wanted = ("--endpoint", "blind", "--threshold", "0.5", "--stack", "quiet")
    output = tool("plan", *wanted, fails=True)
    assert "model isolated: expected EnableNetworkIsolation=false to write tensors to S3, got true" in output
    assert 'Set SET="React=false" to watch and notify without a twin.' in output
    quiet = (*wanted, "--set", f"AwsEndpointUrl={aws.endpoint_url}", "React=false")
    output = tool("deploy", *quiet, "--yes")
    assert "Glassbox never updates endpoint blind (React=false)" in output
    assert "hooked" not in output
    assert "swap" not in output
    parameters, _ = stack(aws, "quiet")
    assert (parameters["HookedConfigName"], parameters["EndpointRoleArns"]) == ("", "")
    assert (names(aws, "model"), names(aws, "endpoint_config")) == before
    for command in (("twin",), ("explain", "--image", "sign.png", "--yes")):
        assert "Stack quiet: expected React=true, got false." in tool(
            *command, "--stack", "quiet", fails=True
        )
    output = tool("remove", "--stack", "quiet", "--yes")
    assert "Deleted: stack quiet\n" in output
    assert "Endpoint blind serves its original config." in output


# ---------------------------------------------------------------- an endpoint of the stack


def test_plan_requires_a_serving_image(tool):
    output = tool("plan", "--threshold", "0.5", fails=True)
    assert "ServingImage: expected glassbox-serving in" in output
    assert "Run make images and make push" in output


def test_a_stack_with_its_own_endpoint_is_deployed_updated_and_removed(aws, tool):
    wanted = ("--threshold", "0.5", "--image", SERVING, "--stack", "own")
    output = tool("plan", *wanted)
    assert "The stack's own endpoint: own, image" in output
    assert "A swap starts 1 more ml.m5.large, 0 of 100 are in use: the quota is sufficient." in output
    tool("deploy", *wanted, *settings(aws), "--yes")
    _, outputs = stack(aws, "own")
    image, _ = signs.dataset(1, seed=14, size=48)
    body = io.BytesIO()
    np.save(body, image[0], allow_pickle=False)
    answer = aws.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=outputs["EndpointName"], ContentType="application/x-npy", Body=body.getvalue()
    )
    assert "predictions" in json.loads(answer["Body"].read())
    assert "expected a watched endpoint, got own, the stack's own." in tool(
        "twin", "--stack", "own", fails=True
    )
    assert f"Stack own: expected its own endpoint own, got ENDPOINT={ENDPOINT}." in tool(
        "plan", "--stack", "own", "--endpoint", ENDPOINT, fails=True
    )
    another = (
        "plan",
        "--threshold",
        "0.5",
        "--image",
        SERVING,
        "--stack",
        "another",
        "--set",
        "EndpointName=own",
    )
    assert "EndpointName: own already exists in eu-west-1 and does not belong to stack another" in tool(
        *another, fails=True
    )
    model = stack(aws, "own")[0]["ModelDataUrl"]
    ecr, repository = aws.client("ecr"), {"repositoryName": "glassbox-serving"}
    ecr.create_repository(**repository)
    ecr.put_image(**repository, imageTag=tag("glassbox-serving"), imageManifest='{"schemaVersion": 2}')
    output = tool("deploy", "--stack", "own", "--threshold", "0.6", "--set", "MaxFlaggedReplays=3", "--yes")
    ecr.delete_repository(**repository, force=True)
    assert "MaxClassShare: 0.5 -> 0.6" in output
    assert stack(aws, "own")[0]["ServingImage"] == SERVING  # not the image pushed later
    assert "Would upload" not in output
    assert stack(aws, "own")[0]["ModelDataUrl"] == model  # not the sample again
    output = tool("plan", "--stack", "own", "--set", f"ModelDataUrl={model}-2")
    assert f"ModelDataUrl: {model} -> {model}-2" in output
    assert "Would upload" not in output
    change_parameters("own", {"Architecture": "arm64"}, aws.client("cloudformation"))
    output = tool("plan", "--stack", "own", fails=True)
    assert (
        "Architecture: expected a build for arm64, as stack own has it, got one for x86_64. Set ARCHITECTURE=arm64."
        in output
    )
    change_parameters("own", {"Architecture": "x86_64"}, aws.client("cloudformation"))
    change_storage_version(aws, "own")
    output = tool("deploy", "--stack", "own", "--yes", fails=True)
    assert output == (
        "Stack own: expected storage version 1, got another. Run make remove STACK=own, which keeps the bucket and "
        "the tables and prints their names, then make deploy.\n"
    )
    assert "Cancelled: nothing was changed." in tool("remove", "--stack", "own", fails=True)
    assert "Deleted: stack own\n" in tool("remove", "--stack", "own", "--yes")


def change_storage_version(aws, name):
    """Update only the output StorageVersion of a stack."""
    cloudformation = aws.client("cloudformation")
    body = cloudformation.get_template(StackName=name)["TemplateBody"]
    body = body if isinstance(body, dict) else yaml_parse(body)
    body["Outputs"]["StorageVersion"]["Value"] = "another"
    kept = [{"ParameterKey": key, "UsePreviousValue": True} for key in stack(aws, name)[0]]
    # a template of this size exceeds the limit of a request
    aws.client("s3").put_object(
        Bucket=MODELS, Key="another.template", Body=json.dumps(body, default=str).encode()
    )
    cloudformation.update_stack(
        StackName=name,
        TemplateURL=f"{aws.endpoint_url}/{MODELS}/another.template",
        Parameters=kept,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    wait_for(lambda: stack(aws, name)[1]["StorageVersion"] == "another", 60)


# ---------------------------------------------------------------- images and names


DOCKER = f"""#!{sys.executable}
import os, pathlib, sys

sys.path.insert(0, {str(ROOT)!r})
import boto3
from deploy.images import tag

here, calls = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "calls").open("a") as file:
    print(*calls, file=file)
if calls[0] == "login":
    (here / "password").write_text(sys.stdin.read())
elif calls[:2] == ["image", "inspect"]:
    print(os.environ.get("SOURCES") or tag(calls[-1]))
elif calls[0] == "push":
    repository, _, name = calls[-1].rpartition("/")[2].partition(":")
    kind = os.environ.get("KIND", "application/vnd.docker.distribution.manifest.v2+json")
    boto3.client("ecr").put_image(
        repositoryName=repository, imageTag=name, imageManifest='{{"schemaVersion": 2}}', imageManifestMediaType=kind
    )
"""


SKOPEO = f"""#!{sys.executable}
import pathlib, sys

import boto3

arguments = sys.argv[1:]
(pathlib.Path(__file__).parent / "converted").write_text(" ".join(arguments))
repository, _, name = arguments[-1].rpartition("/")[2].partition(":")
boto3.client("ecr").put_image(repositoryName=repository, imageTag=name, imageManifest="{{}}")
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_push_logs_in_creates_the_repositories_and_pushes_once(aws, tool, tmp_path):
    """A fake docker records its calls, and puts a pushed image into the embedded ECR."""
    executable(tmp_path / "docker", DOCKER)
    path = {"PATH": str(tmp_path)}

    assert (
        "Image glassbox-serving: expected a build of the current sources, got old. Run make images."
        in tool("push", fails=True, SOURCES="old", **path)
    )
    oci = "application/vnd.oci.image.index.v1+json"
    output = tool("push", fails=True, KIND=oci, **path)
    assert f"got {oci}, which SageMaker refuses. Install Docker's plugin buildx" in output
    assert not aws.client("ecr").list_images(repositoryName="glassbox-serving")["imageIds"]
    ecr = aws.client("ecr")
    left = {"repositoryName": "glassbox-serving", "imageTag": tag("glassbox-serving"), "imageManifest": "{}"}
    ecr.put_image(**left, imageManifestMediaType=oci)  # as an interrupted push leaves it
    (tmp_path / "calls").unlink()

    pushed = tool("push", **path).splitlines()
    assert [uri.rpartition(":")[0] for uri in pushed] == [
        f"{REGISTRY}/glassbox-serving",
        f"{REGISTRY}/glassbox-monitor",
    ]
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "inspect" not in line]
    assert calls[0].startswith("login --username AWS --password-stdin ")
    assert (tmp_path / "password").read_text()
    assert calls[1:] == [
        f"tag glassbox-serving {pushed[0]}",
        f"push --quiet {pushed[0]}",
        f"tag glassbox-monitor {pushed[1]}",
        f"push --quiet {pushed[1]}",
    ]
    made = aws.client("ecr").describe_repositories()["repositories"]
    assert {r["repositoryName"] for r in made} == {"glassbox-serving", "glassbox-monitor"}
    assert tool("push", **path) == "ECR already contains both images.\n"
    output = tool("plan", "--threshold", "0.5", "--stack", "with-images")
    assert pushed[0] in output
    assert "hourly job" not in output


def test_push_converts_an_oci_image_with_skopeo(aws, tool, tmp_path):
    executable(tmp_path / "docker", DOCKER)
    executable(tmp_path / "skopeo", SKOPEO)
    ecr, oci = aws.client("ecr"), "application/vnd.oci.image.manifest.v1+json"
    for repository in ("glassbox-serving", "glassbox-monitor"):
        ecr.delete_repository(repositoryName=repository, force=True)
    pushed = tool("push", KIND=oci, PATH=str(tmp_path)).splitlines()
    assert len(pushed) == 2
    converted = (tmp_path / "converted").read_text()
    assert re.fullmatch(
        rf"copy --quiet --format v2s2 docker-archive:\S+/image.tar docker://{pushed[1]}", converted
    )
    assert "save --output" in (tmp_path / "calls").read_text()
    for uri in pushed:
        repository, _, name = uri.rpartition("/")[2].partition(":")
        (image,) = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": name}])[
            "imageDetails"
        ]
        assert image["imageManifestMediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_twin_names_are_unique_and_valid():
    """Long names with a date at the end have the same first 56 characters."""
    named = [f"the-shop-windows-of-all-branches-endpointcfg-2026-{month}-23" for month in (11, 12)]
    code = f"from deploy.twin import twin_name; print(*map(twin_name, {[*named, 'Shop-v1']}))"
    command = [str(ROOT / PYTHON), "-c", code]
    first, second, short = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert short == "shop-v1-hooked"
    assert first != second
    for name in (first, second):
        assert re.fullmatch(r"[a-z0-9](-*[a-z0-9]){0,62}-hooked", name)
        assert len(name) <= 63


def test_commands_require_a_region(tool):
    output = tool("plan", "--threshold", "0.5", fails=True, AWS_REGION="", AWS_DEFAULT_REGION="")
    assert "AWS_REGION: expected a region, got none." in output
