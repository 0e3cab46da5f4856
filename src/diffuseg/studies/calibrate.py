"""Calibrate a model on cases that it was not trained on: a temperature, volume intervals, when a case needs review.

Everything is learnt from all of these cases, and measured so that no case is scored with what it helped to learn: temperatures
and margins are cross-fitted over halves of the patients. Of the uncertainty score only the threshold is learnt.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from diffuseg.data.dataset import Dataset, load_raters
from diffuseg.data.pictures import LOSSLESS, LOSSY
from diffuseg.data.raters import fuse_raters
from diffuseg.data.transforms import class_indices, rater_indices
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import (
    COLDEST,
    HOTTEST,
    MEASURES,
    VOXELS,
    Reliability,
    apply_temperature,
    band,
    fit_temperature,
    measures,
    reliability,
    sample,
    usual_radius,
)
from diffuseg.evaluation.conformal import (
    ConformalMargin,
    Coverage,
    calibrate_interval,
    cross_coverage,
    expected_coverage,
    interval_coverage,
)
from diffuseg.evaluation.level_sets import LevelMargin, calibrate_levels, cross_levels, level_volumes
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.selective import rejection, threshold_for_fraction
from diffuseg.evaluation.shift import Weights
from diffuseg.evaluation.statistics import Interval, bootstrap_mean, group_folds, paired_difference
from diffuseg.inference.calibration import SETTINGS, Calibration
from diffuseg.inference.folds import validation_set
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.studies.likeness import features, predictions_like, weights_for, whom_for
from diffuseg.text import pluralize
from diffuseg.types import Image

ALPHA, FRACTION = 0.1, 0.2  # of cases whose volume may be outside; of cases that need review
HALVES = 20  # patients: with fewer, half of them cannot calibrate an interval, and one is left out at a time
REGIONS = ("image", "band")


@dataclass(frozen=True)
class CaseScores:
    """One case as the model predicts it without calibration.

    voxels             region -> probability [k, v] and class [v] of some of its voxels
    low, high, truth   class -> volume in ml: ends of the draws' interval, and the true one
    levels             class -> `level_volumes` in ml
    risk               1 - Dice, mean of classes
    uncertainty_score  what the model expects of that
    """

    voxels: dict[str, tuple[np.ndarray, np.ndarray]]
    low: dict[str, float]
    high: dict[str, float]
    truth: dict[str, float]
    levels: dict[str, np.ndarray]
    risk: float
    uncertainty_score: float


@dataclass(frozen=True)
class Measured:
    """What was found, with 95 % intervals over patients.

    calibration  what a checkpoint remembers
    scores       region -> measure -> "before", "after" and their "difference", means over cases; after is cross-fitted
    coverage     class -> how often, and with which mean width in ml, volumes are inside: "raw" and "widened" (cross-fitted)
    selective    risk of all cases and of the rest when the most uncertain ones are sent away, AURC
    diagrams     "before" and "after" (cross-fitted), over the voxels of all bands
    per_case     case -> its patient, risk, uncertainty score, and the temperature that it was scored with
    how          in words: what was cross-fitted how, over which voxels
    pictures     whether the images are pictures without a scale, whose sizes are pixels
    """

    calibration: Calibration
    scores: dict[str, dict[str, dict[str, Interval]]]
    coverage: dict[str, dict[str, Any]]
    selective: dict[str, Interval]
    diagrams: dict[str, Reliability]
    per_case: dict[str, dict[str, Any]]
    how: dict[str, str] = field(default_factory=dict)
    pictures: bool = False


def measure_calibration(
    model: Model,
    folder: Path,
    options: SamplingOptions | None = None,
    fold: int | None = None,
    limit: int = 0,
    on_case: Callable[[int, int], None] | None = None,
    like: Path | None = None,
) -> Measured:
    """Calibrate for the settings that `predict` would use, on validation cases of a fold; the model is not changed.

    Args:
        model: What to calibrate.
        folder: The data set.
        options: How predictions will be drawn.
        fold: None: the one the model was validated on.
        limit: So many cases, spread evenly; 0: all.
        on_case: Called with (done, cases) after each case.
        like: A folder of predictions of the images that the model will be used on: cases like these count more for the
            intervals.

    Raises:
        UserError: What `Model.settings`, `validation_cases` and `weights_for` refuse, cases of a single patient, or without any
            border.
    """
    options = model.resolve(options or SamplingOptions())
    dataset, fold, names, groups = validation_set(model, folder, fold, limit)
    if len(set(groups)) < 2:
        what = f"{pluralize(len(names), 'case')} of one patient"
        raise UserError(what, do="Calibration needs at least two patients in the fold")
    settings = model.settings(options)
    new = None if like is None else predictions_like(like, model.hash, settings)
    cases, voxel = _score_cases(model, dataset, names, options, on_case)
    if not any(len(case.voxels["band"][1]) for case in cases):
        raise UserError("no case has anything but background", file=folder, do="There is nothing to calibrate on")
    temperature = _temperature(cases)
    temperatures = _cross_fitted(cases, group_folds(groups, 2))
    scores, diagrams = _scores(cases, temperatures, groups), _diagrams(cases, temperatures)
    pictures = dataset.file_ending.lower() in LOSSLESS + LOSSY
    how = _how(len(names), len(set(groups)), "pixels" if pictures else "mm")
    temperature, how["temperature"] = _accepted(temperature, scores, how["temperature"])
    weights = None if new is None else weights_for(_features(cases, voxel), new, voxel, ALPHA)
    coverage, widening = _intervals(cases, groups, voxel, weights)
    risk, uncertainty = np.array([case.risk for case in cases]), np.array([case.uncertainty_score for case in cases])
    calibration = Calibration(
        temperature=1.0 if temperature is None else round(temperature, 5),
        widening={name: asdict(wider) for name, wider in widening.items() if wider.finite},
        threshold=threshold_for_fraction(uncertainty, FRACTION),
        fraction=FRACTION,
        settings={key: settings[key] for key in SETTINGS},
        dataset=dataset.name,
        fold=fold,
        cases=len(names),
        patients=len(set(groups)),
        weighted_for="" if like is None or weights is None else whom_for(like, len(new or ()), weights),
    )
    per_case = _per_case(names, groups, cases, temperatures)
    selective = rejection(risk, uncertainty, groups, FRACTION)
    return Measured(calibration, scores, coverage, selective, diagrams, per_case, how, pictures)


def _score_cases(
    model: Model, dataset: Dataset, names: list[str], options: SamplingOptions, on_case: Callable[[int, int], None] | None
) -> tuple[list[CaseScores], float]:
    """The cases, and the volume in ml of their largest voxel."""
    files = {case.id: case for case in dataset.cases}
    cases, voxel = [], 0.0
    for number, name in enumerate(names):
        image, masks = load_raters(dataset, files[name])
        truth = class_indices(replace(masks, data=fuse_raters(masks.data)[None]), model.plan)
        cases.append(_score_case(model, image, truth, rater_indices(masks, model.plan), options))
        voxel = max(voxel, image.voxel_ml)
        if on_case is not None:
            on_case(number + 1, len(names))
    return cases, voxel


def _score_case(model: Model, image: Image, truth: np.ndarray, raters: np.ndarray, options: SamplingOptions) -> CaseScores:
    """One case without any calibration; probabilities against each rater's voxels and border."""
    p = model.predict(image, options, calibrate=False, postprocess=False, anyway=True)
    classes = {name: k for k, name in enumerate(model.plan.names) if k}
    everywhere = np.ones(truth.shape, bool)
    wheres = {"image": [everywhere] * len(raters), "band": [band(rater, image.steps) for rater in raters]}
    overlaps = [dice(p.mask == model.plan.labels[name], truth == k, "one") for name, k in classes.items()]
    return CaseScores(
        {region: _voxels(p.probability, raters, masks) for region, masks in wheres.items()},
        {name: low for name, (low, _) in p.provenance["volume_ml_90"].items()},
        {name: high for name, (_, high) in p.provenance["volume_ml_90"].items()},
        {name: int((truth == k).sum()) * image.voxel_ml for name, k in classes.items()},
        {name: level_volumes(p.probability, k, image.voxel_ml) for name, k in classes.items()},
        1 - float(np.mean(overlaps)),
        p.provenance["uncertainty_score"],
    )


def _voxels(probability: np.ndarray, raters: np.ndarray, wheres: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [k, v] and classes [v] of some voxels, those of all raters one after the other."""
    each = [sample(probability, rater, where, VOXELS // len(raters)) for rater, where in zip(raters, wheres, strict=True)]
    return np.concatenate([p for p, _ in each], axis=1), np.concatenate([t for _, t in each])


def _per_case(
    names: Sequence[str], groups: Sequence[str], cases: Sequence[CaseScores], temperatures: Sequence[float]
) -> dict[str, dict[str, Any]]:
    rows = zip(names, groups, cases, temperatures, strict=True)
    return {
        name: {"patient": patient, "risk": case.risk, "uncertainty_score": case.uncertainty_score,
               "doubt": case.uncertainty_score, "temperature": own}
        for name, patient, case, own in rows
    }  # fmt: skip


def _features(cases: Sequence[CaseScores], voxel: float) -> np.ndarray:
    ends = [{name: (case.low[name], case.high[name]) for name in case.low} for case in cases]
    return np.stack([features(own, case.uncertainty_score, voxel) for own, case in zip(ends, cases, strict=True)])


def _temperature(cases: Sequence[CaseScores]) -> float | None:
    """Fitted to the voxels of all bands, where the question is; None where there is no voxel, and none or too many wrong."""
    voxels = [case.voxels["band"] for case in cases if len(case.voxels["band"][1])]
    fitted = fit_temperature([p for p, _ in voxels], [t for _, t in voxels]) if voxels else 0.0
    return fitted if 1.01 * COLDEST < fitted < 0.99 * HOTTEST else None


def _cross_fitted(cases: list[CaseScores], half: np.ndarray) -> list[float]:
    """The temperature of each case: that of the half of the patients it does not belong to."""
    fitted = {
        side: _temperature([case for case, own in zip(cases, half, strict=True) if own != side]) or 1.0 for side in (0, 1)
    }
    return [fitted[int(own)] for own in half]


def _scores(cases: list[CaseScores], temperatures: list[float], groups: list[str]) -> dict[str, dict[str, dict[str, Interval]]]:
    scores: dict[str, dict[str, dict[str, Interval]]] = {}
    for region in REGIONS:
        voxels = [case.voxels[region] for case in cases]
        before = [measures(p, t) for p, t in voxels]
        after = [measures(apply_temperature(p, T), t) for (p, t), T in zip(voxels, temperatures, strict=True)]
        scores[region] = {}
        for name in MEASURES:
            old, new = ([case[name] for case in side] for side in (before, after))
            change = paired_difference(new, old, groups)
            means = {"before": bootstrap_mean(old, groups), "after": bootstrap_mean(new, groups)}
            scores[region][name] = means | {"difference": change}
    return scores


def _accepted(
    temperature: float | None, scores: dict[str, dict[str, dict[str, Interval]]], how: str
) -> tuple[float | None, str]:
    """The temperature, or None where nothing fits or where cross-fitted ones make something clearly worse; and why."""
    if temperature is None:
        return None, f"none: the best fit lies at an end of {COLDEST:g} to {HOTTEST:g}, which says that nothing fits"
    checked = (("band", "nll"), ("band", "ece"), ("image", "ece"))
    worse = [f"{MEASURES[name]}, {region}" for region, name in checked if scores[region][name]["difference"].low > 0]
    if not worse and not scores["band"]["nll"]["difference"].mean > 0:
        return temperature, how
    what = f"makes {' and '.join(worse)} worse" if worse else "does not lower the NLL of the band"
    return None, f"none: cross-fitted, {temperature:.3f} {what}; {how}"


def _diagrams(cases: list[CaseScores], temperatures: list[float]) -> dict[str, Reliability]:
    voxels = [case.voxels["band"] for case in cases]
    truth = np.concatenate([t for _, t in voxels])
    after = [apply_temperature(p, T) for (p, _), T in zip(voxels, temperatures, strict=True)]
    return {
        "before": reliability(np.concatenate([p for p, _ in voxels], axis=1), truth),
        "after": reliability(np.concatenate(after, axis=1), truth),
    }


def _intervals(
    cases: list[CaseScores], groups: list[str], voxel: float, weights: Weights | None
) -> tuple[dict[str, dict[str, Any]], dict[str, LevelMargin | ConformalMargin]]:
    """By class: coverage of the draws' intervals and of calibrated ones, and what all cases together ask for.

    Between two thresholds; where probabilities say nothing of the true volumes, the draws' intervals widened. `voxel` is the
    volume of the largest one in ml.

    Coverage is that of these cases, which count alike; weights are for cases of another kind, whose truth nobody knows.
    """
    coverage: dict[str, dict[str, Any]] = {}
    widening: dict[str, LevelMargin | ConformalMargin] = {}
    folds = 2 if len(set(groups)) >= HALVES else None
    for name in cases[0].truth:
        low, high, truth = (np.array([getattr(case, end)[name] for case in cases]) for end in ("low", "high", "truth"))
        levels = np.stack([case.levels[name] for case in cases])
        widening[name] = found = calibrate_levels(levels, truth, ALPHA, weights)
        crossed = cross_levels(levels, truth, ALPHA, groups, folds)
        if not found.finite:
            widening[name] = calibrate_interval(low, high, truth, ALPHA, voxel, weights)
            crossed = cross_coverage(low, high, truth, ALPHA, voxel, groups, folds)
        expected = expected_coverage(len(set(groups)), ALPHA)
        sides = {"raw": _coverage(interval_coverage(low, high, truth), groups), "widened": _coverage(crossed, groups)}
        coverage[name] = sides | {"expected_on_new_cases": expected}
    return coverage, widening


def _coverage(found: Coverage, groups: list[str]) -> dict[str, Any]:
    """How many are inside, with the binomial interval of Clopper and Pearson (1934) for as many trials as there are patients.

    Cases of one patient are not independent; counted as one trial the interval is rather too wide than too narrow.
    """
    inside, n = int(found.inside.sum()), len(found.inside)
    trials = len(set(groups))
    hits = trials * inside / n
    low = stats.beta.ppf(0.025, hits, trials - hits + 1) if inside else 0.0
    high = stats.beta.ppf(0.975, hits + 1, trials - hits) if inside < n else 1.0
    interval = Interval(inside / n, float(low), float(high))
    return {
        "fraction": interval._asdict(),
        "inside": inside,
        "cases": n,
        "mean_width_ml": float((found.high - found.low).mean()),
    }


def _how(cases: int, patients: int, unit: str) -> dict[str, str]:
    halves = "each half of the patients by what the other half gave"
    voxels, size = ("voxels", "volume") if unit == "mm" else ("pixels", "area")
    two = " (two voxels, if that is more)" if unit == "mm" else ""
    several = "" if patients == cases else "every case counts, though those of one patient are alike; "
    return {
        "temperature": f"fitted to the {voxels} of all bands together; scores after are cross-fitted: {halves}",
        "band": f"within {usual_radius([1.0]):g} {unit}{two} of a true border",
        "voxels": f"at most {VOXELS} of a case and region, chosen at random; scores are means over cases",
        "intervals": f"split conformal: {size}s of the masks of two other thresholds; {several}coverage {halves}"
        if patients >= HALVES
        else f"split conformal: {size}s of the masks of two other thresholds; {several}too few patients for halves: each by "
        "all others, which says how wide honest intervals are, and nothing of how often they are right",
        "uncertainty_score": "1 minus the Dice that the probabilities of the draws expect of their mask, mean of classes",
        "doubt": "the former name of uncertainty_score",
        "threshold": f"the smallest uncertainty score above which at most {FRACTION:.0%} of these cases lie",
        "risk": "1 minus Dice, mean of classes; a class in neither mask counts as right",
    }
