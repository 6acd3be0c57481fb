"""Polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    look: Callable[[], T | None], seconds: float = 60.0, what: str = "the condition", pause: float = 0.1
) -> T:
    """Call ``look`` until its result is truthy and return that result.

    Raises:
        TimeoutError: names ``what`` and the last result after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: expected within {seconds:g} s, got {found!r}.")
        time.sleep(pause)
    return found
