"""What the deploy tool does to a stack, where the embedded AWS is quicker or newer than AWS."""

import os
import subprocess
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from deploy import stack


@pytest.fixture
def cloudformation():
    client = boto3.client("cloudformation", region_name="eu-west-1")
    with Stubber(client) as stubber:
        yield client, stubber


def described(status="UPDATE_COMPLETE", **parameters):
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    return {
        "Stacks": [
            {"StackName": "s", "CreationTime": 0, "StackStatus": status, "Parameters": given, "Outputs": []}
        ]
    }


def test_a_parameter_that_the_stacks_template_does_not_have_is_left_out(cloudformation):
    """It was deployed from an older one; CloudFormation would refuse the whole update."""
    client, stubber = cloudformation
    stubber.add_response("describe_stacks", described(Hooked="old", Flagged="12"))
    wanted = [
        {"ParameterKey": "Hooked", "ParameterValue": "new"},
        {"ParameterKey": "Flagged", "UsePreviousValue": True},
    ]
    capabilities = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
    expected = {"StackName": "s", "UsePreviousTemplate": True, "Capabilities": capabilities}
    stubber.add_response("update_stack", {}, expected | {"Parameters": wanted})
    stubber.add_response("describe_stacks", described())
    stack.change_parameters("s", {"Hooked": "new", "Unheard": "of"}, client)
    stubber.assert_no_pending_responses()


def test_what_could_not_be_deleted_is_named(cloudformation):
    client, stubber = cloudformation
    stubber.add_response("delete_stack", {})
    failed = described("DELETE_FAILED")
    failed["Stacks"][0]["StackStatusReason"] = "The following resource(s) failed to delete: [CountQueue]."
    stubber.add_response("describe_stacks", failed)
    with pytest.raises(stack.DeployError, match=r"s could not be deleted, try again: .*\[CountQueue\]"):
        stack.delete("s", client)


class Lambda:
    """A mapping that takes two looks to be what was asked for, as on AWS, and refuses changes until then."""

    def __init__(self):
        self.states, self.seen = ["Enabled"], []

    def get_event_source_mapping(self, UUID):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        self.seen.append(state)
        return {"State": state}

    def update_event_source_mapping(self, UUID, Enabled):
        assert len(self.states) == 1
        verb = "Enabl" if Enabled else "Disabl"
        self.states = [f"{verb}ing", f"{verb}ing", f"{verb}ed"]


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(stack, "PAUSE", 0)
    rules = {}
    clients = {
        "lambda": Lambda(),
        "events": SimpleNamespace(
            enable_rule=lambda Name: rules.update({Name: True}),
            disable_rule=lambda Name: rules.update({Name: False}),
        ),
        "cloudformation": SimpleNamespace(
            describe_stack_resource=lambda StackName, LogicalResourceId: {
                "StackResourceDetail": {"PhysicalResourceId": LogicalResourceId}
            }
        ),
    }
    return SimpleNamespace(client=clients.__getitem__, rules=rules, functions=clients["lambda"])


def test_nothing_is_begun_before_the_queue_is_left_alone(session):
    """Until its mapping is Disabled messages are taken, and CloudFormation cannot delete it."""
    with stack.deaf("s", session):
        assert session.functions.seen[-1] == "Disabled"
        assert session.rules == dict.fromkeys(stack.OPENING, False)
    assert session.rules == dict.fromkeys(stack.OPENING, False)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError()])
def test_what_ends_badly_leaves_the_stack_as_it_was(session, capsys, failure):
    with pytest.raises(type(failure)), stack.deaf("s", session):
        session.functions.states = ["Disabling", "Disabled"]
        raise failure
    assert session.functions.seen[-1] == "Enabled"
    assert session.rules == dict.fromkeys(stack.OPENING, True)
    assert "make remove goes on from here" in capsys.readouterr().out


def test_what_else_goes_wrong_than_that_it_is_gone_is_told(session):
    def refuse(**_):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DisableRule")

    session.client("events").disable_rule = refuse
    with pytest.raises(ClientError, match="AccessDenied"), stack.deaf("s", session):
        pass


@pytest.mark.parametrize("processor", ["", "arm64", "x86_64"])
def test_a_stacks_processor_changes_only_where_it_is_named(processor):
    """What make would run: without ARCHITECTURE the stack keeps its own."""
    named = [f"ARCHITECTURE={processor}"] if processor else []
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "ARCHITECTURE")}
    said = subprocess.run(
        ["make", "-n", "deploy", "THRESHOLD=0.5", "SET=Flagged=3", *named],
        cwd=stack.ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (command,) = (line for line in said.splitlines() if "-m deploy deploy" in line)
    wanted = ["--set", *([f"Architecture={processor}"] if processor else []), "Flagged=3"]
    assert command.split()[-len(wanted) :] == wanted
