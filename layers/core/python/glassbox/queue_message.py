"""The messages that a function's queue delivers: EventBridge events as JSON text."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from glassbox.errors import BadInputError
from glassbox.timestamps import parse_timestamp


class _Bucket(msgspec.Struct):
    name: str


class _Object(msgspec.Struct):
    key: str
    etag: str


class _ObjectCreated(msgspec.Struct):
    bucket: _Bucket
    object: _Object


class S3Object(msgspec.Struct, frozen=True):
    """One version of an S3 object."""

    bucket: str
    key: str
    etag: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def version(self) -> str:
        """What identifies the object's content."""
        return f"{self.bucket}/{self.key}#{self.etag}"


def read_event(body: str) -> dict[str, Any]:
    """Return the JSON object of a message.

    Raises:
        BadInputError: the body is not a JSON object.
    """
    try:
        event = json.loads(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInputError(f"message: expected a JSON object, {error}") from error
    if not isinstance(event, dict):
        raise BadInputError(f"message: expected a JSON object, got {type(event).__name__}")
    return event


def read_object(event: Mapping[str, Any]) -> S3Object:
    """Return the object of an S3 ``Object Created`` event.

    Raises:
        BadInputError: the event does not name an object.
    """
    try:
        created = msgspec.convert(event.get("detail"), _ObjectCreated)
    except ValueError as error:
        raise BadInputError(f"event {event.get('id')}: not an Object Created event: {error}") from error
    return S3Object(created.bucket.name, created.object.key, created.object.etag)


def event_time(event: Mapping[str, Any]) -> datetime:
    """Return the ``time`` of an event or a schedule's message, the same in every delivery.

    Raises:
        BadInputError: the event has no valid time.
    """
    try:
        return parse_timestamp(event["time"])
    except KeyError:
        raise BadInputError(
            f"event {event.get('id')}: time: expected an ISO 8601 timestamp, got none"
        ) from None
    except (TypeError, ValueError) as error:
        raise BadInputError(f"event {event.get('id')}: time: {error}") from error
