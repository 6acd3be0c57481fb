from datetime import UTC, datetime

import pytest

from glassbox.timestamps import format_timestamp, parse_hour, parse_timestamp


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T10:00:01Z", (10, 0, 1, 0)),
        ("2026-11-23T10:00:01.123456Z", (10, 0, 1, 123456)),
        ("2026-11-23T12:00:01+02:00", (10, 0, 1, 0)),
        ("2026-11-23T10:00:01", (10, 0, 1, 0)),
        ("2026-11-23 10:00:01", (10, 0, 1, 0)),
        ("2026-11-23T10: 00: 01Z", (10, 0, 1, 0)),
    ],
)
def test_parse_timestamp_returns_utc(text, expected):
    parsed = parse_timestamp(text)
    assert parsed.tzinfo is UTC
    assert parsed == datetime(2026, 11, 23, *expected, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["10 o'clock", "", "yesterday", "<aws.scheduler.scheduled-time>", "2026-11-23T10:00:01Zx", None, 5],
)
def test_parse_timestamp_refuses_anything_but_iso_8601(text):
    with pytest.raises(ValueError, match="invalid ISO 8601 timestamp") as error:
        parse_timestamp(text)
    assert repr(text) in str(error.value)


def test_parse_timestamp_shortens_and_escapes_what_it_refuses():
    with pytest.raises(ValueError, match="invalid ISO 8601 timestamp") as error:
        parse_timestamp("\x1b[31m\n" + "x" * 10_000)
    assert len(str(error.value)) < 150
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1999-12-31T23:59:59Z", "outside 2000 to 2199"),
        ("2200-01-01T00:00:00Z", "outside 2000 to 2199"),
        ("2200-01-01T00:59:59+01:00", None),
        ("0001-01-01T00:00:00+14:00", "invalid ISO 8601 timestamp"),  # before the first year in UTC
        ("9999-12-31T23:59:59-14:00", "invalid ISO 8601 timestamp"),
    ],
)
def test_parse_timestamp_accepts_the_years_2000_to_2199(text, reason):
    if reason is None:
        assert parse_timestamp(text) == datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)
        return
    with pytest.raises(ValueError, match=reason):
        parse_timestamp(text)


def test_parse_hour_reads_the_folders_of_an_hour():
    assert parse_hour("2026/11/23/10") == datetime(2026, 11, 23, 10, tzinfo=UTC)
    for wrong in ("2026/13/01/00", "2026/11/23/24", "0000/01/01/00", "1999/01/01/00"):
        with pytest.raises(ValueError, match="timestamp"):
            parse_hour(wrong)


def test_format_timestamp_writes_what_parse_timestamp_reads():
    time = datetime(2026, 11, 23, 9, 5, 7, tzinfo=UTC)
    assert format_timestamp(time) == "2026-11-23T09:05:07Z"
    assert parse_timestamp(format_timestamp(time)) == time
