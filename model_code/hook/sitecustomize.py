"""Load the hook at the start of every Python process whose PYTHONPATH begins with this folder.

Python imports the first ``sitecustomize`` of its path, so this one imports the next: the owner's, or the system's.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib costs every process 10 ms)


def run_next() -> None:
    """Import the next ``sitecustomize`` of the path in place of this one."""
    path = [entry for entry in sys.path if os.path.abspath(entry) != FOLDER]  # noqa: PTH100
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


run_next()
