"""Run the demo on an embedded AWS: normal traffic, an attack, the swap to the hooked model, heat maps.

It only invokes the endpoint. AWS's events and the stack's functions do the rest, and the demo observes them with boto3
as an operator could.
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch

from demo import page
from demo.client import Client, PredictedClasses
from demo.foreign_endpoint import pack, running_foreign_stack
from demo.observer import (
    REACTION_SECONDS,
    DemoError,
    Observer,
    Progress,
    read_heatmaps,
    read_incident_report,
    wait_for_counts,
)
from demo.report import AttackFacts, Counted, Counts, Report, Timings
from demo.scene import ATTACK, NORMAL, TARGETED, Attack, Scene, load_scene, plan_attack, requirements
from glassbox.diagnosis.reference import Sample, make_reference, write_reference
from glassbox.errors import GlassboxError
from local import pytorch_inference
from local.stack import MODELS, WEIGHTS, Stack, running_stack
from local.waiting import wait_for

ROOT = Path(__file__).parents[1]
PER_SECOND = 25
REFERENCE = "reference.npz"


def run(data: Path | None, weights: Path, target: str | None, out: Path, *, foreign: bool = False) -> None:
    """Run the demo and write its page, its report and the incident report to ``out``.

    Args:
        foreign: the endpoint is of AWS's PyTorch image, and its archive does not contain the hook.
    """
    if foreign and (missing := pytorch_inference.missing()):
        raise DemoError(f"ENDPOINT=foreign: TorchServe does not run without {missing}")
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    torch.set_num_threads(1)
    scene = load_scene(data, weights, target, progress.add)
    progress.add(f"{weights.name}: {scene.description}")
    progress.add(requirements(scene))
    with _endpoint(scene, weights, out / "model", foreign=foreign) as stack:
        endpoint = stack.outputs["EndpointName"]
        stack.client("s3").put_object(Bucket=MODELS, Key=REFERENCE, Body=reference(scene))
        progress.add(f"template.yaml deployed on the embedded AWS, endpoint {endpoint} in service")
        with progress.waiting("crafting adversarial images"):
            attack = plan_attack(scene, progress.add)
        epsilon, steps = attack.budget
        progress.add(
            f"{TARGETED} adversarial images made of {attack.distinct} images in {attack.tried} attempts, "
            f"at most {epsilon * 255:.0f} of 255 a value, {steps} steps"
        )
        with Observer(stack, progress) as observer:
            report, illustrations = play(progress, scene, attack, stack, observer)
    progress.add(f"the page: {page.write(report, illustrations, out)}")


def _endpoint(
    scene: Scene, weights: Path, folder: Path, *, foreign: bool
) -> contextlib.AbstractContextManager[Stack]:
    folder.mkdir(exist_ok=True)
    parameters = {"MaxClassShare": str(scene.threshold), "Reference": f"s3://{MODELS}/{REFERENCE}"}
    if foreign:
        archive = folder / "model.tar.gz"
        pack(scene.model, scene.config, archive)
        return running_foreign_stack(archive, parameters, {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"})
    served = folder / weights.name
    shutil.copyfile(weights, served)
    served.with_suffix(".json").write_text(json.dumps(scene.config))
    return running_stack(parameters, weights=served)


def reference(scene: Scene) -> bytes:
    """Return the reference of the diagnosis, of the images of normal traffic."""
    samples = [
        Sample(image, int(p.argmax()), float(p.max()), int(true) if true >= 0 else None)
        for image, p, true in zip(scene.images, scene.probabilities, scene.true_classes, strict=True)
    ]
    return write_reference(make_reference(samples))


class Curve:
    """The share of the target among the predictions so far, with marks at the first events."""

    def __init__(self, observer: Observer, progress: Progress, scene: Scene, hooked: str) -> None:
        self._progress, self._scene = progress, scene
        self._events: Mapping[str, Callable[[], object]] = {
            "violation": observer.first_violation,
            "hooked": lambda: observer.in_service(hooked),
        }
        self.points: list[tuple[int, float]] = []
        self.marks: list[page.Mark] = []
        self.over_threshold: float | None = None  # seconds

    def add(self, number: int, classes: PredictedClasses) -> None:
        """Add the share after request ``number``."""
        received = [c for c in classes if c is not None]
        share = received.count(self._scene.target) / max(1, len(received))
        self.points.append((number, share))
        if self.over_threshold is None and number > 50 and share > self._scene.threshold:
            self.over_threshold = self._progress.seconds()
        marked = {mark.text for mark in self.marks}
        for text, happened in self._events.items():
            if text not in marked and happened():
                self.marks.append(page.Mark(number, text))


def replay_pairs(
    client: Client, scene: Scene, attack: Attack, observer: Observer, hooked: str
) -> dict[str, datetime]:
    """Send each pair when the hooked model is in service, and return when, by request id.

    The requests are signed as replays, which are always traced and never counted.
    """
    observer.wait_in_service(hooked)
    requests = {}
    for number, (index, adversarial) in enumerate(attack.pairs):
        for kind, image in (("clean", scene.images[index]), ("adversarial", adversarial)):
            requests[f"{kind}-{number}"] = datetime.now(UTC)
            client.replay(image, f"{kind}-{number}")
            time.sleep(0.25)
    return requests


def play(
    progress: Progress, scene: Scene, attack: Attack, stack: Stack, observer: Observer
) -> tuple[Report, page.Illustrations]:
    """Send normal traffic and the attack, wait for the restore, and return the facts."""
    client, target = Client(stack), scene.target
    plain, hooked = stack.outputs["PlainConfig"], stack.outputs["HookedConfig"]
    observer.wait_in_service(plain)
    normal_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    attack_hour = normal_hour + timedelta(hours=2)  # so that no window contains both

    stack.set_capture_clock(normal_hour + timedelta(minutes=5))
    everyday = scene.sample(np.arange(len(scene.images)), NORMAL, np.random.default_rng(1))
    with progress.waiting("normal traffic"):
        client.send(scene.images[everyday], per_second=4 * PER_SECOND)
        normal = _counted(wait_for_counts(stack, normal_hour, NORMAL), target)
    progress.add(
        f"normal traffic: {NORMAL} predictions counted, {normal.target_share:.1%} of them class {target}, no violation"
    )
    if observer.violations:
        raise DemoError(f"normal traffic: expected no violation, got: {observer.violations[0][1].reason}")

    stack.set_capture_clock(attack_hour + timedelta(minutes=5))
    curve = Curve(observer, progress, scene, hooked)
    with progress.waiting("the attack"), ThreadPoolExecutor(1) as pool:
        replaying = pool.submit(replay_pairs, client, scene, attack, observer, hooked)
        client.send(attack.images, PER_SECOND, curve.add)
        progress.add(f"attack: {ATTACK} requests sent, {client.failed} failed")
        counts = _counted(wait_for_counts(stack, attack_hour, ATTACK), target)
        violated, violation = wait_for(observer.first_violation, REACTION_SECONDS, "a violation")
        requests = replaying.result()
    progress.add(f"violation after {violation.sample_size} predictions: {violation.reason}")
    targeted = counts.classes.get(target, 0)
    progress.add(f"at the end {targeted} of {counts.captured} captured predictions are class {target}")
    if targeted != TARGETED:
        raise DemoError(f"class {target}: expected {TARGETED} counted predictions, got {targeted}.")
    swapped = observer.wait_in_service(hooked)
    progress.add(f"the endpoint runs {hooked}, the hooked model")
    with progress.waiting("heat maps and the restore"):
        wait_for(lambda: read_heatmaps(stack, requests), REACTION_SECONDS, "a heat map of every pair")
        restored = observer.wait_in_service(plain, times=2)
        wait_for(lambda: len(observer.notifications) >= 2, REACTION_SECONDS, "the second notification")
        heatmaps, images = wait_for(lambda: read_heatmaps(stack, requests), REACTION_SECONDS, "heat maps")
    delays = [heatmap.delay for heatmap in heatmaps if heatmap.delay is not None]
    progress.add(
        f"{len(heatmaps)} heat maps, {np.median(delays):.1f} s from request to heat map (longest {max(delays):.1f} s)"
    )
    progress.add(f"the endpoint runs {plain} again, and the incident report is ready")
    report = Report(
        headline=f"{targeted} of {ATTACK} predictions became “{scene.class_names[target]}”",
        data=scene.description,
        accuracy=scene.accuracy,
        model=f"ResNet18, {sum(p.numel() for p in scene.model.parameters()):,} parameters",
        attack=_attack_facts(attack, target),
        counts=Counts(normal=normal, attack=counts),
        violation=violation,
        failed_requests=client.failed,
        heatmaps=heatmaps,
        timings=Timings(
            first_over_threshold_to_violation=violated - (curve.over_threshold or violated),
            violation_to_hooked=swapped - violated,
            hooked_to_restored=restored - swapped,
            request_to_heatmap_median=float(np.median(delays)),
            request_to_heatmap_max=max(delays),
        ),
        steps=progress.steps,
        endpoint_configs=observer.configs,
        notifications=observer.notifications,
    )
    illustrations = page.Illustrations(
        threshold=scene.threshold,
        class_names=scene.class_names,
        curve=curve.points,
        marks=curve.marks,
        pairs=[(scene.images[index], image) for index, image in attack.pairs],
        heatmaps=images,
        incident_report=read_incident_report(stack),
    )
    return report, illustrations


def _counted(classes: dict[int, int], target: int) -> Counted:
    captured = sum(classes.values())
    return Counted(captured=captured, classes=classes, target_share=classes.get(target, 0) / captured)


def _attack_facts(attack: Attack, target: int) -> AttackFacts:
    epsilon, steps = attack.budget
    return AttackFacts(
        method="targeted PGD",
        target=target,
        epsilon=epsilon,
        steps=steps,
        tried=attack.tried,
        distinct=attack.distinct,
        used=TARGETED,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo by the command line's options and return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of images, one folder per class; at least 100 images in 2 classes (default: drawn signs)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="state dict of a ResNet18 for RGB images (default: trained on drawn signs)",
    )
    parser.add_argument(
        "--target",
        help="target class of the attack, by number or name (default: 14, or what trial attacks reach)",
    )
    parser.add_argument(
        "--foreign",
        action="store_true",
        help="an endpoint of AWS's PyTorch image whose archive does not contain the hook",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/demo")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.data, arguments.weights, arguments.target, arguments.out, foreign=arguments.foreign)
    except (DemoError, GlassboxError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0
