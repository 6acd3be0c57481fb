"""What the SageMaker double needs of the embedded AWS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


@dataclass(frozen=True)
class Platform:
    """The double's account and region, and its calls of other services.

    Args:
        emit: puts an event (detail type, detail, resources) of source `aws.sagemaker` on the default bus.
        assume: returns a role's temporary credentials as `AWS_…` variables; raises StartFailedError if the role is
            missing or does not trust sagemaker.amazonaws.com.
        manifest_type: returns the media type of an image's manifest, or None if the embedded ECR lacks the image.
        commands: the command that replaces an image, by the end of the image's repository name. Words `NAME=value`
            before it are the image's ENV.
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
        """Return the ARN of a resource, in which SageMaker puts the name in lower case."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{kind}/{name.lower()}"

    def s3(self, role_arn: str) -> Any:
        """Return an S3 client with the permissions of the role."""
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
        """Return a container's variables with the role's credentials, region and endpoint URL."""
        return {
            **self.assume(role_arn),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def command(self, image: str) -> list[str] | None:
        """Return the command of an image, by the longest matching end of its repository name."""
        repository = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
        suffixes = [suffix for suffix in self.commands if repository.endswith(suffix)]
        return self.commands[max(suffixes, key=len)] if suffixes else None


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/some/prefix/` into `bucket` and `some/prefix`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")
