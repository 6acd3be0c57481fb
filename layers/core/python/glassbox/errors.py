"""The errors of Glassbox. Their class states the reaction: retry, drop, or re-read."""

from __future__ import annotations

import re

_TEXT_CHARACTERS = 4000  # of one error, far below the limits of SNS and of a log line
# Control characters, lone surrogates, and characters that break or reorder a line: a terminal, a log or an e-mail
# would show other text than the one that was written.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: object, limit: int = _TEXT_CHARACTERS) -> str:
    """Return ``text`` as one line of at most ``limit`` characters, control characters escaped.

    Every external text (a key, a response, a class name, an event) passes through this function before it enters an
    error, a log line, an e-mail or a page.
    """
    cut = str(text)[: limit + 1]
    safe = _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def is_printable(text: str) -> bool:
    """Return whether :func:`printable` leaves every character of ``text`` unchanged."""
    return _UNSAFE.search(text) is None


class GlassboxError(Exception):
    """Base of all errors that Glassbox raises, with a message of one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class RetryableError(GlassboxError):
    """The same message may succeed later (throttling, a conflict, an update in progress)."""


class BadInputError(GlassboxError):
    """No retry can succeed, so SQS moves the message to the dead-letter queue."""


class ConflictError(GlassboxError):
    """A concurrent or an earlier write won, so re-read or treat the call as a duplicate."""


class SettingsError(GlassboxError):
    """The environment is incomplete or wrong, with a message that names every problem."""
