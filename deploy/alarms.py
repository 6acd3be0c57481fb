"""Test whether the stack's alarms notify its topic: AWS reports a refusal in the alarm history only."""

from __future__ import annotations

import json
from typing import Any

import boto3

from deploy.polling import poll

ACTION_SECONDS = 60.0


def check_alarm(stack: str, session: boto3.Session) -> str:
    """Set one alarm of the stack to ALARM, and return the result from its history.

    CloudWatch resets the alarm at its next evaluation, within two minutes. The topic's subscribers get one
    notification; its reason names the test.
    """
    cloudformation, cloudwatch = session.client("cloudformation"), session.client("cloudwatch")
    resources = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    names = [r["PhysicalResourceId"] for r in resources if r["ResourceType"] == "AWS::CloudWatch::Alarm"]
    alarms = cloudwatch.describe_alarms(AlarmNames=sorted(names), AlarmTypes=["MetricAlarm"])["MetricAlarms"]
    # An alarm already in ALARM executes no action.
    alarm = next((a["AlarmName"] for a in alarms if a["StateValue"] != "ALARM"), None)
    if alarm is None:
        return f"Alarms: not tested, since all {len(alarms)} alarms of stack {stack} are in ALARM."
    before = _latest_action(alarm, cloudwatch)
    cloudwatch.set_alarm_state(
        AlarmName=alarm,
        StateValue="ALARM",
        StateReason=f"Test by make deploy of stack {stack}. No action needed.",
    )

    def new_action() -> dict[str, Any] | None:
        action = _latest_action(alarm, cloudwatch)
        return None if action == before else action

    if action := poll(new_action, ACTION_SECONDS):
        return f"Alarms: {_outcome(alarm, action)}"
    return (
        f"Alarms: the history of {alarm} contains no action {ACTION_SECONDS:.0f} s after the test. Look again: "
        f"aws cloudwatch describe-alarm-history --alarm-name {alarm}"
    )


def _latest_action(alarm: str, cloudwatch: Any) -> dict[str, Any] | None:
    history = cloudwatch.describe_alarm_history(AlarmName=alarm, HistoryItemType="Action", MaxRecords=1)
    items: list[dict[str, Any]] = history["AlarmHistoryItems"]
    return items[0] if items else None


def _outcome(alarm: str, action: dict[str, Any]) -> str:
    summary = action["HistorySummary"]
    if summary.startswith("Successfully"):
        return f"the test of {alarm} published a notification to the topic ({summary})."
    error = json.loads(action.get("HistoryData") or "{}").get("error")
    return (
        f"the test of {alarm} FAILED: {summary}{f' ({error})' if error else ''}. "
        "Allow cloudwatch.amazonaws.com kms:Decrypt and kms:GenerateDataKey in the policy of the topic's key."
    )
