"""Model data in S3: how SageMaker checks them at CreateModel and puts them into a container."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.errors import StartFailedError
from local.sagemaker.platform import split_s3_uri

CHANNELS = "additional-model-data-sources"  # the folder of the channels below /opt/ml
NAME_BYTES = 255  # of a file or folder below a prefix


def sources(container: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the S3DataSources of a container by their folder below /opt/ml."""
    found: dict[str, Mapping[str, Any]] = {}
    if url := container.get("ModelDataUrl"):
        found["model"] = {"S3Uri": url, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    elif source := container.get("ModelDataSource", {}).get("S3DataSource"):
        found["model"] = source
    for channel in container.get("AdditionalModelDataSources", ()):
        found[f"{CHANNELS}/{channel['ChannelName']}"] = channel["S3DataSource"]
    return found


def source_problem(container: Mapping[str, Any]) -> str:
    """Return why SageMaker refuses the form of S3DataSources, or an empty string."""
    channels = [channel["ChannelName"] for channel in container.get("AdditionalModelDataSources", ())]
    for name in channels:
        if channels.count(name) > 1:
            return f"Channel name {name} in AdditionalModelDataSources is not unique."
        if name in (".", ".."):
            return f"Channel name {name} in AdditionalModelDataSources is not a valid folder name."
    for source in sources(container).values():
        if source["S3DataType"] == "S3Prefix":
            if source["CompressionType"] != "None":
                return (
                    f"CompressionType {source['CompressionType']} is not supported with S3DataType S3Prefix."
                )
            if not source["S3Uri"].endswith("/"):
                return f"S3Uri {source['S3Uri']} must end with a forward slash for S3DataType S3Prefix."
    return ""


def probe(s3: Any, source: Mapping[str, Any]) -> bool:
    """Return whether the object exists, or any object below the prefix.

    Raises:
        ClientError: the role may not list the prefix or read the object.
    """
    bucket, key = split_s3_uri(source["S3Uri"])
    if source["S3DataType"] == "S3Prefix":
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("Contents", [])
        if not listed:
            return False
        key = listed[0]["Key"]
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return False
        raise
    return True


def fetch(s3: Any, source: Mapping[str, Any], directory: Path) -> None:
    """Write the data of an S3DataSource into `directory`, which is created.

    Raises:
        StartFailedError: an object is missing, forbidden or malformed, or a file would be outside `directory`.
    """
    directory.mkdir(parents=True)
    uri = source["S3Uri"]
    bucket, key = split_s3_uri(uri)
    try:
        if source["S3DataType"] == "S3Prefix":
            _fetch_prefix(s3, bucket, f"{key}/", directory)
            return
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        raise StartFailedError(f"Failed to download model data from {uri}: {error}") from error
    if source["CompressionType"] == "None":
        (directory / key.rpartition("/")[2]).write_bytes(content)
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            tar.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise StartFailedError(f"Failed to extract model data archive from {uri}: {error}") from error


def _fetch_prefix(s3: Any, bucket: str, prefix: str, directory: Path) -> None:
    keys = [
        item["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for item in page.get("Contents", ())
    ]
    if not keys:
        raise StartFailedError(f"Failed to download model data from s3://{bucket}/{prefix}: no object.")
    for key in keys:
        parts = key.removeprefix(prefix).split("/")
        if any(part.strip() in ("", ".", "..") or len(part.encode()) > NAME_BYTES for part in parts):
            raise StartFailedError(f"Failed to download model data: s3://{bucket}/{key} is not a file name.")
        target = directory.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except OSError as error:
            raise StartFailedError(
                f"Failed to download model data: s3://{bucket}/{key} clashes with another object: {error}"
            ) from error


def set_writable(directory: Path, *, writable: bool) -> None:
    """Allow or forbid writes by the owner below `directory`."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)
