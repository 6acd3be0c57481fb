"""Explain one image: open an incident for it, and abort the incident when the heat map exists."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.incident import current_incident, send_command
from deploy.polling import poll
from deploy.stack import Outputs
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import RetryableError
from glassbox.incidents.model import Incident, State
from glassbox.replay_marker import LIFETIME, TRACE, ReplayMarker, write_marker

HOOKED_MINUTES = 30
SWAP_SECONDS, HEATMAP_SECONDS = 3600.0, 300.0
CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".npy": "application/x-npy",
}

T = TypeVar("T")


def explain(
    image: Path, outputs: Outputs, folder: Path, session: boto3.Session, report: Callable[[str], None]
) -> Path:
    """Explain an image file, and return its heat map in ``folder`` beside the JSON facts.

    An open incident is used and continues; otherwise one is opened and aborted.

    Args:
        report: called with a line of text per step.

    Raises:
        DeployError: the file has no supported type, the endpoint refuses it, or the incident fails.
    """
    content_type = CONTENT_TYPES.get(image.suffix.lower())
    if content_type is None or not image.is_file():
        raise DeployError(f"IMAGE: expected a file that ends in {', '.join(CONTENT_TYPES)}, got {image}")
    name = outputs.endpoint_name
    before = current_incident(outputs, session)
    opened = before is None or not before.is_open
    if opened:
        report(f"swapping {name} to its hooked twin")
        send_command(name, "open", session, reason=f"make explain: explain {image.name}")
    try:
        previous = before.id if opened and before else None
        incident = _wait(
            lambda: _open_incident(outputs, session, previous), "an open incident", HEATMAP_SECONDS
        )
        send_command(name, "extend", session, minutes=HOOKED_MINUTES)
        _wait(lambda: _is_hooked(outputs, session), f"{name} on its hooked twin", SWAP_SECONDS)
        report(f"sending {image.name} to the hooked twin")
        return _heatmap(image, content_type, incident, outputs, folder, session)
    finally:
        if opened:
            send_command(name, "abort", session)
            report(f"restoring {name} to {outputs.plain_config}")


def _open_incident(outputs: Outputs, session: boto3.Session, previous: str | None) -> Incident | None:
    """Return the incident unless its id is ``previous``. Raises DeployError for a failed one."""
    incident = current_incident(outputs, session)
    if incident is None or incident.id == previous:
        return None
    if incident.state is State.FAILED:
        raise DeployError(f"Incident {incident.id} failed: {incident.failure}")
    return incident


def _is_hooked(outputs: Outputs, session: boto3.Session) -> bool:
    incident = _open_incident(outputs, session, None)
    if incident is None or incident.state in (State.RESTORING, State.NORMAL):
        raise DeployError(
            f"Endpoint {outputs.endpoint_name}: the incident was closed before the swap. Retry."
        )
    return incident.state is State.HOOKED


def _heatmap(
    image: Path,
    content_type: str,
    incident: Incident,
    outputs: Outputs,
    folder: Path,
    session: boto3.Session,
) -> Path:
    """Send the image as a replay of the incident, and download heat map and facts."""
    name, replay = incident.endpoint, f"operator-{uuid.uuid4().hex[:12]}"
    if datetime.now(UTC) - incident.opened >= LIFETIME:
        raise DeployError(
            f"Incident {incident.id}: expected at most {LIFETIME.total_seconds() / 3600:g} hours since it opened, "
            f"got {incident.opened:%Y-%m-%dT%H:%MZ}: its replays have expired. Abort it (docs/operations.md), then "
            "retry."
        )
    body = image.read_bytes()
    key = ReplayKey(session.client("kms"), outputs.replay_key_arn)
    try:
        marker = write_marker(ReplayMarker(TRACE, incident.id, replay), body, key.sign)
    except RetryableError as error:
        raise DeployError(f"{error}\nAllow kms:Sign with {outputs.replay_key_arn}, then retry.") from error
    try:
        session.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=name, ContentType=content_type, Body=body, CustomAttributes=marker
        )
    except ClientError as error:
        raise DeployError(
            f"IMAGE: endpoint {name} refuses {image}: {error.response['Error']['Message']}"
        ) from error
    s3, prefix = session.client("s3"), f"saliency/{name}/{incident.id}/{replay}"

    def rendered() -> bool:
        return bool(s3.list_objects_v2(Bucket=outputs.bucket, Prefix=f"{prefix}.json").get("KeyCount"))

    _wait(rendered, "the heat map", HEATMAP_SECONDS)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "png"):  # render_saliency writes the JSON last, so the PNG exists too
        s3.download_file(outputs.bucket, f"{prefix}.{suffix}", str(folder / f"{image.stem}.{suffix}"))
    return folder / f"{image.stem}.png"


def _wait(read: Callable[[], T | None], expected: str, seconds: float) -> T:
    found = poll(read, seconds)
    if not found:
        raise DeployError(f"Timeout: expected {expected}, got none within {seconds / 60:g} minutes. Retry.")
    return found
