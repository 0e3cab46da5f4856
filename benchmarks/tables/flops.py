"""Operations of draws in units of one pass of the U-Net."""

from benchmarks.tables.grid import grid, load
from diffuseg.text import by, pluralize


def operations() -> str:
    """A row per method: its draws over the pass of the U-Net on the same plan."""
    rows = load("speed")["operations"]["rows"]
    units = {row["plan"]: row["operations"] for row in rows if row["method"] == "unet" and row["draws"] == 1}
    columns = list(dict.fromkeys((row["plan"], row["draws"]) for row in rows))
    patches = {row["plan"]: by(row["patch"]) for row in rows}
    table = []
    for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in rows):
        found = {(row["plan"], row["draws"]): row["operations"] / units[row["plan"]] for row in rows if row["method"] == method}
        table.append([f"`{method}`", str(steps), *(f"{found[column]:.2f}" for column in columns)])
    head = [f"{plan}, {patches[plan]}: {pluralize(draws, 'draw')}" for plan, draws in columns]
    return grid(["method", "steps", *head], table)
