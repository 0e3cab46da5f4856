"""Files in the folders of a data set that are not used are named, so that no case is lost in silence."""

import itertools
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffuseg.data.dicom_files import holds_dicom
from diffuseg.data.geometry import warn_once
from diffuseg.data.io import CONVERTED, ENDINGS, VOLUMES, case_of, ending_of
from diffuseg.errors import UserError
from diffuseg.text import few, pluralize

NOTES = (
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".html",
    ".pdf",
    ".bval",
    ".bvec",
    ".log",
    ".yaml",
    ".yml",
    ".raw",
    ".zraw",
)  # beside images, the last two of a .mhd


UNREAD = ("validation", "ignore_label", "ignore_index", "regions_class_order", "patient", "fold", "folds", "splits")
TELLING = re.compile(r".*(split|fold|patient|subject|participant).*\.(json|csv|tsv|txt|pkl|xlsx|ya?ml)", re.I)


def refuse_dangling(paths: Sequence[Path]) -> None:
    """Look for links of images and masks that lead nowhere, as of files that git-annex or datalad has not fetched.

    Raises:
        UserError: There is one.
    """
    lost = [path.name for path in paths if path.is_symlink() and not path.exists() and path.name.lower().endswith(ENDINGS)]
    if lost:
        do = "Fetch the files (datalad get, git annex get), or remove the links"
        raise UserError(f"links to nowhere: {few(lost)}", file=paths[0].parent, do=do)


def refuse_twins(files: Iterable[Path]) -> None:
    """Look for two image files of one name, such as x.nii beside x.nii.gz: nothing says which one counts.

    Raises:
        UserError: There are two.
    """
    found: dict[tuple[str, bool], Path] = {}
    for path in files:
        if path.name.lower().endswith(ENDINGS):
            ending = ending_of(path)  # a picture beside a volume is a preview
            other = found.setdefault((case_of(path, ending), ending in VOLUMES), path)
            if other != path:
                raise UserError(f"stands beside {other.name}: two files of one case", file=path, do="Keep one of them")


def name_unused(folder: Path, used: Iterable[Path], why: str) -> None:
    """One line of warning that names what lies in a folder and is not used, other folders too, without notes such as .csv.

    Args:
        folder: Where to look.
        used: Files that are used, here or elsewhere; folders that hold one are passed over.
        why: Ends the sentence.
    """
    if not folder.is_dir():
        return
    files = list(used)
    taken, folders = {path.resolve() for path in files}, {parent for path in files for parent in path.parents}
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(".") or _is_hidden_image(path))
    left = [path for path in entries if path.resolve() not in taken and path not in folders and not _is_note(path)]
    if left:
        names = [f"{path.name}/" if path.is_dir() else path.name for path in left]
        warn_once(folder, f"{pluralize(len(left), 'file is', 'files are')} not used, {why}: {few(names)}")


def name_unread(folder: Path, cases: Iterable[str], extra: dict[str, Any]) -> None:
    """Warn of what says something about a data set and is not read: files of folds and patients by other names, keys of
    dataset.json, and names of cases that many a file system takes for one.
    """
    read = {"splits_final.json"} | (set() if "patients" in extra else {"patients.csv"})
    files = sorted(path.name for path in folder.iterdir() if TELLING.fullmatch(path.name) and path.name not in read)
    if files:
        known = "folds are those of splits_final.json, patients those of dataset.json or else patients.csv"
        warn_once(folder, f"{few(files)} {'is' if len(files) == 1 else 'are'} not read: {known}")
    keys = [key for key in UNREAD if extra.get(key)]
    listed = extra.get("training")
    keys += ["fold"] if isinstance(listed, list) and any(isinstance(one, dict) and "fold" in one for one in listed) else []
    if keys:
        warn_once(folder / "dataset.json", f"not read: {few(map(repr, keys))}")
    alike = defaultdict(list)
    for case in cases:
        alike[case.casefold()].append(case)
    twins = [" and ".join(names) for names in alike.values() if len(names) > 1]
    if twins:
        warn_once(
            folder, f"cases that differ in upper and lower case alone, which many a file system takes for one: {few(twins)}"
        )


def _is_hidden_image(path: Path) -> bool:
    """Whether a hidden file is an image, as some programs leave while they copy; those of macOS (._x) are none."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith("._")


def _is_note(path: Path) -> bool:
    return path.name.lower().endswith(NOTES) and not path.is_dir()


def no_dataset(folder: Path) -> UserError:
    """What to do about a folder without dataset.json; one of images and masks can be made a data set."""
    names = [name.lower() for _, _, found in itertools.islice(os.walk(folder), 1000) for name in found]
    out = Path(f"{folder.resolve().name}_dataset")
    if out.resolve().is_relative_to(folder.resolve()):  # the command is given in the folder itself, which is left as it is
        out = folder.resolve().with_name(out.name)
    command = f"diffuseg convert {shlex.quote(str(folder))} --out {shlex.quote(str(out))}"
    if any(name.endswith(ENDINGS + CONVERTED) for name in names):
        do = f"This is a folder of images, no data set: `{command}` makes one"
    elif holds_dicom(folder):
        do = f"This is a folder of DICOM, no data set: `{command}` makes one of its series and the SEG or RTSTRUCT with them"
    else:
        do = "A data set has dataset.json, imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz"
    return UserError("no such file", file=folder / "dataset.json", do=do)
