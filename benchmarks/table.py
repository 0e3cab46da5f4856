"""Render the tables of README and docs from benchmarks/results/*.json; with --check, fail where they differ.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _dice(row: dict[str, Any]) -> str:
    return f"{row['dice']:.3f} [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"


def hippocampus() -> str:
    """Methods beside each other on fold 0, single draw and mean of eight."""
    rows = []
    for row in _load("hippocampus_fold0")["rows"]:
        rows.append([
            f"`{row['method']}`", str(row["steps"]) if row["method"] != "unet" else "-", str(row["draws"]), _dice(row),
            *(f"{v:.3f}" for v in row["dice_per_class"].values()), str(row["evaluations_per_case"]),
            f"{row['training_seconds'] / 60:.0f} min",
        ])  # fmt: skip
    head = ["method", "steps", "draws", "Dice [95 % CI]", "anterior", "posterior", "network calls", "training"]
    return _grid(head, rows)


def ablation() -> str:
    """What each measure of cDAL does, from short trainings judged on cases set aside from the training fold."""
    rows = []
    for row in _load("cdal_ablation")["rows"]:
        rows.append([row["what"], f"`{row['set']}`" if row["set"] else "", *(
            f"{row[key]:.3f}" if row.get(key) is not None else "-" for key in ("one", "mean", "one_step", "disagreement")
        )])  # fmt: skip
    head = ["what", "--set", "one draw", "mean of 4", "one draw, 1 step", "voxels that change between draws / object"]
    return _grid(head, rows)


def controls() -> str:
    """The controls that ask whether diffusion does anything."""
    rows = []
    for row in _load("cdal_controls")["rows"]:
        rows.append([row["what"], f"`{row['set']}`" if row["set"] else "", *(
            f"{row[key]:.3f}" if row.get(key) is not None else "-" for key in ("one", "mean", "disagreement")
        )])  # fmt: skip
    return _grid(["control", "--set", "one draw", "mean of 4", "voxels that change between draws / object"], rows)


def speed() -> str:
    """Ratios within one run."""
    rows = [[r["what"], f"{r['ratio']:.2f}", r["means"]] for r in _load("speed")["rows"]]
    return _grid(["measured", "ratio", "of what to what"], rows)


TABLES: dict[str, Callable[[], str]] = {f.__name__: f for f in (hippocampus, ablation, controls, speed)}


def render(text: str) -> str:
    """The text with every table made anew."""
    return PLACE.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Write the tables, or with --check say which file disagrees with the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        new = render(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'does not agree with benchmarks/results; run `make tables`' if check else 'rendered'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
