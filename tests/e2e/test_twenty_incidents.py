"""Twenty incidents in a row while SageMaker's events come twice, late or never. Some minutes: only when asked for."""

import io
import os
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demo import signs
from local.stack import running_stack
from watching import Inbox, incident, wait_for

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
def pictures():
    images, labels = signs.dataset(2000, seed=77, size=48)
    return images[labels == 14], images[labels != 14]


def npy(image):
    body = io.BytesIO()
    np.save(body, image, allow_pickle=False)
    return body.getvalue()


def test_every_one_ends_in_normal_with_its_pictures_and_two_messages(pictures):
    stop_signs, others = pictures
    random = np.random.default_rng(0)
    first_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(
        hours=2 * INCIDENTS + 2
    )
    with running_stack(PARAMETERS) as stack:
        stack.aws.control("chaos", duplicate_deliveries=True, drop=0.1, reorder_seconds=1.0)
        inbox, runtime, last = Inbox(stack), stack.client("sagemaker-runtime"), None
        for number in range(INCIDENTS):
            stack.set_capture_clock(first_hour + timedelta(hours=2 * number, minutes=5))
            for request in range(70):
                images = stop_signs if request % 7 < 5 else others
                body = npy(images[random.integers(len(images))])
                runtime.invoke_endpoint(
                    EndpointName="traffic-signs", ContentType="application/x-npy", Body=body
                )

            def over(last=last):
                current = incident(stack)
                return current and current.id != last and current.state == "NORMAL" and current

            # two events may be lost one after the other, and the sweep comes every two minutes
            ended = wait_for(over, seconds=300)
            last = ended.id
            assert not ended.failure
            assert len(ended.replays) == 6
            assert ended.replays <= ended.heatmaps
            wait_for(lambda number=number: len(inbox.notifications()) >= 2 * (number + 1))
        subjects = [message["Subject"].partition(": ")[2] for message in inbox.notifications()]
    assert subjects == ["violation, swapping to the hooked model", "restored, report is ready"] * INCIDENTS
