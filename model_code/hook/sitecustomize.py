"""Load the hook in every Python process whose PYTHONPATH begins with this folder and that imports torch.

Does nothing unless TENSORS_OUTPUT is set, and raises nothing of its own. Python imports the first ``sitecustomize`` of
its path, so this one imports the next: the owner's, or the system's.
"""

import contextlib
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib costs every process 10 ms)
MODULES = os.path.join(FOLDER, "glassbox_hook")  # noqa: PTH118


class AfterTorch:
    """Finds torch as Python does, and loads the hook when torch has been imported."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        spec = PathFinder.find_spec(name, path) if name == "torch" else None
        if spec is None or spec.loader is None:
            return None
        loader = spec.loader
        load = loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            del loader.exec_module
            load(module)
            sys.meta_path.remove(self)
            load_hook()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class OwnModules:
    """Finds the modules of the hook, which are not on the path."""

    def __init__(self) -> None:
        self.names = {name.partition(".")[0] for name in os.listdir(MODULES)}  # noqa: PTH208

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        return PathFinder.find_spec(name, [MODULES]) if path is None and name in self.names else None

    def unload(self) -> dict:  # type: ignore[type-arg]
        """Remove all modules of these names from ``sys.modules``, and return them."""
        found = [name for name in list(sys.modules) if name.partition(".")[0] in self.names]
        return {name: sys.modules.pop(name) for name in found}


@contextlib.contextmanager
def own_modules():  # type: ignore[no-untyped-def]
    """Make the modules of the hook importable, and restore the owner's afterwards."""
    finder = OwnModules()
    before = finder.unload()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.unload()
        sys.modules.update(before)


def load_hook() -> None:
    """Load the hook, and report on stderr why it cannot be loaded."""
    try:
        with own_modules():
            import capture

            capture.install(os.environ)
    except Exception as error:
        # The owner's process has to start without the hook.
        print(f"glassbox: not hooked: {type(error).__name__}: {error}", file=sys.stderr)


def run_next() -> None:
    """Import the next ``sitecustomize`` of the path in place of this one."""
    path = [entry for entry in sys.path if os.path.abspath(entry) != FOLDER]  # noqa: PTH100
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":  # a repacked archive calls load_hook itself
    if any(name.upper() == "TENSORS_OUTPUT" and value for name, value in os.environ.items()):
        sys.meta_path.insert(0, AfterTorch())
    run_next()
