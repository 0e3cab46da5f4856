"""Volume intervals: do they cover, on data whose truth is known, and are they what the definition says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.evaluation.conformal import calibrate_interval, cross_coverage, expected_coverage, interval_coverage

QUICK = settings(max_examples=80, deadline=None)
ML = st.sampled_from([0.0, 0.001, 0.5, 1.0, 2.0, 3.5, 10.0])


@st.composite
def volumes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends = [sorted(draw(st.tuples(ML, ML))) for _ in range(draw(st.integers(1, 12)))]
    return np.array([a for a, _ in ends]), np.array([b for _, b in ends]), np.array([draw(ML) for _ in ends])


def holds(low: float, high: float, truth: float, margin: float, smallest: float) -> bool:
    """Whether the interval, widened by hand, holds the truth."""
    by = margin * ((low + high) / 2 + smallest)
    return low - by <= truth + 1e-9 and truth - 1e-9 <= high + by


@given(volumes(), st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@QUICK
def test_the_margin_is_the_smallest_that_holds_enough_of_the_truths(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], alpha: float
) -> None:
    low, high, truth = case
    found = calibrate_interval(low, high, truth, alpha, 0.01)
    needed = (len(low) + 1) * (1 - alpha)
    if needed > len(low) + 1e-9:
        assert math.isinf(found.margin)
        return
    count = lambda margin: sum(holds(*ends, margin, 0.01) for ends in zip(low, high, truth, strict=True))
    assert count(found.margin) >= needed - 1e-9 > count(found.margin - 1e-6)


@given(volumes(), st.sampled_from([0.1, 0.4]))
@QUICK
def test_widened_intervals_hold_what_the_margin_says(case: tuple[np.ndarray, np.ndarray, np.ndarray], alpha: float) -> None:
    low, high, truth = case
    found = calibrate_interval(low, high, truth, alpha, 0.01)
    new_low, new_high = found.apply(low, high)
    assert (new_low >= 0).all() and (new_low <= new_high).all()
    inside = interval_coverage(new_low, new_high, truth).inside
    if found.margin >= 0:
        assert (new_low <= low + 1e-9).all() and (new_high >= high - 1e-9).all()
        rows = zip(low, high, truth, strict=True)
        assert inside.tolist() == [holds(*row, min(found.margin, 1e9), 0.01) for row in rows]
    else:
        assert (new_low >= low - 1e-9).all() and (new_high <= high + 1e-9).all()
    assert inside.mean() >= 1 - alpha - 1e-9 or found.margin < 0


def simulated(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes that spread by 20 %, with intervals that think it were 8 %, and 5 % too low."""
    true = np.exp(random.normal(1.0, 0.7, shape))
    predicted = true * np.exp(random.normal(-0.05, 0.2, shape))
    return predicted * math.exp(-1.645 * 0.08), predicted * math.exp(1.645 * 0.08), true


def test_new_cases_are_covered_as_often_as_is_said() -> None:
    random = np.random.default_rng(7)
    raw, after = [], []
    for _ in range(300):
        low, high, true = simulated(random, (49 + 40,))
        widening = calibrate_interval(low[:49], high[:49], true[:49], 0.1)
        raw.append(interval_coverage(low[49:], high[49:], true[49:]).fraction)
        after.append(interval_coverage(*widening.apply(low[49:], high[49:]), true[49:]).fraction)
    assert np.mean(raw) < 0.6
    # 45 of 50 in the mean; the standard error of 300 trials is 0.004
    assert 0.885 <= np.mean(after) <= 0.915
    low, high = expected_coverage(49, 0.1)
    assert low < 0.9 < high and np.std(after) == pytest.approx(math.hypot((high - low) / 3.29, 0.3 / math.sqrt(40)), rel=0.2)


def test_too_wide_intervals_become_narrower() -> None:
    random = np.random.default_rng(8)
    true = random.uniform(5, 10, 200)
    middle = true * (1 + random.normal(0, 0.01, 200))
    widening = calibrate_interval(0.8 * middle, 1.2 * middle, true, 0.1)
    assert widening.margin == pytest.approx(-0.2 + 1.645 * 0.01, abs=0.005) and widening.cases == 200
    low, high = widening.apply(np.array([4.0, 4.0]), np.array([8.0, 4.5]))
    assert low[0] > 5 and high[0] < 7 and (low[1], high[1]) == (4.25, 4.25), "inside out: the point in the middle"


@given(st.integers(2, 40), st.sampled_from([0.05, 0.1, 0.3]), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_leaving_one_out_covers_the_same_number_whatever_the_model(n: int, alpha: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    middle, half, truth = random.uniform(2, 4, n), random.uniform(0, 0.2, n), random.uniform(1, 5, n)
    found = cross_coverage(middle - half, middle + half, truth, alpha)
    assert found.inside.sum() == math.ceil(n * (1 - alpha) - 1e-9)


def test_other_patients_and_other_folds() -> None:
    random = np.random.default_rng(9)
    low, high, truth = simulated(random, (24,))
    patients = np.repeat(np.arange(6), 4).tolist()
    found = cross_coverage(low, high, truth, 0.2, groups=patients)
    for case in (0, 13, 23):
        others = np.array(patients) != patients[case]
        widening = calibrate_interval(low[others], high[others], truth[others], 0.2)
        assert (found.low[case], found.high[case]) == pytest.approx([float(v[case]) for v in widening.apply(low, high)])
    folds = cross_coverage(low, high, truth, 0.2, folds=3)
    margins = (folds.high - high) / ((low + high) / 2 + 1e-3)
    assert 1 < len(np.unique(np.round(margins, 9))) <= 3
    assert (folds.low == cross_coverage(low, high, truth, 0.2, folds=3).low).all()


def test_only_patients_or_folds_left_out_make_the_number_vary() -> None:
    random = np.random.default_rng(10)
    patients = np.repeat(np.arange(10), 3).tolist()
    ways = {"one out": {}, "patient out": {"groups": patients}, "fold out": {"folds": 5}}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(40):
        truth = np.full(30, 10.0)
        point = truth + np.repeat(random.normal(size=10), 3) + 0.5 * random.normal(size=30)
        for name, way in ways.items():
            found[name].append(cross_coverage(point, point, truth, 0.2, **way).fraction)
    assert set(found["one out"]) == {0.8}
    for name in ("patient out", "fold out"):
        assert np.std(found[name]) > 0.01 and np.mean(found[name]) == pytest.approx(0.81, abs=0.04)


def test_how_many_cases_are_needed() -> None:
    one = np.ones(8)
    few = calibrate_interval(one, one, one * 2, 0.1)
    assert math.isinf(few.margin)
    low, high = few.apply(one[:1], one[:1])
    assert (low[0], high[0]) == (0, math.inf)
    assert calibrate_interval(np.ones(9), np.ones(9), np.full(9, 2.0), 0.1, 1.0).margin == 0.5
    assert expected_coverage(8, 0.1) == (1, 1)
    low, high = expected_coverage(9, 0.1)  # Beta(9, 1): x^9 at 5 and 95 %
    assert (low, high) == pytest.approx((0.05 ** (1 / 9), 0.95 ** (1 / 9)))


def test_impossible_intervals_are_refused() -> None:
    one = np.ones(3)
    for wrong in ((one, one * 0.5, one), (-one, one, one), (one, one * math.inf, one)):
        with pytest.raises(ValueError, match="0 <= low <= high"):
            calibrate_interval(*wrong)
    for truth in (-one, one * math.nan):
        with pytest.raises(ValueError, match="true volume"):
            calibrate_interval(one, one, truth)
    with pytest.raises(ValueError, match="at least one"):
        calibrate_interval(one[:0], one[:0], one[:0])
    for settings_ in ({"alpha": 0.0}, {"alpha": 1.0}, {"smallest": 0.0}):
        with pytest.raises(ValueError, match="alpha in"):
            calibrate_interval(one, one, one, **settings_)
    for wrong in ({"groups": ["a", "a", "a"]}, {"groups": ["a", "b"]}):
        with pytest.raises(ValueError, match="two groups"):
            cross_coverage(one, one, one, **wrong)
    with pytest.raises(ValueError, match="4 folds"):
        cross_coverage(one, one, one, folds=4)
    with pytest.raises(ValueError, match="0 cases"):
        expected_coverage(0)
