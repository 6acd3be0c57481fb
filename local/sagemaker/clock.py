"""The capture clock: wall time plus an offset, so that tests can capture in any hour."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta


class CaptureClock:
    """The source of captured timestamps, at a variable offset from wall time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = timedelta(0)

    def now(self) -> datetime:
        """Return the current capture time, UTC."""
        with self._lock:
            return datetime.now(UTC) + self._offset

    def shift(self, offset: timedelta) -> None:
        """Set the offset from wall time (not cumulative)."""
        with self._lock:
            self._offset = offset

    def set(self, now: datetime) -> None:
        """Set the current capture time; `now` must have a time zone."""
        self.shift(now - datetime.now(UTC))

    @property
    def offset(self) -> timedelta:
        """The offset from wall time."""
        with self._lock:
            return self._offset
