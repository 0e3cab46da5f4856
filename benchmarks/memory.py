"""Peak memory and time of a prediction over sizes of images: `python -m benchmarks.memory` (no data needed).

Each size is one process that predicts a made-up image from a file into files: three classes, two draws of one step. The
denoiser is one line without a network: what a tile of a network needs comes on top, and does not grow with the image. The peak
is what the system saw resident.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.score import RESULTS, environment, replaced

FILE = RESULTS / "memory.json"
VOLUMES = [(32, 32, 32), (64, 64, 64), (128, 128, 128), (192, 192, 192), (256, 256, 256)]
PICTURES = [(256, 256), (1000, 1000), (2000, 2000), (4000, 4000)]
LARGEST = [(512, 512, 600), (20000, 20000)]  # by `--sizes`: they take hours; a slide by `--slide` too
TISSUE = 0.2  # of a slide
SCAN, DRAWS = (36, 50, 35), (1, 32)  # of the packaged model: about as large as its training images
QUICK = [(32, 32, 32), (64, 64, 64), (250, 250), (500, 500)]
MOST_PNG = 2**25  # pixels
PATCH = {2: (256, 256), 3: (64, 64, 64)}
SPACING = 0.8  # mm of the plan, where the image has 1 mm: all is resampled


def model(dims: int, resampled: bool, patch: tuple[int, ...] | None = None, colours: bool = False) -> Any:
    """A model of three classes whose denoiser is one line: the noisy mask, pulled to what intensity or colours say."""
    import torch

    from diffuseg.data.plan import Plan
    from diffuseg.device import Precision
    from diffuseg.diffusion.schedule import NoiseSchedule
    from diffuseg.inference.model import Model
    from diffuseg.methods.base import MaskConfig, MaskMethod

    class Line(MaskMethod):
        """No network."""

        schedule = NoiseSchedule.variance_preserving(4, 0.1, 20.0)
        phases = ()

        def loss(self, batch: Any, phase: Any, rng: Any) -> Any:
            raise NotImplementedError

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image

        def denoise(self, x_t: torch.Tensor | None, t: int, features: Any, z: Any) -> torch.Tensor:
            assert x_t is not None
            return (0.2 * x_t + features).softmax(1) * 2 - 1

    labels = {"background": 0, "a": 1, "b": 2}
    ending, turned = (".png", None) if dims == 2 else (".nii.gz", "RAS")
    spacing = (SPACING,) * dims if resampled else None
    channels = ("R", "G", "B") if colours else ("MR",)
    own: dict[str, Any] = {"dims": dims, "orientation": turned, "spacing": spacing, "patch": patch or PATCH[dims]}
    plan = Plan("made", channels, labels, ending, normalisation=("zscore",) * len(channels), **own)
    precision = Precision(torch.float32, "fp32")
    return Model(Line(plan, MaskConfig()), plan, {"method": "line"}, "line", "0" * 12, torch.device("cpu"), precision)


def image(folder: Path, shape: tuple[int, ...]) -> Path:
    """An image of whole numbers with a bright box, as a file."""
    import numpy as np

    from diffuseg.data.io import write
    from diffuseg.types import Image

    data = np.random.default_rng(0).integers(0, 100, shape, np.uint8)
    data[tuple(slice(n // 4, n // 2) for n in shape)] += 100
    ending = ".nii.gz" if len(shape) == 3 else ".png" if data.size <= MOST_PNG else ".tif"
    path = folder / f"{'x'.join(map(str, shape))}{ending}"
    write(path, data, Image(data[None]))
    return path


def slide(folder: Path, shape: tuple[int, ...]) -> Path:
    """A slide of one level as a file: glass, and a block of stained noise."""
    import numpy as np
    import tifffile

    noise = np.random.default_rng(0)
    glass, stained = (
        noise.normal(colour, 5, (512, 512, 3)).round().astype(np.uint8) for colour in ((242, 240, 243), (180, 110, 170))
    )
    tiles = [-(-n // 512) for n in shape]
    ends = [round(n * TISSUE**0.5) for n in tiles]
    content = (
        stained if row < ends[0] and column < ends[1] else glass for row in range(tiles[0]) for column in range(tiles[1])
    )
    path = folder / f"{'x'.join(map(str, shape))}.svs"
    kind = {"shape": (*shape, 3), "dtype": np.uint8, "tile": (512, 512), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, content, description="Aperio Image Library|AppMag = 20|MPP = 0.5", **kind)
    return path


def peak(command: list[str]) -> dict[str, float]:
    """Peak resident megabytes (10^6 bytes) of a command on one thread, its wall time, and its processor time in seconds."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode())
    seconds, busy = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return {"peak_mb": round(usage.ru_maxrss * 1024 / 1e6, 1), "seconds": round(seconds, 1), "cpu_seconds": round(busy, 1)}


def measure(
    shape: tuple[int, ...], resampled: bool = False, steps: int = 1, draws: int = 2, as_slide: bool = False
) -> dict[str, Any]:
    """One row: a prediction of an image of this size in a process of its own."""
    asked = {"resampled": resampled, "steps": steps, "draws": draws}
    with tempfile.TemporaryDirectory() as name:
        case = slide(Path(name), shape) if as_slide else image(Path(name), shape)
        command = [sys.executable, "-m", "benchmarks.memory", "--child", str(case), json.dumps(asked)]
        found = peak(command)
    row = {"size": "x".join(map(str, shape)), "voxels": math.prod(shape)} | asked
    return row | found


def packaged(draws: int) -> dict[str, Any]:
    """One row: the command with the packaged model and so many draws."""
    with tempfile.TemporaryDirectory() as name:
        case = image(Path(name), SCAN)
        asked = ["predict", "hippocampus", str(case), "--out", str(Path(name) / "out"), "--draws", str(draws)]
        found = peak([sys.executable, "-m", "diffuseg.cli", *asked])
    row = {"label": "packaged", "size": "x".join(map(str, SCAN)), "voxels": math.prod(SCAN)}
    return row | {"resampled": False, "steps": 1, "draws": draws} | found


def child(case: Path, resampled: bool, steps: int, draws: int) -> None:
    """What a process of its own does."""
    from diffuseg.inference.folder import predict_folder
    from diffuseg.inference.sampling import SamplingOptions

    is_slide = case.suffix == ".svs"
    loaded = model(3 if case.suffix == ".gz" else 2, resampled, colours=is_slide)
    options = SamplingOptions(draws, steps, magnification=20 if is_slide else None)
    result = predict_folder(loaded, [case], case.parent / "out", options)
    if result.failed:
        raise SystemExit(str(result.failed))


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is stored")
    parser.add_argument("--label", default="now", help="what the rows are called: before, now")
    parser.add_argument("--sizes", nargs="*", help="such as 256x256x192 or 2000x2000, instead of the usual ones")
    parser.add_argument("--rounds", type=int, default=1, help="of all sizes; of time the mean is kept, of memory the most")
    parser.add_argument("--busy", action="store_true", help="say in the results that the machine did other work")
    parser.add_argument("--resampled", action="store_true", help="on a plan of another spacing")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--slide", action="store_true", help="a whole slide, a fifth of it tissue")
    parser.add_argument("--packaged", action="store_true", help="the packaged model, 1 draw and 32")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(Path(chosen.child[0]), **json.loads(chosen.child[1]))
        return
    if chosen.packaged:
        for draws in DRAWS:
            row = packaged(draws)
            print(json.dumps(row), flush=True)
            store(row | {"environment": environment()})
        return
    named = [tuple(int(n) for n in size.split("x")) for size in chosen.sizes or ()]
    found: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    where = environment() | ({"other_work": True} if chosen.busy else {})
    for shape in (named or (QUICK if chosen.quick else VOLUMES + PICTURES)) * chosen.rounds:
        row = measure(shape, chosen.resampled, chosen.steps, chosen.draws, chosen.slide)
        print(json.dumps(row), flush=True)
        found.setdefault(shape, []).append(row)
        if not chosen.quick:
            store({"label": "slide" if chosen.slide else chosen.label} | together(found[shape]) | {"environment": where})


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rounds of one size as one row: the mean of the times, the most of the memory."""
    times = {key: round(sum(row[key] for row in rows) / len(rows), 2) for key in ("seconds", "cpu_seconds")}
    return rows[0] | times | {"peak_mb": max(row["peak_mb"] for row in rows), "rounds": len(rows)}


def store(row: dict[str, Any]) -> None:
    """Keep one row, in place of an earlier one of the same name."""
    before = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    rows = replaced(before, [row], ("label", "size", "resampled", "steps", "draws"))
    FILE.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
