"""Containers as local processes: their environment, the model server and its model data."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from local.sagemaker.model_data import CHANNELS, set_writable

INVOCATION_SECONDS = 60.0  # SageMaker's limit for a container's response
STOP_SECONDS = 30.0  # and between SIGTERM and SIGKILL
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_OPT_ML = re.compile(r"(?:^|(?<=:))/opt/ml(?=/|:|$)")


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
        channels = self._directory / "opt" / "ml" / CHANNELS
        if channels.exists():
            set_writable(channels, writable=True)
        shutil.rmtree(self._directory, ignore_errors=True)


def start_container(
    command: list[str], directory: Path, environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start an image's command with `OPT_ML` in its directory, without our environment.

    Words `NAME=value` before the command are the image's ENV, which `environment` overrides. A process has no /opt/ml
    of its own: a variable with such a path, or with a list of paths, gets the path in `directory`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    image_environment, command = split_command(command)
    opt_ml = str(directory / "opt" / "ml")
    mapped = {
        name: _OPT_ML.sub(lambda _: opt_ml, value)
        for name, value in (image_environment | environment).items()
    }
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
                "OPT_ML": opt_ml,
                **mapped,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def split_command(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split the leading `NAME=value` words, the ENV of an image, off its command."""
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        if not (match := _ASSIGNMENT.fullmatch(word)):
            return environment, words[i:]
        environment[match[1]] = match[2]
    return environment, []


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
