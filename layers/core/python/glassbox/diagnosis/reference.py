"""The reference: what the inputs and answers of a reference period look like, one ``.npz`` file."""

import functools
import io
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glassbox.diagnosis.pixels import MEASURES, Pixels, measure, thumbnail
from glassbox.errors import BadInputError, printable
from glassbox.monitoring.response import PredictedClass

REFERENCE_BYTES = 2 << 20
VERSION = 1
KEPT = 1200  # at most
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 48, 70
_CLASSES = 10_000
# what numpy and zipfile raise for a damaged file
_UNREADABLE = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    TypeError,
    RuntimeError,  # an encrypted member
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_SPREAD = 1.349  # interquartile range of a normal distribution with deviation 1
_SMALLEST_SPREAD = 0.02
_FEW, _MANY = 5, 8  # similar images with which one is compared
_OUTER = 2.3  # normal score of the outer 1 %
_FARTHEST = 6.0
_UNSURE = 0.5


@dataclass(frozen=True)
class Sample:
    """An image of the reference period with its answer.

    ``true_class`` is that of its folder, if a folder names it.
    """

    pixels: Pixels
    predicted_class: PredictedClass
    confidence: float | None = None
    true_class: PredictedClass | None = None


@dataclass(frozen=True)
class Alike:
    """The most similar images of the reference for each of N thumbnails.

    Attributes:
        few: indices of the 5 most similar, (N, 5), fewer in a small reference.
        many: of the 8 most similar.
        similarity: mean of the 5 largest, -1..1, (N,).
    """

    few: NDArray[np.intp]
    many: NDArray[np.intp]
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class Usual:
    """How the images of the reference compare with each other.

    Attributes:
        apart: deviation of each of MEASURES from those of similar images, above 0.
        similarity: median of the similarity to the most similar images; ``spread`` is its deviation.
        agreement: share of the most similar images with the same predicted class, 0..1.
    """

    apart: NDArray[np.float64]
    similarity: float
    spread: float
    agreement: float


@dataclass(frozen=True)
class Reference:
    """A read reference.

    Attributes:
        center: median of each of MEASURES, (len(MEASURES),).
        spread: their interquartile range as a deviation, above 0.
        classes: predictions per class.
        confusion: (true, predicted) -> predictions, empty where no folder names the true classes.
        confidence_quartile: lower quartile of the confidences, None without any.
        thumbnails: (n, 192) float32, see :func:`glassbox.diagnosis.pixels.thumbnail`.
        measured: (n, len(MEASURES)) float32, the measures of the image of each thumbnail.
        labels: the predicted class of each thumbnail.
        jpegs: a JPEG of each.
        model: sha256 of the model's archive in hex, empty if not known.
    """

    center: NDArray[np.float32]
    spread: NDArray[np.float32]
    classes: Counter[PredictedClass]
    confusion: Counter[tuple[PredictedClass, PredictedClass]]
    confidence_quartile: float | None
    thumbnails: NDArray[np.float32]
    measured: NDArray[np.float32]
    labels: tuple[PredictedClass, ...]
    jpegs: tuple[bytes, ...]
    model: str = ""

    def nearest(self, pixels: Pixels, number: int = 3) -> list[tuple[float, int]]:
        """Return (similarity -1..1, index) of the most similar images, the most similar first."""
        similar = self.thumbnails @ thumbnail(pixels)
        return [(float(similar[i]), int(i)) for i in np.argsort(-similar)[:number]]

    def alike(self, thumbnails: NDArray[np.float32]) -> Alike:
        """Return the images that are most similar to each of the thumbnails (N, 192)."""
        return _alike(thumbnails @ self.thumbnails.T)

    @functools.cached_property
    def usual(self) -> Usual:
        """How the images of the reference compare with each other, each without itself."""
        similar = self.thumbnails @ self.thumbnails.T
        np.fill_diagonal(similar, -2)
        alike = _alike(similar)
        apart = self.measured - np.median(self.measured[alike.few], 1)
        labels = np.array(self.labels, object)
        return Usual(
            np.maximum(_deviation(apart), _SMALLEST_SPREAD),
            float(np.median(alike.similarity)),
            max(float(_deviation(alike.similarity)), _SMALLEST_SPREAD),
            float((labels[alike.many] == labels[:, None]).mean()),
        )

    def scores(self, measured: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return measures (N, len(MEASURES)) as normal scores.

        Those of the reference itself are normal, with a deviation of 1. Beyond the middle 98 % of the reference, the
        distance to it counts in spreads, at most 6.
        """
        ordered = self._ordered
        n = len(ordered)
        found = np.empty(measured.shape)
        for column, values in enumerate(measured.T):
            low = np.searchsorted(ordered[:, column], values, "left")
            high = np.searchsorted(ordered[:, column], values, "right")
            found[:, column] = [_normal((rank + 0.5) / (n + 1)) for rank in (low + high) / 2]
        lowest, highest = ordered[int(0.01 * n)], ordered[min(n - 1, int(0.99 * n))]
        above = np.clip((measured - highest) / self.spread, 0, _FARTHEST)
        below = np.clip((lowest - measured) / self.spread, 0, _FARTHEST)
        return np.asarray(np.clip(found, -_OUTER, _OUTER) + above - below)

    @functools.cached_property
    def _ordered(self) -> NDArray[np.float32]:
        return np.sort(self.measured, 0)

    def surprises(self, answers: Sequence[tuple[PredictedClass | None, float | None]]) -> list[float]:
        """Return how little each answer of a window fits the reference, 0..1.5.

        It is the share of its class beyond the usual share, and 0.5 more for an unusually low confidence.
        """
        now, usual = Counter(label for label, _ in answers), self.classes.total() or 1
        beyond = {
            label: max(
                0.0, 1 - (self.classes[label] if label is not None else 0) / usual / (k / len(answers))
            )
            for label, k in now.items()
        }
        quartile = self.confidence_quartile or 0.0
        return [
            beyond[label] + (_UNSURE if confidence is not None and confidence < quartile else 0.0)
            for label, confidence in answers
        ]


def _alike(similar: NDArray[np.float32]) -> Alike:
    order = np.argsort(-similar, 1)[:, :_MANY]
    return Alike(order[:, :_FEW], order, np.take_along_axis(similar, order[:, :_FEW], 1).mean(1))


def _deviation(values: NDArray[np.floating]) -> NDArray[np.float64]:
    low, high = np.percentile(values, (25, 75), axis=0)
    return np.asarray((high - low) / _SPREAD)


def _normal(share: float) -> float:
    return NormalDist().inv_cdf(min(max(share, 1e-3), 1 - 1e-3))


def make_reference(samples: Sequence[Sample], model: str = "") -> Reference:
    """Return the reference of the images of a reference period.

    Raises:
        BadInputError: there are fewer than 20 images.
    """
    if len(samples) < 20:
        raise BadInputError(f"reference: expected at least 20 images, got {len(samples)}")
    measured = np.stack([measure(sample.pixels) for sample in samples])
    low, center, high = np.percentile(measured, (25, 50, 75), axis=0)
    confidences = [sample.confidence for sample in samples if sample.confidence is not None]
    indices = _evenly([sample.predicted_class for sample in samples])
    kept = [samples[i] for i in indices]
    return Reference(
        center=center.astype(np.float32),
        spread=np.maximum((high - low) / _SPREAD, _SMALLEST_SPREAD).astype(np.float32),
        classes=Counter(sample.predicted_class for sample in samples),
        confusion=Counter((s.true_class, s.predicted_class) for s in samples if s.true_class is not None),
        confidence_quartile=float(np.percentile(confidences, 25)) if confidences else None,
        thumbnails=np.stack([thumbnail(sample.pixels) for sample in kept]),
        measured=measured[indices],
        labels=tuple(sample.predicted_class for sample in kept),
        jpegs=tuple(_jpeg(sample.pixels) for sample in kept),
        model=model,
    )


def _evenly(labels: Sequence[PredictedClass]) -> list[int]:
    """Return at most KEPT indices, as many of each class as fit."""
    turn: Counter[PredictedClass] = Counter()
    ranked = []
    for index, label in enumerate(labels):
        ranked.append((turn[label], index))
        turn[label] += 1
    return sorted(index for _, index in sorted(ranked)[:KEPT])


def _jpeg(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(stream, "JPEG", quality=_THUMBNAIL_QUALITY)
    return stream.getvalue()


def write_reference(reference: Reference) -> bytes:
    """Return the file, with as many images as fit into REFERENCE_BYTES."""
    kept = len(reference.jpegs)
    while True:
        content = _written(reference, kept)
        if len(content) <= REFERENCE_BYTES or not kept:
            return content
        kept = int(kept * 0.9 * REFERENCE_BYTES / len(content))


def _written(reference: Reference, kept: int) -> bytes:
    sizes = np.array([len(image) for image in reference.jpegs[:kept]], np.int64)
    quartile = reference.confidence_quartile
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        version=np.array(VERSION),
        measures=np.array(MEASURES),
        center=reference.center,
        spread=reference.spread,
        classes=np.array([_text(c) for c in reference.classes], np.str_),
        class_counts=np.array(list(reference.classes.values()), np.int64),
        confusion=np.array([[_text(t), _text(p)] for t, p in reference.confusion], np.str_).reshape(-1, 2),
        confusion_counts=np.array(list(reference.confusion.values()), np.int64),
        confidence_quartile=np.array(np.nan if quartile is None else quartile),
        thumbnails=reference.thumbnails[:kept].astype(np.float16),
        measured=reference.measured[:kept],
        labels=np.array([_text(label) for label in reference.labels[:kept]], np.str_),
        jpeg_sizes=sizes,
        jpegs=np.frombuffer(b"".join(reference.jpegs[:kept]), np.uint8),
        model=np.array(reference.model),
    )
    return stream.getvalue()


def read_reference(content: bytes) -> Reference:
    """Read the file of :func:`write_reference`.

    Raises:
        BadInputError: the file is too large, of another version, or its arrays have other shapes.
    """
    if len(content) > REFERENCE_BYTES:
        raise BadInputError(f"reference: expected at most {REFERENCE_BYTES} bytes, got {len(content)}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > 16 * REFERENCE_BYTES:
            raise BadInputError(
                f"reference: expected at most {16 * REFERENCE_BYTES} bytes unpacked, got {size}"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return _read(arrays)
    except _UNREADABLE as error:
        raise BadInputError(
            f"reference: expected a reference.npz of `make baseline`, got {printable(error, 200)}"
        ) from error


def _read(arrays: dict[str, NDArray[np.generic]]) -> Reference:
    if int(arrays["version"]) != VERSION:
        raise ValueError(f"version {arrays['version']}, expected {VERSION}")
    if tuple(map(str, arrays["measures"])) != MEASURES:
        raise ValueError("other measures")
    sizes = np.asarray(arrays["jpeg_sizes"], np.int64)
    n, width = len(sizes), len(MEASURES)
    shapes = {
        "center": (width,),
        "spread": (width,),
        "thumbnails": (n, 192),
        "measured": (n, width),
        "labels": (n,),
        "class_counts": arrays["classes"].shape,
        "confusion": (len(arrays["confusion_counts"]), 2),
        "jpegs": (int(sizes.sum()),),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} of shape {arrays[name].shape}, expected {shape}")
    if (sizes < 0).any() or len(arrays["classes"]) > _CLASSES or len(arrays["confusion"]) > 4 * _CLASSES:
        raise ValueError("impossible sizes")
    spread = np.asarray(arrays["spread"], np.float32)
    numbers = [
        np.asarray(arrays[name], np.float32) for name in ("center", "spread", "thumbnails", "measured")
    ]
    if not all(np.isfinite(a).all() for a in numbers) or (spread <= 0).any():
        raise ValueError("numbers that are not finite, or a spread of 0")
    ends = np.cumsum(sizes)
    joined = np.asarray(arrays["jpegs"], np.uint8).tobytes()
    quartile = float(arrays["confidence_quartile"])
    return Reference(
        center=numbers[0],
        spread=spread,
        classes=Counter(
            {_label(c): int(k) for c, k in zip(arrays["classes"], arrays["class_counts"], strict=True)}
        ),
        confusion=Counter(
            {
                (_label(t), _label(p)): int(k)
                for (t, p), k in zip(arrays["confusion"], arrays["confusion_counts"], strict=True)
            }
        ),
        confidence_quartile=None if np.isnan(quartile) else min(1.0, max(0.0, quartile)),
        thumbnails=numbers[2],
        measured=numbers[3],
        labels=tuple(map(_label, arrays["labels"])),
        jpegs=tuple(joined[end - size : end] for end, size in zip(ends, sizes, strict=True)),
        model=str(arrays["model"])[:64],
    )


def _text(label: PredictedClass) -> str:
    return f"#{label}" if isinstance(label, int) else label


def _label(text: object) -> PredictedClass:
    found = str(text)
    return int(found[1:]) if found.startswith("#") and found[1:].lstrip("-").isdecimal() else found
