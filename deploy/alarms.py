"""Whether the stack's alarms reach the topic: AWS reports a refusal in an alarm's history only."""

from __future__ import annotations

import json
import time
from typing import Any

ACTION_SECONDS, PAUSE = 60.0, 2.0


def check_alarm(stack: str, session: Any) -> str:
    """Set one of the stack's alarms off, and return in a sentence what its history says about the notification.

    CloudWatch sets the alarm back at its next evaluation, within a minute or two. The topic's subscribers get one
    notification, whose reason names the test.
    """
    cloudformation, cloudwatch = session.client("cloudformation"), session.client("cloudwatch")
    resources = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    names = [r["PhysicalResourceId"] for r in resources if r["ResourceType"] == "AWS::CloudWatch::Alarm"]
    alarms = cloudwatch.describe_alarms(AlarmNames=sorted(names), AlarmTypes=["MetricAlarm"])["MetricAlarms"]
    # An alarm that is in ALARM already would execute no action.
    alarm = next((a["AlarmName"] for a in alarms if a["StateValue"] != "ALARM"), None)
    if alarm is None:
        return (
            f"Alarms: all {len(alarms)} alarms of {stack} are in ALARM; whether they notify was not tested."
        )
    before = _latest_action(alarm, cloudwatch)
    cloudwatch.set_alarm_state(
        AlarmName=alarm,
        StateValue="ALARM",
        StateReason=f"Test by make deploy of stack {stack}. No action needed.",
    )
    deadline = time.monotonic() + ACTION_SECONDS
    while time.monotonic() < deadline:
        action = _latest_action(alarm, cloudwatch)
        if action and action != before:
            return f"Alarms: {_described(alarm, action)}"
        time.sleep(PAUSE)
    return (
        f"Alarms: {alarm} was set to ALARM, and its history shows no action after {ACTION_SECONDS:.0f} s: "
        f"aws cloudwatch describe-alarm-history --alarm-name {alarm}"
    )


def _latest_action(alarm: str, cloudwatch: Any) -> dict[str, Any] | None:
    history = cloudwatch.describe_alarm_history(AlarmName=alarm, HistoryItemType="Action", MaxRecords=1)
    items: list[dict[str, Any]] = history["AlarmHistoryItems"]
    return items[0] if items else None


def _described(alarm: str, item: dict[str, Any]) -> str:
    summary = item["HistorySummary"]
    if summary.startswith("Successfully"):
        return f"{alarm} was set off for a test, and the topic took its notification ({summary})."
    error = json.loads(item.get("HistoryData") or "{}").get("error")
    return (
        f"{alarm} was set off for a test, and NOTIFIED NOBODY: {summary}{f' ({error})' if error else ''}. "
        "The topic's key policy must allow cloudwatch.amazonaws.com kms:Decrypt and kms:GenerateDataKey."
    )
