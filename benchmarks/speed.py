"""What things cost, as ratios within one run: `python -m benchmarks.speed` (no data needed, a quiet machine, some minutes).

Things to compare take turns, and the ratio is that of their fastest rounds: what else the machine does only adds time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.score import RESULTS, environment, replaced, write
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.device import choose_precision
from diffuseg.methods import METHODS, Method
from diffuseg.types import Batch

PLAN = Plan("made", ("MR",), {"background": 0, "anterior": 1, "posterior": 2}, ".nii.gz", patch=(40, 56, 40))
ROUNDS = 7


DRAWN = [  # (what, method, --set, draws, steps)
    ("1 draw of cDAL in 1 step", "cdal", [], 1, 1),
    ("1 draw of cDAL in 2 steps", "cdal", [], 1, 2),
    ("8 draws of cDAL in 2 steps", "cdal", [], 8, 2),
    ("1 draw of distributional", "distributional", [], 1, 1),
    ("8 draws of distributional", "distributional", [], 8, 1),
    ("32 draws of distributional", "distributional", [], 32, 1),
    ("8 draws of MedSegDiff V1 in 2 steps", "medsegdiff", [], 8, 2),
    ("8 draws of MedSegDiff V1 without coupling in 2 steps", "medsegdiff", ["dce=off"], 8, 2),
    ("8 draws of MedSegDiff V2 in 2 steps", "medsegdiff_v2", [], 8, 2),
]


def build(name: str, settings: list[str] | None = None) -> Method:
    """A method on the hippocampus plan, with its defaults where no settings are given."""
    torch.manual_seed(0)
    return METHODS[name](PLAN, override(METHODS[name].config_class(), settings or []))


def seconds(tasks: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """The fastest of some rounds of each task, after one to warm up; tasks take turns."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            found[name].append(time.perf_counter() - started)
    return {name: min(times[1:]) for name, times in found.items()}


def drawing(only: str = "") -> list[dict[str, Any]]:
    """Draws against one pass of the U-Net, on one image, in the precision that prediction takes here."""
    image, device = torch.randn(1, 36, 50, 35), torch.device("cpu")
    precision = choose_precision(device)

    def draw(method: Method, n: int, steps: int | None) -> Callable[[], Any]:
        def task() -> None:
            with precision.autocast(device):
                list(method.draw(image, range(n), steps=steps))

        return task

    tasks = {what: draw(build(name, sets), n, steps) for what, name, sets, n, steps in DRAWN if only in name}
    times = seconds({"unet": draw(build("unet"), 1, None)} | tasks)
    means = "wall time, over one pass of the U-Net of the same width on the same image"
    return [{"what": what, "ratio": times[what] / times["unet"], "means": means, "seconds": times[what]} for what in tasks]


def training() -> list[dict[str, Any]]:
    """A training step (all phases but the lazy R1) in bf16 against float32."""
    rows = []
    for name in ("unet", "cdal"):
        times = seconds({dtype: step(name, dtype == "bf16") for dtype in ("fp32", "bf16")}, rounds=3)
        means = "float32 time over bf16 time: above 1, bf16 is faster"
        row = {"what": f"training step of {name} in bf16", "ratio": times["fp32"] / times["bf16"], "means": means}
        rows.append(row | {"seconds": times["bf16"], "seconds_fp32": times["fp32"]})
    return rows


def step(name: str, bf16: bool) -> Callable[[], None]:
    """One training step of a method on a made-up batch of two."""
    method = build(name)
    mask = torch.zeros(2, PLAN.classes, *PLAN.patch)
    mask[:, 0] = 1
    batch = Batch(torch.randn(2, 1, *PLAN.patch), mask)
    optimiser = torch.optim.AdamW(method.parameters())

    def task() -> None:
        for phase in method.phases:
            if phase.name == "r1":
                continue
            for child, module in method.named_children():
                module.requires_grad_(child in phase.modules)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss, _ = method.loss(batch, phase, torch.Generator().manual_seed(0))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return task


def starting() -> list[dict[str, Any]]:
    """The answer to --help against the bare start of Python."""
    run = lambda *arguments: lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    times = seconds({"help": run("-m", "diffuseg.cli", "--help"), "python": run("-c", "pass")})
    row = {"what": "`diffuseg --help`", "ratio": times["help"] / times["python"], "means": "over the bare start of Python"}
    return [row | {"seconds": times["help"]}]


def first_mask(scan: str) -> list[dict[str, Any]]:
    """Processor time from nothing to the first mask of the packaged model, and that of importing torch, taking turns.

    Without the command's `main` threads that wait for each other spin, as OpenMP has it.
    """
    spent: dict[str, list[float]] = {"mask": [], "spinning": [], "torch": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as out:
            arguments = ("predict", "hippocampus", scan, "--out", out, "--overwrite")
            spinning = ("-c", "from diffuseg.cli import app; app()", *arguments)
            tasks = {"mask": ("-m", "diffuseg.cli", *arguments), "spinning": spinning, "torch": ("-c", "import torch")}
            for name, asked in tasks.items():
                process = subprocess.Popen([sys.executable, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    raise SystemExit(f"{asked}: ended with {process.returncode}")
                spent[name].append(usage.ru_utime + usage.ru_stime)
    mask, torch_alone = min(spent["mask"]), min(spent["torch"])
    means = f"processor time, over that of `import torch` alone: {mask:.1f} s and {torch_alone:.1f} s on this machine"
    what = "`diffuseg predict hippocampus SCAN`, one scan"
    rows = [{"what": what, "ratio": mask / torch_alone, "means": means, "seconds": mask}]
    spun, means = min(spent["spinning"]), "processor time, over that of threads which sleep while they wait; a busy machine"
    return [*rows, {"what": "the same with threads that spin", "ratio": spun / mask, "means": means, "seconds": spun}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a method: measure its draws alone and keep the other rows")
    parser.add_argument("--first-mask", metavar="SCAN", help="measure from the start to its mask alone and keep the other rows")
    asked = parser.parse_args()
    chosen, scan, file = asked.only, asked.first_mask, RESULTS / "speed.json"
    if chosen is None and scan is None:
        rows = drawing() + training() + starting()
        write(file, {"rows": rows})
    else:
        found, before = first_mask(scan) if scan else drawing(chosen), json.loads(file.read_text())
        rows = [row | {"environment": environment()} for row in found]
        before["rows"] = replaced(before["rows"], rows, ("what",))
        file.write_text(json.dumps(before, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))
