"""Fit the diagnosis on damaged drawn signs, and write its weights: ``python -m benchmarks.causes.fit``.

The first regression is of single images, the second of windows. The evidence of a window comes from a first regression
that never saw the window's kind of damage, if its cause has other kinds: so the second learns how far it can rely on
the first. The temperature is fitted on other signs and cameras.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

import benchmarks
from benchmarks.causes.training_injuries import INJURIES, Camera, attack
from benchmarks.causes.windows import (
    Classifier,
    Images,
    Injured,
    Pool,
    drawn,
    drawn_of,
    injured,
    reference_of,
    window,
)
from glassbox.diagnosis import evidence
from glassbox.diagnosis.combiner import CAUSES, LOOKS, Regressions, Weights, to_json
from glassbox.diagnosis.diagnosis import Answer, Limits, observe
from glassbox.diagnosis.pixels import decode, fingerprint
from glassbox.diagnosis.reference import Reference
from glassbox.diagnosis.repairs import REPAIRS

WEIGHTS = benchmarks.ROOT / "layers/core/python/glassbox/diagnosis/weights.json"
CONTAMINATIONS = (0.12, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)
CLASSES = 43
PART = 30  # images of one draw of a damage
RIDGE_OF_LOOKS, RIDGE_OF_CAUSES = 3e-3, 1e-2
SHARE_OF_LOOKS = 0.5  # of the images that the first regression is fitted on
#: Windows of a set of images, where it is not 1 x ``each``.
TIMES = {"usual": 24, "prevalence": 3}


class Part(NamedTuple):
    """Images of one draw of one kind of damage."""

    kind: str
    cause: str
    made: Injured


class Remembered:
    """Classifier that answers each image and its repaired copies once."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._answers: dict[str, Answer] = {}

    def learn(self, images: Images) -> None:
        """Answer the images and all their repaired copies."""
        for image in images:
            copies = np.stack([image, *(repair(image) for repair in REPAIRS.values())])
            answers = self._classifier.answers(copies)
            self._answers |= {fingerprint(copy): one for copy, one in zip(copies, answers, strict=True)}

    def ask(self, body: bytes, content_type: str) -> Answer:
        """Answer one body, as an endpoint does."""
        return self._answers[fingerprint(decode(body).pixels)]


class Signs(NamedTuple):
    """The images of one camera."""

    reference: Reference
    clean: Injured
    parts: list[Part]
    answers: Remembered


def signs_of(
    classifier: Classifier, seed: int, *, cameras: int, draws: int, images: int = 800
) -> Iterator[Signs]:
    """Yield the images of each camera, of which the first is plain.

    Args:
        draws: of each kind of damage, with other severities.
        images: of each camera, of which a half is the reference, a quarter is clean and a quarter is damaged.
    """
    random = np.random.default_rng(seed)
    for number in range(cameras):
        camera = Camera(random, CLASSES, plain=number == 0)
        known, good, source = camera(drawn(images, 100 * seed + number)).split((2, 1, 1), 1)
        reference = reference_of(injured(known, _unchanged, classifier, 0), known)
        clean = injured(good, _unchanged, classifier, 0)
        parts = list(_parts(source, camera, classifier, draws, random))
        answers = Remembered(classifier)
        for made in (clean, *(part.made for part in parts)):
            answers.learn(made.images)
        print(f"camera {number}: {time.process_time():.0f} s of CPU time", flush=True)
        yield Signs(reference, clean, parts, answers)


def _parts(
    source: Pool, camera: Camera, classifier: Classifier, draws: int, random: np.random.Generator
) -> Iterator[Part]:
    attacked = attack(classifier)
    kinds = [("attack", "attack", attacked)] * 3
    kinds += [(one.__name__, cause, one) for cause, several in INJURIES.items() for one in several]
    for kind, cause, damage in kinds * draws:
        few = random.permutation(len(source.images))[:PART]
        made = injured(
            Pool(source.images[few], source.classes[few]), damage, classifier, int(random.integers(1 << 30))
        )
        yield Part(kind, cause, made)
    for _ in range(6):
        classes = random.choice(CLASSES, random.integers(1, 4), replace=False)
        more = camera(drawn_of(classes, 60, random))
        yield Part("prevalence", "prevalence", injured(more, _unchanged, classifier, 0))
    yield Part("usual", "usual", injured(source, _unchanged, classifier, 0))


def _unchanged(images: Images, random: np.random.Generator) -> Images:
    return images


class Looks:
    """The first regression, once of all kinds of damage, and once without each kind."""

    def __init__(self, signs: Sequence[Signs], *, with_reference: bool) -> None:
        rows, looks, kinds = [], [], []
        for one in signs:
            reference = one.reference if with_reference else None
            for part in (Part("usual", "usual", one.clean), *one.parts):
                if part.cause == "one image again and again":
                    continue  # each of them looks as usual, but the same image cannot stand for the usual ones
                look = "usual" if part.cause == "prevalence" else part.cause
                rows.append(evidence.of_images(list(part.made.images), part.made.labels.tolist(), reference))
                looks += [LOOKS.index(look)] * len(part.made.images)
                kinds += [part.kind] * len(part.made.images)
        chosen = np.random.default_rng(0).random(len(looks)) < SHARE_OF_LOOKS
        self._rows = np.concatenate(rows)[chosen]
        self._looks, self._kinds = np.array(looks)[chosen], np.array(kinds)[chosen]
        self._without: dict[str, Weights] = {}
        self.all = self._fitted(np.full(len(self._looks), True), 400)

    def without(self, kind: str) -> Weights:
        """Return the regression without this kind of damage.

        It is that of all kinds if the look has one kind alone.
        """
        if kind not in self._without:
            others = self._kinds != kind
            alone = set(self._looks[~others].tolist()) - set(self._looks[others].tolist())
            self._without[kind] = self.all if alone or kind in TIMES else self._fitted(others, 80)
        return self._without[kind]

    def _fitted(self, rows: NDArray[np.bool_], steps: int) -> Weights:
        return regression(self._rows[rows], self._looks[rows], len(LOOKS), RIDGE_OF_LOOKS, steps)


def regression(
    found: NDArray[np.float64], outcomes: NDArray[np.int64], k: int, ridge: float, steps: int
) -> Weights:
    """Fit a multinomial logistic regression, in which every outcome has the same total weight.

    Args:
        found: evidence (N, D).
        outcomes: (N,), 0..k-1.
        ridge: penalty of the squared slopes.
        steps: of L-BFGS, at most.
    """
    mean, scale = found.mean(0), np.maximum(found.std(0), 0.05)
    x = np.column_stack([np.clip((found - mean) / scale, -6, 6), np.ones(len(found))])
    truth = np.eye(k)[outcomes]
    weight = 1 / np.maximum(truth.sum(0), 1)[outcomes] / len(np.unique(outcomes))

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(k, -1)
        logits = x @ w.T
        raised = np.exp(logits - logits.max(1, keepdims=True))
        p = raised / raised.sum(1, keepdims=True)
        gradient = ((p - truth) * weight[:, None]).T @ x
        gradient[:, :-1] += ridge * w[:, :-1]
        fit = -float(weight @ np.log(p[np.arange(len(x)), outcomes] + 1e-12))
        return fit + ridge / 2 * float((w[:, :-1] ** 2).sum()), gradient.ravel()

    start = np.zeros(k * x.shape[1])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x.reshape(k, -1)
    return Weights(mean, scale, best[:, :-1], best[:, -1], 1.0)


def calibrated(weights: Weights, found: NDArray[np.float64], outcomes: NDArray[np.int64]) -> Weights:
    """Return the weights with the most likely temperature for held-out evidence.

    Method: Guo et al. 2017.
    """

    def loss(log_temperature: float) -> float:
        p = _tempered(weights, np.exp(log_temperature)).probabilities(found)
        return -float(np.log(p[np.arange(len(outcomes)), outcomes] + 1e-12).mean())

    return _tempered(weights, float(np.exp(minimize_scalar(loss, bounds=(-1.5, 2), method="bounded").x)))


def _tempered(weights: Weights, temperature: float) -> Weights:
    return Weights(weights.mean, weights.scale, weights.slopes, weights.intercepts, temperature)


def windows_of(
    signs: Sequence[Signs], looks: Looks, *, each: int, seed: int, with_reference: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the evidence (N, len(EVIDENCE)) and the causes (N,) of windows."""
    random = np.random.default_rng(seed)
    rows, causes = [], []
    for one in signs:
        reference = one.reference if with_reference else None
        for part in one.parts:
            for _ in range(each * TIMES.get(part.kind, 1)):
                contamination = float(random.choice(CONTAMINATIONS))
                case = window(one.clean, part.made, contamination, random, reference)
                found = observe(*case, one.answers.ask, reference, Limits(), looks.without(part.kind))
                rows.append(evidence.vector(found))
                causes.append(CAUSES.index(part.cause))
    return np.stack(rows), np.array(causes)


def fitted(
    for_fit: Sequence[Signs], for_temperature: Sequence[Signs], *, each: int, with_reference: bool
) -> Regressions:
    """Return the two regressions, with or without a reference."""
    looks = Looks(for_fit, with_reference=with_reference)
    found, causes = windows_of(for_fit, looks, each=each, seed=11, with_reference=with_reference)
    weights = regression(found, causes, len(CAUSES), RIDGE_OF_CAUSES, 400)
    found, causes = windows_of(for_temperature, looks, each=each, seed=12, with_reference=with_reference)
    weights = calibrated(weights, found, causes)
    right = (weights.probabilities(found).argmax(1) == causes).mean()
    print(f"{right:.3f} of {len(causes)} right, temperature {weights.temperature:.2f}")
    return Regressions(looks.all, weights)


def main() -> None:
    """Fit the regressions and write their weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes.fit", description=__doc__)
    parser.add_argument("--each", type=int, default=4, help="windows of each draw of damage (default: 4)")
    parser.add_argument("--cameras", type=int, default=8, help="with which the signs vary (default: 8)")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    classifier = Classifier(benchmarks.ROOT / "demo/weights/signs_w16.pt")
    for_fit = list(signs_of(classifier, 1, cameras=options.cameras, draws=2))
    for_temperature = list(signs_of(classifier, 2, cameras=max(1, options.cameras // 2), draws=2))
    found = {
        name: fitted(for_fit, for_temperature, each=options.each, with_reference=name == "with_reference")
        for name in ("with_reference", "without")
    }
    options.out.write_text(to_json(found))
    print(f"{options.out}: {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
