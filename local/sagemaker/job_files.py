"""The files of a processing job: inputs, configuration, outputs and the exit message.

Contract: "Build your own processing container" in the SageMaker developer guide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from local.sagemaker.errors import StartFailedError
from local.sagemaker.platform import split_s3_uri

EXIT_MESSAGE_BYTES = 1024
OPT_ML = "/opt/ml"


def download_inputs(s3: Any, job: dict[str, Any], root: Path) -> None:
    """Download the job's inputs below `root`, or raise StartFailedError."""
    for item in job.get("ProcessingInputs", []):
        source = item["S3Input"]
        bucket, prefix = split_s3_uri(source["S3Uri"])
        target = _local(root, source["LocalPath"])
        try:
            if source["S3DataType"] == "ManifestFile":
                bucket, prefix, keys = _manifest(source["S3Uri"], s3)
            else:
                pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
                keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
            if not keys:
                raise StartFailedError(
                    "ClientError: Data download failed:No S3 objects found under S3 URL "
                    f'"{source["S3Uri"]}" given in input data source. Please ensure that the bucket exists in '
                    f"the selected region ({s3.meta.region_name}), that objects exist under that S3 prefix, and "
                    f'that the role "{job["RoleArn"]}" has "s3:ListBucket" permissions on bucket "{bucket}".'
                )
            free = job["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] * 1e9
            for key in keys:
                path = target / (key[len(prefix) :].lstrip("/") or Path(key).name)
                if key.endswith("/") or not path.resolve().is_relative_to(target.resolve()):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, key, str(path))
                free -= path.stat().st_size
                if free < 0:
                    raise StartFailedError(
                        "ClientError: Data download failed:No space left on device: "
                        f"{source['S3Uri']} does not fit the job's volume"
                    )
        except ClientError as error:
            raise StartFailedError(f"ClientError: Data download failed:{error}") from error


def upload_outputs(s3: Any, job: dict[str, Any], root: Path) -> None:
    """Upload the files of the job's outputs, or raise StartFailedError."""
    for output in job.get("ProcessingOutputConfig", {}).get("Outputs", []):
        target = output["S3Output"]
        bucket, prefix = split_s3_uri(target["S3Uri"])
        source = _local(root, target["LocalPath"])
        for path in sorted(source.rglob("*")):
            if path.is_symlink() or not path.is_file():  # SageMaker does not upload symlinks
                continue
            key = f"{prefix}/{path.relative_to(source).as_posix()}".lstrip("/")
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
            except ClientError as error:
                raise StartFailedError(
                    f"ClientError: Failed to upload output to s3://{bucket}/{key}: {error}"
                ) from error


def _manifest(uri: str, s3: Any) -> tuple[str, str, list[str]]:
    """Return bucket, prefix and keys of a manifest: `[{"prefix": "s3://bucket/a/"}, "b/c", "b/d"]`."""
    bucket, key = split_s3_uri(uri)
    try:
        first, *rest = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        prefix = first["prefix"]
        if not prefix.startswith("s3://") or not all(isinstance(suffix, str) for suffix in rest):
            raise ValueError(prefix)
    except (ValueError, TypeError, KeyError) as error:
        raise StartFailedError(
            f"ClientError: Data download failed:Manifest {uri} is not in the expected format"
        ) from error
    bucket, _, prefix = prefix.removeprefix("s3://").partition("/")
    return bucket, prefix, [prefix + suffix for suffix in rest]


def _local(root: Path, path: str) -> Path:
    """Create /opt/ml/processing/x below the job's root; raises StartFailedError for any other path."""
    place = root / Path(path).relative_to(OPT_ML) if Path(path).is_relative_to(OPT_ML) else None
    if place is None or ".." in place.parts or not Path(path).is_relative_to(f"{OPT_ML}/processing"):
        raise StartFailedError(f"ClientError: LocalPath {path} must begin with {OPT_ML}/processing/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def write_config(job: dict[str, Any], root: Path) -> None:
    """Write the container's configuration files and create the message's directory."""
    config = root / "config"
    config.mkdir(parents=True, exist_ok=True)
    (root / "output").mkdir(exist_ok=True)
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"]}
    (config / "resourceconfig.json").write_text(json.dumps(hosts))
    members = (
        "ProcessingJobArn",
        "ProcessingJobName",
        "AppSpecification",
        "Environment",
        "ProcessingInputs",
        "ProcessingOutputConfig",
        "ProcessingResources",
        "RoleArn",
        "StoppingCondition",
    )
    (config / "processingjobconfig.json").write_text(json.dumps({k: job[k] for k in members if k in job}))


def read_exit_message(path: Path) -> tuple[str | None, str | None]:
    """Return the message's first KB, or None and the reason why it is invalid."""
    try:
        raw = path.read_bytes()[:EXIT_MESSAGE_BYTES]
    except OSError:
        return None, None
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        # The limit may cut a character: that is not an error of the container.
        if error.start >= EXIT_MESSAGE_BYTES - 3:
            return raw[: error.start].decode(), None
        return None, "ClientError: The exit message is not UTF-8."
