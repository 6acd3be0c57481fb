"""Whether the account's instance quotas leave room for a swap, which runs the fleet twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import boto3
from botocore.exceptions import ClientError

from deploy.watched import instances_of, is_missing, is_refused


def swap_lines(fleet: Mapping[str, int], session: boto3.Session, *, new: bool = False) -> list[str]:
    """Say for each instance type whether a swap of this fleet fits the quota.

    Args:
        fleet: number of instances by type.
        new: the fleet does not run yet, and needs its own instances besides.
    """
    try:
        quotas = _endpoint_quotas(session)
        used = _in_use(session)
    except ClientError as error:
        if not is_refused(error):
            raise
        needed = ", ".join(f"{count} more {instance}" for instance, count in fleet.items())
        return [
            f"Note: a swap starts {needed}. Whether the quotas allow it could not be read "
            f"({error.operation_name}: {error.response['Error']['Code']})."
        ]
    return [
        _line(
            instance,
            count,
            (2 if new else 1) * count,
            quotas.get(f"{instance} for endpoint usage"),
            used[instance],
        )
        for instance, count in fleet.items()
    ]


def _line(instance: str, count: int, needed: int, quota: float | None, used: int) -> str:
    begin = f"A swap starts {count} more {instance}"
    if quota is None:
        return f"Note: {begin[0].lower()}{begin[1:]}, and Service Quotas names no quota for it."
    facts = f"{begin}: {used} of {quota:g} are in use"
    if used + needed <= quota:
        return f"{facts}, it fits."
    return (
        f"Note: {facts}, IT DOES NOT FIT: the swap would fail. Request a higher quota '{instance} for endpoint usage' "
        "in Service Quotas."
    )


def _endpoint_quotas(session: boto3.Session) -> dict[str, float]:
    pages = (
        session.client("service-quotas")
        .get_paginator("list_service_quotas")
        .paginate(ServiceCode="sagemaker")
    )
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
                if is_missing(error):  # an endpoint outlives its config, whose types are then unknown
                    continue
                raise
            used.update(instances_of(endpoint, config))
    return used
