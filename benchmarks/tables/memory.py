"""Memory of a prediction over sizes of images."""

from benchmarks.tables.grid import grid, load


def memory() -> str:
    """A row per size: peak and time, before large arrays were worked on in blocks, and now."""
    rows = load("memory")["rows"]
    found: dict[tuple[int, str, bool, int], dict[str, tuple[float, float]]] = {}
    for row in rows:
        key = (row["size"].count("x"), row["size"].replace("x", " x "), row["resampled"], row["steps"])
        found.setdefault(key, {})[row["label"]] = (row["peak_mb"], row["seconds"])
    table = []
    for (_, size, resampled, steps), by in sorted(found.items(), key=lambda item: (item[0][0], item[1]["now"][0])):
        said = [f"{by[label][0]:.0f}" if label in by else "-" for label in ("before", "now")]
        table.append([size + (", resampled" if resampled else ""), str(steps), *said])
    return grid(["image", "steps", "MB before", "MB now"], table)
