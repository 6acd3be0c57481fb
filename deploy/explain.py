"""Explain one image now: open an incident for it, and end it when the picture exists."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import RetryableError
from glassbox.incidents.events import COMMAND_DETAIL_TYPE
from glassbox.incidents.model import Incident, State
from glassbox.replay_marker import LIFETIME, TRACE, ReplayMarker, write_marker

OPERATOR = "glassbox.operator"
HOLD_MINUTES = 30
SWAP_SECONDS, PICTURE_SECONDS = 3600.0, 300.0
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".npy": "application/x-npy"}


def command(endpoint: str, action: str, session: boto3.Session, **detail: Any) -> None:
    """Send the stack an operator's command."""
    said = json.dumps({"endpoint": endpoint, "action": action} | detail)
    entry = {"Source": OPERATOR, "DetailType": COMMAND_DETAIL_TYPE, "Detail": said}
    session.client("events").put_events(Entries=[entry])


def explain(
    image: Path, outputs: dict[str, str], folder: Path, session: boto3.Session, say: Callable[[str], None]
) -> Path:
    """Explain an image file; return its picture in ``folder``, with the facts beside it.

    An open incident is used and left to its end; without one, an operator's is opened and aborted.

    Raises:
        DeployError: no endpoint takes such a file, the endpoint refuses it, or the incident fails.
    """
    kind = TYPES.get(image.suffix.lower())
    if kind is None or not image.is_file():
        raise DeployError(f"IMAGE: expected a file that ends in {', '.join(TYPES)}, got {image}")
    name = outputs["EndpointName"]
    incidents = IncidentsTable(session.client("dynamodb"), outputs["IncidentsTable"])
    before = incidents.current(name)
    opened = before is None or before.state is State.NORMAL
    if opened:
        say(f"swapping {name} to its hooked twin")
        command(name, "open", session, reason=f"an operator wants {image.name} explained")
    try:
        open_now = _wait(
            lambda: _going(incidents, name, before if opened else None),
            "the incident is open",
            PICTURE_SECONDS,
        )
        command(name, "extend", session, minutes=HOLD_MINUTES)
        _wait(lambda: _hooked(incidents, name), f"{name} serves the hooked model", SWAP_SECONDS)
        say(f"the hooked model serves; sending {image.name}")
        return _picture(image, kind, open_now, outputs, folder, session)
    finally:
        if opened:
            command(name, "abort", session)
            say(f"restoring {name} to {outputs['PlainConfig']}")


def _going(incidents: IncidentsTable, name: str, before: Incident | None) -> Incident | None:
    incident = incidents.current(name)
    if incident is None or (before is not None and incident.id == before.id):
        return None
    if incident.state is State.FAILED:
        raise DeployError(incident.failure)
    return incident


def _hooked(incidents: IncidentsTable, name: str) -> bool:
    incident = _going(incidents, name, None)
    if incident is None or incident.state in (State.RESTORING, State.NORMAL):
        raise DeployError(f"The incident of {name} has ended. Try again.")
    return incident.state is State.HOOKED


def _picture(
    image: Path, kind: str, incident: Incident, outputs: dict[str, str], folder: Path, session: boto3.Session
) -> Path:
    name, one = incident.endpoint, f"by-hand-{uuid.uuid4().hex[:12]}"
    if datetime.now(UTC) - incident.opened >= LIFETIME:
        raise DeployError(
            f"Incident {incident.id} was opened more than {LIFETIME.total_seconds() / 3600:g} hours ago: its replays "
            "are no longer valid. Abort it (docs/operations.md), then try again."
        )
    body = image.read_bytes()
    key = ReplayKey(session.client("kms"), outputs["ReplayKeyArn"])
    try:
        marker = write_marker(ReplayMarker(TRACE, incident.id, one), body, key.sign)
    except RetryableError as error:
        raise DeployError(
            f"{error}\n`make explain` needs kms:Sign with {outputs['ReplayKeyArn']}."
        ) from error
    try:
        session.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=name,
            ContentType=kind,
            Body=body,
            CustomAttributes=marker,
        )
    except ClientError as error:
        raise DeployError(f"{name} refuses {image}: {error.response['Error']['Message']}") from error
    s3, key = session.client("s3"), f"saliency/{name}/{incident.id}/{one}"
    found = {"Bucket": outputs["Bucket"], "Prefix": f"{key}.json"}
    _wait(lambda: s3.list_objects_v2(**found).get("KeyCount"), "the picture is there", PICTURE_SECONDS)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "png"):  # the facts are written last, so both are there
        s3.download_file(outputs["Bucket"], f"{key}.{suffix}", str(folder / f"{image.stem}.{suffix}"))
    return folder / f"{image.stem}.png"


def _wait(look: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise DeployError(f"Gave up after {seconds / 60:g} minutes of waiting until {what}.")
        time.sleep(2)
    return found
