"""Validation of requests by botocore's model of the API, as the service validates them."""

from __future__ import annotations

import re
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, Shape, StructureShape

from local.sagemaker.errors import invalid

_MODEL = botocore.session.get_session().get_service_model("sagemaker")


def input_shape(operation: str) -> StructureShape:
    """Return the request's shape, or raise OperationNotFoundError."""
    return _MODEL.operation_model(operation).input_shape


def from_template(properties: dict[str, Any], shape: Shape, path: str = "") -> Any:
    """Convert CloudFormation properties to a request, whose scalars may not be strings.

    Raises:
        ValueError: the API has no such property, or a value has another type.
    """
    if isinstance(shape, StructureShape) and isinstance(properties, dict):
        unknown = set(properties) - set(shape.members)
        if unknown:
            raise ValueError(f"Encountered unsupported property {sorted(unknown)[0]}")
        return {k: from_template(v, shape.members[k], f"{path}/{k}") for k, v in properties.items()}
    if isinstance(shape, ListShape) and isinstance(properties, list):
        return [from_template(v, shape.member, f"{path}/{i}") for i, v in enumerate(properties)]
    if isinstance(shape, MapShape) and isinstance(properties, dict):
        return {k: from_template(v, shape.value, f"{path}/{k}") for k, v in properties.items()}
    return _scalar(properties, shape, path)


def _scalar(value: Any, shape: Shape, path: str) -> Any:
    try:
        match shape.type_name:
            case "boolean":
                return {"true": True, "false": False}[str(value).lower()]
            case "integer" | "long":
                return int(value)
            case "float" | "double":
                return float(value)
            case "string":
                return str(value)
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path}: expected {shape.type_name}, got {value!r}") from None
    raise ValueError(f"{path}: expected {shape.type_name}, got {type(value).__name__}")


def check(request: dict[str, Any], shape: StructureShape) -> None:
    """Raise ValidationException with AWS's text if the request violates its model."""
    problems = list(_problems(request, shape, ""))
    if problems:
        count = len(problems)
        raise invalid(f"{count} validation error{'s' * (count > 1)} detected: " + "; ".join(problems))


def _problems(value: Any, shape: Shape, path: str) -> Any:
    fault = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must "
    if isinstance(shape, StructureShape):
        yield from _structure_problems(value, shape, path)
    elif isinstance(shape, ListShape):
        size = shape.metadata
        if not size.get("min", 0) <= len(value) <= size.get("max", len(value)):
            yield f"{fault}have length between {size.get('min', 0)} and {size.get('max')}"
        for i, item in enumerate(value, 1):
            yield from _problems(item, shape.member, f"{path}.{i}.member")
    elif isinstance(shape, MapShape):
        size = shape.metadata
        if not size.get("min", 0) <= len(value) <= size.get("max", len(value)):
            yield f"{fault}have size between {size.get('min', 0)} and {size.get('max')}"
        for key, item in value.items():
            yield from _problems(key, shape.key, f"{path}.key")
            yield from _problems(item, shape.value, f"{path}.{key}.member")
    elif shape.type_name == "string":
        yield from (fault + text for text in _string_problems(str(value), shape))
    elif shape.type_name in ("integer", "long", "float"):
        yield from (fault + text for text in _number_problems(value, shape))


def _number_problems(value: float, shape: Shape) -> Any:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and value < low:
        yield f"have value greater than or equal to {low}"
    if high is not None and value > high:
        yield f"have value less than or equal to {high}"


def _structure_problems(value: dict[str, Any], shape: StructureShape, path: str) -> Any:
    for name in shape.required_members:
        if value.get(name) is None:
            at = f"{path}.{_lower(name)}".lstrip(".")
            yield f"Value null at '{at}' failed to satisfy constraint: Member must not be null"
    for name, item in value.items():
        if name in shape.members and item is not None:
            yield from _problems(item, shape.members[name], f"{path}.{_lower(name)}".lstrip("."))


def _string_problems(value: str, shape: Shape) -> Any:
    limits = shape.metadata
    if len(value) > limits.get("max", len(value)):
        yield f"have length less than or equal to {limits['max']}"
    if len(value) < limits.get("min", 0):
        yield f"have length greater than or equal to {limits['min']}"
    pattern = limits.get("pattern")
    if pattern and not re.fullmatch(_python_pattern(pattern), value):
        yield f"satisfy regular expression pattern: {pattern}"
    if limits.get("enum") and value not in limits["enum"]:
        yield f"satisfy enum value set: [{', '.join(limits['enum'])}]"


def _python_pattern(pattern: str) -> str:
    """Convert a Java pattern: `re` lacks its character classes, such as `\\p{L}`."""
    return re.sub(r"\\p\{(\w+)\}", lambda found: " " if found[1] == "Z" else r"\w", pattern)


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
