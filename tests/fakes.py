"""Fakes of the adapters for unit tests.

Each fake passes the same contract tests as its adapter (tests/integration).
"""

from dataclasses import replace
from datetime import UTC, datetime

from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.incidents.model import DELETED, HEATMAPS_KEPT, RELATED_KEPT, EndpointState


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

    def console_link(self, bucket, key):
        return f"https://s3.console.aws.amazon.com/s3/object/{bucket}?region=eu-west-1&prefix={key}"

    def chunks(self, bucket, key):
        yield self.get(bucket, key)

    def folders(self, bucket, prefix):
        below = (k.removeprefix(prefix) for b, k in self.objects if b == bucket and k.startswith(prefix))
        return sorted({k.partition("/")[0] for k in below if "/" in k})

    def listed(self, bucket, prefix):
        for (b, key), body in sorted(self.objects.items()):
            if b == bucket and key.startswith(prefix):
                yield key, len(body), datetime(2026, 11, 23, 10, tzinfo=UTC)


class FakeEndpoint:
    """An endpoint that accepts an update when InService, and finishes it on :meth:`settle`.

    ``refuse`` holds the errors of the next updates (None lets one through). ``guarded`` holds which updates an
    alarm may roll back.
    """

    def __init__(self, config, status="InService", refuse=()):
        self.live = EndpointState(status, config)
        self.updates, self.guarded, self.refuse = [], [], list(refuse)

    def describe(self, name):
        if self.live is None:
            return EndpointState(DELETED, "", f'Could not find endpoint "{name}".')
        return self.live

    def update(self, name, config, *, guarded):
        if self.refuse and (error := self.refuse.pop(0)):
            raise error
        if self.live.status != "InService":
            raise RetryableError(f'Cannot update in-progress endpoint "{name}".')
        self.updates.append(config)
        self.guarded.append(guarded)
        self.live = replace(self.live, status="Updating", failure="")

    def settle(self):
        self.live = EndpointState("InService", self.updates[-1])

    def roll_back(self, reason):
        self.live = EndpointState("InService", self.live.config, reason)

    def delete(self):
        self.live = None

    def deploy(self, config):
        """Deploy a config, as another user may."""
        self.live = EndpointState("InService", config)


class FakeIncidents:
    def __init__(self):
        self.items, self.closed, self.seen, self.claimed = {}, {}, set(), {}
        self.pauses = {}
        self.meanwhile = []  # concurrent updates: one before each of the next writes

    def current(self, endpoint):
        return self.items.get(endpoint)

    def past(self, endpoint, since):
        found = [i for i in self.closed.values() if i.endpoint == endpoint]
        found.sort(key=lambda incident: incident.opened)
        return found[max(0, sum(incident.opened < since for incident in found) - 1) :]

    def open(self, incident, last=None):
        current = self.items.get(incident.endpoint)
        if current and (current.is_open or last is None or current.id != last.id):
            raise ConflictError("an incident is open, or another one was closed")
        self.items[incident.endpoint] = incident

    def save(self, before, after):
        if self.meanwhile:
            self.meanwhile.pop(0)()
        current = self.items.get(before.endpoint)
        if current is None or (current.id, current.revision) != (before.id, before.revision):
            raise ConflictError("changed meanwhile")
        kept = replace(
            after,
            related_violations=current.related_violations,
            heatmaps=current.heatmaps,
            refused=current.refused,
        )
        self.items[before.endpoint] = kept
        if before.is_open and not after.is_open:
            self.closed[after.id] = kept

    def attach(self, incident, violation):
        self._add(incident, "related_violations", violation, RELATED_KEPT)

    def add_heatmap(self, incident, name):
        self._add(incident, "heatmaps", name, HEATMAPS_KEPT)

    def add_refusal(self, incident, name):
        self._add(incident, "refused", name, HEATMAPS_KEPT)

    def _add(self, incident, to, value, most):
        for items, key in ((self.items, incident.endpoint), (self.closed, incident.id)):
            if key not in items or items[key].id != incident.id:
                continue
            held = getattr(items[key], to)
            if len(held) < most or value in (items[key].replays or ()):
                items[key] = replace(items[key], **{to: held | {value}})

    def record_report(self, endpoint, what):
        self.seen.add((endpoint, what))

    def claim_report(self, endpoint, what, at, stale):
        key = endpoint, what
        if key in self.seen or self.claimed.get(key, stale) > stale:
            return False
        self.claimed[key] = at
        return True

    def pause(self, endpoint, until, at):
        if endpoint not in self.pauses or self.pauses[endpoint][1] <= at:
            self.pauses[endpoint] = until, at

    def paused_until(self, endpoint):
        return self.pauses[endpoint][0] if endpoint in self.pauses else None


class FakeNotices:
    """Keeps what was published; ``away`` makes SNS refuse that many times."""

    def __init__(self, away=0):
        self.published, self.away = [], away

    def publish(self, notice):
        if self.away:
            self.away -= 1
            raise RetryableError("SNS is away")
        self.published.append(notice)
