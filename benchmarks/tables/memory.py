"""Memory of a prediction over sizes of images."""

from typing import Any

from benchmarks.tables.grid import grid, load

LABELS = ("before", "now")


def memory() -> str:
    """A row per size: the peak while arrays were in memory, and now; then what each further voxel adds to it."""
    every: list[dict[str, Any]] = load("memory")["rows"]
    rows, table = [row for row in every if row["label"] in LABELS], []
    for axes in (2, 1):
        found = [row for row in rows if row["size"].count("x") == axes]
        kind = "volume" if axes == 2 else "picture"
        for voxels in sorted({row["voxels"] for row in found}):
            by = {row["label"]: row for row in found if row["voxels"] == voxels}
            size = next(iter(by.values()))["size"].replace("x", " x ")
            table.append([size, *(f"{by[label]['peak_mb']:.0f} MB" if label in by else "-" for label in LABELS)])
        table.append([f"each further voxel of a {kind}", *(slope(found, label) for label in LABELS)])
    slides = sorted((row for row in every if row["label"] == "slide"), key=lambda row: row["voxels"])
    table += [[f"whole slide, {row['size'].replace('x', ' x ')}", "-", f"{row['peak_mb']:.0f} MB"] for row in slides]
    return grid(["image", "before", "now"], table)


def slope(rows: list[dict[str, Any]], label: str) -> str:
    """Bytes of the peak for each voxel by which the largest image is larger than the smallest; "-" of one image alone."""
    ordered = sorted((row for row in rows if row["label"] == label), key=lambda row: row["voxels"])
    if len(ordered) < 2:
        return "-"
    first, last = ordered[0], ordered[-1]
    return f"{(last['peak_mb'] - first['peak_mb']) * 1e6 / (last['voxels'] - first['voxels']):.0f} bytes"
