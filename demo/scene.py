"""The demo's model, pictures and attack: checked and planned before anything is deployed."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, zip_longest

import numpy as np
import torch

import package
from demo import signs
from demo.attack import BUDGETS, predict, targeted_pgd
from demo.photos import find_photos, read_photos
from glassbox.errors import BadInputError
from inference import RESNET18, load_network

STOP = 14
# The reference case: of 400 captured predictions, 322 are class 14.
ATTACK, TARGETED = 400, 322
NORMAL = 200
PAIRS = 6
THRESHOLD, THRESHOLD_OF_TWO = 0.5, 0.65  # with two classes, one has at least half of normal traffic
EVEN = 0.25  # a random sample with a larger share of one class is drawn evenly over the classes instead
POOL = 600  # pictures attacked with one budget
DISTINCT = 40  # pictures that are enough to make the rest from, with other random starts
ATTEMPTS = 3000
TRIAL, TRIAL_STEPS = 24, 20  # pictures and steps of a trial attack
STOP_RATE = 0.25  # the share of them that makes the reference case's class the target
MARGIN = 1e-3  # between the two largest probabilities, so that the endpoint's rounding changes no class


@dataclass(frozen=True)
class Scene:
    """Images (N, H, W, 3) uint8 of the model's own size, and the model; ``labels`` are -1 where unknown."""

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    model: torch.nn.Module
    config: dict
    data: str
    target: int = STOP
    threshold: float = THRESHOLD

    @property
    def names(self):
        return self.config["labels"] or [str(c) for c in range(self.probabilities.shape[1])]

    @property
    def predicted(self):
        return self.probabilities.argmax(1)

    @property
    def accuracy(self):
        """The share of right predictions; None where no label is known."""
        known = self.labels >= 0
        return float((self.predicted == self.labels)[known].mean()) if known.any() else None

    @property
    def described(self):
        """What the model makes of the images, in words."""
        if self.accuracy is None:
            return f"{self.data}; none of their folders is a class of the model"
        return f"{self.data}: {self.accuracy:.1%} classified right"

    @property
    def ordinary(self):
        """The images that the model predicts as another class than the target."""
        return np.flatnonzero(self.predicted != self.target)

    def attackable(self, random):
        """``ordinary`` in random order, those with the right prediction first."""
        right = self.predicted == self.labels
        others = self.predicted != self.target
        return np.concatenate(
            [random.permutation(np.flatnonzero(others & is_right)) for is_right in (right, ~right)]
        )

    def sample(self, indices, number, random):
        """``number`` of ``indices``: at random, or evenly over the predicted classes where one prevails."""
        predicted = self.predicted[indices]
        if len(indices) >= number and np.bincount(predicted).max() <= EVEN * len(indices):
            return random.choice(indices, number, replace=False)
        by_class = [random.permutation(indices[predicted == c]) for c in np.unique(predicted)]
        longest = max(map(len, by_class))
        turns = zip_longest(*(islice(cycle(one), longest) for one in by_class))
        return np.fromiter(islice(cycle(chain.from_iterable(turns)), number), int, number)


def load_scene(data, weights, wanted, tell):
    """The scene of a folder of photos, or of drawn signs without one; ``wanted`` is a target class or its name.

    Raises:
        BadInputError: the model, the pictures or the target class do not allow the attack.
    """
    if data is not None:
        find_photos(data)  # counts files: this error comes before the model is loaded
    model, config = load_model(weights)
    height, width = config["image_size"]
    if data is None:
        images, labels = signs.dataset(1200, seed=2026, size=height)
        described = f"{len(images)} drawn traffic signs"
    else:
        photos = read_photos(data, (width, height))
        images, labels = photos.images, class_numbers(photos.folders, config["labels"], model.fc.out_features)
        described = f"{len(images)} photos of {data}"
        _tell_of(photos, labels, tell)
    scene = Scene(images, labels, predict(model, config, images), model, config, described)
    return _aimed(scene, wanted, weights, trial=data is not None, tell=tell)


def _tell_of(photos, labels, tell):
    if photos.unreadable:
        tell(f"{len(photos.unreadable)} unreadable pictures are left out, the first: {photos.unreadable[0]}")
    if photos.found > len(photos.images) + len(photos.unreadable):
        tell(f"{len(photos.images)} of {photos.found} photos are used, evenly over the class folders")
    if unknown := sorted({name for name, label in zip(photos.folders, labels, strict=True) if label < 0}):
        tell(f"no class of the model, so not judged right or wrong: {', '.join(unknown[:5])}")


def class_numbers(folders, names, classes):
    """Return the class of each folder name, (N,) int64: by number or by the model's name for it, -1 for neither."""
    by_name = {name.casefold(): number for number, name in enumerate(names or ())}

    def number(folder):
        if folder.isdecimal() and int(folder) < classes:
            return int(folder)
        return by_name.get(folder.casefold(), -1)

    return np.array([number(folder) for folder in folders])


def load_model(weights):
    """The network and its config."""
    config = package.model_config(weights)
    if config["architecture"] != RESNET18 or len(config["mean"]) != 3:
        raise BadInputError(f"{weights} is of another kind: the demo needs a ResNet18 for RGB pictures")
    model = load_network(weights, config).requires_grad_(False)
    classes = model.fc.out_features
    if config["labels"] is None and classes == len(signs.LABELS):
        config["labels"] = list(signs.LABELS)
    return model, config


# ---------------------------------------------------------------------------- the target class


def _aimed(scene, wanted, weights, *, trial, tell):
    """The scene with target class and threshold; BadInputError names what makes the attack impossible."""
    predicted = Counter(scene.predicted.tolist())
    advice = (
        f"WEIGHTS={weights} has to know these pictures: "
        "make train ARGS='--data FOLDER --out model.pt' trains such a model."
    )
    if len(predicted) < 2:
        (only,) = predicted
        raise BadInputError(
            f"{scene.data}: expected predictions of at least 2 classes, got class {only} for every picture. {advice}"
        )
    threshold = THRESHOLD if len(predicted) > 2 else THRESHOLD_OF_TWO
    scene = replace(scene, threshold=threshold)
    if wanted is None and not trial and scene.probabilities.shape[1] > STOP:
        return scene
    targets = [_target(scene, wanted)] if wanted is not None else _likely_targets(scene)
    rates = {}
    for target in targets:
        rates[target] = _trial_rate(scene, target)
        if target == STOP and rates[target] >= STOP_RATE:
            break
    else:
        target = max(rates, key=lambda t: rates[t])
    tried = ", ".join(f"class {t} ({scene.names[t]}): {rate:.0%}" for t, rate in rates.items())
    if not rates[target]:
        raise BadInputError(
            f"{scene.data}: expected a trial attack to reach a target class, got 0 of {TRIAL} pictures ({tried}). "
            f"TARGET=… chooses another class. {advice}"
        )
    tell(f"trial attacks with {TRIAL_STEPS} steps reached {tried}")
    return replace(scene, target=target)


def _target(scene, wanted):
    """The class number of TARGET, given by number or name."""
    classes = scene.probabilities.shape[1]
    (number,) = class_numbers([wanted], scene.names, classes)
    if number < 0:
        raise BadInputError(
            f"TARGET={wanted}: expected a class of the model, 0 to {classes - 1} or its name."
        )
    return int(number)


def _likely_targets(scene):
    """Stop, where there is such a class, and the three classes that the model is least sure to exclude."""
    logarithms = np.log(scene.probabilities + 1e-12)
    classes = logarithms.shape[1]
    others = scene.predicted[:, None] != np.arange(classes)
    enough = others.sum(0) >= TRIAL
    mean = np.where(enough, (logarithms * others).sum(0) / np.maximum(1, others.sum(0)), -np.inf)
    ranked = [int(c) for c in np.argsort(-mean) if enough[c] and c != STOP][:3]
    return [STOP, *ranked] if classes > STOP and enough[STOP] else ranked


def _trial_rate(scene, target):
    """The share of some pictures that the strongest budget's epsilon makes the target, in few steps."""
    aimed = replace(scene, target=target)
    chosen = aimed.attackable(np.random.default_rng(14))[:TRIAL]
    if not len(chosen):
        return 0.0
    return len(_hits(aimed, chosen, (BUDGETS[-1][0], TRIAL_STEPS), seed=0, enough=TRIAL)[0]) / len(chosen)


# ---------------------------------------------------------------------------- the attack


@dataclass(frozen=True)
class Attack:
    """``images`` in the order they are sent; ``pairs`` are (index of the original, adversarial image)."""

    images: np.ndarray
    pairs: list
    tried: int
    distinct: int
    budget: tuple[float, int]


def numbers_needed(scene):
    """What the attack takes and may take, in words."""
    epsilon, steps = BUDGETS[-1]
    others = len(scene.ordinary)
    return (
        f"needed: {TARGETED} adversarial images of class {scene.target} ({scene.names[scene.target]}) and "
        f"{ATTACK - TARGETED} ordinary ones, from {others} pictures of other classes, used again with other random "
        f"starts where they are too few; bound: {epsilon * 255:.0f} of 255 a value, {steps} steps, "
        f"{ATTEMPTS} attempts"
    )


def plan_attack(scene, tell):
    """322 adversarial images among 78 ordinary ones, more frequent towards the end; BadInputError past the bound."""
    random = np.random.default_rng(14)
    found, tried, budget = craft(scene, scene.attackable(random)[:POOL], tell)
    spoilt = {index for index, _ in found}
    clean = np.array([i for i in scene.ordinary if i not in spoilt])
    ordinary = scene.sample(
        clean if len(clean) >= ATTACK - TARGETED else scene.ordinary, ATTACK - TARGETED, random
    )
    flags = _order(scene, random)
    adversarial, clean = iter(found), iter(ordinary)
    images = np.stack([next(adversarial)[1] if flag else scene.images[next(clean)] for flag in flags])
    return Attack(images, _pairs(scene, found), tried, len(spoilt), budget)


def craft(scene, pool, tell):
    """TARGETED pairs (index, adversarial image), the number of attempts and the budget that was used last.

    A budget is raised while it reaches fewer than DISTINCT pictures of ``pool``. The pictures that were reached are
    then attacked again, with other random starts.

    Raises:
        BadInputError: ATTEMPTS did not suffice.
    """
    found, tried, began = [], 0, time.monotonic()
    for budget in BUDGETS:
        reached = {index for index, _ in found}
        left = np.array([i for i in pool if i not in reached], int)
        enough = TARGETED if budget == BUDGETS[0] else DISTINCT - len(reached)
        hits, attempts = _hits(scene, left[: ATTEMPTS - tried], budget, seed=0, enough=enough)
        found, tried = found + hits, tried + attempts
        if len(found) >= DISTINCT:
            break
    reached, seed = np.array([index for index, _ in found], int), 0
    while len(reached) and len(found) < TARGETED and tried < ATTEMPTS:
        seed += 1
        if seed == 1:
            tell(
                f"{len(reached)} of {len(pool)} pictures reached class {scene.target} in "
                f"{time.monotonic() - began:.0f} s: they are attacked again with other random starts"
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


def _hits(scene, indices, budget, *, seed, enough):
    """The (index, image) that became the target, batch by batch until there are enough; and the attempts."""
    found, tried = [], 0
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


def _order(scene, random):
    """Which of the requests are adversarial, (ATTACK,) bool: so that the threshold is crossed under way."""
    first = random.permutation([True] * 20 + [False] * 40)
    if scene.threshold != THRESHOLD:
        first = np.arange(60) % 2 == 0  # the other class of two is never over the larger threshold in them
    more = TARGETED - int(first.sum())
    rest = random.permutation([True] * more + [False] * (ATTACK - len(first) - more))
    return np.concatenate([first, rest])


def _pairs(scene, found):
    """One pair of every class that was predicted for the originals, then others, each of another picture."""
    first = {}
    for index, image in reversed(found):
        first[index] = (index, image)
    by_class = {scene.predicted[index]: (index, image) for index, image in reversed(found)}
    chosen = list(by_class.values())[:PAIRS]
    taken = {index for index, _ in chosen}
    return (chosen + [pair for index, pair in first.items() if index not in taken])[:PAIRS]
