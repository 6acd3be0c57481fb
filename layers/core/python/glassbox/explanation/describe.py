"""Describe an explanation for a terminal."""

from collections.abc import Iterator

from glassbox.explanation.facts import describe_blurred
from glassbox.explanation.fullgrad import Explanation

LISTED = 60  # terms


def describe(e: Explanation) -> str:
    """Return the class, how complete the terms are, and what the blur test measured."""
    parts = [f"class {_class(e)}, probability {e.probability:.1%}", completeness(e)]
    if e.blurred is not None:
        parts.append(describe_blurred(e.target, e.probability, e.blurred))
    return "; ".join(parts)


def completeness(e: Explanation) -> str:
    """Return whether the terms add up to the logit, with the error and the held places."""
    verdict = "complete" if e.complete else "INCOMPLETE"
    if e.held_places:
        verdict += f", gates held at {e.held_places} place{'s' * (e.held_places > 1)}"
    return f"{verdict}, error {_of(e.residual, e.logit)} of the logit and {_of(e.residual, e.sum_abs)} of Σ|terms|"


def details(e: Explanation) -> Iterator[str]:
    """Yield the sum, the blur test, the held coefficients and the terms, a line each."""
    yield (
        f"Completeness: sum of contributions: {e.total:.6g}, {_of(e.residual, e.logit)} of the logit and "
        f"{_of(e.residual, e.sum_abs)} of Σ|terms| away: {'complete' if e.complete else 'INCOMPLETE'}"
    )
    if e.blurred is not None:
        yield f"Blur test: {describe_blurred(e.target, e.probability, e.blurred)}"
    if e.held:
        held = ", ".join(f"{rule} {places}" for rule, places in sorted(e.held.items()))
        yield f"Held coefficients: {held}"
    yield f"{len(e.layers)} terms, with their share of Σ|terms|:"
    for layer in e.layers[:LISTED]:
        yield f"  {layer.name:32} {layer.type:20} {layer.share:6.1%}"
    if len(e.layers) > LISTED:
        yield f"  and {len(e.layers) - LISTED} more"


def warnings(e: Explanation) -> Iterator[str]:
    """Yield a line for each reason why the explanation is not complete, or not of the answer."""
    if e.answered is not None:
        yield (
            f"WARNING: the response gives class {e.answered}, the network {e.target}. The heat map explains the "
            "network's class."
        )
    if e.not_compared:
        yield f"WARNING: not compared with the response: {e.not_compared}"
    for part in e.unaccounted:
        yield f"WARNING: the sum may miss a part: {part}"
    if not e.complete and not e.unaccounted:
        yield "WARNING: the sum differs from the logit for an unknown reason. Its heat maps will be marked INCOMPLETE."


def _class(e: Explanation) -> str:
    return f"{e.target} ({e.class_name})" if e.class_name else f"{e.target}"


def _of(residual: float, whole: float) -> str:
    return f"{residual / max(abs(whole), 1e-300):.1e}"
