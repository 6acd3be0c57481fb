"""Captured input images of a reference period -> ``reference.npz``, with which a diagnosis compares.

Requires numpy and Pillow, which the monitor's image does not contain.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import evaluation
from glassbox.diagnosis.pixels import decode
from glassbox.diagnosis.reference import Reference, Sample, make_reference
from glassbox.errors import BadInputError
from glassbox.incidents.input_image import BODY_BYTES
from glassbox.monitoring.capture import CaptureFile, chunks, lines, read_line, read_request
from glassbox.monitoring.count_file import CountingSettings
from glassbox.monitoring.response import PredictedClass, Prediction, UnreadableError
from glassbox.replay_marker import PublicKey

IMAGES = 2000  # of which a reference is made: enough for its percentiles, and few enough for the memory


class CapturedInput(NamedTuple):
    """The body of a captured request with the only prediction of its response."""

    body: bytes
    prediction: Prediction


def captured_inputs(
    files: Sequence[tuple[Path, CaptureFile]], settings: CountingSettings, replay_key: PublicKey | None
) -> Iterator[CapturedInput]:
    """Yield the inputs with one prediction, without replays and shadow variants.

    Raises:
        SettingsError: a record carries a replay marker, and the replay key is not set.
    """
    parser = settings.parser()
    for path, place in files:
        if place.variant in settings.shadows:
            continue
        key_for_file = functools.partial(evaluation.required, replay_key, path)
        with path.open("rb", buffering=0) as stream:
            for line in lines(chunks(stream)):
                try:
                    record = read_line(line, parser, key_for_file)
                except UnreadableError:
                    continue  # counted, and its reason shown, with the baseline
                if line is None or len(record.predictions) != 1:
                    continue
                try:
                    body = read_request(line).body
                except ValueError:
                    continue  # a record without an event id or a readable input holds no image
                if body is not None:
                    # decode() refuses a larger body: the rest would only fill the memory
                    yield CapturedInput(body[: BODY_BYTES + 1], record.predictions[0])


def true_classes(folder: Path) -> dict[str, PredictedClass]:
    """Return the class of each file ``<folder>/<class>/<file>`` by its sha256 in hex.

    A folder name of digits is a class number. Equal files of several classes have no class.
    """
    found: dict[str, PredictedClass | None] = {}
    for path in sorted(path for path in folder.glob("*/*") if path.is_file()):
        name = path.parent.name
        label: PredictedClass = int(name) if name.isascii() and name.isdecimal() else name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[digest] = label if found.get(digest, label) == label else None
    return {digest: label for digest, label in found.items() if label is not None}


def reference_of(
    inputs: Iterator[CapturedInput], classes: Mapping[str, PredictedClass], model: str = "", seed: int = 0
) -> tuple[Reference, int]:
    """Return the reference of at most IMAGES inputs, and how many of them are images.

    Each input is chosen with equal probability.

    Args:
        classes: the true class of a body by its sha256, as of :func:`true_classes`.
        model: sha256 of the model's archive in hex, or empty.
        seed: of the choice.

    Raises:
        BadInputError: too few inputs are images.
    """
    samples, problem = [], ""
    for one in _chosen(inputs, seed):
        try:
            pixels = decode(one.body).pixels
        except BadInputError as error:
            problem = problem or str(error)
            continue
        true_class = classes.get(hashlib.sha256(one.body).hexdigest())
        samples.append(Sample(pixels, one.prediction.predicted_class, one.prediction.confidence, true_class))
    try:
        return make_reference(samples, model), len(samples)
    except BadInputError as error:
        raise BadInputError(
            f"{error}; the first other input: {problem}" if problem else str(error)
        ) from error


def _chosen(inputs: Iterator[CapturedInput], seed: int) -> list[CapturedInput]:
    """Return IMAGES inputs, each with equal probability, in constant memory (Vitter 1985, R)."""
    chance, kept = random.Random(seed), []  # noqa: S311  the choice needs no secrecy
    for number, one in enumerate(inputs):
        if number < IMAGES:
            kept.append(one)
        elif (place := chance.randrange(number + 1)) < IMAGES:
            kept[place] = one
    return kept


def fingerprint(archive: Path) -> str:
    """Return the sha256 of a model archive, in hex.

    Raises:
        BadInputError: the file cannot be read.
    """
    try:
        with archive.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"{archive}: cannot read the model archive: {error.strerror}") from error
