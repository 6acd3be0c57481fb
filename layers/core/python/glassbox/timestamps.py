"""Timestamps: ISO 8601 text <-> UTC."""

import functools
from datetime import UTC, datetime

from glassbox.errors import printable

_YEARS = range(2000, 2200)
_SHOWN_CHARACTERS = 80


@functools.lru_cache(maxsize=4096)  # a capture file repeats its timestamps
def parse_timestamp(text: str) -> datetime:
    """Return an ISO 8601 timestamp in UTC.

    A timestamp without an offset is UTC. Spaces inside are ignored: a sample in AWS's container contract prints
    ``2026-11-23T10: 20: 00Z``.

    Raises:
        ValueError: ``text`` is not an ISO 8601 timestamp, or outside the years 2000 to 2199.
        TypeError: ``text`` is not hashable.
    """
    try:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            parsed = datetime.fromisoformat(text.replace(" ", ""))
        utc = parsed.replace(tzinfo=parsed.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"invalid ISO 8601 timestamp: {printable(repr(text), _SHOWN_CHARACTERS)}") from None
    if utc.year not in _YEARS:
        raise ValueError(f"timestamp outside 2000 to 2199: {text!r}")
    return utc


def format_timestamp(time: datetime) -> str:
    """Return a time in UTC as ``yyyy-mm-ddThh:mm:ssZ``."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def parse_hour(path: str) -> datetime:
    """Return the hour of ``yyyy/mm/dd/hh``, the folders in an S3 key.

    Raises:
        ValueError: as :func:`parse_timestamp`.
    """
    return parse_timestamp(path.replace("/", "-", 2).replace("/", "T"))
