"""Results as read and numbers as printed."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


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
