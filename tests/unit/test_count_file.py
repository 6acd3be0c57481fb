import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replays
from captures import ARTICLE, KEY, VARIANT_KEY, FakeCaptures, FakeCounts, FakeEvents, created, file, line
from glassbox.errors import BadInputError, RetryableError, SettingsError
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.monitoring.counts import Counts, total
from glassbox.settings import from_env

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
HOUR = datetime(2026, 11, 23, 10, tzinfo=UTC)
HALF = CountingSettings(threshold=0.5)


class World:
    """The dependencies of counting, as fakes."""

    def __init__(self, files=None, settings=HALF, hours=1, **fakes):
        self.captures = FakeCaptures(files or {})
        self.counts, self.events = FakeCounts(**fakes), FakeEvents()
        self.settings = settings
        self.baseline, self.length = None, timedelta(hours=hours)
        self.replay_key = replays.key

    def deliver(self, key=KEY, arrived=NOW, **changes):
        """Count and check a file."""
        dependencies = CountingDependencies(
            settings=self.settings,
            replay_key=self.replay_key,
            captures=self.captures,
            counts=self.counts,
            events=self.events,
            length=self.length,
            baseline=self.baseline,
        )
        counted = count_file(created(key, **changes), arrived, dependencies)
        return counted, check_file(counted, dependencies)

    def retry(self, key=KEY):
        """Deliver until it succeeds, as SQS does."""
        while True:
            try:
                return self.deliver(key)
            except RetryableError:
                pass

    @property
    def violations(self):
        return [detail for _, _, detail in self.events.events]


def key(name, variant="AllTraffic", hour="10"):
    return f"capture/traffic-signs/{variant}/2026/11/23/{hour}/{name}.jsonl"


def at(minutes):
    return f"{HOUR + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}"


def test_reference_case_is_counted_and_published_once():
    world = World({KEY: file(ARTICLE)})
    counted, checked = world.deliver()
    assert counted.new
    assert world.counts.slots[VARIANT_KEY][HOUR] == Counts(Counter(ARTICLE), with_confidence=400, records=400)
    (detail,) = world.violations
    assert (detail["check"], detail["class"], detail["value"], detail["sample_size"]) == (
        "class_share",
        14,
        0.805,
        400,
    )
    assert detail["window"] == {"start": "2026-11-23T10:00:00Z", "end": "2026-11-23T11:00:00Z"}
    assert world.events.events[0][:2] == ("glassbox", "Glassbox Violation")
    assert [v.check for v in checked.violations] == ["class_share"]


def test_duplicate_delivery_changes_no_count_and_publishes_nothing():
    world = World({KEY: file(ARTICLE)})
    world.deliver()
    before = dict(world.counts.slots[VARIANT_KEY])
    again, checked = world.deliver()
    assert not again.new
    assert (checked.violations, len(world.violations)) == ([], 1)
    assert world.counts.slots[VARIANT_KEY] == before


def test_another_version_of_an_object_counts_separately():
    world = World({KEY: file([1])})
    world.deliver()
    assert world.deliver(etag="other")[0].new
    assert world.counts.slots[VARIANT_KEY][HOUR].sample_size == 2


@pytest.mark.parametrize("crash", range(4))
def test_crash_at_any_point_loses_no_count_and_counts_once(crash):
    """Before the counts, between counts and checks, before the event, between event and record."""
    calls = {0: 0, 1: 1, 3: 3}.get(crash)
    refuse = [] if calls is None else [None] * calls + [RetryableError()]
    world = World({KEY: file(ARTICLE)}, refuse=refuse)
    world.events.away = crash == 2
    world.retry()
    assert world.counts.slots[VARIANT_KEY][HOUR].sample_size == 400
    assert len(world.violations) == (2 if crash == 3 else 1)  # published first, recorded after
    world.deliver()
    assert len(world.violations) == (2 if crash == 3 else 1)


def test_burst_around_the_full_hour_is_one_violation():
    """26 and 26 predictions: too few in either clock hour alone."""
    world = World({key("a", hour="09"): file([14] * 26, at(-3)), key("b"): file([14] * 26, at(2))})
    world.deliver(key("a", hour="09"))
    assert world.violations == []
    world.deliver(key("b"))
    (detail,) = world.violations
    assert detail["sample_size"] == 52
    assert detail["window"] == {"start": "2026-11-23T09:50:00Z", "end": "2026-11-23T10:50:00Z"}


def test_burst_after_normal_traffic_is_published_within_ten_minutes():
    everyday = file(list(range(40)) * 25, at(5))
    world = World({key("a"): everyday, key("b"): file([14] * 60, at(52))})
    world.deliver(key("a"))
    world.deliver(key("b"))
    (detail,) = world.violations
    assert (detail["window"]["start"], detail["sample_size"]) == ("2026-11-23T10:50:00Z", 60)


def test_lasting_violation_is_published_once_an_hour():
    files = {key(f"m{minute:03d}"): file([14] * 60, at(minute)) for minute in range(0, 180, 10)}
    world = World(files)
    for name in files:
        world.deliver(name)
    starts = [detail["window"]["start"][11:16] for detail in world.violations]
    assert starts == ["10:00", "11:00", "12:00"]


def test_late_records_count_in_their_own_window_which_is_checked_again():
    """20 late records in the next hour's file make the hour a violation."""
    late = b"".join(line([[14]], at(3)) + b"\n" for _ in range(20)) + file([3], at(70))
    world = World({key("a"): file([14] * 40 + [3] * 30 + [5] * 15, at(4)), key("late", hour="11"): late})
    world.deliver(key("a"))
    assert world.violations == []
    world.deliver(key("late", hour="11"))
    assert [(d["window"]["start"], d["sample_size"]) for d in world.violations] == [
        ("2026-11-23T10:00:00Z", 105)
    ]
    assert world.counts.slots[VARIANT_KEY][HOUR].sample_size == 105
    assert world.counts.slots[VARIANT_KEY][HOUR + timedelta(minutes=70)].sample_size == 1


def test_file_over_several_hours_can_violate_each_hour():
    world = World({KEY: file([14] * 60, at(0)) + file([3] * 60, at(90)) + file([1] * 60, at(200))})
    world.deliver()
    assert sorted((d["window"]["start"][11:16], d["class"]) for d in world.violations) == [
        ("10:00", 14),
        ("11:30", 3),
        ("13:20", 1),
    ]


def test_each_check_publishes_its_own_violation():
    everything = replace(
        HALF, low_confidence=0.95, low_confidence_threshold=0.5, baseline_statistics="s3://b/k"
    )
    world = World({KEY: file([14] * 60) + b"oops\n" * 30}, replace(everything, drift_threshold=0.2))
    world.baseline = dict.fromkeys(range(43), 100)
    world.deliver()
    assert {d["check"] for d in world.violations} == {
        "class_share",
        "low_confidence_share",
        "drift",
        "unreadable_share",
    }


def test_shadow_variant_is_counted_and_checked_but_not_published():
    world = World(
        {key("a", "Canary"): file([14] * 60), KEY: file(range(40))},
        replace(HALF, shadow_variants="Canary, B"),
    )
    _, shadow = world.deliver(key("a", "Canary"))
    world.deliver()
    assert world.violations == []
    assert shadow.verdicts[0].violated
    assert world.counts.slots["traffic-signs/Canary"][HOUR].sample_size == 60
    assert world.counts.slots[VARIANT_KEY][HOUR].sample_size == 40


def test_endpoints_are_counted_separately():
    other = KEY.replace("traffic-signs", "traffic-signs-2")
    world = World({KEY: file([1]), other: file([2, 3])})
    world.deliver()
    world.deliver(other)
    assert world.counts.slots[VARIANT_KEY][HOUR].classes == {1: 1}
    assert world.counts.slots["traffic-signs-2/AllTraffic"][HOUR].classes == {2: 1, 3: 1}


def test_replayed_requests_are_not_counted_as_traffic():
    marked = b"".join(line([[14]], customAttributes=[replays.marker()]) + b"\n" for _ in range(100))
    world = World({KEY: marked + file([3])})
    world.deliver()
    assert world.violations == []
    assert world.counts.slots[VARIANT_KEY][HOUR] == Counts(
        Counter({3: 1}), with_confidence=1, records=1, replayed=100
    )


def test_forged_markers_cannot_hide_an_attack():
    marked = b"".join(line([[14]], customAttributes=[replays.FORGED]) + b"\n" for _ in range(100))
    world = World({KEY: marked})
    world.deliver()
    assert [d["class"] for d in world.violations] == [14]
    assert world.counts.slots[VARIANT_KEY][HOUR] == Counts(Counter({14: 100}), records=100, forged=100)


def test_unreadable_replay_key_raises_retryable_and_counts_nothing():
    def unreadable():
        raise RetryableError("KMS is away")

    world = World({KEY: file([3]) + line([[14]], customAttributes=[replays.marker()])})
    world.replay_key = unreadable
    with pytest.raises(RetryableError, match="KMS is away"):
        world.deliver()
    assert world.counts.files == set()
    world.replay_key = replays.key
    world.deliver()
    assert world.counts.slots[VARIANT_KEY][HOUR] == Counts(
        Counter({3: 1}), with_confidence=1, records=1, replayed=1
    )


def test_unreadable_lines_are_reported_and_the_others_count():
    world = World({KEY: b"oops\n" + file([3]) + line("[[14]]")[:-9]})
    counted, _ = world.deliver()
    assert world.counts.slots[VARIANT_KEY][HOUR] == Counts(
        Counter({3: 1}), with_confidence=1, records=1, unreadable=2
    )
    assert [(e.source, e.line) for e in counted.tally.examples] == [
        (f"s3://bucket/{KEY}", 1),
        (f"s3://bucket/{KEY}", 3),
    ]


def test_few_unreadable_records_do_not_violate_an_open_window():
    """Every window from 10:50 on holds these records only, and is still open."""
    bad = b"".join(line({"code": 400}, at(50)) + b"\n" for _ in range(3))
    world = World({key("a"): file(list(range(40)) * 25, at(45)), key("b"): bad})
    for name in (key("a"), key("b")):
        world.deliver(name)
    assert world.violations == []


def test_only_unreadable_records_are_a_violation_from_min_predictions_on():
    world = World({KEY: b"".join(line({"code": 400}, at(50)) + b"\n" for _ in range(50))})
    world.deliver()
    assert [(d["check"], d["value"], d["sample_size"]) for d in world.violations] == [
        ("unreadable_share", 1.0, 50)
    ]


def test_file_of_100_000_records_is_counted_exactly():
    classes = [n % 43 for n in range(100_000)]
    world = World({KEY: file(classes[:50_000]) + file(classes[50_000:], at(13))})
    world.deliver()
    counted = world.counts.slots[VARIANT_KEY]
    assert sum(counts.records for counts in counted.values()) == 100_000
    assert total(counted.values()).classes == Counter(classes)


def test_empty_file_counts_nothing():
    world = World({KEY: b"\n"})
    counted, checked = world.deliver()
    assert (counted.tally.slots, checked.verdicts) == ({}, [])
    assert world.counts.files == set()


def test_slots_older_than_the_retention_are_reported_and_the_others_count():
    ninety_days = timedelta(days=90)
    body = file([1] * 3, at(0)) + file([2] * 2, at(10)) + line([[14]], at(0)) + b"\noops\n"
    world = World({KEY: body})
    counted, _ = world.deliver(arrived=HOUR + ninety_days)
    assert world.counts.slots[VARIANT_KEY] == {
        HOUR + timedelta(minutes=10): Counts(Counter({2: 2}), with_confidence=2, records=2)
    }
    assert (counted.new, counted.expired) == (True, 5)
    assert (counted.counts.sample_size, counted.counts.unreadable) == (2, 5)
    # one second earlier nothing is too old
    world = World({KEY: body})
    counted, _ = world.deliver(arrived=HOUR + ninety_days - timedelta(seconds=1))
    assert (counted.expired, counted.counts.sample_size) == (0, 6)


def test_file_older_than_the_retention_is_neither_counted_nor_checked():
    world = World({KEY: file([14] * 60)})
    counted, checked = world.deliver(arrived=HOUR + timedelta(days=400))
    assert (counted.counts.sample_size, counted.counts.unreadable) == (0, 60)
    assert (world.counts.files, world.violations, checked.verdicts) == (set(), [], [])


@pytest.mark.parametrize(("hours", "violated"), [(1, False), (2, False), (3, True), (24, True)])
def test_longer_window_collects_enough_predictions(hours, violated):
    """20 predictions an hour: three hours reach MIN_PREDICTIONS, 50."""
    files = {key(f"f{hour}", hour=f"{hour}"): file([14] * 20, at(60 * (hour - 10))) for hour in (10, 11, 12)}
    world = World(files, hours=hours)
    for name in files:
        world.deliver(name)
    assert [d["sample_size"] for d in world.violations] == [60] * violated
    for detail in world.violations:
        start, end = (datetime.fromisoformat(detail["window"][name]) for name in ("start", "end"))
        assert end - start == timedelta(hours=hours)


def test_lasting_violation_of_a_daily_window_is_published_once_a_day():
    files = {key(f"h{hour:02d}"): file([14] * 10, at(60 * hour)) for hour in range(60)}
    world = World(files, hours=24)
    for name in files:
        world.deliver(name)
    starts = [datetime.fromisoformat(detail["window"]["start"]) for detail in world.violations]
    assert len(starts) >= 2
    assert all(later - earlier >= timedelta(hours=24) for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("name", ["capture/x.jsonl", key("gone"), key("a").replace("jsonl", "json")])
def test_count_file_refuses_unexpected_keys(name):
    with pytest.raises(BadInputError):
        World({KEY: file([1])}).deliver(name)


def test_drift_threshold_requires_a_baseline():
    env = {"THRESHOLD": "0.5", "DRIFT_THRESHOLD": "0.1"}
    with pytest.raises(SettingsError, match="DRIFT_THRESHOLD needs BASELINE_STATISTICS"):
        from_env(CountingSettings, env)
    assert from_env(CountingSettings, env | {"BASELINE_STATISTICS": "s3://b/k"}).drift_threshold == 0.1


FILES = {
    key(f"f{n}"): file([14] * (20 + n) + [n % 43] * (n % 7), at(11 * n))
    + (b"oops\n" if n % 3 == 0 else b"")
    + file([n], at(11 * n + 9))
    for n in range(8)
}
EXPECTED = World(FILES)
for name in FILES:
    EXPECTED.deliver(name)


@given(
    st.lists(st.sampled_from(sorted(FILES)), max_size=12),
    st.permutations(sorted(FILES)),
    st.lists(st.sampled_from([None, None, RetryableError()]), max_size=30),
)
@settings(max_examples=60)
def test_any_interleaving_of_deliveries_gives_the_same_counts(extra, order, refuse):
    """Counts are exact, and published windows do not overlap, with duplicates and failing calls in any order."""
    world = World(FILES, refuse=refuse)
    for name in [*extra, *order]:
        world.retry(name)
    assert world.counts.slots == EXPECTED.counts.slots
    for check in ("class_share", "unreadable_share"):
        starts = sorted(
            window.start for name, window in world.counts.violations[VARIANT_KEY] if name == check
        )
        assert starts
        assert all(later - earlier >= timedelta(hours=1) for earlier, later in itertools.pairwise(starts))
