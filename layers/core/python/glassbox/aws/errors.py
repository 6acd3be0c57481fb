"""What AWS refuses -> an error that says whether to try again: the one place for all adapters."""

from collections.abc import Collection

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from glassbox.errors import BadInputError, ConflictError, GlassboxError, RetryableError

AWS_ERRORS = (ClientError, BotoCoreError)

# Codes for a caller that is not let in, of the call itself or of a KMS key behind it. A service may also answer
# ValidationException, with IAM's sentence as its text.
_DENIED_CODES = {"AccessDenied", "AccessDeniedException", "KMSAccessDeniedException", "UnauthorizedOperation"}
_DENIED_TEXTS = ("is not authorized to perform", "kms key", "kms:")


def code_of(error: Exception) -> str:
    """The service's error code; empty when no service has answered."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def is_denied(error: Exception) -> bool:
    """Whether a right is missing: no retry helps until somebody grants it."""
    if not isinstance(error, ClientError):
        return False
    said = str(error).lower()
    return code_of(error) in _DENIED_CODES or any(text in said for text in _DENIED_TEXTS)


def translate(
    error: Exception, what: str = "", *, bad: Collection[str] = (), conflict: Collection[str] = ()
) -> GlassboxError:
    """Return Glassbox's error for one of AWS_ERRORS.

    Args:
        what: what failed, put before AWS's text.
        bad: codes that every further try would get too.
        conflict: codes for something that somebody else has done already.
    """
    text, code = f"{what}: {error}" if what else str(error), code_of(error)
    if code in conflict:
        return ConflictError(text)
    # botocore has checked the request against the service's model: it can never be sent
    if isinstance(error, ParamValidationError) or code in bad:
        return BadInputError(text)
    return RetryableError(text)
