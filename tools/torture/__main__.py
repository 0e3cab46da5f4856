"""Run the parts, print a line for each kind, and keep the figures in benchmarks/results/torture.json.

    python -m tools.torture [files] [texts] [kills] [disk] [viewer] [--quick]

Everything is a function of the seed but the moments of the kills, which are shares of the time that the work takes here.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.score import RESULTS, environment
from tools.torture import disk, files, kills, texts, viewer
from tools.torture.child import Tally

FILE = RESULTS / "torture.json"
PARTS: dict[str, Callable[[bool, Path], Iterable[Tally]]] = {
    "files": lambda quick, work: files.run(20 if quick else 2000),
    "texts": lambda quick, work: texts.run(10 if quick else 500, work),
    "kills": lambda quick, work: kills.run(2 if quick else 20, work),
    "disk": lambda quick, work: disk.run(work),
    "viewer": lambda quick, work: viewer.run(50 if quick else 500, work),
}


def main() -> int:
    """1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them where none is named")
    parser.add_argument("--quick", action="store_true", help="few of each; nothing is stored")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # thousands of broken files would say what is odd about them
    bad = 0
    for part in chosen.parts or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="torture-") as work:
            tallies: list[Tally] = []
            for tally in PARTS[part](chosen.quick, Path(work)):
                tallies.append(tally)
                print(json.dumps(tally.row()), flush=True)
                print("".join(f"    {fault}\n" for fault in tally.faults[:20]), end="", flush=True)
                bad += len(tally.faults)
                if not chosen.quick:
                    store(part, tallies, time.monotonic() - started)
    return 1 if bad else 0


def store(part: str, tallies: list[Tally], seconds: float) -> None:
    """Keep the rows of a part, in place of those of an earlier run of it."""
    before = json.loads(FILE.read_text()) if FILE.exists() else {"rows": [], "minutes": {}}
    rows = {name: [row for row in before["rows"] if row["part"] == name] for name in PARTS}
    rows[part] = [tally.row() for tally in tallies]
    minutes = before["minutes"] | {part: round(seconds / 60, 1)}
    content = {"rows": [row for name in PARTS for row in rows[name]], "minutes": minutes, "environment": environment()}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
