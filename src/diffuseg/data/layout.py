"""Data set folders as they are: nnU-Net v2 raw and Medical Segmentation Decathlon (MSD); see docs/data.md.

Only names are looked at here, not a voxel. A fault in a folder is one UserError that names the file.
"""

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.config import parse_json
from diffuseg.data.geometry import warn_once
from diffuseg.data.inventory import name_unread, name_unused, no_dataset, refuse_dangling, refuse_twins
from diffuseg.data.io import ENDINGS, LOSSLESS, case_of, ending_of
from diffuseg.data.label_values import ignore_value, label_values
from diffuseg.data.raters import rater_count, rater_files
from diffuseg.errors import UserError
from diffuseg.text import few, pluralize


@dataclass(frozen=True)
class Case:
    """One patient's examination: its image files (one per channel, or one for all) and its mask.

    raters  the masks of several people, where the set has them; `mask` is then the first of these
    """

    id: str
    images: tuple[Path, ...]
    mask: Path | None
    raters: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All its mask files: those of its raters, or the only one, or none."""
        return self.raters or (() if self.mask is None else (self.mask,))


@dataclass(frozen=True)
class Dataset:
    """A folder with images and masks.

    labels       name -> value in the masks, by rising value, background 0 first
    file_ending  of the images, ".nii.gz"
    extra        dataset.json as it is
    ignore       value of voxels that nobody has annotated ("ignore" of dataset.json); None where there is none
    """

    folder: Path
    name: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[Case, ...]
    extra: dict[str, Any]
    ignore: int | None = None


def open_dataset(folder: Path | str, masks: bool = True) -> Dataset:
    """Open a folder in the nnU-Net v2 raw layout or the MSD layout; reads names only, not a voxel.

    With "raters" in dataset.json a case has the masks of one or more of them, `<case>_rater<k>`.

    Args:
        folder: Holds dataset.json, imagesTr and labelsTr.
        masks: False: masks are not looked for, and imagesTr may hold a folder per class (see labels.py).

    Raises:
        UserError: The folder or dataset.json is missing or broken, labels have no background 0, there is no image, or a case
            lacks a channel or a mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", file=folder)
    description = folder / "dataset.json"
    if not description.exists():
        raise no_dataset(folder)
    extra = read_json(description)
    if not isinstance(extra, dict):
        raise UserError("it must hold an object { ... }", file=description)
    channels, labels = _channels(extra, description), label_values(extra, description)
    ignore = ignore_value(extra, description)
    listed, raters = extra.get("training"), rater_count(extra, description)
    if extra.get("dataset"):
        do = "Link its files into imagesTr and labelsTr, and take the list out"
        raise UserError('its list "dataset" of files elsewhere is not read', file=description, do=do)
    if isinstance(listed, list) and listed and "channel_names" not in extra:
        if raters:
            raise UserError('"raters" go with masks found by name', file=description, do='Leave out "training"')
        cases = _listed_cases(folder, listed, description, masks)
        ending = ending_of(cases[0].images[0])
    else:
        folders = [folder / "imagesTr"] if masks else _class_folders(folder / "imagesTr", labels)
        ending = _ending(extra, folders[0], description)
        numbered = True if "channel_names" in extra else None  # MSD has no channel numbers, nnU-Net v1 has
        images = [find_images(each, len(channels), ending, numbered) for each in folders]
        if not masks:
            cases = _bare_cases(folders, images)
        else:
            cases = _rated_cases(folder, images[0], ending, raters) if raters else _found_cases(folder, images[0], ending)
    if masks:
        refuse_twins(list_files(folder / "imagesTr"))
        refuse_twins(list_files(folder / "labelsTr"))
    _name_what_is_left(folder, list(cases), extra, masks)
    return Dataset(folder, str(extra.get("name", folder.name)), channels, labels, ending, tuple(cases), extra, ignore)


def find_images(
    folder: Path | str, channels: int = 1, ending: str | None = None, numbered: bool | None = None
) -> dict[str, tuple[Path, ...]]:
    """The images of a folder by case, sorted: `<case>_<channel:04d><ending>` or, with no channel number, `<case><ending>`.

    A case is one file per channel, or one file for all of them (colour, 4-D). Hidden files are ignored.

    Args:
        channels: How many a case has.
        ending: Of their names; None: the only one there is.
        numbered: Whether names end in channel numbers; None: they do if all of them could, and none is beyond the channels.

    Raises:
        UserError: There is no image, a channel is missing, or a name has no channel number though `numbered` says so.
    """
    folder = Path(folder)
    ending = ending or _only_ending(folder)
    files = {case_of(path, ending): path for path in list_files(folder) if path.name.lower().endswith(ending)}
    if not files:
        raise UserError(f"no {ending} image in this folder", file=folder)
    found: dict[str, dict[int, Path]] = {}
    odd = []
    for name, path in files.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if match and int(match[2]) < channels:
            found.setdefault(match[1], {})[int(match[2])] = path
        else:
            odd.append(path.name)
    if odd and numbered:
        what = f"names must end in the channel, _0000 to _{channels - 1:04d}; not so: {few(odd)}"
        raise UserError(what, file=folder, do=f"dataset.json names {pluralize(channels, 'channel')}")
    if odd or numbered is False:
        return {name: (path,) for name, path in files.items()}
    together = all(set(parts) == {0} for parts in found.values())
    wanted = range(1 if together else channels)
    lacking = [f"{case}_{n:04d}{ending}" for case, parts in sorted(found.items()) for n in wanted if n not in parts]
    if lacking:
        do = f"dataset.json names {pluralize(channels, 'channel')}"
        raise UserError(f"missing channel: {few(lacking)}", file=folder, do=do)
    return {case: tuple(parts.values()) for case, parts in sorted(found.items())}  # channels rise, as names are sorted


def list_files(folder: Path, dangling: bool = False) -> list[Path]:
    """The files of a folder, sorted, without the hidden ones (._x); none where there is no such folder.

    Raises:
        UserError: An image or mask is a link that leads nowhere; with `dangling` these are passed over.
    """
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not dangling:
        refuse_dangling(paths)
    return [path for path in paths if path.is_file()]


def read_json(path: Path) -> Any:
    """The content of a JSON file; one that is missing, broken or has a key twice is refused by a UserError."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        return parse_json(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    except FileNotFoundError:
        raise UserError("no such file", file=path) from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON ({error})", file=path) from None


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """An object of JSON, which would take the last of two equal keys without a word."""
    counts = Counter(key for key, _ in pairs)
    twice = [key for key, number in counts.items() if number > 1]
    if twice:
        raise UserError(f"given twice: {few(map(repr, twice))}", file=path, do="Keep one of them")
    return dict(pairs)


def _name_what_is_left(folder: Path, cases: list[Case], extra: dict[str, Any], masks: bool) -> None:
    """Say which files of imagesTr and labelsTr no case uses, and whether numTraining counts other cases."""
    images = [path for case in cases for path in case.images]
    labels = [path for case in cases for path in case.masks] if masks else []
    for name, files in (("imagesTr", images), ("labelsTr", labels)):
        why = "as no case has this name and ending" if name == "imagesTr" else "as no image belongs to them"
        for place in {folder / name, *(path.parent for path in files)} if files else ():
            name_unused(place, [*images, *labels], why)
    name_unread(folder, [case.id for case in cases], extra)
    listed = extra.get("training")
    if isinstance(listed, list) and listed and "channel_names" in extra and len(listed) != len(cases):
        what = f'"training" lists {pluralize(len(listed), "case")}, but the files of imagesTr are used, {len(cases)}'
        warn_once(folder / "dataset.json", f'{what}: it has "channel_names"')
    expected = extra.get("numTraining")
    if expected is not None and str(expected) != str(len(cases)):
        warn_once(folder / "dataset.json", f"numTraining is {expected}, but the number of cases is {len(cases)}")


def _channels(extra: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = extra.get("channel_names", extra.get("modality"))
    if not isinstance(names, dict) or not names:
        raise UserError('it needs "channel_names": {"0": "T1", ...} (or "modality", in the MSD layout)', file=file)
    if set(names) != {str(number) for number in range(len(names))}:
        raise UserError(f'"channel_names" must count from "0", not {", ".join(names)}', file=file)
    return tuple(str(names[str(number)]) for number in range(len(names)))


def _ending(extra: dict[str, Any], images: Path, description: Path) -> str:
    if not images.is_dir():
        raise UserError("no such folder", file=images, do="A data set keeps its training images there")
    if not list_files(images):
        raise UserError("there is no image in this folder", file=images)
    if "file_ending" not in extra:
        return _only_ending(images)
    ending = f".{extra['file_ending']}".replace("..", ".").lower()
    if ending not in ENDINGS:
        raise UserError(f"file_ending {ending} is not known", file=description, do=f"Known: {' '.join(ENDINGS)}")
    return ending


def _only_ending(folder: Path) -> str:
    endings = {ending_of(path) for path in list_files(folder) if path.name.lower().endswith(ENDINGS)}
    if len(endings) != 1:
        known = ", ".join(sorted(endings)) or "none that is known"
        raise UserError(f"images must have one file ending; here: {known}", file=folder, do=f"Known: {' '.join(ENDINGS)}")
    return endings.pop()


def _found_cases(folder: Path, images: dict[str, tuple[Path, ...]], ending: str) -> list[Case]:
    masks = {path.name: path for path in list_files(folder / "labelsTr")}
    cases, lacking = [], []
    for case, files in images.items():
        names = [case + end for end in (ending, *LOSSLESS)]  # .jpg images have masks of another kind
        mask = next((masks[name] for name in names if name in masks), None)
        cases.append(Case(case, files, mask))
        if mask is None:
            lacking.append(case)
    if lacking:
        what = f"missing mask for {len(lacking)} of {pluralize(len(cases), 'case')}: {few(lacking)}"
        near = next((name for name in masks if name.lower().split(".")[0] == lacking[0].lower()), None)
        there = f"; {near} is not looked at" if near else ""
        raise UserError(what, file=folder / "labelsTr", do=f"Expected <case>{ending}{there}")
    return cases


def _rated_cases(folder: Path, images: dict[str, tuple[Path, ...]], ending: str, raters: int) -> list[Case]:
    masks = rater_files(list_files(folder / "labelsTr"), ending, raters)
    lacking = [case for case in images if case not in masks]
    if lacking:
        what = f"missing mask of any rater for {len(lacking)} of {pluralize(len(images), 'case')}: {few(lacking)}"
        raise UserError(what, file=folder / "labelsTr", do=f"Expected <case>_rater<k>{ending}, at least one of {raters}")
    return [Case(case, files, masks[case][0], masks[case]) for case, files in images.items()]


def _class_folders(images: Path, labels: dict[str, int]) -> list[Path]:
    """The folders of imagesTr that are named after classes, or imagesTr itself."""
    return [images / name for name in labels if os.path.isdir(images / name)] or [images]


def _bare_cases(folders: list[Path], images: list[dict[str, tuple[Path, ...]]]) -> list[Case]:
    twice = sorted(case for case, number in Counter(case for found in images for case in found).items() if number > 1)
    if twice:
        raise UserError(f"in the folders of several classes: {few(twice)}", file=folders[0].parent, do="One class per image")
    return sorted((Case(case, files, None) for found in images for case, files in found.items()), key=lambda case: case.id)


def _listed_cases(folder: Path, listed: list[Any], file: Path, masks: bool) -> list[Case]:
    cases, lacking = [], []
    keys = ("image", "label") if masks else ("image",)
    for entry in listed:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
            raise UserError(f'"training" lists {{"image": ..., "label": ...}}, not {entry!r}', file=file)
        outside = [entry[key] for key in keys if Path(entry[key]).is_absolute() or _climbs(entry[key])]
        if outside:
            do = "It lists files of its own folder; a link there may lead elsewhere"
            raise UserError(f"it names {outside[0]}, outside of the data set", file=file, do=do)
        paths = [folder / entry[key] for key in keys]
        image = paths[0]
        if image.name.startswith("."):
            continue
        named = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths]
        lacking += [name for name, path in zip(named, paths, strict=True) if not os.path.isfile(path)]  # any text at all
        cases.append(Case(case_of(image, ending_of(image)), (image,), paths[1] if masks else None))
    if lacking:
        raise UserError(f"files that it lists are missing: {few(lacking)}", file=file)
    counts = Counter(path.resolve() for case in cases for path in (*case.images, *case.masks))
    twice = sorted(path.name for path, number in counts.items() if number > 1)
    if twice:
        do = "Each image and each mask belongs to one case"
        raise UserError(f'"training" lists files twice: {few(twice)}', file=file, do=do)
    if len({case.id for case in cases}) < len(cases) or not cases:
        raise UserError('"training" must list at least one case, and each only once', file=file)
    return sorted(cases, key=lambda case: case.id)


def _climbs(path: str) -> bool:
    """Whether a relative path leaves the folder that it counts from."""
    return os.path.normpath(path).split(os.sep)[0] == ".."


def read_table(table: Path) -> tuple[list[dict[str, str]], set[str]]:
    """Rows and columns of a CSV with a head; a UserError refuses what is not UTF-8."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            return list(reader), set(reader.fieldnames or ())
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", file=table, do="Save the table as UTF-8") from None
