"""What processes that share a list of cases have to agree on, kept in OUT/shards: the list, the settings, and what failed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffuseg.atomic_io import write_json
from diffuseg.config import check_stored, is_list, is_map
from diffuseg.data.dicom_series import Stack
from diffuseg.data.layout import read_json
from diffuseg.data.outputs import SETTINGS
from diffuseg.errors import UserError
from diffuseg.text import few

PLACE = "shards"
_files = lambda value: is_list(value, lambda name: isinstance(name, str)) and bool(value)
KINDS = {
    "cases": lambda value: is_map(value, _files) and all(Path(name).name == name and len(name) < 200 for name in value),
    "settings": lambda value: isinstance(value, dict) and set(SETTINGS) <= set(value),
    "divided": lambda value: isinstance(value, str) and bool(value.strip()),
}
Files = Mapping[str, Sequence[Path | Stack]]


@runtime_checkable
class Share(Protocol):
    """What decides which cases a process does: a `Shard`, or `Claims`."""

    @property
    def division(self) -> str:
        """What all processes of one list have in common."""
        ...

    def announce(self) -> str:
        """One line: which cases these are."""
        ...

    def then(self, out: Path) -> str:
        """One line: what is left to do."""
        ...

    def turns(self, cases: Sequence[str], out: Path) -> Iterator[str]:
        """The cases that this process does, of a sorted list."""
        ...

    def total(self, cases: Sequence[str]) -> int:
        """How many these are, at most."""
        ...


def worklist(cases: Files, settings: dict[str, Any], division: str) -> dict[str, Any]:
    """The list as it is written: names of the files of each case, what decides results, and how the list is divided.

    Args:
        cases: Files by case.
        settings: What decides a result, see `Model.settings`.
        division: `Share.division`.
    """
    return {"cases": {case: [p.name for p in cases[case]] for case in sorted(cases)}, "settings": settings, "divided": division}


def agree(out: Path, own: dict[str, Any]) -> None:
    """Be the first process of a folder, or one that does the same as the others.

    Raises:
        UserError: The others have other cases, other settings, or another number of shards.
    """
    file = out / PLACE / "list.json"
    if not file.exists():
        write_json(file, own)
    difference = differences(read_list(out), own)
    if difference:
        do = f"Start all processes alike, choose another --out, or remove {file} to divide the work anew"
        raise UserError(f"the other processes of this folder have {difference}", file=out, do=do)


def read_list(folder: Path) -> dict[str, Any]:
    """The list that the processes of a folder shared.

    Raises:
        UserError: There is none.
    """
    file = folder / PLACE / "list.json"
    if not file.is_file():
        raise UserError("no list of shared cases here", file=folder, do="Merge folders that were made with --shard")
    found = read_json(file)
    check_stored(found, KINDS, file, tuple(KINDS))
    return found


def differences(theirs: dict[str, Any], own: dict[str, Any]) -> str:
    """In what two lists differ, as text; "" where they are the same."""
    if theirs == own:
        return ""
    found = []
    before, now = theirs["cases"], own["cases"]
    for what, names in (("cases that are not here", set(before) - set(now)), ("not the cases", set(now) - set(before))):
        if names:
            found.append(f"{what} {few(sorted(names))}")
    odd = [case for case in before.keys() & now.keys() if before[case] != now[case]]
    found += [f"other files for {few(sorted(odd))}"] if odd else []
    keys = {**theirs["settings"], **own["settings"]}
    values = [(key, theirs["settings"].get(key), own["settings"].get(key)) for key in keys]
    found += [f"{key} {one}, not {other}" for key, one, other in values if one != other]
    if theirs["divided"] != own["divided"]:
        found.append(f"a list divided by {theirs['divided']}, not {own['divided']}")
    return "; ".join(found)


def note_of(out: Path, case: str) -> Path:
    """Where the reason is kept for which a case failed."""
    return out / PLACE / "failed" / f"{case}.json"


def note(out: Path, case: str, reason: str | None) -> None:
    """Keep the reason for which a case failed; None takes away that of an earlier try."""
    if reason is None:
        note_of(out, case).unlink(missing_ok=True)
    else:
        write_json(note_of(out, case), {"reason": reason})


def noted(out: Path, case: str) -> str | None:
    """The reason for which a case failed, if it did."""
    file = note_of(out, case)
    if not file.is_file():
        return None
    found = read_json(file)
    return str(found.get("reason")) if isinstance(found, dict) else "for a reason that cannot be read"


def turns(
    cases: Files, out: Path, settings: dict[str, Any], share: Share | None, failed: list[tuple[str, str]]
) -> Iterator[tuple[str, int, int]]:
    """The cases that this process does: (case, number, cases). All of them where nothing is shared.

    Args:
        cases: Files by case.
        out: Folder of the results.
        settings: What decides a result, see `Model.settings`.
        share: Which cases are this process's; None: all.
        failed: (case, reason) of those that failed, which grows meanwhile.
    """
    if share is None:
        yield from ((case, number, len(cases)) for number, case in enumerate(cases))
        return
    agree(out, worklist(cases, settings, share.division))
    names = sorted(cases)
    for number, case in enumerate(share.turns(names, out)):
        before = len(failed)
        yield case, number, share.total(names)
        note(out, case, next((reason for _, reason in failed[before:]), None))
