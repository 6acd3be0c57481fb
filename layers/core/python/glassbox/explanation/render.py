"""Render one traced step in S3: a heat map and its facts for every sample."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from glassbox.errors import BadInputError
from glassbox.explanation import fullgrad, heatmap, trace_reader
from glassbox.explanation.answers import compare
from glassbox.explanation.facts import Refusal, to_json
from glassbox.explanation.trace_format import REPLAY_EVENT_ID, REPLAY_INCIDENT
from glassbox.incidents.model import Incident
from glassbox.monitoring.response import ResponseParser
from glassbox.ports import IncidentsStore, Objects

_RUN = r"[A-Za-z0-9._=-]{1,128}"
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class Rendered:
    """The key of a sample's heat map, or the key of its refusal and the reason."""

    key: str
    complete: bool
    refused: str = ""


def render_step(
    index_key: str,
    *,
    bucket: str,
    endpoint: str,
    max_heatmaps: int,
    palette: str = heatmap.PERCEPTUAL,
    responses: ResponseParser,
    objects: Objects,
    incidents: IncidentsStore,
) -> list[Rendered]:
    """Render every sample of the step that has this index.

    Rendering a step again writes the same objects again. A verified replay marker alone decides the name and the folder
    of a replay's heat map: its event id, and its incident. A heat map of live traffic is named by run and step; its
    folder is the open incident's or ``live``.

    A replay ends in a heat map or in a refusal: where its step cannot be read or explained, ``{"refused": "<reason>"}``
    is written in place of the facts, and the incident no longer waits for it. A refusal never replaces a heat map.

    Args:
        max_heatmaps: an incident with this many heat maps gets no further ones of live traffic. Replays are always
            rendered, at most this many samples of one request.
        palette: one of :data:`glassbox.explanation.heatmap.PALETTES`.
        responses: reads the endpoint's responses, to mark a heat map of another class than the answered one.

    Raises:
        BadInputError: the key is not an index of this endpoint, an object is missing, or a step of live traffic (or
            one without a readable request) cannot be read or explained; names key and reason.
        RetryableError: AWS does not answer.
    """
    match = re.fullmatch(rf"tensors/{re.escape(endpoint)}/({_RUN})/index/\d+/\d+_worker_0\.json", index_key)
    if match is None:
        raise BadInputError(
            f"{index_key}: expected the index of a step of endpoint {endpoint}, got another key"
        )
    index = trace_reader.read_index(index_key, objects.get(bucket, index_key))
    events = objects.get(bucket, index.events_key)
    event_id, sender = _replay(trace_reader.read_request(index, events))
    incident = _receiving(incidents.current(endpoint), sender)
    folder = f"saliency/{endpoint}/{sender or (incident.id if incident else 'live')}"
    try:
        explanations = _explain(index, events, responses)[:max_heatmaps]
    except BadInputError as error:
        if event_id is None:
            raise
        key = f"{folder}/{event_id}.json"
        if incident is None or event_id not in incident.heatmaps:
            if incident:
                incidents.add_refusal(incident, event_id)
            objects.put(bucket, key, to_json(Refusal(str(error))), "application/json")
        return [Rendered(key, False, str(error))]
    if incident and not event_id:
        explanations = explanations[: max(0, max_heatmaps - len(incident.heatmaps))]
    rendered = []
    for explanation in explanations:
        name = event_id or f"{match[1]}-{explanation.step:06d}"
        if explanation.sample:
            name += f"-{explanation.sample}"
        objects.put(bucket, f"{folder}/{name}.png", heatmap.render(explanation, palette), "image/png")
        objects.put(bucket, f"{folder}/{name}.webp", heatmap.preview(explanation, palette), "image/webp")
        if incident:
            incidents.add_heatmap(incident, name)
        # Last: the arrival of the facts starts what needs the heat map and its record.
        facts = to_json(heatmap.facts(explanation))
        objects.put(bucket, f"{folder}/{name}.json", facts, "application/json")
        rendered.append(Rendered(f"{folder}/{name}.png", explanation.complete))
    return rendered


def _explain(
    index: trace_reader.Index, events: bytes, responses: ResponseParser
) -> list[fullgrad.Explanation]:
    trace = trace_reader.read_trace(index, events)
    if trace.meta.refused:
        raise BadInputError(f"the endpoint could not trace it: {trace.meta.refused}")
    return compare(fullgrad.explain(trace), trace, responses)


def _receiving(current: Incident | None, sender: str | None) -> Incident | None:
    """Return the current incident if its heat maps include these: its own replays, or live traffic it collects."""
    if current and (current.id == sender if sender else current.collects_live_traffic):
        return current
    return None


def _replay(request: Mapping[str, str | None]) -> tuple[str | None, str | None]:
    """Return event id and incident of a verified replay marker; None and None for live traffic."""
    event_id, incident = request.get(REPLAY_EVENT_ID), request.get(REPLAY_INCIDENT)
    # Both become parts of a key.
    if event_id and incident and _ID.fullmatch(event_id) and _ID.fullmatch(incident):
        return event_id, incident
    return None, None
