"""What a stack's endpoint serves, its incident, and how much traffic its windows have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import DeployError
from deploy.incident import current_incident
from deploy.stack import Outputs, Stack
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.errors import printable
from glassbox.incidents.model import DELETED, EndpointState, Incident
from glassbox.monitoring.counts import SLOT, Window, slot_start, total

_DEFAULTS = {"WindowHours": "1", "MinPredictions": "50"}
_REPORT_BYTES = 64 << 20


def status_lines(stack: Stack, session: boto3.Session, now: datetime) -> Iterator[str]:
    """Yield the lines of ``make status``.

    Raises:
        GlassboxError: AWS refuses a call.
    """
    outputs = stack.outputs
    sagemaker = session.client("sagemaker")
    live = SageMakerEndpoint(sagemaker).describe(outputs.endpoint_name)
    yield f"Endpoint {outputs.endpoint_name}: {_serves(live, outputs)}"
    yield from _incident_lines(current_incident(outputs, session))
    paused = IncidentsTable(session.client("dynamodb"), outputs.incidents_table).paused_until(
        outputs.endpoint_name
    )
    if paused and now < paused:
        yield f"Paused until {paused:%Y-%m-%d %H:%M} UTC: a violation opens no incident (make resume ends it)"
    if live.status != DELETED:
        variants = sagemaker.describe_endpoint(EndpointName=outputs.endpoint_name)["ProductionVariants"]
        names = [variant["VariantName"] for variant in variants]
        yield from _traffic_lines(names, stack, session, now)


def _serves(live: EndpointState, outputs: Outputs) -> str:
    if live.status == DELETED:
        return "does not exist"
    known = {outputs.plain_config: "its plain config", outputs.hooked_config: "its hooked twin"}
    what = known.get(live.config, "neither the plain config nor the twin of the stack: run make twin")
    failure = f". The last update failed: {live.failure}" if live.failure else ""
    return f"{live.status}, serves {live.config} ({what}){failure}"


def _incident_lines(incident: Incident | None) -> Iterator[str]:
    if incident is None:
        yield "Incident: none so far"
        return
    since = f"{incident.since:%Y-%m-%d %H:%M} UTC"
    if incident.is_open:
        yield f"Incident {incident.id}: {incident.state} since {since}"
        if incident.deadline:
            yield f"  the endpoint is restored at {incident.deadline:%H:%M} UTC at the latest"
    else:
        yield f"Incident: none is open; the last one, {incident.id}, ended {since}"
    yield f"  {incident.cause.reason}"
    if incident.why:
        yield f"  {incident.why}"
    if incident.report:
        yield f"  report: {incident.report} (make report)"


def _traffic_lines(variants: list[str], stack: Stack, session: boto3.Session, now: datetime) -> Iterator[str]:
    parameters = _DEFAULTS | {name: value for name, value in stack.parameters.items() if value}
    hours, fewest = int(parameters["WindowHours"]), int(parameters["MinPredictions"])
    end = slot_start(now) + SLOT
    window = Window(end - timedelta(hours=hours), end)
    table = CountsTable(session.client("dynamodb"), stack.outputs.counts_table)
    for variant in variants:
        counted = total(table.read(f"{stack.outputs.endpoint_name}/{variant}", window).values()).sample_size
        note = "" if counted >= fewest else f"; too few to be checked, at least {fewest} (MinPredictions)"
        yield (
            f"Variant {variant}: {counted:,} predictions counted in the last "
            f"{'hour' if hours == 1 else f'{hours} hours'}{note}"
        )


def save_report(outputs: Outputs, folder: Path, session: boto3.Session) -> Path:
    """Save the report of the open or the last incident as ``<folder>/<incident>.html``.

    Raises:
        DeployError: there is none, or S3 refuses.
    """
    incident = current_incident(outputs, session)
    if incident is None or not incident.report:
        why = f"incident {incident.id} has none yet" if incident else "no incident so far"
        if incident and incident.unreported:
            why = f"incident {incident.id} has none: {incident.unreported}"
        raise DeployError(f"Endpoint {outputs.endpoint_name}: expected an incident report, got none: {why}.")
    bucket, _, key = incident.report.removeprefix("s3://").partition("/")
    s3: Any = session.client("s3")
    try:
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read(_REPORT_BYTES)
    except ClientError as error:
        raise DeployError(f"{incident.report}: {printable(error)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{incident.id}.html"
    file.write_bytes(body)
    return file
