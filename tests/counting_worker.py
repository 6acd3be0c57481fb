"""A process that counts the capture files of a queue, as the Lambda function does, until it is killed.

    python tests/counting_worker.py QUEUE_URL TABLE

The files are not in S3: a file's number determines its content.
"""

import json
import random
import sys
from datetime import UTC, datetime, timedelta

import boto3

from captures import FakeCaptures, FakeEvents, created, file
from glassbox.aws.counts_table import CountsTable
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, count_file

HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
PREDICTIONS = 100


def key(number):
    return f"capture/traffic-signs/AllTraffic/2026/11/23/10/{number:05d}.jsonl"


def parts(number):
    """Return (time, classes) of the parts of a file over two slots and two blocks of classes."""
    chance = random.Random(number)
    before = HOUR + timedelta(minutes=10 * (number % 5) + 9)
    cut = chance.randrange(1, PREDICTIONS)
    classes = chance.choices([*range(43), 150, 200], k=PREDICTIONS)
    return [(before, classes[:cut]), (before + timedelta(minutes=1), classes[cut:])]


def body(number):
    return b"".join(file(classes, f"{time:%Y-%m-%dT%H:%M:%SZ}") for time, classes in parts(number))


def main(queue, table):
    sqs, counts = boto3.client("sqs"), CountsTable(boto3.client("dynamodb"), table)
    while True:
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=2, WaitTimeSeconds=1)
        for message in answer.get("Messages", ()):
            number = json.loads(message["Body"])
            dependencies = CountingDependencies(
                settings=CountingSettings(threshold=0.5),
                replay_key=None,
                captures=FakeCaptures({key(number): body(number)}),
                counts=counts,
                events=FakeEvents(),
            )
            count_file(created(key(number)), HOUR + timedelta(hours=1), dependencies)
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])


if __name__ == "__main__":
    main(*sys.argv[1:])
