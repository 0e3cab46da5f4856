"""New cases are of another kind than the calibration cases: how much each of these is worth for them.

If the two kinds differ in features x alone (small organs, doubtful cases), and errors given x are the same, calibration cases
count in proportion to w(x) = p_new(x) / p_calibration(x). Conformal intervals then hold for the new kind. The ratio is the odds
of a classifier that tells the two kinds apart.

References:
    Tibshirani et al., Conformal prediction under covariate shift, 2019.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported where they are used first
from jaxtyping import Float

PENALTY = 1.0  # of the squared coefficients, for features of unit variance: few cases must not be told apart by chance


class Weights(NamedTuple):
    """What calibration cases count.

    cases      their weights [n], 1 on average
    new        the mean weight of the new cases, on the same scale
    effective  how many unweighted cases they are worth: (sum w)^2 / sum w^2 (Kish 1965)
    """

    cases: Float[np.ndarray, " n"]
    new: float
    effective: float


def importance_weights(calibration: Float[np.ndarray, "n d"], new: Float[np.ndarray, "m d"]) -> Weights:
    """Weights of calibration cases by a logistic regression that tells new cases from them.

    Args:
        calibration: Features of the calibration cases.
        new: The same features of the cases to be predicted, whose truth is not known.

    Raises:
        ValueError: A kind has fewer than two cases, or features are not finite or not the same.
    """
    x = np.concatenate([calibration, new])
    if min(len(calibration), len(new)) < 2 or calibration.shape[1:] != new.shape[1:] or not np.isfinite(x).all():
        raise ValueError(f"finite features of two cases of either kind, not {calibration.shape} and {new.shape}")
    scale = x.std(0)
    x = (x - x.mean(0)) / np.where(scale > 0, scale, 1)
    is_new = np.arange(len(x)) >= len(calibration)

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        logit = beta[0] + x @ beta[1:]
        wrong = scipy.special.expit(logit) - is_new
        value = np.logaddexp(0, np.where(is_new, -logit, logit)).sum() + PENALTY / 2 * (beta[1:] ** 2).sum()
        return float(value), np.concatenate([[wrong.sum()], wrong @ x + PENALTY * beta[1:]])

    beta = scipy.optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="BFGS").x
    odds = np.exp(beta[0] + x @ beta[1:])
    odds /= odds[~is_new].mean()
    cases = odds[~is_new]
    return Weights(cases, float(odds[is_new].mean()), float(cases.sum() ** 2 / (cases**2).sum()))
