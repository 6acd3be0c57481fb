"""The capture clock: wall time, moved by an offset so that a story can lie in any hour."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta


class CaptureClock:
    """Stamps inferences. It always ticks; only its offset from wall time can be set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = timedelta(0)

    def now(self) -> datetime:
        """The current capture time, UTC."""
        with self._lock:
            return datetime.now(UTC) + self._offset

    def shift(self, offset: timedelta) -> None:
        """Let the clock run `offset` away from wall time (not cumulative)."""
        with self._lock:
            self._offset = offset

    def set(self, now: datetime) -> None:
        """Let the clock say `now` at this moment, and tick on; `now` must carry its zone."""
        self.shift(now - datetime.now(UTC))

    @property
    def offset(self) -> timedelta:
        """How far the clock is from wall time."""
        with self._lock:
            return self._offset
