"""SageMaker processing jobs."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from glassbox.errors import BadInputError, ConflictError, RetryableError


class ProcessingJobs:
    """CreateProcessingJob through a boto3 ``sagemaker`` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def create(self, request: Mapping[str, Any]) -> None:
        """Start a job.

        Raises:
            ConflictError: there is a job of this name.
            BadInputError: SageMaker will never take this request.
            RetryableError: a limit or throttling was hit, or AWS could not be reached.
        """
        name = request["ProcessingJobName"]
        try:
            self._client.create_processing_job(**request)
        except ClientError as error:
            kinds = {"ResourceInUse": ConflictError, "ValidationException": BadInputError}
            raise kinds.get(error.response["Error"]["Code"], RetryableError)(f"{name}: {error}") from error
        except ParamValidationError as error:
            raise BadInputError(f"{name}: {error}") from error
        except BotoCoreError as error:
            raise RetryableError(f"{name}: {error}") from error
