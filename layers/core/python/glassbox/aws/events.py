"""The events of Glassbox, on EventBridge's default bus."""

import json
from collections.abc import Mapping
from typing import Any

from glassbox.aws.errors import translated
from glassbox.errors import RetryableError


class Events:
    """Puts events through a boto3 ``events`` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, source: str, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Publish one event.

        Raises:
            RetryableError: EventBridge refuses the event, which it may do in a response with status 200.
        """
        entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail)}
        what = f"{detail_type!r} event was not published"
        with translated(what):
            answer = self._client.put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            (refused,) = answer["Entries"]
            raise RetryableError(f"{what}: {refused.get('ErrorCode')}, {refused.get('ErrorMessage')}")
