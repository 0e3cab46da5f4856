"""Whether two results on the same cases differ by more than chance: tests, corrections, sizes of effects, stability of ranks.

A difference [n] is that of two results on the same case; with `groups` (the patient of each case, [n]) patients are the
unit, because cases of one patient tell less than as many patients. NaN differences are left out.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from diffuseg.evaluation.statistics import EQUAL, RESAMPLES

FLIPS = 10_000


def sign_flip_test(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Two-sided p-value of the mean of paired differences, by flipping their signs, those of a patient together.

    Tests that without a difference, a patient's differences are as likely with the other sign. Exact where there are at most
    FLIPS sign patterns (13 patients); otherwise drawn, with random numbers of its own, and never 0: the smallest value is
    2 / 2^patients or about 2 / FLIPS. 1 where no difference is more than a rounding error; NaN without any pair.

    Args:
        differences: [n], of the same cases; NaN is left out.
        groups: The patient of each; None: each is its own.

    Raises:
        ValueError: Groups are of another length; so in all functions of this file.

    References:
        Fisher, The Design of Experiments (1935); Phipson and Smyth, Permutation P-values Should Never Be Zero (2010).
    """
    sums, _ = _sums(differences, groups)
    if len(sums) == 0:
        return math.nan
    if np.abs(sums).max() < EQUAL or len(sums) == 1:
        return 1.0
    size = np.abs(sums).max()
    total = lambda values, axis=-1: np.round(values.sum(axis) / size, 9)  # equal sums are equal however they are rounded
    random = np.random.default_rng(0)
    test = stats.permutation_test(
        (np.sort(sums),), total, permutation_type="samples", vectorized=True, n_resamples=FLIPS, batch=1000, rng=random
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at, in their order: the chance of even one false alarm stays as stated.

    NaN stays NaN and counts as no test. Holm (1979).
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def cohens_d(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Paired effect size d_z: mean over standard deviation of the differences, of patients (means over their cases).

    0 without a difference, infinite where all are equal, NaN with fewer than two patients. Cohen (1988).
    """
    sums, counts = _sums(differences, groups)
    means = sums / counts
    if len(means) < 2:
        return math.nan
    mean, spread = float(means.mean()), float(means.std(ddof=1))
    if spread < EQUAL:
        return 0.0 if abs(mean) < EQUAL else math.copysign(math.inf, mean)
    return mean / spread


def rank_biserial(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Matched-pairs rank-biserial correlation in [-1, 1]: ranks in favour minus ranks against, over all ranks, of patients.

    Ranks are those of the size of the differences (means over a patient's cases), equal ones shared; patients without a
    difference are left out. 0 if that is all of them, NaN without any. Kerby (2014).
    """
    sums, counts = _sums(differences, groups)
    means = sums / counts
    if len(means) == 0:
        return math.nan
    # a rounding error must not decide a rank
    means = np.round(means[np.abs(means) >= EQUAL], 9)
    if len(means) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(means))
    return float((ranks * np.sign(means)).sum() / ranks.sum())


def first_places(scores: Float[np.ndarray, "r n"], groups: Sequence[Hashable] | None = None) -> Float[np.ndarray, " r"]:
    """How often each of r results has the highest mean over the cases if other patients like these had come; sums to 1.

    Higher scores are better; patients are drawn with replacement. Results that are equal share a first place. Cases where a
    result has no value are left out for all; NaN without any case.

    Args:
        scores: [r, n] of r results on the same n cases.
        groups: The patient of each case; None: each is its own.
    """
    finite = np.isfinite(scores).all(0)
    keys = _keys(groups, scores.shape[1])
    if not finite.any():
        return np.full(len(scores), math.nan)
    patient = np.unique(keys[finite], return_inverse=True)[1]
    counts = np.bincount(patient)
    sums = np.array([np.bincount(patient, weights=row[finite]) for row in scores])
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    means = sums @ drawn.T / (counts @ drawn.T)
    best = means >= means.max(0) - EQUAL
    return (best / best.sum(0)).mean(1)


def _keys(groups: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """A number for each group, by case."""
    keys = list(range(n)) if groups is None else list(groups)
    if len(keys) != n:
        raise ValueError(f"{n} values and {len(keys)} groups")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], int)


def _sums(
    differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Sum and number of the differences of each group that has one."""
    values = np.asarray(differences, np.float64)
    keys, finite = _keys(groups, len(values)), np.isfinite(values)
    if not finite.any():
        return np.zeros(0), np.zeros(0)
    patient = np.unique(keys[finite], return_inverse=True)[1]
    return np.bincount(patient, weights=values[finite]), np.bincount(patient).astype(np.float64)
