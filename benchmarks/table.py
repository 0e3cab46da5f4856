"""Render the tables of README and docs from benchmarks/results/*.json; with --check, fail where they differ.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function of benchmarks/tables.
"""

import argparse
import re
import sys

from benchmarks.tables import (
    choosing,
    flops,
    hippocampus,
    install,
    intervals,
    many,
    medsegdiff,
    memory,
    mutants,
    newcomer,
    raters,
    sets,
    tiles,
    time_to_dice,
    torture,
    weak,
)
from benchmarks.tables.grid import ROOT

PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MODULES = (
    hippocampus, intervals, sets, raters, weak, medsegdiff, memory, choosing, torture, mutants, many, newcomer, tiles,
    time_to_dice, flops, install,
)  # fmt: skip
TABLES = {
    name: made
    for module in MODULES
    for name, made in vars(module).items()
    if callable(made) and made.__module__ == module.__name__ and not name.startswith("_")
}


def render(text: str) -> str:
    """The text with every table made anew."""
    return PLACE.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Write the tables, or with --check say which file disagrees with the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    cards = sorted((ROOT / "src" / "diffuseg" / "models").glob("*.md"))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *cards]:
        text = path.read_text()
        new = render(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'does not agree with benchmarks/results; run `make tables`' if check else 'rendered'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
