"""Do probabilities mean what they say: over the image, and near the border, where the question is.

probability [k, *s] sums to 1 over the classes; truth [*s] holds class indices 0 .. k-1 (not label values; `class_indices`
turns those into these). `where` [*s] chooses voxels; of several cases, join the voxels: arrays [k, v] and [v] do as well.
Over an image, the easy background decides every mean; `band` chooses the voxels near the true boundary. FLOOR and the usual
band are those of everything in this package that speaks of likelihood.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported where they are used first
from jaxtyping import Bool, Float, Integer

from diffuseg.evaluation import sheared
from diffuseg.evaluation.metrics import ROUNDING
from diffuseg.types import Steps, is_sheared, spacing_of

BINS = 15
FLOOR = 1e-6  # the mean of few draws may say 0, which no finite number of draws can know
BAND_MM = 3.0
COLDEST, HOTTEST = 0.05, 20.0
VOXELS = 200_000  # of a case and region that are kept where voxels of many cases are measured together
MEASURES = {"ece": "ECE", "adaptive_ece": "ECE, bins of equal mass", "brier": "Brier score", "nll": "NLL (nats)"}


class Reliability(NamedTuple):
    """A reliability diagram: per bin that has voxels, [b], its edges, mean confidence, share that was right, and number."""

    low: Float[np.ndarray, " b"]
    high: Float[np.ndarray, " b"]
    confidence: Float[np.ndarray, " b"]
    frequency: Float[np.ndarray, " b"]
    count: Integer[np.ndarray, " b"]  # pyright: ignore[reportIncompatibleMethodOverride]  a tuple counts too

    @property
    def ece(self) -> float:
        """Mean over voxels of |confidence - frequency| of their bin; NaN without voxels."""
        total = self.count.sum()
        return float((self.count * np.abs(self.confidence - self.frequency)).sum() / total) if total else math.nan


def class_indices(mask: Integer[np.ndarray, "*s"], values: Sequence[int]) -> Integer[np.ndarray, "*s"]:
    """A mask of label values as class indices: the rank of each value in `values`.

    Raises:
        ValueError: A value of the mask is not in `values`.
    """
    ordered = np.array(sorted(values))
    index = np.searchsorted(ordered, mask).clip(max=len(ordered) - 1)
    if (ordered[index] != mask).any():
        raise ValueError(f"label values {sorted(set(np.unique(mask).tolist()) - set(values))} are not among the classes")
    return index


def usual_radius(spacing: Steps) -> float:
    """How far the band reaches, in mm: 3, or two voxels along the finest axis if that is more."""
    return max(BAND_MM, 2 * min(spacing_of(spacing)))


def band(truth: Integer[np.ndarray, "*s"], spacing: Steps) -> Bool[np.ndarray, "*s"]:
    """Voxels within `usual_radius` of the true boundary: of another class, the centre of a voxel is no further away.

    Both sides of all boundaries between classes; the edge of the image is none. Where there is a single class there is no
    boundary, and no voxel.

    Args:
        truth: Class indices or label values.
        spacing: In mm per axis, or the steps of a sheared grid.
    """
    radius = usual_radius(spacing) * (1 + ROUNDING)
    near = np.zeros(truth.shape, bool)
    classes = np.unique(truth)
    for value in classes if len(classes) > 1 else []:
        inside = truth == value
        if is_sheared(spacing):
            deep = sheared.depth(inside, np.asarray(spacing), 2 * radius)
        else:
            deep = np.asarray(scipy.ndimage.distance_transform_edt(inside, sampling=spacing_of(spacing)))
        near |= inside & (deep <= radius)
    return near


def sample(
    probability: Float[np.ndarray, "k *s"],
    truth: Integer[np.ndarray, "*s"],
    where: Bool[np.ndarray, "*s"],
    limit: int,
) -> tuple[Float[np.ndarray, "k v"], Integer[np.ndarray, " v"]]:
    """Probabilities and classes of the chosen voxels; of more than `limit` of a random choice, which is always the same.

    Args:
        probability: Of the classes, [k, *s].
        truth: Class indices.
        where: The voxels that count.
        limit: How many of them at most.
    """
    chosen = np.flatnonzero(where)
    if len(chosen) > limit:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, limit, replace=False))
    return probability.reshape(len(probability), -1)[:, chosen], truth.reshape(-1)[chosen]


def reliability(
    probability: Float[np.ndarray, "k *s"],
    truth: Integer[np.ndarray, "*s"],
    where: Bool[np.ndarray, "*s"] | None = None,
    equal_mass: bool = False,
) -> Reliability:
    """Confidence against the share that was right, in BINS bins.

    Confidence is the largest probability, right where that class is the true one (Guo et al. 2017). Bins of equal width
    divide [0, 1]; a value on an edge belongs to the upper bin. Bins of equal mass begin at quantiles of the confidences;
    equal confidences share a bin, so there may be fewer.

    Args:
        probability: Sums to 1 over the classes.
        truth: Class indices.
        where: The voxels that count; None for all.
        equal_mass: Bins of equal mass instead of equal width.

    Raises:
        ValueError: Shapes do not fit together, or values are no probabilities or no classes; so in all measures of this file.
    """
    p, t = _chosen(probability, truth, where)
    confidence, right = p.max(0), t == p.argmax(0)
    if not len(t):
        nothing = np.zeros(0)
        return Reliability(nothing, nothing, nothing, nothing, nothing.astype(int))
    inner = np.arange(1, BINS) / BINS
    if equal_mass:
        inner = np.unique(np.quantile(confidence, inner, method="inverted_cdf"))
    index = np.searchsorted(inner, confidence, side="right")
    count = np.bincount(index, minlength=len(inner) + 1)
    sums = [np.bincount(index, weights=values, minlength=len(count)) for values in (confidence, right)]
    edges, filled = np.array([0.0, *inner, 1.0]), count > 0
    means = [total[filled] / count[filled] for total in sums]
    return Reliability(edges[:-1][filled], edges[1:][filled], means[0], means[1], count[filled])


def ece(
    probability: Float[np.ndarray, "k *s"], truth: Integer[np.ndarray, "*s"], where: Bool[np.ndarray, "*s"] | None = None
) -> float:
    """Expected calibration error in bins of equal width, in [0, 1], 0 is best; NaN without voxels. Guo et al. (2017), eq. 3.

    Args:
        probability: Class probabilities [k, *s].
        truth: Class indices [*s].
        where: The voxels that count; None: all.
    """
    return reliability(probability, truth, where).ece


def adaptive_ece(
    probability: Float[np.ndarray, "k *s"], truth: Integer[np.ndarray, "*s"], where: Bool[np.ndarray, "*s"] | None = None
) -> float:
    """The same in bins of equal mass: where nearly all confidences are near 1, they still get bins. Nixon et al. (2019).

    Args:
        probability: Class probabilities [k, *s].
        truth: Class indices [*s].
        where: The voxels that count; None: all.
    """
    return reliability(probability, truth, where, equal_mass=True).ece


def brier(
    probability: Float[np.ndarray, "k *s"], truth: Integer[np.ndarray, "*s"], where: Bool[np.ndarray, "*s"] | None = None
) -> float:
    """Mean over voxels of the sum over classes of (p - y)^2, in [0, 2], 0 is best; NaN without voxels. Brier (1950).

    For two classes it is twice the mean of (p - y)^2 of the foreground, which others report.

    Args:
        probability: Class probabilities [k, *s].
        truth: Class indices [*s].
        where: The voxels that count; None: all.
    """
    p, t = _chosen(probability, truth, where)
    if not len(t):
        return math.nan
    true = np.take_along_axis(p, t[None], 0)[0].astype(np.float64)
    return float((np.square(p, dtype=np.float64).sum(0) - 2 * true + 1).mean())


def nll(
    probability: Float[np.ndarray, "k *s"], truth: Integer[np.ndarray, "*s"], where: Bool[np.ndarray, "*s"] | None = None
) -> float:
    """Mean over voxels of -log max(p(true class), FLOOR), in nats, 0 is best; NaN without voxels.

    Args:
        probability: Class probabilities [k, *s].
        truth: Class indices [*s].
        where: The voxels that count; None: all.
    """
    p, t = _chosen(probability, truth, where)
    if not len(t):
        return math.nan
    return float(-np.log(np.maximum(np.take_along_axis(p, t[None], 0)[0], FLOOR), dtype=np.float64).mean())


def measures(
    probability: Float[np.ndarray, "k *s"], truth: Integer[np.ndarray, "*s"], where: Bool[np.ndarray, "*s"] | None = None
) -> dict[str, float]:
    """The MEASURES of the same voxels, by name; NaN without voxels.

    Args:
        probability: Class probabilities [k, *s].
        truth: Class indices [*s].
        where: The voxels that count; None: all.
    """
    each = {"ece": ece, "adaptive_ece": adaptive_ece, "brier": brier, "nll": nll}
    return {name: each[name](probability, truth, where) for name in MEASURES}


def apply_temperature(probability: Float[np.ndarray, "k *s"], temperature: float) -> Float[np.ndarray, "k *s"]:
    """Probabilities p^(1/T) / sum of p^(1/T): softer for T > 1, harder for T < 1; the mask does not change.

    That is the softmax of log p / T, p not below FLOOR. Guo et al. (2017), eq. 9.

    Args:
        probability: Of the classes, [k, *s].
        temperature: T.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    logits = np.log(np.maximum(probability, FLOOR)) / temperature
    power = np.exp(logits - logits.max(0))
    return power / power.sum(0)


def fit_temperature(
    probabilities: Sequence[Float[np.ndarray, "..."]],
    truths: Sequence[Integer[np.ndarray, "..."]],
) -> float:
    """The one temperature that minimises the mean NLL over the voxels of validation cases, between 0.05 and 20.

    To be fitted on cases that are neither trained on nor reported. The NLL has one minimum in 1/T; without any error it has
    none, and the result means nothing.

    Args:
        probabilities: [k, *s] of each case.
        truths: Class indices [*s] of each case.

    Raises:
        ValueError: There are no voxels, or lists are of different lengths.

    References:
        Guo et al., On Calibration of Modern Neural Networks (2017).
    """
    chosen = [_chosen(p, t, None) for p, t in zip(probabilities, truths, strict=True)]
    truth = np.concatenate([t for _, t in chosen]) if chosen else np.zeros(0, int)
    if not len(truth):
        raise ValueError("a temperature is fitted to voxels; there are none")
    logs = np.log(np.maximum(np.concatenate([p for p, _ in chosen], axis=1), FLOOR))
    logs -= logs.max(0)
    true = np.take_along_axis(logs, truth[None], 0)[0].mean(dtype=np.float64)

    def loss(log_temperature: float) -> float:
        cold = math.exp(-log_temperature)
        return float(np.log(np.exp(cold * logs).sum(0)).mean(dtype=np.float64) - cold * true)

    edges = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(scipy.optimize.minimize_scalar(loss, bounds=edges, method="bounded", options={"xatol": 1e-5}).x)


def _chosen(probability: np.ndarray, truth: np.ndarray, where: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [k, v] and classes [v] of the voxels that count."""
    if probability.shape[1:] != truth.shape or (where is not None and where.shape != truth.shape):
        shapes = (probability.shape, truth.shape, None if where is None else where.shape)
        raise ValueError(f"probability, truth and choice of voxels of shapes {shapes} do not fit together")
    p, t = probability.reshape(len(probability), -1), truth.reshape(-1)
    if where is not None:
        p, t = p[:, where.reshape(-1)], t[where.reshape(-1)]
    if t.size and (t.min() < 0 or t.max() >= len(p)):
        raise ValueError(f"classes {t.min()} to {t.max()} of {len(p)}")
    if t.size and not (p.min() >= 0 and np.abs(p.sum(0) - 1).max() <= 1e-3):
        raise ValueError("probabilities must not be negative, and must sum to 1 over the classes")
    return p, t
