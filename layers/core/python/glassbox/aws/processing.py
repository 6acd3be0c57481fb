"""SageMaker processing jobs."""

from collections.abc import Mapping
from typing import Any

from glassbox.aws.errors import AWS_ERRORS, translate


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
        except AWS_ERRORS as error:
            raise translate(error, name, bad=("ValidationException",), conflict=("ResourceInUse",)) from error
