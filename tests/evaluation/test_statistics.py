"""Intervals: do they cover, are they exact where they can be, do they depend on what they must not depend on."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    _confidence_level,
    bootstrap_mean,
    bootstrap_of,
    group_folds,
    paired_difference,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


@pytest.mark.parametrize("n", [10, 30])
def test_intervals_cover_the_mean_of_normals_as_often_as_they_say(n: int) -> None:
    random = np.random.default_rng(n)
    trials = 1000  # standard error of the coverage: 0.007
    hits = 0
    for _ in range(trials):
        _, low, high = bootstrap_mean(random.normal(3.0, 2.0, n))
        hits += low <= 3.0 <= high
    assert 0.925 <= hits / trials <= 0.975


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (5, 2.776445), (10, 2.262157), (30, 2.045230)])
def test_few_values_ask_for_the_confidence_of_students_t_times_root_n_over_n_minus_one(n: int, t: float) -> None:
    """Hesterberg's expanded interval, from tables of t at n - 1 degrees of freedom: 2 Phi(t sqrt(n / (n - 1))) - 1."""
    expected = min(math.erf(t * math.sqrt(n / (n - 1)) / math.sqrt(2)), 0.9999)
    assert _confidence_level(n) == pytest.approx(expected, abs=1e-6)
    assert (CONFIDENCE, RESAMPLES) == (0.95, 2000)  # as docs/evaluation.md and every table say


def test_intervals_of_many_values_are_those_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    mean, low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3.7])
def test_equal_values_are_known_exactly(value: float) -> None:
    assert bootstrap_mean([value] * 7) == (value, value, value)


@given(VALUES, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_cases_does_not_matter(values: list[float], random: object) -> None:
    groups = [i // 2 for i in range(len(values))]
    together = list(zip(values, groups, strict=True))
    random.shuffle(together)  # type: ignore[attr-defined]
    shuffled, names = zip(*together, strict=True)
    assert bootstrap_mean(values) == bootstrap_mean(shuffled)
    renamed = [f"patient {name}" for name in names]
    one, other = bootstrap_mean(values, groups), bootstrap_mean(shuffled, renamed)
    assert one == pytest.approx(other, nan_ok=True)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_mean_and_stays_among_the_values(values: list[float]) -> None:
    mean, low, high = bootstrap_mean(values)
    assert min(values) - 1e-12 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= max(values) + 1e-12


def test_missing_values_are_left_out() -> None:
    assert bootstrap_mean([0.2, math.nan, 0.9, 0.4, math.nan]) == bootstrap_mean([0.2, 0.9, 0.4])
    groups = ["a", "b", "b", "c", "c"]
    assert bootstrap_mean([0.2, math.nan, 0.9, 0.4, math.nan], groups) == bootstrap_mean([0.2, 0.9, 0.4], ["a", "b", "c"])


def test_without_values_or_spread_over_patients_nothing_is_claimed() -> None:
    assert all(math.isnan(v) for v in bootstrap_mean([]))
    assert all(math.isnan(v) for v in bootstrap_mean([math.nan]))
    for mean, low, high in (bootstrap_mean([0.5]), bootstrap_mean([0.4, 0.6], ["a", "a"])):
        assert mean == pytest.approx(0.5) and math.isnan(low) and math.isnan(high)


def test_copies_of_a_patient_tell_nothing_new() -> None:
    values = np.random.default_rng(2).normal(size=12)
    copies, groups = np.repeat(values, 5), np.repeat(np.arange(12), 5).tolist()
    assert bootstrap_mean(copies, groups) == pytest.approx(bootstrap_mean(values), abs=1e-9)
    naive = bootstrap_mean(copies)
    right = bootstrap_mean(copies, groups)
    assert naive.high - naive.low < 0.6 * (right.high - right.low)


def test_cases_of_one_patient_are_covered_only_if_patients_are_resampled() -> None:
    random = np.random.default_rng(3)
    hits = {"cases": 0, "patients": 0}
    groups = np.repeat(np.arange(15), 4).tolist()
    for _ in range(300):
        values = np.repeat(random.normal(size=15), 4) + 0.3 * random.normal(size=60)
        for name, of in (("cases", None), ("patients", groups)):
            _, low, high = bootstrap_mean(values, of)
            hits[name] += low <= 0 <= high
    assert hits["cases"] / 300 < 0.8 and hits["patients"] / 300 > 0.9


def test_a_difference_in_pairs_is_sharper_than_two_intervals() -> None:
    random = np.random.default_rng(4)
    hard = random.normal(size=40)
    first, second = hard + 0.1 * random.normal(size=40) + 0.1, hard + 0.1 * random.normal(size=40)
    mean, low, high = paired_difference(first, second)
    assert mean == pytest.approx(float((first - second).mean())) and 0 < low < high
    a, b = bootstrap_mean(first), bootstrap_mean(second)
    assert a.low < b.high  # the intervals of the two overlap
    assert paired_difference(second, first).mean == pytest.approx(-mean)
    assert paired_difference(first, first) == (0, 0, 0)


def test_a_pair_with_a_gap_is_no_pair() -> None:
    assert paired_difference([1.0, math.nan, 3.0], [0.5, 1.0, 1.0]).mean == pytest.approx(1.25)
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="groups"):
        bootstrap_mean([1.0, 2.0], ["a"])


def test_the_random_numbers_are_its_own() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    values = np.random.default_rng(5).normal(size=9)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert (np.random.get_state()[1] == before).all()


def test_any_statistic_has_the_interval_that_its_mean_would_have() -> None:
    values = np.random.default_rng(3).normal(5.0, 1.0, 60)
    [(mean, low, high)] = bootstrap_of(lambda chosen: [values[chosen].mean()], list(range(60)))
    known = bootstrap_mean(values)
    assert (mean, low, high) == pytest.approx(known, abs=0.03)
    # of 20 patients with three equal cases each, the interval is that of 20 values
    three = np.repeat(values[:20], 3)
    of = [str(n) for n in np.repeat(np.arange(20), 3)]
    [found, number] = bootstrap_of(lambda chosen: [three[chosen].mean(), len(chosen)], of)
    assert [found] == [pytest.approx(one) for one in bootstrap_of(lambda chosen: [values[chosen].mean()], list(range(20)))]
    assert number == (60, 60, 60)
    assert found.high - found.low > 1.5 * (high - low)


def test_statistics_of_one_patient_and_of_nobody() -> None:
    [found] = bootstrap_of(lambda chosen: [len(chosen)], ["a", "a"])
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(ValueError, match="no case"):
        bootstrap_of(lambda chosen: [0.0], [])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(2, 10))
def test_folds_keep_groups_together_and_are_of_equal_size(groups: list[int], folds: int) -> None:
    if folds > len(set(groups)):
        with pytest.raises(ValueError, match="folds"):
            group_folds(groups, folds)
        return
    fold = group_folds(groups, folds)
    pairs = set(zip(groups, fold.tolist(), strict=True))
    assert len(pairs) == len(set(groups))
    sizes = [sum(f == number for _, f in pairs) for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1
