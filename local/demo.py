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
from PIL import Image
from rich.console import Console

from glassbox.aws.counts_table import CountsTable
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.errors import GlassboxError
from glassbox.replay_marker import TRACE, ReplayMarker, write_marker
from glassbox.tally import WINDOW, Window, total
from glassbox.tensor_names import REPLAY_EVENT_ID
from local import demo_page, signs
from local.attack import EPSILON, STEPS, predict, targeted_pgd
from local.stack import running_stack
from model_code import package

# the serving code finds its neighbours beside it, as in model.tar.gz
sys.path.append(str(Path(__file__).parents[1] / "model_code"))

from inference import RESNET18, load_network

ROOT = Path(__file__).parents[1]
TARGET = 14  # stop
# The reference case: of 400 captured predictions, 322 are class 14.
ATTACK, TARGETED = 400, 322
NORMAL = 200
PAIRS = 6
PER_SECOND = 25
THRESHOLD = 0.5
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


# ---------------------------------------------------------------------------- the model and the images


@dataclass(frozen=True)
class Scene:
    """Images (N, H, W, 3) uint8 of the model's own size with their classes, and the model."""

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    model: torch.nn.Module
    config: dict
    data: str

    @property
    def names(self):
        return self.config["labels"] or [str(c) for c in range(self.probabilities.shape[1])]

    @property
    def predicted(self):
        return self.probabilities.argmax(1)

    @property
    def accuracy(self):
        return float((self.predicted == self.labels).mean())

    @property
    def candidates(self):
        """The images to attack: what the model knows, and is no stop sign."""
        return np.flatnonzero((self.predicted == self.labels) & (self.labels != TARGET))

    @property
    def ordinary(self):
        """The images that the model takes for no stop sign."""
        return np.flatnonzero(self.predicted != TARGET)


def load_scene(data, weights):
    """DemoError or BadInputError where the story cannot be told with this model or these images."""
    model, config = load_model(weights)
    height, width = config["image_size"]
    if data is None:
        images, labels = signs.dataset(1200, seed=2026, size=height)
        described = f"{len(images)} drawn traffic signs"
    else:
        images, labels = read_folder(data, (width, height))
        described = f"{len(images)} photos of {data}"
    scene = Scene(images, labels, predict(model, config, images), model, config, described)
    right, others = len(scene.candidates), len(scene.ordinary)
    if right < TARGETED or others < ATTACK:
        raise DemoError(
            f"too few for the attack: of {described} the model takes {others} for another class than {TARGET}, "
            f"{right} of them rightly; {ATTACK} and {TARGETED} are needed"
        )
    return scene


def load_model(weights):
    """The network and its config."""
    config = package.model_config(weights)
    if config["architecture"] != RESNET18 or len(config["mean"]) != 3:
        raise DemoError(f"{weights} is of another kind: the demo needs a ResNet18 for RGB pictures")
    model = load_network(weights, config).requires_grad_(False)
    classes = model.fc.out_features
    if classes <= TARGET:
        raise DemoError(
            f"{weights} knows {classes} classes: the attack aims at class {TARGET}, counted from 0"
        )
    if config["labels"] is None and classes == len(signs.LABELS):
        config["labels"] = list(signs.LABELS)
    return model, config


def read_folder(folder, size):
    """Every image below ``folder``/<class number>/, resized to ``size`` (width, height)."""
    files = sorted(f for f in folder.glob("*/*") if f.suffix.lower() in {".png", ".jpg", ".jpeg", ".ppm"})
    if not files:
        raise DemoError(f"{folder} holds no images: one folder per class number is expected")
    if foreign := sorted({file.parent.name for file in files if not file.parent.name.isdecimal()}):
        raise DemoError(
            f"{folder}: {', '.join(foreign[:5])} is no class number: each folder is named by its class, "
            f"0, 1, … as the model counts them ({TARGET} is stop)"
        )
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)))
    return np.stack(images), np.array([int(file.parent.name) for file in files])


@dataclass(frozen=True)
class Attack:
    """``images`` in the order they are sent; ``pairs`` are (index of the original, adversarial image)."""

    images: np.ndarray
    targeted: np.ndarray  # (N,) bool
    pairs: list
    tried: int


def plan_attack(scene, story):
    """322 adversarial images that the model takes for stop signs among 78 ordinary ones, thicker towards the end."""
    random = np.random.default_rng(14)
    candidates = random.permutation(scene.candidates)
    found, tried = [], 0
    with story.waiting("crafting adversarial images"):
        for batch in targeted_pgd(scene.model, scene.config, scene.images[candidates], TARGET):
            hits = predict(scene.model, scene.config, batch).argmax(1) == TARGET
            found += [(candidates[tried + i], batch[i]) for i in np.flatnonzero(hits)]
            tried += len(batch)
            if len(found) >= TARGETED:
                break
    if len(found) < TARGETED:
        raise DemoError(
            f"only {len(found)} of {tried} images could be made class {TARGET}, {TARGETED} are needed"
        )
    found = found[:TARGETED]
    spoilt = {index for index, _ in found}
    ordinary = [i for i in scene.ordinary if i not in spoilt]
    ordinary = random.choice(ordinary, ATTACK - TARGETED, replace=False)
    # two thirds of the first 60 are ordinary, so that the threshold is crossed under way
    flags = np.concatenate(
        [random.permutation([True] * 20 + [False] * 40), random.permutation([True] * 302 + [False] * 38)]
    )
    adversarial, clean = iter(found), iter(ordinary)
    images = np.stack([next(adversarial)[1] if flag else scene.images[next(clean)] for flag in flags])
    one_per_class = {scene.labels[index]: (index, image) for index, image in reversed(found)}
    return Attack(images, flags, list(one_per_class.values())[:PAIRS], tried)


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


def run(data, weights, out):
    out.mkdir(parents=True, exist_ok=True)
    story = Story()
    torch.set_num_threads(1)
    scene = load_scene(data, weights)
    story.tell(f"{weights.name}: {scene.accuracy:.1%} of {scene.data} are classified right")
    named = out / "model" / weights.name
    named.parent.mkdir(exist_ok=True)
    shutil.copyfile(weights, named)
    named.with_suffix(".json").write_text(json.dumps(scene.config))
    with running_stack({"Threshold": str(THRESHOLD)}, weights=named) as stack:
        story.tell(
            f"template.yaml deployed on the embedded AWS, endpoint {stack.outputs['EndpointName']} in service"
        )
        attack = plan_attack(scene, story)
        story.tell(
            f"{TARGETED} adversarial images made of {attack.tried}, at most {EPSILON * 255:.0f} of 255 a value"
        )
        with Watch(stack, story) as watch:
            report = play(story, scene, attack, stack, watch)
    report |= {"steps": story.steps, "endpoint_configs": watch.configs, "messages": watch.messages}
    page = demo_page.write(report, out)
    story.tell(f"the page: {page}")


class Curve:
    """The share of the target among the predictions so far, and when in it something was first seen."""

    def __init__(self, watch, events):
        self._watch, self._events = watch, events
        self.points, self.marks, self.over = [], [], None

    def sent(self, n, classes):
        known = [c for c in classes if c is not None]
        self.points.append((n, known.count(TARGET) / max(1, len(known))))
        if self.over is None and n > 50 and self.points[-1][1] > THRESHOLD:
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
    client, plain, hooked = Client(stack), stack.outputs["PlainConfig"], stack.outputs["HookedConfig"]
    wait_for("the endpoint in service", lambda: watch.in_service(plain))
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    later = hour + timedelta(hours=2)  # so that no window holds both

    stack.set_capture_clock(hour + timedelta(minutes=5))
    everyday = np.random.default_rng(1).choice(len(scene.images), NORMAL, replace=False)
    with story.waiting("normal traffic"):
        client.send(scene.images[everyday], per_second=4 * PER_SECOND)
        normal = counted(stack, hour, NORMAL)
    story.tell(
        f"normal traffic: {NORMAL} predictions counted, {share(normal):.1%} of them class {TARGET}, no violation"
    )
    if watch.violations:
        raise DemoError(f"normal traffic was judged a violation: {watch.violations[0]['reason']}")

    stack.set_capture_clock(later + timedelta(minutes=5))
    curve = Curve(watch, {"violation": watch.first_violation, "hooked": lambda: watch.in_service(hooked)})
    with story.waiting("the attack"), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_for_pairs, client, scene, attack, watch, hooked)
        client.send(attack.images, PER_SECOND, curve.sent)
        story.tell(f"attack: {ATTACK} requests sent, {client.failed} failed")
        counts = counted(stack, later, ATTACK)
        violation = wait_for("a violation", watch.first_violation)
        requests = asking.result()
    story.tell(f"violation after {violation['n']} predictions: {violation['reason']}")
    story.tell(
        f"at the end {counts.get(TARGET, 0)} of {sum(counts.values())} captured predictions are class {TARGET}"
    )
    if counts.get(TARGET) != TARGETED:
        raise DemoError(
            f"{counts.get(TARGET, 0)} predictions of class {TARGET} were counted, {TARGETED} were sent"
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
        "headline": f"{counts[TARGET]} of {ATTACK} predictions became “{scene.names[TARGET]}”",
        "data": f"{scene.data}: {scene.accuracy:.1%} classified right",
        "accuracy": scene.accuracy,
        "model": f"ResNet18, {sum(p.numel() for p in scene.model.parameters()):,} parameters",
        "attack": {
            "method": "targeted PGD",
            "epsilon": EPSILON,
            "steps": STEPS,
            "tried": attack.tried,
            "used": TARGETED,
        },
        "counts": {
            "normal": {"captured": sum(normal.values()), "classes": normal},
            "attack": {
                "captured": sum(counts.values()),
                "classes": counts,
                "class_14_share": counts[TARGET] / sum(counts.values()),
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
            "target": TARGET,
            "threshold": THRESHOLD,
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


def share(counts):
    return counts.get(TARGET, 0) / max(1, sum(counts.values()))


def counted(stack, hour, n):
    """The counts per class of the hour from ``hour``, once ``n`` predictions are counted."""
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    stream, window = f"{stack.outputs['EndpointName']}/AllTraffic", Window(hour, hour + WINDOW)

    def look():
        counts = total(table.read(stream, window).values())
        return counts if counts.n >= n else None

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
            "class": said["class"],
            "label": said["label"],
            "probability": said["probability"],
            "completeness_error": said["completeness"]["relative_error"],
            "faithful": said["completeness"]["faithful"],
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
        help=f"folder of images, one folder per class number (0, 1, …), {ATTACK} besides those of class {TARGET} "
        "(default: drawn signs)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=ROOT / "local/weights/signs_w16.pt",
        help=f"state dict of a ResNet18 for RGB pictures, {TARGET + 1} classes or more (default: of drawn signs)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/demo")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.data, arguments.weights, arguments.out)
    except (DemoError, GlassboxError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
