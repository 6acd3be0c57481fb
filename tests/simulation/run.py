"""Run a schedule, shrink one that fails, and print it as a test."""

import random
from dataclasses import dataclass, field

from simulation import traffic
from simulation.generator import generate
from simulation.invariants import END, STEP, History, InvariantError, hooked_within_the_limits
from simulation.steps import UPDATING, Settle
from simulation.system import System

# minutes between the sweeps once the faults have stopped: each wait of the core is reached, the longest are 4 hours
GAPS = (2, 2, 2, 2, 2, 4, 4, 8, 8, 16, 30, 60, 120, 240, 240, 240, 480)
ROUND = 400  # deliveries in a round, by which a loop of messages is found


class ScheduleError(Exception):
    """A schedule failed after so many steps; the cause is the error."""


@dataclass
class Failure:
    """A schedule that broke an invariant."""

    schedule: list
    error: Exception
    step: int
    settings: dict = field(default_factory=dict)

    @property
    def kind(self):
        """The invariant, without the values: shrinking must not change what fails."""
        name = str(self.error).partition(":")[0]
        return name if isinstance(self.error, InvariantError) else type(self.error).__name__


def run(schedule, settings=None):
    """Run steps and then stop the faults. Returns the System; raises ScheduleError."""
    system = System(settings)
    history = History(system)
    done = 0
    try:
        for step in schedule:
            apply(system, history, step)
            done += 1
        settle(system, history)
    except Exception as error:
        raise ScheduleError(done) from error
    return system


def apply(system, history, step):
    """Run one step and check every invariant."""
    step(system)
    system.steps += 1
    check(history, STEP)


def check(history, invariants):
    history.gather()
    for invariant in invariants:
        try:
            invariant(history)
        except InvariantError as broken:
            raise InvariantError(f"{invariant.__name__}: {broken}") from None


def settle(system, history):
    """Stop the faults, deliver everything, and sweep until nothing changes; then check the end."""
    aws = system.aws
    aws.outages.clear()
    aws.lost_events.clear()
    for task in list(system.tasks):
        system.kill(task)
    for queue, dead in aws.dead.items():
        aws.queues[queue] += [
            message._replace(receives=0, visible=aws.now)
            for message in dead
            if not system.is_garbage(message)
        ]
        aws.dead[queue] = []
    system.quiet_since = aws.now
    quiet = 0
    for gap in GAPS:
        before = _fingerprint(system)
        while aws.replayed[system.drawn :]:
            traffic.trace(system)
        while aws.replayed[system.replays_captured :]:
            traffic.flush(system)
        if aws.endpoint and aws.endpoint.status in UPDATING:
            Settle()(system)
            check(history, STEP)
        _drain(system, history)
        system.sweep()
        _drain(system, history)
        check(history, (hooked_within_the_limits,))
        idle = system.state() == "NORMAL" and _fingerprint(system) == before and not any(aws.queues.values())
        quiet = quiet + 1 if idle else 0
        if quiet >= 2:
            break
        system.wait(gap * 60)
    check(history, END)


def _fingerprint(system):
    aws = system.aws
    item = system.incident_item()
    return aws.endpoint, len(aws.published), len(aws.updates), id(item)


def _drain(system, history):
    for _ in range(ROUND):
        queue = next((name for name in system.aws.queues if system.aws.visible(name)), None)
        if queue is None:
            return
        message = system.aws.visible(queue)[0]
        system.aws.queues[queue].remove(message)
        system.start(queue, message)
        system.steps += 1
        check(history, STEP)
    raise InvariantError(f"{ROUND} deliveries, and messages are left")


def run_seed(seed):
    """Run the schedule of a seed. Returns (system, Failure or None)."""
    chance = random.Random(seed)
    schedule, settings = [], {}
    failure = None
    try:
        system, history = generate(chance, schedule, settings, apply)
        settle(system, history)
    except Exception as error:
        failure = Failure(list(schedule), error, len(schedule), dict(settings))
        system = System.last
    return system, failure


def shrink(failure, budget=2000):
    """Return the failure with as few steps as leaving steps out allows (delta debugging)."""
    best, tries = failure, 0
    size = max(1, len(best.schedule) // 2)
    while size >= 1 and tries < budget:
        start, removed = 0, False
        while start < len(best.schedule) and tries < budget:
            candidate = best.schedule[:start] + best.schedule[start + size :]
            tries += 1
            found = attempt(candidate, best.settings)
            if found is not None and found.kind == best.kind:
                best, removed = found, True
            else:
                start += size
        if size == 1 and not removed:
            break
        size = max(1, size // 2) if not removed or size > 1 else 1
    return best


def attempt(schedule, settings):
    """Run a schedule; returns its Failure, or None."""
    try:
        run(schedule, settings)
    except ScheduleError as failed:
        cut = failed.args[0] + 1
        return Failure(list(schedule[:cut]), failed.__cause__, cut, settings)
    return None


def show(failure, seed=None):
    """Return the failure as the lines of a test."""
    lines = [f"# seed {seed}: {failure.error}" if seed is not None else f"# {failure.error}"]
    if failure.settings:
        lines.append(f"settings = {failure.settings!r}")
    lines += ["schedule = [", *(f"    {step!r}," for step in failure.schedule), "]"]
    return "\n".join(lines)
