"""Counts per slot in DynamoDB. Each item stores the ids of its capture files, so each file counts once.

==============================  ====================  ================================================================
``pk``                          ``sk``                attributes
==============================  ====================  ================================================================
``<endpoint>/<variant>#<n>``    ``<slot>#<block>``    ``c14``: predictions of class 14; ``n:Stop`` of a named class;
                                                      ``unknown``, ``records``, …; ``files``: the ids of the files
``<endpoint>/<variant>``        ``<start>#<check>``   the published violation of the window from ``start``
==============================  ====================  ================================================================

A slot is written as ``2026-11-23T10:20``. A block holds 145 class numbers and 145 class names, the most that one
update expression takes (4 KB, 300 operands). Block 0 also holds the counts that are not classes, so every file
touches it. The counts of a slot are the sum of its blocks and shards. Every item expires (TTL, ``expires``).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from glassbox.aws.errors import AWS_ERRORS, code_of, translate, translated
from glassbox.errors import BadInputError
from glassbox.monitoring.checks import PublishedViolation, Verdict
from glassbox.monitoring.counts import LONGEST_WINDOW, RETENTION, SLOT, UNKNOWN, Counts, Window
from glassbox.timestamps import parse_timestamp

BLOCK = 145
# Part of the stored form, so not a parameter: a redelivery, also after a deployment, must find the file's shard.
SHARDS = 4
FILE_ID_BYTES = 16
# The item of a file that arrives on the last day of RETENTION must outlive the last delivery of its message:
# EventBridge (1 day), the queue (4), its dead-letter queue (14), and both again after a redrive.
REDELIVERY = timedelta(days=37)

_SCALARS = ("with_confidence", "low_confidence", "records", "unreadable", "replayed", "forged")


class CountsTable:
    """Stores counts through a boto3 ``dynamodb`` client.

    Raises (every method):
        RetryableError: DynamoDB does not answer.
    """

    def __init__(self, client: Any, table: str) -> None:
        self._client, self._table = client, table

    def add(self, file: str, variant_key: str, slots: Mapping[datetime, Counts]) -> bool:
        """Add the counts of one file to every item that it touches, each once.

        ::

            first delivery        the item lacks the file's id -> ADD counts and id, in one conditional write
            duplicate             the item holds the id        -> ConditionalCheckFailed: nothing is written
            lost response         botocore repeats the write   -> as a duplicate
            crash between items   a redelivery completes the items that lack the id

        Which items a file touches follows from its content and from SHARDS and BLOCK alone.

        Args:
            file: the identity of the file: bucket, key and etag.
            variant_key: ``<endpoint>/<variant>``.

        Returns:
            False when all items had counted the file before.

        Raises:
            BadInputError: an item would exceed 400 KB, so DynamoDB refuses every retry.
        """
        file_id = hashlib.sha256(file.encode()).digest()[:FILE_ID_BYTES]
        pk = f"{variant_key}#{shard(file_id)}"
        added = [  # a list, since any() of a generator would stop at the first new item
            self._add_to(pk, f"{_text(slot)}#{block:03d}", file, file_id, slot, attributes)
            for slot, counts in sorted(slots.items())
            for block, attributes in sorted(_blocks(counts).items())
        ]
        return any(added)

    def read(self, variant_key: str, window: Window) -> dict[datetime, Counts]:
        """Return the counts per slot of ``window`` (consistent)."""
        slots: dict[datetime, Counts] = defaultdict(Counts)
        for number in range(SHARDS):
            for item in self._query(f"{variant_key}#{number}", window.start, window.end - SLOT):
                slots[parse_timestamp(item["sk"]["S"].partition("#")[0])] += _counts(item)
        return dict(slots)

    def published(self, variant_key: str, window: Window) -> list[PublishedViolation]:
        """Return the published violations whose windows overlap ``window`` (consistent)."""
        found = []
        for item in self._query(variant_key, window.start - LONGEST_WINDOW, window.end - SLOT):
            start, _, check = item["sk"]["S"].partition("#")
            found.append(
                PublishedViolation(check, Window(parse_timestamp(start), parse_timestamp(item["end"]["S"])))
            )
        return [violation for violation in found if violation.window.overlaps(window)]

    def record(self, variant_key: str, verdict: Verdict) -> None:
        """Record a published violation (idempotent)."""
        item = {
            "pk": {"S": variant_key},
            "sk": {"S": f"{_text(verdict.window.start)}#{verdict.check}"},
            "end": {"S": _text(verdict.window.end)},
            "value": {"N": repr(verdict.value)},
            "sample_size": {"N": str(verdict.sample_size)},
            "reason": {"S": verdict.reason},
            "expires": _expires(verdict.window.start),
        }
        with translated(f"{variant_key}: the violation was not recorded"):
            self._client.put_item(TableName=self._table, Item=item)

    def _add_to(
        self, pk: str, sk: str, file: str, file_id: bytes, slot: datetime, added: Mapping[str, int]
    ) -> bool:
        """Add to one item; return False when the item holds the file's id."""
        try:
            self._client.update_item(
                TableName=self._table,
                Key={"pk": {"S": pk}, "sk": {"S": sk}},
                UpdateExpression="SET #e = :e ADD #f :f"
                + "".join(f", #{number} :{number}" for number in range(len(added))),
                ConditionExpression="NOT contains(#f, :id)",
                ExpressionAttributeNames={"#e": "expires", "#f": "files"}
                | {f"#{number}": name for number, name in enumerate(added)},
                ExpressionAttributeValues={
                    ":e": _expires(slot),
                    ":f": {"BS": [file_id]},
                    ":id": {"B": file_id},
                }
                | {f":{number}": {"N": str(count)} for number, count in enumerate(added.values())},
            )
        except AWS_ERRORS as error:
            if code_of(error) == "ConditionalCheckFailedException":
                return False
            if code_of(error) == "ValidationException":
                raise BadInputError(
                    f"{file} was not counted in {pk} {sk}: {error}. An item holds at most 400 KB, which free text as "
                    "class names exceeds. Set NumClasses or ClassPath."
                ) from error
            raise translate(error, f"{file} was not counted in {pk} {sk}") from error
        return True

    def _query(self, pk: str, first: datetime, last: datetime) -> Iterator[dict[str, Any]]:
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": pk},
                ":first": {"S": _text(first)},
                ":last": {"S": _text(last) + "#~"},
            },
            "ConsistentRead": True,
        }
        while True:
            with translated(f"{pk}, {first} to {last}: the items cannot be read"):
                page = self._client.query(**request)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def shard(file_id: bytes) -> int:
    """Return the shard of a file by its id, 0 to SHARDS - 1."""
    return file_id[0] % SHARDS


def _blocks(counts: Counts) -> dict[int, dict[str, int]]:
    """Return the attributes to add, per block."""
    scalars = {name: getattr(counts, name) for name in _SCALARS} | {UNKNOWN: counts.classes[UNKNOWN]}
    blocks: dict[int, dict[str, int]] = defaultdict(dict)
    blocks[0] = {name: count for name, count in scalars.items() if count}
    for number in sorted(c for c in counts.classes if isinstance(c, int)):
        blocks[number // BLOCK][f"c{number}"] = counts.classes[number]
    names = sorted(c for c in counts.classes if isinstance(c, str) and c != UNKNOWN)
    for rank, name in enumerate(names):
        blocks[rank // BLOCK][f"n:{name}"] = counts.classes[name]
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


def _text(slot: datetime) -> str:
    return f"{slot:%Y-%m-%dT%H:%M}"


def _expires(start: datetime) -> dict[str, str]:
    return {"N": str(int((start + RETENTION + REDELIVERY).timestamp()))}
