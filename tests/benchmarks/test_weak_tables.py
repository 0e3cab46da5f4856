"""The tables of benchmarks/tables/weak.py, of made-up results."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.tables import grid
from benchmarks.tables.weak import (
    AGAIN,
    CAM,
    FULL,
    weak,
    weak_ablation,
    weak_again,
    weak_again_differences,
    weak_differences,
    weak_verdicts,
)
from diffuseg.evaluation.statistics import paired_difference

PATIENTS = [0, 0, 0, 1, 2, 2]


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Write results where the tables look for them."""
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    return lambda name, content: (tmp_path / f"{name}.json").write_text(json.dumps(content))


def cells(table: str) -> list[list[str]]:
    """The cells of the lines below the head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().split("\n")]
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"---"}
    return lines[2:]


def row(name: str, chosen: float | None, seed: int) -> dict[str, Any]:
    """A row whose best rule is the second one; `chosen` is the Dice on which it was chosen, None of a model of masks."""
    overlaps = np.random.default_rng(seed).random(len(PATIENTS)).round(5).tolist()
    best = {"dice_per_case": {f"case{i}": v for i, v in enumerate(overlaps)}}
    best |= {} if chosen is None else {"dice_chosen": chosen}
    other = {"dice_per_case": {f"case{i}": 0.5 for i in range(len(PATIENTS))}, "dice_chosen": 0.0}
    return {"map": name, "best": "otsu", "rules": {"quantile": other, "otsu": best}}


def test_differences_pair_our_best_map_with_the_bars_and_models_of_pseudo_labels_with_it(keep):
    """What is best is so by the Dice on the half on which it was chosen."""
    chosen = {
        "intensity": 0.2, "position: mean of positives minus mean of negatives": 0.1,
        "levels": 0.5, "levels, one draw": 0.4, "accumulated": 0.6, "shared": 0.3,
        "classifier-free counterfactual": 0.2, "classifier-free counterfactual, signed": 0.3,
        "guided counterfactual (CG-Diff)": 0.9, "guided counterfactual, signed": 0.1,
        "gradcam, layer last": 0.7, "scorecam, layer 2": 0.8,
        "U-Net from pseudo-labels": None, FULL: None,
    }  # fmt: skip
    rows = [row(name, value, seed) for seed, (name, value) in enumerate(chosen.items())]
    keep("weak", {"maps": rows, "patients": PATIENTS})
    found = cells(weak_differences())
    bars = [
        "intensity", "position: mean of positives minus mean of negatives", "scorecam, layer 2",
        "guided counterfactual (CG-Diff)", "classifier-free counterfactual, signed",
    ]  # fmt: skip
    pairs = [("accumulated", bar) for bar in bars] + [("U-Net from pseudo-labels", "accumulated"), ("accumulated", FULL)]
    assert [(first, second) for first, second, _ in found] == pairs
    overlaps = {r["map"]: np.array(list(r["rules"]["otsu"]["dice_per_case"].values())) for r in rows}
    for first, second, text in found:
        mean, interval = text.split(" ", 1)
        assert mean == f"{np.mean(overlaps[first] - overlaps[second]):+.3f}"
        _, low, high = paired_difference(overlaps[first], overlaps[second], PATIENTS)
        assert interval == f"[{low:+.3f}, {high:+.3f}]"


def test_a_line_of_the_maps_has_the_numbers_of_its_best_rule_and_of_two_fixed_ones(keep):
    rule = {"iou": [0.456, 0, 1], "hd95_mm": [12.6, 0, 99], "dice_all_slices": [0.7, 0.65, 0.75]}
    rules = {
        "otsu_twice": rule | {"dice": [0.6125, 0.55, 0.67]},
        "as `predict` does": rule | {"dice": [0.5, 0, 1]},
        "published: Otsu": rule | {"dice": [0.25, 0, 1]},
    }
    common = {"ap": [0.51, 0.4, 0.6], "ap_smoothed": [0.62, 0.5, 0.7], "evaluations": 96, "seconds": 1.26}
    alone = {"its own mask": rule | {"dice": [0.75, 0.7, 0.8]}}
    maps = [
        common | {"map": "levels", "best": "otsu_twice", "rules": rules},
        common | {"map": FULL, "best": "its own mask", "rules": alone},
    ]
    keep("weak", {"maps": maps})
    of_best = ["0.613 [0.550, 0.670]", "0.82", "0.456", "13"]
    of_full = ["0.750 [0.700, 0.800]", "1.00", "0.456", "13"]
    before, after = ["0.510", "0.620 [0.500, 0.700]"], ["0.700 [0.650, 0.750]", "96", "1.3"]
    assert cells(weak()) == [
        ["levels", *before, "otsu_twice", *of_best, "0.500", "0.250", *after],
        [FULL, *before, "its own mask", *of_full, "-", "-", *after],
    ]


def test_each_training_stands_with_its_best_rules_and_with_the_cam_that_its_other_half_chooses(keep):
    """The map that is chosen may be another one in each training; a map that one lacks is a dash there."""
    rule = lambda dice, chosen: {"dice": [dice, dice - 0.1, dice + 0.1], "dice_chosen": chosen}
    rules = lambda *of: {"best": "otsu", "rules": {"otsu": rule(*of), "fixed": rule(0.0, 0.0)}}
    of = lambda name, dice, chosen=0.5: {"map": name} | rules(dice, chosen)
    for seed, name in enumerate(AGAIN):
        cams = [of("gradcam, layer 2", 0.3, 0.1 + 0.2 * seed), of("layercam, layer 2", 0.4, 0.2)]
        keep(name, {"maps": [*cams, of("levels", 0.6 + 0.1 * seed), *([of(FULL, 0.7)] if seed else [])], "patients": PATIENTS})
    found = {name: dices for name, *dices in cells(weak_again())}
    assert found["levels"] == ["0.600 [0.500, 0.700]", "0.700 [0.600, 0.800]", "0.800 [0.700, 0.900]", "0.900 [0.800, 1.000]"]
    assert found[CAM] == ["0.400 [0.300, 0.500]"] + ["0.300 [0.200, 0.400]"] * 3
    assert found[FULL] == ["-"] + ["0.700 [0.600, 0.800]"] * 3


def test_differences_of_several_trainings_are_each_over_their_own_patients(keep):
    for seed, name in enumerate(AGAIN):
        maps = [row("levels", 0.5, seed), row("intensity", 0.1, 9), row("gradcam, layer 2", 0.2, 8)]
        keep(name, {"maps": maps + [row(FULL, None, 7)] * (seed > 0), "patients": PATIENTS if seed else [0, 1, 2, 3, 4, 5]})
    found = {(first, second): values for first, second, *values in cells(weak_again_differences())}
    values = lambda seed: np.random.default_rng(seed).random(len(PATIENTS)).round(5)
    for seed, text in enumerate(found["levels", "intensity"]):
        mean, low, high = paired_difference(values(seed), values(9), PATIENTS if seed else None)
        assert text == f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert found["levels", FULL][0] == "-" and found["levels", FULL][1].startswith(f"{np.mean(values(1) - values(7)):+.3f} ")
    assert found["levels", CAM][2].startswith(f"{np.mean(values(2) - values(8)):+.3f} ")


def test_lines_of_the_ablation_and_of_the_verdicts(keep):
    point = {"map": "levels", "knob": "Q", "value": -1.0, "ap": [0.5, 0, 1], "evaluations": 8}
    keep("weak_ablation", {"points": [point | {"ap_smoothed": [0.25, 0.2, 0.3], "dice": [0.125, 0.1, 0.15]}]})
    assert cells(weak_ablation()) == [["`levels`", "Q", "-1", "0.500", "0.250 [0.200, 0.300]", "0.125 [0.100, 0.150]", "8"]]
    judge = {"auc_chosen": 0.1, "auc": 0.875, "accuracy": [0.8, 0.7, 0.9], "accuracy_at_0": [0.5, 0.4, 0.6]}
    keep("weak", {"verdicts": {"cdm: diffusion": judge}})
    assert cells(weak_verdicts()) == [["cdm: diffusion", "0.875", "0.800 [0.700, 0.900]", "0.500 [0.400, 0.600]"]]
