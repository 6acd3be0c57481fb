"""What is observed of a window's images and answers -> one vector of evidence."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from glassbox.diagnosis.pixels import MEASURES, Pixels, difference_hash, fingerprint, measure
from glassbox.diagnosis.reference import Reference
from glassbox.diagnosis.repairs import REPAIRS, SQUEEZERS

_LARGEST = 8.0  # deviations
_SIMILAR = 5  # images of the reference with which each flagged one is compared
_HASH_BITS = 8  # in which the hashes of two versions of one image differ at most

#: What ordinary photos look like, without a reference: center and spread of each of MEASURES.
ORDINARY = {
    "brightness": (0.42, 0.18),
    "dark": (0.18, 0.12),
    "light": (0.72, 0.18),
    "black": (0.0, 0.05),
    "white": (0.01, 0.08),
    "sharpness": (-0.5, 1.2),
    "detail": (-1.3, 0.4),
    "noise": (-4.1, 0.6),
    "spikes": (-6.5, 0.6),
    "blocks": (0.08, 0.15),
    "red over blue": (0.08, 0.25),
    "green over red": (-0.05, 0.15),
    "saturation": (0.17, 0.09),
    "light above": (0.02, 0.12),
    "entropy": (4.8, 0.6),
    "flat rows": (0.0, 0.04),
}

#: The evidence in the order of its vector.
EVIDENCE = (
    *MEASURES,
    *(f"|{name}|" for name in MEASURES),
    *(f"{name}, against the comparisons" for name in MEASURES),
    *(f"{name}, against similar images" for name in MEASURES),
    *(f"brought back by {name}" for name in REPAIRS),
    "brought back by squeezing, mean",
    "comparisons changed by squeezing",
    "share of the most frequent image",
    "share of similar images",
    "confidence of the flagged",
    "similarity to the reference",
    "largest deviation",
)


def of_images(
    flagged: Sequence[Pixels], comparisons: Sequence[Pixels], reference: Reference | None
) -> dict[str, float]:
    """Return the evidence of the images alone.

    The medians are deviations from the reference, clipped to ±8.

    Args:
        flagged: at least one image (H, W, 3).
        reference: without one, ordinary photos are what the images are compared with.
    """
    measured = np.stack([measure(pixels) for pixels in flagged])
    center, spread = _usual(reference)
    deviations = np.clip((np.median(measured, 0) - center) / spread, -_LARGEST, _LARGEST)
    found = dict(zip(MEASURES, map(float, deviations), strict=True))
    found |= {f"|{name}|": abs(found[name]) for name in MEASURES}
    if comparisons:
        others = np.median(np.stack([measure(pixels) for pixels in comparisons]), 0)
        apart = np.clip((np.median(measured, 0) - others) / spread, -_LARGEST, _LARGEST)
        found |= {f"{n}, against the comparisons": float(v) for n, v in zip(MEASURES, apart, strict=True)}
    found["largest deviation"] = float(np.abs(deviations).max())
    frequent = Counter(fingerprint(pixels) for pixels in flagged).most_common(1)[0][1]
    found["share of the most frequent image"] = frequent / len(flagged) if len(flagged) > 1 else 0.0
    found["share of similar images"] = _similar(flagged)
    if reference is not None and len(reference.thumbnails):
        nearest = [reference.nearest(pixels, _SIMILAR) for pixels in flagged]
        found["similarity to the reference"] = float(np.median([one[0][0] for one in nearest]))
        usual = np.stack([np.median(reference.measured[[i for _, i in one]], 0) for one in nearest])
        apart = np.clip(np.median(measured - usual, 0) / spread, -_LARGEST, _LARGEST)
        found |= {f"{n}, against similar images": float(v) for n, v in zip(MEASURES, apart, strict=True)}
    return found


def _usual(reference: Reference | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if reference is not None:
        return reference.center, reference.spread
    center, spread = zip(*(ORDINARY[name] for name in MEASURES), strict=True)
    return np.array(center, np.float32), np.array(spread, np.float32)


def _similar(images: Sequence[Pixels]) -> float:
    """Return the share of images whose hash nearly equals that of the most usual image, 0 for a single one."""
    hashes = [difference_hash(pixels) for pixels in images]
    if len(hashes) < 2:
        return 0.0
    return max(sum((one ^ other).bit_count() <= _HASH_BITS for other in hashes) for one in hashes) / len(
        hashes
    )


def of_squeezing(back: Mapping[str, float], changed: Mapping[str, float]) -> dict[str, float]:
    """Return the evidence of the squeezers.

    It is the share of the flagged brought back, and of the comparisons changed.
    """
    backs = [back[name] for name in SQUEEZERS if name in back]
    changes = [changed[name] for name in SQUEEZERS if name in changed]
    found = {}
    if backs:
        found["brought back by squeezing, mean"] = float(np.mean(backs))
    if changes:
        found["comparisons changed by squeezing"] = float(np.mean(changes))
    return found


def vector(found: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the evidence in the order of EVIDENCE, 0 where it is not known."""
    return np.array([found.get(name, 0.0) for name in EVIDENCE])
