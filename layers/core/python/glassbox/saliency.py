"""One traced step in S3 -> its pictures in S3."""

import json
import re
from dataclasses import dataclass
from typing import Protocol

from glassbox import fullgrad, picture, trace
from glassbox.errors import BadInputError
from glassbox.incident import Incidents
from glassbox.tensor_names import REPLAY_ATTRIBUTE

_RUN = r"[A-Za-z0-9._=-]{1,128}"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,63}")


class Objects(Protocol):
    """See :class:`glassbox.aws.objects.Objects`."""

    def get(self, bucket: str, key: str) -> bytes: ...
    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> None: ...


@dataclass(frozen=True)
class Picture:
    """Where a picture was written (the facts lie beside it as ``.json``) and whether it may be believed."""

    key: str
    faithful: bool


def render_step(
    index_key: str, *, bucket: str, endpoint: str, pictures: int, objects: Objects, incidents: Incidents
) -> list[Picture]:
    """Render every sample of the step that ``index_key`` announces.

    Rendering a step again writes the same objects again. A picture is named by the id of the captured request
    it replays or, for live traffic, by run and step; it lies under the open incident, or ``live``.

    Args:
        pictures: an incident that has so many gets no further ones of live traffic; replays are always drawn.

    Raises:
        BadInputError: the key is none of this endpoint's, or the step cannot be read (names key and reason).
        RetryableError: AWS does not answer.
    """
    match = re.fullmatch(rf"tensors/{re.escape(endpoint)}/({_RUN})/index/\d+/\d+_worker_0\.json", index_key)
    if match is None:
        raise BadInputError(f"{index_key}: not the index of a step of endpoint {endpoint}")
    index = trace.read_index(index_key, objects.get(bucket, index_key))
    step = trace.read_trace(index, objects.get(bucket, index.events_key))
    incident = incidents.current(endpoint)
    incident = incident if incident is not None and incident.is_open else None
    replayed = _replayed(step.meta.request.get("custom_attributes"))
    if incident and not replayed and len(incident.pictures) >= pictures:
        return []
    folder = f"saliency/{endpoint}/{incident.id if incident else 'live'}"
    drawn = []
    for explanation in fullgrad.explain(step):
        name = replayed or f"{match[1]}-{explanation.step:06d}"
        if explanation.sample:
            name += f"-{explanation.sample}"
        objects.put(bucket, f"{folder}/{name}.png", picture.render(explanation), "image/png")
        if incident:
            incidents.add_picture(incident, name)
        # last: its arrival says that the picture is there and recorded
        facts = json.dumps(picture.facts(explanation), indent=2).encode()
        objects.put(bucket, f"{folder}/{name}.json", facts, "application/json")
        drawn.append(Picture(f"{folder}/{name}.png", explanation.faithful))
    return drawn


def _replayed(custom_attributes: str | None) -> str | None:
    """The id in ``glassbox-replay=<id>``, if it is one that may stand in a key."""
    for attribute in (custom_attributes or "").split(","):
        name, _, value = attribute.strip().partition("=")
        if name == REPLAY_ATTRIBUTE and _ID.fullmatch(value):
            return value
    return None
