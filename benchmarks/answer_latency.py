"""Latency of answers with the hook, in multiples of those without it: gunicorn, Flask, one worker, one thread.

Closed loop: one client asks a plain and two hooked servers in turn. Of the hooked ones, one traces every request, and
one traces none. The next round begins after the trace. A second plain server shows what the measurement cannot resolve.

Open loop: requests arrive at random times at a server of one core, minute by minute with the hook and without it. The
hook traces 10 requests a minute. A latency counts from the time at which the request should have been sent. "CPU of
plain" is what the plain server used of its core: less than the utilisation, if other processes took a part of it.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.served import Server, encoded, serving, write_hook
from benchmarks.side_by_side import show

NPY = "application/x-npy"
SIZES = ((16, 48, 200), (64, 128, 120), (64, 224, 60))  # width, pixels, rounds
WARM_UP = 12  # rounds that are not timed: connections to S3, lazy imports, caches
OPEN = (64, 128)  # width, pixels
UTILISATIONS = (0.5, 0.9)
CALIBRATION = 200  # requests whose CPU time defines the utilisation
PHASE_SECONDS = 60.0  # the period of the rate limit
CLIENTS = 128  # requests that may wait at the same time
RESAMPLES = 4000
REACH = {"plain again": "", "untraced": "≤ 1.05×", "traced": "≤ 1.1×"}


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio_of_medians(
    ours: Sequence[float], theirs: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> Ratio:
    """Return median(ours) / median(theirs), with a bootstrap over the rounds.

    Args:
        ours: one value for each round.
        theirs: values of the same rounds.
        resamples: number of them.
        seed: of the resamples.
    """
    pairs = np.array([ours, theirs])
    drawn = np.random.default_rng(seed).integers(0, pairs.shape[1], (resamples, pairs.shape[1]))
    numerator, denominator = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(numerator / denominator, (0.025, 0.975))
    return Ratio(float(median(ours) / median(theirs)), float(low), float(high))


def image(size: int) -> npt.NDArray[np.uint8]:
    """Return an image (size, size, 3) of noise."""
    return np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)


def timed(server: Server, body: bytes) -> float:
    """Return the milliseconds of an answer."""
    began = time.perf_counter()
    answer = server.ask(body, NPY, {})
    elapsed = (time.perf_counter() - began) * 1000
    assert answer.status == "200 OK", answer
    return elapsed


def closed_loop(hook: Path, width: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way of answering, with its latency in multiples of the plain one."""
    limits = {"plain": None, "plain again": None, "untraced": "0", "traced": "1000000"}
    times: dict[str, list[float]] = {name: [] for name in limits}
    order, body = random.Random(size), encoded(image(size), NPY)
    with tempfile.TemporaryDirectory(prefix="glassbox-") as name, ExitStack() as stack:
        servers = {
            way: stack.enter_context(_one_worker(way.replace(" ", "-"), Path(name), hook, width, limit))
            for way, limit in limits.items()
        }
        before = servers["traced"].steps()
        for i in range(WARM_UP + rounds):
            for way in order.sample(list(servers), len(servers)):
                elapsed = timed(servers[way], body)
                if i >= WARM_UP:
                    times[way].append(elapsed)
                # The first answers come before the hook has its connections, and are not traced.
                if way == "traced" and i >= WARM_UP // 2:
                    before = _after_trace(servers[way], before, is_needed=i >= WARM_UP)
        assert servers["untraced"].steps() == 0, "a trace of a server whose limit is 0"
    what = f"ResNet18 w{width}, {size} px"
    plain = times.pop("plain")
    return [
        {
            "network": what,
            "answer": way,
            "plain, ms": median(plain),
            "ms": median(measured),
            "× plain (95 %)": str(ratio_of_medians(measured, plain)),
            "reach": REACH[way],
            "rounds": rounds,
        }
        for way, measured in times.items()
    ]


def _one_worker(name: str, folder: Path, hook: Path, width: int, limit: str | None) -> Any:
    settings = {"WIDTH": str(width)} | ({} if limit is None else {"TRACES_PER_MINUTE": limit})
    return serving("photographs", name, folder, hook=hook if limit else None, workers=1, settings=settings)


def _after_trace(server: Server, before: int, *, is_needed: bool) -> int:
    """Wait until one more trace is complete, and return their number."""
    if is_needed:
        server.wait_for(before + 1)
    else:
        time.sleep(0.5)
    return server.steps()


def arrivals(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Return the times of a Poisson process of ``rate`` a second, in seconds from 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(3 * rate * seconds) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def latencies(server: Server, body: bytes, due: npt.NDArray[np.float64]) -> list[float]:
    """Send a request at each of these seconds from now, and return the latencies in ms."""
    began = time.perf_counter()

    def ask(at: float) -> float:
        answer = server.ask(body, NPY, {})
        assert answer.status == "200 OK", answer
        return (time.perf_counter() - began - at) * 1000

    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = []
        for at in due.tolist():
            time.sleep(max(0.0, at - (time.perf_counter() - began)))
            asked.append(clients.submit(ask, at))
        return [future.result() for future in asked]


def open_loop(hook: Path, width: int, size: int, phases: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row for each utilisation, with the percentiles of the latencies of all phases."""
    *others, core = sorted(os.sched_getaffinity(0))
    body, rows = encoded(image(size), NPY), []
    os.sched_setaffinity(0, others or [core])
    try:
        with (
            tempfile.TemporaryDirectory(prefix="glassbox-") as name,
            serving(
                "photographs", "plain", Path(name), workers=1, core=core, settings={"WIDTH": str(width)}
            ) as plain,
            serving(
                "photographs",
                "hooked",
                Path(name),
                hook=hook,
                workers=1,
                core=core,
                settings={"WIDTH": str(width)},
            ) as hooked,
        ):
            service = _service_seconds(plain, hooked, body)
            for utilisation in UTILISATIONS:
                found: dict[str, list[list[float]]] = {"plain": [], "hooked": []}
                before, spent, measured = hooked.steps(), plain.cpu_seconds(), 0.0
                for phase in range(phases):
                    due = arrivals(utilisation / service, seconds, phase)
                    started = time.perf_counter()
                    found["plain"].append(latencies(plain, body, due))
                    measured += time.perf_counter() - started
                    found["hooked"].append(latencies(hooked, body, due))
                more = {
                    "CPU of plain": f"{(plain.cpu_seconds() - spent) / measured:.0%}",
                    "traces": hooked.steps() - before,
                }
                rows.append(_open_row(width, size, utilisation, found) | more)
    finally:
        os.sched_setaffinity(0, [*others, core])
    return rows


def _service_seconds(plain: Server, hooked: Server, body: bytes) -> float:
    """Return the CPU seconds of a plain answer, after a warm-up of both servers."""
    for server in (hooked, plain):
        for _ in range(WARM_UP):
            timed(server, body)
    hooked.wait_for(1)
    time.sleep(5)  # for the traces of the warm-up
    before = plain.cpu_seconds()
    for _ in range(CALIBRATION):
        timed(plain, body)
    return (plain.cpu_seconds() - before) / CALIBRATION


def _open_row(
    width: int, size: int, utilisation: float, found: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    percentiles = {
        way: {q: [float(np.quantile(phase, q)) for phase in phases] for q in (0.5, 0.95)}
        for way, phases in found.items()
    }
    ratios = [
        ours / theirs
        for ours, theirs in zip(percentiles["hooked"][0.95], percentiles["plain"][0.95], strict=True)
    ]
    return {
        "network": f"ResNet18 w{width}, {size} px",
        "utilisation": f"{utilisation:.0%}",
        "requests": sum(map(len, found["hooked"])),
        "p50 plain, ms": median(percentiles["plain"][0.5]),
        "p50 hooked, ms": median(percentiles["hooked"][0.5]),
        "p95 plain, ms": median(percentiles["plain"][0.95]),
        "p95 hooked, ms": median(percentiles["hooked"][0.95]),
        "p95 × plain": median(ratios),
        "of each phase": [f"{ratio:.2f}" for ratio in ratios],
        "reach": "≤ 1.3×" if utilisation == UTILISATIONS[0] else "",
    }


def run(phases: int = 3, seconds: float = PHASE_SECONDS) -> list[dict[str, Any]]:
    """Measure all rows, each utilisation in ``phases`` of ``seconds`` for both servers."""
    with tempfile.TemporaryDirectory() as folder:
        hook = write_hook(Path(folder, "hook"))
        rows = [found for size in SIZES for found in closed_loop(hook, *size)]
        return rows + (open_loop(hook, *OPEN, phases, seconds) if phases else [])


def main() -> None:
    """Print the tables and the load of the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answer_latency", description=__doc__)
    parser.add_argument("--phases", type=int, default=3, help="minutes of each utilisation (default: 3)")
    before = os.getloadavg()[0]
    rows = run(parser.parse_args().phases)
    for column, title in (("answer", "Closed loop"), ("utilisation", "Open loop")):
        if found := [row for row in rows if column in row]:
            show(f"{title}: {(__doc__ or '').partition(':')[0].lower()}", found)
    print(f"load average {before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
