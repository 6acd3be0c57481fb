"""Measure how well one image alone shows its cause: ``make bench MODULE=causes.per_image``.

Each damaged or attacked image is the only flagged input of a window, with 4 comparisons and the limits of the function.
Its score for a cause is the log-odds of the combiner. The fit saw other code of damage, and of the attacks only its own
targeted PGD in the L∞ ball.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import benchmarks
from benchmarks.causes import bench_injuries
from benchmarks.causes.windows import (
    LOW_CONFIDENCE,
    PREPROCESSING,
    START,
    WINDOW,
    Classifier,
    Images,
    Pool,
    drawn,
    gtsrb,
    injured,
    reference_of,
)
from glassbox.diagnosis import combiner, evidence
from glassbox.diagnosis.diagnosis import Answer, InputImage, Limits, Window, observe
from glassbox.diagnosis.pixels import written
from glassbox.diagnosis.reference import Reference
from glassbox.diagnosis.repairs import REPAIRS, SQUEEZERS
from glassbox.incidents.diagnosis import LIKELY
from glassbox.monitoring.checks import CLASS_SHARE
from glassbox.monitoring.counts import Counts
from glassbox.violation import Violation

COMPARISONS = 4
SEVERITY = 2  # the middle one
#: The smallest area under the ROC curve that counts as reached.
REACH = {
    "too dark": 0.99,
    "too bright": 0.99,
    "blur": 0.99,
    "channels swapped": 0.99,
    "wrong scaling": 0.99,
    "noise": 0.97,
    "low resolution": 0.97,
}
MEAN_OF_ATTACKS = 0.92
CALLED_ATTACKS = 0.01
_INNOCENT = ("too dark", "blur", "low resolution")
_STEPS = 20


def area_under_curve(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Return the area under the ROC curve, where ties count half."""
    differences = positive[:, None] - negative[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


class Scorer:
    """The combiner's view of single images of one data set.

    Attributes:
        clean: images of which none is in the reference.
    """

    def __init__(self, pool: Pool, classifier: Classifier, number: int, seed: int) -> None:
        reference_part, comparison_part, self.clean = pool.split((2, 1, 2), seed)
        self.classifier = classifier
        made = injured(reference_part, lambda images, _: images, classifier, seed)
        self.reference: Reference = reference_of(made, reference_part)
        self.clean = Pool(self.clean.images[:number], self.clean.classes[:number])
        self._comparisons = self._inputs(comparison_part.images[:COMPARISONS], flagged=False)
        self.regressions = combiner.load("with_reference")

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """Return the probability of each of combiner.CAUSES for each image alone, (N, K)."""
        rows = []
        for one in self._inputs(images, flagged=True):
            window = _window_of(one.answer)
            images_of_window = [one, *self._comparisons]
            found = observe(
                window,
                images_of_window,
                self.classifier.ask,
                self.reference,
                Limits(),
                self.regressions.looks,
            )
            rows.append(evidence.vector(found))
        return self.regressions.causes.probabilities(np.stack(rows))

    def _inputs(self, images: Images, *, flagged: bool) -> list[InputImage]:
        found = self.classifier.probabilities(images)
        return [
            InputImage(
                f"image-{i}", written(image), "image/png", Answer(int(p.argmax()), float(p.max())), flagged
            )
            for i, (image, p) in enumerate(zip(images, found, strict=True))
        ]


def _window_of(answer: Answer) -> Window:
    violation = Violation("bench", CLASS_SHARE, START, START, CLASS_SHARE, predicted_class=answer.label)
    counts = Counts(records=WINDOW, with_confidence=WINDOW)
    return Window(violation=violation, counts=counts, low_confidence=LOW_CONFIDENCE)


def log_odds(probabilities: NDArray[np.float64], cause: str) -> NDArray[np.float64]:
    """Return the log-odds of a cause, (N,)."""
    p = np.clip(probabilities[:, combiner.CAUSES.index(cause)], 1e-12, 1 - 1e-12)
    return np.asarray(np.log(p / (1 - p)))


def squeezed_attack(classifier: Classifier, epsilon: float) -> Callable[[Images, NDArray[Any]], Images]:
    """Return an untargeted PGD that has the repairs of the detector in its loss.

    It moves against the sum of the losses of the image and of its squeezed copies. The gradient of a squeezer is taken
    as that of the identity (Athalye et al. 2018, BPDA).

    Args:
        epsilon: largest change of a value, of 0..1.
    """
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def squeezed(images: torch.Tensor) -> list[torch.Tensor]:
        pixels = (images.detach() * 255).round().byte().permute(0, 2, 3, 1).numpy()
        copies = []
        for name in SQUEEZERS:
            changed = np.stack([REPAIRS[name](one) for one in pixels])
            copy = torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255
            copies.append(images + (copy - images).detach())
        return copies

    def attacked(images: Images, labels: NDArray[Any]) -> Images:
        start = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        goal = torch.from_numpy(labels.astype(np.int64))
        moved = start.clone()
        for _ in range(_STEPS):
            moved.requires_grad_(True)
            losses = [
                torch.nn.functional.cross_entropy(classifier.network((one - mean) / std), goal)
                for one in (moved, *squeezed(moved))
            ]
            (slope,) = torch.autograd.grad(torch.stack(losses).sum(), moved)
            moved = moved.detach() + 2.5 * epsilon / _STEPS * slope.sign()
            moved = torch.minimum(torch.maximum(moved, start - epsilon), start + epsilon).clamp(0, 1)
        return np.asarray((moved * 255).round().byte().permute(0, 2, 3, 1).numpy())

    return attacked


def attacks(scorer: Scorer, number: int) -> dict[str, tuple[Images, float]]:
    """Return the misclassified images and their share, by kind of attack."""
    images, classes = scorer.clean.images[:number], scorer.clean.classes[:number]
    classifier = scorer.classifier
    made: dict[str, Images] = {}
    random = np.random.default_rng(3)
    for severity, epsilon in enumerate((2, 4, 8)):
        made[f"PGD {epsilon}/255, targeted"] = bench_injuries.pgd(classifier)(images, severity, random)
    for name in bench_injuries.ATTACKS:
        made[name] = bench_injuries.untargeted(classifier, name, images, classes)
    made["patch of 12 x 12 pixels"] = bench_injuries.patched(images, classifier, 14)
    made[ADAPTIVE] = squeezed_attack(classifier, 8 / 255)(images, classes)
    return {name: _misclassified(classifier, changed, classes) for name, changed in made.items()}


ADAPTIVE = "PGD 8/255 that has the repairs in its loss"


def _misclassified(classifier: Classifier, images: Images, classes: NDArray[Any]) -> tuple[Images, float]:
    wrong = classifier.probabilities(images).argmax(1) != classes
    return images[wrong], float(wrong.mean())


def measure(scorer: Scorer, number: int, attacked: Mapping[str, tuple[Images, float]]) -> dict[str, Any]:
    """Return the figures of single images."""
    clean = scorer.probabilities(scorer.clean.images)
    random = np.random.default_rng(5)
    by_cause, called = {}, {}
    for name, damage in bench_injuries.CAUSES.items():
        images = damage(scorer.clean.images[:number], SEVERITY, random)
        found = scorer.probabilities(images)
        cause = bench_injuries.CAUSE_OF.get(name, name)
        area = area_under_curve(log_odds(found, cause), log_odds(clean, cause))
        by_cause[name] = _figure(area, REACH.get(name))
        if name in _INNOCENT:
            called[name] = _called_attack(found)
    kinds = {}
    for kind, (images, success) in attacked.items():
        if len(images):
            found = scorer.probabilities(images)
            area = area_under_curve(log_odds(found, "attack"), log_odds(clean, "attack"))
            kinds[kind] = {"area": round(area, 3), "misclassified": round(success, 3), "images": len(images)}
    areas = [one["area"] for kind, one in kinds.items() if kind != ADAPTIVE]
    return {
        "area under the ROC curve by cause": by_cause,
        "area under the ROC curve by kind of attack": kinds,
        "mean over the kinds of attack": _figure(float(np.mean(areas)), MEAN_OF_ATTACKS),
        "clean images called attacks": _called_attack(clean),
        "damaged images called attacks": {
            cause: {"share": share, "reached": share <= CALLED_ATTACKS} for cause, share in called.items()
        },
    }


def _figure(area: float, reach: float | None) -> dict[str, Any]:
    return {"area": round(area, 3)} | ({} if reach is None else {"reach": reach, "reached": area >= reach})


def _called_attack(probabilities: NDArray[np.float64]) -> float:
    first = probabilities.argmax(1) == combiner.CAUSES.index("attack")
    return round(float((first & (probabilities.max(1) >= LIKELY)).mean()), 4)


def main() -> None:
    """Measure single images and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes.per_image", description=__doc__)
    parser.add_argument("--number", type=int, default=100, help="images of each kind (default: 100)")
    parser.add_argument("--images", type=int, default=1500, help="drawn signs (default: 1500)")
    parser.add_argument("--gtsrb", type=Path, help="folder of GTSRB, instead of drawn signs; needs --weights")
    parser.add_argument("--weights", type=Path, default=benchmarks.ROOT / "demo/weights/signs_w16.pt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    pool = gtsrb(options.gtsrb) if options.gtsrb else drawn(options.images, 9001)
    scorer = Scorer(pool, Classifier(options.weights), options.number, 9)
    found = measure(scorer, options.number, attacks(scorer, options.number))
    found["CPU seconds"] = round(time.process_time() - started)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
