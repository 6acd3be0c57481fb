"""The demo's page and report.json."""

import base64
import io
import json
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

AMPLIFIED = 8


def write(report, out):
    """Write ``index.html`` (self-contained), the stack's own ``incident.html`` and ``report.json`` to ``out``."""
    page = report.pop("page")
    (out / "incident.html").write_bytes(page["incident"])
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    facts = {p["id"]: p for p in report["pictures"]}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("page.html").render(
        report=report,
        target_class=page["target"],
        target=f"class {page['target']} ({page['names'][page['target']]})",
        threshold=page["threshold"],
        curve=page["curve"],
        marks=[{**mark, "y": 28 + 14 * i} for i, mark in enumerate(page["marks"])],
        charts=[
            _chart("Normal traffic", report["counts"]["normal"], page["names"]),
            _chart("The attack", report["counts"]["attack"], page["names"]),
        ],
        worst_error=max(p["completeness_error"] for p in report["pictures"]),
        amplified=AMPLIFIED,
        pairs=[_pair(number, *pair, facts, page["png"]) for number, pair in enumerate(page["pairs"])],
    )
    (out / "index.html").write_text(html)
    return out / "index.html"


def _chart(title, counted, names):
    largest = max(counted["classes"].values())
    total = sum(counted["classes"].values())
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
            for index, count in sorted(counted["classes"].items())
        ],
    }


def _pair(number, clean, adversarial, facts, png):
    difference = adversarial.astype(int) - clean
    pair = {
        "clean": _data_uri(clean),
        "adversarial": _data_uri(adversarial),
        "difference": _data_uri(np.clip(128 + AMPLIFIED * difference, 0, 255).astype(np.uint8)),
        "largest": int(np.abs(difference).max()),
    }
    for kind in ("clean", "adversarial"):
        found = facts[f"{kind}-{number}"]
        pair[f"{kind}_facts"] = {
            "title": f"{found['class_name'] or 'class'} ({found['class']}), {found['probability']:.1%}"
        }
        pair[f"{kind}_picture"] = (
            "data:image/png;base64," + base64.b64encode(png[f"{kind}-{number}"]).decode()
        )
    return pair


def _data_uri(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
