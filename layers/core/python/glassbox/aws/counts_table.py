"""Counts per slot in DynamoDB, written exactly once per capture file.

=========================  ====================================  =====================================================
``pk``                     ``sk``                                attributes
=========================  ====================================  =====================================================
``<endpoint>/<variant>``   ``<slot>#<block>``                    ``c14``: predictions of class 14; ``n:Stop`` of a named
                                                                 class; ``unknown``, ``records``, …
``<endpoint>/<variant>``   ``<start>#violation#<check>``         the published violation of the window from ``start``
``<bucket>/<key>#<etag>``  ``counted``                           the marker of a counted file
=========================  ====================================  =====================================================

A slot is written ``2026-11-23T10:20``, so ``begins_with(sk, "2026-11-23T10")`` reads an hour in one Query. A block
holds 200 classes: an update expression takes no more (4 KB), and an item stays small. What a slot counts is the sum
of its blocks. Every item expires (TTL, ``expires``).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from glassbox.errors import BadInputError, RetryableError
from glassbox.tally import SLOT, UNKNOWN, WINDOW, Counts, Window
from glassbox.verdict import Told, Verdict

BLOCK = 200
ITEMS = 100  # that one transaction may hold
COUNTS_KEPT = timedelta(days=90)
# longer than EventBridge (1 day), a queue and its dead-letter queue (14 days each) can hold a message back together
MARKERS_KEPT = timedelta(days=45)

_SCALARS = ("rated", "low", "records", "unreadable", "replayed", "forged")


class CountsTable:
    """Through a boto3 ``dynamodb`` client. Every method raises RetryableError when DynamoDB does not answer."""

    def __init__(self, client: Any, table: str) -> None:
        self._client, self._table = client, table

    def add(self, file: str, stream: str, slots: Mapping[datetime, Counts], now: datetime) -> bool:
        """Add the counts of one file, all or nothing; False when this file was counted before.

        ::

            first delivery     marker absent   -> marker + every ADD, in one transaction
            second delivery    marker present  -> ConditionalCheckFailed on the marker: nothing is written
            crash, timeout     either of the two above, nothing in between
            hot item, throttle TransactionConflict, …: nothing is written, the message comes again

        Args:
            file: what makes the file the same file: bucket, key and etag.
            stream: ``<endpoint>/<variant>``.

        Raises:
            BadInputError: the file touches more items than a transaction may hold.
        """
        updates = [self._update(stream, slot, counts) for slot, counts in slots.items()]
        items = [self._marker(file, now), *(item for update in updates for item in update)]
        if len(items) > ITEMS:
            raise BadInputError(
                f"{file}: {len(slots)} slots of ten minutes in {len(items)} items, a transaction holds {ITEMS}"
            )
        try:
            self._client.transact_write_items(TransactItems=items)
        except ClientError as error:
            # a conflict or throttling of any item cancels too: only the marker's own reason tells a duplicate
            if _cancellation(error) == "ConditionalCheckFailed":
                return False
            raise RetryableError(f"{file} was not counted: {error}") from error
        except BotoCoreError as error:
            raise RetryableError(f"{file} was not counted: {error}") from error
        return True

    def read(self, stream: str, window: Window) -> tuple[dict[datetime, Counts], list[Told]]:
        """The counts per slot of ``window``, and the violations whose windows start in it (consistent)."""
        slots: dict[datetime, Counts] = defaultdict(Counts)
        told = []
        for item in self._query(stream, window):
            start, kind, *check = item["sk"]["S"].split("#")
            if kind == "violation":
                told.append(Told(check[0], Window(_time(start), _time(start) + WINDOW)))
            else:
                slots[_time(start)] += _counts(item)
        return dict(slots), told

    def record(self, stream: str, verdict: Verdict) -> None:
        """Remember that a violation was published; recording it again changes nothing."""
        item = {
            "pk": {"S": stream},
            "sk": {"S": f"{_text(verdict.window.start)}#violation#{verdict.name}"},
            "value": {"N": repr(verdict.value)},
            "n": {"N": str(verdict.n)},
            "reason": {"S": verdict.reason},
            "expires": _expires(verdict.window.start + COUNTS_KEPT),
        }
        try:
            self._client.put_item(TableName=self._table, Item=item)
        except (ClientError, BotoCoreError) as error:
            raise RetryableError(f"{stream}: the violation was not recorded: {error}") from error

    def _query(self, stream: str, window: Window) -> Iterator[dict[str, Any]]:
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": stream},
                ":first": {"S": _text(window.start)},
                ":last": {"S": _text(window.end - SLOT) + "#~"},
            },
            "ConsistentRead": True,
        }
        while True:
            try:
                page = self._client.query(**request)
            except (ClientError, BotoCoreError) as error:
                raise RetryableError(f"{stream}, {window}: the counts cannot be read: {error}") from error
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _marker(self, file: str, now: datetime) -> dict[str, Any]:
        item = {"pk": {"S": file}, "sk": {"S": "counted"}, "expires": _expires(now + MARKERS_KEPT)}
        return {
            "Put": {"TableName": self._table, "Item": item, "ConditionExpression": "attribute_not_exists(pk)"}
        }

    def _update(self, stream: str, slot: datetime, counts: Counts) -> list[dict[str, Any]]:
        return [
            {
                "Update": {
                    "TableName": self._table,
                    "Key": {"pk": {"S": stream}, "sk": {"S": f"{_text(slot)}#{block}"}},
                    "UpdateExpression": "SET #e = :e ADD "
                    + ", ".join(f"#{i} :{i}" for i in range(len(added))),
                    "ExpressionAttributeNames": {"#e": "expires"}
                    | {f"#{i}": name for i, name in enumerate(added)},
                    "ExpressionAttributeValues": {":e": _expires(slot + COUNTS_KEPT)}
                    | {f":{i}": {"N": str(count)} for i, count in enumerate(added.values())},
                }
            }
            for block, added in _blocks(counts).items()
        ]


def _blocks(counts: Counts) -> dict[str, dict[str, int]]:
    """The attributes to add, per block; what is no class goes along with the first of them."""
    blocks: dict[str, dict[str, int]] = defaultdict(dict)
    for label in sorted(label for label in counts.classes if isinstance(label, int)):
        blocks[f"{label // BLOCK:03d}"][f"c{label}"] = counts.classes[label]
    names = sorted(label for label in counts.classes if isinstance(label, str) and label != UNKNOWN)
    for rank, name in enumerate(names):
        blocks[f"n{rank // BLOCK:02d}"][f"n:{name}"] = counts.classes[name]
    scalars = {name: getattr(counts, name) for name in _SCALARS} | {UNKNOWN: counts.classes[UNKNOWN]}
    blocks[min(blocks, default="000")].update({name: count for name, count in scalars.items() if count})
    return blocks


def _counts(item: Mapping[str, Any]) -> Counts:
    counts = Counts()
    for name, value in item.items():
        if name in _SCALARS:
            setattr(counts, name, int(value["N"]))
        elif name == UNKNOWN:
            counts.classes[UNKNOWN] = int(value["N"])
        elif name.startswith("n:"):
            counts.classes[name[2:]] = int(value["N"])
        elif name[:1] == "c" and name[1:].isdecimal():
            counts.classes[int(name[1:])] = int(value["N"])
    return counts


def _cancellation(error: ClientError) -> str | None:
    """Why the first item of a transaction (the marker) cancelled it, if it did."""
    reasons = error.response.get("CancellationReasons") or [{}]
    return (
        reasons[0].get("Code") if error.response["Error"]["Code"] == "TransactionCanceledException" else None
    )


def _text(slot: datetime) -> str:
    return f"{slot:%Y-%m-%dT%H:%M}"


def _time(slot: str) -> datetime:
    return datetime.fromisoformat(slot).replace(tzinfo=UTC)


def _expires(moment: datetime) -> dict[str, str]:
    return {"N": str(int(moment.timestamp()))}
