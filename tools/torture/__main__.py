"""Run the parts, print a line for each kind, and keep the figures in benchmarks/results/torture.json.

    python -m tools.torture [files] [texts] [kills] [disk] [many] [viewer] [--quick] [--only WORD]

Everything is a function of the seed but the moments of the kills, which are shares of the time that the work takes here.
"""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.score import RESULTS, environment, replaced
from tools.torture import disk, files, kills, many, texts, viewer
from tools.torture.child import Tally

FILE = RESULTS / "torture.json"
PARTS: dict[str, Callable[[bool, Path, str], Iterable[Tally]]] = {  # the last argument: kinds whose name it is a part of
    "files": lambda quick, work, only: files.run(20 if quick else 2000, only),
    "texts": lambda quick, work, only: texts.run(10 if quick else 2000, work, only),
    "kills": lambda quick, work, only: kills.run(2 if quick else 20, work, only),
    "disk": lambda quick, work, only: disk.run(work, only),
    "many": lambda quick, work, only: many.run(40 if quick else 1000, work, only),
    "viewer": lambda quick, work, only: viewer.run(50 if quick else 500, work),
}


def main() -> int:
    """1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them where none is named")
    parser.add_argument("--quick", action="store_true", help="few of each; nothing is stored")
    parser.add_argument("--only", default="", help="kinds whose name holds this word; the figures of others are kept")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # thousands of broken files would say what is odd about them
    bad = 0
    for part in chosen.parts or PARTS:
        before = processor()
        with tempfile.TemporaryDirectory(prefix="torture-") as work:
            for tally in PARTS[part](chosen.quick, Path(work), chosen.only):
                tally.processor, before = processor() - before, processor()
                print(json.dumps(tally.row()), flush=True)
                print("".join(f"    {fault}\n" for fault in tally.faults[:20]), end="", flush=True)
                bad += len(tally.faults)
                if not chosen.quick:
                    store(tally)
    return 1 if bad else 0


def processor() -> float:
    """Seconds of the processor that this process and its children have had."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def store(tally: Tally) -> None:
    """Keep the row of a kind, in place of that of an earlier run of it; parts are in their order."""
    before = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    rows = replaced(before["rows"], [tally.row()], ("part", "kind"))
    rows.sort(key=lambda row: list(PARTS).index(row["part"]))
    FILE.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
