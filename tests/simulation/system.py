"""The stack in one process: the real functions over the simulated AWS, their queues, the owner and the clients."""

import contextlib
import functools
import importlib.util
import inspect
import json
import os
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.replay_marker import PublicKey, verified_marker
from simulation.services import (
    ALARM,
    BUCKET,
    CAPTURE_PREFIX,
    COUNTS,
    ENDPOINT,
    HOOKED,
    INCIDENTS,
    PLAIN,
    Aws,
    Message,
    Suspended,
    Task,
    public_key,
)
from simulation.traffic import GARBAGE

ROOT = Path(__file__).parent.parent.parent
APPS = {
    "count": "count_predictions",
    "swap": "swap_endpoint",
    "confirm": "confirm_endpoint",
    "restore": "restore_endpoint",
    "render": "render_saliency",
    "diagnose": "diagnose_incident",
}
# of template.yaml, see test_the_simulated_limits_are_the_templates
TIMEOUTS = {"count": 120, "swap": 30, "confirm": 120, "restore": 30, "render": 60, "diagnose": 660}
VISIBILITY = {"count": 720, "swap": 180, "confirm": 720, "restore": 180, "render": 360, "diagnose": 3960}
MAX_RECEIVES = {"count": 3, "swap": 5, "confirm": 5, "restore": 5, "render": 3, "diagnose": 3}
SLOW = timedelta(seconds=35)  # a claim lasts 60 seconds, and two clocks may be 20 seconds apart
SWEEP = '{"sweep": true}'

DEFAULTS = {
    "react": "true",
    "explain_minutes": "4",
    "update_minutes": "8",
    "cooldown_minutes": "6",
    "incidents_per_day": "3",
    "max_heatmaps": "6",
    "max_flagged_replays": "2",
    "max_comparison_replays": "1",
    "min_predictions": "5",
    "unreadable_threshold": "0.9",
    "diagnose": "false",
}
# what the template sets where Diagnose is true
DIAGNOSING = {"DIAGNOSE_QUEUE_URL": "https://sqs/1/diagnose", "CONFIRM_QUEUE_URL": "https://sqs/1/confirm"}

_FIXED = {
    "INCIDENTS_TABLE": INCIDENTS,
    "COUNTS_TABLE": COUNTS,
    "TOPIC_ARN": "arn:aws:sns:eu-west-1:111122223333:ops",
    "STACK_NAME": "glassbox",
    "PLAIN_CONFIG": PLAIN,
    "HOOKED_CONFIG": HOOKED,
    "ROLLBACK_ALARM": ALARM,
    "ENDPOINT_NAME": ENDPOINT,
    "BUCKET": BUCKET,
    "CAPTURE_BUCKET": BUCKET,
    "CAPTURE_PREFIX": CAPTURE_PREFIX,
    "REPLAY_KEY_ARN": "arn:aws:kms:eu-west-1:111122223333:key/1",
    "SHADOW_VARIANTS": "Shadow",
    "THRESHOLD": "0.5",
}


class _Ignore:
    """A logger or a metrics object that keeps nothing but the last log entry."""

    last = None

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

    def info(self, message, **fields):
        self.last = {"message": message, **fields}


SIMULATED = ("skews", "stale_reads", "same_config_refused", "hook_loads")  # settings of the simulated AWS

AWS = Aws()  # one per process: the functions are built once for each combination of settings


class _Clock(datetime):
    """The ``datetime`` of the functions: it reads the simulated clock."""

    @classmethod
    def now(cls, tz=None):
        return AWS.clock()


def load(settings):
    """Return the functions with these settings, by their queue's name; each takes a message's body."""
    patch_core()
    given = DEFAULTS | settings
    environment = _FIXED | {name.upper(): value for name, value in given.items() if name != "diagnose"}
    if given["diagnose"] == "true":
        environment |= DIAGNOSING
    return {queue: _function(name, tuple(environment.items())) for queue, name in APPS.items()}


_ENVIRONMENT: dict[str, str] = {}


def _function(name, environment):
    app, react, log = _loaded(name)
    built = _built(name, environment)
    app.build = lambda: built

    def invoke(body):
        log.last = None
        react(SimpleNamespace(body=body))
        return log.last or {}

    return invoke


@functools.cache
def _built(name, environment):
    """Return what a function builds at a cold start, once for each environment."""
    app, _, _ = _loaded(name)
    _ENVIRONMENT.clear()
    _ENVIRONMENT.update(environment)
    return app.cold_build()


@functools.cache
def _loaded(name):
    spec = importlib.util.spec_from_file_location(f"simulated_{name}", ROOT / "functions" / name / "app.py")
    app = importlib.util.module_from_spec(spec)
    with _without_tracing():
        spec.loader.exec_module(app)
    found = []
    log = _Ignore()
    replaced = {
        "logger": log,
        "metrics": log,
        "boto3": SimpleNamespace(client=AWS.client),
        "os": SimpleNamespace(environ=_ENVIRONMENT),
        "datetime": _Clock,
        "process_partial_response": lambda event, function, processor, context: found.append(function),
    }
    for name, value in replaced.items():
        if hasattr(app, name):
            setattr(app, name, value)
    if hasattr(app, "ReplayKey"):
        app.ReplayKey = _Cold  # type: ignore[attr-defined]
    app.cold_build = app.build.__wrapped__  # type: ignore[attr-defined]
    app.build = lambda: None  # type: ignore[attr-defined]
    inspect.unwrap(app.handler)({}, None)
    return app, inspect.unwrap(found[0]), log


class _Cold(ReplayKey):
    """Reads the public key at each use, since an invocation that was suspended starts anew."""

    def public(self):
        self._public = None
        return super().public()


@contextmanager
def _without_tracing():
    names = {
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_METRICS_NAMESPACE": "Glassbox",
        "POWERTOOLS_SERVICE_NAME": "glassbox",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_PATCHES: list[tuple[object, str, object]] = []


def patch_core():
    """Set the clock, and replace what costs most and decides nothing: the explanation, and compiling the page."""
    if _PATCHES:
        return
    import jinja2

    from glassbox.aws import bootstrap
    from glassbox.diagnosis import investigation
    from glassbox.explanation import render
    from glassbox.incidents import incident_report

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    compiled = SimpleNamespace(from_string=functools.cache(environment.from_string))
    page = SimpleNamespace(Environment=lambda **_: compiled, StrictUndefined=jinja2.StrictUndefined)
    for module, name, value in (
        (bootstrap, "datetime", _Clock),
        (render, "trace_reader", SimpleNamespace(read_index=_read_index, read_request=_read_request)),
        (render, "_explain", _explain),
        (investigation, "diagnose", _diagnose),
        (
            render,
            "heatmap",
            SimpleNamespace(
                PERCEPTUAL="", render=lambda *_: b"png", preview=lambda *_: b"webp", facts=lambda _: _FACTS
            ),
        ),
        (incident_report, "jinja2", page),
    ):
        _PATCHES.append((module, name, getattr(module, name)))
        setattr(module, name, value)


def restore_core():
    """Undo :func:`patch_core`."""
    for module, name, value in _PATCHES:
        setattr(module, name, value)
    _PATCHES.clear()


_FACTS = {"class": 14, "class_name": "Stop", "probability": 0.9, "completeness": {"complete": True}}


def _diagnose(window, images, ask, reference, limits):
    """Ask for each image once more, and end at the first request that is not answered."""
    from glassbox.diagnosis.diagnosis import StoppedError
    from glassbox.incidents.diagnosis import Cause, Diagnosis

    with contextlib.suppress(StoppedError):
        for image in images:
            ask(image.body, image.content_type)
    return Diagnosis(causes=(Cause("unknown", 1.0),))


def _read_index(key, body):
    return SimpleNamespace(events_key=json.loads(body)["events"], key=key)


def _read_request(index, events):
    return json.loads(events)["request"]


def _explain(index, events, responses):
    from glassbox.errors import BadInputError

    trace = json.loads(events)
    if trace["refused"]:
        raise BadInputError(f"{index.key}: {trace['refused']}")
    return [SimpleNamespace(step=trace["step"], sample=0, complete=True)]


class System:
    """The stack, and what is known of its history.

    Attributes:
        settings: environment of the functions, beyond DEFAULTS.
        tasks: the invocations that are suspended.
        files: the captured files that are to be counted, by the id in the counts table.
        failed: (queue, error) of deliveries that failed since the last step.
    """

    last: "System"  # the system of the latest run, also where that failed

    def __init__(self, settings=None, aws=AWS):
        given = settings or {}
        environment = {name: value for name, value in given.items() if name not in SIMULATED}
        self.settings = DEFAULTS | environment
        self.aws = aws
        aws.reset()
        self.functions = load(environment)
        aws.skews = {name: timedelta(seconds=value) for name, value in given.get("skews", {}).items()}
        aws.tables.stale_reads = given.get("stale_reads", False)
        aws.tables.page_bytes = 1500  # so that a query has several pages
        aws.same_config_refused = given.get("same_config_refused", False)
        aws.hook_loads = given.get("hook_loads", True)
        self.tasks, self.finished = [], {}
        self.invocations = 0
        self.files, self.captured, self.drawn = {}, 0, 0
        self.steps = 0
        self.failed = []
        self.quiet_since = aws.now
        self.replays_captured = self.traced = 0
        self.gone, self.objects_deleted = set(), False
        self.delivered_violations = set()
        self.done = []  # the invocations that ended in the last step
        System.last = self

    # ------------------------------------------------------------------ time and invocations

    def wait(self, seconds):
        """Let the time pass; Lambda ends the invocations that reach their timeout."""
        self.aws.now += timedelta(seconds=seconds)
        for task in list(self.tasks):
            if (self.aws.now - task.started).total_seconds() > TIMEOUTS[task.function]:
                self.kill(task)

    def start(self, queue, message, calls=None, faults=()):
        """Deliver a message that was taken from its queue."""
        self.invocations += 1
        task = Task(self.invocations, queue, message, self.aws.now, calls, dict(faults))
        self._run(task)
        return task

    def resume(self, task, calls=None):
        """Let a suspended invocation go on for some calls."""
        self.tasks.remove(task)
        task.calls = calls
        self.aws.count_fault("interleaved")
        task.slow = task.slow or self.aws.now - task.started > SLOW
        self._run(task)

    def kill(self, task):
        """End a suspended invocation: it crashed, or reached its timeout. Its message stays in the queue."""
        self.tasks.remove(task)
        task.disturbed, task.outcome = True, "killed"
        self.aws.count_fault("crash")
        self.finished[task.id] = task
        self._return(task)

    def _run(self, task):
        aws = self.aws
        aws.task, task.position, task.number = task, 0, sum(entry[0] != "clock" for entry in task.log)
        try:
            entry = self.functions[task.function](task.message.body)
        except Suspended:
            task.suspended = True
            self.tasks.append(task)
            return
        except GlassboxError as error:
            task.outcome = f"{type(error).__name__}: {error}"
            self.failed.append((task, error))
            self._return(task)
        else:
            task.outcome = str(entry.get("outcome") or entry.get("state") or entry.get("message"))
            task.entry = entry
            if task.function == "swap" and "outcome" in entry:
                self.delivered_violations.add(entry["check"])
        finally:
            aws.task = None
        self.finished[task.id] = task
        self.done.append(task)

    def _return(self, task):
        """Lambda leaves a message that failed in its queue, where it gets visible again after a while."""
        message, queue = task.message, task.function
        visible = task.started + timedelta(seconds=VISIBILITY[queue])
        message = message._replace(receives=message.receives + 1, visible=visible)
        dead = message.receives >= MAX_RECEIVES[queue]
        (self.aws.dead if dead else self.aws.queues)[queue].append(message)

    def duplicate(self, queue, message):
        self.aws.queues[queue].append(Message(message.id, message.body, message.receives))

    def sweep(self):
        for queue in ("confirm", "restore"):
            self.aws.send(queue, SWEEP)

    # ------------------------------------------------------------------ what Glassbox recorded

    def incident_item(self):
        """Return the item of the current incident, or None."""
        return self.aws.tables.tables[INCIDENTS].get(ENDPOINT, {}).get("current")

    def state(self):
        item = self.incident_item()
        return item["state"]["S"] if item else "NORMAL"

    def counts_item(self, pk, sk):
        return self.aws.tables.tables[COUNTS].get(pk, {}).get(sk)

    def faults(self):
        """Return how many faults of each kind took effect."""
        return Counter(self.aws.faults)

    # ------------------------------------------------------------------ what the invariants ask

    def forget_undelivered(self):
        """Capture objects were deleted: the files that are not counted yet never will be."""
        self.gone |= set(self.files)

    def is_garbage(self, message):
        return message.body in GARBAGE

    def may_be_bad(self, task):
        """Whether a message may be refused for good: no function can read it, or its objects were deleted."""
        return (
            task.disturbed
            or task.message.body in GARBAGE
            or self.objects_deleted
            or '"minutes": ' in task.message.body
            or task.function == "render"
        )

    def is_replay(self, event_id, attributes, body):
        """Whether a request is one that the stack may send: marked, and signed for this body."""
        key = PublicKey.from_der(public_key())
        found = verified_marker(attributes, body=body, now=self.aws.now, key=lambda: key)
        return found is not None and found.event_id == event_id and found.purpose == "trace"

    def retried_since_quiet(self):
        return any(
            task.started > self.quiet_since and "update_endpoint" in task.calls_made
            for task in self.finished.values()
        )
