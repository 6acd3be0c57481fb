"""Find the cause of an incident: its captured inputs, the endpoint's answers to repaired copies, the reference.

A repaired input is a request with a signed marker of purpose ``repair``: it is not counted, and the hooked model does
not trace it.
"""

import base64
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from glassbox.diagnosis.diagnosis import (
    NO_REFERENCE,
    Answer,
    InputImage,
    Limits,
    StoppedError,
    Window,
    diagnose,
)
from glassbox.diagnosis.onset import Update, onset, update
from glassbox.diagnosis.reference import REFERENCE_BYTES, Reference, read_reference
from glassbox.errors import BadInputError, RetryableError, printable
from glassbox.incidents.diagnosis import write_diagnosis
from glassbox.incidents.model import Diagnosed, Incident, Request
from glassbox.incidents.replay import Input, ReplayDependencies, captured_inputs, variants_of
from glassbox.monitoring import counts
from glassbox.monitoring.response import UnreadableError
from glassbox.ports import CountsStore, Objects
from glassbox.replay_marker import REPAIR, ReplayMarker, write_marker
from glassbox.settings import setting

CONTENT_TYPE = "application/json"
LOOKED_BACK = timedelta(hours=24)  # before the window, for when the violation was first seen


@dataclass(frozen=True, kw_only=True)
class DiagnosisSettings:
    """What a diagnosis may cost.

    Attributes:
        diagnose_minutes: after which it sends no more requests.
        max_repair_requests: requests that it sends.
        reference: S3 URI of the reference, empty without one.
        model_fingerprint: sha256 of the endpoint's model archive in hex, empty if not known.
    """

    diagnose_minutes: float = setting(5.0, within=(1, 10))
    max_repair_requests: int = setting(96, within=(8, 1000))
    reference: str = ""
    model_fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class InvestigationDependencies:
    """Dependencies of an investigation."""

    settings: DiagnosisSettings
    replays: ReplayDependencies
    counts: CountsStore
    bucket: str
    clock: Callable[[], float] = time.monotonic


def investigate(incident: Incident, dependencies: InvestigationDependencies) -> Diagnosed:
    """Find the cause of an incident, and write its ``diagnosis.json``.

    The key is ``incidents/<endpoint>/<incident>/diagnosis.json``.

    A reference that cannot be read, or is of another model, is named in the diagnosis, which then does without.

    Raises:
        RetryableError: S3, KMS or the counts table does not answer. An endpoint that does not ends the questions.
    """
    replays, settings = dependencies.replays, dependencies.settings
    reference, problem = _reference(settings, replays.captures)
    inputs = captured_inputs(incident, replays, reference.surprises if reference else None)
    slots = _slots(incident, dependencies)
    first_seen = onset(slots, incident.cause)
    modified = incident.endpoint_modified
    last_update = update(modified, first_seen, len(slots)) if modified else None
    diagnosis = diagnose(
        _window(incident, slots, last_update, dependencies),
        [_input_image(one) for one in inputs],
        _Ask(incident, inputs, dependencies),
        reference,
        Limits(max_requests=settings.max_repair_requests),
    )
    diagnosis = msgspec.structs.replace(
        diagnosis, history=tuple(str(line) for line in (first_seen, last_update) if line)
    )
    if problem:
        others = (line for line in diagnosis.missing if line != NO_REFERENCE)
        diagnosis = msgspec.structs.replace(diagnosis, missing=(problem, *others))
    key = f"incidents/{incident.endpoint}/{incident.id}/diagnosis.json"
    replays.captures.put(dependencies.bucket, key, write_diagnosis(diagnosis), CONTENT_TYPE)
    return Diagnosed(f"s3://{dependencies.bucket}/{key}", diagnosis.headline)


def _reference(settings: DiagnosisSettings, objects: Objects) -> tuple[Reference | None, str]:
    """Return the reference, or None and why it is missing."""
    if not settings.reference:
        return None, ""
    bucket, _, key = settings.reference.removeprefix("s3://").partition("/")
    try:
        found = read_reference(objects.get(bucket, key, at_most=REFERENCE_BYTES))
    except BadInputError as error:
        return None, f"the reference cannot be used: {printable(error, 300)}"
    if found.model and settings.model_fingerprint and found.model != settings.model_fingerprint:
        return None, (
            f"the reference cannot be used: it is of model {printable(found.model[:12], 12)}, the endpoint's is "
            f"{settings.model_fingerprint[:12]} (sha256). Make one of its captures (make baseline)"
        )
    return found, ""


def _slots(incident: Incident, dependencies: InvestigationDependencies) -> dict[datetime, counts.Counts]:
    """Return the counts per slot, of all variants together, of the window and LOOKED_BACK before it."""
    cause = incident.cause
    span = counts.Window(cause.window_start - LOOKED_BACK, cause.window_end)
    slots: dict[datetime, counts.Counts] = {}
    for variant in variants_of(cause, dependencies.replays):
        for start, found in dependencies.counts.read(f"{incident.endpoint}/{variant}", span).items():
            slots[start] = counts.total((slots.get(start, counts.Counts()), found))
    return slots


def _window(
    incident: Incident,
    slots: dict[datetime, counts.Counts],
    last_update: Update | None,
    dependencies: InvestigationDependencies,
) -> Window:
    cause = incident.cause
    span = counts.Window(cause.window_start, cause.window_end)
    return Window(
        violation=cause,
        counts=counts.total(found for start, found in slots.items() if start in span),
        low_confidence=dependencies.replays.settings.low_confidence,
        update=last_update,
    )


def _input_image(one: Input) -> InputImage:
    return InputImage(
        key=one.event_id,
        body=one.body,
        content_type=one.content_type,
        answer=Answer(one.predicted_class, one.confidence),
        flagged=one.flagged,
    )


class _Ask:
    """Sends one request at a time to the endpoint of an incident."""

    def __init__(
        self, incident: Incident, inputs: list[Input], dependencies: InvestigationDependencies
    ) -> None:
        self._incident, self._replays = incident, dependencies.replays
        self._parser = self._replays.settings.parser()
        self._variant = incident.cause.variant or (inputs[0].variant if inputs else "")
        self._clock = dependencies.clock
        self._end = self._clock() + 60 * dependencies.settings.diagnose_minutes
        self._minutes = dependencies.settings.diagnose_minutes
        self._numbers = itertools.count(1)

    def __call__(self, body: bytes, content_type: str) -> Answer:
        """Return the endpoint's answer; one without a class if the model refuses the body or the answer is unreadable.

        Raises:
            StoppedError: the time is over, or the endpoint does not answer.
        """
        if self._clock() >= self._end:
            raise StoppedError(f"{self._minutes:g} minutes are over")
        try:
            response = self._replays.runtime.invoke(
                self._incident.endpoint, self._request(body, content_type)
            )
        except BadInputError:
            return Answer(None, None)
        except RetryableError as error:
            raise StoppedError(f"the endpoint does not answer: {error}") from error
        try:
            found = self._parser.read(
                base64.b64encode(response.body).decode(), "BASE64", response.content_type
            )
        except UnreadableError:
            return Answer(None, None)
        return Answer(found[0].predicted_class, found[0].confidence) if found else Answer(None, None)

    def _request(self, body: bytes, content_type: str) -> Request:
        event_id = f"repair-{next(self._numbers)}"
        marker = write_marker(ReplayMarker(REPAIR, self._incident.id, event_id), body, self._replays.key.sign)
        return Request(event_id, self._variant, body, content_type, marker)
