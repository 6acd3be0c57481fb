"""The resources of the control plane, by kind and name, with the texts AWS has for missing and existing ones."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

from local.sagemaker.errors import invalid
from local.sagemaker.platform import Platform

Record = dict[str, Any]

# What each kind is called in the texts, and the member that names it.
KINDS = {
    "model": ("model", "ModelName"),
    "endpoint-config": ("endpoint configuration", "EndpointConfigName"),
    "endpoint": ("endpoint", "EndpointName"),
    "monitoring-schedule": ("monitoring schedule", "MonitoringScheduleName"),
}

_SUMMARY = ("CreationTime", "LastModifiedTime", "EndpointStatus", "MonitoringScheduleStatus")


class Records:
    """A record is the request that made the resource, with its ARN and times; `lock` guards them all."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.lock = threading.RLock()
        self._records: dict[str, dict[str, Record]] = {kind: {} for kind in KINDS}
        self._tags: dict[str, dict[str, str]] = {}

    def add(self, kind: str, request: Record, **more: Any) -> Record:
        """A new record; raises ValidationException if there is one of that name."""
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
        """The record itself; raises ValidationException if there is none."""
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
        """The name of a resource by its ARN, which has it in lower case; None when there is none."""
        with self.lock:
            return next((n for n, r in self._records[kind].items() if r[arn_member(kind)] == arn), None)

    def describe(self, kind: str, request: Record) -> Record:
        """Describe*: a copy of the record."""
        with self.lock:
            return copy.deepcopy(self.get(kind, request[KINDS[kind][1]]))

    def delete(self, kind: str, request: Record) -> Record:
        """Delete*."""
        with self.lock:
            record = self.get(kind, request[KINDS[kind][1]])
            del self._records[kind][request[KINDS[kind][1]]]
            self._tags.pop(record[arn_member(kind)], None)
        return {}

    def list(self, kind: str, member: str, request: Record) -> Record:
        """List*, by NameContains and StatusEquals, in one page."""
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
        """AddTags."""
        with self.lock:
            tags = self._tags.setdefault(request["ResourceArn"], {})
            tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        return self.tags(request)

    def tags(self, request: Record) -> Record:
        """ListTags."""
        with self.lock:
            tags = self._tags.get(request["ResourceArn"], {})
            return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def arn_member(kind: str) -> str:
    """endpoint-config -> EndpointConfigArn."""
    return "".join(part.title() for part in kind.split("-")) + "Arn"
