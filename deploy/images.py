"""The two images in the account's registry (ECR)."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError

ROOT = Path(__file__).resolve().parents[1]
SERVING, MONITOR = "glassbox-serving", "glassbox-monitor"  # as `make images` calls them
LABEL = "glassbox.sources"  # and labels them, by their tag
SOURCES = {
    SERVING: ("model_code/Dockerfile", "model_code/serve.py", "requirements.txt", "requirements-torch.txt"),
    MONITOR: ("monitor_container", "layers/core/python/glassbox"),
}


def tag(repository: str) -> str:
    """A tag that changes when what the image is made of does: a config never serves another image than it did."""
    digest = hashlib.sha256()
    for source in SOURCES[repository]:
        path = ROOT / source
        for file in sorted(path.rglob("*") if path.is_dir() else [path]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def registry(session: boto3.Session) -> str:
    """The account's registry in its region."""
    account = session.client("sts").get_caller_identity()["Account"]
    return f"{account}.dkr.ecr.{session.region_name}.amazonaws.com"


def pushed(repository: str, session: boto3.Session) -> str | None:
    """The URI of the present image in the account's registry; None where it was not pushed."""
    wanted = {"repositoryName": repository, "imageIds": [{"imageTag": tag(repository)}]}
    try:
        found = session.client("ecr").describe_images(**wanted)["imageDetails"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("RepositoryNotFoundException", "ImageNotFoundException"):
            return None
        raise
    return f"{registry(session)}/{repository}:{tag(repository)}" if found else None


def push(session: boto3.Session) -> list[str]:
    """Push what `make images` built to the account's registry, with its repositories; the URIs of what is new there."""
    ecr, host = session.client("ecr"), registry(session)
    uris = []
    for repository in (SERVING, MONITOR):
        if pushed(repository, session):
            continue  # a tag is never written twice
        label = f'{{{{index .Config.Labels "{LABEL}"}}}}'
        if _docker("image", "inspect", "--format", label, repository).strip() != tag(repository):
            raise DeployError(
                f"The image {repository} is of other sources than those that are here: make images"
            )
        if not uris:
            _log_in(ecr, host)
        _make_repository(ecr, repository)
        uri = f"{host}/{repository}:{tag(repository)}"
        _docker("tag", repository, uri)
        _docker("push", "--quiet", uri)
        _check_manifest(ecr, repository, uri)
        uris.append(uri)
    return uris


def _check_manifest(ecr: Any, repository: str, uri: str) -> None:
    tagged = [{"imageTag": tag(repository)}]
    found = ecr.batch_get_image(repositoryName=repository, imageIds=tagged)["images"]
    kind = found[0].get("imageManifestMediaType", "") if found else "nothing"
    if kind != "application/vnd.docker.distribution.manifest.v2+json":
        ecr.batch_delete_image(repositoryName=repository, imageIds=tagged)
        raise DeployError(
            f"{uri} arrived as {kind}, and SageMaker takes Docker's manifests only: "
            "DOCKER_BUILDKIT=0 make images builds such"
        )


def _log_in(ecr: Any, host: str) -> None:
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    _docker("login", "--username", user, "--password-stdin", host, given=password)


def _make_repository(ecr: Any, name: str) -> None:
    try:
        ecr.create_repository(
            repositoryName=name,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "RepositoryAlreadyExistsException":
            raise


def _docker(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(["docker", *arguments], input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        raise DeployError(f"docker {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    print(tag(sys.argv[1]))
