"""Measure how often the diagnosis names the right cause: ``make bench-causes``.

Windows of 400 predictions with one cause, of five severities and 10 to 100 % of the images, through the function
that Lambda calls, with its limits (12 + 4 inputs, 96 requests).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import benchmarks
from benchmarks.causes import bench_injuries
from benchmarks.causes.windows import (
    Classifier,
    Injured,
    Injury,
    Pool,
    diagnosed,
    drawn,
    drawn_of,
    gtsrb,
    injured,
    reference_of,
    window,
)
from glassbox.diagnosis import combiner, pixels
from glassbox.diagnosis.reference import Reference
from glassbox.incidents.diagnosis import UNKNOWN, Diagnosis

CONTAMINATIONS = (0.1, 0.2, 0.5, 0.8, 1.0)
BLAMED = set(combiner.CAUSES) - {"prevalence", "another", "usual", "one image again and again"}
CLEAN = ("clean", "prevalence")


class Bench:
    """The images and the model of one data set."""

    def __init__(
        self,
        pool: Pool,
        classifier: Classifier,
        seed: int,
        *,
        with_reference: bool = True,
        draws: bool = True,
    ) -> None:
        self.draws = draws  # more of a class is drawn; photos of a class are limited
        self.classifier, self.random = classifier, np.random.default_rng(seed)
        # photos of the windows, of the reference and of the damage differ
        known, good, self.source = pool.split((1, 1, 1), seed)
        self.clean = injured(good, _unchanged, classifier, seed)
        self.reference: Reference | None = (
            reference_of(injured(known, _unchanged, classifier, seed), known) if with_reference else None
        )

    def sources(self, few: int | None) -> Iterator[tuple[str, int, Injured]]:
        """Yield (damage, severity, damaged images)."""
        attack = {"attack": bench_injuries.pgd(self.classifier)}
        every = {**attack, **bench_injuries.CAUSES, **bench_injuries.HELD_OUT}
        for name, damage in every.items():
            for severity in bench_injuries.SEVERITIES:
                part = self._part(few or (96 if name == "attack" else 200))
                made = injured(part, _at(damage, severity), self.classifier, severity)
                yield name, severity, made
        for severity in bench_injuries.SEVERITIES:
            classes = self.random.choice(np.unique(self.source.classes), 1 + severity // 3, replace=False)
            more = self._more_of(classes) if self.draws else self._all_of(classes)
            yield "prevalence", severity, injured(more, _unchanged, self.classifier, 0)
            yield "clean", severity, injured(self._part(200), _unchanged, self.classifier, 0)

    def _more_of(self, classes: NDArray[np.int64]) -> Pool:
        return drawn_of(classes, 90, self.random)

    def _all_of(self, classes: NDArray[np.int64]) -> Pool:
        chosen = np.isin(self.source.classes, classes)
        return Pool(self.source.images[chosen], self.source.classes[chosen])

    def _part(self, number: int) -> Pool:
        chosen = self.random.permutation(len(self.source.images))[:number]
        return Pool(self.source.images[chosen], self.source.classes[chosen])

    def windows(
        self, each: int, few: int | None = None, contaminations: Sequence[float] = CONTAMINATIONS
    ) -> Iterator[dict[str, object]]:
        """Yield what the diagnosis of each window contains.

        Args:
            each: windows of each damage and severity, with the contaminations in turn.
            few: images that are damaged at each severity.
        """
        for damage, severity, made in self.sources(few):
            for number in range(each):
                contamination = contaminations[number % len(contaminations)]
                case = window(self.clean, made, contamination, self.random, self.reference)
                started = time.thread_time()
                found = diagnosed(case, self.classifier, self.reference)
                yield {
                    "damage": damage,
                    "cause": bench_injuries.CAUSE_OF.get(damage, damage),
                    "severity": severity,
                    "contamination": contamination,
                    "check": case[0].violation.check,
                    "named": named(found),
                    "first": found.causes[0].name,
                    "probability": found.causes[0].probability,
                    "requests": found.requests,
                    "seconds": time.thread_time() - started,
                }


def _at(damage: bench_injuries.Severe, severity: int) -> Injury:
    return lambda images, random: damage(images, severity, random)


def named(found: Diagnosis) -> str:
    """Return the cause that the e-mail names."""
    return found.cause.name if found.cause else UNKNOWN


def _unchanged(images: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    return images


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Return the figures of the table."""

    def right(row: dict[str, object]) -> bool:
        expected = UNKNOWN if row["cause"] in bench_injuries.HELD_OUT else row["cause"]
        return row["named"] == expected

    def is_first(row: dict[str, object]) -> bool:
        return row["first"] == row["cause"]

    def share(chosen: list[dict[str, object]], true=right) -> float | None:  # type: ignore[no-untyped-def]
        return round(float(np.mean([true(row) for row in chosen])), 4) if chosen else None

    known = [r for r in rows if r["cause"] not in bench_injuries.HELD_OUT and r["cause"] not in ("clean",)]
    clean = [r for r in rows if r["cause"] in CLEAN]
    matrix: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if float(row["contamination"]) >= 0.5:  # type: ignore[arg-type]
            matrix[str(row["damage"])][str(row["named"])] += 1
    return {
        "right, contamination >= 50 %": share([r for r in known if r["contamination"] >= 0.5]),  # type: ignore[operator]
        "right, contamination 20 %": share([r for r in known if r["contamination"] == 0.2]),
        "right, contamination 10 %": share([r for r in known if r["contamination"] == 0.1]),
        "held out called unknown": share([r for r in rows if r["cause"] in bench_injuries.HELD_OUT]),
        "clean or prevalence blamed on damage or attack": share(clean, lambda r: r["named"] in BLAMED),
        "expected calibration error": calibration_error(rows),
        "mean requests": round(float(np.mean([r["requests"] for r in rows])), 1),
        "CPU seconds of a diagnosis, the model's answers included": round(
            float(np.mean([r["seconds"] for r in rows])),
            3,
        ),
        "most probable cause right, contamination >= 50 %": share(
            [r for r in known if r["contamination"] >= 0.5],  # type: ignore[operator]
            is_first,
        ),
        "most probable cause right, contamination 20 %": share(
            [r for r in known if r["contamination"] == 0.2], is_first
        ),
        "by damage, contamination >= 50 %": {
            damage: share([r for r in rows if r["damage"] == damage and r["contamination"] >= 0.5])  # type: ignore[operator]
            for damage in matrix
        },
        "matrix, contamination >= 50 %": {cause: dict(found) for cause, found in matrix.items()},
    }


def calibration_error(rows: list[dict[str, object]]) -> float:
    """Return the expected calibration error of the first cause.

    Ten bins (Naeini et al. 2015).
    """
    probability = np.array([float(r["probability"]) for r in rows])  # type: ignore[arg-type]
    expected = [UNKNOWN if r["cause"] in (*bench_injuries.HELD_OUT, "clean") else r["cause"] for r in rows]
    right = np.array([r["first"] == e for r, e in zip(rows, expected, strict=True)])
    bins = np.minimum((probability * 10).astype(int), 9)
    found = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - probability[bins == b].mean())
        for b in set(bins.tolist())
    )
    return round(float(found), 4)


def main() -> None:
    """Run the windows, print the figures and write all rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes", description=__doc__)
    parser.add_argument("--windows", type=int, default=20, help="of each cause and severity (default: 20)")
    parser.add_argument("--images", type=int, default=2400, help="drawn signs (default: 2400)")
    parser.add_argument("--gtsrb", type=Path, help="folder of GTSRB, instead of drawn signs; needs --weights")
    parser.add_argument("--weights", type=Path, default=benchmarks.ROOT / "demo/weights/signs_w16.pt")
    parser.add_argument("--without-reference", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    pool = gtsrb(options.gtsrb) if options.gtsrb else drawn(options.images, 9001)
    bench = Bench(
        pool,
        Classifier(options.weights),
        9,
        with_reference=not options.without_reference,
        draws=options.gtsrb is None,
    )
    rows = list(bench.windows(options.windows))
    found = summary(rows)
    found["ms to measure an image"] = round(_measure_time(pool), 2)
    found["CPU seconds of the benchmark"] = round(time.process_time() - started)
    print(json.dumps(found, indent=1))
    name = "gtsrb" if options.gtsrb else "drawn"
    file = benchmarks.ROOT / "out" / f"causes-{name}{'-without' if options.without_reference else ''}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"summary": found, "rows": rows}, indent=1) + "\n")
    print(f"All rows: {file.relative_to(benchmarks.ROOT)}")


def _measure_time(pool: Pool) -> float:
    started = time.thread_time()
    for image in pool.images[:50]:
        pixels.measure(image)
    return (time.thread_time() - started) / 50 * 1000


if __name__ == "__main__":
    main()
