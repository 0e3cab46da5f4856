"""Which calibration cases are like the images that a model will be used on: features that need no truth, from predictions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffuseg.data.outputs import records
from diffuseg.errors import UserError
from diffuseg.evaluation.shift import Weights, importance_weights
from diffuseg.inference.calibration import settings_mismatch
from diffuseg.text import pluralize

FEWEST = 10  # effective cases: below, a 90 % interval is the largest error or endless


def features(intervals: Mapping[str, tuple[float, float]], uncertainty_score: float, voxel: float) -> Float[np.ndarray, " d"]:
    """Uncertainty score and, of each class, the logarithm of the volume and how wide its interval is for that.

    Args:
        intervals: class -> ends of the interval of the draws, without calibration, in ml.
        uncertainty_score: Of the case.
        voxel: Added to volumes, in ml, so that an empty mask has a logarithm.
    """
    found = [uncertainty_score]
    for low, high in intervals.values():
        middle = (low + high) / 2 + voxel
        found += [math.log(middle), (high - low) / middle]
    return np.array(found)


def predictions_like(folder: Path, model: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of the predictions in a folder; their masks are not needed.

    Args:
        folder: What `diffuseg predict` wrote, of images that the model will be used on.
        model: The model's hash.
        settings: How calibration cases are drawn.

    Raises:
        UserError: Fewer than two predictions, or predictions of another model or with other settings.
    """
    found = records(folder)
    if len(found) < 2:
        raise UserError("fewer than two predictions", file=folder, do="Give a folder that `diffuseg predict` wrote")
    for case, record in found.items():
        other = "another model" if record["model"] != model else settings_mismatch(settings, record)
        if other:
            do = "Predict these images with this model and these settings first"
            raise UserError(f"{case} was predicted with {other}", file=folder, do=do)
    return list(found.values())


def weights_for(cases: Float[np.ndarray, "n d"], predictions: Sequence[dict[str, Any]], voxel: float, alpha: float) -> Weights:
    """Weights of the calibration cases for images like those that were predicted.

    Args:
        cases: `features` of the calibration cases.
        predictions: `predictions_like`.
        voxel: As in `features`.
        alpha: The part of cases that may lie outside their intervals.

    Raises:
        UserError: Images so unlike the calibration cases that intervals would be endless, or fewer than FEWEST cases count.
    """
    rows = [features(_of_draws(record), record["uncertainty_score"], voxel) for record in predictions]
    weights = importance_weights(cases, np.stack(rows))
    endless = weights.new / (len(cases) + weights.new) > alpha  # a new case outweighs what an interval may leave out
    if endless or weights.effective < FEWEST:
        number = pluralize(len(cases), "calibration case")
        what = f"the images are too unlike {number}: a new image counts as {weights.new:.1f} of {weights.effective:.1f} cases"
        raise UserError(what, do="Calibrate on cases like them, with masks")
    return weights


def _of_draws(record: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Intervals before calibration, which hold the volume of the mask as those of the calibration cases do."""
    raw, volume = record.get("volume_ml_90_raw", record["volume_ml_90"]), record["volume_ml"]
    return {name: (min(low, volume[name]), max(high, volume[name])) for name, (low, high) in raw.items()}
