"""The figures of the benchmark of single images, on a few images."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

import benchmarks
from benchmarks.causes import per_image
from benchmarks.causes.windows import Classifier, drawn
from glassbox.diagnosis import combiner


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
