"""The rules of template.yaml match the events of events/, and no near-miss."""

import copy
import hashlib
import json
import re

import pytest
from ministack.services.eventbridge import _matches_pattern


@pytest.fixture
def rules_for(template, resolve):
    """The logical ids of the rules that an event (as delivered) starts, with the stack's parameters."""

    def match(event, **parameters):
        sent = {
            "EventId": event["id"],
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Detail": json.dumps(event["detail"]),
            "Time": event["time"],
            "Region": event["region"],
            "Account": event["account"],
            "Resources": event["resources"],
        }
        return {
            name
            for name, r in template["Resources"].items()
            if r["Type"] == "AWS::Events::Rule"
            and "EventPattern" in r["Properties"]
            and _matches_pattern(json.dumps(resolve(r["Properties"]["EventPattern"], **parameters)), sent)
        }

    return match


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("violation", {"ViolationRule"}),
        ("monitor-job-violations", {"MonitorJobRule"}),
        ("monitor-job-clean", set()),
        ("monitor-job-failed", {"MonitorFailedRule"}),
        ("monitor-job-failed-early", {"MonitorFailedRule"}),
        ("monitor-report-created", {"MonitorReportRule"}),
        ("capture-object-created", {"CaptureRule"}),
        ("tensor-index-created", {"TensorRule"}),
        ("tensor-events-created", set()),
        ("heatmap-created", set()),
        ("heatmap-facts-created", {"HeatmapRule"}),
        ("endpoint-in-service", {"EndpointStateRule"}),
        ("command-open", {"OpenRule", "CommandRule"}),
        ("command-extend", {"CommandRule"}),
        ("command-abort", {"CommandRule"}),
    ],
)
def test_each_event_matches_its_rule_only(rules_for, load_event, name, rules):
    assert rules_for(load_event(name)) == rules


def edited(event, path, value):
    event = copy.deepcopy(event)
    *parents, last = path.split("/")
    node = event
    for key in parents:
        node = node[key]
    node[last] = value
    return event


INDEX = "index/000000000/000000000007_worker_0.json"
COLLECTIONS = "collections/000000000/worker_0_collections.json"

NEAR_MISSES = [
    # another endpoint whose name has the same prefix
    ("violation", "detail/endpoint", "traffic-signs-2"),
    ("monitor-job-violations", "detail/Environment/sagemaker_endpoint_name", "traffic-signs-2"),
    (
        "tensor-index-created",
        "detail/object/key",
        f"tensors/traffic-signs-2/r/{INDEX}",
    ),
    # another source or detail-type
    ("violation", "source", "glassbox.test"),
    ("violation", "detail-type", "Violation"),
    # a job in progress, a successful job, and a detail-type that AWS does not send
    ("monitor-job-violations", "detail/ProcessingJobStatus", "InProgress"),
    ("monitor-job-failed", "detail/ProcessingJobStatus", "Completed"),
    # another schedule of the same endpoint
    ("monitor-job-violations", "detail/Environment/sagemaker_monitoring_schedule_name", "acme-data-quality"),
    # a job of another stack or account
    ("monitor-job-failed", "detail/RoleArn", "arn:aws:iam::111122223333:role/monitor-2"),
    ("monitor-job-failed-early", "detail/RoleArn", "arn:aws:iam::111122223333:role/acme/monitor"),
    ("monitor-job-failed-early", "detail/ProcessingJobStatus", "Stopping"),
    ("monitor-job-violations", "detail/ExitMessage", "Completed: not CompletedWithViolations"),
    ("monitor-job-violations", "detail-type", "SageMaker Model Monitor Execution Status Change"),
    # other monitor files, a misspelled name, and the right name under another prefix
    (
        "monitor-report-created",
        "detail/object/key",
        "monitoring/traffic-signs/hourly/2026/11/23/10/statistics.json",
    ),
    (
        "monitor-report-created",
        "detail/object/key",
        "monitoring/traffic-signs/hourly/constraints_violations.json",
    ),
    ("monitor-report-created", "detail/object/key", "incidents/traffic-signs/constraint_violations.json"),
    # captures of another endpoint, and an object that is not a capture file
    (
        "capture-object-created",
        "detail/object/key",
        "capture/traffic-signs-2/AllTraffic/2026/11/23/10/a.jsonl",
    ),
    (
        "capture-object-created",
        "detail/object/key",
        "capture/traffic-signs/AllTraffic/2026/11/23/10/a.jsonl.tmp",
    ),
    (
        "capture-object-created",
        "detail/object/key",
        "old/capture/traffic-signs/AllTraffic/2026/11/23/10/a.jsonl",
    ),
    # state and heat map of another endpoint
    ("endpoint-in-service", "detail/EndpointName", "traffic-signs-2"),
    ("endpoint-in-service", "detail-type", "SageMaker Endpoint Deployment State Change"),
    ("heatmap-facts-created", "detail/object/key", "saliency/traffic-signs-2/live/a.json"),
    ("command-open", "source", "glassbox"),
    # another bucket; the other objects of the step
    ("tensor-index-created", "detail/bucket/name", "amzn-s3-demo-bucket1"),
    (
        "tensor-index-created",
        "detail/object/key",
        f"tensors/traffic-signs/r/{COLLECTIONS}",
    ),
    ("tensor-index-created", "detail/object/key", "tensors/traffic-signs/r/training_job_end.ts"),
    # deletion
    ("tensor-index-created", "detail-type", "Object Deleted"),
]


def test_a_job_of_the_stacks_own_model_monitor_schedule_matches(template, resolve, rules_for, load_event):
    schedule = "detail/Environment/sagemaker_monitoring_schedule_name"
    ours = resolve(template["Outputs"]["MonitoringScheduleName"]["Value"])
    assert re.fullmatch(r"hourly-[a-zA-Z0-9](-*[a-zA-Z0-9]){0,55}", ours)
    event = load_event("monitor-job-violations")
    assert rules_for(edited(event, schedule, ours)) == {"MonitorJobRule"}
    assert rules_for(edited(event, schedule, f"{ours}-2")) == set()


@pytest.mark.parametrize(
    ("bucket", "folder", "rules"),
    [
        ("acme-captures", "sagemaker/captured/traffic-signs", {"CaptureRule"}),
        ("acme-captures", "sagemaker/captured/traffic-signs-2", set()),
        ("acme-captures", "captured/traffic-signs", set()),
        ("acme-captures", "sagemaker/captured/old/traffic-signs", set()),
        ("amzn-s3-demo-bucket", "sagemaker/captured/traffic-signs", set()),
    ],
)
def test_captures_of_an_existing_endpoint_match_in_its_bucket(rules_for, load_event, bucket, folder, rules):
    watching = {"ModelDataUrl": "", "CaptureBucket": "acme-captures", "CapturePrefix": "sagemaker/captured"}
    event = edited(load_event("capture-object-created"), "detail/bucket/name", bucket)
    event = edited(event, "detail/object/key", f"{folder}/AllTraffic/2026/11/23/10/a.jsonl")
    assert rules_for(event, **watching) == rules


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("detail/endpoint", "traffic-sings"),
        ("detail/action", "abrot"),
        ("detail", {}),
        ("detail-type", "Command"),
    ],
)
def test_a_command_with_a_mistake_reaches_the_function_that_answers_it(rules_for, load_event, path, value):
    assert rules_for(edited(load_event("command-abort"), path, value)) == {"CommandRule"}
    assert rules_for(edited(load_event("command-open"), path, value)) == {"CommandRule"}


@pytest.mark.parametrize(("name", "path", "value"), NEAR_MISSES)
def test_near_misses_match_no_rule(rules_for, load_event, name, path, value):
    assert rules_for(load_event(name))
    assert rules_for(edited(load_event(name), path, value)) == set()


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("sqs-capture", "capture-object-created"),
        ("sqs-violation", "violation"),
        ("sqs-endpoint-in-service", "endpoint-in-service"),
        ("sqs-tensor-index", "tensor-index-created"),
        ("sqs-command-abort", "command-abort"),
    ],
)
def test_example_messages_carry_events_that_rules_match(load_event, name, carried):
    (record,) = load_event(name)["Records"]
    assert json.loads(record["body"]) == load_event(carried)
    assert record["md5OfBody"] == hashlib.md5(record["body"].encode(), usedforsecurity=False).hexdigest()
