"""Draws against raters: each measure against sets of voxels and all matchings, closed forms, ceilings and floors."""

import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.evaluation import ambiguity
from diffuseg.evaluation.ambiguity import (
    by_draws,
    collective_insight,
    combined_sensitivity,
    diversity_agreement,
    ged,
    ged_by_draws,
    hm_iou,
    maximum_dice,
    pairwise_dice,
    pairwise_iou,
    soft_dice,
)
from diffuseg.evaluation.references import held_out_rater, one_rater, pixelwise_draws, references, resampled_raters

BOTH = st.sampled_from(["one", "zero"])


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Several masks: empty, full, single voxels, at the border, random."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["empty", "full", "voxel", "border", "random"]))
        mask = np.zeros(shape, bool)
        if kind == "full":
            mask[:] = True
        elif kind == "voxel":
            mask.flat[draw(st.integers(0, mask.size - 1))] = True
        elif kind == "border":
            mask[0] = True
        elif kind == "random":
            mask = np.random.default_rng(draw(st.integers(0, 999))).random(shape) < 0.5
        found.append(mask)
    return np.stack(found)


@st.composite
def opinions(draw: st.DrawFn, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draws and raters of one image, 2-D or 3-D."""
    shape = draw(st.sampled_from([(1, 1), (3, 4), (2, 3, 2)]))
    return draw(masks(shape, most)), draw(masks(shape, most))


def voxels(mask: np.ndarray) -> frozenset[tuple[int, ...]]:
    return frozenset(tuple(index) for index in np.argwhere(mask).tolist())


def overlap(a: frozenset, b: frozenset, both: str) -> tuple[Fraction, Fraction]:
    """IoU and Dice of two sets, as fractions."""
    if not a and not b:
        return (Fraction(1),) * 2 if both == "one" else (Fraction(0),) * 2
    return Fraction(len(a & b), len(a | b)), Fraction(2 * len(a & b), len(a) + len(b))


@given(opinions(), BOTH)
@settings(max_examples=100, deadline=None)
def test_overlaps_are_those_of_sets(case: tuple[np.ndarray, np.ndarray], both: str) -> None:
    draws, raters = case
    iou, dice = pairwise_iou(draws, raters, both), pairwise_dice(draws, raters, both)  # type: ignore[arg-type]
    for (i, draw), (j, rater) in itertools.product(enumerate(draws), enumerate(raters)):
        expected = overlap(voxels(draw), voxels(rater), both)
        assert (iou[i, j], dice[i, j]) == pytest.approx([float(value) for value in expected], abs=1e-12)


@given(opinions(), BOTH)
@settings(max_examples=100, deadline=None)
def test_ged_is_the_sum_over_all_pairs(case: tuple[np.ndarray, np.ndarray], both: str) -> None:
    draws, raters = ([voxels(mask) for mask in side] for side in case)

    def mean(pairs: object) -> Fraction:
        return statistics.mean(1 - overlap(a, b, both)[0] for a, b in pairs)  # type: ignore[union-attr]

    cross = 2 * mean(itertools.product(draws, raters))
    itself = [mean(itertools.product(side, repeat=2)) for side in (draws, raters)]
    value = ged(*case, both=both)  # type: ignore[arg-type]
    assert value == pytest.approx(float(cross - sum(itself)), abs=1e-12) and value >= -1e-12
    if min(len(draws), len(raters)) > 1:
        others = [mean(itertools.permutations(side, 2)) for side in (draws, raters)]
        assert ged(*case, both=both, statistic="U") == pytest.approx(float(cross - sum(others)), abs=1e-12)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="two draws and two raters"):
            ged(*case, both=both, statistic="U")  # type: ignore[arg-type]


@given(opinions(4), BOTH)
@settings(max_examples=60, deadline=None)
def test_ged_of_fewer_draws_is_the_mean_over_every_subset(case: tuple[np.ndarray, np.ndarray], both: str) -> None:
    draws, raters = case
    counts = range(1, len(draws) + 1)
    found = ged_by_draws(draws, raters, counts, both)  # type: ignore[arg-type]
    score = lambda some: ged(some, raters, both)  # type: ignore[arg-type]
    for k in counts:
        every = [score(draws[list(subset)]) for subset in itertools.combinations(range(len(draws)), k)]
        assert found[k] == pytest.approx(np.mean(every), abs=1e-12)
    assert by_draws(score, draws, counts) == pytest.approx(found, abs=1e-12)
    assert list(found.values()) == sorted(found.values(), reverse=True) or both == "zero"


@given(opinions(), BOTH)
@settings(max_examples=60, deadline=None)
def test_the_matching_is_the_best_of_all(case: tuple[np.ndarray, np.ndarray], both: str) -> None:
    draws, raters = ([voxels(mask) for mask in side] for side in case)
    size = math.lcm(len(draws), len(raters))
    left, right = (side * (size // len(side)) for side in (draws, raters))
    best = max(sum(overlap(a, b, both)[0] for a, b in zip(left, order, strict=True)) for order in itertools.permutations(right))
    assert hm_iou(*case, both=both) == pytest.approx(float(best / size), abs=1e-12)  # type: ignore[arg-type]


@given(opinions(), BOTH)
@settings(max_examples=100, deadline=None)
def test_the_parts_of_collective_insight(case: tuple[np.ndarray, np.ndarray], both: str) -> None:
    draws, raters = ([voxels(mask) for mask in side] for side in case)
    found = collective_insight(*case, both=both)  # type: ignore[arg-type]
    nearest = [max(overlap(draw, rater, both)[1] for draw in draws) for rater in raters]
    assert found.maximum_dice == pytest.approx(float(statistics.mean(nearest)), abs=1e-12)
    assert found.maximum_dice == maximum_dice(*case, both=both)  # type: ignore[arg-type]
    marked, seen = frozenset().union(*raters), frozenset().union(*draws)
    if marked:
        assert found.combined_sensitivity == pytest.approx(len(marked & seen) / len(marked))
    else:
        assert found.combined_sensitivity == (0 if seen or both == "zero" else 1)
    spread = []
    for side in case:
        pairs = itertools.combinations(side.astype(float), 2)
        spread.append([float(np.var(a - b)) for a, b in pairs] or [0.0])
    agreement = 1 - (abs(max(spread[0]) - max(spread[1])) + abs(min(spread[0]) - min(spread[1]))) / 2
    assert found.diversity_agreement == pytest.approx(agreement, abs=1e-12)
    parts = found[1:]
    expected = statistics.harmonic_mean([max(part, 0) for part in parts])
    assert found.score == pytest.approx(expected, abs=1e-9) and 0 <= found.score <= 1
    published = collective_insight(*case, both=both, formula="published").score  # type: ignore[arg-type]
    assert published == pytest.approx(3 * math.prod(parts) / sum(parts) if min(parts) else 0, abs=1e-9)
    assert published <= found.score + 1e-12


@given(masks((3, 3), 4), st.integers(0, 999), BOTH)
@settings(max_examples=80, deadline=None)
def test_soft_dice_threshold_by_threshold(raters: np.ndarray, seed: int, both: str) -> None:
    probability = np.random.default_rng(seed).choice([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0], (3, 3))
    thresholds = (0.1, 0.5, 0.9)
    scores = []
    for t in map(Fraction, ("1/10", "1/2", "9/10")):
        above = frozenset(i for i, p in enumerate(probability.flat) if Fraction(str(p)) > t)
        marked = frozenset(i for i, votes in enumerate(raters.sum(0).flat) if Fraction(int(votes), len(raters)) > t)
        scores.append(overlap(above, marked, both)[1])
    assert soft_dice(probability, raters, thresholds, both) == pytest.approx(float(statistics.mean(scores)))  # type: ignore[arg-type]


def test_label_maps_are_the_mean_over_their_classes() -> None:
    random = np.random.default_rng(0)
    draws, raters = random.integers(0, 4, (3, 5, 5)), random.integers(0, 4, (2, 5, 5))
    for score in (hm_iou, maximum_dice):
        assert 0 <= score(draws, raters) <= 1
    for pairwise in (pairwise_iou, pairwise_dice):
        single = [pairwise(draws == label, raters == label) for label in (1, 2, 3)]
        np.testing.assert_allclose(pairwise(draws, raters), np.mean(single, axis=0))
    for part in (combined_sensitivity, diversity_agreement):
        assert part(draws, raters) == pytest.approx(np.mean([part(draws == v, raters == v) for v in (1, 2, 3)]))
    single = [ged(draws == label, raters == label) for label in (1, 2, 3)]
    assert ged(draws, raters) == pytest.approx(np.mean(single))
    # a class that nobody marks counts as agreement only if it is asked for
    assert ged(draws, raters, labels=[1, 2, 3, 9]) == pytest.approx(np.sum(single) / 4)


def test_a_known_distance_between_two_coins() -> None:
    """Masks a and b without overlap: draws say a with frequency p, raters with q; the squared distance is 2 (p - q)^2."""
    a, b = np.eye(2, dtype=bool)
    for p, q in ((0, 4), (1, 4), (2, 2), (3, 0)):
        draws, raters = (np.stack([a] * k + [b] * (4 - k)) for k in (p, q))
        assert ged(draws, raters) == pytest.approx(2 * ((p - q) / 4) ** 2)
        assert hm_iou(draws, raters) == pytest.approx(1 - abs(p - q) / 4)


def test_voxels_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    draws, raters = random.random((3, 7, 8)) < 0.4, random.random((2, 7, 8)) < 0.4
    whole = pairwise_iou(draws, raters)
    monkeypatch.setattr(ambiguity, "CHUNK", 5)
    np.testing.assert_array_equal(pairwise_iou(draws, raters), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    draws, raters = np.ones((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    for score in (pairwise_iou, ged, hm_iou, maximum_dice, combined_sensitivity, diversity_agreement):
        with pytest.raises(Exception, match=r"(?i)shape|type-check"):
            score(draws, raters[:, :1])
        with pytest.raises(ValueError, match="shape"):
            score(draws[:0], raters)
    with pytest.raises(ValueError, match="there are 2 draws; no 4, 0"):
        ged_by_draws(draws, raters, (4, 1, 0))
    with pytest.raises(ValueError, match="there are 2 draws"):
        by_draws(lambda some: 1.0, draws, (3,))
    with pytest.raises(ValueError, match="8200 copies"):
        hm_iou(np.ones((1025, 1), bool), np.ones((8, 1), bool))
    for wrong in (np.full((3, 3), 1.1), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            soft_dice(wrong, raters)
    with pytest.raises(ValueError, match="no threshold"):
        soft_dice(np.zeros((3, 3)), raters, ())


DISCS = np.stack([np.hypot(*(np.indices((24, 24)) - 11.5)) < radius for radius in (4, 6, 7, 9)])


def test_ceilings_and_floors_are_in_their_order() -> None:
    """Raters who draw discs of different sizes: only a sampler that draws whole discs knows what they disagree about."""
    share = DISCS.mean(0)
    probability = np.stack([1 - share, share])
    score = lambda draws, raters: ged(draws, raters)
    found = references(DISCS, score, 16, probability)
    assert list(found) == ["held-out rater", "resampled raters", "one rater", "pixelwise"]
    assert found["resampled raters"] < min(found["one rater"], found["pixelwise"])
    matched = references(DISCS, hm_iou, 16, probability)
    assert matched["resampled raters"] > max(matched["one rater"], matched["pixelwise"])
    assert ged(DISCS, DISCS) == pytest.approx(0, abs=1e-12) and hm_iou(DISCS, DISCS) == 1


def test_a_reference_is_what_it_says() -> None:
    assert (one_rater(DISCS, 3, 2) == DISCS[2]).all() and one_rater(DISCS, 3).shape == (3, 24, 24)
    drawn = resampled_raters(DISCS, 200)
    kinds, counts = np.unique(drawn.sum((1, 2)), return_counts=True)
    assert sorted(kinds) == sorted(DISCS.sum((1, 2))) and counts.min() > 30
    single = held_out_rater(DISCS, maximum_dice)
    expected = [pairwise_dice(np.delete(DISCS, i, 0), DISCS[i : i + 1]).max() for i in range(4)]
    assert single == pytest.approx(np.mean(expected))
    assert "held-out rater" not in references(DISCS[:1], hm_iou, 2)
    with pytest.raises(ValueError, match="against the others"):
        held_out_rater(DISCS[:1], hm_iou)


def test_pixelwise_draws_have_the_frequencies_of_their_probabilities() -> None:
    random = np.random.default_rng(2)
    probability = random.dirichlet([1, 1, 1], (3, 4)).transpose(2, 0, 1)
    draws = pixelwise_draws(probability, 4000, values=[0, 2, 7])
    for k, value in enumerate((0, 2, 7)):
        np.testing.assert_allclose((draws == value).mean(0), probability[k], atol=0.04)  # 5 standard errors
    sure = np.stack([np.zeros((3, 4)), np.ones((3, 4)), np.zeros((3, 4))])
    assert (pixelwise_draws(sure, 5) == 1).all()
    together = (draws[:, 0, 0] == 2) & (draws[:, 0, 1] == 2)
    assert together.mean() == pytest.approx(probability[1, 0, 0] * probability[1, 0, 1], abs=0.04)
    for wrong, says in ((probability * 0.9, "sum to 1"), (-probability, "sum to 1")):
        with pytest.raises(ValueError, match=says):
            pixelwise_draws(wrong, 1)
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        pixelwise_draws(probability, 1, values=[0, 1])
    with pytest.raises(ValueError, match="0 draws"):
        pixelwise_draws(probability, 0)
