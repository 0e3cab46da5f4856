"""Results as read and numbers as printed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.evaluation.statistics import paired_difference

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


# What rows were called that are less published than their names said: name in the results -> name in a table.
CALLED = {
    "accumulated, one draw (CDM as published)": "accumulated, one draw (CDM's published map, on our training)",
    "accumulated, guided by 10, one draw (CG-CDM as published)": (
        "accumulated, guided by 10, one draw (CG-CDM's published map, on our training)"
    ),
    "noise prediction, as published": "noise prediction, in our training",
}


def called(name: str) -> str:
    """The name of a row in a table."""
    return CALLED.get(name, name)


def network_calls(method: str, calls: int, plain: str | None = None) -> str:
    """Passes of the whole network per case: one where draws are a light part or a sum; else `plain`, or all calls."""
    once = {"distributional": f"1 and {calls} light", "ssn": "1"}
    return once.get(method, plain or str(calls))


def load(name: str) -> dict[str, Any]:
    """The results of this name; stops where there are none."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.relative_to(ROOT)} is not there: run the benchmark that writes it")
    return json.loads(path.read_text())


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def mean_of(interval: list[float]) -> str:
    """A mean and its interval, given as three numbers."""
    mean, low, high = interval
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def ends(found: dict[str, Any], digits: int = 3) -> str:
    """A mean and its interval, given by name."""
    return "{mean:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**found, d=digits)


def scored(row: dict[str, Any]) -> str:
    """The Dice of a row and its interval."""
    return f"{row['dice']:.3f} [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"


def change(first: list[float], second: list[float], groups: list[Any] | None = None) -> str:
    """Mean of first - second, pair by pair, with its interval over cases, or over groups of them."""
    found = paired_difference(first, second, groups)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def less(row: dict[str, Any], bar: dict[str, Any]) -> str:
    """The Dice of a scored row minus the bar's, over cases that have a value in both; the interval is over their patients."""
    mine, its = row["dice_per_case"], bar["dice_per_case"]
    cases = sorted(case for case in its if its[case] is not None and mine[case] is not None)
    groups = dict(zip(mine, row.get("patient_of_case") or mine, strict=True))
    return change([mine[case] for case in cases], [its[case] for case in cases], [groups[case] for case in cases])


def shares(values: dict[str, Any], kind: str) -> list[float]:
    """The width of each case's interval over the mean true volume."""
    return (np.array(values["width_ml"][kind]) / values["truth_ml"]).tolist()
