"""Draws against raters: closed forms of models that are raters, sources that are what they say, what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuseg.atomic_io import nan_to_none
from diffuseg.data.dataset import load_raters, open_dataset, splits
from diffuseg.data.raters import fuse_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.multirater import ged, pairwise_iou
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.studies.ambiguity import Ambiguity, draw_masks, measure_ambiguity, score_case
from diffuseg.studies.ambiguity_files import tables, write_ambiguity
from tests.inference.oracle import Certain, Oracle, make_model
from tests.train.tiny import call, refused

SHAPE, RATERS = (9, 8), 4
LABELS = {"background": 0, "nodule": 1}
PLAN = {
    "labels": LABELS, "channels": ("CT",), "dims": 2, "orientation": None, "file_ending": ".png", "patch": SHAPE,
    "intensity": ({"low": -1e6, "high": 1e6, "mean": 0.0, "std": 1.0},),
}  # fmt: skip


def make_rated(folder: Path, cases: int = 6) -> Path:
    """Pictures whose intensity tells who marked a pixel: bit k is rater k. In every third case two raters see nothing."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        masks = np.zeros((RATERS, *SHAPE), np.uint8)
        for mask in masks[2 if number % 3 == 2 else 0 :]:
            top, left = rng.integers(1, 4, 2)
            mask[top : top + 4, left : left + rng.integers(2, 5)] = 1
        picture = (masks * 2 ** np.arange(RATERS)[:, None, None]).sum(0) + 16 * number
        name = f"p{number // 2}_{number}"
        PIL.Image.fromarray(picture.astype(np.uint8)).save(folder / f"imagesTr/{name}_0000.png")
        for k, mask in enumerate(masks, 1):
            PIL.Image.fromarray(mask).save(folder / f"labelsTr/{name}_rater{k}.png")
    description = {"name": "rated", "channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".png", "raters": RATERS}
    (folder / "dataset.json").write_text(json.dumps(description | {"patient_pattern": "^p[0-9]"}))
    return folder


class Readers(Oracle):
    """Draw i is the mask of rater i modulo their number."""

    def draw(self, image, seeds, **options):
        for i in range(len(seeds)):
            yield self.mask(image, i % RATERS)

    def mask(self, image, rater):
        marked = (image[0].round().long() >> rater) & 1
        return torch.nn.functional.one_hot(marked, 2).movedim(-1, 0).float()


class Reader(Readers):
    """A model without randomness that is one of the raters."""

    generative = False
    rater = 0

    def draw(self, image, seeds, **options):
        for _ in seeds:
            yield self.mask(image, self.rater)


def reader(rater: int) -> Model:
    model = make_model(method=Reader, **PLAN)
    model.method.rater = rater
    return model


def weak() -> Model:
    model = make_model(method=Readers, **PLAN)
    model.method.supervision = "image_label"
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_rated(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="module")
def measured(data) -> Ambiguity:
    return measure_ambiguity([make_model(method=Readers, **PLAN)], data, SamplingOptions(draws=16), fold=1)


def raters_of(data: Path, name: str) -> np.ndarray:
    dataset = open_dataset(data)
    return load_raters(dataset, next(case for case in dataset.cases if case.id == name))[1].data == 1


def test_a_model_that_is_the_raters_reaches_the_closed_form(measured, data):
    """GED of k of n draws, each rater n / m times: D (1 - (1 - 1/k) n / (n - 1)), D the mean distance of the raters."""
    assert [case.case for case in measured.cases] == splits(open_dataset(data))[1]["val"]
    for case in measured.cases:
        distance = float((1 - pairwise_iou(raters := raters_of(data, case.case), raters)).mean())
        scores = case.sources["draws"]
        for k in (4, 16):
            assert scores[f"ged_{k}"] == pytest.approx(distance * (1 - (1 - 1 / k) * 16 / 15), abs=1e-9)
        assert scores["hm_iou"] == scores["maximum_dice"] == 1
        assert scores["soft_dice"] == pytest.approx(1)
        assert "ged_32" not in scores and case.raters == (RATERS, int((~raters.any((1, 2))).sum()))
        majority = fuse_raters(raters.astype(int)) == 1
        assert case.mean["dice"] == dice(raters.mean(0) > 0.5, majority, "one")  # of equal probabilities, background
        assert case.mean["ece"] == pytest.approx(0, abs=1e-6) and case.mean["ece_band"] == pytest.approx(0, abs=1e-6)
        assert case.mean["ece_band_by_chance"] == pytest.approx(0, abs=1e-6)  # each set has every rater once, so has the rest


def test_each_rater_drawn_once_is_perfect_by_every_score(data):
    once = measure_ambiguity([make_model(method=Readers, **PLAN)], data, SamplingOptions(draws=RATERS))
    best = {"ged_4": 0, "hm_iou": 1, "maximum_dice": 1, "ci": 1, "soft_dice": 1}
    for case in once.cases:
        assert {key: case.sources["draws"][key] for key in best} == pytest.approx(best, abs=1e-9)


def test_an_ensemble_of_raters_is_all_of_them_and_a_single_one_is_a_floor(measured, data):
    together = measure_ambiguity([reader(k) for k in range(RATERS)], data, SamplingOptions(draws=16), fold=1)
    assert [case.sources["draws"] for case in together.cases] == [case.sources["draws"] for case in measured.cases]
    assert together.summary["models"][1]["generative"] is False
    floors = [measure_ambiguity([reader(k)], data, SamplingOptions(draws=8), fold=1) for k in range(RATERS)]
    for number, case in enumerate(together.cases):
        alone = [floor.cases[number].sources["draws"] for floor in floors]
        for key in ("ged_4", "hm_iou", "maximum_dice", "ci", "soft_dice"):
            assert np.mean([scores[key] for scores in alone]) == pytest.approx(case.sources["one rater"][key])


def test_draw_i_comes_from_model_i_and_around_again(data):
    dataset = open_dataset(data)
    image, masks = load_raters(dataset, dataset.cases[0])
    drawn, mean = draw_masks([reader(2), reader(0), reader(3)], image, SamplingOptions(7))
    assert np.array_equal(drawn, masks.data[[2, 0, 3, 2, 0, 3, 2]])
    np.testing.assert_allclose(mean[1], masks.data[[2, 0, 3, 2, 0, 3, 2]].mean(0), atol=1e-6)


def test_draws_are_those_that_predict_makes(data):
    model = make_model(noise=0.6, **PLAN)
    dataset = open_dataset(data)
    image, _ = load_raters(dataset, dataset.cases[0])
    drawn, mean = draw_masks([model], image, SamplingOptions(5, seed=3))
    predicted = model.predict(image, draws=5, seed=3)
    np.testing.assert_allclose(mean, predicted.probability, atol=1e-6)
    ones = [model.predict(image, draws=k, seed=3).probability * k for k in range(1, 6)]
    by_hand = [(b - a).argmax(0) for a, b in zip([0 * ones[0], *ones], ones, strict=False)]
    assert (drawn == np.stack(by_hand)).mean() > 0.99  # differences of float32


def squares(rng: np.random.Generator, number: int, spread: float) -> np.ndarray:
    """Masks [number, 24, 24] of squares whose half width is 6 on average."""
    far = np.abs(np.indices((24, 24)) - 11.5).max(0)
    return np.stack([far < 6 + spread * rng.normal() for _ in range(number)]).astype(np.int64)


def test_the_ece_by_chance_is_that_of_a_model_whose_draws_are_like_the_raters():
    """Raters like the draws: the two are alike, and far above 0. Not where raters spread more, or the mean is too sure."""
    rng, found = np.random.default_rng(0), {"alike": [], "apart": [], "sure": []}
    for _ in range(60):
        draws = squares(rng, 64, 1.5)
        mean = np.stack([(draws == k).mean(0) for k in range(2)]).astype(np.float32)
        inside = np.where(mean[1] > 0.5, 0.99, 0.01).astype(np.float32)
        sure = np.stack([1 - inside, inside])
        for name, p, spread in (("alike", mean, 1.5), ("apart", mean, 4.5), ("sure", sure, 1.5)):
            scores = score_case("a", "p", draws, p, squares(rng, 4, spread), (1.0, 1.0)).mean
            found[name].append((scores["ece_band"], scores["ece_band_by_chance"]))
    own, chance = np.nanmean(found["alike"], axis=0)
    assert abs(own - chance) < 0.015 < 0.07 < chance
    assert np.subtract(*np.nanmean(found["apart"], axis=0)) > 0.08
    assert np.subtract(*np.nanmean(found["sure"], axis=0)) > 0.015
    assert [case[1] for case in found["sure"]] == [case[1] for case in found["alike"]]  # of the draws alone
    few = score_case("a", "p", draws[:7], mean, squares(rng, 4, 1.5), (1.0, 1.0)).mean
    assert np.isnan(few["ece_band_by_chance"])


MASKS = hnp.arrays(np.int64, (4, 3, 4), elements=st.integers(0, 2))


@settings(max_examples=25, deadline=None)
@given(draws=MASKS, raters=st.integers(1, 4).flatmap(lambda m: hnp.arrays(np.int64, (m, 3, 4), elements=st.integers(0, 2))))
def test_any_draws_and_raters_have_finite_scores_within_their_bounds(draws, raters):
    mean = np.stack([(draws == k).mean(0) for k in range(3)]).astype(np.float32)
    found = score_case("a", "p", draws, mean, raters, (1.0, 1.0))
    for scores in found.sources.values():
        lowest = {key: -1 - 1e-9 if key == "dice_gap" else -1e-9 for key in scores}
        assert all(np.isfinite(value) and lowest[key] <= value <= 2 + 1e-9 for key, value in scores.items())
        assert scores["dice_gap"] == pytest.approx(scores["dice_draw_rater"] - scores["dice_draw_draw"])
    assert found.sources["draws"]["ged_4"] == pytest.approx(ged(draws, raters, labels=[1, 2]))
    copies = [ged(raters[i : i + 1], raters, labels=[1, 2]) for i in range(len(raters))]
    assert found.sources["one rater"]["ged_4"] == pytest.approx(np.mean(copies))
    assert 0 <= found.mean["dice"] <= 1 and 0 <= found.mean["doubt"] <= 1
    assert np.isnan(found.single["draws"]["ged"]) == (len(raters) == 1)


def test_resampled_raters_are_a_ceiling_and_pixels_a_floor(measured):
    rows = measured.summary["ambiguity"]
    assert rows["draws"]["ged_16"]["mean"] <= rows["resampled raters"]["ged_16"]["mean"] + 1e-9
    for floor in ("one rater", "pixelwise"):
        for key, sign in (("ged_4", 1), ("ged_16", 1), ("hm_iou", -1)):
            assert sign * rows["resampled raters"][key]["mean"] < sign * rows[floor][key]["mean"]
    single = measured.summary["single"]
    assert single["draws"]["iou"]["mean"] > single["raters"]["iou"]["mean"]  # the draws hold the rater himself


def test_means_have_intervals_over_patients_and_doubt_ranks_cases(data):
    made = measure_ambiguity([reader(0)], data, SamplingOptions(draws=4), fold=0)
    of = [case.patient for case in made.cases]
    assert len(set(of)) < len(of)
    values = [case.sources["draws"]["hm_iou"] for case in made.cases]
    expected = bootstrap_mean(values, of)._asdict()
    found = made.summary["ambiguity"]["draws"]["hm_iou"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    assert made.summary["selective"]["aurc"]["mean"] >= made.summary["selective"]["excess_aurc"]["mean"] >= 0
    assert sum(made.summary["empty"].values()) == made.summary["cases"] == len(of)


def test_the_files_say_what_was_measured(measured, tmp_path):
    paths = write_ambiguity(measured, tmp_path / "out")
    assert [path.name for path in paths] == ["cases.csv", "summary.json"]
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [row["case"] for row in rows] == [case.case for case in measured.cases]
    for row, case in zip(rows, measured.cases, strict=True):
        assert float(row["pixelwise_ged_4"]) == pytest.approx(case.sources["pixelwise"]["ged_4"], rel=1e-5)
        assert float(row["single_raters_iou"]) == pytest.approx(case.single["raters"]["iou"], rel=1e-5)
    written = json.loads(paths[1].read_text())
    assert written["ambiguity"] == nan_to_none(measured.summary["ambiguity"]) and "Two empty masks agree" in written["rule"]
    assert len(tables(measured)) == 2


def test_refusals(data, tmp_path):
    model = make_model(method=Readers, **PLAN)
    with pytest.raises(UserError, match="3 draws of 4 models"):
        measure_ambiguity([model] * 4, data, SamplingOptions(draws=3))
    with pytest.raises(UserError, match="other classes"):
        measure_ambiguity([model, make_model(method=Certain, **PLAN | {"labels": {"background": 0, "x": 1}})], data)
    strange = {"labels": {"background": 0, "x": 1}}
    with pytest.raises(UserError, match=r"its classes are .*those of the model background = 0, x = 1"):
        measure_ambiguity([make_model(method=Readers, **PLAN | strange)], data)
    with pytest.raises(UserError, match="learnt from image-level labels"):
        measure_ambiguity([weak()], data)
    with pytest.raises(UserError, match="no fold 9"):
        measure_ambiguity([model], data, fold=9)
    for path in list((make_rated(tmp_path) / "labelsTr").iterdir()):
        if "rater1" not in path.name:
            path.unlink()
    with pytest.raises(UserError, match=r"dataset\.json: no case has masks of several raters\. Write \"raters\": n"):
        measure_ambiguity([model], tmp_path)


def test_from_a_rated_set_to_its_ambiguity_by_the_command(data, tmp_path):
    wishes = ["plan.crop=8,4", "plan.patch=8,4", "plan.widths=4,8", "plan.batch=2", "train.validation_cases=1"]
    options = [part for wish in wishes for part in ("--set", wish)]
    done = call("train", data, "--out", tmp_path / "run", "--method", "unet", "--steps", 2, "--device", "cpu", *options)
    assert done.exit_code == 0, done.output
    model, out = tmp_path / "run" / "last.safetensors", tmp_path / "scores"
    done = call("ambiguity", model, data, "--draws", 4, "--out", out)
    assert done.exit_code == 0 and all(said in done.stdout for said in ("copied", "Two empty masks agree", "AURC")), done.output
    written = json.loads((out / "summary.json").read_text())
    val = splits(open_dataset(data))[0]["val"]
    assert written["cases"] == len(val) and written["fold"] == 0 and written["models"][0]["method"] == "unet"
    assert [row["case"] for row in csv.DictReader((out / "cases.csv").read_text().splitlines())] == val
    done = call("ambiguity", model, model, data, "--draws", 4, "--cases", 1, "--out", tmp_path / "two", "--ensemble")
    assert done.exit_code == 0 and "ensemble" in done.stdout, done.output
    refused(call("ambiguity", model, model, data), "2 models", "--ensemble")
    refused(call("ambiguity", model, data, "--fold", 1), "is one the model was trained on", "Its own fold is 0")
    # The prediction lies on the picture's own grid, and its single truth is the majority.
    done = call("predict", model, data / "imagesTr", "--out", tmp_path / "predicted", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert np.asarray(PIL.Image.open(tmp_path / "predicted" / f"{val[0]}.png")).shape == SHAPE
    done = call("evaluate", tmp_path / "predicted", data / "labelsTr", "--out", tmp_path / "evaluated")
    assert done.exit_code == 0 and "majority vote of the raters" in " ".join(done.stdout.split()), done.output
    assert json.loads((tmp_path / "evaluated" / "summary.json").read_text())["cases"] == 6


def test_patients_may_be_told_where_the_set_does_not(tmp_path):
    folder = make_rated(tmp_path)
    description = json.loads((folder / "dataset.json").read_text())
    del description["patient_pattern"]
    (folder / "dataset.json").write_text(json.dumps(description))
    alone, told = (
        measure_ambiguity([reader(0)], folder, SamplingOptions(draws=4), pattern=pattern) for pattern in (None, "^p")
    )
    assert {case.patient for case in told.cases} == {"p"} and told.summary["patients"] == 1
    assert [case.case for case in told.cases] == [case.case for case in alone.cases]  # patients of intervals move no fold
    assert alone.summary["patients"] == alone.summary["cases"]
