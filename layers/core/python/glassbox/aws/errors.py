"""Errors of AWS -> an error of Glassbox that states whether to retry, for all adapters."""

import contextlib
from collections.abc import Collection, Iterator

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from glassbox.errors import BadInputError, ConflictError, GlassboxError, RetryableError

AWS_ERRORS = (ClientError, BotoCoreError)

# Codes for a missing permission: for the call, or for the KMS key that the call uses. Some services answer
# ValidationException instead, with IAM's message.
_DENIED_CODES = {"AccessDenied", "AccessDeniedException", "KMSAccessDeniedException", "UnauthorizedOperation"}
_DENIED_TEXTS = ("is not authorized to perform", "kms key", "kms:")


def code_of(error: Exception) -> str:
    """Return the service's error code, or an empty text when no service has answered."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def is_denied(error: Exception) -> bool:
    """Return whether a permission is missing, so that every retry fails until it is granted."""
    if not isinstance(error, ClientError):
        return False
    message = str(error).lower()
    return code_of(error) in _DENIED_CODES or any(text in message for text in _DENIED_TEXTS)


def translate(
    error: Exception, what: str = "", *, bad: Collection[str] = (), conflict: Collection[str] = ()
) -> GlassboxError:
    """Return Glassbox's error for one of AWS_ERRORS.

    Args:
        what: what failed; it precedes AWS's message.
        bad: codes that every retry would get, too.
        conflict: codes for a concurrent or an earlier write.
    """
    text, code = f"{what}: {error}" if what else str(error), code_of(error)
    if code in conflict:
        return ConflictError(text)
    # botocore has validated the request against the service's model: no retry can send it
    if isinstance(error, ParamValidationError) or code in bad:
        return BadInputError(text)
    return RetryableError(text)


@contextlib.contextmanager
def translated(
    what: str = "", *, bad: Collection[str] = (), conflict: Collection[str] = ()
) -> Iterator[None]:
    """Raise what :func:`translate` returns for one of AWS_ERRORS in the block."""
    try:
        yield
    except AWS_ERRORS as error:
        raise translate(error, what, bad=bad, conflict=conflict) from error
