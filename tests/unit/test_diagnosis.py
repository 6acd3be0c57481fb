"""The causes of an incident, by repaired inputs that are asked about again."""

import base64
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.special import softmax
from scipy.stats import norm, rankdata

from demo import signs
from glassbox.diagnosis import combiner, evidence, pixels
from glassbox.diagnosis.diagnosis import (
    Answer,
    InputImage,
    Limits,
    StoppedError,
    Window,
    _repaired_causes,
    diagnose,
)
from glassbox.diagnosis.reference import (
    REFERENCE_BYTES,
    Sample,
    make_reference,
    read_reference,
    write_reference,
)
from glassbox.diagnosis.repairs import ENCODED, REPAIRS, UNCHANGED
from glassbox.diagnosis.wording import REPAIRS_OF, sentences
from glassbox.errors import BadInputError
from glassbox.incidents.diagnosis import UNKNOWN, Repair, read_diagnosis, write_diagnosis
from glassbox.monitoring.counts import Counts
from glassbox.violation import Violation

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
IMAGES, CLASSES = signs.dataset(60, seed=5, size=48)


def window(check="class_share", predicted_class=14, **counts):
    cause = Violation(
        "shop", check, START, START + timedelta(hours=1), "why", predicted_class=predicted_class
    )
    found = Counts(**({"classes": Counter({14: 322, 3: 78}), "records": 400} | counts))
    return Window(violation=cause, counts=found, low_confidence=0.6)


def inputs(images, *, flagged=12, kind="PNG", label=14):
    return [
        InputImage(f"event-{i}", pixels.written(image, kind), "image/png", Answer(label, 0.9), True)
        if i < flagged
        else InputImage(f"event-{i}", pixels.written(image, kind), "image/png", Answer(3, 0.9), False)
        for i, image in enumerate(images)
    ]


class Endpoint:
    """Answers class 14 to images that ``is_wrong`` holds for, and class 3 to the others."""

    def __init__(self, is_wrong, fail_after=None):
        self.is_wrong, self.fail_after, self.bodies = is_wrong, fail_after, []

    def __call__(self, body, content_type):
        if self.fail_after is not None and len(self.bodies) >= self.fail_after:
            raise StoppedError("throttled")
        self.bodies.append(body)
        return Answer(14 if self.is_wrong(pixels.decode(body).pixels) else 3, 0.9)


def is_dark(image):
    return image.mean() < 45


DARK = (IMAGES[:16] * 0.1).astype(np.uint8)
BRIGHT_COMPARISONS = np.concatenate([DARK[:12], IMAGES[12:16]])


def repair(found, name):
    (one,) = (r for r in found.repairs if r.name == name)
    return one


class TestRepairsAndAnswers:
    def test_a_repair_that_brings_the_answers_back_counts(self):
        found = diagnose(window(), inputs(BRIGHT_COMPARISONS), Endpoint(is_dark), None, Limits())
        brightened = repair(found, "brightened (gamma 0.4)")
        assert (brightened.flagged, brightened.comparisons, brightened.changed) == (12, 4, 0)
        assert brightened.back >= 10 and brightened.counts
        assert not repair(found, "channels swapped").counts
        # Wilson's interval, by an independent formula
        share, n, z = brightened.back / 12, 12, 1.959964
        roots = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
        assert brightened.interval == pytest.approx((min(roots), min(1.0, max(roots))), abs=1e-6)

    def test_both_controls_are_asked_first_of_every_input(self):
        endpoint = Endpoint(is_dark)
        given = inputs(BRIGHT_COMPARISONS, kind="JPEG")
        found = diagnose(window(), given, endpoint, None, Limits())
        assert endpoint.bodies[:16] == [one.body for one in given]
        assert [r.name for r in found.repairs[:2]] == [UNCHANGED, ENCODED]
        assert all((r.flagged, r.comparisons, r.back) == (12, 4, 0) for r in found.repairs[:2])
        assert all(body[:3] == b"\xff\xd8\xff" for body in endpoint.bodies)  # a repaired JPEG is a JPEG

    @pytest.mark.parametrize("most", [8, 40, 96, 1000])
    def test_the_limit_of_requests_holds_and_what_it_leaves_out_is_named(self, most):
        endpoint = Endpoint(is_dark)
        found = diagnose(window(), inputs(BRIGHT_COMPARISONS), endpoint, None, Limits(max_requests=most))
        assert len(endpoint.bodies) == found.requests <= most
        asked = {r.name for r in found.repairs}
        named = " ".join(found.not_asked)
        assert all(name in asked or name in named for name in REPAIRS)
        assert (f"at the limit of {most} requests" in " ".join(found.missing)) is (found.requests == most)

    def test_an_endpoint_that_stops_answering_ends_the_questions(self):
        endpoint = Endpoint(is_dark, fail_after=20)
        found = diagnose(window(), inputs(BRIGHT_COMPARISONS), endpoint, None, Limits())
        assert found.requests == 20
        assert "the questions ended early: throttled" in found.missing

    def test_an_endpoint_that_changed_rules_nothing_out(self):
        found = diagnose(window(), inputs(DARK), Endpoint(lambda image: False), None, Limits())
        assert found.missing[0].startswith("the endpoint changed, or answers at random")
        assert found.cause is None and found.headline.startswith("Cause unknown: the endpoint changed")
        assert {r.name for r in found.repairs} == {UNCHANGED, ENCODED}

    def test_an_unsure_answer_of_another_class_ends_the_flag(self):
        def unsure(body, content_type):
            return Answer(3, 0.2)

        found = diagnose(window(), inputs(DARK), unsure, None, Limits())
        assert found.missing[0].startswith("the endpoint changed, or answers at random")

    def test_a_long_error_is_cut_so_that_the_diagnosis_can_be_read(self):
        def stopped(body, content_type):
            raise StoppedError("x" * 5000)

        found = diagnose(window(), inputs(DARK), stopped, None, Limits())
        assert read_diagnosis(write_diagnosis(found)) == found

    def test_a_repair_that_a_control_equals_does_not_count(self):
        # encoding again alone brings every answer back: then no repair is the reason
        seen = []

        def first_time(image):
            seen.append(pixels.fingerprint(image))
            return seen.count(seen[-1]) == 1

        found = diagnose(window(), inputs(IMAGES[:16]), Endpoint(first_time), None, Limits())
        assert repair(found, ENCODED).back == 12
        assert not any(r.counts for r in found.repairs)

    def test_a_repair_that_changes_the_comparisons_as_much_does_not_count(self):
        given = inputs(DARK)  # the comparisons are dark, too
        found = diagnose(window(), given, Endpoint(is_dark), None, Limits())
        brightened = repair(found, "brightened (gamma 0.4)")
        assert brightened.back >= 10
        assert brightened.changed == 0  # back to the class that was captured
        changed = diagnose(
            window(),
            [
                i if i.flagged else InputImage(i.key, i.body, i.content_type, Answer(14, 0.9), False)
                for i in given
            ],
            Endpoint(is_dark),
            None,
            Limits(),
        )
        assert not repair(changed, "brightened (gamma 0.4)").counts

    def test_a_low_confidence_is_back_above_its_bound(self):
        def unsure(body, content_type):
            return Answer(14, 0.4 if is_dark(pixels.decode(body).pixels) else 0.8)

        found = diagnose(
            window("low_confidence_share", None), inputs(BRIGHT_COMPARISONS), unsure, None, Limits()
        )
        assert repair(found, "brightened (gamma 0.4)").back >= 10
        assert repair(found, UNCHANGED).back == 0

    def test_an_answer_without_a_class_is_not_back(self):
        found = diagnose(window(), inputs(DARK), lambda body, kind: Answer(None), None, Limits())
        assert repair(found, UNCHANGED).back == 0
        assert found.cause is None

    def test_the_reference_sets_the_probability_of_an_answer_that_is_back(self):
        reference = make_reference([Sample(image, 3, 0.99) for image in IMAGES])
        found = diagnose(window(), inputs(BRIGHT_COMPARISONS), Endpoint(is_dark), reference, Limits())
        assert repair(found, "brightened (gamma 0.4)").back == 0  # 0.9 is below the lower quartile


class TestWithoutReference:
    def test_a_damage_that_no_repair_undoes_is_not_named(self):
        """The images are far darker than ordinary photos, and brighter copies get the same answer."""
        found = diagnose(window(), inputs(DARK), Endpoint(lambda image: True), None, Limits())
        assert not any(repair.counts for repair in found.repairs)
        assert found.cause is None and found.causes[0].name == UNKNOWN
        assert {cause.name for cause in found.causes if cause.probability}.isdisjoint(REPAIRS_OF)

    def test_the_probabilities_are_unchanged_where_a_repair_undoes_it(self):
        given = [("too dark", 0.6), (UNKNOWN, 0.3), ("noise", 0.1)]
        given += [(name, 0.0) for name in REPAIRS_OF if name not in dict(given)]
        made = Repair(
            name="brightened (gamma 0.4)", flagged=12, back=9, comparisons=4, changed=1, interval=(0.4, 0.9)
        )
        counted = msgspec.structs.replace(made, counts=True)
        assert _repaired_causes(given, [counted])[:2] == [("too dark", 0.6), (UNKNOWN, pytest.approx(0.4))]
        assert _repaired_causes(given, [made])[0] == (UNKNOWN, pytest.approx(1.0))


class TestBadInput:
    def test_inputs_that_are_not_images_are_named(self):
        given = [InputImage("event-1", b"1,2,3", "text/csv", Answer(14, 0.9), True)]
        found = diagnose(window(), given, Endpoint(is_dark), None, Limits())
        assert found.requests == 0 and found.cause is None
        assert found.missing[1].startswith("1 of 1 inputs are not images: input: expected PNG")

    def test_no_input_and_one_input(self):
        none = diagnose(window(), [], Endpoint(is_dark), None, Limits())
        assert none.cause is None and "no flagged input was captured as an image" in none.missing[-1]
        one = diagnose(window(), inputs(DARK[:1]), Endpoint(is_dark), None, Limits())
        assert repair(one, "brightened (gamma 0.4)").flagged == 1

    def test_inputs_of_several_sizes(self):
        small = [np.asarray(Image.fromarray(image).resize((31 + i, 20))) for i, image in enumerate(DARK)]
        found = diagnose(window(), inputs(small), Endpoint(is_dark), None, Limits())
        assert repair(found, "brightened (gamma 0.4)").back >= 10

    def test_unreadable_responses_are_not_asked_about(self):
        endpoint = Endpoint(is_dark)
        found = diagnose(
            window("unreadable_share", None, unreadable=100, records=300),
            inputs(DARK),
            endpoint,
            None,
            Limits(),
        )
        assert found.cause.name == "the response changed"
        assert found.cause.evidence == (
            "100 of 400 responses cannot be read; see the reason of the violation",
        )
        assert not endpoint.bodies and found.affected == pytest.approx(0.25)

    @pytest.mark.parametrize(
        "body",
        [b"", b"\x89PNG", pixels.written(DARK[0])[:60], b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x93NUMPY\1\0"],
    )
    def test_a_cut_body_is_refused(self, body):
        with pytest.raises(BadInputError, match="input"):
            pixels.decode(body)


class TestSentences:
    def test_an_attack_is_seen_in_the_answers_to_similar_images(self):
        found = {"similar images with this answer": -0.45, "noise": 1.24}
        assert sentences("attack", found, (), weigh=True) == (
            "1.2 deviations more noise than usual",
            "similar images of the reference have this answer 45% less often than usual",
        )
        near_miss = {"similar images with this answer": -0.19, "noise": 0.9}
        assert sentences("attack", near_miss, (), weigh=True) == ()


class TestJson:
    def test_is_read_back(self):
        found = diagnose(window(), inputs(BRIGHT_COMPARISONS), Endpoint(is_dark), None, Limits())
        assert read_diagnosis(write_diagnosis(found)) == found
        first = found.examples[0]
        before = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.before))))
        assert (before == BRIGHT_COMPARISONS[0]).all() or before.shape == (48, 48, 3)
        assert first.answer_before == "class 14, 0.90"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"{}",
            b'{"causes": [{"name": "x", "probability": 2}]}',
            b'{"causes": 1}',
            b"\xff",
            b"[" * 9999,
        ],
    )
    def test_another_content_is_refused(self, content):
        with pytest.raises(BadInputError, match="diagnosis"):
            read_diagnosis(content)


class TestMeasures:
    """Each measure moves in its direction, and the others of the same kind do not decide for it."""

    @pytest.mark.parametrize(
        ("name", "change", "sign"),
        [
            ("brightness", lambda i: (i * 0.3).astype(np.uint8), -1),
            ("white", lambda i: np.minimum(i.astype(int) + 120, 255).astype(np.uint8), 1),
            ("black", lambda i: (i * 0.01).astype(np.uint8), 1),
            ("sharpness", lambda i: np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(2))), -1),
            (
                "noise",
                lambda i: np.clip(i + np.random.default_rng(0).normal(0, 30, i.shape), 0, 255).astype(
                    np.uint8
                ),
                1,
            ),
            (
                "spikes",
                lambda i: np.where(
                    ((np.arange(48)[:, None] % 7 == 3) & (np.arange(48) % 5 == 2))[..., None], 255, i
                ).astype(np.uint8),
                1,
            ),
            ("blocks", lambda i: i.repeat(8, 0).repeat(8, 1)[:, :160][:160], 1),
            ("red over blue", lambda i: (i * [1, 1, 0.5]).astype(np.uint8), 1),
            ("entropy", lambda i: i // 128 * 128, -1),
            ("flat rows", lambda i: np.where(np.arange(48)[:, None, None] > 20, 0, i).astype(np.uint8), 1),
            ("levels", lambda i: (i // 64 * 64).astype(np.uint8), -1),
            ("saturation", lambda i: i.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8), -1),
        ],
    )
    def test_moves_with_its_damage(self, name, change, sign):
        at = pixels.MEASURES.index(name)
        before = np.median([pixels.measure(image)[at] for image in IMAGES[:20]])
        after = np.median([pixels.measure(np.ascontiguousarray(change(image)))[at] for image in IMAGES[:20]])
        assert sign * (after - before) > 0.02

    def test_light_from_above_changes_its_sign_upside_down(self):
        at = pixels.MEASURES.index("light above")
        found = [(pixels.measure(i)[at], pixels.measure(i[::-1])[at]) for i in IMAGES[:10]]
        assert all(a == pytest.approx(-b, abs=1e-5) for a, b in found)

    def test_a_large_and_a_small_image(self):
        large = np.random.default_rng(0).integers(0, 255, (700, 500, 3), dtype=np.uint8)
        for image in (large, large[:8, :8], large[:9, :400], np.zeros((64, 64, 3), np.uint8)):
            assert np.isfinite(pixels.measure(np.ascontiguousarray(image))).all()

    def test_the_noise_is_that_which_was_added(self):
        flat = np.full((96, 96, 3), 128.0) + np.random.default_rng(1).normal(0, 12, (96, 96, 1))
        found = np.exp(pixels.measure(flat.round().astype(np.uint8))[pixels.MEASURES.index("noise")])
        assert found * 255 == pytest.approx(12, rel=0.15)  # the calmest tiles have a little less

    def test_noise_in_a_part_of_an_image_is_not_noise(self):
        random = np.random.default_rng(1)
        flat = np.full((96, 96, 3), 128.0)
        half = np.where(np.arange(96)[:, None, None] < 60, random.normal(0, 30, (96, 96, 1)), 0)
        at = pixels.MEASURES.index("noise")
        covered = pixels.measure((flat + half).round().astype(np.uint8))[at]
        assert covered == pytest.approx(pixels.measure(flat.astype(np.uint8))[at], abs=1e-3)

    def test_hashes_of_versions_of_one_image_are_close(self):
        image = IMAGES[0]
        again = pixels.decode(pixels.written(image, "JPEG")).pixels
        assert pixels.fingerprint(image) != pixels.fingerprint(again)
        near = (pixels.difference_hash(image) ^ pixels.difference_hash(again)).bit_count()
        other = (pixels.difference_hash(image) ^ pixels.difference_hash(IMAGES[1])).bit_count()
        assert near <= 8 < other


class TestBodies:
    @pytest.mark.parametrize("shape", [(48, 48, 3), (1, 48, 48, 3), (48, 48), (48, 48, 1), (1, 48, 48, 1)])
    def test_an_array_keeps_its_form(self, shape):
        array = np.arange(np.prod(shape), dtype=np.uint32).astype(np.uint8).reshape(shape)
        stream = io.BytesIO()
        np.save(stream, array)
        decoded = pixels.decode(stream.getvalue())
        assert decoded.pixels.shape == (48, 48, 3)
        again = np.load(io.BytesIO(decoded.encode(decoded.pixels)), allow_pickle=False)
        assert again.dtype == np.uint8 and (again == array).all()

    def test_a_tiny_image_is_refused(self):
        with pytest.raises(BadInputError, match="expected sides of at least 8 pixels"):
            pixels.decode(pixels.written(IMAGES[0][:7]))

    def test_a_batch_is_refused(self):
        stream = io.BytesIO()
        np.save(stream, np.zeros((2, 8, 8, 3), np.uint8))
        with pytest.raises(BadInputError, match="expected one image, got 2"):
            pixels.decode(stream.getvalue())

    def test_every_repair_returns_an_image_and_undoes_its_damage(self):
        image = IMAGES[0]
        assert (REPAIRS["channels swapped"](image[..., ::-1]) == image).all()
        assert (REPAIRS["turned by 180 degrees"](image[::-1, ::-1]) == image).all()
        assert (REPAIRS["mirrored top to bottom"](image[::-1]) == image).all()
        for name, change in REPAIRS.items():
            changed = change(image)
            assert changed.shape == image.shape and changed.dtype == np.uint8, name


class TestReference:
    def test_is_read_back(self):
        samples = [
            Sample(i, int(c), 0.5 + n / 200, f"true {c}")
            for n, (i, c) in enumerate(zip(IMAGES, CLASSES, strict=True))
        ]
        made = make_reference(samples, "ab" * 32)
        found = read_reference(write_reference(made))
        assert found.classes == made.classes == Counter(int(c) for c in CLASSES)
        assert found.confusion == made.confusion and found.labels == made.labels
        assert found.confidence_quartile == pytest.approx(np.percentile([s.confidence for s in samples], 25))
        assert found.jpegs == made.jpegs and found.model == "ab" * 32
        np.testing.assert_allclose(found.center, np.median([pixels.measure(i) for i in IMAGES], 0), rtol=1e-5)
        assert found.nearest(IMAGES[7])[0][1] == 7

    def test_a_name_that_looks_like_a_number_stays_a_name(self):
        made = make_reference([Sample(image, "14" if n % 2 else 14) for n, image in enumerate(IMAGES)])
        assert read_reference(write_reference(made)).classes == {"14": 30, 14: 30}

    def test_a_large_one_is_cut_to_its_limit_with_every_class(self):
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 255, (900, 48, 48, 3), dtype=np.uint8)
        content = write_reference(make_reference([Sample(i, n % 43) for n, i in enumerate(noise)]))
        assert len(content) <= REFERENCE_BYTES
        assert set(read_reference(content).labels) == set(range(43))

    def test_too_few_images_are_refused(self):
        with pytest.raises(BadInputError, match="expected at least 20 images, got 19"):
            make_reference([Sample(image, 1) for image in IMAGES[:19]])

    @pytest.mark.parametrize(
        "change", ["center", "labels", "spread", "version", "measures", "sizes", "cut", "pickle", "text"]
    )
    def test_another_file_is_refused(self, change):
        content = write_reference(make_reference([Sample(image, 1, 0.9) for image in IMAGES]))
        with np.load(io.BytesIO(content)) as loaded:
            arrays = dict(loaded)
        if change in ("center", "labels"):
            arrays[change] = arrays[change][:-1]
        elif change == "spread":
            arrays["spread"] = arrays["spread"] * 0
        elif change == "version":
            arrays["version"] = np.array(99)
        elif change == "measures":
            arrays["measures"] = arrays["measures"][::-1]
        elif change == "sizes":
            arrays["jpeg_sizes"] = arrays["jpeg_sizes"] + 1
        elif change == "pickle":
            arrays["center"] = np.array([object()] * len(pixels.MEASURES), dtype=object)
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        bad = {"cut": content[: len(content) // 2], "text": b"no zip"}.get(change, stream.getvalue())
        with pytest.raises(BadInputError, match="reference"):
            read_reference(bad)


@pytest.fixture(scope="module")
def made():
    images, classes = signs.dataset(300, seed=6, size=48)
    samples = [
        Sample(i, int(c), 0.8 + 0.001 * (n % 200))
        for n, (i, c) in enumerate(zip(images, classes, strict=True))
    ]
    return make_reference(samples)


class TestReferenceOfImages:
    """Images compared with those of the reference."""

    def test_its_own_images_have_normal_scores(self, made):
        found = made.scores(made.measured)
        for column, name in enumerate(pixels.MEASURES):
            values = made.measured[:, column]
            expected = norm.ppf(rankdata(values) / (len(values) + 1))
            inner = np.abs(expected) < 2
            np.testing.assert_allclose(found[inner, column], expected[inner], atol=0.02, err_msg=name)

    def test_beyond_the_reference_the_distance_counts(self, made):
        at = pixels.MEASURES.index("brightness")
        ordered = np.sort(made.measured[:, at])
        far = made.measured[:1].copy()
        far[0, at] = ordered[-1] + 2 * made.spread[at]
        highest = ordered[int(0.99 * len(ordered))]
        expected = 2.3 + (far[0, at] - highest) / made.spread[at]
        assert made.scores(far)[0, at] == pytest.approx(expected, abs=1e-4)
        far[0, at] = -1e9
        assert made.scores(far)[0, at] == pytest.approx(-2.3 - 6)

    def test_what_is_usual_leaves_each_image_out(self, made):
        similar = []
        for one, measured in zip(made.thumbnails, made.measured, strict=True):
            order = sorted(range(300), key=lambda i: -float(made.thumbnails[i] @ one))
            others = [i for i in order if not np.array_equal(made.thumbnails[i], one)][:5]
            similar.append(np.mean([made.thumbnails[i] @ one for i in others]))
            assert np.isfinite(measured).all()
        assert made.usual.similarity == pytest.approx(np.median(similar), abs=1e-4)
        assert 0 < made.usual.agreement <= 1

    def test_a_turned_image_gains_similarity_if_turned_again(self, made):
        images, classes = signs.dataset(12, seed=7, size=48)
        upright = evidence.of_images(list(images), classes.tolist(), made)
        turned = evidence.of_images(list(images[:, ::-1, ::-1]), classes.tolist(), made)
        swapped = evidence.of_images(list(images[..., ::-1]), classes.tolist(), made)
        by_name = {name: i for i, name in enumerate(evidence.IMAGE_EVIDENCE)}
        again = by_name["similarity gained if turned"]
        assert np.median(turned[:, again]) > 0 > np.median(upright[:, again])
        again = by_name["similarity gained if swapped"]
        assert np.median(swapped[:, again]) > 0 > np.median(upright[:, again])
        with_this_answer = by_name["similar images with this answer"]
        wrong = evidence.of_images(list(images), ((classes + 1) % 43).tolist(), made)
        assert wrong[:, with_this_answer].mean() < upright[:, with_this_answer].mean()

    def test_a_frequent_class_and_an_unsure_answer_surprise(self, made):
        usual = made.classes[5] / 300
        answers = [(5, 0.95)] * 60 + [(7, 0.95)] * 39 + [(7, 0.1)]
        found = made.surprises(answers)
        assert found[0] == pytest.approx(1 - usual / 0.6)
        assert found[-1] == pytest.approx(found[60] + 0.5)
        assert made.surprises([("never seen", None)]) == [1.0]


class TestCombiner:
    @pytest.mark.parametrize("name", ["with_reference", "without"])
    def test_the_stored_weights_have_the_evidence_of_the_code(self, name):
        found = combiner.load(name)
        for weights, rows, columns in (
            (found.looks, combiner.LOOKS, evidence.IMAGE_EVIDENCE),
            (found.causes, combiner.CAUSES, evidence.EVIDENCE),
        ):
            assert weights.slopes.shape == (len(rows), len(columns))
            assert weights.mean.shape == weights.scale.shape == (len(columns),)
            assert weights.probabilities(np.zeros(len(columns))).sum() == pytest.approx(1)
        assert 0.2 < found.causes.temperature < 8

    def test_the_probabilities_are_those_of_a_softmax(self):
        rng = np.random.default_rng(0)
        weights = combiner.Weights(
            rng.normal(0, 1, 4), np.full(4, 2.0), rng.normal(0, 1, (3, 4)), rng.normal(0, 1, 3), 1.7
        )
        found = rng.normal(0, 1, (5, 4))
        logits = np.clip((found - weights.mean) / 2, -6, 6) @ weights.slopes.T + weights.intercepts
        np.testing.assert_allclose(weights.probabilities(found), softmax(logits / 1.7, axis=1))

    def test_the_file_holds_the_weights(self):
        weights = combiner.load("without")
        text = combiner.to_json({"without": weights})
        one = json.loads(text)["regressions"]["without"]["causes"]
        np.testing.assert_allclose(one["slopes"], weights.causes.slopes, atol=1e-4)
        assert json.loads(text)["causes"] == list(combiner.CAUSES)

    def test_the_cause_that_is_not_probable_is_not_named(self):
        found = diagnose(window(), inputs(IMAGES[:16]), Endpoint(lambda image: True), None, Limits())
        if found.causes[0].probability < 0.7:
            assert found.cause is None and found.headline.startswith("Cause unknown")
        assert UNKNOWN not in found.ruled_out
