"""What came of broken files and texts, kills, full disks and foreign requests: `make torture`."""

from benchmarks.tables.grid import grid, load


def torture() -> str:
    """A row per kind: how many trials, what became of them, the longest of them, and the most memory that one took."""
    table = []
    for row in load("torture")["rows"]:
        counts = [str(row[key]) for key in ("mutants", "results", "refusals", "faults")]
        cost = [f"{row['seconds']:.1f} s" if row["seconds"] else "-", f"{row['megabytes']} MB" if row["megabytes"] else "-"]
        table.append([row["part"], row["kind"].replace("<", "\\<"), *counts, *cost])
    return grid(["part", "kind", "trials", "results", "refusals", "faults", "longest", "most memory"], table)
