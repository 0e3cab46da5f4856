"""benchmarks/weak_ablation.py: each point is the setting it names, and the other half of the patients has no part in it."""

import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks import weak, weak_ablation
from benchmarks.weak import load_cases
from benchmarks.weak_ablation import DRAWS, SETTINGS, main, measured, points, wish
from diffuseg.data.dataset import open_dataset
from diffuseg.evaluation.statistics import group_folds
from diffuseg.inference.model import load
from tests.benchmarks.test_weak import make_spots, precision_of, save, smoothed

NAMES = [f"p{i // 4}_{i % 4}" for i in range(16)]


def test_a_point_is_the_setting_it_names_and_nothing_else(tmp_path):
    path = save(tmp_path / "cdm.safetensors", "cdm", classifier_widths=(4, 8))
    plain = load(path, "cpu").method.config
    fields = {"R": "steps", "tau": "tau", "s": "guidance"}
    for kind, knob, value in points(guided=True):
        draws, options = wish(kind, knob, value)
        expected = replace(plain, map=weak_ablation.MAP[kind], tau=0.0)
        if knob == "Q":
            expected = replace(expected, log_snr=(value, value), steps=1 if kind == "levels" else None)
        elif knob in fields:
            expected = replace(expected, **{fields[knob]: value})
        assert load(path, "cpu", options).method.config == expected, (kind, knob, value)
        assert draws == (value if knob == "n" else DRAWS)


def test_every_setting_is_a_point_and_guidance_only_where_there_is_a_classifier():
    every = list(points(guided=True))
    assert every == [(kind, knob, v) for kind, knobs in SETTINGS.items() for knob, values in knobs.items() for v in values]
    assert list(points(guided=False)) == [point for point in every if point[1] != "s"]
    assert {point[0] for point in every if point[1] == "s"} == {"accumulated", "levels"}


def spoil(data, names):
    """Other images, and masks of everything."""
    rng = np.random.default_rng(1)
    for name in names:
        picture = rng.integers(0, 255, (16, 16)).astype(np.uint8)
        PIL.Image.fromarray(picture).save(data / f"imagesTr/{name}_0000.png")
        PIL.Image.fromarray(np.ones((16, 16), np.uint8)).save(data / f"labelsTr/{name}.png")


def test_what_is_measured_depends_on_the_positives_of_the_chosen_half_alone(tmp_path, monkeypatch):
    few = {"accumulated": {"R": (1, 2)}, "levels": {"Q": (2.0,), "s": (1.0,), "n": (1, 2)}}
    monkeypatch.setattr(weak_ablation, "SETTINGS", few)
    data, model = tmp_path / "data", save(tmp_path / "cdm.safetensors", "cdm", std=0.1)
    make_spots(data, {name: 5 * (i % 2) for i, name in enumerate(NAMES)}, train=4)
    half = group_folds([name[:2] for name in NAMES[4:]], 2)
    chosen = {name for name, side in zip(NAMES[4:], half.tolist(), strict=True) if side == 0}
    positive = {name for name in chosen if NAMES.index(name) % 2}
    assert 0 < len(positive) < len(chosen) < len(NAMES[4:])

    def run() -> dict:
        main(Namespace(dataset=data, model=model, limit=0, out=tmp_path / "out.json"))
        return json.loads((tmp_path / "out.json").read_text())

    first = run()
    assert first["images"] == len(positive)
    names = [("accumulated", "R", 1), ("accumulated", "R", 2), ("levels", "Q", 2.0), ("levels", "n", 1), ("levels", "n", 2)]
    assert [(point["map"], point["knob"], point["value"]) for point in first["points"]] == names
    assert [point["evaluations"] for point in first["points"]] == [2 * 2, 2 * 2 * 2, 2 * 4, 3 * 4, 2 * 3 * 4]
    spoil(data, [name for name in NAMES[4:] if name not in positive])
    assert run() == first
    spoil(data, [min(positive)])
    assert all(new["ap"] != old["ap"] for new, old in zip(run()["points"], first["points"], strict=True))


def test_precision_is_that_of_the_map_raw_and_smoothed_and_dice_that_of_the_default_rule(tmp_path, monkeypatch):
    """The maps are the images themselves."""
    made = make_spots(tmp_path / "data", {name: 4 * (i > 1) for i, name in enumerate(NAMES)}, train=4, contrast=30.0)
    path, asked = save(tmp_path / "cdm.safetensors", "cdm"), []
    cases = load_cases(load(path, "cpu"), open_dataset(tmp_path / "data"), 0, 0, r"_(\d+)$")
    without = weak.negatives(load(path, "cpu"), open_dataset(tmp_path / "data"))
    assert without and not any(case.truth.any() or case.label for case in without)
    maker = lambda case: case.image - case.image.min()

    def drawn(model, draws):
        asked.append((model.method.config.map, model.method.config.steps, draws))
        return maker

    monkeypatch.setattr(weak_ablation, "drawn", drawn)
    found = measured(path, ["map=published", "steps=4"], 3, cases, without)
    assert asked == [("published", 4, 3)] and found["evaluations"] == 3 * 4 * 2
    for name, smooth in (("ap", 0.0), ("ap_smoothed", 1.0)):
        expected = [precision_of(smoothed(made[case.name][0], smooth), made[case.name][1]) for case in cases]
        assert found[name][0] == pytest.approx(np.mean(expected)) and expected != [1.0] * len(cases)
    monkeypatch.setattr(weak, "GRID", {})
    border = float(np.quantile([smoothed(maker(case)[0].numpy(), 1.0) for case in without], 0.99))
    maps = {case.name: weak.Maps.of(maker(case), border) for case in cases}
    some = maps[cases[0].name]
    torch.testing.assert_close(2 * some.bordered - 1, some.mean / (some.mean + border))
    torch.testing.assert_close(2 * some.alone - 1, some.mean / some.mean.max())
    by_rule = {rule: overlap for rule, _, overlap in weak.rules(maps, cases)}
    assert found["dice"][0] == pytest.approx(by_rule["as `predict` does"])
    assert by_rule["as `predict` does"] not in (by_rule[rule] for rule in by_rule if rule != "as `predict` does")
