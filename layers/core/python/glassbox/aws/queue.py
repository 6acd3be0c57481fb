"""An SQS queue that a function sends messages to."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from glassbox.aws.errors import translated


class Queue:
    """An SQS queue, through a boto3 ``sqs`` client."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    def send(self, message: Mapping[str, Any], delay: timedelta = timedelta()) -> None:
        """Send a message that gets visible after ``delay``, at most 15 minutes.

        Raises:
            RetryableError: SQS refuses it or does not answer.
        """
        with translated(f"the message to {self._url} was not sent"):
            self._client.send_message(
                QueueUrl=self._url,
                MessageBody=json.dumps(message),
                DelaySeconds=round(delay.total_seconds()),
            )
