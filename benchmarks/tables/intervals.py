"""How wide 90 % volume intervals are that cover alike, by how they are made."""

import numpy as np

from benchmarks.tables.grid import change, grid, load, shares
from diffuseg.text import pluralize

KINDS = {"constant": "constant share of the volume", "draws": "draws' interval, widened", "levels": "two thresholds"}
BAR = "`unet`"


def interval_kinds() -> str:
    """Mean widths over the mean true volume; differences are paired over patients."""
    rows, found = [], load("intervals")["rows"]
    for row in found:
        bar = next((other for other in found if other["name"] == BAR and other["dataset"] == row["dataset"]), None)
        for name, values in row["classes"].items():
            own = {kind: shares(values, kind) for kind in KINDS}
            theirs = None if bar is None else shares(bar["classes"][name], "constant")
            of = row["patient_of_case"]
            cells = [f"{np.mean(own[kind]):.3f}" for kind in KINDS]
            cells.append(change(own["levels"], own["constant"], of))
            cells.append("-" if theirs is None or row is bar else change(own["levels"], theirs, of))
            inside = " / ".join(str(values["inside"][kind]) for kind in KINDS)
            model = f"{row['name']}, {pluralize(row['draws'], 'draw')}"
            rows.append([row["dataset"], model, name, f"{inside} of {row['cases']}", *cells])
    less = [f"two thresholds minus {what} [95 %]" for what in ("its constant share", "the U-Net's constant share")]
    return grid(["data set", "model", "class", "covered", *KINDS.values(), *less], rows)
