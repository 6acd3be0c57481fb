import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeObjects
from glassbox.errors import BadInputError, is_printable
from glassbox.incidents.events import REASON_CHARACTERS, read_command, read_violation
from glassbox.monitoring.checks import Verdict, violation_detail
from glassbox.monitoring.counts import Window
from glassbox.violation import VIOLATION_DETAIL_TYPE, Violation, ViolationDetail

EVENTS = Path(__file__).parents[2] / "events"

REASON = "Class 14 predicted 80.50% of the time: Exceeded 50.00% threshold"
REPORT = "monitoring/traffic-signs/hourly/2026/11/23/10/constraint_violations.json"


def reports(violations):
    return FakeObjects({("amzn-s3-demo-bucket", REPORT): json.dumps({"violations": violations}).encode()})


FOUND = [
    {"feature_name": "PredictedClass", "constraint_check_type": "baseline_drift_check", "description": REASON}
]


def test_read_violation_returns_the_same_violation_from_all_three_sources(load_event):
    names = ("violation", "monitor-report-created", "monitor-job-violations")
    ours, report, job = (read_violation(load_event(name), reports(FOUND)) for name in names)
    assert report == job
    assert {v.endpoint for v in (ours, report)} == {"traffic-signs"}
    assert {v.window_start for v in (ours, report)} == {datetime(2026, 11, 23, 10, tzinfo=UTC)}
    assert {v.window_end for v in (ours, report)} == {datetime(2026, 11, 23, 11, tzinfo=UTC)}
    assert {v.reason for v in (ours, report)} == {REASON}
    assert (ours.check, report.check) == ("class_share", "monitor")
    assert (ours.variant, ours.predicted_class) == ("AllTraffic", 14)


def test_read_violation_reads_model_monitors_file_from_the_folder_of_the_next_hour(load_event):
    event = load_event("monitor-report-created")
    key = "monitoring/traffic-signs/traffic-signs-hourly/2026/11/23/11/constraint_violations.json"
    event["detail"]["object"]["key"] = key
    stored = {("amzn-s3-demo-bucket", key): json.dumps({"violations": FOUND}).encode()}
    assert read_violation(event, FakeObjects(stored)) == read_violation(
        load_event("monitor-report-created"), reports(FOUND)
    )


def test_read_violation_returns_none_for_a_file_without_violations(load_event):
    assert read_violation(load_event("monitor-report-created"), reports([])) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"violations": [{}]}', b'{"violations": 7}'])
def test_read_violation_refuses_malformed_monitor_files(load_event, body):
    broken = FakeObjects({("amzn-s3-demo-bucket", REPORT): body})
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(load_event("monitor-report-created"), broken)


def test_read_violation_names_a_missing_monitor_file(load_event):
    with pytest.raises(BadInputError, match="NoSuchKey"):
        read_violation(load_event("monitor-report-created"), FakeObjects())


def test_read_violation_accepts_timestamps_with_spaces(load_event):
    event = load_event("monitor-job-violations")
    event["detail"]["Environment"]["start_time"] = "2026-11-23T10: 00: 00Z"
    assert read_violation(event, FakeObjects()).window_start == datetime(2026, 11, 23, 10, tzinfo=UTC)


@pytest.mark.parametrize("name", ["monitor-job-clean", "tensor-index-created", "heatmap-created"])
def test_read_violation_refuses_other_events(load_event, name):
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
        ("endpoint", ["traffic-signs"]),
        ("endpoint", "a/b"),
        ("endpoint", "a\nb"),
        ("endpoint", "n" * 64),
        ("variant", {}),
        ("variant", "../x"),
        ("class", []),
        ("class", {}),
        ("class", float("nan")),
        ("class", 1.5),
        ("class", True),
        ("class", 10**400),
        ("class", "n" * 65),
        ("class", "a\nb"),
        ("class", "\x1b[31mred"),
        ("window", {"start": "0001-01-01T00:00:00+14:00", "end": "0001-01-01T01:00:00Z"}),
        ("window", {"start": "9999-12-31T23:00:00Z", "end": "9999-12-31T23:59:59-14:00"}),
        ("window", {"start": "2026-11-23T10:00:00Z", "end": "2026-11-23T10:00:00Z"}),
        ("window", {"start": "2026-11-23T10:00:00Z", "end": "2036-11-23T10:00:00Z"}),
        ("window", {"start": 20261123, "end": "2026-11-23T11:00:00Z"}),
        ("window", [1]),
        (None, None),
        (None, []),
        (None, "x"),
    ],
)
def test_read_violation_refuses_a_malformed_detail(load_event, field, value):
    event = load_event("violation")
    if field is None:
        event["detail"] = value
    elif value is ...:
        del event["detail"][field]
    else:
        event["detail"][field] = value
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(event, FakeObjects())


def test_read_violation_covers_the_hour_before_an_open_command(load_event):
    violation = read_violation(load_event("command-open"), FakeObjects())
    assert (violation.check, violation.reason) == ("operator", "looks odd since the deployment")
    assert violation.window_end - violation.window_start == timedelta(hours=1)
    assert violation.window_end == datetime(2026, 11, 23, 10, 30, tzinfo=UTC)


def test_read_violation_refuses_other_commands(load_event):
    with pytest.raises(BadInputError, match="abort"):
        read_violation(load_event("command-abort"), FakeObjects())


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "soon", None, 5, [], {}]
)
@pytest.mark.parametrize("action", ["open", "abort", "extend"])
def test_commands_without_a_valid_time_are_refused(load_event, action, time):
    event = load_event("command-open")
    event["detail"]["action"], event["time"] = action, time
    with pytest.raises(BadInputError):
        read_violation(event, FakeObjects())
    with pytest.raises(BadInputError, match="not a command"):
        read_command(event)


@pytest.mark.parametrize("minutes", [10**400, float("nan"), float("inf"), "x", [], None, -1, 0])
def test_read_command_refuses_invalid_minutes(load_event, minutes):
    event = load_event("command-abort")
    event["detail"]["minutes"] = minutes
    with pytest.raises(BadInputError, match="not a command"):
        read_command(event)


@pytest.mark.parametrize(
    "event", [None, [], "x", 5, {}, {"detail-type": []}, {"detail-type": "Glassbox Command"}]
)
def test_malformed_events_are_refused(event):
    for read in (read_command, lambda event: read_violation(event, FakeObjects())):
        with pytest.raises(BadInputError):
            read(event)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"violations":' * 2_000,
        b"\xff",
        b'{"violations": [[]]}',
        b'{"violations": {"a": 1}}',
    ],
)
def test_read_violation_refuses_deeply_nested_monitor_files(load_event, body):
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(
            load_event("monitor-report-created"), FakeObjects({("amzn-s3-demo-bucket", REPORT): body})
        )


def test_read_violation_refuses_a_file_outside_2000_to_2199(load_event):
    event = load_event("monitor-report-created")
    key = "monitoring/traffic-signs/other/0001/01/01/00/constraint_violations.json"
    event["detail"]["object"]["key"] = key
    stored = {("amzn-s3-demo-bucket", key): json.dumps({"violations": FOUND}).encode()}
    with pytest.raises(BadInputError, match="not a violation"):
        read_violation(event, FakeObjects(stored))


def test_read_violation_shortens_the_reason_of_many_violations(load_event):
    found = [{"description": f"{number}: " + "x" * 300} for number in range(1200)]
    reason = read_violation(load_event("monitor-report-created"), reports(found)).reason
    assert reason.endswith("; and 1,190 more")
    assert len(reason) <= REASON_CHARACTERS


def test_read_violation_escapes_control_characters_in_the_reason(load_event):
    event = load_event("violation")
    event["detail"]["reason"] = "Class 14\nSubject: x\x1b[2J\u2028"
    assert read_violation(event, FakeObjects()).reason == r"Class 14\nSubject: x\x1b[2J\u2028"
    job = load_event("monitor-job-violations")
    job["detail"]["ExitMessage"] = "CompletedWithViolations: a\nb\n"
    assert read_violation(job, FakeObjects()).reason == r"a\nb"


HOURS = st.datetimes(datetime(2000, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))


@given(
    start=HOURS,
    minutes=st.integers(1, 24 * 60),
    check=st.sampled_from(["class_share", "low_confidence_share", "drift", "unreadable_share"]),
    value=st.floats(0, 1),
    upper=st.floats(0, 1) | st.none(),
    predicted_class=st.none()
    | st.integers(0, 10_000)
    | st.sampled_from(["Stop", "unknown", "Vorfahrt gewähren"]),
)
def test_read_violation_returns_what_violation_detail_writes(
    start, minutes, check, value, upper, predicted_class
):
    start = start.replace(second=0, microsecond=0)
    window = Window(start, start + timedelta(minutes=minutes))
    verdict = Verdict(check, value, None, upper, window, 50, True, "broke a bound", predicted_class)
    written = violation_detail("traffic-signs", "AllTraffic", verdict)
    sent = json.loads(json.dumps(msgspec.to_builtins(written)))
    assert msgspec.convert(sent, ViolationDetail) == written
    violation = read_violation({"detail-type": VIOLATION_DETAIL_TYPE, "detail": sent}, FakeObjects())
    assert violation == Violation(
        "traffic-signs", check, window.start, window.end, "broke a bound", "AllTraffic", predicted_class
    )


def test_read_violation_refuses_another_version_of_the_detail(load_event):
    event = load_event("violation")
    event["detail"]["version"] = 2
    with pytest.raises(BadInputError, match=r"not a violation.*version"):
        read_violation(event, FakeObjects())


@given(
    st.recursive(
        st.none() | st.floats() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=2)
    )
)
@pytest.mark.parametrize("name", ["violation", "command-open", "monitor-job-violations"])
@pytest.mark.parametrize(
    "field", ["endpoint", "class", "variant", "reason", "window", "Environment", "ExitMessage"]
)
def test_read_violation_returns_a_hashable_violation_or_raises_bad_input_for_any_value(name, field, value):
    event = json.loads((EVENTS / f"{name}.json").read_text())
    event["detail"][field] = value
    try:
        violation = read_violation(event, FakeObjects())
    except BadInputError as error:
        assert is_printable(str(error))
        return
    assert violation in {violation}
    assert is_printable(violation.reason)
