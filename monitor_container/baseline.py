"""Capture files of a reference period -> the baseline of the drift check.

Writes ``statistics.json`` (the predictions per class) and ``constraints.json``. Upload the first to S3 and set
BASELINE_STATISTICS to its URI. CAPTURES is a folder of capture files, for instance of ``aws s3 sync``.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import evaluation
from glassbox.errors import GlassboxError, SettingsError
from glassbox.monitoring import monitor_files
from glassbox.monitoring.count_file import CountingSettings
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
