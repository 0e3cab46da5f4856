"""Which number of a case finds the bad ones? On validation cases: the fifth with the most of it sent away, error of the rest.

MODEL is calibrated or not; its raw draws are used, and its tempered probabilities if it has a temperature. OTHER is a model
trained apart on the same fold: where two trainings disagree, one of them is wrong. Nothing is chosen by these numbers.
"""

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.score import write
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import open_dataset, patients
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.selective import excess_aurc, expected_dice_loss, rejection
from diffuseg.inference.folds import own_fold, validation_cases
from diffuseg.inference.model import load
from diffuseg.inference.prediction import Prediction

FRACTION = 0.2

Number = Callable[[Prediction], float]


def overlap(a: np.ndarray, b: np.ndarray, labels: list[int]) -> float:
    """Dice of two label maps, mean of classes; a class in neither counts as right."""
    return float(np.mean([dice(a == k, b == k, "one") for k in labels]))


def main(asked: argparse.Namespace) -> None:
    """Predict every case with both models and write how each number ranks them."""
    model, other = load(asked.model, "cpu"), load(asked.other, "cpu")
    dataset = open_dataset(asked.dataset)
    fold = own_fold(model)
    names = validation_cases(model, dataset, fold, 0)
    validation_cases(other, dataset, fold, 0)  # neither was trained on them
    source, labels = Batches(dataset, names, model.plan), sorted(model.plan.labels.values())[1:]
    values: dict[str, list[float]] = {}
    risk = []
    for name in names:
        whole = source.whole(name)
        p = model.predict(whole.native, keep_draws=True, calibrate=False)
        truth = np.array(sorted(model.plan.labels.values()))[whole.truth]
        risk.append(1 - overlap(p.mask, truth, labels))
        chosen, inside = np.searchsorted(sorted(model.plan.labels.values()), p.mask), p.mask > 0
        entropy = p.uncertainty["entropy"]
        tempered = p.probability if model.calibration is None else model.calibration.temper(p.probability)
        assert p.draws is not None
        found = {
            "expected 1 - Dice (`doubt`)": p.provenance["uncertainty_score"],
            "the same, of tempered probabilities": expected_dice_loss(tempered, chosen),
            "entropy, mean in the mask": float(entropy[inside].mean()) if inside.any() else 0.0,
            "entropy, sum over the mask's volume": float(entropy.sum() / max(inside.sum(), 1)),
            "1 - Dice of pairs of draws": 1 - float(np.mean([overlap(a, b, labels) for a, b in combinations(p.draws, 2)])),
            f"1 - Dice with a {other.meta['method']} trained apart": 1
            - overlap(other.predict(whole.native).mask, p.mask, labels),
        }
        for key, value in found.items():
            values.setdefault(key, []).append(value)
    of, risks = [patients(dataset)[0][name] for name in names], np.array(risk)
    rows = []
    for key, value in values.items():
        uncertain = np.array(value)
        away = rejection(risks, uncertain, of, FRACTION)
        row = {"number": key, "mean": float(uncertain.mean()), "spearman": float(spearmanr(uncertain, risks).statistic)}
        rows.append(
            row | {name: away[name]._asdict() for name in ("rest", "gain")} | {"excess_aurc": excess_aurc(risks, uncertain)}
        )
    content = {"dataset": dataset.name, "fold": fold, "cases": len(names), "fraction": FRACTION, "risk": float(risks.mean())}
    write(asked.out, content | {"model": model.hash, "other": other.hash, "rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
