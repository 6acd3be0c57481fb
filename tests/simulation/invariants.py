"""What must hold after every step, and what must hold once the faults have stopped.

Each invariant is one function; its docstring is the reason. They state the rules a second time, from the documentation
and from what the simulated AWS saw, and use none of the code under test.
"""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from glassbox.aws.counts_table import CountsTable
from glassbox.errors import BadInputError
from glassbox.monitoring.counts import Window
from glassbox.replay_marker import PublicKey, verified_marker
from simulation.services import BUCKET, COUNTS, ENDPOINT, HOOKED, INCIDENTS, PLAIN, public_key
from simulation.traffic import GARBAGE

DIAGRAM = {
    ("NORMAL", "SWAPPING"),
    ("NORMAL", "WATCHING"),
    ("SWAPPING", "HOOKED"),
    ("SWAPPING", "FAILED"),
    ("HOOKED", "RESTORING"),
    ("HOOKED", "FAILED"),
    ("RESTORING", "NORMAL"),
    ("RESTORING", "FAILED"),
    ("FAILED", "NORMAL"),
    ("FAILED", "RESTORING"),
    ("WATCHING", "NORMAL"),
}
BEGINS, ENDS = {"swapping", "watching"}, {"restored", "closed"}
CLAIM = timedelta(seconds=60)  # after which another invocation may publish what one has claimed
REPLAY_INTERVAL, MAX_REPLAY_ATTEMPTS = timedelta(seconds=60), 5
HELLO_DELAY = timedelta(minutes=2)
MAX_DIAGNOSES, DIAGNOSED_WITHIN = 2, timedelta(hours=20)  # after that, markers may expire
SLACK = timedelta(minutes=6)  # of sweeps, in all


class InvariantError(Exception):
    """An invariant does not hold."""


@dataclass
class Track:
    """What the writes of one incident have shown."""

    id: str
    opened: datetime
    operator: bool
    entries: list = field(default_factory=list)  # (state, true time)
    aborts: list = field(default_factory=list)
    asked: int = 0  # aborts while it had failed
    closed: bool = False


class History:
    """Facts of a run, gathered from the simulated AWS after every step."""

    def __init__(self, system):
        self.system, self.tracks = system, {}
        self.published = self.updates = self.replayed = 0
        self.sent = defaultdict(list)  # (incident, what) -> [Published]
        self.hooked_since = self.last_hooked = None
        self.writes = []

    def copy(self):
        """Return the facts, to be restored later."""
        tracks = {
            name: replace(track, entries=list(track.entries), aborts=list(track.aborts))
            for name, track in self.tracks.items()
        }
        sent = {key: list(messages) for key, messages in self.sent.items()}
        return tracks, sent, self.published, self.updates, self.replayed, self.hooked_since, self.last_hooked

    def restore(self, facts):
        """Restore the facts of :meth:`copy`, which may be restored again."""
        tracks, sent, self.published, self.updates, self.replayed, self.hooked_since, self.last_hooked = facts
        self.tracks = {
            name: replace(track, entries=list(track.entries), aborts=list(track.aborts))
            for name, track in tracks.items()
        }
        self.sent = defaultdict(list, {key: list(messages) for key, messages in sent.items()})

    def gather(self):
        """Take in what happened in the last step."""
        aws = self.system.aws
        self.writes, aws.writes = aws.writes, []
        self.counted, aws.counted = aws.counted, []
        for (_, sk), before, after, _, at in self.writes:
            if sk == "current":
                self._track(before, after, at)
        self.new_published, self.published = aws.published[self.published :], len(aws.published)
        self.new_updates, self.updates = aws.updates[self.updates :], len(aws.updates)
        self.done, self.system.done = self.system.done, []
        self.new_replayed, self.replayed = aws.replayed[self.replayed :], len(aws.replayed)
        for message in self.new_published:
            self.sent[self._what(message)].append(message)
        live = aws.endpoint
        if live and live.status == "InService" and live.config == HOOKED:
            self.hooked_since = self.hooked_since or aws.now
            self.last_hooked = aws.now
        else:
            self.hooked_since = None

    def _track(self, before, after, now):
        name, state = text(after, "id"), text(after, "state")
        if name not in self.tracks:
            operator = '"check": "operator"' in text(after, "cause")
            self.tracks[name] = Track(name, now, operator)
        track = self.tracks[name]
        if before is None or text(before, "id") != name or text(before, "state") != state:
            track.entries.append((state, now))
        same = before is not None and text(before, "id") == name
        unsent = same and "failed" in names(before, "sent_notifications") - names(after, "sent_notifications")
        first = after["aborted"]["BOOL"] and not (same and before["aborted"]["BOOL"])
        if first or (unsent and state == "FAILED"):
            track.aborts.append(now)
            track.asked += state == "FAILED"
        track.closed = state == "NORMAL"

    def _what(self, message):
        if message.event in BEGINS:
            return message.incident, "begins"
        if message.event in ENDS:
            return message.incident, "ends"
        if message.event == "failed":
            track = self.tracks.get(message.incident)
            # an abort of a failed incident is answered with the failure again
            failures = sum(state == "FAILED" for state, _ in track.entries) + track.asked if track else 0
            return message.incident, f"failed {failures}"
        check = message.subject + (message.text.partition("\n")[0] if message.event == "stale-twin" else "")
        if message.event == "hooked-without-incident":  # once after each incident
            check += str(len(self.tracks))
        if (
            message.event == "cooling-down"
        ):  # once for each check, which the reasons of the simulation begin with
            check = message.text.partition(":" if ": " in message.text.partition("\n")[0] else " ")[0]
        return message.incident, f"{message.event} {check}"

    @property
    def skew(self):
        return 2 * max((abs(skew) for skew in self.system.aws.skews.values()), default=timedelta())


def text(item, name):
    return item.get(name, {}).get("S", "")


def names(item, name):
    return set(item.get(name, {}).get("SS", ()))


def time(item, name):
    found = text(item, name)
    return datetime.fromisoformat(found) if found else None


def minutes(system, name):
    return timedelta(minutes=float(system.settings[name]))


def moves(history):
    """Return the writes of the current incident, as (before, after, task id)."""
    return [(b, a, task) for (_, sk), b, a, task, _ in history.writes if sk == "current"]


def changes(history):
    """Return the writes that changed the state of an incident, as (before, after, task)."""
    for before, after, task in moves(history):
        same = before is not None and text(before, "id") == text(after, "id")
        if same and text(before, "state") != text(after, "state"):
            yield before, after, task_of(history, task)


def task_of(history, number):
    system = history.system
    return system.finished.get(number) or next((t for t in system.tasks if t.id == number), None)


# ---------------------------------------------------------------- after every step


def counts_equal_the_files(history):
    """Each item of the counts table holds the sum of the files whose ids it holds: exactly once, forged ones
    included, verified replays apart."""
    system = history.system
    for key in set(history.counted):
        if "#" not in key[0]:
            continue
        item = system.counts_item(*key)
        expected = Counter()
        for file_id in item["files"]["BS"]:
            expected.update(system.files[file_id][key])
        found = {n: int(v["N"]) for n, v in item.items() if n not in ("pk", "sk", "files", "expires")}
        if found != dict(expected):
            raise InvariantError(f"{key}: expected {dict(expected)}, got {found}")


def one_open_incident(history):
    """A new incident takes the place of a closed one only, and begins in one of two states."""
    for before, after, _ in moves(history):
        if before is None or text(before, "id") != text(after, "id"):
            if before is not None and text(before, "state") != "NORMAL":
                raise InvariantError(f"{text(after, 'id')} replaced the open {text(before, 'id')}")
            if text(after, "state") not in ("SWAPPING", "WATCHING"):
                raise InvariantError(f"{text(after, 'id')} began as {text(after, 'state')}")


def incident_ids_are_new(history):
    """An incident's id names its folder in S3 and its notifications, so no two incidents share one."""
    for before, after, _ in moves(history):
        if before is None or text(before, "id") != text(after, "id"):
            entries = history.tracks[text(after, "id")].entries
            if len([1 for state, _ in entries if state in ("SWAPPING", "WATCHING")]) > 1:
                raise InvariantError(f"a second incident {text(after, 'id')}")


def states_follow_the_diagram(history):
    """docs/architecture.md draws the states; anything else is not documented."""
    for before, after, _ in changes(history):
        if (text(before, "state"), text(after, "state")) not in DIAGRAM:
            raise InvariantError(f"{text(before, 'state')} -> {text(after, 'state')}")


def writes_lose_nothing(history):
    """Names are only ever added, and the revision only grows: a concurrent write must not be overwritten."""
    for before, after, _ in moves(history):
        if before is None or text(before, "id") != text(after, "id"):
            continue
        for name in ("heatmaps", "refused", "related_violations"):
            if not names(before, name) <= names(after, name):
                raise InvariantError(f"{name} lost {names(before, name) - names(after, name)}")
        lost = names(before, "sent_notifications") - names(after, "sent_notifications")
        allowed = (
            {"failed", "failed@topic", "failed@events"}
            if text(after, "state") == "RESTORING" or after["aborted"]["BOOL"]
            else set()
        )
        if lost - allowed:
            raise InvariantError(f"sent_notifications lost {lost}")
        if int(after["revision"]["N"]) < int(before["revision"]["N"]):
            raise InvariantError("the revision decreased")
        kept = time(before, "keep_hooked_until")
        if kept and time(after, "keep_hooked_until") < kept:
            raise InvariantError("a second extend shortened the first")


def the_configs_of_others_are_never_updated(history):
    """Glassbox updates an endpoint only after DescribeEndpoint showed it InService on one of its own two configs."""
    for _, live, target, options, task in history.new_updates:
        if task is None or task.described not in (PLAIN, HOOKED):
            raise InvariantError(f"updated {live} to {target} after it saw {task and task.described!r}")
        if target not in (PLAIN, HOOKED) or target == task.described:
            raise InvariantError(f"updated {task.described} to {target}")
        if history.system.settings["react"] == "false":
            raise InvariantError(f"updated {live} to {target} in notify-only mode")
        if not options.get("RetainAllVariantProperties"):
            raise InvariantError("an update resets the instance counts")
        if ("DeploymentConfig" in options) is not (target == HOOKED):
            raise InvariantError(f"an update to {target} is guarded by {options.get('DeploymentConfig')}")


def states_follow_describe_endpoint(history):
    """A state is entered only after DescribeEndpoint showed it: a failed update returns silently to the old config."""
    for before, after, task in changes(history):
        old, new = text(before, "state"), text(after, "state")
        if task is None:
            raise InvariantError(f"{old} -> {new} without an invocation")
        if (old, new) == ("SWAPPING", "HOOKED") and task.described != HOOKED:
            raise InvariantError(f"HOOKED after {task.described} was seen")
        if new == "RESTORING" and task.described not in (HOOKED, PLAIN):
            raise InvariantError(f"RESTORING after {task.described} was seen")
        if (old, new) == ("RESTORING", "NORMAL") and task.described != PLAIN:
            raise InvariantError(f"restored after {task.described} was seen")


def notifications_are_sent_once(history):
    """Ops get a notification a second time only where the invocation that sent it first could not record that."""
    system = history.system
    running = {task.id: task for task in system.tasks}
    groups = [(incident, what, messages) for (incident, what), messages in history.sent.items()]
    for incident, what, messages in itertools.chain.from_iterable(_by_command(*g, history) for g in groups):
        if what.startswith("failed") and history.tracks[incident].asked:
            continue  # one may be on its way when the abort asks for another
        tasks = [running.get(message.task) or system.finished.get(message.task) for message in messages]
        # a slow one may have lost its claim before it published
        on_time = [task for task in tasks if task is None or not task.slow]
        for task in on_time[:-1]:
            if task is None or task.id in running:
                continue
            if not task.disturbed:
                raise InvariantError(f"{what!r} of {incident} was sent {len(messages)} times")


def _by_command(incident, what, messages, history):
    """Yield the answers to each command apart: every command with a mistake has its own."""
    if not what.startswith("not-understood"):
        yield incident, what, messages
        return
    system = history.system
    tasks = {task.id: task for task in system.tasks} | system.finished
    by_command = defaultdict(list)
    for message in messages:
        task = tasks.get(message.task)
        by_command[task.message.body if task else None].append(message)
    for of_one in by_command.values():
        yield incident, what, of_one


def a_sent_notification_was_published(history):
    """``sent_notifications`` must not name what SNS never accepted."""
    known = {"opened": "begins", "closed": "ends"}
    for _, after, _ in moves(history):
        name = text(after, "id")
        for sent in names(after, "sent_notifications"):
            key, _, channel = sent.partition("@")
            announced = {f["event"] for f in history.system.aws.announced if f.get("incident") == name}
            wanted = {"opened": BEGINS, "closed": ENDS, "failed": {"failed"}}.get(key)
            if wanted and channel != "topic" and not announced & set(wanted):
                raise InvariantError(f"{sent} of {name} is recorded, and was not put on the bus")
            if sent in known and not history.sent.get((name, known[sent])):
                raise InvariantError(f"{sent} of {name} is recorded, and was not published")
            if sent == "failed" and not any(
                key[0] == name and key[1].startswith("failed") for key in history.sent
            ):
                raise InvariantError(f"the failure of {name} is recorded, and was not published")


def notifications_are_true(history):
    """A notification that an incident ended follows the end; one that a swap began follows UpdateEndpoint."""
    for message in history.new_published:
        track = history.tracks.get(message.incident)
        if message.event in ENDS and not (track and track.closed):
            raise InvariantError(f"{message.subject!r}, but {message.incident} is open")
        if message.event == "swapping" and message.subject.endswith("swapping to the hooked model"):
            hooked = any(
                target == HOOKED and at >= track.opened for at, _, target, _, _ in history.system.aws.updates
            )
            if not hooked and not (history.last_hooked and history.last_hooked >= track.opened):
                raise InvariantError(f"{message.subject!r}, but nothing was swapped")


def cooldown_and_daily_cap_hold(history):
    """An attack that lasts must not keep the endpoint in updates; an operator may open at any time."""
    system = history.system
    for before, after, _ in moves(history):
        if before is None or text(before, "id") == text(after, "id"):
            continue
        track = history.tracks[text(after, "id")]
        if track.operator:
            continue
        now = system.aws.now + history.skew
        if now < time(before, "since") + minutes(system, "cooldown_minutes"):
            raise InvariantError(f"{track.id} opened {now - time(before, 'since')} after the last one ended")
        day = system.aws.now - timedelta(days=1) + history.skew + timedelta(minutes=2)
        opened = [other.opened for other in history.tracks.values() if other is not track]
        if sum(at > day for at in opened) >= int(system.settings["incidents_per_day"]):
            raise InvariantError(f"{track.id} is one too many in 24 hours")


def restored_for_a_reason(history):
    """The hooked model stays until its replays are explained or the time is up; an operator may shorten or extend."""
    system = history.system
    for before, after, task in changes(history):
        if (text(before, "state"), text(after, "state")) != ("HOOKED", "RESTORING"):
            continue
        if before["aborted"]["BOOL"] or task.described == PLAIN:
            continue
        now = system.aws.now + history.skew
        kept, deadline = time(before, "keep_hooked_until"), time(before, "deadline")
        if kept and now < kept:
            raise InvariantError("restored before the time that an operator asked for")
        if now >= deadline:
            continue
        explained = names(before, "heatmaps")
        replays = names(before, "replays")
        if task.function == "confirm" and _silent(system, before, now):
            continue
        if not before["replayed"]["BOOL"] or not replays <= explained | names(before, "refused"):
            raise InvariantError("restored before the replays were explained")
        if not replays and len(explained) < int(system.settings["max_heatmaps"]):
            raise InvariantError("restored before its quota of heat maps")


def _silent(system, item, now):
    """Whether answered replays have led to nothing for two minutes, and S3 holds no hello object of the hook."""
    answered = names(item, "replays") - names(item, "unanswered")
    if not answered or names(item, "heatmaps") or names(item, "refused"):
        return False
    if system.aws.hook_loads and not system.objects_deleted:
        return False
    return now >= time(item, "last_replay_at") + HELLO_DELAY


def restored_without_a_hook(history):
    """No trace will come if the hook did not load, so the endpoint is restored before its time limit."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "confirm"):
        if system.state() != "HOOKED" or served(task) != HOOKED or system.aws.hook_loads:
            continue
        now, kept = task.started - history.skew, time(item, "keep_hooked_until")
        if (kept is None or now >= kept) and _silent(system, item, now):
            raise InvariantError(f"still HOOKED without a hook after {task.outcome}")


def times_are_the_settings(history):
    """The time to explain counts from when the hooked model is in service."""
    system = history.system
    for before, after, task in changes(history):
        if text(after, "state") == "HOOKED":
            expected = task.started + minutes(system, "explain_minutes")
            if abs(time(after, "deadline") - expected) > history.skew:
                raise InvariantError(f"the deadline is {time(after, 'deadline')}, expected {expected}")
        watched = (text(before, "state"), text(after, "state")) == ("WATCHING", "NORMAL")
        if watched and not before["aborted"]["BOOL"]:
            end = datetime.fromisoformat(text(before, "cause").split('"window_end": "')[1].split('"')[0])
            kept = time(before, "keep_hooked_until")
            if system.aws.now + history.skew < max(end, kept or end):
                raise InvariantError("a notify-only incident ended before its window")


def a_closed_incident_has_its_report(history):
    """What the end names is there: the page, or why there is none, and the copy among the past incidents."""
    aws = history.system.aws
    for before, after, _ in changes(history):
        if text(after, "state") != "NORMAL":
            continue
        if (text(before, "state")) in ("RESTORING", "WATCHING"):
            report = text(after, "report")
            if not report and not text(after, "unreported"):
                raise InvariantError("closed without a report and without a reason")
            if report and (BUCKET, report.removeprefix(f"s3://{BUCKET}/")) not in aws.objects:
                raise InvariantError(f"{report} does not exist")
        past = [
            sk for sk, item in aws.tables.tables[INCIDENTS][ENDPOINT].items() if item.get("id") == after["id"]
        ]
        if len(past) != 2:
            raise InvariantError(f"{text(after, 'id')} is closed, and no copy of it is kept")


def only_replays_are_replayed(history):
    """A replay goes to the hooked model, of a captured request, with a marker of its own."""
    for config, event_id, attributes, body, _ in history.new_replayed:
        if not history.system.is_replay(event_id, attributes, body):
            raise InvariantError(f"{event_id} was sent to {config} with {attributes!r}")


def heatmaps_of_replays_are_recorded(history):
    """The page and the way back count what was drawn: the facts in S3 come after the name in the table."""
    for _, after, _ in moves(history):
        folder = f"saliency/{ENDPOINT}/{text(after, 'id')}/"
        for name in names(after, "heatmaps"):
            if (
                BUCKET,
                f"{folder}{name}.png",
            ) not in history.system.aws.objects and not history.system.objects_deleted:
                raise InvariantError(f"{name} is recorded, and was not drawn")


def only_faults_and_bad_input_fail(history):
    """An invocation that no fault disturbed succeeds, unless no function can read its message."""
    system, item = history.system, history.system.incident_item()
    for task, error in system.failed:
        if isinstance(error, BadInputError):
            if not system.may_be_bad(task):
                raise InvariantError(f"{task.function} refused {task.message.body[:200]}: {error}")
        elif "is sending" in str(error) and item and item["claims"]["M"]:
            continue  # another invocation holds the claim, and may have crashed
        elif not task.disturbed and not task.suspended:  # concurrent updates may exhaust its attempts
            raise InvariantError(f"{task.function} failed without a fault: {error}")
    system.failed = []


def dynamodb_takes_every_write(history):
    """An item of 400 KB takes no write at all, so no client may be able to fill one."""
    aws = history.system.aws
    if aws.invalid:
        raise InvariantError(f"DynamoDB refused {aws.invalid}")


def failed_for_a_reason(history):
    """FAILED costs ops a look, so it needs a reason: what AWS refused, a foreign or broken endpoint, a rollback, an
    abort before the swap, or more time than an update may take."""
    system = history.system
    for before, after, task in changes(history):
        if text(after, "state") != "FAILED":
            continue
        state, status, config = text(before, "state"), task.described_status, task.described
        requested = before["requested"]["BOOL"]
        overdue = system.aws.now + history.skew > time(before, "since") + minutes(system, "update_minutes")
        refused = [
            error for name, _, error in task.log if error and name in ("describe_endpoint", "update_endpoint")
        ]
        denied = [error for error in refused if _is_final(error)]
        retried = refused and state == "RESTORING" and int(before["retries"]["N"])
        settled = status == "InService" or (state == "SWAPPING" and not requested)
        foreign = status and settled and config not in (PLAIN, HOOKED)
        returned = (
            requested
            and status == "InService"
            and (state, config) in (("SWAPPING", PLAIN), ("RESTORING", HOOKED))
        )
        broken = status and status not in (
            "InService",
            "Creating",
            "Updating",
            "SystemUpdating",
            "RollingBack",
        )
        aborted = state == "SWAPPING" and before["aborted"]["BOOL"]
        if not (overdue or denied or retried or foreign or returned or broken or aborted):
            raise InvariantError(
                f"{state} failed: the endpoint is {status} on {config}, AWS refused {refused}"
            )


def _is_final(error):
    return "not authorized" in str(error) or "Could not find" in str(error) or "already uses" in str(error)


def undisturbed(history, function):
    """Yield the invocations of a function that ended in this step, without a fault or a concurrent invocation."""
    for task in history.done:
        if (
            task.function == function
            and not task.disturbed
            and not task.suspended
            and not history.system.tasks
        ):
            yield task


def served(task):
    """Return the config that an invocation saw in service, and left alone; None where it saw none."""
    if task.described_status != "InService" or "update_endpoint" in task.calls_made:
        return None
    return task.described


def restored_when_due(history):
    """The hooked model must not stay for longer than it explains."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "restore"):
        looked = "describe_endpoint" in task.calls_made
        if task.outcome.startswith("BadInput"):
            continue
        if system.state() != "HOOKED" or (looked and served(task) != HOOKED):
            continue
        now = task.started - history.skew
        kept, replays = time(item, "keep_hooked_until"), names(item, "replays")
        explained = names(item, "heatmaps")
        done = item["replayed"]["BOOL"] and (
            replays <= explained | names(item, "refused")
            if replays
            else len(explained) >= int(system.settings["max_heatmaps"])
        )
        due = (kept is None or now >= kept) and (now >= time(item, "deadline") or done)
        if due or item["aborted"]["BOOL"]:
            raise InvariantError(f"still HOOKED after {task.outcome}")


def replays_are_sent(history):
    """The flagged inputs are explained as soon as the hooked model serves, and sent again where it did not answer."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "confirm"):
        if system.state() != "HOOKED" or served(task) != HOOKED:
            continue
        if not item["replayed"]["BOOL"] or int(item["replay_attempts"]["N"]) < 1:
            raise InvariantError("HOOKED, and nothing was replayed")
        if int(item["replay_attempts"]["N"]) > MAX_REPLAY_ATTEMPTS:
            raise InvariantError(f"replays were sent {item['replay_attempts']['N']} times")
        last = time(item, "last_replay_at")
        if names(item, "unanswered") and task.started - history.skew > last + REPLAY_INTERVAL:
            raise InvariantError("replays that were not answered are not sent again")


def moves_on(history):
    """What DescribeEndpoint shows leads on: no state waits for more than it shows."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "confirm"):
        serves, state = served(task), system.state()
        if state == "SWAPPING" and (serves == HOOKED or (item["requested"]["BOOL"] and serves)):
            raise InvariantError(f"still SWAPPING, and the endpoint serves {serves}")
        if state == "SWAPPING" and item["aborted"]["BOOL"] and not item["requested"]["BOOL"]:
            raise InvariantError("still SWAPPING after an abort before the swap")
        if state == "HOOKED" and (serves and serves != HOOKED):
            raise InvariantError(f"still HOOKED, and the endpoint serves {serves}")
        if state == "HOOKED" and item["aborted"]["BOOL"] and serves == HOOKED:
            raise InvariantError("still HOOKED after an abort")
        if state == "RESTORING" and serves and serves != HOOKED:
            raise InvariantError(f"still RESTORING, and the endpoint serves {serves}")
        overdue = (
            task.started - history.skew
            > max(
                time(item, name) or time(item, "since") for name in ("since", "deadline", "keep_hooked_until")
            )
            + minutes(system, "update_minutes")
            if item
            else False
        )
        if state in ("SWAPPING", "RESTORING") and overdue and serves != HOOKED:
            raise InvariantError(f"{state} for longer than an update may take")


def changes_are_notified(history):
    """The invocation that changes the state sends the notification; a later one does only after a fault."""
    clean = {
        task.id for function in ("swap", "confirm", "restore") for task in undisturbed(history, function)
    }
    for before, after, task in moves(history):
        name, state = text(after, "id"), text(after, "state")
        if task not in clean:
            continue
        same = before is not None and text(before, "id") == name
        changed = not same or text(before, "state") != state
        begun = changed and state in ("WATCHING", "HOOKED")
        accepted = (
            state == "SWAPPING" and after["requested"]["BOOL"] and not (same and before["requested"]["BOOL"])
        )
        claimed = "opened" in after["claims"]["M"]
        # it may wait for the diagnosis
        waits_until = time(after, "begins_by")
        waits = waits_until and not text(after, "why") and history.system.aws.now < waits_until + history.skew
        if waits and not claimed:
            continue
        if (begun or accepted) and not claimed and not history.sent.get((name, "begins")):
            raise InvariantError(f"{state} {name} was not notified")
        if (
            changed
            and state == "FAILED"
            and not any(m.task == task and m.event == "failed" for m in history.new_published)
        ):
            raise InvariantError(f"the failure of {name} was not notified")
        reported = text(after, "report") or text(after, "unreported")
        if changed and state == "NORMAL" and reported and not history.sent.get((name, "ends")):
            raise InvariantError(f"the end of {name} was not notified")


def late_notifications_are_sent(history):
    """After a crash, any invocation sends what is missing, a minute after the change."""
    item = history.system.incident_item()
    for task in undisturbed(history, "confirm"):
        if item is None or task.started - history.skew < time(item, "since") + CLAIM:
            continue
        state = text(item, "state")
        key = {"FAILED": "failed", "NORMAL": "closed"}.get(state, "opened")
        if state == "SWAPPING" and not item["requested"]["BOOL"]:
            continue
        if state == "NORMAL" and not text(item, "report") and not text(item, "unreported"):
            continue
        if key not in names(item, "sent_notifications") and key not in item["claims"]["M"]:
            raise InvariantError(f"{key} of {text(item, 'id')} is late")


def retries_are_spaced(history):
    """A restore that failed is retried after 10, 20, 40, … minutes, at most 4 hours: neither at once nor never."""
    system, item = history.system, history.system.incident_item()
    for before, after, _ in changes(history):
        if (text(before, "state"), text(after, "state")) != ("FAILED", "RESTORING"):
            continue
        if before["aborted"]["BOOL"] or time(before, "deadline") is None:
            continue
        if system.aws.now + history.skew < time(before, "since") + _wait(before):
            raise InvariantError("a restore was retried too early")
        if int(after["retries"]["N"]) != int(before["retries"]["N"]) + 1:
            raise InvariantError("a retry was not counted")
    for task in undisturbed(history, "confirm"):
        if system.state() != "FAILED" or served(task) != HOOKED:
            continue
        if "update_endpoint" not in task.calls_made and task.started - history.skew > time(
            item, "since"
        ) + _wait(item):
            raise InvariantError("a restore was not retried")


def _wait(item):
    return min(timedelta(minutes=10) * 2 ** min(int(item["retries"]["N"]), 10), timedelta(hours=4))


def replays_are_spaced(history):
    """An endpoint that does not answer is left alone for a minute."""
    for before, after, _ in moves(history):
        if before is None or text(before, "id") != text(after, "id"):
            continue
        old, new = time(before, "last_replay_at"), time(after, "last_replay_at")
        if old and new != old and new < old + REPLAY_INTERVAL - history.skew:
            raise InvariantError(f"replays were sent again after {new - old}")


def refusals_have_a_reason(history):
    """A violation opens an incident unless one covers it, the cooldown lasts or the cap is reached."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "swap"):
        now, violation = task.started - history.skew, read(task)
        if "Glassbox Command" in task.message.body and task.outcome in ("cooling down", "cap reached"):
            raise InvariantError(f"an operator was refused: {task.outcome}")
        if task.outcome == "cooling down" and now > time(item, "since") + minutes(system, "cooldown_minutes"):
            raise InvariantError("refused after the cooldown")
        day = now - timedelta(days=1, seconds=1)
        opened = sum(track.opened >= day for track in history.tracks.values())
        if task.outcome == "cap reached" and opened < int(system.settings["incidents_per_day"]):
            raise InvariantError("refused below the cap")
        covered = [other for other in _handled(history) if violation and _same(violation, other)]
        if task.outcome == "joined" and violation and system.state() == "NORMAL" and not covered:
            raise InvariantError(f"joined without an incident that covers it: {violation}")
        if task.outcome == "duplicate" and system.state() == "NORMAL":
            raise InvariantError("a duplicate without an open incident")


def refusals_are_notified(history):
    """Ops get why a violation opened no incident."""
    item = history.system.incident_item()
    for task in undisturbed(history, "swap"):
        events = [
            m.event
            for (name, _), sent in history.sent.items()
            for m in sent
            if name == text(item or {}, "id")
        ]
        for outcome, event, key in (
            ("cooling down", "cooling-down", "cooldown"),
            ("cap reached", "cap-reached", "cap"),
        ):
            claimed = any(claim.startswith(key) for claim in (item or {}).get("claims", {}).get("M", ()))
            if task.outcome == outcome and event not in events and not claimed:
                raise InvariantError(f"{outcome} without a notification")


def one_incident_per_violation(history):
    """A violation that an incident has handled opens no other one, however late its message arrives."""
    for before, after, _ in moves(history):
        if before is None or text(before, "id") == text(after, "id"):
            continue
        cause = _violation(text(after, "cause"))
        if cause[0] == "operator":
            continue
        for name, other in _handled_by(history):
            if name != text(after, "id") and _same(cause, other):
                raise InvariantError(f"{text(after, 'id')} repeats {name}: {cause}")


def _extension(event):
    """Return the minutes of a command that extends, None for another event and for one with a mistake."""
    detail = event.get("detail")
    if event.get("source") != "glassbox.operator" or not isinstance(detail, dict):
        return None
    if detail.get("action") != "extend" or event["detail-type"] != "Glassbox Command":
        return None
    try:
        minutes = float(detail.get("minutes", 15))
    except (TypeError, ValueError):
        return None
    return minutes if 0 < minutes <= 24 * 60 else None


def extensions_are_applied(history):
    """An extension counts from its event, so that it may be delivered twice."""
    item = history.system.incident_item()
    for task in undisturbed(history, "restore"):
        event = json.loads(task.message.body) if task.message.body.startswith("{") else {}
        minutes = _extension(event)
        if minutes is None:
            continue
        until = datetime.fromisoformat(event["time"]) + timedelta(minutes=minutes)
        if (
            history.system.state() in ("SWAPPING", "HOOKED", "WATCHING")
            and time(item, "keep_hooked_until") < until
        ):
            raise InvariantError("an extension was not applied")


def outcomes_are_true(history):
    """Metrics and logs are made of the outcomes."""
    state, live = history.system.state(), history.system.aws.endpoint
    moved = any(True for _ in changes(history))
    for task in undisturbed(history, "confirm"):
        allowed = {state}
        if (
            state == "NORMAL"
            and not moved
            and task.described not in ("", PLAIN, HOOKED)
            and task.described_status == "InService"
        ):
            allowed = {"stale twin"}
        if state == "NORMAL" and not moved and live is None and history.system.settings["react"] == "true":
            allowed = {"no endpoint"}
        if task.outcome not in allowed and "Error" not in task.outcome:
            raise InvariantError(f"confirm: {task.outcome!r}, expected {allowed}")
    for task in undisturbed(history, "restore"):
        moved = any(text(after, "state") in ("RESTORING", "FAILED") for _, after, _ in changes(history))
        allowed = {state} if moved else {"waiting", "nothing to restore"}
        allowed |= {"NORMAL"} if state == "NORMAL" else set()
        if task.outcome not in allowed and "Error" not in task.outcome:
            raise InvariantError(f"restore: {task.outcome!r}, expected {allowed}")
    outcomes = {
        "SWAPPING": {"SWAPPING", "pending", "joined", "duplicate"},
        "WATCHING": {"WATCHING", "joined"},
        "FAILED": {"FAILED", "joined", "duplicate"},
        "NORMAL": {"joined", "cooling down", "cap reached"},
    }
    for task in undisturbed(history, "swap"):
        allowed = outcomes.get(state, {"joined", "duplicate"})
        if "outcome" in task.entry and task.outcome not in allowed:
            raise InvariantError(f"swap: {task.outcome!r}, expected {allowed}")
        accepted = any(target == HOOKED for _, _, target, _, _ in history.new_updates)
        if accepted and task.outcome != "SWAPPING":
            raise InvariantError(f"swap: {task.outcome!r} after UpdateEndpoint")


def copies_are_of_closed_incidents(history):
    """The copies decide which violations are handled, and how many incidents a day had."""
    for (_, sk), _, after, _, _ in history.writes:
        if sk.startswith("past#") and text(after, "state") != "NORMAL":
            raise InvariantError(f"{sk} is a copy of an incident in {text(after, 'state')}")


def what_is_rendered_is_recorded(history):
    """The incident ends when its replays are explained or refused, so both are recorded."""
    system, item = history.system, history.system.incident_item()
    for task in undisturbed(history, "render"):
        if system.state() not in ("SWAPPING", "HOOKED", "RESTORING"):
            continue
        if task.message.body in GARBAGE:
            continue
        request = json.loads(_events(system, task) or "{}").get("request", {})
        if request.get("replay_incident") != text(item, "id"):
            continue
        if request["replay_event_id"] not in names(item, "heatmaps") | names(item, "refused"):
            raise InvariantError(f"{request} was rendered, and is not recorded")


def _events(system, task):
    key = json.loads(task.message.body).get("detail", {}).get("object", {}).get("key")
    index = system.aws.objects.get((BUCKET, key))
    events = index and system.aws.objects.get((BUCKET, json.loads(index.body)["events"]))
    return events and events.body


def the_time_line_is_kept(history):
    """The report and the last e-mail show what happened, and the key facts of the heat maps."""
    for _, after, _ in changes(history):
        lines = [line["S"] for line in after.get("timeline", {}).get("L", ())]
        if not any(text(after, "state") in line for line in lines):
            raise InvariantError(f"{text(after, 'state')} is not in the time line: {lines}")
        folder = f"saliency/{ENDPOINT}/{text(after, 'id')}/"
        drawn = any(key.startswith(folder) and key.endswith(".json") for _, key in history.system.aws.objects)
        reported = text(after, "state") == "NORMAL" and text(after, "report")
        if reported and drawn and not after["findings"]["L"]:
            raise InvariantError("closed with heat maps, and without findings")


def new_files_are_new(history):
    """The metrics of a file are emitted once: when its counts were written, and not for a duplicate."""
    for task in undisturbed(history, "count"):
        written = any("#" in pk for pk, _ in history.counted)
        if "new" in task.entry and task.entry["new"] is not written:
            raise InvariantError(f"counted as {task.entry['new']!r}, and wrote {history.counted}")


def items_expire(history):
    """The tables must not grow for ever, and must not forget a file whose message may still be delivered."""
    aws = history.system.aws
    for pk, sk in set(history.counted):
        slot = datetime.fromisoformat(sk.partition("#")[0]).replace(tzinfo=UTC)
        if (
            int(history.system.counts_item(pk, sk)["expires"]["N"])
            != (slot + timedelta(days=127)).timestamp()
        ):
            raise InvariantError(f"{pk} {sk} expires at another time")
    for (pk, sk), _, _, _, _ in history.writes:
        item = aws.tables.tables[INCIDENTS][pk][sk]
        expires = int(time(item, "opened").timestamp()) + 400 * 86400 if sk.startswith("past#") else None
        if (int(item["expires"]["N"]) if "expires" in item else None) != expires:
            raise InvariantError(f"{pk} {sk} expires at another time than {expires}")


def violations_are_published_once(history):
    """One attack is one event: a window that overlaps a published one of the same check is the same violation."""
    system = history.system
    for number, (task, detail) in enumerate(system.aws.violations):
        for earlier, other in system.aws.violations[:number]:
            first, second = system.finished.get(earlier), system.finished.get(task)
            if first is None or second is None or first.disturbed or first.suspended or second.suspended:
                continue
            if first is not second and first.started >= second.started:
                continue
            if (detail["check"], detail["variant"]) == (other["check"], other["variant"]) and _overlap(
                detail["window"], other["window"]
            ):
                raise InvariantError(f"{detail['check']} of {detail['window']} was published twice")


def read(task):
    """Return (check, start, end) of a message with a violation of our own."""
    try:
        event = json.loads(task.message.body)
        detail = event["detail"]
        if event["detail-type"] != "Glassbox Violation":
            return None
        return detail["check"], *(datetime.fromisoformat(detail["window"][end]) for end in ("start", "end"))
    except (ValueError, LookupError, TypeError):
        return None


def _violation(written):
    found = json.loads(written)
    return found["check"], *(datetime.fromisoformat(found[f"window_{end}"]) for end in ("start", "end"))


def _handled(history):
    return [violation for _, violation in _handled_by(history)]


def _handled_by(history):
    """Yield (incident, violation) for each violation that the table holds."""
    for item in history.system.aws.tables.tables[INCIDENTS].get(ENDPOINT, {}).values():
        if "cause" in item:
            for written in (text(item, "cause"), *names(item, "related_violations")):
                yield text(item, "id"), _violation(written)


def _same(one, other):
    if "operator" in (one[0], other[0]):
        return False
    return (one[0] == other[0] or "monitor" in (one[0], other[0])) and one[1] < other[2] and other[1] < one[2]


def _overlap(one, other):
    return one["start"] < other["end"] and other["start"] < one["end"]


def diagnoses_are_bounded(history):
    """A message that is delivered many times must not send repaired inputs without end."""
    for _, after, _ in moves(history):
        if int(after.get("diagnosis_attempts", {"N": "0"})["N"]) > MAX_DIAGNOSES:
            raise InvariantError(f"{text(after, 'id')} was diagnosed more than {MAX_DIAGNOSES} times")
    most = int(history.system.settings["max_flagged_replays"]) + int(
        history.system.settings["max_comparison_replays"]
    )
    sent = Counter(attributes.split(".")[2] for _, _, attributes, _, _ in history.system.aws.repaired)
    for name, requests in sent.items():
        repeated = history.system.aws.faults.get("repeated", 0)
        if requests > MAX_DIAGNOSES * most + repeated:
            raise InvariantError(f"{requests} repaired inputs of {name} were sent")


STEP = (
    counts_equal_the_files,
    one_open_incident,
    incident_ids_are_new,
    states_follow_the_diagram,
    writes_lose_nothing,
    the_configs_of_others_are_never_updated,
    states_follow_describe_endpoint,
    notifications_are_sent_once,
    a_sent_notification_was_published,
    notifications_are_true,
    cooldown_and_daily_cap_hold,
    restored_for_a_reason,
    restored_without_a_hook,
    times_are_the_settings,
    a_closed_incident_has_its_report,
    only_replays_are_replayed,
    heatmaps_of_replays_are_recorded,
    only_faults_and_bad_input_fail,
    dynamodb_takes_every_write,
    failed_for_a_reason,
    restored_when_due,
    replays_are_sent,
    moves_on,
    changes_are_notified,
    late_notifications_are_sent,
    retries_are_spaced,
    replays_are_spaced,
    refusals_have_a_reason,
    refusals_are_notified,
    one_incident_per_violation,
    extensions_are_applied,
    outcomes_are_true,
    copies_are_of_closed_incidents,
    what_is_rendered_is_recorded,
    the_time_line_is_kept,
    new_files_are_new,
    items_expire,
    violations_are_published_once,
    diagnoses_are_bounded,
)


# ---------------------------------------------------------------- once the faults have stopped


def it_ends(history):
    """Within the limits the incident is over, or it has failed, ops were notified, and Glassbox retries."""
    system = history.system
    state, item, live = system.state(), system.incident_item(), system.aws.endpoint
    if state in ("NORMAL",):
        return
    if state != "FAILED":
        raise InvariantError(f"still {state} {system.aws.now - system.quiet_since} after the last fault")
    if "failed" not in names(item, "sent_notifications"):
        raise InvariantError("failed, and ops were not notified")
    if live and live.status == "InService":
        restorable = PLAIN in system.aws.configs or live.config != HOOKED
        if restorable:
            raise InvariantError(
                f"still FAILED on {live.config}, {system.aws.now - system.quiet_since} after the last fault"
            )
        if not system.retried_since_quiet():
            raise InvariantError("FAILED on the hooked config, and the way back was not tried again")


def the_endpoint_is_restored(history):
    """Outside an incident the endpoint does not serve the hooked model unless ops were notified: its owner put it
    there, or UpdateEndpoint reached SageMaker after the incident had ended."""
    system = history.system
    live = system.aws.endpoint
    hooked = live and live.status == "InService" and live.config == HOOKED
    notified = any(message.event == "hooked-without-incident" for message in system.aws.published)
    if hooked and system.state() == "NORMAL" and system.settings["react"] == "true" and not notified:
        raise InvariantError("NORMAL, and the endpoint serves the hooked model")


def every_file_is_counted(history):
    """Each distinct capture file is counted in every item that it touches."""
    system = history.system
    for file_id, items in system.files.items():
        if file_id in system.gone:
            continue
        for key in items:
            item = system.counts_item(*key)
            if item is None or file_id not in item["files"]["BS"]:
                raise InvariantError(f"a file of {items} is not in {key}")


def repairs_are_marked(history):
    """A repaired input is a request that the stack signed, for an incident of this endpoint that is diagnosed."""
    key = PublicKey.from_der(public_key())
    for _, _, attributes, body, at in history.system.aws.repaired:
        found = verified_marker(attributes, body=body, now=at, key=lambda: key)
        if found is None or found.purpose != "repair" or found.incident not in history.tracks:
            raise InvariantError(f"a repaired input with the attributes {attributes}")


def the_last_incident_is_diagnosed(history):
    """An incident that asked for a diagnosis has it, or its invocations ended without one; and ops got an addendum
    where it came after the end."""
    item = history.system.incident_item()
    if item is None or not time(item, "begins_by"):
        return
    is_too_old = history.system.quiet_since > time(item, "opened") + DIAGNOSED_WITHIN - history.skew
    attempts = int(item["diagnosis_attempts"]["N"])
    # an invocation was killed before the request, and its message names a monitor report that was deleted
    cannot_request = history.system.objects_deleted and not attempts
    if not text(item, "why") and attempts < MAX_DIAGNOSES and not is_too_old and not cannot_request:
        raise InvariantError(f"{text(item, 'id')} was not diagnosed")
    late = item["is_diagnosed_late"]["BOOL"] and text(item, "state") == "NORMAL"
    if late and not any(m.event == "diagnosed" for m in history.system.aws.published):
        raise InvariantError(f"the late diagnosis of {text(item, 'id')} was not notified")


def begins_and_ends_were_sent(history):
    """Of each incident ops got the beginning and the end; a failure is both. Where SNS refused the end for so long
    that the next incident began, that one names it in its time line."""
    for name, track in history.tracks.items():
        failed = any(key[0] == name and key[1].startswith("failed") for key in history.sent)
        ended = history.sent.get((name, "ends")) or failed or named_by_the_next(history, name)
        begun = history.sent.get((name, "begins")) or ended
        if not begun or not ended:
            raise InvariantError(f"{name}: begun {bool(begun)}, ended {bool(ended)} ({track.entries})")


def named_by_the_next(history, name):
    """Whether a later incident's time line names the end of this one, which SNS refused for too long."""
    rows = history.system.aws.tables.tables[INCIDENTS].get(ENDPOINT, {}).values()
    return any(
        f"incident {name}" in line["S"] for item in rows for line in item.get("timeline", {}).get("L", ())
    )


def abort_is_answered(history):
    """An operator who aborts gets a notification afterwards."""
    for name, track in history.tracks.items():
        for at in track.aborts:
            answers = [m for key, sent in history.sent.items() if key[0] == name for m in sent if m.at >= at]
            answered = any(m.event in ENDS or m.event == "failed" for m in answers)
            if not answered and not named_by_the_next(history, name):
                raise InvariantError(f"{name} was aborted at {at}: no answer")


def violations_are_reported(history):
    """A violation that was delivered belongs to an incident, or a notification explains why it opened none."""
    system = history.system
    tables = system.aws.tables.tables[INCIDENTS].get(ENDPOINT, {})
    known = [
        cause
        for item in tables.values()
        if "cause" in item
        for cause in [text(item, "cause"), *names(item, "related_violations")]
    ]
    full = any(len(names(item, "related_violations")) >= 32 for item in tables.values())
    events = {message.event for message in system.aws.published}
    if system.delivered_violations and not known:
        raise InvariantError("violations were delivered, and no incident holds one")
    for check in system.delivered_violations:
        covered = any(f'"check": "{check}"' in cause for cause in known)
        if not covered and not full and not events & {"cooling-down", "cap-reached"}:
            raise InvariantError(f"a violation of {check} is in no incident, and no notification explains it")


def violating_windows_are_published(history):
    """A window in which one class has more than half of the predictions is a violation, in any order of files."""
    system, slots = history.system, defaultdict(Counter)
    if system.objects_deleted:  # a file may be counted and deleted before its windows are checked
        return
    for file_id, items in system.files.items():
        for (pk, sk), added in items.items():
            item = system.counts_item(pk, sk)
            if item and file_id in item["files"]["BS"] and "/AllTraffic#" in pk:
                slot = datetime.fromisoformat(sk.partition("#")[0]).replace(tzinfo=UTC)
                slots[slot].update(
                    {
                        name: n
                        for name, n in added.items()
                        if name[0] == "c" or name.startswith("n:") or name == "unknown"
                    }
                )
    published = [detail["window"] for _, detail in system.aws.violations if detail["check"] == "class_share"]
    for start in {slot - n * timedelta(minutes=10) for slot in slots for n in range(6)}:
        classes = Counter()
        for slot, counted in slots.items():
            if start <= slot < start + timedelta(hours=1):
                classes.update(counted)
        if (
            classes.total() < int(system.settings["min_predictions"])
            or 2 * max(classes.values()) <= classes.total()
        ):
            continue
        window = {
            "start": f"{start:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{start + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        }
        if not any(_overlap(window, other) for other in published):
            raise InvariantError(f"the violation of {window} was not published")


def the_counts_read_back(history):
    """A check reads what was counted: each slot of its window, all pages and shards, and no other slot."""
    system = history.system
    table = CountsTable(system.aws.client("dynamodb"), COUNTS)
    expected = defaultdict(Counter)
    for pk, rows in system.aws.tables.tables[COUNTS].items():
        for sk, item in rows.items():
            if "#" in pk:
                slot = datetime.fromisoformat(sk.partition("#")[0]).replace(tzinfo=UTC)
                for file_id in item["files"]["BS"]:
                    expected[pk.partition("#")[0], slot].update(system.files[file_id][pk, sk])
    for (variant, slot), counted in expected.items():
        found = table.read(variant, Window(slot, slot + timedelta(minutes=10)))
        if set(found) != {slot} or _attributes(found[slot]) != {name: n for name, n in counted.items() if n}:
            raise InvariantError(f"{variant} {slot}: read {found}, expected {dict(counted)}")


def _attributes(counts):
    names = ("with_confidence", "low_confidence", "records", "unreadable", "replayed", "forged")
    scalars = {name: getattr(counts, name) for name in names}
    classes = {
        "unknown" if c == "unknown" else f"n:{c}" if isinstance(c, str) else f"c{c}": n
        for c, n in counts.classes.items()
    }
    return {name: n for name, n in (scalars | classes).items() if n}


def stale_twins_are_reported(history):
    """A config of someone else makes the twin useless: ops get that once, also after a crash."""
    system, live = history.system, history.system.aws.endpoint
    if system.state() != "NORMAL" or system.settings["react"] == "false":
        return
    foreign = live and live.status == "InService" and live.config not in (PLAIN, HOOKED)
    if foreign and not any(m.event == "stale-twin" and live.config in m.text for m in system.aws.published):
        raise InvariantError(f"{live.config} is live, and was not reported")


def the_end_is_on_the_topic_and_on_the_bus(history):
    """A channel that refused the notification that ended the incident got it later."""
    item = history.system.incident_item()
    if item is None or text(item, "state") != "NORMAL":
        return
    sent = names(item, "sent_notifications")
    last = "closed" if {"closed", "closed@topic", "closed@events"} & sent else "failed"
    partly = {f"{last}@topic", f"{last}@events"} & sent
    if partly and last not in sent:
        raise InvariantError(f"{text(item, 'id')}: of two channels only {partly} got the end")


END = (
    the_end_is_on_the_topic_and_on_the_bus,
    stale_twins_are_reported,
    the_counts_read_back,
    violating_windows_are_published,
    it_ends,
    the_endpoint_is_restored,
    every_file_is_counted,
    begins_and_ends_were_sent,
    repairs_are_marked,
    the_last_incident_is_diagnosed,
    abort_is_answered,
    violations_are_reported,
)


def hooked_within_the_limits(history):
    """The endpoint is not hooked for longer than the limits allow, unless ops were notified."""
    system = history.system
    if history.hooked_since is None:
        return
    if system.aws.endpoint.by_owner:
        return
    item = system.incident_item()
    kept = item and time(item, "keep_hooked_until")
    since = max(history.hooked_since, system.quiet_since, kept or history.hooked_since)
    limit = minutes(system, "explain_minutes") + minutes(system, "update_minutes") + SLACK
    notified = any(
        message.at >= history.hooked_since and message.event == "failed" for message in system.aws.published
    )
    notified = notified or (item is not None and "failed" in names(item, "sent_notifications"))
    if system.aws.now > since + limit and not notified:
        raise InvariantError(f"hooked since {history.hooked_since}, and ops were not notified")
