"""The probabilities of an evaluation's predictions: are they frequencies, and is the uncertainty where the errors are?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffuseg.data.io import ending_of, grid_fault, read_mask
from diffuseg.data.outputs import probability_names, record_of, sidecar_name, stored_as_one
from diffuseg.data.raters import fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import MEASURES, Reliability, band, class_indices, measures, reliability, sample
from diffuseg.evaluation.selective import expected_dice_loss, rejection
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.reports.evaluation import Evaluation
from diffuseg.reports.folders import ignored_label, read_on_grid_of
from diffuseg.text import few, pluralize
from diffuseg.types import Image

VOXELS = 50_000  # of a case and region
FRACTION = 0.2
TOLERANCE = 0.01  # how far rounding may take probabilities out of [0, 1]


Regions = dict[str, tuple[np.ndarray, np.ndarray]]  # "image" and "band" -> probabilities [k, v] and classes [v]


@dataclass(frozen=True)
class ProbabilityEvaluation:
    """What the probabilities of an evaluation are worth.

    cases        those whose probabilities could be evaluated
    scores       "image" and "band" -> measure -> mean over cases with its interval
    diagram      over the voxels of all bands
    risk         1 - Dice of each case
    uncertainty  of each case, what predict wrote or, of other programs, the Dice loss that the probabilities expect
    rejection    what sending away the most uncertain fifth does
    """

    cases: list[str]
    scores: dict[str, dict[str, Interval]]
    diagram: Reliability
    risk: Float[np.ndarray, " n"]
    uncertainty: Float[np.ndarray, " n"]
    rejection: dict[str, Interval]


def evaluate_probabilities(
    evaluation: Evaluation, on_case: Callable[[], None] = lambda: None
) -> tuple[ProbabilityEvaluation | None, list[str]]:
    """Read the probabilities beside the masks of an evaluation's cases.

    Args:
        evaluation: Its files are read where they still are.
        on_case: Called after each case.

    Returns:
        None where there are no probabilities; and the cases that were left out, with the reason: files that cannot be read
        or no longer fit together, and no probabilities where others have them.
    """
    labels: dict[str, int] = evaluation.summary.get("labels", {})
    cases: dict[str, tuple[Regions, float]] = {}
    left_out, absent = [], []
    for case in evaluation.cases if labels else ():
        try:
            files_exist = case in evaluation.predictions and case in evaluation.truths
            read = _read(case, evaluation.predictions[case], evaluation.truths[case], labels) if files_exist else None
            if read is None:
                absent.append(case)
            else:
                cases[case] = read
        except UserError as fault:
            left_out.append(f"{case}: {fault}")
        on_case()
    if absent and (cases or left_out):
        left_out.append(f"{pluralize(len(absent), 'case')} without probabilities: {few(absent)}")
    return (_evaluate(evaluation, cases) if cases else None), left_out


def _evaluate(evaluation: Evaluation, cases: dict[str, tuple[Regions, float]]) -> ProbabilityEvaluation:
    patients = [evaluation.patients[case] for case in cases]
    scores = {}
    for region in ("image", "band"):
        each = [measures(*regions[region]) for regions, _ in cases.values()]
        scores[region] = {name: bootstrap_mean([one[name] for one in each], patients) for name in MEASURES}
    p, t = zip(*(regions["band"] for regions, _ in cases.values()), strict=True)
    risk = np.array([_risk(evaluation, case) for case in cases])
    uncertainty = np.array([value for _, value in cases.values()])
    diagram = reliability(np.concatenate(p, axis=1), np.concatenate(t))
    rejected = rejection(risk, uncertainty, patients, FRACTION)
    return ProbabilityEvaluation(list(cases), scores, diagram, risk, uncertainty, rejected)


def probability_of(case: str, mask: Image, file: Path, labels: dict[str, int]) -> Float[np.ndarray, "k *s"] | None:
    """Probabilities [k, *s] as predict wrote them beside the mask `file`, background first; None without them.

    Args:
        case: Its name.
        mask: The predicted mask.
        file: Of the mask.
        labels: Name -> value.

    Raises:
        UserError: They cannot be read (NaN among them), lie on another grid, are of another number of classes, or are no
            probabilities: below 0, or more than 1 in all.
    """
    ending = ending_of(file)
    files = [file.with_name(sidecar_name(case, name, ending)) for name in probability_names(labels, ending)]
    if not any(path.is_file() for path in files):
        return None
    foreground = np.concatenate([read_on_grid_of(mask, path).data for path in files]).astype(np.float32)
    foreground = foreground / stored_as_one(record_of(file.parent, case), ending)
    if len(foreground) != len(labels) - 1:
        what = f"probabilities of {pluralize(len(foreground), 'class', 'classes')}, not of {len(labels) - 1}"
        raise UserError(what, file=files[0])
    background = 1 - foreground.sum(0, keepdims=True)
    if min(foreground.min(), background.min()) < -TOLERANCE:
        span = f"values from {foreground.min():.3g} to {foreground.max():.3g}"
        raise UserError(f"{span}, of which some are below 0 or add up to more than 1: not probabilities", file=files[0])
    probability = np.concatenate([background, foreground]).clip(0, 1)
    return probability / probability.sum(0)


def _read(case: str, file: Path, truth_files: Sequence[Path], labels: dict[str, int]) -> tuple[Regions, float] | None:
    """Probabilities and classes of a case's voxels by region, and its uncertainty; None where it has no probabilities."""
    mask, truth = read_mask(file), read_raters(truth_files)
    p = probability_of(case, mask, file, labels)
    if p is None:
        return None
    fault = grid_fault(truth, mask)
    if fault is not None:
        raise UserError(f"its {fault} (of {truth_files[0]})", file=file)
    ignore = ignored_label(truth_files[0].parent)
    known = (truth.data != ignore).all(0) if ignore is not None else np.ones(truth.shape, bool)
    truth = replace(truth, data=np.where(known, truth.data, 0))
    values = sorted({0, *labels.values()})
    try:
        right, chosen = (class_indices(label_map, values) for label_map in (fuse_raters(truth.data), mask.data[0]))
    except ValueError as error:
        raise UserError(str(error), file=file) from None
    wheres = {"image": known, "band": known & band(right, truth.steps)}
    record = record_of(file.parent, case)
    value = record.get("uncertainty_score", record.get("doubt"))
    value = float(value) if isinstance(value, int | float) and np.isfinite(value) else expected_dice_loss(p, chosen)
    return {region: sample(p, right, where, VOXELS) for region, where in wheres.items()}, value


def _risk(evaluation: Evaluation, case: str) -> float:
    """1 - Dice, mean of classes; a class in neither mask counts as right, unless the evaluation counts it as wrong."""
    scores = [evaluation.cells[case, name].score.values["dice"] for name in evaluation.classes]
    return 1 - float(np.mean([score if np.isfinite(score) else 1.0 for score in scores]))
