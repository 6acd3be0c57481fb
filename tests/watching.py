"""What an operator could see of a running stack, for the e2e tests."""

import json
import time
import warnings

from glassbox.aws.incidents_table import IncidentsTable


class Inbox:
    """What ops are told: a queue behind the topic, each message once.

    SNS delivers at least once, and botocore repeats a Publish whose answer was lost. That concurrent functions publish
    a notification once is what tests/unit/test_incident_messages.py proves.
    """

    def __init__(self, stack):
        self.sqs, sns = stack.client("sqs"), stack.client("sns")
        self.url = self.sqs.create_queue(QueueName="inbox")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]
        allow = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        self.sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"Policy": policy})
        sns.subscribe(TopicArn=stack.outputs["Topic"], Protocol="sqs", Endpoint=arn)
        self.messages = []

    def read(self):
        for message in self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10).get(
            "Messages", ()
        ):
            told = json.loads(message["Body"])
            same = [m for m in self.messages if _text(m) == _text(told)]
            if same:
                ids = [(m["MessageId"], m["Timestamp"]) for m in (*same, told)]
                warnings.warn(f"{told.get('Subject')!r} arrived twice: {ids}", stacklevel=2)
            else:
                self.messages.append(told)
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return self.messages

    def notifications(self):
        """The messages of incidents; the stack's alarms and monitor jobs publish to the topic too."""
        return [message for message in self.read() if (message.get("Subject") or "").startswith("Glassbox ")]


def _text(message):
    return message.get("Subject"), message["Message"]


def wait_for(look, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def incident(stack):
    table = IncidentsTable(stack.client("dynamodb"), stack.outputs["IncidentsTable"])
    return table.current("traffic-signs")
