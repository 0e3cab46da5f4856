"""Predictions that hold probabilities, judged once more: are these frequencies, and is doubt where the errors are?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffuseg.data.io import ending_of, grid_fault, read_mask
from diffuseg.data.layout import ellipsize
from diffuseg.data.outputs import probability_names, record_of, sidecar_name
from diffuseg.data.raters import fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import MEASURES, Reliability, band, class_indices, measures, reliability, sample
from diffuseg.evaluation.selective import expected_dice_loss, rejection
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.reports.report import on_grid_of
from diffuseg.reports.written import Written
from diffuseg.text import pluralize
from diffuseg.types import Image

VOXELS = 50_000  # of a case and region
FRACTION = 0.2
TOLERANCE = 0.01  # how far rounding may take probabilities out of [0, 1]


@dataclass(frozen=True)
class Judged:
    """An evaluation's probabilities.

    cases    those whose probabilities could be judged
    scores   "image" and "band" -> measure -> mean over cases with its interval
    diagram  over the voxels of all bands
    risk, doubt  per case; the doubt is what predict wrote or, of other programs, that of the probabilities
    rejection    what sending away the most uncertain fifth does
    """

    cases: list[str]
    scores: dict[str, dict[str, Interval]]
    diagram: Reliability
    risk: Float[np.ndarray, " n"]
    doubt: Float[np.ndarray, " n"]
    rejection: dict[str, Interval]


def judge(
    evaluation: Written,
    masks: dict[str, Path],
    truths: dict[str, tuple[Path, ...]],
    on_case: Callable[[], None] = lambda: None,
) -> tuple[Judged | None, list[str]]:
    """Read the probabilities beside the masks of an evaluation's cases: None where there are none; and what was left out, why.

    masks and truths by case. A case whose files cannot be read, or no longer fit together, is left out, and named with the
    reason; so are cases without probabilities, or whose files are gone, where others have them.
    """
    labels: dict[str, int] = evaluation.summary.get("labels", {})
    found: dict[str, tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]] = {}
    left_out, absent = [], []
    for case in evaluation.cases if labels else ():
        try:
            there = case in masks and case in truths
            one = _case(case, masks[case], truths[case], labels) if there else None
            if one is None:
                absent.append(case)
            else:
                found[case] = one
        except UserError as fault:
            left_out.append(f"{case}: {fault}")
        on_case()
    if absent and (found or left_out):
        left_out.append(f"{pluralize(len(absent), 'case')} without probabilities: {ellipsize(absent)}")
    return (_judged(evaluation, found) if found else None), left_out


def _judged(evaluation: Written, found: dict[str, tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]]) -> Judged:
    of = [evaluation.patients[case] for case in found]
    scores = {}
    for region in ("image", "band"):
        each = [measures(*voxels[region]) for voxels, _ in found.values()]
        scores[region] = {name: bootstrap_mean([one[name] for one in each], of) for name in MEASURES}
    p, t = zip(*(voxels["band"] for voxels, _ in found.values()), strict=True)
    risk = np.array([_risk(evaluation, case) for case in found])
    doubts = np.array([value for _, value in found.values()])
    diagram = reliability(np.concatenate(p, axis=1), np.concatenate(t))
    return Judged(list(found), scores, diagram, risk, doubts, rejection(risk, doubts, of, FRACTION))


def probability_of(case: str, mask: Image, file: Path, labels: dict[str, int]) -> Float[np.ndarray, "k *s"] | None:
    """Probabilities [k, *s] as predict wrote them beside the mask `file`, background first; None without them.

    Refuses those that cannot be read, NaN among them, that lie on another grid, are of another number of classes, or are no
    probabilities: below 0, or more than 1 in all.
    """
    ending = ending_of(file)
    files = [file.with_name(sidecar_name(case, name, ending)) for name in probability_names(labels, ending)]
    if not any(path.is_file() for path in files):
        return None
    foreground = np.concatenate([on_grid_of(mask, path).data for path in files]).astype(np.float32)
    foreground = foreground / 65535 if ending == ".png" else foreground
    if len(foreground) != len(labels) - 1:
        what = f"probabilities of {pluralize(len(foreground), 'class', 'classes')}, not of {len(labels) - 1}"
        raise UserError(what, file=files[0])
    background = 1 - foreground.sum(0, keepdims=True)
    if min(foreground.min(), background.min()) < -TOLERANCE:
        what = (
            f"values from {foreground.min():.3g} to {foreground.max():.3g}, of which some are below 0 or add up to more than 1"
        )
        raise UserError(f"{what}: not probabilities", file=files[0])
    whole = np.concatenate([background, foreground]).clip(0, 1)
    return whole / whole.sum(0)


def _case(
    case: str, file: Path, truth_files: Sequence[Path], labels: dict[str, int]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float] | None:
    """Probabilities and classes of a case's voxels by region, and its doubt; None where it has no probabilities."""
    mask, truth = read_mask(file), read_raters(truth_files)
    p = probability_of(case, mask, file, labels)
    if p is None:
        return None
    fault = grid_fault(truth, mask)
    if fault is not None:
        raise UserError(f"its {fault} (of {truth_files[0]})", file=file)
    values = sorted({0, *labels.values()})
    try:
        right, chosen = (class_indices(values_of, values) for values_of in (fuse_raters(truth.data), mask.data[0]))
    except ValueError as fault:
        raise UserError(str(fault), file=file) from None
    wheres = {"image": np.ones(right.shape, bool), "band": band(right, truth.spacing)}
    value = record_of(file.parent, case).get("doubt")
    value = float(value) if isinstance(value, int | float) and np.isfinite(value) else expected_dice_loss(p, chosen)
    return {region: sample(p, right, where, VOXELS) for region, where in wheres.items()}, value


def _risk(evaluation: Written, case: str) -> float:
    """1 - Dice, mean of classes; a class in neither mask counts as right, unless the evaluation counts it as wrong."""
    scores: Sequence[float] = [evaluation.values[case, name]["dice"] for name in evaluation.classes]
    return 1 - float(np.mean([score if np.isfinite(score) else 1.0 for score in scores]))
