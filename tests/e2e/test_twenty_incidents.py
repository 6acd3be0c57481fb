"""Twenty incidents in sequence while SageMaker's events are duplicated, delayed or lost."""

import os
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demo import signs
from local.stack import running_stack
from local.waiting import wait_for
from watching import Inbox, incident

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("GLASSBOX_LONG"), reason="takes minutes: make test-all"),
]

INCIDENTS = 20
PARAMETERS = {
    "MaxClassShare": "0.5",
    "CooldownMinutes": "0",
    "IncidentsPerDay": "1000",
    "MaxFlaggedReplays": "4",
    "MaxComparisonReplays": "2",
    "TracesPerMinute": "2",
}


@pytest.fixture(scope="module")
def images():
    """Stop signs, and others."""
    drawn, classes = signs.dataset(2000, seed=77, size=48)
    return drawn[classes == 14], drawn[classes != 14]


def test_every_incident_ends_with_its_heatmaps_and_two_notifications(images):
    stop_signs, others = images
    random = np.random.default_rng(0)
    first_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(
        hours=2 * INCIDENTS + 2
    )
    with running_stack(PARAMETERS) as stack:
        stack.aws.control("chaos", duplicate_deliveries=True, drop=0.1, reorder_seconds=1.0)
        inbox, last = Inbox(stack), None
        for number in range(INCIDENTS):
            stack.set_capture_clock(first_hour + timedelta(hours=2 * number, minutes=5))
            for request in range(70):
                group = stop_signs if request % 7 < 5 else others
                stack.predict(group[random.integers(len(group))])

            def closed(last=last):
                current = incident(stack)
                return current and current.id != last and current.state == "NORMAL" and current

            # two consecutive events may be lost, and the sweep runs every two minutes
            ended = wait_for(closed, seconds=300)
            last = ended.id
            assert not ended.failure
            assert len(ended.replays) == 6
            assert ended.replays <= ended.heatmaps
            wait_for(lambda number=number: len(inbox.notifications()) >= 2 * (number + 1))
        subjects = [message["Subject"].partition(": ")[2] for message in inbox.notifications()]
    assert subjects == ["violation, swapping to the hooked model", "restored, report is ready"] * INCIDENTS
