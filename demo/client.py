"""A client of the endpoint: it sends images and counts its failures."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from botocore.exceptions import ClientError
from numpy.typing import NDArray

from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker
from local.stack import Stack, npy

Image = NDArray[np.uint8]
PredictedClasses = list[int | None]  # None for a request that failed, or is not sent yet


class Client:
    """Invokes the endpoint with one image per request."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._incidents = IncidentsTable(stack.client("dynamodb"), stack.outputs["IncidentsTable"])
        self._key = ReplayKey(stack.client("kms"), stack.outputs["ReplayKeyArn"])
        self.failed = 0

    def replay(self, image: Image, event_id: str) -> None:
        """Send a signed replay for the open incident, as confirm_endpoint does."""
        incident = self._incidents.current(self._stack.outputs["EndpointName"])
        if incident is None:
            raise LookupError(f"{event_id}: expected an incident to replay for, got none.")
        marker = write_marker(ReplayMarker(TRACE, incident.id, event_id), npy(image), self._key.sign)
        self._stack.predict(image, CustomAttributes=marker)

    def send(
        self,
        images: Sequence[Image] | Image,
        per_second: float,
        on_sent: Callable[[int, PredictedClasses], None] = lambda number, classes: None,
    ) -> PredictedClasses:
        """Send images at a steady rate, two at a time, and return the predicted classes.

        Args:
            on_sent: is called after each request with its number, from 1, and the classes so far.
        """
        start = time.monotonic()
        classes: PredictedClasses = [None] * len(images)

        def send_one(position: int) -> None:
            time.sleep(max(0, start + position / per_second - time.monotonic()))
            try:
                classes[position] = self._stack.predict(images[position])["class"]
            except ClientError:
                self.failed += 1
            on_sent(position + 1, classes)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(send_one, range(len(images))))
        return classes
