"""React=false on the embedded AWS, with IAM enforced: a violation is told and reported, and the endpoint left alone."""

import io
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demo import signs
from local.stack import running_stack
from watching import Inbox, incident, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack():
    with running_stack({"MaxClassShare": "0.5", "React": "false", "MaxFlaggedReplays": "3"}) as stack:
        yield stack


def test_a_violation_is_told_and_reported_with_its_inputs_and_the_endpoint_is_left_alone(stack):
    inbox = Inbox(stack)
    assert "HookedConfig" not in stack.outputs
    configs = stack.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]
    assert [config["EndpointConfigName"] for config in configs] == [stack.outputs["PlainConfig"]]

    images, labels = signs.dataset(200, seed=77, size=48)
    stops = images[labels == 14]
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    stack.set_capture_clock(hour + timedelta(minutes=5))
    for number in range(50):
        body = io.BytesIO()
        np.save(body, stops[number % len(stops)], allow_pickle=False)
        stack.client("sagemaker-runtime").invoke_endpoint(
            EndpointName="traffic-signs", ContentType="application/x-npy", Body=body.getvalue()
        )
    wait_for(lambda: incident(stack) and len(inbox.notifications()) >= 1, 60)

    # its window was over two hours ago, so the next sweep reports
    queue = stack.resources("AWS::SQS::Queue")["ConfirmQueue"]
    stack.client("sqs").send_message(QueueUrl=queue, MessageBody='{"sweep": true}')
    wait_for(lambda: incident(stack).state == "NORMAL" and len(inbox.notifications()) == 2, 90)

    begun, ended = (json.loads(message["Message"]) for message in inbox.notifications())
    assert (begun["event"], ended["event"]) == ("watching", "closed")
    assert "Class 14 predicted" in begun["text"]
    assert "3 flagged inputs are shown" in ended["text"]
    key = f"incidents/traffic-signs/{incident(stack).id}/index.html"
    page = stack.client("s3").get_object(Bucket=stack.outputs["Bucket"], Key=key)["Body"].read().decode()
    assert page.count('<img class="input" src="data:image/png;base64,') == 3
    assert "Not shown" not in page

    endpoint = stack.client("sagemaker").describe_endpoint(EndpointName="traffic-signs")
    assert (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) == (
        "InService",
        stack.outputs["PlainConfig"],
    )
    made = {action for _, action, _ in stack.aws.control("calls")["allowed"]}
    assert made.isdisjoint({"sagemaker:UpdateEndpoint", "sagemaker:InvokeEndpoint", "kms:Sign"})
