"""MedSegDiff beside its bars: both versions, their parts taken out, the U-Net and the plain DDPM, trained alike on one fold.

Every row is trained on the same plan for as many steps; last weights are scored on the fold's validation cases, which choose
nothing. Scores: Dice of one draw (a case's mean over all its draws), of the mean of five and of 25 draws, and of STAPLE over
them. A variant with a thousand levels is sampled in 10 and in 100 steps by each sampler.
Draws are those of `predict` with seed 0: their noise hangs on the content of an image. The results that are stored were
measured when it hung on the names of the cases: other draws of the same distribution.
`python -m benchmarks.medsegdiff DATASET WORK --out RESULTS.json` continues where it was stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.score import write
from diffuseg.checkpoint import is_finished, load_checkpoint, model_hash
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import open_dataset, patients
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.inference.folds import validation_cases
from diffuseg.inference.fusion import fusion
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.train.loop import TrainSettings, train

# As `concat`, so that steps can be counted.
FORMER_ALPHA = "alpha_counts=training_steps"  # the reading that the rows of V2 were measured with
LONG = "T=1000 schedule=linear predict=v recycle=0 p_terminal_timestep=0 steps=10 sampler=ddim"
VARIANTS: list[tuple[str, str, str, str]] = [  # (name, what, method, --set)
    ("unet", "U-Net of the same widths", "unet", ""),
    ("concat", "plain DDPM", "concat", ""),
    ("v1", "V1", "medsegdiff", ""),
    ("v1_published", "V1, eq. 3 without the residual", "medsegdiff", "dce=published"),
    ("v1_no_filter", "V1 without FF-Parser", "medsegdiff", "ff_parser=false"),
    ("v1_plain", "V1 without DCE and FF-Parser", "medsegdiff", "dce=off"),
    ("v2", "V2", "medsegdiff_v2", FORMER_ALPHA),
    ("v2_no_anchor", "V2 without anchor", "medsegdiff_v2", f"anchor=false {FORMER_ALPHA}"),
    ("v2_no_former", "V2 without SS-Former", "medsegdiff_v2", f"ss_former=false {FORMER_ALPHA}"),
    (
        "v2_condition",
        "the segmentation that V2's condition makes, without diffusion",
        "medsegdiff_v2",
        FORMER_ALPHA,
    ),
    ("v1_long", "V1, 1000 levels", "medsegdiff", LONG),
    ("v1_long_published", "V1, 1000 levels, eq. 3 without the residual", "medsegdiff", f"{LONG} dce=published"),
    ("v1_long_no_filter", "V1, 1000 levels, without FF-Parser", "medsegdiff", f"{LONG} ff_parser=false"),
    ("v1_long_plain", "V1, 1000 levels, without DCE and FF-Parser", "medsegdiff", f"{LONG} dce=off"),
    ("v2_long", "V2, 1000 levels", "medsegdiff_v2", LONG),
]
SWEPT = "v1_long"  # the variant whose samplers are compared
DRAWS = (1, 5, 25)
SAMPLERS = ("ddim", "dpm-solver++(2m)", "ancestral")
STEPS = (10, 100)
SWEPT_DRAWS = 5


def main(asked: argparse.Namespace) -> None:
    """Train and measure what is not there yet, and write the results after each row."""
    dataset = open_dataset(asked.dataset)
    what_for = {"dataset": dataset.name, "fold": asked.fold, "set": asked.set}
    results: dict[str, Any] = what_for | {"rows": [], "samplers": []}
    if asked.out.exists():
        results = json.loads(asked.out.read_text())
        if {key: results.get(key) for key in what_for} != what_for:
            raise SystemExit(f"{asked.out}: results of another data set, fold or --set")
    order = [name for name, *_ in VARIANTS]
    for name, what, method, sets in VARIANTS:
        if asked.only and name not in asked.only:
            continue
        checkpoint = asked.work / name.removesuffix("_condition") / "last.safetensors"  # that of V2 itself
        if not is_finished(checkpoint):
            resume = (checkpoint.parent / "run.json").exists()
            how = dict(fold=asked.fold, steps=asked.steps, validate_every=asked.steps, seed=asked.seed, resume=resume)
            train(TrainSettings(asked.dataset, method, checkpoint.parent, set=[*asked.set, *sets.split()], **how))
        if all(row["name"] != name for row in results["rows"]):
            row = {"name": name, "what": what, "set": sets, "seed": asked.seed} | described(checkpoint, name)
            row |= measured(checkpoint, asked, name, DRAWS)
            results["rows"] = sorted([*results["rows"], row], key=lambda row: order.index(row["name"]))
            write(asked.out, results)
            print(what, {n: round(found["dice"], 4) for n, found in row["scores"].items()}, flush=True)
        if name == SWEPT:
            sweep(name, checkpoint, asked, results)


def sweep(name: str, checkpoint: Path, asked: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every sampler in few and in many steps, with the same noise."""
    for sampler in SAMPLERS:
        for steps in STEPS:
            if any((row["sampler"], row["steps"], row["name"]) == (sampler, steps, name) for row in results["samplers"]):
                continue
            row = {"name": name, "sampler": sampler, "steps": steps} | measured(
                checkpoint, asked, name, (1, SWEPT_DRAWS), steps, sampler
            )
            results["samplers"].append(row)
            write(asked.out, results)
            print(sampler, steps, {n: round(found["dice"], 4) for n, found in row["scores"].items()}, flush=True)


def drawn(method: Any, name: str) -> bool:
    """Whether a row's masks are draws: not those of the U-Net, nor of V2's condition alone."""
    return method.generative and not name.endswith("_condition")


def described(checkpoint: Path, name: str) -> dict[str, Any]:
    """What a row says of its model."""
    method, _, meta = load_checkpoint(checkpoint)
    measured_part = method.condition if name.endswith("_condition") else method
    return {
        "method": meta["method"],
        "model": model_hash(checkpoint),
        "parameters": sum(p.numel() for p in measured_part.parameters()),
        "training_steps": meta["steps_trained"],
        "training_seconds": meta.get("seconds"),
        "evaluations_per_draw": method.evaluations(*method.sampling(None, None)) if drawn(method, name) else 1,
    }


def measured(
    checkpoint: Path,
    asked: argparse.Namespace,
    name: str,
    counts: tuple[int, ...],
    steps: int | None = None,
    sampler: str | None = None,
) -> dict[str, Any]:
    """Dice by number of draws and fusion: mean with its 95 % interval over patients, and of each case (mean of classes)."""
    model, dataset = load(checkpoint, "cpu"), open_dataset(asked.dataset)
    method, plan, cases = model.method, model.plan, validation_cases(model, dataset, asked.fold)
    source, of = Batches(dataset, cases, plan, seed=0), patients(dataset)[0]
    counts = counts if drawn(method, name) else (1,)
    found: dict[str, list[float]] = {}
    for case in cases:
        whole = source.whole(case)
        draws = model.prepare(whole, SamplingOptions(max(counts), steps or method.default_steps, sampler))
        if name.endswith("_condition"):
            maps = [method.condition.segment(whole.image[None])[0].detach().softmax(0)]
        else:
            maps = [p.float() for p in draws.draw()]
        score = lambda p, draws=draws, whole=whole: overlap(draws.to_native(p).argmax(0), whole.truth, plan.classes)
        found.setdefault("one draw", []).append(float(np.mean([score(p) for p in maps])))
        for n in (n for n in counts if n > 1):
            for fuse in ("mean", "staple"):
                found.setdefault(f"{fuse} of {n}", []).append(score(fused(maps[:n], fuse)))
    groups = [of[case] for case in cases]
    scores = {name: summary(values, groups) for name, values in found.items()}
    return {"cases": len(cases), "patients": len(set(groups)), "scores": scores}


def overlap(mask: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Dice, mean of the foreground classes."""
    return float(np.nanmean([dice(mask == k, truth == k) for k in range(1, classes)]))


def fused(maps: list[torch.Tensor], fuse: str) -> torch.Tensor:
    """Each class's claim to each voxel, as `predict` fuses draws."""
    kind = fusion(fuse)
    for p in maps:
        kind.add(p)
    return kind.shares(torch.stack(maps).mean(0))


def summary(values: list[float], groups: list[str]) -> dict[str, Any]:
    """Mean with its interval, and every case by its place."""
    mean, low, high = bootstrap_mean(values, groups)
    cases = {f"case{i}": round(v, 5) for i, v in enumerate(values)}
    return {"dice": mean, "dice_low": low, "dice_high": high, "dice_per_case": cases}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="of the plan and the training, for all rows")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
