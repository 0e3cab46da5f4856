"""Folders that several processes predicted into, proven to be what one process would have made of the whole list."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.atomic_io import atomic_path, write_json
from diffuseg.data.outputs import BEFORE, SETTINGS, records
from diffuseg.errors import UserError
from diffuseg.inference.folder import FolderResult, review
from diffuseg.inference.worklist import PLACE, differences, noted, read_list
from diffuseg.text import few, pluralize

NAMED = 20  # cases that a message names


@dataclass(frozen=True)
class Part:
    """One folder of results: its list, and its records by case."""

    folder: Path
    list: dict[str, Any]
    records: dict[str, dict[str, Any]]


def merge(out: Path | str, folders: Sequence[Path | str] = ()) -> FolderResult:
    """Prove that the results in folders are those of the whole list, each case once, and bring them together.

    Args:
        out: Where all results are in the end.
        folders: Folders with the results of one process each; none: all processes wrote into `out`.

    Returns:
        What one process would have reported: cases that failed with a reason are part of it.

    Raises:
        UserError: A case is missing or there twice, is no case of the list, or is of another model, other options or another
            image; or the processes had different lists. Nothing is written then.
    """
    out = Path(out)
    sources = list(dict.fromkeys(Path(folder) for folder in folders)) or [out]
    parts = [Part(folder, read_list(folder), records(folder)) for folder in sources]
    listed = parts[0].list
    for part in parts[1:]:
        difference = differences(part.list, listed)
        if difference:
            raise UserError(f"it has {difference} (as {parts[0].folder} has it)", file=part.folder)
    if out not in sources and records(out):
        parts.append(Part(out, listed, _strangers(out, parts)))
    faults, failed = _faults(parts, listed)
    if faults:
        raise UserError("; ".join(faults), file=out, do=_remedy(listed))
    for part in parts:
        if part.folder != out:
            _copy(part, out)
    cases = [case for case in listed["cases"] if case not in failed]
    result = FolderResult(finished=cases, failed=sorted(failed.items()))
    review(result, out)
    write_json(out / PLACE / "list.json", listed)
    write_json(out / PLACE / "merged.json", _summary(result, listed))
    return result


def _strangers(out: Path, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """Records that are in the folder already and did not come there by merging the same parts before."""
    known = {case: record for part in parts for case, record in part.records.items()}
    return {case: record for case, record in records(out).items() if known.get(case) != record}


def _faults(parts: Sequence[Part], listed: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """What is missing, twice or foreign among the parts, in sentences; and the reason of each case that failed."""
    cases: dict[str, list[str]] = listed["cases"]
    there = Counter(case for part in parts for case in part.records)
    failed = {case: why for part in parts for case in cases if (why := noted(part.folder, case)) and case not in there}
    other = [
        f"{case} ({why})"
        for part in parts
        for masks in [_begins(part.folder)]
        for case, record in part.records.items()
        if case in cases and (why := _otherness(case, record, listed, masks))
    ]
    faults = []
    for what, names in (
        ("missing", [_with_shard(case, listed) for case in cases if case not in there and case not in failed]),
        ("there twice", sorted(case for case, times in there.items() if times > 1)),
        ("not in the list", sorted(set(there) - set(cases))),
        ("not of this run", other),
    ):
        if names:
            faults.append(f"{pluralize(len(names), 'case')} {what}: {few(names, NAMED)}")
    return faults, failed


def _begins(folder: Path) -> set[str]:
    """What stands before a dot in the names of all files but records: the cases that have a mask among it."""
    names = [path.name for path in folder.iterdir() if path.suffix != ".json"]
    return {name[:at] for name in names for at, sign in enumerate(name) if sign == "."}


def _otherness(case: str, record: dict[str, Any], listed: dict[str, Any], masks: set[str]) -> str:
    """In what a result is not one of this list; "" if it is."""
    before, settings = BEFORE | record, listed["settings"]
    changed = [f"{key} {before[key]}, not {settings[key]}" for key in SETTINGS if before[key] != settings[key]]
    source = record.get("source")
    if source is not None and Path(str(source)).name != listed["cases"][case][0]:
        changed.append(f"image {Path(str(source)).name}, not {listed['cases'][case][0]}")
    if case not in masks:
        changed.append("its mask is gone")
    return ", ".join(changed)


def _with_shard(case: str, listed: dict[str, Any]) -> str:
    """A missing case, and whose it was."""
    count = listed["divided"].split()[0]
    if not count.isdigit():
        return case
    return f"{case} (shard {list(listed['cases']).index(case) % int(count) + 1}/{count})"


def _remedy(listed: dict[str, Any]) -> str:
    again = "Start a worker again" if listed["divided"] == "claims" else "Start the shard again"
    return f"{again}: finished cases are skipped; then merge"


def _copy(part: Part, out: Path) -> None:
    """Bring the files of each case over, its record last: whatever is interrupted, a case with a record is complete."""
    files: dict[str, list[Path]] = {case: [] for case in part.records}
    names = sorted(part.records, key=len, reverse=True)  # a_b before a
    for path in sorted(part.folder.iterdir()):
        owner = next((case for case in names if path.name.startswith((f"{case}.", f"{case}_"))), None)
        if owner is not None:
            files[owner].append(path)
    for case, paths in files.items():
        for path in sorted(paths, key=lambda path: path.name == f"{case}.json"):
            if path.is_dir():
                shutil.copytree(path, out / path.name, dirs_exist_ok=True)
                continue
            with atomic_path(out / path.name) as aside:
                shutil.copyfile(path, aside)


def _summary(result: FolderResult, listed: dict[str, Any]) -> dict[str, Any]:
    """What came of the whole list; the same however it was divided."""
    return {
        "settings": listed["settings"],
        "finished": result.finished,
        "failed": dict(result.failed),
        "needs_review": dict(result.needs_review),
        "outside_training": dict(result.outside_training),
    }
