"""Memory and time of a prediction over sizes of images."""

from typing import Any

from benchmarks.tables.grid import grid, load

LABELS = ("before", "now")
LINEAR = 1_000_000  # voxels from which on time is compared: below, it is hardly more than the start of the process


def memory() -> str:
    """A row per size: the peak while arrays were in memory, and now, and the time; then what each further voxel adds."""
    every: list[dict[str, Any]] = load("memory")["rows"]
    rows, table = [row for row in every if row["label"] in LABELS], []
    machine = _machine(rows[-1])  # times of other machines are not beside those of the last row
    for axes in (2, 1):
        found = [row for row in rows if row["size"].count("x") == axes]
        kind = "volume" if axes == 2 else "picture"
        for voxels in sorted({row["voxels"] for row in found}):
            by = {row["label"]: row for row in found if row["voxels"] == voxels}
            size = next(iter(by.values()))["size"].replace("x", " x ")
            peaks = (f"{by[label]['peak_mb']:.0f} MB" if label in by else "-" for label in LABELS)
            now = by.get("now", {})
            timed = voxels >= LINEAR and bool(now) and _machine(now) == machine
            table.append([size, *peaks, further(found, now) if timed else "-"])
        for place, what in ((0, "from the smallest to the largest"), (-2, "from the largest but one to the largest")):
            slopes = (slope(found, label, place) for label in LABELS)
            table.append([f"each further voxel of a {kind}, {what}", *slopes, "-"])
    slides = sorted((row for row in every if row["label"] == "slide"), key=lambda row: row["voxels"])
    table += [[f"whole slide, {row['size'].replace('x', ' x ')}", "-", f"{row['peak_mb']:.0f} MB", "-"] for row in slides]
    return grid(["image", "before", "now", "processor time of each further voxel than the smallest image's"], table)


def _machine(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["environment"].items() if key != "other_work"}


def further(rows: list[dict[str, Any]], row: dict[str, Any]) -> str:
    """Processor time of each voxel by which an image is larger than the smallest one: the start of the process is in neither.

    Args:
        rows: Of images of one kind.
        row: Of the image.
    """
    least = min((one for one in rows if one["label"] == "now"), key=lambda one: one["voxels"])
    return f"{1e6 * (row['cpu_seconds'] - least['cpu_seconds']) / (row['voxels'] - least['voxels']):.2f} µs"


def memory_draws() -> str:
    """A row per number of draws of the packaged model."""
    rows = sorted((row for row in load("memory")["rows"] if row["label"] == "packaged"), key=lambda row: row["draws"])
    cells = lambda row: [f"{row['peak_mb']:.0f} MB", f"{row['peak_mb'] / rows[0]['peak_mb']:.2f}"]
    return grid(["draws", "peak", "over that of one draw"], [[str(row["draws"]), *cells(row)] for row in rows])


def slope(rows: list[dict[str, Any]], label: str, place: int = 0) -> str:
    """Bytes of the peak for each voxel by which the largest image is larger than another one; "-" of one image alone.

    Args:
        rows: Of images of one kind.
        label: Which of them.
        place: Of the other image among them, by rising size.
    """
    ordered = sorted((row for row in rows if row["label"] == label), key=lambda row: row["voxels"])
    if len(ordered) < 2:
        return "-"
    first, last = ordered[place], ordered[-1]
    return f"{(last['peak_mb'] - first['peak_mb']) * 1e6 / (last['voxels'] - first['voxels']):.1f} bytes"
