"""Diagnose=true on the embedded AWS, with IAM enforced: one image that is sent again and again."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from demo import signs
from glassbox.aws.counts_table import CountsTable
from glassbox.incidents.diagnosis import read_diagnosis
from glassbox.monitoring.counts import WINDOW, Window, total
from local.stack import running_stack
from local.waiting import wait_for
from watching import Inbox, endpoint_state, incident, read_object

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack():
    parameters = {"MaxClassShare": "0.5", "React": "false", "Diagnose": "true", "MaxFlaggedReplays": "5"}
    with running_stack(parameters) as stack:
        yield stack


def test_the_cause_is_in_the_first_line_of_the_notification_and_in_the_report(stack):
    inbox = Inbox(stack)
    images, classes = signs.dataset(200, seed=77, size=48)
    stop = images[classes == 14][0]
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    stack.set_capture_clock(hour + timedelta(minutes=5))
    for image in [stop] * 50:
        stack.predict(image)
    wait_for(lambda: incident(stack) and incident(stack).why, 120)
    (begun,) = wait_for(inbox.notifications, 30)
    text = json.loads(begun["Message"])["text"]
    assert text.startswith(incident(stack).why)
    assert "Class 14 predicted" in text

    folder = f"incidents/traffic-signs/{incident(stack).id}"
    found = read_diagnosis(read_object(stack, f"{folder}/diagnosis.json"))
    assert found.headline == incident(stack).why
    assert 10 <= found.requests <= 96
    assert found.causes[0].name == "one image again and again"
    assert [(r.name, r.flagged, r.back) for r in found.repairs[:1]] == [("unchanged", 5, 0)]

    queue = stack.resources("AWS::SQS::Queue")["ConfirmQueue"]
    stack.client("sqs").send_message(QueueUrl=queue, MessageBody='{"sweep": true}')
    wait_for(lambda: incident(stack).state == "NORMAL" and len(inbox.notifications()) == 2, 90)
    page = read_object(stack, f"{folder}/index.html").decode()
    assert page.index('<h2 id="why">Why</h2>') < page.index('<h2 id="predictions">')

    # repaired inputs are captured, and not counted
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    counts = total(table.read("traffic-signs/AllTraffic", Window(hour, hour + WINDOW)).values())
    assert counts.sample_size == 50
    assert endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"])
    calls = {action for _, action, _ in stack.aws.control("calls")["allowed"]}
    assert "sagemaker:InvokeEndpoint" in calls and "sagemaker:UpdateEndpoint" not in calls
