"""Capture files for tests, and the dependencies of count_file in unit tests."""

import base64
import json
from collections import defaultdict

from glassbox.errors import BadInputError, RetryableError
from glassbox.monitoring.checks import PublishedViolation
from glassbox.monitoring.counts import Counts, total
from glassbox.queue_message import S3Object

KEY = "capture/traffic-signs/AllTraffic/2026/11/23/10/20-02-871-0b7bfd33-c8a7-4adf-a09a-98fd0af79974.jsonl"
VARIANT_KEY = "traffic-signs/AllTraffic"
NPY = base64.b64encode(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', }" + bytes(3000)).decode()

# The reference case: 322 of 400 predictions are class 14.
ARTICLE = [14] * 322 + [c for c in range(40) if c != 14] * 2


def side(data, encoding="JSON", content_type="application/json", mode="OUTPUT"):
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}


def record(
    response, time="2026-11-23T10:00:01Z", *, encoding="JSON", content_type="application/json", **metadata
):
    """Return a captured inference; a ``response`` that is not text is written as JSON."""
    text = response if isinstance(response, str) else json.dumps(response)
    if encoding == "BASE64":
        text = base64.b64encode(text.encode()).decode()
    return {
        "captureData": {
            "endpointInput": side(NPY, "BASE64", "application/x-npy", "INPUT"),
            "endpointOutput": side(text, encoding, content_type),
        },
        "eventMetadata": {"eventId": "0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11", "inferenceTime": time}
        | metadata,
        "eventVersion": "0",
    }


def line(*args, **kwargs):
    return json.dumps(record(*args, **kwargs), separators=(",", ":")).encode()


def file(classes, time="2026-11-23T10:00:01Z"):
    """Return a capture file of one prediction per class, in the project's own form."""
    return b"".join(
        line({"predictions": [{"class": c, "label": None, "probability": 0.9}]}, time) + b"\n"
        for c in classes
    )


def created(key=KEY, bucket="bucket", etag="b1946ac92492d2347c6235b4d2611184"):
    return S3Object(bucket, key, etag)


class FakeCaptures:
    def __init__(self, files):
        self.files = files

    def chunks(self, bucket, key):
        if key not in self.files:
            raise BadInputError(f"s3://{bucket}/{key}: NoSuchKey")
        yield self.files[key]


class FakeCounts:
    """The counts table; the next calls raise the exceptions in ``refuse`` (None lets a call pass)."""

    def __init__(self, refuse=()):
        self.files, self.slots, self.violations = set(), defaultdict(dict), defaultdict(dict)
        self.refuse = list(refuse)

    def _answer(self):
        if self.refuse and (error := self.refuse.pop(0)):
            raise error

    def add(self, file, variant_key, slots):
        self._answer()
        if file in self.files:
            return False
        self.files.add(file)
        for start, counts in slots.items():
            self.slots[variant_key][start] = total((self.slots[variant_key].get(start, Counts()), counts))
        return True

    def read(self, variant_key, window):
        self._answer()
        return {s: c for s, c in self.slots[variant_key].items() if s in window}

    def published(self, variant_key, window):
        self._answer()
        return [
            PublishedViolation(check, w) for (check, w) in self.violations[variant_key] if w.overlaps(window)
        ]

    def record(self, variant_key, verdict):
        self._answer()
        self.violations[variant_key][verdict.check, verdict.window] = verdict


class FakeEvents:
    """Stores the events; EventBridge refuses the next ``away`` events."""

    def __init__(self, away=0):
        self.events, self.away = [], away

    def put(self, source, detail_type, detail):
        if self.away:
            self.away -= 1
            raise RetryableError("EventBridge is away")
        self.events.append((source, detail_type, detail))
