"""The roles' policies and their calls: every call is allowed, and every permission is used.

IAM is enforced on the embedded AWS, so a call without permission fails the incidents below. At their end, the tests
check that no permission is unused.
"""

import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import replays
from demo import signs
from glassbox.monitoring.counts import Confidences, Counts
from glassbox.monitoring.monitor_files import statistics
from local.stack import MODELS, npy, running_stack
from local.waiting import wait_for
from watching import Inbox, incident

pytestmark = pytest.mark.e2e

# Calls that AWS makes with a role, and our code does not: allowed, and absent from the recorded calls.
BY_AWS = {
    "sqs:ReceiveMessage": "Lambda polls the queue",
    "sqs:DeleteMessage": "Lambda polls the queue",
    "sqs:GetQueueAttributes": "Lambda polls the queue",
    "sqs:SendMessage": "EventBridge Scheduler sends to the queue",
    "logs:CreateLogGroup": "SageMaker writes its containers' logs",
    "logs:CreateLogStream": "Lambda and SageMaker write logs",
    "logs:DescribeLogStreams": "SageMaker writes its containers' logs",
    "logs:PutLogEvents": "Lambda and SageMaker write logs",
    "cloudwatch:PutMetricData": "SageMaker measures its instances",
    "xray:PutTraceSegments": "Lambda's X-Ray daemon",
    "xray:PutTelemetryRecords": "Lambda's X-Ray daemon",
    "cloudwatch:DescribeAlarms": "UpdateEndpoint reads the alarm for the rollback",
    "ecr:GetAuthorizationToken": "SageMaker pulls the image",
    "ecr:BatchCheckLayerAvailability": "SageMaker pulls the image",
    "ecr:BatchGetImage": "SageMaker pulls the image",
    "ecr:GetDownloadUrlForLayer": "SageMaker pulls the image",
}
BASELINE = "baseline/statistics.json"
CAPTURE_KEY = "arn:aws:kms:eu-west-1:123456789012:key/0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11"
VOLUME_KEY = "arn:aws:kms:eu-west-1:123456789012:key/5c1d2e3f-0a4b-4c5d-8e6f-7a8b9c0d1e2f"
PARAMETERS = {
    "MaxClassShare": "0.5",
    "Diagnose": "false",  # test_diagnosis.py enforces IAM for it; what a late one needs would be unused here
    "EndpointKeyArn": VOLUME_KEY,
    "DriftThreshold": "0.9",
    "BaselineStatistics": f"s3://{MODELS}/{BASELINE}",
    "CaptureKeyArn": CAPTURE_KEY,
    "RollbackAlarm": "errors-of-traffic-signs",
    "CooldownMinutes": "0",
    "MaxFlaggedReplays": "2",
    "MaxComparisonReplays": "1",
}


@pytest.fixture(scope="module")
def stack():
    with running_stack(PARAMETERS, update_seconds=1.0) as stack:
        everyday = Counts(classes=Counter(dict.fromkeys(range(43), 100)), records=4300)
        body = json.dumps(statistics(everyday, Confidences())).encode()
        stack.client("s3").put_object(Bucket=MODELS, Key=BASELINE, Body=body)
        yield stack


def traffic(stack):
    """Send 60 requests, 50 of them stop signs, two hours ago, and return the hour."""
    images, classes = signs.dataset(400, seed=77, size=48)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    stack.set_capture_clock(hour + timedelta(minutes=5))
    for number in range(60):
        group = images[classes != 14] if number % 6 == 0 else images[classes == 14]
        image = group[number % len(group)]
        # only the signature of this marker is invalid, so that counting and replaying read the public key
        incident_id = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-forged"
        forged = {"CustomAttributes": replays.marker(npy(image), incident_id)} if number == 1 else {}
        stack.predict(image, **forged)
    return hour


def command(stack, action, endpoint="traffic-signs"):
    entry = {"Source": "glassbox.operator", "DetailType": "Glassbox Command"}
    detail = json.dumps({"endpoint": endpoint, "action": action})
    stack.client("events").put_events(Entries=[entry | {"Detail": detail}])


@pytest.fixture(scope="module")
def calls(stack):
    """(role, action, resource) of all calls in incidents that need every permission."""
    inbox = Inbox(stack)
    hour = traffic(stack)
    wait_for(
        lambda: incident(stack) and incident(stack).state == "NORMAL" and len(inbox.notifications()) == 2, 90
    )

    for name, sent in (("DashboardWidget", {}), ("DashboardCommand", {"action": "extend"})):
        function = stack.resources("AWS::Lambda::Function")[f"{name}Function"]
        answer = stack.client("lambda").invoke(FunctionName=function, Payload=json.dumps(sent))
        assert "FunctionError" not in answer, answer["Payload"].read()
        page = json.loads(answer["Payload"].read())
        assert ("data:image/webp" if name == "DashboardWidget" else "Sent <b>extend</b>") in page

    scheduled = json.dumps({"time": f"{hour + timedelta(hours=1):%Y-%m-%dT%H}:10:00Z"})
    queue = stack.resources("AWS::SQS::Queue")["MonitorQueue"]
    stack.client("sqs").send_message(QueueUrl=queue, MessageBody=scheduled)
    wait_for(lambda: incident(stack).related_violations)
    first = incident(stack).id

    # the owner deploys the twin outside any incident: reported once
    sagemaker = stack.client("sagemaker")
    sagemaker.update_endpoint(EndpointName="traffic-signs", EndpointConfigName=stack.outputs["HookedConfig"])
    wait_for(lambda: len(inbox.notifications()) == 3)

    # an incident at whose start and end an update of the endpoint is in progress
    for config, action, state in (("PlainConfig", "open", "HOOKED"), ("HookedConfig", "abort", "NORMAL")):
        sagemaker.update_endpoint(EndpointName="traffic-signs", EndpointConfigName=stack.outputs[config])
        command(stack, action)
        wait_for(lambda state=state: incident(stack).id != first and incident(stack).state == state, 90)
    wait_for(lambda: len(inbox.notifications()) == 5)

    # An incident that cannot be restored because its plain config was deleted. Only restore_endpoint may detect that;
    # confirm_endpoint, which also applies an abort, must not run: no sweep, no heat map, no replay in progress.
    for rule in ("SweepRule", "HeatmapRule"):
        stack.client("events").disable_rule(Name=stack.resources("AWS::Events::Rule")[rule])
    command(stack, "open")
    wait_for(lambda: incident(stack).state == "HOOKED" and incident(stack).replays is not None, 90)
    sagemaker.delete_endpoint_config(EndpointConfigName=stack.outputs["PlainConfig"])
    command(stack, "abort")
    wait_for(lambda: incident(stack).state == "FAILED" and len(inbox.notifications()) == 7)
    assert "NOT restored" in json.loads(inbox.notifications()[-1]["Message"])["subject"]
    command(stack, "abort", "traffic-sings")  # a mistyped name is answered
    wait_for(lambda: len(inbox.notifications()) == 8)
    assert "not understood" in json.loads(inbox.notifications()[-1]["Message"])["subject"]
    return [tuple(call) for call in stack.aws.control("calls")["allowed"]]


def permissions(stack, role):
    """Yield (action, resource pattern) of all permissions of a role."""
    iam = stack.client("iam")
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for statement in document["Statement"]:
            actions, patterns = statement["Action"], statement["Resource"]
            for action in actions if isinstance(actions, list) else [actions]:
                for pattern in patterns if isinstance(patterns, list) else [patterns]:
                    yield action, pattern


def test_every_permission_is_used_by_the_stack_or_by_aws(stack, calls):
    table, by_aws = [], set()
    for logical_id, role in stack.resources("AWS::IAM::Role").items():
        assert not stack.client("iam").list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        made = [(action, resource) for caller, action, resource in calls if caller == role]
        for action, pattern in permissions(stack, role):
            # the policies allow a config in both spellings: its ARN's, in lower case, and its name's
            used = any(a == action and fnmatchcase(r.lower(), pattern.lower()) for a, r in made)
            reason = "S3 decrypts with it for the reader" if pattern == CAPTURE_KEY else BY_AWS.get(action)
            table.append((logical_id, action, pattern, "used" if used else reason or "NOT USED"))
            if action in BY_AWS:
                by_aws.add(action)
                assert not used, f"{action}: expected calls of AWS only, got calls of our code"
    if out := os.environ.get("GLASSBOX_POLICY_TABLE"):
        Path(out).write_text("".join(f"{' | '.join(row)}\n" for row in sorted(table)))
    assert len(table) > 60
    assert [row for row in table if row[3] == "NOT USED"] == []
    assert by_aws == set(BY_AWS)


def test_no_role_has_wildcard_actions_or_unnecessary_access_to_all_resources(stack):
    everywhere = set()
    for role in stack.resources("AWS::IAM::Role").values():
        for action, pattern in permissions(stack, role):
            assert "*" not in action
            if pattern == "*":
                everywhere.add(action)
    # actions for which AWS defines no resource
    assert everywhere == {
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "sagemaker:ListEndpoints",
    }
