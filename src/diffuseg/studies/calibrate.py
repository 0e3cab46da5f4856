"""Calibrate a model on cases that it was not trained on: a temperature, wider volume intervals, a threshold of doubt.

Everything is learnt from all of these cases, and judged so that no case is scored with what it helped to learn: temperatures
and widenings cross-fitted over halves of the patients. The doubt of a case is learnt from nothing, only its threshold is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from diffuseg.data.batches import Batches, FullCase
from diffuseg.data.dataset import load_raters, open_dataset, patients
from diffuseg.data.transforms import rater_indices
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
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.selective import rejection, threshold_for_fraction
from diffuseg.evaluation.statistics import Interval, bootstrap_mean, group_folds, paired_difference
from diffuseg.inference.calibration import SETTINGS, Calibration
from diffuseg.inference.folds import own_fold, validation_cases
from diffuseg.inference.model import Model
from diffuseg.text import pluralize
from diffuseg.types import voxel_ml

ALPHA, FRACTION = 0.1, 0.2  # of cases whose volume may be outside; of cases that are to be looked at
HALVES = 20  # patients: with fewer, half of them cannot calibrate an interval, and one is left out at a time
REGIONS = ("image", "band")


@dataclass(frozen=True)
class Judged:
    """One case. voxels: region -> probability [k, v] and class [v]; low, high, truth: class -> ml; risk: 1 - Dice."""

    voxels: dict[str, tuple[np.ndarray, np.ndarray]]
    low: dict[str, float]
    high: dict[str, float]
    truth: dict[str, float]
    risk: float
    doubt: float


@dataclass(frozen=True)
class Measured:
    """What was found, with 95 % intervals over patients.

    calibration  what a checkpoint remembers
    scores       region -> measure -> "before", "after" and their "difference", means over cases; after is cross-fitted
    coverage     class -> how often, and with which mean width in ml, volumes are inside: "raw" and "widened" (cross-fitted)
    selective    risk of all cases and of the rest when the most uncertain ones are sent away, AURC
    diagrams     "before" and "after" (cross-fitted), over the voxels of all bands
    per_case     case -> its patient, risk, doubt, and the temperature that it was scored with
    how          in words: what was cross-fitted how, over which voxels
    """

    calibration: Calibration
    scores: dict[str, dict[str, dict[str, Interval]]]
    coverage: dict[str, dict[str, Any]]
    selective: dict[str, Interval]
    diagrams: dict[str, Reliability]
    per_case: dict[str, dict[str, Any]]
    how: dict[str, str] = field(default_factory=dict)


def measure_calibration(
    model: Model,
    folder: Path,
    fold: int | None = None,
    limit: int = 0,
    draws: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    fuse: str = "mean",
    seed: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> Measured:
    """Calibrate for the settings that `predict` would use, on validation cases of a fold; the model is not changed.

    Refuses what `Model.settings` and `validation_cases` refuse, cases of a single patient, and cases without any border.
    """
    asked = model.settings(draws, seed, steps, sampler, fuse)
    dataset = open_dataset(folder)
    fold = own_fold(model) if fold is None else fold
    cases = validation_cases(model, dataset, fold, limit)
    of = [patients(dataset)[0][case] for case in cases]
    if len(set(of)) < 2:
        raise UserError(
            f"{pluralize(len(cases), 'case')} of one patient", do="Calibration needs at least two patients in the fold"
        )
    known = {case.id: case for case in dataset.cases}
    source, judged, voxel = Batches(dataset, cases, model.plan), [], 0.0
    for number, case in enumerate(cases):
        whole = source.whole(case)
        several = known[case].raters  # a single mask has been read already
        raters = rater_indices(load_raters(dataset, known[case])[1], model.plan) if several else whole.truth[None]
        judged.append(_judge(model, whole, raters, {key: asked[key] for key in SETTINGS}, seed))
        voxel = max(voxel, voxel_ml(whole.native.affine, whole.native.dims))
        if on_case is not None:
            on_case(number + 1, len(cases))
    if not any(len(case.voxels["band"][1]) for case in judged):
        raise UserError("no case has anything but background", file=folder, do="There is nothing to calibrate on")
    half, temperature = group_folds(of, 2), _temperature(judged)
    temperatures = _cross_fitted(judged, half)
    coverage, widening = _intervals(judged, of, voxel)
    risk, doubt = (np.array([getattr(case, name) for case in judged]) for name in ("risk", "doubt"))
    learnt = Calibration(
        1.0 if temperature is None else round(temperature, 5),
        {name: asdict(found) for name, found in widening.items() if math.isfinite(found.margin)},
        threshold_for_fraction(doubt, FRACTION),
        FRACTION,
        {key: asked[key] for key in SETTINGS},
        dataset.name,
        fold,
        len(cases),
        len(set(of)),
    )
    per_case = {
        case: {"patient": patient, "risk": one.risk, "doubt": one.doubt, "temperature": temperature}
        for case, patient, one, temperature in zip(cases, of, judged, temperatures, strict=True)
    }
    scores, diagrams = _scores(judged, temperatures, of), _diagrams(judged, temperatures)
    how = _how(len(cases), len(set(of)))
    if temperature is None:
        how["temperature"] = f"none: the best fit lies at an end of {COLDEST:g} to {HOTTEST:g}, which says that nothing fits"
    return Measured(learnt, scores, coverage, rejection(risk, doubt, of, FRACTION), diagrams, per_case, how)


def _judge(model: Model, whole: FullCase, raters: np.ndarray, settings: dict[str, Any], seed: int) -> Judged:
    """One case as `predict` would do it without any calibration; probabilities against each rater's voxels and border."""
    p = model.predict(whole.native, seed=seed, calibrate=False, **settings)
    names = model.plan.names
    voxel = voxel_ml(whole.native.affine, whole.native.dims)
    everywhere = np.ones(whole.truth.shape, bool)
    wheres = {"image": [everywhere] * len(raters), "band": [band(rater, whole.native.spacing) for rater in raters]}
    scores = [dice(p.mask == model.plan.labels[name], whole.truth == k, "one") for k, name in enumerate(names) if k]
    return Judged(
        {region: _voxels(p.probability, raters, masks) for region, masks in wheres.items()},
        {name: low for name, (low, _) in p.provenance["volume_ml_90"].items()},
        {name: high for name, (_, high) in p.provenance["volume_ml_90"].items()},
        {name: int((whole.truth == k).sum()) * voxel for k, name in enumerate(names) if k},
        1 - float(np.mean(scores)),
        p.provenance["doubt"],
    )


def _voxels(probability: np.ndarray, raters: np.ndarray, wheres: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [k, v] and classes [v] of some voxels, those of all raters one after the other."""
    each = [sample(probability, rater, where, VOXELS // len(raters)) for rater, where in zip(raters, wheres, strict=True)]
    return np.concatenate([p for p, _ in each], axis=1), np.concatenate([t for _, t in each])


def _temperature(judged: Sequence[Judged]) -> float | None:
    """Fitted to the voxels of all bands, where the question is; None where there is no voxel, and none or too many wrong."""
    voxels = [case.voxels["band"] for case in judged if len(case.voxels["band"][1])]
    found = fit_temperature([p for p, _ in voxels], [t for _, t in voxels]) if voxels else 0.0
    return found if 1.01 * COLDEST < found < 0.99 * HOTTEST else None


def _cross_fitted(judged: list[Judged], half: np.ndarray) -> list[float]:
    """The temperature of each case: that of the half of the patients it does not belong to."""
    fitted = {
        side: _temperature([case for case, own in zip(judged, half, strict=True) if own != side]) or 1.0 for side in (0, 1)
    }
    return [fitted[int(own)] for own in half]


def _scores(judged: list[Judged], temperatures: list[float], of: list[str]) -> dict[str, dict[str, dict[str, Interval]]]:
    found: dict[str, dict[str, dict[str, Interval]]] = {}
    for region in REGIONS:
        voxels = [case.voxels[region] for case in judged]
        before = [measures(p, t) for p, t in voxels]
        after = [measures(apply_temperature(p, T), t) for (p, t), T in zip(voxels, temperatures, strict=True)]
        found[region] = {}
        for name in MEASURES:
            old, new = ([case[name] for case in side] for side in (before, after))
            change = paired_difference(new, old, of)
            found[region][name] = {"before": bootstrap_mean(old, of), "after": bootstrap_mean(new, of), "difference": change}
    return found


def _diagrams(judged: list[Judged], temperatures: list[float]) -> dict[str, Reliability]:
    voxels = [case.voxels["band"] for case in judged]
    truth = np.concatenate([t for _, t in voxels])
    after = [apply_temperature(p, T) for (p, _), T in zip(voxels, temperatures, strict=True)]
    return {
        "before": reliability(np.concatenate([p for p, _ in voxels], axis=1), truth),
        "after": reliability(np.concatenate(after, axis=1), truth),
    }


def _intervals(
    judged: list[Judged], of: list[str], voxel: float
) -> tuple[dict[str, dict[str, Any]], dict[str, ConformalMargin]]:
    """By class: coverage before and after, and the widening from all cases; `voxel` in ml, the largest there is."""
    coverage, widening = {}, {}
    folds = 2 if len(set(of)) >= HALVES else None
    for name in judged[0].truth:
        low, high, truth = (np.array([getattr(case, end)[name] for case in judged]) for end in ("low", "high", "truth"))
        widening[name] = calibrate_interval(low, high, truth, ALPHA, smallest=voxel)
        crossed = cross_coverage(low, high, truth, ALPHA, smallest=voxel, groups=of, folds=folds)
        expected = expected_coverage(len(set(of)), ALPHA)
        sides = {"raw": _coverage(interval_coverage(low, high, truth), of), "widened": _coverage(crossed, of)}
        coverage[name] = sides | {"expected_on_new_cases": expected}
    return coverage, widening


def _coverage(found: Coverage, of: list[str]) -> dict[str, Any]:
    """How many are inside, with the binomial interval of Clopper and Pearson (1934) for as many trials as there are patients.

    Cases of one patient are not independent; counted as one trial the interval is rather too wide than too narrow.
    """
    inside, n = int(found.inside.sum()), len(found.inside)
    trials = len(set(of))
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


def _how(cases: int, patients: int) -> dict[str, str]:
    halves = "each half of the patients by what the other half gave"
    several = "" if patients == cases else "every case counts, though those of one patient are alike; "
    return {
        "temperature": f"fitted to the voxels of all bands together; scores after are cross-fitted: {halves}",
        "band": f"within {usual_radius([1.0]):g} mm (two voxels, if that is more) of a true border",
        "voxels": f"at most {VOXELS} of a case and region, chosen at random; scores are means over cases",
        "intervals": f"split conformal, relative to the volume; {several}coverage {halves}"
        if patients >= HALVES
        else f"split conformal, relative to the volume; {several}too few patients for halves: each by all others, which says "
        "how wide honest intervals are, and nothing of how often they are right",
        "doubt": "1 minus the Dice that the probabilities of the draws expect of their mask, mean of classes",
        "threshold": f"the smallest doubt above which at most {FRACTION:.0%} of these cases lie",
        "risk": "1 minus Dice, mean of classes; a class in neither mask counts as right",
    }
