"""A folder of predictions against a folder of masks: scores per case and class, means with intervals, nothing dropped.

Writes cases.csv (one row per case and class) and summary.json; docs/evaluation.md explains each number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np

from diffuseg.atomic_io import check_writable
from diffuseg.data import pictures
from diffuseg.data.dataset import patients
from diffuseg.data.geometry import warn_once
from diffuseg.data.io import ending_of, grid_fault, read_mask
from diffuseg.data.label_values import label_values
from diffuseg.data.layout import Case, Dataset, read_json
from diffuseg.data.outputs import SIDECAR, record_of
from diffuseg.data.raters import MAJORITY, fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import Empty, Grid, Rule, measure
from diffuseg.evaluation.statistics import CONFIDENCE, METHOD, RESAMPLES
from diffuseg.reports.evaluation import Evaluation, Row, summarise
from diffuseg.reports.folders import ignored_label, images_beside, masks_in, refuse_swapped, truths_in
from diffuseg.text import did_you_mean, few, pluralize
from diffuseg.types import Image

RULES = {
    "nan": "A class in neither mask leaves the case out of the mean of this class",
    "one": "A class in neither mask gets the best value (1; 0 mm)",
    "zero": "A class in neither mask gets the worst value (0; the diagonal of the image)",
}
ONE_SIDED = "in one mask only, the worst (Dice, IoU, NSD 0; HD95 the diagonal of the image)"


def evaluate(
    pred_dir: Path | str,
    labels_dir: Path | str,
    out_dir: Path | str | None,
    empty: Empty = "nan",
    nsd_tolerance: float = 1.0,
    images: Path | str | None = None,
) -> Evaluation:
    """Compare `pred_dir/<case><ending>` with `labels_dir/<case><ending>`; writes cases.csv and summary.json to `out_dir`.

    Where dataset.json says that there are raters, the truth is the majority vote of `<case>_rater<k><ending>`. Classes and
    patients come from dataset.json beside the labels folder. Where there is none, classes are those that the records of the
    predictions name, else the values found, and each case is a patient. A case that cannot be read or lies on another grid
    is a fault of that case.

    Args:
        pred_dir: Folder with predicted masks; `labels_dir`: with masks of the same names.
        out_dir: Folder to write to; None: nothing is written.
        empty: The score of a class that is in neither mask.
        nsd_tolerance: Tolerance of NSD in mm.
        images: Folder of the images, for pictures; by default where the data set of the labels keeps them.

    Raises:
        UserError: The rule is unknown, the tolerance is no distance, a folder holds no mask, or no case can be compared.
    """
    folder = Path(out_dir or pred_dir)
    if out_dir is not None:
        check_writable(folder)
    comparison = Comparison.open(pred_dir, labels_dir, empty, nsd_tolerance, images)
    found = summary_of(comparison, *measure_cases(comparison, list(comparison.pairs)), folder)
    return found if out_dir is None else found.write()


@dataclass(frozen=True)
class Comparison:
    """What is to be compared with what, and by which rules.

    predictions, labels, images  the folders
    truths, masks   mask files by case; pairs: those predictions that there is a truth for
    classes, patient_of, over    what dataset.json says of classes and patients, and what intervals are taken over
    ignore          value of voxels that nobody has annotated
    """

    predictions: Path
    labels: Path
    images: Path | None
    rule: Rule
    truths: dict[str, tuple[Path, ...]]
    masks: dict[str, Path]
    pairs: dict[str, Path]
    classes: dict[str, int]
    patient_of: dict[str, str]
    over: str
    ignore: int | None

    @classmethod
    def open(
        cls, predictions: Path | str, labels: Path | str, empty: Empty, tolerance: float, images: Path | str | None
    ) -> "Comparison":
        """Find the files; nothing is measured.

        Args:
            predictions: Folder with predicted masks.
            labels: Folder with masks of the same names.
            empty: The score of a class that is in neither mask.
            tolerance: Of NSD, in mm.
            images: Folder of the images, for pictures.

        Raises:
            UserError: What `evaluate` refuses before it measures.
        """
        predictions, labels = Path(predictions), Path(labels)
        _check_rules(empty, tolerance)
        truths, masks = truths_in(labels), masks_in(predictions)
        refuse_swapped(predictions, labels, truths)
        pairs = {case: path for case, path in masks.items() if case in truths}
        if not pairs:
            what = f"there is no prediction for any of {pluralize(len(truths), 'mask')} in {labels}"
            raise UserError(what, file=predictions, do=f"Expected names such as {_expected(truths)}")
        described = _description(labels, truths, pairs)
        _say_other_names(described[0], pairs)
        where = None if images is None else Path(images)
        return cls(predictions, labels, where, Rule(empty, tolerance), truths, masks, pairs, *described, ignored_label(labels))

    def arguments(self) -> dict[str, Any]:
        """What `open` needs, as plain values: the same from whatever folder it was asked for."""
        folders = {"predictions": self.predictions, "labels": self.labels, "images": self.images}
        named = {name: folder and str(folder.resolve()) for name, folder in folders.items()}
        return named | {"empty": self.rule.empty, "tolerance": float(self.rule.tolerance)}

    @classmethod
    def reopen(cls, arguments: dict[str, Any]) -> "Comparison":
        """The comparison that was asked for, with the files that are there now."""
        return cls.open(**arguments)


def measure_cases(comparison: Comparison, cases: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows of some cases, and what is wrong with those that cannot be compared."""
    rows: list[Row] = []
    faults: list[str] = []
    for case in cases:
        path, truth = comparison.pairs[case], comparison.truths[case]
        about = (comparison.classes, comparison.patient_of[case], comparison.rule, faults, comparison.ignore)
        try:
            rows += _compare(case, path, truth, *about)
        except UserError as fault:
            faults.append(str(fault))
    return rows, faults


def summary_of(comparison: Comparison, rows: list[Row], faults: list[str], folder: Path) -> Evaluation:
    """Statistics of all rows.

    Args:
        comparison: What was compared.
        rows: Of its cases.
        faults: One line for each case that could not be compared.
        folder: Of the evaluation.

    Raises:
        UserError: There is no row.
    """
    pairs, truths, masks = comparison.pairs, comparison.truths, comparison.masks
    if not rows:
        what = f"none of {pluralize(len(pairs), 'case')} could be compared: {faults[0]}"
        raise UserError(what, file=comparison.predictions)
    measured = {row.case: pairs[row.case] for row in rows}
    summary = {
        "cases": len(measured),
        "labelled": len(truths),
        "missing": [case for case in truths if case not in masks],
        "unlabelled": [case for case in masks if case not in truths and not SIDECAR.fullmatch(case)],
        "faults": faults,
        **_rules(comparison.rule.empty, comparison.rule.tolerance, truths, comparison.over),
        "seen": _seen(measured),
        "unheld_intervals": _unheld(measured, comparison.classes, comparison.labels),
        **({"pictures": True} if all(path.name.lower().endswith(pictures.LOSSLESS) for path in measured.values()) else {}),
        **summarise(rows),
        "labels": comparison.classes,
        "folders": _folders(comparison.predictions, comparison.labels, comparison.images),
        "versions": {name: metadata.version(name) for name in ("diffuseg", "monai", "numpy", "scipy")},
    }
    return Evaluation(rows, summary, folder, folder.resolve().name, measured, truths)


def _check_rules(empty: str, nsd_tolerance: float) -> None:
    if empty not in get_args(Empty):
        raise UserError(f"{empty!r} is no empty-mask rule", do=did_you_mean(empty, get_args(Empty)))
    if not (isinstance(nsd_tolerance, int | float) and math.isfinite(nsd_tolerance) and nsd_tolerance >= 0):
        raise UserError(f"the tolerance of NSD is a distance in mm, not {nsd_tolerance}")


def _rules(empty: Empty, tolerance: float, truths: dict[str, tuple[Path, ...]], over: str) -> dict[str, Any]:
    """What was decided before anything was measured, as summary.json has it."""
    return {
        "rule": {"empty": empty, "means": f"{RULES[empty]}; {ONE_SIDED}"},
        "truth": MAJORITY if any(len(paths) > 1 for paths in truths.values()) else "the mask",
        "nsd_tolerance_mm": tolerance,
        "interval": {"confidence": CONFIDENCE, "method": METHOD, "resamples": RESAMPLES, "over": over},
    }


def _folders(predictions: Path, labels: Path, images: Path | str | None) -> dict[str, str]:
    """Where everything was, so that a report finds it again."""
    folders = {"predictions": predictions, "labels": labels, "images": images or images_beside(labels)}
    return {name: str(Path(folder).resolve()) for name, folder in folders.items()}


def _expected(truths: dict[str, tuple[Path, ...]]) -> str:
    case, paths = next(iter(truths.items()))
    return case + ending_of(paths[0])


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
            patient_of, rule = patients(Dataset(folder, folder.name, (), labels, "", cases, extra))
        except UserError as fault:  # a list of patients that leaves out the test cases must not forbid to measure them
            return labels, alone, f"over cases, each taken for a patient of its own ({fault})"
        unit = "cases" if len(set(patient_of.values())) == len(patient_of) else "patients"
        return labels, patient_of, f"over {unit}: {rule}"
    values = {0}
    for path in [*(path for case in pairs for path in truths[case]), *pairs.values()]:
        try:
            values |= set(np.unique(read_mask(path).data).tolist())
        except UserError:
            continue  # it becomes a fault where its case is compared
    labels = _recorded_labels(pairs, values) or {str(value): value for value in sorted(values)}
    if len(labels) < 2:
        what = "no mask, predicted or true, holds another value than 0, and no dataset.json says which classes there are"
        raise UserError(what, file=labels_dir, do=f"Are these the masks? {description} would name the classes")
    return labels, alone, "over cases, each taken for a patient of its own"


def _recorded_labels(pairs: dict[str, Path], values: set[int]) -> dict[str, int] | None:
    """The classes as the records of the predictions name them; None where they do not agree, or not with the masks."""
    named = [record_of(path.parent, case).get("labels") for case, path in pairs.items()]
    first = named[0]
    if not isinstance(first, dict) or not all(type(value) is int for value in first.values()):
        return None
    return first if all(labels == first for labels in named) and values <= {0, *first.values()} else None


def _say_other_names(labels: dict[str, int], pairs: dict[str, Path]) -> None:
    """Warn where dataset.json calls a value otherwise than the records of the predictions do: masks are compared by value."""
    for case, path in pairs.items():
        recorded = record_of(path.parent, case).get("labels")
        names = {value: name for name, value in recorded.items()} if isinstance(recorded, dict) else {}
        odd = [value for name, value in labels.items() if value and names.get(value, name) != name]
        if odd:
            what = few(f"{value} is {names[value]!r} in its records" for value in odd)
            warn_once(path.parent, f"classes have other names than in the labels, and values are compared: {what}")
            return


def _refuse_exchanged(labels: dict[str, int], path: Path, case: str) -> None:
    """Refuse a prediction whose record gives a class of this name another value: two classes would be taken for each other."""
    recorded = record_of(path.parent, case).get("labels")
    for name, value in recorded.items() if isinstance(recorded, dict) else ():
        if labels.get(name, value) != value:
            what = f"{name!r} has the value {value!r} in its record, and {labels[name]} in the labels"
            raise UserError(what, file=path, do="Give a class one value in both")


def _compare(
    case: str,
    path: Path,
    truth_paths: Sequence[Path],
    labels: dict[str, int],
    patient: str,
    rule: Rule,
    faults: list[str],
    ignore: int | None = None,
) -> list[Row]:
    raters, prediction = read_raters(truth_paths), read_mask(path)
    fault = grid_fault(raters, prediction)
    if fault is not None:
        raise UserError(f"its {fault} (of {truth_paths[0]})", file=path, do="Predictions must lie on the grid of the masks")
    _refuse_exchanged(labels, path, case)
    raters, prediction, known = _annotated(raters, prediction, ignore)
    for mask, file in (*zip(raters.data, truth_paths, strict=True), (prediction.data, path)):
        odd = sorted(set(np.unique(mask).tolist()) - set(labels.values()))
        if odd:
            raise UserError(f"label values {few(map(str, odd))} are not in dataset.json", file=file)
    intervals = {}
    try:
        intervals = _intervals(path.with_name(f"{case}.json")) if known else {}  # the volume of a part is no whole one's
    except UserError as fault:
        faults.append(str(fault))
    scores = measure(prediction.data[0], fuse_raters(raters.data), labels, Grid(raters.steps, raters.voxel_ml), rule)
    return [Row(case, name, patient, score, intervals.get(name)) for name, score in scores.items()]


def _annotated(truth: Image, prediction: Image, ignore: int | None) -> tuple[Image, Image, bool]:
    """Both masks with background where nobody has annotated, and whether everything is annotated."""
    ignored = np.zeros(truth.shape, bool) if ignore is None else (truth.data == ignore).any(0)
    if ignored.all():
        raise UserError("nobody has annotated any voxel of it", file=truth.source, do="Leave it out")
    if not ignored.any():
        return truth, prediction, True
    blank = lambda mask: replace(mask, data=np.where(ignored, 0, mask.data))
    return blank(truth), blank(prediction), False


def _intervals(file: Path) -> dict[str, tuple[float, float]]:
    """The predicted 90 % interval of the volume of each class, in ml, from a prediction's provenance; {} without one."""
    content = read_json(file) if file.is_file() else {}
    try:
        if content.get("draws") == 1 and "volume_ml_90_raw" not in content:
            return {}  # a point, which claims nothing; as calibration adjusted it, it does
        return {name: (float(low), float(high)) for name, (low, high) in content.get("volume_ml_90", {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError('"volume_ml_90" must be {"class": [low, high]}', file=file) from None


def _unheld(predictions: dict[str, Path], labels: dict[str, int], labels_dir: Path) -> str:
    """Which predicted intervals of volumes are compared with nothing, and why, in a sentence; "" where there is none."""
    predicted: dict[str, None] = {}
    for case, path in predictions.items():
        try:
            predicted |= dict.fromkeys(_intervals(path.with_name(f"{case}.json")))
        except UserError:
            continue  # a fault of its case already
    unknown = [name for name in predicted if name not in labels]
    if not unknown:
        return ""
    description = labels_dir.resolve().parent / "dataset.json"
    why = "names no such class" if description.is_file() else "is not there to say which label values these are"
    return f"Predicted volume intervals of {few(unknown)} are compared with no true volume: {description} {why}."


def _seen(predictions: dict[str, Path]) -> dict[str, Any]:
    """Cases that the model met in its training or validation, by name, and how many it did not meet or where it is unknown.

    From the records beside the predictions; without one, or of another program, it is unknown.
    """
    sides: dict[str, list[str]] = {"training": [], "validation": [], "neither": [], "unknown": []}
    for case, path in predictions.items():
        side = str(record_of(path.parent, case).get("seen_in"))
        sides[side if side in sides else "unknown"].append(case)
    return sides | {side: len(sides[side]) for side in ("neither", "unknown")}
