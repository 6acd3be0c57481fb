"""Hook an endpoint that does not contain our code: a folder mounted into its container, first on PYTHONPATH."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import urllib3
from botocore.exceptions import BotoCoreError, ClientError

import package
from deploy.images import SERVING
from deploy.watched_endpoint import WatchedEndpoint, container_of
from repack import PROGRAM

CHANNEL = "glassbox"
MOUNT = f"/opt/ml/additional-model-data-sources/{CHANNEL}"
PREFIX = "hook/"  # in the stack's bucket; template.yaml lets the endpoint's roles read it
MAX_CHANNELS = 5  # SageMaker's limit
PACKED = "code/recorder.py"  # the file by which an archive is recognised as one that contains the hook
REPACKED = f"code/{PROGRAM}"
MAX_ARCHIVE = 2**31  # bytes that are read of an archive, and 8 times as many decompressed
MAX_IMAGE_CONFIG = 2**20  # bytes
TIMEOUT_SECONDS = 10.0
_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.[a-z0-9-]+\.[a-z.]+/(?P<repository>[^:@]+)(:(?P<tag>[^:@]+))?(@(?P<digest>.+))?"
)


@dataclass(frozen=True)
class Hooks:
    """The models whose twin does not load the hook by itself.

    By the model's name, ``paths`` has the PYTHONPATH of a twin that gets the hook mounted, and ``programs`` the
    variables of one whose archive is repacked. ``notes`` describe what was not read.
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    programs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_hooks(
    endpoint: WatchedEndpoint, *, replaced: bool, model_data: str = "", session: boto3.Session
) -> Hooks:
    """Return which models of an endpoint do not load the hook by themselves.

    Args:
        replaced: IMAGE or MODEL_DATA replace a part of the twin, which then contains the hook.
        model_data: MODEL_DATA, or empty.
    """
    if model_data:
        return _repacked(endpoint, model_data, session)
    paths, notes = dict[str, str](), list[str]()
    for name, model in {} if replaced else endpoint.models.items():
        container = container_of(model) or {}
        image = container.get("Image", "")
        if not image or _repository(image) == SERVING:
            continue
        try:
            packed = contains_hook(container, session.client("s3"))
        except (ClientError, BotoCoreError, tarfile.TarError, OSError, ValueError) as error:
            notes.append(
                f"model {name}: expected readable model data, got: {error}. The twin runs the endpoint's own image and "
                "code, which must contain the hook (docs/your-model.md)."
            )
            continue
        if packed:
            continue
        owner = container.get("Environment", {}).get("PYTHONPATH")
        if owner is None:
            try:
                owner = image_pythonpath(image, session.client("ecr"))
            except (ClientError, BotoCoreError, urllib3.exceptions.HTTPError, ValueError) as error:
                owner = ""
                notes.append(
                    f"image {image}: expected a readable config in ECR, got: {error}. The twin replaces a PYTHONPATH "
                    "of the image, if it has one. Allow ecr:BatchGetImage and ecr:GetDownloadUrlForLayer, or set "
                    f"PYTHONPATH in the environment of model {name}, or repack the archive (make repack)."
                )
        paths[name] = f"{MOUNT}:{owner}" if owner else MOUNT
    return Hooks(paths, tuple(notes))


def _repacked(endpoint: WatchedEndpoint, model_data: str, session: boto3.Session) -> Hooks:
    """Return how the twins load the hook from an archive that replaces the endpoint's own."""
    try:
        repacked = contains_hook({"ModelDataUrl": model_data}, session.client("s3"), REPACKED)
    except (ClientError, BotoCoreError, tarfile.TarError, OSError, ValueError) as error:
        note = f"MODEL_DATA: expected a readable archive, got: {error}. If repack wrote it, the hook will not load."
        return Hooks(notes=(note,))
    if not repacked:
        return Hooks()
    programs = {}
    for name, model in endpoint.models.items():
        owner = (container_of(model) or {}).get("Environment", {}).get("SAGEMAKER_PROGRAM", "inference.py")
        programs[name] = {"SAGEMAKER_PROGRAM": PROGRAM, "GLASSBOX_PROGRAM": owner}
    return Hooks(programs=programs)


def _repository(image: str) -> str:
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0]


def contains_hook(container: Mapping[str, Any], s3: Any, packed: str = PACKED) -> bool:
    """Return whether a container's model data contain the hook, by one file of it.

    A container without model data does not contain it.

    Raises:
        ClientError: S3 refuses to read them.
        tarfile.TarError: they are not a tar archive.
        ValueError: they are too large.
    """
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = source.get("S3Uri") or container.get("ModelDataUrl")
    if not uri:
        return False
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if source.get("S3DataType") == "S3Prefix":
        wanted = f"{key.rstrip('/')}/{packed}"
        return any(
            item["Key"] == wanted
            for item in s3.list_objects_v2(Bucket=bucket, Prefix=wanted).get("Contents", ())
        )
    if source.get("CompressionType") == "None":
        return False
    found = s3.get_object(Bucket=bucket, Key=key)
    if found["ContentLength"] > MAX_ARCHIVE:
        raise ValueError(f"{uri}: expected at most {MAX_ARCHIVE} bytes, got {found['ContentLength']}")
    with closing(found["Body"]) as body, tarfile.open(fileobj=body, mode="r|gz") as archive:
        for member in archive:
            if member.name.removeprefix("./") == packed:
                return True
            if member.offset_data + member.size > 8 * MAX_ARCHIVE:
                raise ValueError(f"{uri}: expected at most {8 * MAX_ARCHIVE} decompressed bytes")
    return False


def image_pythonpath(image: str, ecr: Any) -> str:
    """Return the PYTHONPATH that an image itself sets, or an empty string.

    Raises:
        ClientError: ECR refuses to read the image.
        urllib3.exceptions.HTTPError: the download of its config failed.
        ValueError: the image is not in ECR, or its config is malformed or too large.
    """
    named = _IMAGE.fullmatch(image)
    if named is None:
        raise ValueError(f"expected an image in ECR, got {image}")
    wanted = {"imageDigest": named["digest"]} if named["digest"] else {"imageTag": named["tag"] or "latest"}
    where = {"registryId": named["account"], "repositoryName": named["repository"]}
    images = ecr.batch_get_image(**where, imageIds=[wanted])["images"]
    if not images:
        raise ValueError("no such image")
    try:
        digest = json.loads(images[0]["imageManifest"])["config"]["digest"]
        url = ecr.get_download_url_for_layer(**where, layerDigest=digest)["downloadUrl"]
        variables = json.loads(_download(url))["config"].get("Env") or []
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a manifest and a config of Docker's schema 2, got {error!r}") from error
    return next((v.partition("=")[2] for v in variables if v.startswith("PYTHONPATH=")), "")


def _download(url: str) -> bytes:
    response = urllib3.PoolManager().request(
        "GET", url, timeout=TIMEOUT_SECONDS, retries=2, preload_content=False
    )
    try:
        content = response.read(MAX_IMAGE_CONFIG + 1)
    finally:
        response.release_conn()
    if response.status != 200 or len(content) > MAX_IMAGE_CONFIG:
        raise ValueError(
            f"expected status 200 and at most {MAX_IMAGE_CONFIG} bytes, got {response.status} and {len(content)} bytes"
        )
    return content


def channel_problem(container: Mapping[str, Any]) -> str:
    """Return why a container cannot get the hook as a further channel, or an empty string."""
    names = [channel["ChannelName"] for channel in container.get("AdditionalModelDataSources", ())]
    if CHANNEL in names:
        return f"expected no channel {CHANNEL} in AdditionalModelDataSources, got one. Rename it."
    if len(names) >= MAX_CHANNELS:
        return f"expected at most {MAX_CHANNELS - 1} AdditionalModelDataSources beside the hook's, got {len(names)}"
    return ""


def with_hook(container: Mapping[str, Any], uri: str, path: str) -> dict[str, Any]:
    """Return the container with the hook's channel and PYTHONPATH."""
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    channels = [
        *container.get("AdditionalModelDataSources", ()),
        {"ChannelName": CHANNEL, "S3DataSource": source},
    ]
    environment = {**container.get("Environment", {}), "PYTHONPATH": path}
    return {**container, "AdditionalModelDataSources": channels, "Environment": environment}


def upload_hook(bucket: str, session: boto3.Session) -> str:
    """Upload the hook's files and return their prefix as an S3 URI.

    The prefix contains a digest of the files, so that the files of a twin never change.

    Raises:
        ClientError: S3 refuses a file.
    """
    s3, files = session.client("s3"), _hook_files()
    prefix = f"{PREFIX}{_digest(files)}/"
    for name, content in files.items():
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=content)
    return f"s3://{bucket}/{prefix}"


def hook_digest() -> str:
    """Return the digest of the hook's files, which names their prefix."""
    return _digest(_hook_files())


def _hook_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        package.write_hook(Path(folder))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def delete_hooks(bucket: str, session: boto3.Session, *, keep: str = "") -> None:
    """Delete the uploaded hooks of a stack, except those of the prefix ``keep``, an S3 URI."""
    s3 = session.client("s3")
    kept = keep.removeprefix(f"s3://{bucket}/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX)
    for key in [item["Key"] for page in pages for item in page.get("Contents", ())]:
        if not (kept and key.startswith(kept)):
            s3.delete_object(Bucket=bucket, Key=key)
