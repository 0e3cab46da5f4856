"""A model whose overconfidence is known: what calibration finds, what predict then does, what is refused."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from diffuseg.checkpoint import amend_meta, image_digest, model_hash, read_meta, save_checkpoint
from diffuseg.cli import app
from diffuseg.data.dataset import load_image, open_dataset, splits
from diffuseg.data.io import write
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import apply_temperature
from diffuseg.evaluation.conformal import Coverage, calibrate_interval
from diffuseg.evaluation.level_sets import SHIFTS, LevelMargin, level_volumes
from diffuseg.evaluation.shift import Weights
from diffuseg.evaluation.statistics import Interval
from diffuseg.inference.calibration import Calibration, read_calibration
from diffuseg.inference.folds import validation_cases
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import METHODS
from diffuseg.reports.evaluate import evaluate
from diffuseg.studies import calibrate as module
from diffuseg.studies.calibrate import (
    FRACTION,
    CaseScores,
    Measured,
    _coverage,
    _how,
    _intervals,
    _temperature,
    measure_calibration,
)
from diffuseg.studies.calibrate_files import tables, write_calibration
from diffuseg.studies.likeness import features, predictions_like, weights_for
from diffuseg.types import Image
from tests.inference.oracle import Oracle, make_model, make_plan

SHAPE = (16, 14, 8)
SHARPER = 2.5  # the logits of the model below are so many times too large


class Sure(Oracle):
    """An intensity of 1000 p says that the organ is there with probability p; the model says so with too much confidence."""

    @torch.no_grad()
    def draw(self, image, seeds, **options) -> Iterator[torch.Tensor]:
        p = (image[0] / 100).clamp(1e-4, 1 - 1e-4)
        for _ in seeds:
            inside = torch.sigmoid(SHARPER * torch.logit(p))
            yield torch.stack([1 - inside, inside])


def put(folder: Path, cases: int, flipped: str = "", patients: int | None = None) -> Path:
    """Truths are drawn voxel by voxel from the probabilities in the images; all cases but the first are in fold 0's "val"."""
    names = [f"case_{number:02d}" for number in range(cases)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        p = random.uniform(0.02, 0.98, SHAPE)
        truth = (random.random(SHAPE) < p).astype(np.uint8)
        like = Image(truth[None])
        write(folder / "imagesTr" / f"{name}_0000.nii.gz", (1000 * p).astype(np.float32), like)
        write(folder / "labelsTr" / f"{name}.nii.gz", 3 * (1 - truth if name == flipped else truth), like)
    described = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 3},
        "file_ending": ".nii.gz",
        "name": "made",
    }
    if patients:
        described["patients"] = {name: f"p{number % patients}" for number, name in enumerate(names)}
    (folder / "dataset.json").write_text(json.dumps(described | {"numTraining": cases}))
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:1], "val": names[1:]}]))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return put(tmp_path_factory.mktemp("sure") / "data", 25)


def predicted(model, images: list[Image], folder: Path, draws: int = 2) -> Path:
    for number, image in enumerate(images):
        model.predict(image, SamplingOptions(draws=draws), calibrate=False).save(folder, f"new_{number}")
    return folder


def shifted(data: Path, by: float) -> list[Image]:
    """The calibration images, each probability moved towards 1 (by > 0) or 0."""
    dataset = open_dataset(data)
    images = [load_image(dataset, case) for case in dataset.cases[1:]]
    return [dataclasses.replace(image, data=np.clip(image.data + by, 20, 980).astype(np.float32)) for image in images]


def test_images_like_the_calibration_cases_change_no_interval(data, measured, tmp_path):
    model = make_model(method=Sure)
    like = predicted(model, shifted(data, 0), tmp_path / "same")
    found = measure_calibration(model, data, SamplingOptions(draws=2), like=like)
    learnt, before = found.calibration, measured.calibration
    assert learnt.widening == before.widening and learnt.temperature == before.temperature and before.weighted_for == ""
    said = "24 images of same and their like, for which the cases are worth 24.0"
    assert learnt.weighted_for == said and said in learnt.where and said in printed(tables(found)).replace("\n", " ")


def printed(found) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(*found)
    return console.file.getvalue()


def test_hard_cases_that_count_more_widen_the_interval():
    """29 masks are right; two would be with odds greater by 2: where these two count more, so are all odds shifted."""
    levels = 10.0 + SHIFTS
    cases = [
        CaseScores({}, {"organ": 10.0}, {"organ": 10.0}, {"organ": 12.0 if hard else 10.0}, {"organ": levels}, 0.1, 0.2)
        for hard in [0] * 29 + [1] * 2
    ]
    groups = [str(number) for number in range(31)]
    alike = _intervals(cases, groups, 0.001, None)[1]["organ"].shift
    harder = Weights(np.array([0.5] * 29 + [8.25] * 2), 1.0, 12.0)
    assert alike == 0 and _intervals(cases, groups, 0.001, harder)[1]["organ"].shift == pytest.approx(2)


def record(model: str = "m", volume: float = 1.0, score: float = 0.1, **other) -> dict:
    return {
        "model": model, "draws": 2, "steps": 1, "sampler": "ddim", "fuse": "mean", "seed": 0, "label": None, "options": {},
        "volume_ml_90": {"organ": [volume, volume]}, "uncertainty_score": score,
    } | other  # fmt: skip


def test_likeness_is_that_of_volume_and_uncertainty_before_calibration():
    rng = np.random.default_rng(0)
    volumes, scores = rng.uniform(1, 4, 40), rng.uniform(0.1, 0.3, 40)
    cases = np.stack([features({"organ": (v, v)}, s, 0.001) for v, s in zip(volumes, scores, strict=True)])
    large = [record(volume=v, score=s) for v, s in zip(rng.uniform(2, 4, 20), rng.uniform(0.1, 0.3, 20), strict=True)]
    found = weights_for(cases, large, 0.001, 0.1)
    assert np.corrcoef(found.cases, volumes)[0, 1] > 0.8 > 0.3 > abs(np.corrcoef(found.cases, scores)[0, 1])
    widened = [{**one, "volume_ml_90_raw": one["volume_ml_90"], "volume_ml_90": {"organ": [0.0, 9.0]}} for one in large]
    np.testing.assert_allclose(weights_for(cases, widened, 0.001, 0.1).cases, found.cases)


def test_images_unlike_all_calibration_cases_are_refused():
    cases = np.stack([features({"organ": (v, v)}, 0.1, 0.001) for v in np.linspace(1, 1.2, 24)])
    with pytest.raises(UserError, match=r"no calibration case is like these images: one of them weighs .*leave out 10%"):
        weights_for(cases, [record(volume=50.0, score=0.5) for _ in range(24)], 0.001, 0.1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"draws": 3}, "draws 3, not 2"), ({"model": "n"}, "another model"), ({"options": {"mirror": True}}, "mirrored"),
        ({"seen_in": "training"}, "was in the model's training"),
    ],
)  # fmt: skip
def test_predictions_that_say_nothing_of_new_images_are_refused(tmp_path, change, what):
    settings = {"draws": 2, "steps": 1, "sampler": "ddim", "fuse": "mean", "options": {}}
    for number in range(10):
        (tmp_path / f"case_{number}.json").write_text(json.dumps(record() | (change if number == 7 else {})))
    with pytest.raises(UserError, match=f"case_7 was .*{what}|case_7 {what}"):
        predictions_like(tmp_path, "m", settings)
    (tmp_path / "case_7.json").unlink()
    with pytest.raises(UserError, match="9 predictions in it"):
        predictions_like(tmp_path, "m", settings)


@pytest.fixture(scope="module")
def measured(data) -> Measured:
    return measure_calibration(make_model(method=Sure), data, SamplingOptions(draws=2))


def test_the_known_temperature_is_found_and_makes_probabilities_frequencies(measured):
    assert measured.calibration.temperature == pytest.approx(SHARPER, rel=0.05)
    band = measured.scores["band"]
    assert band["ece"]["before"].mean > 0.1 > 0.03 > band["ece"]["after"].mean
    assert all(band[name]["difference"].high < 0 for name in ("ece", "adaptive_ece", "brier", "nll"))
    for name, sides in band.items():
        assert sides["difference"].mean == pytest.approx(sides["after"].mean - sides["before"].mean), name
    assert measured.diagrams["after"].ece < 0.02 < measured.diagrams["before"].ece
    assert measured.diagrams["after"].count.sum() == measured.diagrams["before"].count.sum()


def test_the_temperature_is_that_of_the_band_and_not_of_the_image():
    """In the band logits are twice too large, elsewhere they are twice too small; the second is asked nowhere."""
    random = np.random.default_rng(0)

    def voxels(sharper: float, n: int) -> tuple[np.ndarray, np.ndarray]:
        logit = random.normal(0, 1.5, n)
        truth = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        said = 1 / (1 + np.exp(-sharper * logit))
        return np.stack([1 - said, said]), truth

    cases = [CaseScores({"band": voxels(2.0, 4000), "image": voxels(0.5, 40_000)}, {}, {}, {}, {}, 0.0, 0.0) for _ in range(3)]
    assert _temperature(cases) == pytest.approx(2.0, rel=0.06)


def test_a_temperature_that_its_own_table_shows_to_be_harmful_is_not_stored(data, measured, monkeypatch):
    assert measured.calibration.temperature > 1.5
    monkeypatch.setattr(module, "_scores", lambda *arguments: _with_worse_image(measured.scores))
    found = measure_calibration(make_model(method=Sure), data, SamplingOptions(draws=2))
    assert found.calibration.temperature == 1
    assert "makes ECE, image worse" in found.how["temperature"]


def _with_worse_image(scores):
    worse = scores["image"]["ece"] | {"difference": Interval(0.01, 0.005, 0.02)}
    return scores | {"image": scores["image"] | {"ece": worse}}


def test_no_case_is_scored_with_a_temperature_that_it_fitted(tmp_path, data, measured):
    """With one truth turned inside out, its own temperature stays to the last bit and those of the other half change."""
    name = "case_05"
    other = measure_calibration(make_model(method=Sure), put(tmp_path / "data", 25, flipped=name), SamplingOptions(draws=2))
    before, after = measured.per_case, other.per_case
    changed = {case for case in before if before[case]["temperature"] != after[case]["temperature"]}
    assert name not in changed and len(changed) == len(before) // 2
    assert len({row["temperature"] for row in before.values()}) == 2
    assert other.calibration.temperature != measured.calibration.temperature


def test_cases_of_a_patient_are_on_one_side(tmp_path):
    found = measure_calibration(make_model(method=Sure), put(tmp_path / "data", 9, patients=3), SamplingOptions(draws=1))
    by_patient = {row["patient"]: set() for row in found.per_case.values()}
    for row in found.per_case.values():
        by_patient[row["patient"]].add(row["temperature"])
    assert all(len(temperatures) == 1 for temperatures in by_patient.values())
    assert (found.calibration.cases, found.calibration.patients) == (8, 3)
    # 8 cases cannot give a 90 % interval: nothing is stored that would be infinite
    assert found.calibration.widening == {} and np.isinf(found.coverage["organ"]["widened"]["mean_width_ml"])
    assert "too few patients" in found.how["intervals"]


def test_the_threshold_sends_a_fifth_of_the_cases_and_predict_names_the_same_ones(measured, data):
    doubts = {case: row["uncertainty_score"] for case, row in measured.per_case.items()}
    sent = {case for case, doubt in doubts.items() if doubt > measured.calibration.threshold}
    assert len(sent) == int(FRACTION * len(doubts)) and min(doubts[c] for c in sent) > max(
        doubt for case, doubt in doubts.items() if case not in sent
    )
    model = calibrated(measured.calibration)
    for case in doubts:
        record = model.predict(data / "imagesTr" / f"{case}_0000.nii.gz", draws=2).provenance
        assert record["needs_review"] is record["look_at"] is (case in sent)
        assert record["uncertainty_score"] == record["doubt"] == doubts[case]
        assert record["look_at_threshold"] == measured.calibration.threshold


def calibrated(calibration: Calibration):
    model = make_model(method=Sure)
    return dataclasses.replace(model, meta=model.meta | {"calibration": dataclasses.asdict(calibration)})


def test_a_prediction_is_tempered_and_widened_and_its_mask_stays(measured, data):
    image = next((data / "imagesTr").iterdir())
    plain = make_model(method=Sure).predict(image, draws=2)
    found = calibrated(measured.calibration).predict(image, draws=2)
    assert np.array_equal(found.mask, plain.mask)
    assert all(np.array_equal(found.uncertainty[name], values) for name, values in plain.uncertainty.items())
    expected = apply_temperature(plain.probability, measured.calibration.temperature)
    np.testing.assert_allclose(found.probability, expected, rtol=1e-5)
    assert np.abs(found.probability.sum(0) - 1).max() < 1e-5
    raw, wide = found.provenance["volume_ml_90_raw"], found.provenance["volume_ml_90"]
    assert raw == plain.provenance["volume_ml_90"]
    assert wide["organ"][0] < raw["organ"][0] <= raw["organ"][1] < wide["organ"][1]
    said = found.provenance["calibration"]
    assert said["applied"] and said["temperature"] == measured.calibration.temperature and said["cases"] == 24
    assert "volume_ml_90 is calibrated on 24 validation cases" in found.provenance["volume_note"]
    ends = LevelMargin(**measured.calibration.widening["organ"]).interval(plain.probability, 1, plain.image.voxel_ml)
    assert wide["organ"] == [round(end, 6) for end in ends]
    narrower = {"organ": measured.calibration.widening["organ"] | {"shift": 0.0}}
    asked = measured.calibration.settings | {"options": {}}
    said = dataclasses.replace(measured.calibration, widening=narrower).announce(asked)
    assert "intervals of organ adjusted, " in said and "widen" not in said
    assert not {"calibration", "look_at", "volume_ml_90_raw"} & set(plain.provenance)


@pytest.mark.parametrize(("change", "says"), [({"draws": 3}, "draws 2, now 3"), ({"steps": 1}, "steps 2, now 1"),
                                              ({"sampler": "ddim"}, "sampler ancestral, now ddim"),
                                              ({"fuse": "vote"}, "fuse mean, now vote")])  # fmt: skip
def test_nothing_is_applied_with_other_settings_and_it_says_so(measured, data, change, says):
    image, asked = next((data / "imagesTr").iterdir()), {"draws": 2} | change
    plain, found = (m.predict(image, **asked) for m in (make_model(method=Sure), calibrated(measured.calibration)))
    assert np.array_equal(found.probability, plain.probability)
    assert found.provenance["volume_ml_90"] == plain.provenance["volume_ml_90"]
    assert found.provenance["calibration"]["applied"] is False and says in found.provenance["calibration"]["reason"]
    assert found.provenance["look_at"] is None
    model = calibrated(measured.calibration)
    assert says in model.calibration.announce(model.settings(**asked))
    assert "temperature 2." in model.calibration.announce(model.settings(draws=2, seed=7))


def test_intervals_of_earlier_calibrations_are_widened_by_a_share_of_the_volume_as_before():
    """Draws that are all too small by a factor that differs from case to case."""
    random = np.random.default_rng(1)

    def simulated(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        truth = random.uniform(1, 5, n)
        middle = truth * random.normal(0.9, 0.1, n)
        return 0.98 * middle, 1.02 * middle, truth

    widening = dataclasses.asdict(calibrate_interval(*simulated(2000)))
    learnt = Calibration(1.0, {"organ": widening}, 0.5, 0.2, {}, "made", 0, 2000, 2000)
    low, high, truth = simulated(4000)
    inside = raw = 0
    nothing = np.zeros((2, 1, 1), np.float32)
    for a, b, volume in zip(low, high, truth, strict=True):
        (new_low, new_high) = json.loads(json.dumps(learnt.widen({"organ": [a, b]}, nothing, 1.0)))["organ"]
        inside += new_low <= volume <= new_high
        raw += a <= volume <= b
    assert inside / 4000 == pytest.approx(0.9, abs=0.02) and raw / 4000 < 0.3
    assert learnt.widen({"other": [1.0, 2.0]}, nothing, 1.0) == {"other": [1.0, 2.0]}


def test_each_class_has_the_interval_of_its_own_odds():
    random = np.random.default_rng(2)
    p = random.dirichlet([1, 1, 1], 500).T.astype(np.float32)
    widening = {"b": {"shift": 0.5, "alpha": 0.1, "cases": 20}, "a": {"shift": 1.0, "alpha": 0.1, "cases": 20}}
    learnt = Calibration(1.0, widening, 0.5, 0.2, {}, "made", 0, 20, 20)
    found = learnt.widen({"a": [0.0, 0.0], "b": [0.0, 0.0]}, p, 2.0)
    assert found == {
        "a": list(level_volumes(p, 1, 2.0, np.array([-1.0, 1.0]))), "b": list(level_volumes(p, 2, 2.0, np.array([-0.5, 0.5])))
    }  # fmt: skip


class Two(Oracle):
    """Two classes whose borders are blurred by different amounts, at different intensities."""

    @torch.no_grad()
    def draw(self, image, seeds, **options) -> Iterator[torch.Tensor]:
        v = image[0] / 100
        for _ in seeds:
            yield torch.stack([0 * v, 6 * (v - 0.6), 30 * (0.3 - v)]).softmax(0)


def test_each_class_is_calibrated_and_predicted_by_itself_in_the_volume_of_its_voxels(tmp_path):
    """Voxels of 0.8 x 0.8 x 2 mm, on a grid of 1 mm: the ends are counted by hand on the image's own voxels."""
    affine, names = np.diag([0.8, 0.8, 2.0, 1.0]), [f"case_{number:02d}" for number in range(13)]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        v = np.clip(np.linspace(0, 1, 20)[:, None, None] + random.normal(0, 0.05, (20, 12, 6)), 0.01, 0.99)
        truth = np.where(v > 0.6 + random.normal(0, 0.1), 1, np.where(v < 0.3 + random.normal(0, 0.1), 2, 0))
        nib.save(nib.Nifti1Image(np.float32(1000 * v), affine), tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), affine), tmp_path / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0, "a": 1, "b": 2}
    described = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz", "name": "made", "numTraining": 13}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": names[:1], "val": names[1:]}]))
    model = make_model(method=Two, labels=labels, spacing=(1.0, 1.0, 1.0))
    learnt = measure_calibration(model, tmp_path, SamplingOptions(draws=2)).calibration
    assert set(learnt.widening) == {"a", "b"} and learnt.widening["a"]["shift"] != learnt.widening["b"]["shift"]
    drawn = lambda name: model.predict(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", draws=2).probability.reshape(3, -1)
    inside = lambda p, k, by: int((p[k] * np.exp(by) >= np.delete(p, k, axis=0).max(axis=0)).sum())
    for name, k in (("a", 1), ("b", 2)):  # of 12 cases the largest of the shifts that they need
        needed = []
        for case in names[1:]:
            p = drawn(case).astype(float)
            true = int((np.asarray(nib.load(tmp_path / "labelsTr" / f"{case}.nii.gz").dataobj) == k).sum())
            needed.append(next(q for q in np.arange(0, 14, 0.05) if inside(p, k, -q) <= true <= inside(p, k, q)))
        assert learnt.widening[name]["shift"] == pytest.approx(max(needed), abs=0.051)
    image = tmp_path / "imagesTr" / "case_03_0000.nii.gz"
    p = drawn("case_03").astype(float)
    found = dataclasses.replace(model, meta=model.meta | {"calibration": dataclasses.asdict(learnt)}).predict(image, draws=2)
    assert found.provenance["calibration"]["applied"]
    for name, k in (("a", 1), ("b", 2)):
        shift = learnt.widening[name]["shift"]
        counted = [0.8 * 0.8 * 2 / 1000 * inside(p, k, by) for by in (-shift, shift)]
        assert found.provenance["volume_ml_90"][name] == pytest.approx(counted, abs=2e-3)


def test_where_probabilities_say_nothing_the_intervals_of_the_draws_are_widened():
    """Masks that are sure everywhere and too small by a seventh: no other threshold has the true volume."""
    p = np.zeros((2, 200), np.float32)
    p[1, :60], p[0, 60:] = 1, 1
    levels = {"organ": level_volumes(p, 1, 1.0)}
    ends = {"organ": 60.0}
    cases = [CaseScores({}, ends, ends, {"organ": 70.0}, levels, 0.1, 0.2) for _ in range(24)]
    coverage, widening = _intervals(cases, [str(number) for number in range(24)], 1e-9, None)
    assert widening["organ"].margin == pytest.approx(1 / 6)
    assert coverage["organ"]["widened"]["mean_width_ml"] == pytest.approx(20)


@pytest.mark.parametrize(
    "learnt",
    [
        {"shift": float("nan"), "alpha": 0.1, "cases": 9},
        {"shift": float("inf"), "alpha": 0.1, "cases": 9},
        {"margin": float("inf"), "scale": "relative", "alpha": 0.1, "smallest": 0.001, "cases": 9},
    ],
)
def test_a_calibration_whose_numbers_are_none_is_refused(measured, learnt):
    header = dataclasses.asdict(measured.calibration) | {"widening": {"organ": learnt}}
    with pytest.raises(UserError, match=r"calibration\.widening\.organ: its constant is not finite"):
        read_calibration({"calibration": header})


def test_coverage_is_that_of_intervals_of_the_other_half(measured):
    widened, raw = measured.coverage["organ"]["widened"], measured.coverage["organ"]["raw"]
    assert raw["cases"] == widened["cases"] == 24 and "half" in measured.how["intervals"]
    assert widened["fraction"]["low"] < widened["fraction"]["mean"] <= widened["fraction"]["high"]
    assert widened["inside"] / 24 == widened["fraction"]["mean"] >= raw["fraction"]["mean"]


def test_refusals(tmp_path, data, caplog):
    model = make_model(method=Sure)
    with pytest.raises(UserError, match="Folds are 0 to 0"):
        measure_calibration(model, data, fold=1)
    with pytest.raises(UserError, match="one patient"):
        measure_calibration(model, data, limit=1)
    digest = image_digest(data / "imagesTr" / "case_07_0000.nii.gz")
    trained = dataclasses.replace(model, meta=model.meta | {"training_cases": {"x": digest}, "fold": 0})
    with pytest.raises(UserError, match="case_07 of fold 0 is one the model was trained on"):
        measure_calibration(trained, data)
    copied = trained.meta | {"validation_cases": {"case_07": digest}}
    found = measure_calibration(dataclasses.replace(trained, meta=copied), data)
    assert "left out, as the model was trained on the same images under other names: case_07" in caplog.text
    assert found.calibration.cases == 23 and "case_07" not in found.per_case
    dataset = open_dataset(data)
    for n in (8, 12, 23):  # as many as are asked for, whether or not the copy was among the first choice
        chosen = validation_cases(dataclasses.replace(trained, meta=copied), dataset, limit=n)
        assert len(set(chosen)) == n and "case_07" not in chosen
    nothing = put(tmp_path / "data", 4)
    for mask in (nothing / "labelsTr").iterdir():
        write(mask, np.zeros(SHAPE, np.uint8), Image(np.zeros((1, *SHAPE))))
    with pytest.raises(UserError, match="nothing to calibrate on"):
        measure_calibration(model, nothing, SamplingOptions(draws=1))
    with pytest.raises(UserError, match="calibration"):
        read_calibration({"calibration": {"temper": 1}})


def test_a_model_that_makes_no_error_keeps_its_probabilities(data, monkeypatch):
    """Without an error the likelihood has no best temperature."""
    monkeypatch.setattr("diffuseg.studies.calibrate.fit_temperature", lambda *_: 0.0501)
    found = measure_calibration(make_model(method=Sure), data, SamplingOptions(draws=1), limit=4)
    assert found.calibration.temperature == 1 and found.how["temperature"].startswith("none: the best fit lies at an end")


def test_files_and_tables_say_what_was_found(measured, tmp_path):
    paths = write_calibration(measured, "0" * 12, tmp_path / "out")
    assert [path.name for path in paths] == ["calibration.json", "reliability.png", "risk_coverage.png"]
    content = json.loads(paths[0].read_text())
    assert read_calibration({"calibration": content["learnt"]}) == measured.calibration
    assert set(content["cases"]) == set(measured.per_case) and content["scores"]["band"]["ece"]["after"]["mean"] > 0
    kept = content["risk_coverage"]
    assert len(kept["risk"]) == 24 and kept["risk"][-1] == pytest.approx(content["selective"]["risk"]["mean"])
    at = content["selective"]
    assert at["gain"]["mean"] == pytest.approx(at["risk"]["mean"] - at["rest"]["mean"])
    assert at["aurc"]["low"] <= at["aurc"]["mean"] <= at["aurc"]["high"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:]) and len(tables(measured)) == 2


def test_from_the_command_to_the_case_that_is_to_be_looked_at(tmp_path):
    labels = {"background": 0, "head": 1, "tail": 2}
    data = make_dataset(tmp_path / "data", cases=6, shape=(8, 9, 7))
    fold = splits(open_dataset(data))[0]
    digests = {c.id: image_digest(c.images[0]) for c in open_dataset(data).cases}
    plan = make_plan(patch=(8, 9, 7), widths=(4, 4), normalisation=("zscore",), intensity=(), labels=labels)
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    meta = {"name": "made/concat", "fold": 0, "training_cases": {c: digests[c] for c in fold["train"]}, "recommended": None}
    save_checkpoint(path, METHODS["concat"](plan, METHODS["concat"].config_class(T=8, steps=2)), meta)
    call = lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
    weights = path.stat().st_size
    done = call("calibrate", path, data, "--out", tmp_path / "out", "--draws", 2)
    assert done.exit_code == 0, done.output
    assert "remembers" in done.stdout and (tmp_path / "out" / "risk_coverage.png").exists()
    learnt = read_meta(path)["calibration"]
    assert learnt == json.loads((tmp_path / "out" / "calibration.json").read_text())["learnt"]
    assert learnt["settings"] == {"draws": 2, "steps": 2, "sampler": "ddim", "fuse": "mean"}
    assert path.stat().st_size > weights and load(path, "cpu").calibration is not None
    amend_meta(path, {"calibration": learnt | {"threshold": -1.0}}, model_hash(path))
    scan = next((data / "imagesTr").iterdir())
    name = scan.name.replace("_0000.nii.gz", "")
    for said in ("1 finished", "1 skipped"):  # of finished cases, too, one wants to know
        done = call("predict", path, scan, "--out", tmp_path / "masks", "--draws", 2)
        assert (
            done.exit_code == 0 and f"{name} needs review by a person: its draws expect" in done.stdout and said in done.stdout
        ), done.output
        assert "calibrated on" in done.stdout
    other = call("predict", path, scan, "--out", tmp_path / "more", "--draws", 3)
    assert "calibration not applied: learnt with draws 2, now 3" in other.stdout and "look at" not in other.stdout
    chosen = call("curve", path, data, "--out", tmp_path / "curve", "--steps", 1, "--draws", 3)
    assert chosen.exit_code == 0 and "calibration not applied: learnt with draws 2, now 3" in chosen.stdout, chosen.output
    refused = call("calibrate", path, data, "--fold", 1)
    assert refused.exit_code == 2 and "trained on" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_widened_interval_of_a_single_draw_claims_something(tmp_path):
    truth = np.zeros(SHAPE, np.uint8)
    truth[4:8, 4:8, 2:6] = 1
    like = Image(truth[None])
    for folder in ("labels", "masks"):
        write(tmp_path / folder / "a.nii.gz", truth, like)
    for extra, told in (({}, None), ({"volume_ml_90_raw": {"1": [0.064, 0.064]}}, True)):
        record = {"draws": 1, "volume_ml_90": {"1": [0.05, 0.07]}} | extra
        (tmp_path / "masks" / "a.json").write_text(json.dumps(record))
        assert evaluate(tmp_path / "masks", tmp_path / "labels", tmp_path / "out").rows[0].covered is told


def test_how_sure_a_coverage_is_counts_patients_not_their_cases():
    """Twice each of ten patients is no more evidence than once."""
    inside = np.array([True] * 7 + [False] * 3)
    ends = np.ones(10)
    of = [str(i) for i in range(10)]
    once = _coverage(Coverage(inside, ends, 2 * ends), of)["fraction"]
    twice = _coverage(Coverage(np.tile(inside, 2), np.tile(ends, 2), np.tile(2 * ends, 2)), of + of)["fraction"]
    assert once["mean"] == twice["mean"] == 0.7
    assert twice["high"] - twice["low"] > 0.8 * (once["high"] - once["low"])


def test_a_coverage_of_all_or_nothing_is_not_certain():
    """Ten patients, all inside: 1 - 0.025 ** (1 / 10) may be outside (Clopper and Pearson), with two cases each as well."""
    ends, of = np.ones(10), [str(i) for i in range(10)]
    once = _coverage(Coverage(ends > 0, ends, 2 * ends), of)["fraction"]
    twice = _coverage(Coverage(np.tile(ends > 0, 2), np.tile(ends, 2), np.tile(2 * ends, 2)), of + of)["fraction"]
    assert once == twice == pytest.approx({"mean": 1.0, "low": 0.025 ** (1 / 10), "high": 1.0})


def test_with_several_raters_probabilities_are_held_against_each_of_them(tmp_path):
    """Three raters, each drawn voxel by voxel from p: p is right for each; for their majority it is too near to a half."""
    data = put(tmp_path / "data", 9)
    for number in range(9):
        like = Image(np.zeros((1, *SHAPE), np.uint8))
        random = np.random.default_rng(number)
        p = random.uniform(0.02, 0.98, SHAPE)
        (data / f"labelsTr/case_{number:02d}.nii.gz").unlink()
        for rater in (1, 2, 3):
            write(
                data / f"labelsTr/case_{number:02d}_rater{rater}.nii.gz", 3 * (random.random(SHAPE) < p).astype(np.uint8), like
            )
    described = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(described | {"raters": 3}))
    found = measure_calibration(make_model(method=Sure), data, SamplingOptions(draws=2))
    assert found.calibration.temperature == pytest.approx(SHARPER, rel=0.05)


def test_of_pictures_what_was_done_is_said_in_pixels():
    said = [" ".join(_how(patients, patients, "pixels").values()) for patients in (2, 40)]
    assert not any(word in text for word in ("voxel", " mm", "volume") for text in said) and "pixels" in said[0]
    assert " mm (two voxels" in " ".join(_how(2, 2, "mm").values())
