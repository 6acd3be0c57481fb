"""The open incident of each endpoint, in DynamoDB.

One item per endpoint: ``pk`` the endpoint, ``sk`` = ``open``. Its conditional write is what makes two violations
one incident.
"""

from dataclasses import fields
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from glassbox.errors import RetryableError
from glassbox.incident import Incident

_STEPS = {field.name for field in fields(Incident) if field.type is bool}


class IncidentsTable:
    """Through a boto3 ``dynamodb`` client. Every method raises RetryableError when DynamoDB does not answer."""

    def __init__(self, client: Any, table: str) -> None:
        self._client, self._table = client, table

    def open(self, incident: Incident) -> Incident:
        """Open ``incident`` unless one is open; returns the one that is open now."""
        item = {
            "pk": {"S": incident.endpoint},
            "sk": {"S": "open"},
            "id": {"S": incident.id},
            "reason": {"S": incident.reason},
            "opened": {"S": incident.opened.isoformat()},
        }
        try:
            self._client.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise RetryableError(str(error)) from error
        except BotoCoreError as error:
            raise RetryableError(str(error)) from error
        else:
            return incident
        current = self.current(incident.endpoint)
        if current is None:
            raise RetryableError(f"the open incident of {incident.endpoint} was closed meanwhile")
        return current

    def current(self, endpoint: str) -> Incident | None:
        """The open incident (a consistent read), or None."""
        try:
            item = self._client.get_item(
                TableName=self._table, Key={"pk": {"S": endpoint}, "sk": {"S": "open"}}, ConsistentRead=True
            ).get("Item")
        except (ClientError, BotoCoreError) as error:
            raise RetryableError(str(error)) from error
        if item is None:
            return None
        return Incident(
            endpoint=endpoint,
            id=item["id"]["S"],
            reason=item["reason"]["S"],
            opened=datetime.fromisoformat(item["opened"]["S"]),
            **{step: step in item for step in _STEPS},
        )

    def mark(self, incident: Incident, step: str) -> bool:
        """Record that a step of ``incident`` is done.

        Returns:
            Whether it was this call that recorded it; False too when another incident is open by now.
        """
        if step not in _STEPS:
            raise ValueError(f"{step} is no step of an incident: {', '.join(sorted(_STEPS))}")
        try:
            self._client.update_item(
                TableName=self._table,
                Key={"pk": {"S": incident.endpoint}, "sk": {"S": "open"}},
                UpdateExpression="SET #step = :done",
                ConditionExpression="id = :id AND attribute_not_exists(#step)",
                ExpressionAttributeNames={"#step": step},
                ExpressionAttributeValues={":done": {"BOOL": True}, ":id": {"S": incident.id}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise RetryableError(str(error)) from error
            return False
        except BotoCoreError as error:
            raise RetryableError(str(error)) from error
        return True
