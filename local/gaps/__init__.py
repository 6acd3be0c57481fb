"""What ministack 1.5.33 lacks, added through its private hooks.

Every hook is checked at start-up, so that another version of ministack fails there with the hook's name.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ministack.app as ministack
from ministack.core import iam_evaluator
from ministack.services import dynamodb, scheduler, sns
from ministack.services.cloudformation import changesets, engine, handlers, provisioners, stacks

from local.gaps import buckets, calls, delivery, functions, monitoring, queues, quotas, topics

MINISTACK = "1.5.33"

# module, attribute, expected parameters (None: not a function)
HOOKS: list[tuple[str, str, list[str] | None]] = [
    ("ministack.app", "app", ["scope", "receive", "send"]),
    ("ministack.app", "pin_request_origin", ["source_ip", "secure_transport"]),
    ("ministack.app", "SERVICE_HANDLERS", None),
    ("ministack.core.router", "SERVICE_PATTERNS", None),
    ("ministack.core.router", "extract_access_key_id", ["headers", "query_params"]),
    ("ministack.core.responses", "request_scope", ["account_id", "region"]),
    (
        "ministack.core.iam_evaluator",
        "enforce",
        ["access_key_id", "iam_action", "service", "region", "resource_arn", "service_context"],
    ),
    ("ministack.core.iam_evaluator", "evaluate", ["ctx", "policies", "limits"]),
    ("ministack.core.iam_evaluator", "_request_origin", None),
    (
        "ministack.core.iam_evaluator",
        "evaluate_resource_policy",
        ["doc", "ctx", "service", "named_only", "direct_only"],
    ),
    ("ministack.core.iam_evaluator", "_gather_role_policies", ["role_name", "account_id"]),
    ("ministack.core.iam_evaluator", "_service_principal_matches", ["principal", "service"]),
    (
        "ministack.core.iam_actions",
        "request_tag_context",
        ["service", "iam_action", "body", "params"],
    ),
    ("ministack.core.lambda_runtime", "_PYTHON_WORKER_SCRIPT", None),
    ("ministack.core.lambda_runtime", "zipfile", None),
    ("ministack.core.lambda_runtime", "reset", []),
    ("ministack.services.sts", "register_session", ["access_key", "session"]),
    ("ministack.services.iam", "_roles", None),
    ("ministack.services.ecr", "_find_image", ["repo_name", "image_id"]),
    ("ministack.services.dynamodb", "_update_ttl", ["data"]),
    ("ministack.services.eventbridge", "_put_events", ["data", "allow_aws_source"]),
    ("ministack.services.eventbridge", "_rule_arn", ["rule_name", "bus_name"]),
    ("ministack.services.eventbridge", "_invoke_target", ["target", "event", "rule", "view"]),
    ("ministack.services.eventbridge", "_dispatch_to_lambda", ["arn", "payload"]),
    ("ministack.services.lambda_svc", "_get_func_record_for_ref", ["function_ref"]),
    ("ministack.services.lambda_svc", "_resolve_layer_zip", ["attachment"]),
    ("ministack.services.lambda_svc", "_execution_record_for_config", ["func", "config"]),
    ("ministack.services.lambda_svc", "invoke_async_with_retry", ["func", "event"]),
    (
        "ministack.services.lambda_svc",
        "_emit_lambda_logs",
        ["func", "request_id", "log_text", "error", "duration_ms", "log_source"],
    ),
    (
        "ministack.services.sqs",
        "queue_policy_allows",
        ["queue_arn", "service", "source_arn", "source_account"],
    ),
    ("ministack.services.sqs", "_queues", None),
    ("ministack.services.sqs", "_HANDLERS", None),
    ("ministack.services.sqs", "_get_q", ["url", "action"]),
    ("ministack.services.sqs", "_Err", ["code", "message", "status"]),
    (
        "ministack.services.sns",
        "topic_policy_allows",
        ["topic_arn", "service", "source_arn", "source_account"],
    ),
    ("ministack.services.sns", "_topics", None),
    ("ministack.services.sns", "_error", ["code", "message", "status"]),
    ("ministack.services.s3", "_parse_bucket_key", ["path", "headers"]),
    ("ministack.services.s3", "_bucket_owner_account", ["name"]),
    ("ministack.services.s3", "_buckets", None),
    ("ministack.services.s3", "_error", ["code", "message", "status", "resource", "extra", "headers"]),
    ("ministack.services.scheduler", "_SCHEDULE_TICK_INTERVAL", None),
    ("ministack.services.kms", "_resolve_key", ["key_id_or_arn"]),
    (
        "ministack.services.cloudwatch",
        "record_metric",
        ["namespace", "metric_name", "value", "unit", "dimensions"],
    ),
    ("ministack.services.cloudwatch", "_alarms", None),
    ("ministack.services.cloudwatch", "_metrics", None),
    ("ministack.services.cloudwatch", "_dims_key", ["dims"]),
    ("ministack.services.cloudwatch", "_calc_stats", ["points"]),
    ("ministack.services.cloudwatch", "_stat_value", ["stats", "stat_name", "points"]),
    ("ministack.services.cloudwatch", "_evaluate_alarm", ["alarm"]),
    (
        "ministack.services.cloudwatch",
        "_record_history",
        ["alarm_name", "old_state", "new_state", "reason", "alarm_type", "reason_data"],
    ),
    ("ministack.services.cloudwatch", "_history_entries", []),
    ("ministack.services.cloudwatch", "_ts_iso", ["epoch"]),
    (
        "ministack.services.cloudwatch",
        "_dispatch_alarm_actions",
        ["alarm", "old_state", "new_state", "reason"],
    ),
    ("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS", None),
    ("ministack.services.cloudformation.provisioners", "_CUSTOM_NAME_REPLACEMENT", None),
    ("ministack.services.cloudformation.provisioners", "_NAME_SEED", None),
    (
        "ministack.services.cloudformation.provisioners",
        "_seeded_create",
        ["create_fn", "logical_id", "props", "stack_name"],
    ),
    ("ministack.services.cloudformation.stacks", "_runs_on_worker_thread", ["resource_type"]),
    ("ministack.services.cloudformation.engine", "_evaluate_conditions", ["template", "params"]),
    ("ministack.services.cloudformation.changesets", "_evaluate_conditions", ["template", "params"]),
    ("ministack.services.cloudformation.handlers", "_evaluate_conditions", ["template", "params"]),
    ("ministack.services.cloudformation.stacks", "_evaluate_conditions", ["template", "params"]),
]


class HookError(RuntimeError):
    """The installed ministack lacks hooks that this code uses."""


def check_hooks() -> None:
    """Raise HookError with the name of every hook that differs from the expected one."""
    installed = version("ministack")
    problems = [] if installed == MINISTACK else [f"expected version {MINISTACK}, got {installed}"]
    for module, attribute, parameters in HOOKS:
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            problems.append(f"{module}.{attribute} is missing")
        elif parameters is not None and list(inspect.signature(found).parameters) != parameters:
            problems.append(
                f"{module}.{attribute} has parameters {list(inspect.signature(found).parameters)}"
            )
    if problems:
        raise HookError(f"ministack: {'; '.join(problems)}. Install requirements.txt.")


def install(account: str, region: str, runtime: Path, unpacked: Path) -> None:
    """Add everything that ministack lacks.

    Args:
        runtime: a new directory for the modules of Lambda's Python runtime.
        unpacked: a shared directory for the functions' code and layers.
    """
    _give_new_tables_new_names()
    _keep_template_properties()
    _join_in_conditions()
    _count_loopback_as_tls()
    functions.isolate(runtime)
    archives = functions.Archives(unpacked)
    archives.install()
    _after_provisioning("AWS::Lambda::LayerVersion", archives.expect_layer)
    buckets.install(region)
    calls.install()
    delivery.install(account, region)
    queues.install()
    for resource_type, check in {
        "AWS::SQS::QueuePolicy": queues.check_resource,
        "AWS::Lambda::Function": quotas.check_function,
        "AWS::IAM::Role": quotas.check_role,
        "AWS::CloudWatch::Alarm": quotas.check_alarm,
    }.items():
        _before_provisioning(resource_type, check)
    topics.install(region)
    monitoring.install(account, region)
    scheduler._SCHEDULE_TICK_INTERVAL = 1  # seconds, instead of 10


def _give_new_tables_new_names() -> None:
    """Give each table a new name: a stack would otherwise empty the table that a former stack retained."""
    handlers = provisioners._RESOURCE_HANDLERS["AWS::DynamoDB::Table"]
    create = handlers["create"]

    def create_with_new_name(logical_id: str, properties: dict[str, Any], stack_name: str) -> Any:
        if not properties.get("TableName") and not provisioners._NAME_SEED.get():
            provisioners._NAME_SEED.set(uuid.uuid4().hex[:8])  # ministack uses it for updates too
        return create(logical_id, properties, stack_name)

    handlers["create"] = create_with_new_name


def _keep_template_properties() -> None:
    """Apply a table's TimeToLiveSpecification and a topic's KmsMasterKeyId, which ministack ignores."""

    def time_to_live(table: str, properties: dict[str, Any]) -> None:
        if ttl := properties.get("TimeToLiveSpecification"):
            enabled = str(ttl.get("Enabled", True)).lower() == "true"
            specification = {"AttributeName": ttl["AttributeName"], "Enabled": enabled}
            dynamodb._update_ttl({"TableName": table, "TimeToLiveSpecification": specification})

    def key(topic_arn: str, properties: dict[str, Any]) -> None:
        sns._topics[topic_arn]["attributes"]["KmsMasterKeyId"] = properties.get("KmsMasterKeyId", "")

    _after_provisioning("AWS::DynamoDB::Table", time_to_live)
    _after_provisioning("AWS::SNS::Topic", key)


def _join_in_conditions() -> None:
    """Evaluate Fn::Join in conditions, which templates need to detect an empty list."""
    evaluate = engine._evaluate_conditions

    def joined(part: Any, parameters: dict[str, Any]) -> Any:
        if isinstance(part, list):
            return [joined(item, parameters) for item in part]
        if not isinstance(part, dict):
            return part
        if "Fn::Join" in part:
            separator, items = part["Fn::Join"]
            if isinstance(items, dict):  # a list parameter is one string in ministack
                items = parameters[items["Ref"]]["Value"].split(",")
            return separator.join(items)
        return {key: joined(value, parameters) for key, value in part.items()}

    def evaluate_joined(template: dict[str, Any], params: dict[str, Any]) -> Any:
        conditions = joined(template.get("Conditions", {}), params)
        return evaluate({**template, "Conditions": conditions}, params)

    for module in (engine, changesets, handlers, stacks):
        module._evaluate_conditions = evaluate_joined


def _before_provisioning(resource_type: str, check: Callable[[dict[str, Any]], None]) -> None:
    """Call `check(properties)`, which may raise, before a resource of the type is created or updated."""
    handlers = provisioners._RESOURCE_HANDLERS[resource_type]

    def checked(step: Any) -> Any:
        def provision(*args: Any) -> Any:
            check(next(a for a in reversed(args) if isinstance(a, dict)))
            return step(*args)

        return provision

    for name in {"create", "update"} & set(handlers):
        handlers[name] = checked(handlers[name])


def _after_provisioning(resource_type: str, also: Callable[[str, dict[str, Any]], None]) -> None:
    """Call `also(physical id, properties)` after a resource of the type is created or updated."""
    handlers = provisioners._RESOURCE_HANDLERS[resource_type]

    def wrapped(step: Any) -> Any:
        def provision(*args: Any) -> Any:
            created = step(*args)
            also(created[0], next(a for a in reversed(args) if isinstance(a, dict)))
            return created

        return provision

    for name in {"create", "update"} & set(handlers):
        handlers[name] = wrapped(handlers[name])


def _count_loopback_as_tls() -> None:
    """Treat loopback as TLS: a policy that requires TLS would otherwise deny every request."""
    iam_evaluator._request_origin = contextvars.ContextVar("request_origin", default=("127.0.0.1", True))
    pin = ministack.pin_request_origin
    ministack.pin_request_origin = lambda source_ip, secure_transport: pin(source_ip, True)
