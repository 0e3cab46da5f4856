"""Calibration, voxel by voxel: brute force, closed forms, and data whose calibration is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuseg.evaluation.calibration_metrics import (
    BINS,
    adaptive_ece,
    apply_temperature,
    band,
    brier,
    class_indices,
    ece,
    fit_temperature,
    nll,
    reliability,
    usual_radius,
)

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [k, *s] with ties, zeros and ones; a truth [*s]; a choice of voxels [*s], possibly of none."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    k = draw(st.integers(2, 4))
    parts = draw(hnp.arrays(np.int64, (k, *shape), elements=st.integers(0, 3)))
    parts[0][parts.sum(0) == 0] = 1
    truth = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, k - 1)))
    return parts / parts.sum(0), truth, draw(hnp.arrays(bool, shape))


def one_by_one(probability: np.ndarray, truth: np.ndarray, where: np.ndarray) -> list[tuple[list[float], int]]:
    return [(probability[:, *i].tolist(), int(truth[i])) for i in np.ndindex(truth.shape) if where[i]]


@given(cases())
@QUICK
def test_ece_of_equal_width(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found: dict[int, list[tuple[float, bool]]] = {}
    voxels = one_by_one(*case)
    for p, t in voxels:
        confidence, right = max(p), t == p.index(max(p))
        number = max(b for b in range(BINS) if b / BINS <= confidence)
        found.setdefault(number, []).append((confidence, right))
    gaps = [abs(sum(c for c, _ in members) - sum(r for _, r in members)) for members in found.values()]
    value = ece(*case)
    assert value == pytest.approx(sum(gaps) / len(voxels)) if voxels else math.isnan(value)
    diagram = reliability(*case)
    assert diagram.count.sum() == len(voxels) and len(diagram.low) == len(found)
    assert ((diagram.low <= diagram.confidence + 1e-9) & (diagram.confidence <= diagram.high + 1e-9)).all()


@given(cases())
@QUICK
def test_ece_of_equal_mass(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    voxels = sorted((max(p), t == p.index(max(p))) for p, t in one_by_one(*case))
    n = len(voxels)
    starts = {voxels[math.ceil(b * n / BINS) - 1][0] for b in range(1, BINS)} if n else set()
    found: dict[float, list[tuple[float, bool]]] = {}
    for confidence, right in voxels:
        found.setdefault(max((s for s in starts if s <= confidence), default=0.0), []).append((confidence, right))
    gaps = [abs(sum(c for c, _ in members) - sum(r for _, r in members)) for members in found.values()]
    value = adaptive_ece(*case)
    assert value == pytest.approx(sum(gaps) / n) if n else math.isnan(value)


@given(cases())
@QUICK
def test_brier_and_likelihood(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    voxels = one_by_one(*case)
    if not voxels:
        assert math.isnan(brier(*case)) and math.isnan(nll(*case))
        return
    squares = [sum((q - (c == t)) ** 2 for c, q in enumerate(p)) for p, t in voxels]
    assert brier(*case) == pytest.approx(sum(squares) / len(voxels))
    assert nll(*case) == pytest.approx(-sum(math.log(max(p[t], 1e-6)) for p, t in voxels) / len(voxels))
    single = case[0].astype(np.float32)
    assert brier(single, *case[1:]) == pytest.approx(brier(*case), abs=1e-6)


@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5), elements=st.integers(0, 2)),
    st.lists(st.sampled_from([0.5, 1.0, 1.6, 3.0]), min_size=3, max_size=3),
)
@QUICK
def test_the_band_by_all_pairs_of_voxels(truth: np.ndarray, spacing: list[float]) -> None:
    spacing = spacing[: truth.ndim]
    places = list(np.ndindex(truth.shape))
    expected = np.zeros(truth.shape, bool)
    for i in places:
        others = [math.dist(np.multiply(i, spacing), np.multiply(j, spacing)) for j in places if truth[j] != truth[i]]
        expected[i] = bool(others) and min(others) <= max(3, 2 * min(spacing)) + 1e-3
    assert (band(truth, spacing) == expected).all()


def test_the_band_of_little_things() -> None:
    nothing = np.zeros((5, 5), int)
    assert not band(nothing, [1.0, 1.0]).any() and not band(nothing + 1, [1.0, 1.0]).any()
    pixel = nothing.copy()
    pixel[0, 0] = 1  # the edge of the image is no boundary
    assert band(pixel, [3.0, 3.0]).sum() == 6 and band(pixel, [1.4, 9.0]).sum() == 3
    assert usual_radius([0.5, 1.0]) == 3 and usual_radius([2.0, 9.0]) == 4


def test_values_that_can_be_said_by_heart() -> None:
    certain, truth = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert ece(certain, truth) == adaptive_ece(certain, truth) == brier(certain, truth) == nll(certain, truth) == 0
    assert brier(certain, 1 - truth) == 2 and ece(certain, 1 - truth) == 1
    assert nll(certain, 1 - truth) == pytest.approx(-math.log(1e-6))
    doubt = np.full((2, 4), 0.5)
    assert nll(doubt, np.zeros(4, int)) == pytest.approx(math.log(2)) and brier(doubt, np.zeros(4, int)) == 0.5
    # nine of ten right at a confidence of 0.8: a gap of 0.1
    p = np.array([[0.2] * 10, [0.8] * 10])
    t = np.array([1] * 9 + [0])
    assert ece(p, t) == pytest.approx(0.1) and adaptive_ece(p, t) == pytest.approx(0.1)


def simulated(n: int, temperature: float, seed: int, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of true probabilities, and these probabilities with their logits divided by a temperature."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(k, n))
    true = np.exp(logits) / np.exp(logits).sum(0)
    outcome = (random.random(n) >= np.cumsum(true[:-1], axis=0)).sum(0)
    stated = np.exp(logits / temperature)
    return stated / stated.sum(0), outcome


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    probability, truth = simulated(40_000, 1 / temperature, seed=3)  # stated too hard by this factor
    parts = [(probability[:, a:b].reshape(3, -1, 10), truth[a:b].reshape(-1, 10)) for a, b in ((0, 10_000), (10_000, 40_000))]
    found = fit_temperature([p for p, _ in parts], [t for _, t in parts])
    assert found == pytest.approx(temperature, rel=0.05)
    better = apply_temperature(probability, found)
    assert ece(better, truth) < 0.015 and nll(better, truth) <= nll(probability, truth) + 1e-9
    assert (better.argmax(0) == probability.argmax(0)).all()
    for other in (found * 0.9, found * 1.1):
        assert nll(better, truth) < nll(apply_temperature(probability, other), truth)


def test_where_the_answer_is_known_the_measures_know_it() -> None:
    probability, truth = simulated(60_000, 1.0, seed=1)
    assert ece(probability, truth) < 0.01 and adaptive_ece(probability, truth) < 0.01
    hard = apply_temperature(probability, 0.3)
    assert ece(hard, truth) > 0.1 and nll(hard, truth) > nll(probability, truth) < nll(
        apply_temperature(probability, 3.0), truth
    )
    assert brier(hard, truth) > brier(probability, truth) < brier(apply_temperature(probability, 3.0), truth)


@given(cases())
@QUICK
def test_a_temperature_of_one_changes_nothing_and_two_make_their_product(case: tuple[np.ndarray, ...]) -> None:
    probability = np.clip(case[0], 1e-3, 1)
    probability = probability / probability.sum(0)
    np.testing.assert_allclose(apply_temperature(probability, 1.0), probability, atol=1e-12)
    np.testing.assert_allclose(
        apply_temperature(apply_temperature(probability, 2.0), 1.5), apply_temperature(probability, 3.0), atol=1e-9
    )


def test_label_values_become_classes() -> None:
    assert class_indices(np.array([[0, 4], [1, 4]]), [4, 0, 1]).tolist() == [[0, 2], [1.0, 2.0]]
    for wrong in (5, 2, -1):
        with pytest.raises(ValueError, match=f"{wrong}"):
            class_indices(np.array([0, wrong]), [0, 1, 4])


def test_what_does_not_fit_together_is_refused() -> None:
    p, t = np.full((2, 3), 0.5), np.zeros(3, int)
    for wrong in ((p, t[:2]), (p, t, np.ones(2, bool))):
        with pytest.raises(Exception, match=r"(?i)fit together|type-check"):
            ece(*wrong)
    with pytest.raises(ValueError, match="classes 0 to 2 of 2"):
        nll(p, np.array([0, 2, 1]))
    with pytest.raises(ValueError, match="sum to 1"):
        brier(p * 0.9, t)
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(p, 0.0)
    for nothing in (([], []), ([p[:, :0]], [t[:0]])):
        with pytest.raises(ValueError, match="none"):
            fit_temperature(*nothing)
