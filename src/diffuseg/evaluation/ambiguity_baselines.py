"""What a score of ambiguity has to be held against: the best that raters themselves reach, and what costs nothing.

A score is any `score(draws, raters)` of `diffuseg.evaluation.multirater`, with its rules bound. Of the sources of draws here,
"resampled raters" is a ceiling, "one rater" and "pixelwise" are floors: draws that do not beat them show no knowledge of
what raters disagree about.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Integer

from diffuseg.evaluation.multirater import Draws, Raters

Score = Callable[[np.ndarray, np.ndarray], float]


def held_out_rater(raters: Raters, score: Score) -> float:
    """Rater against rater: the mean over raters of score(the others [m - 1, *s], this one [1, *s]).

    What an additional rater could expect. The score is that against one rater: compare it with score(draws, one rater),
    averaged over raters, not with score(draws, all raters). Refuses fewer than two raters.
    """
    if len(raters) < 2:
        raise ValueError("one rater cannot be held against the others")
    return float(np.mean([score(np.delete(raters, i, axis=0), raters[i : i + 1]) for i in range(len(raters))]))


def resampled_raters(raters: Raters, n: int, seed: int = 0) -> Draws:
    """n draws of a perfect sampler [n, *s]: each one a rater's mask, chosen at random with replacement; refuses n < 1."""
    _refuse(n)
    return raters[np.random.default_rng(seed).integers(0, len(raters), n)]


def one_rater(raters: Raters, n: int, rater: int = 0) -> Draws:
    """n copies [n, *s] of one rater's mask: the reach of a single, perfectly imitated rater; refuses n < 1."""
    _refuse(n)
    return np.repeat(raters[rater : rater + 1], n, axis=0)


def pixelwise_draws(
    probability: Float[np.ndarray, "k *s"], n: int, seed: int = 0, values: Sequence[int] | None = None
) -> Integer[np.ndarray, "n *s"]:
    """n label maps [n, *s], each voxel drawn by itself from the probabilities of its classes [k, *s].

    The right frequencies everywhere, and no knowledge of what belongs together. Values are those of the classes, 0 .. k-1
    by default. Refuses n < 1, other than k values, and probabilities that are negative or do not sum to 1 (to 1e-3).
    """
    _refuse(n)
    values = list(range(len(probability)) if values is None else values)
    if len(values) != len(probability):
        raise ValueError(f"{len(values)} values for {len(probability)} classes")
    if not (probability.min() >= 0 and np.abs(probability.sum(0) - 1).max() <= 1e-3):
        raise ValueError("probabilities must not be negative, and must sum to 1 over the classes")
    bounds = np.cumsum(probability[:-1], axis=0, dtype=np.float64)
    random = np.random.default_rng(seed)
    drawn = [(random.random(probability.shape[1:]) >= bounds).sum(0) for _ in range(n)]
    return np.array(values)[np.stack(drawn)]


def references(
    raters: Raters,
    score: Score,
    n: int,
    probability: Float[np.ndarray, "k *s"] | None = None,
    values: Sequence[int] | None = None,
    repeats: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """score(n draws, raters) of each reference: "resampled raters", "one rater" and, given probabilities, "pixelwise".

    Means over `repeats` random draws; for "one rater" over the raters. Boolean raters are compared with everything of
    `pixelwise_draws` that is not 0. "held-out rater" is `held_out_rater`, where there are two raters.
    """
    found = {} if len(raters) < 2 else {"held-out rater": held_out_rater(raters, score)}
    seeds = range(seed, seed + repeats)
    found["resampled raters"] = float(np.mean([score(resampled_raters(raters, n, s), raters) for s in seeds]))
    found["one rater"] = float(np.mean([score(one_rater(raters, n, i), raters) for i in range(len(raters))]))
    if probability is not None:
        drawn = (pixelwise_draws(probability, n, s, values) for s in seeds)
        same_kind = (draws != 0 if raters.dtype == bool else draws for draws in drawn)
        found["pixelwise"] = float(np.mean([score(draws, raters) for draws in same_kind]))
    return found


def _refuse(n: int) -> None:
    if n < 1:
        raise ValueError(f"{n} draws: at least one is needed")
