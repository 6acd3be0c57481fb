"""The messages that a function's queue delivers: EventBridge events as JSON text."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from glassbox.errors import BadInputError
from glassbox.monitoring.capture import moment


def read_event(body: str) -> dict[str, Any]:
    """Return the JSON object of a message.

    Raises:
        BadInputError: the body is no JSON object.
    """
    try:
        event = json.loads(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInputError(f"message: expected a JSON object, {error}") from error
    if not isinstance(event, dict):
        raise BadInputError(f"message: expected a JSON object, got {type(event).__name__}")
    return event


def object_key(event: Mapping[str, Any]) -> str:
    """Return the key of an S3 ``Object Created`` event.

    Raises:
        BadInputError: the event names no object.
    """
    try:
        key = event["detail"]["object"]["key"]
    except (KeyError, TypeError) as error:
        raise BadInputError(f"event {event.get('id')}: not the event of an object, {error!r}") from error
    if not isinstance(key, str):
        raise BadInputError(f"event {event.get('id')}: object.key: expected text, got {key!r}")
    return key


def event_time(event: Mapping[str, Any]) -> datetime:
    """Return the time of an EventBridge event, in UTC. It is the same in every delivery.

    Raises:
        BadInputError: the event has none.
    """
    try:
        return moment(event["time"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"event {event.get('id')}: time: expected ISO 8601 text, {error!r}") from error
