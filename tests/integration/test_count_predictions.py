"""count_predictions as Lambda runs it, against moto."""

import json
from collections import Counter
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

import replays
from captures import ARTICLE, KEY, VARIANT_KEY, file, line
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import BadInputError, SettingsError
from glassbox.monitoring.counts import Confidences, Counts
from glassbox.monitoring.monitor_files import statistics
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker

BUCKET = "amzn-s3-demo-bucket"
CONTEXT = SimpleNamespace(
    function_name="count_predictions",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:eu-west-1:111122223333:function:count_predictions",
    aws_request_id="52fdfc07-2182-154f-163f-5f0f9a621d72",
    get_remaining_time_in_millis=lambda: 30_000,
)


@pytest.fixture
def aws(monkeypatch):
    for name, value in {
        "COUNTS_TABLE": "counts",
        "THRESHOLD": "0.5",
        "ENDPOINT_NAME": "traffic-signs",
        "CAPTURE_PREFIX": "capture",
        "CLASS_METRICS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # one of its own, forgotten afterwards
    with mock_aws():
        kms = boto3.client("kms")
        key = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
        monkeypatch.setenv("REPLAY_KEY_ARN", key)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        boto3.client("dynamodb").create_table(
            TableName="counts",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
        )
        sent = []
        # moto delivers to no target without jsonpath_ng: what is put is taken down on its way
        boto3.DEFAULT_SESSION.events.register(
            "before-parameter-build.events.PutEvents", lambda params, **_: sent.extend(params["Entries"])
        )
        yield SimpleNamespace(
            s3=boto3.client("s3"), table=boto3.client("dynamodb"), sent=sent, replay_key=ReplayKey(kms, key)
        )


def message(key, number=0, bucket=BUCKET, **changes):
    detail = {"bucket": {"name": bucket}, "object": {"key": key, "etag": "e"}}
    body = json.dumps({"time": "2026-11-23T10:21:03Z", "detail": detail} | changes)
    return {
        "messageId": f"message-{number}",
        "receiptHandle": "r",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-west-1:111122223333:count",
        "awsRegion": "eu-west-1",
    }


def counted(aws):
    """Return the items of the hour, the counts first."""
    items = aws.table.scan(TableName="counts")["Items"]
    return sorted(items, key=lambda item: item["pk"] == {"S": VARIANT_KEY})


def test_capture_file_becomes_counts_and_a_violation_once(aws, load_app, load_event):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file(ARTICLE))
    app, event = load_app("count_predictions"), load_event("sqs-capture")
    for _ in range(2):
        assert app.handler(event, CONTEXT) == {"batchItemFailures": []}
    window, violation = counted(aws)
    assert window["c14"] == {"N": "322"}
    assert window["records"] == {"N": "400"}
    assert violation["sk"] == {"S": "2026-11-23T10:00#class_share"}
    (event,) = aws.sent
    assert (event["Source"], event["DetailType"]) == ("glassbox", "Glassbox Violation")
    detail = json.loads(event["Detail"])
    assert (detail["check"], detail["value"], detail["sample_size"]) == ("class_share", 0.805, 400)


def test_poison_message_fails_alone_with_its_reason(aws, load_app, caplog):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3]))
    poison = [
        message("capture/x.jsonl", 1),
        message(KEY.replace("20-02", "gone"), 2),
        message(KEY, 3, bucket="gone"),
        message(KEY, 4, detail={}),
        message(KEY, 5) | {"body": "no JSON"},
        message(KEY, 6) | {"body": "[" * 100_000},
        message(KEY, 7) | {"body": "[]"},
        message(5, 8),
        message(
            KEY.replace("capture/", "capture/traffic-signs/x/").replace("traffic-signs/AllT", "other/AllT"), 9
        ),
        message(KEY.replace("20-02", "gone\n\x1b[31m"), 10),
    ]
    event = {"Records": [poison[0], message(KEY), *poison[1:]]}
    answer = load_app("count_predictions").handler(event, CONTEXT)
    assert [f["itemIdentifier"] for f in answer["batchItemFailures"]] == [
        f"message-{n}" for n in range(1, 11)
    ]
    assert [item["c3"] for item in counted(aws)] == [{"N": "1"}]
    errors = [entry for entry in caplog.records if entry.name == "glassbox" and entry.exc_info]
    assert len(errors) == 10
    assert all(isinstance(entry.exc_info[1], BadInputError) for entry in errors)
    assert "expected a capture file" in str(errors[0].exc_info[1])
    assert f"s3://{BUCKET}/" in str(errors[1].exc_info[1])
    assert "one of another endpoint" in str(errors[8].exc_info[1])
    assert r"gone\n\x1b[31m" in str(errors[9].exc_info[1])


def test_throttled_table_fails_the_message_and_counts_nothing(aws, load_app, monkeypatch):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3]))
    monkeypatch.setenv("COUNTS_TABLE", "gone")
    answer = load_app("count_predictions").handler({"Records": [message(KEY)]}, CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-0"}]}
    assert counted(aws) == []


def test_wrong_settings_stop_the_function_with_all_names(aws, load_app, monkeypatch):
    monkeypatch.delenv("COUNTS_TABLE")
    monkeypatch.setenv("THRESHOLD", "nan")
    for name, value in {"NUM_CLASSES": "0", "CLASS_PATH": "a.", "DRIFT_THRESHOLD": "0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_app("count_predictions").handler({"Records": [message(KEY)]}, CONTEXT)
    for problem in (
        "COUNTS_TABLE is not set",
        "THRESHOLD='nan'",
        "NUM_CLASSES='0'",
        "CLASS_PATH='a.': invalid JMESPath",
        "DRIFT_THRESHOLD needs BASELINE_STATISTICS",
    ):
        assert problem in str(error.value)


def test_paths_and_baseline_come_from_the_settings(aws, load_app, monkeypatch):
    baseline = statistics(Counts(Counter({3: 500, 5: 500})), Confidences())
    aws.s3.put_object(Bucket=BUCKET, Key="baseline/statistics.json", Body=json.dumps(baseline).encode())
    records = b"".join(line({"best": n % 2 * 40}) + b"\n" for n in range(100))
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=records)
    for name, value in {
        "CLASS_PATH": "best",
        "DRIFT_THRESHOLD": "0.1",
        "BASELINE_STATISTICS": f"s3://{BUCKET}/baseline/statistics.json",
        "LOW_CONFIDENCE": "",
    }.items():
        monkeypatch.setenv(name, value)
    load_app("count_predictions").handler({"Records": [message(KEY)]}, CONTEXT)
    assert [json.loads(event["Detail"])["check"] for event in aws.sent] == ["drift"]


def metrics(capsys):
    """Return the values of each EMF line."""
    for emf in [json.loads(text) for text in capsys.readouterr().out.splitlines() if "_aws" in text]:
        (described,) = emf["_aws"]["CloudWatchMetrics"]
        assert described["Namespace"] == "Glassbox"
        assert {name: emf[name] for name in described["Dimensions"][0]} == {
            "service": "glassbox",
            "endpoint": "traffic-signs",
            "variant": "AllTraffic",
        }
        yield {metric["Name"]: emf[metric["Name"]] for metric in described["Metrics"]}


def replay(aws):
    marker = ReplayMarker(TRACE, replays.INCIDENT, "event-1")
    return line("[[1]]", customAttributes=[write_marker(marker, replays.BODY, aws.replay_key.sign)])


FILE = file([3] * 40 + [90] * 58) + line("[[90]]", customAttributes=[replays.marker()]) + b"\noops\n"
FILE_METRICS = {
    "Predictions": [99],
    "UnreadableRecords": [1],
    "ReplayedRecords": [1],
    "ForgedMarkers": [1],
    "LowConfidencePredictions": [0],
    "Class3": [40],
}
HOUR_METRICS = {"LargestClassShare": [59 / 99], "UnreadableShare": [0.01]}


def test_file_metrics_are_emitted_once_and_window_metrics_on_every_delivery(aws, load_app, capsys):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=FILE + replay(aws))
    app = load_app("count_predictions")
    for _ in range(2):
        app.handler({"Records": [message(KEY)]}, CONTEXT)
    assert list(metrics(capsys)) == [
        FILE_METRICS,
        HOUR_METRICS | {"Violations": [1]},
        HOUR_METRICS | {"Violations": [0]},
    ]


@pytest.mark.parametrize("call", ["dynamodb.Query", "events.PutEvents"])
def test_file_metrics_are_emitted_once_when_checks_fail(aws, load_app, capsys, call):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=FILE + replay(aws))
    app, away = load_app("count_predictions"), [EndpointConnectionError(endpoint_url="https://away")]

    def answer(**_):
        if away:
            raise away.pop()

    boto3.DEFAULT_SESSION.events.register(f"before-parameter-build.{call}", answer)
    failed, done = (app.handler({"Records": [message(KEY)]}, CONTEXT) for _ in range(2))
    assert failed == {"batchItemFailures": [{"itemIdentifier": "message-0"}]}
    assert done == {"batchItemFailures": []}
    assert list(metrics(capsys)) == [FILE_METRICS, HOUR_METRICS | {"Violations": [1]}]


def test_expired_records_are_reported_and_not_counted(aws, load_app, caplog, capsys):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3] * 60) + file([5], "2027-02-23T09:00:00Z"))
    record = message(KEY, time="2027-02-23T10:00:00Z")
    app = load_app("count_predictions")
    assert app.handler({"Records": [record]}, CONTEXT) == {"batchItemFailures": []}
    (entry,) = (entry for entry in caplog.records if entry.message == "counted")
    assert entry.refused == "60 records are older than 90 days"
    of_the_file = next(metrics(capsys))
    assert (of_the_file["Predictions"], of_the_file["UnreadableRecords"]) == ([1], [60])
    (item,) = counted(aws)
    assert item["sk"] == {"S": "2027-02-23T09:00#000"}


def test_windows_have_the_length_of_the_settings(aws, load_app, monkeypatch):
    monkeypatch.setenv("WINDOW_HOURS", "24")
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3] * 60))
    load_app("count_predictions").handler({"Records": [message(KEY)]}, CONTEXT)
    (event,) = aws.sent
    window = json.loads(event["Detail"])["window"]
    assert window == {"start": "2026-11-23T10:00:00Z", "end": "2026-11-24T10:00:00Z"}


def test_log_names_unreadable_lines_and_verdicts(aws, load_app, caplog):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3] * 60) + b"oops\n")
    load_app("count_predictions").handler({"Records": [message(KEY)]}, CONTEXT)
    (entry,) = (entry for entry in caplog.records if entry.message == "counted")
    assert entry.unreadable == [
        f"s3://{BUCKET}/{KEY}, line 61: not a capture record: JSON is malformed: invalid character (byte 0)"
    ]
    assert entry.violations[0].startswith("Class 3 predicted 100.00%")
    assert entry.new is True


def test_unreadable_replay_key_fails_the_message_and_counts_nothing(aws, load_app, monkeypatch):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file([3]) + replay(aws))
    away = [EndpointConnectionError(endpoint_url="https://away")]

    def answer(**_):
        if away:
            raise away.pop()

    boto3.DEFAULT_SESSION.events.register("before-parameter-build.kms.GetPublicKey", answer)
    app = load_app("count_predictions")
    assert app.handler({"Records": [message(KEY)]}, CONTEXT)["batchItemFailures"]
    assert counted(aws) == []
    assert app.handler({"Records": [message(KEY)]}, CONTEXT) == {"batchItemFailures": []}
    assert [(item["c3"], item["replayed"]) for item in counted(aws)] == [({"N": "1"}, {"N": "1"})]
