"""The stack's reactions on the embedded AWS to objects and messages of the tests."""

import json
from datetime import UTC, datetime, timedelta

import pytest

import captures
from glassbox.aws.counts_table import CountsTable
from glassbox.monitoring.counts import WINDOW, Window, total
from glassbox.monitoring.processing_job import job_name
from local.stack import running_stack
from local.waiting import wait_for
from watching import Inbox, endpoint_state, incident, read_object

pytestmark = pytest.mark.e2e

# recent: records older than 90 days are refused
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
TIME = f"{HOUR:%Y-%m-%dT%H}:00:01Z"
MONITOR_FILES = f"monitoring/traffic-signs/hourly/{HOUR:%Y/%m/%d/%H}/"


@pytest.fixture(scope="module")
def stack():
    with running_stack({"MaxClassShare": "0.5"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def inbox(stack):
    return Inbox(stack)


def counts(stack):
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    return total(table.read(captures.VARIANT_KEY, Window(HOUR, HOUR + WINDOW)).values())


def put(stack, body, name="20-02-871-0b7bfd33.jsonl"):
    key = f"capture/traffic-signs/AllTraffic/{HOUR:%Y/%m/%d/%H}/{name}"
    stack.client("s3").put_object(Bucket=stack.outputs["Bucket"], Key=key, Body=body)


def queue(stack, logical_id):
    return stack.resources("AWS::SQS::Queue")[logical_id]


def test_counts_a_file_once_and_swaps_once_after_duplicate_deliveries(stack, inbox):
    for _ in range(3):
        put(stack, captures.file(captures.ARTICLE, TIME))
    wait_for(lambda: counts(stack).sample_size >= 400)
    wait_for(lambda: incident(stack) and incident(stack).replays is not None)
    assert endpoint_state(stack) == ("InService", stack.outputs["HookedConfig"])
    put(stack, captures.file(captures.ARTICLE, TIME))
    put(stack, captures.file([3] * 5, TIME) + b"{broken\n", "21-07-114-9a1f0c2e.jsonl")
    wait_for(lambda: counts(stack).sample_size > 400)
    after = counts(stack)
    assert (after.sample_size, after.classes[14], after.classes[3], after.unreadable) == (405, 322, 7, 1)
    (swap,) = inbox.notifications()
    assert "Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold" in swap["Message"]


def test_an_abort_command_restores_the_endpoint(stack, inbox):
    # neither these captures have images nor is there live traffic, so no request can be explained
    assert any("16 were refused" in line for line in incident(stack).timeline)
    command = {
        "Source": "glassbox.operator",
        "DetailType": "Glassbox Command",
        "Detail": json.dumps({"endpoint": "traffic-signs", "action": "abort"}),
    }
    stack.client("events").put_events(Entries=[command])
    wait_for(lambda: len(inbox.notifications()) == 2)
    assert "restored" in inbox.notifications()[1]["Subject"]
    assert incident(stack).state == "NORMAL"
    assert endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"])


def test_the_hourly_monitor_job_finds_the_same_violation_and_opens_no_incident(stack, inbox):
    sqs = stack.client("sqs")
    scheduled = json.dumps({"time": f"{HOUR + WINDOW:%Y-%m-%dT%H}:10:00Z"})
    for _ in range(2):
        sqs.send_message(QueueUrl=queue(stack, "MonitorQueue"), MessageBody=scheduled)
    sagemaker = stack.client("sagemaker")

    def done():
        jobs = monitor_jobs(stack)
        return jobs and all(job["ProcessingJobStatus"] == "Completed" for job in jobs) and jobs

    (job,) = wait_for(done)
    message = sagemaker.describe_processing_job(ProcessingJobName=job["ProcessingJobName"])["ExitMessage"]
    assert message.startswith("CompletedWithViolations: Class 14 predicted 79.51% of the time")
    violations = json.loads(read_object(stack, MONITOR_FILES + "constraint_violations.json"))["violations"]
    assert violations[0]["feature_name"] == "PredictedClass"
    statistics = json.loads(read_object(stack, MONITOR_FILES + "statistics.json"))
    assert statistics["dataset"]["item_count"] == 406  # one of them unreadable
    queues = [
        queue(stack, name) for name in ("SwapQueue", "SwapDeadLetters", "MonitorQueue", "MonitorDeadLetters")
    ]
    wait_for(lambda: not any(in_queue(sqs, url) for url in queues))
    assert len(inbox.notifications()) == 2
    assert endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"])


def monitor_jobs(stack):
    """Return the jobs for HOUR; at ten past, the schedule of the stack starts one for the hour after it."""
    jobs = stack.client("sagemaker").list_processing_jobs()["ProcessingJobSummaries"]
    name = job_name("traffic-signs", HOUR)
    return [job for job in jobs if job["ProcessingJobName"].startswith(name)]


def in_queue(sqs, url):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return sum(map(int, sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()))


def messages_with(inbox, text):
    return wait_for(lambda: [m for m in inbox.read() if text in m["Message"]], 30)


def test_a_dead_letter_raises_an_alarm_that_notifies(stack, inbox):
    url = queue(stack, "RenderDeadLetters")
    sqs = stack.client("sqs")
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    (message,) = messages_with(inbox, "RenderDeadLettersAlarm")
    alarm = json.loads(message["Message"])
    assert alarm["NewStateValue"] == "ALARM"
    assert "aws sqs start-message-move-task --source-arn arn:aws:sqs" in alarm["AlarmDescription"]
    sqs.purge_queue(QueueUrl=url)


def test_notifies_of_a_failed_monitor_job(stack, inbox):
    sagemaker = stack.client("sagemaker")
    (job,) = monitor_jobs(stack)
    job = sagemaker.describe_processing_job(ProcessingJobName=job["ProcessingJobName"])
    environment = {k: v for k, v in job["Environment"].items() if k != "THRESHOLD"}
    members = (
        "AppSpecification",
        "RoleArn",
        "ProcessingInputs",
        "ProcessingOutputConfig",
        "ProcessingResources",
    )
    sagemaker.create_processing_job(
        ProcessingJobName="class-monitor-fails",
        Environment=environment,
        **{name: job[name] for name in members},
    )
    (message,) = messages_with(inbox, "class-monitor-fails")
    assert "of traffic-signs is Failed" in message["Message"]
    assert "THRESHOLD is not set" in message["Message"]
