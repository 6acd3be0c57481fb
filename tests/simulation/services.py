"""AWS in memory, one thread, at the level of boto3's clients: what the real adapters call.

Each call of an invocation is numbered. An invocation may stop before any of its calls and go on later: it then runs
again from its beginning, with the answers that it got before (:class:`Task`). So invocations interleave at every
call, and an invocation that never continues has crashed there.
"""

import base64
import functools
import hashlib
import json
import random
import re
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import NamedTuple

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from simulation.dynamodb import Tables, refused

ENDPOINT, BUCKET, CAPTURE_PREFIX = "traffic-signs", "bucket", "capture"
COUNTS, INCIDENTS = "counts", "incidents"
PLAIN, HOOKED, FOREIGN = "plain", "hooked", "foreign"
ALARM = "rollback-alarm"
START = datetime(2026, 11, 23, 10, 21, 5, tzinfo=UTC)
ARN = "arn:aws:sagemaker:eu-west-1:111122223333:endpoint"
CALL = timedelta(milliseconds=37)  # each call takes so long: no two invocations share a clock reading
LIST_PAGE = 3  # keys in a page of ListObjectsV2, so that every listing has several

# an answer that is an error, without an effect
THROTTLED = {
    "dynamodb": "ProvisionedThroughputExceededException",
    "s3": "SlowDown",
    "sns": "Throttling",
    "kms": "ThrottlingException",
    "sagemaker": "ThrottlingException",
    "sagemaker-runtime": "ServiceUnavailable",
    "events": "ThrottlingException",
    "sqs": "RequestThrottled",
}
REPAIR_MARKER = "glassbox=1.repair."
FAULTS = ("throttled", "unreachable", "timeout", "repeated")


class Suspended(BaseException):
    """Raised before a call that the invocation may not make yet."""


class Message(NamedTuple):
    """A message of a queue; ``receives`` counts its failed deliveries, ``visible`` is the time of the next one."""

    id: int
    body: str
    receives: int = 0
    visible: datetime = START


class Live(NamedTuple):
    """An endpoint: DescribeEndpoint's fields, and the config that an update in progress leads to."""

    status: str
    config: str
    target: str = ""
    failure: str = ""
    by_owner: bool = False  # not Glassbox but the owner put ``config`` on it, and
    target_by_owner: bool = False  # ``target``


class Stored(NamedTuple):
    """An S3 object."""

    body: bytes
    written: datetime


class Published(NamedTuple):
    """A message that SNS accepted: ``event`` and ``incident`` are its attributes."""

    at: datetime
    event: str
    incident: str
    subject: str
    text: str
    task: int


@dataclass
class Task:
    """One invocation of a function with one message.

    Attributes:
        started: the time of the start. Lambda ends an invocation at its timeout.
        calls: how many further calls it may make now; None is all.
        faults: the kind of fault by the number of the call.
        log: (operation, answer, error) of each call that was made, and of each reading of the clock.
        disturbed: a fault was injected.
        slow: it was suspended for so long that another invocation may take over its claims.
    """

    id: int
    function: str
    message: Message
    started: datetime
    calls: int | None = None
    faults: dict = field(default_factory=dict)
    log: list = field(default_factory=list)
    position: int = 0
    number: int = 0
    disturbed: bool = False
    slow: bool = False
    entry: dict = field(default_factory=dict)  # what it logged
    described: str = ""
    described_status: str = ""
    suspended: bool = False
    outcome: str = ""

    @property
    def calls_made(self):
        return [operation for operation, _, error in self.log if operation != "clock"]

    def copy(self):
        return replace(self, log=list(self.log), faults=dict(self.faults))


class Body:
    """The body of a GetObject answer."""

    def __init__(self, data):
        self._data = data

    def read(self):
        return self._data

    def iter_chunks(self, size):
        return (self._data[i : i + size] for i in range(0, len(self._data), size))


_body = Body  # a parameter of InvokeEndpoint has the same name


class Client:
    """A boto3 client of one service."""

    def __init__(self, aws, service):
        self._aws, self._service = aws, service
        self.meta = SimpleNamespace(partition="aws", region_name="eu-west-1")

    def __getattr__(self, operation):
        if operation.startswith("_"):
            raise AttributeError(operation)
        call = functools.partial(self._aws.call, self._service, operation)
        setattr(self, operation, call)
        return call


class Aws:
    """The state of the account, and the time.

    Attributes:
        now: the true time; ``skews`` maps a function to the offset of its clock.
        outages: services that refuse every call, and how: ``throttled``, ``denied`` or another code.
        hook_loads: whether the hook loads in the hooked model.
        same_config_refused: whether SageMaker refuses an update to the config that is live (not documented).
    """

    def __init__(self):
        self.clients = {}
        self.is_point = lambda service, request: True  # where an invocation may stop
        self.call_time = CALL
        self._lock = threading.Lock()  # some contract tests call from several threads
        self.reset()

    def reset(self):
        self.now = START
        self.skews, self.outages, self.stale_reads = {}, {}, False
        self.same_config_refused, self.hook_loads = False, True
        self.tables = Tables(self._written)
        self.tables.tables = {COUNTS: {}, INCIDENTS: {}}
        self.objects, self.jobs = {}, set()
        self.endpoint, self.configs = Live("InService", PLAIN), {PLAIN, HOOKED}
        self.queues = {name: [] for name in ("count", "swap", "confirm", "restore", "render", "diagnose")}
        self.dead = {name: [] for name in self.queues}
        self.announced = []  # facts of the notifications on the event bus
        self.published, self.updates, self.replayed, self.repaired = [], [], [], []
        self.lost_events = set()  # detail types that EventBridge loses now
        self.sequence = 0
        self.task = None
        self.writes = []  # of the incidents table since the last step
        self.counted = []  # items of the counts table that were written since the last step
        self.faults = {}  # how many of each kind took effect
        self.violations = []  # (task, detail) of each that count_predictions published
        self.invalid = []  # what DynamoDB refused as not valid

    def count_fault(self, kind):
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def client(self, service, **_):
        if service not in self.clients:
            self.clients[service] = Client(self, service)
        return self.clients[service]

    def clock(self):
        """Return the time on the clock of the function that runs."""
        task = self.task
        if task is None:
            return self.now
        if task.position < len(task.log):
            operation, answer, _ = task.log[task.position]
            if operation != "clock":
                raise AssertionError(f"expected {operation}, got a reading of the clock")
        else:
            answer = self.now + self.skews.get(task.function, timedelta())
            task.log.append(("clock", answer, None))
        task.position += 1
        return answer

    def call(self, service, operation, **request):
        """Answer one call of a client; see :class:`Task`."""
        task = self.task
        if task is None:
            with self._lock:
                return getattr(self, f"_{operation}")(**request)
        if task.position < len(task.log):
            logged, answer, error = task.log[task.position]
            if logged != operation:
                raise AssertionError(f"an invocation that continues expected {logged}, got {operation}")
            task.position += 1
        else:
            if task.calls is not None and self.is_point(service, request):
                if task.calls == 0:
                    raise Suspended
                task.calls -= 1
            answer, error = self._answer(task, service, operation, request)
            task.log.append((operation, answer, error))
            task.position += 1
            task.number += 1
            self.now += self.call_time
        if error is not None:
            raise error
        return answer

    def _answer(self, task, service, operation, request):
        fault = task.faults.get(task.number)
        if service in self.outages:
            fault = self.outages[service]
        if fault:
            task.disturbed = True
            self.count_fault(fault)
        try:
            if fault == "unreachable":
                raise EndpointConnectionError(endpoint_url=f"https://{service}.eu-west-1.amazonaws.com/")
            if fault and fault not in ("timeout", "repeated"):
                raise self._refusal(service, operation, fault)
            answer = getattr(self, f"_{operation}")(**request)
            if fault == "repeated":  # botocore lost the answer and sent the request again
                answer = getattr(self, f"_{operation}")(**request)
            if fault == "timeout":
                raise ReadTimeoutError(endpoint_url=f"https://{service}.eu-west-1.amazonaws.com/")
        except (ClientError, EndpointConnectionError, ReadTimeoutError) as error:
            if (
                service == "dynamodb"
                and not fault
                and error.response["Error"]["Code"] == "ValidationException"
            ):
                self.invalid.append(f"{operation}: {error}")
            return None, error
        return answer, None

    @staticmethod
    def _refusal(service, operation, fault):
        if fault == "throttled":
            return refused(THROTTLED[service], "Rate exceeded", operation)
        if fault == "denied":
            return refused(
                "AccessDeniedException", f"User: x is not authorized to perform: {operation}", operation
            )
        code, _, status = fault.partition(":")
        error = refused(code, "refused", operation)
        if status:
            error.response["OriginalStatusCode"] = int(status)
        return error

    # ------------------------------------------------------------------ DynamoDB

    def _get_item(self, **request):
        return self.tables.get_item(**request)

    def _put_item(self, **request):
        return self.tables.put_item(**request)

    def _update_item(self, **request):
        return self.tables.update_item(**request)

    def _query(self, **request):
        return self.tables.query(**request)

    def _create_table(self, **request):
        return self.tables.create_table(**request)

    def _written(self, table, key, before, after):
        if table == INCIDENTS:
            self.writes.append((key, before, after, self.task.id if self.task else 0, self.now))
        else:
            self.counted.append(key)

    # ------------------------------------------------------------------ SageMaker

    def _describe_endpoint(self, EndpointName):
        live = self._live(EndpointName, "DescribeEndpoint")
        answer = {
            "EndpointName": EndpointName,
            "EndpointStatus": live.status,
            "EndpointConfigName": live.config,
            "LastModifiedTime": START,
        }
        if self.task:
            self.task.described, self.task.described_status = live.config, live.status
        return answer | ({"FailureReason": live.failure} if live.failure else {})

    def _update_endpoint(self, EndpointName, EndpointConfigName, **options):
        live = self._live(EndpointName, "UpdateEndpoint")
        if live.status != "InService":
            raise refused(
                "ValidationException",
                f'Cannot update in-progress endpoint "{ARN}/{EndpointName}".',
                "UpdateEndpoint",
            )
        if EndpointConfigName not in self.configs:
            raise refused(
                "ValidationException",
                f'Could not find endpoint configuration "{ARN}-config/{EndpointConfigName}".',
                "UpdateEndpoint",
            )
        if EndpointConfigName == live.config and self.same_config_refused:
            raise refused(
                "ValidationException", "The endpoint already uses this configuration.", "UpdateEndpoint"
            )
        self.updates.append(
            (self.now, live.config, EndpointConfigName, options, self.task.copy() if self.task else None)
        )
        self.endpoint = live._replace(
            status="Updating", target=EndpointConfigName, failure="", target_by_owner=False
        )
        self.endpoint_event()
        return {"EndpointArn": f"{ARN}/{EndpointName}"}

    def _live(self, name, operation):
        if self.endpoint is None or name != ENDPOINT:
            raise refused("ValidationException", f'Could not find endpoint "{ARN}/{name}".', operation)
        return self.endpoint

    def endpoint_event(self):
        """SageMaker announces a change of the endpoint's state, best effort."""
        self.emit("aws.sagemaker", "SageMaker Endpoint State Change", {"EndpointName": ENDPOINT})

    # ------------------------------------------------------------------ SNS, EventBridge

    def _publish(self, TopicArn, Subject, Message, MessageStructure, MessageAttributes):
        if not Subject.isascii() or len(Subject) > 100 or not Subject.isprintable() or not Subject.strip():
            raise refused("InvalidParameter", "Invalid parameter: Subject", "Publish")
        if len(Message.encode()) > 262_144 or "default" not in json.loads(Message):
            raise refused("InvalidParameter", "Invalid parameter: Message", "Publish")
        attributes = {name: value["StringValue"] for name, value in MessageAttributes.items()}
        event, incident = attributes["event"], attributes.get("incident", "")
        task = self.task.id if self.task else 0
        text = json.loads(Message)["email"]
        self.published.append(Published(self.now, event, incident, Subject, text, task))
        return {"MessageId": "1"}

    def _put_events(self, Entries):
        for entry in Entries:
            if entry["DetailType"] == "Glassbox Notification":
                self.announced.append(json.loads(entry["Detail"]))
            if entry["DetailType"] == "Glassbox Violation":
                self.violations.append((self.task.id if self.task else 0, json.loads(entry["Detail"])))
            self.emit(entry["Source"], entry["DetailType"], json.loads(entry["Detail"]))
        return {"FailedEntryCount": 0, "Entries": [{"EventId": "1"} for _ in Entries]}

    def emit(self, source, detail_type, detail):
        """Route an event by the rules of template.yaml."""
        if detail_type in self.lost_events:
            self.count_fault("lost event")
            return
        queue = _route(source, detail_type, detail)
        if queue is None:
            return
        time = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        self.sequence += 1
        event = {
            "id": f"e{self.sequence}",
            "source": source,
            "detail-type": detail_type,
            "time": time,
            "detail": detail,
        }
        self.send(queue, json.dumps(event))

    def visible(self, queue):
        """Return the messages of a queue that it may deliver now."""
        return [message for message in self.queues[queue] if message.visible <= self.now]

    def send(self, queue, body, delay=0):
        self.sequence += 1
        visible = self.now + timedelta(seconds=delay) if delay else START
        self.queues[queue].append(Message(self.sequence, body, visible=visible))

    def _send_message(self, QueueUrl, MessageBody, DelaySeconds):
        self.send(QueueUrl.rpartition("/")[2], MessageBody, DelaySeconds)
        return {"MessageId": "1"}

    # ------------------------------------------------------------------ S3

    def _get_object(self, Bucket, Key):
        if Bucket != BUCKET:
            raise refused("NoSuchBucket", "The specified bucket does not exist", "GetObject")
        if (Bucket, Key) not in self.objects:
            raise refused("NoSuchKey", "The specified key does not exist.", "GetObject")
        body = self.objects[Bucket, Key].body
        return {"Body": Body(body), "ContentLength": len(body)}

    def _put_object(self, Bucket, Key, Body, ContentType=""):
        self.objects[Bucket, Key] = Stored(Body, self.now)
        etag = hashlib.md5(Body, usedforsecurity=False).hexdigest()
        detail = {"bucket": {"name": Bucket}, "object": {"key": Key, "etag": etag, "size": len(Body)}}
        self.emit("aws.s3", "Object Created", detail)
        return {"ETag": etag}

    def _create_bucket(self, **_):
        return {}

    def _list_objects_v2(self, Bucket, Prefix, Delimiter=None, ContinuationToken=""):
        keys = sorted(key for bucket, key in self.objects if bucket == Bucket and key.startswith(Prefix))
        keys = [key for key in keys if key > ContinuationToken]
        page, rest = keys[:LIST_PAGE], keys[LIST_PAGE:]
        answer = {"IsTruncated": bool(rest)} | ({"NextContinuationToken": page[-1]} if rest else {})
        if Delimiter:
            below = {Prefix + key.removeprefix(Prefix).partition(Delimiter)[0] + Delimiter for key in page}
            # as on S3, a prefix is in one page only
            seen = {Prefix + ContinuationToken.removeprefix(Prefix).partition(Delimiter)[0] + Delimiter}
            return answer | {"CommonPrefixes": [{"Prefix": prefix} for prefix in sorted(below - seen)]}
        return answer | {
            "Contents": [
                {"Key": key, "Size": len(stored.body), "LastModified": stored.written}
                for key in page
                for stored in [self.objects[Bucket, key]]
            ]
        }

    # ------------------------------------------------------------------ SageMaker runtime, KMS

    def _invoke_endpoint(self, EndpointName, Body, ContentType, InferenceId, CustomAttributes, TargetVariant):
        if self.endpoint is None or self.endpoint.status not in ("InService", "Updating"):
            raise refused(
                "ValidationError", f"Endpoint {EndpointName} of account 1 not found.", "InvokeEndpoint"
            )
        sent = self.repaired if REPAIR_MARKER in CustomAttributes else self.replayed
        sent.append((self.endpoint.config, InferenceId, CustomAttributes, Body, self.now))
        if self.endpoint.config == HOOKED:
            self.hello()
        return {"Body": _body(b"{}"), "ContentType": "application/json"}

    def hello(self):
        """The hook writes its hello object at the first request, unless it does not load."""
        if self.hook_loads:
            hello = {"torch": "2.6.0", "python": "3.11.7", "self_test": "passed", "adapter": "inference.py"}
            key = f"tensors/{ENDPOINT}/hello/{self.now:%Y%m%dT%H%M%SZ}.json"
            self.objects[BUCKET, key] = Stored(json.dumps(hello).encode(), self.now)

    def _sign(self, KeyId, Message, MessageType, SigningAlgorithm):
        return {"Signature": sign(Message)}

    def _get_public_key(self, KeyId):
        return {"PublicKey": public_key()}

    # ------------------------------------------------------------------ snapshots, for the exhaustive search

    _COPIED = (
        "invalid",
        "skews",
        "outages",
        "objects",
        "jobs",
        "configs",
        "replayed",
        "repaired",
        "published",
        "announced",
        "updates",
        "lost_events",
    )

    def snapshot(self):
        state = {name: getattr(self, name).copy() for name in self._COPIED}
        queues = {name: list(messages) for name, messages in self.queues.items()}
        dead = {name: list(messages) for name, messages in self.dead.items()}
        return self.now, self.endpoint, self.sequence, self.tables.snapshot(), queues, dead, state

    def restore(self, snapshot):
        self.now, self.endpoint, self.sequence, tables, queues, dead, state = snapshot
        self.tables.restore(tables)
        self.queues = {name: list(messages) for name, messages in queues.items()}
        self.dead = {name: list(messages) for name, messages in dead.items()}
        for name in self._COPIED:
            setattr(self, name, state[name].copy())
        self.task = None
        self.writes, self.counted = [], []


_MONITOR_KEY = re.compile(rf"monitoring/{ENDPOINT}/.*/constraint_violations\.json")
_INDEX_KEY = re.compile(rf"tensors/{ENDPOINT}/.*/index/.*_worker_0\.json")


def _route(source, detail_type, detail):
    """Return the queue that a rule of template.yaml sends an event to."""
    if source == "aws.s3":
        key = detail["object"]["key"]
        if key.startswith(f"{CAPTURE_PREFIX}/{ENDPOINT}/") and key.endswith(".jsonl"):
            return "count"
        if _MONITOR_KEY.fullmatch(key):
            return "swap"
        if _INDEX_KEY.fullmatch(key):
            return "render"
        return "restore" if key.startswith(f"saliency/{ENDPOINT}/") and key.endswith(".json") else None
    if source == "glassbox" and detail_type == "Glassbox Violation":
        return "swap" if detail.get("endpoint") == ENDPOINT else None
    if source == "glassbox.operator":
        if detail.get("endpoint") != ENDPOINT:
            return None
        return {"open": "swap", "extend": "restore", "abort": "restore"}.get(detail.get("action"), "restore")
    if detail_type == "SageMaker Endpoint State Change":
        return "confirm"
    return "swap" if detail_type == "SageMaker Processing Job State Change" else None


@functools.cache
def _private_key():
    """An RSA_2048 key of the simulation's own: the same in every process, so that a seed repeats exactly."""
    chance = random.Random(2048)
    p, q = _prime(chance), _prime(chance)
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def _prime(chance):
    while True:
        candidate = chance.getrandbits(1024) | (3 << 1022) | 1
        if any(candidate % small == 0 for small in _SMALL_PRIMES):
            continue
        if all(_passes(candidate, base) for base in (2, 3, 5, 7, 11)) and (candidate - 1) % 65537:
            return candidate


_SMALL_PRIMES = [n for n in range(3, 2000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]


def _passes(n, base):
    """The Miller-Rabin test."""
    d, twos = n - 1, 0
    while d % 2 == 0:
        d, twos = d // 2, twos + 1
    x = pow(base, d, n)
    if x in (1, n - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


@functools.lru_cache(maxsize=1 << 16)
def sign(message):
    return _private_key().sign(message, padding.PKCS1v15(), hashes.SHA256())


@functools.cache
def public_key():
    return (
        _private_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def base64_text(data):
    return base64.b64encode(data).decode()
