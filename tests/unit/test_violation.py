import json
from datetime import UTC, datetime, timedelta

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError
from glassbox.violation import read_violation

REASON = "Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold"
REPORT = "monitoring/traffic-signs/hourly/2026/11/23/10/constraint_violations.json"


def reports(violations):
    return FakeObjects({("amzn-s3-demo-bucket", REPORT): json.dumps({"violations": violations}).encode()})


FOUND = [
    {"feature_name": "PredictedClass", "constraint_check_type": "baseline_drift_check", "description": REASON}
]


def test_three_roads_become_one_shape(load_event):
    names = ("violation", "monitor-report-created", "monitor-job-violations")
    ours, report, job = (read_violation(load_event(name), reports(FOUND)) for name in names)
    assert report == job
    assert {v.endpoint for v in (ours, report)} == {"traffic-signs"}
    assert {v.window_start for v in (ours, report)} == {datetime(2026, 11, 23, 10, tzinfo=UTC)}
    assert {v.window_end for v in (ours, report)} == {datetime(2026, 11, 23, 11, tzinfo=UTC)}
    assert {v.reason for v in (ours, report)} == {REASON}
    assert (ours.check, report.check) == ("class_share", "monitor")
    assert (ours.variant, ours.label) == ("AllTraffic", 14)


def test_a_report_of_model_monitor_lies_under_the_hour_after_its_window(load_event):
    event = load_event("monitor-report-created")
    key = "monitoring/traffic-signs/traffic-signs-hourly/2026/11/23/11/constraint_violations.json"
    event["detail"]["object"]["key"] = key
    stored = {("amzn-s3-demo-bucket", key): json.dumps({"violations": FOUND}).encode()}
    assert read_violation(event, FakeObjects(stored)) == read_violation(
        load_event("monitor-report-created"), reports(FOUND)
    )


def test_a_report_without_violations_is_no_violation(load_event):
    assert read_violation(load_event("monitor-report-created"), reports([])) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"violations": [{}]}', b'{"violations": 7}'])
def test_a_report_that_is_none_is_refused(load_event, body):
    broken = FakeObjects({("amzn-s3-demo-bucket", REPORT): body})
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(load_event("monitor-report-created"), broken)


def test_a_report_that_is_gone_says_so(load_event):
    with pytest.raises(BadInputError, match="NoSuchKey"):
        read_violation(load_event("monitor-report-created"), FakeObjects())


def test_times_with_blanks_as_the_documentation_prints_them(load_event):
    event = load_event("monitor-job-violations")
    event["detail"]["Environment"]["start_time"] = "2026-11-23T10: 00: 00Z"
    assert read_violation(event, FakeObjects()).window_start == datetime(2026, 11, 23, 10, tzinfo=UTC)


@pytest.mark.parametrize("name", ["monitor-job-clean", "tensor-index-created", "picture-created"])
def test_what_is_no_violation_is_refused(load_event, name):
    with pytest.raises(BadInputError, match=load_event(name)["id"]):
        read_violation(load_event(name), FakeObjects())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", ...),
        ("check", "../../etc"),
        ("check", None),
        ("window", {}),
        ("window", "today"),
        ("reason", ...),
    ],
)
def test_a_malformed_violation_is_refused(load_event, field, value):
    event = load_event("violation")
    if value is ...:
        del event["detail"][field]
    else:
        event["detail"][field] = value
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(event, FakeObjects())


def test_an_operators_open_is_a_violation_of_the_hour_before(load_event):
    violation = read_violation(load_event("command-open"), FakeObjects())
    assert (violation.check, violation.reason) == ("operator", "looks odd since the deployment")
    assert violation.window_end - violation.window_start == timedelta(hours=1)
    assert violation.window_end == datetime(2026, 11, 23, 10, 30, tzinfo=UTC)


def test_other_commands_are_no_violation(load_event):
    with pytest.raises(BadInputError, match="abort"):
        read_violation(load_event("command-abort"), FakeObjects())
