"""The SNS topic of the notifications to ops."""

import json
from typing import Any

from glassbox.aws.errors import AWS_ERRORS, translate
from glassbox.incidents.messages import by_protocol, subject_of
from glassbox.incidents.notifications import Notice


class Topic:
    """An SNS topic, through a boto3 ``sns`` client."""

    def __init__(self, client: Any, topic_arn: str) -> None:
        self._client, self._topic_arn = client, topic_arn

    def publish(self, notice: Notice) -> None:
        """Publish a notice, with one text for each protocol of SNS.

        Raises:
            RetryableError: a retry may succeed.
            BadInputError: no retry can succeed.
        """
        subject = subject_of(notice)
        try:
            self._client.publish(
                TopicArn=self._topic_arn,
                Subject=subject,
                Message=json.dumps(by_protocol(notice), ensure_ascii=False),
                MessageStructure="json",
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": value}
                    for name, value in notice.attributes.items()
                },
            )
        except AWS_ERRORS as error:
            raise translate(error, f"SNS refused {subject!r}", bad=("InvalidParameter",)) from error
