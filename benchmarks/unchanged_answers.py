"""Answers of owners' scripts with the hook and without it: their statuses, headers and bytes are compared.

Each script runs in two servers of gunicorn with forked workers. Both get the same requests at the same time: most are
live, some are replays, some are invalid. The hooked server traces meanwhile.
"""

import argparse
import itertools
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import replays
from benchmarks.served import ATTRIBUTES, INFERENCE_ID, Answer, Server, encoded, serving, write_hook
from benchmarks.side_by_side import show
from glassbox.explanation.trace_format import REPLAY_EVENT_ID
from hook_files import traces_in

OWNERS = (
    "probabilities",
    "torchscript",
    "bfloat16",
    "transformer",
    "random_numbers",
    "one_buffer",
    "input_gradient",
    "two_networks",
)
TYPES = ("application/json", "application/x-npy", "image/png")
SIZES = (24, 32, 40)  # pixels, so that consecutive inputs differ in shape
REPLAYS, INVALID = 20, 50  # every how many requests there is one
CLIENTS = 4
TRACES_PER_MINUTE = 300  # of live requests in each worker: 30 times the default


@dataclass(frozen=True)
class Asked:
    """A request."""

    body: bytes
    content_type: str
    headers: Mapping[str, str]


@dataclass
class Outcome:
    """What the requests to both servers of a script gave.

    Attributes:
        statuses: number of requests by the status of the plain server.
        differences: a sentence for each request with other answers.
        live: number of traced live requests.
        replayed: number of replays, each with exactly one trace or refusal.
        refused: how many of these are refusals.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    live: int = 0
    replayed: int = 0
    refused: int = 0


def requests(count: int, seed: int) -> Iterator[Asked]:
    """Yield requests with images of noise."""
    random_images = np.random.default_rng(seed)
    incident = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-operator"
    for i, content_type in zip(range(count), itertools.cycle(TYPES), strict=False):
        size = SIZES[i // len(TYPES) % len(SIZES)]
        body = encoded(random_images.integers(0, 256, (size, size, 3), np.uint8), content_type)
        if i % INVALID == INVALID - 1:
            body = body[: len(body) // 2]
        headers = {INFERENCE_ID: f"live-{i}"}
        if _is_replay(i):
            headers = {ATTRIBUTES: replays.marker(body, incident, f"replay-{i}")}
        yield Asked(body, content_type, headers)


def _is_replay(i: int) -> bool:
    return i % REPLAYS == REPLAYS // 2


def difference(plain: Answer, hooked: Answer) -> str:
    """Return how two answers differ, or an empty string."""
    for what in ("status", "headers"):
        if (expected := getattr(plain, what)) != (found := getattr(hooked, what)):
            return f"{what}: expected {expected}, got {found}"
    if plain.body != hooked.body:
        pairs = enumerate(zip(plain.body, hooked.body, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(plain.body), len(hooked.body)))
        return f"body of {len(plain.body)} bytes: other from byte {first} of {len(hooked.body)}"
    return ""


def both(plain: Server, hooked: Server, asked: Asked) -> tuple[Answer, Answer]:
    """Return the answers of both servers, asked in an order drawn at random."""
    order = random.sample((plain, hooked), 2)
    answers = {server: server.ask(asked.body, asked.content_type, asked.headers) for server in order}
    return answers[plain], answers[hooked]


def compare(
    owner: str, count: int, hook: Path, *, seed: int = 0, traces_per_minute: int = TRACES_PER_MINUTE
) -> Outcome:
    """Send the same requests to an owner's script with the hook and without it.

    Raises:
        TimeoutError: a server does not start, or replays without trace and refusal are left.
    """
    # The path of a socket holds 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="glassbox-") as name:
        asked = list(requests(count, seed))
        settings = {"TRACES_PER_MINUTE": str(traces_per_minute)}
        with (
            serving(owner, "plain", Path(name)) as plain,
            serving(owner, "hooked", Path(name), hook=hook, settings=settings) as hooked,
        ):
            outcome = _asked_both(owner, plain, hooked, asked)
            expected = sorted(f"replay-{i}" for i in range(count) if _is_replay(i))
            hooked.wait_for(len(expected))
        # The hook uploads what waits before its process ends.
        traces = traces_in(hooked.objects)
    replayed = [trace for trace in traces if REPLAY_EVENT_ID in trace.meta.request]
    found = sorted(str(trace.meta.request[REPLAY_EVENT_ID]) for trace in replayed)
    if found != expected:
        outcome.differences.append(f"{owner}: expected one object for each of {expected}, got {found}")
    outcome.replayed, outcome.live = len(replayed), len(traces) - len(replayed)
    outcome.refused = sum(1 for trace in replayed if trace.meta.refused)
    return outcome


def _asked_both(owner: str, plain: Server, hooked: Server, asked: Sequence[Asked]) -> Outcome:
    outcome = Outcome()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for i, answers in enumerate(clients.map(partial(both, plain, hooked), asked)):
            status = answers[0].status
            outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
            if found := difference(*answers):
                outcome.differences.append(f"{owner}, request {i}: {found}")
    return outcome


def run(count: int = 10_000) -> list[dict[str, Any]]:
    """Send ``count`` requests in total, and return a row for each script and one for all."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        hook = write_hook(Path(folder, "hook"))
        for i, owner in enumerate(OWNERS):
            share = count * (i + 1) // len(OWNERS) - count * i // len(OWNERS)
            found = compare(owner, share, hook, seed=i)
            rows.append(
                {
                    "script": owner,
                    "requests": share,
                    "statuses": [f"{number} × {status}" for status, number in sorted(found.statuses.items())],
                    "other answers": len(found.differences),
                    "live traces": found.live,
                    "replays": found.replayed,
                    "of them refused": found.refused,
                    "first difference": next(iter(found.differences), ""),
                }
            )
    numbers = [name for name, value in rows[0].items() if isinstance(value, int)]
    return [*rows, {"script": "all"} | {name: sum(row[name] for row in rows) for name in numbers}]


def main() -> None:
    """Print the table, and fail if an answer is different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unchanged_answers", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="in total (default: 10000)")
    rows = run(parser.parse_args().requests)
    show(__doc__, rows)
    print(f"load average {os.getloadavg()[0]:.1f} at the end")
    raise SystemExit(rows[-1]["other answers"] > 0)


if __name__ == "__main__":
    main()
