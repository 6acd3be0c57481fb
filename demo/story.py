"""The whole story on an embedded AWS: traffic, an attack, the swap, the pictures.

It invokes the endpoint and waits; everything else is AWS's events and the stack's own reactions. What it sees on
the way (endpoint status, counts, messages) it reads as an operator could, with boto3.
"""

import argparse
import io
import json
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from botocore.exceptions import ClientError
from rich.console import Console

from demo import page
from demo.scene import ATTACK, NORMAL, TARGETED, load_scene, numbers_needed, plan_attack
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.explanation.trace_format import REPLAY_EVENT_ID
from glassbox.monitoring.counts import WINDOW, Window, total
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker
from local.stack import running_stack

ROOT = Path(__file__).parents[1]
PER_SECOND = 25
PATIENCE = 120  # seconds that AWS may take for any one reaction


class DemoError(Exception):
    """The story did not go as it must: says what was awaited and what was seen."""


class Story:
    """What happened and when, told on the terminal and kept for the page and report.json."""

    def __init__(self):
        self._console = Console(highlight=False)
        self._began = time.monotonic()
        self.steps = []

    def seconds(self):
        return time.monotonic() - self._began

    def tell(self, text):
        self.steps.append({"seconds": round(self.seconds(), 2), "text": text})
        self._console.print(f"[dim]{self.seconds():6.1f} s[/]  {text}")

    @contextmanager
    def waiting(self, text):
        """A spinner on a terminal, nothing elsewhere."""
        with self._console.status(text):
            yield


def wait_for(what, look, seconds=PATIENCE):
    """Call ``look`` until it gives something true, and return that. DemoError names ``what`` was awaited."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)
    return found


# ---------------------------------------------------------------------------- the client of the endpoint


def npy(image):
    body = io.BytesIO()
    np.save(body, image, allow_pickle=False)
    return body.getvalue()


class Client:
    """Invokes the endpoint as its users do: one .npy image a request."""

    def __init__(self, stack):
        self._runtime = stack.client("sagemaker-runtime")
        self._endpoint = stack.outputs["EndpointName"]
        self._incidents = IncidentsTable(stack.client("dynamodb"), stack.outputs["IncidentsTable"])
        self._key = ReplayKey(stack.client("kms"), stack.outputs["ReplayKeyArn"])
        self.failed = 0

    def predict(self, image):
        return self._invoke(npy(image))

    def replay(self, image, event_id):
        """As confirm_endpoint sends one: signed, for the open incident."""
        body, incident = npy(image), self._incidents.current(self._endpoint)
        marker = write_marker(ReplayMarker(TRACE, incident.id, event_id), body, self._key.sign)
        return self._invoke(body, CustomAttributes=marker)

    def _invoke(self, body, **headers):
        answer = self._runtime.invoke_endpoint(
            EndpointName=self._endpoint,
            ContentType="application/x-npy",
            Accept="application/json",
            Body=body,
            **headers,
        )
        (prediction,) = json.loads(answer["Body"].read())["predictions"]
        return prediction

    def send(self, images, per_second, sent=lambda n, classes: None):
        """Predict ``images`` in order at a steady pace, two at a time; returns the predicted classes."""
        start, classes = time.monotonic(), [None] * len(images)

        def one(position):
            time.sleep(max(0, start + position / per_second - time.monotonic()))
            try:
                classes[position] = self.predict(images[position])["class"]
            except ClientError:
                self.failed += 1
            sent(position + 1, classes)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, range(len(images))))
        return classes


# ---------------------------------------------------------------------------- what an operator could see


@dataclass
class Watch:
    """Follows the endpoint's status and config, the violation events and the topic, in a thread of its own."""

    stack: object
    story: Story
    configs: list = field(default_factory=list)
    violations: list = field(default_factory=list)
    messages: list = field(default_factory=list)

    def __post_init__(self):
        sqs, sns, events = (self.stack.client(name) for name in ("sqs", "sns", "events"))
        self._queue = sqs.create_queue(QueueName="demo-inbox")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]
        allow = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": ["sns.amazonaws.com", "events.amazonaws.com"]},
                    "Action": "sqs:SendMessage",
                    "Resource": arn,
                }
            ],
        }
        sqs.set_queue_attributes(QueueUrl=self._queue, Attributes={"Policy": json.dumps(allow)})
        sns.subscribe(TopicArn=self.stack.outputs["Topic"], Protocol="sqs", Endpoint=arn)
        events.put_rule(Name="demo-violations", EventPattern=json.dumps({"source": ["glassbox"]}))
        events.put_targets(Rule="demo-violations", Targets=[{"Id": "inbox", "Arn": arn}])
        self._sqs, self._sagemaker = sqs, self.stack.client("sagemaker")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _follow(self):
        while not self._stop.wait(0.2):
            live = self._sagemaker.describe_endpoint(EndpointName=self.stack.outputs["EndpointName"])
            seen = (live["EndpointStatus"], live["EndpointConfigName"])
            if not self.configs or (self.configs[-1]["status"], self.configs[-1]["config"]) != seen:
                self.configs.append({"seconds": self.story.seconds(), "status": seen[0], "config": seen[1]})
            for message in self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get(
                "Messages", ()
            ):
                body = json.loads(message["Body"])
                if "detail" in body:
                    self.violations.append({"seconds": self.story.seconds(), **body["detail"]})
                else:
                    heard = json.loads(body["Message"])  # a queue gets what machines get
                    self.messages.append({"seconds": self.story.seconds(), **heard})
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])

    def first_violation(self):
        """The detail of the first violation event; None before that."""
        return self.violations[0] if self.violations else None

    def failure(self):
        """Nothing; DemoError with SageMaker's reason when the endpoint's update has failed."""
        live = self._sagemaker.describe_endpoint(EndpointName=self.stack.outputs["EndpointName"])
        if live.get("FailureReason"):
            raise DemoError(f"the endpoint was not updated: {live['FailureReason']}")

    def in_service(self, config, times=1):
        """When the endpoint was seen in service on ``config`` for the n-th time, in seconds; None before that."""
        seen = [s["seconds"] for s in self.configs if (s["status"], s["config"]) == ("InService", config)]
        return seen[times - 1] if len(seen) >= times else None


# ---------------------------------------------------------------------------- the story


def run(data, weights, target, out):
    out.mkdir(parents=True, exist_ok=True)
    story = Story()
    torch.set_num_threads(1)
    scene = load_scene(data, weights, target, story.tell)
    story.tell(f"{weights.name}: {scene.described}")
    story.tell(numbers_needed(scene))
    named = out / "model" / weights.name
    named.parent.mkdir(exist_ok=True)
    shutil.copyfile(weights, named)
    named.with_suffix(".json").write_text(json.dumps(scene.config))
    with running_stack({"MaxClassShare": str(scene.threshold)}, weights=named) as stack:
        story.tell(
            f"template.yaml deployed on the embedded AWS, endpoint {stack.outputs['EndpointName']} in service"
        )
        with story.waiting("crafting adversarial images"):
            attack = plan_attack(scene, story.tell)
        epsilon, steps = attack.budget
        story.tell(
            f"{TARGETED} adversarial images made of {attack.distinct} pictures in {attack.tried} attempts, "
            f"at most {epsilon * 255:.0f} of 255 a value, {steps} steps"
        )
        with Watch(stack, story) as watch:
            report = play(story, scene, attack, stack, watch)
    report |= {"steps": story.steps, "endpoint_configs": watch.configs, "messages": watch.messages}
    story.tell(f"the page: {page.write(report, out)}")


class Curve:
    """The share of the target among the predictions so far, and when in it something was first seen."""

    def __init__(self, watch, scene, events):
        self._watch, self._scene, self._events = watch, scene, events
        self.points, self.marks, self.over = [], [], None

    def sent(self, n, classes):
        known = [c for c in classes if c is not None]
        self.points.append((n, known.count(self._scene.target) / max(1, len(known))))
        if self.over is None and n > 50 and self.points[-1][1] > self._scene.threshold:
            self.over = self._watch.story.seconds()
        marked = {mark["text"] for mark in self.marks}
        self.marks += [
            {"n": n, "text": text} for text, seen in self._events.items() if text not in marked and seen()
        ]


def ask_for_pairs(client, scene, attack, watch, hooked):
    """As soon as the hooked model serves: each pair, signed as a replay (always traced, never counted)."""
    wait_for("the hooked model in service", lambda: watch.in_service(hooked) or watch.failure())
    requests = {}
    for number, (index, image) in enumerate(attack.pairs):
        for kind, picture in (("clean", scene.images[index]), ("adversarial", image)):
            requests[f"{kind}-{number}"] = datetime.now(UTC)
            client.replay(picture, f"{kind}-{number}")
            time.sleep(0.25)
    return requests


def play(story, scene, attack, stack, watch):
    """From normal traffic to the endpoint as it was; returns what report.json says."""
    client, target = Client(stack), scene.target
    plain, hooked = stack.outputs["PlainConfig"], stack.outputs["HookedConfig"]
    wait_for("the endpoint in service", lambda: watch.in_service(plain))
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    later = hour + timedelta(hours=2)  # so that no window holds both

    stack.set_capture_clock(hour + timedelta(minutes=5))
    everyday = scene.sample(np.arange(len(scene.images)), NORMAL, np.random.default_rng(1))
    with story.waiting("normal traffic"):
        client.send(scene.images[everyday], per_second=4 * PER_SECOND)
        normal = counted(stack, hour, NORMAL)
    story.tell(
        f"normal traffic: {NORMAL} predictions counted, "
        f"{normal.get(target, 0) / NORMAL:.1%} of them class {target}, no violation"
    )
    if watch.violations:
        raise DemoError(f"normal traffic was judged a violation: {watch.violations[0]['reason']}")

    stack.set_capture_clock(later + timedelta(minutes=5))
    curve = Curve(
        watch, scene, {"violation": watch.first_violation, "hooked": lambda: watch.in_service(hooked)}
    )
    with story.waiting("the attack"), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_for_pairs, client, scene, attack, watch, hooked)
        client.send(attack.images, PER_SECOND, curve.sent)
        story.tell(f"attack: {ATTACK} requests sent, {client.failed} failed")
        counts = counted(stack, later, ATTACK)
        violation = wait_for("a violation", watch.first_violation)
        requests = asking.result()
    story.tell(f"violation after {violation['sample_size']} predictions: {violation['reason']}")
    story.tell(
        f"at the end {counts.get(target, 0)} of {sum(counts.values())} captured predictions are class {target}"
    )
    if counts.get(target) != TARGETED:
        raise DemoError(
            f"{counts.get(target, 0)} predictions of class {target} were counted, {TARGETED} were sent"
        )
    story.tell(f"the endpoint went to {hooked}, the debugger-hooked twin")
    with story.waiting("the pictures and the way back"):
        wait_for("a picture of every pair", lambda: rendered(stack, requests))
        restored = wait_for("the plain model in service again", lambda: watch.in_service(plain, times=2))
        wait_for("the message that it is over", lambda: len(watch.messages) >= 2)
        pictures = rendered(stack, requests)
    delays = [p["delay"] for p in pictures if "delay" in p]
    story.tell(
        f"{len(pictures)} pictures, {np.median(delays):.1f} s from request to picture (longest {max(delays):.1f} s)"
    )
    story.tell(f"the endpoint is back on {plain}, and ops have the report")
    return {
        "headline": f"{counts[target]} of {ATTACK} predictions became “{scene.names[target]}”",
        "data": scene.described,
        "accuracy": scene.accuracy,
        "model": f"ResNet18, {sum(p.numel() for p in scene.model.parameters()):,} parameters",
        "attack": {
            "method": "targeted PGD",
            "target": target,
            "epsilon": attack.budget[0],
            "steps": attack.budget[1],
            "tried": attack.tried,
            "distinct": attack.distinct,
            "used": TARGETED,
        },
        "counts": {
            "normal": {"captured": sum(normal.values()), "classes": normal},
            "attack": {
                "captured": sum(counts.values()),
                "classes": counts,
                "target_share": counts[target] / sum(counts.values()),
            },
        },
        "violation": violation,
        "failed_requests": client.failed,
        "pictures": [{k: v for k, v in p.items() if k != "png"} for p in pictures],
        "timings": {
            "first_over_threshold_to_violation": violation["seconds"] - curve.over,
            "violation_to_hooked": watch.in_service(hooked) - violation["seconds"],
            "hooked_to_restored": restored - watch.in_service(hooked),
            "request_to_picture_median": float(np.median(delays)),
            "request_to_picture_max": max(delays),
        },
        "page": {
            "target": target,
            "threshold": scene.threshold,
            "names": scene.names,
            "curve": curve.points,
            "marks": curve.marks,
            "pairs": [(scene.images[index], image) for index, image in attack.pairs],
            "png": {p["id"]: p["png"] for p in pictures},
            "incident": incident_page(stack),
        },
    }


def incident_page(stack):
    """The page that the stack made for ops."""
    s3, bucket = stack.client("s3"), stack.outputs["Bucket"]
    (page,) = s3.list_objects_v2(Bucket=bucket, Prefix="incidents/")["Contents"]
    return s3.get_object(Bucket=bucket, Key=page["Key"])["Body"].read()


def counted(stack, hour, n):
    """The counts per class of the hour from ``hour``, once ``n`` predictions are counted."""
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    stream, window = f"{stack.outputs['EndpointName']}/AllTraffic", Window(hour, hour + WINDOW)

    def look():
        counts = total(table.read(stream, window).values())
        return counts if counts.sample_size >= n else None

    classes = wait_for(f"{n} counted predictions", look).classes
    if classes.total() != n:
        raise DemoError(f"{classes.total()} predictions were counted, {n} were sent")
    return dict(classes)


def rendered(stack, requests):
    """Facts, bytes and delay of every picture, once there is one for each of ``requests`` (id -> when it was sent)."""
    s3, bucket = stack.client("s3"), stack.outputs["Bucket"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="saliency/")
    written = {o["Key"]: o["LastModified"] for page in pages for o in page.get("Contents", ())}
    facts = {Path(key).stem: key for key in written if key.endswith(".json")}
    if not requests.keys() <= facts.keys():
        return None
    pictures = []
    for name, key in sorted(facts.items()):
        said = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        replayed = said["request"].get(REPLAY_EVENT_ID)
        kind = re.sub(r"-\d+$", "", name) if name in requests else "flagged" if replayed else "live"
        picture = {
            "id": name,
            "kind": kind,
            "class": said["predicted_class"],
            "class_name": said["class_name"],
            "probability": said["probability"],
            "completeness_error": said["completeness"]["relative_error"],
            "complete": said["completeness"]["complete"],
            "key": key.removesuffix("json") + "png",
        }
        if name in requests:
            picture["delay"] = (written[picture["key"]] - requests[name]).total_seconds()
        picture["png"] = s3.get_object(Bucket=bucket, Key=picture["key"])["Body"].read()
        pictures.append(picture)
    return pictures


def main(argv=None):
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of pictures, one folder per class; 100 pictures and 2 classes at least (default: drawn signs)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=ROOT / "demo/weights/signs_w16.pt",
        help="state dict of a ResNet18 for RGB pictures (default: of drawn signs)",
    )
    parser.add_argument(
        "--target",
        help="class that the attack aims at, by number or name (default: 14, or what trial attacks reach)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/demo")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.data, arguments.weights, arguments.target, arguments.out)
    except (DemoError, GlassboxError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0
