"""Draws against the raters of a data set: several models on the same validation cases, with what paired intervals need.

A row is NAME=CHECKPOINT, or NAME=CHECKPOINT,CHECKPOINT,... for an ensemble; --dropout NAME=CHECKPOINT draws with dropout left
on. The pixelwise source of a deterministic model is what sampling its softmax gives. Results are numbers only; patients are
counted, not named.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.score import numbered, replaced, trained_steps, write
from diffuseg.inference.model import Model, load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.studies.ambiguity import Ambiguity, measure_ambiguity
from diffuseg.studies.audit.controls import dropping

KEPT = ("ged_4", "ged_16", "ged_32", "hm_iou", "maximum_dice", "ci")  # of draws and of the pixelwise source, per case
MEAN = ("dice", "dice_fused", "ece", "ece_band", "ece_band_by_chance")  # of the mean and of the fused mask, per case


def main(asked: argparse.Namespace) -> None:
    """Measure row after row and write the results after each; rows of that name that are there are replaced."""
    for text, dropout in [(text, False) for text in asked.rows] + [(text, True) for text in asked.dropout]:
        name, _, paths = text.rpartition("=")  # a name may hold settings
        models = [load(path, "cpu") for path in paths.split(",")]
        found = measured(models, asked, dropout)
        row = {"name": name, "what": asked.what} | described(models, found, dropout)
        results = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}  # another run may have written
        results["rows"] = replaced(results["rows"], [row], ("name", "what"))
        write(
            asked.out, results | {key: found.summary[key] for key in ("dataset", "fold", "cases", "patients", "empty", "rule")}
        )
        brief = {key: round(value["mean"], 4) for key, value in (row["draws"] | {"dice": row["mean"]["dice"]}).items()}
        print(json.dumps({"name": name, "draws": row["n"]} | brief), flush=True)


def measured(models: list[Model], asked: argparse.Namespace, dropout: bool) -> Ambiguity:
    """With dropout on, every draw is a pass of its own: the same model as an ensemble of itself."""
    torch.manual_seed(0)
    with ExitStack() as stack:
        if dropout:
            stack.enter_context(dropping(models[0].method))
            models = models * asked.draws
        options = SamplingOptions(asked.draws, asked.steps)
        return measure_ambiguity(models, asked.dataset, options, limit=asked.cases, pattern=asked.patients)


def described(models: list[Model], found: Ambiguity, dropout: bool) -> dict[str, Any]:
    """Means with intervals, values per case, and what one draw costs."""
    summary, method = found.summary, models[0].method
    chosen = summary["models"][0]
    steps = (chosen["steps"], chosen["sampler"]) if method.generative else (1, None)
    evaluations = method.evaluations(*reversed(steps)) if method.generative else 1
    kept = [key for key in KEPT if key in found.cases[0].sources["draws"]]
    per_case = {
        source: {key: [round(case.sources[source][key], 5) for case in found.cases] for key in kept}
        for source in ("draws", "pixelwise")
    }
    return {
        "method": chosen["method"],
        "models": [model.hash for model in models],
        "dropout": dropout,
        "n": summary["draws"],
        "steps": steps[0],
        "sampler": steps[1],
        "evaluations_per_draw": evaluations,
        "training_steps": [trained_steps(model.meta) for model in models],
        "parameters": sum(p.numel() for p in method.parameters()),
        **{source.replace(" ", "_"): values for source, values in summary["ambiguity"].items()},
        "mean": summary["mean"],
        "aurc": summary["selective"]["aurc"],
        "per_case": per_case | {"mean": {key: [round(case.mean[key], 5) for case in found.cases] for key in MEAN}},
        "patient_of_case": numbered([case.patient for case in found.cases]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("rows", nargs="*", metavar="NAME=CHECKPOINT[,CHECKPOINT...]")
    parser.add_argument("--dropout", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--what", default="", help="a word for the table, such as 10 steps")
    parser.add_argument("--cases", type=int, default=0, help="so many validation cases, 0 for all")
    parser.add_argument("--patients", help="regular expression for the patient in a case's name")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_intermixed_args())  # rows may also follow the options
