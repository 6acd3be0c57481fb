"""Lambda functions as processes: isolated from what is installed here, and quick to start."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sysconfig
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

# What AWS's Python runtime holds beside the standard library.
RUNTIME_MODULES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3")

_PRELUDE = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p and "dist-packages" not in p] + [{runtime!r}]
for name in [n for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", None) or "")]:
    del sys.modules[name]
"""


def isolate(runtime: Path) -> None:
    """Functions run on the emulator's interpreter and would see all it has installed.

    They get their code, their layers and boto3, so that a dependency missing from a layer is missing here too.
    """
    runtime.mkdir(parents=True)
    installed = Path(sysconfig.get_path("purelib"))
    for name in RUNTIME_MODULES:
        (runtime / name).symlink_to(installed / name)
    prelude = _PRELUDE.format(runtime=str(runtime))
    lambda_runtime._PYTHON_WORKER_SCRIPT = prelude + lambda_runtime._PYTHON_WORKER_SCRIPT


class Archives:
    """Code and layers, each unpacked once and kept, by content; ministack unpacks anew for every environment.

    That takes seconds with numpy, and keeps no byte code.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = threading.Lock()

    def install(self) -> None:
        """Let the environments link to what is unpacked here."""
        archives = self

        class SharedZipFile(zipfile.ZipFile):
            def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:
                unpacked = archives.unpack(Path(str(self.filename)).read_bytes())
                Path(path).rmdir()
                Path(path).symlink_to(unpacked)

        class SharedZip:
            ZipFile = SharedZipFile

            def __getattr__(self, name: str) -> Any:
                return getattr(zipfile, name)

        lambda_runtime.zipfile = SharedZip()

    def unpack(self, archive: bytes) -> Path:
        """Where the archive lies unpacked."""
        unpacked = self._directory / hashlib.sha256(archive).hexdigest()
        with self._lock:
            if not unpacked.exists():
                with (
                    tempfile.TemporaryDirectory(dir=self._directory) as temporary,
                    zipfile.ZipFile(io.BytesIO(archive)) as file,
                ):
                    partial = Path(temporary) / "unpacked"
                    file.extractall(partial)
                    with contextlib.suppress(OSError):  # another process was quicker
                        partial.rename(unpacked)
        return unpacked

    def expect_layer(self, version_arn: str, properties: dict[str, Any]) -> None:
        """A layer has been published: unpack it before a function's cold start waits for it."""
        archive = lambda_svc._resolve_layer_zip(version_arn)
        if archive:
            threading.Thread(target=self.unpack, args=(archive,), name="unpack-layer", daemon=True).start()
