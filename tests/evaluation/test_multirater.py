"""Measures of draws against raters, against sets of voxels, loops and closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuseg.evaluation import multirater as ambiguity
from diffuseg.evaluation.ambiguity_baselines import held_out_rater, one_rater, pixelwise_draws, resampled_raters
from diffuseg.evaluation.multirater import (
    collective_insight,
    combined_sensitivity,
    diversity_agreement,
    draw_agreement,
    ged,
    ged_by_draws,
    hm_iou,
    maximum_dice,
    pairwise_dice,
    pairwise_iou,
    soft_dice,
)

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def groups(draw: st.DrawFn, classes: int | None = None, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draws and raters of one image: random, empty, full, a single voxel (also in a corner), copies of one another."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4))
    classes = classes or draw(st.sampled_from([2, 3]))
    found = []
    for _ in range(2):
        masks = []
        for _ in range(draw(st.integers(1, most))):
            kind = draw(st.sampled_from(["any", "empty", "voxel", "corner", "full", "copy"]))
            mask = np.zeros(shape, np.int64)
            if kind == "any":
                mask = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, classes - 1)))
            elif kind == "voxel":
                mask.flat[draw(st.integers(0, mask.size - 1))] = 1
            elif kind == "corner":
                mask.flat[-1] = 1
            elif kind == "full":
                mask[:] = classes - 1
            elif kind == "copy" and masks:
                mask = masks[0].copy()
            masks.append(mask)
        found.append(np.stack(masks))
    if classes == 2 and draw(st.booleans()):
        return found[0] == 1, found[1] == 1
    return found[0], found[1]


def voxels(mask: np.ndarray, value: int) -> set[tuple[int, ...]]:
    return {index for index in np.ndindex(mask.shape) if mask[index] == value}


def present(*masks: np.ndarray) -> list[int]:
    return sorted({int(v) for array in masks for v in array.flat} - {0}) or [1]


def similarity(one: np.ndarray, other: np.ndarray, classes: list[int], kind: str) -> float:
    """Mean over classes of IoU or Dice of two masks, by sets."""
    values = []
    for value in classes:
        a, b = voxels(one, value), voxels(other, value)
        if not a and not b:
            values.append(1.0)
        elif kind == "iou":
            values.append(len(a & b) / len(a | b))
        else:
            values.append(len(a & b) / ((len(a) + len(b)) / 2))
    return sum(values) / len(values)


@given(groups())
@QUICK
def test_iou_and_dice_of_all_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    classes = present(draws, raters)
    for kind, found in (("iou", pairwise_iou(draws, raters)), ("dice", pairwise_dice(draws, raters))):
        expected = [[similarity(s, y, classes, kind) for y in raters] for s in draws]
        np.testing.assert_allclose(found, expected, atol=1e-12)


@given(groups())
@QUICK
def test_energy_distance_over_all_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    classes = present(draws, raters)

    def apart(ones: np.ndarray, others: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(ones)) for j in range(len(others))]
        return math.fsum(1 - similarity(ones[i], others[j], classes, "iou") for i, j in pairs) / len(pairs)

    expected = 2 * apart(draws, raters) - apart(draws, draws) - apart(raters, raters)
    assert ged(draws, raters) == pytest.approx(expected, abs=1e-12)
    assert ged(draws, raters) >= -1e-12


@given(groups(most=5))
@settings(max_examples=25, deadline=None)
def test_energy_distance_of_fewer_draws_is_the_mean_over_all_subsets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    n, labels = len(draws), present(draws, raters)
    found = ged_by_draws(draws, raters, range(1, n + 1))
    for k, value in found.items():
        subsets = [list(subset) for subset in itertools.combinations(range(n), k)]
        expected = np.mean([ged(draws[subset], raters, labels) for subset in subsets])
        assert value == pytest.approx(expected, abs=1e-12)
    assert found[n] == pytest.approx(ged(draws, raters), abs=1e-12)


@given(groups())
@QUICK
def test_the_best_matching_is_found(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    classes, size = present(draws, raters), math.lcm(len(draws), len(raters))
    table = [[similarity(s, y, classes, "iou") for y in raters] for s in draws]
    best = 0.0
    for order in itertools.permutations(range(size)):
        best = max(best, sum(table[i % len(draws)][j % len(raters)] for i, j in enumerate(order)) / size)
    assert hm_iou(draws, raters) == pytest.approx(best, abs=1e-12)


@given(groups())
@QUICK
def test_collective_insight_from_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    classes = present(draws, raters)
    nearest = [max(similarity(s, y, classes, "dice") for s in draws) for y in raters]
    assert maximum_dice(draws, raters) == pytest.approx(sum(nearest) / len(nearest))
    covered, agreement = [], []
    for value in classes:
        marked = set().union(*(voxels(y, value) for y in raters))
        found = set().union(*(voxels(s, value) for s in draws))
        nothing = 0.0 if found else 1.0
        covered.append(len(marked & found) / len(marked) if marked else nothing)
        spread = []
        for masks in (raters, draws):
            ones = (masks == value).astype(float)
            spread.append([np.var(a - b) for a, b in itertools.combinations(ones, 2)] or [0.0])
        agreement.append(1 - (abs(max(spread[0]) - max(spread[1])) + abs(min(spread[0]) - min(spread[1]))) / 2)
    assert combined_sensitivity(draws, raters) == pytest.approx(np.mean(covered))
    assert diversity_agreement(draws, raters) == pytest.approx(np.mean(agreement), abs=1e-12)
    score, *parts = collective_insight(draws, raters)
    assert parts == pytest.approx([np.mean(covered), np.mean(nearest), np.mean(agreement)])
    assert score == pytest.approx(0 if min(parts) == 0 else len(parts) / sum(1 / part for part in parts))


@given(groups())
@QUICK
def test_raters_themselves_and_the_order_of_draws(pair: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = pair
    assert ged(raters, raters) == pytest.approx(0, abs=1e-12)
    assert hm_iou(raters, raters) == maximum_dice(raters, raters) == 1
    assert collective_insight(raters, raters) == (1, 1, 1, 1)
    for measure in (ged, hm_iou, maximum_dice, combined_sensitivity):
        assert measure(draws[::-1], raters[::-1]) == pytest.approx(measure(draws, raters), abs=1e-12)
        doubled = measure(np.concatenate([draws, draws]), raters)
        assert doubled == pytest.approx(measure(draws, raters), abs=1e-12)


def single(*places: int) -> np.ndarray:
    """Masks of one row of six pixels: one pixel each; a negative place is an empty mask."""
    masks = np.zeros((len(places), 1, 6), bool)
    for mask, place in zip(masks, places, strict=True):
        if place >= 0:
            mask[0, place] = True
    return masks


def test_values_that_can_be_said_by_heart() -> None:
    raters = single(0, 0, 5, -1)  # half of them the border pixel 0, a quarter pixel 5, a quarter nothing
    assert ged(raters, raters) == 0 and ged(single(0), single(0)) == 0
    assert ged(single(1), single(4)) == 2  # as far as two certainties can be from each other
    # one draw: 2 * 1/2 - 0 - (1 - 1/4 - 1/16 - 1/16)
    assert ged(single(0), raters) == pytest.approx(1 - 0.625)
    assert ged(single(-1), single(-1)) == 0 and ged(single(-1), single(2)) == 2
    assert hm_iou(single(0, 5), raters) == 0.75 and hm_iou(single(0), raters) == 0.5
    assert maximum_dice(single(0, 5), raters) == 0.75 and maximum_dice(single(0, 5, -1), raters) == 1
    assert combined_sensitivity(single(0), raters) == 0.5
    assert combined_sensitivity(single(0), single(-1)) == 0 and combined_sensitivity(single(-1), single(-1)) == 1
    # two single pixels apart: differences 1, -1, 0, 0, 0, 0 have a variance of 1/3
    assert diversity_agreement(single(0, 1), single(3, 3)) == pytest.approx(1 - (1 / 3 + 1 / 3) / 2)


def test_a_class_in_no_mask_counts_only_if_it_is_asked_for() -> None:
    one, other = np.array([[[1, 1, 0]]]), np.array([[[1, 0, 0]]])
    assert pairwise_iou(one, other)[0, 0] == 0.5
    assert pairwise_iou(one, other, labels=[0, 1, 2])[0, 0] == 0.75


def test_large_images_are_counted_exactly_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.random.default_rng(0).integers(0, 3, (3, 17, 13))
    whole = pairwise_iou(masks, masks)
    monkeypatch.setattr(ambiguity, "CHUNK", 10)
    assert (pairwise_iou(masks, masks) == whole).all()


@given(hnp.arrays(np.float64, (3, 3), elements=st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1])), groups(classes=2))
@QUICK
def test_soft_dice_threshold_by_threshold(probability: np.ndarray, pair: tuple[np.ndarray, np.ndarray]) -> None:
    votes = np.zeros((len(pair[0]), 3, 3), bool)
    votes[:, 0, 0] = pair[0].reshape(len(pair[0]), -1)[:, 0] > 0
    votes[0, 1:] = True
    expected = []
    for threshold in (1, 3, 5, 7, 9):
        a = {i for i in np.ndindex(3, 3) if round(100 * probability[i]) > 10 * threshold}
        b = {i for i in np.ndindex(3, 3) if 10 * int(votes[:, i[0], i[1]].sum()) > threshold * len(votes)}
        expected.append(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
    assert soft_dice(probability, votes) == pytest.approx(np.mean(expected))


def test_soft_dice_of_the_raters_own_share_is_one_and_of_nothing_too() -> None:
    raters = single(0, 0, 1, 5)
    assert soft_dice(raters.mean(0), raters) == 1
    empty = np.zeros((1, 6))
    assert soft_dice(empty, single(-1)) == 1
    # one rater of four is above 0.1 only; nobody's draw says so
    assert soft_dice(empty, single(0, -1, -1, -1)) == pytest.approx(4 / 5)


def test_what_cannot_be_compared_is_refused() -> None:
    a = single(0, 1)
    for measure in (pairwise_iou, ged, hm_iou, maximum_dice, combined_sensitivity, diversity_agreement):
        for wrong in (a[:, :, :1], a[:0]):
            with pytest.raises(Exception, match=r"(?i)cannot be compared|type-check"):
                measure(a, wrong)
    with pytest.raises(Exception, match=r"(?i)cannot be compared|type-check"):
        soft_dice(np.zeros((6, 1)), a)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        soft_dice(np.full((1, 6), 1.1), a)
    with pytest.raises(ValueError, match="no 4 of them"):
        ged_by_draws(a, a, (1, 4))
    many = np.zeros((128, 1, 1), bool)
    with pytest.raises(ValueError, match="multiple"):
        hm_iou(many, many[:127])


def test_pixelwise_draws_have_the_frequencies_asked_for() -> None:
    probability = np.array([[[0.2, 1.0, 0.0]], [[0.5, 0.0, 1.0]], [[0.3, 0.0, 0.0]]])
    draws = pixelwise_draws(probability, 4000, 0)
    for number in range(3):
        np.testing.assert_allclose((draws == number).mean(0), probability[number], atol=0.03)
    assert (pixelwise_draws(probability, 3, 0) == pixelwise_draws(probability, 3, 0)).all()
    for wrong, says in ((probability / 2, "sum"), (-probability, "negative")):
        with pytest.raises(ValueError, match=says):
            pixelwise_draws(wrong, 1, 0)


def test_the_references_stand_in_their_order_where_raters_disagree_as_a_whole() -> None:
    small, large = np.zeros((2, 9, 9), bool)
    small[3:6, 3:6], large[1:8, 1:8] = True, True
    raters = np.stack([small, small, large, large])
    share = np.stack([1 - raters.mean(0), raters.mean(0)])
    resampled, pixelwise = (
        np.mean([ged(draw(seed), raters) for seed in range(20)])
        for draw in (lambda seed: resampled_raters(raters, 32, seed), lambda seed: pixelwise_draws(share, 32, seed) == 1)
    )
    copies = np.mean([ged(one_rater(raters, 32, i), raters) for i in range(4)])
    assert resampled < 0.1 < copies and resampled < pixelwise
    # one rater: 2 E d - E d(Y, Y') with d = 1 - 9/49 in half of the pairs
    assert copies == pytest.approx((1 - 9 / 49) / 2)
    # a perfect sampler is only short of draws: E d(S, S') is (1 - 1/n) of what it should be
    assert resampled == pytest.approx((1 - 9 / 49) / 2 / 32, rel=0.8)
    assert (resampled_raters(raters, 7, 0).shape, one_rater(raters, 3, 2).sum()) == ((7, 9, 9), 3 * 49)
    assert held_out_rater(raters, maximum_dice) == 1
    with pytest.raises(ValueError, match="compared with"):
        held_out_rater(raters[:1], ged)


def test_draw_agreement_by_hand():
    """Two draws of one voxel and of two, a rater of two: Dice 2/3 and 1 with the rater, 2/3 with one another."""
    draws, rater = np.array([[1, 0, 0], [1, 1, 0]]), np.array([[1, 1, 0]])
    agreement = draw_agreement(draws, rater)
    assert agreement == pytest.approx(((2 / 3 + 1) / 2, 2 / 3, 1 / 6))
    alone = draw_agreement(draws[:1], rater)
    assert alone.draw_rater == pytest.approx(2 / 3) and math.isnan(alone.draw_draw) and math.isnan(alone.gap)


def test_draw_agreement_is_zero_of_draws_from_the_distribution_of_the_truth():
    """Discs of random size: true masks and draws alike have no gap, draws that are all the middle disc have one below 0."""
    g = np.random.default_rng(0)
    distance = np.add.outer((np.arange(24) - 12) ** 2, (np.arange(24) - 12) ** 2)
    discs = lambda n: np.stack([distance < r**2 for r in g.uniform(3, 10, n)])
    pairs = [(discs(8), discs(1)) for _ in range(300)]
    assert np.mean([draw_agreement(*pair).gap for pair in pairs]) == pytest.approx(0, abs=0.01)
    middle = np.repeat((distance < 6.5**2)[None], 8, axis=0)
    assert np.mean([draw_agreement(middle, truth).gap for _, truth in pairs]) < -0.2
