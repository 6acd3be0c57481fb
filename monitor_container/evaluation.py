"""The monitor container: an hour of capture files -> counts -> verdicts -> Model Monitor's files.

Implements the contract of the SageMaker developer guide, "Container contract inputs" and "… outputs". The core counts
and checks, as in ``count_predictions``, so the two cannot disagree. ``OPT_ML`` (default ``/opt/ml``) is the root for
a run outside a container.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glassbox.errors import BadInputError, GlassboxError, SettingsError, printable
from glassbox.monitoring import monitor_files
from glassbox.monitoring.baseline import read_baseline
from glassbox.monitoring.capture import CaptureFile, chunks, read, read_key
from glassbox.monitoring.checks import Verdict, check_window
from glassbox.monitoring.count_file import CountingSettings
from glassbox.monitoring.counts import SLOT, Confidences, Counts, Tally, Window, tally, total
from glassbox.monitoring.response import PredictedClass
from glassbox.replay_marker import PublicKey
from glassbox.settings import from_env, setting
from glassbox.timestamps import parse_timestamp

log = logging.getLogger("evaluation")

MESSAGE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Settings(CountingSettings):
    """The environment of the contract (its names are lower case) and the bounds."""

    dataset_source: str = "/opt/ml/processing/endpointdata"
    output_path: str = "/opt/ml/processing/resultdata"
    sagemaker_endpoint_name: str | None = None
    sagemaker_monitoring_schedule_name: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    publish_cloudwatch_metrics: bool = False
    replay_key: str | None = None
    replay_key_arn: str | None = None
    processes: int | None = setting(None, within=(1, 256))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the times."""
        if (self.start_time is None) != (self.end_time is None):
            yield "start_time needs end_time, and end_time needs start_time"
        readable = True
        for name, time in (("start_time", self.start_time), ("end_time", self.end_time)):
            try:
                _time(time)
            except ValueError as error:
                readable = False
                yield f"{name}: {error}"
        if readable and (window := self.window) and window.start >= window.end:
            yield f"start_time={self.start_time!r}: expected a time before end_time={self.end_time!r}"

    @property
    def window(self) -> Window | None:
        """The window from start_time to end_time, or None when they are not set."""
        start, end = _time(self.start_time), _time(self.end_time)
        return Window(start, end) if start and end else None


def _time(text: str | None) -> datetime | None:
    return parse_timestamp(text) if text else None


# ---------------------------------------------------------------- counting


def capture_files(folder: Path, endpoint: str | None = None) -> list[tuple[Path, CaptureFile]]:
    """Return every capture file below ``folder``, of one endpoint or of all.

    A file outside the folders that data capture writes has an empty endpoint and variant.
    """
    if not folder.is_dir():
        log.warning("%s does not exist", folder)
    files = [(path, _placed(path.relative_to(folder))) for path in sorted(folder.rglob("*.jsonl"))]
    return [(path, file) for path, file in files if endpoint is None or file.endpoint in (endpoint, "")]


def _placed(path: Path) -> CaptureFile:
    try:
        return read_key(path.as_posix())
    except BadInputError:
        return CaptureFile("", "", datetime(2000, 1, 1, tzinfo=UTC))


def read_replay_key(settings: Settings, opt_ml: Path) -> PublicKey | None:
    """Return the public key of the replays, from the PEM file REPLAY_KEY or from KMS.

    Raises:
        BadInputError, RetryableError: the key cannot be read.
    """
    if settings.replay_key:
        return read_pem(_moved(settings.replay_key, opt_ml))
    if settings.replay_key_arn:
        import boto3  # a Model Monitor schedule cannot mount the PEM file

        from glassbox.aws.replay_key import ReplayKey

        # botocore does not read AWS_REGION, the variable that SageMaker sets
        kms = boto3.client("kms", region_name=settings.replay_key_arn.split(":")[3])
        return ReplayKey(kms, settings.replay_key_arn).public()
    return None


def read_pem(path: Path) -> PublicKey:
    """Read the PEM file of a public key, or raise BadInputError."""
    try:
        return PublicKey.from_pem(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: cannot read the replay key: {error.strerror}") from error


def required(key: PublicKey | None, path: Path) -> PublicKey:
    """Return the key of a capture file's markers, or raise SettingsError if none is set."""
    if key is None:
        raise SettingsError(
            f"{path}: a request carries a replay marker, and no key is set to verify it. Set REPLAY_KEY to the PEM "
            "file of the stack's public replay key (`make baseline REPLAY_KEY=public.pem`)."
        )
    return key


def count(
    file: tuple[Path, CaptureFile],
    settings: CountingSettings,
    window: Window | None,
    replay_key: PublicKey | None = None,
) -> tuple[str, Tally]:
    """Return the variant of a file, and its counts inside ``window``."""
    path, place = file
    key_for_file = functools.partial(required, replay_key, path)
    with path.open("rb", buffering=0) as stream:
        counted = tally(
            read(chunks(stream), str(path), settings.parser(), key_for_file),
            place.hour,
            low_confidence=settings.low_confidence,
            num_classes=settings.num_classes,
            within=window,
        )
    return place.variant, counted


def measure(
    files: Sequence[tuple[Path, CaptureFile]],
    settings: CountingSettings,
    *,
    window: Window | None = None,
    processes: int | None = None,
    replay_key: PublicKey | None = None,
) -> dict[str, Tally]:
    """Count files per variant, without shadow variants, in several processes.

    Memory does not grow with the number or the size of the files.

    Raises:
        SettingsError: a record carries a replay marker, and the replay key is not set.
    """
    files = [(path, place) for path, place in files if place.variant not in settings.shadows]
    processes = min(processes or os.cpu_count() or 1, len(files))
    count_one = functools.partial(count, settings=settings, window=window, replay_key=replay_key)
    tallies: dict[str, Tally] = defaultdict(Tally)
    with contextlib.ExitStack() as stack:
        results: Iterator[tuple[str, Tally]] = map(count_one, files)
        if processes > 1:
            pool = stack.enter_context(ProcessPoolExecutor(processes))
            results = pool.map(count_one, files, chunksize=1 + len(files) // (100 * processes))
        for variant, counted in results:
            tallies[variant] += counted
    return {variant: tallies[variant] for variant in sorted(tallies)}


def merged(tallies: Mapping[str, Tally]) -> tuple[Counts, Confidences]:
    """Return the counts and the confidences of all variants together."""
    confidences = Confidences()
    for counted in tallies.values():
        confidences += counted.confidences
    return total(counted.counts for counted in tallies.values()), confidences


# ---------------------------------------------------------------- checking and reporting


def evaluate(settings: Settings, opt_ml: Path) -> str:
    """Write the monitor files of the captures and return the exit message."""
    window, baseline = settings.window, None
    if settings.baseline_statistics:
        path = _moved(settings.baseline_statistics, opt_ml)
        baseline = read_baseline(path.read_bytes(), str(path))
    files = capture_files(_moved(settings.dataset_source, opt_ml), settings.sagemaker_endpoint_name)
    replay_key = read_replay_key(settings, opt_ml)
    tallies = measure(files, settings, window=window, processes=settings.processes, replay_key=replay_key)
    for example in (example for counted in tallies.values() for example in counted.examples):
        log.warning("unreadable: %s", example)
    counts, confidences = merged(tallies)
    log.info("Predicted classes %s", dict(monitor_files.by_class(counts.classes)))
    verdicts = list(_verdicts(tallies, settings, baseline))
    for verdict in verdicts:
        log.log(logging.WARNING if verdict.violated else logging.INFO, "%s", verdict.reason)
    folder = _moved(settings.output_path, opt_ml)
    _write(folder / "statistics.json", monitor_files.statistics(counts, confidences))
    _write(folder / "constraints.json", monitor_files.constraints(counts, confidences))
    _write(folder / "constraint_violations.json", monitor_files.violations(verdicts))
    if settings.publish_cloudwatch_metrics and verdicts:
        _write_metrics(opt_ml, settings, counts, confidences, verdicts)
    reasons = [verdict.reason for verdict in verdicts if verdict.violated]
    if reasons:
        return "CompletedWithViolations: " + "; ".join(reasons)
    if not verdicts:
        return f"Completed: no data{f' from {window}' if window else ''}"
    return f"Completed: {counts.sample_size} predictions, no violation"


def _verdicts(
    tallies: Mapping[str, Tally], settings: Settings, baseline: Mapping[PredictedClass, int] | None
) -> Iterator[Verdict]:
    """Yield the verdicts of each variant with traffic; with several variants, reasons name theirs."""
    seen = {variant: t for variant, t in tallies.items() if t.counts.records + t.counts.unreadable}
    for variant, counted in seen.items():
        window = settings.window or Window(min(counted.slots), max(counted.slots) + SLOT)
        for verdict in check_window(counted.counts, window, settings, baseline, window_closed=True):
            named = f"{verdict.reason}, variant {variant}" if len(seen) > 1 else verdict.reason
            yield dataclasses.replace(verdict, reason=named)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(monitor_files.to_json(document))


def _write_metrics(
    opt_ml: Path, settings: Settings, counts: Counts, confidences: Confidences, verdicts: Sequence[Verdict]
) -> None:
    path = opt_ml / "output" / "metrics" / "cloudwatch" / "cloudwatch_metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    dimensions = {
        "Endpoint": settings.sagemaker_endpoint_name,
        "MonitoringSchedule": settings.sagemaker_monitoring_schedule_name,
    }
    metrics = monitor_files.cloudwatch(
        counts, confidences, verdicts, {name: value for name, value in dimensions.items() if value}
    )
    path.write_text("".join(json.dumps(metric) + "\n" for metric in metrics))


def _moved(path: str, opt_ml: Path) -> Path:
    """Return a path of the contract (below /opt/ml) below ``opt_ml``."""
    return opt_ml / Path(path).relative_to("/opt/ml") if Path(path).is_relative_to("/opt/ml") else Path(path)


def main() -> int:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    opt_ml = Path(os.environ.get("OPT_ML") or "/opt/ml")
    try:
        # the contract's own names are lower case
        settings = from_env(Settings, {name.upper(): value for name, value in os.environ.items()})
        message, code = evaluate(settings, opt_ml), 0
        log.info("%s", message)
    except GlassboxError as error:
        message, code = str(error), 1
        log.error("%s", message)
    except Exception as error:
        message, code = printable(f"{type(error).__name__}: {error}"), 1
        log.exception("the evaluation failed")
    output = opt_ml / "output"
    output.mkdir(parents=True, exist_ok=True)
    (output / "message").write_bytes(message.encode()[:MESSAGE_BYTES].decode(errors="ignore").encode())
    return code


if __name__ == "__main__":
    sys.exit(main())
