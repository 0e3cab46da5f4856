"""Dice against network evaluations: the curve of each sampler of one model, beside a thousand steps of ancestral sampling.

The curves are those of `diffuseg curve`, on the validation cases of the model's fold; nothing is written into the model.
`python -m benchmarks.curves MODEL DATASET --out RESULTS.json` continues where it was stopped.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.score import write
from diffuseg.inference.curve import measure_curve
from diffuseg.inference.model import load
from diffuseg.whole import without_nan

FEW = (1, 2, 5, 10, 20, 50, 100)
DRAWS = (1, 5)
ASKED = [("ddim", FEW), ("dpm-solver++(2m)", FEW), ("ancestral", FEW), ("ancestral", (1000,))]  # the last: as released


def main(asked: argparse.Namespace) -> None:
    """Measure the curves that are not there yet, and write the results after each."""
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"curves": []}
    model = load(asked.model)
    for sampler, steps in ASKED:
        if any(curve["sampler"] == sampler and max(steps) == curve["points"][-1]["steps"] for curve in results["curves"]):
            continue
        told = lambda done, cases, sampler=sampler: print(sampler, f"{done} of {cases} cases", flush=True)
        curve = measure_curve(model, asked.dataset, steps, DRAWS, limit=asked.cases, sampler=sampler, on_case=told)
        results["curves"].append(without_nan(asdict(curve)) | {"cases": len(curve.cases), "timed": "the one of median size"})
        write(asked.out, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", type=int, default=0, help="so many, evenly spread; 0: all")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
