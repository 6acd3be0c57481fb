"""Incidents in DynamoDB.

======================  =====================================================================================
``pk`` = the endpoint   ``sk``
======================  =====================================================================================
the incident            ``current``: the open one, or the last one (state ``NORMAL``)
past incidents          ``past#<opening time>``: a copy, written when the incident is closed
other notifications     ``reported#<what>``: it was published, or ``claimed`` at that time
the pause               ``pause``: until when, and when the command was sent
======================  =====================================================================================

Every write of the ``current`` item is conditional, so an endpoint has at most one open incident. Related violations,
heat maps and refusals are added in place, up to a bound: DynamoDB refuses items over 400 KB. The names of replays are
always added.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from glassbox.aws.errors import AWS_ERRORS, translate
from glassbox.errors import ConflictError
from glassbox.incidents.model import CLOSED, HEATMAPS_KEPT, RELATED_KEPT, Incident, State
from glassbox.timestamps import parse_timestamp
from glassbox.violation import Violation

RETENTION_DAYS = 400

_TIMES = (
    "opened",
    "since",
    "deadline",
    "keep_hooked_until",
    "last_replay_at",
    "begins_by",
    "endpoint_modified",
)
_SETS = ("replays", "flagged", "unanswered", "heatmaps", "refused", "sent_notifications")
_ADDED = ("related_violations", "heatmaps", "refused")
_PAGE = 25  # incidents that one query reads, since few are of the last day


class IncidentsTable:
    """The incidents in DynamoDB, through a boto3 ``dynamodb`` client.

    Raises (every method):
        RetryableError: a retry may succeed.
        BadInputError: no retry can succeed.
    """

    def __init__(self, client: Any, table: str) -> None:
        self._client, self._table = client, table

    def current(self, endpoint: str) -> Incident | None:
        """Return the open incident, or the last one, by a consistent read."""
        answer = self._call("get_item", Key=_key(endpoint, "current"), ConsistentRead=True)
        return _incident(answer["Item"]) if "Item" in answer else None

    def past(self, endpoint: str, since: datetime) -> Sequence[Incident]:
        """Return the closed incidents that were open at that time or later, oldest first.

        At most one is open at a time: these were opened since then, except perhaps the oldest.
        """
        request: dict[str, Any] = {
            "KeyConditionExpression": "pk = :endpoint AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": _typed(
                {":endpoint": endpoint, ":first": "past#", ":last": "past#~"}
            ),
            "ConsistentRead": True,
            "ScanIndexForward": False,
            "Limit": _PAGE,
        }
        found: list[Incident] = []
        while True:  # one response holds at most 1 MB, an incident up to 400 KB
            answer = self._call("query", **request)
            for item in answer["Items"]:
                found.insert(0, _incident(item))
                if found[0].opened < since:
                    return found
            if "LastEvaluatedKey" not in answer:
                return found
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def open(self, incident: Incident, last: Incident | None = None) -> None:
        """Write a new incident in the place of ``last``, the closed one that it follows.

        Raises:
            ConflictError: an incident is open, or another one than ``last`` was opened and closed since it was read.
        """
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
        if last is not None:
            condition = {
                "ConditionExpression": "id = :last AND #state = :closed",
                "ExpressionAttributeNames": {"#state": "state"},
                "ExpressionAttributeValues": _typed({":last": last.id, ":closed": CLOSED.value}),
            }
        self._call("put_item", Item=_item(incident, "current"), **condition)

    def save(self, before: Incident, after: Incident) -> None:
        """Write the changed attributes, except those that are only added to.

        Raises:
            ConflictError: another invocation has changed the incident since ``before`` was read.
        """
        unchanged, sizes = "", dict.fromkeys(_ADDED, 0)
        if before.is_open and not after.is_open:
            # First: after a crash, the retry writes the same copy. The copy lacks what another invocation adds from now
            # on, so the incident is only closed if nothing was added; the retry copies it.
            self._copy(after)
            sizes = {name: len(getattr(before, name)) for name in _ADDED}
            unchanged = "".join(
                f" AND size({name}) = :{name}" if size else f" AND attribute_not_exists({name})"
                for name, size in sizes.items()
            )
        old = _plain(before)
        changed = {k: v for k, v in _plain(after).items() if v != old[k] and k not in _ADDED}
        self._call(
            "update_item",
            Key=_key(before.endpoint, "current"),
            UpdateExpression="SET " + ", ".join(f"#{k} = :{k}" for k in changed),  # nothing is ever unset
            ConditionExpression=f"id = :same_id AND revision = :same_revision{unchanged}",
            ExpressionAttributeNames={f"#{k}": k for k in changed},
            ExpressionAttributeValues=_typed(
                {f":{k}": v for k, v in changed.items()}
                | {":same_id": before.id, ":same_revision": before.revision}
                | {f":{name}": size for name, size in sizes.items() if size}
            ),
        )

    def _copy(self, incident: Incident) -> None:
        """Copy a closed incident to the past ones; what another invocation has added to the copy is kept."""
        key = _key(incident.endpoint, _past(incident.opened))
        values = {k: v for k, v in _item(incident, key["sk"]["S"]).items() if k not in key}
        added = [name for name in _ADDED if name in values]
        update = "SET " + ", ".join(f"#{k} = :{k}" for k in values if k not in added)
        if added:
            update += " ADD " + ", ".join(f"#{k} :{k}" for k in added)
        self._call(
            "update_item",
            Key=key,
            UpdateExpression=update,
            ExpressionAttributeNames={f"#{k}": k for k in values},
            ExpressionAttributeValues={f":{k}": v for k, v in values.items()},
        )

    def attach(self, incident: Incident, violation: Violation) -> None:
        """Add a violation to an incident, open or closed, up to RELATED_KEPT."""
        self._add(incident, "related_violations", _violation_text(violation), RELATED_KEPT)

    def add_heatmap(self, incident: Incident, name: str) -> None:
        """Add the name of a heat map, up to HEATMAPS_KEPT names unless it is of a replay."""
        self._add(incident, "heatmaps", name, HEATMAPS_KEPT)

    def add_refusal(self, incident: Incident, name: str) -> None:
        """Add the name of a replay whose trace cannot be rendered, bounded as the heat maps are."""
        self._add(incident, "refused", name, HEATMAPS_KEPT)

    def claim_report(self, endpoint: str, what: str, at: datetime, stale: datetime) -> bool:
        """Claim a notification without an incident.

        Args:
            what: it is about.

        Returns:
            False if a claim after ``stale`` exists, or :meth:`record_report` was called.
        """
        try:
            self._call(
                "put_item",
                Item=_key(endpoint, f"reported#{what}") | _typed({"claimed": _time(at)}),
                ConditionExpression="attribute_not_exists(pk) OR claimed <= :stale",
                ExpressionAttributeValues=_typed({":stale": _time(stale)}),
            )
        except ConflictError:
            return False
        return True

    def record_report(self, endpoint: str, what: str) -> None:
        """Remember that a notification without an incident was published."""
        self._call("put_item", Item=_key(endpoint, f"reported#{what}"))

    def pause(self, endpoint: str, until: datetime, at: datetime) -> None:
        """Store until when no violation opens an incident, unless a later command did.

        Args:
            at: when the command was sent.
        """
        try:
            self._call(
                "update_item",
                Key=_key(endpoint, "pause"),
                UpdateExpression="SET #until = :until, #at = :at",
                ConditionExpression="attribute_not_exists(#at) OR #at <= :at",
                ExpressionAttributeNames={"#until": "until", "#at": "at"},
                ExpressionAttributeValues=_typed({":until": _time(until), ":at": _time(at)}),
            )
        except ConflictError:
            return

    def paused_until(self, endpoint: str) -> datetime | None:
        """Return the end of the last pause, which may be over, or None without one."""
        answer = self._call("get_item", Key=_key(endpoint, "pause"), ConsistentRead=True)
        return parse_timestamp(answer["Item"]["until"]["S"]) if "Item" in answer else None

    def _add(self, incident: Incident, to: str, value: str, most: int) -> None:
        fits = "(attribute_not_exists(#set) OR size(#set) < :most OR contains(replays, :one))"
        for sk in ("current", _past(incident.opened)):
            try:
                self._call(
                    "update_item",
                    Key=_key(incident.endpoint, sk),
                    UpdateExpression="ADD #set :value",
                    ConditionExpression=f"id = :id AND {fits}",
                    ExpressionAttributeNames={"#set": to},
                    ExpressionAttributeValues=_typed(
                        {":value": {value}, ":one": value, ":id": incident.id, ":most": most}
                    ),
                )
            except ConflictError:
                continue  # the item is absent or of another incident, or the set is full

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(TableName=self._table, **request)
        except AWS_ERRORS as error:
            raise translate(
                error, bad=("ValidationException",), conflict=("ConditionalCheckFailedException",)
            ) from error
        return answer


def _key(endpoint: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": endpoint}, "sk": {"S": sk}}


def _past(opened: datetime) -> str:
    return f"past#{_time(opened)}"


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    serialize = TypeSerializer().serialize
    return {name: serialize(value) for name, value in values.items()}


def _plain(incident: Incident) -> dict[str, Any]:
    """Return the attributes as DynamoDB stores them: without empty sets, times as text."""
    values = {f.name: getattr(incident, f.name) for f in dataclasses.fields(incident)}
    for name in _TIMES:
        values[name] = values[name] and values[name].isoformat()
    values["state"] = incident.state.value
    values["timeline"], values["findings"] = list(incident.timeline), list(incident.findings)
    values["cause"] = _violation_text(incident.cause)
    values["related_violations"] = {_violation_text(v) for v in incident.related_violations} or None
    values["claims"] = {what: since.isoformat() for what, since in incident.claims.items()}
    values["replayed"] = incident.replays is not None
    for name in _SETS:
        values[name] = set(values[name] or ()) or None
    return values


def _item(incident: Incident, sk: str) -> dict[str, Any]:
    plain = {k: v for k, v in _plain(incident).items() if v is not None}
    expires = int(incident.opened.timestamp()) + RETENTION_DAYS * 86400
    return _key(incident.endpoint, sk) | _typed(plain | ({"expires": expires} if sk != "current" else {}))


def _incident(item: dict[str, Any]) -> Incident:
    deserialize = TypeDeserializer().deserialize
    values = {name: deserialize(value) for name, value in item.items()}
    replayed = values.get("replayed", False)
    return Incident(
        endpoint=values["pk"],
        id=values["id"],
        opened=parse_timestamp(values["opened"]),
        state=State(values["state"]),
        since=parse_timestamp(values["since"]),
        plain_config=values["plain_config"],
        hooked_config=values["hooked_config"],
        cause=_violation(values["cause"]),
        related_violations=frozenset(map(_violation, values.get("related_violations", ()))),
        deadline=parse_timestamp(values["deadline"]) if values.get("deadline") else None,
        keep_hooked_until=parse_timestamp(values["keep_hooked_until"])
        if values.get("keep_hooked_until")
        else None,
        last_replay_at=parse_timestamp(values["last_replay_at"]) if values.get("last_replay_at") else None,
        aborted=values["aborted"],
        requested=values["requested"],
        replays=frozenset(values.get("replays") or ()) if replayed else None,
        flagged=frozenset(values.get("flagged") or ()),
        unanswered=frozenset(values.get("unanswered") or ()),
        replay_attempts=int(values["replay_attempts"]),
        refused=frozenset(values.get("refused") or ()),
        retries=int(values["retries"]),
        heatmaps=frozenset(values.get("heatmaps") or ()),
        sent_notifications=frozenset(values.get("sent_notifications") or ()),
        claims={what: parse_timestamp(since) for what, since in values.get("claims", {}).items()},
        failure=values["failure"],
        headline=values["headline"],
        report=values["report"],
        report_link=values.get("report_link", ""),
        findings=tuple(values["findings"]),
        unreported=values["unreported"],
        notify_only=values["notify_only"],
        begins_by=parse_timestamp(values["begins_by"]) if values.get("begins_by") else None,
        endpoint_modified=parse_timestamp(values["endpoint_modified"])
        if values.get("endpoint_modified")
        else None,
        diagnosis_attempts=int(values.get("diagnosis_attempts", 0)),
        diagnosis=values.get("diagnosis", ""),
        why=values.get("why", ""),
        is_diagnosed_late=values.get("is_diagnosed_late", False),
        timeline=tuple(values["timeline"]),
        revision=int(values["revision"]),
    )


@functools.lru_cache(maxsize=256)  # every save writes up to RELATED_KEPT of them
def _violation_text(violation: Violation) -> str:
    return json.dumps(
        dataclasses.asdict(violation),
        default=lambda time: time.isoformat(),
        sort_keys=True,
        ensure_ascii=False,
    )


def _violation(text: str) -> Violation:
    values = json.loads(text)
    for name in ("window_start", "window_end"):
        values[name] = parse_timestamp(values[name])
    return Violation(**values)
