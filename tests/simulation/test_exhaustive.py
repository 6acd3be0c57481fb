"""Every interleaving at a small scope; ``python -m simulation.exhaustive`` searches a larger one."""

import os
from dataclasses import replace

import pytest

from simulation.exhaustive import Budget, search

NONE = Budget(crashes=0, deployments=0, duplicates=0, ticks=0, sweeps=0)


def test_every_interleaving_of_two_workers_and_a_crash_keeps_every_invariant():
    assert search(1, 2, replace(NONE, crashes=1)).closed


@pytest.mark.skipif("GLASSBOX_LONG" not in os.environ, reason="takes minutes; make test-all runs it")
@pytest.mark.parametrize(
    ("violations", "budget"),
    [
        (1, replace(NONE, duplicates=1)),
        (1, replace(NONE, crashes=1, duplicates=1)),
        (1, replace(NONE, deployments=1)),
        (2, replace(NONE, duplicates=1)),
        (2, replace(NONE, crashes=1)),
    ],
)
def test_every_interleaving_keeps_every_invariant(violations, budget):
    assert search(violations, 2, budget).closed


def test_the_search_finds_a_broken_invariant(monkeypatch):
    from simulation import exhaustive
    from simulation.invariants import InvariantError

    def broken(history):
        if history.system.state() == "HOOKED":
            raise InvariantError("HOOKED")

    monkeypatch.setattr(exhaustive, "STEP", (broken,))
    with pytest.raises(AssertionError, match="broken: HOOKED"):
        search(1, 1, NONE)
