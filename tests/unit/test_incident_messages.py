"""Every notification once: concurrent invocations, and invocations that crash."""

import contextlib
from dataclasses import replace

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError, RetryableError
from glassbox.incidents.events import read_violation
from glassbox.incidents.messages import facts_of
from glassbox.incidents.model import Command, EndpointState, Limits, Outcome, State
from world import IDS, World, following


class CrashError(BaseException):
    """Lambda kills the function: no handler catches this."""


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


def drift(violation):
    return following(violation, 0, "drift")


def hooked(world, violation):
    world.swap(violation)
    world.endpoint.settle()
    world.confirm()


def restored(world, violation):
    hooked(world, violation)
    world.draw(*IDS)
    world.restore()
    world.endpoint.settle()


def aborted(world, violation):
    world.endpoint.live = EndpointState("Updating", "plain")
    world.swap(violation)
    world.apply(Command("traffic-signs", "abort", world.now, world.now))


def full(world, violation):
    for hours in range(3):
        world.run(following(violation, 2 * hours))
        world.later(120)


def not_restorable(world, violation):
    hooked(world, violation)
    world.draw(*IDS)
    world.refuse("update", BadInputError("no"))


# event of the notification -> what leads to it, and which function sends it
KINDS = {
    "swapping": (lambda w, v: None, "swap"),
    "swapping, pending": (
        lambda w, v: setattr(w.endpoint, "live", EndpointState("Updating", "plain")),
        "swap",
    ),
    "watching": (
        lambda w, v: setattr(w, "dependencies", replace(w.dependencies, limits=Limits(react=False))),
        "swap",
    ),
    "restored": (restored, "confirm"),
    "failed, unknown config": (lambda w, v: w.endpoint.deploy("another"), "swap"),
    "failed, deleted": (lambda w, v: w.endpoint.delete(), "swap"),
    "failed, aborted": (aborted, "confirm"),
    "failed, rolled back": (lambda w, v: (w.swap(v), w.endpoint.roll_back("no")), "confirm"),
    "failed, superseded": (lambda w, v: (hooked(w, v), w.endpoint.deploy("another")), "confirm"),
    "failed, not seen": (lambda w, v: (hooked(w, v), w.refuse("describe", BadInputError("no"))), "confirm"),
    "failed, not restored": (not_restorable, "restore"),
    "cooling-down": (lambda w, v: w.run(v), "drift"),
    "cap-reached": (full, "next"),
    "stale-twin": (lambda w, v: w.endpoint.deploy("another"), "confirm"),
    "hooked-without-incident": (lambda w, v: w.endpoint.deploy("hooked"), "confirm"),
}


def acts(world, violation):
    """Return the invocations by name."""
    return {
        "swap": lambda: world.swap(violation),
        "drift": lambda: world.swap(drift(violation)),
        "next": lambda: world.swap(following(violation, 8)),
        "confirm": world.confirm,
        "restore": world.restore,
    }


def is_retried(kind):
    """Return a context in which an invocation whose message is the only source of a notification is retried."""
    sends_it = kind.partition(",")[0] in ("cooling-down", "cap-reached")
    return pytest.raises(RetryableError, match="is sending") if sends_it else contextlib.nullcontext()


@pytest.mark.parametrize("other", ["swap", "confirm", "restore", "the same"])
@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_invocations_send_one_notification(violation, kind, other):
    world = World()
    lead, sender = KINDS[kind]
    lead(world, violation)
    act, publish, before = acts(world, violation), world.notices.publish, len(world.notified)

    def interrupted(notice):
        world.notices.publish = publish
        if kind == "swapping":
            world.endpoint.settle()
        with is_retried(kind if other == "the same" else ""):
            act[sender if other == "the same" else other]()
        act["confirm"]()
        publish(notice)

    world.notices.publish = interrupted
    act[sender]()
    event = kind.partition(",")[0]
    assert world.notified[before:].count(event) == 1
    for _ in range(3):
        world.later(2)
        act["confirm"]()
    assert world.notified[before:].count(event) == 1


@pytest.mark.parametrize("after", ["the claim", "the message"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_loses_no_notification(violation, kind, after):
    world = World()
    lead, sender = KINDS[kind]
    lead(world, violation)
    act, publish, before = acts(world, violation), world.notices.publish, len(world.notified)

    def killed(notice):
        world.notices.publish = publish
        if after == "the message":
            publish(notice)
        raise CrashError

    world.notices.publish = killed
    with pytest.raises(CrashError):
        act[sender]()
    event, sent = kind.partition(",")[0], int(after == "the message")
    with is_retried(kind):  # at once: the first invocation may still be publishing
        act[sender]()
    assert world.notified[before:].count(event) == sent
    world.later(2)
    for _ in range(3):
        act[sender]()
        act["confirm"]()
    assert world.notified[before:].count(event) == sent + 1  # at least once, after a crash


@pytest.mark.parametrize("kind", KINDS)
def test_a_notification_costs_at_most_two_writes(violation, kind):
    world = World()
    lead, sender = KINDS[kind]
    lead(world, violation)
    writes, at_publish = [], []
    for name in ("save", "record_report", "claim_report"):
        write = getattr(world.incidents, name)
        setattr(world.incidents, name, lambda *a, write=write, name=name: (writes.append(name), write(*a))[1])
    publish = world.notices.publish
    world.notices.publish = lambda notice: (at_publish.append(len(writes)), publish(notice))
    acts(world, violation)[sender]()
    (before,) = at_publish
    assert before <= 2  # a state, and UpdateEndpoint: the claim is in the same write
    # a notification without an incident is claimed and recorded for each channel
    assert len(writes) - before == (3 if kind in ("stale-twin", "hooked-without-incident") else 1)


def test_the_next_invocation_sends_what_sns_refused(violation):
    world = World()
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.swap(violation)
    assert world.incident.claims == {}
    world.endpoint.settle()
    world.confirm()
    assert world.notified == ["swapping"]


def test_sends_a_second_failure_while_the_first_is_being_sent(violation):
    """SageMaker refuses an abort as well while SNS is slow to accept the first notification."""
    world = World()
    not_restorable(world, violation)
    publish = world.notices.publish

    def interrupted(notice):
        world.notices.publish = publish
        world.apply(Command("traffic-signs", "abort", world.now, world.now))
        world.restore()
        publish(notice)

    world.notices.publish = interrupted
    world.restore()
    assert world.incident.state is State.FAILED
    assert world.notified == ["swapping", "failed", "failed"]
    assert "failed" in world.incident.sent_notifications


# ---------------------------------------------------------------- the topic and the event bus


@pytest.fixture
def away():
    return RetryableError("EventBridge is away")


def announced(world):
    return [detail["event"] for _, _, detail in world.events.events]


def test_each_notification_is_an_event_with_the_facts(violation):
    world = World()
    world.run(violation)
    assert world.events.events == [
        ("glassbox", "Glassbox Notification", facts_of(notice)) for notice in world.notices.published
    ]
    assert announced(world) == ["swapping", "restored"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refused", ["put", "publish"])
def test_a_channel_that_refuses_delays_no_other_and_repeats_nothing(violation, kind, refused, away):
    world = World()
    lead, sender = KINDS[kind]
    lead(world, violation)
    act, event = acts(world, violation), kind.partition(",")[0]
    sent = {"publish": lambda: world.notified.count(event), "put": lambda: announced(world).count(event)}
    other = "publish" if refused == "put" else "put"
    before = {channel: count() for channel, count in sent.items()}
    world.refuse(refused, away)
    with pytest.raises(RetryableError, match="EventBridge is away"):
        act[sender]()
    for repeated in (0, 1):  # while one channel refuses, and afterwards
        for name in (sender, "confirm", sender, "confirm"):
            with contextlib.nullcontext() if repeated else contextlib.suppress(RetryableError):
                act[name]()
            world.later(1)
        assert {c: count() - before[c] for c, count in sent.items()} == {other: 1, refused: repeated}
        world.refused.pop(refused, None)


def test_both_channels_refuse(violation, away):
    world = World()
    world.refuse("put", away)
    world.refuse("publish", BadInputError("no permission"))
    with pytest.raises(RetryableError, match="no permission; EventBridge is away"):
        world.swap(violation)
    assert world.incident.sent_notifications == frozenset()
    world.later(2)
    world.refuse("put", BadInputError("no permission either"))
    with pytest.raises(BadInputError, match="no permission; no permission either"):
        world.confirm()
    world.allow()
    world.confirm()
    assert world.notified == announced(world) == ["swapping"]


def test_a_crash_between_the_channels_loses_no_notification(violation):
    world = World()
    put = world.events.put

    def killed(*_):
        world.events.put = put
        raise CrashError

    world.events.put = killed
    with pytest.raises(CrashError):
        world.swap(violation)
    world.later(2)
    world.confirm()
    assert announced(world) == ["swapping"]
    assert world.notified == ["swapping"] * 2  # at least once


def test_an_incident_ends_while_its_events_are_refused_for_good(violation):
    world = World()
    world.refuse("put", BadInputError("no permission"))
    world.endpoint.deploy("another")
    with pytest.raises(BadInputError, match="no permission"):
        world.swap(violation)
    world.endpoint.deploy("plain")
    world.tick(violation, 20)
    assert world.incident.state is State.NORMAL
    assert world.notified == ["failed"]


def test_a_second_failure_is_an_event_again(violation):
    world = World()
    not_restorable(world, violation)
    world.restore()
    world.later(11)
    world.restore()
    world.later(2)
    world.confirm()
    assert announced(world) == world.notified == ["swapping", "failed", "failed"]


# ---------------------------------------------------------------- schedules that a random simulation found


def test_sends_the_end_when_another_incident_opens_at_that_moment(violation):
    world = World(cooldown_minutes=0)
    restored(world, violation)
    world.incidents.meanwhile = [lambda: None, lambda: world.swap(following(violation, 2))]
    world.confirm()
    world.later(2)
    world.confirm()
    assert sorted(world.notified) == ["restored", "swapping", "swapping"]


def test_sends_a_refused_end_before_another_incident_opens(violation):
    world = World(cooldown_minutes=0)
    restored(world, violation)
    world.notices.away = 1
    with pytest.raises(RetryableError):
        world.confirm()
    assert world.swap(following(violation, 2)) == Outcome.SWAPPING
    assert world.notified == ["swapping", "restored", "swapping"]


def test_opens_an_incident_while_sns_refuses(violation):
    world = World(cooldown_minutes=0)
    restored(world, violation)
    world.refuse("publish", RetryableError("SNS is away"))
    with pytest.raises(RetryableError):
        world.confirm()
    ended = world.incident.id
    with pytest.raises(RetryableError):  # the update has begun, and SNS refuses its notification
        world.swap(following(violation, 2))
    assert world.endpoint.updates == ["hooked", "plain", "hooked"]
    assert any(f"incident {ended}" in line and "SNS is away" in line for line in world.incident.timeline)


def test_ignores_an_endpoint_state_from_before_the_swap(violation):
    """A sweep that begins the swap must not compare an old endpoint state with a newer incident."""
    world = World()
    world.notices.away, world.endpoint.live = 1, EndpointState("Updating", "plain")
    with pytest.raises(RetryableError):
        world.swap(violation)
    world.endpoint.live = EndpointState("InService", "plain")
    publish = world.notices.publish

    def interrupted(notice):
        world.notices.publish = publish
        world.endpoint.settle()
        world.confirm()
        publish(notice)

    world.notices.publish = interrupted
    world.confirm()
    assert (world.incident.state, world.endpoint.live.config) == (State.HOOKED, "hooked")
