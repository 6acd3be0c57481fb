"""The CloudFormation stack: what it would hold, `sam deploy`, its outputs and parameters."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from botocore.exceptions import ClientError, WaiterError

from deploy import DeployError

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / ".aws-sam" / "build" / "template.yaml"
SAM = ROOT / ".venv-sam" / "bin" / "sam"

_PATIENCE = {"Delay": 5, "MaxAttempts": 720}  # an hour: an endpoint may be updated on the way
SETTLE_SECONDS, PAUSE = 600.0, 2.0

OPENING = ("ViolationRule", "OpenRule", "MonitorJobRule", "MonitorReportRule")  # an incident

WORDS = {
    "AWS::Serverless::Function": "Lambda function",
    "AWS::Serverless::LayerVersion": "layer",
    "AWS::IAM::Role": "role",
    "AWS::Logs::LogGroup": "log group",
    "AWS::SQS::Queue": "queue",
    "AWS::SQS::QueuePolicy": None,
    "AWS::Events::Rule": "EventBridge rule",
    "AWS::Scheduler::Schedule": "schedule",
    "AWS::CloudWatch::Alarm": "alarm",
    "AWS::DynamoDB::Table": "DynamoDB table",
    "AWS::S3::Bucket": "bucket",
    "AWS::S3::BucketPolicy": None,
    "AWS::SNS::Topic": "topic",
    "AWS::SNS::TopicPolicy": None,
    "AWS::SNS::Subscription": "subscription",
    "AWS::KMS::Key": "KMS key",
    "AWS::SageMaker::Model": "SageMaker model",
    "AWS::SageMaker::EndpointConfig": "endpoint config",
    "AWS::SageMaker::Endpoint": "endpoint",
}


def conditions(template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, bool]:
    """Which of a template's conditions hold with these parameters.

    Args:
        template: as `sam build` writes it: intrinsic functions in their long form.
    """
    values = {name: str(p.get("Default", "")) for name, p in template["Parameters"].items()} | dict(
        parameters
    )

    def value(part: Any) -> str:
        if isinstance(part, dict) and "Ref" in part:
            return values[part["Ref"]]
        if isinstance(part, dict) and "Fn::Join" in part:
            return value(part["Fn::Join"][1])
        return str(part)

    def holds(condition: Any) -> bool:
        ((kind, given),) = condition.items()
        if kind == "Condition":
            return holds(template["Conditions"][given])
        if kind == "Fn::Equals":
            return value(given[0]) == value(given[1])
        if kind == "Fn::Not":
            return not holds(given[0])
        return (all if kind == "Fn::And" else any)(holds(part) for part in given)

    return {name: holds(condition) for name, condition in template["Conditions"].items()}


def contents(template: Mapping[str, Any], parameters: Mapping[str, str]) -> Counter[str]:
    """How many of which kind of resource a stack with these parameters holds; `template` as for `conditions`."""
    held = conditions(template, parameters)
    made = [
        WORDS[resource["Type"]]
        for resource in template["Resources"].values()
        if held.get(resource.get("Condition"), True)
    ]
    return Counter(word for word in made if word)


def built() -> dict[str, Any]:
    """The template as `make build` left it."""
    template: dict[str, Any] = yaml.safe_load(_made(BUILT).read_text())
    return template


def built_for() -> str:
    """The processor that `make build` built for."""
    return _made(BUILT.with_name("architecture")).read_text().strip()


def _made(path: Path) -> Path:
    if not path.exists():
        raise DeployError(f"{path.relative_to(ROOT)} does not exist: make build creates it")
    return path


# What is left of a stack that was never made: nothing can be updated, and it has to go first.
NEVER_MADE = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "REVIEW_IN_PROGRESS")


_OURS = {"EndpointName", "PlainConfigName", "HookedConfigName"}  # the parameters that tell a Glassbox stack
STORAGE_VERSION = "StorageVersion"  # the output
_MAKE_VARIABLES = {"MaxClassShare": "THRESHOLD"}  # required parameters that make names otherwise


def describe(name: str, cloudformation: Any) -> dict[str, Any] | None:
    """A stack, or None."""
    try:
        stack: dict[str, Any] = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return stack


def parameters_of(stack: Mapping[str, Any] | None) -> dict[str, str]:
    """The parameters of a described stack."""
    return {p["ParameterKey"]: p["ParameterValue"] for p in (stack or {}).get("Parameters", ())}


def outputs_of(stack: Mapping[str, Any]) -> dict[str, str]:
    """The outputs of a described stack."""
    return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", ())}


def watchers(endpoint: str, cloudformation: Any) -> list[str]:
    """Return the names of the Glassbox stacks that watch an endpoint or own it."""
    pages = cloudformation.get_paginator("describe_stacks").paginate()
    return [
        found["StackName"]
        for page in pages
        for found in page["Stacks"]
        if found["StackStatus"] not in (*NEVER_MADE, "DELETE_COMPLETE")
        and (parameters := parameters_of(found)).keys() >= _OURS
        and parameters["EndpointName"] == endpoint
    ]


def storage_version(template: Mapping[str, Any]) -> str:
    """Return the version of the form in which a template's stack stores counts and incidents."""
    return str(template["Outputs"][STORAGE_VERSION]["Value"])


def check_ours(name: str, there: Mapping[str, Any]) -> None:
    """Raise DeployError for a stack of another application: an update would replace all of its resources."""
    # a stack that has only a change set shows no parameters yet, and has no resources
    if there["StackStatus"] != "REVIEW_IN_PROGRESS" and not parameters_of(there).keys() >= _OURS:
        raise DeployError(f"Stack {name} exists, and is not a Glassbox stack: STACK=… names another")


def find(name: str, cloudformation: Any) -> dict[str, Any] | None:
    """Describe a Glassbox stack, or return None; DeployError where the name is another application's."""
    found = describe(name, cloudformation)
    if found:
        check_ours(name, found)
    return found


def check_settled(name: str, status: str) -> None:
    """Raise DeployError for a stack that CloudFormation would not update now."""
    if status.endswith("_IN_PROGRESS"):
        raise DeployError(f"Stack {name} is {status}: wait until CloudFormation is done, then try again")
    if status == "DELETE_FAILED":
        raise DeployError(f"Stack {name} is {status}: make remove STACK={name} completes the deletion")
    if status.endswith("_FAILED"):
        raise DeployError(
            f"Stack {name} is {status}: aws cloudformation continue-update-rollback --stack-name {name} lets it be "
            "updated again"
        )


def check_storage(name: str, template: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise DeployError for a stack whose stored data this version of Glassbox cannot read."""
    found, wanted = outputs_of(there).get(STORAGE_VERSION, "none"), storage_version(template)
    if found != wanted:
        raise DeployError(
            f"Stack {name}: expected storage version {wanted}, got {found}. Run make remove STACK={name}, which keeps "
            "and names the bucket and the tables, then make deploy."
        )


def value_of(name: str, template: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    """Return a parameter's value: as given, or its default."""
    return parameters.get(name, str(template["Parameters"].get(name, {}).get("Default", "")))


def problems(template: Mapping[str, Any], given: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Why CloudFormation would refuse these parameters, on top of those that the stack has."""
    declared = template["Parameters"]
    found = [
        f"{name} is missing ({_MAKE_VARIABLES.get(name, name.upper())}=…): {parameter['Description']}"
        for name, parameter in declared.items()
        if "Default" not in parameter and name not in given and name not in before
    ]
    for name, value in given.items():
        if name not in declared:
            found.append(f"{name}: expected a parameter of the stack{_nearest(name, declared)}")
        elif wanted := _expected(declared[name], value):
            found.append(f"{name}: expected {wanted}, got {value!r}")
    return found


def _nearest(name: str, declared: Iterable[str]) -> str:
    folded = {candidate.lower(): candidate for candidate in declared}
    near = difflib.get_close_matches(name.lower(), folded, 1)
    return f". Did you mean {folded[near[0]]}?" if near else " (docs/configuration.md lists them)"


def _expected(parameter: Mapping[str, Any], value: str) -> str:
    """Return what a parameter takes; empty where it takes this value."""
    if allowed := parameter.get("AllowedValues"):
        return "" if value in map(str, allowed) else " or ".join(map(str, allowed))
    if parameter["Type"] == "Number":
        low, high = parameter.get("MinValue"), parameter.get("MaxValue")
        bounds = [f"{word} {bound:g}" for word, bound in (("from", low), ("to", high)) if bound is not None]
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        fits = (low is None or number >= low) and (high is None or number <= high)
        return "" if fits and math.isfinite(number) else " ".join(["a number", *bounds])
    if len(value) > (longest := int(parameter.get("MaxLength", len(value)))):
        return f"at most {longest} characters"
    parts = value.split(",") if parameter["Type"] == "CommaDelimitedList" else [value]
    if all(re.fullmatch(parameter.get("AllowedPattern", "(?s:.*)"), part) for part in parts):
        return ""
    return str(parameter.get("ConstraintDescription", parameter["Description"]))


def existing(name: str, cloudformation: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters and outputs of a Glassbox stack; DeployError where there is none."""
    stack = find(name, cloudformation)
    if stack is None:
        raise DeployError(f"There is no stack {name} in this region: STACK=… names another")
    return parameters_of(stack), outputs_of(stack)


def resource(stack: str, logical_id: str, cloudformation: Any) -> str:
    """The name of one of a stack's resources."""
    found = cloudformation.describe_stack_resource(StackName=stack, LogicalResourceId=logical_id)
    return str(found["StackResourceDetail"]["PhysicalResourceId"])


def sam_deploy(name: str, parameters: Mapping[str, str], region: str) -> None:
    """`sam deploy` of what `make build` left; raises DeployError when it fails."""
    command = [str(_made(SAM)), "deploy", "--stack-name", name, "--region", region, "--no-confirm-changeset"]
    command += ["--parameter-overrides", *(f"{key}={_quoted(value)}" for key, value in parameters.items())]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"SAM_CLI_TELEMETRY": "0"}, check=False)
    if done.returncode:
        raise DeployError(f"sam deploy of {name} failed, see above; CloudFormation rolls it back")


def _quoted(value: str) -> str:
    """As the SAM CLI reads a value that may hold blanks and quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def change_parameters(name: str, changed: Mapping[str, str], cloudformation: Any) -> None:
    """Update a stack in nothing but some of its parameters, those that its template has, and wait."""
    parameters = parameters_of(describe(name, cloudformation))
    wanted = parameters | {key: value for key, value in changed.items() if key in parameters}
    if wanted == parameters:
        return
    cloudformation.update_stack(
        StackName=name,
        UsePreviousTemplate=True,
        Parameters=[
            {"ParameterKey": key}
            | ({"UsePreviousValue": True} if value == parameters[key] else {"ParameterValue": value})
            for key, value in wanted.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    cloudformation.get_waiter("stack_update_complete").wait(StackName=name, WaiterConfig=_PATIENCE)


@contextlib.contextmanager
def violations_paused(name: str, session: Any) -> Iterator[None]:
    """Pause the opening of incidents; an open one continues to its end. An exception resumes it."""
    try:
        _listen(name, False, session)
        yield
    except BaseException:
        print(f"Stack {name} was not removed. Re-enabling its rules …", flush=True)
        _listen(name, True, session)
        print(
            "It acts on violations again. make remove is resumable; make twin completes its twin.", flush=True
        )
        raise


def _listen(name: str, on: bool, session: Any) -> None:
    """Enable or disable the rules and the queue that open incidents, those that are left of them."""
    cloudformation, events, functions = (session.client(s) for s in ("cloudformation", "events", "lambda"))
    for rule in OPENING:
        with _if_there():
            switch = events.enable_rule if on else events.disable_rule
            switch(Name=resource(name, rule, cloudformation))
    with _if_there():
        mapping = resource(name, "SwapEndpointFunctionQueue", cloudformation)
        _settle(mapping, functions)
        functions.update_event_source_mapping(UUID=mapping, Enabled=on)
        _settle(mapping, functions)  # until then it takes messages, and CloudFormation cannot delete it


def _settle(mapping: str, functions: Any) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while (state := functions.get_event_source_mapping(UUID=mapping)["State"]).endswith("ing"):
        if time.monotonic() > deadline:
            raise DeployError(
                f"Event source mapping {mapping} is {state} after {SETTLE_SECONDS / 60:g} minutes: try again later"
            )
        time.sleep(PAUSE)


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        # CloudFormation has no code of its own for a resource that it does not know
        missing = error.response["Error"]["Code"] == "ResourceNotFoundException"
        if not missing and "does not exist for stack" not in str(error):
            raise


def delete(name: str, cloudformation: Any) -> None:
    """Delete a stack, and wait; raises DeployError with what CloudFormation could not delete."""
    cloudformation.delete_stack(StackName=name)
    try:
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=name, WaiterConfig=_PATIENCE)
    except WaiterError as error:
        why = error.last_response.get("Stacks", [{}])[0].get("StackStatusReason") or str(error)
        raise DeployError(f"Stack {name} could not be deleted, try again: {why}") from error
