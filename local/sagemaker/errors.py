"""Errors of the SageMaker APIs, with the codes and texts of AWS."""

from __future__ import annotations


class SageMakerError(Exception):
    """An API error, which boto3 raises as ClientError.

    Args:
        code: the error code in the response.
        status: the HTTP status.
        fields: further members of the error shape.
    """

    def __init__(self, code: str, message: str, status: int = 400, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields


def invalid(message: str) -> SageMakerError:
    """Return a ValidationException, SageMaker's error for nearly every invalid request."""
    return SageMakerError("ValidationException", message)


class StartFailedError(Exception):
    """A model or job did not start, for the reason that becomes its FailureReason."""
