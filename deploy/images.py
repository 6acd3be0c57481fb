"""Build the two images in Docker, and push them to the account's registry (ECR).

SageMaker takes Docker's manifest v2 schema 2, and no OCI manifest or index. An engine that keeps its images in
containerd (the default of Docker 29) builds OCI manifests, with BuildKit and without; only buildx can be told not to.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.exceptions import ClientError

from deploy import DeployError

ROOT = Path(__file__).resolve().parents[1]
SERVING, MONITOR = "glassbox-serving", "glassbox-monitor"  # as `make images` calls them
LABEL = "glassbox.sources"  # and labels them, by their tag
DOCKERFILES = {SERVING: "model_code/Dockerfile", MONITOR: "monitor_container/Dockerfile"}
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
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


def build() -> None:
    """Build both images for SageMaker's x86_64 instances; raises DeployError where they would be OCI images."""
    for repository, dockerfile in DOCKERFILES.items():
        command = [*_builder(repository), "--file", dockerfile, "--label", f"{LABEL}={tag(repository)}", "."]
        classic = {"DOCKER_BUILDKIT": "0", "DOCKER_DEFAULT_PLATFORM": "linux/amd64"}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | classic, check=False)
        if done.returncode:
            raise DeployError(f"{repository}: the build failed, see above")


def _builder(repository: str) -> list[str]:
    """The build command up to its options, by what this Docker has."""
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)
    if buildx.returncode == 0:
        output = f"type=docker,name={repository},oci-mediatypes=false"
        options = ["--platform", "linux/amd64", "--provenance=false", "--sbom=false", "--output", output]
        return ["docker", "buildx", "build", *options]
    if "io.containerd.snapshotter" in _docker("info", "--format", "{{json .DriverStatus}}"):
        raise DeployError(
            "docker: expected the plugin buildx, got none. This engine keeps images in containerd, where builds "
            "without buildx make OCI manifests, which SageMaker refuses. Install docker-buildx."
        )
    return ["docker", "build", "--tag", repository]


def registry(session: boto3.Session) -> str:
    """The account's registry in its region."""
    account = session.client("sts").get_caller_identity()["Account"]
    partition = session.get_partition_for_region(session.region_name)
    resolver = botocore.session.get_session().get_component("endpoint_resolver")
    return f"{account}.dkr.ecr.{session.region_name}.{resolver.get_partition_dns_suffix(partition)}"


def pushed(repository: str, session: boto3.Session) -> str | None:
    """The URI of the present image in the account's registry; None where it is missing or not Docker's manifest."""
    kind = _manifest_type(session.client("ecr"), repository)
    return f"{registry(session)}/{repository}:{tag(repository)}" if kind == DOCKER_MANIFEST else None


def _manifest_type(ecr: Any, repository: str) -> str | None:
    """The media type of the present image's manifest in the registry; None where it was not pushed."""
    wanted = {"repositoryName": repository, "imageIds": [{"imageTag": tag(repository)}]}
    try:
        found = ecr.describe_images(**wanted)["imageDetails"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("RepositoryNotFoundException", "ImageNotFoundException"):
            return None
        raise
    return found[0]["imageManifestMediaType"] if found else None


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
        _remove_oci(ecr, repository)  # what an interrupted push left
        _docker("tag", repository, uri)
        _docker("push", "--quiet", uri)
        if kind := _remove_oci(ecr, repository):
            _convert(repository, uri, kind)
            if kind := _remove_oci(ecr, repository):
                raise DeployError(f"{uri}: expected {DOCKER_MANIFEST}, got {kind} also from skopeo")
        uris.append(uri)
    return uris


def _remove_oci(ecr: Any, repository: str) -> str | None:
    """Delete the present image from the registry where SageMaker would refuse its manifest; the manifest's type."""
    kind = _manifest_type(ecr, repository)
    if kind in (None, DOCKER_MANIFEST):
        return None
    ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": tag(repository)}])
    return kind


def _convert(repository: str, uri: str, kind: str) -> None:
    """Push the image again, by skopeo, which writes its manifest as Docker's; raises DeployError without skopeo."""
    if not shutil.which("skopeo"):
        raise DeployError(
            f"{uri}: expected a manifest of type {DOCKER_MANIFEST}, got {kind}, which SageMaker refuses. "
            "Install Docker's plugin buildx and run make images again, or install skopeo for make push to convert it."
        )
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/image.tar"
        _docker("save", "--output", archive, repository)
        source, options = f"docker-archive:{archive}", ["--quiet", "--format", "v2s2"]
        done = subprocess.run(
            ["skopeo", "copy", *options, source, f"docker://{uri}"],
            text=True,
            capture_output=True,
            check=False,
        )
    if done.returncode:
        raise DeployError(f"skopeo copy failed: {done.stderr.strip()}")


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


def main() -> None:
    """python -m deploy.images: build both images, as `make images` does."""
    argparse.ArgumentParser(prog="python -m deploy.images", description=main.__doc__).parse_args()
    try:
        build()
    except DeployError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
