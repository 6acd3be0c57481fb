"""React=false on the embedded AWS, with IAM enforced: notification and report without an update."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from demo import signs
from deploy.stack import existing
from deploy.status import save_report, status_lines
from local.event_queue import EventQueue
from local.stack import running_stack
from local.waiting import wait_for
from watching import Inbox, endpoint_state, incident, read_object

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack():
    parameters = {
        "MaxClassShare": "0.5",
        "React": "false",
        "Diagnose": "false",
        "MaxFlaggedReplays": "3",
    }
    with running_stack(parameters) as stack:
        yield stack


def test_notifies_and_reports_the_flagged_inputs_without_updating_the_endpoint(stack, tmp_path):
    inbox, bus = Inbox(stack), EventQueue(stack, "bus")
    bus.add_rule({"source": ["glassbox"], "detail-type": ["Glassbox Notification"]})
    assert "HookedConfig" not in stack.outputs
    configs = stack.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]
    assert [config["EndpointConfigName"] for config in configs] == [stack.outputs["PlainConfig"]]

    images, classes = signs.dataset(200, seed=77, size=48)
    stops = images[classes == 14]
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    stack.set_capture_clock(hour + timedelta(minutes=5))
    for number in range(50):
        stack.predict(stops[number % len(stops)])
    wait_for(lambda: incident(stack) and len(inbox.notifications()) >= 1, 60)

    # its window has ended long ago, so the next sweep writes the report
    queue = stack.resources("AWS::SQS::Queue")["ConfirmQueue"]
    stack.client("sqs").send_message(QueueUrl=queue, MessageBody='{"sweep": true}')
    wait_for(lambda: incident(stack).state == "NORMAL" and len(inbox.notifications()) == 2, 90)

    begun, ended = (json.loads(message["Message"]) for message in inbox.notifications())
    assert (begun["event"], ended["event"]) == ("watching", "closed")
    assert "Class 14 predicted" in begun["text"]
    assert "3 flagged inputs are shown" in ended["text"]
    announced = []
    wait_for(lambda: announced.extend(bus.receive()) or len(announced) >= 2, 30)
    details = sorted(
        (json.loads(event["Body"])["detail"] for event in announced), key=lambda d: d["severity"]
    )
    assert details == [ended, begun]  # info, warning
    key = f"incidents/traffic-signs/{incident(stack).id}/index.html"
    page = read_object(stack, key).decode()
    assert page.count('<img class="input" src="data:image/png;base64,') == 3
    assert "Not shown" not in page

    assert endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"])
    calls = {action for _, action, _ in stack.aws.control("calls")["allowed"]}
    assert calls.isdisjoint({"sagemaker:UpdateEndpoint", "sagemaker:InvokeEndpoint", "kms:Sign"})

    # the operator's commands
    described = existing("glassbox", stack.client("cloudformation"))
    lines = list(status_lines(described, stack.aws.session, datetime.now(UTC)))
    plain = stack.outputs["PlainConfig"]
    assert lines[0] == f"Endpoint traffic-signs: InService, serves {plain} (its plain config)"
    assert lines[1].startswith(f"Incident: none is open; the last one, {incident(stack).id}, ended ")
    assert "Class 14 predicted" in lines[2]
    assert lines[-1] == (
        "Variant AllTraffic: 0 predictions counted in the last hour; "
        "too few to be checked, at least 50 (MinPredictions)"
    )
    then = list(status_lines(described, stack.aws.session, hour + timedelta(minutes=9)))
    assert then[-1] == "Variant AllTraffic: 50 predictions counted in the last hour"
    assert save_report(described.outputs, tmp_path, stack.aws.session).read_text() == page
