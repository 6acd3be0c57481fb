"""Search every interleaving at a small scope, breadth-first: ``python -m simulation.exhaustive``.

A state is the simulated AWS, the invocations that are suspended with all answers they got, and what is left of each
budget. Equal states are visited once. Invocations may stop before each call of DynamoDB (incidents), SageMaker and
SNS; the other calls read what nothing else writes at this scope. A second message to confirm_endpoint is dropped
while one waits, as SageMaker may: they do the same. Every invariant is checked after each transition,
and from each last state the faults stop and the end is checked too.
"""

import argparse
import re
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta

from simulation import traffic
from simulation.invariants import STEP, History
from simulation.run import check, settle
from simulation.services import CALL, INCIDENTS
from simulation.steps import UPDATING, Deploy, Settle
from simulation.system import SWEEP, System

SETTINGS = {"explain_minutes": "2", "update_minutes": "60", "cooldown_minutes": "30"}
CHECKS = ("class_share", "drift", "low_confidence_share")
TICK = 185  # seconds: claims expire, failed messages are visible again, the time to explain is over


@dataclass(frozen=True)
class Budget:
    """How often each thing may still happen."""

    crashes: int = 1
    deployments: int = 1
    duplicates: int = 1
    ticks: int = 1
    sweeps: int = 1


@dataclass
class Result:
    """What a search has covered."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    ends: int = 0
    closed: bool = False
    seconds: float = 0.0

    def __str__(self):
        scope = "closed" if self.closed else "NOT closed"
        return (
            f"{scope}: {self.states:,} states, {self.transitions:,} transitions, depth {self.depth}, "
            f"{self.ends:,} ends, {self.seconds:.0f} seconds"
        )


def search(violations=2, workers=2, budget=Budget(), *, states=10**9, seconds=10**9):
    """Search from an endpoint on its plain config and ``violations`` messages; raises what breaks an invariant."""
    system = System(SETTINGS)
    aws = system.aws
    aws.call_time = timedelta()
    aws.is_point = _is_point
    try:
        return _search(system, violations, workers, budget, states, seconds)
    finally:
        aws.call_time, aws.is_point = CALL, lambda service, request: True


def _is_point(service, request):
    return service in ("sagemaker", "sns") or request.get("TableName") == INCIDENTS


def _search(system, violations, workers, budget, states, seconds):
    history = History(system)
    for check_name in CHECKS[:violations]:
        traffic.violation_event(system, check_name)
    began, result = time.monotonic(), Result()
    seen = {_digest(system, history, budget)}
    waiting = deque([(_save(system, history), budget, 0, ())])
    while waiting:
        saved, left, depth, path = waiting.popleft()
        result.states, result.depth = result.states + 1, max(result.depth, depth)
        result.seconds = time.monotonic() - began
        if result.states > states or result.seconds > seconds:
            return result
        _load(system, history, saved)
        actions = list(_actions(system, workers, left))
        for name, act, after in actions:
            _load(system, history, saved)
            try:
                act(system)
                check(history, STEP)
                _drop_repeated(system.aws.queues["confirm"])
                result.transitions += 1
                digest = _digest(system, history, after)
                if digest not in seen:
                    seen.add(digest)
                    waiting.append((_save(system, history), after, depth + 1, (*path, name)))
            except Exception as error:
                raise AssertionError("\n".join([*path, name, str(error)])) from error
        if not actions:
            result.ends += 1
            _load(system, history, saved)
            try:
                settle(system, history)
            except Exception as error:
                raise AssertionError("\n".join([*path, "settle", str(error)])) from error
    result.closed = True
    return result


def _actions(system, workers, left):
    """Yield (name, action, budget afterwards) of everything that may happen next."""
    aws = system.aws
    yield from _continuations(system, left)
    yield from _starts(system, workers, left)
    if aws.endpoint.status in UPDATING:
        yield "the update ends", Settle(), left
    if left.deployments and aws.endpoint.status == "InService":
        yield "the owner deploys", Deploy("foreign"), replace(left, deployments=left.deployments - 1)
    if left.sweeps and not any(message.body == SWEEP for message in aws.queues["confirm"]):
        yield "sweep", lambda s: s.sweep(), replace(left, sweeps=left.sweeps - 1)
    if left.ticks and not system.tasks:
        yield "time passes", lambda s: s.wait(TICK), replace(left, ticks=left.ticks - 1)


def _continuations(system, left):
    for index, task in enumerate(system.tasks):
        yield f"{task.function} continues", lambda s, i=index: s.resume(s.tasks[i], 1), left
        if left.crashes:
            yield (
                f"{task.function} crashes",
                lambda s, i=index: s.kill(s.tasks[i]),
                replace(left, crashes=left.crashes - 1),
            )


def _starts(system, workers, left):
    if len(system.tasks) < workers:
        for queue in system.aws.queues:
            bodies = set()
            for message in system.aws.visible(queue):
                if (body := _plain(message.body)) in bodies:
                    continue
                bodies.add(body)
                yield f"{queue} starts", lambda s, q=queue, m=message: _start(s, q, m), left
                if left.duplicates and queue == "swap":
                    yield (
                        f"{queue} starts, and keeps the message",
                        lambda s, q=queue, m=message: _start(s, q, m, keep=True),
                        replace(left, duplicates=left.duplicates - 1),
                    )


def _drop_repeated(waiting):
    fresh = [message for message in waiting if not message.receives]
    for message in fresh[1:]:
        waiting.remove(message)


def _start(system, queue, message, keep=False):
    if not keep:
        system.aws.queues[queue].remove(message)
    system.start(queue, message, calls=1)


def _save(system, history):
    return (
        system.aws.snapshot(),
        [task.copy() for task in system.tasks],
        dict(system.finished),
        (system.invocations, system.steps, system.quiet_since),
        history.copy(),
    )


def _load(system, history, saved):
    aws, tasks, finished, (system.invocations, system.steps, system.quiet_since), facts = saved
    system.aws.restore(aws)
    system.tasks, system.finished = [task.copy() for task in tasks], dict(finished)
    system.failed, system.done, system.delivered_violations = [], [], set()
    history.restore(facts)


def _digest(system, history, left):
    """Return a hash of the state. Ids of events and messages are left out: they count what was sent before."""
    aws = system.aws
    rows = aws.tables.tables[INCIDENTS]
    return hash(
        (
            left,
            aws.now,
            aws.endpoint,
            repr(sorted((sk, sorted(item.items())) for items in rows.values() for sk, item in items.items())),
            tuple(
                sorted((q, _plain(m.body), m.receives, m.visible) for q, ms in aws.queues.items() for m in ms)
            ),
            tuple(sorted((q, _plain(m.body)) for q, ms in aws.dead.items() for m in ms)),
            tuple(
                sorted((task.function, _plain(task.message.body), repr(task.log)) for task in system.tasks)
            ),
            tuple(sorted(_published(system))),
            tuple(sorted((facts["event"], facts["deduplication_key"]) for facts in aws.announced)),
        )
    )


def _published(system):
    for message in system.aws.published:
        task = system.finished.get(message.task)
        yield message.event, message.incident, message.subject, task is None or task.disturbed or task.slow


def _plain(body):
    return re.sub(r'"id": "e\d+", ', "", body)


def main():
    parser = argparse.ArgumentParser(prog="simulation.exhaustive")
    parser.add_argument("--violations", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=40)
    for name in Budget.__dataclass_fields__:
        parser.add_argument(f"--{name}", type=int, default=getattr(Budget(), name))
    options = parser.parse_args()
    budget = Budget(**{name: getattr(options, name) for name in Budget.__dataclass_fields__})
    print(options.violations, "violations,", options.workers, "workers,", budget, flush=True)
    print(search(options.violations, options.workers, budget, seconds=options.minutes * 60))


if __name__ == "__main__":
    main()
