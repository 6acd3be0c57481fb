"""What is observed of a window's images and answers -> one vector of evidence.

First each image alone: IMAGE_EVIDENCE, and by a first regression the probability of each of LOOKS. Then the window:
how many of its images look so, what the repairs bring back, and whether the counts fit the reference.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glassbox.diagnosis.combiner import LOOKS, Weights
from glassbox.diagnosis.pixels import MEASURES, Pixels, difference_hash, fingerprint, measure, thumbnail
from glassbox.diagnosis.prevalence import Prevalence
from glassbox.diagnosis.reference import Reference
from glassbox.diagnosis.repairs import REPAIRS
from glassbox.monitoring.response import PredictedClass

_LARGEST = 8.0  # deviations
_HASH_BITS = 8  # in which the hashes of two versions of one image differ at most
_LEAST = 1e-3  # probability of a look whose log-odds count
_MOST_LIKE = 3  # images whose looks are counted apart
#: Of which the value itself counts, too: a photo of few values is dark, one of almost none is scaled wrongly.
_ABSOLUTE = ("black", "white", "flat rows", "levels")
SAME_ANSWER = "similar images with this answer"  # less the usual share
_TURNS = ("turned", "mirrored", "swapped", "negative")

#: What ordinary photos look like, without a reference: center and spread of each of MEASURES.
ORDINARY = {
    "brightness": (0.42, 0.18),
    "dark": (0.18, 0.12),
    "light": (0.72, 0.18),
    "black": (0.0, 0.05),
    "white": (0.01, 0.08),
    "sharpness": (-0.5, 1.2),
    "detail": (-1.3, 0.4),
    "noise": (-4.6, 0.6),
    "spikes": (-6.5, 0.6),
    "blocks": (0.08, 0.15),
    "red over blue": (0.08, 0.25),
    "green over red": (-0.05, 0.15),
    "saturation": (0.17, 0.09),
    "light above": (0.02, 0.12),
    "entropy": (4.8, 0.6),
    "flat rows": (0.0, 0.04),
    "levels": (7.6, 1.0),
}

#: What is observed of one image: deviations from the reference, and from its similar images.
IMAGE_EVIDENCE = (
    *MEASURES,
    *(f"|{name}|" for name in MEASURES),
    *(f"{name}, against similar images" for name in MEASURES),
    *(f"|{name}|, against similar images" for name in MEASURES),
    "similarity to the reference",
    *(f"similarity gained if {name}" for name in _TURNS),
    SAME_ANSWER,
    *(f"{name}, against ordinary photos" for name in _ABSOLUTE),
)

#: The evidence of a window in the order of its vector.
EVIDENCE = (
    *(f"log-odds of {look}, mean" for look in LOOKS),
    *(f"log-odds of {look}, the {_MOST_LIKE} most like it" for look in LOOKS),
    *(f"share of {look}" for look in LOOKS),
    *(f"share of {look} in the comparisons" for look in LOOKS),
    *(f"share of {look} in all, log" for look in LOOKS),
    *(f"brought back by {name}" for name in REPAIRS),
    *(f"brought back by {name}, less the comparisons changed" for name in REPAIRS),
    *(f"brought back by {name}, all asked" for name in REPAIRS),
    "share of the most frequent image",
    "share of similar images",
    "confidence of the flagged",
    "a class has a large share",
    "many answers are unsure",
    "misfit of other shares of the true classes, log",
    "moved shares of the true classes",
    "moved shares of the true classes that fit",
    "difference from the reference's answers",
    *IMAGE_EVIDENCE,
    *(f"{name}, against the comparisons" for name in IMAGE_EVIDENCE),
)


def of_images(
    images: Sequence[Pixels], labels: Sequence[PredictedClass | None], reference: Reference | None
) -> NDArray[np.float64]:
    """Return IMAGE_EVIDENCE of each image, (N, len(IMAGE_EVIDENCE)).

    Args:
        labels: the captured answers.
        reference: without one, images are compared with ordinary photos, and the rest is 0.
    """
    found = np.zeros((len(images), len(IMAGE_EVIDENCE)))
    if not len(images):
        return found
    measured = np.stack([measure(pixels) for pixels in images])
    width = len(MEASURES)
    chosen = [MEASURES.index(name) for name in _ABSOLUTE]
    found[:, -len(chosen) :] = _deviations(measured, *_ordinary())[:, chosen]
    if reference is None or not len(reference.thumbnails):
        usually = _ordinary() if reference is None else (reference.center, reference.spread)
        found[:, :width] = _deviations(measured, *usually)
        found[:, width : 2 * width] = np.abs(found[:, :width])
        return found
    usual = reference.usual
    thumbnails = np.stack([thumbnail(pixels) for pixels in images])
    alike = reference.alike(thumbnails)
    apart = _deviations(measured, np.median(reference.measured[alike.few], 1), usual.apart)
    scores = reference.scores(measured)
    found[:, : 4 * width] = np.concatenate([scores, np.abs(scores), apart, np.abs(apart)], 1)
    found[:, 4 * width] = np.clip((alike.similarity - usual.similarity) / usual.spread, -_LARGEST, 4)
    for column, turned in enumerate(_turned(thumbnails), 4 * width + 1):
        gained = reference.alike(turned).similarity - alike.similarity
        found[:, column] = np.clip(gained / usual.spread, -4, 6)
    answers = np.array(reference.labels, object)
    same = [(answers[many] == label).mean() for many, label in zip(alike.many, labels, strict=True)]
    found[:, -1 - len(chosen)] = np.array(same) - usual.agreement
    return found


def _deviations(
    measured: NDArray[np.float32], center: NDArray[np.floating], spread: NDArray[np.floating]
) -> NDArray[np.floating]:
    return np.asarray(np.clip((measured - center) / spread, -_LARGEST, _LARGEST))


def _ordinary() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    center, spread = zip(*(ORDINARY[name] for name in MEASURES), strict=True)
    return np.array(center, np.float32), np.array(spread, np.float32)


def _turned(thumbnails: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the thumbnails (N, 192) of the images changed by each of _TURNS."""
    grid = thumbnails.reshape(-1, 8, 8, 3)
    changed = (grid[:, ::-1, ::-1], grid[:, ::-1], grid[..., ::-1], -grid)
    return [np.ascontiguousarray(one).reshape(len(grid), -1) for one in changed]


@dataclass(frozen=True)
class Images:
    """IMAGE_EVIDENCE (N, F) of the images of a window, and the hashes of the flagged ones."""

    flagged: NDArray[np.float64]
    comparisons: NDArray[np.float64]
    exact: tuple[str, ...]
    rough: tuple[int, ...]


def hashes(flagged: Sequence[Pixels]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the exact and the rough hash of each image."""
    return tuple(map(fingerprint, flagged)), tuple(map(difference_hash, flagged))


def of_window(images: Images, looks: Weights) -> dict[str, float]:
    """Return the evidence of a window's images alone.

    Args:
        images: one flagged at least.
        looks: the first regression.
    """
    flagged, others = images.flagged, images.comparisons
    like = looks.probabilities(flagged)
    odds = np.log(np.clip(like, _LEAST, 1 - _LEAST) / (1 - np.clip(like, _LEAST, 1 - _LEAST)))
    like_others = looks.probabilities(others) if len(others) else np.zeros((0, len(LOOKS)))
    found: dict[str, float] = {}
    most = np.sort(odds, 0)[::-1][:_MOST_LIKE].mean(0)
    in_all = np.log(np.concatenate([like, like_others]).mean(0) + 0.01)
    for i, look in enumerate(LOOKS):
        found[f"log-odds of {look}, mean"] = odds[:, i].mean()
        found[f"log-odds of {look}, the {_MOST_LIKE} most like it"] = most[i]
        found[f"share of {look}"] = like[:, i].mean()
        found[f"share of {look} in the comparisons"] = like_others[:, i].mean() if len(others) else 0.0
        found[f"share of {look} in all, log"] = in_all[i]
    median = np.median(flagged, 0)
    found |= dict(zip(IMAGE_EVIDENCE, median, strict=True))
    if len(others):
        apart = median - np.median(others, 0)
        found |= {f"{n}, against the comparisons": v for n, v in zip(IMAGE_EVIDENCE, apart, strict=True)}
    frequent = Counter(images.exact).most_common(1)[0][1]
    found["share of the most frequent image"] = frequent / len(flagged) if len(flagged) > 1 else 0.0
    found["share of similar images"] = _similar(images.rough)
    return {name: float(value) for name, value in found.items()}


def _similar(rough: Sequence[int]) -> float:
    """Return the share of images whose hash nearly equals that of the most usual image, 0 for a single one."""
    if len(rough) < 2:
        return 0.0
    return max(sum((one ^ other).bit_count() <= _HASH_BITS for other in rough) for one in rough) / len(rough)


def of_repairs(
    back: Mapping[str, float], changed: Mapping[str, float], whole: frozenset[str]
) -> dict[str, float]:
    """Return the evidence of the repairs.

    Args:
        back: share of the asked flagged inputs that a repair brought back beyond the controls.
        changed: share of the comparisons that it changed.
        whole: the repairs that were asked about all flagged inputs.
    """
    found = {}
    for name, share in back.items():
        found[f"brought back by {name}"] = share
        found[f"brought back by {name}, less the comparisons changed"] = share - changed.get(name, 0.0)
        found[f"brought back by {name}, all asked"] = share if name in whole else 0.0
    return found


def of_counts(
    classes: Mapping[PredictedClass, int], reference: Reference, shares: Prevalence | None
) -> dict[str, float]:
    """Return the evidence of the window's counts against the reference.

    Args:
        shares: the shares of the true classes that fit best, None without a confusion matrix.
    """
    found = {}
    if shares is not None:
        moved = sum(abs(shares.now[c] - shares.before[c]) for c in shares.now) / 2
        misfit = np.log((shares.distance + 1e-3) / (shares.chance + 1e-3))
        found["misfit of other shares of the true classes, log"] = float(np.clip(misfit, -2, 3))
        found["moved shares of the true classes"] = moved
        found["moved shares of the true classes that fit"] = moved * shares.explains
    total, usual = sum(classes.values()), reference.classes.total()
    if total and usual:
        apart = [
            abs(classes.get(c, 0) / total - reference.classes.get(c, 0) / usual)
            for c in classes.keys() | reference.classes.keys()
        ]
        found["difference from the reference's answers"] = sum(apart) / 2
    return found


def vector(found: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the evidence in the order of EVIDENCE, 0 where it is not known."""
    return np.array([found.get(name, 0.0) for name in EVIDENCE])
