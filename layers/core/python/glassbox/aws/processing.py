"""SageMaker processing jobs."""

from collections.abc import Mapping
from typing import Any

from glassbox.aws.errors import translated


class ProcessingJobs:
    """CreateProcessingJob through a boto3 ``sagemaker`` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def create(self, request: Mapping[str, Any]) -> None:
        """Start a job.

        Raises:
            ConflictError: a job of this name exists.
            BadInputError: SageMaker refuses the request, also on a retry.
            RetryableError: a quota, throttling or the network.
        """
        with translated(
            request["ProcessingJobName"], bad=("ValidationException",), conflict=("ResourceInUse",)
        ):
            self._client.create_processing_job(**request)
