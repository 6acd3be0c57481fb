"""Messages to ops over SNS."""

import json
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from glassbox.errors import RetryableError
from glassbox.message import Notice


class Topic:
    """Publishes through a boto3 ``sns`` client."""

    def __init__(self, client: Any, topic_arn: str) -> None:
        self._client, self._topic_arn = client, topic_arn

    def publish(self, notice: Notice) -> None:
        """Raises RetryableError when SNS does not take it."""
        try:
            self._client.publish(
                TopicArn=self._topic_arn,
                Subject=notice.subject,
                Message=json.dumps(
                    {"default": notice.machine_readable(), "email": notice.text, "sms": notice.text}
                ),
                MessageStructure="json",
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": value}
                    for name, value in notice.attributes.items()
                },
            )
        except (ClientError, BotoCoreError) as error:
            raise RetryableError(f"SNS did not take {notice.subject!r}: {error}") from error
