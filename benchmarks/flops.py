"""Operations of draws, counted and not timed: `python -m benchmarks.flops` (no data needed, some minutes; `make bench`).

A count is that of `torch.utils.flop_counter`: multiplications and additions of convolutions and matrix products, on an image of
the size of the patch. What it leaves out, such as norms and the moving of memory, is in the wall times of `benchmarks.speed`.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.score import RESULTS, environment
from diffuseg.data.plan import Plan
from diffuseg.inference.model import load
from diffuseg.methods import METHODS, Method

COUNTED = ("unet", "ssn", "distributional", "cdal", "concat")  # the first one is the unit
DRAWS = (1, 8, 32)
LIDC = Plan(
    "lidc", ("CT",), {"background": 0, "nodule": 1}, ".png", dims=2, orientation=None, crop=(64, 64), patch=(64, 64),
    widths=(16, 32, 64, 128), flips=(0, 1),
)  # fmt: skip


def plans() -> dict[str, Plan]:
    """That of the packaged model, and that of the measurements on LIDC."""
    return {"hippocampus": load("hippocampus", "cpu").plan, "LIDC": LIDC}


def operations(task: Callable[[], Any]) -> int:
    """Multiplications and additions of a task."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task()
    return counter.get_total_flops()


def of_draws(method: Method, draws: int) -> int:
    """Those of so many draws with the method's own steps, the image being one tile."""
    image = torch.zeros(method.plan.image_channels, *method.plan.patch)
    return operations(lambda: list(method.draw(image, range(draws))))


def main() -> None:
    """Count, print and store, beside the ratios of times."""
    rows = []
    for where, plan in plans().items():
        for name in COUNTED:
            method = METHODS[name](plan, METHODS[name].config_class()).eval()
            steps = method.default_steps if method.generative else 1
            for draws in DRAWS:
                row = {"plan": where, "patch": list(plan.patch), "method": name, "steps": steps, "draws": draws}
                rows.append(row | {"operations": of_draws(method, draws)})
                print(json.dumps(rows[-1]), flush=True)
    file = RESULTS / "speed.json"
    found = json.loads(file.read_text()) | {"operations": {"rows": rows, "environment": environment()}}
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
