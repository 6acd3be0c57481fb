import json

import pytest

from glassbox.errors import BadInputError
from glassbox.queue_message import S3Object, event_time, read_event, read_object
from glassbox.timestamps import parse_timestamp


@pytest.mark.parametrize("body", ["", "[]", "5", "null", '"x"', "{", "[" * 100_000])
def test_read_event_refuses_a_body_that_is_not_a_json_object(body):
    with pytest.raises(BadInputError, match="message: expected a JSON object"):
        read_event(body)


def test_read_object_returns_bucket_key_and_etag(load_event):
    read = read_object(load_event("capture-object-created"))
    detail = load_event("capture-object-created")["detail"]
    assert read == S3Object(detail["bucket"]["name"], detail["object"]["key"], detail["object"]["etag"])


@pytest.mark.parametrize(
    "detail", [None, [], "x", {}, {"bucket": {}}, {"bucket": {"name": "b"}, "object": {}}]
)
def test_read_object_refuses_an_event_without_an_object(detail):
    for event in ({"detail": detail}, {}):
        with pytest.raises(BadInputError, match="not an Object Created event"):
            read_object(event)


@pytest.mark.parametrize(
    ("part", "member"), [("bucket", "name"), ("object", "key"), ("object", "etag"), ("bucket", None)]
)
@pytest.mark.parametrize("value", [None, 5, [], {}])
def test_read_object_refuses_what_is_not_text(load_event, part, member, value):
    event = load_event("capture-object-created")
    if member:
        event["detail"][part][member] = value
    else:
        event["detail"][part] = value
    with pytest.raises(BadInputError, match=event["id"]):
        read_object(event)


def test_event_time_reads_the_schedules_message(load_event):
    body = json.loads(load_event("sqs-monitor")["Records"][0]["body"])
    assert event_time(body) == parse_timestamp("2026-11-23T11:10:00Z")


@pytest.mark.parametrize(
    "message",
    [{}, {"time": None}, {"time": "soon"}, {"time": []}, {"time": "<aws.scheduler.scheduled-time>"}],
)
def test_event_time_refuses_a_message_without_a_timestamp(message):
    with pytest.raises(BadInputError, match="time"):
        event_time(message)
