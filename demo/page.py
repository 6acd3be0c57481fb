"""The demo's page and report.json."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.report import Counted, Heatmap, Report

AMPLIFIED = 8


@dataclass(frozen=True)
class Mark:
    """An event on the curve, and the number of requests before its first observation."""

    number: int
    text: str


@dataclass(frozen=True)
class Illustrations:
    """What the page shows beside the report.

    Attributes:
        curve: number of requests and share of the target so far.
        pairs: original and adversarial image, each (H, W, 3) uint8.
        heatmaps: previews (WebP) by request id.
        incident_report: HTML.
    """

    threshold: float
    class_names: list[str]
    curve: list[tuple[int, float]]
    marks: list[Mark]
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    heatmaps: dict[str, bytes]
    incident_report: bytes


def write(report: Report, shown: Illustrations, out: Path) -> Path:
    """Write ``index.html``, ``incident.html`` and ``report.json``, and return the first's path."""
    (out / "incident.html").write_bytes(shown.incident_report)
    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    target, names = report.attack.target, shown.class_names
    html = environment.get_template("page.html").render(
        report=report,
        target_class=target,
        target=f"class {target} ({names[target]})",
        threshold=shown.threshold,
        curve=shown.curve,
        marks=[{"number": m.number, "text": m.text, "y": 28 + 20 * i} for i, m in enumerate(shown.marks)],
        charts=[
            _chart("Normal traffic", report.counts.normal, names),
            _chart("The attack", report.counts.attack, names),
        ],
        worst_error=max(heatmap.completeness_error or 0.0 for heatmap in report.heatmaps),
        amplified=AMPLIFIED,
        pairs=[_pair(number, report, shown) for number in range(len(shown.pairs))],
    )
    (out / "index.html").write_text(html)
    return out / "index.html"


def _chart(title: str, counted: Counted, names: list[str]) -> dict[str, Any]:
    largest, total = max(counted.classes.values()), sum(counted.classes.values())
    return {
        "title": f"{title}: {total} predictions, at most {largest} of one class",
        "classes": len(names),
        "bars": [
            {
                "index": index,
                "count": count,
                "height": count / largest,
                "share": count / total,
                "class_name": names[index],
            }
            for index, count in sorted(counted.classes.items())
        ],
    }


def _pair(number: int, report: Report, shown: Illustrations) -> dict[str, Any]:
    clean, adversarial = shown.pairs[number]
    facts = {heatmap.id: heatmap for heatmap in report.heatmaps}
    difference = adversarial.astype(int) - clean
    return {
        "clean": _image_uri(clean),
        "adversarial": _image_uri(adversarial),
        "difference": _image_uri(np.clip(128 + AMPLIFIED * difference, 0, 255).astype(np.uint8)),
        "largest": int(np.abs(difference).max()),
        "clean_caption": _caption(facts[f"clean-{number}"]),
        "adversarial_caption": _caption(facts[f"adversarial-{number}"]),
        "clean_heatmap": _data_uri(shown.heatmaps[f"clean-{number}"], "webp"),
        "adversarial_heatmap": _data_uri(shown.heatmaps[f"adversarial-{number}"], "webp"),
    }


def _caption(heatmap: Heatmap) -> str:
    return f"{heatmap.class_name or 'class'} ({heatmap.predicted_class}), {heatmap.probability:.1%}"


def _image_uri(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
