"""Measures of masks against independent implementations, closed forms and invariances."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuseg.evaluation.metrics import (
    METRICS,
    Grid,
    Rule,
    dice,
    hd95,
    iou,
    measure,
    nsd,
    relative_volume_error,
    volume_error,
)

SHAPES = st.one_of(
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
)


def grid(spacing: list[float]) -> Grid:
    """A grid with right angles."""
    return Grid(spacing, math.prod(spacing) / 1000)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Two masks and a spacing in mm: sparse, dense, single voxels, empty, touching every edge, anisotropic."""
    shape = draw(SHAPES)
    masks = []
    for _ in range(2):
        kind = draw(st.sampled_from(["any", "voxel", "sparse", "dense", "box", "full", "empty"]))
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        mask = np.zeros(shape, bool)
        if kind == "any":
            mask = draw(hnp.arrays(bool, shape))
        elif kind == "voxel":
            mask.flat[draw(st.integers(0, mask.size - 1))] = True
        elif kind in ("sparse", "dense"):
            mask = random.random(shape) < {"sparse": 0.1, "dense": 0.85}[kind]
        elif kind == "box":
            starts = [draw(st.integers(0, n - 1)) for n in shape]
            mask[tuple(slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))] = True
        elif kind == "full":
            mask[:] = True
        masks.append(mask)
    spacing = draw(st.lists(st.sampled_from([0.3, 0.75, 1.0, 2.5, 5.0]), min_size=len(shape), max_size=len(shape)))
    return masks[0], masks[1], spacing


def border(mask: np.ndarray) -> np.ndarray:
    """Indices of the voxels of a mask that have a face in common with what is outside it, one voxel at a time."""
    found = []
    for index in zip(*np.nonzero(mask), strict=True):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = list(index)
                other[axis] += step
                outside = not 0 <= other[axis] < mask.shape[axis]
                if outside or not mask[tuple(other)]:
                    found.append(index)
    return np.array(sorted(set(found)), float)


def nearest(a: np.ndarray, b: np.ndarray, spacing: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from every border voxel of one mask to the other one's, by comparing all with all."""
    every = np.linalg.norm((border(a)[:, None] - border(b)[None]) * spacing, axis=-1)
    return every.min(1), every.min(0)


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_overlap_counts_voxels(case: tuple[np.ndarray, np.ndarray, list[float]]) -> None:
    a, b, _ = case
    first, second = ({tuple(i) for i in np.argwhere(m).tolist()} for m in (a, b))
    if not first and not second:
        assert math.isnan(dice(a, b)) and math.isnan(iou(a, b))
        return
    assert dice(a, b) == pytest.approx(2 * len(first & second) / (len(first) + len(second)), abs=1e-12)
    assert iou(a, b) == pytest.approx(len(first & second) / len(first | second), abs=1e-12)
    assert iou(a, b) == pytest.approx(dice(a, b) / (2 - dice(a, b)), abs=1e-12)


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_hd95_is_that_of_brute_force(case: tuple[np.ndarray, np.ndarray, list[float]]) -> None:
    a, b, spacing = case
    diagonal = math.sqrt(sum((n * mm) ** 2 for n, mm in zip(a.shape, spacing, strict=True)))
    if a.any() and b.any():
        there, back = nearest(a, b, spacing)
        expected = max(np.quantile(there, 0.95), np.quantile(back, 0.95))
        assert hd95(a, b, spacing) == pytest.approx(expected, rel=1e-5, abs=1e-6 * diagonal)  # distances in single precision
    else:
        assert hd95(a, b, spacing, "zero") == pytest.approx(diagonal)


@given(pairs(), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
@settings(max_examples=150, deadline=None)
def test_nsd_is_that_of_the_surface_distance_package(
    case: tuple[np.ndarray, np.ndarray, list[float]], tolerance: float
) -> None:
    surface_distance = pytest.importorskip("surface_distance")
    a, b, spacing = case
    if a.any() and b.any():
        distances = surface_distance.compute_surface_distances(a, b, spacing)
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance + 1e-6)
        assert nsd(a, b, spacing, tolerance) == pytest.approx(expected, abs=1e-5)


def test_surfaces_are_areas_however_finely_they_are_sampled() -> None:
    """One box beside another, in slices of 2 mm and of a quarter mm: the same objects, so the same value.

    Counting border voxels would let the sides weigh eight times as much against the ends as before.
    """
    a = np.zeros((20, 20, 12), bool)
    a[3:13, 4:16, 3:9] = True
    b = np.roll(a, 3, 0)
    fine = [np.repeat(mask, 8, axis=2) for mask in (a, b)]
    assert nsd(*fine, [1.0, 1.0, 0.25], 1.0) == pytest.approx(nsd(a, b, [1.0, 1.0, 2.0], 1.0), abs=0.02)

    def share(one: np.ndarray, other: np.ndarray, spacing: list[float]) -> float:
        return float(np.mean(np.concatenate(nearest(one, other, spacing)) <= 1.0))

    assert abs(share(*fine, [1.0, 1.0, 0.25]) - share(a, b, [1.0, 1.0, 2.0])) > 0.05


@given(pairs(), st.randoms())
@settings(max_examples=80, deadline=None)
def test_no_measure_knows_left_from_right(case: tuple[np.ndarray, np.ndarray, list[float]], random: object) -> None:
    a, b, spacing = case
    axes = list(range(a.ndim))
    random.shuffle(axes)  # type: ignore[attr-defined]
    turn = lambda mask: np.ascontiguousarray(np.flip(mask, 0).transpose(axes))
    for key, metric in METRICS.items():
        rule = Rule("zero", 1.0)
        one = metric.measure(a, b, grid(spacing), rule)
        other = metric.measure(turn(a), turn(b), grid([spacing[i] for i in axes]), rule)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True), key
        if key in ("dice", "iou", "hd95", "nsd"):
            assert one == pytest.approx(metric.measure(b, a, grid(spacing), rule), rel=1e-5, abs=1e-6), key


@given(pairs())
@settings(max_examples=50, deadline=None)
def test_a_mask_is_itself(case: tuple[np.ndarray, np.ndarray, list[float]]) -> None:
    mask, _, spacing = case
    if mask.any():
        best = {"dice": 1, "iou": 1, "hd95": 0, "nsd": 1, "volume_error": 0, "relative_volume_error": 0}
        for key, metric in METRICS.items():
            assert metric.measure(mask, mask, grid(spacing), Rule(tolerance=0.0)) == pytest.approx(best[key], abs=1e-6)


def test_the_tolerance_survives_a_spacing_in_single_precision() -> None:
    a = np.zeros((9, 9, 9), bool)
    a[2:6, 2:6, 2:6] = True
    b = np.roll(a, 1, 0)
    for mm in (1.0, 1.0000001, 0.9999999, float(np.float32(1.0) * np.float32(1.000001))):
        assert nsd(a, b, [mm] * 3, 1.0) == 1.0


EMPTY = np.zeros((4, 5), bool)
ONE = EMPTY.copy()
ONE[1, 2] = True
DIAGONAL = math.hypot(4 * 2.0, 5 * 3.0)


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        ("nan", {"dice": math.nan, "iou": math.nan, "nsd": math.nan, "hd95": math.nan}),
        ("one", {"dice": 1.0, "iou": 1.0, "nsd": 1.0, "hd95": 0.0}),
        ("zero", {"dice": 0.0, "iou": 0.0, "nsd": 0.0, "hd95": DIAGONAL}),
    ],
)
def test_both_empty_follows_the_rule(empty: str, expected: dict[str, float]) -> None:
    for key, value in expected.items():
        found = METRICS[key].measure(EMPTY, EMPTY, grid([2.0, 3.0]), Rule(empty))  # type: ignore[arg-type]
        assert found == pytest.approx(value, nan_ok=True), key


@pytest.mark.parametrize("empty", ["nan", "one", "zero"])
@pytest.mark.parametrize("pair", [(ONE, EMPTY), (EMPTY, ONE)])
def test_a_miss_or_a_false_alarm_is_never_rewarded(empty: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    for key, worst in {"dice": 0.0, "iou": 0.0, "nsd": 0.0, "hd95": DIAGONAL}.items():
        assert METRICS[key].measure(*pair, grid([2.0, 3.0]), Rule(empty)) == pytest.approx(worst), key  # type: ignore[arg-type]


def test_volumes_are_signed_and_in_ml() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[:10, :10, :10] = True  # 1000 voxels of 2 mm3 are 2 ml
    less = truth.copy()
    less[:5] = False
    assert volume_error(less, truth, 0.002) == pytest.approx(-1.0)
    assert volume_error(truth, less, 0.002) == pytest.approx(1.0)
    assert relative_volume_error(less, truth) == pytest.approx(-0.5)
    assert relative_volume_error(truth, less) == pytest.approx(1.0)
    assert math.isnan(relative_volume_error(truth, np.zeros_like(truth)))


def test_each_class_is_measured_by_itself() -> None:
    truth = np.array([[1, 1, 0, 0], [4, 4, 0, 0], [0, 0, 0, 0]])
    prediction = np.array([[1, 0, 0, 0], [4, 4, 0, 0], [0, 0, 9, 0]])
    scores = measure(prediction, truth, {"background": 0, "a": 1, "b": 4, "c": 7, "d": 9}, grid([10.0, 10.0]), Rule())
    assert list(scores) == ["a", "b", "c", "d"]
    assert scores["a"].values["dice"] == pytest.approx(2 / 3)
    assert scores["b"].values["dice"] == 1.0
    assert (scores["c"].empty, scores["d"].empty, scores["a"].empty) == ("both", "truth", "")
    assert scores["a"].truth_ml == pytest.approx(0.2) and scores["a"].prediction_ml == pytest.approx(0.1)


def test_shapes_that_numpy_would_broadcast_are_refused() -> None:
    for key, metric in METRICS.items():
        with pytest.raises(Exception, match=r"(?i)shape|type-check") as fault:
            metric.measure(np.ones((4, 1), bool), np.ones((4, 5), bool), grid([1.0, 1.0]), Rule())
        assert fault.value is not None, key


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance in mm"):
        nsd(ONE, ONE, [1.0, 1.0], -1.0)


def test_no_warning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nsd(ONE, ONE, [1.0, 1.0])
        hd95(ONE, ONE, [1.0, 1.0])
