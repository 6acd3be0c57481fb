"""Errors of the SageMaker APIs, with the codes and texts AWS uses."""

from __future__ import annotations


class SageMakerError(Exception):
    """An API error: what boto3 raises as ClientError.

    `code` is the error code on the wire, `status` the HTTP status, `fields` further members of the error shape.
    """

    def __init__(self, code: str, message: str, status: int = 400, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields


def invalid(message: str) -> SageMakerError:
    """SageMaker answers nearly everything wrong with ValidationException."""
    return SageMakerError("ValidationException", message)


class StartFailedError(Exception):
    """A model or job could not be started; the text becomes its FailureReason."""
