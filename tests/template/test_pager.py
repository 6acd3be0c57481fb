"""docs/pager.yaml: its rules match what Glassbox puts on the bus, its payloads are what the services expect."""

import json
import re
from pathlib import Path

import cfnlint.api
import pytest
from samtranslator.yaml_helper import yaml_parse

from fakes import FakeObjects
from glassbox.incidents.events import read_violation
from glassbox.incidents.messages import NOTIFICATION_DETAIL_TYPE, facts_of
from glassbox.incidents.notifications import SEVERITIES
from glassbox.violation import VIOLATION_SOURCE
from notices import every_notification

PAGE = Path(__file__).parents[2] / "docs/pager.yaml"
TRIGGER = {"swapping", "watching", "failed", "cap-reached", "stale-twin", "hooked-without-incident"}
END = {"restored", "closed"}


@pytest.fixture(scope="module")
def resources():
    return yaml_parse(PAGE.read_text(encoding="utf-8"))["Resources"]


@pytest.fixture
def details(load_event):
    """The detail of every notification."""
    return [facts_of(n) for n in every_notification(read_violation(load_event("violation"), FakeObjects()))]


def payload(resources, rule, detail):
    """Return the body that a rule's input transformer makes: a variable without quotes is its value as JSON."""
    (target,) = resources[rule]["Properties"]["Targets"]
    transformer = target["InputTransformer"]
    values = {}
    for name, path in transformer["InputPathsMap"].items():
        head, _, field = path.removeprefix("$.").partition(".")
        assert head == "detail"
        values[name] = detail[field] if field else detail
    assert len(transformer["InputTemplate"]) <= 8192
    filled = re.sub(r"<(\w+)>", lambda match: json.dumps(values[match[1]]), transformer["InputTemplate"])
    return json.loads(filled)


def test_cfn_lint_accepts_the_template():
    found = cfnlint.api.lint(PAGE.read_text(encoding="utf-8"), config={"regions": ["eu-west-1"]})
    assert [str(match) for match in found] == []


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("PagerDutyTrigger", TRIGGER),
        ("PagerDutyResolve", END),
        ("OpsgenieTrigger", TRIGGER),
        ("OpsgenieClose", END),
    ],
)
def test_rules_match_the_events_of_glassbox(resources, rule, events):
    pattern = resources[rule]["Properties"]["EventPattern"]
    assert pattern["source"] == [VIOLATION_SOURCE]
    assert pattern["detail-type"] == [NOTIFICATION_DETAIL_TYPE]
    assert set(pattern["detail"]["event"]) == events <= set(SEVERITIES)
    assert pattern["detail"]["endpoint"] == [{"Ref": "EndpointName"}]


def test_pagerduty_gets_an_event_of_its_events_api(resources, details):
    for detail in details:
        event = payload(resources, "PagerDutyTrigger", detail)
        assert event.keys() == {"event_action", "dedup_key", "payload"}
        assert event["payload"].keys() == {"summary", "severity", "source", "custom_details"}
        assert event["event_action"] == "trigger"
        assert event["payload"]["severity"] in ("critical", "error", "warning", "info")
        assert len(event["payload"]["summary"]) <= 1024
        assert len(event["dedup_key"]) <= 255
        assert len(json.dumps(event).encode()) <= 512 * 1024
        end = payload(resources, "PagerDutyResolve", detail)
        assert end == {"event_action": "resolve", "dedup_key": event["dedup_key"]}


def test_opsgenie_gets_an_alert_and_closes_it_by_its_alias(resources, details):
    for detail in details:
        alert = payload(resources, "OpsgenieTrigger", detail)
        assert 0 < len(alert["message"]) <= 130
        assert len(alert["description"]) <= 15_000
        assert re.fullmatch(
            r"[A-Za-z0-9.-]{1,512}", alert["alias"]
        )  # stands in the path of the close request
        assert payload(resources, "OpsgenieClose", detail)["note"] == detail["subject"]
    (target,) = resources["OpsgenieClose"]["Properties"]["Targets"]
    assert target["HttpParameters"]["PathParameterValues"] == ["$.detail.deduplication_key"]
    url = resources["OpsgenieClosing"]["Properties"]["InvocationEndpoint"]
    assert url.count("*") == 1


def test_each_target_has_a_dead_letter_queue_and_a_role(resources):
    for rule in (r for r in resources.values() if r["Type"] == "AWS::Events::Rule"):
        (target,) = rule["Properties"]["Targets"]
        assert target["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": "DeadLetters.Arn"}} or target[
            "DeadLetterConfig"
        ] == {"Arn": {"Fn::GetAtt": ["DeadLetters", "Arn"]}}
        assert "RoleArn" in target
