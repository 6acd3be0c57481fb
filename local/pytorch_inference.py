"""Run the server of AWS's PyTorch inference image as a process: TorchServe, started by SageMaker's own toolkit.

The image is the environment .venv-torchserve: TorchServe beside the torch and the toolkits of .venv. TorchServe needs
Java 17.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 30.0
REPOSITORY = "pytorch-inference"  # of AWS's images
PYTHON = Path(__file__).resolve().parents[1] / ".venv-torchserve" / "bin" / "python"


def missing() -> str:
    """Return what this machine lacks to run the server, or an empty string."""
    if not PYTHON.exists():
        return ".venv-torchserve: make test installs it"
    return (
        "" if shutil.which("java") else "Java 17. On Debian and Ubuntu: apt install openjdk-17-jre-headless"
    )


def own_server() -> psutil.Process:
    """Return the TorchServe that this process started.

    The toolkit looks for the only one of its container; here other containers' are visible.

    Raises:
        TimeoutError: it did not start.
    """
    pid = Path(tempfile.gettempdir()) / ".model_server.pid"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if pid.is_file() and (number := pid.read_text().strip()):
            return psutil.Process(int(number))
        time.sleep(0.05)
    raise TimeoutError(f"TorchServe: expected its process id in {pid} within {START_SECONDS:g} s, got none")


def _free_port() -> int:
    # not local.sagemaker.container's: the model's PYTHONPATH, which replaces the image's, does not have `local`
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Serve the model of this instance until SIGTERM."""
    os.environ["SAGEMAKER_BASE_DIR"] = os.environ["OPT_ML"]  # read when the toolkit is imported
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    address = f"http://127.0.0.1:{os.environ['SAGEMAKER_BIND_TO_PORT']}"
    os.environ |= {
        "TEMP": tempfile.gettempdir(),  # of the sockets to its workers, which otherwise have fixed names in /tmp
        "TS_INFERENCE_ADDRESS": address,
        "TS_MANAGEMENT_ADDRESS": address,
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{_free_port()}",
        "TS_GRPC_INFERENCE_PORT": str(_free_port()),
        "TS_GRPC_MANAGEMENT_PORT": str(_free_port()),
    }
    server: Any = importlib.import_module("sagemaker_pytorch_serving_container.torchserve")
    handler = importlib.import_module("sagemaker_pytorch_serving_container.handler_service")
    server.TS_CONFIG_FILE = str(Path.cwd() / "sagemaker-ts.properties")
    server._retrieve_ts_server_process = own_server
    server.start_torchserve(handler_service=handler.__file__)


if __name__ == "__main__":
    main()
