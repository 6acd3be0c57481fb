"""AWS::SageMaker resource types of the embedded CloudFormation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ministack.services.cloudformation import provisioners, stacks

from local.sagemaker.service import SageMaker
from local.sagemaker.shapes import from_template, input_shape

Created = tuple[str, dict[str, Any]]
ENDPOINT = "AWS::SageMaker::Endpoint"

# All properties of these types are create-only: every change is a replacement.
CREATE_ONLY = {
    "AWS::SageMaker::Model": ("model", "Model"),
    "AWS::SageMaker::EndpointConfig": ("endpoint-config", "EndpointConfig"),
    "AWS::SageMaker::MonitoringSchedule": ("monitoring-schedule", "MonitoringSchedule"),
}


def install(sagemaker: SageMaker) -> None:
    """Register the SageMaker resource types with the embedded CloudFormation."""
    for resource_type, (kind, noun) in CREATE_ONLY.items():
        create = _creator(sagemaker, kind, noun)
        provisioners._RESOURCE_HANDLERS[resource_type] = {
            "create": create,
            "update": _replacer(create),
            "update_with_logical_id": True,
            "delete": _deleter(sagemaker, kind, noun),
        }
        provisioners._CUSTOM_NAME_REPLACEMENT[resource_type] = {
            "name": f"{noun}Name",
            "requires_replacement": lambda old, new: old != new,
        }
    _install_endpoint(sagemaker)


def _creator(sagemaker: SageMaker, kind: str, noun: str) -> Callable[[str, dict[str, Any], str], Created]:
    def create(logical_id: str, properties: dict[str, Any], stack_name: str) -> Created:
        request = from_template(properties, input_shape(f"Create{noun}"))
        name = request.setdefault(f"{noun}Name", _name(stack_name, logical_id))
        sagemaker.call(f"Create{noun}", request)
        arn = sagemaker.platform.arn(kind, name)
        return arn, {f"{noun}Name": name, "Id": arn, f"{noun}Arn": arn}

    return create


def _name(stack_name: str, logical_id: str) -> str:
    return str(provisioners._physical_name(stack_name, logical_id, max_len=63))


def _replacer(create: Callable[[str, dict[str, Any], str], Created]) -> Callable[..., Created]:
    def update(
        physical_id: str, old: dict[str, Any], new: dict[str, Any], stack_name: str, logical_id: str
    ) -> Created:
        created: Created = provisioners._seeded_create(create, logical_id, new, stack_name)
        return created

    return update


def _deleter(sagemaker: SageMaker, kind: str, noun: str) -> Callable[[str, dict[str, Any]], None]:
    def delete(physical_id: str, properties: dict[str, Any]) -> None:
        name = sagemaker.records.name_of(kind, physical_id)
        if name is not None:
            sagemaker.call(f"Delete{noun}", {f"{noun}Name": name})

    return delete


def _install_endpoint(sagemaker: SageMaker) -> None:
    """Register endpoints: the only type that is updated, and for whose creation CloudFormation waits."""
    arn = sagemaker.platform.arn

    def settled(name: str, wanted: str) -> Created:
        endpoint = sagemaker.endpoints.await_settled(name)
        if endpoint["EndpointStatus"] != "InService" or endpoint["EndpointConfigName"] != wanted:
            reason = endpoint.get("FailureReason", endpoint["EndpointStatus"])
            raise ValueError(
                f"Resource of type '{ENDPOINT}' with identifier '{name}' did not stabilize: {reason}"
            )
        return arn("endpoint", name), {"EndpointName": name, "EndpointArn": arn("endpoint", name)}

    def create(logical_id: str, properties: dict[str, Any], stack_name: str) -> Created:
        shape = input_shape("CreateEndpoint")
        request = from_template({k: v for k, v in properties.items() if k in shape.members}, shape)
        name = request.setdefault("EndpointName", _name(stack_name, logical_id))
        sagemaker.call("CreateEndpoint", request)
        try:
            return settled(name, request["EndpointConfigName"])
        except ValueError:
            sagemaker.call("DeleteEndpoint", {"EndpointName": name})
            raise

    def update(
        physical_id: str, old: dict[str, Any], new: dict[str, Any], stack_name: str, logical_id: str
    ) -> Created:
        if old.get("EndpointName") != new.get("EndpointName"):
            created: Created = provisioners._seeded_create(create, logical_id, new, stack_name)
            return created
        name = sagemaker.records.name_of("endpoint", physical_id)
        if name is None:
            raise ValueError(f"Resource of type '{ENDPOINT}' with identifier '{physical_id}' was not found.")
        shape = input_shape("UpdateEndpoint")
        known = {k: v for k, v in new.items() if k in shape.members}
        sagemaker.call("UpdateEndpoint", from_template(known | {"EndpointName": name}, shape))
        return settled(name, new["EndpointConfigName"])

    provisioners._RESOURCE_HANDLERS[ENDPOINT] = {
        "create": create,
        "update": update,
        "update_with_logical_id": True,
        "delete": _deleter(sagemaker, "endpoint", "Endpoint"),
    }
    runs_on_worker_thread = stacks._runs_on_worker_thread
    # Models too: CreateModel reads S3 through the event loop, which the provisioner would block.
    stacks._runs_on_worker_thread = lambda resource_type: (
        resource_type.startswith("AWS::SageMaker::") or runs_on_worker_thread(resource_type)
    )
