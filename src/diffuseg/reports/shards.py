"""An evaluation by several processes: each measures its share and writes rows; statistics are made once, of all of them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffuseg.atomic_io import nan_to_none, write_json
from diffuseg.data.layout import list_files, read_json
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import Score
from diffuseg.inference.shards import Shard
from diffuseg.inference.worklist import PLACE
from diffuseg.reports.evaluate import Comparison, measure_cases, summary_of
from diffuseg.reports.evaluation import Evaluation, Row
from diffuseg.text import few

ROWS = "rows_"  # what the files begin with; they keep all digits: cases.csv has six, too few for the same statistics


def evaluate_shard(comparison: Comparison, out: Path, shard: Shard) -> list[str]:
    """Measure one share of the cases and write its rows into OUT/shards; returns what went wrong with some.

    Raises:
        UserError: Other shards in the folder are those of another comparison.
    """
    asked = {"shards": shard.count, "asked": comparison.arguments(), "cases": list(comparison.pairs)}
    for other in _files(out):
        _refuse_other(read_json(other), asked, other)
    cases = shard.of(list(comparison.pairs))
    found = [(case, *measure_cases(comparison, [case])) for case in cases]
    measured = {case: {"rows": [asdict(row) for row in rows], "faults": faults} for case, rows, faults in found}
    write_json(_file(out, shard), nan_to_none({**asked, "shard": shard.index, "measured": measured}))
    return [fault for _, _, faults in found for fault in faults]


def is_evaluation(folder: Path) -> bool:
    """Whether shards of an evaluation are in a folder."""
    return bool(_files(folder))


def merge_evaluation(out: Path, folders: Sequence[Path]) -> Evaluation:
    """Statistics of the rows of all shards, the same as of one process; writes cases.csv and summary.json to `out`.

    Raises:
        UserError: A shard or a case is missing or there twice, shards are of different comparisons, or predictions or masks
            came or went meanwhile.
    """
    files = [file for folder in dict.fromkeys(folders) for file in _files(folder)]
    contents = [read_json(file) for file in files]
    if not contents:
        raise UserError("no rows of a shard here", file=folders[0], do="Give folders that `evaluate --shard` wrote to")
    for file, content in zip(files, contents, strict=True):
        _refuse_other(content, contents[0], file)
    count, there = contents[0]["shards"], sorted(content["shard"] for content in contents)
    faults = []
    for what, numbers in (
        ("missing", [n for n in range(1, count + 1) if n not in there]),
        ("there twice", sorted({n for n in there if there.count(n) > 1})),
    ):
        if numbers:
            faults.append(f"shards {what}: {few((f'{n}/{count}' for n in numbers), 20)}")
    if faults:
        raise UserError("; ".join(faults), file=out, do="Run those that are missing, give each only once")
    comparison = Comparison.reopen(contents[0]["asked"])
    if list(comparison.pairs) != contents[0]["cases"]:
        names = few(sorted(set(comparison.pairs) ^ set(contents[0]["cases"])))
        raise UserError(f"predictions or masks came or went since: {names}", file=comparison.predictions, do="Evaluate again")
    measured = {case: found for content in contents for case, found in content["measured"].items()}
    each = [measured[case] for case in comparison.pairs]
    rows = [_row(row) for found in each for row in found["rows"]]
    return summary_of(comparison, rows, [fault for found in each for fault in found["faults"]], out).write()


def _refuse_other(content: Any, asked: dict[str, Any], file: Path) -> None:
    for key, what in (("asked", "another comparison"), ("shards", "another number of shards"), ("cases", "other cases")):
        if content.get(key) != asked[key]:
            differing = ""
            if key == "asked":
                odd = [name for name, value in content["asked"].items() if value != asked["asked"].get(name)]
                differing = f" ({', '.join(odd)})"
            do = f"Run all shards alike, or remove {file.parent} to begin anew"
            raise UserError(f"is of {what}{differing}", file=file, do=do)


def _file(out: Path, shard: Shard) -> Path:
    return out / PLACE / f"{ROWS}{shard.index}_of_{shard.count}.json"


def _files(folder: Path) -> list[Path]:
    return [path for path in list_files(folder / PLACE) if path.name.startswith(ROWS) and path.suffix == ".json"]


def _row(content: dict[str, Any]) -> Row:
    """A row as it was measured, to the last digit."""
    number = lambda value: math.nan if value is None else value
    score = content["score"]
    values = {name: number(value) for name, value in score["values"].items()}
    interval = content["interval"]
    return Row(
        content["case"],
        content["label"],
        content["patient"],
        Score(values, number(score["truth_ml"]), number(score["prediction_ml"]), score["empty"]),
        None if interval is None else (interval[0], interval[1]),
    )
