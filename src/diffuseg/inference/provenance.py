"""What <case>.json says of a prediction: volumes, how far the draws agree, what was computed, from what and by what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from diffuseg.blocks import counts, largest
from diffuseg.data.plan import Plan
from diffuseg.data.slides import Slide
from diffuseg.data.transforms import GridTransform
from diffuseg.evaluation.selective import expected_dice_loss
from diffuseg.inference.ensemble import Ensemble, interval
from diffuseg.inference.sampling import ImageDraws
from diffuseg.methods.tiles import OVERLAP, asked_windows
from diffuseg.types import Image, voxel_ml

THICKNESS = "; a picture has no thickness, 1 mm is assumed"


def volumes(
    plan: Plan,
    classes: Integer[np.ndarray, "*s"],
    probability: Float[np.ndarray, "k *s"],
    image: Image,
    transform: GridTransform,
    ensemble: Ensemble,
) -> dict[str, Any]:
    """Per foreground class: ml of the mask (`classes`), and the 90 % interval of the draws' own masks.

    Draws are counted on the model's grid. Interpolating back changes the volume of what is small or thin, so each count is
    taken as many times as the mean's mask is larger on the image's own voxels: without resampling, exactly once.

    Args:
        plan: Names the classes.
        classes: Class indices [*s] of the mask, on the image's own voxels.
        probability: Mean of the draws, on the image's own voxels.
        image: Says how large a voxel is.
        transform: Between its voxels and the grid.
        ensemble: Has counted the draws.
    """
    voxel, grid_voxel = image.voxel_ml, voxel_ml(transform.grid_affine, image.dims)
    native = counts(largest(probability), plan.classes)
    grid = counts(largest(ensemble.mean.cpu().numpy()), plan.classes)
    chosen = counts(classes, plan.classes)
    volume, ends = {}, {}
    for k, name in list(enumerate(plan.names))[1:]:
        volume[name] = round(chosen[k] * voxel, 6)
        scale = native[k] * voxel / (grid[k] * grid_voxel) if native[k] and grid[k] else 1.0
        ends[name] = [round(ml, 6) for ml in interval([draw[k] * grid_voxel * scale for draw in ensemble.counts])]
    note = "5th to 95th percentile of the volumes of the single draws"
    if ensemble.draws == 1:
        note = "a single draw: the interval is a point and says nothing about uncertainty"
    if image.dims == 2:
        note += THICKNESS
    return {"volume_ml": volume, "volume_ml_90": ends, "volume_note": note}


def scores(
    plan: Plan, ensemble: Ensemble, probability: Float[np.ndarray, "k *s"], classes: Integer[np.ndarray, "*s"]
) -> dict[str, Any]:
    """How far the draws agree about each class, and how much Dice their probabilities expect the mask to lack.

    Args:
        plan: Names the classes.
        ensemble: Has counted the draws.
        probability: Mean of the draws, on the image's own voxels.
        classes: Class indices [*s] of the mask.
    """
    expected = round(expected_dice_loss(probability, classes), 6)
    return {"agreement": _by_class(plan, ensemble.agreement()), "uncertainty_score": expected, "doubt": expected}


def region_record(transform: GridTransform, note: str) -> dict[str, Any]:
    """Which voxels of the file a prediction is about, first and end per axis, where that is a region."""
    box = transform.shown or tuple(slice(0, n) for n in transform.native)
    note += "; of the region alone, while a calibration is learnt on whole images"
    return {"region": [[part.start, part.stop] for part in box], "volume_note": note}


def slide_record(image: Image, draws: ImageDraws, note: str) -> dict[str, Any]:
    """How a whole slide was read, how much tissue is on it, and how many tiles of it were looked at; {} of other images."""
    if not isinstance(image.header, Slide):
        return {}
    shape, patch = draws.x.shape[1:], draws.method.plan.patch
    overlap = OVERLAP if draws.overlap is None else draws.overlap
    asked = asked_windows(np.broadcast_to(np.True_, shape) if draws.inside is None else draws.inside, patch, overlap)
    tiles = {"tiles": sum(asked), "tiles_skipped": len(asked) - sum(asked)}
    note += "; of a whole slide, while a calibration is learnt on pictures"
    return {"slide": image.header.record(image.shape) | tiles, "volume_note": note}


def cost(draws: ImageDraws) -> dict[str, Any]:
    """Seeds, evaluations of the network, per tile, and what was decided about the image as a whole."""
    method, label = draws.method, draws.label
    each = method.evaluations(*method.sampling(draws.sampler, draws.steps)) if method.generative else 1
    evaluations = len(draws.seeds) * each
    record: dict[str, Any] = {"seeds": list(draws.seeds) if method.generative else []}
    if label is None:
        return record | {"network_evaluations": evaluations}
    record["image_label"] = {
        "label": method.plan.names[label.label],
        "decided_by": label.by,
        "scores": label.scores,
        "network_evaluations": label.evaluations,
    }
    drawn = evaluations if label.label else 0  # nothing to look for
    return record | {"network_evaluations": label.evaluations + drawn, "note": method.disclaimer}


def grid(plan: Plan, draws: ImageDraws) -> dict[str, Any]:
    """The grid that was drawn on."""
    axes = draws.x.ndim - 1
    spacing = np.linalg.norm(draws.transform.grid_affine[:3, :axes], axis=0).round(6).tolist()
    return {"shape": list(draws.x.shape[1:]), "spacing_mm": spacing, "orientation": plan.orientation}


def _by_class(plan: Plan, values: Sequence[float | None]) -> dict[str, float | None]:
    """Foreground classes by name; values are in the order of the classes, background first."""
    pairs = list(zip(plan.names, values, strict=True))[1:]
    return {name: None if value is None else round(value, 6) for name, value in pairs}
