"""The page of an incident: what broke, what the model looked at, what was done.

One HTML file that needs nothing from elsewhere.
"""

import base64
import importlib.resources
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

import jinja2

from glassbox.incident import Incident, Report
from glassbox.tally import Counts, Window, total
from glassbox.violation import MONITOR_CHECK, Violation

PICTURES = 60  # that a page shows
GROUPS = ("Flagged: what the model looked at", "For comparison", "Live traffic meanwhile")


class Objects(Protocol):
    """See :class:`glassbox.aws.objects.Objects`."""

    def sizes(self, bucket: str, prefix: str) -> Iterable[tuple[str, int]]: ...
    def get(self, bucket: str, key: str) -> bytes: ...
    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> None: ...


class CountsStore(Protocol):
    """See :class:`glassbox.aws.counts_table.CountsTable`."""

    def read(self, stream: str, window: Window) -> Mapping[datetime, Counts]: ...


def write_page(
    incident: Incident,
    *,
    bucket: str,
    objects: Objects,
    counts: CountsStore,
    variants: Callable[[Violation], Iterable[str]],
) -> Report:
    """Write ``incidents/<endpoint>/<incident>/index.html``; writing it again changes nothing.

    Args:
        variants: the variants that the violation is about, whose counts are shown together.
    """
    folder = f"saliency/{incident.endpoint}/{incident.id}/"
    drawn = [key.removeprefix(folder) for key, _ in objects.sizes(bucket, folder) if key.endswith(".json")]
    names = sorted((key.removesuffix(".json") for key in drawn), key=lambda name: _group(name, incident))
    pictures = [
        {
            "name": name,
            "group": _group(name, incident),
            "facts": json.loads(objects.get(bucket, f"{folder}{name}.json")),
            "png": base64.b64encode(objects.get(bucket, f"{folder}{name}.png")).decode(),
        }
        for name in names[:PICTURES]
    ]
    cause = incident.cause
    window = Window(cause.window_start, cause.window_end)
    streams = [f"{incident.endpoint}/{variant}" for variant in variants(cause)]
    counted = total(slot for stream in streams for slot in counts.read(stream, window).values())
    key = f"incidents/{incident.endpoint}/{incident.id}/index.html"
    objects.put(bucket, key, render(incident, pictures, counted).encode(), "text/html; charset=utf-8")
    return Report(f"s3://{bucket}/{key}", findings([picture["facts"] for picture in pictures]))


def _group(name: str, incident: Incident) -> int:
    """Index of the group in GROUPS that a picture belongs to; of a batch, the further ones end in their number."""
    replayed = {name, name.rpartition("-")[0]}
    return 0 if replayed & incident.flagged else 1 if replayed & (incident.replays or set()) else 2


def findings(facts: list[Any]) -> tuple[str, ...]:
    """The key facts of pictures, a line a class, the most frequent class first."""
    by_class: dict[tuple[Any, Any], list[Any]] = defaultdict(list)
    for fact in facts:
        by_class[fact["class"], fact["label"]].append(fact)
    lines = []
    for (number, label), found in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0][0])):
        sure = [fact["probability"] for fact in found]
        unfaithful = sum(not fact["completeness"]["faithful"] for fact in found)
        lines.append(
            f"{len(found)} x class {number}{f' ({label})' if label else ''}, "
            f"probability {min(sure):.0%} to {max(sure):.0%}, "
            + (f"{unfaithful} NOT FAITHFUL" if unfaithful else "all faithful")
        )
    return tuple(lines)


def render(incident: Incident, pictures: list[dict[str, Any]], counts: Counts) -> str:
    """The HTML; ``pictures`` are name, group, facts (of :func:`glassbox.picture.facts`) and base64 of the PNG."""
    blamed = incident.cause.label
    if blamed is None and incident.cause.check == MONITOR_CHECK:  # it names no class, and its replays do
        flagged = Counter(p["facts"]["class"] for p in pictures if p["group"] == 0)
        blamed = max(flagged, key=lambda label: flagged[label], default=None)
    bars = sorted(counts.classes.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    source = importlib.resources.files("glassbox").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        incident=incident,
        blamed=blamed,
        groups=[(title, [p for p in pictures if p["group"] == i]) for i, title in enumerate(GROUPS)],
        bars=bars,
        largest=max(counts.classes.values(), default=1),
        counted=counts.n,
    )
