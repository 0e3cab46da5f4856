"""What a score of ambiguity is compared with: the best that raters themselves reach, and what costs nothing.

A score is any `score(draws, raters)` of `diffuseg.evaluation.multirater`. Of the sources of draws here, `resampled_raters` is
a ceiling, `one_rater` and `pixelwise_draws` are floors: draws that do not beat them show no knowledge of what raters disagree
about.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer

from diffuseg.evaluation.multirater import Draws, Raters


def held_out_rater(raters: Raters, score: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Rater against rater: the mean over raters of score(the others [m - 1, *s], this one [1, *s]).

    What an additional rater could expect. The score is that against one rater: compare it with score(draws, one rater),
    averaged over raters, not with score(draws, all raters).

    Args:
        raters: Masks [m, *s] of class indices.
        score: (draws [n, *s], raters [m, *s]) -> a number.

    Raises:
        ValueError: There are fewer than two raters.
    """
    if len(raters) < 2:
        raise ValueError("one rater cannot be compared with the others")
    return float(np.mean([score(np.delete(raters, i, axis=0), raters[i : i + 1]) for i in range(len(raters))]))


def resampled_raters(raters: Raters, n: int, seed: int) -> Draws:
    """n draws of a perfect sampler: each one a rater's mask, chosen at random with replacement.

    Args:
        raters: Masks of people [m, *s].
        n: Number of draws.
        seed: Of the choice.
    """
    return raters[np.random.default_rng(seed).integers(0, len(raters), n)]


def one_rater(raters: Raters, n: int, rater: int) -> Draws:
    """n copies of one rater's mask: the reach of a single, perfectly imitated rater.

    Args:
        raters: Masks of people [m, *s].
        n: Number of copies.
        rater: Which one, from 0.
    """
    return np.repeat(raters[rater : rater + 1], n, axis=0)


def pixelwise_draws(probability: Float[np.ndarray, "k *s"], n: int, seed: int) -> Integer[np.ndarray, "n *s"]:
    """n label maps, each voxel drawn by itself from the probabilities of its classes 0 .. k-1.

    The right frequencies everywhere, and no knowledge of what belongs together.

    Args:
        probability: Class probabilities [k, *s].
        n: Number of draws.
        seed: Of the draws.

    Raises:
        ValueError: Probabilities are negative or do not sum to 1 (to 1e-3).
    """
    if not (probability.min() >= 0 and np.abs(probability.sum(0) - 1).max() <= 1e-3):
        raise ValueError("probabilities must not be negative, and must sum to 1 over the classes")
    bounds = np.cumsum(probability[:-1], axis=0, dtype=np.float64)
    random = np.random.default_rng(seed)
    return np.stack([(random.random(probability.shape[1:]) >= bounds).sum(0) for _ in range(n)])
