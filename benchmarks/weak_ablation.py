"""CDM one setting at a time: level Q, steps R, contrast tau, guidance s, noise draws n, on validation images with the object.

Only the patients on whom choices are made (the first half of benchmarks/weak.py); the other half has no part in it. Masks come
from the default rule. A row says what was changed from the map's own settings, of the published map and of the default one;
tau is 0 for both where it is not what is changed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.score import write
from benchmarks.weak import SMOOTHED, Case, Maps, drawn, load_cases, mask_of, negatives, precision
from diffuseg.data.dataset import open_dataset
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import bootstrap_mean, group_folds
from diffuseg.inference.folds import own_fold
from diffuseg.inference.model import load
from diffuseg.inference.saliency_calibration import null_quantile
from diffuseg.methods.weak.binarize import Binarization

SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "accumulated": {
        "Q": (4.0, 2.0, 0.6, -1.0, -3.0),  # log-SNR: the image is hardly noised ... hardly there
        "R": (1, 2, 5, 10, 20),
        "tau": (0.0, 0.5, 0.9, 0.95, 1.0),
        "s": (0.0, 1.0, 10.0),
        "n": (1, 2, 4),
    },
    "levels": {
        "Q": (4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -3.0),
        "R": (1, 2, 3, 5, 10),
        "tau": (0.0, 0.5, 0.95, 1.0),
        "s": (0.0, 0.3, 1.0, 3.0),
        "n": (1, 2, 4, 8),
    },
}
MAP = {"accumulated": "published", "levels": "likelihood_ratio"}  # map in the results -> the setting
DRAWS = 2  # where n is not what is changed


def main(asked: argparse.Namespace) -> None:
    """Measure every point and write the results after each."""
    model = load(asked.model, "cpu")
    guided = getattr(model.method, "classifier", None) is not None
    dataset = open_dataset(asked.dataset)
    cases = load_cases(model, dataset, own_fold(model), asked.limit, r"_(\d+)$")
    half = group_folds([case.patient for case in cases], 2)
    cases = [case for case, side in zip(cases, half.tolist(), strict=True) if side == 0 and case.label]
    without = negatives(model, dataset)
    results: dict[str, Any] = {"dataset": dataset.name, "images": len(cases), "points": []}
    for kind, knob, value in points(guided):
        draws, options = wish(kind, knob, value)
        results["points"].append(
            {"map": kind, "knob": knob, "value": value} | measured(asked.model, options, draws, cases, without)
        )
        write(asked.out, results)
        print(json.dumps(results["points"][-1]), flush=True)


def points(guided: bool) -> Iterator[tuple[str, str, Any]]:
    """Every map, setting and value; guidance only where there is a classifier."""
    for kind, knobs in SETTINGS.items():
        for knob, values in knobs.items():
            if knob != "s" or guided:
                yield from ((kind, knob, value) for value in values)


def wish(kind: str, knob: str, value: Any) -> tuple[int, list[str]]:
    """Draws, and the settings of the method, of one point. Q of the levels is a single level."""
    named = {"Q": f"log_snr={value},{value}", "R": f"steps={value}", "tau": f"tau={value}", "s": f"guidance={value}"}
    options = [f"map={MAP[kind]}", "tau=0.0"] + ([named[knob]] if knob in named else [])
    if (kind, knob) == ("levels", "Q"):
        options.append("steps=1")
    return (value if knob == "n" else DRAWS), options


def measured(path: Path, options: list[str], draws: int, cases: list[Case], without: list[Case]) -> dict[str, Any]:
    """Average precision of the map, raw and smoothed by one voxel, and Dice of the default rule's mask."""
    model = load(path, "cpu", options)
    make = drawn(model, draws)
    border = null_quantile([make(case).mean(0) for case in without], SMOOTHED)
    maps = {case.name: Maps.of(make(case), border) for case in cases}
    of = [case.patient for case in cases]
    found = {
        "ap": [precision(maps[c.name].mean, c, 0.0) for c in cases],
        "ap_smoothed": [precision(maps[c.name].mean, c, 1.0) for c in cases],
        "dice": [dice(mask_of(maps[c.name], c, Binarization()), c.truth, "zero") for c in cases],
    }
    evaluations = draws * model.method.evaluations(*model.method.sampling(None, None))
    return {name: list(bootstrap_mean(np.array(values), of)) for name, values in found.items()} | {"evaluations": evaluations}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path, help="a checkpoint of cdm")
    parser.add_argument("--limit", type=int, default=0, help="so many validation slices, 0 for all")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
