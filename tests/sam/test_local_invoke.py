"""One incident from the capture file to the incident report, with `sam local invoke`: `make sam-test`.

The embedded AWS runs no function here. Each function runs in Lambda's container with the result of `sam build`, the
variables and the role of the deployed function, on its sample in events/.
"""

import html
import io
import json
import os

import boto3
import pytest
from botocore.exceptions import ClientError
from PIL import Image

from glassbox.aws.counts_table import CountsTable
from glassbox.incidents.diagnosis import read_diagnosis
from glassbox.monitoring.counts import WINDOW, Window, total
from glassbox.timestamps import parse_timestamp
from local import invoke
from local.emulator import REGION, ROOT, docker_bridge
from local.stack import running_stack
from local.waiting import wait_for
from watching import Inbox, endpoint_state, incident, keys, read_object

SAM = os.environ.get("GLASSBOX_SAM", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not SAM, reason="needs Docker and the SAM CLI: make sam-test"),
]


@pytest.fixture(scope="module")
def stack():
    host = docker_bridge()
    assert host, "expected a Docker engine on this machine"
    parameters = {**invoke.PARAMETERS, "MaxFlaggedReplays": "2", "MaxComparisonReplays": "1"}
    with running_stack(parameters, also_on=host) as stack, invoke.paused(stack):
        invoke.store_capture(stack)
        yield stack


@pytest.fixture(scope="module")
def inbox(stack):
    return Inbox(stack)


@pytest.fixture(scope="module")
def run(stack):
    """Run a function on its sample, or on another event; it must process all messages."""
    address = f"{docker_bridge()}:{stack.aws.port}"

    def invoked(function, event=None):
        path = ROOT / "events" / f"{invoke.EVENTS[function]}.json"
        event = event or invoke.read_event(path, stack)
        answer = invoke.invoke(stack, function, event, address=address, sam=str(ROOT / SAM))
        assert answer == {"batchItemFailures": []} or function.startswith("dashboard")
        return answer

    return invoked


def test_count_predictions_counts_once_and_publishes_the_violation(stack, run):
    run("count_predictions")
    run("count_predictions")
    hour = parse_timestamp("2026-11-23T10:00:00Z")
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    variant_key, window = "traffic-signs/AllTraffic", Window(hour, hour + WINDOW)
    counts = total(table.read(variant_key, window).values())
    assert (counts.classes, counts.unreadable) == ({14: 50, 13: 10}, 0)
    assert [t.check for t in table.published(variant_key, window)] == ["class_share"]
    queue = stack.resources("AWS::SQS::Queue")["SwapQueue"]
    (message,) = stack.client("sqs").receive_message(QueueUrl=queue)["Messages"]
    detail = json.loads(message["Body"])["detail"]
    assert (detail["check"], detail["class"], detail["sample_size"]) == ("class_share", 14, 60)


def test_start_monitor_starts_the_job_of_the_hour(stack, run):
    run("start_monitor")
    (job,) = stack.client("sagemaker").list_processing_jobs()["ProcessingJobSummaries"]
    assert job["ProcessingJobName"] == "class-monitor-traffic-signs-20261123t1000"
    folder = "monitoring/traffic-signs/hourly/2026/11/23/10/"
    wait_for(lambda: f"{folder}constraint_violations.json" in keys(stack, folder))


def test_swap_endpoint_swaps_and_notifies(stack, run, inbox):
    run("swap_endpoint")
    wait_for(lambda: endpoint_state(stack) == ("InService", stack.outputs["HookedConfig"]))
    assert incident(stack).state == "SWAPPING"
    queue = stack.resources("AWS::SQS::Queue")["DiagnoseQueue"]
    (message,) = stack.client("sqs").receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(message["Body"])["incident"] == incident(stack).id


def test_diagnose_incident_asks_the_endpoint_and_notifies(stack, run, inbox):
    run("diagnose_incident")
    assert incident(stack).why
    diagnosis = read_diagnosis(
        read_object(stack, f"incidents/traffic-signs/{incident(stack).id}/diagnosis.json")
    )
    assert diagnosis.requests > 0
    (swap,) = wait_for(inbox.notifications)
    text = json.loads(swap["Message"])["text"]
    assert text.startswith(incident(stack).why)
    assert "Class 14 predicted 80.50% of the time" in text


def test_confirm_endpoint_replays_flagged_inputs(stack, run):
    run("confirm_endpoint")
    current = incident(stack)
    assert current.state == "HOOKED"
    assert len(current.replays) == 3
    wait_for(lambda: len([k for k in keys(stack, "tensors/traffic-signs/") if "/index/" in k]) == 3)


def test_render_saliency_renders_a_replay(stack, run):
    (index, *_) = (k for k in keys(stack, "tensors/traffic-signs/") if "/index/" in k)
    path = ROOT / "events" / f"{invoke.EVENTS['render_saliency']}.json"
    text = path.read_text().replace(invoke.object_of("tensor-index-created"), index)
    run("render_saliency", json.loads(text.replace(invoke.SAMPLE_BUCKET, stack.outputs["Bucket"])))
    (name,) = incident(stack).heatmaps
    folder = f"saliency/traffic-signs/{incident(stack).id}/{name}"
    assert keys(stack, folder) == [f"{folder}.json", f"{folder}.png", f"{folder}.webp"]
    facts = json.loads(read_object(stack, f"{folder}.json"))
    assert facts["completeness"]["complete"]
    with Image.open(io.BytesIO(read_object(stack, f"{folder}.png"))) as heatmap:
        assert heatmap.format == "PNG"


def test_dashboard_widget_shows_the_open_incident(stack, run):
    page = run("dashboard_widget")
    assert f"Open incident {incident(stack).id}: HOOKED" in page
    assert incident(stack).why in html.unescape(page)
    assert page.count("data:image/webp;base64,") == 1
    assert "(the hooked model)" in page


def test_dashboard_command_sends_the_command(stack, run):
    assert run("dashboard_command").startswith("<p>Sent <b>extend</b>.")
    queue = stack.resources("AWS::SQS::Queue")["RestoreQueue"]

    def received():
        found = stack.client("sqs").receive_message(QueueUrl=queue).get("Messages", ())
        return [body for m in found if (body := json.loads(m["Body"])).get("source") == "glassbox.operator"]

    (sent,) = wait_for(received)
    assert sent["detail"] == {"endpoint": "traffic-signs", "action": "extend", "minutes": 30}


def test_restore_endpoint_restores_and_confirm_endpoint_reports(stack, run, inbox):
    run("restore_endpoint")
    wait_for(lambda: endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"]))
    assert incident(stack).state == "RESTORING"
    run("confirm_endpoint")
    closed = incident(stack)
    assert (closed.state, closed.failure) == ("NORMAL", "")
    page = f"incidents/traffic-signs/{closed.id}/index.html"
    folder = f"incidents/traffic-signs/{closed.id}"
    assert keys(stack, "incidents/traffic-signs/") == [f"{folder}/diagnosis.json", page]
    assert '<h2 id="why">Why</h2>' in read_object(stack, page).decode()
    wait_for(lambda: len(inbox.notifications()) == 2)
    assert "report is ready" in inbox.notifications()[1]["Subject"]


def test_a_poison_message_is_returned_alone(stack):
    event = invoke.read_event(ROOT / "events" / "sqs-capture.json", stack)
    bad = {**event["Records"][0], "messageId": "poison", "body": "no JSON"}
    answer = invoke.invoke(
        stack,
        "count_predictions",
        {"Records": [bad, *event["Records"]]},
        address=f"{docker_bridge()}:{stack.aws.port}",
        sam=str(ROOT / SAM),
    )
    assert answer == {"batchItemFailures": [{"itemIdentifier": "poison"}]}


def test_an_eventbridge_event_is_wrapped_into_a_message(stack, run):
    event = invoke.read_event(ROOT / "events" / "monitor-job-violations.json", stack)
    run("swap_endpoint", event)
    assert len(incident(stack).related_violations) == 1
    with pytest.raises(invoke.InvokeError, match=r"README\.md: expected an event of SQS or EventBridge"):
        invoke.read_event(ROOT / "README.md", stack)


def test_a_function_has_the_permissions_of_its_role_only(stack):
    """All calls above were made with the roles, and AWS denies other calls."""
    roles = stack.resources("AWS::IAM::Role")
    callers = {role for role, *_ in stack.aws.control("calls")["allowed"]}
    assert callers <= set(roles.values())
    assert len(callers) == 11  # nine functions, the endpoint and the monitor job
    arn = stack.client("iam").get_role(RoleName=roles["CountPredictionsRole"])["Role"]["Arn"]
    keys = stack.aws.control("credentials", role=arn, service="lambda.amazonaws.com")
    session = boto3.Session(
        keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], keys["AWS_SESSION_TOKEN"], REGION
    )
    sagemaker = session.client("sagemaker", endpoint_url=stack.aws.endpoint_url)
    with pytest.raises(ClientError, match="AccessDenied"):
        sagemaker.describe_endpoint(EndpointName="traffic-signs")
