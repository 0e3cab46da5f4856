"""Rejection of uncertain cases: against all orders among equals, closed forms and the best ranking there is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.selective import (
    aurc,
    excess_aurc,
    expected_dice_loss,
    risk_after_rejecting,
    risk_coverage,
    threshold_for_fraction,
)

QUICK = settings(max_examples=80, deadline=None)
CASES = st.lists(st.tuples(st.integers(0, 100).map(lambda n: n / 100), st.integers(0, 3)), min_size=1, max_size=5)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.99])


def arrays(cases: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r for r, _ in cases]), np.array([u for _, u in cases], float)


@given(CASES, FRACTIONS)
@QUICK
def test_the_curve_is_the_mean_over_all_orders_among_equals(cases: list[tuple[float, int]], fraction: float) -> None:
    curves = []
    for order in itertools.permutations(cases):
        if all(a[1] <= b[1] for a, b in itertools.pairwise(order)):
            curves.append([sum(r for r, _ in order[: k + 1]) / (k + 1) for k in range(len(order))])
    expected = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    curve = risk_coverage(*arrays(cases))
    assert curve.risk.tolist() == pytest.approx(expected)
    assert curve.coverage.tolist() == pytest.approx([(k + 1) / len(cases) for k in range(len(cases))])
    assert aurc(*arrays(cases)) == pytest.approx(sum(expected) / len(expected))
    kept = next(k for k in range(len(cases) + 1) if len(cases) - k <= fraction * len(cases) + 1e-9)
    assert risk_after_rejecting(*arrays(cases), fraction) == pytest.approx(expected[kept - 1])


@given(CASES)
@QUICK
def test_no_ranking_is_better_than_that_of_the_risk(cases: list[tuple[float, int]]) -> None:
    risk, uncertainty = arrays(cases)
    best = min(aurc(risk, np.array(order, float)) for order in itertools.permutations(range(len(risk))))
    assert aurc(risk, risk) == pytest.approx(best)
    assert excess_aurc(risk, uncertainty) == pytest.approx(aurc(risk, uncertainty) - best, abs=1e-12)
    assert excess_aurc(risk, risk) == 0 and excess_aurc(risk, 3 * risk + 1) == 0
    assert aurc(risk, np.zeros(len(risk))) == pytest.approx(risk.mean())


@given(CASES, FRACTIONS)
@QUICK
def test_thresholds_do_what_was_asked_on_the_cases_they_were_chosen_on(cases: list[tuple[float, int]], fraction: float) -> None:
    _, uncertainty = arrays(cases)
    chosen = threshold_for_fraction(uncertainty, fraction)
    assert (uncertainty > chosen).mean() <= fraction + 1e-9
    for lower in {u for u in uncertainty if u < chosen}:
        assert (uncertainty > lower).mean() > fraction


def test_values_that_can_be_said_by_heart() -> None:
    risk, uncertainty = np.array([0.0, 0.0, 1.0, 0.0]), np.array([1.0, 2.0, 4.0, 3.0])
    assert risk_coverage(risk, uncertainty).risk.tolist() == [0, 0, 0, 0.25]
    assert aurc(risk, uncertainty) == 1 / 16 and excess_aurc(risk, uncertainty) == 0
    assert aurc(risk, -uncertainty) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert risk_after_rejecting(risk, uncertainty, 0.25) == 0 and risk_after_rejecting(risk, uncertainty, 0.24) == 0.25
    assert threshold_for_fraction(uncertainty, 0.25) == 3 and threshold_for_fraction(uncertainty, 0.0) == 4
    # three tenths of ten cases are three, whatever 0.3 * 10 is in binary
    assert threshold_for_fraction(np.arange(10.0), 0.3) == 6


def test_what_has_no_value_is_refused() -> None:
    one = np.ones(3)
    for wrong in ((one, one[:2]), (one[:0], one[:0])):
        with pytest.raises(Exception, match=r"(?i)a value per case|type-check"):
            risk_coverage(*wrong)
    with pytest.raises(ValueError, match="finite"):
        aurc(np.array([0.1, math.nan, 0.2]), one)
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match="fraction"):
            risk_after_rejecting(one, one, fraction)


def test_doubt_is_what_the_probabilities_expect_of_the_mask() -> None:
    """Truths drawn from the probabilities have, on average, a Dice of 1 - doubt."""
    random = np.random.default_rng(0)
    inside = random.beta(0.3, 0.5, (20, 20, 10))
    probability = np.stack([1 - inside, inside])
    mask = probability.argmax(0)
    scores = [dice(mask == 1, random.random(inside.shape) < inside) for _ in range(50)]
    assert expected_dice_loss(probability, mask) == pytest.approx(1 - np.mean(scores), abs=0.01)
    assert expected_dice_loss(probability, mask) < expected_dice_loss(probability, np.roll(mask, 1, 0))


def test_doubt_of_what_is_certain_absent_or_missed() -> None:
    mask = np.zeros((30, 30), int)
    empty = np.stack([np.ones((30, 30)), np.zeros((30, 30)), np.zeros((30, 30))])
    assert expected_dice_loss(empty, mask) == 0
    faint = np.stack([np.full((30, 30), 0.992), np.full((30, 30), 0.004), np.full((30, 30), 0.004)])
    assert expected_dice_loss(faint, mask) == 0, "a background that is nearly sure does not add up to an organ"
    mask[:10], mask[20:] = 1, 2
    sure = np.eye(3)[mask].transpose(2, 0, 1)
    assert expected_dice_loss(sure, mask) == 0 and expected_dice_loss(sure, np.zeros_like(mask)) > 0.99
    one_missed = np.where(mask == 2, 0, mask)
    assert expected_dice_loss(sure, one_missed) == pytest.approx(0.5, abs=0.01), "the mean over classes"
