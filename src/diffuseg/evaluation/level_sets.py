"""An interval of a class's volume between the masks of two other thresholds, which contains the truth as often as it promises.

A voxel's odds of class k are o = log p_k - max_{j != k} log p_j: it is in the mask of k where o > 0. The mask {o >= -s} grows
with the shift s, from nothing to the whole image; V(s) is its volume. V hardly changes with s where a border is sharp, and much
where it is blurred. The score of a calibration case is the smallest q >= 0 with V(-q) <= truth <= V(q). The quantile of the
scores makes the interval [V(-q), V(q)] of every new case. Intervals are nested in q, so the promise is that of any
split-conformal interval (`conformal`), whatever the model is like.

References:
    Cheung et al., COMPASS: Robust Feature Conformal Prediction for Medical Segmentation Metrics (ICLR 2026), which shifts
    features of the network along directions in which the volume changes; here they are the odds themselves.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffuseg.blocks import blocks
from diffuseg.evaluation.conformal import Coverage, Volumes, conformal_quantile, interval_coverage, left_out
from diffuseg.evaluation.shift import Weights

FLOOR = 1e-6  # of probabilities, so that odds are finite
SHIFTS = np.linspace(-14, 14, 561).round(2)  # beyond the odds that there can be: nothing, ..., the whole image


@dataclass(frozen=True)
class LevelMargin:
    """What calibration found.

    shift  of the odds, up and down; infinite where there were too few cases, or where probabilities at their floor would have
           to be shifted, which makes the whole image of any interval
    alpha  the part of cases that may be outside
    cases  number of calibration cases
    """

    shift: float
    alpha: float
    cases: int

    @property
    def finite(self) -> bool:
        """Whether there were enough cases, and probabilities that say something of the true volumes."""
        return math.isfinite(self.shift)

    def interval(
        self, probability: Float[np.ndarray, "k *s"], label: int, voxel: float, drawn: Sequence[float] = ()
    ) -> tuple[float, float]:
        """The interval of a class's volume, in the unit of `voxel`.

        Args:
            probability: Of the classes, before any temperature.
            label: Index of the class.
            voxel: Volume of one voxel.
            drawn: Interval of the draws, which is not looked at.
        """
        low, high = level_volumes(probability, label, voxel, np.array([-self.shift, self.shift]))
        return float(low), float(high)


def level_volumes(
    probability: Float[np.ndarray, "k *s"], label: int, voxel: float, shifts: Float[np.ndarray, " m"] = SHIFTS
) -> Float[np.ndarray, " m"]:
    """V(s): volume of the mask of a class if its odds were greater by each shift.

    Args:
        probability: Of the classes.
        label: Index of the class.
        voxel: Volume of one voxel.
        shifts: Increasing.
    """
    found = np.zeros(len(shifts) + 1, np.int64)
    for part in blocks(probability.shape[1:]):
        logs = np.log(np.maximum(probability[:, part], FLOOR, dtype=np.float32))
        others = np.delete(logs, label, axis=0).max(axis=0)
        enough = np.searchsorted(shifts, (others - logs[label]).ravel())  # the first shift with which a voxel is in the mask
        found += np.bincount(enough, minlength=len(found))
    return voxel * np.cumsum(found)[:-1]


def calibrate_levels(
    volumes: Float[np.ndarray, "n m"], truth: Volumes, alpha: float = 0.1, weights: Weights | None = None
) -> LevelMargin:
    """The shift between whose masks the true volume lies in 1 - alpha of cases.

    Args:
        volumes: `level_volumes` at SHIFTS, of cases that the model was not trained on.
        truth: True volumes.
        alpha: The part of cases that may be outside.
        weights: What the cases count; None: all the same.

    Raises:
        ValueError: There is no case, or not as many volumes as truths.
    """
    if not len(truth) or volumes.shape != (len(truth), len(SHIFTS)):
        raise ValueError(f"volumes {volumes.shape} for {len(truth)} cases: {len(SHIFTS)} of each, and a case at least")
    shift = conformal_quantile(_scores(volumes, truth), alpha, weights)
    return LevelMargin(shift if shift < -math.log(FLOOR) else math.inf, alpha, len(truth))


def _scores(volumes: Float[np.ndarray, "n m"], truth: Volumes) -> Float[np.ndarray, " n"]:
    """The smallest q of each case with V(-q) <= truth <= V(q)."""
    middle = len(SHIFTS) // 2
    up, down = volumes[:, middle:], volumes[:, middle::-1]
    slack = 1e-9 * (1 + truth[:, None])
    holds = (down - slack <= truth[:, None]) & (truth[:, None] <= up + slack)
    return SHIFTS[middle:][holds.argmax(axis=1)]


def cross_levels(
    volumes: Float[np.ndarray, "n m"],
    truth: Volumes,
    alpha: float = 0.1,
    groups: Sequence[Hashable] | None = None,
    folds: int | None = None,
) -> Coverage:
    """Each case with the shift calibrated on other patients, or folds of them; see `conformal.cross_coverage`.

    Args:
        volumes: `level_volumes` at SHIFTS.
        truth: True volumes.
        alpha: The part of cases that may be outside.
        groups: The patient of each case; None: each is its own.
        folds: Number of folds of the groups; None: each group by itself.

    Raises:
        ValueError: What `calibrate_levels` and `conformal.left_out` raise.
    """
    low, high = np.empty(len(truth)), np.empty(len(truth))
    for out in left_out(len(truth), groups, folds):
        shift = calibrate_levels(volumes[~out], truth[~out], alpha).shift
        if math.isinf(shift):
            low[out], high[out] = 0.0, math.inf
            continue
        up = np.searchsorted(SHIFTS, shift - 1e-9)
        low[out], high[out] = volumes[out, len(SHIFTS) - 1 - up], volumes[out, up]
    return interval_coverage(low, high, truth)
