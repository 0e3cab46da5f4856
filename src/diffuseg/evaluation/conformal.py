"""A volume interval that contains the true volume as often as it promises: split-conformal scaling of that of the draws.

Draws of a model agree more, or less, than they should. On calibration cases, each interval [low, high] is asked how much
it would have to be widened to contain the truth; a quantile of these scores widens the interval of every new case. If new
cases are like the calibration cases (exchangeable with them), the truth is inside with probability 1 - alpha or more,
whatever the model is like: over cases, not for each kind of case. Romano et al., Conformalized Quantile Regression (2019).
Cases of another kind: calibration cases like them count more (`shift.importance_weights`; Tibshirani et al. 2019).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy  # its parts are imported where they are used first
from jaxtyping import Bool, Float

from diffuseg.evaluation.shift import Weights
from diffuseg.evaluation.statistics import group_folds

Volumes = Float[np.ndarray, " n"]
SMALLEST = 1e-3  # ml: a voxel of 1 mm


@dataclass(frozen=True)
class ConformalMargin:
    """What calibration found.

    margin    how much each side is widened, as a part of the predicted volume; negative where the draws differ more than they
              need to, infinite where there were too few cases
    alpha     the part of cases that may be outside
    smallest  ml: added to volumes before they divide, so that an empty mask has a score too
    cases     number of calibration cases
    """

    margin: float
    scale: Literal["relative"]
    alpha: float
    smallest: float
    cases: int

    @property
    def finite(self) -> bool:
        """Whether there were enough cases."""
        return math.isfinite(self.margin)

    def interval(
        self, probability: Float[np.ndarray, "k *s"], label: int, voxel: float, drawn: Sequence[float]
    ) -> tuple[float, float]:
        """The interval of a class's volume in ml: that of the draws, widened. Probabilities are not looked at."""
        low, high = self.apply(*(np.array([end], np.float64) for end in drawn))
        return float(low[0]), float(high[0])

    def apply(self, low: Volumes, high: Volumes) -> tuple[Volumes, Volumes]:
        """Intervals [n] in ml, widened; never below 0, and where they would be inside out the point in the middle.

        Args:
            low: Lower ends [n], in ml.
            high: Upper ends.
        """
        _refuse(low, high)
        by = self.margin * ((low + high) / 2 + self.smallest)
        new_low, new_high = low - by, high + by
        middle = (low + high) / 2
        crossed = new_low > new_high
        return np.maximum(np.where(crossed, middle, new_low), 0.0), np.maximum(np.where(crossed, middle, new_high), 0.0)


class Coverage(NamedTuple):
    """Whether each true volume [n] was inside, and these intervals [n] in ml."""

    inside: Bool[np.ndarray, " n"]
    low: Volumes
    high: Volumes

    @property
    def fraction(self) -> float:
        """The part of cases whose true volume was inside."""
        return float(self.inside.mean())


def calibrate_interval(
    low: Volumes,
    high: Volumes,
    truth: Volumes,
    alpha: float = 0.1,
    smallest: float = SMALLEST,
    weights: Weights | None = None,
) -> ConformalMargin:
    """The margin by which intervals [low, high] of volumes contain the truth in 1 - alpha of cases.

    Score of a case: max(low - truth, truth - high) over the middle of its interval. The margin is the
    ceil((n + 1)(1 - alpha))-th smallest of the n scores; infinite where that is more than n, that is with fewer than
    1 / alpha - 1 cases. With weights it is the smallest score up to which the weights of the cases are 1 - alpha of all, the
    new case's among these (eq. 7 of Tibshirani et al. 2019, one weight for all new cases).

    Args:
        low: In ml, of cases that the model was not trained on; so are `high` and `truth`.
        high: Not below `low`.
        truth: True volumes.
        alpha: The part of cases that may be outside.
        smallest: Added to volumes before they divide, in ml.
        weights: What the cases count; None: all the same.

    Raises:
        ValueError: There is no case, or alpha, smallest or a volume is out of range.
    """
    _refuse(low, high)
    if not len(low) or truth.shape != low.shape or not (np.isfinite(truth).all() and (truth >= 0).all()):
        raise ValueError("a true volume of 0 ml or more is needed for each of the intervals, and at least one")
    if not (0 < alpha < 1 and smallest > 0):
        raise ValueError(f"alpha in (0, 1) and a smallest volume above 0 ml are needed, not {alpha} and {smallest}")
    scores = np.maximum(low - truth, truth - high) / ((low + high) / 2 + smallest)
    return ConformalMargin(conformal_quantile(scores, alpha, weights), "relative", alpha, smallest, len(scores))


def conformal_quantile(scores: Float[np.ndarray, " n"], alpha: float, weights: Weights | None = None) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score, infinite where that is more than n; or the weighted one.

    Args:
        scores: Of calibration cases.
        alpha: The part of cases that may have a larger one.
        weights: What the cases count; None: all the same.
    """
    cases, new = (np.ones(len(scores)), 1.0) if weights is None else (weights.cases, weights.new)
    order = np.argsort(scores)
    enough = np.cumsum(cases[order]) >= (1 - alpha) * (cases.sum() + new) - 1e-9
    return float(scores[order][enough.argmax()]) if enough.any() else math.inf


def cross_coverage(
    low: Volumes,
    high: Volumes,
    truth: Volumes,
    alpha: float = 0.1,
    smallest: float = SMALLEST,
    groups: Sequence[Hashable] | None = None,
    folds: int | None = None,
) -> Coverage:
    """Each case with the margin calibrated on the others: those of other patients (`groups`) or, with `folds`, other folds.

    Leaving out one case at a time, without ties, covers ceil(n (1 - alpha)) of n cases **whatever the model**, for the rank
    of a score among the others decides: it shows the widths that are needed, and is no evidence of coverage. Patients and
    folds left out make it vary, but not much; evidence is coverage of cases kept aside.

    Args:
        low: Lower ends [n], in ml.
        high: Upper ends.
        truth: True volumes.
        alpha: Share of cases that may lie outside.
        smallest: Added to the middle of an interval, in ml, so that empty ones can be widened.
        groups: The patient of each case; None: each is its own.
        folds: Number of folds of the groups; None: each group by itself.

    Raises:
        ValueError: There are fewer than two groups, or folds are not 2 .. groups; and what `calibrate_interval` raises.
    """
    new_low, new_high = np.empty(len(low)), np.empty(len(low))
    for out in left_out(len(low), groups, folds):
        margin = calibrate_interval(low[~out], high[~out], truth[~out], alpha, smallest)
        new_low[out], new_high[out] = margin.apply(low[out], high[out])
    return interval_coverage(new_low, new_high, truth)


def left_out(cases: int, groups: Sequence[Hashable] | None, folds: int | None) -> Iterator[Bool[np.ndarray, " n"]]:
    """Which cases are left out together: those of a patient, or of a fold.

    Args:
        cases: How many there are.
        groups: The patient of each case; None: each is its own.
        folds: Number of folds of the groups; None: each group by itself.

    Raises:
        ValueError: There are fewer than two groups, or folds are not 2 .. groups.
    """
    keys = list(range(cases)) if groups is None else list(groups)
    patients = len(set(keys))
    if len(keys) != cases or patients < 2:
        raise ValueError(f"{cases} cases in {patients} groups: at least two groups, and a group per case, are needed")
    fold = group_folds(keys, patients if folds is None else folds)
    for number in np.unique(fold):
        yield fold == number


def interval_coverage(low: Volumes, high: Volumes, truth: Volumes) -> Coverage:
    """Whether true volumes lie in their intervals; both ends belong to it, to a rounding error.

    Args:
        low: Lower ends [n], in ml.
        high: Upper ends.
        truth: True volumes.
    """
    slack = 1e-9 * (1 + np.abs(truth))
    return Coverage((low - slack <= truth) & (truth <= high + slack), low, high)


def expected_coverage(cases: int, alpha: float = 0.1) -> tuple[float, float]:
    """Where the coverage over endless new cases lies, at a confidence of 90 %, given the number of calibration cases.

    It depends on which cases one happened to calibrate on: Beta(k, n + 1 - k) with k = ceil((n + 1)(1 - alpha)), for scores
    without ties; (1, 1) where the intervals are infinite.

    Args:
        cases: Number of calibration cases.
        alpha: The part of cases that may be outside.

    Raises:
        ValueError: There is no case, or alpha is not in (0, 1).

    References:
        Vovk, Conditional Validity of Inductive Conformal Predictors (2012).
    """
    if cases < 1 or not 0 < alpha < 1:
        raise ValueError(f"{cases} cases, alpha {alpha}")
    rank = math.ceil((cases + 1) * (1 - alpha) - 1e-9)
    if rank > cases:
        return 1.0, 1.0
    low, high = scipy.stats.beta.interval(0.9, rank, cases + 1 - rank)
    return float(low), float(high)


def _refuse(low: np.ndarray, high: np.ndarray) -> None:
    if low.shape != high.shape or low.ndim != 1:
        raise ValueError(f"intervals need both ends, not shapes {low.shape} and {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low >= 0).all() and (low <= high).all()):
        raise ValueError("intervals must be 0 <= low <= high, in ml")
