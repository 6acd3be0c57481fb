"""Serve an owner's script with gunicorn, with or without the hook, and ask it."""

import http.client
import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image

import package
import replays
from benchmarks import ROOT
from hook_files import write_sdk
from local.pytorch_inference import PYTHON

ATTRIBUTES, INFERENCE_ID = "X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-Inference-Id"
SECONDS = 240  # for a start, and for an answer


@dataclass(frozen=True)
class Answer:
    """What a client gets.

    Attributes:
        status: with its reason.
        headers: (name, value) in their order, without Date.
        body: of the answer.
    """

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        socket: a Unix socket.
        objects: the folder of the objects that the hook writes.
        log: of the server.
        pid: of the process that forks the workers.
    """

    socket: Path
    objects: Path
    log: Path
    pid: int = 0

    def ask(self, body: bytes, content_type: str, headers: Mapping[str, str]) -> Answer:
        """Post an invocation, and return its answer."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": content_type, **headers})
            response = connection.getresponse()
            found = tuple((name, value) for name, value in response.getheaders() if name != "Date")
            return Answer(f"{response.status} {response.reason}", found, response.read())
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the server so far."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        return float(sum(spent.user + spent.system for spent in times))

    def steps(self) -> int:
        """Return how many traces and refusals are complete."""
        return sum(1 for _ in self.objects.rglob("index/*/*.json"))

    def wait_for(self, steps: int) -> None:
        """Wait until this number of traces and refusals is complete.

        Raises:
            TimeoutError: they are not after SECONDS.
        """
        deadline = time.monotonic() + SECONDS
        while self.steps() < steps:
            if time.monotonic() > deadline:
                found = f"expected {steps} traces and refusals, got {self.steps()}"
                raise TimeoutError(f"{self.socket.name}: {found}:\n{self.log.read_text()}")
            time.sleep(0.01)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, place: Path) -> None:
        super().__init__("endpoint", timeout=SECONDS)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))


def write_hook(folder: Path) -> Path:
    """Write the hook of an unchanged endpoint into a new folder, and return the folder."""
    package.write_hook(folder)
    return folder


@contextmanager
def serving(
    owner: str,
    name: str,
    folder: Path,
    *,
    hook: Path | None = None,
    workers: int = 2,
    core: int | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Yield a server of an owner's script.

    Its workers are forked after the script has loaded. The AWS SDK of the hook writes files.

    Args:
        owner: a function of ``owners/scripts.py``.
        name: of the server below ``folder``.
        hook: a folder that PYTHONPATH begins with.
        core: the only core that the server may use.
        settings: environment variables.

    Raises:
        FileNotFoundError: the environment of the servers does not exist.
        TimeoutError: the server does not start.
    """
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON}: expected gunicorn and Flask; `make test` installs them")
    place = folder / name
    sdk = place / "sdk"
    sdk.mkdir(parents=True)
    write_sdk(sdk)
    server = Server(place / "socket", place / "objects", place / "log")
    path = [*([hook] if hook else []), sdk, ROOT / "benchmarks" / "owners", ROOT / "demo" / "owner"]
    environment = {key: value for key, value in os.environ.items() if key.lower() != "tensors_output"}
    environment |= {"OWNER": owner, "OBJECTS": str(server.objects), "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    if hook:
        environment |= {"TENSORS_OUTPUT": "s3://bucket/tensors", "REPLAY_KEY": replays.KEY.text}
    command = [] if core is None else ["taskset", "-c", str(core)]
    command += [str(PYTHON), "-m", "gunicorn", "--preload", "--workers", str(workers), "--backlog", "2048"]
    command += ["--timeout", str(SECONDS), "--bind", f"unix:{server.socket}", "application:app"]
    with (
        server.log.open("wb") as log,
        subprocess.Popen(command, env={**environment, **settings}, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_up(server, process)
            yield replace(server, pid=process.pid)
        finally:
            process.terminate()


def _wait_until_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            server.ask(b"", "text/plain", {})
        except OSError:  # the socket does not exist yet, or nothing listens
            if process.poll() is not None or time.monotonic() > deadline:
                found = f"status {process.poll()}:\n{server.log.read_text()}"
                raise TimeoutError(
                    f"gunicorn: expected it to answer within {SECONDS} s, got {found}"
                ) from None
            time.sleep(0.05)
        else:
            return


def encoded(image: npt.NDArray[np.uint8], content_type: str) -> bytes:
    """Return an image (H, W, 3) as JSON, in NumPy's format or as PNG."""
    if content_type == "application/json":
        return json.dumps({"instances": [image.tolist()]}).encode()
    file = io.BytesIO()
    if content_type == "application/x-npy":
        np.save(file, image)
    else:
        Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
