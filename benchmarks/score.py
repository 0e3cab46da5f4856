"""Score a checkpoint on the validation cases of its fold: single draws and their mean, for several numbers of steps."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import open_dataset, splits
from diffuseg.data.transforms import to_native
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.inference.model import draw_seed
from diffuseg.precision import choose_precision

from diffuseg.methods import Method
from diffuseg.train.checkpoint import load_checkpoint, model_hash, versions


def score(
    checkpoint: Path,
    dataset_folder: Path,
    fold: int,
    settings: list[tuple[int | None, int]],
    sampler: str | None = None,
) -> list[dict[str, Any]]:
    """One row per (steps, draws): Dice per class and their mean with a bootstrap 95 % interval over cases.

    A single draw is the first of them; seconds are per case for all draws together.
    """
    torch.set_num_threads(torch.get_num_threads())
    method, plan, meta = load_checkpoint(checkpoint)
    dataset = open_dataset(dataset_folder)
    cases = splits(dataset)[fold]["val"]
    source = Batches(dataset, cases, plan, seed=0)
    rows = []
    for steps, draws in settings:
        started = time.monotonic()
        table = [_case(method, source, case, steps, draws, sampler) for case in cases]
        seconds = (time.monotonic() - started) / len(cases)
        scores = np.array(table)  # [case, class]
        mean, low, high = bootstrap_mean(scores.mean(1))
        names = sorted(plan.labels, key=plan.labels.__getitem__)[1:]
        rows.append(
            {
                "method": meta["method"], "model": model_hash(checkpoint), "steps": steps or method.default_steps,
                "draws": draws, "sampler": sampler or method.default_sampler, "cases": len(cases), "fold": fold,
                "dice": mean, "dice_low": low, "dice_high": high, "seconds_per_case": seconds,
                "evaluations_per_case": (steps or method.default_steps) * draws if method.generative else 1,
                "dice_per_class": dict(zip(names, scores.mean(0).tolist(), strict=True)),
                "dice_per_case": dict(zip(cases, scores.mean(1).round(5).tolist(), strict=True)),
                "training_steps": meta["steps_trained"], "training_seconds": meta.get("seconds"),
                "parameters": sum(p.numel() for p in method.parameters()),
            }
        )  # fmt: skip
        shown = {k: rows[-1][k] for k in ("method", "steps", "draws", "dice", "dice_low", "dice_high", "seconds_per_case")}
        print(json.dumps(shown), flush=True)
    return rows


def _case(method: Method, source: Batches, case: str, steps: int | None, draws: int, sampler: str | None) -> list[float]:
    whole = source.whole(case)
    seeds = [draw_seed(0, case, i) for i in range(draws)]
    device = torch.device("cpu")
    total: torch.Tensor | float = 0.0
    with choose_precision(device).autocast(device):
        for p in method.draw(whole.image, seeds, steps=steps, sampler=sampler):
            total = total + p.float()
    mask = to_native(total / draws, whole.placement).argmax(0)
    return [dice(mask == k, whole.truth == k) for k in range(1, source.plan.classes)]


def environment() -> dict[str, Any]:
    """Where figures were taken."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": choose_precision(torch.device("cpu")).reason,
        "versions": versions(),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """A results file, with where it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="0: the model's own")
    parser.add_argument("--draws", type=int, nargs="+", default=[1])
    parser.add_argument("--sampler")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    wanted = [(s or None, d) for s in asked.steps for d in asked.draws]
    rows = [row for c in asked.checkpoints for row in score(c, asked.dataset, asked.fold, wanted, asked.sampler)]
    before = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    write(asked.out, {"dataset": open_dataset(asked.dataset).name, "rows": before + rows})
