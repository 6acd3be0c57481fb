"""The commands that the deploy tool sends to a stack."""

import json
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta

import pytest

from deploy import DeployError, status
from deploy.incident import minutes, send_command
from deploy.stack import Outputs
from glassbox.incidents.model import EndpointState, Incident, State
from glassbox.violation import Violation


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


NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
OUTPUTS = Outputs("shop-window", "bucket", "counts", "incidents", "topic", "plain", "hooked")
CAUSE = Violation("shop-window", "class_share", NOW - timedelta(hours=1), NOW, "Class 14 predicted 80%")


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (EndpointState("InService", "plain"), "InService, serves plain (its plain config)"),
        (EndpointState("Updating", "hooked"), "Updating, serves hooked (its hooked twin)"),
        (
            EndpointState("InService", "new", "no capacity"),
            "InService, serves new (neither the plain config nor the twin of the stack: run make twin). "
            "The last update failed: no capacity",
        ),
        (EndpointState("Deleted", ""), "does not exist"),
    ],
)
def test_status_names_what_the_endpoint_serves(live, expected):
    assert status._serves(live, OUTPUTS) == expected


def test_status_names_an_open_incident_with_its_cause_and_its_end():
    incident = Incident(
        "shop-window",
        "20261123t100000-class-share",
        NOW,
        State.HOOKED,
        NOW,
        "plain",
        "hooked",
        CAUSE,
        deadline=NOW + timedelta(minutes=15),
        why="Probable cause (99%): attack",
    )
    assert list(status._incident_lines(incident)) == [
        "Incident 20261123t100000-class-share: HOOKED since 2026-11-23 10:00 UTC",
        "  the endpoint is restored at 10:15 UTC at the latest",
        "  Class 14 predicted 80%",
        "  Probable cause (99%): attack",
    ]
    assert list(status._incident_lines(None)) == ["Incident: none so far"]


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "1441", "ten", ""])
def test_minutes_are_checked_before_a_command_is_sent(text):
    with pytest.raises(ArgumentTypeError, match="MINUTES: expected a whole number from 1 to 1440"):
        minutes(text)
    assert minutes("1440") == 1440
