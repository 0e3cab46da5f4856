"""Borders and peaks of training images: by hand, from which images, and predictions that use them.

The map is a picture's intensity above the mean of its row, and of the second class that mean, so that everything is known.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copy

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from diffuseg.checkpoint import amend_meta, image_digest, model_hash, read_meta, save_checkpoint
from diffuseg.data.dataset import open_dataset
from diffuseg.data.labels import read_labels
from diffuseg.errors import UserError
from diffuseg.inference.folds import cases_of
from diffuseg.inference.model import Model, load
from diffuseg.inference.saliency_calibration import best_threshold, calibrate_checkpoints, measure_saliency, null_quantile
from diffuseg.methods import METHODS
from diffuseg.methods.weak.base import SaliencyCalibration
from diffuseg.methods.weak.cdm import CDM, CDMConfig
from tests.inference.oracle import make_plan
from tests.train.tiny import call, refused, same_weights

LABELS = {"background": 0, "spot": 1, "bar": 2}
FLAT = {"orientation": None, "dims": 2, "file_ending": ".png", "patch": (16, 16), "widths": (4, 8)}
CASES = [f"{kind}{i}" for i in range(5) for kind in ("background", "spot", "bar")]
SMOOTH = 1.0
kind_of = lambda case: case.rstrip("0123456789")


def draw_picture(case: str) -> np.ndarray:
    rng = np.random.default_rng(CASES.index(case))
    picture = rng.normal(30, 10, (16, 16))
    if kind_of(case) != "background":
        row, column = rng.integers(2, 9, 2)
        picture[row : row + 5, column : column + 5 if kind_of(case) == "spot" else None] += 100
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of three kinds; the model's fold, 1, was trained on those whose number is not 0."""
    (tmp_path / "data/imagesTr").mkdir(parents=True)
    for case in CASES:
        PIL.Image.fromarray(draw_picture(case)).save(tmp_path / f"data/imagesTr/{case}_0000.png")
    rows = [f"{case},{kind_of(case)}\n" for case in CASES]
    (tmp_path / "data/image_labels.csv").write_text("case,label\n" + "".join(rows))
    described = {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".png"}
    (tmp_path / "data/dataset.json").write_text(json.dumps(described))
    fold = lambda n: {"train": [c for c in CASES if c[-1] != n], "val": [c for c in CASES if c[-1] == n]}
    (tmp_path / "data/splits_final.json").write_text(json.dumps([fold("4"), fold("0")]))
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """Without a reference, as those that were made before there were any; with other settings its maps are larger."""

    def known(method, x_0, y, name, steps, noise):
        rows = x_0[:, 0].mean(2, keepdim=True).expand_as(x_0[:, 0])
        return (x_0[:, 0] - rows if y == 1 else rows) * (1 if method.config.support else 3)

    monkeypatch.setattr(CDM, "saliency", known)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.safetensors", CDM(make_plan(labels=LABELS, **FLAT), CDMConfig(T=20)), {"fold": 1})
    return tmp_path / "m.safetensors"


def made(checkpoint: Path, folder: Path, *options: str, **how) -> SaliencyCalibration:
    dataset = open_dataset(folder, masks=False)
    return measure_saliency(load(checkpoint, "cpu", options), dataset, read_labels(dataset), **how)


def value(case: str, y: int) -> np.ndarray:
    """The map of class y: intensities are divided by 10 by the plan, then by 3 by the method."""
    x = draw_picture(case) / 30.0
    rows = np.repeat(x.mean(1, keepdims=True), 16, 1)
    return x - rows if y == 1 else rows


def smoothed_share(case: str, y: int, border: float) -> np.ndarray:
    m = value(case, y)
    return gaussian_filter(m / (np.abs(m) + border), SMOOTH, mode="nearest")


def test_the_border_is_a_quantile_of_all_smoothed_voxels():
    maps = [torch.from_numpy(np.random.default_rng(n).normal(n, 1, (20 + n, 30))) for n in range(3)]
    assert null_quantile(maps, 0.0) == pytest.approx(np.quantile(np.concatenate([m.numpy().ravel() for m in maps]), 0.99))
    soft = np.concatenate([gaussian_filter(m.numpy(), 1.5, mode="nearest").ravel() for m in maps])
    assert null_quantile([m.float() for m in maps], 1.5) == pytest.approx(np.quantile(soft, 0.99), rel=1e-6)
    assert null_quantile([-torch.ones(4, 5, 6)], 1.0) == pytest.approx(-1)
    large = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (600, 700)))  # of which a part is looked at
    assert null_quantile([large], 0.0) == pytest.approx(np.quantile(large.numpy(), 0.99), abs=0.05)


SHARES = st.lists(st.integers(-6, 19).map(lambda v: v / 20), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(SHARES, SHARES)
def test_no_other_value_above_zero_parts_two_groups_better(without, shown):
    right = lambda t: np.mean([v < t for v in without]) + np.mean([v >= t for v in shown])
    found = best_threshold(without, shown)
    assert 0 < found <= 1
    assert right(found) == pytest.approx(max(right(t / 40 + 1e-3) for t in range(40)))
    if max(0, *without) < min(shown):
        assert found == pytest.approx((max(0, *without) + min(shown)) / 2)


def test_borders_and_peaks_are_those_of_each_class_by_hand(folder, checkpoint):
    told = []
    found = made(checkpoint, folder, on_case=lambda done, total: told.append((done, total)))
    trained = {kind: [c for c in CASES if kind_of(c) == kind and c[-1] != "0"] for kind in LABELS}
    for y, kind in ((1, "spot"), (2, "bar")):
        soft = [gaussian_filter(value(case, y), SMOOTH, mode="nearest") for case in trained["background"]]
        assert found.null_threshold[kind] == pytest.approx(np.quantile(soft, 0.99), rel=2e-3)  # half precision
        low, high = (
            [smoothed_share(case, y, found.null_threshold[kind]).max() for case in trained[shown]]
            for shown in ("background", kind)
        )
        assert max(low) < min(high) and found.detection_threshold[kind] == pytest.approx((max(low) + min(high)) / 2, rel=2e-3)
    assert found.null_threshold["bar"] > 2 * found.null_threshold["spot"] and found.images == 12
    assert found.settings["map"] == "likelihood_ratio" and found.settings["steps"] == 3 and found.settings["support"] == 2
    assert told == [(n, 16) for n in range(1, 17)]  # images without any class are seen once for each


def test_noise_and_what_was_asked_before_do_not_matter(folder, tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.safetensors", CDM(make_plan(labels=LABELS, **FLAT), CDMConfig(T=20, part="absolute")), {})
    first = made(tmp_path / "m.safetensors", folder)
    torch.manual_seed(1)
    assert made(tmp_path / "m.safetensors", folder) == first and first.null_threshold["spot"] > 0 < first.null_threshold["bar"]


def test_only_images_of_the_training_are_read_and_no_mask(folder, checkpoint):
    (folder / "labelsTr").mkdir()
    for case in CASES:
        PIL.Image.fromarray((draw_picture(case) > 70).astype(np.uint8)).save(folder / f"labelsTr/{case}.png")
    first = made(checkpoint, folder)
    for file in (folder / "labelsTr").iterdir():
        file.write_bytes(b"no mask")
    for case in CASES[:3]:  # the held-out fold
        (folder / f"imagesTr/{case}_0000.png").write_bytes(b"no picture")
    assert made(checkpoint, folder) == first
    for file in (folder / "labelsTr").iterdir():
        file.unlink()
    (folder / "labelsTr").rmdir()
    assert made(checkpoint, folder) == first
    copy(folder / "imagesTr/spot1_0000.png", folder / "imagesTr/background4_0000.png")
    assert made(checkpoint, folder).null_threshold["spot"] > 1.5 * first.null_threshold["spot"]


def test_of_many_images_some_are_looked_at_evenly_spread(folder, checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(CDM, "saliency", lambda method, x_0, *_: seen.append(round(float(x_0[0].sum()), 3)) or x_0.mean(1))
    few, total = made(checkpoint, folder, most=2), lambda case: pytest.approx(draw_picture(case).sum() / 30, rel=1e-3)
    assert few.images == 6
    once = list(dict.fromkeys(seen))
    assert once == [total(case) for case in ("background1", "background4", "spot1", "spot4", "bar1", "bar4")]


def test_what_cannot_be_compared_is_one_line(folder, checkpoint, tmp_path):
    border = lambda *more: call("calibrate-saliency", checkpoint, folder, *more)
    before = model_hash(checkpoint)
    refused(call("calibrate-saliency", tmp_path / "none.safetensors", folder), "none.safetensors", "neither a checkpoint")
    refused(call("calibrate-saliency", tmp_path / "none", folder), "neither a checkpoint, nor a run")
    refused(call("calibrate-saliency", "hippocampus", folder), "learnt from masks")
    refused(call("calibrate-saliency", checkpoint, tmp_path / "nowhere"), "nowhere")
    refused(border("--labels", tmp_path / "none.csv"), "none.csv", "no such table")
    refused(border("--set", "T=10"), "fixed when the model was trained")
    table = folder / "image_labels.csv"
    rows = table.read_text()
    for kind, other in (("background", "spot"), ("spot", "bar")):
        table.write_text(rows.replace(f",{kind}\n", f",{other}\n").replace(f"{kind}0,{other}", f"{kind}0,{kind}"))
        refused(border(), f"the training fold has no image of {kind}", str(folder))
    table.write_text(rows)
    (folder / "splits_final.json").write_text(json.dumps(json.loads((folder / "splits_final.json").read_text())[:1]))
    refused(border(), "there is no fold 1", "Folds are 0 to 0")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"labels": {"background": 0, "spot": 1}}))
    refused(border(), "its classes are")
    assert model_hash(checkpoint) == before


def test_a_model_of_masks_has_no_maps(folder, tmp_path):
    plan = make_plan(labels=LABELS, **FLAT)
    save_checkpoint(tmp_path / "masks.safetensors", METHODS["unet"](plan, METHODS["unet"].config_class()), {})
    refused(call("calibrate-saliency", tmp_path / "masks.safetensors", folder), "learnt from masks", "masks.safetensors")


def test_volumes_are_refused_where_pictures_were_learnt(checkpoint):
    with pytest.raises(UserError, match="a volume"):
        load(checkpoint).method.mean_map(torch.zeros(1, 8, 8, 8), 1, "likelihood_ratio", 3)


def test_without_anything_above_zero_nothing_is_written(folder, checkpoint, monkeypatch):
    monkeypatch.setattr(CDM, "saliency", lambda method, x_0, *_: -1 - x_0.mean(1))
    before = model_hash(checkpoint)
    done = call("calibrate-saliency", checkpoint, folder)
    assert done.exit_code == 0 and "nothing is written" in done.stdout and model_hash(checkpoint) == before


def test_a_class_without_a_border_leaves_the_others_theirs_and_the_judgement_to_the_diffusion(folder, checkpoint, monkeypatch):
    monkeypatch.setattr(CDM, "saliency", lambda method, x_0, y, *_: x_0.mean(1) if y == 1 else -x_0.mean(1))
    assert set(calibrate_checkpoints([checkpoint], folder).null_threshold) == {"spot"}
    method = load(checkpoint).method
    assert method.null_threshold(1, "likelihood_ratio", 3) and method.null_threshold(2, "likelihood_ratio", 3) is None
    assert method.classify_image(torch.zeros(1, 16, 16)).by == "diffusion"


def test_checkpoints_have_each_its_own_and_those_of_one_step_the_same(folder, checkpoint, tmp_path, monkeypatch):
    known, told = CDM.saliency, []
    learnt = lambda method, *given: float(method.network.table.weight[1, 0]) * known(method, *given)
    monkeypatch.setattr(CDM, "saliency", learnt)
    paths = [tmp_path / f"{name}.safetensors" for name in ("best", "last", "again")]
    for path, step in zip(paths, (3, 5, 5), strict=True):
        method = load(checkpoint).method
        torch.nn.init.constant_(method.network.table.weight, step)
        save_checkpoint(path, method, {"fold": 1, "steps_trained": step})
    first = calibrate_checkpoints(paths, folder, on_case=lambda done, total: told.append((done, total)))
    assert told == 2 * [(n, 16) for n in range(1, 17)]
    best, last, again = (SaliencyCalibration(**read_meta(path)["references"][-1]) for path in paths)
    assert best == first == made(paths[0], folder) and last == again == made(paths[1], folder)
    assert last.null_threshold["spot"] == pytest.approx(5 / 3 * best.null_threshold["spot"])


def file(folder: Path, case: str) -> Path:
    return folder / f"imagesTr/{case}_0000.png"


def test_an_image_shows_the_class_whose_map_stands_out(folder, checkpoint):
    reference = calibrate_checkpoints([checkpoint], folder)
    model = load(checkpoint)
    for case in CASES[:6]:  # some held out, some not
        record = model.predict(file(folder, case), draws=1).provenance["image_label"]
        assert record["decided_by"] == "map" and record["network_evaluations"] == 2 * 2 * (4 * 3)  # noises, classes, one map
        expected = {"background": 0.0}
        for y, kind in ((1, "spot"), (2, "bar")):
            peak = smoothed_share(case, y, reference.null_threshold[kind]).max()
            expected[kind] = np.log(peak / reference.detection_threshold[kind])
        assert record["scores"] == pytest.approx(expected, abs=2e-3)
        assert record["label"] == max(expected, key=expected.get)
        assert (record["label"] == "background") == (kind_of(case) == "background")
    image = torch.from_numpy(draw_picture("spot2") / 10.0).float()[None]
    peak = smoothed_share("spot2", 1, reference.null_threshold["spot"]).max()
    for share, label in ((0.999, 1), (1.001, 0)):
        model.method.calibration = replace(reference, detection_threshold={"spot": share * peak, "bar": 1.0})
        assert model.method.classify_image(image).label == label


def test_the_mask_is_where_the_map_is_above_the_border_of_the_others(folder, checkpoint):
    border = calibrate_checkpoints([checkpoint], folder).null_threshold["spot"]
    plain = load(checkpoint, options=["image=false", "largest=false"])
    for case in ("spot0", "spot2"):
        mask = plain.predict(file(folder, case), draws=2, label="spot").mask.squeeze()
        assert np.array_equal(mask == 1, smoothed_share(case, 1, border) > 0.5) and 10 < mask.sum() < 50
    for model in (plain, load(checkpoint)):  # told that it shows what it does not: empty all the same
        dark = np.full((16, 16), 30, np.float32)
        dark[4:8, 5:9] += 30 * 0.95 * border / 0.75  # a quarter of which the mean of the row takes away
        assert not model.predict(dark, draws=1, label="spot").mask.any()


def decided(model: Model, picture: Path) -> str:
    return model.predict(picture, draws=1).provenance["image_label"]["decided_by"]


def test_a_reference_is_for_the_maps_that_it_was_made_of(folder, checkpoint):
    done = call("calibrate-saliency", checkpoint, folder)
    assert done.exit_code == 0, done.output
    first, meta = SaliencyCalibration(**read_meta(checkpoint)["references"][-1]), read_meta(checkpoint)
    assert (
        f"spot: null threshold {first.null_threshold['spot']:.3g}, "
        f"detection threshold {first.detection_threshold['spot']:.3f}, from 12 images" in done.stdout
    )
    assert meta["references"][-1] == asdict(made(checkpoint, folder)) and meta["fold"] == 1
    picture = file(folder, "spot0")
    assert decided(load(checkpoint), picture) == "map"
    assert decided(load(checkpoint, options=["support=0"]), picture) == "diffusion"
    for asked in ("decide=map", "threshold=null_quantile"):
        with pytest.raises(UserError, match="diffuseg calibrate-saliency MODEL DATASET"):
            load(checkpoint, options=["support=0", asked]).predict(picture, draws=1, label=None if "map" in asked else "spot")
    out = folder.parent / "out"
    none = call("predict", checkpoint, picture, "--out", out, "--draws", "1", "--set", "support=0", "--set", "decide=map")
    assert none.exit_code == 2 and "diffuseg calibrate-saliency" in none.stderr and "Traceback" not in none.output

    done = call("calibrate-saliency", checkpoint, folder, "--set", "support=0")
    assert done.exit_code == 0, done.output
    second = SaliencyCalibration(**read_meta(checkpoint)["references"][-1])
    assert second.null_threshold["spot"] == pytest.approx(3 * first.null_threshold["spot"], rel=1e-3)
    done = call("predict", checkpoint, picture, "--out", out, "--draws", "1", "--set", "support=0")
    assert done.exit_code == 0, done.output
    record = json.loads((out / "spot0.json").read_text())
    assert record["image_label"]["decided_by"] == "map" and record["image_label"]["label"] == "spot"
    assert decided(load(checkpoint), picture) == "map"  # each of them is kept for its settings
    assert [SaliencyCalibration(**entry) for entry in read_meta(checkpoint)["references"]] == [first, second]
    done = call("border", checkpoint, folder)  # the former name of calibrate-saliency
    assert done.exit_code == 0 and "deprecated" in done.stderr
    assert [SaliencyCalibration(**entry) for entry in read_meta(checkpoint)["references"]] == [second, first]


def test_a_border_is_of_the_images_of_the_training_alone(folder, checkpoint):
    cases = cases_of(open_dataset(folder, masks=False), 1)["train"]
    digests = {case: image_digest(file(folder, case)) for case in cases}
    amend_meta(checkpoint, {"training_cases": digests}, model_hash(checkpoint))
    done = call("border", checkpoint, folder)  # the former name of calibrate-saliency
    assert done.exit_code == 0 and "deprecated" in done.stderr
    amend_meta(checkpoint, {"training_cases": {case: digests[case] for case in cases[1:]}}, model_hash(checkpoint))
    done = call("border", checkpoint, folder)
    assert done.exit_code == 2 and f"{cases[0]} is no image that the model was trained on" in done.stderr


def test_a_checkpoint_without_a_reference_predicts_as_before(folder, checkpoint, tmp_path):
    older = tmp_path / "older.safetensors"
    copy(checkpoint, older)
    first = load(older).predict(file(folder, "spot0"), draws=2, label="spot")
    calibrate_checkpoints([checkpoint], folder)
    assert same_weights(older, checkpoint) and "references" not in read_meta(older)
    assert read_meta(checkpoint)["amended"] == [model_hash(older)]
    model, newer = (load(path, options=["image=false", "largest=false"]) for path in (older, checkpoint))
    assert model.method.calibration is None and decided(model, file(folder, "spot0")) == "diffusion"
    m = gaussian_filter(value("spot0", 1) / np.abs(value("spot0", 1)).max(), SMOOTH, mode="nearest")
    shown = model.predict(file(folder, "spot0"), draws=2, label="spot")
    expected = 1 / (1 + np.exp(-4 * (m / np.quantile(m, 0.97) - 1)))
    np.testing.assert_allclose(shown.probability[1].squeeze(), expected, atol=1e-4)
    bordered = newer.predict(file(folder, "spot0"), draws=2, label="spot")
    assert bordered.mask.sum() > 1.5 * shown.mask.sum() > 0
    again = load(older).predict(file(folder, "spot0"), draws=2, label="spot")
    assert np.array_equal(first.probability, again.probability)
