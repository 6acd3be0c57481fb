"""Repair inputs, ask again, and see whether the answers go back to normal: the causes of an incident.

:func:`diagnose` is pure but for ``ask``, which sends one request. Two controls are always asked first: each body
unchanged, and decoded and encoded again. A repair counts only where it brings back more than both controls, and
changes the flagged inputs more than the comparisons. All repairs are asked about SCREENED flagged inputs, the best
ones about all.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from glassbox.diagnosis import combiner, evidence
from glassbox.diagnosis.onset import Update
from glassbox.diagnosis.pixels import Decoded, Pixels, decode, written
from glassbox.diagnosis.prevalence import prevalence
from glassbox.diagnosis.reference import Reference
from glassbox.diagnosis.repairs import ENCODED, REPAIRS, UNCHANGED
from glassbox.diagnosis.wording import ACTIONS, DEPLOYMENT, LIMITS, REPAIRS_OF, sentences, update_sentences
from glassbox.errors import BadInputError, printable
from glassbox.incidents.diagnosis import LIKELY, UNKNOWN, Cause, Diagnosis, Example, Repair
from glassbox.monitoring.checks import CLASS_SHARE, LOW_CONFIDENCE_SHARE, UNREADABLE_SHARE
from glassbox.monitoring.counts import Counts
from glassbox.monitoring.response import PredictedClass
from glassbox.violation import Violation

SCREENED = 3  # flagged inputs of which every repair is asked first
FINALISTS = 3  # repairs that are asked about all inputs
EXAMPLES = 4
CONFIDENT = 0.5  # probability that an answer needs to count as brought back, without a reference
NO_REFERENCE = "no reference: set the parameter Reference (make baseline)"
_STABLE = 0.5  # share of the unchanged flagged inputs that must still give the flagged answer
_RULED_OUT = 0.02
_SIDE = 128  # pixels of an example in the report
_RESPONSES_CHANGED = 0.9
_ERROR_CHARACTERS = 300  # a line of a stored diagnosis is bounded

Ask = Callable[[bytes, str], "Answer"]


@dataclass(frozen=True)
class Answer:
    """A predicted class with its probability.

    Both are None if the answer is refused or unreadable.
    """

    label: PredictedClass | None
    confidence: float | None = None

    def __str__(self) -> str:
        if self.label is None:
            return "no class"
        return f"class {self.label}" + ("" if self.confidence is None else f", {self.confidence:.2f}")


class StoppedError(Exception):
    """The endpoint is not asked any more, for this reason."""


@dataclass(frozen=True)
class InputImage:
    """A captured input with its captured answer.

    A ``flagged`` one broke the bound; the others are for comparison.
    """

    key: str
    body: bytes
    content_type: str
    answer: Answer
    flagged: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """The violation and the counts of its window.

    ``low_confidence`` is the bound of that check. ``update`` is the endpoint's last one, None if it is not known.
    """

    violation: Violation
    counts: Counts
    low_confidence: float | None = None
    update: Update | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Requests that a diagnosis may send."""

    max_requests: int = 96


@dataclass
class _Asked:
    """Answers to one repair, by the key of the image."""

    flagged: dict[str, Answer] = field(default_factory=dict)
    comparisons: dict[str, Answer] = field(default_factory=dict)


class _Questions:
    """The requests of one diagnosis, within its limit.

    Attributes:
        sent: requests so far.
        stopped: why no more are sent, empty while they are.
    """

    def __init__(self, ask: Ask, most: int) -> None:
        self._ask, self._most = ask, most
        self.sent, self.stopped = 0, ""
        self.asked: dict[str, _Asked] = {}

    @property
    def left(self) -> int:
        """Requests that may still be sent."""
        return 0 if self.stopped else self._most - self.sent

    def put(self, repair: str, image: InputImage, body: bytes) -> None:
        """Ask about one repaired image, unless it was asked or the limit is reached."""
        asked = self.asked.setdefault(repair, _Asked())
        answers = asked.flagged if image.flagged else asked.comparisons
        if image.key in answers or not self.left:
            return
        try:
            answers[image.key] = self._ask(body, image.content_type)
        except StoppedError as error:
            self.stopped = str(error)
            return
        self.sent += 1


def diagnose(
    window: Window, images: Sequence[InputImage], ask: Ask, reference: Reference | None, limits: Limits
) -> Diagnosis:
    """Return the causes of a violation, ranked.

    Args:
        images: the captured inputs.
        ask: sends a body of a content type to the endpoint; StoppedError ends the questions.
        reference: of a reference period; without one, the diagnosis compares with ordinary photos and names that.
    """
    if window.violation.check == UNREADABLE_SHARE:
        return _responses_changed(window)
    missing = [] if reference else [NO_REFERENCE]
    decoded, problems = _decoded(images)
    if problems:
        missing.append(f"{len(problems)} of {len(images)} inputs are not images: {_short(problems[0])}")
    shown = [image for image in images if image.key in decoded]
    flagged = [image for image in shown if image.flagged]
    if not flagged:
        missing.append("no flagged input was captured as an image, so none was repaired")
        ranked = _with_update([(UNKNOWN, 1.0)], window.update) if window.update else [(UNKNOWN, 1.0)]
        causes = tuple(Cause(name, p, update_sentences(name, window.update)) for name, p in ranked if p)
        action, command = _action(causes, window)
        return Diagnosis(causes=causes, missing=tuple(missing), action=action, command=command, limits=LIMITS)
    case = _Case(window, shown, decoded, reference)
    questions, stable = _asked(case, ask, limits)
    if questions.stopped:
        missing.append(f"the questions ended early: {_short(questions.stopped)}")
    elif questions.sent >= limits.max_requests:
        missing.append(f"the questions ended at the limit of {limits.max_requests} requests")
    repairs = [case.result(name, asked, questions) for name, asked in questions.asked.items()]
    weights = combiner.load("with_reference" if reference else "without")
    found = case.evidence(repairs, weights.looks)
    ranked = _ranked(weights.causes.probabilities(evidence.vector(found)).tolist())
    ruled_out = tuple(name for name, p in ranked if p < _RULED_OUT and name != UNKNOWN) if stable else ()
    if reference is None:
        ranked = _repaired_causes(ranked, repairs)
    if window.update:
        ranked = _with_update(ranked, window.update)
    if not stable:
        why = "the endpoint changed, or answers at random: unchanged inputs no longer give the flagged answer"
        missing.insert(0, why)
        ranked = [(UNKNOWN, 1.0)]
    causes = tuple(
        Cause(
            name,
            round(p, 4),
            sentences(name, found, repairs, weigh=reference is not None, prevalence=case.shares)
            + update_sentences(name, window.update),
        )
        for name, p in ranked
    )
    best = max((r for r in repairs if r.counts), key=lambda r: (r.back / r.flagged, r.back), default=None)
    action, command = _action(causes, window)
    return Diagnosis(
        causes=causes[:5],
        ruled_out=ruled_out,
        repairs=tuple(repairs),
        not_asked=case.not_asked(questions),
        missing=tuple(missing),
        affected=case.affected(),
        examples=case.examples(best, questions),
        action=action,
        command=command,
        limits=LIMITS,
        requests=questions.sent,
    )


def _action(causes: Sequence[Cause], window: Window) -> tuple[str, str]:
    """Return the action for the most probable cause, and its command."""
    action, command = ACTIONS[causes[0].name if causes[0].probability >= LIKELY else UNKNOWN]
    return action, command.format(endpoint=window.violation.endpoint)


def observe(
    window: Window,
    images: Sequence[InputImage],
    ask: Ask,
    reference: Reference | None,
    limits: Limits,
    looks: combiner.Weights,
) -> dict[str, float]:
    """Return the evidence of a window.

    Args:
        images: images that :func:`glassbox.diagnosis.pixels.decode` reads, one flagged at least.
        looks: the regression of one image.

    Raises:
        BadInputError: an image cannot be read.
    """
    decoded = {image.key: decode(image.body) for image in images}
    case = _Case(window, images, decoded, reference)
    questions, _ = _asked(case, ask, limits)
    return case.evidence([case.result(n, a, questions) for n, a in questions.asked.items()], looks)


def _asked(case: "_Case", ask: Ask, limits: Limits) -> tuple[_Questions, bool]:
    questions = _Questions(ask, limits.max_requests)
    stable = _ask_controls(case, questions)
    if stable:
        _ask_repairs(case, questions)
    return questions, stable


def _responses_changed(window: Window) -> Diagnosis:
    counts = window.counts
    total = counts.records + counts.unreadable
    line = f"{counts.unreadable} of {total} responses cannot be read; see the reason of the violation"
    action, command = ACTIONS["the response changed"]
    return Diagnosis(
        causes=(Cause("the response changed", _RESPONSES_CHANGED, (line,)),),
        affected=counts.unreadable / total if total else None,
        action=action,
        command=command.format(endpoint=window.violation.endpoint),
        limits="Repaired inputs were not sent: an unreadable answer has no class that could go back to normal.",
    )


def _decoded(images: Sequence[InputImage]) -> tuple[dict[str, Decoded], list[str]]:
    decoded, problems = {}, []
    for image in images:
        try:
            decoded[image.key] = decode(image.body)
        except BadInputError as error:
            problems.append(str(error))
    return decoded, problems


class _Case:
    """The images of one window, and what its answers mean."""

    def __init__(
        self,
        window: Window,
        images: Sequence[InputImage],
        decoded: dict[str, Decoded],
        reference: Reference | None,
    ) -> None:
        self.window, self.decoded, self.reference = window, decoded, reference
        self.flagged = [image for image in images if image.flagged]
        self.comparisons = [image for image in images if not image.flagged]
        quartile = reference.confidence_quartile if reference else None
        self.bar = CONFIDENT if quartile is None else quartile
        flagged = [decoded[p.key].pixels for p in self.flagged]
        others = [decoded[p.key].pixels for p in self.comparisons]
        self.images = evidence.Images(
            evidence.of_images(flagged, [p.answer.label for p in self.flagged], reference),
            evidence.of_images(others, [p.answer.label for p in self.comparisons], reference),
            *evidence.hashes(flagged),
        )
        self.shares = prevalence(reference, window.counts.classes) if reference else None

    def is_back(self, image: InputImage, answer: Answer) -> bool:
        """Return whether the answer to a flagged image is normal again."""
        if answer.label is None:
            return False
        if self.window.violation.check == LOW_CONFIDENCE_SHARE:
            return answer.confidence is not None and answer.confidence >= (self.window.low_confidence or 0)
        return answer.label != image.answer.label and (
            answer.confidence is None or answer.confidence >= self.bar
        )

    def is_flagged(self, image: InputImage, answer: Answer) -> bool:
        """Return whether the answer to a flagged image still breaks the bound."""
        if self.window.violation.check == LOW_CONFIDENCE_SHARE:
            return answer.label is not None and not self.is_back(image, answer)
        return answer.label is not None and answer.label == image.answer.label

    def share_back(self, asked: _Asked) -> float:
        """Return the share of the asked flagged images whose answer is normal again."""
        if not asked.flagged:
            return 0.0
        by_key = {image.key: image for image in self.flagged}
        return sum(self.is_back(by_key[k], answer) for k, answer in asked.flagged.items()) / len(
            asked.flagged
        )

    def result(self, name: str, asked: _Asked, questions: _Questions) -> Repair:
        """Return what one repair did, compared with the controls."""
        flagged = {image.key: image for image in self.flagged}
        others = {image.key: image for image in self.comparisons}
        back = sum(self.is_back(flagged[key], answer) for key, answer in asked.flagged.items())
        changed = sum(answer.label != others[k].answer.label for k, answer in asked.comparisons.items())
        share = back / max(1, len(asked.flagged))
        beyond = all(share > self.share_back(questions.asked.get(c, _Asked())) for c in (UNCHANGED, ENCODED))
        counts = name in REPAIRS and beyond and share > changed / max(1, len(asked.comparisons))
        return Repair(
            name=name,
            flagged=len(asked.flagged),
            back=back,
            comparisons=len(asked.comparisons),
            changed=changed,
            interval=_wilson(back, len(asked.flagged)),
            counts=counts,
        )

    def evidence(self, repairs: Sequence[Repair], looks: combiner.Weights) -> dict[str, float]:
        """Return the evidence of images, answers and counts."""
        found = evidence.of_window(self.images, looks)
        controls = [r.back / r.flagged for r in repairs if r.name in (UNCHANGED, ENCODED) and r.flagged]
        base = max(controls, default=0.0)
        asked = [r for r in repairs if r.name in REPAIRS and r.flagged]
        found |= evidence.of_repairs(
            {r.name: max(0.0, r.back / r.flagged - base) for r in asked},
            {r.name: r.changed / r.comparisons for r in asked if r.comparisons},
            frozenset(r.name for r in asked if r.flagged == len(self.flagged)),
        )
        confidences = [p.answer.confidence for p in self.flagged if p.answer.confidence is not None]
        if confidences:
            found["confidence of the flagged"] = float(np.mean(confidences))
        check = self.window.violation.check
        found["a class has a large share"] = float(check == CLASS_SHARE)
        found["many answers are unsure"] = float(check == LOW_CONFIDENCE_SHARE)
        if self.reference is not None:
            found |= evidence.of_counts(self.window.counts.classes, self.reference, self.shares)
        return found

    def affected(self) -> float | None:
        """Return the share of the window's predictions that broke the bound beyond the reference's share."""
        counts, cause = self.window.counts, self.window.violation
        if cause.check == LOW_CONFIDENCE_SHARE:
            return counts.low_confidence / counts.with_confidence if counts.with_confidence else None
        if cause.predicted_class is None or not counts.sample_size:
            return None
        share = counts.classes[cause.predicted_class] / counts.sample_size
        if self.reference is None or not self.reference.classes.total():
            return share
        usual = self.reference.classes[cause.predicted_class] / self.reference.classes.total()
        return max(0.0, min(1.0, (share - usual) / max(1e-9, 1 - usual)))

    def not_asked(self, questions: _Questions) -> tuple[str, ...]:
        """Return the repairs that were asked of some flagged inputs only, or of none."""
        lines = []
        for name in REPAIRS:
            asked = len(questions.asked.get(name, _Asked()).flagged)
            if asked == 0:
                lines.append(name)
            elif asked < len(self.flagged):
                lines.append(f"{name}, for {len(self.flagged) - asked} of {len(self.flagged)} flagged inputs")
        return tuple(lines)

    def examples(self, best: Repair | None, questions: _Questions) -> tuple[Example, ...]:
        """Return flagged images before and after the best repair, those that it brought back first."""
        answers = questions.asked[best.name].flagged if best else {}
        ordered = sorted(
            self.flagged, key=lambda p: not (p.key in answers and self.is_back(p, answers[p.key]))
        )
        return tuple(self._example(p, best, answers.get(p.key)) for p in ordered[:EXAMPLES])

    def _example(self, image: InputImage, best: Repair | None, answer: Answer | None) -> Example:
        pixels = self.decoded[image.key].pixels
        repaired = _shown(REPAIRS[best.name](pixels)) if best and answer else ""
        nearest: tuple[str, ...] = ()
        if self.reference is not None and self.reference.jpegs:
            found = self.reference.nearest(pixels)
            nearest = tuple(base64.b64encode(self.reference.jpegs[i]).decode() for _, i in found)
        return Example(
            name=image.key[:64],
            before=_shown(pixels),
            after=repaired,
            answer_before=str(image.answer),
            answer_after=f"{best.name}: {answer}" if best and answer else "",
            nearest=nearest,
        )


def _ask_controls(case: _Case, questions: _Questions) -> bool:
    """Ask about the unchanged and the encoded inputs; return whether the unchanged ones are still flagged."""
    for name in (UNCHANGED, ENCODED):
        for image in (*case.flagged, *case.comparisons):
            decoded = case.decoded[image.key]
            body = image.body if name == UNCHANGED else decoded.encode(decoded.pixels)
            questions.put(name, image, body)
    asked = questions.asked.get(UNCHANGED, _Asked())
    if not asked.flagged:
        return True  # nothing was answered: nothing speaks against it
    by_key = {image.key: image for image in case.flagged}
    still = sum(case.is_flagged(by_key[key], answer) for key, answer in asked.flagged.items())
    return still / len(asked.flagged) >= _STABLE


def _ask_repairs(case: _Case, questions: _Questions) -> None:
    """Ask about every repair of a few flagged inputs, then about the best repairs of all inputs."""
    order = _likely_first(case)
    for name in order:
        for image in case.flagged[:SCREENED]:
            questions.put(name, image, _repaired(case, name, image))
    scores = {name: case.share_back(questions.asked.get(name, _Asked())) for name in order}
    base = max(case.share_back(questions.asked.get(name, _Asked())) for name in (UNCHANGED, ENCODED))
    finalists = sorted((n for n in order if scores[n] > base), key=lambda n: -scores[n])[:FINALISTS]
    for name in finalists:
        for image in (*case.flagged, *case.comparisons):
            questions.put(name, image, _repaired(case, name, image))


def _repaired(case: _Case, name: str, image: InputImage) -> bytes:
    decoded = case.decoded[image.key]
    return decoded.encode(REPAIRS[name](decoded.pixels))


def _likely_first(case: _Case) -> list[str]:
    """Return the repairs, those first that the images' statistics make likely: the limit may leave out the last."""
    z = dict(zip(evidence.IMAGE_EVIDENCE, np.median(case.images.flagged, 0), strict=True))
    likely = {
        "brightened (gamma 0.4)": -z["brightness"],
        "darkened (gamma 2)": z["brightness"],
        "contrast stretched": z["dark"] - z["light"],
        "sharpened": -z["sharpness"],
        "smoothed (3 x 3 median)": z["noise"],
        "channels swapped": abs(z["red over blue"]),
        "mirrored top to bottom": abs(z["light above"]),
        "turned by 180 degrees": abs(z["light above"]),
        "values times 255": z["black"],
        "compressed (JPEG 50)": 1.5,
        "reduced to 4 bits": 1.0,
    }
    return sorted(REPAIRS, key=lambda name: -likely[name])


def _ranked(probabilities: Sequence[float]) -> list[tuple[str, float]]:
    """Return the causes, the most probable first; what names no cause is unknown."""
    named = {UNKNOWN: 0.0}
    for cause, p in zip(combiner.CAUSES, probabilities, strict=True):
        name = UNKNOWN if cause in ("another", "usual") else cause
        named[name] = named.get(name, 0.0) + float(p)
    return sorted(named.items(), key=lambda item: -item[1])


def _repaired_causes(ranked: list[tuple[str, float]], repairs: Sequence[Repair]) -> list[tuple[str, float]]:
    """Return the causes, where those that a repair undoes count as unknown if none did.

    Ordinary photos differ too much between cameras: without a reference, the statistics of the images alone called
    half of the clean windows of dark photos too dark.
    """
    done = {repair.name for repair in repairs if repair.counts}
    probabilities = dict(ranked)
    for name in REPAIRS_OF:
        if done.isdisjoint(REPAIRS_OF[name]):
            probabilities[UNKNOWN] += probabilities[name]
            probabilities[name] = 0.0
    return sorted(probabilities.items(), key=lambda item: -item[1])


def _with_update(ranked: list[tuple[str, float]], update: Update) -> list[tuple[str, float]]:
    """Return the causes with the deployment, which takes its share of what the images do not explain."""
    probabilities = dict(ranked)
    taken = {name: update.chance * probabilities.get(name, 0.0) for name in (UNKNOWN, "prevalence")}
    probabilities |= {name: probabilities.get(name, 0.0) - p for name, p in taken.items()}
    probabilities[DEPLOYMENT] = sum(taken.values())
    return sorted(probabilities.items(), key=lambda item: -item[1])


def _short(error: str) -> str:
    return printable(error, _ERROR_CHARACTERS)


def _shown(pixels: Pixels) -> str:
    step = max(1, -(-max(pixels.shape[:2]) // _SIDE))
    return base64.b64encode(written(np.ascontiguousarray(pixels[::step, ::step]))).decode()


def _wilson(k: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    share = k / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)
