"""Run many seeds in two processes, or the exhaustive search: ``make simulate``.

Prints schedules, steps, seconds and the faults that took effect by kind. The first failure of each invariant is
shrunk and printed as a test.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from simulation.run import run_seed, show, shrink

BATCH = 50  # seeds that a process runs at a time


def main():
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seeds", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    batches = range(options.first, options.first + options.seeds, BATCH)
    last = options.first + options.seeds
    schedules = steps = 0
    faults, failures = Counter(), {}
    began = time.monotonic()
    with multiprocessing.Pool(options.processes, initializer=os.nice, initargs=(5,)) as pool:
        for done in pool.imap_unordered(_run, ((first, min(first + BATCH, last)) for first in batches)):
            schedules, steps = schedules + done[0], steps + done[1]
            faults.update(done[2])
            for kind, seed, text in done[3]:
                if kind not in failures:
                    failures[kind] = seed
                    print(text, flush=True)
            if time.monotonic() > end:
                pool.terminate()
                break
    seconds = time.monotonic() - began
    print(
        f"{schedules:,} schedules, {steps:,} steps, {seconds:.0f} seconds, {len(failures)} invariants broken"
    )
    print("faults:", ", ".join(f"{count:,} {kind}" for kind, count in sorted(faults.items())))
    return 1 if failures else 0


def _run(seeds):
    schedules = steps = 0
    faults, failures = Counter(), []
    for seed in range(*seeds):
        system, failure = run_seed(seed)
        schedules, steps = schedules + 1, steps + system.steps
        faults.update(system.faults())
        if failure and failure.kind not in [kind for kind, _, _ in failures]:
            failures.append((failure.kind, seed, show(shrink(failure), seed)))
    return schedules, steps, faults, failures


if __name__ == "__main__":
    sys.exit(main())
