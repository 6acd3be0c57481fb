"""model-monitor.yaml, the hourly monitor job as a Model Monitor schedule, against template.yaml."""

import dataclasses

import pytest
from samtranslator.yaml_helper import yaml_parse

from conftest import ROOT
from glassbox.monitoring.count_file import CountingSettings

# The parameters that come from the outputs of the Glassbox stack, and what has to be given here.
REQUIRED = {
    "MonitoringScheduleName",
    "MonitorRoleArn",
    "ReplayKeyArn",
    "Bucket",
    "EndpointName",
    "MonitorImage",
    "MaxClassShare",
}


@pytest.fixture(scope="module")
def schedule():
    return yaml_parse((ROOT / "model-monitor.yaml").read_text())


@pytest.fixture(scope="module")
def definition(schedule):
    (resource,) = schedule["Resources"].values()
    return resource["Properties"]["MonitoringScheduleConfig"]["MonitoringJobDefinition"]


def test_parameters_have_the_bounds_of_the_stack(schedule, template):
    own = {"MonitoringScheduleName", "MonitorRoleArn", "ReplayKeyArn", "Bucket"}
    assert {n for n, p in schedule["Parameters"].items() if "Default" not in p} == REQUIRED
    assert own < set(schedule["Parameters"])
    for name in set(schedule["Parameters"]) - own:
        here, there = schedule["Parameters"][name], template["Parameters"][name]
        for key in ("Type", "MaxLength", "MinValue", "MaxValue", "AllowedValues"):
            assert here.get(key) == there.get(key), name
        if name not in REQUIRED:
            assert (here.get("Default"), here.get("AllowedPattern")) == (
                there.get("Default"),
                there.get("AllowedPattern"),
            ), name


def test_the_job_gets_every_threshold_and_no_empty_value(definition):
    environment = definition["Environment"]
    bounds = {f.name.upper() for f in dataclasses.fields(CountingSettings)} - {"BASELINE_STATISTICS"}
    assert set(environment) == bounds | {"publish_cloudwatch_metrics", "REPLAY_KEY_ARN"}
    for name, value in environment.items():
        may_be_empty = name not in (
            "publish_cloudwatch_metrics",
            "THRESHOLD",
            "MIN_PREDICTIONS",
            "UNREADABLE_THRESHOLD",
            "REPLAY_KEY_ARN",
        )
        assert ("Fn::If" in value) == may_be_empty, name


def test_the_job_is_never_isolated(schedule, definition):
    """It reads the public key of the replay markers from KMS."""
    assert definition["NetworkConfig"]["EnableNetworkIsolation"] is False
    assert not [name for name in schedule["Parameters"] if "Isolation" in name]


def test_the_report_is_written_under_the_prefix_of_the_stacks_rule(definition):
    (output,) = definition["MonitoringOutputConfig"]["MonitoringOutputs"]
    assert output["S3Output"]["S3Uri"] == {"Fn::Sub": "s3://${Bucket}/monitoring"}
