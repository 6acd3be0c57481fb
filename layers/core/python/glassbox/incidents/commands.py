"""An operator's event -> the incident changed, a pause, a drill, or an answer to what was not understood.

Every stack of an account gets the events of all operators. One about another endpoint is left to that one's stack; a
mistyped name is answered by the stacks whose endpoint is called alike.
"""

import difflib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from glassbox.errors import BadInputError, printable
from glassbox.incidents import notifications
from glassbox.incidents.events import COMMAND_DETAIL_TYPE, read_command
from glassbox.incidents.model import Outcome
from glassbox.incidents.workflow import IncidentDependencies, apply_command, report_once

ALIKE = 0.75
"""Similarity of two names, 0..1 (Ratcliff and Obershelp), from which one may be a mistyped form of the other."""

_GIVEN_CHARACTERS, _REASON_CHARACTERS = 80, 300


def handle_command(
    event: Mapping[str, Any],
    endpoint: str,
    dependencies: IncidentDependencies,
    now: datetime,
    *,
    exists: Callable[[str], bool],
) -> Outcome:
    """Carry out an operator's event, or answer it once.

    Args:
        endpoint: of this stack.
        exists: returns whether the account has an endpoint of this name.

    Raises:
        RetryableError: the table, the topic or SageMaker does not answer.
    """
    detail = event.get("detail")
    given = detail if isinstance(detail, Mapping) else {}
    name, action = given.get("endpoint"), given.get("action")
    if name != endpoint:
        if not isinstance(name, str):
            return _answer(event, endpoint, "it names no endpoint", dependencies)
        if not _are_alike(name, endpoint) or exists(name):
            return Outcome.OF_ANOTHER
        reason = f"endpoint {printable(name, _GIVEN_CHARACTERS)} does not exist"
        return _answer(event, endpoint, reason, dependencies)
    if event.get("detail-type") != COMMAND_DETAIL_TYPE:
        found = printable(str(event.get("detail-type")), _GIVEN_CHARACTERS)
        return _answer(event, endpoint, f"it has detail type {found}", dependencies)
    if action == "open":  # a rule of its own sends it to swap_endpoint
        return Outcome.OPEN
    try:
        command = read_command(event)
    except BadInputError as error:
        return _answer(event, endpoint, printable(error, _REASON_CHARACTERS), dependencies)
    if command.action == "drill":
        report_once(endpoint, f"drill {_id(event)}", notifications.drill(endpoint), dependencies)
        return Outcome.DRILL
    if command.action in ("pause", "resume"):
        dependencies.incidents.pause(endpoint, command.until, command.at)
        return Outcome.PAUSED if command.action == "pause" else Outcome.RESUMED
    return apply_command(command, dependencies, now)


def _answer(
    event: Mapping[str, Any], endpoint: str, reason: str, dependencies: IncidentDependencies
) -> Outcome:
    notice = notifications.not_understood(endpoint, reason, dependencies.configs)
    report_once(endpoint, f"command {_id(event)}", notice, dependencies)
    return Outcome.NOT_UNDERSTOOD


def _id(event: Mapping[str, Any]) -> str:
    return printable(str(event.get("id")), _GIVEN_CHARACTERS)


def _are_alike(one: str, other: str) -> bool:
    compare = difflib.SequenceMatcher(None, one[:_GIVEN_CHARACTERS].lower(), other.lower())
    return compare.ratio() >= ALIKE
