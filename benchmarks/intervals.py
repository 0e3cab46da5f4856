"""How wide 90 % intervals of volumes are that cover alike: four ways to make them, on the validation cases of a model's fold.

    constant    the volume of the mask, a constant share of it more and less (the bar: it knows nothing of the case)
    draws       5th to 95th percentile of the draws' volumes, widened by a constant share of the volume
    levels      volumes of the masks of two other thresholds: each voxel's log odds of the class against the best other one,
                shifted by a constant; so blurred borders make wide intervals (what `calibrate` learns)
    raw         that of the draws as it is

Each case has the constant of the cases of all other patients: by construction all but `raw` cover
alike, and their widths compare. Rows are added to --out; results are numbers only.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.score import numbered, replaced, write
from diffuseg.data.dataset import load_raters, open_dataset, patients
from diffuseg.data.raters import fuse_raters
from diffuseg.data.transforms import class_indices
from diffuseg.evaluation.conformal import cross_coverage, interval_coverage
from diffuseg.evaluation.level_sets import cross_levels, level_volumes
from diffuseg.inference.folds import own_fold, validation_cases
from diffuseg.inference.model import Model, load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.types import Image

ALPHA = 0.1


@dataclass(frozen=True)
class Volumes:
    """One class of one case, in ml: of its mask, ends of the draws' interval, at other thresholds, of the readers' mask."""

    mask: float
    draws: tuple[float, float]
    levels: Float[np.ndarray, " m"]
    truth: float


def main(asked: argparse.Namespace) -> None:
    """Predict the cases, make the intervals, and write the row."""
    model = load(asked.model, "cpu")
    dataset, fold = open_dataset(asked.dataset), own_fold(model)
    names = validation_cases(model, dataset, fold, 0)
    files, of = {case.id: case for case in dataset.cases}, patients(dataset)[0]
    groups = [of[name] for name in names]
    cases = [_case(model, *load_raters(dataset, files[name]), SamplingOptions(asked.draws)) for name in names]
    row: dict[str, Any] = {"name": asked.what or model.meta["method"], "method": model.meta["method"], "model": model.hash}
    row |= {"draws": asked.draws, "dataset": dataset.name, "fold": fold, "cases": len(names), "patients": len(set(groups))}
    voxel = max(size for _, size in cases)
    row["classes"] = {name: widths([case[name] for case, _ in cases], voxel, groups) for name in cases[0][0]}
    row["patient_of_case"] = numbered(groups)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
    results["rows"] = replaced(results["rows"], [row], ("dataset", "name"))
    write(asked.out, results)
    for name, found in row["classes"].items():
        print(row["name"], name, {kind: round(float(np.mean(found["width_ml"][kind])), 4) for kind in found["width_ml"]})


def _case(model: Model, image: Image, masks: Image, options: SamplingOptions) -> tuple[dict[str, Volumes], float]:
    """What a case says of each class, and the volume of its voxels; the truth is that of all raters together."""
    truth = class_indices(replace(masks, data=fuse_raters(masks.data)[None]), model.plan)
    p = model.predict(image, options, calibrate=False, postprocess=False)
    found = {}
    for k, name in enumerate(model.plan.names):
        if k:
            mask, true = (int(inside.sum()) * image.voxel_ml for inside in (p.mask == model.plan.labels[name], truth == k))
            levels = level_volumes(p.probability, k, image.voxel_ml)
            found[name] = Volumes(mask, tuple(p.provenance["volume_ml_90"][name]), levels, true)
    return found, image.voxel_ml


def widths(cases: Sequence[Volumes], voxel: float, groups: Sequence[str]) -> dict[str, Any]:
    """Width of each case's interval and how many hold the truth, by kind of interval."""
    mask, truth = (np.array([getattr(case, name) for case in cases]) for name in ("mask", "truth"))
    low, high = np.array([case.draws for case in cases]).T
    crossed = {
        "constant": cross_coverage(mask, mask, truth, ALPHA, voxel, groups),
        "draws": cross_coverage(low, high, truth, ALPHA, voxel, groups),
        "levels": cross_levels(np.stack([case.levels for case in cases]), truth, ALPHA, groups),
        "raw": interval_coverage(low, high, truth),
    }
    return {
        "truth_ml": float(truth.mean()),
        "inside": {kind: int(found.inside.sum()) for kind, found in crossed.items()},
        "width_ml": {kind: [round(float(w), 6) for w in found.high - found.low] for kind, found in crossed.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--what", default="", help="name of the row")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
