"""Wait for a state of AWS by reading it repeatedly."""

import time
from collections.abc import Callable
from typing import TypeVar

INTERVAL_SECONDS = 2.0

T = TypeVar("T")


def poll(read: Callable[[], T], seconds: float, *, interval: float | None = None) -> T:
    """Call ``read`` until its result is true, and return the last result.

    The result is false after a timeout of ``seconds``. ``interval`` is in seconds too.
    """
    deadline = time.monotonic() + seconds
    while not (result := read()) and time.monotonic() < deadline:
        time.sleep(INTERVAL_SECONDS if interval is None else interval)
    return result
