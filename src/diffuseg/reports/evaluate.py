"""A folder of predictions against a folder of masks: scores per case and class, means with intervals, nothing dropped.

Writes cases.csv (one row per case and class) and summary.json; docs/evaluation.md explains each number.
"""

import csv
import io
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np

from diffuseg.atomic_io import atomic_write, check_writable, nan_to_none, write_json
from diffuseg.data.dataset import patients
from diffuseg.data.io import LOSSLESS, case_of, ending_of, grid_fault, read_mask
from diffuseg.data.layout import Case, Dataset, ellipsize, label_values, list_files, read_json
from diffuseg.data.outputs import SIDECAR, record_of
from diffuseg.data.raters import MAJORITY, fused, rater_count, rater_files, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS, Empty, Grid, Rule, measure
from diffuseg.evaluation.statistics import CONFIDENCE, METHOD, RESAMPLES
from diffuseg.reports.summary import Evaluation, Row, summarise, table
from diffuseg.text import pluralize

__all__ = ["Evaluation", "Row", "evaluate", "table"]

RULES = {
    "nan": "A class in neither mask leaves the case out of the mean of this class",
    "one": "A class in neither mask gets the best value (1; 0 mm)",
    "zero": "A class in neither mask gets the worst value (0; the diagonal of the image)",
}
ONE_SIDED = "in one mask only, the worst (Dice, IoU, NSD 0; HD95 the diagonal of the image)"


def evaluate(
    pred_dir: Path | str,
    labels_dir: Path | str,
    out_dir: Path | str,
    empty: Empty = "nan",
    nsd_tolerance: float = 1.0,
    images: Path | str | None = None,
) -> Evaluation:
    """Compare `pred_dir/<case><ending>` with `labels_dir/<case><ending>`; writes cases.csv and summary.json to `out_dir`.

    Where dataset.json says that there are raters, the truth is the majority vote of `<case>_rater<k><ending>`. Classes and
    patients come from dataset.json beside the labels folder or, where there is none, classes are the values
    found and each case is a patient. The tolerance of NSD is in mm. `images`, by default where the data set of the labels
    keeps them, is only remembered, for `diffuseg report`. A case that cannot be read or lies on another grid is
    a fault of that case. Refuses an unknown rule, folders without a mask, and that no case at all can be compared.
    """
    pred_dir, labels_dir, out_dir = Path(pred_dir), Path(labels_dir), Path(out_dir)
    check_writable(out_dir)
    if empty not in get_args(Empty):
        raise UserError(f"{empty!r} is no empty-mask rule", do=f"Known: {', '.join(get_args(Empty))}")
    if not (math.isfinite(nsd_tolerance) and nsd_tolerance >= 0):
        raise UserError(f"the tolerance of NSD is a distance in mm, not {nsd_tolerance}")
    truths, found = truths_in(labels_dir), masks_in(pred_dir)
    pairs = {case: path for case, path in found.items() if case in truths}
    if not pairs:
        what = f"there is no prediction for any of {pluralize(len(truths), 'mask')} in {labels_dir}"
        raise UserError(what, file=pred_dir, do=f"Expected names such as {_expected(truths)}")
    labels, of, over = _description(labels_dir, truths, pairs)
    rows: list[Row] = []
    faults: list[str] = []
    for case, path in pairs.items():
        try:
            rows += _compare(case, path, truths[case], labels, of[case], Rule(empty, nsd_tolerance), faults)
        except UserError as fault:
            faults.append(str(fault))
    if not rows:
        raise UserError(f"none of {pluralize(len(pairs), 'case')} could be compared: {faults[0]}", file=pred_dir)
    missing = [case for case in truths if case not in found]
    unlabelled = [case for case in found if case not in truths and not SIDECAR.fullmatch(case)]
    summary = {
        "cases": len({row.case for row in rows}),
        "labelled": len(truths),
        "missing": missing,
        "unlabelled": unlabelled,
        "faults": faults,
        "rule": {"empty": empty, "means": f"{RULES[empty]}; {ONE_SIDED}"},
        "truth": MAJORITY if any(len(paths) > 1 for paths in truths.values()) else "the mask",
        "nsd_tolerance_mm": nsd_tolerance,
        "interval": {"confidence": CONFIDENCE, "method": METHOD, "resamples": RESAMPLES, "over": over},
        "seen": _seen({row.case: pairs[row.case] for row in rows}),
        "unheld_intervals": _unheld({row.case: pairs[row.case] for row in rows}, labels, labels_dir),
        **summarise(rows),
        "labels": labels,
        "folders": _folders(pred_dir, labels_dir, images),
        "versions": {name: metadata.version(name) for name in ("diffuseg", "monai", "numpy", "scipy")},
    }
    kept = {name: value for name, value in labels.items() if value != 0}
    result = Evaluation(kept, rows, summary, missing, unlabelled, faults, pairs, truths)
    atomic_write(out_dir / "cases.csv", _csv(rows))
    write_json(out_dir / "summary.json", nan_to_none(summary))
    return result


def _folders(predictions: Path, labels: Path, images: Path | str | None) -> dict[str, str]:
    """Where everything was, so that a report finds it again."""
    found = {"predictions": predictions, "labels": labels, "images": images or images_beside(labels)}
    return {name: str(Path(folder).resolve()) for name, folder in found.items()}


def truths_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The masks of each case: those of its raters, if there are any and dataset.json beside the folder tells of them."""
    description = folder.resolve().parent / "dataset.json"
    extra = read_json(description) if description.is_file() else {}
    raters = rater_count(extra, description) if isinstance(extra, dict) else 0
    rated = rater_files(list_files(folder), LOSSLESS[0], raters) if raters else {}
    return dict(sorted(rated.items())) or {case: (path,) for case, path in masks_in(folder).items()}


def _expected(truths: dict[str, tuple[Path, ...]]) -> str:
    case, paths = next(iter(truths.items()))
    return case + ending_of(paths[0])


def images_beside(labels_dir: Path) -> Path:
    """Where the data set of a folder of labels keeps its images: beside it, imagesTs of labelsTs."""
    folder = labels_dir.resolve()
    return folder.with_name(folder.name.replace("labels", "images") if "labels" in folder.name else "images")


def masks_in(folder: Path) -> dict[str, Path]:
    """Mask files by case; of several files of one case the one whose ending stands first in LOSSLESS."""
    if not folder.is_dir():
        raise UserError("no such folder", file=folder)
    files = [path for path in list_files(folder) if path.name.lower().endswith(LOSSLESS)]
    if not files:
        raise UserError("there is no mask in this folder", file=folder, do=f"Expected <case> with {' '.join(LOSSLESS)}")
    files.sort(key=lambda path: LOSSLESS.index(ending_of(path)), reverse=True)
    return dict(sorted((case_of(path, ending_of(path)), path) for path in files))


def _description(
    labels_dir: Path, truths: dict[str, tuple[Path, ...]], pairs: dict[str, Path]
) -> tuple[dict[str, int], dict[str, str], str]:
    """Classes, the patient of each case, and what intervals are taken over: from dataset.json if there is one."""
    folder = labels_dir.resolve().parent
    alone = {case: case for case in truths}
    description = folder / "dataset.json"
    if description.is_file():
        extra = read_json(description)
        if not isinstance(extra, dict):
            raise UserError("it must hold an object { ... }", file=description)
        labels = label_values(extra, description)
        cases = tuple(Case(case, (), truths[case][0]) for case in pairs)
        try:
            of, rule = patients(Dataset(folder, folder.name, (), labels, "", cases, extra))
        except UserError as fault:  # a list of patients that leaves out the test cases must not forbid to measure them
            return labels, alone, f"over cases, each taken for a patient of its own ({fault})"
        return labels, of, f"over {'cases' if len(set(of.values())) == len(of) else 'patients'}: {rule}"
    values = {0}
    for path in [*(path for case in pairs for path in truths[case]), *pairs.values()]:
        try:
            values |= set(np.unique(read_mask(path).data).tolist())
        except UserError:
            continue  # it becomes a fault where its case is compared
    return {str(value): value for value in sorted(values)}, alone, "over cases, each taken for a patient of its own"


def _compare(
    case: str, path: Path, truth_paths: Sequence[Path], labels: dict[str, int], patient: str, rule: Rule, faults: list[str]
) -> list[Row]:
    raters, prediction = read_raters(truth_paths), read_mask(path)
    fault = grid_fault(raters, prediction)
    if fault is not None:
        raise UserError(f"its {fault} (of {truth_paths[0]})", file=path, do="Predictions must lie on the grid of the masks")
    for mask, file in (*zip(raters.data, truth_paths, strict=True), (prediction.data, path)):
        odd = sorted(set(np.unique(mask).tolist()) - set(labels.values()))
        if odd:
            raise UserError(f"label values {ellipsize(map(str, odd))} are not in dataset.json", file=file)
    intervals = {}
    try:
        intervals = _intervals(path.with_name(f"{case}.json"))
    except UserError as fault:
        faults.append(str(fault))
    scores = measure(prediction.data[0], fused(raters.data), labels, Grid(raters.spacing, raters.voxel_ml), rule)
    return [Row(case, name, patient, score, intervals.get(name)) for name, score in scores.items()]


def _intervals(file: Path) -> dict[str, tuple[float, float]]:
    """The predicted 90 % interval of the volume of each class, in ml, from a prediction's provenance; {} without one."""
    content = read_json(file) if file.is_file() else {}
    try:
        if content.get("draws") == 1 and "volume_ml_90_raw" not in content:
            return {}  # a point, which claims nothing; widened by what calibration found, it does
        return {name: (float(low), float(high)) for name, (low, high) in content.get("volume_ml_90", {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError('"volume_ml_90" must be {"class": [low, high]}', file=file) from None


def _unheld(predictions: dict[str, Path], labels: dict[str, int], labels_dir: Path) -> str:
    """Which predicted intervals of volumes are held against nothing, and why, in a sentence; "" where there is none."""
    told: dict[str, None] = {}
    for case, path in predictions.items():
        try:
            told |= dict.fromkeys(_intervals(path.with_name(f"{case}.json")))
        except UserError:
            continue  # a fault of its case already
    unknown = [name for name in told if name not in labels]
    if not unknown:
        return ""
    description = labels_dir.resolve().parent / "dataset.json"
    why = "names no such class" if description.is_file() else "is not there to say which label values these are"
    return f"Predicted volume intervals of {ellipsize(unknown)} are held against no true volume: {description} {why}."


def _seen(predictions: dict[str, Path]) -> dict[str, Any]:
    """Cases that the model met in its training or validation, by name, and how many it did not meet or where it is unknown.

    From the records beside the predictions; without one, or of another program, it is unknown.
    """
    found: dict[str, list[str]] = {"training": [], "validation": [], "neither": [], "unknown": []}
    for case, path in predictions.items():
        side = str(record_of(path.parent, case).get("seen_in"))
        found[side if side in found else "unknown"].append(case)
    return found | {side: len(found[side]) for side in ("neither", "unknown")}


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    units = {key: f"{key}_{metric.unit}" if metric.unit else key for key, metric in METRICS.items()}
    volumes = ["truth_ml", "prediction_ml", "interval_low_ml", "interval_high_ml"]
    writer.writerow(["case", "patient", "class", *units.values(), *volumes, "empty"])
    for row in rows:
        score = row.score
        numbers = [*score.values.values(), score.truth_ml, score.prediction_ml, *(row.interval or (math.nan, math.nan))]
        shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        writer.writerow([row.case, row.patient, row.label, *shown, score.empty])
    return text.getvalue()
