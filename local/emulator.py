"""Starts the embedded AWS as a child process and gives boto3 clients of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config

ACCOUNT = "123456789012"
REGION = "eu-west-1"
START_SECONDS = 60.0
STOP_SECONDS = 15.0

ROOT = Path(__file__).resolve().parent.parent

# What stands for the container images, by the end of the repository's name.
IMAGES = {
    "serving": [sys.executable, str(ROOT / "model_code" / "serve.py")],
    "monitor": [sys.executable, str(ROOT / "monitor_container" / "evaluation.py")],
}


class EmulatorError(RuntimeError):
    """The embedded AWS did not start, or died."""


class LocalSession(boto3.Session):
    """A boto3 session whose clients talk to the embedded AWS, whatever proxies and profiles the shell has."""

    def __init__(self, endpoint_url: str, account: str = ACCOUNT, region: str = REGION) -> None:
        super().__init__(aws_access_key_id=account, aws_secret_access_key="test", region_name=region)  # noqa: S106
        self.endpoint_url = endpoint_url

    def client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
        """As boto3's, on the embedded AWS."""
        kwargs["endpoint_url"] = kwargs.get("endpoint_url") or self.endpoint_url
        direct = Config(proxies={})
        kwargs["config"] = direct.merge(kwargs["config"]) if kwargs.get("config") else direct
        return super().client(service_name, *args, **kwargs)


class RunningAws:
    """An embedded AWS that somebody started, by its address."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.session = LocalSession(endpoint_url)

    def client(self, service: str) -> Any:
        """A boto3 client with the account's root rights."""
        return self.session.client(service)

    @property
    def environment(self) -> dict[str, str]:
        """What points the aws CLI, boto3 or a container at this AWS."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }

    def control(self, what: str, **request: Any) -> dict[str, Any]:
        """The control API.

        `clock` (now, offset_seconds), `flush`, `quotas` (instances of a type for endpoints), `status`, `chaos` (the
        members of gaps.delivery.Chaos), `calls` (what assumed roles were allowed: role, action, resource),
        `credentials` (of a role, as a service gets them).
        """
        body = json.dumps(request).encode()
        call = urllib.request.Request(f"{self.endpoint_url}/_glassbox/{what}", body, method="POST")  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(call, timeout=60) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise ValueError(json.loads(error.read())["error"]) from error

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            self.control("status")
        except (OSError, ValueError):
            return False
        return True


class EmbeddedAws(RunningAws):
    """An embedded AWS of one's own; a context manager that leaves no process and no file behind.

    `port` 0 chooses a free one. It listens on 127.0.0.1, and on `also_on` too if given: the bridge on which containers
    of `sam local invoke` find their host. `images` adds to or replaces IMAGES. `keep` keeps the private directory
    with its logs. `options` go to local.server: update_seconds, flush_seconds, flush_records.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        also_on: str | None = None,
        images: dict[str, list[str]] | None = None,
        keep: bool = False,
        **options: float,
    ) -> None:
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="glassbox-aws-"))
        self.log = self.directory / "logs" / "emulator.log"
        self.log.parent.mkdir()
        try:
            with contextlib.ExitStack() as listeners:
                first = listeners.enter_context(_listen("127.0.0.1", port))
                self.port: int = first.getsockname()[1]
                others = [listeners.enter_context(_listen(also_on, self.port))] if also_on else []
                super().__init__(f"http://127.0.0.1:{self.port}")
                self._process = self._spawn([first, *others], IMAGES | (images or {}), options)
            self._await_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> EmbeddedAws:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> None:
        """Return when the process has ended, which nothing but :meth:`stop` should make it do.

        Raises:
            EmulatorError: always; names the exit status.
        """
        assert self._process is not None  # noqa: S101 (started by the constructor)
        status = self._process.wait()
        raise EmulatorError(
            f"the embedded AWS ended with exit status {status}; nothing serves requests any more"
        )

    def stop(self) -> None:
        """Stop the embedded AWS, its Lambdas, model servers and jobs."""
        process = self._process
        if process is not None and process.stdin:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            # Whatever it left behind is in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(
        self, listeners: list[socket.socket], images: dict[str, list[str]], options: dict[str, float]
    ) -> subprocess.Popen[bytes]:
        temporary = self.directory / "tmp"
        temporary.mkdir()
        arguments = [
            *(f"--fd={listener.fileno()}" for listener in listeners),
            f"--port={self.port}",
            f"--directory={self.directory}",
            f"--unpacked={ROOT / '.build' / 'unpacked'}",
            f"--account={ACCOUNT}",
            f"--region={REGION}",
            f"--images={json.dumps(images)}",
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        ]
        # Nothing of the caller's environment: the functions inherit it.
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.directory),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_HOST": "localhost",
            "MINISTACK_REGION": REGION,
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "AUTH": "true",
            "DOCKER_HOST": f"unix://{self.directory}/no-docker",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "S3_DATA_DIR": str(self.directory / "s3"),
            "STATE_DIR": str(self.directory / "state"),
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "local.server", *arguments],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno() for listener in listeners],
                start_new_session=True,
            )

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if self.answers():
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:].strip()
        raise EmulatorError(f"the embedded AWS did not start:\n{tail}")


def docker_bridge() -> str:
    """Return this machine's address on Docker's default network, under which containers find it.

    Empty without an engine, and where the engine runs in a machine of its own (Docker Desktop).
    """
    if not shutil.which("docker"):
        return ""
    command = ["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return ""
    (network, *_) = json.loads(done.stdout)
    # an engine that names no gateway takes the first address
    gateway = str(network.get("Gateway") or ip_network(network["Subnet"])[1])
    try:
        _listen(gateway, 0).close()
    except EmulatorError:
        return ""
    return gateway


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EmulatorError(f"port {port} on {host} cannot be used: {error.strerror}") from error
    return listener


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM ends the program as Ctrl-C does, so that context managers clean up."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
