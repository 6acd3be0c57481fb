"""Exact counts when processes are killed, and when 60 instances write while DynamoDB throttles."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse

import counting_worker
from captures import VARIANT_KEY, FakeCaptures, FakeEvents, created, file
from counting_worker import HOUR
from glassbox.aws.counts_table import CountsTable
from glassbox.errors import RetryableError
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.monitoring.counts import Counts, Window, total

WINDOW = Window(HOUR, HOUR + timedelta(hours=1))
WORKERS, FILES, DUPLICATES = 4, 500, 100
WRITERS, RECEIVES = 60, 3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(embedded_aws):
    name = f"counts-{uuid.uuid4()}"
    client = embedded_aws.client("dynamodb")
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    )
    yield name
    client.delete_table(TableName=name)


def test_counts_stay_exact_when_processes_are_killed(embedded_aws, table):
    """50,000 predictions in files over two slots and two blocks, with duplicates and SIGKILL."""
    sqs, chance = embedded_aws.client("sqs"), random.Random(50_000)
    queue = sqs.create_queue(QueueName=f"count-{uuid.uuid4()}", Attributes={"VisibilityTimeout": "2"})[
        "QueueUrl"
    ]
    deliveries = [*range(FILES), *chance.sample(range(FILES), DUPLICATES)]
    chance.shuffle(deliveries)
    for start in range(0, len(deliveries), 10):
        some = deliveries[start : start + 10]
        entries = [{"Id": str(i), "MessageBody": json.dumps(number)} for i, number in enumerate(some)]
        sqs.send_message_batch(QueueUrl=queue, Entries=entries)

    environment = (
        os.environ
        | embedded_aws.environment
        | {"PYTHONPATH": os.pathsep.join([str(ROOT / "layers/core/python"), str(ROOT / "tests")])}
    )
    command = [sys.executable, counting_worker.__file__, queue, table]

    def worker():
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def left():
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return sum(int(answer[name]) for name in names)

    workers, killed = [worker() for _ in range(WORKERS)], 0
    before = left()
    try:
        while waiting := left():
            if waiting <= before - 40:  # they are at work
                victim = workers.pop(0)
                victim.kill()
                victim.wait()
                workers.append(worker())
                killed, before = killed + 1, waiting
            time.sleep(0.05)
    finally:
        for process in workers:
            process.kill()
            process.wait()
    assert killed >= 10

    expected = {}
    for number in range(FILES):
        for moment, classes in counting_worker.parts(number):
            slot = moment.replace(minute=moment.minute // 10 * 10)
            counted = Counts(Counter(classes), with_confidence=len(classes), records=len(classes))
            expected[slot] = total((expected.get(slot, Counts()), counted))
    assert total(expected.values()).sample_size == 50_000
    assert CountsTable(embedded_aws.client("dynamodb"), table).read(VARIANT_KEY, WINDOW) == expected


def throttle(client, rate, seed, throttled):
    """Throttle some of a client's requests, below botocore's own retries."""
    chance = random.Random(seed)
    code = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
    body = json.dumps({"__type": code, "message": "The level of configured throughput was exceeded"}).encode()

    def answer(request, **_):
        if chance.random() >= rate:
            return None
        throttled.append(request.headers["X-Amz-Target"])
        response = AWSResponse(request.url, 400, {"content-type": "application/x-amz-json-1.0"}, None)
        response._content = body
        return response

    client.meta.events.register("before-send.dynamodb", answer)


def test_throttling_sends_no_message_of_60_instances_to_the_dead_letter_queue(embedded_aws, table, load_app):
    """SQS delivers a message RECEIVES times before it moves the message to the dead-letter queue."""
    retries, throttled, events = load_app("count_predictions").RETRIES, [], FakeEvents()
    settings, barrier = CountingSettings(threshold=0.5), threading.Barrier(WRITERS)
    key = "capture/traffic-signs/AllTraffic/2026/11/23/10/{:02d}.jsonl".format
    files = {key(n): file([(n + i) % 43 for i in range(20)], "2026-11-23T10:05:00Z") for n in range(WRITERS)}
    clients = [embedded_aws.session.client("dynamodb", config=retries) for _ in range(WRITERS)]
    for number, client in enumerate(clients):  # a Lambda instance has a client of its own
        throttle(client, 0.2, number, throttled)

    def deliver(number):
        dependencies = CountingDependencies(
            settings=settings,
            replay_key=None,
            captures=FakeCaptures(files),
            counts=CountsTable(clients[number], table),
            events=events,
        )
        barrier.wait()
        for receive in range(1, RECEIVES + 1):
            try:
                counted = count_file(created(key(number)), HOUR + timedelta(minutes=6), dependencies)
                check_file(counted, dependencies)
            except RetryableError:
                continue
            return receive
        return None

    with ThreadPoolExecutor(WRITERS) as pool:
        received = list(pool.map(deliver, range(WRITERS)))
    assert None not in received
    assert len(throttled) > WRITERS
    counted = total(CountsTable(embedded_aws.client("dynamodb"), table).read(VARIANT_KEY, WINDOW).values())
    assert counted.classes == Counter((n + i) % 43 for n in range(WRITERS) for i in range(20))
    assert events.events == []
