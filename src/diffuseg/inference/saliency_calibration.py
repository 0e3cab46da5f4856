"""What maps say of training images whose labels are known: the threshold that images without the object stay below, and the
one from which on an image is taken to show it. No mask is read, and no image of another fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from diffuseg.checkpoint import amend_meta, seen_in
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, evenly_spaced, open_dataset
from diffuseg.data.labels import read_labels
from diffuseg.errors import UserError
from diffuseg.inference.folds import cases_of, own_fold, refuse_other_kind
from diffuseg.inference.model import Model, load
from diffuseg.methods.weak.base import SaliencyCalibration, WeakMethod

BELOW = 0.99  # of the voxels of images without the object: the null threshold
IMAGES = 64  # of each kind, at most
VOXELS = 65_536  # of one image that the null threshold is made of, at most
OnCase = Callable[[int, int], None] | None


def calibrate_checkpoints(
    checkpoints: Sequence[Path], folder: Path, labels: Path | None = None, device: str | None = None,
    options: Sequence[str] = (), on_case: OnCase = None,
) -> SaliencyCalibration | None:  # fmt: skip
    """Measure the thresholds of the maps of checkpoints of one training, and write them into their headers.

    Hashes change. Checkpoints of the same step get the same thresholds.

    Args:
        checkpoints: Their files.
        folder: Of the data set of the training.
        labels: Table of image-level labels; None: that of the data set.
        device: "cpu", "cuda", "cuda:N" or "mps"; None: the GPU if there is one.
        options: "key=value" for settings of maps.
        on_case: Called with (done, cases) after each case.

    Returns:
        The calibration of the first checkpoint; None, and nothing is written, where 99 % of the voxels of images without the
            object are not above 0.

    Raises:
        UserError: A model learnt from masks or has other classes, or the training fold of the data set holds other images, or
            none of some kind.
    """
    dataset, known, made = open_dataset(folder, masks=False), None, {}
    for checkpoint in checkpoints:
        model = load(checkpoint, device, options)
        if model.method.supervision == "mask":
            raise UserError("this model learnt from masks: it has no maps to compare", file=checkpoint)
        refuse_other_kind(model, dataset)
        step = model.meta.get("steps_trained")
        if step not in made:
            known = read_labels(dataset, labels) if known is None else known
            made[step] = measure_saliency(model, dataset, known, on_case=on_case)
        if made[step].null_threshold:  # in place of one for the same settings, beside those for others
            stored = model.meta.get("references", [])
            read = lambda entry, config=model.method.config_class: SaliencyCalibration.read(entry, config)
            others = [entry for entry in stored if read(entry).settings != made[step].settings]
            amend_meta(checkpoint, {"references": [*others, asdict(made[step])]}, model.hash)
    first = next(iter(made.values()))
    return first if first.null_threshold else None


def measure_saliency(
    model: Model, dataset: Dataset, labels: dict[str, int], most: int = IMAGES, on_case: OnCase = None
) -> SaliencyCalibration:
    """Null and detection threshold of each class.

    Args:
        model: A model that learnt from image-level labels.
        dataset: The data set that it was trained on.
        labels: Case -> class index.
        most: Training images without any class, and of each class, that are looked at.
        on_case: Called with (done, images) after each of them.

    Raises:
        UserError: The training fold has no image of some class, or images that the model was not trained on.
    """
    method = cast(WeakMethod, model.method)
    name, steps = method.sampling(None, None)
    trained = cases_of(dataset, own_fold(model))["train"]
    refuse_untrained(model, dataset, trained)
    of = {y: evenly_spaced([case for case in trained if labels[case] == y], most) for y in range(model.plan.classes)}
    for y, cases in of.items():
        if not cases:
            raise UserError(f"the training fold has no image of {model.plan.names[y]}", file=dataset.folder)
    source = Batches(dataset, [case for cases in of.values() for case in cases], model.plan, labels=labels)
    total, done = len(of[0]) * (len(of) - 1) + sum(len(of[y]) for y in of if y), 0
    null, detection = {}, {}
    for y, shown in list(enumerate(model.plan.names))[1:]:
        maps: dict[int, list[torch.Tensor]] = {0: [], y: []}
        for kind, found in maps.items():
            for case in of[kind]:
                found.append(method.mean_map(source.image(case).to(model.device), y, name, steps).cpu())
                done += 1
                if on_case is not None:
                    on_case(done, total)
        threshold = null_quantile(maps[0], method.config.smooth)
        if threshold > 0:
            null[shown] = threshold
            largest = ([method.largest_saliency(m, threshold) for m in found] for found in maps.values())
            detection[shown] = best_threshold(*largest)
    return SaliencyCalibration(method.map_settings(name, steps), null, detection, sum(len(cases) for cases in of.values()))


def refuse_untrained(model: Model, dataset: Dataset, cases: list[str]) -> None:
    """Check that the model was trained on images, as far as its header lists those that it was: bytes are compared.

    Raises:
        UserError: It was not trained on one of them.
    """
    files = {case.id: case.images[0] for case in dataset.cases}
    for case in cases:
        if seen_in(model.meta, files[case]) in ("validation", "neither"):
            do = "Give the data set of the training, as it was then"
            raise UserError(f"{case} is no image that the model was trained on", file=files[case], do=do)


def null_quantile(maps: list[torch.Tensor], smooth: float) -> float:
    """The value that a share BELOW of the voxels of these maps, smoothed, is below."""
    soft = [gaussian_filter(m.double().numpy(), smooth, mode="nearest").ravel() for m in maps]
    return float(np.quantile(np.concatenate([v[:: max(1, len(v) // VOXELS)] for v in soft]), BELOW))


def best_threshold(without: list[float], shown: list[float]) -> float:
    """The value in (0, 1] that separates two groups of values below 1 best: half way between two of them (or 0), or 1.

    Errors of both kinds weigh the same. 1 where more is wrong with every other value: then no image is taken to show it.

    Args:
        without: Largest saliency of each image without the object.
        shown: That of each image which shows it.
    """
    low, high = np.array(without), np.array(shown)
    values = np.unique(np.concatenate([[0.0], low, high]).clip(min=0))
    options = np.append((values[1:] + values[:-1]) / 2, 1.0)
    right = [(low < t).mean() + (high >= t).mean() for t in options]
    return max(float(options[int(np.argmax(right))]), 1e-6)
