"""What an operator can observe of a running stack, for the end-to-end tests."""

import json
import warnings

from glassbox.aws.incidents_table import IncidentsTable
from local.event_queue import EventQueue


class Inbox:
    """The messages of the stack's topic, each once.

    SNS delivers at least once, and botocore repeats a Publish whose response was lost.
    tests/unit/test_incident_messages.py checks that concurrent functions publish a notification once.
    """

    def __init__(self, stack):
        self._queue = EventQueue(stack, "inbox")
        self._queue.subscribe(stack.outputs["Topic"])
        self.messages = []

    def read(self):
        """Return all messages so far."""
        for message in self._queue.receive():
            received = json.loads(message["Body"])
            same = [m for m in self.messages if _text(m) == _text(received)]
            if same:
                ids = [(m["MessageId"], m["Timestamp"]) for m in (*same, received)]
                warnings.warn(f"{received.get('Subject')!r} arrived twice: {ids}", stacklevel=2)
            else:
                self.messages.append(received)
        return self.messages

    def notifications(self):
        """Return the notifications of incidents; the topic also has those of alarms and monitor jobs."""
        return [message for message in self.read() if (message.get("Subject") or "").startswith("Glassbox ")]


def _text(message):
    return message.get("Subject"), message["Message"]


def incident(stack):
    """Return the endpoint's current or last incident, or None."""
    table = IncidentsTable(stack.client("dynamodb"), stack.outputs["IncidentsTable"])
    return table.current(stack.outputs["EndpointName"])


def endpoint_state(stack):
    """Return the endpoint's status and config name."""
    endpoint = stack.client("sagemaker").describe_endpoint(EndpointName=stack.outputs["EndpointName"])
    return endpoint["EndpointStatus"], endpoint["EndpointConfigName"]


def keys(stack, prefix):
    """Return the keys of the stack's bucket below a prefix."""
    pages = stack.client("s3").get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=stack.outputs["Bucket"], Prefix=prefix)
    return [item["Key"] for page in found for item in page.get("Contents", ())]


def read_object(stack, key):
    """Return an object of the stack's bucket, in bytes."""
    return stack.client("s3").get_object(Bucket=stack.outputs["Bucket"], Key=key)["Body"].read()
