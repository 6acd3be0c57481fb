"""Size quotas of Lambda, IAM and CloudWatch that ministack does not enforce."""

from __future__ import annotations

import json
import re
from typing import Any

ENVIRONMENT_BYTES, ROLE_POLICY_CHARACTERS, ALARM_DESCRIPTION = 4096, 10_240, 1024


def check_function(properties: dict[str, Any]) -> None:
    """Raise ValueError if the environment variables exceed 4 KB."""
    variables = (properties.get("Environment") or {}).get("Variables") or {}
    if sum(len(f"{key}{value}".encode()) for key, value in variables.items()) > ENVIRONMENT_BYTES:
        raise ValueError(
            "Lambda was unable to configure your environment variables because the environment variables you have "
            f"provided exceeded the 4KB limit. String measured: {json.dumps(variables)}"
        )


def check_role(properties: dict[str, Any]) -> None:
    """Raise ValueError if the inline policies exceed 10,240 characters without white space."""
    documents = [json.dumps(policy["PolicyDocument"]) for policy in properties.get("Policies") or []]
    if sum(len(re.sub(r"\s", "", document)) for document in documents) > ROLE_POLICY_CHARACTERS:
        raise ValueError(f"Maximum policy size of {ROLE_POLICY_CHARACTERS} bytes exceeded for the role")


def check_alarm(properties: dict[str, Any]) -> None:
    """Raise ValueError if the description exceeds 1,024 characters."""
    if len(properties.get("AlarmDescription", "")) > ALARM_DESCRIPTION:
        raise ValueError(
            "1 validation error detected: Value at 'alarmDescription' failed to satisfy constraint: Member must have "
            f"length less than or equal to {ALARM_DESCRIPTION}"
        )
