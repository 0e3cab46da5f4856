"""Draws compared with raters: do they show the same masks, equally often?

draws [n, *s] and raters [m, *s] are boolean masks or label maps. Of label maps each foreground class is compared by itself,
and an IoU or Dice of two label maps is the mean over the classes: `labels`, or those that any draw or rater has. Two masks
that are both empty agree: an IoU or Dice of 1, a distance of 0. docs/uncertainty.md has the formulas; `ambiguity_baselines`
makes what to compare with.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.optimize import linear_sum_assignment

from diffuseg.evaluation.metrics import dice

Draws = Bool[np.ndarray, "n *s"] | Integer[np.ndarray, "n *s"]
Raters = Bool[np.ndarray, "m *s"] | Integer[np.ndarray, "m *s"]

CHUNK = 2**20  # voxels counted at a time: exact in single precision, and little memory
LARGEST = 4096  # masks on each side of an assignment
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class _Overlap(NamedTuple):
    """Voxel counts, per class: in both [c, n, m], in the first [c, n, 1], in the second [c, 1, m]; and of the image."""

    both: np.ndarray
    first: np.ndarray
    second: np.ndarray
    voxels: int


class DrawAgreement(NamedTuple):
    """Mean Dice, in [0, 1]: of a draw with a rater, of two different draws, and the first minus the second.

    Draws from the distribution of the raters' masks have both alike. Below 0: draws differ less than they err.
    """

    draw_rater: float
    draw_draw: float
    gap: float


class CollectiveInsight(NamedTuple):
    """The CI score and its three parts, each in [0, 1]."""

    score: float
    combined_sensitivity: float
    maximum_dice: float
    diversity_agreement: float


def pairwise_iou(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> Float[np.ndarray, "n m"]:
    """IoU of each draw with each rater, in [0, 1].

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.

    Raises:
        ValueError: Shapes are not the same, or there is no mask at all; so in all measures of this file.
    """
    count = _overlap(draws, raters, _classes(labels, draws, raters))
    return _mean_of_classes(count.both, count.first + count.second - count.both)


def pairwise_dice(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> Float[np.ndarray, "n m"]:
    """Dice of each draw with each rater, in [0, 1].

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.
    """
    count = _overlap(draws, raters, _classes(labels, draws, raters))
    return _mean_of_classes(2 * count.both, count.first + count.second)


def draw_agreement(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> DrawAgreement:
    """E Dice(draw, rater) and E Dice(draw, another draw): alike where draws are as uncertain as they should be.

    Both are unbiased: no mask is compared with itself. Of a single draw the second and the gap are NaN.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.
    """
    n, classes = len(draws), _classes(labels, draws, raters)
    rater = float(pairwise_dice(draws, raters, classes).mean())
    among = pairwise_dice(draws, draws, classes)
    other = float((among.sum() - np.trace(among)) / (n * (n - 1))) if n > 1 else math.nan
    return DrawAgreement(rater, other, rater - other)


def ged(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """Squared generalised energy distance 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU; 0 is best.

    S, S' are draws, Y, Y' raters. Means are over all pairs, those of a mask with itself included (the V-statistic), as
    published tables have it: never negative, and it falls with the number of draws.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.

    References:
        Székely and Rizzo, Energy Statistics (2013); Kohl et al., A Probabilistic U-Net (2018).
    """
    return ged_by_draws(draws, raters, (len(draws),), labels)[len(draws)]


def ged_by_draws(draws: Draws, raters: Raters, counts: Sequence[int], labels: Sequence[int] | None = None) -> dict[int, float]:
    """`ged` with fewer draws: for each count, its mean over all subsets of so many of the draws, exactly.

    Values with different numbers of draws cannot be compared with each other: E d(S, S') of k draws has k in k * k pairs
    with a distance of 0.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        counts: Numbers of draws, each in 1 .. n.
        labels: Foreground classes of label maps; None: those that occur here.

    Raises:
        ValueError: A count is not in 1 .. n.
    """
    n = len(draws)
    wrong = [k for k in counts if not 1 <= k <= n]
    if wrong:
        raise ValueError(f"there are {n} draws; no {', '.join(map(str, wrong))} of them")
    classes = _classes(labels, draws, raters)
    pairs = ((draws, raters), (draws, draws), (raters, raters))
    cross, among_draws, among_raters = (1 - pairwise_iou(one, other, classes) for one, other in pairs)
    apart = (among_draws.sum() - np.trace(among_draws)) / (n * (n - 1)) if n > 1 else 0.0
    rest = float(2 * cross.mean() - among_raters.mean())
    return {k: rest - (1 - 1 / k) * float(apart) for k in counts}


def hm_iou(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """Mean IoU of draws and raters matched one to one as well as possible, in [0, 1]; 1 is best.

    Both are repeated to the least common multiple of n and m, so that each draw counts as much as another, and each rater.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.

    Raises:
        ValueError: The least common multiple is above 4096.

    References:
        Kohl et al., A Hierarchical Probabilistic U-Net (2019).
    """
    similarity = pairwise_iou(draws, raters, labels)
    n, m = similarity.shape
    size = math.lcm(n, m)
    if size > LARGEST:
        raise ValueError(f"{n} draws and {m} raters would be matched as {size} copies each; take a multiple of the raters")
    repeated = similarity.repeat(size // n, axis=0).repeat(size // m, axis=1)
    return float(repeated[linear_sum_assignment(repeated, maximize=True)].mean())


def maximum_dice(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """Maximum Dice matching: for each rater the Dice of the draw that is nearest to it; their mean, in [0, 1].

    It only grows with the number of draws, and no draw is punished: never the only number. Rahman et al. (2023), D_max.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.
    """
    return float(pairwise_dice(draws, raters, labels).max(0).mean())


def combined_sensitivity(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """The part of what any rater marks that any draw marks, in [0, 1]; mean over classes.

    Where no rater marks anything: 0 if a draw does, otherwise 1. Rahman et al. (2023), S_c.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.
    """
    _refuse_shapes(draws, raters)
    values = []
    for label in _classes(labels, draws, raters):
        rated, drawn = (raters == label).any(0), (draws == label).any(0)
        values.append((rated & drawn).sum() / rated.sum() if rated.any() else float(not drawn.any()))
    return float(np.mean(values))


def diversity_agreement(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """Whether draws differ from one another as much as raters do, in [0, 1]: 1 - (|dV_max| + |dV_min|) / 2; mean over classes.

    V of two masks is the variance over the voxels of the image of their difference (values -1, 0, 1); V_max and V_min are
    the largest and smallest V of two draws, d the difference to those of two raters. A single mask has V = 0. The value
    depends on the field of view: of small objects it is always close to 1. Rahman et al. (2023), D_a.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.
    """
    _refuse_shapes(draws, raters)
    classes = _classes(labels, draws, raters)
    (low, high), (rater_low, rater_high) = _extremes(draws, classes), _extremes(raters, classes)
    return float((1 - (np.abs(high - rater_high) + np.abs(low - rater_low)) / 2).mean())


def collective_insight(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> CollectiveInsight:
    """The CI score, in [0, 1], and its parts S_c (combined sensitivity), D_max (maximum Dice) and D_a (diversity agreement).

    The score is their harmonic mean, 0 if a part is 0. The paper prints another, smaller number under that name.

    Args:
        draws: Masks of the model [n, *s], boolean or label maps.
        raters: Masks of people [m, *s], of the same kind.
        labels: Foreground classes of label maps; None: those that occur here.

    References:
        Rahman et al., Ambiguous Medical Image Segmentation using Diffusion Models (2023).
    """
    parts = [measure(draws, raters, labels) for measure in (combined_sensitivity, maximum_dice, diversity_agreement)]
    return CollectiveInsight(3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0, *parts)


def soft_dice(probability: Float[np.ndarray, "*s"], raters: Bool[np.ndarray, "m *s"]) -> float:
    """Mean over THRESHOLDS t of the Dice of {probability > t} and {share of raters > t}, in [0, 1], for one class.

    A share that equals a threshold to 1e-6 is not above it. Neither side is rescaled by its maximum.

    Args:
        probability: Of one class, [*s].
        raters: Which voxels each rater gives it, [m, *s].

    Raises:
        ValueError: Shapes are not the same, or probabilities are outside [0, 1].

    References:
        Ji et al., Learning Calibrated Medical Image Segmentation via Multi-rater Agreement Modeling (2021).
    """
    _refuse_shapes(probability[None], raters)
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("probabilities must be in [0, 1]")
    share = raters.mean(0)
    limits = [threshold + 1e-6 for threshold in THRESHOLDS]
    return float(np.mean([dice(probability > limit, share > limit, "one") for limit in limits]))


def _extremes(masks: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest variance of the difference of two of the masks, per class [c]."""
    count = _overlap(masks, masks, classes)
    squares = (count.first + count.second - 2 * count.both) / count.voxels
    variance = squares - ((count.first - count.second) / count.voxels) ** 2
    others = variance[:, *np.triu_indices(len(masks), 1)]
    return (others.min(1), others.max(1)) if others.size else (np.zeros(len(classes)), np.zeros(len(classes)))


def _overlap(first: np.ndarray, second: np.ndarray, classes: Sequence[int]) -> _Overlap:
    _refuse_shapes(first, second)
    a, b = first.reshape(len(first), -1), second.reshape(len(second), -1)
    both = np.zeros((len(classes), len(a), len(b)))
    for start in range(0, a.shape[1], CHUNK):
        some, others = a[:, start : start + CHUNK], b[:, start : start + CHUNK]
        for number, label in enumerate(classes):
            both[number] += (some == label).astype(np.float32) @ (others == label).astype(np.float32).T
    sizes = [np.array([[(row == label).sum() for row in masks] for label in classes], float) for masks in (a, b)]
    return _Overlap(both, sizes[0][:, :, None], sizes[1][:, None, :], a.shape[1])


def _mean_of_classes(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, part / np.maximum(total, 1), 1.0).mean(0)


def _classes(labels: Sequence[int] | None, *masks: np.ndarray) -> list[int]:
    """Foreground values to compare; of empty label maps one that nobody marks."""
    if labels is None and all(array.dtype == bool for array in masks):
        return [1]
    chosen = set(labels) if labels is not None else {int(v) for array in masks for v in np.unique(array)}
    return sorted(chosen - {0}) or [1]


def _refuse_shapes(draws: np.ndarray, raters: np.ndarray) -> None:
    if draws.shape[1:] != raters.shape[1:] or not (draws.size and raters.size):
        raise ValueError(f"draws of shape {draws.shape} and raters of shape {raters.shape} cannot be compared")
