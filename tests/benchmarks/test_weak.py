"""The measures of benchmarks/weak.py against their definitions, and runs of it on made-up pictures."""

import itertools
import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label

from benchmarks import weak
from benchmarks.weak import BEFOREHAND, GRID, SMOOTH, auc, average_precision, judged, main
from diffuseg.checkpoint import save_checkpoint
from diffuseg.data.plan import Plan
from diffuseg.evaluation.statistics import group_folds
from diffuseg.methods import METHODS

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20).filter(
    lambda rows: 0 < sum(t for _, t in rows) < len(rows)
)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_average_precision_and_auc_are_their_definitions(rows):
    score, truth = np.array([float(s) for s, _ in rows]), np.array([t for _, t in rows])
    assert average_precision(score, truth) == pytest.approx(precision_of(score, truth))
    cases = [SimpleNamespace(name=str(i), label=int(t)) for i, t in enumerate(truth)]
    pairs = [(a > b) + 0.5 * (a == b) for a in score[truth] for b in score[~truth]]
    assert auc({str(i): s for i, s in enumerate(score)}, cases) == pytest.approx(np.mean(pairs))


def test_an_image_at_another_size_keeps_its_place():
    """A ramp stays a ramp over the same extent: pixel centres of the new size, read off the line through the old ones."""
    rows, columns = torch.arange(8.0), torch.arange(12.0)
    ramp = 3 * rows[:, None] + 5 * columns
    assert weak.resized(ramp, (8, 12)) is ramp
    larger = weak.resized(ramp, (16, 36))
    at = lambda n, old: ((torch.arange(n) + 0.5) * old / n - 0.5).clamp(0, old - 1)
    torch.testing.assert_close(larger, 3 * at(16, 8)[:, None] + 5 * at(36, 12))
    volume = ramp[None] + 7 * torch.arange(4.0)[:, None, None]
    torch.testing.assert_close(weak.resized(volume, (2, 8, 12)), (ramp[None] + 7 * torch.tensor([0.5, 2.5])[:, None, None]))


def make_spots(data: Path, sides: dict[str, int], train: int, contrast: float = 120.0) -> dict[str, Any]:
    """A data set of noise with a bright square of so many pixels a side (0: none) by case; the first ones are to train on.

    Cases are called patient_number. Returns each picture and its mask, [16, 16].
    """
    rng, rows, made = np.random.default_rng(0), ["case,patient,spot"], {}
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    for name, side in sides.items():
        mask = np.zeros((16, 16), np.uint8)
        mask[4 : 4 + side, 5 : 5 + side] = 1
        picture = (rng.normal(90, 10, (16, 16)) + contrast * mask).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(picture).save(data / f"imagesTr/{name}_0000.png")
        PIL.Image.fromarray(mask).save(data / f"labelsTr/{name}.png")
        rows.append(f"{name},{name.split('_')[0]},{int(side > 0)}")
        made[name] = picture, mask > 0
    (data / "image_labels.csv").write_text("\n".join(rows) + "\n")
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "spot": 1}, "file_ending": ".png"}
    (data / "dataset.json").write_text(json.dumps(described))
    (data / "splits_final.json").write_text(json.dumps([{"train": list(sides)[:train], "val": list(sides)[train:]}]))
    return made


def save(path: Path, name: str, std: float = 0.0, **settings: Any) -> Path:
    """A model for these pictures: fresh, which makes every map zero, or of normal weights with this deviation."""
    plan = Plan(
        "made", ("MR",), {"background": 0, "spot": 1}, ".png", dims=2, orientation=None, patch=(16, 16), widths=(4, 8),
        normalisation=("unit",), intensity=({"low": 0.0, "high": 255.0},),
    )  # fmt: skip
    method = METHODS[name](plan, METHODS[name].config_class(**settings))
    if std:
        torch.manual_seed(0)
        for p in method.parameters():
            torch.nn.init.normal_(p, std=std)
    save_checkpoint(path, method, {"name": name, "fold": 0})
    return path


def asked(data: Path, models: list[Path], out: Path, **wanted: Any) -> Namespace:
    """What the command line says where nothing else is wanted."""
    usual = {"fold": None, "draws": 2, "limit": 0, "only": "", "place": r"_(\d+)$", "masks": []}
    return Namespace(dataset=data, models=models, out=out, **usual | wanted)


def precision_of(score: np.ndarray, truth: np.ndarray) -> float:
    """Average precision by its definition: over the true pixels, the precision of all that scores as high."""
    return float(np.mean([truth[score >= s].mean() for s in score[truth]]))


def test_it_runs_and_reports_on_other_patients_than_it_chose_on(tmp_path):
    names = [f"p{i // 4}_{i % 4}" for i in range(24)]
    data, out = tmp_path / "data", tmp_path / "weak.json"
    make_spots(data, {name: 5 * (i % 2) for i, name in enumerate(names)}, train=8)
    models = [save(tmp_path / "cdm.safetensors", "cdm", T=20, steps=2), save(tmp_path / "cam.safetensors", "cam")]
    unet = save(tmp_path / "unet.safetensors", "unet")
    main(asked(data, models, out, only="^intensity|^levels$|^gradcam, layer last", masks=[f"from masks={unet}"]))
    found = json.loads(out.read_text())
    counts = found["slices_and_positives"]
    assert counts == {"chosen": [8, 4], "reported": [8, 4]}
    assert [row["map"] for row in found["maps"]] == ["intensity", "levels", "gradcam, layer last", "from masks"]
    intensity = found["maps"][0]
    assert intensity["ap"][0] > 0.95 and intensity["rules"][intensity["best"]]["dice"][0] > 0.8  # bright is all that a spot is
    for row in found["maps"]:
        best = row["rules"][row["best"]]
        assert best["iou"][0] <= best["dice"][0] <= 1 and 0 <= best["hd95_mm"][0] <= 16 * 2**0.5 + 1e-6
        assert len(best["dice_per_case"]) == len(found["patients"]) == 4 and set(found["patients"]) == {0, 1}
    assert found["verdicts"]["brightest percent"]["auc"] == 1
    assert "p2" not in out.read_text()  # no name of a case


def test_bars_and_maps_of_dark_objects_look_for_dark_ones(tmp_path):
    """The intensity bar of a model that looks for darker objects is how dark a pixel is, and its signed maps are such maps."""
    names = [f"p{i // 4}_{i % 4}" for i in range(16)]
    data, out = tmp_path / "data", tmp_path / "weak.json"
    make_spots(data, {name: 5 * (i % 2) for i, name in enumerate(names)}, train=8, contrast=-80.0)
    model = save(tmp_path / "cdm.safetensors", "cdm", std=0.2, T=20, steps=2, part="negative")
    wanted = asked(data, [model], out, draws=1)
    cdm = weak.load(model, "cpu")
    cases = weak.load_cases(cdm, weak.open_dataset(data), 0, 0, wanted.place)
    makes = weak.makers([cdm], wanted, cases, weak.open_dataset(data))
    case = next(case for case in cases if case.label)
    bar = makes["intensity"][0](case).mean(0)
    assert weak.precision(bar, case, 0.0) > 0.95
    seed = case.seeds(1)
    wanted_maps = {
        "levels without support": ["support=0"],  # as the model's own part: negative
        "levels without support, absolute": ["support=0", "part=absolute"],
        "classifier-free counterfactual, signed": ["map=classifier_free"],
    }
    for name, options in wanted_maps.items():
        alone = weak.load(model, "cpu", options).method.eval()
        (expected,) = alone.maps(case.image, seed, case.label, *alone.sampling(None, None))
        assert torch.allclose(makes[name][0](case)[0], expected.float(), atol=1e-4) and expected.max() > 0


def cut_by_hand(picture: np.ndarray, smooth: float, quantile: float, largest: bool) -> np.ndarray:
    """What is above a quantile of a smoothed picture, or the largest piece of that."""
    m = smoothed(picture, smooth)
    mask = m > np.quantile(m, quantile)
    pieces = label(mask)[0]
    return pieces == 1 + np.bincount(pieces[mask])[1:].argmax() if largest else mask


def smoothed(picture: np.ndarray, smooth: float) -> np.ndarray:
    return gaussian_filter(picture.astype(float), smooth, mode="nearest") if smooth else picture.astype(float)


def test_cuts_are_the_best_on_one_half_of_the_patients_and_scores_are_of_the_other(tmp_path, monkeypatch):
    """Large spots in the half to choose on and small ones in the other, so that no cut suits both."""
    names = [f"p{i // 4}_{i % 4}" for i in range(32)]
    half = dict(zip(names[8:], group_folds([name[:2] for name in names[8:]], 2).tolist(), strict=True))
    sides = {name: (i % 2) * (6, 2)[half.get(name, 0)] for i, name in enumerate(names)}
    made, out = make_spots(tmp_path / "data", sides, train=8, contrast=15.0), tmp_path / "weak.json"
    chosen, reported = ([made[name] for name in half if sides[name] and half[name] == side] for side in (0, 1))
    monkeypatch.setattr(weak, "GRID", {"quantile": GRID["quantile"]})
    main(asked(tmp_path / "data", [save(tmp_path / "cam.safetensors", "cam")], out, only="^intensity$"))
    found = json.loads(out.read_text())
    assert found["slices_and_positives"] == {"chosen": [12, 6], "reported": [12, 6]}
    (row,) = found["maps"]

    def overlaps(cases: list, *how: Any) -> list[float]:
        masks = [(cut_by_hand(picture, *how), truth) for picture, truth in cases]
        return [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask, truth in masks]

    options = list(itertools.product(SMOOTH, GRID["quantile"]["quantile"], (True, False)))
    rule = row["rules"]["quantile"]
    kept = tuple(rule["cut"][name] for name in ("smooth", "quantile", "largest"))
    best, other = (max(np.mean(overlaps(cases, *how)) for how in options) for cases in (chosen, reported))
    assert rule["cut"]["threshold"] == "quantile" and not rule["cut"]["image"]
    assert rule["dice_chosen"] == pytest.approx(best) == np.mean(overlaps(chosen, *kept))
    assert list(rule["dice_per_case"].values()) == pytest.approx(overlaps(reported, *kept), abs=1e-5)
    assert rule["dice"][0] == pytest.approx(np.mean(overlaps(reported, *kept)))
    assert 0 < rule["dice"][0] < other - 0.1  # other cuts would be better there
    fitted = {name: r["dice_chosen"] for name, r in row["rules"].items() if name not in BEFOREHAND}
    assert fitted.keys() == {"quantile", "quantile and image"} and fitted[row["best"]] == max(fitted.values())
    precisions = [
        {s: np.mean([precision_of(smoothed(p, s), t) for p, t in cases]) for s in SMOOTH} for cases in (chosen, reported)
    ]
    smooth, elsewhere = (max(SMOOTH, key=by.__getitem__) for by in precisions)
    assert smooth != elsewhere
    assert row["ap"][0] == pytest.approx(precisions[1][0.0])
    assert row["ap_smoothed"][0] == pytest.approx(precisions[1][smooth])


def test_a_verdict_has_its_threshold_from_one_half_and_its_accuracy_from_the_other():
    """Without the object -3.5 and -2.5, with it -1.5 and -0.5; in the other half everything lies higher, and not in order."""
    sets = [(-3.5, 0), (-2.5, 0), (-1.5, 1), (-0.5, 1)], [(0.5, 0), (1.5, 0), (-0.5, 1), (3.5, 1)]
    chosen, reported = (
        [SimpleNamespace(name=f"{half}{i}", label=label, patient=i) for i, (_, label) in enumerate(cases)]
        for half, cases in enumerate(sets)
    )
    score = {f"{half}{i}": s for half, cases in enumerate(sets) for i, (s, _) in enumerate(cases)}
    found = judged(score, chosen, reported)
    assert (found["auc_chosen"], found["auc"], found["threshold"]) == (1, 0.5, -1.5)
    assert (found["accuracy"][0], found["accuracy_at_0"][0]) == (0.5, 0.25)
