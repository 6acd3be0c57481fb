"""Build the two images in Docker, and push them to the account's registry (ECR).

SageMaker accepts Docker's manifest v2 schema 2 and refuses OCI manifests and indexes. A Docker engine with the
containerd image store (the default of Docker 29) builds OCI manifests; only buildx has an option against it.
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
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import ROOT, DeployError
from deploy.account import registry

SERVING, MONITOR = "glassbox-serving", "glassbox-monitor"
LABEL = "glassbox.sources"  # its value is the image's tag
DOCKERFILES = {SERVING: "model_code/Dockerfile", MONITOR: "monitor_container/Dockerfile"}
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SOURCES = {
    SERVING: ("model_code/Dockerfile", "model_code/serve.py", "requirements.txt", "requirements-torch.txt"),
    MONITOR: ("monitor_container", "layers/core/python/glassbox"),
}


def tag(repository: str) -> str:
    """Return a digest of the image's sources, so that the image of a config never changes."""
    digest = hashlib.sha256()
    for source in SOURCES[repository]:
        path = ROOT / source
        for file in sorted(path.rglob("*") if path.is_dir() else [path]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def build() -> None:
    """Build both images for x86_64, or raise DeployError if Docker can build OCI images only."""
    for repository, dockerfile in DOCKERFILES.items():
        command = [*_builder(repository), "--file", dockerfile, "--label", f"{LABEL}={tag(repository)}", "."]
        classic = {"DOCKER_BUILDKIT": "0", "DOCKER_DEFAULT_PLATFORM": "linux/amd64"}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | classic, check=False)
        if done.returncode:
            raise DeployError(f"{repository}: docker build failed, see its output above")


def _builder(repository: str) -> list[str]:
    """Return the build command for this Docker installation, without its last options."""
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)
    if buildx.returncode == 0:
        output = f"type=docker,name={repository},oci-mediatypes=false"
        options = ["--platform", "linux/amd64", "--provenance=false", "--sbom=false", "--output", output]
        return ["docker", "buildx", "build", *options]
    if "io.containerd.snapshotter" in _docker("info", "--format", "{{json .DriverStatus}}"):
        raise DeployError(
            "docker: expected the plugin buildx, got none. This engine has the containerd image store, where builds "
            "without buildx write OCI manifests, which SageMaker refuses. Install docker-buildx."
        )
    return ["docker", "build", "--tag", repository]


def pushed(repository: str, session: boto3.Session) -> str | None:
    """Return the current image's URI in the registry, or None if it is missing or OCI."""
    kind = _manifest_type(session.client("ecr"), repository)
    return f"{registry(session)}/{repository}:{tag(repository)}" if kind == DOCKER_MANIFEST else None


def _manifest_type(ecr: Any, repository: str) -> str | None:
    """Return the media type of the current image's manifest in the registry, or None if it is missing."""
    wanted = {"repositoryName": repository, "imageIds": [{"imageTag": tag(repository)}]}
    try:
        found = ecr.describe_images(**wanted)["imageDetails"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("RepositoryNotFoundException", "ImageNotFoundException"):
            return None
        raise
    return found[0]["imageManifestMediaType"] if found else None


def push(session: boto3.Session) -> list[str]:
    """Push the images of `make images`, create their repositories, and return the new URIs."""
    ecr, host = session.client("ecr"), registry(session)
    uris: list[str] = []
    for repository in (SERVING, MONITOR):
        if pushed(repository, session):
            continue
        label = f'{{{{index .Config.Labels "{LABEL}"}}}}'
        built = _docker("image", "inspect", "--format", label, repository).strip()
        if built != tag(repository):
            raise DeployError(
                f"Image {repository}: expected a build of the current sources, got {built or 'no label'}. "
                "Run make images."
            )
        if not uris:
            _log_in(ecr, host)
        _create_repository(ecr, repository)
        uri = f"{host}/{repository}:{tag(repository)}"
        _remove_oci(ecr, repository)  # an interrupted push may have left one
        _docker("tag", repository, uri)
        _docker("push", "--quiet", uri)
        if kind := _remove_oci(ecr, repository):
            _convert(repository, uri, kind)
            if kind := _remove_oci(ecr, repository):
                raise DeployError(f"{uri}: expected {DOCKER_MANIFEST}, got {kind} after skopeo's conversion")
        uris.append(uri)
    return uris


def _remove_oci(ecr: Any, repository: str) -> str | None:
    """Delete the current image from the registry if it is an OCI image, and return its manifest's type."""
    kind = _manifest_type(ecr, repository)
    if kind in (None, DOCKER_MANIFEST):
        return None
    ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageTag": tag(repository)}])
    return kind


def _convert(repository: str, uri: str, kind: str) -> None:
    """Push the image by skopeo with Docker's manifest. Raises DeployError without skopeo."""
    if not shutil.which("skopeo"):
        raise DeployError(
            f"{uri}: expected a manifest of type {DOCKER_MANIFEST}, got {kind}, which SageMaker refuses. "
            "Install Docker's plugin buildx and run make images again, or install skopeo and run make push again."
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
    _docker("login", "--username", user, "--password-stdin", host, stdin=password)


def _create_repository(ecr: Any, name: str) -> None:
    try:
        ecr.create_repository(
            repositoryName=name,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "RepositoryAlreadyExistsException":
            raise


def _docker(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["docker", *arguments], input=stdin, text=True, capture_output=True, check=False)
    if done.returncode:
        raise DeployError(f"docker {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Build both images (`make images`)."""
    argparse.ArgumentParser(prog="python -m deploy.images", description=main.__doc__).parse_args()
    try:
        build()
    except DeployError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
