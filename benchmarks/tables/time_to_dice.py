"""Processor time of a training until its validation Dice is so much."""

from typing import Any

from benchmarks.tables.grid import grid, load
from diffuseg.text import pluralize


def time_to_dice() -> str:
    """A row per training; those of other programs are known at their end alone."""
    found = load("time_to_dice")
    targets = list(found["rows"][0]["reached"])
    rows = []
    for row in found["rows"]:
        step, seconds, dice = row["points"][-1]
        rows.append([f"`{row['method']}`", *(_reached(row, target) for target in targets), _end(step, seconds, dice, "step")])
    for row in found["others"]:
        most = f"at most {row['processor_seconds']} s"
        ends = [most if row["dice"] >= float(target) else "not reached" for target in targets]
        rows.append([row["name"], *ends, _end(row["updates"], row["processor_seconds"], row["dice"], "update")])
    return grid(["training", *(f"Dice {target}" for target in targets), "when it was ended"], rows)


def _reached(row: dict[str, Any], target: str) -> str:
    reached, whole = row["reached"][target], row["points"][-1][0] >= row["steps"]
    return ("not reached" if whole else "-") if reached is None else f"{reached[1]:.0f} s ({pluralize(reached[0], 'step')})"


def _end(count: int, seconds: float, dice: float, unit: str) -> str:
    return f"Dice {dice:.3f} after {seconds:.0f} s ({pluralize(count, unit)})"
