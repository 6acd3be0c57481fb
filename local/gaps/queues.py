"""Queue policies that SQS refuses: several resources, another queue's ARN, or a quota exceeded."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

from ministack.services import sqs

POLICY_BYTES, STATEMENTS, PRINCIPALS, CONDITIONS, ACTIONS = 8192, 20, 50, 10, 7


def install() -> None:
    """Check the queue policies of API requests before ministack stores them."""
    set_attributes, create = sqs._HANDLERS["SetQueueAttributes"], sqs._HANDLERS["CreateQueue"]

    def set_queue_attributes(data: dict[str, Any], url: str) -> Any:
        attributes = sqs._get_q(data.get("QueueUrl", url))["attributes"]
        check((data.get("Attributes") or {}).get("Policy"), attributes["QueueArn"])
        return set_attributes(data, url)

    def create_queue(data: dict[str, Any], url: str) -> Any:
        arn = f"arn:aws:sqs:{sqs.get_region()}:{sqs.get_account_id()}:{data.get('QueueName')}"
        check((data.get("Attributes") or {}).get("Policy"), arn)
        return create(data, url)

    sqs._HANDLERS["SetQueueAttributes"] = set_queue_attributes
    sqs._HANDLERS["CreateQueue"] = create_queue


def check_resource(properties: dict[str, Any]) -> None:
    """Raise ministack's SQS error if SQS refuses an AWS::SQS::QueuePolicy."""
    for url in properties["Queues"]:
        check(properties["PolicyDocument"], sqs._get_q(url)["attributes"]["QueueArn"])


def check(policy: str | dict[str, Any] | None, queue_arn: str) -> None:
    """Raise ministack's SQS error unless SQS accepts the policy for the queue.

    Every value of a condition counts towards the quota of 10, which is its strictest interpretation.
    """
    if not policy:
        return
    try:
        document = json.loads(policy) if isinstance(policy, str) else policy
        statements = [_counted(statement) for statement in _listed(document["Statement"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _invalid() from None
    for statement in statements:
        (resource, *others) = statement["resources"] or [""]
        if others or not fnmatchcase(queue_arn, resource):
            raise _invalid()
        if statement["actions"] > ACTIONS:
            raise _over_limit(statement["actions"], "actions were found in a statement from", ACTIONS)
    for quota, found, limit in (
        ("statements", len(statements), STATEMENTS),
        ("principals", sum(s["principals"] for s in statements), PRINCIPALS),
        ("conditions", sum(s["conditions"] for s in statements), CONDITIONS),
        ("bytes", len(json.dumps(document).encode()), POLICY_BYTES),
    ):
        if found > limit:
            raise _over_limit(found, f"{quota} were found in", limit)


def _counted(statement: dict[str, Any]) -> dict[str, Any]:
    principal = statement.get("Principal", "*")
    groups = principal.values() if isinstance(principal, dict) else [principal]
    keys = [value for operator in statement.get("Condition", {}).values() for value in operator.values()]
    return {
        "resources": _listed(statement.get("Resource", "*")),
        "actions": len(_listed(statement["Action"])),
        "principals": sum(len(_listed(group)) for group in groups),
        "conditions": sum(len(_listed(value)) for value in keys),
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _invalid() -> Exception:
    error: Exception = sqs._Err("InvalidAttributeValue", "Invalid value for the parameter Policy.", 400)
    return error


def _over_limit(found: int, what: str, most: int) -> Exception:
    message = f"{found} {what} the submitted policy, max allowed is {most}"
    error: Exception = sqs._Err("OverLimit", message, 403)
    return error
