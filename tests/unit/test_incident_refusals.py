"""AWS refuses one call for 24 hours: ops are notified of a hooked endpoint, and an abort is always answered.

A call that is refused for good leaves the incident NORMAL, or FAILED with a notification of every retry. While the
incidents table is refused, nothing can be recorded: every sweep fails, and the alarm of the dead-letter queue notifies
ops.
"""

from datetime import timedelta

import pytest

from fakes import FakeObjects
from glassbox.errors import BadInputError, GlassboxError, RetryableError
from glassbox.incidents.events import read_violation
from glassbox.incidents.model import Command, Outcome, State
from world import IDS, World

DAY = 24 * 60
TABLE = ("current", "open", "save")
CALLS = (*TABLE, "past", "attach", "add_heatmap", "describe", "update", "publish", "put", "replay", "report")
# the table refuses for good only an invalid request
ERRORS = {
    "for now": RetryableError("ThrottlingException: slow down"),
    "for good": BadInputError("AccessDeniedException: no"),
}
BEFORE = ("the violation", "the swap is done", "it is hooked", "it is restored", "it is closed")


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


def reach(world, violation, stage):
    """Run the incident up to a stage without errors."""
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
def test_recovers_from_a_call_that_is_refused_for_a_day(violation, call, error, stage):
    world = World()
    reach(world, violation, stage)
    updates = len(world.endpoint.updates)
    world.refuse(call, error)
    sweeps = world.tick(violation, DAY)

    last = world.incident
    hooked = world.endpoint.live.config == "hooked"
    if call in TABLE:
        # every sweep with something to do fails
        assert last is None or not hooked or all("refused" in sweep for sweep in sweeps)
    elif call == "publish":
        assert last is None or last.state is State.NORMAL or not hooked
    elif last is not None:
        assert last.state in (State.NORMAL, State.FAILED)
        assert last.state is State.NORMAL or "failed" in last.sent_notifications
        if hooked and call == "update":
            assert (
                8 <= world.notified.count("failed") <= 20
            )  # retried with a notification each time, and not every two minutes
        if hooked and call == "describe":
            assert len(world.endpoint.updates) == updates  # no update without DescribeEndpoint

    # an abort is answered unless the table is refused
    abort = Command("traffic-signs", "abort", world.now + timedelta(minutes=15), world.now)
    if call in TABLE:
        with pytest.raises(GlassboxError) if call == "current" else _either():
            world.apply(abort)
    else:
        open_now = last is not None and last.state is not State.NORMAL
        assert world.apply(abort) == (Outcome.ABORT if open_now else Outcome.NO_INCIDENT)

    # after AWS accepts calls again, the endpoint serves its plain config
    world.allow()
    world.tick(violation, 6 * 60)
    assert world.incident.state is State.NORMAL
    assert world.endpoint.live.config == "plain"
    assert world.notified[-1:] in (["restored"], ["failed"])
    assert world.notified.count("restored") <= 1
    if world.incident.heatmaps and "failed" not in world.notified:
        assert world.notified[-1] == "restored"


class _either:  # noqa: N801 (reads as a condition)
    """Accept an answer or an error: it depends on whether there is something to record."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, GlassboxError)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("current", "save")])
def test_an_abort_while_a_call_is_refused_restores_the_endpoint_or_notifies(violation, call, error):
    world = World()
    reach(world, violation, "it is hooked")
    world.refuse(call, error)
    abort = Command("traffic-signs", "abort", world.now + timedelta(minutes=15), world.now)
    assert world.apply(abort) == Outcome.ABORT
    world.tick(violation, 3 * 60)
    restored = world.incident.state is State.NORMAL and world.endpoint.live.config == "plain"
    assert restored or (
        world.incident.state is State.FAILED and "failed" in world.incident.sent_notifications
    )
    assert restored is (call not in ("describe", "update"))
