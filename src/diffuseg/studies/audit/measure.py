"""What a row of an audit is worth: scores per case, and their means against the run's."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from diffuseg.data.batches import FullCase
from diffuseg.evaluation.calibration_metrics import band, nll
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import bootstrap_mean, paired_difference
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions, prepare
from diffuseg.methods import Method
from diffuseg.studies.audit.controls import draw_row
from diffuseg.studies.audit.rows import Row

SCORES = {"one": "Dice, one draw", "mean": "Dice, mean of draws", "nll": "NLL, band", "changed": "draws differ"}


def measure_case(run: Model, methods: Sequence[Method], row: Row, case: FullCase, other: FullCase) -> dict[str, float]:
    """The SCORES of one case; `other` is the case whose mask some rows borrow.

    one      mean over the draws of the Dice of each, itself a mean over classes (a class in neither mask counts as right)
    mean     Dice of the mean of the draws
    nll      of that mean, in the band round the true border, nats; NaN without a border
    changed  voxels on which two draws differ, mean over pairs, as a share of the object; 0 for a single draw

    Args:
        run: The model of the run: its sampler, device and number type.
        methods: The weights of the row.
        row: How they are drawn from.
        case: What is measured.
        other: The case whose mask some rows borrow.
    """
    options = SamplingOptions(row.draws, row.steps, run.method.default_sampler)
    draws = prepare(methods[0], case, options, run.device, run.precision)
    ensemble, masks, truth = draws.ensemble(), [], case.truth
    for draw in draw_row(draws, methods, row.sampling, other.mask):
        ensemble.add(draw)
        masks.append(draws.to_native(draw).argmax(0).astype(np.uint16))
    p = draws.to_native(ensemble.mean)
    overlap = lambda mask: float(np.mean([dice(mask == k, truth == k, "one") for k in range(1, len(p))]))
    differing = [(a != b).sum() for a, b in combinations(masks, 2)]
    return {
        "one": float(np.mean([overlap(mask) for mask in masks])),
        "mean": overlap(p.argmax(0)),
        "nll": nll(p, truth, band(truth, case.native.steps)),
        "changed": float(np.mean(differing)) / max(int((truth > 0).sum()), 1) if differing else 0.0,
    }


def summary(
    cases: dict[str, dict[str, float]], reference: dict[str, dict[str, float]], patients: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Score -> its mean, and the paired difference to the reference, each with a 95 % bootstrap interval over patients.

    The same cases in the same order in both; `patients` has the patient of each.
    """
    scores = {}
    for key in SCORES:
        ours, theirs = ([case[key] for case in side.values()] for side in (cases, reference))
        difference = paired_difference(ours, theirs, patients)._asdict()
        scores[key] = {"mean": bootstrap_mean(ours, patients)._asdict(), "difference": difference}
    return scores
