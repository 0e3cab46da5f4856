"""Tests of differences: exact against all sign patterns, as many false alarms as stated, closed forms."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from diffuseg.evaluation import significance
from diffuseg.evaluation.significance import cohens_d, first_places, holm, rank_biserial, sign_flip_test

QUICK = settings(max_examples=60, deadline=None)
TENTHS = st.integers(-10, 10).map(lambda n: n / 10)
DIFFERENCES = st.lists(st.tuples(TENTHS, st.sampled_from("abcdef")), min_size=1, max_size=12)


def by_patient(cases: list[tuple[float, str]]) -> dict[str, list[Fraction]]:
    found: dict[str, list[Fraction]] = {}
    for value, patient in cases:
        found.setdefault(patient, []).append(Fraction(round(10 * value), 10))
    return found


@example([(-0.3, "c"), (0.4, "a"), (-0.5, "a"), (-0.7, "a"), (-0.7, "b"), (0.8, "a"), (1.0, "b")])  # a sum of nothing
@given(DIFFERENCES)
@QUICK
def test_p_values_by_all_sign_patterns(cases: list[tuple[float, str]]) -> None:
    sums = [sum(values) for values in by_patient(cases).values()]
    seen = abs(sum(sums))
    patterns = list(itertools.product((-1, 1), repeat=len(sums)))
    extreme = sum(abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= seen for signs in patterns)
    values, patients = zip(*cases, strict=True)
    assert sign_flip_test(values, patients) == pytest.approx(extreme / len(patterns))


@given(DIFFERENCES)
@QUICK
def test_effect_sizes_from_their_definitions(cases: list[tuple[float, str]]) -> None:
    means = [sum(values) / len(values) for values in by_patient(cases).values()]
    values, patients = zip(*cases, strict=True)
    d, r = cohens_d(values, patients), rank_biserial(values, patients)
    if len(means) == 1:
        assert math.isnan(d)
    else:
        mean = sum(means) / len(means)
        variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
        if variance:
            assert d == pytest.approx(float(mean) / math.sqrt(variance))
        else:
            assert d == (0 if mean == 0 else math.copysign(math.inf, mean))
    there = [m for m in means if m]
    rank = lambda m: sum(abs(o) < abs(m) for o in there) + (1 + sum(abs(o) == abs(m) for o in there)) / 2
    total = sum(rank(m) for m in there)
    assert r == pytest.approx(sum(rank(m) * (1 if m > 0 else -1) for m in there) / total if there else 0)
    flipped = [-value for value in values]
    assert rank_biserial(flipped, patients) == pytest.approx(-r)
    assert sign_flip_test(flipped, patients) == pytest.approx(sign_flip_test(values, patients))


def test_false_alarms_are_as_rare_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "FLIPS", 999)
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(15), 2).tolist()
    alarms = {"cases": 0, "patients": 0, "patients for cases": 0}
    for _ in range(200):  # standard error of the rate: 0.015
        skewed = random.exponential(size=24) - random.exponential(size=24)
        alarms["cases"] += sign_flip_test(skewed) < 0.05
        shared = np.repeat(random.normal(size=15), 2) + 0.2 * random.normal(size=30)
        alarms["patients"] += sign_flip_test(shared, patients) < 0.05
        alarms["patients for cases"] += sign_flip_test(shared) < 0.05
    assert 0.02 <= alarms["cases"] / 200 <= 0.08 and 0.02 <= alarms["patients"] / 200 <= 0.08
    assert alarms["patients for cases"] / 200 > 0.1, "two scans of a patient taken for two patients"


def test_drawn_patterns_come_near_all_patterns_and_a_clear_difference_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(1).normal(0.5, 1, 14)
    drawn = sign_flip_test(values)
    with monkeypatch.context() as patch:
        patch.setattr(significance, "FLIPS", 2**14)
        assert drawn == pytest.approx(sign_flip_test(values), abs=0.01)
    assert sign_flip_test(values[::-1]) == sign_flip_test(values), "the order of cases does not matter"
    assert sign_flip_test(np.full(10, 0.3)) == pytest.approx(2 / 2**10)
    assert 0 < sign_flip_test(np.full(60, 0.3)) <= 3e-4
    # with many cases it is Student's
    many = np.random.default_rng(2).normal(0.15, 1, 200)
    assert sign_flip_test(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.015)


def test_no_difference_and_no_pair() -> None:
    assert sign_flip_test([0.0, 1e-12, 0.0]) == 1 and cohens_d([0.0] * 3) == rank_biserial([0.0] * 3) == 0
    assert math.isnan(sign_flip_test([])) and math.isnan(sign_flip_test([math.nan])) and math.isnan(rank_biserial([math.nan]))
    assert sign_flip_test([0.4, 0.5], ["x", "x"]) == 1, "one patient shows nothing"
    assert sign_flip_test([0.4, math.nan, 0.5, 0.1]) == sign_flip_test([0.4, 0.5, 0.1]) == 0.25
    with pytest.raises(ValueError, match="groups"):
        sign_flip_test([1.0, 2.0], ["a"])


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=6))
@QUICK
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    there = sorted(p for p in p_values if not math.isnan(p))
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(there) and there[rejected] * (len(there) - rejected) < level:
            rejected += 1
        assert sum(a < level for a in adjusted) == rejected
    assert all(math.isnan(a) == math.isnan(p) and not a < p for a, p in zip(adjusted, p_values, strict=True))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_first_places() -> None:
    random = np.random.default_rng(3)
    base = random.normal(size=12)
    scores = np.stack([base, base, base - 1])
    assert first_places(scores).tolist() == [0.5, 0.5, 0]
    scores[2, 3] = math.nan
    assert first_places(scores).tolist() == [0.5, 0.5, 0]
    assert np.isnan(first_places(np.full((2, 3), math.nan))).all()
    # two cases, each won by another result: 1/4 both from the first case, 1/4 both from the second, half of them equal
    found = first_places(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found == pytest.approx([0.5, 0.5], abs=0.03) and found.sum() == pytest.approx(1)
    close = np.stack([base, base + random.normal(0.1, 0.5, 12)])
    share = first_places(close)[1]
    drawn = [np.mean((close[1] - close[0])[random.integers(0, 12, 12)]) > 0 for _ in range(2000)]
    assert share == pytest.approx(np.mean(drawn), abs=0.04)
    # of one patient there is one draw only
    assert first_places(close, ["x"] * 12).tolist() in ([0, 1], [1, 0])
