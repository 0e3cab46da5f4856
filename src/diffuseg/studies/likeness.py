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
from diffuseg.inference.calibration import differing
from diffuseg.text import pluralize

FEWEST = 10  # images, and effective cases: below, a 90 % interval is the largest error or endless


def features(intervals: Mapping[str, Sequence[float]], uncertainty_score: float, voxel: float) -> Float[np.ndarray, " d"]:
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
        UserError: Fewer than FEWEST predictions, or predictions of another model, with other settings, or of training images.
    """
    found = records(folder)
    if len(found) < FEWEST:
        what = f"{pluralize(len(found), 'prediction')} in it; what images are like is seen from {FEWEST} or more"
        raise UserError(what, file=folder, do="Give a folder that `diffuseg predict` wrote")
    for case, record in found.items():
        other = [f"{key} {record.get(key)}, not {settings[key]}" for key in differing(record, settings)]
        other += ["mirrored images too"] if record["options"].get("mirror") else []
        if record["model"] != model or other:
            what = f"{case} was predicted with {'; '.join(other) if record['model'] == model else 'another model'}"
            raise UserError(what, file=folder, do="Predict these images with this model, and as it is to be calibrated")
        if record.get("seen_in") == "training":
            raise UserError(f"{case} was in the model's training", file=folder, do="Give images that the model has not met")
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
    intervals = [record.get("volume_ml_90_raw", record["volume_ml_90"]) for record in predictions]
    new = [features(ends, record["uncertainty_score"], voxel) for ends, record in zip(intervals, predictions, strict=True)]
    weights = importance_weights(cases, np.stack(new))
    do = "Calibrate on cases like them, with masks"
    share = weights.new / (len(cases) + weights.new)
    if share > alpha:
        weighs = f"one of them weighs {share:.0%} of all, and intervals leave out {alpha:.0%}"
        raise UserError(f"no calibration case is like these images: {weighs}", do=do)
    if weights.effective < FEWEST:
        number = pluralize(len(cases), "calibration case")
        what = f"few of {number} are like these images: weighted for them, they are worth {weights.effective:.1f}"
        raise UserError(what, do=do)
    return weights


def whom_for(folder: Path, images: int, weights: Weights) -> str:
    """In words: the images that intervals are weighted for.

    Args:
        folder: Of their predictions.
        images: How many.
        weights: Of the calibration cases.
    """
    return f"{images} images of {folder.resolve().name} and their like, for which the cases are worth {weights.effective:.1f}"
