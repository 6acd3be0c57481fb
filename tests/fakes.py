"""What the core is handed in unit tests.

Each fake passes the same contract tests as its adapter (tests/integration).
"""

from dataclasses import replace

from glassbox.errors import BadInputError, RetryableError
from glassbox.incident import Live


class FakeObjects:
    """Objects in a dict, keyed by (bucket, key)."""

    def __init__(self, objects=()):
        self.objects = dict(objects)

    def get(self, bucket, key, at_most=64 << 20):
        if (bucket, key) not in self.objects:
            raise BadInputError(f"s3://{bucket}/{key}: NoSuchKey")
        return self.objects[bucket, key]

    def put(self, bucket, key, body, content_type):
        self.objects[bucket, key] = body


class FakeEndpoint:
    """An endpoint that accepts an update when InService, and finishes it on :meth:`settle`."""

    def __init__(self, config, status="InService"):
        self.live = Live(status, config)
        self.updates = []

    def describe(self, name):
        return self.live

    def update(self, name, config):
        if self.live.status != "InService":
            raise RetryableError(f'Cannot update in-progress endpoint "{name}".')
        self.updates.append(config)
        self.live = replace(self.live, status="Updating")

    def settle(self):
        self.live = Live("InService", self.updates[-1])


class FakeIncidents:
    def __init__(self):
        self.incidents = {}

    def open(self, incident):
        return self.incidents.setdefault(incident.endpoint, incident)

    def current(self, endpoint):
        return self.incidents.get(endpoint)

    def mark(self, incident, step):
        current = self.incidents.get(incident.endpoint)
        if current is None or current.id != incident.id or getattr(current, step):
            return False
        self.incidents[incident.endpoint] = replace(current, **{step: True})
        return True


class FakeNotices:
    """Keeps what was published; ``away`` makes SNS refuse that many times."""

    def __init__(self, away=0):
        self.published, self.away = [], away

    def publish(self, notice):
        if self.away:
            self.away -= 1
            raise RetryableError("SNS is away")
        self.published.append(notice)
