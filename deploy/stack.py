"""Describe, create, update and delete the CloudFormation stack."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from deploy import ROOT, DeployError
from deploy.polling import poll
from deploy.template import STORAGE_VERSION, existing_file, storage_version

SAM = ROOT / ".venv-sam" / "bin" / "sam"
MAPPING_SECONDS = 600.0
_WAIT = {"Delay": 5, "MaxAttempts": 720}  # one hour, since a stack update may update the endpoint

INCIDENT_RULES = ("ViolationRule", "OpenRule", "MonitorJobRule", "MonitorReportRule")  # they open incidents
# CloudFormation cannot update a stack that it never created: the stack has to be deleted first.
NEVER_CREATED = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "REVIEW_IN_PROGRESS")
_OUR_PARAMETERS = {"EndpointName", "PlainConfigName", "HookedConfigName"}  # they identify a Glassbox stack


@dataclass(frozen=True)
class Outputs:
    """The outputs of a Glassbox stack that the deploy tool reads.

    ``hooked_config`` is empty with React=false, ``replay_key_arn`` in stacks of an earlier storage version.
    """

    endpoint_name: str
    bucket: str
    counts_table: str
    incidents_table: str
    topic: str
    plain_config: str
    hooked_config: str = ""
    replay_key_arn: str = ""

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Outputs:
        """Return the outputs, or raise DeployError if a required one is missing."""
        required = ("EndpointName", "Bucket", "CountsTable", "IncidentsTable", "Topic", "PlainConfig")
        if missing := [name for name in required if name not in values]:
            raise DeployError(
                f"Stack outputs: expected {', '.join(missing)}, got {', '.join(values) or 'none'}. "
                "Run make deploy to complete the stack."
            )
        optional = (values.get(name, "") for name in ("HookedConfig", "ReplayKeyArn"))
        return cls(*(values[name] for name in required), *optional)


@dataclass(frozen=True)
class Stack:
    """A described stack, with parameters and outputs by their names in the template."""

    name: str
    status: str
    parameters: Mapping[str, str]
    output_values: Mapping[str, str]

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Stack:
        """Return an item of DescribeStacks."""
        return cls(
            description["StackName"],
            description["StackStatus"],
            {p["ParameterKey"]: p["ParameterValue"] for p in description.get("Parameters", ())},
            {o["OutputKey"]: o["OutputValue"] for o in description.get("Outputs", ())},
        )

    @property
    def outputs(self) -> Outputs:
        """The outputs."""
        return Outputs.parse(self.output_values)

    @property
    def was_created(self) -> bool:
        """Whether CloudFormation created the stack, so that it can update it."""
        return self.status not in NEVER_CREATED

    @property
    def is_glassbox(self) -> bool:
        """Whether the stack has the parameters of template.yaml."""
        return self.parameters.keys() >= _OUR_PARAMETERS

    @property
    def owns_endpoint(self) -> bool:
        """Whether the stack created its endpoint."""
        return bool(self.parameters.get("ModelDataUrl"))

    @property
    def reacts(self) -> bool:
        """Whether a violation swaps the endpoint."""
        return self.parameters.get("React") != "false"


def describe(name: str, cloudformation: Any) -> Stack | None:
    """Describe a stack, or return None."""
    try:
        return Stack.parse(cloudformation.describe_stacks(StackName=name)["Stacks"][0])
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise


def all_stacks(cloudformation: Any) -> Iterator[Stack]:
    """Describe every stack of the account and region."""
    for page in cloudformation.get_paginator("describe_stacks").paginate():
        yield from map(Stack.parse, page["Stacks"])


def watchers(endpoint: str, cloudformation: Any) -> list[str]:
    """Return the names of the Glassbox stacks that watch or own an endpoint."""
    return [
        found.name
        for found in all_stacks(cloudformation)
        if found.was_created
        and found.status != "DELETE_COMPLETE"
        and found.is_glassbox
        and found.parameters["EndpointName"] == endpoint
    ]


def find(name: str, cloudformation: Any) -> Stack | None:
    """Describe a Glassbox stack, or return None.

    Raises:
        DeployError: it is a stack of another application.
    """
    found = describe(name, cloudformation)
    if found:
        check_is_glassbox(found)
    return found


def existing(name: str, cloudformation: Any) -> Stack:
    """Describe a Glassbox stack, or raise DeployError if it does not exist."""
    found = find(name, cloudformation)
    if found is None:
        region = cloudformation.meta.region_name
        raise DeployError(f"STACK: expected an existing stack in {region}, got {name}. Set STACK=….")
    return found


def check_is_glassbox(found: Stack) -> None:
    """Raise DeployError for a stack of another application.

    An update would replace its resources.
    """
    # a stack with only a change set has no parameters yet, and no resources
    if found.status != "REVIEW_IN_PROGRESS" and not found.is_glassbox:
        raise DeployError(
            f"STACK: expected a Glassbox stack or a new name, got {found.name}, a stack of another application. "
            "Set STACK=…."
        )


def check_settled(found: Stack) -> None:
    """Raise DeployError for a stack that CloudFormation cannot update now."""
    fix = ""
    if found.status.endswith("_IN_PROGRESS"):
        fix = "Wait until CloudFormation has finished, then retry."
    elif found.status == "DELETE_FAILED":
        fix = f"Run make remove STACK={found.name} to complete the deletion."
    elif found.status.endswith("_FAILED"):
        fix = f"Run aws cloudformation continue-update-rollback --stack-name {found.name}, then retry."
    if fix:
        raise DeployError(f"Stack {found.name}: expected a completed status, got {found.status}. {fix}")


def check_storage(found: Stack, template: Mapping[str, Any]) -> None:
    """Raise DeployError for a stack whose stored data this version of Glassbox cannot read."""
    current, expected = found.output_values.get(STORAGE_VERSION, "none"), storage_version(template)
    if current != expected:
        raise DeployError(
            f"Stack {found.name}: expected storage version {expected}, got {current}. Run "
            f"make remove STACK={found.name}, which keeps the bucket and the tables and prints their names, then "
            "make deploy."
        )


def resource(stack: str, logical_id: str, cloudformation: Any) -> str:
    """Return the physical name of a stack's resource."""
    found = cloudformation.describe_stack_resource(StackName=stack, LogicalResourceId=logical_id)
    return str(found["StackResourceDetail"]["PhysicalResourceId"])


def sam_deploy(name: str, parameters: Mapping[str, str], region: str) -> None:
    """Run `sam deploy` on the built template, or raise DeployError if it fails."""
    sam = str(existing_file(SAM))
    command = [sam, "deploy", "--stack-name", name, "--region", region, "--no-confirm-changeset"]
    command += ["--parameter-overrides", *(f"{key}={_quoted(value)}" for key, value in parameters.items())]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"SAM_CLI_TELEMETRY": "0"}, check=False)
    if done.returncode:
        raise DeployError(
            f"Stack {name}: sam deploy failed, see its output above. CloudFormation rolls the stack back."
        )


def _quoted(value: str) -> str:
    """Quote a parameter value for the SAM CLI, which splits at blanks and quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def change_parameters(name: str, changed: Mapping[str, str], cloudformation: Any) -> None:
    """Update only these parameters of a stack, and wait.

    CloudFormation refuses an update with a parameter unknown to the stack's template; such a parameter is left out.
    """
    found = describe(name, cloudformation)
    current = dict(found.parameters) if found else {}
    wanted = current | {key: value for key, value in changed.items() if key in current}
    if wanted == current:
        return
    cloudformation.update_stack(
        StackName=name,
        UsePreviousTemplate=True,
        Parameters=[
            {"ParameterKey": key}
            | ({"UsePreviousValue": True} if value == current[key] else {"ParameterValue": value})
            for key, value in wanted.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    cloudformation.get_waiter("stack_update_complete").wait(StackName=name, WaiterConfig=_WAIT)


@contextlib.contextmanager
def violations_paused(name: str, session: boto3.Session) -> Iterator[None]:
    """Open no incidents inside the block.

    An open incident continues. An exception ends the pause; otherwise it stays, since the stack is deleted next.
    """
    try:
        _set_incident_triggers(name, False, session)
        yield
    except BaseException:
        print(f"Stack {name} was not removed. Re-enabling its rules …", flush=True)
        _set_incident_triggers(name, True, session)
        print(
            "The stack opens incidents again. make remove is resumable; make twin completes its twin.",
            flush=True,
        )
        raise


def _set_incident_triggers(name: str, enabled: bool, session: boto3.Session) -> None:
    """Enable or disable the rules and the queue that open incidents; skip deleted ones."""
    cloudformation, events, functions = (session.client(s) for s in ("cloudformation", "events", "lambda"))
    for rule in INCIDENT_RULES:
        with _ignore_missing():
            switch = events.enable_rule if enabled else events.disable_rule
            switch(Name=resource(name, rule, cloudformation))
    with _ignore_missing():
        mapping = resource(name, "SwapEndpointFunctionQueue", cloudformation)
        _wait_for_mapping(mapping, functions)
        functions.update_event_source_mapping(UUID=mapping, Enabled=enabled)
        # While it is Disabling, Lambda receives messages, and CloudFormation cannot delete it.
        _wait_for_mapping(mapping, functions)


def _wait_for_mapping(mapping: str, functions: Any) -> None:
    state = ""

    def settled() -> bool:
        nonlocal state
        state = functions.get_event_source_mapping(UUID=mapping)["State"]
        return not state.endswith("ing")

    if not poll(settled, MAPPING_SECONDS):
        raise DeployError(
            f"Event source mapping {mapping}: expected Enabled or Disabled, got {state} after "
            f"{MAPPING_SECONDS / 60:g} minutes. Retry later."
        )


@contextlib.contextmanager
def _ignore_missing() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        # CloudFormation has no error code for an unknown resource
        missing = error.response["Error"]["Code"] == "ResourceNotFoundException"
        if not missing and "does not exist for stack" not in str(error):
            raise


def delete(name: str, cloudformation: Any) -> None:
    """Delete a stack and wait, or raise DeployError with the reason of a failed deletion."""
    cloudformation.delete_stack(StackName=name)
    try:
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=name, WaiterConfig=_WAIT)
    except WaiterError as error:
        reason = error.last_response.get("Stacks", [{}])[0].get("StackStatusReason") or str(error)
        raise DeployError(f"Stack {name}: the deletion failed: {reason}. Retry.") from error
