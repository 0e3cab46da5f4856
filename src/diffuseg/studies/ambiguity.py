"""A model's draws against the raters of a data set: does it know what people disagree about?

Every case is scored from four sources of masks, so that a number has a ceiling and floors beside it (`references`):

    draws              of the model; a model without randomness has copies of its one mask
    pixelwise          each voxel drawn by itself from the model's mean probability: right frequencies, no shapes
    one rater          copies of one rater's mask; mean over the raters
    resampled raters   raters drawn with replacement: a perfect sampler with as many draws

Of several models as an ensemble, draw i is one of model i modulo their number, and probabilities are the mean of the draws.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffuseg.checkpoint import versions
from diffuseg.data.dataset import Dataset, load_raters, open_dataset, patients
from diffuseg.data.raters import MAJORITY, fuse_raters
from diffuseg.data.transforms import rater_indices
from diffuseg.errors import UserError
from diffuseg.evaluation.ambiguity_baselines import held_out_rater, one_rater, pixelwise_draws, resampled_raters
from diffuseg.evaluation.calibration_metrics import band, ece
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.multirater import (
    Draws,
    Raters,
    collective_insight,
    draw_agreement,
    ged,
    ged_by_draws,
    hm_iou,
    pairwise_iou,
    soft_dice,
)
from diffuseg.evaluation.selective import expected_dice_loss, rejection
from diffuseg.evaluation.statistics import CONFIDENCE, METHOD, RESAMPLES, bootstrap_mean
from diffuseg.inference.folds import own_fold, validation_cases
from diffuseg.inference.fusion import best_overlap
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.text import pluralize
from diffuseg.types import Image, Steps

DRAWS = 16  # per case, where nobody says otherwise
COUNTS = (4, 16, 32)  # of draws at which GED is usually tabulated
REPEATS = 3  # of each random reference and case: what is left of their noise vanishes in the mean over cases
SOURCES = ("draws", "pixelwise", "one rater", "resampled raters")
RULE = (
    "Two empty masks agree: IoU = Dice = 1, distance 0; where one of two is empty both are 0. A rater who marked nothing "
    f"counts like any other. The single truth of Dice is {MAJORITY}; a class that is neither there nor in the mask counts as "
    "right"
)
Maps = Float[np.ndarray, "k *s"]


@dataclass(frozen=True)
class MultiRaterScores:
    """One case.

    sources  source of masks -> measure -> value
    single   against one rater at a time, mean over raters: "draws", as many as there are other raters, and "raters", the
             others; "ged" and "iou". Without another rater NaN
    mean     of the mean probability: "dice" (of its mask, against the majority; mean of classes), "ece" and "ece_band"
             (against all raters together; band: near the border that any of them drew) and "uncertainty_score";
             "ece_band_by_chance", what an exactly calibrated one has; and "dice_fused", Dice of the mask that
             `predict --fuse dice` makes of the draws
    raters   number of masks, and how many of them are empty
    """

    case: str
    patient: str
    raters: tuple[int, int]
    sources: dict[str, dict[str, float]]
    single: dict[str, dict[str, float]]
    mean: dict[str, float]


@dataclass(frozen=True)
class Ambiguity:
    """What was measured: by case, and what summary.json holds."""

    cases: list[MultiRaterScores]
    summary: dict[str, Any]


def measure_ambiguity(
    models: Sequence[Model],
    folder: Path,
    options: SamplingOptions | None = None,
    fold: int | None = None,
    limit: int = 0,
    pattern: str | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Ambiguity:
    """Score the draws of a model, or of several as one ensemble, on the validation cases of a fold.

    Args:
        models: Models of the same classes.
        folder: A data set with several raters.
        options: How to draw; draws None: 16.
        fold: None: the one the first model was validated on.
        limit: So many cases, spread evenly; 0: all.
        pattern: Regular expression for the patient in a case's name, where the data set does not tell patients.
        on_case: Called with (done, cases) after each case.

    Raises:
        UserError: A data set without raters, models of other classes than the first, fewer draws than models, and what
            `Model.settings` and `validation_cases` refuse.
    """
    dataset = open_dataset(folder)
    options = options or SamplingOptions()
    draws = DRAWS if options.draws is None else options.draws
    options = replace(options, draws=draws)
    _refuse_single_masks(dataset)
    _refuse_other_kinds(models, draws)
    described = [_describe(model, model.resolve(options)) for model in models]
    fold = own_fold(models[0]) if fold is None else fold
    names = validation_cases(models[0], dataset, fold, limit)
    for model in models[1:]:
        others = validation_cases(model, dataset, fold, limit)  # none of them may have been trained on these
        names = [name for name in names if name in others]
    patient_of, rule = _patients(dataset, pattern)
    cases = {case.id: case for case in dataset.cases}
    scored = []
    for number, name in enumerate(names):
        image, masks = load_raters(dataset, cases[name])
        raters = rater_indices(masks, models[0].plan)
        drawn, mean = draw_masks(models, image, options)
        seed = options.seed + REPEATS * number
        scored.append(score_case(name, patient_of[name], drawn, mean, raters, image.steps, seed))
        if on_case is not None:
            on_case(number + 1, len(names))
    settings = {
        "dataset": dataset.name,
        "fold": fold,
        "models": described,
        "draws": draws,
        "seed": options.seed,
        "interval": {"confidence": CONFIDENCE, "method": METHOD, "resamples": RESAMPLES, "over": rule},
        "rule": RULE,
        "versions": versions(),
    }
    return Ambiguity(scored, settings | summarise(scored))


def draw_masks(models: Sequence[Model], image: Image, options: SamplingOptions) -> tuple[Draws, Maps]:
    """Draw from one image; draw i is one of model i modulo their number, as that model's `predict` makes it.

    Probabilities are averaged on the image's own voxels, as models of an ensemble may have grids of their own; `predict`
    averages on its one grid. Resampling is linear, so the two means are the same up to rounding.

    Args:
        models: One, or the members of an ensemble.
        image: As in its file.
        options: Number of draws, seed, steps and sampler.

    Returns:
        Masks of the draws [n, *s], as class indices, and their mean probability [k, *s], on the image's own voxels.
    """
    number = DRAWS if options.draws is None else options.draws
    masks = np.zeros((number, *image.shape), np.uint8 if models[0].plan.classes < 256 else np.int16)
    mean = np.zeros((models[0].plan.classes, *image.shape), np.float32)
    for first, model in enumerate(models):
        own = range(first, number, len(models))
        draws = model.prepare(image, options, own)
        for i, draw in zip(own, draws.draw(), strict=True):
            probability = draws.to_native(draw)
            masks[i] = probability.argmax(0)
            mean += probability / number
    return masks, mean


def _describe(model: Model, options: SamplingOptions) -> dict[str, Any]:
    header = {"name": model.name, "method": model.meta.get("method"), "generative": model.method.generative}
    return header | {"model": model.hash, "steps": options.steps, "sampler": options.sampler}


def score_case(
    case: str, patient: str, draws: Draws, mean: Maps, raters: Raters, spacing: Steps, seed: int = 0
) -> MultiRaterScores:
    """All numbers of one case.

    Args: case: Its name. patient: Whose it is. draws: Class indices [n, *s]. mean: Mean probability [k, *s]. raters: Class
    indices [m, *s]. spacing: mm per axis, or the steps of a sheared grid. seed: Of the resampled raters and pixelwise draws
    that the draws are compared with.
    """
    labels, n = list(range(1, len(mean))), len(draws)
    counts = sorted({k for k in COUNTS if k <= n} or {n})
    sources = {}
    for name, masks in _sources(draws, mean, raters, seed):
        scores = [_scores(some, p, raters, labels, counts) for some, p in masks]
        sources[name] = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
    majority, mask = fuse_raters(raters), mean.argmax(0)
    overlap = lambda mask: float(np.mean([dice(mask == k, majority == k, "one") for k in labels]))
    everywhere = np.ones(mask.shape, bool)
    uncertainty = expected_dice_loss(mean, mask)
    of_mean = {
        "dice": overlap(mask),
        "dice_fused": overlap(best_overlap(draws, len(mean))),
        "ece": _ece(mean, raters, everywhere),
        "ece_band": _ece(mean, raters, _near(raters, spacing)),
        "ece_band_by_chance": _ece_by_chance(draws, len(mean), len(raters), spacing),
        "uncertainty_score": uncertainty,
        "doubt": uncertainty,  # its former name
    }
    empty = int((~raters.any(tuple(range(1, raters.ndim)))).sum())
    return MultiRaterScores(case, patient, (len(raters), empty), sources, _single(draws, raters, labels), of_mean)


def _ece(mean: Maps, raters: Raters, where: Bool[np.ndarray, "*s"]) -> float:
    """ECE of the mean probability against all raters together; each voxel counts once for each of them."""
    everyone = (len(raters), *where.shape)
    return ece(np.repeat(mean[:, None], len(raters), axis=1), raters.astype(np.int64), np.broadcast_to(where, everyone))


def _near(raters: Raters, spacing: Steps) -> Bool[np.ndarray, "*s"]:
    return np.any([band(rater, spacing) for rater in raters], axis=0)


def _ece_by_chance(draws: Draws, classes: int, raters: int, spacing: Steps) -> float:
    """ECE near the borders of the shares of draws, where other draws stand for the raters: above 0 by chance alone.

    Draws are exchangeable, so the share of some is exactly calibrated for the others; what is left comes from few voxels,
    few raters and few draws. Mean over disjoint sets of raters; NaN with fewer than twice as many draws as raters, or where no
    set has a border.
    """
    every = []
    for first in range(0, len(draws) - raters + 1, raters) if len(draws) >= 2 * raters else ():
        people = draws[first : first + raters]
        rest = np.delete(draws, range(first, first + raters), axis=0)
        every.append(_ece(_share(rest, classes), people, _near(people, spacing)))
    found = [value for value in every if np.isfinite(value)]
    return float(np.mean(found)) if found else np.nan


def _share(masks: Draws, classes: int) -> Maps:
    return np.stack([(masks == k).mean(0, dtype=np.float32) for k in range(classes)])


def summarise(cases: Sequence[MultiRaterScores]) -> dict[str, Any]:
    """Means over cases with their 95 % intervals over patients, and how well uncertainty finds the bad ones (AURC)."""
    groups = [case.patient for case in cases]
    risk = np.array([1 - case.mean["dice"] for case in cases])
    uncertainty = np.array([case.mean["uncertainty_score"] for case in cases])
    mean = lambda values: bootstrap_mean(values, groups)._asdict() | {"n": int(np.isfinite(values).sum())}
    rejected = rejection(risk, uncertainty, groups, fraction=0.0)
    return {
        "cases": len(cases),
        "patients": len(set(groups)),
        "empty": {
            "no rater": sum(case.raters[1] == 0 for case in cases),
            "some raters": sum(0 < case.raters[1] < case.raters[0] for case in cases),
            "all raters": sum(case.raters[1] == case.raters[0] for case in cases),
        },
        "ambiguity": {
            source: {key: mean([case.sources[source][key] for case in cases]) for key in cases[0].sources[source]}
            for source in SOURCES
        },
        "single": {
            who: {key: mean([case.single[who][key] for case in cases]) for key in ("ged", "iou")} for who in cases[0].single
        },
        "mean": {key: mean([case.mean[key] for case in cases]) for key in cases[0].mean},
        "selective": {name: rejected[name]._asdict() for name in ("aurc", "excess_aurc")},
    }


def _refuse_single_masks(dataset: Dataset) -> None:
    if not any(len(case.masks) > 1 for case in dataset.cases):
        do = 'Write "raters": n into it and name masks <case>_rater<k>'
        raise UserError("no case has masks of several raters", file=dataset.folder / "dataset.json", do=do)


def _patients(dataset: Dataset, pattern: str | None) -> tuple[dict[str, str], str]:
    """As the data set tells them, or else the pattern: for intervals only, as folds without a file depend on patients."""
    extra = {} if pattern is None else {"patient_pattern": pattern}
    return patients(replace(dataset, extra=extra | dataset.extra))


def _refuse_other_kinds(models: Sequence[Model], draws: int) -> None:
    for model in models:
        if model.method.supervision != "mask":
            what = f"{model.name} learnt from image-level labels: a draw of it is a saliency map, and no mask"
            raise UserError(what, do="Compare its predictions with `diffuseg evaluate`")
    for model in models[1:]:
        if model.plan.labels != models[0].plan.labels:
            raise UserError(f"{model.name} has other classes than {models[0].name}", do="An ensemble has the same")
    if draws < len(models):
        what = f"{pluralize(draws, 'draw')} of {len(models)} models"
        raise UserError(what, do="Each of them needs one at least: give more --draws")


def _sources(draws: Draws, mean: Maps, raters: Raters, seed: int) -> Iterator[tuple[str, list[tuple[Draws, Maps]]]]:
    """Each source with its sets of masks, and the probabilities that these stand for."""
    n, classes, seeds = len(draws), len(mean), range(seed, seed + REPEATS)
    copies = [one_rater(raters, n, i) for i in range(len(raters))]
    resampled = [resampled_raters(raters, n, s) for s in seeds]
    yield "draws", [(draws, mean)]
    yield "pixelwise", [(pixelwise_draws(mean, n, s), mean) for s in seeds]
    yield "one rater", [(masks, _share(masks, classes)) for masks in copies]
    yield "resampled raters", [(masks, _share(masks, classes)) for masks in resampled]


def _scores(draws: Draws, probability: Maps, raters: Raters, labels: list[int], counts: list[int]) -> dict[str, float]:
    insight = collective_insight(draws, raters, labels=labels)
    scores = {f"ged_{k}": value for k, value in ged_by_draws(draws, raters, counts, labels=labels).items()}
    scores |= {"hm_iou": hm_iou(draws, raters, labels=labels), "maximum_dice": insight.maximum_dice, "ci": insight.score}
    agreement = draw_agreement(draws, raters, labels=labels)._asdict()
    scores |= {f"dice_{name}": value for name, value in agreement.items()}
    soft = [soft_dice(np.clip(probability[k], 0, 1), raters == k) for k in labels]
    return scores | {"soft_dice": float(np.mean(soft))}


def _single(draws: Draws, raters: Raters, labels: list[int]) -> dict[str, dict[str, float]]:
    """Draws, and the other raters, against one rater at a time; equally many of both, as GED depends on their number."""
    others = len(raters) - 1
    if not 1 <= others <= len(draws):
        return {who: {"ged": np.nan, "iou": np.nan} for who in ("draws", "raters")}
    alone = [raters[i : i + 1] for i in range(len(raters))]
    distance = np.mean([ged_by_draws(draws, one, (others,), labels=labels)[others] for one in alone])
    people = {
        "ged": held_out_rater(raters, lambda some, one: ged(some, one, labels=labels)),
        "iou": held_out_rater(raters, lambda some, one: float(pairwise_iou(some, one, labels=labels).mean())),
    }
    own = {"ged": float(distance), "iou": float(pairwise_iou(draws, raters, labels=labels).mean())}
    return {"draws": own, "raters": people}
