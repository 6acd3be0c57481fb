"""Names that follow from the AWS account and region."""

from __future__ import annotations

import boto3
import botocore.session


def account_id(session: boto3.Session) -> str:
    """Return the ID of the account that the credentials belong to."""
    return str(session.client("sts").get_caller_identity()["Account"])


def registry(session: boto3.Session) -> str:
    """Return the host of the account's ECR registry."""
    partition = session.get_partition_for_region(session.region_name)
    resolver = botocore.session.get_session().get_component("endpoint_resolver")
    suffix = resolver.get_partition_dns_suffix(partition)
    return f"{account_id(session)}.dkr.ecr.{session.region_name}.{suffix}"


def models_bucket(session: boto3.Session) -> str:
    """Return the name of the account's default SageMaker bucket, as the SageMaker SDK names it."""
    return f"sagemaker-{session.region_name}-{account_id(session)}"
