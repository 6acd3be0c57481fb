"""The demo's model, images and attack, which are checked before the stack is deployed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import package
from demo import signs
from demo.attack import BUDGETS, Budget, Images, predict, targeted_pgd
from demo.photos import Photos, find_photos, read_photos
from glassbox.errors import BadInputError
from glassbox.model_config import RESNET18, to_config
from inference import load_network

Classes = NDArray[np.int64]
Indices = NDArray[np.int64]
Notify = Callable[[str], None]

STOP = 14
# The reference case: of 400 captured predictions, 322 are class 14.
ATTACK, TARGETED = 400, 322
NORMAL = 200
PAIRS = 6
THRESHOLD, THRESHOLD_OF_TWO = 0.5, 0.65  # with two classes, one has at least half of normal traffic
EVEN = 0.25  # a sample with a larger share of one class is drawn evenly over the classes instead
POOL = 600  # images that are attacked with one budget
DISTINCT = 40  # reached images that suffice to make the others from, with other random starts
ATTEMPTS = 3000
TRIAL, TRIAL_STEPS = 24, 20  # images and steps of a trial attack
STOP_RATE = 0.25  # success rate of the trial attack from which the reference case's class is the target
MARGIN = 1e-3  # between the two largest probabilities, so that the endpoint's rounding changes no class


@dataclass(frozen=True)
class Scene:
    """Images in the model's size, and the model.

    Attributes:
        images: (N, H, W, 3) uint8.
        true_classes: (N,), -1 where unknown.
        probabilities: (N, K) float32, the model's.
        config: config.json of the model.
        data: a description of the images.
    """

    images: Images
    true_classes: Classes
    probabilities: NDArray[np.float32]
    model: torch.nn.Module
    config: dict[str, Any]
    data: str
    target: int = STOP
    threshold: float = THRESHOLD

    @property
    def class_names(self) -> list[str]:
        """The model's class names, or the class numbers without names."""
        names: list[str] | None = self.config["labels"]
        return names or [str(c) for c in range(self.probabilities.shape[1])]

    @property
    def predicted(self) -> Classes:
        """The predicted classes, (N,)."""
        return np.asarray(self.probabilities.argmax(1))

    @property
    def accuracy(self) -> float | None:
        """The share of correct predictions, or None if no true class is known."""
        known = self.true_classes >= 0
        return float((self.predicted == self.true_classes)[known].mean()) if known.any() else None

    @property
    def description(self) -> str:
        """The images and the model's accuracy on them."""
        if self.accuracy is None:
            return f"{self.data}; none of their folders is a class of the model"
        return f"{self.data}: {self.accuracy:.1%} classified correctly"

    @property
    def ordinary(self) -> Indices:
        """The indices of images that the model does not predict as the target."""
        return np.flatnonzero(self.predicted != self.target)

    def attackable(self, random: np.random.Generator) -> Indices:
        """Return ``ordinary`` in random order, correct predictions first."""
        correct = self.predicted == self.true_classes
        others = self.predicted != self.target
        return np.concatenate(
            [random.permutation(np.flatnonzero(others & group)) for group in (correct, ~correct)]
        )

    def sample(self, indices: Indices, number: int, random: np.random.Generator) -> Indices:
        """Return ``number`` indices at random, evenly over the classes if one has a large share."""
        predicted = self.predicted[indices]
        if len(indices) >= number and np.bincount(predicted).max() <= EVEN * len(indices):
            return random.choice(indices, number, replace=False)
        by_class = [random.permutation(indices[predicted == c]) for c in np.unique(predicted)]
        longest = max(map(len, by_class))
        turns = zip_longest(*(islice(cycle(one), longest) for one in by_class))
        return np.fromiter(islice(cycle(chain.from_iterable(turns)), number), np.int64, number)


def load_scene(data: Path | None, weights: Path, target: str | None, notify: Notify) -> Scene:
    """Load the model and its images, and choose the target of the attack.

    Args:
        data: a folder of photos; drawn signs without one.
        target: a class by number or name.
        notify: is called with each step that the user should see.

    Raises:
        BadInputError: the model, the images or the target do not allow the attack.
    """
    if data is not None:
        find_photos(data)  # only counts files, so that this error precedes the loading of the model
    model, config = load_model(weights)
    height, width = config["image_size"]
    if data is None:
        images, true_classes = signs.dataset(1200, seed=2026, size=height)
        description = f"{len(images)} drawn traffic signs"
    else:
        photos = read_photos(data, (width, height))
        images, description = photos.images, f"{len(photos.images)} photos of {data}"
    probabilities = predict(model, config, images)
    classes = probabilities.shape[1]
    if config["labels"] is None and classes == len(signs.CLASS_NAMES):
        config["labels"] = list(signs.CLASS_NAMES)
    if data is not None:
        true_classes = class_numbers(photos.folders, config["labels"], classes)
        _notify_of_photos(photos, true_classes, notify)
    scene = Scene(images, true_classes, probabilities, model, config, description)
    return _with_target(scene, target, weights, trial=data is not None, notify=notify)


def _notify_of_photos(photos: Photos, true_classes: Classes, notify: Notify) -> None:
    if photos.unreadable:
        notify(f"{len(photos.unreadable)} unreadable images are skipped, the first: {photos.unreadable[0]}")
    if photos.found > len(photos.images) + len(photos.unreadable):
        notify(f"{len(photos.images)} of {photos.found} photos are used, evenly over the class folders")
    pairs = zip(photos.folders, true_classes, strict=True)
    if unknown := sorted({folder for folder, true_class in pairs if true_class < 0}):
        notify(f"not a class of the model, and not part of its accuracy: {', '.join(unknown[:5])}")


def class_numbers(folders: Sequence[str], names: Sequence[str] | None, classes: int) -> Classes:
    """Return the class of each folder name, (N,), by number or class name; -1 for neither."""
    by_name = {name.casefold(): number for number, name in enumerate(names or ())}

    def number(folder: str) -> int:
        if folder.isdecimal() and int(folder) < classes:
            return int(folder)
        return by_name.get(folder.casefold(), -1)

    return np.array([number(folder) for folder in folders])


def load_model(weights: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the network, without gradients of its parameters, and its config."""
    config = package.model_config(weights)
    if config["architecture"] != RESNET18 or len(config["mean"]) != 3:
        raise BadInputError(
            f"{weights}: the demo needs a ResNet18 for RGB images, got {config['architecture']} for "
            f"{len(config['mean'])} channels."
        )
    return load_network(weights, to_config(config)).requires_grad_(False), config


# ---------------------------------------------------------------------------- the target class


def _with_target(scene: Scene, target: str | None, weights: Path, *, trial: bool, notify: Notify) -> Scene:
    """Return the scene with target and threshold, or raise BadInputError if the attack is impossible."""
    predicted = Counter(scene.predicted.tolist())
    advice = (
        f"WEIGHTS={weights} must be trained on such images: "
        "make train ARGS='--data FOLDER --out model.pt' trains such a model."
    )
    if len(predicted) < 2:
        [only] = predicted
        raise BadInputError(
            f"{scene.data}: expected predictions of at least 2 classes, got class {only} for every image. {advice}"
        )
    scene = replace(scene, threshold=THRESHOLD if len(predicted) > 2 else THRESHOLD_OF_TWO)
    if target is None and not trial and scene.probabilities.shape[1] > STOP:
        return scene
    candidates = [_target_number(scene, target)] if target is not None else _likely_targets(scene)
    rates: dict[int, float] = {}
    for candidate in candidates:
        rates[candidate] = _trial_rate(scene, candidate)
        if candidate == STOP and rates[candidate] >= STOP_RATE:
            chosen = candidate
            break
    else:
        chosen = max(rates, key=lambda c: rates[c])
    tried = ", ".join(f"class {c} ({scene.class_names[c]}): {rate:.0%}" for c, rate in rates.items())
    if not rates[chosen]:
        raise BadInputError(
            f"{scene.data}: expected a trial attack to reach a target class, got 0 of {TRIAL} images ({tried}). "
            f"TARGET=… chooses another class. {advice}"
        )
    notify(f"trial attacks with {TRIAL_STEPS} steps reached {tried}")
    return replace(scene, target=chosen)


def _target_number(scene: Scene, target: str) -> int:
    classes = scene.probabilities.shape[1]
    [number] = class_numbers([target], scene.class_names, classes)
    if number < 0:
        raise BadInputError(
            f"TARGET={target}: expected a class of the model, 0 to {classes - 1} or its name."
        )
    return int(number)


def _likely_targets(scene: Scene) -> list[int]:
    """Return Stop, if the model has it, and the three classes with the largest mean log-probability."""
    logarithms = np.log(scene.probabilities + 1e-12)
    classes = logarithms.shape[1]
    others = scene.predicted[:, None] != np.arange(classes)
    enough = others.sum(0) >= TRIAL
    mean = np.where(enough, (logarithms * others).sum(0) / np.maximum(1, others.sum(0)), -np.inf)
    ranked = [int(c) for c in np.argsort(-mean) if enough[c] and c != STOP][:3]
    return [STOP, *ranked] if classes > STOP and enough[STOP] else ranked


def _trial_rate(scene: Scene, target: int) -> float:
    """Return the success rate of a short attack with the largest epsilon."""
    aimed = replace(scene, target=target)
    chosen = aimed.attackable(np.random.default_rng(14))[:TRIAL]
    if not len(chosen):
        return 0.0
    return len(_hits(aimed, chosen, (BUDGETS[-1][0], TRIAL_STEPS), seed=0, enough=TRIAL)[0]) / len(chosen)


# ---------------------------------------------------------------------------- the attack


Hit = tuple[int, Images]  # the index of the original, and its adversarial image


@dataclass(frozen=True)
class Attack:
    """The attack's requests.

    Attributes:
        images: (ATTACK, H, W, 3) uint8 in the order in which they are sent.
        pairs: originals and adversarial images that the demo explains.
        tried: attempts of the attack.
        distinct: originals of the adversarial images.
    """

    images: Images
    pairs: list[Hit]
    tried: int
    distinct: int
    budget: Budget


def requirements(scene: Scene) -> str:
    """Describe what the attack needs and its limits."""
    epsilon, steps = BUDGETS[-1]
    others = len(scene.ordinary)
    return (
        f"needed: {TARGETED} adversarial images of class {scene.target} ({scene.class_names[scene.target]}) and "
        f"{ATTACK - TARGETED} ordinary ones, from {others} images of other classes, which are attacked repeatedly "
        f"with other random starts if necessary; limits: {epsilon * 255:.0f} of 255 a value, {steps} steps, "
        f"{ATTEMPTS} attempts"
    )


def plan_attack(scene: Scene, notify: Notify) -> Attack:
    """Mix TARGETED adversarial images with ordinary ones, or raise BadInputError."""
    random = np.random.default_rng(14)
    found, tried, budget = craft(scene, scene.attackable(random)[:POOL], notify)
    originals = {index for index, _ in found}
    unused = np.array([i for i in scene.ordinary if i not in originals])
    ordinary = scene.sample(
        unused if len(unused) >= ATTACK - TARGETED else scene.ordinary, ATTACK - TARGETED, random
    )
    flags = _order(scene, random)
    adversarial, clean = iter(found), iter(ordinary)
    images = np.stack([next(adversarial)[1] if flag else scene.images[next(clean)] for flag in flags])
    return Attack(images, _pairs(scene, found), tried, len(originals), budget)


def craft(scene: Scene, pool: Indices, notify: Notify) -> tuple[list[Hit], int, Budget]:
    """Return TARGETED hits, the number of attempts and the last budget.

    The budget is raised until it reaches DISTINCT images of ``pool``. The reached images are then attacked
    repeatedly, with other random starts.

    Raises:
        BadInputError: ATTEMPTS did not suffice.
    """
    found: list[Hit] = []
    tried, began = 0, time.monotonic()
    for budget in BUDGETS:
        done = {index for index, _ in found}
        left = np.array([i for i in pool if i not in done], np.int64)
        enough = TARGETED if budget == BUDGETS[0] else DISTINCT - len(done)
        hits, attempts = _hits(scene, left[: ATTEMPTS - tried], budget, seed=0, enough=enough)
        found, tried = found + hits, tried + attempts
        if len(found) >= DISTINCT:
            break
    reached, seed = np.array([index for index, _ in found], np.int64), 0
    while len(reached) and len(found) < TARGETED and tried < ATTEMPTS:
        seed += 1
        if seed == 1:
            notify(
                f"{len(reached)} of {len(pool)} images reached class {scene.target} in "
                f"{time.monotonic() - began:.0f} s and are attacked again with other random starts"
            )
        hits, attempts = _hits(
            scene, reached[: ATTEMPTS - tried], budget, seed=seed, enough=TARGETED - len(found)
        )
        found, tried = found + hits, tried + attempts
    if len(found) < TARGETED:
        raise BadInputError(
            f"{scene.data}: expected {TARGETED} images of class {scene.target}, got {len(found)} in {tried} attempts "
            f"with at most {budget[0] * 255:.0f} of 255 a value. TARGET=… chooses another class."
        )
    return found[:TARGETED], tried, budget


def _hits(scene: Scene, indices: Indices, budget: Budget, *, seed: int, enough: int) -> tuple[list[Hit], int]:
    """Attack batch by batch until ``enough`` images are the target; return these and the attempts."""
    found: list[Hit] = []
    tried = 0
    for batch in targeted_pgd(
        scene.model, scene.config, scene.images[indices], scene.target, budget, seed=seed
    ):
        probabilities = predict(scene.model, scene.config, batch)
        second = np.delete(probabilities, scene.target, axis=1).max(1)
        hits = np.flatnonzero(probabilities[:, scene.target] > second + MARGIN)
        found += [(int(indices[tried + i]), batch[i]) for i in hits]
        tried += len(batch)
        if len(found) >= enough:
            break
    return found, tried


def _order(scene: Scene, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which requests are adversarial, (ATTACK,), so that the threshold is crossed during the attack."""
    first = random.permutation([True] * 20 + [False] * 40)
    if scene.threshold != THRESHOLD:
        first = (
            np.arange(60) % 2 == 0
        )  # of two classes, the other must not exceed the larger threshold either
    more = TARGETED - int(first.sum())
    rest = random.permutation([True] * more + [False] * (ATTACK - len(first) - more))
    return np.concatenate([first, rest])


def _pairs(scene: Scene, found: list[Hit]) -> list[Hit]:
    """Return PAIRS hits of different originals, first one of each class predicted for the originals."""
    first: dict[int, Hit] = {}
    for index, image in reversed(found):
        first[index] = (index, image)
    by_class = {scene.predicted[index]: (index, image) for index, image in reversed(found)}
    chosen = list(by_class.values())[:PAIRS]
    taken = {index for index, _ in chosen}
    return (chosen + [pair for index, pair in first.items() if index not in taken])[:PAIRS]
