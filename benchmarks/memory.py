"""Peak memory and time of `diffuseg predict` over sizes of images: `python -m benchmarks.memory` (no data needed).

Each size is one process: a made-up image on the plan's grid, a tiny network of three classes, two draws of one step. The peak
is what the system saw resident; the rows end in the slope, bytes of the peak per voxel between the two largest of a kind.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.score import RESULTS, environment, replaced

FILE = RESULTS / "memory.json"
VOLUMES = [(64, 64, 64), (128, 128, 128), (192, 192, 192), (256, 256, 192)]
PICTURES = [(500, 500), (1000, 1000), (1500, 1500), (2000, 2000)]
QUICK = [(32, 32, 32), (64, 64, 64), (250, 250), (500, 500)]
PATCH = {2: (256, 256), 3: (64, 64, 64)}
SPACING = 0.8  # mm of the plan, where the image has 1 mm: all is resampled


def checkpoint(folder: Path, dims: int, resampled: bool = False, widths: tuple[int, ...] = (8, 16, 16, 16)) -> Path:
    """A freshly built network of three classes as a checkpoint."""
    import torch

    from diffuseg.checkpoint import save_checkpoint
    from diffuseg.config import override
    from diffuseg.data.plan import Plan
    from diffuseg.methods import METHODS

    labels = {"background": 0, "a": 1, "b": 2}
    spacing = (SPACING,) * dims if resampled else None
    ending = ".png" if dims == 2 else ".nii.gz"
    plan = Plan(
        "made",
        ("MR",),
        labels,
        ending,
        dims=dims,
        orientation=None if dims == 2 else "RAS",
        spacing=spacing,
        patch=PATCH[dims],
        widths=widths,
    )
    torch.manual_seed(0)
    path = folder / f"tiny{dims}{'r' * resampled}.safetensors"
    save_checkpoint(path, METHODS["cdal"](plan, override(METHODS["cdal"].config_class(), [])), {"name": "tiny"})
    return path


def image(folder: Path, shape: tuple[int, ...]) -> Path:
    """An image of whole numbers with a bright box, as a file."""
    import numpy as np

    from diffuseg.data.io import write
    from diffuseg.types import Image

    data = np.random.default_rng(0).integers(0, 100, shape, np.uint8)
    data[tuple(slice(n // 4, n // 2) for n in shape)] += 100
    path = folder / f"{'x'.join(map(str, shape))}{'.png' if len(shape) == 2 else '.nii.gz'}"
    write(path, data, Image(data[None]))
    return path


def peak(command: list[str]) -> tuple[float, float]:
    """Peak resident megabytes (10^6 bytes) and seconds of a command, on one thread."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode())
    return usage.ru_maxrss * 1024 / 1e6, time.perf_counter() - started


def measure(shape: tuple[int, ...], resampled: bool = False, *options: str) -> dict[str, Any]:
    """One row: a prediction of an image of this size in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, case = checkpoint(folder, len(shape), resampled), image(folder, shape)
        ask = ["predict", str(model), str(case), "--out", str(folder / "out"), "--draws", "2", "--steps", "1", *options]
        megabytes, seconds = peak([sys.executable, "-m", "diffuseg.cli", *ask])
    voxels = 1
    for n in shape:
        voxels *= n
    row = {"shape": list(shape), "voxels": voxels, "resampled": resampled, "options": list(options)}
    return row | {"peak_mb": round(megabytes, 1), "seconds": round(seconds, 1)}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is stored")
    parser.add_argument("--label", default="now", help="what the rows are called: before, now")
    parser.add_argument("--sizes", nargs="*", help="such as 256x256x192 or 2000x2000, instead of the usual ones")
    parser.add_argument("--resampled", action="store_true", help="on a plan of another spacing")
    parser.add_argument("options", nargs="*", help="further options of predict, after --")
    chosen = parser.parse_args()
    named = [tuple(int(n) for n in size.split("x")) for size in chosen.sizes or ()]
    rows = []
    for shape in named or (QUICK if chosen.quick else VOLUMES + PICTURES):
        row = {"label": chosen.label} | measure(shape, chosen.resampled, *chosen.options)
        print(json.dumps(row), flush=True)
        rows.append(row | {"environment": environment()})
    if not chosen.quick:
        before = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
        rows = replaced(before, rows, ("label", "shape", "resampled", "options"))
        FILE.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
