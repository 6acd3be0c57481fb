"""The commands that the deploy tool sends to a stack."""

import json

import pytest

from deploy import DeployError
from deploy.incident import send_command


class Session:
    """A session whose EventBridge client answers with this response."""

    def __init__(self, answer):
        self.answer, self.entries = answer, []

    def client(self, service):
        assert service == "events"
        return self

    def put_events(self, Entries):
        self.entries += Entries
        return self.answer


def test_sends_a_command_with_its_details():
    session = Session({"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]})
    send_command("shop-window", "extend", session, minutes=30)
    (entry,) = session.entries
    assert (entry["Source"], entry["DetailType"]) == ("glassbox.operator", "Glassbox Command")
    assert json.loads(entry["Detail"]) == {"endpoint": "shop-window", "action": "extend", "minutes": 30}


def test_raises_for_a_command_that_eventbridge_refuses_with_status_200():
    session = Session(
        {
            "FailedEntryCount": 1,
            "Entries": [{"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"}],
        }
    )
    with pytest.raises(DeployError, match="'Glassbox Command' event was not published: ThrottlingException"):
        send_command("shop-window", "abort", session)
