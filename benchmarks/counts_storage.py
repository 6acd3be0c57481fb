"""DynamoDB's request units and price for counting: two storage layouts, 1 to 60 instances.

Units follow from the items' sizes by DynamoDB's published rounding: a write is 1 unit per KB, 2 in a transaction; a
consistent read is 1 unit per 4 KB and query ("DynamoDB item sizes and formats", "Read/write capacity mode").
``make bench MODULE=counts_storage ARGS=--check`` compares them with what the embedded AWS returns as ConsumedCapacity.
"""

import argparse
import math
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from benchmarks.side_by_side import show
from glassbox.aws import counts_table
from glassbox.aws.counts_table import CountsTable
from glassbox.monitoring.counts import RETENTION, SLOT, Counts, Window, slot_start, windows

HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
PREDICTIONS = 100  # in a capture file, which an instance writes every minute
FILES_A_MONTH = 730 * 60  # of one instance

# USD per million request units, on demand, us-east-1, since 2024-11-01; ml.m5.large for hosting, an hour
WRITE_PRICE, READ_PRICE = 0.625, 0.125
INSTANCE_PRICE = 0.115


class Meter:
    """A DynamoDB client in memory that counts request units."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict[str, Any]]] = {}
        self.writes = self.reads = 0

    def update_item(
        self,
        Key: Mapping[str, Any],
        UpdateExpression: str,
        ExpressionAttributeNames: Mapping[str, str],
        ExpressionAttributeValues: Mapping[str, Any],
        ConditionExpression: str | None = None,
        TableName: str = "",
        units: int = 1,
    ) -> None:
        """Write counts as CountsTable does, and refuse a duplicate file."""
        held = self.items.setdefault(Key["pk"]["S"], {})
        item, values = held.get(Key["sk"]["S"], dict(Key)), ExpressionAttributeValues
        duplicate = ConditionExpression and values[":id"]["B"] in item.get("files", {"BS": ()})["BS"]
        if not duplicate:
            item = held[Key["sk"]["S"]] = item | {"expires": values[":e"]}
            for place, name in ExpressionAttributeNames.items():
                value = values[":" + place[1:]]
                if "BS" in value:
                    item[name] = {"BS": {*item.get(name, {"BS": ()})["BS"], *value["BS"]}}
                elif name != "expires":
                    item[name] = {"N": str(int(item.get(name, {"N": 0})["N"]) + int(value["N"]))}
        self.writes += units * math.ceil(size(item) / 1024)
        if duplicate:
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}}, "UpdateItem")

    def transact_write_items(self, TransactItems: list[dict[str, Any]]) -> None:
        """Execute a transaction."""
        for operation in TransactItems:
            if put := operation.get("Put"):
                self.items.setdefault(put["Item"]["pk"]["S"], {})[put["Item"]["sk"]["S"]] = put["Item"]
                self.writes += 2 * math.ceil(size(put["Item"]) / 1024)
            else:
                self.update_item(**operation["Update"], units=2)

    def query(self, ExpressionAttributeValues: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        """Return the items between two sort keys."""
        pk, first, last = (ExpressionAttributeValues[name]["S"] for name in (":pk", ":first", ":last"))
        found = [item for sk, item in self.items.get(pk, {}).items() if first <= sk <= last]
        self.reads += max(1, math.ceil(sum(map(size, found)) / 4096))
        return {"Items": found}


def size(item: Mapping[str, Any]) -> int:
    """Return an item's size in bytes.

    Names and texts have their length; a number has a byte for two digits, and one more.
    """

    def of(value: Mapping[str, Any]) -> int:
        ((kind, content),) = value.items()
        if kind == "BS":
            return sum(map(len, content))
        return len(content) if kind in "SB" else (len(content) + 1) // 2 + 1

    return sum(len(name) + of(value) for name, value in item.items())


class TransactionTable(CountsTable):
    """The other layout, with a marker per file and a transaction of marker and counts."""

    def add(self, file: str, variant_key: str, slots: Mapping[datetime, Counts]) -> bool:
        """Add the counts of a file, in one transaction."""
        pk = f"{variant_key}#{counts_table.shard(file.encode()[-1:])}"
        marker = {"pk": {"S": file}, "sk": {"S": "counted"}, "expires": {"N": "1795515663"}}
        items: list[dict[str, Any]] = [{"Put": {"Item": marker}}]
        for slot, counts in slots.items():
            expires = {"N": str(int((slot + RETENTION).timestamp()))}
            for block, added in counts_table._blocks(counts).items():
                items.append(
                    {
                        "Update": {
                            "Key": {"pk": {"S": pk}, "sk": {"S": f"{slot:%Y-%m-%dT%H:%M}#{block:03d}"}},
                            "UpdateExpression": "",
                            "ExpressionAttributeNames": {f"#{i}": name for i, name in enumerate(added)},
                            "ExpressionAttributeValues": {":e": expires}
                            | {f":{i}": {"N": str(count)} for i, count in enumerate(added.values())},
                        }
                    }
                )
        self._client.transact_write_items(items)
        return True


def files(minute: int, instances: int, classes: int) -> Iterator[tuple[str, dict[datetime, Counts]]]:
    """Yield name and counts by slot of each file that begins in a minute and lasts a minute."""
    chance = random.Random(minute)
    for instance in range(instances):
        start = HOUR + timedelta(minutes=minute, seconds=chance.randrange(60))
        slots: dict[datetime, Counts] = {}
        for number in range(PREDICTIONS):
            slot = slot_start(start + timedelta(seconds=60 * number / PREDICTIONS))
            counts = slots.setdefault(slot, Counts())
            counts.classes[chance.randrange(classes)] += 1
            counts.with_confidence += 1
            counts.records += 1
        key = (
            f"capture/traffic-signs/AllTraffic/{start:%Y/%m/%d/%H/%M-%S}-871-{uuid.UUID(int=instance)}.jsonl"
        )
        yield f"amzn-s3-demo-bucket/{key}#{chance.randbytes(16).hex()}", slots


def measure(
    table: type[CountsTable], shards: int, instances: int, classes: int, hours: int = 1
) -> dict[str, Any]:
    """Measure units per file and USD per month, in the ten minutes after the first full window."""
    counts_table.SHARDS, before = (
        shards,
        counts_table.SHARDS,
    )  # a constant of the layout; only this benchmark changes it
    try:
        meter, variant_key, counted = Meter(), "traffic-signs/AllTraffic", 0
        counts, warm = table(meter, "counts"), 60 * hours + 10
        for minute in range(warm + 10):
            if minute == warm:
                meter.writes = meter.reads = 0
            for name, slots in files(minute, instances, classes):
                counts.add(name, variant_key, slots)
                if minute >= warm:
                    touched = windows(slots, timedelta(hours=hours))
                    span = Window(touched[-1].start, touched[0].end)
                    counts.read(variant_key, span)
                    counts.published(variant_key, span)
                    counted += 1
        largest = max(size(item) for pk, held in meter.items.items() for item in held.values())
    finally:
        counts_table.SHARDS = before
    writes, reads = meter.writes / counted, meter.reads / counted
    month = FILES_A_MONTH * instances * (writes * WRITE_PRICE + reads * READ_PRICE) / 1e6
    return {
        "layout": "transaction, marker" if table is TransactionTable else "items with their files",
        "shards": shards,
        "instances": instances,
        "classes": classes,
        "window h": hours,
        "write units a file": writes,
        "read units a file": reads,
        "USD a month": month,
        "% of the instances' price": 100 * month / (instances * 730 * INSTANCE_PRICE),
        "largest item, bytes": largest,
    }


def run() -> list[dict[str, Any]]:
    """Measure all rows."""
    rows = [
        measure(table, shards, instances, 43)
        for instances in (1, 10, 60)
        for table, shards in (
            (TransactionTable, 1),
            (TransactionTable, 4),
            (CountsTable, 1),
            (CountsTable, 4),
            (CountsTable, 16),
        )
    ]
    rows += [measure(table, 4, 10, 1000) for table in (TransactionTable, CountsTable)]
    return rows + [measure(CountsTable, 4, instances, 43, 24) for instances in (1, 10)]


def check() -> list[dict[str, Any]]:
    """Compare the computed units with the embedded AWS's ConsumedCapacity."""
    from local.emulator import EmbeddedAws

    class Metered:
        def __init__(self, client: Any) -> None:
            self.client, self.units = client, Counter[str]()

        def __getattr__(self, operation: str) -> Any:
            def call(**request: Any) -> Any:
                answer = getattr(self.client, operation)(**request, ReturnConsumedCapacity="TOTAL")
                self.units[operation] += answer["ConsumedCapacity"]["CapacityUnits"]
                return answer

            return call

    with EmbeddedAws() as aws:
        client = aws.client("dynamodb")
        client.create_table(
            TableName="counts",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
        )
        metered, meter = Metered(client), Meter()
        for minute in range(20):
            for name, slots in files(minute, 30, 43):
                for table in (CountsTable(metered, "counts"), CountsTable(meter, "counts")):
                    table.add(name, "traffic-signs/AllTraffic", slots)
        for table in (CountsTable(metered, "counts"), CountsTable(meter, "counts")):
            table.read("traffic-signs/AllTraffic", Window(HOUR, HOUR + 6 * SLOT))
    return [
        {"what": "writes", "computed": meter.writes, "embedded AWS": metered.units["update_item"]},
        {"what": "reads", "computed": meter.reads, "embedded AWS": metered.units["query"]},
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="against the embedded AWS")
    show(__doc__, check() if parser.parse_args().check else run())
