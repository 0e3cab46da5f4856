"""What came of broken files and texts, kills, full disks and foreign requests: `make torture`."""

from benchmarks.tables.grid import grid, load


def torture() -> str:
    """A row per kind: how many trials, what became of them, the longest, and most memory; the sum of their times."""
    table, rows = [], load("torture")["rows"]
    for row in rows:
        counts = [str(row[key]) for key in ("mutants", "results", "refusals", "faults")]
        timed = row["part"] in ("files", "texts", "kills")
        longest = "under 0.1 s" if row["seconds"] < 0.05 else f"{row['seconds']:.1f} s"
        cost = [longest if timed else "-", f"{row['megabytes']} MB" if row["megabytes"] else "-"]
        table.append([row["part"], row["kind"].replace("<", "\\<"), *counts, *cost])
    spent = [row["processor"] for row in rows if row.get("processor")]
    said = f"\n{len(spent)} of these kinds took {sum(spent):.0f} s of the processor together.\n" if spent else ""
    return grid(["part", "kind", "trials", "results", "refusals", "faults", "longest", "most memory"], table) + said
