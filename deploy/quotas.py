"""Compare the account's instance quotas with a swap, which runs the endpoint's fleet twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import boto3
from botocore.exceptions import ClientError

from deploy.watched_endpoint import instances_of, is_missing, is_refused


def quota_lines(fleet: Mapping[str, int], session: boto3.Session, *, new: bool = False) -> list[str]:
    """Describe for each instance type whether its quota allows a swap of this fleet.

    Args:
        fleet: number of instances by type.
        new: the fleet does not run yet, so its own instances count too.
    """
    try:
        quotas = _endpoint_quotas(session)
        used = _in_use(session)
    except ClientError as error:
        if not is_refused(error):
            raise
        needed = ", ".join(f"{count} more {instance}" for instance, count in fleet.items())
        return [
            f"Note: a swap starts {needed}. The quotas were not checked: {error.operation_name} failed with "
            f"{error.response['Error']['Code']}."
        ]
    return [
        _line(instance, count, 2 * count if new else count, quotas.get(_quota_name(instance)), used[instance])
        for instance, count in fleet.items()
    ]


def _quota_name(instance: str) -> str:
    return f"{instance} for endpoint usage"


def _line(instance: str, count: int, needed: int, quota: float | None, used: int) -> str:
    if quota is None:
        return f"Note: a swap starts {count} more {instance}. Service Quotas lists no quota for it."
    usage = f"{count} more {instance}, {used} of {quota:g} are in use"
    if used + needed <= quota:
        return f"A swap starts {usage}: the quota is sufficient."
    return (
        f"Note: a swap starts {usage}: QUOTA EXCEEDED, the swap would fail. Request a higher quota "
        f"'{_quota_name(instance)}' in Service Quotas."
    )


def _endpoint_quotas(session: boto3.Session) -> dict[str, float]:
    paginator = session.client("service-quotas").get_paginator("list_service_quotas")
    pages = paginator.paginate(ServiceCode="sagemaker")
    return {quota["QuotaName"]: quota["Value"] for page in pages for quota in page["Quotas"]}


def _in_use(session: boto3.Session) -> Counter[str]:
    """Count the instances of all endpoints of the account and region, by type."""
    sagemaker, used = session.client("sagemaker"), Counter[str]()
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for listed in page["Endpoints"]:
            try:
                endpoint = sagemaker.describe_endpoint(EndpointName=listed["EndpointName"])
                config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
            except ClientError as error:
                if is_missing(error):  # a deleted config: the endpoint's instance types are unknown
                    continue
                raise
            used.update(instances_of(endpoint, config))
    return used
