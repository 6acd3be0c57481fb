"""The simulated DynamoDB answers as moto's does: every request of some schedules is sent to both."""

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from glassbox.aws.replay_key import ReplayKey
from simulation.dynamodb import Tables
from simulation.run import run, run_seed
from simulation.services import COUNTS, INCIDENTS, Aws
from simulation.steps import Capture, Deliver, Resume

OPERATIONS = ("get_item", "put_item", "update_item", "query")


@pytest.fixture
def requests(monkeypatch):
    """Collects (operation, request, answer or error code) of every request to the simulated DynamoDB."""
    seen = []

    def recording(operation, original):
        def call(self, **request):
            try:
                answer = original(self, **request)
            except ClientError as error:
                seen.append((operation, request, error.response["Error"]["Code"]))
                raise
            seen.append((operation, request, answer))
            return answer

        return call

    for operation in OPERATIONS:
        monkeypatch.setattr(Tables, operation, recording(operation, getattr(Tables, operation)))
    return seen


@pytest.fixture
def moto():
    with mock_aws():
        client = boto3.client("dynamodb")
        for table in (COUNTS, INCIDENTS):
            client.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
                KeySchema=[
                    {"AttributeName": "pk", "KeyType": "HASH"},
                    {"AttributeName": "sk", "KeyType": "RANGE"},
                ],
            )
        yield client


@pytest.mark.parametrize("seed", [3, 4, 18])
def test_every_request_of_a_schedule_gets_the_answer_of_moto(requests, moto, seed):
    run_seed(seed)
    assert {operation for operation, _, _ in requests} == set(OPERATIONS)
    for operation, request, answer in requests:
        try:
            expected = getattr(moto, operation)(**request)
        except ClientError as error:
            expected = error.response["Error"]["Code"]
        assert _comparable(answer) == _comparable(expected), (operation, request)


def _comparable(answer):
    if isinstance(answer, str):
        return answer
    items = answer.get("Items", [answer["Item"]] if "Item" in answer else [])
    return [
        {name: sorted(v[k]) if (k := next(iter(v))) in ("SS", "BS") else v for name, v in item.items()}
        for item in items
    ]


def test_a_read_that_is_not_consistent_may_be_stale():
    aws = Aws()
    client, key = aws.client("dynamodb"), {"pk": {"S": "a"}, "sk": {"S": "b"}}
    client.put_item(TableName=COUNTS, Item=key | {"n": {"N": "1"}})
    client.put_item(TableName=COUNTS, Item=key | {"n": {"N": "2"}})
    aws.tables.stale_reads = True
    assert client.get_item(TableName=COUNTS, Key=key)["Item"]["n"] == {"N": "1"}
    assert client.get_item(TableName=COUNTS, Key=key, ConsistentRead=True)["Item"]["n"] == {"N": "2"}


def test_an_item_above_400_kb_is_refused():
    client, key = Aws().client("dynamodb"), {"pk": {"S": "a"}, "sk": {"S": "b"}}
    client.put_item(TableName=COUNTS, Item=key | {"x": {"S": "x" * 400_000}})
    with pytest.raises(ClientError, match="Item size to update has exceeded the maximum allowed size"):
        client.update_item(
            TableName=COUNTS,
            Key=key,
            UpdateExpression="SET y = :y",
            ExpressionAttributeValues={":y": {"S": "y" * 10_000}},
        )


def test_the_simulated_key_signs_what_its_public_key_verifies():
    key = ReplayKey(Aws().client("kms"), "arn")
    assert key.public().verifies(b"1.trace.x", key.sign(b"1.trace.x"))
    assert not key.public().verifies(b"1.trace.y", key.sign(b"1.trace.x"))


def test_an_invocation_that_was_suspended_continues_with_the_answers_that_it_got():
    """Stopping count_predictions before each of its calls changes nothing."""
    whole = run([Capture("attack"), Deliver("count")])
    expected = whole.aws.tables.tables[COUNTS]
    for calls in range(9):
        system = run([Capture("attack"), Deliver("count", calls=calls), Resume()])
        assert system.aws.tables.tables[COUNTS] == expected
