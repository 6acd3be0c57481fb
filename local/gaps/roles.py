"""Roles that AWS services assume."""

from __future__ import annotations

import json
import secrets
from typing import Any

from ministack.core import iam_evaluator
from ministack.core.responses import request_scope
from ministack.services import iam, sts

from local.sagemaker.errors import StartFailedError


def role_trusts(role_arn: str, service: str) -> bool:
    """Return whether the role exists in the request's account and trusts the service."""
    role = iam._roles.get(role_arn.rpartition("/")[2])
    if role is None:
        return False
    document = role["AssumeRolePolicyDocument"]
    policy = json.loads(document) if isinstance(document, str) else document
    return any(
        statement.get("Effect") == "Allow"
        and "sts:AssumeRole" in _listed(statement.get("Action"))
        and iam_evaluator._service_principal_matches(statement.get("Principal"), service)
        for statement in _listed(policy["Statement"])
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def assume(account: str, region: str, role_arn: str, service: str) -> dict[str, str]:
    """Return temporary credentials of the role for a service, as `AWS_…` variables.

    Raises:
        StartFailedError: the role does not exist or does not trust the service.
    """
    name = role_arn.rpartition("/")[2]
    with request_scope(account, region):
        if not role_trusts(role_arn, service):
            raise StartFailedError(
                f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
                f"'{service}' to assume the role."
            )
        key, caller = f"ASIA{secrets.token_hex(8).upper()}", service.partition(".")[0]
        session = {
            "Arn": f"arn:aws:sts::{account}:assumed-role/{name}/{caller}",
            "UserId": f"{name}:{caller}",
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
