"""Pseudo-labels: masks that a model makes for a data set, those of them that can be trusted, as a data set to train on.

No mask is read. Where image-level labels are known, an image of no class gets the empty mask, which is certain; an image of a
class is kept if the model's own draws agree on where it is; of a model that learnt from masks and makes one draw, if its
probabilities expect enough overlap. So a second round is the same command with the model that was trained on the first.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import check_writable, write_csv, write_json
from diffuseg.data import io
from diffuseg.data.dataset import Case, Dataset, open_dataset, patients, splits
from diffuseg.data.labels import TABLE, read_labels
from diffuseg.errors import UserError
from diffuseg.inference.folds import refuse_other_kind
from diffuseg.inference.model import Model
from diffuseg.inference.prediction import ending_for
from diffuseg.inference.sampling import SamplingOptions

MIN_CONFIDENCE = 0.7  # agreement of the draws below which a mask is not kept


@dataclass(frozen=True)
class PseudoLabel:
    """What became of a case, a row of pseudo_labels.csv.

    Attributes:
        case: Its name.
        label: The class that it shows.
        known: Whether that was known, and not the model's guess.
        confidence: In [0, 1].
        kept: Whether its mask is in the data set.
        reason: Why, or why not.
    """

    case: str
    label: str
    known: bool
    confidence: float
    kept: bool
    reason: str


def pseudo_label(
    model: Model,
    folder: Path,
    out: Path,
    labels: Path | None = None,
    min_confidence: float = MIN_CONFIDENCE,
    options: SamplingOptions | None = None,
    note: Callable[[str], None] = print,
    on_case: Callable[[str, int, int], None] | None = None,
) -> list[PseudoLabel]:
    """Write a data set in the nnU-Net layout with the images of another and a model's masks.

    Its folds are those of the data set, as far as cases are kept; pseudo_labels.csv lists all cases. The folder appears when
    all is done.

    Args:
        model: What makes the masks.
        folder: The data set.
        out: Folder of the new one.
        labels: Table of image-level labels; None: image_labels.csv or class folders, and without any the model decides.
        min_confidence: Masks of less are not kept. Confidence is the agreement of the draws (the Dice of pairs of them) for
            the class that is shown, the expected Dice of a single one, 1 for an image that is known to show none.
        options: How to draw.
        note: Called with a warning.
        on_case: Called with (case, number, cases) before each case.

    Returns:
        What became of each case.

    Raises:
        UserError: Single draws of a model without masks, which knows no probability, an out folder that is not empty, or no
            case of some class that is kept.
    """
    options = options or SamplingOptions()
    if model.method.supervision == "image_label" and (not model.method.generative or options.draws == 1):
        raise UserError("one draw cannot agree with itself", do="Pseudo-labels need a model that draws, and two or more draws")
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise UserError("is not empty", file=out, do="Choose another --out")
    dataset = open_dataset(folder, masks=False)
    label_of = _label_names(dataset, labels)
    refuse_other_kind(model, dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        aside, rows = Path(scratch) / "made", []
        for number, case in enumerate(dataset.cases):
            if on_case is not None:
                on_case(case.id, number, len(dataset.cases))
            rows.append(_label_case(model, dataset, case, label_of.get(case.id), aside, min_confidence, options))
        lacking = set(list(dataset.labels)[1:]) - {row.label for row in rows if row.kept}
        if lacking:
            names = ", ".join(name for name in dataset.labels if name in lacking)
            raise UserError(f"no mask of {names} is to be trusted", file=out, do="Ask for less --confidence")
        _describe(dataset, {row.case for row in rows if row.kept}, aside, note)
        write_csv(aside / "pseudo_labels.csv", [asdict(row) for row in rows])
        if out.exists():
            out.rmdir()  # empty, as was made sure of
        aside.rename(out)
    return rows


def decide(
    background: bool, known: bool, empty: bool, confidence: float | None, min_confidence: float
) -> tuple[float, bool, str]:
    """Whether a mask is kept.

    Args:
        background: The image shows no class.
        known: What it shows is known, and not the model's guess.
        empty: The mask is.
        confidence: Of the mask; None: nothing is known of it, which counts as 0.
        min_confidence: Of a mask that is kept.

    Returns:
        Confidence, whether it is kept, and why.
    """
    if background:
        return (1.0, True, "known to show no class") if known else (0.0, False, "the model alone says that it shows no class")
    confidence = 0.0 if confidence is None else confidence
    if empty:
        return confidence, False, "the mask is empty"
    if confidence < min_confidence:
        return confidence, False, f"confidence below {min_confidence:g}"
    return confidence, True, f"confidence of {min_confidence:g} or more"


def _label_case(
    model: Model, dataset: Dataset, case: Case, label: str | None, out: Path, min_confidence: float, options: SamplingOptions
) -> PseudoLabel:
    given = label if model.method.supervision == "image_label" else None
    prediction = model.predict(case.images, replace(options, label=given, anyway=True), calibrate=False)
    record = prediction.provenance
    shown = label or record.get("image_label", {}).get("label") or _largest(prediction.mask, dataset)
    value = dataset.labels[shown]
    mask = prediction.mask if label is None else np.where(prediction.mask == value, prediction.mask, 0)  # no other is shown
    confidence = 1 - record["uncertainty_score"] if record["draws"] == 1 else record["agreement"].get(shown)
    empty = not (mask == value).any()
    confidence, kept, reason = decide(value == 0, label is not None, empty, confidence, min_confidence)
    if record.get("anyway") and kept and value:
        kept, reason = False, "the image is far outside of the training"
    if kept:
        ending = ending_for(case.images[0])
        (out / "imagesTr").mkdir(parents=True, exist_ok=True)
        for image in case.images:
            shutil.copyfile(image, out / "imagesTr" / image.name)
        io.write(out / "labelsTr" / (case.id + ending), mask, prediction.image)
    return PseudoLabel(case.id, shown, label is not None, round(confidence, 4), kept, reason)


def _largest(mask: np.ndarray, dataset: Dataset) -> str:
    """The foreground class with most voxels; the background where no class has one."""
    counts = {name: int((mask == value).sum()) if value else 0.5 for name, value in dataset.labels.items()}
    return max(counts, key=counts.__getitem__)


def _label_names(dataset: Dataset, table: Path | None) -> dict[str, str]:
    """The class of each case by name; {} where the data set has no labels."""
    folders = {case.images[0].parent.name for case in dataset.cases} <= set(dataset.labels)
    if table is None and not (dataset.folder / TABLE).is_file() and not folders:
        return {}
    names = list(dataset.labels)
    return {case: names[label] for case, label in read_labels(dataset, table).items()}


def _describe(dataset: Dataset, kept: set[str], out: Path, note: Callable[[str], None]) -> None:
    """dataset.json, patients and folds of the kept cases; folds are dropped where one would be without cases."""
    patient_of, _ = patients(dataset)
    left_out = {"raters", "training", "test", "patients", "patient_pattern"}
    description: dict[str, Any] = {key: value for key, value in dataset.extra.items() if key not in left_out}
    description |= {
        "name": f"{dataset.name}_pseudo",
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": dataset.labels,
        "numTraining": len(kept),
        "file_ending": dataset.file_ending,
        "patients": {case: patient for case, patient in patient_of.items() if case in kept},
    }
    write_json(out / "dataset.json", description)
    folds = [{side: [case for case in fold[side] if case in kept] for side in ("train", "val")} for fold in splits(dataset)]
    lacking = [number for number, fold in enumerate(folds) if not (fold["train"] and fold["val"])]
    if lacking:
        note(f"Warning: fold {lacking[0]} has no case left on one side; training will deal new folds, by patient")
    else:
        write_json(out / "splits_final.json", folds)
