"""A row of the tables of evidence from nothing: the commands that train and measure it, by its name (none: all names).

    python -m benchmarks.evidence thyroid/unet/0 DATA --dry    # its commands, run nothing
    make evidence ROW=thyroid/unet/0 DATA=/path/to/thyroid     # train and measure

DATA is the folder of the data set, or the one that holds it under the set's name. Rows and their settings are in evidence.toml.
Last weights are measured; a finished training is not repeated, one that was stopped goes on. The measure replaces the row of
that name in the results of its set, from which `make tables` makes the tables.
"""

import argparse
import os
import resource
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from diffuseg.checkpoint import is_finished

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
RESULTS = Path(__file__).parent / "results"
PROCESSOR = "processor_seconds.txt"  # beside the weights of a training
COMMANDS = ("train", "pseudo-label", "calibrate")  # of diffuseg


@dataclass(frozen=True)
class Row:
    """A row with its seed: what trains it, after which others, and what measures it."""

    set: str
    name: str
    seed: int
    settings: dict[str, Any]  # of the row and, where it is silent, of its set
    common: str  # what every training of the set is told

    @classmethod
    def of(cls, text: str) -> "Row":
        """The row of a name; stops where there is none."""
        place, _, seed = text.rpartition("/")
        found = rows().get(place)
        if found is None or not seed.isdecimal():
            raise SystemExit(f"{text}: a row is set/row/seed, as {next(iter(rows()))}/0; known: {', '.join(rows())}")
        return cls(*place.split("/"), int(seed), *found)

    def folder(self, work: Path) -> Path:
        """Where it is trained."""
        return work / self.set / f"{self.name}_{self.seed}"

    @property
    def needed(self) -> list["Row"]:
        """The rows that are trained before it."""
        return [Row.of(f"{self.set}/{name}/{self.seed}") for name in self.settings.get("needs", ())]


@cache
def rows() -> dict[str, tuple[dict[str, Any], str]]:
    """set/row -> its settings, and what every training of the set is told."""
    found = {}
    for name, of_set in tomllib.loads(TABLE.read_text()).items():
        for row, settings in of_set["rows"].items():
            shared = {key: of_set[key] for key in ("results", "measure")}
            found[f"{name}/{row}"] = shared | settings, of_set["train"]
    return found


def commands(row: Row, data: Path, work: Path, results: Path = RESULTS) -> list[list[str]]:
    """Its training, after those of the rows that it needs, and its measure; each a list of words, none of them twice."""
    measures = row.settings["measure"]
    found = _trained(row, data, work, results)
    for text in [measures] if isinstance(measures, str) else measures:
        found += _filled(row, text, data, work, results)
    return [command for i, command in enumerate(found) if command not in found[:i]]


def _trained(row: Row, data: Path, work: Path, results: Path) -> list[list[str]]:
    found = [command for other in row.needed for command in _trained(other, data, work, results)]
    if "train" in row.settings:
        found += _filled(row, row.settings.get("before", ""), data, work, results)
        (options,) = _filled(row, row.settings["train"], data, work, results)
        (at,) = _filled(row, row.settings.get("data", ""), data, work, results) or [[str(data)]]
        out = row.folder(work)
        found.append(["train", *at, "--out", str(out), "--seed", str(row.seed), *shlex.split(row.common), *options])
    return found


def _filled(row: Row, text: str, data: Path, work: Path, results: Path) -> list[list[str]]:
    """The words of a command with its names filled in; nothing where there is none. Options without a value are left out."""
    words, values = shlex.split(text), {"data": data, "out": row.folder(work)}
    values |= {other.name: other.folder(work) / "last.safetensors" for other in row.needed}
    file = results / row.settings["results"]
    own = file.with_stem(f"{file.stem}_seed{row.seed}") if row.seed else file
    what = ", ".join(filter(None, [row.settings.get("what", ""), f"seed {row.seed}" * (row.seed > 0)]))
    values |= {"model": row.folder(work) / "last.safetensors", "what": what, "results": file, "own": own}
    given = [word.format(**values) for word in words]
    kept = [i for i in range(len(given)) if given[i] and (i + 1 == len(given) or given[i + 1])]
    return [[given[i] for i in kept]] if words else []


def called(command: list[str]) -> list[str]:
    """The words of a shell: commands of diffuseg by their names, `cp` itself; all others are modules of benchmarks."""
    first, *rest = command
    before = {"cp": []} | {name: ["diffuseg"] for name in COMMANDS}
    return [*before[first], *command] if first in before else ["python", "-m", f"benchmarks.{first}", *rest]


def run(command: list[str]) -> None:
    """One command, as far as its training, or the data that it makes, are not there yet; stops where it fails."""
    out = Path(command[command.index("--out") + 1]) if "--out" in command else ROOT
    if command[0] == "train":
        if is_finished(out / "last.safetensors"):
            return
        command = command + ["--resume"] * (out / "run.json").exists()
    if command[0] == "pseudo-label" and (out / "pseudo_labels.csv").exists():
        return
    print("$", shlex.join(called(command)), flush=True)
    first, *rest = called(command)
    words = {"cp": [first], "diffuseg": [sys.executable, "-m", "diffuseg"]}.get(first, [sys.executable]) + rest
    before = busy()
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}"}, check=False)
    if command[0] == "train" and out.is_dir():
        earlier = processor_seconds(out) if "--resume" in command else _before(command)
        if earlier is not None:
            (out / PROCESSOR).write_text(f"{earlier + busy() - before:.1f}\n")
    if done.returncode:
        raise SystemExit(done.returncode)


def _before(command: list[str]) -> float | None:
    """What the training took that this one starts from; 0 of one that starts from nothing, None where that is not known."""
    return processor_seconds(Path(command[command.index("--from") + 1]).parent) if "--from" in command else 0.0


def processor_seconds(run: Path) -> float | None:
    """What the training in this folder took of the processor, with its validations and all that it started from.

    None where it was not made by this.
    """
    return float((run / PROCESSOR).read_text()) if (run / PROCESSOR).is_file() else None


def busy() -> float:
    """Seconds of the processor that commands have taken so far, waited for ones."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """List the rows, print a row's commands, or run them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="?", help="set/row/seed; all names where it is left out")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "evidence", help="folder of the trainings")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    asked = parser.parse_args(arguments)
    if not asked.row:
        print("\n".join(rows()))
        return
    row = Row.of(asked.row)
    if asked.data is None:
        raise SystemExit(f"{asked.row}: give the folder of the data set {row.set} too")
    data = asked.data / row.set if (asked.data / row.set).is_dir() else asked.data
    for command in commands(row, *(path.resolve() for path in (data, asked.work, asked.results))):
        print(shlex.join(called(command))) if asked.dry else run(command)


if __name__ == "__main__":
    main()
