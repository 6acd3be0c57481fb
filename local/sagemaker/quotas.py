"""The account's instance quotas for endpoints, which Service Quotas lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from local.sagemaker.errors import SageMakerError, invalid
from local.sagemaker.shapes import input_shape

DEFAULT = 100.0
PAGE = 100


class Quotas:
    """The number of instances by type; `DEFAULT` unless it was set."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def set(self, values: Mapping[str, float]) -> dict[str, float]:
        """Set the quotas of some types and reset all others to the default."""
        self.values = {instance: float(value) for instance, value in values.items()}
        return self.values

    def require(self, used: Counter[str], wanted: Counter[str]) -> None:
        """Raise ResourceLimitExceeded if `wanted` more instances would exceed a quota."""
        for instance, count in wanted.items():
            quota = self.values.get(instance, DEFAULT)
            if used[instance] + count > quota:
                raise SageMakerError(
                    "ResourceLimitExceeded",
                    f"The account-level service limit '{instance} for endpoint usage' is {quota:g} Instances, with "
                    f"current utilization of {used[instance]} Instances and a request delta of {count} Instances. "
                    "Please use AWS Service Quotas to request an increase for this quota.",
                )

    def list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Handle ListServiceQuotas for the endpoints' quotas."""
        if request.get("ServiceCode") != "sagemaker":
            raise SageMakerError(
                "NoSuchResourceException", "The request failed because no such service exists."
            )
        variants = input_shape("CreateEndpointConfig").members["ProductionVariants"]
        names = variants.member.members["InstanceType"].enum
        begin = int(request.get("NextToken", 0))
        if not 0 <= begin < len(names):
            raise invalid("Invalid NextToken")
        size = min(PAGE, request.get("MaxResults", PAGE))
        quotas = [
            {
                "ServiceCode": "sagemaker",
                "QuotaName": f"{name} for endpoint usage",
                "Value": self.values.get(name, DEFAULT),
                "Adjustable": True,
                "GlobalQuota": False,
            }
            for name in names[begin : begin + size]
        ]
        more = {"NextToken": str(begin + size)} if begin + size < len(names) else {}
        return {"Quotas": quotas, **more}
