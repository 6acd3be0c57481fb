"""The counts table on the embedded AWS, and its fake of the unit tests, by one contract."""

import hashlib
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

from captures import ARTICLE, VARIANT_KEY, FakeCaptures, FakeCounts, FakeEvents, created, file
from glassbox.aws.counts_table import BLOCK, FILE_ID_BYTES, SHARDS, CountsTable, shard
from glassbox.errors import BadInputError, RetryableError
from glassbox.monitoring.checks import Bounds, PublishedViolation, class_share
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.monitoring.counts import UNKNOWN, Counts, Window, total
from simulation.services import COUNTS
from simulation.services import Aws as SimulatedAws

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
WINDOW = Window(HOUR, HOUR + timedelta(hours=1))
TEN = timedelta(minutes=10)
FILES = 500


@pytest.fixture
def table(embedded_aws):
    """Return a new table on the embedded AWS; moto is not atomic and refuses expressions of 200 classes."""
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


def count_and_check(event, files, counts, events):
    dependencies = CountingDependencies(
        settings=CountingSettings(threshold=0.5),
        replay_key=None,
        captures=FakeCaptures(files),
        counts=counts,
        events=events,
    )
    check_file(count_file(event, NOW, dependencies), dependencies)


@pytest.fixture(params=["fake", "table", "simulated"])
def counts(request):
    if request.param == "simulated":
        return CountsTable(SimulatedAws().client("dynamodb"), COUNTS)
    return FakeCounts() if request.param == "fake" else request.getfixturevalue("counts_table")


def some(**classes):
    return Counts(Counter({int(name[1:]): n for name, n in classes.items()}), records=sum(classes.values()))


# ---------------------------------------------------------------- the contract


def test_add_sums_counts_and_counts_a_file_once(counts):
    assert counts.add("b/one#e", VARIANT_KEY, {HOUR: some(c14=3, c1=1)})
    assert counts.add("b/two#e", VARIANT_KEY, {HOUR: some(c14=2), HOUR + TEN: some(c2=1)})
    assert not counts.add("b/one#e", VARIANT_KEY, {HOUR: some(c14=3, c1=1)})
    assert counts.read(VARIANT_KEY, WINDOW) == {HOUR: some(c14=5, c1=1), HOUR + TEN: some(c2=1)}
    assert counts.published(VARIANT_KEY, WINDOW) == []


def test_read_returns_every_number(counts):
    everything = Counts(
        Counter(
            {
                0: 1,
                199: 2,
                200: 3,
                9999: 4,
                "Stop": 5,
                "c14": 6,
                "n:x": 7,
                "low_confidence": 8,
                "é#/": 9,
                UNKNOWN: 10,
            }
        ),
        with_confidence=11,
        low_confidence=12,
        records=13,
        unreadable=14,
        replayed=15,
    )
    assert counts.add("b/k#e", VARIANT_KEY, {HOUR: everything})
    assert counts.read(VARIANT_KEY, WINDOW) == {HOUR: everything}


def test_add_accepts_unreadable_records_only(counts):
    counts.add("b/k#e", VARIANT_KEY, {HOUR: Counts(unreadable=3)})
    assert counts.read(VARIANT_KEY, WINDOW) == {HOUR: Counts(unreadable=3)}


def test_read_returns_the_slots_of_the_window_only(counts):
    for n in range(-2, 9):
        counts.add(f"b/{n}#e", VARIANT_KEY, {HOUR + n * TEN: some(c1=1)})
    counts.add("b/other#e", "traffic-signs/Canary", {HOUR: some(c1=1)})
    counts.add("b/longer#e", "traffic-signs-2/AllTraffic", {HOUR: some(c1=1)})
    slots = counts.read(VARIANT_KEY, WINDOW)
    assert sorted(slots) == [HOUR + n * TEN for n in range(6)]
    assert total(slots.values()).sample_size == 6


def test_published_returns_recorded_violations_with_their_window(counts):
    verdict = class_share(some(c14=60), Window(HOUR + TEN, HOUR + 7 * TEN), Bounds(threshold=0.5))
    for _ in range(2):
        counts.record(VARIANT_KEY, verdict)
    published = [PublishedViolation("class_share", verdict.window)]
    assert counts.published(VARIANT_KEY, WINDOW) == published
    assert counts.published(VARIANT_KEY, Window(HOUR + 6 * TEN, HOUR + 12 * TEN)) == published
    assert counts.published(VARIANT_KEY, Window(HOUR - 6 * TEN, HOUR + 2 * TEN)) == published
    assert counts.published(VARIANT_KEY, Window(HOUR - 6 * TEN, HOUR + TEN)) == []
    assert counts.published(VARIANT_KEY, Window(HOUR + 7 * TEN, HOUR + 13 * TEN)) == []
    assert counts.published("traffic-signs/Canary", WINDOW) == []
    assert counts.read(VARIANT_KEY, WINDOW) == {}


def test_published_finds_a_violation_of_the_longest_window_until_its_end(counts):
    day = Window(HOUR, HOUR + timedelta(hours=24))
    counts.record(VARIANT_KEY, class_share(some(c14=60), day, Bounds(threshold=0.5)))
    last = Window(day.end - TEN, day.end + 5 * TEN)
    assert counts.published(VARIANT_KEY, last) == [PublishedViolation("class_share", day)]
    assert counts.published(VARIANT_KEY, Window(day.end, day.end + 6 * TEN)) == []


def test_add_counts_a_file_once_in_concurrent_deliveries(counts):
    barrier = threading.Barrier(8)

    def deliver(_):
        barrier.wait()
        return counts.add("b/k#e", VARIANT_KEY, {HOUR: some(c14=3)})

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(deliver, range(8)))
    assert outcomes.count(True) == 1
    assert counts.read(VARIANT_KEY, WINDOW) == {HOUR: some(c14=3)}


# ---------------------------------------------------------------- the table alone


def items(client, table):
    return client.scan(TableName=table)["Items"]


def test_shard_of_a_file_never_changes():
    """The shards are part of the stored form: a changed shard would count a redelivered file twice."""
    assert (SHARDS, BLOCK, FILE_ID_BYTES) == (4, 145, 16)
    ids = [hashlib.sha256(f"bucket/{n}#etag".encode()).digest()[:16] for n in range(8)]
    assert [shard(file_id) for file_id in ids] == [3, 2, 3, 3, 2, 2, 3, 2]


def test_items_have_the_documented_form(client, table, counts_table):
    file = "b/k#e"
    file_id = hashlib.sha256(file.encode()).digest()[:16]
    counts_table.add(file, VARIANT_KEY, {HOUR: some(c14=3, c145=2)})
    counts_table.record(VARIANT_KEY, class_share(some(c14=60), WINDOW, Bounds(threshold=0.5)))
    stored = {(item["pk"]["S"], item["sk"]["S"]): item for item in items(client, table)}
    pk, expires = f"{VARIANT_KEY}#{shard(file_id)}", str(int((HOUR + timedelta(days=90 + 37)).timestamp()))
    assert stored.keys() == {
        (pk, "2026-11-23T10:00#000"),
        (pk, "2026-11-23T10:00#001"),
        (VARIANT_KEY, "2026-11-23T10:00#class_share"),
    }
    first, second, violation = (
        stored[key] for key in sorted(stored, key=lambda key: (key[0] == VARIANT_KEY, key))
    )
    ours = {"pk": {"S": pk}, "files": {"BS": [file_id]}, "expires": {"N": expires}}
    assert first == ours | {
        "sk": {"S": "2026-11-23T10:00#000"},
        "c14": {"N": "3"},
        "records": {"N": "5"},
    }
    assert second == ours | {"sk": {"S": "2026-11-23T10:00#001"}, "c145": {"N": "2"}}
    assert (violation["end"], violation["expires"]) == ({"S": "2026-11-23T11:00"}, {"N": expires})


def test_files_spread_over_the_shards(client, table, counts_table):
    for number in range(64):
        counts_table.add(f"b/{number}#e", VARIANT_KEY, {HOUR: some(c14=1)})
    stored = items(client, table)
    assert {item["pk"]["S"] for item in stored} == {f"{VARIANT_KEY}#{number}" for number in range(SHARDS)}
    assert sum(len(item["files"]["BS"]) for item in stored) == 64


def test_a_thousand_classes_fit_and_read_follows_the_pages(client, table, counts_table, monkeypatch):
    thousand = Counts(Counter({label: 10**6 + label for label in range(1000)}), records=10**9)
    named = Counts(Counter({f"a class with a long name {label}": 1 for label in range(1000)}), records=1)
    assert counts_table.add("b/k#e", VARIANT_KEY, {HOUR: thousand, HOUR + TEN: named})
    assert len(items(client, table)) == 7 + 7
    query, pages = client.query, []
    monkeypatch.setattr(client, "query", lambda **request: pages.append(1) or query(Limit=2, **request))
    assert counts_table.read(VARIANT_KEY, WINDOW) == {HOUR: thousand, HOUR + TEN: named}
    assert len(pages) > SHARDS + 4


def test_update_expressions_stay_below_the_limits_of_dynamodb(client, counts_table):
    sent = []
    client.meta.events.register(
        "before-parameter-build.dynamodb.UpdateItem", lambda params, **_: sent.append(dict(params))
    )
    labels = [*range(1000), *(f"name {n}" for n in range(1000)), UNKNOWN]
    assert counts_table.add("b/k#e", VARIANT_KEY, {HOUR: Counts(Counter(labels), 1, 1, 1, 1, 1)})
    assert len(sent) == 7
    for update in sent:
        assert len(update["UpdateExpression"].encode()) <= 4096
        assert len(update["ExpressionAttributeValues"]) <= 300


def test_item_of_60_instances_stays_below_400_kb():
    """One file per minute and instance; a file across the end of a slot is in both slots."""
    files = 60 * 11
    block = (
        2 * BLOCK * (len("c9999") + 12) + 200
    )  # names and numbers (of 21 digits), the counts that are not classes, and the keys
    assert files * FILE_ID_BYTES + block < 16_000  # even if they all met in one shard
    # what fills an item, in files a slot
    assert SHARDS * (400 * 1024 - block) // FILE_ID_BYTES > 100_000


def test_add_names_the_remedy_when_an_item_exceeds_400_kb(client, table, counts_table):
    file_id = hashlib.sha256(b"b/k#e").digest()[:16]
    full = [hashlib.sha256(str(n).encode()).digest()[:16] for n in range(400 * 1024 // 16 - 10)]
    key = {"pk": {"S": f"{VARIANT_KEY}#{shard(file_id)}"}, "sk": {"S": "2026-11-23T10:00#000"}}
    client.put_item(TableName=table, Item=key | {"files": {"BS": full}})
    long = Counts(
        Counter({"a name of forty characters, as it happens" + str(n): 1 for n in range(10)}), records=10
    )
    with pytest.raises(
        BadInputError, match=r"b/k#e was not counted in .*#000: .*maximum allowed size.* Set NumClasses"
    ):
        counts_table.add("b/k#e", VARIANT_KEY, {HOUR: long})


@pytest.mark.parametrize("refused", range(4))
def test_redelivery_completes_a_file_over_several_items(client, table, monkeypatch, refused):
    """Two slots, two blocks: after any failed write, the redelivery completes the others."""
    slots = {HOUR: some(c14=3, c200=2), HOUR + TEN: some(c1=1, c999=1)}
    counts, update, calls = CountsTable(client, table), client.update_item, []

    def failing(**request):
        calls.append(request)
        if len(calls) == refused + 1:
            raise EndpointConnectionError(endpoint_url="https://dynamodb")
        return update(**request)

    monkeypatch.setattr(client, "update_item", failing)
    with pytest.raises(RetryableError, match="b/k#e was not counted in"):
        counts.add("b/k#e", VARIANT_KEY, slots)
    assert counts.add("b/k#e", VARIANT_KEY, slots)  # new: some items took it only now
    assert not counts.add("b/k#e", VARIANT_KEY, slots)
    assert counts.read(VARIANT_KEY, WINDOW) == slots


@pytest.mark.parametrize(
    "code",
    [
        "TransactionConflictException",
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "RequestLimitExceeded",
        "InternalServerError",
        "ResourceNotFoundException",
    ],
)
def test_only_the_failed_condition_means_a_duplicate(code):
    client = boto3.client("dynamodb", config=Config(retries={"total_max_attempts": 1}))
    with Stubber(client) as stub:
        stub.add_client_error("update_item", code)
        with pytest.raises(RetryableError, match="b/k#e was not counted"):
            CountsTable(client, "counts").add("b/k#e", VARIANT_KEY, {HOUR: some(c1=1)})
        stub.add_client_error("update_item", "ConditionalCheckFailedException")
        assert not CountsTable(client, "counts").add("b/k#e", VARIANT_KEY, {HOUR: some(c1=1)})


def test_lost_response_is_a_duplicate(client, table):
    """DynamoDB writes the item, its response is lost, and botocore retries."""
    lost = iter([True])
    client.meta.events.register(  # the seconds to wait before the request is repeated, None for an answer that counts
        "needs-retry.dynamodb.UpdateItem", lambda **_: 0 if next(lost, False) else None
    )
    counts = CountsTable(client, table)
    assert not counts.add("b/k#e", VARIANT_KEY, {HOUR: some(c1=1)})
    assert counts.read(VARIANT_KEY, WINDOW) == {HOUR: some(c1=1)}


def test_unavailable_table_raises_retryable(client, monkeypatch):
    gone, verdict = CountsTable(client, "gone"), class_share(some(c1=60), WINDOW, Bounds(threshold=0.5))
    calls = (
        lambda: gone.add("b/k#e", VARIANT_KEY, {HOUR: some(c1=1)}),
        lambda: gone.read(VARIANT_KEY, WINDOW),
        lambda: gone.published(VARIANT_KEY, WINDOW),
        lambda: gone.record(VARIANT_KEY, verdict),
    )
    for call in calls:
        with pytest.raises(RetryableError) as error:
            call()
        assert isinstance(error.value.__cause__, ClientError)

    def away(**request):
        raise EndpointConnectionError(endpoint_url="https://dynamodb.eu-west-1.amazonaws.com/")

    for name in ("update_item", "query", "put_item"):
        monkeypatch.setattr(client, name, away)
    for call in calls:
        with pytest.raises(RetryableError, match="Could not connect"):
            call()


class Unreliable:
    """A dynamodb client that throttles, and fails before or after a write."""

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
                raise ClientError({"Error": {"Code": "ThrottlingException"}}, name)
            answer = call(**request)
            if failure == "cut off":  # DynamoDB wrote, and the response was lost
                raise EndpointConnectionError(endpoint_url="https://dynamodb")
            return answer

        return unreliable


def test_counts_stay_exact_with_shuffled_duplicated_and_failing_deliveries(client, table):
    chance = random.Random(FILES)
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
                return count_and_check(created(key), files, CountsTable(unreliable, table), events)
            except RetryableError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(deliver, deliveries))
    slots = CountsTable(client, table).read(VARIANT_KEY, Window(HOUR, HOUR + timedelta(hours=3)))
    assert total(slots.values()).classes == Counter(label for classes in labels.values() for label in classes)
    assert unreliable.failures["refused"] > FILES // 20
    assert unreliable.failures["cut off"] > FILES // 20
    assert events.events == []


def test_reference_case_is_stored_and_read(counts_table):
    events = FakeEvents()
    count_and_check(created(), {created().key: file(ARTICLE)}, counts_table, events)
    slots, published = counts_table.read(VARIANT_KEY, WINDOW), counts_table.published(VARIANT_KEY, WINDOW)
    assert total(slots.values()) == Counts(Counter(ARTICLE), with_confidence=400, records=400)
    assert published == [PublishedViolation("class_share", WINDOW)]
    assert len(events.events) == 1
