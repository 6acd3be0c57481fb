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
    stubber.add_response("describe_stacks", described(Hooked="old", MaxFlaggedReplays="12"))
    wanted = [
        {"ParameterKey": "Hooked", "ParameterValue": "new"},
        {"ParameterKey": "MaxFlaggedReplays", "UsePreviousValue": True},
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
    with stack.violations_paused("s", session):
        assert session.functions.seen[-1] == "Disabled"
        assert session.rules == dict.fromkeys(stack.OPENING, False)
    assert session.rules == dict.fromkeys(stack.OPENING, False)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError()])
def test_a_failed_removal_re_enables_the_rules(session, capsys, failure):
    with pytest.raises(type(failure)), stack.violations_paused("s", session):
        session.functions.states = ["Disabling", "Disabled"]
        raise failure
    assert session.functions.seen[-1] == "Enabled"
    assert session.rules == dict.fromkeys(stack.OPENING, True)
    assert "make remove is resumable" in capsys.readouterr().out


def test_other_errors_than_a_missing_rule_are_raised(session):
    def refuse(**_):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DisableRule")

    session.client("events").disable_rule = refuse
    with pytest.raises(ClientError, match="AccessDenied"), stack.violations_paused("s", session):
        pass


@pytest.mark.parametrize("processor", ["", "arm64", "x86_64"])
def test_a_stacks_processor_changes_only_where_it_is_named(processor):
    """What make would run: without ARCHITECTURE the stack keeps its own."""
    named = [f"ARCHITECTURE={processor}"] if processor else []
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "ARCHITECTURE")}
    said = subprocess.run(
        ["make", "-n", "deploy", "THRESHOLD=0.5", "SET=MaxFlaggedReplays=3", *named],
        cwd=stack.ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (command,) = (line for line in said.splitlines() if "-m deploy deploy" in line)
    wanted = ["--set", *([f"Architecture={processor}"] if processor else []), "MaxFlaggedReplays=3"]
    assert command.split()[-len(wanted) :] == wanted


# ---------------------------------------------------------------- other stacks, other versions


def glassbox(name, endpoint, status="CREATE_COMPLETE"):
    parameters = {"EndpointName": endpoint, "PlainConfigName": "", "HookedConfigName": ""}
    return described(status, **parameters)["Stacks"][0] | {"StackName": name}


def test_every_stack_on_an_endpoint_is_found(cloudformation):
    client, stubber = cloudformation
    theirs = described(EndpointName="shop")["Stacks"][0] | {"StackName": "not-glassbox"}
    first = [glassbox("one", "shop"), glassbox("other", "door"), theirs]
    second = [glassbox("never", "shop", "ROLLBACK_COMPLETE"), glassbox("two", "shop", "CREATE_IN_PROGRESS")]
    stubber.add_response("describe_stacks", {"Stacks": first, "NextToken": "more"}, {})
    stubber.add_response("describe_stacks", {"Stacks": second}, {"NextToken": "more"})
    assert stack.watchers("shop", client) == ["one", "two"]


@pytest.mark.parametrize("status", ["CREATE_COMPLETE", "UPDATE_COMPLETE", "ROLLBACK_COMPLETE"])
@pytest.mark.parametrize("parameters", [{}, {"EndpointName": "shop"}])
def test_a_stack_of_another_application_is_refused(status, parameters):
    """An update would replace all of its resources with those of Glassbox."""
    with pytest.raises(stack.DeployError, match="Stack s exists, and is not a Glassbox stack"):
        stack.check_ours("s", described(status, **parameters)["Stacks"][0])


def test_a_stack_of_ours_and_one_that_is_only_reserved_are_taken():
    stack.check_ours("one", glassbox("one", "shop"))
    stack.check_ours(
        "s", described("REVIEW_IN_PROGRESS")["Stacks"][0]
    )  # before its change set: no parameters


@pytest.mark.parametrize("found", [[], [{"OutputKey": "StorageVersion", "OutputValue": "0"}]])
def test_a_stack_of_another_storage_version_is_refused_with_the_way_out(found):
    template = {"Outputs": {"StorageVersion": {"Value": "1"}}}
    with pytest.raises(stack.DeployError) as caught:
        stack.check_storage("glassbox", template, {"Outputs": found})
    got = found[0]["OutputValue"] if found else "none"
    assert str(caught.value) == (
        f"Stack glassbox: expected storage version 1, got {got}. Run make remove STACK=glassbox, which keeps and names "
        "the bucket and the tables, then make deploy."
    )
    stack.check_storage(
        "glassbox", template, {"Outputs": [{"OutputKey": "StorageVersion", "OutputValue": "1"}]}
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "maxflagedreplays",
            "20",
            "maxflagedreplays: expected a parameter of the stack. Did you mean MaxFlaggedReplays?",
        ),
        (
            "MAXFLAGGEDREPLAYS",
            "20",
            "MAXFLAGGEDREPLAYS: expected a parameter of the stack. Did you mean MaxFlaggedReplays?",
        ),
        ("Nonsense", "20", "Nonsense: expected a parameter of the stack (docs/configuration.md lists them)"),
        ("MaxFlaggedReplays", "200", "MaxFlaggedReplays: expected a number from 1 to 100, got '200'"),
        ("MaxFlaggedReplays", "nan", "MaxFlaggedReplays: expected a number from 1 to 100, got 'nan'"),
        ("Path", "a\nb", ""),
        ("Path", "123456789", "Path: expected at most 8 characters, got '123456789'"),
        ("MaxClassShare", "-1", "MaxClassShare: expected a number from 0, got '-1'"),
    ],
)
def test_a_parameter_that_cloudformation_would_refuse_is_named_with_what_it_takes(name, value, said):
    template = {
        "Parameters": {
            "MaxFlaggedReplays": {"Type": "Number", "Default": 12, "MinValue": 1, "MaxValue": 100},
            "MaxClassShare": {"Type": "Number", "Default": 1, "MinValue": 0},
            "Path": {"Type": "String", "Default": "", "MaxLength": 8},
        }
    }
    assert stack.problems(template, {name: value}, {}) == ([said] if said else [])


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        ("UPDATE_IN_PROGRESS", "wait until CloudFormation is done"),
        ("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", "wait until CloudFormation is done"),
        ("DELETE_FAILED", "make remove STACK=s completes the deletion"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
    ],
)
def test_a_stack_that_cloudformation_would_not_update_is_refused_with_the_way_out(status, way_out):
    """Otherwise its twin is created, and then sam deploy fails."""
    with pytest.raises(stack.DeployError, match=f"Stack s is {status}: .*{way_out}"):
        stack.check_settled("s", status)
    for settled in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        stack.check_settled("s", settled)
