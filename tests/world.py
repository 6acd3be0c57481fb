"""The incident handlers with fake dependencies and a clock, for scenarios of an incident."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from captures import FakeEvents
from fakes import FakeEndpoint, FakeIncidents, FakeNotices
from glassbox.errors import GlassboxError
from glassbox.incidents.model import EndpointConfigs, Limits, Outcome, Replays, Report
from glassbox.incidents.workflow import IncidentDependencies, apply_command, confirm, restore, swap

NOW = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
LINK = "https://s3.console.aws.amazon.com/s3/object/bucket?region=eu-west-1&prefix=incidents/index.html"
IDS = frozenset({"event-1", "event-2"})


class World:
    """Fake dependencies and a clock; :meth:`refuse` makes one call fail until :meth:`allow`."""

    def __init__(self, **limits):
        self.now = NOW
        self.endpoint, self.incidents, self.notices = FakeEndpoint("plain"), FakeIncidents(), FakeNotices()
        self.events = FakeEvents()
        self.refused = {}
        self.dependencies = IncidentDependencies(
            configs=EndpointConfigs("plain", "hooked", "glassbox"),
            limits=Limits(**{"max_heatmaps": 6, "incidents_per_day": 3} | limits),
            endpoint=Refusing(self.endpoint, self.refused),
            incidents=Refusing(self.incidents, self.refused),
            notices=Refusing(self.notices, self.refused),
            events=Refusing(self.events, self.refused),
            clock=lambda: self.now,
        )
        self.replayed, self.replays, self.reported = 0, Replays(IDS), 0
        self.hooked = True  # whether the hook loads

    def refuse(self, call, error):
        self.refused[call] = error

    def allow(self):
        self.refused.clear()

    def swap(self, violation):
        return swap(violation, self.dependencies, self.now)

    def replay(self, incident):
        self._check("replay")
        if isinstance(self.replays, Exception):
            raise self.replays
        self.replayed += 1
        return self.replays

    def has_hook(self, incident):
        self._check("has_hook")
        return self.hooked

    def report(self, incident):
        self._check("report")
        self.reported += 1
        findings = ("2 x class 14 (Stop), all complete",)
        return Report("s3://bucket/incidents/traffic-signs/index.html", findings, LINK)

    def _check(self, call):
        if call in self.refused:
            raise self.refused[call]

    def confirm(self):
        return confirm(
            "traffic-signs",
            self.dependencies,
            self.now,
            replay=self.replay,
            has_hook=self.has_hook,
            report=self.report,
        )

    def restore(self):
        return restore("traffic-signs", self.dependencies, self.now)

    def apply(self, command):
        return apply_command(command, self.dependencies, self.now)

    def draw(self, *names):
        for name in names:
            self.dependencies.incidents.add_heatmap(self.incident, name)

    def later(self, minutes):
        self.now += timedelta(minutes=minutes)

    @property
    def incident(self):
        return self.incidents.current("traffic-signs")

    @property
    def notified(self):
        return [notice.attributes["event"] for notice in self.notices.published]

    def run(self, violation):
        """Run a whole incident without errors."""
        assert self.swap(violation) == Outcome.SWAPPING
        self.endpoint.settle()
        assert self.confirm() == Outcome.HOOKED
        self.draw(*IDS)
        assert self.restore() == Outcome.RESTORING
        self.endpoint.settle()
        assert self.confirm() == Outcome.NORMAL

    def tick(self, violation, minutes):
        """Let time pass: the queue redelivers the violation until it is handled, and a sweep runs every two minutes.

        Returns:
            The outcomes and errors of each sweep.
        """
        sweeps = []
        for _ in range(0, minutes, 2):
            if self.incident is None:
                self._deliver(lambda: self.swap(violation))
            if self.endpoint.live and self.endpoint.live.status == "Updating":
                self.endpoint.settle()
            if self.incident and self.incident.replays:
                self._deliver(lambda: self.draw(*self.incident.replays))
            sweeps.append((self._deliver(self.confirm), self._deliver(self.restore)))
            self.later(2)
        return sweeps

    def _deliver(self, react):
        with contextlib.suppress(GlassboxError):
            return react()
        return "refused"


class Refusing:
    """A fake whose methods in ``refused`` raise that error."""

    def __init__(self, fake, refused):
        self._fake, self._refused = fake, refused

    def __getattr__(self, name):
        if name in self._refused:
            return self._raise(name)
        return getattr(self._fake, name)

    def _raise(self, name):
        def refuse(*_, **__):
            raise self._refused[name]

        return refuse


def following(violation, hours, check="class_share"):
    shift = timedelta(hours=hours)
    return replace(
        violation,
        check=check,
        window_start=violation.window_start + shift,
        window_end=violation.window_end + shift,
    )
