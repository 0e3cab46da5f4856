"""Intervals between two thresholds: volumes by a count of our own, scores by trying, coverage where the truth is known."""

import math

import numpy as np
import pytest

from diffuseg.evaluation.level_sets import SHIFTS, LevelMargin, calibrate_levels, cross_levels, level_volumes
from diffuseg.evaluation.shift import Weights


def probabilities(random: np.random.Generator, classes: int, *shape: int) -> np.ndarray:
    logits = 2 * random.normal(size=(classes, *shape))
    p = np.exp(logits - logits.max(0))
    return (p / p.sum(0)).astype(np.float32)


def by_hand(p: np.ndarray, label: int, shift: float) -> int:
    """Voxels whose class would win, counted one by one with the class's probability multiplied by exp(shift)."""
    columns = p.reshape(len(p), -1).T.astype(float)
    won = lambda column: column[label] * math.exp(shift) >= max(np.delete(column, label))
    return sum(won(column) for column in columns)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_shifted_mask_is_that_of_a_class_made_more_probable(classes):
    p = probabilities(np.random.default_rng(0), classes, 6, 5, 3)
    shifts = np.array([-3.0, -0.7, 0.0, 0.2, 2.5])
    for label in range(classes):
        expected = [0.5 * by_hand(p, label, shift) for shift in shifts]
        assert level_volumes(p, label, 0.5, shifts).tolist() == expected
        assert level_volumes(p, label, 0.5, np.zeros(1))[0] == 0.5 * (p.argmax(0) == label).sum()


def test_volumes_go_from_nothing_to_the_whole_image_whatever_the_probabilities():
    p = np.zeros((2, 4, 4), np.float32)
    p[0, :2], p[1, 2:] = 1, 1  # as sure as can be
    found = level_volumes(p, 1, 2.0)
    assert found[0] == 0 and found[len(SHIFTS) // 2] == 16 and found[-1] == 32 and (np.diff(found) >= 0).all()


def test_blocks_do_not_change_a_volume(monkeypatch):
    p = probabilities(np.random.default_rng(1), 3, 9, 8, 7)
    whole = level_volumes(p, 1, 1.0)
    monkeypatch.setattr("diffuseg.blocks.VOXELS", 60)
    assert np.array_equal(level_volumes(p, 1, 1.0), whole)


def cases(random: np.random.Generator, n: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Rows of 400 voxels whose odds fall by a slope of the case's own; the truth is the mask of odds wrong by N(0, 1)."""
    slope = random.uniform(0.05, 0.5, n)
    odds = slope[:, None] * (np.arange(200, -200, -1) + 0.5)
    p = [np.stack([1 / (1 + np.exp(row)), 1 / (1 + np.exp(-row))]).astype(np.float32) for row in odds]
    truth = (odds + random.normal(size=n)[:, None] > 0).sum(1).astype(float)
    return p, np.stack([level_volumes(each, 1, 1.0) for each in p]), truth, slope


def test_the_shift_is_the_smallest_that_holds_enough_of_the_truths():
    _, volumes, truth, _ = cases(np.random.default_rng(2), 29)
    found = calibrate_levels(volumes, truth, 0.1)
    inside = lambda q: sum(
        np.interp(-q, SHIFTS, row) - 1e-6 <= t <= np.interp(q, SHIFTS, row) + 1e-6
        for row, t in zip(volumes, truth, strict=True)
    )
    assert inside(found.shift) >= 27 > inside(found.shift - 0.05) and found.cases == 29


def test_new_cases_are_covered_as_often_as_is_said_and_blurred_borders_make_wide_intervals():
    random = np.random.default_rng(3)
    _, volumes, truth, _ = cases(random, 400)
    margin = calibrate_levels(volumes, truth, 0.1)
    assert margin.shift == pytest.approx(1.645, abs=0.25)  # of N(0, 1)
    p, _, truth, slope = cases(random, 1000)
    low, high = np.array([margin.interval(each, 1, 1.0) for each in p]).T
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.9, abs=0.04)
    np.testing.assert_allclose(high - low, 2 * margin.shift / slope, atol=2)


def test_left_out_patients_do_not_count_for_their_own_interval():
    _, volumes, truth, _ = cases(np.random.default_rng(4), 24)
    of = [str(number // 2) for number in range(24)]
    found = cross_levels(volumes, truth, 0.2, of)
    for number in (0, 7, 23):
        others = np.array([group != of[number] for group in of])
        shift = calibrate_levels(volumes[others], truth[others], 0.2).shift
        ends = np.interp([-shift, shift], SHIFTS, volumes[number])
        assert (found.low[number], found.high[number]) == pytest.approx(tuple(ends))
    halves = cross_levels(volumes, truth, 0.2, of, folds=2)
    assert not np.array_equal(halves.high, found.high)


def test_too_few_cases_make_endless_intervals():
    _, volumes, truth, _ = cases(np.random.default_rng(5), 8)
    assert math.isinf(calibrate_levels(volumes, truth, 0.1).shift)
    found = cross_levels(volumes, truth, 0.1)
    assert (found.low == 0).all() and np.isinf(found.high).all() and found.inside.all()
    with pytest.raises(ValueError, match="561 of each"):
        calibrate_levels(volumes[:, 1:], truth)


def test_hard_cases_that_count_more_make_wider_intervals():
    _, volumes, truth, _ = cases(np.random.default_rng(6), 40)
    alike = calibrate_levels(volumes, truth, 0.1).shift
    one = np.eye(len(truth)) @ np.array([calibrate_levels(volumes[[i]], truth[[i]], 0.9).shift for i in range(len(truth))])
    hard = Weights(np.where(one >= np.sort(one)[-3], 20.0, 0.5), 1.0, 12.0)
    assert calibrate_levels(volumes, truth, 0.1, hard).shift > alike


def test_a_margin_is_as_it_was_stored():
    p = probabilities(np.random.default_rng(7), 2, 10, 10)
    low, high = LevelMargin(0.5, 0.1, 20).interval(p, 1, 0.001)
    assert (low, high) == (0.001 * by_hand(p, 1, -0.5), 0.001 * by_hand(p, 1, 0.5))
