"""What the double needs of the AWS around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


@dataclass(frozen=True)
class Platform:
    """The account and region the double lives in, and its ways out.

    `emit(detail_type, detail, resources)` puts an event of source `aws.sagemaker` on the default bus.
    `assume(role_arn)` gives the role's temporary credentials as `AWS_…` variables; raises StartFailedError when
    the role is missing or does not trust sagemaker.amazonaws.com.
    `manifest_type(image)` is the media type of an image's manifest, None where the embedded ECR does not hold it.
    `commands` maps the end of an image's repository name to the command that stands for the image.
    """

    account: str
    region: str
    endpoint_url: str
    directory: Path
    emit: Callable[[str, dict[str, Any], list[str]], None]
    assume: Callable[[str], dict[str, str]]
    manifest_type: Callable[[str], str | None]
    commands: dict[str, list[str]] = field(default_factory=dict)

    def arn(self, kind: str, name: str) -> str:
        """SageMaker's ARNs carry the name in lower case."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{kind}/{name.lower()}"

    def s3(self, role_arn: str) -> Any:
        """An S3 client with the rights of the role."""
        credentials = self.assume(role_arn)
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=credentials["AWS_SESSION_TOKEN"],
            config=Config(proxies={}, retries={"total_max_attempts": 3}),
        )

    def environment(self, role_arn: str) -> dict[str, str]:
        """What a container sees of AWS: the role's credentials, the region, the endpoint."""
        return {
            **self.assume(role_arn),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def command(self, image: str) -> list[str] | None:
        """The local command of an image, by the end of its repository name; the longest match wins."""
        repository = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
        suffixes = [suffix for suffix in self.commands if repository.endswith(suffix)]
        return self.commands[max(suffixes, key=len)] if suffixes else None


def split_s3_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/prefix/` -> (`bucket`, `some/prefix`)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")
