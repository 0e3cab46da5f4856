"""How long the commands of the quick start took on a folder of made-up scans."""

from benchmarks.tables.grid import grid, load


def newcomer() -> str:
    """Wall and processor time of each command."""
    rows = [
        [f"`{row['command']}`", f"{row['seconds']:.0f} s", f"{row['processor_seconds']:.0f} s"]
        for row in load("newcomer")["rows"]
    ]
    return grid(["command", "took", "of the processor"], rows)
