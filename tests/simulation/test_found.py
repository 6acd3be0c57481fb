"""Each fault that the simulation found stays fixed."""

import pytest

from simulation.found import FOUND
from simulation.run import run


@pytest.mark.parametrize(("settings", "schedule"), FOUND.values(), ids=FOUND)
def test_a_schedule_that_failed_once_holds(settings, schedule):
    run(schedule, settings)
