"""An explanation as a picture a human reads at once, and as the facts that lie beside it."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from glassbox.fullgrad import Explanation

Pixels = npt.NDArray[np.uint8]

# Evenly spaced control points, least relevant first.
PALETTES = {
    "rainbow": ["#1f2a8c", "#2f6be0", "#35c3e8", "#7be08a", "#f6e04b", "#f58a1f", "#d01c1c"],
    "colorblind": ["#1b0c41", "#40307d", "#345f8d", "#20888c", "#3bb273", "#a3d339", "#fdf05a"],
}
"""``rainbow`` is red for the most and blue for the least relevant; ``colorblind`` grows evenly lighter."""

CLIP = (1.0, 99.5)
"""Percentiles of the map between which the colours run: one outlier pixel does not darken all others."""

PANEL = 320
MARGIN = 20
BAR = 14
INK, GREY, PAPER, ALARM, CALM = "#1d2129", "#667080", "#ffffff", "#b3261e", "#1b6e3c"


def render(explanation: Explanation, palette: str = "rainbow") -> bytes:
    """PNG with the input, the heat map and their overlay side by side, a colour scale and the key facts.

    The same explanation always gives the same bytes. The key facts are in the PNG's text chunks too.

    Args:
        explanation: see :func:`glassbox.fullgrad.explain`.
        palette: one of :data:`PALETTES`.

    Raises:
        KeyError: no such palette.
    """
    size = _panel_size(explanation.saliency.shape)
    colours = _colours(PALETTES[palette])
    relevance = _resized(_displayed(explanation.saliency), size)
    heat = colours[np.round(relevance * 255).astype(np.uint8)]
    seen = _picture(explanation.picture, size)
    panels = [("Input", seen), ("Relevance", heat), ("Overlay", _overlay(seen, heat, relevance))]
    canvas = _page(explanation, panels, colours)
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=False, pnginfo=_chunks(explanation))
    return out.getvalue()


def facts(explanation: Explanation) -> dict[str, Any]:
    """Everything known about the picture, ready for JSON."""
    e = explanation
    low, high = _range(e.saliency)
    return {
        "class": e.target,
        "label": e.label,
        "probability": e.probability,
        "logit": e.logit,
        "top": [{"class": c, "probability": p} for c, p in e.top],
        "completeness": {
            "faithful": e.faithful,
            "logit": e.logit,
            "sum": e.total,
            "residual": e.residual,
            "relative_error": e.relative_error,
            "sum_abs": e.sum_abs,
            "inexact": list(e.inexact),
        },
        "layers": [
            {"name": la.name, "type": la.type, "contribution": la.contribution, "share": la.share}
            for la in e.layers
        ],
        "display": {"percentiles": list(CLIP), "low": low, "high": high},
        "picture": {
            "height": e.picture.shape[0],
            "width": e.picture.shape[1],
            "channels": e.picture.shape[2],
        },
        "model": e.model,
        "form": e.form,
        "step": e.step,
        "sample": e.sample,
        "request": dict(e.request),
    }


def _range(saliency: npt.NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(saliency, CLIP)
    return float(low), float(high)


def _displayed(saliency: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """0..1; a map that is the same everywhere says nothing and is 0."""
    low, high = _range(saliency)
    return np.clip((saliency - low) / ((high - low) or 1), 0, 1).astype(np.float32)


def _panel_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a panel: small inputs enlarged by a whole factor, large ones reduced."""
    height, width = shape
    longest = max(shape)
    scale = -(-PANEL // longest) if longest < PANEL else min(1.0, 2 * PANEL / longest)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(array: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    return np.clip(np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)), 0, 1)


def _picture(picture: Pixels, size: tuple[int, int]) -> Pixels:
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def _overlay(seen: Pixels, heat: Pixels, relevance: npt.NDArray[np.float32]) -> Pixels:
    """The heat over the grey picture, the stronger the more relevant."""
    grey = np.asarray(Image.fromarray(seen).convert("L").convert("RGB"), np.float32)
    opacity = (0.25 + 0.45 * relevance)[..., None]
    return np.round(grey * (1 - opacity) + heat * opacity).astype(np.uint8)


def _colours(points: list[str]) -> Pixels:
    """(256, 3) through the control points."""
    rgb = np.array([[int(point[i : i + 2], 16) for i in (1, 3, 5)] for point in points])
    at = np.linspace(0, len(points) - 1, 256)
    return (
        np.stack([np.interp(at, np.arange(len(points)), channel) for channel in rgb.T], 1)
        .round()
        .astype(np.uint8)
    )


def _page(explanation: Explanation, panels: list[tuple[str, Pixels]], colours: Pixels) -> Image.Image:
    height, width = panels[0][1].shape[:2]
    page_width = max(3 * width + 4 * MARGIN, 640)
    step = (page_width - 2 * MARGIN - width) // 2
    top = MARGIN + 62
    canvas = Image.new("RGB", (page_width, top + height + 64 + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    inner = page_width - 2 * MARGIN
    _write(draw, (MARGIN, MARGIN - 6), _title(explanation), 26, INK, inner)
    text, colour = _verdict(explanation)
    if not explanation.faithful:
        draw.rectangle((0, MARGIN + 28, page_width, MARGIN + 54), fill=ALARM)
        colour = PAPER
    _write(draw, (MARGIN, MARGIN + 32), text, 15, colour, inner)
    for i, (name, pixels) in enumerate(panels):
        left = MARGIN + i * step
        canvas.paste(Image.fromarray(pixels), (left, top))
        _write(draw, (left, top + height + 6), name, 14, GREY, width)
    scale = Image.fromarray(np.ascontiguousarray(np.broadcast_to(colours, (BAR, 256, 3))))
    left, y = MARGIN + step, top + height + 30
    canvas.paste(scale.resize((width, BAR)), (left, y))
    _write(draw, (left, y + BAR + 3), "least relevant", 12, GREY, width // 2)
    _write(draw, (left + width, y + BAR + 3), "most", 12, GREY, width // 2, anchor="ra")
    return canvas


def _title(explanation: Explanation) -> str:
    label = f"  {explanation.label}" if explanation.label else ""
    return f"Class {explanation.target}{label}   {explanation.probability:.1%}"


def _verdict(explanation: Explanation) -> tuple[str, str]:
    error = explanation.relative_error
    said = f"completeness error {error:.1e} of the logit" if error is not None else "logit 0"
    if explanation.faithful:
        return f"Faithful: {said}", CALM
    because = f" ({'; '.join(explanation.inexact)})" if explanation.inexact else ""
    return f"UNFAITHFUL, do not rely on this map: {said}{because}", ALARM


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: int,
    anchor: str = "la",
) -> None:
    """One line, shortened to ``width`` pixels."""
    font = ImageFont.load_default(size=size)
    text = _printable(text)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, colour, font, anchor=anchor)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _chunks(explanation: Explanation) -> PngImagePlugin.PngInfo:
    e = explanation
    chunks = PngImagePlugin.PngInfo()
    for name, value in {
        "Title": _title(e),
        "Description": _verdict(e)[0],
        "Software": "Glassbox",
        "class": e.target,
        "probability": e.probability,
        "logit": e.logit,
        "completeness residual": e.residual,
        "sum of absolute terms": e.sum_abs,
        "faithful": "yes" if e.faithful else "no",
        "request": e.request.get("inference_id") or e.request.get("sha256") or "",
    }.items():
        chunks.add_text(name, _printable(str(value)))
    return chunks
