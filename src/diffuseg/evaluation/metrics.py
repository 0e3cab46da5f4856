"""How well a mask matches another one: overlap, surface and volume, each with its empty-mask rule as an argument.

Surface measures are MONAI's; docs/evaluation.md says which definition each of them follows and what it was compared with.
Where the class is in neither mask (`empty`):

    "nan"   no value: the case is left out of the mean of this class, and counted
    "one"   the best value: 1, or a distance of 0 mm
    "zero"  the worst value: 0, or as a distance the diagonal of the image

Where it is in one of the two only, the value is the worst one whatever the rule: a total miss and a false alarm are never
rewarded, nor left out.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from diffuseg.evaluation import sheared
from diffuseg.evaluation.sheared import diagonal
from diffuseg.types import Steps, is_sheared, spacing_of

Empty = Literal["nan", "one", "zero"]

# Spacings come from affines in single precision: a border one voxel of 1 mm away lies at 1.0000001 mm as often as at
# 0.9999999 mm, and must be within a tolerance of 1 mm either way.
ROUNDING = 1e-4


def dice(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], empty: Empty = "nan") -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|), in [0, 1].

    Args:
        prediction: Boolean mask [*s].
        truth: Boolean mask of the same shape.
        empty: What two empty masks are worth: "nan", "one" or "zero".

    Raises:
        ValueError: The masks are of different shapes; so in all measures of this file.
    """
    _same_shape(prediction, truth)
    total = int(prediction.sum()) + int(truth.sum())
    return _neither(empty, 1.0, 0.0) if total == 0 else 2.0 * int((prediction & truth).sum()) / total


def iou(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], empty: Empty = "nan") -> float:
    """Intersection over union, in [0, 1].

    Args:
        prediction: Boolean mask [*s].
        truth: Boolean mask of the same shape.
        empty: What two empty masks are worth: "nan", "one" or "zero".
    """
    _same_shape(prediction, truth)
    union = int((prediction | truth).sum())
    return _neither(empty, 1.0, 0.0) if union == 0 else int((prediction & truth).sum()) / union


def hd95(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], spacing: Steps, empty: Empty = "nan") -> float:
    """95th percentile of the Hausdorff distance in mm, between the border voxels of two masks.

    The larger one of the two directions; a voxel at the edge of the image is a border voxel. Spacing in mm per axis, or
    the steps of a sheared grid. If one mask is empty the distance is infinite, reported as the diagonal of the image.

    Args:
        prediction: Boolean mask [*s].
        truth: Boolean mask of the same shape.
        spacing: mm per axis, or the steps of a sheared grid.
        empty: What two empty masks are worth: "nan", "one" or "zero".
    """
    _same_shape(prediction, truth)
    worst = diagonal(truth.shape, spacing)
    if not (prediction.any() and truth.any()):
        return worst if prediction.any() or truth.any() else _neither(empty, 0.0, worst)
    if is_sheared(spacing):
        return sheared.hd95(prediction, truth, np.asarray(spacing))
    return _monai("compute_hausdorff_distance", prediction, truth, percentile=95, spacing=list(spacing_of(spacing)))


def nsd(
    prediction: Bool[np.ndarray, "*s"],
    truth: Bool[np.ndarray, "*s"],
    spacing: Steps,
    tolerance: float = 1.0,
    empty: Empty = "nan",
) -> float:
    """Normalised surface Dice: the part of both surfaces that lies within `tolerance` mm of the other one, in [0, 1].

    Surfaces are weighed by their area (mm2; length in 2-D), so that thick slices do not count more than they are. Spacing in
    mm per axis, or the steps of a sheared grid.

    Args:
        prediction: Boolean mask [*s].
        truth: Boolean mask of the same shape.
        spacing: mm per axis, or the steps of a sheared grid.
        tolerance: mm that a surface may be off.
        empty: What two empty masks are worth: "nan", "one" or "zero".

    Raises:
        ValueError: The tolerance is negative.
    """
    _same_shape(prediction, truth)
    if tolerance < 0:
        raise ValueError(f"a tolerance is a distance in mm, not {tolerance}")
    if not (prediction.any() and truth.any()):
        return 0.0 if prediction.any() or truth.any() else _neither(empty, 1.0, 0.0)
    within = [tolerance * (1 + ROUNDING)]
    if is_sheared(spacing):
        return sheared.nsd(prediction, truth, np.asarray(spacing), within[0])
    return _monai("compute_surface_dice", prediction, truth, within, spacing=list(spacing_of(spacing)), use_subvoxels=True)


def volume(mask: Bool[np.ndarray, "*s"], voxel_ml: float) -> float:
    """Volume of a mask in ml; `voxel_ml` is that of a voxel, on a sheared grid less than the product of the spacings."""
    return int(mask.sum()) * voxel_ml


def volume_error(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], voxel_ml: float) -> float:
    """Predicted minus true volume in ml: positive where too much is marked.

    Args:
        prediction: Boolean mask [*s].
        truth: Boolean mask of the same shape.
        voxel_ml: Volume of a voxel in ml.
    """
    _same_shape(prediction, truth)
    return volume(prediction, voxel_ml) - volume(truth, voxel_ml)


def relative_volume_error(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"]) -> float:
    """Volume error as a part of the true volume: 0.1 is 10 % too much; NaN where the truth is empty."""
    _same_shape(prediction, truth)
    true = int(truth.sum())
    return (int(prediction.sum()) - true) / true if true else math.nan


class Grid(NamedTuple):
    """What the voxels of a mask measure: their size along each axis in mm (`Image.steps`), and their volume in ml."""

    spacing: Steps
    voxel_ml: float


@dataclass(frozen=True)
class Rule:
    """What has to be decided before anything is measured: the empty-mask rule, and the tolerance of NSD in mm."""

    empty: Empty = "nan"
    tolerance: float = 1.0


@dataclass(frozen=True)
class Metric:
    """A column of the report: its title, its unit, how many digits are worth printing, which value is the best, the measure."""

    title: str
    unit: str
    digits: int
    best: Literal["highest", "lowest", "zero"]
    measure: Callable[[np.ndarray, np.ndarray, Grid, Rule], float]


METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", 3, "highest", lambda p, t, grid, rule: dice(p, t, rule.empty)),
    "iou": Metric("IoU", "", 3, "highest", lambda p, t, grid, rule: iou(p, t, rule.empty)),
    "hd95": Metric("HD95", "mm", 2, "lowest", lambda p, t, grid, rule: hd95(p, t, grid.spacing, rule.empty)),
    "nsd": Metric("NSD", "", 3, "highest", lambda p, t, grid, rule: nsd(p, t, grid.spacing, rule.tolerance, rule.empty)),
    "volume_error": Metric("volume error", "ml", 3, "zero", lambda p, t, grid, rule: volume_error(p, t, grid.voxel_ml)),
    "relative_volume_error": Metric(
        "relative volume error", "", 3, "zero", lambda p, t, grid, rule: relative_volume_error(p, t)
    ),
}


@dataclass(frozen=True)
class Score:
    """One class of one case: the value of each metric, volumes in ml, and which mask lacks the class, if any."""

    values: dict[str, float]
    truth_ml: float
    prediction_ml: float
    empty: Literal["", "both", "truth", "prediction"]


def measure(
    prediction: Integer[np.ndarray, "*s"],
    truth: Integer[np.ndarray, "*s"],
    labels: dict[str, int],
    grid: Grid,
    rule: Rule,
) -> dict[str, Score]:
    """Score each class of two label maps; `labels` is class -> value, and the background (0) is left out.

    Args:
        prediction: Label values [*s].
        truth: Label values [*s].
        labels: Class -> value; the background, 0, is left out.
        grid: Spacing and volume of the voxels.
        rule: Empty masks and tolerance.
    """
    _same_shape(prediction, truth)
    scores = {}
    for name, value in labels.items():
        if value == 0:
            continue
        p, t = prediction == value, truth == value
        lacking = {(False, False): "both", (True, False): "truth", (False, True): "prediction"}
        scores[name] = Score(
            {key: metric.measure(p, t, grid, rule) for key, metric in METRICS.items()},
            volume(t, grid.voxel_ml),
            volume(p, grid.voxel_ml),
            lacking.get((bool(p.any()), bool(t.any())), ""),  # type: ignore[arg-type]
        )
    return scores


def _neither(empty: Empty, best: float, worst: float) -> float:
    return {"nan": math.nan, "one": best, "zero": worst}[empty]


def _same_shape(prediction: np.ndarray, truth: np.ndarray) -> None:
    # numpy would broadcast a shape of ones, and score something that was never compared
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of shapes {prediction.shape} and {truth.shape} cannot be compared")


def _monai(function: str, prediction: np.ndarray, truth: np.ndarray, *more: Any, **settings: Any) -> float:
    """One of MONAI's measures of one pair of masks; seconds to import, so only here; its notes to itself are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai import metrics

        pair = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (prediction, truth)]
        return float(getattr(metrics, function)(*pair, *more, include_background=True, **settings))
