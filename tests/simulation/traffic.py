"""What reaches the stack from outside: capture files, traces, events. Each with what it must count as."""

import hashlib
import json
from collections import Counter, defaultdict
from datetime import timedelta

from glassbox.replay_marker import TRACE, ReplayMarker, write_marker
from simulation.services import BUCKET, CAPTURE_PREFIX, ENDPOINT, base64_text, sign

UNKNOWN_CLASS = 20_000  # above the largest that is counted by its number
BLOCK, SHARDS = 145, 4  # of the counts table's stored form, written down a second time
IMAGE = b"\x93NUMPY an image"
ANOTHER = b"\x93NUMPY another image"
KINDS = (
    "attack",
    "attack",
    "attack",
    "good",
    "mixed",
    "unreadable",
    "forged",
    "stolen",
    "named",
    "late",
    "batch",
    "shadow",
    "garbage",
)
LONG = timedelta(days=2)


def capture(system, kind, minutes=0):
    """Write a capture file whose predictions were made ``minutes`` ago."""
    time = system.aws.now - timedelta(minutes=minutes + (60 if kind == "late" else 0))
    system.captured += 1
    name = f"f{system.captured}"
    variant = "Shadow" if kind == "shadow" else "AllTraffic"
    key = f"{CAPTURE_PREFIX}/{ENDPOINT}/{variant}/{time:%Y/%m/%d/%H}/{name}.jsonl"
    records = [make(name, number, time) for number, make in enumerate(_records(kind, system))]
    body = b"".join(line + b"\n" for line, _ in records)
    counts = Counter()
    for _, counted in records:
        counts.update(counted)
    _store(system, key, body, f"{ENDPOINT}/{variant}", time, counts)


def flush(system):
    """Write the capture file of the replays that the endpoint has answered in the ten minutes of the next one."""
    answered = system.aws.replayed[system.replays_captured :]
    if not answered:
        return
    time = answered[0][-1]
    answered = [replay for replay in answered if _slot(replay[-1]) == _slot(time)]
    system.replays_captured += len(answered)
    system.captured += 1
    key = f"{CAPTURE_PREFIX}/{ENDPOINT}/AllTraffic/{time:%Y/%m/%d/%H}/r{system.captured}.jsonl"
    lines = [
        _line(f"replay-{system.captured}-{number}", time, _response([14]), body, attributes)
        for number, (_, _, attributes, body, _) in enumerate(answered)
    ]
    counts = Counter(replayed=len(lines))
    _store(system, key, b"".join(line + b"\n" for line in lines), f"{ENDPOINT}/AllTraffic", time, counts)


def _store(system, key, body, variant_key, time, counts):
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    file_id = hashlib.sha256(f"{BUCKET}/{key}#{etag}".encode()).digest()[:16]
    slot = _slot(time)
    blocks = defaultdict(Counter)
    blocks[0] = Counter()
    for name, number in counts.items():
        block = int(name[1:]) // BLOCK if name[0] == "c" and name[1:].isdigit() else 0
        blocks[block][name] += number
    pk = f"{variant_key}#{file_id[0] % SHARDS}"
    system.files[file_id] = {
        (pk, f"{slot:%Y-%m-%dT%H:%M}#{block:03d}"): added for block, added in blocks.items()
    }
    system.aws._put_object(BUCKET, key, body)


def _slot(time):
    return time.replace(minute=time.minute // 10 * 10, second=0, microsecond=0)


def _records(kind, system):
    """Return one function of (file, number, time) per record, which returns the line and its counts."""
    if kind in ("attack", "late", "shadow"):
        return [_live([14])] * 6
    if kind == "good":
        return [_live([n]) for n in (1, 2, 3, 4, 20_000, 145)]
    if kind == "mixed":
        return [_live([14])] * 5 + [_broken, _live([2])]
    if kind == "unreadable":
        return [_broken] * 6
    if kind == "garbage":
        return [_live([3]), lambda *_: (b'{"not": "a record', Counter(unreadable=1)), _live([14])]
    if kind == "batch":
        return [_live([1, 14, 14, 14]), _live([14, 14, 2])]
    if kind == "named":
        return [
            _live([name]) for name in ("Stop", "low_confidence", "#é/", "x" * 60, "Stop", "c14", "unknown!")
        ]
    if kind == "forged":
        return [_live([14], attributes) for attributes in _forged(system)] + [_live([14])] * 3
    marked = _marker(system, IMAGE)
    return [
        lambda name, number, time: (
            _line(f"{name}-{number}", time, _response([14]), IMAGE, marked),
            _REPLAYED,
        )
    ] * 3


_REPLAYED = Counter(replayed=1)


def _live(classes, attributes=None):
    counted = Counter(records=1, with_confidence=len(classes), forged=int(attributes is not None))
    for c in classes:
        name = f"c{c}" if isinstance(c, int) else f"n:{c}"
        counted[name if c != UNKNOWN_CLASS else "unknown"] += 1
    counted = +counted

    def record(name, number, time):
        return _line(f"{name}-{number}", time, _response(classes), IMAGE, attributes), counted

    return record


def _broken(name, number, time):
    return _line(f"{name}-{number}", time, '{"predictions": 7', IMAGE, None), Counter(unreadable=1)


def _response(classes):
    return json.dumps({"predictions": [{"class": c, "label": None, "probability": 0.9} for c in classes]})


def _line(event_id, time, response, body, attributes):
    metadata = {"eventId": event_id, "inferenceTime": f"{time:%Y-%m-%dT%H:%M:%SZ}"}
    if attributes is not None:
        metadata["customAttributes"] = [attributes]
    record = {
        "captureData": {
            "endpointInput": {
                "observedContentType": "application/x-npy",
                "mode": "INPUT",
                "data": base64_text(body),
                "encoding": "BASE64",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": response,
                "encoding": "JSON",
            },
        },
        "eventMetadata": metadata,
        "eventVersion": "0",
    }
    return json.dumps(record).encode()


def _marker(system, body, incident=None):
    """A marker that the stack signed; a client who saw it may send it again."""
    incident = incident or f"{system.aws.now:%Y%m%dt%H%M%S}-class-share"
    return write_marker(ReplayMarker(TRACE, incident, "event-1"), body, sign)


def _forged(system):
    good = _marker(system, IMAGE)
    old = f"{system.aws.now - LONG:%Y%m%dt%H%M%S}-class-share"
    return (
        good.replace("event-1", "event-2"),  # not what was signed
        _marker(system, ANOTHER),  # of another body
        f"{good},{good}",  # two markers
        _marker(system, IMAGE, old),  # expired
        "glassbox=1.trace",
    )


# ---------------------------------------------------------------- traces


def trace(system, refused="", lost=False):
    """The endpoint writes the trace of a replay that it has answered; ``lost``: it never does."""
    waiting = system.aws.replayed[system.drawn :]
    if not waiting:
        return
    config, _, attributes, _, _ = waiting[0]
    system.drawn += 1
    if config != "hooked" or lost or not system.aws.hook_loads:
        return
    marker = attributes.rpartition("glassbox=")[2].split(".")
    write_trace(system, {"replay_event_id": marker[3], "replay_incident": marker[2]}, refused)


def live_trace(system, refused=""):
    """The endpoint writes a trace of live traffic, which only the hooked config does."""
    if system.aws.endpoint and system.aws.endpoint.config == "hooked" and system.aws.hook_loads:
        write_trace(system, {}, refused)


def write_trace(system, request, refused=""):
    from glassbox.explanation.trace_format import REPLAY_EVENT_ID, REPLAY_INCIDENT

    named = {}
    if request:
        named = {REPLAY_EVENT_ID: request["replay_event_id"], REPLAY_INCIDENT: request["replay_incident"]}
    system.traced += 1
    folder = f"tensors/{ENDPOINT}/run-1"
    events = f"{folder}/events/{system.traced}"
    body = json.dumps({"request": named, "refused": refused, "step": system.traced}).encode()
    system.aws._put_object(BUCKET, events, body)
    index = f"{folder}/index/000000000/{system.traced:012d}_worker_0.json"
    system.aws._put_object(BUCKET, index, json.dumps({"events": events}).encode())


# ---------------------------------------------------------------- violations and commands from outside


def monitor_job(system, hours=0):
    """The monitor container's job ends with violations."""
    end = system.aws.now.replace(minute=0, second=0) - timedelta(hours=hours)
    environment = {
        "sagemaker_endpoint_name": ENDPOINT,
        "start_time": _iso(end - timedelta(hours=1)),
        "end_time": _iso(end),
    }
    detail = {"Environment": environment, "ExitMessage": "CompletedWithViolations: monitor: 80 %"}
    system.aws.emit("aws.sagemaker", "SageMaker Processing Job State Change", detail)


def monitor_report(system, violations=1, hours=0):
    """The monitor container writes its violations file."""
    hour = system.aws.now - timedelta(hours=hours + 1)
    key = f"monitoring/{ENDPOINT}/hourly/{hour:%Y/%m/%d/%H}/constraint_violations.json"
    found = [{"description": f"monitor: {n}"} for n in range(violations)]
    system.aws._put_object(BUCKET, key, json.dumps({"violations": found}).encode())


def violation_event(system, check="class_share", minutes=0, predicted_class=14, reason="80 %"):
    """A ``Glassbox Violation`` of another check, as count_predictions publishes it."""
    end = system.aws.now - timedelta(minutes=minutes)
    detail = {
        "endpoint": ENDPOINT,
        "variant": "AllTraffic",
        "check": check,
        "window": {"start": _iso(end - timedelta(minutes=30)), "end": _iso(end)},
        "class": predicted_class,
        "reason": f"{check}: {reason}",
    }
    system.aws.emit("glassbox", "Glassbox Violation", detail)


def command(system, action, **detail):
    """An operator puts a command on the event bus."""
    system.aws.emit(
        "glassbox.operator", "Glassbox Command", {"endpoint": ENDPOINT, "action": action} | detail
    )


def _iso(time):
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


# bodies that no function can read
GARBAGE = (
    "not JSON",
    "[]",
    '{"detail": 7}',
    '{"detail-type": "Glassbox Command", "detail": {"action": "abort"}}',
    '{"detail-type": "Glassbox Violation", "detail": {"endpoint": "traffic-signs"}}',
    '{"detail-type": "Object Created", "detail": {"object": {"key": 7}}}',
)
