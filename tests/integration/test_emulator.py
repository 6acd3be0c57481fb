"""The behaviour of AWS that the stack depends on, in the embedded AWS."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from local.emulator import EmbeddedAws, EmulatorError
from local.event_queue import EventQueue

ROOT = Path(__file__).parents[2]


def invoke(aws, function, payload):
    """Invoke a function and return its result; fail on a function error."""
    response = aws.client("lambda").invoke(FunctionName=function, Payload=json.dumps(payload).encode())
    assert "FunctionError" not in response, response["Payload"].read()
    return json.loads(response["Payload"].read())


def put(aws, stack, *keys):
    s3 = aws.client("s3")
    for key in keys:
        s3.put_object(Bucket=stack["Bucket"], Key=key, Body=b"{}")


@pytest.fixture
def rows(embedded_aws, small_stack):
    """Return the row that the recorder function wrote for a key, or None."""
    table = embedded_aws.session.resource("dynamodb").Table(small_stack["Table"])
    return lambda key: table.get_item(Key={"pk": key}, ConsistentRead=True).get("Item")


@pytest.fixture
def received(embedded_aws):
    """Receive and delete messages of a queue; return their parsed bodies."""

    def take(queue):
        sqs = embedded_aws.client("sqs")
        messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in messages]

    return take


# ---------------------------------------------------------------- events


def test_delivers_matching_object_events_only(embedded_aws, small_stack, rows, eventually):
    put(embedded_aws, small_stack, "in/b/one.jsonl", "out/one.json", "xin/one.json", "in/b/one.json")
    row = eventually(lambda: rows("in/b/one.json"))
    event = json.loads(row["event"])
    assert (event["source"], event["detail-type"]) == ("aws.s3", "Object Created")
    assert event["detail"]["bucket"]["name"] == small_stack["Bucket"]
    assert event["detail"]["object"]["size"] == 2
    assert event["detail"]["reason"] == "PutObject"
    assert not any(rows(key) for key in ("in/b/one.jsonl", "out/one.json", "xin/one.json"))


def test_a_poison_message_moves_to_the_dead_letter_queue_alone(
    embedded_aws, small_stack, rows, received, eventually
):
    good = [f"in/p/{n}.json" for n in range(8)]
    put(embedded_aws, small_stack, *good[:4], "in/p/poison.json", *good[4:])
    eventually(lambda: all(rows(key) for key in good))
    [dead] = eventually(lambda: received(small_stack["DeadLetters"]), seconds=60)
    assert dead["detail"]["object"]["key"] == "in/p/poison.json"
    assert [rows(key)["deliveries"] for key in good] == [1] * 8


def test_chaos_delivers_every_event_twice(embedded_aws, small_stack, rows, eventually):
    embedded_aws.control("chaos", duplicate_deliveries=True)
    try:
        put(embedded_aws, small_stack, "in/twice.json")
    finally:
        embedded_aws.control("chaos", duplicate_deliveries=False)
    put(embedded_aws, small_stack, "in/once.json")
    eventually(lambda: (rows("in/twice.json") or {}).get("deliveries") == 2)
    assert eventually(lambda: rows("in/once.json"))["deliveries"] == 1


def test_an_event_for_a_queue_without_a_policy_becomes_a_dead_letter(
    embedded_aws, small_stack, received, eventually
):
    put(embedded_aws, small_stack, "closed/a.json")
    [event] = eventually(lambda: received(small_stack["Undelivered"]))
    assert event["detail"]["object"]["key"] == "closed/a.json"
    assert received(small_stack["ClosedQueue"]) == []


POLICY = {
    "Effect": "Allow",
    "Principal": {"Service": "events.amazonaws.com"},
    "Action": "sqs:SendMessage",
    "Resource": "arn:aws:sqs:eu-west-1:123456789012:refusing",
}
OTHER_QUEUE = "arn:aws:sqs:eu-west-1:123456789012:other"
INVALID = "InvalidAttributeValue", "Invalid value for the parameter Policy."


def policy(number=1, **changed):
    return json.dumps({"Statement": [POLICY | changed] * number})


REFUSED_POLICIES = {
    "two resources in a statement": (policy(Resource=[POLICY["Resource"], OTHER_QUEUE]), *INVALID),
    "another queue": (policy(Resource=OTHER_QUEUE), *INVALID),
    "another queue, in a list": (policy(Resource=[OTHER_QUEUE]), *INVALID),
    "not JSON": ("{", *INVALID),
    "no statement": ("{}", *INVALID),
    "8 actions": (
        policy(Action=[f"sqs:{n}" for n in range(8)]),
        "OverLimit",
        "8 actions were found in a statement from the submitted policy, max allowed is 7",
    ),
    "21 statements": (
        policy(21),
        "OverLimit",
        "21 statements were found in the submitted policy, max allowed is 20",
    ),
    "51 principals": (
        policy(Principal={"AWS": [f"arn:aws:iam::{n:012}:root" for n in range(51)]}),
        "OverLimit",
        "51 principals were found in the submitted policy, max allowed is 50",
    ),
    "11 conditions": (
        policy(11, Condition={"StringEquals": {"aws:SourceAccount": "123456789012"}}),
        "OverLimit",
        "11 conditions were found in the submitted policy, max allowed is 10",
    ),
    "over 8,192 bytes": (
        policy(Sid="s" * 8192),
        "OverLimit",
        f"{len(policy(Sid='s' * 8192))} bytes were found in the submitted policy, max allowed is 8192",
    ),
}


@pytest.mark.parametrize("name", REFUSED_POLICIES)
def test_sqs_refuses_a_policy_for_other_queues_or_over_a_quota(embedded_aws, name):
    document, code, message = REFUSED_POLICIES[name]
    sqs = embedded_aws.client("sqs")
    with pytest.raises(ClientError) as refused:
        sqs.create_queue(QueueName="refusing", Attributes={"Policy": document})
    assert refused.value.response["Error"]["Message"] == message
    queue = sqs.create_queue(QueueName="refusing")["QueueUrl"]
    with pytest.raises(ClientError) as refused:
        sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": document})
    assert refused.value.response["Error"]["Code"].endswith(code)
    assert refused.value.response["Error"]["Message"] == message


@pytest.mark.parametrize(
    "document",
    [
        policy(),
        policy(10, Condition={"StringEquals": {"aws:SourceAccount": "123456789012"}}),
        policy(Action=[f"sqs:{n}" for n in range(7)]),
        policy(Resource=[POLICY["Resource"]]),
        policy(Resource="*"),
        "",
    ],
)
def test_sqs_accepts_a_policy_for_one_queue_within_the_quotas(embedded_aws, document):
    sqs = embedded_aws.client("sqs")
    queue = sqs.create_queue(QueueName="refusing")["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": document})
    set_to = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["Policy"]).get("Attributes", {})
    assert set_to.get("Policy", "") == document


# ---------------------------------------------------------------- functions


def test_a_function_imports_from_its_layers_only(embedded_aws, small_stack):
    function = small_stack["Function"]
    assert invoke(embedded_aws, function, {"probe": "layer"}) == "the layer"
    assert invoke(embedded_aws, function, {"probe": "import"}) == "No module named 'moto'"


def test_a_function_does_not_inherit_the_callers_environment(embedded_aws, small_stack):
    names = invoke(embedded_aws, small_stack["Function"], {"probe": "environment"})
    assert "GREETING" in names
    assert not {"PYTEST_CURRENT_TEST", "VIRTUAL_ENV", "AWS_PROFILE", "PYTHONPATH"} & set(names)


def test_denies_an_action_that_the_template_does_not_allow(embedded_aws, small_stack):
    assert invoke(embedded_aws, small_stack["Function"], {"probe": "forbidden"}) == "AccessDeniedException"


@pytest.mark.parametrize(
    ("further", "code"),
    [
        ([], "AccessDenied"),
        ([{"Action": "s3:ListBucket", "Condition": {"StringLike": {"s3:prefix": "in/*"}}}], "AccessDenied"),
        ([{"Action": "s3:ListBucket"}], "NoSuchKey"),
    ],
    ids=["without-list", "list-of-a-prefix", "with-list"],
)
def test_a_missing_object_is_access_denied_without_list_bucket(embedded_aws, further, code):
    iam, s3 = embedded_aws.client("iam"), embedded_aws.client("s3")
    s3.create_bucket(Bucket="unlisted", CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    s3.put_object(Bucket="unlisted", Key="in/there", Body=b"{}")
    statements = [{"Action": "s3:GetObject"}, *further]
    statements = [{"Effect": "Allow", "Resource": "*"} | statement for statement in statements]
    iam.create_user(UserName="reader")
    iam.put_user_policy(
        UserName="reader",
        PolicyName="p",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
    )
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    reader = boto3.client(
        "s3",
        endpoint_url=embedded_aws.endpoint_url,
        region_name=s3.meta.region_name,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        config=s3.meta.config,
    )
    try:
        assert reader.get_object(Bucket="unlisted", Key="in/there")["Body"].read() == b"{}"
        with pytest.raises(ClientError) as refused:
            reader.get_object(Bucket="unlisted", Key="in/gone")
        assert refused.value.response["Error"]["Code"] == code
    finally:
        iam.delete_access_key(UserName="reader", AccessKeyId=key["AccessKeyId"])
        iam.delete_user_policy(UserName="reader", PolicyName="p")
        iam.delete_user(UserName="reader")
        s3.delete_object(Bucket="unlisted", Key="in/there")
        s3.delete_bucket(Bucket="unlisted")


def test_put_events_is_allowed_by_source(embedded_aws, small_stack):
    assert invoke(embedded_aws, small_stack["Function"], {"probe": "ours"}) == "put"
    assert invoke(embedded_aws, small_stack["Function"], {"probe": "theirs"}) == "AccessDeniedException"


def test_writes_logs_to_cloudwatch(embedded_aws, small_stack, eventually):
    put(embedded_aws, small_stack, "in/log-poison.json")
    logs = embedded_aws.client("logs")

    def messages():
        group = f"/aws/lambda/{small_stack['Function']}"
        return [e["message"] for e in logs.filter_log_events(logGroupName=group)["events"]]

    eventually(lambda: "ERROR cannot digest in/log-poison.json" in messages())


def test_sets_the_time_to_live_of_the_template(embedded_aws, small_stack):
    described = embedded_aws.client("dynamodb").describe_time_to_live(TableName=small_stack["Table"])
    assert described["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}


# ---------------------------------------------------------------- schedules, alarms, metrics, keys


@pytest.fixture
def schedule(embedded_aws, small_stack):
    """Create a schedule that invokes the recorder in a second, with a role of these statements."""
    made = []

    def make(name, statements, principal="scheduler.amazonaws.com"):
        iam = embedded_aws.client("iam")
        trust = {"Effect": "Allow", "Principal": {"Service": principal}, "Action": "sts:AssumeRole"}
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))[
            "Role"
        ]
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=document)
        moment = datetime.now(UTC) + timedelta(seconds=1)
        embedded_aws.client("scheduler").create_schedule(
            Name=name,
            ScheduleExpression=f"at({moment:%Y-%m-%dT%H:%M:%S})",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={
                "Arn": small_stack["FunctionArn"],
                "RoleArn": role["Arn"],
                "Input": json.dumps({"scheduled": "<aws.scheduler.scheduled-time>", "by": name}),
            },
        )
        made.append(name)

    yield make
    for name in made:
        embedded_aws.client("scheduler").delete_schedule(Name=name)


def test_a_schedule_needs_its_role_and_passes_its_scheduled_time(
    embedded_aws, small_stack, schedule, rows, eventually
):
    invoke_it = [
        {"Effect": "Allow", "Action": "lambda:InvokeFunction", "Resource": small_stack["FunctionArn"]}
    ]
    began = datetime.now(UTC)
    schedule("untrusted", invoke_it, principal="lambda.amazonaws.com")
    schedule("unallowed", [{**invoke_it[0], "Action": "lambda:GetFunction"}])
    schedule("allowed", invoke_it)
    event = json.loads(eventually(lambda: rows("scheduled"))["event"])
    assert event["by"] == "allowed"
    when = datetime.fromisoformat(event["scheduled"])
    assert began <= when <= datetime.now(UTC) + timedelta(seconds=1)
    eventually(lambda: embedded_aws.log.read_text().count("not allowed to send to") >= 2)
    assert rows("scheduled")["deliveries"] == 1


@pytest.fixture
def subscribed(embedded_aws):
    """Create a queue that is subscribed to a topic."""

    def make(name, topic):
        queue = EventQueue(embedded_aws, name)
        queue.subscribe(topic)
        return queue

    return make


def test_an_alarm_evaluates_its_dimensions_and_needs_its_topics_key(
    embedded_aws, small_stack, subscribed, eventually
):
    open_queue = subscribed("open", small_stack["Topic"])
    closed_queue = subscribed("closed", small_stack["ClosedTopic"])
    embedded_aws.client("sqs").send_message(QueueUrl=small_stack["Watched"], MessageBody="lost")
    [message] = eventually(open_queue.receive)
    alarm = json.loads(json.loads(message["Body"])["Message"])
    assert (alarm["AlarmName"], alarm["NewStateValue"]) == (small_stack["Alarm"], "ALARM")
    described = embedded_aws.client("cloudwatch").describe_alarms(AlarmNames=[small_stack["QuietAlarm"]])
    assert described["MetricAlarms"][0]["StateValue"] == "OK"
    assert closed_queue.receive() == []
    assert (
        f"CloudWatch is not allowed to publish to {small_stack['ClosedTopic']}"
        in embedded_aws.log.read_text()
    )


def test_an_alarms_history_has_the_result_of_each_action(embedded_aws, small_stack):
    cloudwatch = embedded_aws.client("cloudwatch")
    alarm = small_stack["QuietAlarm"]
    (described,) = cloudwatch.describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="a test")
    items = cloudwatch.describe_alarm_history(AlarmName=alarm, HistoryItemType="Action")["AlarmHistoryItems"]
    topic, closed = small_stack["Topic"], small_stack["ClosedTopic"]
    assert set(described["AlarmActions"]) == {topic, closed}
    assert {item["HistorySummary"]: json.loads(item["HistoryData"])["error"] for item in items} == {
        f"Successfully executed action {topic}": None,
        f"Failed to execute action {closed}": f"Resource: {described['AlarmArn']} is not authorized to perform: "
        f"SNS:Publish on resource: {closed}",
    }


@pytest.mark.parametrize(
    "subject", ["s" * 101, "two\nlines", "bell\x07", ""], ids=["long", "line", "control", "empty"]
)
def test_sns_refuses_a_subject_over_100_characters_or_with_control_characters(
    embedded_aws, small_stack, subject
):
    sns = embedded_aws.client("sns")
    with pytest.raises(ClientError) as refused:
        sns.publish(TopicArn=small_stack["Topic"], Message="m", Subject=subject)
    error = refused.value.response["Error"]
    assert (error["Code"], error["Message"]) == ("InvalidParameter", "Invalid parameter: Subject")
    sns.publish(TopicArn=small_stack["Topic"], Message="m", Subject="s" * 100)


def test_publishing_to_an_encrypted_topic_needs_access_to_its_key(embedded_aws, small_stack):
    assert invoke(embedded_aws, small_stack["Function"], {"probe": "publish"}) == "KMSAccessDenied"
    embedded_aws.client("sns").publish(TopicArn=small_stack["Topic"], Message="by root")


def test_records_embedded_metrics_of_log_lines(embedded_aws, small_stack):
    invoke(embedded_aws, small_stack["Function"], {"probe": "metric"})
    now = datetime.now(UTC)
    statistics = embedded_aws.client("cloudwatch").get_metric_statistics(
        Namespace="Test",
        MetricName="Seen",
        Dimensions=[{"Name": "kind", "Value": "a"}],
        StartTime=now - timedelta(minutes=5),
        EndTime=now + timedelta(minutes=5),
        Period=3600,
        Statistics=["Sum", "SampleCount"],
    )
    assert sum(point["Sum"] for point in statistics["Datapoints"]) == 5
    assert sum(point["SampleCount"] for point in statistics["Datapoints"]) == 2


def test_chaos_delays_events_and_refuses_unknown_settings(embedded_aws, small_stack, rows, eventually):
    keys = [f"in/late/{n:02}.json" for n in range(12)]
    embedded_aws.control("chaos", reorder_seconds=1.0)
    try:
        put(embedded_aws, small_stack, *keys)
    finally:
        embedded_aws.control("chaos", reorder_seconds=0.0)
    eventually(lambda: all(rows(key) for key in keys))
    with pytest.raises(ValueError, match="typo"):
        embedded_aws.control("chaos", typo=True)


# ---------------------------------------------------------------- the process


def test_the_capture_clock_can_be_set_and_shifted(embedded_aws):
    try:
        at = embedded_aws.control("clock", now="2026-11-23T10:05:00Z")
        assert at["now"].startswith("2026-11-23T10:05:00")
        shifted = embedded_aws.control("clock", offset_seconds=-3600)
        assert shifted["offset_seconds"] == -3600
        with pytest.raises(ValueError, match="zone"):
            embedded_aws.control("clock", now="2026-11-23T10:05:00")
    finally:
        embedded_aws.control("clock", offset_seconds=0)


def test_refuses_another_version_of_ministack_and_names_missing_hooks():
    script = "from local import gaps; gaps.MINISTACK = '0.0.1'; gaps.HOOKS.append(('ministack.app', 'gone', None));"
    done = subprocess.run(
        [sys.executable, "-c", f"{script} gaps.check_hooks()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1
    assert "ministack: expected version 0.0.1, got 1.5.33; ministack.app.gone is missing" in done.stderr


def test_error_names_a_port_in_use(embedded_aws):
    with pytest.raises(
        EmulatorError, match=f"127.0.0.1:{embedded_aws.port}: cannot listen: Address already in use"
    ):
        EmbeddedAws(port=embedded_aws.port)


STORY = """
import sys, time
from pathlib import Path
import psutil
from local.deploy import deploy
from local.emulator import EmbeddedAws, stop_on_sigterm

template, server, image = sys.argv[1:]
with stop_on_sigterm(), EmbeddedAws(images={"stub-serving": [sys.executable, server]}) as aws:
    parameters = {"EndpointName": "e", "ModelDataUrl": "", "Image": image}
    outputs = deploy(Path(template), "s", parameters, aws.session)
    aws.client("lambda").invoke(FunctionName=outputs["Function"], Payload=b'{"probe": "layer"}')
    children = psutil.Process().children(recursive=True)
    print(aws.directory, *(child.pid for child in children), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def story(stub_images):
    """A process with an embedded AWS, the AWS's directory, and the process's descendants."""
    embedded = Path(__file__).parent / "embedded"
    arguments = [embedded / "template.yaml", embedded / "server.py", stub_images["serving"]]
    parent = subprocess.Popen(
        [sys.executable, "-c", STORY, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # a background process may inherit that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    directory, *pids = parent.stdout.readline().split()
    children = [psutil.Process(int(pid)) for pid in pids]
    # at least the embedded AWS, a model server and a function
    assert len(children) >= 3
    yield parent, Path(directory), children
    for process in (parent, *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    parent.wait()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_process_that_started_the_emulator(number, story):
    parent, directory, children = story
    parent.send_signal(number)
    parent.wait(60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert not directory.exists()


@pytest.mark.parametrize("parent_too", [False, True])
def test_model_servers_end_with_a_killed_emulator(parent_too, story):
    parent, _, children = story
    (emulator,) = [child for child in children if "local.server" in child.cmdline()]
    if parent_too:
        parent.kill()
    emulator.kill()
    # its parent has not reaped it yet
    _, alive = psutil.wait_procs([child for child in children if child != emulator], timeout=60)
    assert alive == []
