"""The template that `make build` wrote: its conditions, resources and parameters."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy import ROOT, DeployError

BUILT = ROOT / ".aws-sam" / "build" / "template.yaml"
STORAGE_VERSION = "StorageVersion"  # an output
_MAKE_VARIABLES = {"MaxClassShare": "THRESHOLD"}  # required parameters with another name in make

RESOURCE_NAMES = {  # None: part of another resource, not counted
    "AWS::Serverless::Function": "Lambda function",
    "AWS::Serverless::LayerVersion": "layer",
    "AWS::IAM::Role": "role",
    "AWS::Logs::LogGroup": "log group",
    "AWS::SQS::Queue": "queue",
    "AWS::SQS::QueuePolicy": None,
    "AWS::Events::Rule": "EventBridge rule",
    "AWS::Scheduler::Schedule": "schedule",
    "AWS::CloudWatch::Alarm": "alarm",
    "AWS::CloudWatch::Dashboard": "dashboard",
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


def read_built() -> dict[str, Any]:
    """Read the built template, or raise DeployError before the first `make build`."""
    template: dict[str, Any] = yaml.safe_load(existing_file(BUILT).read_text())
    return template


def built_architecture() -> str:
    """Return the processor architecture of the last `make build`."""
    return existing_file(BUILT.with_name("architecture")).read_text().strip()


def existing_file(path: Path) -> Path:
    """Return ``path``, or raise DeployError if `make build` has not created it."""
    if not path.exists():
        raise DeployError(f"{path.relative_to(ROOT)}: expected a file, got none. Run make build.")
    return path


def conditions(template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, bool]:
    """Evaluate a template's conditions for these parameters.

    Args:
        template: as `sam build` writes it: intrinsic functions in their long form.
    """
    defaults = {name: str(p.get("Default", "")) for name, p in template["Parameters"].items()}
    values = {**defaults, **parameters}

    def value(part: Any) -> str:
        if isinstance(part, dict) and "Ref" in part:
            return values[part["Ref"]]
        if isinstance(part, dict) and "Fn::Join" in part:
            return value(part["Fn::Join"][1])
        return str(part)

    def holds(condition: Any) -> bool:
        ((function, arguments),) = condition.items()
        if function == "Condition":
            return holds(template["Conditions"][arguments])
        if function == "Fn::Equals":
            return value(arguments[0]) == value(arguments[1])
        if function == "Fn::Not":
            return not holds(arguments[0])
        return (all if function == "Fn::And" else any)(holds(part) for part in arguments)

    return {name: holds(condition) for name, condition in template["Conditions"].items()}


def count_resources(template: Mapping[str, Any], parameters: Mapping[str, str]) -> Counter[str]:
    """Count the resources of a stack with these parameters by RESOURCE_NAMES."""
    held = conditions(template, parameters)
    names = [
        RESOURCE_NAMES[resource["Type"]]
        for resource in template["Resources"].values()
        if held.get(resource.get("Condition"), True)
    ]
    return Counter(name for name in names if name)


def storage_version(template: Mapping[str, Any]) -> str:
    """Return the version of the format in which a template's stack stores counts and incidents."""
    return str(template["Outputs"][STORAGE_VERSION]["Value"])


def value_of(name: str, template: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    """Return the value of a parameter, or its default."""
    return parameters.get(name, str(template["Parameters"].get(name, {}).get("Default", "")))


def parameter_problems(
    template: Mapping[str, Any], parameters: Mapping[str, str], current: Mapping[str, str]
) -> list[str]:
    """Return why CloudFormation would refuse these parameters, one message per problem.

    Args:
        parameters: the new values.
        current: the stack's values, which apply to parameters without a new one.
    """
    declared = template["Parameters"]
    found = [
        f"{name}: expected a value, got none. Set {_MAKE_VARIABLES.get(name, name.upper())}=…: "
        f"{parameter['Description']}"
        for name, parameter in declared.items()
        if "Default" not in parameter and name not in parameters and name not in current
    ]
    for name, value in parameters.items():
        if name not in declared:
            found.append(f"{name}: expected a parameter of template.yaml. {_suggestion(name, declared)}")
        elif expected := _expected(declared[name], value):
            found.append(f"{name}: expected {expected}, got {value!r}")
    return found


def _suggestion(name: str, declared: Iterable[str]) -> str:
    folded = {candidate.lower(): candidate for candidate in declared}
    near = difflib.get_close_matches(name.lower(), folded, 1)
    return f"Did you mean {folded[near[0]]}?" if near else "docs/configuration.md lists them."


def _expected(parameter: Mapping[str, Any], value: str) -> str:
    """Return what a parameter accepts, or an empty string if it accepts this value."""
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
