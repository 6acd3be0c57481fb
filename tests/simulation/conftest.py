import pytest

from simulation.system import restore_core


@pytest.fixture(autouse=True, scope="module")
def core():
    """Restore the core after the module: tests of other folders run in the same process."""
    yield
    restore_core()
