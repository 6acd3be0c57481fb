from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassbox.monitoring.capture import Record, Unreadable
from glassbox.monitoring.counts import (
    EXAMPLES,
    MAX_CLASSES,
    UNKNOWN,
    WINDOW,
    Confidences,
    Counts,
    Tally,
    Window,
    slot_start,
    tally,
    total,
    windows,
)
from glassbox.monitoring.response import Prediction

HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)


def at(minutes, seconds=0):
    return HOUR + timedelta(minutes=minutes, seconds=seconds)


def record(time, *predictions, replayed=False):
    return Record(f"{time:%Y-%m-%dT%H:%M:%SZ}", [Prediction(*p) for p in predictions], replayed)


def unreadable(line=1, time=None):
    return Unreadable("file.jsonl", line, "oops", time and f"{time:%Y-%m-%dT%H:%M:%SZ}")


def test_tally_counts_predictions_in_the_slot_of_their_event_time():
    counted = tally(
        [
            record(at(0), (14, 0.9), (3, 0.2)),
            record(at(9, 59), (14, None)),
            record(at(10), (14, 0.5)),
            record(at(61), (14, 0.5)),  # beyond the file's own hour
            record(at(5), (3, 0.5)),  # and back
        ],
        HOUR,
        low_confidence=0.5,
    )
    assert counted.slots == {
        at(0): Counts(Counter({14: 2, 3: 2}), with_confidence=3, low_confidence=1, records=3),
        at(10): Counts(Counter({14: 1}), with_confidence=1, records=1),
        at(60): Counts(Counter({14: 1}), with_confidence=1, records=1),
    }


def test_tally_counts_confidences_below_the_bound_as_low():
    records = [record(at(0), (1, 0.4), (1, 0.5), (1, None), (1, 1.0))]
    assert tally(records, HOUR, low_confidence=0.5).slots[HOUR].low_confidence == 1
    assert tally(records, HOUR).slots[HOUR].low_confidence == 0
    assert tally(records, HOUR).slots[HOUR].with_confidence == 3


def test_tally_separates_replays_and_unreadable_records():
    counted = tally([record(at(0), replayed=True), unreadable(2, at(20)), record(at(0), (1, None))], HOUR)
    assert counted.slots == {
        at(0): Counts(Counter({1: 1}), records=1, replayed=1),
        at(20): Counts(unreadable=1),
    }
    assert [e.line for e in counted.examples] == [2]


def test_tally_counts_an_unreadable_line_without_a_time_in_the_previous_slot():
    counted = tally([unreadable(1), record(at(25), (1, None)), unreadable(3)], HOUR)
    assert {start: c.unreadable for start, c in counted.slots.items()} == {at(0): 1, at(20): 1}


def test_tally_keeps_the_first_examples():
    counted = tally((unreadable(n) for n in range(1000)), HOUR)
    assert counted.slots[HOUR].unreadable == 1000
    assert [e.line for e in counted.examples] == list(range(EXAMPLES))
    both = Tally()
    for _ in range(2):
        both += tally([unreadable(7)] * 15, HOUR)
    assert len(both.examples) == EXAMPLES
    assert both.slots[HOUR].unreadable == 30


def test_tally_counts_classes_outside_the_range_as_unknown():
    records = [record(at(0), (42, None), (43, None), (-1, None), ("Stop", None), (0, None))]
    assert tally(records, HOUR, num_classes=43).slots[HOUR].classes == {42: 1, 0: 1, UNKNOWN: 3}
    assert tally(records, HOUR).slots[HOUR].classes == {42: 1, 43: 1, UNKNOWN: 1, "Stop": 1, 0: 1}
    assert tally([record(at(0), (10**30, None))], HOUR).slots[HOUR].classes == {UNKNOWN: 1}


def test_tally_counts_records_within_the_window_only():
    window = Window(at(5), at(15))
    records = [
        unreadable(1),
        record(at(4, 59), (1, None)),
        unreadable(3),
        record(at(5), (2, None)),
        unreadable(5),
        record(at(14, 59), (3, None)),
        record(at(15), (4, None)),
        unreadable(8, at(15)),
    ]
    counted = tally(records, HOUR, within=window)
    assert counted.slots == {
        at(0): Counts(Counter({2: 1}), records=1, unreadable=1),
        at(10): Counts(Counter({3: 1}), records=1),
    }
    assert [e.line for e in counted.examples] == [5]
    assert tally([unreadable(1)], HOUR, within=Window(at(0), at(60))).slots == {HOUR: Counts(unreadable=1)}


def test_tally_of_an_empty_file_has_no_slots():
    assert tally([], HOUR) == Tally()


def test_slot_start_is_a_multiple_of_ten_minutes():
    assert slot_start(datetime(2026, 11, 23, 10, 59, 59, 999999, tzinfo=UTC)) == at(50)
    assert slot_start(at(10)) == at(10)


def test_windows_of_a_slot_are_the_six_hours_that_contain_it():
    starts = [w.start for w in windows([at(0)], WINDOW)]
    assert starts == [at(0), at(-10), at(-20), at(-30), at(-40), at(-50)]
    assert all(w.end - w.start == timedelta(hours=1) and at(0) in w for w in windows([at(0)], WINDOW))
    assert len(windows([at(0), at(10)], WINDOW)) == 7


@pytest.mark.parametrize("hours", [1, 2, 24])
def test_windows_of_any_length_contain_the_slot_once_each(hours):
    length = timedelta(hours=hours)
    found = windows([at(0)], length)
    assert len(set(found)) == len(found) == 6 * hours
    assert found == sorted(found, reverse=True)
    assert all(w.end - w.start == length and at(0) in w for w in found)


def test_window_of_a_day_prints_both_dates():
    assert str(Window(at(0), at(60))) == "2026-11-23 10:00 to 11:00 UTC"
    assert str(Window(at(0), at(24 * 60))) == "2026-11-23 10:00 to 2026-11-24 10:00 UTC"


def test_window_contains_its_start_and_not_its_end():
    window = Window(at(0), at(60))
    assert at(0) in window
    assert at(60) not in window
    assert window.overlaps(Window(at(50), at(110)))
    assert not window.overlaps(Window(at(60), at(120)))
    assert str(window) == "2026-11-23 10:00 to 11:00 UTC"


records = st.lists(
    st.builds(
        lambda minute, label, confidence, kind: [
            record(at(minute), (label, confidence)),
            record(at(minute), (label, confidence), (label, None)),
            record(at(minute), replayed=True),
            unreadable(1, at(minute)),
        ][kind],
        st.integers(0, 120),
        st.integers(-1, 44),
        st.none() | st.floats(0, 1),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(records, st.integers(0, 40))
def test_tally_of_a_split_file_equals_that_of_the_whole_file(records, cut):
    def count(part):
        return tally(part, HOUR, low_confidence=0.5, num_classes=43)

    merged, whole = count(records[:cut]), count(records)
    merged += count(records[cut:])
    assert merged.slots == whole.slots
    assert merged.examples == whole.examples
    assert merged.confidences.buckets == whole.confidences.buckets


@given(
    records
    | records.map(lambda found: [r._replace(time=None) if isinstance(r, Unreadable) else r for r in found])
)
def test_tally_is_independent_of_the_batch_size(records):
    def count(together):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("glassbox.monitoring.counts._BATCH", together)
            return tally(records, HOUR, low_confidence=0.5, within=Window(at(3), at(80)))

    one, many = count(1), count(1000)
    assert one.slots == many.slots
    assert one.examples == many.examples
    assert one.confidences.buckets == many.confidences.buckets
    assert one.confidences.sum == pytest.approx(many.confidences.sum)


@given(records)
def test_tally_is_independent_of_the_order(records):
    assert tally(records, HOUR, num_classes=43).slots == tally(records[::-1], HOUR, num_classes=43).slots


def test_confidences_hold_sums_and_buckets():
    found = Confidences()
    for part in ([], [0.0, 0.05, 1.0], [0.1], [0.999]):
        found.add(part)
    other = Confidences()
    other.add([0.5, 0.5])
    found += other
    assert (found.sample_size, found.minimum, found.maximum) == (7, 0.0, 1.0)
    assert found.sum == pytest.approx(3.149)
    assert found.squares == pytest.approx(0.0025 + 1 + 0.01 + 0.998001 + 0.5)
    assert found.buckets == [2, 1, 0, 0, 0, 2, 0, 0, 0, 2]


def test_total_leaves_the_summands_unchanged():
    one, other = Counts(Counter({1: 1}), records=1), Counts(Counter({1: 2, 3: 1}), low_confidence=1)
    assert total([one, other]) == Counts(Counter({1: 3, 3: 1}), records=1, low_confidence=1)
    assert one == Counts(Counter({1: 1}), records=1)
    assert total([]) == Counts()
    assert total([one, other]).sample_size == 4


def test_tally_counts_names_beyond_the_bound_as_unknown():
    names = [f"name-{i}" for i in range(5 * MAX_CLASSES)]
    records = [record(HOUR, (name,)) for name in ["Stop", *names, "Stop"]]
    counted = tally(records, HOUR).counts
    assert counted.sample_size == len(records)
    assert counted.classes["Stop"] == 2
    assert MAX_CLASSES <= len(counted.classes) <= MAX_CLASSES + 1
