"""Pseudo-labels: masks that a model makes for a data set, those of them that can be trusted, as a data set to train on.

No mask is read. Where image-level labels are known, an image of no class gets the empty mask, which is certain; an image of a
class is kept if the model's own draws agree on where it is; of a model that learnt from masks and makes one draw, if its
probabilities expect enough overlap. So a second round is the same command with the model that was trained on the first.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import check_writable, write_csv, write_json
from diffuseg.data import io
from diffuseg.data.dataset import Case, Dataset, open_dataset, patients, splits
from diffuseg.data.labels import TABLE, read_labels
from diffuseg.errors import UserError
from diffuseg.inference.folds import refuse_other_classes
from diffuseg.inference.model import Model
from diffuseg.inference.prediction import ending_for

LEAST = 0.7  # agreement of the draws below which a mask is not kept


@dataclass(frozen=True)
class Pseudo:
    """What became of a case: the class it shows, whether that was known, its confidence in [0, 1], and why it is kept."""

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
    least: float = LEAST,
    draws: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = print,
    on_case: Callable[[str, int, int], None] | None = None,
) -> list[Pseudo]:
    """Write a data set in the nnU-Net layout with the images of another and a model's masks; returns what became of each case.

    Its folds are those of the data set, as far as cases are kept; pseudo_labels.csv lists all cases. Labels come from the
    table, image_labels.csv or class folders; without any the model decides. confidence is the agreement of the draws (the
    Dice of pairs of them) for the class that is shown, the expected Dice of a single one, 1 for an image that is known to
    show none. The folder appears when all is done. Refuses single draws of models without masks, which know no probability,
    an out folder that is not empty, and when no case of some class is kept.
    """
    if model.method.supervision == "image_label" and (not model.method.generative or draws == 1):
        raise UserError("one draw cannot agree with itself", do="Pseudo-labels need a model that draws, and two or more draws")
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise UserError("is not empty", file=out, do="Choose another --out")
    dataset = open_dataset(folder, masks=False)
    known, names = _known(dataset, labels), list(dataset.labels)
    refuse_other_classes(model, dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        aside = Path(scratch) / "made"
        found = []
        for number, case in enumerate(dataset.cases):
            if on_case is not None:
                on_case(case.id, number, len(dataset.cases))
            told = None if known is None else names[known[case.id]]
            found.append(_one(model, dataset, case, told, aside, least, draws, seed))
        kept = {pseudo.case for pseudo in found if pseudo.kept}
        lacking = [name for name in names[1:] if not any(p.kept and p.label == name for p in found)]
        if lacking:
            raise UserError(f"no mask of {', '.join(lacking)} is to be trusted", file=out, do="Ask for less --confidence")
        _describe(dataset, kept, aside, note)
        write_csv(aside / "pseudo_labels.csv", [asdict(pseudo) for pseudo in found])
        if out.exists():
            out.rmdir()  # empty, as was made sure of
        aside.rename(out)
    return found


def trusted(none: bool, known: bool, empty: bool, sure: float | None, least: float) -> tuple[float, bool, str]:
    """Confidence, whether a mask is kept, and why. none: the image shows no class; known: that is not the model's guess."""
    if none:
        return (1.0, True, "known to show no class") if known else (0.0, False, "the model alone says that it shows no class")
    confidence = 0.0 if sure is None else sure
    if empty:
        return confidence, False, "the mask is empty"
    if confidence < least:
        return confidence, False, f"confidence below {least:g}"
    return confidence, True, f"confidence of {least:g} or more"


def _one(
    model: Model, dataset: Dataset, case: Case, label: str | None, out: Path, least: float, draws: int | None, seed: int
) -> Pseudo:
    told = label if model.method.supervision == "image_label" else None
    prediction = model.predict(case.images, draws, seed, label=told, calibrate=False)
    decided = prediction.provenance.get("image_label", {}).get("label")
    shown = label or decided or _largest(prediction.mask, dataset)
    value = dataset.labels[shown]
    mask = prediction.mask if label is None else np.where(prediction.mask == value, prediction.mask, 0)  # no other is shown
    sure = prediction.provenance["agreement"].get(shown)
    if prediction.provenance["draws"] == 1:
        sure = 1 - prediction.provenance["doubt"]
    confidence, kept, reason = trusted(value == 0, label is not None, not (mask == value).any(), sure, least)
    if kept:
        ending = ending_for(case.images[0])
        (out / "imagesTr").mkdir(parents=True, exist_ok=True)
        for image in case.images:
            shutil.copyfile(image, out / "imagesTr" / image.name)
        io.write(out / "labelsTr" / (case.id + ending), mask, prediction.image)
    return Pseudo(case.id, shown, label is not None, round(confidence, 4), kept, reason)


def _largest(mask: np.ndarray, dataset: Dataset) -> str:
    """The foreground class with most voxels; the background where no class has one."""
    counts = {name: int((mask == value).sum()) if value else 0.5 for name, value in dataset.labels.items()}
    return max(counts, key=counts.__getitem__)


def _known(dataset: Dataset, table: Path | None) -> dict[str, int] | None:
    """The labels of the data set; None where it has none."""
    folders = {case.images[0].parent.name for case in dataset.cases} <= set(dataset.labels)
    if table is None and not (dataset.folder / TABLE).is_file() and not folders:
        return None
    return read_labels(dataset, table)


def _describe(dataset: Dataset, kept: set[str], out: Path, note: Callable[[str], None]) -> None:
    """dataset.json, patients and folds of the kept cases; folds are dropped where one would be without cases."""
    of, _ = patients(dataset)
    left_out = {"raters", "training", "test", "patients", "patient_pattern"}
    description: dict[str, Any] = {key: value for key, value in dataset.extra.items() if key not in left_out}
    description |= {
        "name": f"{dataset.name}_pseudo",
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": dataset.labels,
        "numTraining": len(kept),
        "file_ending": dataset.file_ending,
        "patients": {case: patient for case, patient in of.items() if case in kept},
    }
    write_json(out / "dataset.json", description)
    folds = [{side: [case for case in fold[side] if case in kept] for side in ("train", "val")} for fold in splits(dataset)]
    lacking = [number for number, fold in enumerate(folds) if not (fold["train"] and fold["val"])]
    if lacking:
        note(f"Warning: fold {lacking[0]} has no case left on one side; training will deal new folds, by patient")
    else:
        write_json(out / "splits_final.json", folds)
