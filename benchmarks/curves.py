"""Dice against network evaluations: the curves of MedSegDiff's models beside a thousand steps of ancestral sampling.

The curves are those of `diffuseg curve`, on the validation cases of the models' fold; nothing is written into a model. Models
are those that `benchmarks.medsegdiff` has trained in WORK. `python -m benchmarks.curves WORK DATASET --out RESULTS.json`
continues where it was stopped.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.score import write
from diffuseg.atomic_io import nan_to_none
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.studies.curve import measure_curve

FEW = (1, 2, 5, 10, 20, 50, 100)
DRAWS = (1, 5)
ASKED = [  # (model, what, sampler, steps)
    ("v1", "V1", "ancestral", (1, 2, 4)),
    ("v1_long", "V1, 1000 levels", "ddim", FEW),
    ("v1_long", "V1, 1000 levels", "dpm-solver++(2m)", FEW),
    ("v1_long", "V1, 1000 levels", "ancestral", FEW),
    ("v1_long", "V1, 1000 levels", "ancestral", (1000,)),  # with five draws: the released setting
]


def main(asked: argparse.Namespace) -> None:
    """Measure the curves that are not there yet, and write the results after each."""
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"curves": []}
    there = [(curve["what"], curve["sampler"], curve["points"][-1]["steps"]) for curve in results["curves"]]
    for name, what, sampler, steps in ASKED:
        if (what, sampler, max(steps)) in there:
            continue
        told = lambda done, cases, sampler=sampler: print(sampler, f"{done} of {cases} cases", flush=True)
        model = load(asked.work / name / "last.safetensors")
        options = SamplingOptions(sampler=sampler)
        curve = measure_curve(model, asked.dataset, steps, DRAWS, options, limit=asked.cases, on_case=told)
        kept = nan_to_none(asdict(curve)) | {"cases": len(curve.cases), "timed": "the one of median size"}
        results["curves"].append({"what": what} | kept)
        write(asked.out, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", type=int, default=0, help="so many, evenly spread; 0: all")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
