"""Lambda functions as processes: isolated from what is installed here, and quick to start."""

from __future__ import annotations

import hashlib
import sysconfig
import threading
import zipfile
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime

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


def unpack_once(directory: Path) -> None:
    """Every Lambda environment unpacks its code and layers anew: a second each time for numpy, and no byte code kept.

    Here each archive is unpacked once and the environments link to it.
    """
    lock = threading.Lock()

    class SharedZipFile(zipfile.ZipFile):
        def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:
            shared = directory / hashlib.sha256(Path(str(self.filename)).read_bytes()).hexdigest()
            with lock:
                if not shared.exists():
                    partial = shared.with_suffix(".partial")
                    super().extractall(partial)
                    partial.rename(shared)
            Path(path).rmdir()
            Path(path).symlink_to(shared)

    class SharedZip:
        ZipFile = SharedZipFile

        def __getattr__(self, name: str) -> Any:
            return getattr(zipfile, name)

    directory.mkdir(parents=True)
    lambda_runtime.zipfile = SharedZip()
