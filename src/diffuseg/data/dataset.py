"""A data set: its cases read and checked, its patients, its folds. The folder layouts are in layout.py."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffuseg.data.geometry import warn_once
from diffuseg.data.io import ENDINGS, grid_fault, read_image, read_mask
from diffuseg.data.layout import Case, Dataset, find_images, list_files, open_dataset, read_json, read_table
from diffuseg.data.raters import fuse_raters
from diffuseg.errors import UserError
from diffuseg.text import few, pluralize
from diffuseg.types import Image

__all__ = [
    "Case",
    "Dataset",
    "check",
    "check_patient_leakage",
    "find_images",
    "load_case",
    "load_image",
    "load_raters",
    "open_dataset",
    "patients",
    "refuse_other_channels",
    "splits",
]

T = TypeVar("T")


def load_image(dataset: Dataset, case: Case) -> Image:
    """Read a case without its mask: float32 [c, *s].

    Args:
        dataset: The data set.
        case: One of its cases.

    Raises:
        UserError: What `read_image` refuses, and another number of channels than dataset.json names.
    """
    image = read_image(case.images)
    _check_channels(dataset, case, image)
    return image


def load_case(dataset: Dataset, case: Case) -> tuple[Image, Image]:
    """Read a case: image float32 [c, *s] and mask int [1, *s] on one grid, label values as in dataset.json.

    The mask of several raters is their majority vote (`raters.fuse_raters`).

    Args:
        dataset: The data set.
        case: One of its cases.

    Raises:
        UserError: What `load_raters` refuses.
    """
    image, masks = load_raters(dataset, case)
    return image, replace(masks, data=fuse_raters(masks.data)[None])


def load_raters(dataset: Dataset, case: Case) -> tuple[Image, Image]:
    """Read a case: image float32 [c, *s] and the masks of its raters int [m, *s], m = 1 where there is a single mask.

    Args:
        dataset: The data set.
        case: One of its cases.

    Raises:
        UserError: What `read_image` and `read_mask` refuse, another number of channels than dataset.json names, grids that
            differ, and label values that dataset.json does not name.
    """
    image, masks, faults = _examine(dataset, case)
    if faults:
        raise faults[0]
    assert image is not None
    return image, replace(masks[0], data=np.concatenate([mask.data for mask in masks]))


def check(dataset: Dataset) -> list[str]:
    """Read every case and say all that is wrong with the data set, one line each; an empty list if nothing is."""
    faults = [fault for case in dataset.cases for fault in _examine(dataset, case)[2]]
    description = dataset.folder / "dataset.json"
    expected = dataset.extra.get("numTraining")
    if expected is not None and str(expected) != str(len(dataset.cases)):
        what = f"numTraining is {expected}, but the number of cases is {len(dataset.cases)}"
        faults.append(UserError(what, file=description))
    known = {mask for case in dataset.cases for mask in case.masks}
    for path in list_files(dataset.folder / "labelsTr"):
        if path not in known and path.name.lower().endswith(ENDINGS):
            do = "Masks of this set are named <case>_rater<k>" if "raters" in dataset.extra else None
            faults.append(UserError("there is no image for this mask", file=path, do=do))
    _attempt(lambda: check_patient_leakage(dataset), faults)
    return [str(fault) for fault in faults]


def patients(dataset: Dataset) -> tuple[dict[str, str], str]:
    """The patient of each case, and the rule that decided, as a sentence to print.

    The first that is there decides: "patients" in dataset.json ({case: patient}); patients.csv with the columns case and
    patient; "patient_pattern" in dataset.json, a regular expression whose first group (or whole match) in the case's name
    is the patient; else each case is a patient of its own.

    Args:
        dataset: The data set.

    Raises:
        UserError: A rule that leaves a case without a patient, or a case that has two.
    """
    names = [case.id for case in dataset.cases]
    description, table = dataset.folder / "dataset.json", dataset.folder / "patients.csv"
    listed, pattern = dataset.extra.get("patients"), dataset.extra.get("patient_pattern")
    if listed is not None:
        if not isinstance(listed, dict):
            raise UserError('"patients" must be {"case": "patient", ...}', file=description)
        file, rule = description, "patients as listed in dataset.json"
        patient_of = {str(case): str(patient).strip() for case, patient in listed.items()}
    elif table.is_file():
        file, rule = table, "patients as listed in patients.csv"
        patient_of = _read_patients(table)
    elif pattern is not None:
        file, rule = description, f"patient = the part of a case's name that matches {pattern}"
        try:
            matches = {name: re.search(pattern, name) for name in names}
        except (re.error, TypeError) as error:
            raise UserError(f"patient_pattern {pattern!r} is no regular expression ({error})", file=file) from None
        patient_of = {name: match[1] if match.re.groups else match[0] for name, match in matches.items() if match}
    else:
        return {name: name for name in names}, "each case is taken for a patient of its own"
    unknown = sorted(set(patient_of) - set(names))
    if unknown:
        warn_once(file, f"patients of cases that are not there: {few(unknown)}")
    lacking = [name for name in names if not patient_of.get(name)]
    if lacking:
        raise UserError(f"no patient for {few(lacking)}", file=file)
    return {name: patient_of[name] for name in names}, rule


def splits(dataset: Dataset, folds: int = 5, seed: int = 0) -> list[dict[str, list[str]]]:
    """Folds as [{"train": [case ids], "val": [case ids]}]: those of splits_final.json if it is there, else by patient.

    Without a file, patients are shuffled by the seed and dealt to the folds, those with most cases first, each to the
    smallest fold; every case is in "val" exactly once and no patient is on both sides. Fewer patients than folds give one
    fold per patient.

    Args:
        dataset: What `open_dataset` returns.
        folds: How many, where no file says.
        seed: Of the shuffling.

    Raises:
        UserError: A single patient, and a file that names unknown cases or one case on both sides.
    """
    file = dataset.folder / "splits_final.json"
    if file.is_file():
        return _read_splits(dataset)
    patient_of, _ = patients(dataset)
    counts = Counter(patient_of.values())
    folds = min(folds, len(counts))
    if folds < 2:
        raise UserError("validation needs cases of at least 2 patients", file=dataset.folder, do="Add cases")
    shuffled = np.random.default_rng(seed).permutation(sorted(counts)).tolist()
    sizes, fold_of = [0] * folds, {}
    for patient in sorted(shuffled, key=lambda name: -counts[name]):
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += counts[patient]
    return [
        {
            "train": [case.id for case in dataset.cases if fold_of[patient_of[case.id]] != fold],
            "val": [case.id for case in dataset.cases if fold_of[patient_of[case.id]] == fold],
        }
        for fold in range(folds)
    ]


def refuse_other_channels(dataset: Dataset, known: tuple[str, ...], whose: str) -> None:
    """Refuse channels that cannot be those of a model or plan, by number or order; warn of other names.

    Args:
        dataset: Whose channels are looked at.
        known: Those of the model or plan.
        whose: What has these, for the message.

    Raises:
        UserError: Another number, or the same names in another order.
    """
    if dataset.channels != known:
        what = f"its channels are {', '.join(dataset.channels)}, those of {whose} {', '.join(known)}"
        if len(dataset.channels) != len(known) or sorted(dataset.channels) == sorted(known):
            raise UserError(what, file=dataset.folder, do="Give images with these channels, in this order")
        warn_once(dataset.folder, f"{what}: are these the same, in the same order?")


def evenly_spaced(items: list[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread, the first and the last among them; with `most` 0 all of them."""
    if not 0 < most < len(items):
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, most)]


def _examine(dataset: Dataset, case: Case) -> tuple[Image | None, list[Image], list[UserError]]:
    """The image, the masks that can be read, and all that is wrong with them."""
    faults: list[UserError] = []
    image = _attempt(lambda: read_image(case.images), faults)
    if not case.masks:
        faults.append(UserError(f"case {case.id} has no mask", file=dataset.folder))
    read = [_attempt(lambda path=path: read_mask(path), faults) for path in case.masks]
    masks = [mask for mask in read if mask is not None]
    if image is not None:
        _attempt(lambda: _check_channels(dataset, case, image), faults)
    for mask in masks:
        fault = None if image is None else grid_fault(image, mask)
        if fault is not None:
            what = f"its {fault} (of {case.images[0].name})"
            faults.append(UserError(what, file=mask.source, do="Image and mask must lie on one grid"))
        faults += _odd_labels(dataset, mask)
    return image, masks, faults


def _odd_labels(dataset: Dataset, mask: Image) -> list[UserError]:
    values, counts = np.unique(mask.data, return_counts=True)
    allowed = ", ".join(f"{value} {name}" for name, value in dataset.labels.items())
    odd = [
        (value, n)
        for value, n in zip(values.tolist(), counts.tolist(), strict=True)
        if value not in dataset.labels.values() and value != dataset.ignore
    ]
    return [
        UserError(
            f"label value {value} (in {pluralize(n, 'voxel')}) is not in dataset.json",
            file=mask.source,
            do=f"Allowed: {allowed}{_other_spelling(dataset, set(values.tolist()), value) if len(odd) == 1 else ''}",
        )
        for value, n in odd
    ]


def _other_spelling(dataset: Dataset, values: set[int], odd: int) -> str:
    """What to write into dataset.json where a mask has one odd value, and one class of dataset.json is not in it."""
    absent = [name for name, value in dataset.labels.items() if value and value not in values]
    if len(absent) != 1 or odd < 0:
        return ""
    return f'. If {odd} is {absent[0]} in all masks, write "{absent[0]}": {odd} into "labels"'


def _check_channels(dataset: Dataset, case: Case, image: Image) -> None:
    if len(image.data) != len(dataset.channels):
        names = ", ".join(dataset.channels)
        what = f"{pluralize(len(image.data), 'channel')}, but dataset.json names {len(dataset.channels)} ({names})"
        raise UserError(what, file=case.images[0], do="Correct one of them")


def _attempt(read: Callable[[], T], faults: list[UserError]) -> T | None:
    try:
        return read()
    except UserError as fault:
        faults.append(fault)
        return None


def _read_patients(table: Path) -> dict[str, str]:
    rows, columns = read_table(table)
    if not {"case", "patient"} <= columns:
        raise UserError("it needs the columns case and patient", file=table)
    patient_of: dict[str, str] = {}
    for row in rows:  # a space before a name would make another patient of it, and bring one patient to both sides
        case, patient = (row["case"] or "").strip(), (row["patient"] or "").strip()
        if patient_of.setdefault(case, patient) != patient:
            raise UserError(f"case {case} has two patients", file=table)
    return patient_of


def _read_splits(dataset: Dataset) -> list[dict[str, list[str]]]:
    file = dataset.folder / "splits_final.json"
    content, known = read_json(file), {case.id for case in dataset.cases}
    if not isinstance(content, list) or not content:
        raise UserError('it must list folds as [{"train": [...], "val": [...]}, ...]', file=file)
    for number, fold in enumerate(content):
        train, val = (_side(fold, side, f"{file}: fold {number}") for side in ("train", "val"))
        unknown = sorted({*train, *val} - known)
        if unknown:
            raise UserError(f"fold {number} names unknown cases: {few(unknown)}", file=file)
        both = sorted({*train} & {*val})
        if both:
            raise UserError(f"fold {number} has cases in train and in val: {few(both)}", file=file)
    used = [{*fold["train"], *fold["val"]} for fold in content]
    left = known.difference(*used)
    if left:
        warn_once(file, f"{pluralize(len(left), 'case is', 'cases are')} in no fold, and not used: {few(sorted(left))}")
    for number, cases in enumerate(used):
        lacking = sorted(known - cases - left)
        if lacking:
            what = f"fold {number} neither learns from nor validates on {pluralize(len(lacking), 'case')} of other folds"
            warn_once(file, f"{what}: {few(lacking)}")
    return [{"train": fold["train"], "val": fold["val"]} for fold in content]


def _side(fold: object, side: str, where: str) -> list[str]:
    cases = fold.get(side) if isinstance(fold, dict) else None
    if not isinstance(cases, list) or not cases or not all(isinstance(case, str) for case in cases):
        raise UserError(f'{where} needs a list of cases "{side}" that is not empty')
    if len(set(cases)) < len(cases):
        raise UserError(f'{where} names a case twice in "{side}"')
    return cases


def check_patient_leakage(dataset: Dataset) -> None:
    """Check that no patient has cases in train and in val of one fold.

    Raises:
        UserError: One has, and what `splits` and `patients` refuse.
    """
    patient_of, _ = patients(dataset)
    for number, fold in enumerate(splits(dataset)):
        both = sorted({patient_of[case] for case in fold["train"]} & {patient_of[case] for case in fold["val"]})
        if both:
            raise UserError(
                f"fold {number} has patients in train and in val: {few(both)}", file=dataset.folder / "splits_final.json"
            )
