"""Which cases should a human look at, and what does a model gain by handing them over.

risk [n] is what a case costs (1 - Dice, say: lower is better), uncertainty [n] what the model gives without knowing the truth,
such as `expected_dice_loss`. Of cases with equal uncertainty each number is the mean over all orders among them.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from diffuseg.blocks import blocks
from diffuseg.evaluation.statistics import Interval, bootstrap_of

NEGLIGIBLE = 0.01  # what is less likely is taken for absent, or the many voxels of a background would add up to an organ


def expected_dice_loss(probability: Float[np.ndarray, "k *s"], mask: Integer[np.ndarray, "*s"]) -> float:
    """1 minus the Dice that the probabilities themselves expect of the mask: the uncertainty of a case, in [0, 1].

    Per foreground class, with M its voxels in the mask, the expected Dice is (2 sum_M p + 1) / (|M| + sum p + 1), p below 0.01
    counted as 0; the mean over the classes. The 1 stands for one voxel: an empty mask that is expected to be empty has a score
    of 0.

    Args:
        probability: [k, *s], sums to 1 over k.
        mask: [*s] class indices.
    """
    expected = []
    for k, whole in enumerate(probability[1:], start=1):
        common = size = total = 0.0
        for part in blocks(mask.shape):
            inside, p = mask[part] == k, np.where(whole[part] < NEGLIGIBLE, 0, whole[part])
            common += float(p[inside].sum(dtype=np.float64))
            size += int(inside.sum())
            total += float(p.sum(dtype=np.float64))
        expected.append((2 * common + 1) / (size + total + 1))
    return 1 - float(np.mean(expected))


class RiskCoverage(NamedTuple):
    """The curve, by rising coverage [n]: the part of cases kept, their mean risk, the largest uncertainty among them."""

    coverage: Float[np.ndarray, " n"]
    risk: Float[np.ndarray, " n"]
    threshold: Float[np.ndarray, " n"]


def risk_coverage(risk: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"]) -> RiskCoverage:
    """Mean risk of the k least uncertain of n cases, k = 1 .. n.

    Args:
        risk: [n] such as 1 - Dice; lower is better.
        uncertainty: [n] of the same cases; higher is more uncertain.

    Raises:
        ValueError: There is no case, lengths differ or a value is not finite; so in all measures of this file.

    References:
        Geifman and El-Yaniv, Selective Classification for Deep Neural Networks (2017).
    """
    _refuse(risk, uncertainty)
    coverage = np.arange(1, len(risk) + 1) / len(risk)
    return RiskCoverage(coverage, _risks(risk, uncertainty), np.sort(uncertainty).astype(np.float64))


def aurc(risk: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"]) -> float:
    """Area under the risk-coverage curve: mean of the n mean risks, in the unit of the risk; lower is better.

    An uncertainty that says nothing gives the mean risk of all cases. Geifman et al. (2019).
    """
    return float(risk_coverage(risk, uncertainty).risk.mean())


def excess_aurc(risk: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"]) -> float:
    """AURC minus that of an uncertainty which ranks cases as the risk itself does: 0 is best; never negative.

    It tells the ranking from the quality of the masks, which AURC alone does not. Geifman et al. (2019).
    """
    return max(0.0, aurc(risk, uncertainty) - aurc(risk, np.asarray(risk, np.float64)))


def risk_after_rejecting(risk: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"], fraction: float) -> float:
    """Mean risk of the rest where the most uncertain `fraction` of cases, rounded down to whole cases, goes to a human.

    Args:
        risk: Of each case [n], 1 - Dice for example.
        uncertainty: Of each case, known without the truth.
        fraction: Of the cases, in [0, 1).

    Raises:
        ValueError: The fraction is outside [0, 1).
    """
    return float(risk_coverage(risk, uncertainty).risk[len(risk) - 1 - _sent(len(risk), fraction)])


def threshold_for_fraction(uncertainty: Float[np.ndarray, " n"], fraction: float) -> float:
    """The threshold above which a case goes to a human, so that at most `fraction` of these validation cases do.

    The smallest such threshold among their uncertainties.

    Args:
        uncertainty: [n] of validation cases; higher is more uncertain.
        fraction: In [0, 1).

    Raises:
        ValueError: The fraction is outside [0, 1).
    """
    _refuse(uncertainty, uncertainty)
    return float(np.sort(uncertainty)[len(uncertainty) - 1 - _sent(len(uncertainty), fraction)])


REJECTION = {
    "risk": "error (1 - Dice) of all cases",
    "rest": "of the rest, the {:.0%} most uncertain sent away",
    "gain": "what that takes off",
    "aurc": "AURC: mean over all shares kept",
    "excess_aurc": "AURC minus that of the best possible order",
}


def rejection(
    risk: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"], groups: Sequence[Hashable], fraction: float
) -> dict[str, Interval]:
    """The REJECTION numbers with their bootstrap intervals over groups (the patient of each case).

    Args:
        risk: Of each case [n], 1 - Dice for example.
        uncertainty: Of each case, known without the truth.
        groups: The patient of each case.
        fraction: Of the cases, in [0, 1).
    """
    _refuse(risk, uncertainty)

    def numbers(chosen):
        of, kept = risk[chosen], len(chosen) - _sent(len(chosen), fraction)
        risks = _risks(of, uncertainty[chosen])
        area = risks.mean()
        return of.mean(), risks[kept - 1], of.mean() - risks[kept - 1], area, max(0.0, area - _risks(of, of).mean())

    return dict(zip(REJECTION, bootstrap_of(numbers, groups), strict=True))


def _risks(risk, uncertainty):
    """Mean risk of the k least uncertain cases [n], k = 1 .. n, over all orders of cases of equal uncertainty."""
    order = np.argsort(uncertainty, kind="stable")
    _, first, size = np.unique(uncertainty[order], return_index=True, return_counts=True)
    expected = np.repeat(np.add.reduceat(risk[order].astype(np.float64), first) / size, size)
    return np.cumsum(expected) / np.arange(1, len(risk) + 1)


def _sent(n: int, fraction: float) -> int:
    if not 0 <= fraction < 1:
        raise ValueError(f"a fraction of cases is in [0, 1), not {fraction}")
    return math.floor(fraction * n + 1e-9)


def _refuse(risk: np.ndarray, uncertainty: np.ndarray) -> None:
    if risk.ndim != 1 or risk.shape != uncertainty.shape or not len(risk):
        raise ValueError(f"risk of shape {risk.shape}, uncertainty of shape {uncertainty.shape}: a value per case is needed")
    if not (np.isfinite(risk).all() and np.isfinite(uncertainty).all()):
        raise ValueError("risk and uncertainty must be finite; decide beforehand what a case without a value is worth")
