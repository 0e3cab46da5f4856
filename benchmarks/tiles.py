"""Tiles by measurement: how much they overlap, and whether several in one batch are faster.

    python -m benchmarks.tiles MODEL DATASET [--draws N]    # Dice against cost, on the validation cases of the model's fold
    python -m benchmarks.tiles --batches                    # time of a tile in batches of several; no data needed

Dice is that of the mean of the draws on the plan's grid: of all voxels, and of those near the seams, which are within 8 voxels
of where tiles meet that do not overlap. Overlaps take turns on each case, so what else the machine does meets all of them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from benchmarks.score import RESULTS, environment, replaced
from diffuseg.data.batches import Batches, FullCase
from diffuseg.data.dataset import open_dataset, splits
from diffuseg.data.plan import Plan
from diffuseg.device import choose_precision
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import bootstrap_mean, paired_difference
from diffuseg.inference.model import Model, load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import METHODS
from diffuseg.methods.base import MaskMethod
from diffuseg.methods.tiles import OVERLAP, windows

FILE = RESULTS / "tiles.json"
OVERLAPS = (0.0, 0.125, 0.25, OVERLAP)
NEAR = 8  # voxels on either side of a seam
BATCHES, THREADS, ROUNDS = (1, 2, 4, 8), (1, 2), 3
PLAN = Plan("made", ("R", "G", "B"), {"background": 0, "nucleus": 1}, ".png", dims=2, patch=(256, 256))


def seams(shape: Sequence[int], patch: Sequence[int], near: int = NEAR) -> Bool[np.ndarray, "*s"]:
    """The voxels within `near` of where tiles meet that overlap no more than they have to.

    Args:
        shape: Voxels per axis of the case.
        patch: Voxels per axis of a tile.
        near: Voxels on either side.
    """
    found = np.zeros(tuple(shape), bool)
    for axis, (n, p) in enumerate(zip(shape, patch, strict=True)):
        tiles = [window[0] for window in windows((n,), (p,), 0.0)] if n > p else []
        for before, after in zip(tiles, tiles[1:], strict=False):
            part = slice(max(after.start - near, 0), before.stop + near)
            found[(slice(None),) * axis + (part,)] = True
    return found


def count(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Tiles of a case."""
    plane = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    return len(list(windows(plane, tuple(patch), overlap)))


def measure(model: Model, case: FullCase, options: SamplingOptions) -> dict[str, float]:
    """One case with one overlap: Dice of all voxels and near the seams, mean over classes, and seconds of the processor."""
    started = time.process_time()
    draws = model.prepare(case, options)
    ensemble = draws.ensemble(spread=False)
    for draw in draws.draw():
        ensemble.add(draw)
    seconds = time.process_time() - started
    mask, truth = ensemble.mean.argmax(0).numpy(), case.mask.numpy()
    near, classes = seams(truth.shape, model.plan.patch), range(1, model.plan.classes)
    score = lambda where: float(np.nanmean([dice((mask == k)[where], (truth == k)[where]) for k in classes]))
    return {"dice": score(np.ones_like(near)), "seams": score(near), "seconds": seconds}


def overlaps(model: Model, folder: Path, options: SamplingOptions) -> list[dict[str, Any]]:
    """A row for each overlap: means over the validation cases of the model's fold, and paired differences to the largest."""
    dataset, plan, fold = open_dataset(folder), model.plan, model.meta["fold"]
    cases = splits(dataset)[fold]["val"]
    source, found = Batches(dataset, cases, plan, seed=0), {overlap: [] for overlap in OVERLAPS}
    options, shapes = model.resolve(options), []
    for name in cases:
        case = source.whole(name)
        if case.mask.ndim != plan.dims or not seams(case.mask.shape, plan.patch).any():
            raise SystemExit(
                f"{name}: one tile of {plan.patch} holds a case of {tuple(case.mask.shape)}, or it is seen in slices"
            )
        shapes.append(tuple(case.mask.shape))
        for overlap in OVERLAPS:
            found[overlap].append(measure(model, case, replace(options, overlap=overlap)))
        print(name, json.dumps({overlap: rows[-1] for overlap, rows in found.items()}), flush=True)
    values = {overlap: {key: [row[key] for row in rows] for key in rows[0]} for overlap, rows in found.items()}
    whole, rows = values[OVERLAP], []
    for overlap, by in values.items():
        row: dict[str, Any] = {"set": dataset.name, "method": model.meta["method"], "model": model.hash, "fold": fold}
        row |= {"training_steps": model.meta["steps_trained"], "draws": options.draws, "steps": options.steps or 1}
        row |= {"overlap": overlap, "cases": len(cases), "patch": list(plan.patch), "shape": list(max(shapes))}
        row |= {"tiles": float(np.mean([count(shape, plan.patch, overlap) for shape in shapes]))}
        row |= {"processor_seconds_per_case": float(np.mean(by["seconds"])), "values": by}
        for key in ("dice", "seams"):
            row[key] = bootstrap_mean(by[key])._asdict()
            row[f"{key}_difference"] = paired_difference(by[key], whole[key])._asdict()
        rows.append(row)
    return rows


def batches() -> list[dict[str, Any]]:
    """Seconds of one tile of the U-Net, encoded and denoised in batches of several, fastest of some rounds that take turns."""
    torch.manual_seed(0)
    method, device = METHODS["unet"](PLAN, METHODS["unet"].config_class()), torch.device("cpu")
    assert isinstance(method, MaskMethod)
    method.eval()
    precision, image, rows = choose_precision(device), torch.randn(max(BATCHES), 3, *PLAN.patch), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in BATCHES}
        for _ in range(ROUNDS + 1):
            for size in BATCHES:
                started, busy = time.perf_counter(), time.process_time()
                with torch.no_grad(), precision.autocast(device):
                    for part in image.split(size):
                        method.denoise(None, 0, method.encode(part), None)
                found[size].append((time.perf_counter() - started, time.process_time() - busy))
        for size, times in found.items():
            wall, busy = (min(values) / len(image) for values in zip(*times[1:], strict=True))
            rows.append({"batch": size, "threads": threads, "seconds": wall, "processor_seconds": busy})
    return rows


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--batches", action="store_true")
    asked = parser.parse_args()
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"overlap": [], "batches": []}
    if asked.batches:
        name, keys, rows = "batches", ("batch", "threads"), batches()
    elif asked.model and asked.dataset:
        name, keys = "overlap", ("set", "method", "draws", "overlap")
        rows = overlaps(load(asked.model, "cpu"), asked.dataset, SamplingOptions(asked.draws))
    else:
        raise SystemExit("give a model and a data set, or --batches")
    kept[name] = replaced(kept[name], [row | {"environment": environment()} for row in rows], keys)
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
