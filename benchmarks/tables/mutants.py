"""Faults put into the code on purpose, and whether the tests saw them: `make mutants`."""

from benchmarks.tables.grid import grid, load


def mutants() -> str:
    """A row per package: how many faults, how many were seen, and those that were not, with the reason."""
    found = load("mutants")["rows"]
    table = []
    for part in sorted({row["file"].partition("/")[0] for row in found}):
        rows = [row for row in found if row["file"].partition("/")[0] == part]
        left = [f"{row['name']} ({row['reason']})" for row in rows if not row["killed"]]
        table.append([f"`{part}`", str(len(rows)), str(len(rows) - len(left)), "; ".join(left) or "-"])
    killed = sum(row["killed"] for row in found)
    whole = f"\n{killed} of {len(found)} seen, {100 * killed / len(found):.0f} %.\n"
    return grid(["package", "faults", "seen by the tests", "not seen"], table) + whole
