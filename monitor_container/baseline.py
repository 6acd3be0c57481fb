"""Capture files of a time when all was well -> the baseline that drift is measured from.

    python monitor_container/baseline.py CAPTURES --out baseline [--replay-key public.pem]

writes ``statistics.json`` (the predictions per class) and ``constraints.json``. Laid in S3, the first is what
BASELINE_STATISTICS names. CAPTURES is a folder of capture files, for instance of ``aws s3 sync``.
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
    parser.add_argument("--endpoint", help="of this endpoint only")
    parser.add_argument(
        "--replay-key",
        type=Path,
        help="PEM file of the stack's public replay key, where there were incidents",
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    if not chosen.captures.is_dir():
        log.error("%s is no folder", chosen.captures)
        return 1
    try:
        # how responses are read comes from the environment, as everywhere; nothing is judged, so any threshold does
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
        log.error("%s: no prediction in %d unreadable records", chosen.captures, counts.unreadable)
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
