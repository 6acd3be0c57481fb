"""Start the embedded AWS as a child process and create boto3 clients for it."""

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

from local.config import ServerConfig

ACCOUNT = "123456789012"
REGION = "eu-west-1"
START_SECONDS = 60.0
STOP_SECONDS = 15.0

ROOT = Path(__file__).resolve().parent.parent

# The commands that replace the container images, by the end of the repository's name.
IMAGES = {
    "serving": [sys.executable, str(ROOT / "model_code" / "serve.py")],
    "monitor": [
        "env",
        f"PYTHONPATH={ROOT / 'layers' / 'core' / 'python'}",
        sys.executable,
        str(ROOT / "monitor_container" / "evaluation.py"),
    ],
}


class EmulatorError(RuntimeError):
    """The embedded AWS did not start, or ended unexpectedly."""


class LocalSession(boto3.Session):  # type: ignore[misc]  # boto3 is untyped
    """A boto3 session for the embedded AWS, which ignores the shell's proxies and profiles."""

    def __init__(self, endpoint_url: str, account: str = ACCOUNT, region: str = REGION) -> None:
        super().__init__(aws_access_key_id=account, aws_secret_access_key="test", region_name=region)  # noqa: S106
        self.endpoint_url = endpoint_url

    def client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
        """Create a client whose requests go to the embedded AWS."""
        kwargs["endpoint_url"] = kwargs.get("endpoint_url") or self.endpoint_url
        direct = Config(proxies={})
        kwargs["config"] = direct.merge(kwargs["config"]) if kwargs.get("config") else direct
        return super().client(service_name, *args, **kwargs)


class RunningAws:
    """An embedded AWS that already runs, by its address."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.session = LocalSession(endpoint_url)

    def client(self, service: str) -> Any:
        """Return a boto3 client that has the account's root permissions."""
        return self.session.client(service)

    def create_bucket(self, name: str) -> None:
        """Create a bucket unless it exists."""
        s3 = self.client("s3")
        with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which the aws CLI, boto3 or a container uses this AWS."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }

    def control(self, operation: str, **request: Any) -> dict[str, Any]:
        """Call the control API, which AWS does not have, and return its answer.

        Operations: `clock` (now, offset_seconds), `flush` (write captured requests to S3), `quotas` (endpoint instances
        by type), `status`, `chaos` (fields of gaps.delivery.Chaos), `calls` (role, action and resource of the allowed
        calls of assumed roles), `credentials` (temporary credentials of a role for a service).

        Raises:
            ValueError: the operation or its request is invalid.
        """
        body = json.dumps(request).encode()
        call = urllib.request.Request(f"{self.endpoint_url}/_glassbox/{operation}", body, method="POST")  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(call, timeout=60) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise ValueError(json.loads(error.read())["error"]) from error

    def answers(self) -> bool:
        """Return whether the embedded AWS answers."""
        try:
            self.control("status")
        except (OSError, ValueError):
            return False
        return True


class EmbeddedAws(RunningAws):
    """An embedded AWS that this object starts, and stops when the context ends.

    Args:
        port: of 127.0.0.1; 0 chooses a free port.
        also_on: a second address to listen on: Docker's bridge, where containers of `sam local invoke` reach the host.
        images: commands by repository suffix, in addition to IMAGES.
        update_seconds: the shortest time in which an endpoint is created or updated.
        flush_seconds: after this time data capture writes a file.
        flush_records: after this many records data capture writes a file.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        also_on: str | None = None,
        images: dict[str, list[str]] | None = None,
        update_seconds: float = 0.0,
        flush_seconds: float = 1.0,
        flush_records: int = 100,
    ) -> None:
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
                config = ServerConfig(
                    fds=[listener.fileno() for listener in (first, *others)],
                    port=self.port,
                    directory=self.directory,
                    unpacked=ROOT / ".build" / "unpacked",
                    account=ACCOUNT,
                    region=REGION,
                    images=IMAGES | (images or {}),
                    update_seconds=update_seconds,
                    flush_seconds=flush_seconds,
                    flush_records=flush_records,
                )
                self._process = self._spawn(config)
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
        """Wait until the process ends, which only :meth:`stop` should cause.

        Raises:
            EmulatorError: always; names the exit status.
        """
        assert self._process is not None  # noqa: S101 (started by the constructor)
        status = self._process.wait()
        raise EmulatorError(f"the embedded AWS: expected to run, got exit status {status}. Start it again.")

    def stop(self) -> None:
        """Stop the embedded AWS, its functions, model servers and jobs, and delete its directory."""
        process = self._process
        if process is not None and process.stdin:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            # Processes that it left running are in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self, config: ServerConfig) -> subprocess.Popen[bytes]:
        temporary = self.directory / "tmp"
        temporary.mkdir()
        # Not the caller's environment: the functions inherit this one.
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
                [sys.executable, "-m", "local.server", config.to_json()],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=config.fds,
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
        raise EmulatorError(f"the embedded AWS did not start. The end of its log:\n{tail}")


def docker_bridge() -> str:
    """Return this machine's address on Docker's default network, where containers reach it.

    Empty without a Docker engine, and where the engine runs in a virtual machine (Docker Desktop).
    """
    if not shutil.which("docker"):
        return ""
    command = ["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return ""
    (network, *_) = json.loads(done.stdout)
    # without a configured gateway, the engine uses the first address
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
        raise EmulatorError(
            f"{host}:{port}: cannot listen: {error.strerror}. Choose another port."
        ) from error
    return listener


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM within the block, so that context managers clean up."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
