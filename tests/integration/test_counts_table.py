"""The counts table on the embedded AWS; its fake in the unit tests passes the same contract."""

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.stub import Stubber

from captures import ARTICLE, STREAM, FakeCaptures, FakeCounts, FakeEvents, created, file
from glassbox.aws.counts_table import CountsTable
from glassbox.count import CountingSettings, count_file, judge_file
from glassbox.errors import BadInputError, RetryableError
from glassbox.response import ResponseForm
from glassbox.tally import UNKNOWN, Counts, Window, total
from glassbox.verdict import Bounds, Told, class_share

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
WINDOW = Window(HOUR, HOUR + timedelta(hours=1))
TEN = timedelta(minutes=10)
FILES = 2000


@pytest.fixture
def table(embedded_aws):
    """The name of a new table, on the embedded AWS: moto's is not atomic and takes no expression of 200 classes."""
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


@pytest.fixture
def client(embedded_aws):
    return embedded_aws.session.client("dynamodb", config=Config(max_pool_connections=16))


@pytest.fixture
def counts_table(client, table):
    return CountsTable(client, table)


def count_and_judge(event, files, counts, events):
    settings = CountingSettings(threshold=0.5)
    captures = FakeCaptures(files)
    counted = count_file(
        event,
        settings=settings,
        form=ResponseForm(),
        replay_key=None,
        captures=captures,
        counts=counts,
        now=NOW,
    )
    judge_file(counted, settings=settings, baseline=None, counts=counts, events=events)


@pytest.fixture(params=["fake", "table"])
def counts(request):
    return FakeCounts() if request.param == "fake" else request.getfixturevalue("counts_table")


def some(**classes):
    return Counts(Counter({int(name[1:]): n for name, n in classes.items()}), records=sum(classes.values()))


# ---------------------------------------------------------------- the contract


def test_counts_add_up_and_a_file_counts_once(counts):
    assert counts.add("b/one#e", STREAM, {HOUR: some(c14=3, c1=1)}, NOW)
    assert counts.add("b/two#e", STREAM, {HOUR: some(c14=2), HOUR + TEN: some(c2=1)}, NOW)
    assert not counts.add("b/one#e", STREAM, {HOUR: some(c14=3, c1=1)}, NOW)
    slots, told = counts.read(STREAM, WINDOW)
    assert slots == {HOUR: some(c14=5, c1=1), HOUR + TEN: some(c2=1)}
    assert told == []


def test_every_number_comes_back(counts):
    everything = Counts(
        Counter(
            {0: 1, 199: 2, 200: 3, 9999: 4, "Stop": 5, "c14": 6, "n:x": 7, "low": 8, "é#/": 9, UNKNOWN: 10}
        ),
        rated=11,
        low=12,
        records=13,
        unreadable=14,
        replayed=15,
    )
    assert counts.add("b/k#e", STREAM, {HOUR: everything}, NOW)
    assert counts.read(STREAM, WINDOW)[0] == {HOUR: everything}


def test_only_unreadable_records_are_counts_too(counts):
    counts.add("b/k#e", STREAM, {HOUR: Counts(unreadable=3)}, NOW)
    assert counts.read(STREAM, WINDOW)[0] == {HOUR: Counts(unreadable=3)}


def test_a_window_reads_its_own_slots_and_no_others(counts):
    for n in range(-2, 9):
        counts.add(f"b/{n}#e", STREAM, {HOUR + n * TEN: some(c1=1)}, NOW)
    counts.add("b/other#e", "traffic-signs/Canary", {HOUR: some(c1=1)}, NOW)
    counts.add("b/longer#e", "traffic-signs-2/AllTraffic", {HOUR: some(c1=1)}, NOW)
    slots, _ = counts.read(STREAM, WINDOW)
    assert sorted(slots) == [HOUR + n * TEN for n in range(6)]
    assert total(slots.values()).n == 6


def test_a_violation_is_remembered_with_its_window(counts):
    verdict = class_share(some(c14=60), Window(HOUR + TEN, HOUR + 7 * TEN), Bounds(threshold=0.5))
    for _ in range(2):
        counts.record(STREAM, verdict)
    assert counts.read(STREAM, WINDOW) == ({}, [Told("class_share", verdict.window)])
    assert counts.read(STREAM, Window(HOUR + 2 * TEN, WINDOW.end)) == ({}, [])
    assert counts.read("traffic-signs/Canary", WINDOW) == ({}, [])


def test_one_file_delivered_many_times_at_once_counts_once(counts):
    barrier = threading.Barrier(8)

    def deliver(_):
        barrier.wait()
        return counts.add("b/k#e", STREAM, {HOUR: some(c14=3)}, NOW)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(deliver, range(8)))
    assert outcomes.count(True) == 1
    assert counts.read(STREAM, WINDOW)[0] == {HOUR: some(c14=3)}


# ---------------------------------------------------------------- the table alone


def items(client, table):
    return client.scan(TableName=table)["Items"]


def test_an_hour_is_one_query(client, table, counts_table):
    counts_table.add("b/k#e", STREAM, {HOUR + n * TEN: some(c14=n + 1) for n in range(6)}, NOW)
    page = client.query(
        TableName=table,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :hour)",
        ExpressionAttributeValues={":pk": {"S": STREAM}, ":hour": {"S": "2026-11-23T10"}},
    )
    assert sum(int(item["c14"]["N"]) for item in page["Items"]) == 21
    assert "LastEvaluatedKey" not in page


def test_every_item_expires_the_marker_after_all_redrives(client, table, counts_table):
    counts_table.add("b/k#e", STREAM, {HOUR: some(c14=60)}, NOW)
    counts_table.record(STREAM, class_share(some(c14=60), WINDOW, Bounds(threshold=0.5)))
    expiry = {
        item["sk"]["S"]: datetime.fromtimestamp(int(item["expires"]["N"]), UTC)
        for item in items(client, table)
    }
    assert expiry == {
        "counted": NOW.replace(microsecond=0) + timedelta(days=45),
        "2026-11-23T10:00#000": HOUR + timedelta(days=90),
        "2026-11-23T10:00#violation#class_share": HOUR + timedelta(days=90),
    }


def test_a_thousand_classes_fit_and_a_read_goes_over_the_pages(client, table, counts_table, monkeypatch):
    thousand = Counts(Counter({label: 10**6 + label for label in range(1000)}), records=10**9)
    named = Counts(Counter({f"a class with a long name {label}": 1 for label in range(1000)}))
    assert counts_table.add("b/k#e", STREAM, {HOUR: thousand, HOUR + TEN: named}, NOW)
    assert len(items(client, table)) == 1 + 5 + 5
    query, pages = client.query, []
    monkeypatch.setattr(client, "query", lambda **request: pages.append(1) or query(Limit=2, **request))
    assert counts_table.read(STREAM, WINDOW)[0] == {HOUR: thousand, HOUR + TEN: named}
    assert len(pages) > 4


def test_update_expressions_stay_below_the_limits_of_dynamodb(client, counts_table):
    sent = []
    client.meta.events.register(
        "before-parameter-build.dynamodb.TransactWriteItems",
        lambda params, **_: sent.extend(params["TransactItems"]),
    )
    labels = [*range(1000), *(f"name {n}" for n in range(500)), UNKNOWN]
    assert counts_table.add("b/k#e", STREAM, {HOUR: Counts(Counter(labels), 1, 1, 1, 1, 1)}, NOW)
    updates = [item["Update"] for item in sent if "Update" in item]
    assert len(updates) == 8
    for update in updates:
        assert len(update["UpdateExpression"].encode()) <= 4096
        assert len(update["ExpressionAttributeValues"]) <= 300


def test_a_file_that_touches_too_much_is_refused_with_a_reason_and_counts_nothing(
    client, table, counts_table
):
    slots = {HOUR + n * TEN: some(c1=1) for n in range(100)}
    with pytest.raises(
        BadInputError, match="b/k#e: 100 slots of ten minutes in 101 items, a transaction holds 100"
    ):
        counts_table.add("b/k#e", STREAM, slots, NOW)
    assert items(client, table) == []
    del slots[HOUR]
    assert counts_table.add("b/k#e", STREAM, slots, NOW)


def cancelled(*codes):
    return {"CancellationReasons": [{"Code": code} for code in codes]}


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        ("TransactionCanceledException", cancelled("None", "TransactionConflict")),
        ("TransactionCanceledException", cancelled("TransactionConflict", "None")),
        ("TransactionCanceledException", cancelled("None", "ConditionalCheckFailed")),
        ("TransactionCanceledException", cancelled("None", "ThrottlingError")),
        ("TransactionCanceledException", cancelled("ProvisionedThroughputExceeded", "None")),
        ("TransactionCanceledException", {}),
        ("TransactionInProgressException", {}),
        ("ConditionalCheckFailedException", {}),
        ("ProvisionedThroughputExceededException", {}),
        ("RequestLimitExceeded", {}),
        ("InternalServerError", {}),
        ("ResourceNotFoundException", {}),
    ],
)
def test_only_the_markers_own_condition_tells_a_duplicate(code, reasons):
    client = boto3.client("dynamodb")
    with Stubber(client) as stub:
        stub.add_client_error("transact_write_items", code, modeled_fields=reasons or None)
        with pytest.raises(RetryableError, match="b/k#e was not counted"):
            CountsTable(client, "counts").add("b/k#e", STREAM, {HOUR: some(c1=1)}, NOW)


def test_the_markers_condition_tells_it():
    client = boto3.client("dynamodb")
    with Stubber(client) as stub:
        stub.add_client_error(
            "transact_write_items",
            "TransactionCanceledException",
            modeled_fields=cancelled("ConditionalCheckFailed", "TransactionConflict"),
        )
        assert not CountsTable(client, "counts").add("b/k#e", STREAM, {HOUR: some(c1=1)}, NOW)


def test_a_table_that_is_away_is_tried_again(client, monkeypatch):
    gone, verdict = CountsTable(client, "gone"), class_share(some(c1=60), WINDOW, Bounds(threshold=0.5))
    calls = (
        lambda: gone.add("b/k#e", STREAM, {HOUR: some(c1=1)}, NOW),
        lambda: gone.read(STREAM, WINDOW),
        lambda: gone.record(STREAM, verdict),
    )
    for call in calls:
        with pytest.raises(RetryableError) as error:
            call()
        assert isinstance(error.value.__cause__, ClientError)

    def away(**request):
        raise EndpointConnectionError(endpoint_url="https://dynamodb.eu-west-1.amazonaws.com/")

    for name in ("transact_write_items", "query", "put_item"):
        monkeypatch.setattr(client, name, away)
    for call in calls:
        with pytest.raises(RetryableError, match="Could not connect"):
            call()


class Unreliable:
    """A dynamodb client that throttles, reports conflicts, and dies before or after the work was done."""

    def __init__(self, client, rate):
        self._client, self._rate = client, rate
        self._random, self._lock = random.Random(7), threading.Lock()
        self.failures = Counter()

    def __getattr__(self, name):
        call = getattr(self._client, name)

        def unreliable(**request):
            with self._lock:
                failure = self._random.random() < self._rate and self._random.choice(["refused", "cut off"])
                self.failures[failure] += bool(failure)
            if failure == "refused":
                code = (
                    "TransactionCanceledException"
                    if name == "transact_write_items"
                    else "ThrottlingException"
                )
                raise ClientError({"Error": {"Code": code}} | cancelled("None", "TransactionConflict"), name)
            answer = call(**request)
            if failure == "cut off":  # it was done, but nobody heard
                raise EndpointConnectionError(endpoint_url="https://dynamodb")
            return answer

        return unreliable


def test_files_shuffled_duplicated_eight_at_a_time_and_unreliable_are_counted_exactly(client, table):
    chance = random.Random(2000)
    labels = {
        f"capture/traffic-signs/AllTraffic/2026/11/23/{hour}/{n}.jsonl": chance.choices(
            range(43), k=n % 4 + 1
        )
        for n in range(FILES)
        for hour in [10 + n % 3]
    }
    files = {
        key: file(classes, f"2026-11-23T{key[-30:].split('/')[-2]}:2{n % 10}:00Z")
        for n, (key, classes) in enumerate(labels.items())
    }
    deliveries = [*files, *chance.sample(sorted(files), FILES // 5)]
    chance.shuffle(deliveries)
    unreliable, events = Unreliable(client, 0.1), FakeEvents()

    def deliver(key):
        while True:
            try:
                return count_and_judge(created(key), files, CountsTable(unreliable, table), events)
            except RetryableError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(deliver, deliveries))
    slots, _ = CountsTable(client, table).read(STREAM, Window(HOUR, HOUR + timedelta(hours=3)))
    assert total(slots.values()).classes == Counter(label for classes in labels.values() for label in classes)
    assert unreliable.failures["refused"] > FILES // 20
    assert unreliable.failures["cut off"] > FILES // 20
    assert events.events == []


def test_the_reference_case_reads_back(counts_table):
    events = FakeEvents()
    count_and_judge(created(), {created()["object"]["key"]: file(ARTICLE)}, counts_table, events)
    slots, told = counts_table.read(STREAM, WINDOW)
    assert total(slots.values()) == Counts(Counter(ARTICLE), rated=400, records=400)
    assert told == [Told("class_share", WINDOW)]
    assert len(events.events) == 1
