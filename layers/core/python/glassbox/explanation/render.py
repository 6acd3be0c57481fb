"""One traced step in S3 -> its pictures in S3."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from glassbox.errors import BadInputError
from glassbox.explanation import fullgrad, heatmap, trace_reader
from glassbox.explanation.trace_format import REPLAY_EVENT_ID, REPLAY_INCIDENT
from glassbox.incidents.model import Incident
from glassbox.ports import IncidentsStore, Objects

_RUN = r"[A-Za-z0-9._=-]{1,128}"
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class Picture:
    """Where a picture was written (the facts lie beside it as ``.json``) and whether it is complete.

    ``refused`` is why there is none: it then lies in the place of the facts.
    """

    key: str
    complete: bool
    refused: str = ""


def render_step(
    index_key: str,
    *,
    bucket: str,
    endpoint: str,
    max_heatmaps: int,
    objects: Objects,
    incidents: IncidentsStore,
) -> list[Picture]:
    """Render every sample of the step that ``index_key`` announces.

    Rendering a step again writes the same objects again. A picture of a replay is named by the event id and lies under
    the incident of the marker that the hook has verified; nothing else of the request decides about either. A picture
    of live traffic is named by run and step, and lies under the open incident or ``live``.

    A replay ends in a picture or in a refusal: where its step cannot be read or explained, the reason is written in the
    place of the facts, ``{"refused": "…"}``, and the incident goes on. A refusal never replaces a picture.

    Args:
        max_heatmaps: an incident that has so many gets no further ones of live traffic; replays are always drawn, up
            to so many samples of one request.

    Raises:
        BadInputError: the key is none of this endpoint's, the objects are gone, or the step of live traffic (or one
            that does not name its request) cannot be read or explained; names key and reason.
        RetryableError: AWS does not answer.
    """
    match = re.fullmatch(rf"tensors/{re.escape(endpoint)}/({_RUN})/index/\d+/\d+_worker_0\.json", index_key)
    if match is None:
        raise BadInputError(f"{index_key}: not the index of a step of endpoint {endpoint}")
    index = trace_reader.read_index(index_key, objects.get(bucket, index_key))
    events = objects.get(bucket, index.events_key)
    replayed, sender = _replay(trace_reader.read_request(index, events))
    incident = incidents.current(endpoint)
    if incident and (incident.id != sender if sender else not incident.collects_live_traffic):
        incident = None
    folder = f"saliency/{endpoint}/{sender or (incident.id if incident else 'live')}"
    try:
        explanations = _explain(index, events)[:max_heatmaps]
    except BadInputError as error:
        if replayed is None:
            raise
        return [_refuse(f"{folder}/{replayed}", str(error), bucket, objects, incidents, incident, replayed)]
    if incident and not replayed:
        explanations = explanations[: max(0, max_heatmaps - len(incident.heatmaps))]
    drawn = []
    for explanation in explanations:
        name = replayed or f"{match[1]}-{explanation.step:06d}"
        if explanation.sample:
            name += f"-{explanation.sample}"
        objects.put(bucket, f"{folder}/{name}.png", heatmap.render(explanation), "image/png")
        if incident:
            incidents.add_heatmap(incident, name)
        # last: its arrival says that the picture is there and recorded
        facts = json.dumps(heatmap.facts(explanation), indent=2).encode()
        objects.put(bucket, f"{folder}/{name}.json", facts, "application/json")
        drawn.append(Picture(f"{folder}/{name}.png", explanation.complete))
    return drawn


def _explain(index: trace_reader.Index, events: bytes) -> list[fullgrad.Explanation]:
    step = trace_reader.read_trace(index, events)
    if step.meta.refused:
        raise BadInputError(f"the endpoint could not trace it: {step.meta.refused}")
    return fullgrad.explain(step)


def _refuse(
    stem: str,
    reason: str,
    bucket: str,
    objects: Objects,
    incidents: IncidentsStore,
    incident: Incident | None,
    name: str,
) -> Picture:
    if incident and name in incident.heatmaps:
        return Picture(f"{stem}.json", False, reason)
    if incident:
        incidents.add_refusal(incident, name)
    objects.put(bucket, f"{stem}.json", json.dumps({"refused": reason}).encode(), "application/json")
    return Picture(f"{stem}.json", False, reason)


def _replay(request: Mapping[str, str | None]) -> tuple[str | None, str | None]:
    """Event id and incident of a verified replay marker; both are None for live traffic."""
    event_id, incident = request.get(REPLAY_EVENT_ID), request.get(REPLAY_INCIDENT)
    # both stand in a key
    if event_id and incident and _ID.fullmatch(event_id) and _ID.fullmatch(incident):
        return event_id, incident
    return None, None
