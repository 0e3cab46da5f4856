"""The cases on which a trained model may be evaluated or calibrated: those of a validation fold, none of its training."""

from pathlib import Path
from typing import NamedTuple

from diffuseg.checkpoint import seen_in
from diffuseg.data.dataset import Dataset, evenly_spaced, open_dataset, patients, refuse_other_channels, splits
from diffuseg.data.geometry import warn_once
from diffuseg.errors import UserError
from diffuseg.inference.model import Model
from diffuseg.text import few


def own_fold(model: Model) -> int:
    """The fold that the model was validated on; 0 where its header does not say."""
    return int(model.meta.get("fold", 0))


def cases_of(dataset: Dataset, fold: int) -> dict[str, list[str]]:
    """Names of the cases of a fold, {"train": [...], "val": [...]}.

    Raises:
        UserError: There is no such fold.
    """
    folds = splits(dataset)
    if not 0 <= fold < len(folds):
        raise UserError(f"there is no fold {fold}", file=dataset.folder, do=f"Folds are 0 to {len(folds) - 1}")
    return folds[fold]


def validation_cases(model: Model, dataset: Dataset, fold: int | None = None, limit: int = 0) -> list[str]:
    """Names of the validation cases of a fold.

    Args:
        model: A model trained on this data set.
        dataset: The data set.
        fold: Which one; None: the model's own.
        limit: So many of its cases, evenly spread; 0: all.

    Raises:
        UserError: Classes or channels are not the model's, there is no such fold, masks are not complete ("ignore"), or the
            model was trained on one of the cases: on a file with the same bytes. Where it was on a copy of one of its own
            validation cases, that case is left out with a warning.
    """
    refuse_other_kind(model, dataset)
    if dataset.ignore is not None:
        what = 'its label "ignore" says that masks are not complete: this measure needs complete ones'
        raise UserError(what, file=dataset.folder / "dataset.json", do="`diffuseg evaluate` measures what is annotated")
    fold = own_fold(model) if fold is None else fold
    files = {case.id: case.images[0] for case in dataset.cases}
    left, copies = cases_of(dataset, fold)["val"], []
    while True:  # once, unless there are copies
        cases = evenly_spaced(left, limit)
        met = [case for case in cases if seen_in(model.meta, files[case]) == "training"]
        for case in met:
            if case not in model.meta.get("validation_cases", {}):
                own = model.meta.get("fold")
                raise UserError(f"case {case} of fold {fold} is one the model was trained on", do=f"Its own fold is {own}")
        if not met:
            break
        left, copies = [case for case in left if case not in met], [*copies, *met]
    if copies:
        warn_once(dataset.folder, f"left out, as the model was trained on the same images under other names: {few(copies)}")
    return cases


class ValidationSet(NamedTuple):
    """A data set, the fold, the names of its cases that are measured, and the patient of each."""

    dataset: Dataset
    fold: int
    names: list[str]
    groups: list[str]


def validation_set(model: Model, folder: Path, fold: int | None = None, limit: int = 0) -> ValidationSet:
    """A data set with the names that `validation_cases` gives, and the patients of these cases.

    Args:
        model: A model trained on this data set.
        folder: Of the data set.
        fold: Which one; None: the model's own.
        limit: So many of its cases, evenly spread; 0: all.

    Raises:
        UserError: What `open_dataset` and `validation_cases` refuse.
    """
    dataset = open_dataset(folder)
    fold = own_fold(model) if fold is None else fold
    names = validation_cases(model, dataset, fold, limit)
    patient_of = patients(dataset)[0]
    return ValidationSet(dataset, fold, names, [patient_of[name] for name in names])


def refuse_other_kind(model: Model, dataset: Dataset) -> None:
    """Check that the labels of a data set, names and values, and its channels are those that the model learnt.

    Raises:
        UserError: They are not.
    """
    if model.plan.labels != dataset.labels:
        text = lambda labels: ", ".join(f"{name} = {value}" for name, value in labels.items())
        what = f"its classes are {text(dataset.labels)}, those of the model {text(model.plan.labels)}"
        raise UserError(what, file=dataset.folder, do="Give the data set of the training, or one with the same labels")
    refuse_other_channels(dataset, model.plan.channels, "the model")
