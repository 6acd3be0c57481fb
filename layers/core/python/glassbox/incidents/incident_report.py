"""The incident report: one HTML file with the violation, the heat maps and the timeline."""

import base64
import importlib.resources
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from glassbox.errors import BadInputError, printable
from glassbox.explanation.facts import Facts, Refusal, describe_answer, describe_blurred, read_facts
from glassbox.incidents.diagnosis import DIAGNOSIS_BYTES, Diagnosis, read_diagnosis
from glassbox.incidents.hook_hello import describe_hook
from glassbox.incidents.input_image import browser_image
from glassbox.incidents.model import Incident, Report
from glassbox.incidents.replay import Input
from glassbox.monitoring.counts import Counts, Window, total
from glassbox.monitoring.response import PredictedClass
from glassbox.ports import CountsStore, Objects
from glassbox.violation import MONITOR_CHECK, Violation

HEATMAPS = 60  # in a report
LIVE = 2  # index in GROUPS
GROUPS = ("Flagged requests", "For comparison", "Live traffic during the incident")
_HEATMAP_BYTES = 8 << 20
PREVIEW_BYTES = 1 << 18
_BARS = 200  # classes of the chart; with more, the most frequent ones
_LABELS = 10  # of the chart's axis
_NAMED_CLASSES = 5  # below the chart
_CLASSES = 20  # with a line in the notification
_HOOKS = 3  # lines about the hook in the notification
_NAMED = 5  # missing heat maps that the notification names
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Shown:
    """A heat map in the report, with its index in GROUPS and the data URI of its preview."""

    name: str
    group: int
    facts: Facts
    uri: str

    @property
    def title(self) -> str:
        """Return class and probability."""
        facts = self.facts
        class_name = f" ({printable(facts.class_name, 80)})" if facts.class_name else ""
        return f"Class {facts.predicted_class}{class_name}, {facts.probability:.1%}"

    @property
    def verdict(self) -> str:
        """Return whether the heat map is of the answered class and complete."""
        found = self.facts.completeness
        error = f": completeness error {found.relative_error:.1e}" if found.relative_error is not None else ""
        held = sum(found.held.values())
        gates = f", gates held at {held} place{'s' if held > 1 else ''}" if held else ""
        verdict = f"Complete{gates}" if found.complete else "INCOMPLETE, do not rely on it"
        return f"{describe_answer(self.facts.answered)}{verdict}{error}"

    @property
    def time(self) -> str:
        """Return the time of the request, UTC, empty if not known."""
        return printable(self.facts.request.get("time") or "", 40).removesuffix("Z").replace("T", " ")

    @property
    def seen(self) -> str:
        """Return the text in place of the image."""
        return f"{self.title}: {self.facts.quadrants or 'heat map'}"

    @property
    def blurred(self) -> str:
        """Return what blurring does to the class's probability, empty if not measured."""
        facts = self.facts
        return (
            describe_blurred(facts.predicted_class, facts.probability, facts.blurred) if facts.blurred else ""
        )


def write_report(
    incident: Incident,
    *,
    bucket: str,
    objects: Objects,
    counts: CountsStore,
    variants: Callable[[Violation], Iterable[str]],
    inputs: Callable[[Incident], Sequence[Input]] = lambda _: (),
) -> Report:
    """Write ``incidents/<endpoint>/<incident>/index.html``, the same at every call.

    The report names heat maps that are missing or unreadable.

    Args:
        variants: returns the variants of the violation, whose counts are added up.
        inputs: returns the captured inputs; the flagged ones are shown in notify-only mode.

    Raises:
        RetryableError: S3 or the counts table does not answer.
    """
    heatmaps, left_out = _heatmaps(incident, bucket, objects)
    cause = incident.cause
    window = Window(cause.window_start, cause.window_end)
    variant_keys = [f"{incident.endpoint}/{variant}" for variant in variants(cause)]
    counted = total(
        slot for variant_key in variant_keys for slot in counts.read(variant_key, window).values()
    )
    captured = inputs(incident) if incident.notify_only else ()
    flagged = [_input(one) for one in captured if one.flagged]
    folder = f"incidents/{incident.endpoint}/{incident.id}"
    key = f"{folder}/index.html"
    hook = [] if incident.notify_only else describe_hook(incident.opened, incident.endpoint, bucket, objects)
    why, problem = _diagnosis(f"{folder}/diagnosis.json", bucket, objects) if incident.why else (None, "")
    found = list(findings([heatmap.facts for heatmap in heatmaps])[:_CLASSES])
    if incident.notify_only:
        found = [_counted(counted), f"{len(flagged)} flagged inputs are shown"]
    html = render(incident, heatmaps, counted, bucket, left_out, flagged, hook, why, problem)
    objects.put(bucket, key, html.encode(), "text/html; charset=utf-8")
    found += hook[:_HOOKS]
    found += [f"{name}: {reason}" for name, reason in left_out[:_NAMED]]
    if len(left_out) > _NAMED:
        found.append(f"and {len(left_out) - _NAMED:,} more without a heat map")
    return Report(f"s3://{bucket}/{key}", tuple(found), objects.console_link(bucket, key))


def _diagnosis(key: str, bucket: str, objects: Objects) -> tuple[Diagnosis | None, str]:
    """Return the diagnosis, or None and the reason."""
    try:
        return read_diagnosis(objects.get(bucket, key, at_most=DIAGNOSIS_BYTES)), ""
    except BadInputError as error:
        return None, printable(error, _REASON_CHARACTERS)


def _heatmaps(incident: Incident, bucket: str, objects: Objects) -> tuple[list[Shown], list[tuple[str, str]]]:
    """Return the heat maps to show, and (name, reason) of the missing ones."""
    folder = f"saliency/{incident.endpoint}/{incident.id}/"
    rendered = [
        key.removeprefix(folder) for key, *_ in objects.listed(bucket, folder) if key.endswith(".json")
    ]
    replays = incident.replays or frozenset()
    # first the first sample of every replay: one large batch must not displace the other requests
    names = sorted(
        (key.removesuffix(".json") for key in rendered),
        key=lambda name: (name not in replays and _group(name, incident) < LIVE, _group(name, incident)),
    )
    heatmaps, left_out = [], []
    for name in names[:HEATMAPS]:
        try:
            facts = _read(objects.get(bucket, f"{folder}{name}.json", at_most=1 << 20))
            uri = _preview(f"{folder}{name}", bucket, objects)
        except BadInputError as error:
            left_out.append((printable(name, 80), printable(error, _REASON_CHARACTERS)))
        else:
            heatmaps.append(Shown(name, _group(name, incident), facts, uri))
    missing = sorted(replays - set(names))
    left_out += [(name, "replayed, but the endpoint wrote no readable trace") for name in missing]
    return heatmaps, left_out


def _preview(key: str, bucket: str, objects: Objects) -> str:
    """Return the data URI of a heat map's preview, or of the heat map itself, if an earlier version rendered it."""
    try:
        kind, content = "webp", objects.get(bucket, f"{key}.webp", at_most=PREVIEW_BYTES)
    except BadInputError:
        kind, content = "png", objects.get(bucket, f"{key}.png", at_most=_HEATMAP_BYTES)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read(content: bytes) -> Facts:
    try:
        facts = read_facts(content)
    except ValueError as error:
        raise BadInputError(f"unreadable facts: {error}") from error
    if isinstance(facts, Refusal):
        raise BadInputError(f"cannot be rendered: {facts.refused}")
    return facts


def _input(captured: Input) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": captured.event_id,
        "predicted_class": captured.predicted_class,
        "confidence": captured.confidence,
    }
    try:
        kind, image = browser_image(captured.body)
    except BadInputError as error:
        return shown | {"uri": "", "reason": str(error)}
    return shown | {"uri": f"data:{kind};base64,{base64.b64encode(image).decode()}", "reason": ""}


def _counted(counts: Counts) -> str:
    most = sorted(counts.classes.items(), key=lambda item: (-item[1], str(item[0])))[:3]
    of = ", ".join(f"{n} x class {printable(predicted_class, 80)}" for predicted_class, n in most)
    return f"{counts.sample_size} predictions in the window" + (f", the most frequent: {of}" if of else "")


def _group(name: str, incident: Incident) -> int:
    """Return the index in GROUPS of a heat map; the names of a batch end in the sample's number."""
    replayed = {name, name.rpartition("-")[0]}
    return 0 if replayed & incident.flagged else 1 if replayed & (incident.replays or set()) else 2


def findings(facts: Sequence[Facts]) -> tuple[str, ...]:
    """Return one line for each class, the most frequent class first."""
    by_class: dict[tuple[int, str], list[Facts]] = defaultdict(list)
    for fact in facts:
        by_class[fact.predicted_class, fact.class_name or ""].append(fact)
    lines = []
    for (number, class_name), found in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0])):
        probabilities = [fact.probability for fact in found]
        incomplete = sum(not fact.completeness.complete for fact in found)
        others = sum(fact.answered is not None for fact in found)
        lines.append(
            f"{len(found)} x class {number}{f' ({printable(class_name, 80)})' if class_name else ''}, "
            f"probability {min(probabilities):.0%} to {max(probabilities):.0%}, "
            + (f"{incomplete} INCOMPLETE" if incomplete else "all complete")
            + (f", {others} NOT WHAT WAS ANSWERED" if others else "")
        )
    return tuple(lines)


def render(
    incident: Incident,
    heatmaps: Sequence[Shown],
    counts: Counts,
    bucket: str,
    left_out: Sequence[tuple[str, str]] = (),
    inputs: Sequence[Mapping[str, Any]] = (),
    hook: Sequence[str] = (),
    diagnosis: Diagnosis | None = None,
    undiagnosed: str = "",
) -> str:
    """Return the HTML of the report.

    Args:
        bucket: of the full-size heat maps.
        left_out: name and reason of each missing heat map.
        inputs: name, predicted_class, confidence, uri and reason of each flagged input.
        hook: one line for each kind of process that the hook loaded in.
        diagnosis: None without one, which ``undiagnosed`` gives the reason of.
    """
    flagged_class: PredictedClass | None = incident.cause.predicted_class
    if (
        flagged_class is None and incident.cause.check == MONITOR_CHECK
    ):  # a violation of the monitor has no class
        flagged = Counter(heatmap.facts.predicted_class for heatmap in heatmaps if heatmap.group == 0)
        flagged_class = max(flagged, key=lambda c: flagged[c], default=None)
    source = importlib.resources.files("glassbox.incidents").joinpath("incident_report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        incident=incident,
        flagged_class=flagged_class,
        bucket=bucket,
        groups=[(title, [p for p in heatmaps if p.group == i]) for i, title in enumerate(GROUPS)],
        left_out=left_out,
        inputs=inputs,
        hook=hook,
        why=diagnosis,
        undiagnosed=undiagnosed,
        bars=bars(counts.classes),
        labelled=_labelled(counts.classes),
        largest=max(counts.classes.values(), default=1),
        counted=counts.sample_size,
        frequent=counts.classes.most_common(_NAMED_CLASSES),
    )


def bars(classes: Mapping[PredictedClass, int]) -> list[tuple[PredictedClass, int]]:
    """Return the classes of the chart in the order of its axis, with their counts.

    Numbered classes have a place each from 0 on, also those that were not predicted.
    """
    numbers = [c for c in classes if isinstance(c, int) and c >= 0]
    if len(numbers) == len(classes) and max(numbers, default=0) < _BARS:
        return [(c, classes.get(c, 0)) for c in range(max(numbers, default=-1) + 1)]
    most = sorted(classes.items(), key=lambda item: (-item[1], str(item[0])))[:_BARS]
    return sorted(most, key=lambda item: (isinstance(item[0], str), item[0]))


def _labelled(classes: Mapping[PredictedClass, int]) -> list[tuple[float, PredictedClass]]:
    """Return (place in percent, class) of the labels of the chart's axis."""
    found = bars(classes)
    step = -(-len(found) // _LABELS) or 1
    nice = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n >= step or n == 100)
    return [(100 * (i + 0.5) / len(found), found[i][0]) for i in range(0, len(found), nice)]
