"""The real functions under random schedules of events and faults; each seed is a schedule of its own.

A failure prints the seed and the shrunk schedule, which ``test_found.py`` takes over. ``make simulate`` runs more.
"""

import pytest

from simulation.run import run_seed, show, shrink

SEEDS, PART = 3000, 250


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_every_invariant_holds_under_every_schedule(first):
    for seed in range(first, first + PART):
        _, failure = run_seed(seed)
        if failure:
            pytest.fail(show(shrink(failure), seed))


def test_a_seed_repeats_exactly():
    first, _ = run_seed(17)
    once = first.aws.published, first.steps
    second, _ = run_seed(17)
    assert (second.aws.published, second.steps) == once
