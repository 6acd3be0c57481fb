"""The steps of a schedule. Each prints as the Python that makes it, so a failing schedule is a test.

A step names what it acts on by a number, counted modulo what is there; where nothing is there it does nothing. So a
schedule from which steps are left out is a schedule too, which is what shrinking needs.
"""

from simulation import traffic
from simulation.services import HOOKED, PLAIN, Live

UPDATING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


class Step:
    """One step; ``run`` carries it out."""

    def __init__(self, *given, **named):
        self.given, self.named = given, named

    def __repr__(self):
        given = [repr(one) for one in self.given] + [
            f"{name}={value!r}" for name, value in self.named.items()
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def run(self, system):
        raise NotImplementedError

    def __call__(self, system):
        self.run(system, *self.given, **self.named)


def _pick(found, index):
    return found[index % len(found)] if found else None


# ---------------------------------------------------------------- the functions


class Deliver(Step):
    """A queue delivers a message to its function.

    ``calls``: the invocation stops after so many calls of AWS; ``faults``: kind by number of the call; ``keep``: the
    message stays in the queue, a duplicate.
    """

    def run(self, system, queue, index=0, calls=None, faults=(), keep=False):
        message = _pick(system.aws.visible(queue), index)
        if message is None:
            return
        if keep:
            system.aws.count_fault("duplicate")
        else:
            system.aws.queues[queue].remove(message)
        system.start(queue, message, calls, faults)


class Resume(Step):
    """A stopped invocation continues, for ``calls`` further calls or to its end."""

    def run(self, system, index=0, calls=None):
        task = _pick(system.tasks, index)
        if task is not None:
            system.resume(task, calls)


class Crash(Step):
    """A stopped invocation ends there; its message stays in the queue."""

    def run(self, system, index=0):
        task = _pick(system.tasks, index)
        if task is not None:
            system.kill(task)


class Sweep(Step):
    """The schedule of the sweep sends its two messages."""

    def run(self, system):
        system.sweep()


class Redrive(Step):
    """An operator brings the dead letters of a queue back."""

    def run(self, system, queue):
        system.aws.queues[queue] += [
            message._replace(receives=0, visible=system.aws.now) for message in system.aws.dead[queue]
        ]
        system.aws.dead[queue] = []


class Wait(Step):
    """Time passes."""

    def run(self, system, seconds):
        system.wait(seconds)


# ---------------------------------------------------------------- AWS


class Outage(Step):
    """A service refuses every call from now on; see :meth:`simulation.services.Aws._refusal` for ``how``."""

    def run(self, system, service, how="throttled"):
        system.aws.outages[service] = how


class Recover(Step):
    """A service answers again."""

    def run(self, system, service):
        system.aws.outages.pop(service, None)


class Lose(Step):
    """EventBridge loses events of this type from now on, as SageMaker's best-effort events may be lost."""

    def run(self, system, detail_type="SageMaker Endpoint State Change"):
        system.aws.lost_events.add(detail_type)


class Settle(Step):
    """The update of the endpoint ends: ``ok``, or rolled back with a reason."""

    def run(self, system, ok=True):
        aws = system.aws
        if aws.endpoint is None or aws.endpoint.status not in UPDATING:
            return
        if ok and aws.endpoint.target in (aws.configs | {""}):
            live = aws.endpoint
            by_owner = live.target_by_owner if live.target else live.by_owner
            aws.endpoint = Live("InService", live.target or live.config, by_owner=by_owner)
        else:
            failure = "The container did not start"
            aws.endpoint = Live(
                "InService", aws.endpoint.config, failure=failure, by_owner=aws.endpoint.by_owner
            )
        aws.endpoint_event()


class Status(Step):
    """The endpoint is in another state: an update of the platform's own, a rollback under way, or broken."""

    def run(self, system, status):
        aws = system.aws
        if aws.endpoint is not None:
            aws.endpoint = aws.endpoint._replace(status=status)
            aws.endpoint_event()


# ---------------------------------------------------------------- the owner


class Deploy(Step):
    """The owner updates the endpoint, or a colleague puts one of the two configs on it."""

    def run(self, system, config="foreign"):
        aws = system.aws
        aws.configs.add(config)
        if aws.endpoint is not None and aws.endpoint.status == "InService":
            aws.count_fault("deployment")
            aws.endpoint = aws.endpoint._replace(
                status="Updating", target=config, failure="", target_by_owner=True
            )
            aws.endpoint_event()


class DeleteEndpoint(Step):
    """The owner deletes the endpoint."""

    def run(self, system):
        system.aws.count_fault("deletion")
        system.aws.endpoint = None
        system.aws.endpoint_event()


class CreateEndpoint(Step):
    """The owner creates the endpoint again, where there is none."""

    def run(self, system, config=PLAIN):
        if system.aws.endpoint is None:
            system.aws.configs.add(config)
            system.aws.endpoint = Live("Creating", config, config, by_owner=True, target_by_owner=True)


class DeleteConfig(Step):
    """The owner deletes an endpoint config."""

    def run(self, system, config=HOOKED):
        system.aws.count_fault("deletion")
        system.aws.configs.discard(config)


class CreateConfig(Step):
    """The owner creates an endpoint config of this name, perhaps of another model than before."""

    def run(self, system, config=HOOKED):
        system.aws.configs.add(config)


class DeleteObjects(Step):
    """A lifecycle rule, or the owner, deletes objects."""

    def run(self, system, prefix):
        system.aws.count_fault("deletion")
        for bucket, key in [name for name in system.aws.objects if name[1].startswith(prefix)]:
            del system.aws.objects[bucket, key]
        system.objects_deleted = True
        if prefix.startswith("capture"):
            system.forget_undelivered()


# ---------------------------------------------------------------- what comes from outside


class Capture(Step):
    """SageMaker writes a capture file of live traffic."""

    def run(self, system, kind="attack", minutes=0):
        traffic.capture(system, kind, minutes)


class CaptureReplays(Step):
    """SageMaker writes a capture file of the replays."""

    def run(self, system):
        traffic.flush(system)


class Trace(Step):
    """The hooked model writes the trace of the next replay that it answered."""

    def run(self, system, refused="", lost=False):
        traffic.trace(system, refused=refused, lost=lost)


class LiveTrace(Step):
    """The hooked model writes a trace of live traffic."""

    def run(self, system, refused=""):
        traffic.live_trace(system, refused)


class MonitorJob(Step):
    """The monitor's job ends with violations."""

    def run(self, system, hours=0):
        traffic.monitor_job(system, hours)


class MonitorReport(Step):
    """The monitor's job writes its violations file."""

    def run(self, system, violations=1, hours=0):
        traffic.monitor_report(system, violations, hours)


class Violation(Step):
    """A violation of another check is published."""

    def run(self, system, check="drift", minutes=0, **named):
        traffic.violation_event(system, check, minutes, **named)


class Command(Step):
    """An operator sends a command: open, extend (``minutes``), abort."""

    def run(self, system, action, **detail):
        traffic.command(system, action, **detail)


class Garbage(Step):
    """A message that no function can read."""

    def run(self, system, queue, number=0):
        system.aws.send(queue, traffic.GARBAGE[number % len(traffic.GARBAGE)])
