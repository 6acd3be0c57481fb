"""The monitor container: an hour of capture files -> counts -> verdicts -> Model Monitor's reports.

Meets the contract of the SageMaker developer guide, "Container contract inputs" and "… outputs". Its counts and its
judgement are the core's, as in ``count_predictions``: the two cannot disagree. ``OPT_ML`` (default ``/opt/ml``)
moves the root for a run outside a container.
"""

import functools
import logging
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# in a checkout; in the image the core lies beside this file
sys.path.append(str(Path(__file__).resolve().parents[1] / "layers" / "core" / "python"))

from glassbox import report
from glassbox.capture import chunks, moment, read, read_key
from glassbox.count import CountingSettings
from glassbox.errors import BadInputError, GlassboxError, SettingsError
from glassbox.report import Confidences
from glassbox.response import ResponseForm
from glassbox.settings import from_env, setting
from glassbox.tally import SLOT, Counts, Tally, Window, tally, total
from glassbox.verdict import Verdict, judge

log = logging.getLogger("evaluation")

MESSAGE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Settings(CountingSettings):
    """The environment of the contract (its names are lower case there) and of the bounds."""

    dataset_source: str = "/opt/ml/processing/endpointdata"
    output_path: str = "/opt/ml/processing/resultdata"
    sagemaker_endpoint_name: str | None = None
    sagemaker_monitoring_schedule_name: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    publish_cloudwatch_metrics: bool = False
    baseline_statistics: str | None = None
    shadow_variants: str = ""
    processes: int | None = setting(None, within=(1, 256))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drift_threshold is not None and self.baseline_statistics is None:
            raise SettingsError("DRIFT_THRESHOLD needs baseline_statistics, the distribution to drift from")
        window = self.window
        if window and window.start >= window.end:
            raise SettingsError(f"start_time={self.start_time!r} is not before end_time={self.end_time!r}")

    @property
    def window(self) -> Window | None:
        """[start_time, end_time), blanks in them allowed ("T16: 20: 00Z"); None where either is not given."""
        if self.start_time is None or self.end_time is None:
            return None
        try:
            start, end = (moment(t.replace(" ", "")) for t in (self.start_time, self.end_time))
        except ValueError as error:
            raise SettingsError(f"start_time or end_time: {error}") from error
        return Window(start, end)


# ---------------------------------------------------------------- counting


@dataclass(frozen=True)
class CaptureSource:
    """A capture file on disk."""

    path: Path
    endpoint: str
    variant: str
    hour: datetime


def capture_files(folder: Path, endpoint: str | None = None) -> Iterator[CaptureSource]:
    """Every capture file below ``folder``, of one endpoint or of all."""
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            file = read_key(path.relative_to(folder).as_posix())
        except BadInputError as error:
            log.warning("left out: %s", error)
            continue
        if endpoint in (None, file.endpoint):
            yield CaptureSource(path, *file)


def count(
    file: CaptureSource, settings: CountingSettings, window: Window | None
) -> tuple[str, Tally, Confidences]:
    """The variant of a file, its counts inside ``window``, and their confidences."""
    confidences = Confidences()
    form = ResponseForm(settings.class_path, settings.confidence_path)
    with file.path.open("rb", buffering=0) as stream:
        records = read(chunks(stream), str(file.path), form)
        counted = tally(
            confidences.watch(records),
            file.hour,
            low_confidence=settings.low_confidence,
            classes=settings.classes,
            within=window,
        )
    return file.variant, counted, confidences


@dataclass
class Measured:
    """What the capture files of a window hold, per variant."""

    tallies: dict[str, Tally]
    confidences: Confidences

    def counts(self, variant: str) -> Counts:
        return total(self.tallies[variant].slots.values())


def measure(
    files: Iterable[CaptureSource],
    settings: CountingSettings,
    *,
    window: Window | None = None,
    shadow_variants: frozenset[str] = frozenset(),
    processes: int | None = None,
) -> Measured:
    """Count files in several processes; memory does not grow with their number or size."""
    measured = Measured(defaultdict(Tally), Confidences())
    one = functools.partial(count, settings=settings, window=window)
    with multiprocessing.Pool(processes or len(os.sched_getaffinity(0))) as pool:
        for variant, counted, confidences in pool.imap(one, files):
            if variant not in shadow_variants:
                measured.tallies[variant] += counted
                measured.confidences += confidences
    return measured


# ---------------------------------------------------------------- judging and reporting


def evaluate(settings: Settings, opt_ml: Path) -> str:
    """Count, judge and write the reports; returns the exit message."""
    window = settings.window
    shadow = frozenset(name.strip() for name in settings.shadow_variants.split(","))
    baseline = None
    if settings.baseline_statistics:
        path = _moved(settings.baseline_statistics, opt_ml)
        baseline = report.read_baseline(path.read_bytes(), str(path))
    measured = measure(
        capture_files(_moved(settings.dataset_source, opt_ml), settings.sagemaker_endpoint_name),
        settings,
        window=window,
        shadow_variants=shadow,
        processes=settings.processes,
    )
    for tally_ in measured.tallies.values():
        for example in tally_.examples:
            log.warning("unreadable: %s", example)
    everything = total(measured.counts(variant) for variant in measured.tallies)
    log.info("Predicted classes %s", dict(report.by_class(everything.classes)))
    verdicts = [
        verdict
        for variant in sorted(measured.tallies)
        for verdict in judge(
            measured.counts(variant),
            window or _span(measured.tallies[variant]),
            settings,
            baseline,
        )
    ]
    _write_reports(_moved(settings.output_path, opt_ml), everything, measured.confidences, verdicts)
    if settings.publish_cloudwatch_metrics:
        pass
    for verdict in verdicts:
        log.log(logging.WARNING if verdict.violated else logging.INFO, "%s", verdict.reason)
    reasons = [verdict.reason for verdict in verdicts if verdict.violated]
    if reasons:
        return "CompletedWithViolations: " + "; ".join(reasons)
    if not everything.records and not everything.unreadable:
        return f"Completed: no data{f' from {window}' if window else ''}"
    return f"Completed: {everything.n} predictions, no violation"


def _span(counted: Tally) -> Window:
    return Window(min(counted.slots), max(counted.slots) + SLOT)


def _write_reports(
    folder: Path, counts: Counts, confidences: Confidences, verdicts: Iterable[Verdict]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in {
        "statistics": report.statistics(counts, confidences),
        "constraints": report.constraints(counts, confidences),
        "constraint_violations": report.violations(verdicts),
    }.items():
        (folder / f"{name}.json").write_bytes(report.to_json(document))


def _moved(path: str, opt_ml: Path) -> Path:
    """A path of the contract (below /opt/ml) below ``opt_ml``."""
    return opt_ml / Path(path).relative_to("/opt/ml") if Path(path).is_relative_to("/opt/ml") else Path(path)


def main() -> int:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    opt_ml = Path(os.environ.get("OPT_ML") or "/opt/ml")
    try:
        # the contract's own names are lower case
        settings = from_env(Settings, {name.upper(): value for name, value in os.environ.items()})
        message, code = evaluate(settings, opt_ml), 0
    except GlassboxError as error:
        message, code = str(error), 1
    log.log(logging.ERROR if code else logging.INFO, "%s", message)
    output = opt_ml / "output"
    output.mkdir(parents=True, exist_ok=True)
    (output / "message").write_bytes(message.encode()[:MESSAGE_BYTES].decode(errors="ignore").encode())
    return code


if __name__ == "__main__":
    sys.exit(main())
