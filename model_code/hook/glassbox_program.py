"""Load the hook, then the owner's program: the ``SAGEMAKER_PROGRAM`` of an archive that ``repack.py`` wrote.

``GLASSBOX_PROGRAM`` names the owner's program, by default ``inference.py``. An import of this module returns the
owner's.
"""

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (as in sitecustomize.py)


def load_hook() -> None:
    """Load the hook if tensors are wanted, and report on stderr why it cannot be loaded."""
    if not any(name.upper() == "TENSORS_OUTPUT" and value for name, value in os.environ.items()):
        return
    path = os.path.join(FOLDER, "glassbox_program_files", "sitecustomize.py")  # noqa: PTH118
    try:
        import torch  # noqa: F401 -- the hook replaces a method of it

        spec = spec_from_file_location("glassbox_hook_loader", path)
        loader = module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(loader)  # type: ignore[union-attr]
        loader.load_hook()
    except Exception as error:
        # The owner's process has to start without the hook.
        print(f"glassbox: not hooked: {type(error).__name__}: {error}", file=sys.stderr)


load_hook()
program = os.environ.get("GLASSBOX_PROGRAM") or "inference.py"
sys.modules[__name__] = import_module(program[:-3] if program.endswith(".py") else program)
