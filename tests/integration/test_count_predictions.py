"""The function as Lambda runs it, against moto."""

import json
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws

from captures import ARTICLE, KEY, STREAM, file

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
    for name, value in {"COUNTS_TABLE": "counts", "THRESHOLD": "0.5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # one of its own, forgotten afterwards
    with mock_aws():
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
        yield SimpleNamespace(s3=boto3.client("s3"), table=boto3.client("dynamodb"), sent=sent)


def test_a_capture_file_becomes_counts_and_a_violation_and_a_second_delivery_changes_nothing(
    aws, load_app, load_event
):
    aws.s3.put_object(Bucket=BUCKET, Key=KEY, Body=file(ARTICLE))
    app, event = load_app("count_predictions"), load_event("sqs-capture")
    for _ in range(2):
        assert app.handler(event, CONTEXT) == {"batchItemFailures": []}
    (item,) = aws.table.query(
        TableName="counts",
        KeyConditionExpression="pk = :pk AND begins_with(sk, :hour)",
        FilterExpression="attribute_exists(records)",
        ExpressionAttributeValues={":pk": {"S": STREAM}, ":hour": {"S": "2026-11-23T10"}},
    )["Items"]
    assert item["c14"] == {"N": "322"}
    assert item["records"] == {"N": "400"}
    (event,) = aws.sent
    assert (event["Source"], event["DetailType"]) == ("glassbox", "Glassbox Violation")
    violation = json.loads(event["Detail"])
    assert (violation["check"], violation["value"], violation["n"]) == ("class_share", 0.805, 400)
