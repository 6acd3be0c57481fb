"""Fit the combiner of the diagnosis: ``python -m benchmarks.causes.fit``.

It damages drawn signs (:mod:`benchmarks.causes.training_injuries`), diagnoses windows of them through the function
that Lambda calls, and writes ``weights.json``. Images of the fit, of the temperature and of the benchmark differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import benchmarks
from benchmarks.causes.training_injuries import INJURIES, attack
from benchmarks.causes.windows import (
    Classifier,
    Injured,
    Pool,
    drawn,
    drawn_of,
    injured,
    reference_of,
    window,
)
from glassbox.diagnosis import combiner, evidence
from glassbox.diagnosis.diagnosis import Answer, Limits, observe
from glassbox.diagnosis.reference import Reference

WEIGHTS = benchmarks.ROOT / "layers/core/python/glassbox/diagnosis/weights.json"
CONTAMINATIONS = (0.15, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)
RIDGE = 3e-3
STEPS = 4000
CLEAN = "another"  # what a window without damage is fitted as: no cause is named


class Case(NamedTuple):
    """The evidence of one window with and without the reference, each (len(EVIDENCE),)."""

    cause: str
    with_reference: NDArray[np.float64]
    without: NDArray[np.float64]


class Remembered:
    """Classifier that stores its answers, since the windows share their images."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._answers: dict[bytes, Answer] = {}

    def ask(self, body: bytes, content_type: str) -> Answer:
        """Answer one body, as an endpoint does."""
        if body not in self._answers:
            self._answers[body] = self.classifier.ask(body, content_type)
        return self._answers[body]


def cases(pool: Pool, classifier: Classifier, *, variants: int, each: int, seed: int) -> Iterator[Case]:
    """Yield windows of every cause.

    Args:
        pool: of which one part is the reference, one the clean traffic, and one is damaged.
        variants: of each cause, with other severities.
        each: windows of each variant.
    """
    random = np.random.default_rng(seed)
    known, good, source = pool.split((2, 1.2, 1.2), 1)
    clean = injured(good, _unchanged, classifier, 0)
    reference = reference_of(injured(known, _unchanged, classifier, 0), known)
    remembered = Remembered(classifier)
    for cause, damaged in _damaged(source, classifier, variants, random):
        for _ in range(each):
            case = window(clean, damaged, float(random.choice(CONTAMINATIONS)), random)
            yield Case(cause, *(_evidence(case, remembered, known) for known in (reference, None)))


def _damaged(
    source: Pool, classifier: Classifier, variants: int, random: np.random.Generator
) -> Iterator[tuple[str, Injured]]:
    attacks = (attack(classifier),)
    for cause in combiner.CAUSES:
        for number in range(variants):
            if cause == "prevalence":
                classes = random.choice(43, random.integers(1, 4), replace=False)
                yield cause, injured(drawn_of(classes, 90, random), _unchanged, classifier, 0)
            else:
                kinds = attacks if cause == "attack" else INJURIES[cause]
                few = _part(source, random.permutation(len(source.images))[:24])
                seed = int(random.integers(1 << 30))
                yield cause, injured(few, kinds[number % len(kinds)], classifier, seed)
        if cause == "prevalence":
            few = _part(source, random.permutation(len(source.images))[:100])
            for _ in range(10):
                yield CLEAN, injured(few, _unchanged, classifier, 0)


def _part(pool: Pool, chosen: NDArray[np.intp]) -> Pool:
    return Pool(pool.images[chosen], pool.classes[chosen])


def _unchanged(images: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    return images


def _evidence(case: Any, remembered: Remembered, reference: Reference | None) -> NDArray[np.float64]:
    """Return the evidence of a window as the diagnosis collects it."""
    found, _ = observe(case[0], case[1], remembered.ask, reference, Limits())
    return evidence.vector(found)


def fitted(for_fit: list[Case], for_temperature: list[Case]) -> dict[str, combiner.Weights]:
    """Return the regressions with and without a reference."""
    found = {}
    for name in ("with_reference", "without"):
        weights = combiner.fit(
            np.stack([getattr(case, name) for case in for_fit]),
            [case.cause for case in for_fit],
            ridge=RIDGE,
            steps=STEPS,
        )
        held_out, truth = (
            np.stack([getattr(case, name) for case in for_temperature]),
            [case.cause for case in for_temperature],
        )
        found[name] = combiner.calibrated(weights, held_out, truth)
        first = found[name].probabilities(held_out).argmax(1)
        right = np.mean([combiner.CAUSES[i] == cause for i, cause in zip(first, truth, strict=True)])
        print(f"{name}: {right:.3f} of {len(truth)} right, temperature {found[name].temperature:.2f}")
    return found


def main() -> None:
    """Fit the regressions and write their weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes.fit", description=__doc__)
    parser.add_argument("--each", type=int, default=13, help="windows of each variant (default: 13)")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    classifier = Classifier(benchmarks.ROOT / "demo/weights/signs_w16.pt")
    for_fit = cases(drawn(1400, 5001), classifier, variants=12, each=options.each, seed=11)
    for_temperature = cases(
        drawn(700, 5002), classifier, variants=6, each=max(1, options.each * 8 // 13), seed=12
    )
    found = fitted(list(for_fit), list(for_temperature))
    options.out.write_text(combiner.to_json(found, evidence.EVIDENCE))
    print(f"{options.out}: {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
