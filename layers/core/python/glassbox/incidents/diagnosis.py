"""The diagnosis of an incident as JSON: written by diagnose_incident, read for the incident report."""

from typing import Annotated

import msgspec

from glassbox.errors import BadInputError

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
_Line = Annotated[str, msgspec.Meta(max_length=600)]
_Lines = Annotated[tuple[_Line, ...], msgspec.Meta(max_length=40)]
_Base64 = Annotated[str, msgspec.Meta(max_length=1 << 20, pattern=r"\A[A-Za-z0-9+/]*={0,2}\Z")]

DIAGNOSIS_BYTES = 8 << 20
LIKELY = 0.7  # a cause with a lower probability is not named
UNKNOWN = "unknown"


class Cause(msgspec.Struct, frozen=True):
    """A possible cause with its calibrated probability.

    ``evidence``: the observations for it, the strongest first.
    """

    name: _Line
    probability: _Share
    evidence: _Lines = ()


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What one repair did to the answers.

    Attributes:
        flagged: flagged inputs that were asked repaired; ``back`` of them no longer give the flagged answer.
        comparisons: comparison inputs that were asked; ``changed`` of them give another class.
        interval: of ``back / flagged``, 95 % (Wilson).
        counts: the repair brought back more than both controls, and changed the flagged more than the comparisons.
    """

    name: _Line
    flagged: _Number
    back: _Number
    comparisons: _Number
    changed: _Number
    interval: tuple[_Share, _Share]
    counts: bool = False

    def __str__(self) -> str:
        text = f"{self.name}: brought back {self.back} of {self.flagged} flagged"
        return text + (f" (comparisons {self.changed} of {self.comparisons})" if self.comparisons else "")


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A flagged input before and after the best repair, as base64 of PNG.

    Attributes:
        nearest: base64 of JPEGs, the most similar images of the reference, the most similar first.
    """

    name: _Line
    before: _Base64
    after: _Base64 = ""
    answer_before: _Line = ""
    answer_after: _Line = ""
    nearest: Annotated[tuple[_Base64, ...], msgspec.Meta(max_length=3)] = ()


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Why an incident happened.

    Attributes:
        causes: the possible ones, the most probable first.
        ruled_out: causes that an observation excludes, with it.
        repairs: the controls first.
        not_asked: repairs that the budget or the inputs left out, with the reason.
        missing: evidence that the diagnosis lacks, with the reason.
        affected: share of the window that the cause is about; None if not known.
        history: when it was first seen, and the last deployment before it.
        action: one recommended action, with its command.
        limits: one sentence on what the evidence does not prove.
        requests: that were sent to the endpoint.
    """

    causes: Annotated[tuple[Cause, ...], msgspec.Meta(max_length=20)]
    ruled_out: _Lines = ()
    repairs: Annotated[tuple[Repair, ...], msgspec.Meta(max_length=40)] = ()
    not_asked: _Lines = ()
    missing: _Lines = ()
    affected: _Share | None = None
    history: _Lines = ()
    examples: Annotated[tuple[Example, ...], msgspec.Meta(max_length=12)] = ()
    action: _Line = ""
    command: _Line = ""
    limits: _Line = ""
    requests: _Number = 0

    @property
    def cause(self) -> Cause | None:
        """The cause that the diagnosis names, None if it is unknown."""
        first = self.causes[0] if self.causes else None
        return first if first and first.name != UNKNOWN and first.probability >= LIKELY else None

    @property
    def headline(self) -> str:
        """One line for the first line of an e-mail."""
        if self.cause is None:
            return "Cause unknown" + (f": {self.missing[0]}" if self.missing else "")
        evidence = f": {self.cause.evidence[0]}" if self.cause.evidence else ""
        return f"Probable cause ({self.cause.probability:.0%}): {self.cause.name}{evidence}"


def write_diagnosis(diagnosis: Diagnosis) -> bytes:
    """Return the diagnosis as JSON."""
    return msgspec.json.format(msgspec.json.encode(diagnosis), indent=1)


def read_diagnosis(content: bytes) -> Diagnosis:
    """Read the JSON of :func:`write_diagnosis`.

    Raises:
        BadInputError: it is not a diagnosis, or too large.
    """
    if len(content) > DIAGNOSIS_BYTES:
        raise BadInputError(f"diagnosis: expected at most {DIAGNOSIS_BYTES} bytes, got {len(content)}")
    try:
        return msgspec.json.decode(content, type=Diagnosis)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"diagnosis: {error}") from error
