"""Hold the coverage of each package against its floor, `[tool.diffuseg.coverage]` in pyproject.toml.

    python -m pytest --cov --cov-report=json && python -m tools.coverage_gate [coverage.json]

A package is a folder of src/diffuseg; "." is what lies directly in it. A package below its floor is a fault, and so is a floor
for a package that is not there.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[1]


def packages(report: dict) -> dict[str, tuple[int, int]]:
    """Lines that ran, and all lines, of each package, from a coverage.json."""
    found: dict[str, tuple[int, int]] = {}
    for file, measured in report["files"].items():
        below = PurePath(file).parts[PurePath(file).parts.index("diffuseg") + 1 :]
        name = below[0] if len(below) > 1 else "."
        ran, lines = found.get(name, (0, 0))
        found[name] = ran + measured["summary"]["covered_lines"], lines + measured["summary"]["num_statements"]
    return dict(sorted(found.items()))


def faults(measured: dict[str, tuple[int, int]], floors: dict[str, float]) -> list[str]:
    """What is below its floor, or not there."""
    missing = [f"{name}: has a floor but no lines" for name in floors if not measured.get(name, (0, 0))[1]]
    below = [
        f"{name}: {100 * ran / lines:.1f} %, its floor is {floors[name]:g} %"
        for name, (ran, lines) in measured.items()
        if lines and 100 * ran / lines < floors.get(name, 0)
    ]
    return missing + below


def main() -> int:
    """Print the coverage of each package; 1 if one is below its floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", default=ROOT / "coverage.json")
    measured = packages(json.loads(parser.parse_args().report.read_text()))
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["diffuseg"]["coverage"]
    for name, (ran, lines) in measured.items():
        if lines:
            print(f"{name:12} {100 * ran / lines:5.1f} %  of {lines:5} lines, floor {floors.get(name, 0):g}")
    found = faults(measured, floors)
    for fault in found:
        print(f"error: {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
