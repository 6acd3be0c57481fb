"""Record every S3 event in a table; an event whose key contains `poison` fails alone."""

import json
import os

import boto3
import marker
from botocore.exceptions import ClientError

TABLE = boto3.resource("dynamodb").Table(os.environ["TABLE"])


def handler(event, context):
    if "probe" in event:
        return probe(event["probe"])
    if "scheduled" in event:
        return record_event("scheduled", json.dumps(event))
    failures = []
    for record in event["Records"]:
        detail = json.loads(record["body"])
        key = detail["detail"].get("object", {}).get("key") or detail["id"]
        try:
            if "poison" in key:
                raise ValueError(f"cannot digest {key}")
            record_event(key, record["body"])
        except ValueError as error:
            print(f"ERROR {error}")
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


def record_event(key, event):
    TABLE.update_item(
        Key={"pk": key},
        UpdateExpression="ADD deliveries :one SET event = :event",
        ExpressionAttributeValues={":one": 1, ":event": event},
    )


def probe(what):
    """Try an operation and return its result or error code."""
    try:
        return PROBES[what]()
    except ClientError as error:
        return error.response["Error"]["Code"]


def missing_import():
    try:
        import moto  # noqa: F401 -- in the emulator's environment, in no layer
    except ImportError as error:
        return str(error)
    return "found"


def put_event(source):
    boto3.client("events").put_events(Entries=[{"Source": source, "DetailType": "d", "Detail": "{}"}])
    return "put"


def publish():
    boto3.client("sns").publish(TopicArn=os.environ["TOPIC"], Message="hello")
    return "published"


def embedded_metric():
    metrics = {"Namespace": "Test", "Dimensions": [["kind"]], "Metrics": [{"Name": "Seen", "Unit": "Count"}]}
    print(json.dumps({"_aws": {"CloudWatchMetrics": [metrics]}, "kind": "a", "Seen": [2, 3]}))


PROBES = {
    "layer": lambda: marker.NAME,
    "import": missing_import,
    "environment": lambda: sorted(os.environ),
    "forbidden": lambda: boto3.client("dynamodb").delete_table(TableName=os.environ["TABLE"]),
    "ours": lambda: put_event("ours"),
    "theirs": lambda: put_event("theirs"),
    "publish": publish,
    "metric": embedded_metric,
}
