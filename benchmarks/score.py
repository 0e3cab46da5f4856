"""Score a checkpoint on the validation cases of its fold: single draws and their mean, for several numbers of steps.

Draws are those of `predict` with seed 0: their noise hangs on the content of an image. The results that are stored were
measured when it hung on the names of the cases: other draws of the same distribution.
"""

import argparse
import json
import platform
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence import processor_seconds
from diffuseg.atomic_io import nan_to_none
from diffuseg.checkpoint import versions
from diffuseg.data.batches import Batches, FullCase
from diffuseg.data.dataset import open_dataset, patients, splits
from diffuseg.device import choose_precision
from diffuseg.evaluation.calibration_metrics import band, measures
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.multirater import DrawAgreement, draw_agreement
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.inference.model import Model, load
from diffuseg.inference.sampling import SamplingOptions

RESULTS = Path(__file__).parent / "results"


def score(
    checkpoint: Path,
    dataset_folder: Path,
    fold: int,
    steps: int | None = None,
    draws: int = 8,
    sampler: str | None = None,
    every: int = 1,
) -> list[dict[str, Any]]:
    """Two rows, one draw and the mean of `draws`, with the same draws: Dice per class, volume Dice on native voxels.

    Intervals are over patients, each case one of its own where the data set does not tell.

    disagreement  voxels on which two draws differ, as a share of the object, mean over pairs
    agreement     mean Dice of a draw with the truth, of two draws, and their difference with its interval
    band          ece, adaptive_ece, brier and nll (nats) in the band round the true border, mean over cases that have one
    """
    model = load(checkpoint, "cpu")
    method, plan, meta = model.method, model.plan, model.meta
    dataset = open_dataset(dataset_folder)
    cases = splits(dataset)[fold]["val"][::every]
    patient_of, _ = patients(dataset)
    groups = [patient_of[case] for case in cases]
    source = Batches(dataset, cases, plan, seed=0)
    options = model.resolve(SamplingOptions(draws, steps or method.default_steps, sampler))
    draws = options.draws or 1
    started, busy = time.monotonic(), time.process_time()
    measured = [_case(model, source.whole(case), options) for case in cases]
    seconds, busy = ((now - then) / len(cases) for now, then in ((time.monotonic(), started), (time.process_time(), busy)))
    names = plan.names[1:]
    steps = options.steps or 1
    rows = []
    for n in sorted({1, draws}):
        scores = np.array([m["dice"][n] for m in measured])  # [case, class]
        per_case = _known_mean(scores, 1)  # a class in neither mask has no value
        mean, low, high = bootstrap_mean(per_case, groups)
        row = {
            "method": meta["method"], "model": model.hash, "steps": steps, "draws": n,
            "default_steps": method.default_steps if method.generative else 1,
            "sampler": options.sampler,
            "cases": len(cases), "fold": fold, "patient_of_case": numbered(groups),
            "dice": mean, "dice_low": low, "dice_high": high,
            "dice_per_class": dict(zip(names, _known_mean(scores, 0).tolist(), strict=True)),
            "dice_per_case": nan_to_none(dict(zip(cases, per_case.round(5).tolist(), strict=True))),
            "band": {name: float(np.nanmean([m["band"][n][name] for m in measured])) for name in measured[0]["band"][n]},
            "disagreement": float(np.mean([m["disagreement"] for m in measured])) if n > 1 else None,
            "agreement": _agreement([m["agreement"] for m in measured], groups) if n > 1 else None,
            "seconds_per_case": seconds * n / draws, "processor_seconds_per_case": busy * n / draws,
            "training_processor_seconds": processor_seconds(checkpoint.parent), "evaluations_per_case": steps * n,
            "training_steps": trained_steps(meta), "training_seconds": meta.get("seconds"),
            "parameters": sum(p.numel() for p in method.parameters()),
        }  # fmt: skip
        rows.append(row)
        shown = ("method", "steps", "draws", "dice", "dice_low", "dice_high", "disagreement", "seconds_per_case")
        brief = {k: row[k] for k in shown} | {"nll": row["band"]["nll"]}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in brief.items()}), flush=True)
    return rows


def _case(model: Model, whole: FullCase, options: SamplingOptions) -> dict[str, Any]:
    """Dice per class and likelihood of the first draw and of the mean of all, and how much the draws differ."""
    draws = model.prepare(whole, options)
    native = [draws.to_native(p.float()) for p in draws.draw()]
    masks = [p.argmax(0) for p in native]
    classes = range(1, model.plan.classes)
    found: dict[str, Any] = {"dice": {}, "band": {}}
    near = band(whole.truth, whole.native.spacing)
    for n, p in {1: native[0], len(native): np.mean(native, axis=0)}.items():
        mask = p.argmax(0)
        found["dice"][n] = [dice(mask == k, whole.truth == k) for k in classes]
        found["band"][n] = measures(p, whole.truth, near)
    changed = [(a != b).sum() for a, b in combinations(masks, 2)]
    found["agreement"] = draw_agreement(np.stack(masks), whole.truth[None], list(classes))
    found["disagreement"] = float(np.mean(changed) / max((whole.truth > 0).sum(), 1)) if changed else 0.0
    return found


def _agreement(cases: list[DrawAgreement], groups: list[str]) -> dict[str, Any]:
    """Means over cases; of the difference with its 95 % interval over groups of them."""
    truth, other, gap = (list(values) for values in zip(*cases, strict=True))
    means = {"draw_truth": float(np.mean(truth)), "draw_draw": float(np.mean(other))}
    return means | {"gap": bootstrap_mean(gap, groups)._asdict()}


def numbered(groups: list[str]) -> list[int]:
    """A number for each case, the same for cases of one group: which patients are one, and not who they are."""
    number = {group: i for i, group in enumerate(sorted(set(groups)))}
    return [number[group] for group in groups]


def _known_mean(scores: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is."""
    known = np.isfinite(scores)
    return np.where(known, scores, 0).sum(axis) / np.where(known.any(axis), known.sum(axis), np.nan)


def replaced(before: list[dict[str, Any]], anew: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of before without those that were measured anew, which have the same values of these keys, and the new ones."""
    measured = {tuple(row[key] for key in keys) for row in anew}
    return [row for row in before if tuple(row[key] for key in keys) not in measured] + anew


def environment() -> dict[str, Any]:
    """Where figures were taken."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": choose_precision(torch.device("cpu")).reason,
        "versions": versions(),
    }


def trained_steps(meta: dict[str, Any]) -> int:
    """Steps of a training and of those that it started from, by its header."""
    before = meta.get("from")
    return meta["steps_trained"] + (trained_steps(before | {"from": before.get("before")}) if before else 0)


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
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--sampler")
    parser.add_argument("--what", help="a word for the table, such as T = 4")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = [
        row | {"what": asked.what}
        for checkpoint in asked.checkpoints
        for steps in asked.steps
        for row in score(checkpoint, asked.dataset, asked.fold, steps or None, asked.draws, asked.sampler)
    ]
    before = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    rows = replaced(before, found, ("method", "steps", "draws", "what"))
    write(asked.out, {"dataset": open_dataset(asked.dataset).name, "rows": rows})
