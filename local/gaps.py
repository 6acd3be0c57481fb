"""What ministack 1.5.33 lacks, put right from outside through its private hooks.

Every hook is checked at start-up: a changed ministack fails there, by name, and not somewhere in the middle of a story.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import logging
import secrets
import sysconfig
import threading
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ministack.app as ministack
from ministack.core import iam_evaluator, lambda_runtime
from ministack.core.responses import request_scope
from ministack.services import dynamodb, eventbridge, iam, sqs, sts
from ministack.services.cloudformation import provisioners

from local.sagemaker.errors import StartFailedError

logger = logging.getLogger("glassbox.gaps")

MINISTACK = "1.5.33"

# module, attribute, and the parameters it must take (None: not a function)
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
    ("ministack.core.iam_evaluator", "_service_principal_matches", ["principal", "service"]),
    ("ministack.core.lambda_runtime", "_PYTHON_WORKER_SCRIPT", None),
    ("ministack.core.lambda_runtime", "zipfile", None),
    ("ministack.core.lambda_runtime", "reset", []),
    ("ministack.services.sts", "register_session", ["access_key", "session"]),
    ("ministack.services.iam", "_roles", None),
    ("ministack.services.dynamodb", "_update_ttl", ["data"]),
    ("ministack.services.eventbridge", "_put_events", ["data", "allow_aws_source"]),
    ("ministack.services.eventbridge", "_rule_arn", ["rule_name", "bus_name"]),
    ("ministack.services.eventbridge", "_invoke_target", ["target", "event", "rule", "view"]),
    (
        "ministack.services.sqs",
        "queue_policy_allows",
        ["queue_arn", "service", "source_arn", "source_account"],
    ),
    ("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS", None),
    ("ministack.services.cloudformation.provisioners", "_CUSTOM_NAME_REPLACEMENT", None),
    (
        "ministack.services.cloudformation.provisioners",
        "_seeded_create",
        ["create_fn", "logical_id", "props", "stack_name"],
    ),
    ("ministack.services.cloudformation.stacks", "_runs_on_worker_thread", ["resource_type"]),
]


class HookError(RuntimeError):
    """The installed ministack is not the one this code hooks into."""


def check_hooks() -> None:
    """Raise HookError, naming every hook that is not as expected."""
    installed = version("ministack")
    problems = [] if installed == MINISTACK else [f"version {installed} is installed, {MINISTACK} is needed"]
    for module, attribute, parameters in HOOKS:
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            problems.append(f"{module}.{attribute} is missing")
        elif parameters is not None and list(inspect.signature(found).parameters) != parameters:
            problems.append(f"{module}.{attribute} takes {list(inspect.signature(found).parameters)}")
    if problems:
        raise HookError("this is not the ministack the embedded AWS knows: " + "; ".join(problems))


def install(account: str, region: str, runtime_directory: Path) -> None:
    """Fill the gaps. `runtime_directory` will hold what the Lambda environments share."""
    _keep_time_to_live()
    _honour_queue_policies(account)
    _isolate_functions(runtime_directory / "runtime")
    _unpack_once(runtime_directory / "unpacked")
    _count_loopback_as_tls()


def _count_loopback_as_tls() -> None:
    """A bucket policy that asks for TLS would refuse everybody here: nothing leaves the loopback interface."""
    pin = ministack.pin_request_origin
    ministack.pin_request_origin = lambda source_ip, secure_transport: pin(source_ip, True)


def _keep_time_to_live() -> None:
    """AWS::DynamoDB::Table: TimeToLiveSpecification is ignored."""
    handlers = provisioners._RESOURCE_HANDLERS["AWS::DynamoDB::Table"]

    def with_ttl(original: Any) -> Any:
        def provision(*args: Any) -> Any:
            created = original(*args)
            properties = next(a for a in reversed(args) if isinstance(a, dict))
            if ttl := properties.get("TimeToLiveSpecification"):
                enabled = str(ttl.get("Enabled", True)).lower() == "true"
                dynamodb._update_ttl(
                    {
                        "TableName": created[0],
                        "TimeToLiveSpecification": {
                            "AttributeName": ttl["AttributeName"],
                            "Enabled": enabled,
                        },
                    }
                )
            return created

        return provision

    for step in ("create", "update"):
        if step in handlers:
            handlers[step] = with_ttl(handlers[step])


class Chaos:
    """Faults that tests switch on: with `duplicate_deliveries` every event is delivered twice, as AWS may."""

    duplicate_deliveries = False


def _honour_queue_policies(account: str) -> None:
    """EventBridge -> SQS: without an Allow in the queue's policy the event goes to the target's dead-letter queue."""
    deliver = eventbridge._invoke_target

    def allowed(queue_arn: str, rule: dict[str, Any]) -> bool:
        rule_arn = eventbridge._rule_arn(rule["Name"], rule.get("EventBusName", "default"))
        return bool(sqs.queue_policy_allows(queue_arn, "events.amazonaws.com", rule_arn, account))

    def invoke_target(target: dict[str, Any], event: Any, rule: dict[str, Any], view: Any = None) -> None:
        for _ in range(2 if Chaos.duplicate_deliveries else 1):
            if ":sqs:" not in target["Arn"] or allowed(target["Arn"], rule):
                deliver(target, event, rule, view)
                continue
            logger.error("%s does not let EventBridge rule %s send to it", target["Arn"], rule["Name"])
            dead_letters = (target.get("DeadLetterConfig") or {}).get("Arn", "")
            if dead_letters and allowed(dead_letters, rule):
                deliver({"Id": target["Id"], "Arn": dead_letters}, event, rule, view)

    eventbridge._invoke_target = invoke_target


# What AWS's Python runtime holds beside the standard library.
RUNTIME_MODULES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3")

_ISOLATION = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p and "dist-packages" not in p] + [{runtime!r}]
for name in [n for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", None) or "")]:
    del sys.modules[name]
"""


def _isolate_functions(runtime_directory: Path) -> None:
    """Functions run on the emulator's interpreter and would see all it has installed.

    They get their code, their layers and boto3, so that a dependency missing from a layer is missing here too.
    """
    runtime_directory.mkdir(parents=True, exist_ok=True)
    installed = Path(sysconfig.get_path("purelib"))
    for name in RUNTIME_MODULES:
        (runtime_directory / name).symlink_to(installed / name)
    prelude = _ISOLATION.format(runtime=str(runtime_directory))
    lambda_runtime._PYTHON_WORKER_SCRIPT = prelude + lambda_runtime._PYTHON_WORKER_SCRIPT


def _unpack_once(directory: Path) -> None:
    """Every Lambda environment unpacks its code and layers anew: a second each time for numpy, and no byte code kept.

    Here each archive is unpacked once and the environments link to it.
    """
    lock = threading.Lock()

    class SharedZipFile(zipfile.ZipFile):
        def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:
            shared = directory / hashlib.sha256(Path(str(self.filename)).read_bytes()).hexdigest()
            with lock:
                if not shared.exists():
                    partial = shared.with_suffix(".partial")
                    super().extractall(partial)
                    partial.rename(shared)
            Path(path).rmdir()
            Path(path).symlink_to(shared)

    class SharedZip:
        ZipFile = SharedZipFile

        def __getattr__(self, name: str) -> Any:
            return getattr(zipfile, name)

    directory.mkdir(parents=True)
    lambda_runtime.zipfile = SharedZip()


def emit_sagemaker_event(
    account: str, region: str, detail_type: str, detail: dict[str, Any], resources: list[str]
) -> None:
    """Put an event of source aws.sagemaker on the default bus, which PutEvents rightly refuses."""
    with request_scope(account, region):
        eventbridge._put_events(
            {
                "Entries": [
                    {
                        "Source": "aws.sagemaker",
                        "DetailType": detail_type,
                        "Detail": json.dumps(detail),
                        "Resources": resources,
                    }
                ]
            },
            allow_aws_source=True,
        )


def assume_role(account: str, region: str, role_arn: str) -> dict[str, str]:
    """The role's temporary credentials for SageMaker, as `AWS_…` variables.

    Raises StartFailedError when it does not exist or does not trust sagemaker.amazonaws.com.
    """
    name = role_arn.rpartition("/")[2]
    with request_scope(account, region):
        role = iam._roles.get(name)
        if role is None or not _trusts_sagemaker(role["AssumeRolePolicyDocument"]):
            raise StartFailedError(
                f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role."
            )
        key = f"ASIA{secrets.token_hex(8).upper()}"
        session = {
            "Arn": f"arn:aws:sts::{account}:assumed-role/{name}/SageMaker",
            "UserId": f"{name}:SageMaker",
            "AccountId": account,
            "SecretAccessKey": secrets.token_hex(20),
            "SessionToken": secrets.token_hex(32),
        }
        sts.register_session(key, session)
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


def _trusts_sagemaker(document: str | dict[str, Any]) -> bool:
    policy = json.loads(document) if isinstance(document, str) else document
    statements = policy["Statement"] if isinstance(policy["Statement"], list) else [policy["Statement"]]
    return any(
        statement.get("Effect") == "Allow"
        and "sts:AssumeRole" in _listed(statement.get("Action"))
        and iam_evaluator._service_principal_matches(statement.get("Principal"), "sagemaker.amazonaws.com")
        for statement in statements
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
