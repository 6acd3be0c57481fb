"""A hooked model in which the hook does not load: no trace comes, with and without faults."""

import pytest

from simulation.run import run
from simulation.steps import Capture, Crash, Deliver, Resume, Settle, Sweep, Wait
from simulation.system import System

HOOKED = [Capture("attack"), Deliver("count", 0), Deliver("swap", 0), Settle(), Deliver("confirm", 0)]
CRASHED = [*HOOKED, Wait(125), Sweep(), Deliver("confirm", 0, calls=4), Crash(0)]
INTERLEAVED = [
    *(*HOOKED, Wait(125), Sweep(), Sweep()),
    *(Deliver("confirm", 0, calls=4), Deliver("confirm", 0), Resume(0)),
]


@pytest.mark.parametrize("schedule", [HOOKED, CRASHED, INTERLEAVED])
@pytest.mark.parametrize("hook_loads", [True, False])
def test_restores_before_the_time_limit_without_a_hook(schedule, hook_loads):
    run(schedule, {"hook_loads": hook_loads, "explain_minutes": "60"})
    timeline = [line["S"] for line in System.last.incident_item()["timeline"]["L"]]
    reasons = [line for line in timeline if "RESTORING" in line]
    assert len(reasons) == 1
    assert ("the hook did not load" in reasons[0]) is not hook_loads
