"""The schedule of a seed: each step is chosen by the state of the system."""

from simulation.invariants import History
from simulation.services import FAULTS, HOOKED, PLAIN
from simulation.steps import (
    UPDATING,
    Capture,
    CaptureReplays,
    Command,
    Crash,
    CreateConfig,
    CreateEndpoint,
    DeleteConfig,
    DeleteEndpoint,
    DeleteObjects,
    Deliver,
    Deploy,
    Garbage,
    LiveTrace,
    Lose,
    MonitorJob,
    MonitorReport,
    Outage,
    Recover,
    Redrive,
    Resume,
    Settle,
    Status,
    Sweep,
    Trace,
    Violation,
    Wait,
)
from simulation.system import System
from simulation.traffic import KINDS

# what a seed may do beside the ordinary; each seed does some of it, so that rare things meet
KINDS_OF_FAULT = (
    "interleave",
    "interleave",
    "calls",
    "duplicate",
    "deploy",
    "deploy hooked",
    "delete",
    "operator",
    "operator",
    "outage",
    "sns",
    "runtime",
    "lost",
    "garbage",
    "skew",
    "break",
    "hostile",
    "other violations",
    "long waits",
)
OUTAGES = (
    ("dynamodb", "throttled"),
    ("s3", "throttled"),
    ("s3", "AccessDenied"),
    ("sagemaker", "throttled"),
    ("sagemaker", "denied"),
    ("sagemaker", "ResourceLimitExceeded"),
    ("kms", "throttled"),
    ("events", "throttled"),
    ("sqs", "throttled"),
)
RUNTIME = ("unreachable", "ModelError:500", "ModelError:500", "ModelError:400")


def choose_settings(chance):
    """Return the settings of a seed that differ from the defaults."""
    settings = {}
    if chance.random() < 0.15:
        settings["react"] = "false"
    for name, values in {
        "explain_minutes": ("4", "4", "0", "15"),
        "update_minutes": ("8", "8", "2", "60"),
        "cooldown_minutes": ("6", "6", "0", "30"),
        "incidents_per_day": ("3", "3", "1", "2"),
        "max_heatmaps": ("6", "2"),
    }.items():
        value = chance.choice(values)
        if value != values[0]:
            settings[name] = value
    if chance.random() < 0.4:
        settings["diagnose"] = "true"
    if chance.random() < 0.2:
        settings["same_config_refused"] = True
    if chance.random() < 0.5:
        settings["stale_reads"] = True
    if chance.random() < 0.1:
        settings["hook_loads"] = False
    return settings


def generate(chance, schedule, settings, apply):
    """Choose and run the steps of a seed; ``schedule`` and ``settings`` are filled on the way. Returns the System."""
    settings.update(choose_settings(chance))
    kinds = {kind for kind in KINDS_OF_FAULT if chance.random() < 0.4}
    if "skew" in kinds:
        settings["skews"] = {
            name: chance.choice((-10, -1, 1, 10))
            for name in ("swap", "confirm", "restore")
            if chance.random() < 0.7
        }
    system = System(settings)
    history = History(system)
    for _ in range(chance.choice((10, 20, 20, 30, 45, 70))):
        step = choose(system, chance, kinds)
        schedule.append(step)
        apply(system, history, step)
    return system, history


def choose(system, chance, kinds):
    """Return the next step."""
    options = [(weight, make) for weight, make in _options(system, chance, kinds) if weight > 0]
    (_, make) = chance.choices(options, [weight for weight, _ in options])[0]
    return make()


def _options(system, chance, kinds):
    aws, state = system.aws, system.state()
    waiting = [name for name in aws.queues if aws.visible(name)]
    yield (14 if waiting else 0), lambda: _deliver(system, chance, kinds, waiting)
    if system.tasks:
        yield 8, lambda: Resume(chance.randrange(len(system.tasks)), calls=chance.choice((None, 1, 1, 2, 4)))
        yield 3, lambda: Crash(chance.randrange(len(system.tasks)))
    yield (3 if len(aws.queues["confirm"]) < 4 else 0), Sweep
    waits = (1, 20, 45, 61, 125, 125, 300)
    if "long waits" in kinds:
        waits = (61, 300, 600, 1800, 7200, 43200)
    yield 3, lambda: Wait(chance.choice(waits))
    yield (5 if state == "NORMAL" else 1), lambda: Capture(_kind(chance, kinds))
    if aws.endpoint and aws.endpoint.status in UPDATING:
        yield 4, lambda: Settle() if chance.random() < 0.85 else Settle(ok=False)
    if aws.replayed[system.drawn :]:
        yield 5, lambda: _trace(chance)
        yield 1, CaptureReplays
    if aws.endpoint and aws.endpoint.config == HOOKED:
        yield 1, lambda: LiveTrace() if chance.random() < 0.8 else LiveTrace(refused="no gradient")
    if "other violations" in kinds:
        yield 2, lambda: _violation(chance)
    if "operator" in kinds:
        yield (2 if state == "NORMAL" else 3), lambda: _command(chance, state)
    dead = [name for name, messages in aws.dead.items() if messages]
    if dead:
        yield 0.5, lambda: Redrive(chance.choice(dead))
    yield from _outages(aws, chance, kinds)
    yield from _faults(system, chance, kinds)


def _faults(system, chance, kinds):
    aws = system.aws
    if "deploy" in kinds:
        yield 1, lambda: Deploy(chance.choice(("foreign", "foreign-2", PLAIN)))
    if "deploy hooked" in kinds:
        yield 0.5, lambda: Deploy(HOOKED)
    if "delete" in kinds:
        yield from _deletions(aws, chance)
    if "break" in kinds:
        yield 0.5, lambda: Status(chance.choice(("SystemUpdating", "RollingBack", "Failed", "OutOfService")))
    if "lost" in kinds:
        yield (1 if not aws.lost_events else 0), Lose
    if "garbage" in kinds:
        yield 0.7, lambda: Garbage(chance.choice(sorted(aws.queues)), chance.randrange(6))


def _outages(aws, chance, kinds):
    if "outage" in kinds:
        yield 1, lambda: Outage(*chance.choice(OUTAGES))
    if "sns" in kinds:
        yield (1 if "sns" not in aws.outages else 0), lambda: Outage("sns")
    if "runtime" in kinds:
        yield 1, lambda: Outage("sagemaker-runtime", chance.choice(RUNTIME))
    for service in aws.outages:
        yield (0.5 if service == "sns" else 1), lambda service=service: Recover(service)


def _deletions(aws, chance):
    yield 0.3, DeleteEndpoint
    yield (2 if aws.endpoint is None else 0), lambda: CreateEndpoint(chance.choice((PLAIN, "foreign")))
    yield 0.4, lambda: DeleteConfig(chance.choice((PLAIN, HOOKED)))
    yield 0.6, lambda: CreateConfig(chance.choice((PLAIN, HOOKED)))
    yield 0.4, lambda: DeleteObjects(chance.choice(("capture", "saliency", "tensors", "monitoring")))


def _kind(chance, kinds):
    if "hostile" in kinds:
        return chance.choice(KINDS)
    return (
        "attack" if chance.random() < 0.7 else chance.choice(("good", "mixed", "batch", "late", "unreadable"))
    )


def _deliver(system, chance, kinds, waiting):
    queue = chance.choice(waiting)
    messages = system.aws.visible(queue)
    index = 0 if chance.random() < 0.6 else chance.randrange(len(messages))
    named = {}
    if "interleave" in kinds and chance.random() < 0.3 and len(system.tasks) < 3:
        named["calls"] = chance.choice((0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 9, 12))
    if "calls" in kinds and chance.random() < 0.3:
        named["faults"] = {chance.choice((0, 1, 2, 3, 4, 5, 6, 8)): chance.choice(FAULTS)}
    if "duplicate" in kinds and chance.random() < 0.2:
        named["keep"] = True
    return Deliver(queue, index, **named)


def _trace(chance):
    roll = chance.random()
    if roll < 0.75:
        return Trace()
    return Trace(refused="no gradient") if roll < 0.9 else Trace(lost=True)


def _violation(chance):
    roll = chance.random()
    if roll < 0.3:
        return MonitorJob(hours=chance.choice((0, 0, 1, 30)))
    if roll < 0.6:
        return MonitorReport(violations=chance.choice((0, 1, 12)), hours=chance.choice((0, 0, 1, 30)))
    check = chance.choice(("drift", "class_share", "low_confidence_share", "x" * 41))
    named = {"reason": "\U0001f6d1" * 99} if chance.random() < 0.2 else {}
    return Violation(check, minutes=chance.choice((0, 0, 25, 90, 2000)), **named)


def _command(chance, state):
    if state == "NORMAL":
        return Command("open") if chance.random() < 0.7 else Command("abort")
    roll = chance.random()
    if roll < 0.5:
        return Command("abort")
    if roll < 0.85:
        return Command("extend", minutes=chance.choice((1, 5, 15, "15", 0, "soon", None, 1e9)))
    return Command("open", reason="look")
