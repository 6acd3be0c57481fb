"""Read the incident of a stack's endpoint, and send the stack an operator's commands."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

import boto3

from deploy import DeployError
from deploy.stack import Outputs, Stack
from glassbox.aws.events import Events
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.errors import GlassboxError
from glassbox.incidents.events import COMMAND_DETAIL_TYPE, OPERATOR_SOURCE
from glassbox.incidents.model import Incident, State

MAX_MINUTES = 24 * 60  # of an extension
CHANGES_ENDPOINT = (State.SWAPPING, State.HOOKED, State.RESTORING)


def current_incident(outputs: Outputs, session: boto3.Session) -> Incident | None:
    """Return the open or latest incident of the stack's endpoint."""
    incidents = IncidentsTable(session.client("dynamodb"), outputs.incidents_table)
    return incidents.current(outputs.endpoint_name)


def check_no_incident(stack: Stack, session: boto3.Session) -> None:
    """Raise DeployError while an incident changes the endpoint.

    An update of the stack would undo the swap, or fail.
    """
    incident = current_incident(stack.outputs, session)
    if incident and incident.state in CHANGES_ENDPOINT:
        raise DeployError(
            f"Stack {stack.name}: expected no open incident, got {incident.id} of endpoint {incident.endpoint}, "
            f"which is {incident.state}. Wait until it is closed, or abort it (docs/operations.md), then retry."
        )


def minutes(text: str) -> int:
    """Return the minutes of an extension, 1 to MAX_MINUTES, of a command line.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    if not text.isdecimal() or not 1 <= int(text) <= MAX_MINUTES:
        raise argparse.ArgumentTypeError(
            f"MINUTES: expected a whole number from 1 to {MAX_MINUTES}, got {text!r}"
        )
    return int(text)


def aws_command(endpoint: str, action: str, **detail: Any) -> str:
    """Return the command of the AWS CLI that sends an operator's command."""
    text = json.dumps({"endpoint": endpoint, "action": action} | detail)
    entry = {"Source": OPERATOR_SOURCE, "DetailType": COMMAND_DETAIL_TYPE, "Detail": text}
    return f"aws events put-events --entries {shlex.quote(json.dumps([entry]))}"


def send_command(endpoint: str, action: str, session: boto3.Session, **detail: Any) -> None:
    """Send the stack an operator's command, such as ``open`` or ``abort``.

    Raises:
        DeployError: EventBridge refuses it.
    """
    command = {"endpoint": endpoint, "action": action} | detail
    try:
        Events(session.client("events")).put(OPERATOR_SOURCE, COMMAND_DETAIL_TYPE, command)
    except GlassboxError as error:
        raise DeployError(
            f"Endpoint {endpoint}: the command {action!r} was not sent. {error}. Retry."
        ) from error
