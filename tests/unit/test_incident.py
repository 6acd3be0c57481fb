import json
from datetime import UTC, datetime

import pytest

from fakes import FakeEndpoint, FakeIncidents, FakeNotices, FakeObjects
from glassbox.errors import BadInputError, RetryableError
from glassbox.incident import read_violation, swap

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)


@pytest.fixture
def world():
    class World:
        endpoint, incidents, notices = FakeEndpoint("plain"), FakeIncidents(), FakeNotices()

        def swap(self, violation, now=NOW):
            return swap(
                violation,
                plain_config="plain",
                hooked_config="hooked",
                endpoint=self.endpoint,
                incidents=self.incidents,
                notices=self.notices,
                now=now,
            )

    return World()


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


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
    assert ours.incident_id == "20261123t1000-class-share"


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


def test_a_violation_swaps_once_and_tells_once_however_often_it_comes(world, violation):
    assert world.swap(violation) == "swapped"
    assert world.swap(violation) == "known"
    world.endpoint.settle()
    assert world.swap(violation) == "known"
    assert world.endpoint.updates == ["hooked"]
    (notice,) = world.notices.published
    assert violation.reason in notice.text
    assert (
        "aws sagemaker update-endpoint --endpoint-name traffic-signs --endpoint-config-name plain"
        in notice.text
    )
    assert len(notice.subject) <= 100
    assert notice.subject.isascii()


def test_a_second_violation_joins_the_open_incident(world, violation, load_event):
    world.swap(violation)
    world.endpoint.settle()
    assert world.swap(read_violation(load_event("monitor-job-violations"), FakeObjects())) == "joined"
    assert world.endpoint.updates == ["hooked"]
    assert len(world.notices.published) == 1


def test_an_endpoint_in_the_middle_of_an_update_is_swapped_later(world, violation):
    world.endpoint.live = type(world.endpoint.live)("Updating", "plain")
    with pytest.raises(RetryableError, match="Updating"):
        world.swap(violation)
    assert not world.notices.published
    world.endpoint.live = type(world.endpoint.live)("InService", "plain")
    assert world.swap(violation) == "swapped"


def test_an_endpoint_that_is_already_hooked_is_not_updated(world, violation):
    world.endpoint.live = type(world.endpoint.live)("InService", "hooked")
    assert world.swap(violation) == "swapped"
    assert world.endpoint.updates == []
    assert len(world.notices.published) == 1


def test_a_config_that_is_neither_of_the_two_is_left_alone_and_told(world, violation):
    world.endpoint.live = type(world.endpoint.live)("InService", "somebody-elses")
    assert world.swap(violation) == "foreign config"
    assert world.endpoint.updates == []
    (notice,) = world.notices.published
    assert "NOT swapped" in notice.subject
    assert "somebody-elses" in notice.text


def test_ops_are_told_even_when_the_message_failed_after_the_swap(world, violation):
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    assert world.swap(violation) == "swapped"  # the endpoint is Updating by now
    assert world.endpoint.updates == ["hooked"]
    assert len(world.notices.published) == 1
