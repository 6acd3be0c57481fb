"""The control plane's resources by kind and name, with AWS's errors for missing and existing ones."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

from local.sagemaker.errors import invalid
from local.sagemaker.platform import Platform

Record = dict[str, Any]

# The word for each kind in AWS's errors, and the member with its name.
KINDS = {
    "model": ("model", "ModelName"),
    "endpoint-config": ("endpoint configuration", "EndpointConfigName"),
    "endpoint": ("endpoint", "EndpointName"),
    "monitoring-schedule": ("monitoring schedule", "MonitoringScheduleName"),
}

_SUMMARY = ("CreationTime", "LastModifiedTime", "EndpointStatus", "MonitoringScheduleStatus")


class Records:
    """The requests that created the resources, with ARNs and times, guarded by `lock`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.lock = threading.RLock()
        self._records: dict[str, dict[str, Record]] = {kind: {} for kind in KINDS}
        self._tags: dict[str, dict[str, str]] = {}

    def add(self, kind: str, request: Record, **more: Any) -> Record:
        """Add and return a record, or raise ValidationException if its name exists."""
        word, member = KINDS[kind]
        arn = self._platform.arn(kind, request[member])
        with self.lock:
            if request[member] in self._records[kind]:
                raise invalid(f'Cannot create already existing {word} "{arn}".')
            record = {k: v for k, v in copy.deepcopy(request).items() if k != "Tags"}
            record |= {arn_member(kind): arn, "CreationTime": time.time(), **more}
            self._records[kind][request[member]] = record
        return record

    def get(self, kind: str, name: str) -> Record:
        """Return the record itself, or raise ValidationException if it does not exist."""
        word, _ = KINDS[kind]
        with self.lock:
            if name not in self._records[kind]:
                raise invalid(f'Could not find {word} "{self._platform.arn(kind, name)}".')
            return self._records[kind][name]

    def holds(self, kind: str, record: Record) -> bool:
        """Whether this very record is still there, and not another of its name."""
        with self.lock:
            return self._records[kind].get(record[KINDS[kind][1]]) is record

    def name_of(self, kind: str, arn: str) -> str | None:
        """Return the name of the resource with an ARN, which has it in lower case, or None."""
        with self.lock:
            return next((n for n, r in self._records[kind].items() if r[arn_member(kind)] == arn), None)

    def describe(self, kind: str, request: Record) -> Record:
        """Handle Describe* with a copy of the record."""
        with self.lock:
            return copy.deepcopy(self.get(kind, request[KINDS[kind][1]]))

    def delete(self, kind: str, request: Record) -> Record:
        """Handle Delete*."""
        with self.lock:
            record = self.get(kind, request[KINDS[kind][1]])
            del self._records[kind][request[KINDS[kind][1]]]
            self._tags.pop(record[arn_member(kind)], None)
        return {}

    def list(self, kind: str, member: str, request: Record) -> Record:
        """Handle List* with NameContains and StatusEquals, in one page."""
        _, name = KINDS[kind]
        with self.lock:
            found = [
                {k: r[k] for k in (name, arn_member(kind), *_SUMMARY) if k in r}
                for r in self._records[kind].values()
                if request.get("NameContains", "") in r[name]
                and request.get("StatusEquals") in (None, r.get("EndpointStatus"))
            ]
        return {member: found}

    def tag(self, request: Record) -> Record:
        """Handle AddTags."""
        with self.lock:
            tags = self._tags.setdefault(request["ResourceArn"], {})
            tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        return self.tags(request)

    def tags(self, request: Record) -> Record:
        """Handle ListTags."""
        with self.lock:
            tags = self._tags.get(request["ResourceArn"], {})
            return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def arn_member(kind: str) -> str:
    """Return the member with a kind's ARN: `EndpointConfigArn` for `endpoint-config`."""
    return "".join(part.title() for part in kind.split("-")) + "Arn"
