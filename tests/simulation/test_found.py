"""Each fault that the simulation found stays fixed."""

import pytest

from simulation.found import FOUND, RARE
from simulation.run import run


@pytest.mark.parametrize(("settings", "schedule"), FOUND.values(), ids=FOUND)
def test_a_schedule_that_failed_once_holds(settings, schedule):
    run(schedule, settings)


@pytest.mark.parametrize(("settings", "schedule"), RARE.values(), ids=RARE)
def test_a_rare_situation_holds(settings, schedule):
    run(schedule, settings)
