"""CloudWatch: metrics in log lines, queue depths and alarms by dimension, which ministack lacks."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ministack.core.responses import request_scope
from ministack.services import cloudwatch, lambda_svc, sqs

from local.gaps.topics import service_may_publish

logger = logging.getLogger("glassbox.monitoring")

EVALUATION_SECONDS = 1.0

_COMPARE = {
    "GreaterThanOrEqualToThreshold": lambda value, bound: value >= bound,
    "GreaterThanThreshold": lambda value, bound: value > bound,
    "LessThanThreshold": lambda value, bound: value < bound,
    "LessThanOrEqualToThreshold": lambda value, bound: value <= bound,
}


def install(account: str, region: str) -> None:
    """Read embedded metrics, measure queues, evaluate alarms and record their actions."""
    write_logs = lambda_svc._emit_lambda_logs

    def emit_logs(func: Any, request_id: str, log_text: str, *args: Any, **kwargs: Any) -> None:
        write_logs(func, request_id, log_text, *args, **kwargs)
        record_embedded_metrics(log_text)

    lambda_svc._emit_lambda_logs = emit_logs
    cloudwatch._evaluate_alarm = evaluate
    cloudwatch._dispatch_alarm_actions = _with_history(cloudwatch._dispatch_alarm_actions, account, region)
    threading.Thread(target=_watch, args=(account, region), name="alarms", daemon=True).start()


def record_embedded_metrics(log: str) -> None:
    """Record the metrics of log lines in CloudWatch's embedded metric format."""
    for line in log.splitlines():
        if '"_aws"' not in line:
            continue
        try:
            document = json.loads(line)
            for directive in document["_aws"]["CloudWatchMetrics"]:
                _record(document, directive)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("log line with _aws: not in the embedded metric format: %s", error)


def _record(document: dict[str, Any], directive: dict[str, Any]) -> None:
    for names in directive.get("Dimensions") or [[]]:
        dimensions = {name: str(document[name]) for name in names}
        for metric in directive["Metrics"]:
            values = document[metric["Name"]]
            for value in values if isinstance(values, list) else [values]:
                cloudwatch.record_metric(
                    directive["Namespace"], metric["Name"], value, metric.get("Unit", "None"), dimensions
                )


def _watch(account: str, region: str) -> None:
    depths: dict[str, tuple[int, float]] = {}
    while True:
        time.sleep(EVALUATION_SECONDS)
        with request_scope(account, region):
            _measure_queues(depths)
            for alarm in list(cloudwatch._alarms.values()):
                evaluate(alarm)


def _measure_queues(depths: dict[str, tuple[int, float]]) -> None:
    """Record each queue's depth after a change and every 30 s; `depths` has the last depth and its time."""
    now = time.time()
    for url, queue in list(sqs._queues.items()):
        visible = sum(1 for message in list(queue["messages"]) if message.get("visible_at", 0) <= now)
        depth, recorded = depths.get(url, (-1, 0.0))
        if visible != depth or now - recorded > 30:
            depths[url] = visible, now
            cloudwatch.record_metric(
                "AWS/SQS",
                "ApproximateNumberOfMessagesVisible",
                visible,
                "Count",
                {"QueueName": url.rpartition("/")[2]},
            )


def evaluate(alarm: dict[str, Any]) -> None:
    """Set a metric alarm's state by its metric and run its actions after a change."""
    state = _state(alarm)
    old = alarm["StateValue"]
    if state is None or state == old:
        return
    reason = f"Threshold Crossed: {alarm.get('MetricName')} is in state {state}"
    alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
    cloudwatch._record_history(alarm["AlarmName"], old, state, reason)
    cloudwatch._dispatch_alarm_actions(alarm, old, state, reason)


_ACTIONS = {"ALARM": "AlarmActions", "OK": "OKActions", "INSUFFICIENT_DATA": "InsufficientDataActions"}


def _with_history(dispatch: Callable[..., None], account: str, region: str) -> Callable[..., None]:
    """Publish only if the policies of topic and key allow it; record each action in the history."""

    def dispatch_allowed(alarm: dict[str, Any], old: str, new: str, reason: str) -> None:
        member = _ACTIONS[new]
        allowed = []
        for arn in alarm.get(member) or [] if alarm.get("ActionsEnabled", True) else []:
            source, error = alarm.get("AlarmArn", ""), None
            if ":sns:" not in arn or service_may_publish(
                arn, "cloudwatch.amazonaws.com", source, account, region
            ):
                allowed.append(arn)
            else:
                # As on AWS, the failure is only in the alarm's history.
                logger.error("%s: CloudWatch is not allowed to publish to %s", alarm["AlarmName"], arn)
                error = f"Resource: {source} is not authorized to perform: SNS:Publish on resource: {arn}"
            _record_action(alarm["AlarmName"], arn, error)
        dispatch({**alarm, member: allowed}, old, new, reason)

    return dispatch_allowed


def _record_action(alarm: str, arn: str, error: str | None) -> None:
    summary = f"Failed to execute action {arn}" if error else f"Successfully executed action {arn}"
    data = {"actionState": "Failed" if error else "Succeeded", "notificationResource": arn, "error": error}
    cloudwatch._history_entries().append(
        {
            "AlarmName": alarm,
            "AlarmType": "MetricAlarm",
            "Timestamp": cloudwatch._ts_iso(time.time()),
            "HistoryItemType": "Action",
            "HistorySummary": summary,
            "HistoryData": json.dumps(data),
        }
    )


def _state(alarm: dict[str, Any]) -> str | None:
    """Return OK or ALARM; None keeps the state: metric math, or missing data without TreatMissingData."""
    if not alarm.get("MetricName") or alarm.get("ComparisonOperator") not in _COMPARE:
        return None
    dimensions = {d["Name"]: d["Value"] for d in alarm.get("Dimensions") or []}
    key = (alarm["Namespace"], alarm["MetricName"], cloudwatch._dims_key(dimensions))
    since = time.time() - int(alarm.get("Period", 60)) * int(alarm.get("EvaluationPeriods", 1))
    points = [p for p in cloudwatch._metrics.get(key) or [] if p["Timestamp"] >= since]
    if not points:
        missing = alarm.get("TreatMissingData", "missing")
        return {"breaching": "ALARM", "notBreaching": "OK"}.get(missing)
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    value = cloudwatch._stat_value(cloudwatch._calc_stats(points), statistic, points)
    breaching = _COMPARE[alarm["ComparisonOperator"]](value, float(alarm["Threshold"]))
    return "ALARM" if breaching else "OK"
