"""The shares of the true classes, by the confusion matrix; scipy solves the same problem independently."""

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize

from demo import signs
from glassbox.diagnosis.prevalence import prevalence
from glassbox.diagnosis.reference import Sample, make_reference

IMAGES, _ = signs.dataset(20, 3, 16)


def reference(confusion):
    """Return a reference with this confusion matrix, rows of true classes."""
    return make_reference(
        [
            Sample(IMAGES[0], predicted, 0.9, true)
            for true, row in enumerate(confusion)
            for predicted, count in enumerate(row)
            for _ in range(count)
        ]
    )


def counts(numbers):
    return {answer: int(count) for answer, count in enumerate(numbers) if count}


CONFUSION = [[90, 10, 0], [20, 70, 10], [5, 15, 80]]


def test_two_classes_are_those_of_the_inverse_matrix():
    """With P(0|0) = 0.9 and P(0|1) = 0.2, half of the answers 0 are the shares 3/7 and 4/7."""
    found = prevalence(reference([[900, 100], [200, 800]]), counts([500, 500]))
    assert found.now[0] == pytest.approx(3 / 7, abs=2e-3)
    assert found.before == {0: 0.5, 1: 0.5}
    assert found.explains and found.grown == 1


@pytest.mark.parametrize("observed", [(400, 300, 100), (10, 300, 90), (350, 40, 10), (33, 33, 334)])
def test_the_shares_are_the_likeliest(observed):
    found = prevalence(reference(CONFUSION), counts(observed))
    errs = (np.array(CONFUSION, float) + 1 / 3).T / (np.array(CONFUSION).sum(1) + 1)
    target = np.array(observed) / sum(observed)

    def loss(w):
        return -float(target @ np.log(errs @ w))

    solved = minimize(
        loss,
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    assert [found.now[c] for c in range(3)] == pytest.approx(solved.x, abs=2e-3)
    assert sum(found.now.values()) == pytest.approx(1)


def test_counts_that_the_model_errs_into_do_not_fit():
    """True class 2 is answered 2 in 80 %: with 100 % of the answers 1, no shares fit (1 is at most 70 %)."""
    found = prevalence(reference(CONFUSION), counts([0, 400, 0]))
    assert not found.explains
    assert "no shares of the true classes explain the predictions" in str(found)


def test_an_answer_that_the_reference_never_gave_does_not_fit():
    assert not prevalence(reference(CONFUSION), {0: 100, 7: 300}).explains


def test_a_window_of_other_shares_fits_and_names_the_class():
    """Of 200 windows drawn from other shares, at most a few do not fit by chance."""
    rng = np.random.default_rng(5)
    errs = (np.array(CONFUSION, float).T / np.array(CONFUSION).sum(1)) @ np.array([0.1, 0.1, 0.8])
    found = [prevalence(reference(CONFUSION), counts(rng.multinomial(400, errs))) for _ in range(20)]
    assert sum(one.explains for one in found) == 20
    assert {one.grown for one in found} == {2}
    assert str(found[0]).startswith(
        "other shares of the true classes explain the predictions: class 2 from 33%"
    )


def test_without_enough_true_classes_or_predictions_nothing_is_inferred():
    unlabelled = make_reference([Sample(image, 1, 0.9) for image in IMAGES])
    assert prevalence(unlabelled, {1: 400}) is None
    assert prevalence(reference([[30, 0], [0, 4]]), {1: 400}) is None
    assert prevalence(reference(CONFUSION), Counter()) is None
