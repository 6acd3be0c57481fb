"""Capture files of a reference period -> the baseline of the drift check, and the reference of a diagnosis.

Writes ``statistics.json`` (the predictions per class), ``constraints.json``, and ``reference.npz`` if the captured
inputs are images. Upload the first and the last to S3 and set BASELINE_STATISTICS and REFERENCE to their URIs.
CAPTURES is a folder of capture files, for instance of ``aws s3 sync``.
"""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import evaluation
from glassbox.errors import BadInputError, GlassboxError, SettingsError
from glassbox.monitoring import monitor_files
from glassbox.monitoring.capture import CaptureFile
from glassbox.monitoring.count_file import CountingSettings
from glassbox.replay_marker import PublicKey
from glassbox.settings import from_env

log = logging.getLogger("baseline")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captures", type=Path, help="a folder of capture files, of any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("baseline"), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--endpoint", help="count the files of this endpoint only")
    parser.add_argument(
        "--replay-key",
        type=Path,
        help="PEM file of the stack's public replay key; required if the captures contain replays",
    )
    parser.add_argument(
        "--model", type=Path, help="model archive that answered: the reference records its sha256"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder <class>/<file> of images that were sent: the reference counts confusions of their classes",
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    if not chosen.captures.is_dir():
        log.error("%s: expected a folder of capture files", chosen.captures)
        return 1
    try:
        # THRESHOLD is required, and unused here: the baseline checks nothing
        settings = from_env(CountingSettings, os.environ | {"THRESHOLD": "1", "DRIFT_THRESHOLD": ""})
    except SettingsError as error:
        log.error("%s", error)
        return 1
    files = evaluation.capture_files(chosen.captures, chosen.endpoint)
    try:
        key = evaluation.read_pem(chosen.replay_key) if chosen.replay_key else None
        counts, confidences = evaluation.merged(evaluation.measure(files, settings, replay_key=key))
    except GlassboxError as error:
        log.error("%s", error)
        return 1
    if not counts.sample_size:
        log.error("%s: no predictions, %d unreadable records", chosen.captures, counts.unreadable)
        return 1
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, document in {
        "statistics": monitor_files.statistics(counts, confidences),
        "constraints": monitor_files.constraints(counts, confidences),
    }.items():
        (chosen.out / f"{name}.json").write_bytes(monitor_files.to_json(document))
    log.info(
        "%d predictions of %d classes, %d records unreadable",
        counts.sample_size,
        len(counts.classes),
        counts.unreadable,
    )
    log.info("%s", chosen.out / "statistics.json")
    try:
        _write_reference(chosen, files, settings, key)
    except GlassboxError as error:
        log.error("%s", error)
        return 1
    return 0


def _write_reference(
    chosen: argparse.Namespace,
    files: Sequence[tuple[Path, CaptureFile]],
    settings: CountingSettings,
    key: PublicKey | None,
) -> None:
    """Write ``reference.npz``, or report why not.

    Raises:
        BadInputError: the model archive or the folder of images cannot be read.
    """
    if importlib.util.find_spec("PIL") is None:  # the monitor's image
        log.warning("No reference.npz: it requires numpy and Pillow, which are not installed")
        return
    import input_images
    from glassbox.diagnosis.reference import write_reference

    if chosen.images is not None and not chosen.images.is_dir():
        raise BadInputError(f"{chosen.images}: expected a folder of folders that are named like the classes")
    model = input_images.fingerprint(chosen.model) if chosen.model else ""
    classes = input_images.true_classes(chosen.images) if chosen.images else {}
    inputs = input_images.captured_inputs(files, settings, key)
    try:
        reference, images = input_images.reference_of(inputs, classes, model)
    except BadInputError as error:  # another kind of input has a baseline, too
        log.warning("No reference.npz: %s", error)
        return
    (chosen.out / "reference.npz").write_bytes(write_reference(reference))
    log.info("%s: %d images", chosen.out / "reference.npz", images)
    if chosen.images:
        log.info("%d of them have a true class", reference.confusion.total())


if __name__ == "__main__":
    sys.exit(main())
