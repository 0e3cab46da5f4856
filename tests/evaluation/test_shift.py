"""Calibration cases of another kind than the new ones: weights are density ratios, and intervals hold for the new kind."""

import math

import numpy as np
import pytest

from diffuseg.evaluation.conformal import calibrate_interval, interval_coverage
from diffuseg.evaluation.shift import Weights, importance_weights


def test_weights_are_the_ratio_of_the_densities():
    """Of N(0, 1) and N(1, 1) it is exp(x - 1/2)."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(0, 1, (40000, 1)), rng.normal(1, 1, (30000, 1))
    found = importance_weights(old, new)
    true = np.exp(old[:, 0] - 0.5)
    np.testing.assert_allclose(np.log(found.cases), np.log(true / true.mean()), atol=0.15)
    assert found.new == pytest.approx(math.exp(1), rel=0.1)  # E_new[w] = e
    assert found.effective == pytest.approx(40000 / math.exp(1), rel=0.1)  # 1 / E_old[w^2]


def test_cases_of_the_same_kind_count_nearly_alike_and_units_do_not_matter():
    rng = np.random.default_rng(1)
    old, new = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    found = importance_weights(old, old.copy())
    np.testing.assert_allclose(found.cases, 1, atol=1e-4)
    assert found.new == pytest.approx(1, abs=1e-4) and found.effective == pytest.approx(40, abs=1e-3)
    apart, scaled = importance_weights(old, new), importance_weights(old * [1, 1e3, 1] + 7, new * [1, 1e3, 1] + 7)
    np.testing.assert_allclose(apart.cases, scaled.cases, rtol=1e-3)
    constant = importance_weights(np.ones((5, 1)), np.ones((4, 1)))
    np.testing.assert_allclose(constant.cases, 1)


def test_equal_weights_change_nothing_and_whole_weights_are_repeated_cases():
    rng = np.random.default_rng(2)
    truth = rng.uniform(1, 5, 30)
    low = truth * rng.uniform(0.7, 1.1, 30)
    high = low * 1.1
    plain = calibrate_interval(low, high, truth)
    assert calibrate_interval(low, high, truth, weights=Weights(np.ones(30) * 2, 2.0, 30.0)) == plain
    times = rng.integers(1, 4, 30)
    repeated = [np.repeat(values, times) for values in (low, high, truth)]
    weighted = calibrate_interval(low, high, truth, weights=Weights(times.astype(float), 1.0, 30.0))
    assert weighted.margin == calibrate_interval(*repeated).margin
    assert math.isinf(calibrate_interval(low, high, truth, weights=Weights(np.ones(30), 5.0, 30.0)).margin)


def test_weighted_intervals_hold_for_new_cases_that_are_harder():
    """The error grows with x, of which new cases have more: unweighted intervals hold too few of them, weighted ones enough."""
    rng, held = np.random.default_rng(3), {"plain": [], "weighted": []}

    def cases(number: int, mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.normal(mean, 1, number)
        middle = np.full(number, 10.0)
        return x, middle, np.maximum(middle + rng.normal(0, 1, number) * np.exp(x / 2), 0)

    for _ in range(60):
        (x, middle, truth), (x_new, middle_new, truth_new) = cases(200, 0), cases(200, 1)
        weights = importance_weights(x[:, None], x_new[:, None])
        for name, some in (("plain", None), ("weighted", weights)):
            margin = calibrate_interval(middle, middle, truth, weights=some)
            held[name].append(interval_coverage(*margin.apply(middle_new, middle_new), truth_new).fraction)
    assert np.mean(held["plain"]) < 0.8 < 0.88 < np.mean(held["weighted"]) < 0.95


@pytest.mark.parametrize("new", [np.zeros((1, 2)), np.full((3, 2), np.nan)])
def test_what_cannot_be_weighted_is_refused(new):
    with pytest.raises(ValueError, match="features"):
        importance_weights(np.zeros((5, 2)), new)
