"""The benchmark of the causes on a few images, and the fit of the regressions."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import mannwhitneyu

import benchmarks
from benchmarks.causes import fit, per_image
from benchmarks.causes.__main__ import Bench, summary
from benchmarks.causes.windows import FLAGGED, Classifier, drawn, injured, reference_of, window
from glassbox.diagnosis import combiner
from glassbox.monitoring.checks import DRIFT


@pytest.fixture(scope="module")
def scorer():
    torch.set_num_threads(1)
    return per_image.Scorer(drawn(150, 8), Classifier(benchmarks.ROOT / "demo/weights/signs_w16.pt"), 4, 1)


def test_the_area_under_the_curve_is_that_of_the_rank_test():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40) + 2.0, rng.integers(0, 9, 30) + 0.0  # with ties
    expected = mannwhitneyu(positive, negative).statistic / (40 * 30)
    assert per_image.area_under_curve(positive, negative) == pytest.approx(expected)
    assert per_image.area_under_curve(positive, positive) == pytest.approx(0.5)
    assert per_image.area_under_curve(positive + 20, negative) == 1


def test_the_attack_that_has_the_repairs_in_its_loss_stays_in_its_ball(scorer):
    images, classes = scorer.clean.images, scorer.clean.classes
    changed = per_image.squeezed_attack(scorer.classifier, 8 / 255)(images, classes)
    moved = np.abs(changed.astype(int) - images)
    assert changed.dtype == np.uint8
    assert 4 <= moved.max() <= 8
    before = scorer.classifier.probabilities(images)[range(4), classes]
    assert (scorer.classifier.probabilities(changed)[range(4), classes] < before).all()


def test_images_have_probabilities_of_every_cause(scorer):
    found = scorer.probabilities(scorer.clean.images)
    assert found.shape == (4, len(combiner.CAUSES))
    np.testing.assert_allclose(found.sum(1), 1)
    odds = per_image.log_odds(found, "attack")
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), found[:, combiner.CAUSES.index("attack")])


def test_no_image_is_in_the_reference_and_among_the_scored(scorer):
    reference = {bytes(row) for row in scorer.reference.thumbnails.round(4).view(np.uint8)}
    from glassbox.diagnosis.pixels import thumbnail

    scored = {bytes(thumbnail(image).round(4).view(np.uint8)) for image in scorer.clean.images}
    assert not reference & scored


class TestRegression:
    def test_the_gradient_vanishes_at_the_fit(self):
        """The slopes solve the penalised likelihood equations, which are written here a second time."""
        rng = np.random.default_rng(1)
        outcomes = np.arange(120) % 3
        found = rng.normal(0, 1, (120, 4)) + np.eye(3)[outcomes] @ rng.normal(0, 1, (3, 4))
        weights = fit.regression(found, outcomes, 3, 0.1, 400)
        x = (found - found.mean(0)) / found.std(0)
        p = softmax(x @ weights.slopes.T + weights.intercepts, axis=1)
        slope = (p - np.eye(3)[outcomes]).T @ x / 120 + 0.1 * weights.slopes
        np.testing.assert_allclose(slope, 0, atol=1e-4)

    def test_the_temperature_is_that_by_which_the_logits_are_too_large(self):
        rng = np.random.default_rng(2)
        logits = rng.normal(0, 2, (20000, 3))
        outcomes = (softmax(logits, axis=1).cumsum(1) > rng.random((20000, 1))).argmax(1)
        sharp = combiner.Weights(np.zeros(3), np.ones(3), 2.5 * np.eye(3), np.zeros(3), 1.0)
        assert fit.calibrated(sharp, logits, outcomes).temperature == pytest.approx(2.5, rel=0.05)


class TestWindows:
    def test_without_a_class_that_broke_the_bound_the_surprising_are_flagged(self):
        torch.set_num_threads(1)
        classifier = Classifier(benchmarks.ROOT / "demo/weights/signs_w16.pt")
        known, good = drawn(400, 3).split((1, 1), 1)
        same = lambda images, random: images  # noqa: E731
        clean = injured(good, same, classifier, 0)
        reference = reference_of(injured(known, same, classifier, 0), known)
        for given in (reference, None):
            case, inputs = window(clean, clean, 0.5, np.random.default_rng(0), given)
            assert case.violation.check == DRIFT
            flagged = [one.answer.label for one in inputs if one.flagged]
            assert len(flagged) == FLAGGED
            assert (len(set(flagged)) == 1) is (given is None)

    def test_most_causes_of_strong_damage_come_first(self):
        torch.set_num_threads(1)
        bench = Bench(drawn(600, 12), Classifier(benchmarks.ROOT / "demo/weights/signs_w16.pt"), 4)
        rows = list(bench.windows(1, few=24, contaminations=(0.8,)))
        found = summary(rows)
        assert len(rows) == 15 * 5 + 5
        assert found["most probable cause right, contamination >= 50 %"] >= 0.8
        assert sum(found["matrix, contamination >= 50 %"]["blur"].values()) == 5
        assert found["mean requests"] <= 96
