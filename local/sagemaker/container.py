"""Containers as local processes: their environment, the model server and its model data."""

from __future__ import annotations

import http.client
import io
import shutil
import socket
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.errors import StartFailedError
from local.sagemaker.platform import split_s3_uri

INVOCATION_SECONDS = 60.0  # SageMaker's limit for a container's response
STOP_SECONDS = 30.0  # and between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Answer:
    """A container's HTTP response."""

    status: int
    body: bytes
    content_type: str | None
    custom_attributes: str | None


class ModelServer:
    """An instance that runs the image's command by the hosting contract."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str], log: Path) -> None:
        self._log = log
        self.port = free_port()
        address = {"SAGEMAKER_BIND_TO_PORT": str(self.port), "BIND_HOST": "127.0.0.1"}
        self._process = start_container(command, directory, environment | address, log)
        self._directory = directory

    @property
    def exited(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def healthy(self) -> bool:
        """Return whether GET /ping returns 200 within 2 s."""
        try:
            return self._request("GET", "/ping", None, {}, timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def invoke(self, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a request to /invocations, or raise OSError or HTTPException."""
        return self._request("POST", "/invocations", body, headers, timeout=INVOCATION_SECONDS)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> Answer:
        # One connection per request: the server may close a persistent one at any time.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {**headers, "Connection": "close"})
            response = connection.getresponse()
            return Answer(
                response.status,
                response.read(),
                response.getheader("Content-Type"),
                response.getheader("X-Amzn-SageMaker-Custom-Attributes"),
            )
        finally:
            connection.close()

    def log_tail(self, size: int = 600) -> str:
        """Return the last `size` bytes of the server's log as text."""
        try:
            return self._log.read_bytes()[-size:].decode(errors="replace").strip()
        except OSError:
            return ""

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send SIGTERM, SIGKILL after `seconds`, and delete the instance's directory."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def start_container(
    command: list[str], directory: Path, environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start an image's command with `OPT_ML` in its directory, without our environment."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": str(directory),
                "TMPDIR": str(directory),
                "LANG": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
                "OPT_ML": str(directory / "opt" / "ml"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch_model(s3: Any, url: str, directory: Path) -> None:
    """Unpack s3://…/model.tar.gz into `directory`.

    Raises:
        StartFailedError: it is missing, forbidden or malformed, or a member would be outside `directory`.
    """
    bucket, key = split_s3_uri(url)
    try:
        archive = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        raise StartFailedError(f"Failed to download model data from {url}: {error}") from error
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            tar.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise StartFailedError(f"Failed to extract model data archive from {url}: {error}") from error
