"""EventBridge and Scheduler deliveries: permissions, retries, scheduled times, and chaos for tests."""

from __future__ import annotations

import contextvars
import json
import logging
import random
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from ministack.core import iam_actions, iam_evaluator
from ministack.core.responses import request_scope
from ministack.services import eventbridge, lambda_svc, sqs

from local.gaps.roles import role_trusts
from local.gaps.topics import service_may_publish

logger = logging.getLogger("glassbox.delivery")

EVENTS = "events.amazonaws.com"


@dataclass
class Chaos:
    """How events are duplicated, lost and delayed, if a test enables it."""

    duplicate_deliveries: bool = False  # every event arrives twice
    drop: float = 0.0  # share of SageMaker's events that are lost: AWS delivers them at best effort
    reorder_seconds: float = 0.0  # the longest random delay of a delivery

    def change(self, **fields: Any) -> None:
        """Set some fields, or raise TypeError for an unknown name."""
        self.__dict__.update(asdict(replace(self, **fields)))


chaos = Chaos()


def install(account: str, region: str) -> None:
    """Add permissions, retries and chaos to ministack's delivery."""
    deliver = eventbridge._invoke_target

    def invoke_target(target: dict[str, Any], event: Any, rule: dict[str, Any], view: Any = None) -> None:
        if event.get("Source") == "aws.sagemaker" and random.random() < chaos.drop:
            return
        for _ in range(2 if chaos.duplicate_deliveries else 1):
            if chaos.reorder_seconds:
                context = contextvars.copy_context()
                delay = random.uniform(0, chaos.reorder_seconds)
                threading.Timer(
                    delay, context.run, (_deliver, deliver, account, region, target, event, rule, view)
                ).start()
            else:
                _deliver(deliver, account, region, target, event, rule, view)

    eventbridge._invoke_target = invoke_target
    eventbridge._dispatch_to_lambda = _dispatch_to_lambda
    _set_put_events_conditions()


def _set_put_events_conditions() -> None:
    """Set the condition keys events:source and events:detail-type of PutEvents, which ministack lacks."""
    tag_context = iam_actions.request_tag_context

    def context(service: str, iam_action: str, body: bytes, params: dict[str, Any]) -> dict[str, Any]:
        keys: dict[str, Any] = tag_context(service, iam_action, body, params)
        if iam_action == "events:PutEvents":
            entries = json.loads(body or b"{}").get("Entries", [])
            for key, member in (("events:source", "Source"), ("events:detail-type", "DetailType")):
                values = sorted({entry.get(member, "") for entry in entries})
                # StringEquals is false for several values; ForAnyValue and ForAllValues test each of them.
                keys[key] = values[0] if len(values) == 1 else values
        return keys

    iam_actions.request_tag_context = context


def _deliver(
    deliver: Any,
    account: str,
    region: str,
    target: dict[str, Any],
    event: Any,
    rule: dict[str, Any],
    view: Any,
) -> None:
    """Deliver if the queue's or topic's policy allows the rule, or the role allows the schedule."""
    if "ScheduleExpressionTimezone" in rule or "Target" in rule:
        target = _with_scheduled_time(target, rule, event)
        allowed = _role_allows(target, account)
    else:
        allowed = _policy_allows(target["Arn"], rule, account, region)
    if allowed:
        deliver(target, event, rule, view)
        return
    logger.error("%s: not allowed to send to %s", rule["Name"], target["Arn"])
    dead_letters = (target.get("DeadLetterConfig") or {}).get("Arn")
    if dead_letters and _policy_allows(dead_letters, rule, account, region):
        deliver({"Id": "dead-letters", "Arn": dead_letters}, event, rule, view)


def _policy_allows(arn: str, rule: dict[str, Any], account: str, region: str) -> bool:
    rule_arn = eventbridge._rule_arn(rule["Name"], rule.get("EventBusName", "default"))
    if ":sqs:" in arn:
        return bool(sqs.queue_policy_allows(arn, EVENTS, rule_arn, account))
    return ":sns:" not in arn or service_may_publish(arn, EVENTS, rule_arn, account, region)


# ---------------------------------------------------------------- Scheduler

_ACTIONS = {"lambda": "lambda:InvokeFunction", "sqs": "sqs:SendMessage", "events": "events:PutEvents"}


def _role_allows(target: dict[str, Any], account: str) -> bool:
    role, arn = target.get("RoleArn", ""), target["Arn"]
    action = _ACTIONS.get(arn.split(":")[2])
    if action is None:
        return True
    if not role_trusts(role, "scheduler.amazonaws.com"):
        return False
    context = iam_evaluator.EvalContext(
        principal_arn=role,
        principal_type="AssumedRole",
        principal_account=account,
        action=action,
        resource_arn=arn,
        region=arn.split(":")[3],
    )
    policies = iam_evaluator._gather_role_policies(role.rpartition("/")[2], account)
    return bool(iam_evaluator.evaluate(context, policies).decision == "Allow")


def _with_scheduled_time(target: dict[str, Any], schedule: dict[str, Any], event: Any) -> dict[str, Any]:
    """Replace Scheduler's context attributes in the target's Input, which ministack does not."""
    if not target.get("Input"):
        return target
    scheduled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(event["Time"])))
    text = target["Input"]
    for name, value in {
        "schedule-arn": schedule.get("Arn", ""),
        "scheduled-time": scheduled,
        "execution-id": event["EventId"],
        "attempt-number": "1",
    }.items():
        text = text.replace(f"<aws.scheduler.{name}>", value)
    return {**target, "Input": text}


# ---------------------------------------------------------------- Lambda


def _dispatch_to_lambda(arn: str, payload: str) -> None:
    """Invoke asynchronously: after two retries, OnFailure or the dead-letter queue gets the event."""
    function, config, name = lambda_svc._get_func_record_for_ref(arn)
    if not function or not config:
        logger.error("%s: expected a function, got none", name)
        return
    record = lambda_svc._execution_record_for_config(function, config)
    lambda_svc.invoke_async_with_retry(record, json.loads(payload))


# ---------------------------------------------------------------- SageMaker's events


def emit_sagemaker_event(
    account: str, region: str, detail_type: str, detail: dict[str, Any], resources: list[str]
) -> None:
    """Put an event of source aws.sagemaker, which PutEvents refuses, on the default bus."""
    entry = {
        "Source": "aws.sagemaker",
        "DetailType": detail_type,
        "Detail": json.dumps(detail),
        "Resources": resources,
    }
    with request_scope(account, region):
        eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)
