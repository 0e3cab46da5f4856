"""Which method: what the others measured of each, in one table."""

from typing import Any

from benchmarks.tables.grid import change, ends, grid, load, network_calls

READERS = {  # method -> its row among those against four readers
    "unet": "U-Net",
    "cdal": "`cdal`, recycle 0, 4 steps",
    "concat": "`concat`, input_scale 0.2",
    "distributional": "`distributional`, one step",
    "medsegdiff": "`medsegdiff`, input_scale 0.2",
}


def choosing() -> str:
    """Each method at its own number of steps: mask of one draw and of several, draws against readers, cost."""
    found = [row for row in load("hippocampus_fold0")["rows"] if row["steps"] == row["default_steps"] and not row.get("what")]
    bar = next(row for row in found if row["method"] == "unet")
    against = {row["name"]: row for row in load("lidc_raters")["rows"]}
    rows = []
    for method, name in READERS.items():
        of_method = sorted((row for row in found if row["method"] == method), key=lambda row: row["draws"])
        reader = against[name]
        cells = [_mask(of_method[:1], bar), _mask(of_method[1:], bar), ends(reader["draws"]["ged_16"]), _changed(name, method)]
        rows.append([f"`{method}`", *cells, _cost(of_method)])
    head = ["method", "Dice minus the U-Net's: one draw", "... mean of the draws", "GED-16 against four readers (0 is best)"]
    return grid([*head, "settings there", "network calls for a case"], rows)


def _mask(rows: list[dict[str, Any]], bar: dict[str, Any]) -> str:
    if not rows:
        return "-"
    if rows[0] is bar:
        return "0"
    cases = sorted(bar["dice_per_case"])
    return change(*([row["dice_per_case"][case] for case in cases] for row in (rows[0], bar)))


def _changed(name: str, method: str) -> str:
    """Settings that the row against the readers names."""
    return name.partition(f"`{method}`, ")[2] or "default"


def _cost(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    row = rows[-1]
    calls = row["evaluations_per_case"]
    return network_calls(row["method"], calls, f"{calls} ({row['draws']} x {row['steps']})")
