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


def sign_flip_test(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    resamples: int = FLIPS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean of paired differences [n], by flipping their signs, those of a patient together.

    Tests that without a difference, a patient's differences are as likely with the other sign. Exact where there are at most
    as many sign patterns as `resamples` (13 patients); otherwise drawn, with random numbers of its own, and never 0: the
    smallest value is 2 / 2^patients or about 2 / resamples. 1 where no difference is more than a rounding error; NaN without
    any pair. Refuses groups of another length. Fisher (1935); Phipson and Smyth (2010).
    """
    sums, _ = _sums(differences, groups)
    if len(sums) == 0:
        return math.nan
    if np.abs(sums).max() < EQUAL or len(sums) == 1:
        return 1.0
    size = np.abs(sums).max()
    total = lambda values, axis=-1: np.round(values.sum(axis) / size, 9)  # equal sums are equal however they are rounded
    random = np.random.default_rng(seed)
    test = stats.permutation_test(
        (np.sort(sums),), total, permutation_type="samples", vectorized=True, n_resamples=resamples, batch=1000, rng=random
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at, in their order: the chance of even one false alarm stays as stated.

    NaN stays NaN and counts as no test. Holm (1979).
    """
    found = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        found[i] = largest
    return found


def cohens_d(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Paired effect size d_z: mean over standard deviation of the differences, of patients (means over their cases).

    0 without a difference, infinite where all are equal, NaN with fewer than two patients. Refuses groups of another length.
    Cohen (1988).
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
    difference are left out. 0 if that is all of them, NaN without any. Refuses groups of another length. Kerby (2014).
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


def first_places(
    scores: Float[np.ndarray, "r n"],
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, " r"]:
    """How often each of r results has the highest mean over the cases if other patients like these had come; sums to 1.

    scores [r, n], higher is better; whole patients are drawn with replacement. Results that are equal share a first place.
    Cases where a result has no value are left out for all; NaN without any case. Refuses groups of another length.
    """
    kept = np.isfinite(scores).all(0)
    keys = _keys(groups, scores.shape[1])
    if not kept.any():
        return np.full(len(scores), math.nan)
    of = np.unique([keys[i] for i in np.flatnonzero(kept)], return_inverse=True)[1]
    counts = np.bincount(of)
    sums = np.array([np.bincount(of, weights=row[kept]) for row in scores])
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
    means = sums @ drawn.T / (counts @ drawn.T)
    best = means >= means.max(0) - EQUAL
    return (best / best.sum(0)).mean(1)


def _keys(groups: Sequence[Hashable] | None, n: int) -> list[int]:
    """A number for each group, by case."""
    keys = list(range(n)) if groups is None else list(groups)
    if len(keys) != n:
        raise ValueError(f"{n} values and {len(keys)} groups")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def _sums(
    differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Sum and number of the differences of each group that has one."""
    values = np.asarray(differences, np.float64)
    keys = np.array(_keys(groups, len(values)), int)
    kept = np.isfinite(values)
    if not kept.any():
        return np.zeros(0), np.zeros(0)
    of = np.unique(keys[kept], return_inverse=True)[1]
    return np.bincount(of, weights=values[kept]), np.bincount(of).astype(np.float64)
