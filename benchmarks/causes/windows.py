"""Windows of predictions with a known cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from demo import signs
from demo.attack import predict
from glassbox.diagnosis.diagnosis import Answer, InputImage, Limits, Window, diagnose
from glassbox.diagnosis.pixels import decode, written
from glassbox.diagnosis.reference import Reference, Sample, make_reference
from glassbox.incidents.diagnosis import Diagnosis
from glassbox.monitoring.checks import CLASS_SHARE, DRIFT, LOW_CONFIDENCE_SHARE
from glassbox.monitoring.counts import Counts
from glassbox.violation import Violation
from resnet import from_state_dict

Images = NDArray[np.uint8]
Injury = Callable[[Images, np.random.Generator], Images]

WINDOW = 400
FLAGGED, COMPARISONS = 12, 4  # the defaults of the template
LOW_CONFIDENCE = 0.5
_SHARES = {CLASS_SHARE: 0.15, LOW_CONFIDENCE_SHARE: 0.15}
PREPROCESSING = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
START = datetime(2026, 11, 23, 10, tzinfo=UTC)


@dataclass(frozen=True)
class Pool:
    """Images of one split with their classes.

    No image is in two splits.
    """

    images: Images
    classes: NDArray[np.int64]

    def split(self, shares: Sequence[float], seed: int) -> list[Pool]:
        """Return pools with these shares of the images."""
        order = np.random.default_rng(seed).permutation(len(self.images))
        ends = (np.cumsum(shares) / sum(shares) * len(order)).astype(int)
        parts = np.split(order, ends[:-1])
        return [Pool(self.images[part], self.classes[part]) for part in parts]


def drawn(count: int, seed: int) -> Pool:
    """Return drawn signs of 48 pixels."""
    return Pool(*signs.dataset(count, seed, 48))


def drawn_of(classes: Sequence[int] | NDArray[np.int64], number: int, random: np.random.Generator) -> Pool:
    """Return new drawn signs of these classes, so that no image repeats."""
    chosen = np.repeat(np.asarray(classes, np.int64), number // len(classes))
    return Pool(np.stack([signs.draw(int(one), random, 48) for one in chosen]), chosen)


def gtsrb(folder: Path) -> Pool:
    """Return the photos of ``<folder>/test``, 48 pixels."""
    from train import class_folders, read_folder

    samples = read_folder(folder / "test", 48, class_folders(folder / "train"))
    return Pool(samples.images.permute(0, 2, 3, 1).numpy().copy(), samples.classes.numpy())


class Classifier:
    """A ResNet18 of ``.pt`` weights that answers bodies as an endpoint does."""

    def __init__(self, weights: Path) -> None:
        self.network = from_state_dict(torch.load(weights, weights_only=True)).requires_grad_(False)
        self.calls = 0

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        """Return the class probabilities (N, K)."""
        return predict(self.network, PREPROCESSING, images)

    def ask(self, body: bytes, content_type: str) -> Answer:
        """Answer one body, as :func:`glassbox.diagnosis.diagnosis.diagnose` asks it."""
        self.calls += 1
        return self.answers(decode(body).pixels[None])[0]

    def answers(self, images: Images) -> list[Answer]:
        """Answer images (N, H, W, 3) at once."""
        found = self.probabilities(images)
        return [Answer(int(one.argmax()), float(one.max())) for one in found]


@dataclass(frozen=True)
class Injured:
    """Images with one damage and the model's answers to them."""

    images: Images
    labels: NDArray[np.int64]
    confidences: NDArray[np.float64]


def injured(pool: Pool, injury: Injury, classifier: Classifier, seed: int) -> Injured:
    """Damage every image of a pool."""
    images = injury(pool.images, np.random.default_rng(seed))
    found = classifier.probabilities(images)
    return Injured(images, found.argmax(1), found.max(1).astype(np.float64))


def reference_of(clean: Injured, pool: Pool) -> Reference:
    """Return the reference of a reference period."""
    return make_reference(
        [
            Sample(image, int(label), float(confidence), int(true))
            for image, label, confidence, true in zip(
                clean.images, clean.labels, clean.confidences, pool.classes, strict=True
            )
        ]
    )


def window(
    clean: Injured,
    damaged: Injured,
    contamination: float,
    random: np.random.Generator,
    reference: Reference | None,
) -> tuple[Window, list[InputImage]]:
    """Return a window of WINDOW predictions, and the images that an incident chooses.

    Args:
        contamination: share of damaged images.
        reference: where no class broke the bound, the inputs that fit it least are flagged.
    """
    count = round(contamination * WINDOW)
    bad = random.choice(len(damaged.images), count, replace=count > len(damaged.images))
    good = random.choice(len(clean.images), WINDOW - count, replace=WINDOW - count > len(clean.images))
    images = [damaged.images[i] for i in bad] + [clean.images[i] for i in good]
    labels = np.concatenate([damaged.labels[bad], clean.labels[good]])
    confidences = np.concatenate([damaged.confidences[bad], clean.confidences[good]])
    classes = Counter(map(int, labels))
    low = int((confidences < LOW_CONFIDENCE).sum())
    label, most = classes.most_common(1)[0]
    usual = float((clean.labels == label).mean())
    if most / WINDOW - usual > _SHARES[CLASS_SHARE]:
        check, flagged = CLASS_SHARE, labels == label
    elif low / WINDOW > _SHARES[LOW_CONFIDENCE_SHARE]:
        check, flagged = LOW_CONFIDENCE_SHARE, confidences < LOW_CONFIDENCE
    else:
        check, flagged = DRIFT, labels == label
    violation = Violation(
        "bench",
        check,
        START,
        START + timedelta(hours=1),
        check,
        predicted_class=label if check == CLASS_SHARE else None,
    )
    if check == DRIFT and reference is not None:
        answers = list(zip(map(int, labels), map(float, confidences), strict=True))
        order = np.lexsort((random.random(WINDOW), -np.array(reference.surprises(answers))))
        flagged = np.isin(np.arange(WINDOW), order[:FLAGGED])
    chosen = [(i, True) for i in _some(np.flatnonzero(flagged), FLAGGED, random)]
    chosen += [(i, False) for i in _some(np.flatnonzero(~flagged), COMPARISONS, random)]
    inputs = [
        InputImage(
            f"event-{i}",
            written(images[i]),
            "image/png",
            Answer(int(labels[i]), float(confidences[i])),
            is_flagged,
        )
        for i, is_flagged in chosen
    ]
    counts = Counts(classes=Counter(classes), with_confidence=WINDOW, low_confidence=low, records=WINDOW)
    return Window(violation=violation, counts=counts, low_confidence=LOW_CONFIDENCE), inputs


def _some(indices: NDArray[np.int64], number: int, random: np.random.Generator) -> list[int]:
    return [int(i) for i in random.permutation(indices)[:number]]


def diagnosed(
    case: tuple[Window, list[InputImage]], classifier: Classifier, reference: Reference | None
) -> Diagnosis:
    """Return the diagnosis of a window within the limits of the function."""
    return diagnose(case[0], case[1], classifier.ask, reference, Limits())
