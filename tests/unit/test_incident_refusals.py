"""24 hours in which AWS refuses one call: the endpoint is never hooked and silent, and an abort is always answered.

A call that is refused without end leaves the incident NORMAL, or FAILED with ops told and every further try told. Where
the incidents table itself is refused, nothing can be recorded: then every sweep fails, and the alarm of the dead-letter
queue tells ops.
"""

from datetime import timedelta

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError, GlassboxError, RetryableError
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Command, Outcome, State
from world import IDS, World

DAY = 24 * 60
TABLE = ("current", "open", "save")  # without which nothing is known or noted
CALLS = (*TABLE, "past", "attach", "add_heatmap", "describe", "update", "publish", "replay", "report")
# of BadInputError, what an adapter raises: the table is refused for good only where the request is at fault
ERRORS = {
    "for now": RetryableError("ThrottlingException: slow down"),
    "for good": BadInputError("AccessDeniedException: no"),
}
BEFORE = ("the violation", "the swap is done", "it is hooked", "it is restored", "it is closed")


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


def reach(world, violation, stage):
    """Play the incident up to a stage without a hitch."""
    steps = (
        lambda: world.swap(violation),
        lambda: (world.endpoint.settle(), world.confirm()),
        lambda: (world.draw(*IDS), world.restore()),
        lambda: world.endpoint.settle(),
    )
    for step in steps[: BEFORE.index(stage)]:
        step()


@pytest.mark.parametrize("stage", BEFORE)
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_refused_for_a_day(violation, call, error, stage):
    world = World()
    reach(world, violation, stage)
    updates = len(world.endpoint.updates)
    world.refuse(call, error)
    sweeps = world.tick(violation, DAY)

    last = world.incident
    hooked = world.endpoint.live.config == "hooked"
    if call in TABLE:
        # no sweep that had something to do went by in silence
        assert last is None or not hooked or all("refused" in sweep for sweep in sweeps)
    elif call == "publish":
        assert last is None or last.state is State.NORMAL or not hooked
    elif last is not None:
        assert last.state in (State.NORMAL, State.FAILED)
        assert last.state is State.NORMAL or "failed" in last.sent_notifications
        if hooked and call == "update":
            assert (
                8 <= world.notified.count("failed") <= 20
            )  # tried again, told each time, and not every two minutes
        if hooked and call == "describe":
            assert len(world.endpoint.updates) == updates  # nothing is done unseen

    # an abort is answered, as far as the table can be asked
    abort = Command("traffic-signs", "abort", world.now + timedelta(minutes=15))
    if call in TABLE:
        with pytest.raises(GlassboxError) if call == "current" else _as_it_may_be():
            world.apply(abort)
    else:
        open_now = last is not None and last.state is not State.NORMAL
        assert world.apply(abort) == (Outcome.ABORT if open_now else Outcome.NO_INCIDENT)

    # and when AWS answers again, everything is as it was
    world.allow()
    world.tick(violation, 6 * 60)
    assert world.incident.state is State.NORMAL
    assert world.endpoint.live.config == "plain"
    assert world.notified[-1:] in (["restored"], ["failed"])
    assert world.notified.count("restored") <= 1
    if world.incident.heatmaps and "failed" not in world.notified:
        assert world.notified[-1] == "restored"


class _as_it_may_be:  # noqa: N801 (reads as a condition)
    """Either answer is right: that depends on whether there is something to note."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, GlassboxError)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("current", "save")])
def test_an_abort_while_a_call_is_refused_leaves_the_endpoint_as_it_was_or_says_so(violation, call, error):
    world = World()
    reach(world, violation, "it is hooked")
    world.refuse(call, error)
    abort = Command("traffic-signs", "abort", world.now + timedelta(minutes=15))
    assert world.apply(abort) == Outcome.ABORT
    world.tick(violation, 3 * 60)
    restored = world.incident.state is State.NORMAL and world.endpoint.live.config == "plain"
    assert restored or (
        world.incident.state is State.FAILED and "failed" in world.incident.sent_notifications
    )
    assert restored is (call not in ("describe", "update"))
