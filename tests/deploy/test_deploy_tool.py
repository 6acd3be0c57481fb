"""The deploy tool as its users run it, with the real `sam deploy`, on the embedded AWS: `make deploy-test`.

First for an endpoint that a customer has: a role, a capture bucket and notifications of their own.
"""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys

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
from watching import wait_for

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
    with EmbeddedAws() as aws:
        yield aws


def command_line(aws, *arguments, **environment):
    """What subprocess is called with."""
    account = aws.environment | {"AWS_REGION": REGION, "PYTHONPATH": PYTHONPATH}
    return {
        "args": [str(ROOT / PYTHON), "-m", "deploy", *arguments],
        "cwd": ROOT,
        "env": os.environ | account | environment,
        "text": True,
    }


@pytest.fixture(scope="module")
def tool(aws):
    """Runs `python -m deploy`, with the account's rights; expects it to end well, or with `fails`."""

    def run(*arguments, fails=False, **environment):
        done = subprocess.run(
            **command_line(aws, *arguments, **environment), capture_output=True, timeout=300
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture(scope="module")
def customer(aws):
    """What a customer has: bucket, role, model, endpoint. The role may write captures, and nothing of ours."""
    s3, sqs, iam, sagemaker = (aws.client(name) for name in ("s3", "sqs", "iam", "sagemaker"))
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
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="acme-endpoint", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    rights = [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{MODELS}/*"},
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{CAPTURES}/*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": rights})
    iam.put_role_policy(RoleName="acme-endpoint", PolicyName="endpoint", PolicyDocument=policy)
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
    endpoints = {ENDPOINT: "Shop-v1", "blind": "no-capture", "Shop-Door": "Shop-v1"}
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


WANTED = ("--endpoint", ENDPOINT, "--threshold", "0.5")


def given(aws):
    return (
        "--set",
        f"AwsEndpointUrl={aws.endpoint_url}",
        "CooldownMinutes=0",
        "MaxFlaggedReplays=2",
        "MaxComparisonReplays=1",
    )


# ---------------------------------------------------------------- an endpoint that is there


def test_plan_says_in_words_what_would_be_and_makes_nothing(aws, tool, customer):
    notifications = aws.client("s3").get_bucket_notification_configuration(Bucket=CAPTURES)
    said = tool("plan", *WANTED, *given(aws))
    assert f"Account {ACCOUNT}, region {REGION}: stack glassbox would be created, with" in said
    assert "5 Lambda functions" in said
    assert f"endpoint {ENDPOINT} is InService on config Shop-v1" in said
    assert f"variant Blue: 1 x ml.m5.xlarge, model signs-v1 ({SERVING})" in said
    assert (
        f"captures 100 % of the requests, inputs and outputs, to s3://{CAPTURES}/sagemaker/captured/" in said
    )
    assert "endpoint config shop-v1-hooked: Shop-v1 with the models above" in said
    assert (
        f"Bucket {CAPTURES} would notify EventBridge of its objects; its 1 other notification stays" in said
    )
    assert "hourly job is left out" in said
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
        ("nobodys", "Could not find endpoint"),
        ("blind", "has no data capture: create a config with a DataCaptureConfig"),
    ],
)
def test_an_endpoint_that_cannot_be_watched_is_refused_with_the_reason(tool, customer, endpoint, reason):
    assert reason in tool("plan", "--endpoint", endpoint, "--threshold", "0.5", fails=True)


@pytest.fixture
def blind_on(aws, customer):
    """Moves the endpoint `blind` to a config with these members beside its variant, and back after the test."""
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


def test_a_capture_bucket_elsewhere_is_refused(aws, tool, blind_on):
    """Here the rule would be deployed, and never see an event."""
    far = aws.session.client("s3", region_name="us-west-2")
    far.create_bucket(Bucket="acme-far", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    blind_on("far", DataCaptureConfig=CAPTURE | {"DestinationS3Uri": "s3://acme-far/captured"})
    wanted = ("plan", "--endpoint", "blind", "--threshold", "0.5")
    assert "bucket acme-far is in region us-west-2, the endpoint in eu-west-1" in tool(*wanted, fails=True)
    theirs = aws.session.client("s3", aws_access_key_id="999999999999", aws_secret_access_key="test")
    theirs.create_bucket(Bucket="not-acme", CreateBucketConfiguration={"LocationConstraint": REGION})
    blind_on("foreign", DataCaptureConfig=CAPTURE | {"DestinationS3Uri": "s3://not-acme/captured"})
    assert f"bucket not-acme belongs to another account than {ACCOUNT}" in tool(*wanted, fails=True)


def test_plan_names_what_a_volume_keys_policy_must_allow(aws, tool, blind_on):
    key = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    blind_on("with-key", DataCaptureConfig=CAPTURE, KmsKeyId=key.rpartition("/")[2])
    said = tool("plan", "--endpoint", "blind", "--threshold", "0.5", "--stack", "keyed")
    assert f"Key {key} encrypts the instances' volumes" in said
    statements = [json.loads(line) for line in said.splitlines() if line.startswith('  {"Effect"')]
    assert [statement["Action"] for statement in statements] == ["kms:DescribeKey", "kms:CreateGrant"]
    for statement in statements:
        assert statement["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        roles = statement["Condition"]["ArnLike"]["aws:PrincipalArn"]
        assert roles == f"arn:aws:iam::{ACCOUNT}:role/keyed*"
    assert statements[1]["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


def test_plan_says_whether_a_swap_fits_the_quota(aws, tool, customer):
    assert "A swap starts 1 more ml.m5.xlarge: 3 of 100 are in use, it fits." in tool("plan", *WANTED)
    aws.control("quotas", **{"ml.m5.xlarge": 3})
    said = tool("plan", *WANTED)
    aws.control("quotas")
    assert "A swap starts 1 more ml.m5.xlarge: 3 of 3 are in use, IT DOES NOT FIT" in said


def test_what_cloudformation_would_refuse_is_refused_at_once(tool, customer):
    given = (
        "--endpoint",
        ENDPOINT,
        "--image",
        "glassbox-serving:latest",
        "--email",
        "ops",
        "--model",
        "none.pt",
    )
    said = tool(
        "plan",
        *given,
        "--set",
        "MaxFlagedReplays=20",
        "MaxComparisonReplays=many",
        "MaxHeatmaps=0",
        "Stage=test",
        fails=True,
    )
    assert said.splitlines() == [
        "MaxClassShare is missing (THRESHOLD=…): Largest share of one class in a window before it is a violation, "
        "0 to 1. "
        "There is no default, it depends on your traffic.",
        "NotificationEmail: expected an address, such as ops@example.com, got 'ops'",
        "MaxFlagedReplays: expected a parameter of the stack. Did you mean MaxFlaggedReplays?",
        "MaxComparisonReplays: expected a number from 0 to 100, got 'many'",
        "MaxHeatmaps: expected a number from 1 to 1000, got '0'",
        "Stage: expected dev or prod, got 'test'",
        "ServingImage: expected an image in ECR, account.dkr.ecr.region.amazonaws.com/name:tag, got "
        "'glassbox-serving:latest'",
        "MODEL is for an endpoint of the stack's own: MODEL_DATA=s3://… gives the twin another model",
        "MODEL: expected a file, got none.pt",
    ]


def test_what_the_endpoint_decides_cannot_be_given_by_hand(tool, customer):
    """A twin of another name than the stack's would be deleted as one that is left over."""
    said = tool("plan", *WANTED, "--set", "HookedConfigName=mine", "ModelDataUrl=s3://b/m", fails=True)
    assert said.splitlines() == [
        f"HookedConfigName: it follows from ENDPOINT={ENDPOINT}, and cannot be given as 'mine'",
        f"ModelDataUrl: it follows from ENDPOINT={ENDPOINT}, and cannot be given as 's3://b/m'",
    ]


def test_without_a_yes_nothing_is_done(aws, tool, customer):
    assert "Nothing was done" in tool("deploy", *WANTED, *given(aws), fails=True)
    assert "EventBridgeConfiguration" not in aws.client("s3").get_bucket_notification_configuration(
        Bucket=CAPTURES
    )


def test_deploy_makes_stack_and_twin_and_leaves_the_endpoint_alone(aws, tool, customer):
    before = customer.describe_endpoint(EndpointName=ENDPOINT)["LastModifiedTime"]
    said = tool("deploy", *WANTED, *given(aws), "--email", "ops@example.com", "--yes")
    assert "Confirm the subscription e-mail sent to ops@example.com" in said
    assert "was set off for a test, and the topic took its notification" in said
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


def test_deploying_again_changes_nothing(aws, tool):
    twins = names(aws, "endpoint_config"), names(aws, "model")
    said = tool("deploy", *WANTED, *given(aws), "--email", "ops@example.com", "--yes")
    assert "stack glassbox would be updated" in said
    assert "Parameters that are not given stay as they are" in said
    assert f"Bucket {CAPTURES} already notifies EventBridge" in said
    assert (names(aws, "endpoint_config"), names(aws, "model")) == twins


def test_a_twin_of_another_stack_is_in_the_way_of_a_second_one(aws, tool, customer):
    """Two endpoints that share a config: the second one's stack would take the first one's twin for its own."""
    said = tool("plan", "--stack", "door", "--endpoint", "Shop-Door", "--threshold", "0.5", fails=True)
    assert "signs-v1-hooked, the twin's name, already exists and does not belong to stack door" in said
    assert said.count("\n") == 1


def test_a_second_stack_on_an_endpoint_is_refused_and_the_first_named(aws, tool, customer):
    said = tool("plan", "--stack", "second", "--endpoint", ENDPOINT, "--threshold", "0.5", fails=True)
    assert (
        f"Endpoint {ENDPOINT} is watched by stack glassbox, and only one stack may watch an endpoint" in said
    )


def test_deploying_again_follows_what_the_owner_deployed(aws, tool, customer):
    """The new config has the same model, and so has its twin: that one stays."""
    owner_deploys(customer, "Shop-v1-larger")
    said = tool("deploy", *WANTED, *given(aws), "--yes")
    assert "PlainConfigName: Shop-v1 -> Shop-v1-larger" in said
    assert "deleted: shop-v1-hooked" in said
    assert stack(aws)[1]["HookedConfig"] == "shop-v1-larger-hooked"
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v1-larger-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v1-hooked"}


def test_a_twin_keeps_the_model_that_it_has_in_common_with_the_one_before(aws, tool, customer):
    owner_deploys(customer, "Shop-v1")
    said = tool("twin")
    assert [line for line in said.splitlines() if "deleted" in line] == ["deleted: shop-v1-larger-hooked"]
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v1-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v1-hooked"}


def test_an_incident_of_the_customers_endpoint_is_explained_and_restored(aws, customer):
    """With the customer's own role the hooked model writes into the stack's bucket, whose policy lets it."""
    # what sam deploy uploaded is for Lambda's Python; the embedded AWS runs functions on the one that is here
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
    assert variant["CurrentInstanceCount"] == 2  # as scaling had left it


def test_one_image_is_explained_and_the_endpoint_put_back(aws, tool, customer, tmp_path):
    image = tmp_path / "sign.png"
    Image.fromarray(signs.dataset(1, seed=5, size=48)[0][0]).save(image)
    before = incident(aws)
    assert f"watches {ENDPOINT}" in tool("explain", "--image", str(image), "--endpoint", "blind", fails=True)
    assert "Nothing was done" in tool("explain", "--image", str(image), fails=True)
    assert incident(aws) == before
    said = tool("explain", "--image", str(image), "--endpoint", ENDPOINT, "--yes")
    assert "The picture: out/explain/sign.png" in said
    assert Image.open(ROOT / "out/explain/sign.png").info["complete"] == "yes"
    wait_for(lambda: incident(aws).state == "NORMAL" and incident(aws).id != before.id)
    assert live(aws) == ("InService", "Shop-v1")


def test_twin_follows_what_the_owner_deployed(aws, tool, customer):
    owner_deploys(customer, "Shop-v2")
    said = tool("twin")
    assert f"{ENDPOINT} runs Shop-v2; its hooked twin is shop-v2-hooked." in said
    assert "deleted: shop-v1-hooked" in said
    assert "deleted: signs-v1-hooked" in said
    parameters, outputs = stack(aws)
    assert (outputs["PlainConfig"], outputs["HookedConfig"]) == ("Shop-v2", "shop-v2-hooked")
    assert parameters["MaxFlaggedReplays"] == "2"
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v2-hooked"}
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v2-hooked"}
    assert "shop-v2-hooked" in tool("twin")  # again, nothing to do
    assert live(aws) == ("InService", "Shop-v2")


def container(customer, model):
    return customer.describe_model(ModelName=model)["PrimaryContainer"]


HOOKED_IMAGE = f"{REGISTRY}/glassbox-serving:local"


def test_a_twin_that_is_no_longer_as_wanted_is_made_again(aws, tool, customer):
    tool("twin", "--image", HOOKED_IMAGE)
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    arn = customer.describe_model(ModelName="signs-v2-hooked")["ModelArn"]
    customer.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox", "Value": "somebody-elses"}])
    said = tool("twin", "--image", SERVING, fails=True)
    assert "signs-v2-hooked, the twin's name, already exists and does not belong to stack glassbox" in said
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    customer.add_tags(ResourceArn=arn, Tags=[{"Key": "glassbox", "Value": "glassbox"}])


def test_an_image_that_is_not_given_again_stays_and_goes_along_to_the_next_model(aws, tool, customer):
    kept = f"keeps IMAGE={HOOKED_IMAGE}, as the one before"
    assert kept in tool("twin")
    assert container(customer, "signs-v2-hooked")["Image"] == HOOKED_IMAGE
    owner_deploys(customer, "Shop-v1")
    said = tool("plan", *WANTED)
    assert kept in said
    assert f"model signs-v1-hooked: signs-v1 with image {HOOKED_IMAGE}, the hook on" in said
    assert "the twin runs the endpoint's own image" not in said
    assert kept in tool("twin")
    assert container(customer, "signs-v1-hooked")["Image"] == HOOKED_IMAGE
    # the endpoint's own image is nothing that would be kept
    tool("twin", "--image", SERVING)
    assert "keeps" not in tool("twin")
    assert container(customer, "signs-v1-hooked")["Image"] == SERVING


def test_model_data_stays_with_its_model_and_is_asked_for_again_for_another(aws, tool, customer):
    own = container(customer, "signs-v1")["ModelDataUrl"]
    others = f"s3://{MODELS}/hooked/model.tar.gz"
    source = {"Bucket": MODELS, "Key": own.removeprefix(f"s3://{MODELS}/")}
    aws.client("s3").copy_object(Bucket=MODELS, Key="hooked/model.tar.gz", CopySource=source)
    tool("twin", "--model-data", others)
    assert f"keeps MODEL_DATA={others}" in tool("twin")
    assert container(customer, "signs-v1-hooked")["ModelDataUrl"] == others
    owner_deploys(customer, "Shop-v2")
    for command in (("twin",), ("plan", *WANTED), ("deploy", *WANTED, "--yes")):
        said = tool(*command, fails=True)
        assert f"MODEL_DATA={others} was given for the twin of another model than signs-v2" in said
        assert stack(aws)[1]["PlainConfig"] == "Shop-v1"
    tool("twin", "--model-data", own)
    assert container(customer, "signs-v2-hooked")["ModelDataUrl"] == own
    assert names(aws, "model") == {"signs-v1", "signs-v2", "signs-v2-hooked"}


def test_an_override_whose_model_is_gone_is_asked_for(aws, tool, customer):
    customer.delete_model(ModelName="signs-v2-hooked")
    assert "signs-v2-hooked of the twin shop-v2-hooked is gone" in tool("twin", fails=True)
    tool("twin", "--image", SERVING)
    assert container(customer, "signs-v2-hooked")["Image"] == SERVING


def test_a_stack_that_is_not_of_glassbox_is_left_alone(aws, tool, customer):
    cloudformation, theirs = aws.client("cloudformation"), {"StackName": "their-app"}
    body = json.dumps({"Resources": {"Jobs": {"Type": "AWS::SQS::Queue"}}})
    cloudformation.create_stack(**theirs, TemplateBody=body)
    cloudformation.get_waiter("stack_create_complete").wait(**theirs, WaiterConfig={"Delay": 1})
    for command in (("plan", *WANTED), ("deploy", *WANTED, "--yes"), ("remove", "--yes"), ("twin",)):
        said = tool(*command, "--stack", "their-app", fails=True)
        assert "Stack their-app exists, and is not a Glassbox stack: STACK=… names another" in said
    (resource,) = cloudformation.describe_stack_resources(**theirs)["StackResources"]
    assert resource["ResourceStatus"] == "CREATE_COMPLETE"
    cloudformation.delete_stack(**theirs)


def test_a_stack_keeps_to_its_endpoint(tool):
    said = tool("plan", "--image", SERVING, fails=True)
    assert f"Stack glassbox watches ENDPOINT={ENDPOINT}, and keeps to it" in said
    assert "keeps to it" in tool("plan", "--endpoint", "another", fails=True)


def opening(aws):
    """Whether the rules and the queue's mapping that open incidents are on."""
    events, physical = aws.client("events"), aws.client("cloudformation").describe_stack_resource
    rules = ("ViolationRule", "OpenRule", "MonitorJobRule", "MonitorReportRule")
    found = [
        physical(StackName="glassbox", LogicalResourceId=name)["StackResourceDetail"]["PhysicalResourceId"]
        for name in (*rules, "SwapEndpointFunctionQueue")
    ]
    mapping = aws.client("lambda").get_event_source_mapping(UUID=found.pop())
    return {events.describe_rule(Name=name)["State"].title() for name in found} | {mapping["State"]}


def test_a_remove_that_is_interrupted_leaves_a_stack_that_still_acts(aws, tool, customer):
    for mapping in ("RenderSaliencyFunctionQueue", "RestoreEndpointFunctionQueue"):
        pause(aws, mapping)  # so that the incident does not end
    command(aws, "open")
    wait_for(lambda: live(aws) == ("InService", "shop-v2-hooked"))
    assert "Wait until the incident is over" in tool("plan", *WANTED, fails=True)
    removing = subprocess.Popen(
        **command_line(aws, "remove", "--yes"),
        stdout=subprocess.PIPE,
        # what is started in the background may have been told to ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while "aborting it and restoring Shop-v2" not in (line := removing.stdout.readline()):
        assert line
    assert opening(aws) == {"Disabled"}
    removing.send_signal(signal.SIGINT)
    said, _ = removing.communicate(timeout=60)
    assert removing.returncode != 0
    assert "make remove is resumable" in said
    assert opening(aws) == {"Enabled"}
    assert "shop-v2-hooked" in names(aws, "endpoint_config")


def test_remove_ends_what_is_under_way_and_leaves_the_endpoint_as_it_was(aws, tool, customer):
    outputs, under_way = stack(aws)[1], incident(aws).id
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
    page = f"incidents/{ENDPOINT}/{under_way}/index.html"
    assert b"abort" in aws.client("s3").get_object(Bucket=bucket, Key=page)["Body"].read()
    assert "There is no stack glassbox" in tool("remove", "--yes", fails=True)


def test_a_stack_is_deployed_again_beside_what_its_former_one_left(aws, tool, customer):
    """And one whose twin could not be created says so, and gets it by make twin."""
    left = buckets(aws), set(aws.client("dynamodb").list_tables()["TableNames"])
    missing = f"s3://{MODELS}/missing.tar.gz"
    said = tool("deploy", *WANTED, *given(aws), "--model-data", missing, "--yes", fails=True)
    assert f"Could not access model data at {missing}" in said
    assert "Stack glassbox exists, but cannot swap until make twin succeeds" in said
    assert names(aws, "endpoint_config") == CONFIGS
    outputs = stack(aws)[1]
    assert buckets(aws) - left[0] == {outputs["Bucket"]}
    tables = set(aws.client("dynamodb").list_tables()["TableNames"])
    assert tables - left[1] == {outputs["CountsTable"], outputs["IncidentsTable"]}
    assert tables > left[1]
    assert len([name for name in buckets(aws) if name.startswith("glassbox-bucket")]) == 2
    tool("twin")
    assert names(aws, "endpoint_config") == CONFIGS | {"shop-v2-hooked"}


def test_a_stack_that_is_half_deleted_is_removed_all_the_same(aws, tool, customer):
    physical = aws.client("cloudformation").describe_stack_resource
    rule, mapping = (
        physical(StackName="glassbox", LogicalResourceId=name)["StackResourceDetail"]["PhysicalResourceId"]
        for name in ("ViolationRule", "SwapEndpointFunctionQueue")
    )
    aws.client("events").remove_targets(Rule=rule, Ids=["queue"])
    aws.client("events").delete_rule(Name=rule)
    aws.client("lambda").delete_event_source_mapping(UUID=mapping)
    customer.delete_model(ModelName="signs-v2-hooked")
    assert "Stack glassbox is deleted, shop-v2-hooked." in tool("remove", "--yes")
    assert names(aws, "endpoint_config") == CONFIGS


def test_an_endpoint_that_can_have_no_twin_is_watched_without_one(aws, tool, customer, blind_on, request):
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
    said = tool("plan", *wanted, fails=True)
    assert "model isolated has network isolation, and cannot write tensors to S3" in said
    assert 'SET="React=false" watches and notifies without a twin.' in said
    quiet = (*wanted, "--set", f"AwsEndpointUrl={aws.endpoint_url}", "React=false")
    said = tool("deploy", *quiet, "--yes")
    assert "Endpoint blind is never changed (React=false)" in said
    assert "hooked" not in said
    assert "A swap" not in said
    parameters, _ = stack(aws, "quiet")
    assert (parameters["HookedConfigName"], parameters["EndpointRoleArns"]) == ("", "")
    assert (names(aws, "model"), names(aws, "endpoint_config")) == before
    for command in (("twin",), ("explain", "--image", "sign.png", "--yes")):
        assert "Stack quiet: expected React=true, got false." in tool(
            *command, "--stack", "quiet", fails=True
        )
    said = tool("remove", "--stack", "quiet", "--yes")
    assert "Stack quiet is deleted." in said
    assert "Endpoint blind serves its own config." in said


# ---------------------------------------------------------------- an endpoint of the stack's own


def test_without_an_image_there_is_nothing_to_serve_with(tool):
    said = tool("plan", "--threshold", "0.5", fails=True)
    assert "The serving image is not in" in said
    assert "make push" in said


def test_a_stack_with_an_endpoint_of_its_own_serves_and_goes(aws, tool):
    wanted = ("--threshold", "0.5", "--image", SERVING, "--stack", "own")
    said = tool("plan", *wanted)
    assert "Among them its own endpoint own, with" in said
    assert "A swap starts 1 more ml.m5.large: 0 of 100 are in use, it fits." in said
    tool("deploy", *wanted, *given(aws), "--yes")
    _, outputs = stack(aws, "own")
    image, _ = signs.dataset(1, seed=14, size=48)
    body = io.BytesIO()
    np.save(body, image[0], allow_pickle=False)
    answer = aws.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=outputs["EndpointName"], ContentType="application/x-npy", Body=body.getvalue()
    )
    assert "predictions" in json.loads(answer["Body"].read())
    assert "has an endpoint of its own" in tool("twin", "--stack", "own", fails=True)
    assert "keeps to it" in tool("plan", "--stack", "own", "--endpoint", ENDPOINT, fails=True)
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
    assert "Endpoint own already exists in eu-west-1 and does not belong to stack another" in tool(
        *another, fails=True
    )
    model = stack(aws, "own")[0]["ModelDataUrl"]
    ecr, repository = aws.client("ecr"), {"repositoryName": "glassbox-serving"}
    ecr.create_repository(**repository)
    ecr.put_image(**repository, imageTag=tag("glassbox-serving"), imageManifest='{"schemaVersion": 2}')
    said = tool("deploy", "--stack", "own", "--threshold", "0.6", "--set", "MaxFlaggedReplays=3", "--yes")
    ecr.delete_repository(**repository, force=True)
    assert "MaxClassShare: 0.5 -> 0.6" in said
    assert stack(aws, "own")[0]["ServingImage"] == SERVING  # and not what was pushed since
    assert "would be uploaded" not in said
    assert stack(aws, "own")[0]["ModelDataUrl"] == model  # not the sample again
    said = tool("plan", "--stack", "own", "--set", f"ModelDataUrl={model}-2")
    assert f"ModelDataUrl: {model} -> {model}-2" in said
    assert "would be uploaded" not in said
    change_parameters("own", {"Architecture": "arm64"}, aws.client("cloudformation"))
    said = tool("plan", "--stack", "own", fails=True)
    assert "Stack own is for arm64, what was built for x86_64: ARCHITECTURE=arm64 builds for it" in said
    change_parameters("own", {"Architecture": "x86_64"}, aws.client("cloudformation"))
    of_another_version(aws, "own")
    said = tool("deploy", "--stack", "own", "--yes", fails=True)
    assert said == (
        "Stack own: expected storage version 1, got another. Run make remove STACK=own, which keeps and names the "
        "bucket and the tables, then make deploy.\n"
    )
    assert "Nothing was done" in tool("remove", "--stack", "own", fails=True)
    assert "Stack own is deleted." in tool("remove", "--stack", "own", "--yes")


def of_another_version(aws, name):
    """Update a stack in nothing but its output StorageVersion."""
    cloudformation = aws.client("cloudformation")
    body = cloudformation.get_template(StackName=name)["TemplateBody"]
    body = body if isinstance(body, dict) else yaml_parse(body)
    body["Outputs"]["StorageVersion"]["Value"] = "another"
    kept = [{"ParameterKey": key, "UsePreviousValue": True} for key in stack(aws, name)[0]]
    # a template of this size does not fit into a request
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


# ---------------------------------------------------------------- the rest


DOCKER = f"""#!{sys.executable}
import os, pathlib, sys

sys.path.insert(0, {str(ROOT)!r})
import boto3
from deploy.images import tag

here, asked = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "asked").open("a") as file:
    print(*asked, file=file)
if asked[0] == "login":
    (here / "password").write_text(sys.stdin.read())
elif asked[:2] == ["image", "inspect"]:
    print(os.environ.get("SOURCES") or tag(asked[-1]))
elif asked[0] == "push":
    repository, _, name = asked[-1].rpartition("/")[2].partition(":")
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


def test_push_logs_in_makes_the_repositories_and_pushes_once(aws, tool, tmp_path):
    """Docker is a recorder here, which puts what is pushed into the embedded ECR."""
    executable(tmp_path / "docker", DOCKER)
    path = {"PATH": str(tmp_path)}

    assert "is of other sources than those that are here: make images" in tool(
        "push", fails=True, SOURCES="old", **path
    )
    oci = "application/vnd.oci.image.index.v1+json"
    said = tool("push", fails=True, KIND=oci, **path)
    assert f"got {oci}, which SageMaker refuses. Install Docker's plugin buildx" in said
    assert not aws.client("ecr").list_images(repositoryName="glassbox-serving")["imageIds"]
    ecr = aws.client("ecr")
    left = {"repositoryName": "glassbox-serving", "imageTag": tag("glassbox-serving"), "imageManifest": "{}"}
    ecr.put_image(**left, imageManifestMediaType=oci)  # by a push that was interrupted
    (tmp_path / "asked").unlink()

    pushed = tool("push", **path).splitlines()
    assert [uri.rpartition(":")[0] for uri in pushed] == [
        f"{REGISTRY}/glassbox-serving",
        f"{REGISTRY}/glassbox-monitor",
    ]
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if "inspect" not in line]
    assert asked[0].startswith("login --username AWS --password-stdin ")
    assert (tmp_path / "password").read_text()
    assert asked[1:] == [
        f"tag glassbox-serving {pushed[0]}",
        f"push --quiet {pushed[0]}",
        f"tag glassbox-monitor {pushed[1]}",
        f"push --quiet {pushed[1]}",
    ]
    made = aws.client("ecr").describe_repositories()["repositories"]
    assert {r["repositoryName"] for r in made} == {"glassbox-serving", "glassbox-monitor"}
    assert tool("push", **path) == "Both images are there already.\n"
    said = tool("plan", "--threshold", "0.5", "--stack", "with-images")
    assert pushed[0] in said
    assert "hourly job is left out" not in said


def test_push_converts_an_oci_image_where_skopeo_is_there(aws, tool, tmp_path):
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
    assert "save --output" in (tmp_path / "asked").read_text()
    for uri in pushed:
        repository, _, name = uri.rpartition("/")[2].partition(":")
        (image,) = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": name}])[
            "imageDetails"
        ]
        assert image["imageManifestMediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_no_two_configs_have_one_twin():
    """Names that are alike for 56 characters, as those with a date at the end are."""
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


def test_without_a_region_nothing_is_guessed(tool):
    said = tool("plan", "--threshold", "0.5", fails=True, AWS_REGION="", AWS_DEFAULT_REGION="")
    assert "No region is set" in said
