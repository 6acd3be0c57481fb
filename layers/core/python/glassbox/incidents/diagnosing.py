"""Diagnose an incident: claim it, find the cause, record it, notify. :mod:`glassbox.diagnosis` finds the cause."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from glassbox.errors import BadInputError
from glassbox.incidents import decisions
from glassbox.incidents.decisions import BEGINS_WITHIN
from glassbox.incidents.model import Diagnosed, Incident, Outcome, Report
from glassbox.incidents.workflow import IncidentDependencies, record, retry_on_conflict
from glassbox.ports import Queue

# Lambda has ended an invocation that began earlier (its Timeout in template.yaml): another may begin.
EXPIRES = timedelta(minutes=12)


class DiagnosisRequest(msgspec.Struct, frozen=True):
    """The message that requests a diagnosis."""

    endpoint: str
    incident: str


def request_diagnosis(incident: Incident, *, diagnoses: Queue, confirmations: Queue) -> None:
    """Queue the diagnosis, and a sweep in a minute.

    The sweep notifies of the beginning if the diagnosis has not by then.

    Raises:
        RetryableError: a queue does not answer.
    """
    confirmations.send({"sweep": True}, BEGINS_WITHIN)
    diagnoses.send(msgspec.to_builtins(DiagnosisRequest(incident.endpoint, incident.id)))


def read_request(message: Mapping[str, Any]) -> DiagnosisRequest:
    """Return the request in a message.

    Raises:
        BadInputError: the message is none.
    """
    try:
        return msgspec.convert(message, DiagnosisRequest)
    except ValueError as error:  # of msgspec, or a lone surrogate
        raise BadInputError(f"message: expected endpoint and incident of a diagnosis: {error}") from error


@retry_on_conflict
def diagnose_incident(
    request: DiagnosisRequest,
    dependencies: IncidentDependencies,
    now: datetime,
    *,
    investigate: Callable[[Incident], Diagnosed],
    report: Callable[[Incident], Report],
) -> Outcome:
    """Diagnose the open or the last incident of an endpoint once.

    Args:
        investigate: finds the cause and writes the diagnosis.
        report: writes the incident report, again if the incident has ended meanwhile.

    Returns:
        DIAGNOSED, or NOT_DIAGNOSED: another invocation has done it or is doing it, a later incident was opened, or the
        incident is so old that its markers expire.

    Raises:
        RetryableError: the table, the topic, S3 or KMS does not answer.
    """
    incident = dependencies.incidents.current(request.endpoint)
    if incident is None or incident.id != request.incident:
        return Outcome.NOT_DIAGNOSED
    begun = decisions.begin_diagnosis(incident, EXPIRES, dependencies.context(now))
    if begun is None:
        return Outcome.NOT_DIAGNOSED
    made = investigate(record(incident, begun, dependencies))
    return _finish(request, made, dependencies, report=report)


@retry_on_conflict
def _finish(
    request: DiagnosisRequest,
    made: Diagnosed,
    dependencies: IncidentDependencies,
    *,
    report: Callable[[Incident], Report],
) -> Outcome:
    incident = dependencies.incidents.current(request.endpoint)
    if incident is None or incident.id != request.incident:
        return Outcome.NOT_DIAGNOSED
    decision = decisions.after_diagnosis(incident, made, dependencies.context(dependencies.clock()))
    if decision.incident.is_diagnosed_late and incident.report:
        report(decision.incident)
    record(incident, decision, dependencies)
    return Outcome.DIAGNOSED
