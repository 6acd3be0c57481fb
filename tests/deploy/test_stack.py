"""Check the deploy tool's stack functions where the embedded AWS is faster or more recent than AWS."""

import os
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from deploy import ROOT, DeployError, polling, stack, template


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


def test_change_parameters_leaves_out_parameters_unknown_to_the_stack(cloudformation):
    """CloudFormation would refuse the whole update of a stack with an older template."""
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
    stack.change_parameters("s", {"Hooked": "new", "Unknown": "value"}, client)
    stubber.assert_no_pending_responses()


def test_delete_names_the_resources_that_failed(cloudformation):
    client, stubber = cloudformation
    stubber.add_response("delete_stack", {})
    failed = described("DELETE_FAILED")
    failed["Stacks"][0]["StackStatusReason"] = "The following resource(s) failed to delete: [CountQueue]."
    stubber.add_response("describe_stacks", failed)
    with pytest.raises(DeployError, match=r"Stack s: the deletion failed: .*\[CountQueue\]"):
        stack.delete("s", client)


def parsed(status="UPDATE_COMPLETE", **parameters):
    return stack.Stack.parse(described(status, **parameters)["Stacks"][0])


def test_outputs_are_refused_when_a_stack_was_not_completed():
    """`make remove` reads the outputs of a stack whose creation failed."""
    with pytest.raises(
        DeployError, match=r"Stack outputs: expected EndpointName, .*, got none\. Run make deploy"
    ):
        _ = parsed("ROLLBACK_COMPLETE").outputs


def test_poll_returns_the_first_true_result_or_the_last_one(monkeypatch):
    monkeypatch.setattr(polling, "INTERVAL_SECONDS", 0)
    results = iter([0, 0, 7])
    assert polling.poll(lambda: next(results), 60.0) == 7
    assert polling.poll(lambda: 0, 0.0) == 0


class Lambda:
    """A mapping that changes its state after two reads, as on AWS, and refuses changes until then."""

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
    monkeypatch.setattr(polling, "INTERVAL_SECONDS", 0)
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


def test_violations_paused_waits_until_the_queue_is_disabled(session):
    """Lambda receives messages until its mapping is Disabled, and CloudFormation cannot delete it."""
    with stack.violations_paused("s", session):
        assert session.functions.seen[-1] == "Disabled"
        assert session.rules == dict.fromkeys(stack.INCIDENT_RULES, False)
    assert session.rules == dict.fromkeys(stack.INCIDENT_RULES, False)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError()])
def test_violations_paused_re_enables_the_rules_after_a_failure(session, capsys, failure):
    with pytest.raises(type(failure)), stack.violations_paused("s", session):
        session.functions.states = ["Disabling", "Disabled"]
        raise failure
    assert session.functions.seen[-1] == "Enabled"
    assert session.rules == dict.fromkeys(stack.INCIDENT_RULES, True)
    assert "make remove is resumable" in capsys.readouterr().out


def test_violations_paused_ignores_only_missing_resources(session):
    def refuse(**_):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DisableRule")

    session.client("events").disable_rule = refuse
    with pytest.raises(ClientError, match="AccessDenied"), stack.violations_paused("s", session):
        pass


@pytest.mark.parametrize("architecture", ["", "arm64", "x86_64"])
def test_make_deploy_sets_the_architecture_only_when_given(architecture):
    """Without ARCHITECTURE, the stack keeps its own."""
    variable = [f"ARCHITECTURE={architecture}"] if architecture else []
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "ARCHITECTURE")}
    output = subprocess.run(
        ["make", "-n", "deploy", "THRESHOLD=0.5", "SET=MaxFlaggedReplays=3", *variable],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (command,) = (line for line in output.splitlines() if "-m deploy deploy" in line)
    wanted = ["--set", *([f"Architecture={architecture}"] if architecture else []), "MaxFlaggedReplays=3"]
    assert command.split()[-len(wanted) :] == wanted


# ---------------------------------------------------------------- other stacks and versions


def glassbox(name, endpoint, status="CREATE_COMPLETE"):
    parameters = {"EndpointName": endpoint, "PlainConfigName": "", "HookedConfigName": ""}
    return described(status, **parameters)["Stacks"][0] | {"StackName": name}


def test_watchers_finds_every_stack_of_an_endpoint(cloudformation):
    client, stubber = cloudformation
    foreign = described(EndpointName="shop")["Stacks"][0] | {"StackName": "not-glassbox"}
    first = [glassbox("one", "shop"), glassbox("other", "another"), foreign]
    second = [glassbox("never", "shop", "ROLLBACK_COMPLETE"), glassbox("two", "shop", "CREATE_IN_PROGRESS")]
    stubber.add_response("describe_stacks", {"Stacks": first, "NextToken": "more"}, {})
    stubber.add_response("describe_stacks", {"Stacks": second}, {"NextToken": "more"})
    assert stack.watchers("shop", client) == ["one", "two"]


@pytest.mark.parametrize("status", ["CREATE_COMPLETE", "UPDATE_COMPLETE", "ROLLBACK_COMPLETE"])
@pytest.mark.parametrize("parameters", [{}, {"EndpointName": "shop"}])
def test_check_is_glassbox_refuses_a_stack_of_another_application(status, parameters):
    """An update would replace its resources with those of Glassbox."""
    with pytest.raises(DeployError, match="STACK: expected a Glassbox stack or a new name, got s"):
        stack.check_is_glassbox(parsed(status, **parameters))


def test_check_is_glassbox_accepts_our_stacks_and_empty_ones():
    stack.check_is_glassbox(stack.Stack.parse(glassbox("one", "shop")))
    stack.check_is_glassbox(parsed("REVIEW_IN_PROGRESS"))  # before its change set: no parameters


@pytest.mark.parametrize("found", ["none", "0"])
def test_check_storage_refuses_another_storage_version_with_the_fix(found):
    built = {"Outputs": {"StorageVersion": {"Value": "1"}}}
    outputs = {} if found == "none" else {"StorageVersion": found}
    with pytest.raises(DeployError) as caught:
        stack.check_storage(replace(parsed(), output_values=outputs), built)
    assert str(caught.value) == (
        f"Stack s: expected storage version 1, got {found}. Run make remove STACK=s, which keeps the bucket and the "
        "tables and prints their names, then make deploy."
    )
    stack.check_storage(replace(parsed(), output_values={"StorageVersion": "1"}), built)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "maxflagedreplays",
            "20",
            "maxflagedreplays: expected a parameter of template.yaml. Did you mean MaxFlaggedReplays?",
        ),
        (
            "MAXFLAGGEDREPLAYS",
            "20",
            "MAXFLAGGEDREPLAYS: expected a parameter of template.yaml. Did you mean MaxFlaggedReplays?",
        ),
        (
            "Nonsense",
            "20",
            "Nonsense: expected a parameter of template.yaml. docs/configuration.md lists them.",
        ),
        ("MaxFlaggedReplays", "200", "MaxFlaggedReplays: expected a number from 1 to 100, got '200'"),
        ("MaxFlaggedReplays", "nan", "MaxFlaggedReplays: expected a number from 1 to 100, got 'nan'"),
        ("Path", "a\nb", ""),
        ("Path", "123456789", "Path: expected at most 8 characters, got '123456789'"),
        ("MaxClassShare", "-1", "MaxClassShare: expected a number from 0, got '-1'"),
    ],
)
def test_parameter_problems_names_invalid_parameters_with_the_expected_value(name, value, problem):
    built = {
        "Parameters": {
            "MaxFlaggedReplays": {"Type": "Number", "Default": 12, "MinValue": 1, "MaxValue": 100},
            "MaxClassShare": {"Type": "Number", "Default": 1, "MinValue": 0},
            "Path": {"Type": "String", "Default": "", "MaxLength": 8},
        }
    }
    assert template.parameter_problems(built, {name: value}, {}) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        ("UPDATE_IN_PROGRESS", "Wait until CloudFormation has finished"),
        ("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", "Wait until CloudFormation has finished"),
        ("DELETE_FAILED", "make remove STACK=s to complete the deletion"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
    ],
)
def test_check_settled_refuses_a_stack_that_cannot_be_updated_with_the_fix(status, fix):
    """Otherwise deploy creates a twin before sam deploy fails."""
    with pytest.raises(DeployError, match=f"Stack s: expected a completed status, got {status}. .*{fix}"):
        stack.check_settled(parsed(status))
    for settled in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        stack.check_settled(parsed(settled))
