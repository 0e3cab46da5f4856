"""Many small cases: one process that holds the model against one command per case, and four shards of which one is killed.

    python -m benchmarks.many [--cases 1000] [--commands 20]

No data is needed: volumes are made up, and the model is tiny and untrained. Costs are processor time of whole commands, so that
what else the machine does matters little.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.score import RESULTS, environment

FILE = RESULTS / "many.json"
SHARDS = 4
DRAWN = ["--draws", "2", "--steps", "2", "--device", "cpu"]


def make(folder: Path, cases: int) -> tuple[Path, Path]:
    """A checkpoint that has learnt nothing, and a folder of small scans."""
    import torch

    from diffuseg.checkpoint import save_checkpoint
    from diffuseg.config import override
    from diffuseg.data.io import write
    from diffuseg.data.plan import Plan
    from diffuseg.data.synthetic import volume
    from diffuseg.methods import METHODS
    from diffuseg.types import Image

    labels = {"background": 0, "head": 1, "tail": 2}
    plan = Plan("made", ("MR",), labels, ".nii.gz", orientation="RAS", patch=(8, 8, 8), widths=(4, 8))
    torch.manual_seed(0)
    method = METHODS["concat"](plan, override(METHODS["concat"].config_class(), ["T=10", "steps=2"]))
    save_checkpoint(folder / "model.safetensors", method, {"name": "made/concat"})
    scans = folder / "scans"
    for number in range(cases):
        voxels, _, affine = volume(0, number, (10, 12, 9))
        write(scans / f"case{number:04}.nii.gz", voxels[0], Image(voxels, affine))
    return folder / "model.safetensors", scans


def command(*arguments: object) -> float:
    """Seconds of the processor that a command takes."""
    process = start(*arguments)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments}: ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """The command, on one thread."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    asked = [sys.executable, "-m", "diffuseg.cli", *map(str, arguments)]
    return subprocess.Popen(asked, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def shards(model: Path, scans: Path, out: Path, cases: int) -> int:
    """Every shard in a process of its own; the second is killed when it has a third of its cases, and started again.

    Returns:
        The cases that it had when it was killed.
    """
    share = lambda index: ("predict", model, scans, "--out", out, "--shard", f"{index}/{SHARDS}", *DRAWN)
    running = [start(*share(index)) for index in range(1, SHARDS + 1)]
    victim, own = running[1], {f"case{number:04}.json" for number in range(1, cases, SHARDS)}
    had: set[str] = set()
    while victim.poll() is None and len(had) < max(len(own) // 3, 1):
        time.sleep(0.02)
        had = own & {path.name for path in out.glob("case*.json")}
    victim.send_signal(signal.SIGKILL)
    if victim.wait() != -signal.SIGKILL:
        raise SystemExit("the shard was through before it could be killed: take more cases")
    running[1] = start(*share(2))
    for process in running:
        if process.wait():
            raise SystemExit(f"a shard ended with {process.returncode}")
    return len(had)


def contents(out: Path) -> dict[str, bytes]:
    """Every result by its file name, records without their times."""
    found = {}
    for path in sorted(out.glob("case*")):
        content = path.read_bytes()
        if path.suffix == ".json":
            record = json.loads(content)
            content = json.dumps({key: value for key, value in record.items() if key != "seconds"}).encode()
        found[path.name] = content
    return found


def measure(cases: int, commands: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    model, scans = make(folder, cases)
    held = command("predict", model, scans, "--out", folder / "held", *DRAWN)
    paths = sorted(scans.iterdir())[:commands]
    alone = sum(command("predict", model, path, "--out", folder / "alone", *DRAWN) for path in paths)
    had = shards(model, scans, folder / "shards", cases)
    command("merge", folder / "shards")
    one, merged, single = (contents(folder / name) for name in ("held", "shards", "alone"))
    same = lambda found: sum(found.get(name) == content for name, content in one.items())
    named = [name.removesuffix(".json") for name in merged if name.endswith(".json")]
    row = {"cases": cases, "commands": len(paths), "held_seconds": held / cases, "alone_seconds": alone / len(paths)}
    row |= {"ratio": row["alone_seconds"] / row["held_seconds"], "alone_differ": len(single) - same(single)}
    row |= {"shards": SHARDS, "had_when_killed": had, "lost": cases - len(set(named)), "files": len(one)}
    return row | {"differ": len(one.keys() | merged.keys()) - same(merged)}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--commands", type=int, default=20, help="cases that get a command each")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many-") as folder:
        row = measure(chosen.cases, chosen.commands, Path(folder))
    print(json.dumps(row))
    FILE.write_text(json.dumps(row | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
