"""What went wrong, said as what to do about it."""


class GlassboxError(Exception):
    """Base of every error that Glassbox raises on purpose."""


class RetryableError(GlassboxError):
    """The same message may succeed later (throttling, a conflict, an endpoint in the middle of an update)."""


class BadInputError(GlassboxError):
    """The input will never be readable: names the file and the reason. Ends in the dead-letter queue."""


class ConflictError(GlassboxError):
    """Somebody else has already done it, or something else meanwhile: look again, or finish quietly."""


class SettingsError(GlassboxError):
    """The environment is incomplete or wrong: the message names every problem at once."""
