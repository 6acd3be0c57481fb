"""The SNS topic of the notifications to ops."""

import json
from typing import Any

from glassbox.aws.errors import AWS_ERRORS, translate
from glassbox.errors import printable
from glassbox.incidents.notifications import Notice

# SNS accepts 262,144 bytes: a message holds the text three times, and JSON may write a character in six bytes
_MESSAGE_CHARACTERS = 12_000
SUBJECT_CHARACTERS = 100  # of ASCII


class Topic:
    """An SNS topic, through a boto3 ``sns`` client."""

    def __init__(self, client: Any, topic_arn: str) -> None:
        self._client, self._topic_arn = client, topic_arn

    def publish(self, notice: Notice) -> None:
        """Publish a notice, with control characters escaped and a long subject or text cut.

        Raises:
            RetryableError: a retry may succeed.
            BadInputError: no retry can succeed.
        """
        notice = _within_limits(notice)
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
        except AWS_ERRORS as error:
            raise translate(error, f"SNS refused {notice.subject!r}", bad=("InvalidParameter",)) from error


def _within_limits(notice: Notice) -> Notice:
    subject = printable(notice.subject).encode("ascii", "replace").decode()[:SUBJECT_CHARACTERS]
    text = "\n".join(printable(line) for line in notice.text.split("\n"))
    if len(text) > _MESSAGE_CHARACTERS:
        text = f"{text[:_MESSAGE_CHARACTERS]}\n… {len(text) - _MESSAGE_CHARACTERS:,} more characters"
    return Notice(subject, text, notice.attributes)
