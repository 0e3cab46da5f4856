"""Tiles: how much they overlap, and in batches of how many."""

from benchmarks.tables.grid import grid, load
from diffuseg.text import by, pluralize

SHARES = {0.0: "0", 0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}


def overlap() -> str:
    """Dice of whole cases and near the seams for each overlap, with differences to that of one half, and the cost."""
    found, rows = load("tiles")["overlap"], []
    for row in found:
        bar = next(other for other in found if other["model"] == row["model"] and other["overlap"] == max(SHARES))
        cells = [f"`{row['method']}`, {row['set']}", SHARES[row["overlap"]], f"{row['tiles']:.0f}"]
        for key in ("dice", "seams"):
            apart = row[f"{key}_difference"]
            text = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**apart)
            cells += [f"{row[key]['mean']:.3f}", "-" if row is bar else text]
        cost = row["processor_seconds_per_case"] / bar["processor_seconds_per_case"]
        rows.append([*cells, f"{cost:.2f}"])
    head = [
        "model",
        "overlap",
        f"tiles of {by(found[0]['shape'])} by {by(found[0]['patch'])}",
        "Dice",
        "minus that of 1/2 [95 %]",
    ]
    return grid([*head, "Dice near seams", "minus that of 1/2 [95 %]", "processor time over that of 1/2"], rows)


def tile_batches() -> str:
    """Processor time of a tile in a batch of several over that of one alone."""
    found, rows = load("tiles")["batches"], []
    alone = {row["threads"]: row["processor_seconds"] for row in found if row["batch"] == 1}
    for size in sorted({row["batch"] for row in found} - {1}):
        of_size = sorted((row for row in found if row["batch"] == size), key=lambda row: row["threads"])
        rows.append([str(size), *(f"{row['processor_seconds'] / alone[row['threads']]:.2f}" for row in of_size)])
    return grid(["tiles in a batch", *(pluralize(threads, "thread") for threads in sorted(alone))], rows)
