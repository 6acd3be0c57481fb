"""What went wrong, said as what to do about it."""

import re

_TEXT_CHARACTERS = 4000  # of one error: SNS and a log line take far more
# Control characters, lone surrogates, and what breaks or reorders a line: all of them change what a terminal, a log
# or an e-mail shows beside the text itself.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: object, limit: int = _TEXT_CHARACTERS) -> str:
    """Return ``text`` on one line, control characters escaped, shortened to ``limit`` characters.

    Every text from outside (a key, a response, a class name, an event) passes here before it enters an error, a
    log line, an e-mail or a page.
    """
    cut = str(text)[: limit + 1]
    safe = _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def is_printable(text: str) -> bool:
    """Whether :func:`printable` would leave every character of ``text`` unchanged."""
    return _UNSAFE.search(text) is None


class GlassboxError(Exception):
    """Base of every error that Glassbox raises on purpose. The message is one line, see :func:`printable`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class RetryableError(GlassboxError):
    """The same message may succeed later (throttling, a conflict, an endpoint in the middle of an update)."""


class BadInputError(GlassboxError):
    """The input will never be readable: names the file and the reason. Ends in the dead-letter queue."""


class ConflictError(GlassboxError):
    """Somebody else has already done it, or something else meanwhile: look again, or finish quietly."""


class SettingsError(GlassboxError):
    """The environment is incomplete or wrong: the message names every problem at once."""
