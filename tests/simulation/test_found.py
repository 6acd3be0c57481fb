"""Schedules that broke an invariant once: each is a fault of the core that was fixed, shrunk by ``make simulate``."""

import pytest

from simulation.run import run
from simulation.steps import (
    Capture,
    Command,
    DeleteEndpoint,
    Deliver,
    Deploy,
    LiveTrace,
    Outage,
    Recover,
    Resume,
    Settle,
    Violation,
    Wait,
)

FOUND = {
    "an abort of a failed incident got no answer": (
        {"same_config_refused": True},
        [Command("abort"), DeleteEndpoint(), Capture("attack")],
    ),
    "an abort between the failure's notification and its record got no answer": (
        {"explain_minutes": "0", "update_minutes": "60", "skews": {"swap": 10, "confirm": 10, "restore": 1}},
        [
            Capture("late"),
            Deliver("count", 0, calls=9),
            Deliver("swap", 0),
            Settle(ok=False),
            Deliver("confirm", 0, calls=4),
            Command("abort"),
            Deliver("restore", 0, calls=4),
            Resume(0),
        ],
    ),
    "replays a day after the opening were counted as traffic": (
        {"explain_minutes": "15", "update_minutes": "60"},
        [
            Capture("attack"),
            Deliver("count", 0),
            Deliver("swap", 0),
            Wait(43200),
            Wait(43200),
        ],
    ),
    "two incidents of one second shared an id": (
        {"react": "false", "cooldown_minutes": "0"},
        [
            Command("open"),
            Deploy("foreign-2"),
            Deliver("swap", 0),
            Command("open", reason="look"),
            Deliver("confirm", 0, faults={8: "repeated"}),
        ],
    ),
    "the end was not sent where the next incident began while another invocation was sending it": (
        {"cooldown_minutes": "0"},
        [
            Violation("drift"),
            Deliver("swap"),
            Settle(),
            Deliver("confirm"),
            Command("abort"),
            Deliver("restore"),
            Settle(),
            Outage("sns"),
            Deliver("confirm"),
            Recover("sns"),
            Violation("class_share"),
            Deliver("swap", faults={2: "repeated"}),
        ],
    ),
    "a violation that joined while the incident was closed is missing in the copy of it": (
        {"explain_minutes": "0", "update_minutes": "60", "incidents_per_day": "1", "max_heatmaps": "2"},
        [
            Command("open"),
            Deliver("swap", 0, calls=12),
            Command("abort"),
            Deliver("restore", 0, calls=2),
            Settle(),
            Deliver("confirm", 0, calls=1),
            Deliver("confirm", 0),
            LiveTrace(),
            Settle(),
            Resume(0, calls=1),
            Resume(0, calls=1),
            Capture("attack"),
            Deliver("count", 0),
            Resume(0, calls=10),
            Deliver("swap", 0, calls=3),
            Resume(0, calls=1),
            Command("open", reason="look"),
            Resume(0, calls=2),
        ],
    ),
}


@pytest.mark.parametrize(("settings", "schedule"), FOUND.values(), ids=FOUND)
def test_a_schedule_that_failed_once_holds(settings, schedule):
    run(schedule, settings)
