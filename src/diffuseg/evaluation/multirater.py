"""Several draws against several raters: do they say the same things, equally often?

draws [n, *s] and raters [m, *s] are boolean masks or label maps. Of label maps each foreground class is compared by itself,
and an IoU or Dice of two label maps is the mean over the classes: `labels`, or those found in any draw or rater. An IoU or
Dice of two masks that are both empty is decided by `both`: "one" (they agree; a distance of 0) or "zero" (the worst). With
one of the two empty it is 0 in any case. docs/uncertainty.md has the formulas; `references` makes what to compare with.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.optimize import linear_sum_assignment

Draws = Bool[np.ndarray, "n *s"] | Integer[np.ndarray, "n *s"]
Raters = Bool[np.ndarray, "m *s"] | Integer[np.ndarray, "m *s"]
Both = Literal["one", "zero"]

CHUNK = 2**20  # voxels counted at a time: exact in single precision, and little memory
LARGEST = 4096  # masks on each side of an assignment
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class _Overlap(NamedTuple):
    """Voxel counts, per class: in both [c, n, m], in the first [c, n, 1], in the second [c, 1, m]; and of the image."""

    both: np.ndarray
    first: np.ndarray
    second: np.ndarray
    voxels: int


class CollectiveInsight(NamedTuple):
    """The CI score and its three parts, each in [0, 1]."""

    score: float
    combined_sensitivity: float
    maximum_dice: float
    diversity_agreement: float


def pairwise_iou(
    draws: Draws, raters: Raters, both: Both = "one", labels: Sequence[int] | None = None
) -> Float[np.ndarray, "n m"]:
    """IoU of each draw with each rater [n, m], in [0, 1]; refuses other shapes, no mask at all and an unknown rule."""
    count = _overlap(draws, raters, _classes(labels, draws, raters))
    return _mean_of_classes(count.both, count.first + count.second - count.both, both)


def pairwise_dice(
    draws: Draws, raters: Raters, both: Both = "one", labels: Sequence[int] | None = None
) -> Float[np.ndarray, "n m"]:
    """Dice of each draw with each rater [n, m], in [0, 1]; refuses other shapes, no mask at all and an unknown rule."""
    count = _overlap(draws, raters, _classes(labels, draws, raters))
    return _mean_of_classes(2 * count.both, count.first + count.second, both)


def ged(
    draws: Draws,
    raters: Raters,
    both: Both = "one",
    statistic: Literal["V", "U"] = "V",
    labels: Sequence[int] | None = None,
) -> float:
    """Squared generalised energy distance 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU; 0 is best.

    S, S' are draws, Y, Y' raters. "V" takes means over all pairs, those of a mask with itself included, as published tables
    do; it is never negative and falls with the number of draws. "U" leaves those pairs out: without bias, possibly
    negative. Refuses what `pairwise_iou` does, and "U" with fewer than two draws or raters. Székely and Rizzo (2013); Kohl
    et al. (2018).
    """
    if statistic not in ("V", "U"):
        raise ValueError(f"a statistic is 'V' or 'U', not {statistic!r}")
    cross, among_draws, among_raters = _distances(draws, raters, both, labels)
    mean = _mean_of_others if statistic == "U" else np.mean
    return float(2 * cross.mean() - mean(among_draws) - mean(among_raters))


def ged_by_draws(
    draws: Draws,
    raters: Raters,
    counts: Sequence[int] = (4, 16, 32),
    both: Both = "one",
    labels: Sequence[int] | None = None,
) -> dict[int, float]:
    """`ged` ("V") with fewer draws: for each count, its mean over all subsets of so many of the draws, exactly.

    Values with different numbers of draws cannot be compared with each other: E d(S, S') of k draws has k in k * k pairs
    with a distance of 0. Refuses counts outside 1 .. n.
    """
    _refuse_counts(counts, len(draws))
    cross, among_draws, among_raters = _distances(draws, raters, both, labels)
    apart = _mean_of_others(among_draws) if len(draws) > 1 else 0.0
    itself = float(np.diag(among_draws).mean())  # not 0 under "zero": an empty draw is far from itself
    rest = float(2 * cross.mean() - among_raters.mean())
    return {k: rest - (1 - 1 / k) * apart - itself / k for k in counts}


def by_draws(
    score: Callable[[np.ndarray], float], draws: Draws, counts: Sequence[int] = (4, 16, 32), subsets: int = 20, seed: int = 0
) -> dict[int, float]:
    """Any score of draws [k, *s] with fewer draws: for each count k, its mean over random subsets (all, where there are few).

    For scores such as `lambda some: hm_iou(some, raters, labels=labels)`; give the labels, which a subset may lack. Refuses
    counts outside 1 .. n.
    """
    _refuse_counts(counts, len(draws))
    random = np.random.default_rng(seed)
    found = {}
    for k in counts:
        if math.comb(len(draws), k) <= subsets:
            chosen = [list(subset) for subset in itertools.combinations(range(len(draws)), k)]
        else:
            chosen = [random.permutation(len(draws))[:k].tolist() for _ in range(subsets)]
        found[k] = float(np.mean([score(draws[subset]) for subset in chosen]))
    return found


def hm_iou(draws: Draws, raters: Raters, both: Both = "one", labels: Sequence[int] | None = None) -> float:
    """Mean IoU of draws and raters matched one to one as well as possible, in [0, 1]; 1 is best.

    Both are repeated to the least common multiple of n and m, so that each draw counts as much as another, and each rater.
    Refuses what `pairwise_iou` does, and numbers whose least common multiple is above 4096. Kohl et al. (2019).
    """
    similarity = pairwise_iou(draws, raters, both, labels)
    n, m = similarity.shape
    size = math.lcm(n, m)
    if size > LARGEST:
        raise ValueError(f"{n} draws and {m} raters would be matched as {size} copies each; take a multiple of the raters")
    repeated = similarity.repeat(size // n, axis=0).repeat(size // m, axis=1)
    return float(repeated[linear_sum_assignment(repeated, maximize=True)].mean())


def maximum_dice(draws: Draws, raters: Raters, both: Both = "one", labels: Sequence[int] | None = None) -> float:
    """Maximum Dice matching: for each rater the Dice of the draw that is nearest to it; their mean, in [0, 1].

    It only grows with the number of draws, and no draw is punished: never the only number. Rahman et al. (2023), D_max.
    """
    return float(pairwise_dice(draws, raters, both, labels).max(0).mean())


def combined_sensitivity(draws: Draws, raters: Raters, both: Both = "one", labels: Sequence[int] | None = None) -> float:
    """The part of what any rater marks that any draw marks, in [0, 1]; mean over classes.

    Where no rater marks anything: 0 if a draw does, otherwise by `both`. Rahman et al. (2023), S_c.
    """
    _refuse_shapes(draws, raters)
    values = []
    for label in _classes(labels, draws, raters):
        marked, found = (raters == label).any(0), (draws == label).any(0)
        empty = 0.0 if found.any() else _empty(both)
        values.append(float((marked & found).sum() / marked.sum()) if marked.any() else empty)
    return float(np.mean(values))


def diversity_agreement(draws: Draws, raters: Raters, labels: Sequence[int] | None = None) -> float:
    """Whether draws differ from one another as much as raters do, in [0, 1]: 1 - (|dV_max| + |dV_min|) / 2; mean over classes.

    V of two masks is the variance over the voxels of the image of their difference (values -1, 0, 1); V_max and V_min are
    the largest and smallest V of two draws, d the difference to those of two raters. A single mask has V = 0. The value
    depends on the field of view: of small objects it is always close to 1. Rahman et al. (2023), D_a.
    """
    _refuse_shapes(draws, raters)
    classes = _classes(labels, draws, raters)
    (low, high), (rater_low, rater_high) = _extremes(draws, classes), _extremes(raters, classes)
    return float((1 - (np.abs(high - rater_high) + np.abs(low - rater_low)) / 2).mean())


def collective_insight(
    draws: Draws,
    raters: Raters,
    both: Both = "one",
    labels: Sequence[int] | None = None,
    formula: Literal["harmonic", "published"] = "harmonic",
) -> CollectiveInsight:
    """The CI score, in [0, 1], and its parts S_c (combined sensitivity), D_max (maximum Dice) and D_a (diversity agreement).

    "harmonic": 3 / (1/S_c + 1/D_max + 1/D_a), the harmonic mean, 0 if a part is 0. "published": 3 S_c D_max D_a / (S_c +
    D_max + D_a), which the paper prints under that name; it is the smaller one. Refuses other formulas. Rahman et al.,
    Ambiguous Medical Image Segmentation using Diffusion Models (2023).
    """
    parts = (
        combined_sensitivity(draws, raters, both, labels),
        maximum_dice(draws, raters, both, labels),
        diversity_agreement(draws, raters, labels),
    )
    if formula not in ("harmonic", "published"):
        raise ValueError(f"a formula is 'harmonic' or 'published', not {formula!r}")
    if min(parts) == 0:
        score = 0.0
    elif formula == "harmonic":
        score = 3 / sum(1 / part for part in parts)
    else:
        score = 3 * math.prod(parts) / sum(parts)
    return CollectiveInsight(score, *parts)


def soft_dice(
    probability: Float[np.ndarray, "*s"],
    raters: Bool[np.ndarray, "m *s"],
    thresholds: Sequence[float] = THRESHOLDS,
    both: Both = "one",
) -> float:
    """Mean over thresholds t of the Dice of {probability > t} and {share of raters > t}, in [0, 1].

    probability [*s] of one class, raters' masks of it [m, *s]. A share that equals a threshold to 1e-6 is not above it.
    Neither side is rescaled by its maximum. Refuses other shapes, probabilities outside [0, 1] and no threshold. Ji
    et al. (2021).
    """
    _refuse_shapes(probability[None], raters)
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("probabilities must be in [0, 1]")
    if not thresholds:
        raise ValueError("soft Dice is a mean over thresholds; there are none")
    share = raters.mean(0)
    scores = []
    for threshold in thresholds:
        above, marked = probability > threshold + 1e-6, share > threshold + 1e-6
        total = int(above.sum()) + int(marked.sum())
        scores.append(2 * int((above & marked).sum()) / total if total else _empty(both))
    return float(np.mean(scores))


def _distances(
    draws: np.ndarray, raters: np.ndarray, both: Both, labels: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 - IoU of draws with raters, draws with draws, raters with raters, over the same classes."""
    _refuse_shapes(draws, raters)
    classes = _classes(labels, draws, raters)
    pairs = ((draws, raters), (draws, draws), (raters, raters))
    cross, among_draws, among_raters = (1 - pairwise_iou(one, other, both, classes) for one, other in pairs)
    return cross, among_draws, among_raters


def _mean_of_others(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal."""
    n = len(matrix)
    if n < 2:
        raise ValueError("a U-statistic needs two draws and two raters at least")
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


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


def _mean_of_classes(part: np.ndarray, whole: np.ndarray, both: Both) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), _empty(both)).mean(0)


def _classes(labels: Sequence[int] | None, *masks: np.ndarray) -> list[int]:
    """Foreground values to compare; of empty label maps one that nobody marks."""
    if labels is None and all(array.dtype == bool for array in masks):
        return [1]
    chosen = set(labels) if labels is not None else {int(v) for array in masks for v in np.unique(array)}
    return sorted(chosen - {0}) or [1]


def _empty(both: Both) -> float:
    if both not in ("one", "zero"):
        raise ValueError(f"the rule for two empty masks is 'one' or 'zero', not {both!r}")
    return {"one": 1.0, "zero": 0.0}[both]


def _refuse_shapes(draws: np.ndarray, raters: np.ndarray) -> None:
    if draws.shape[1:] != raters.shape[1:] or not (draws.size and raters.size):
        raise ValueError(f"draws of shape {draws.shape} and raters of shape {raters.shape} cannot be compared")


def _refuse_counts(counts: Sequence[int], n: int) -> None:
    wrong = [k for k in counts if not 1 <= k <= n]
    if wrong:
        raise ValueError(f"there are {n} draws; no {', '.join(map(str, wrong))} of them")
