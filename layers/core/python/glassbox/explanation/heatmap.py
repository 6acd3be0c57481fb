"""Draw an explanation as a PNG, and list its facts."""

import bisect
import functools
import io
import unicodedata

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from glassbox.explanation.facts import (
    ClassProbability,
    Completeness,
    Display,
    Facts,
    ImageSize,
    LayerShare,
    Quadrants,
    describe_answer,
    describe_blurred,
)
from glassbox.explanation.fullgrad import Explanation
from glassbox.explanation.trace_format import REPLAY_EVENT_ID

Pixels = npt.NDArray[np.uint8]

PERCEPTUAL = "perceptual"
# Evenly spaced control points; the first is the least relevant.
PALETTES = {
    "rainbow": ["#1f2a8c", "#2f6be0", "#35c3e8", "#7be08a", "#f6e04b", "#f58a1f", "#d01c1c"],
    PERCEPTUAL: ["#1b0c41", "#40307d", "#345f8d", "#20888c", "#3bb273", "#a3d339", "#fdf05a"],
}
"""``perceptual`` grows evenly lighter, from violet (least relevant) to yellow, also for colour-blind people.
``rainbow`` runs from blue to red.
"""
PREVIEW = 176
"""Pixels of the longer side of a panel in a preview."""
PREVIEW_BYTES = 22_000
"""So that 60 of them make a page of less than 2 MB."""
_QUALITIES = (80, 60, 30, 5)

CLIP = (1.0, 99.5)
"""Percentiles of the map that the colours cover, so that one outlier pixel does not darken all others."""

PANEL = 320
"""Pixels of a panel's longer side: from this to twice this."""

INK, GREY, PAPER, ALARM, CALM = "#1d2129", "#667080", "#ffffff", "#b3261e", "#1b6e3c"


def render(explanation: Explanation, palette: str = PERCEPTUAL) -> bytes:
    """Draw the input image, the heat map and their overlay side by side, with a colour scale.

    Returns a PNG; the same explanation always gives the same bytes. The text chunks hold the key facts.

    Args:
        explanation: see :func:`glassbox.explanation.fullgrad.explain`.
        palette: one of :data:`PALETTES`.

    Raises:
        KeyError: unknown palette.
    """
    size = _panel_size(explanation.saliency.shape)
    colours = _colours(PALETTES[palette])
    panels = list(zip(("Input", "Relevance", "Overlay"), _panels(explanation, size, colours), strict=True))
    canvas = _page(explanation, panels, colours)
    out = io.BytesIO()
    # The default level takes longer than all the drawing, for a few percent of the bytes.
    canvas.save(out, "PNG", compress_level=4, pnginfo=_chunks(explanation))
    return out.getvalue()


def preview(explanation: Explanation, palette: str = PERCEPTUAL) -> bytes:
    """Draw the three panels without text, small, for a page that holds many of them.

    Returns a WebP of about 10 KB. Noise takes more, in a lower quality.

    Args:
        palette: one of :data:`PALETTES`.

    Raises:
        KeyError: unknown palette.
    """
    height, width = explanation.saliency.shape
    scale = PREVIEW / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    gap = np.full((size[1], 4, 3), 255, np.uint8)
    image, heat, overlay = _panels(explanation, size, _colours(PALETTES[palette]))
    drawn = Image.fromarray(np.concatenate([image, gap, heat, gap, overlay], 1))
    content = b""
    for quality in _QUALITIES:
        out = io.BytesIO()
        drawn.save(out, "WEBP", quality=quality)
        content = out.getvalue()
        if len(content) <= PREVIEW_BYTES:
            break
    return content


def _panels(
    explanation: Explanation, size: tuple[int, int], colours: Pixels
) -> tuple[Pixels, Pixels, Pixels]:
    """Return the input image, the heat map and their overlay, at this width and height."""
    relevance = _resized(_displayed(explanation.saliency), size)
    heat = colours[np.round(relevance * 255).astype(np.uint8)]
    image = _enlarged(explanation.input_image, size)
    return image, heat, _overlay(image, heat, relevance)


def facts(explanation: Explanation) -> Facts:
    """Return the facts of the heat map."""
    e = explanation
    return Facts(
        predicted_class=e.target,
        class_name=e.class_name,
        probability=e.probability,
        logit=e.logit,
        top=tuple(ClassProbability(class_id, probability) for class_id, probability in e.top),
        completeness=Completeness(
            complete=e.complete,
            logit=e.logit,
            sum=e.total,
            residual=e.residual,
            relative_error=e.relative_error,
            sum_abs=e.sum_abs,
            held=e.held,
            unaccounted=e.unaccounted,
        ),
        layers=tuple(
            LayerShare(layer.name, layer.type, layer.contribution, layer.share) for layer in e.layers
        ),
        display=Display(CLIP, *_range(e.saliency)),
        input_image=ImageSize(*e.input_image.shape),
        model=e.model,
        trace_form=e.trace_form,
        step=e.step,
        sample=e.sample,
        request=e.request,
        blurred=e.blurred,
        unplaced_share=e.unplaced_share,
        quadrants=_quadrants(e.saliency),
        answered=e.answered,
        not_compared=e.not_compared,
    )


def _quadrants(saliency: npt.NDArray[np.float32]) -> Quadrants | None:
    """Return None for a map of zeros."""
    total = float(saliency.sum(dtype=np.float64))
    if not total > 0:
        return None
    halves = (np.array_split(half, 2, axis=1) for half in np.array_split(saliency, 2))
    parts = [float(part.sum(dtype=np.float64)) / total for half in halves for part in half]
    return Quadrants(*parts)


def _range(saliency: npt.NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(saliency, CLIP)
    return float(low), float(high)


def _displayed(saliency: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the map scaled to 0 to 1; a constant map becomes 0."""
    low, high = _range(saliency)
    return np.clip((saliency - low) / ((high - low) or 1), 0, 1).astype(np.float32)


def _panel_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return width and height of a panel: small inputs are enlarged by a whole factor, large ones reduced."""
    height, width = shape
    longest = max(shape)
    scale = -(-PANEL // longest) if longest < PANEL else min(1.0, 2 * PANEL / longest)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(array: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    return np.clip(np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)), 0, 1)


def _enlarged(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def _overlay(image: Pixels, heat: Pixels, relevance: npt.NDArray[np.float32]) -> Pixels:
    """Blend the heat over the grey image of full contrast; the opacity grows with the relevance."""
    grey = ImageOps.autocontrast(Image.fromarray(image).convert("L"), cutoff=0.5)
    opacity = (0.2 + 0.45 * relevance)[..., None]
    return np.round(np.asarray(grey, np.float32)[..., None] * (1 - opacity) + heat * opacity).astype(np.uint8)


def _colours(points: list[str]) -> Pixels:
    """Return (256, 3) colours through the control points."""
    rgb = np.array([[int(point[i : i + 2], 16) for i in (1, 3, 5)] for point in points])
    at = np.linspace(0, len(points) - 1, 256)
    return (
        np.stack([np.interp(at, np.arange(len(points)), channel) for channel in rgb.T], 1)
        .round()
        .astype(np.uint8)
    )


def _page(explanation: Explanation, panels: list[tuple[str, Pixels]], colours: Pixels) -> Image.Image:
    height, width = panels[0][1].shape[:2]
    column = max(width, PANEL)
    unit = column / PANEL

    def scaled(length: float) -> int:
        return round(length * unit)

    margin, top = scaled(18), scaled(86)
    blurred = _blurred(explanation)
    bottom = scaled(94 if blurred else 72)
    canvas = Image.new("RGB", (3 * column + 4 * margin, top + height + bottom), PAPER)
    write = functools.partial(_write, ImageDraw.Draw(canvas))
    inner = canvas.width - 2 * margin
    write((margin, scaled(12)), _title(explanation), scaled(25), INK, inner)
    verdict, colour = _verdict(explanation), CALM
    is_sound = explanation.complete and explanation.answered is None
    if not is_sound:
        canvas.paste(ALARM, (0, scaled(48), canvas.width, scaled(76)))
        colour = PAPER
    write((margin, scaled(55)), verdict, scaled(14), colour, inner)

    below = top + height + scaled(6)
    notes = [
        _runners_up(explanation),
        "",
        f"colours run from percentile {CLIP[0]:g} to {CLIP[1]:g} of the map",
    ]
    for i, ((name, pixels), note) in enumerate(zip(panels, notes, strict=True)):
        left = margin + i * (column + margin)
        if i and not is_sound:
            canvas.paste(ALARM, (left - 4, top - 4, left + width + 4, top + height + 4))
        canvas.paste(Image.fromarray(pixels), (left, top))
        write((left, below), name, scaled(14), INK, column)
        write((left, below + scaled(24)), note, scaled(12), GREY, column)
    left, bar = 2 * margin + column, below + scaled(26)
    ramp = Image.fromarray(np.ascontiguousarray(np.broadcast_to(colours, (scaled(12), 256, 3))))
    canvas.paste(ramp.resize((column, ramp.height)), (left, bar))
    write((left, bar + scaled(16)), "least relevant", scaled(12), GREY, column)
    write((left + column, bar + scaled(16)), "most relevant", scaled(12), GREY, column, anchor="ra")
    if blurred:
        write((margin, below + scaled(66)), blurred, scaled(14), INK, inner)
    return canvas


def _title(explanation: Explanation) -> str:
    class_name = f" · {explanation.class_name}" if explanation.class_name else ""
    return f"{_percent(explanation.probability)}  class {explanation.target}{class_name}"


def _percent(share: float) -> str:
    """Format with one decimal; shares that would round to 0 or 100 are "<0.1%" or ">99.9%"."""
    return "<0.1%" if 0 < share < 0.0005 else ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def _runners_up(explanation: Explanation) -> str:
    others = [(c, p) for c, p in explanation.top if c != explanation.target][:2]
    return "next: " + ", ".join(f"class {c} {_percent(p)}" for c, p in others) if others else ""


def _blurred(explanation: Explanation) -> str:
    if explanation.blurred is None:
        return ""
    return describe_blurred(explanation.target, explanation.probability, explanation.blurred)


def _verdict(explanation: Explanation) -> str:
    error = explanation.relative_error
    found = f"completeness error {error:.1e} of the logit" if error is not None else "the logit is 0"
    other = describe_answer(explanation.answered)
    if explanation.complete:
        places = explanation.held_places
        held = f", gates held at {places} place{'s' if places > 1 else ''}" if places else ""
        return f"{other}Complete{held}: {found}"
    more = len(explanation.unaccounted) - 1
    because = f" ({explanation.unaccounted[0]}{f', and {more} more' if more else ''})" if more >= 0 else ""
    return f"{other}INCOMPLETE, do not rely on this map: {found}{because}"


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: int,
    anchor: str = "la",
) -> None:
    """Draw one line, shortened to ``width`` pixels."""
    font = ImageFont.load_default(size=size)
    text = _drawable(text)[:width]
    if draw.textlength(text, font) > width:
        fits = bisect.bisect(
            range(len(text)), float(width), key=lambda n: draw.textlength(text[:n] + "…", font)
        )
        text = text[: max(fits - 1, 0)] + "…"
    draw.text(at, text, colour, font, anchor=anchor)


def _drawable(text: str) -> str:
    """Replace what Pillow's built-in font lacks; the text chunks and the facts keep the original text."""
    text = "".join(
        c for c in unicodedata.normalize("NFKD", text.replace("ß", "ss")) if not unicodedata.combining(c)
    )
    return "".join(c if (c.isascii() and c.isprintable()) or c in "·…" else "?" for c in text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _chunks(explanation: Explanation) -> PngImagePlugin.PngInfo:
    e = explanation
    chunks = PngImagePlugin.PngInfo()
    for name, value in {
        "Title": _title(e),
        "Description": _verdict(e),
        "Software": "Glassbox",
        "class": e.target,
        "probability": e.probability,
        "logit": e.logit,
        "completeness residual": e.residual,
        "sum of absolute terms": e.sum_abs,
        "share of terms without a place": e.unplaced_share,
        "complete": "yes" if e.complete else "no",
        "places with held gates": e.held_places,
        "request": e.request.get(REPLAY_EVENT_ID) or e.request.get("sha256") or "",
    }.items():
        chunks.add_text(name, _printable(str(value)))
    if e.blurred is not None:
        chunks.add_text("blurred", _blurred(e))
    if e.answered is not None:
        chunks.add_text("answered", _printable(str(e.answered)))
    return chunks
