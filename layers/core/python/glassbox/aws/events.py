"""Our own events, on EventBridge's default bus."""

import json
from collections.abc import Mapping
from typing import Any

from glassbox.aws.errors import AWS_ERRORS, translate
from glassbox.errors import RetryableError


class Events:
    """Puts events through a boto3 ``events`` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, source: str, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Raises RetryableError when EventBridge does not take it (PutEvents may answer 200 and refuse)."""
        entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail)}
        try:
            answer = self._client.put_events(Entries=[entry])
        except AWS_ERRORS as error:
            raise translate(error, f"EventBridge did not take {detail_type!r}") from error
        if answer["FailedEntryCount"]:
            (refused,) = answer["Entries"]
            why = f"{refused.get('ErrorCode')}, {refused.get('ErrorMessage')}"
            raise RetryableError(f"EventBridge did not take {detail_type!r}: {why}")
