"""Try the hook on the code of a live endpoint, on this machine (`make plan CHECK=1`)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy import ROOT
from deploy.hook import MAX_ARCHIVE
from deploy.watched_endpoint import WatchedEndpoint, container_of

IMAGE = ROOT / "events" / "stop-sign.png"
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class CheckOptions:
    """How `make check-endpoint` is called.

    ``python`` is the owner's interpreter, ``seconds`` limit the whole check of a model. ``tool`` runs the check.
    """

    image: Path = IMAGE
    python: str = ""
    content_type: str = ""
    seconds: float = 600
    tool: Path = ROOT / ".venv" / "bin" / "python"


def check_lines(endpoint: WatchedEndpoint, options: CheckOptions, session: boto3.Session) -> Iterator[str]:
    """Yield for each model of an endpoint what `make check-endpoint` prints for its archive.

    Runs the code of the archives on this machine.
    """
    for name, model in endpoint.models.items():
        container = container_of(model) or {}
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "model.tar.gz"
            try:
                download(container, archive, session.client("s3"))
            except (ClientError, BotoCoreError, OSError, ValueError) as error:
                yield f"Model {name}: not tried: {' '.join(str(error).split())}"
                continue
            yield f"Model {name}: runs {archive_uri(container)} on this machine."
            yield from (f"  {line}" for line in _run(archive, container.get("Environment", {}), options))


def archive_uri(container: Mapping[str, Any]) -> str:
    """Return the S3 URI of a container's archive.

    Raises:
        ValueError: the container has no compressed archive.
    """
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = str(source.get("S3Uri") or container.get("ModelDataUrl") or "")
    if not uri or source.get("S3DataType") == "S3Prefix" or source.get("CompressionType") == "None":
        raise ValueError(f"expected model data in a model.tar.gz, got {uri or 'none'}")
    return uri


def download(container: Mapping[str, Any], to: Path, s3: Any) -> None:
    """Write a container's archive to a file.

    Raises:
        ClientError: S3 refuses to read it.
        ValueError: the container has no archive, or one of more than MAX_ARCHIVE bytes.
        OSError: the disk is full.
    """
    uri = archive_uri(container)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    found = s3.get_object(Bucket=bucket, Key=key)
    if found["ContentLength"] > MAX_ARCHIVE:
        raise ValueError(f"{uri}: expected at most {MAX_ARCHIVE} bytes, got {found['ContentLength']}")
    with closing(found["Body"]) as body, to.open("wb") as file:
        while chunk := body.read(CHUNK):
            file.write(chunk)


def _run(archive: Path, environment: Mapping[str, str], options: CheckOptions) -> list[str]:
    """Return what the check prints, in a process of its own with a time limit."""
    command = [str(options.tool), str(ROOT / "model_code" / "check_endpoint.py"), str(archive)]
    command += [str(options.image), "--seconds", str(options.seconds)]
    command += ["--python", options.python] if options.python else []
    command += ["--content-type", options.content_type] if options.content_type else []
    core = {"PYTHONPATH": str(ROOT / "layers" / "core" / "python")}
    try:
        done = subprocess.run(
            command,
            env={**environment, **os.environ, **core},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=options.seconds,
        )
    except FileNotFoundError:
        return [f"Not tried: expected {options.tool}, got no such file. Run make check, which installs it."]
    except subprocess.TimeoutExpired:
        return [f"Not tried: expected an end within {options.seconds:g} s, got none. Set SECONDS=…"]
    return (done.stdout + done.stderr).replace(f"{archive}: ", "").splitlines()
