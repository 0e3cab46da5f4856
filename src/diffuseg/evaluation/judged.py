"""Predictions that hold probabilities, judged once more: are these frequencies, and is doubt where the errors are?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffuseg.data.io import ending_of, read_mask
from diffuseg.data.raters import fused, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration import MEASURES, Reliability, band, class_indices, measures, reliability, sample
from diffuseg.evaluation.report import fitting
from diffuseg.evaluation.selective import doubt, rejection
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.evaluation.written import Written
from diffuseg.inference.results import beside, probability_names, record_of
from diffuseg.types import Image

VOXELS = 50_000  # of a case and region
FRACTION = 0.2


@dataclass(frozen=True)
class Judged:
    """An evaluation's probabilities. Cases without a file of probabilities are not in it.

    cases    those that are
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
) -> Judged | None:
    """Read the probabilities beside the masks of an evaluation's cases; None where there are none.

    masks and truths by case. A case whose files are gone, or no longer fit together, is passed over.
    """
    labels: dict[str, int] = evaluation.summary.get("labels", {})
    found: dict[str, tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]] = {}
    for case in evaluation.cases if labels else ():
        if case in masks and case in truths:
            one = _case(case, masks[case], truths[case], labels)
            if one is not None:
                found[case] = one
        on_case()
    if not found:
        return None
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
    """Probabilities [k, *s] as predict wrote them beside the mask `file`, background first; None without them."""
    ending = ending_of(file)
    files = [file.with_name(beside(case, name, ending)) for name in probability_names(labels, ending)]
    parts = [fitting(path, mask) for path in files]
    if any(part is None for part in parts):
        return None
    foreground = np.concatenate([part.data for part in parts if part is not None]).astype(np.float32)
    foreground = foreground / 65535 if ending == ".png" else foreground
    if len(foreground) != len(labels) - 1:
        return None
    whole = np.concatenate([1 - foreground.sum(0, keepdims=True), foreground]).clip(0, 1)
    return whole / whole.sum(0)


def _case(
    case: str, file: Path, truth_files: Sequence[Path], labels: dict[str, int]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float] | None:
    """Probabilities and classes of a case's voxels by region, and its doubt."""
    try:
        mask, truth = read_mask(file), read_raters(truth_files)
        values = sorted({0, *labels.values()})
        right, chosen = (class_indices(values_of, values) for values_of in (fused(truth.data), mask.data[0]))
    except (UserError, ValueError):
        return None
    p = probability_of(case, mask, file, labels) if right.shape == chosen.shape else None
    if p is None:
        return None
    wheres = {"image": np.ones(right.shape, bool), "band": band(right, truth.spacing)}
    value = record_of(file.parent, case).get("doubt")
    value = float(value) if isinstance(value, int | float) else doubt(p, chosen)
    return {region: sample(p, right, where, VOXELS) for region, where in wheres.items()}, value


def _risk(evaluation: Written, case: str) -> float:
    """1 - Dice, mean of classes; a class in neither mask counts as right."""
    scores: Sequence[float] = [evaluation.values[case, name]["dice"] for name in evaluation.classes]
    return 1 - float(np.mean([score if np.isfinite(score) else 1.0 for score in scores]))
