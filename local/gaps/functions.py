"""Lambda functions as processes that cannot import the emulator's packages, and start fast."""

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

# The modules of AWS's Python runtime, in addition to the standard library.
RUNTIME_MODULES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3")

# A function runs in a process of the emulator's interpreter. These lines precede ministack's worker script and remove
# the emulator's packages from the path and from the imported modules: a dependency that no layer contains then fails
# to import, as on AWS.
_PRELUDE = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p and "dist-packages" not in p] + [{runtime!r}]
for name in [n for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", None) or "")]:
    del sys.modules[name]
"""


def isolate(runtime: Path) -> None:
    """Let functions import only their code, their layers and the modules of AWS's runtime.

    Args:
        runtime: a new directory, which receives links to RUNTIME_MODULES.
    """
    runtime.mkdir(parents=True)
    installed = Path(sysconfig.get_path("purelib"))
    for name in RUNTIME_MODULES:
        (runtime / name).symlink_to(installed / name)
    prelude = _PRELUDE.format(runtime=str(runtime))
    lambda_runtime._PYTHON_WORKER_SCRIPT = prelude + lambda_runtime._PYTHON_WORKER_SCRIPT


class Archives:
    """Code and layers, each unpacked once by content.

    ministack unpacks them for every execution environment: numpy takes seconds, and its byte code is lost.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = threading.Lock()

    def install(self) -> None:
        """Make ministack link to the unpacked archives."""
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
        """Unpack the archive unless it is unpacked, and return its directory."""
        unpacked = self._directory / hashlib.sha256(archive).hexdigest()
        with self._lock:
            if not unpacked.exists():
                with (
                    tempfile.TemporaryDirectory(dir=self._directory) as temporary,
                    zipfile.ZipFile(io.BytesIO(archive)) as file,
                ):
                    partial = Path(temporary) / "unpacked"
                    file.extractall(partial)
                    with contextlib.suppress(OSError):  # another process has unpacked it meanwhile
                        partial.rename(unpacked)
        return unpacked

    def expect_layer(self, version_arn: str, properties: dict[str, Any]) -> None:
        """Unpack a published layer in the background, before a cold start needs it."""
        archive = lambda_svc._resolve_layer_zip(version_arn)
        if archive:
            threading.Thread(target=self.unpack, args=(archive,), name="unpack-layer", daemon=True).start()
