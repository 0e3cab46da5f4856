"""Folders of predictions against folders of masks: what is measured, what is left out, and that it is said."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from diffuseg.data.io import read_image, write
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import dice, hd95, nsd
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.reports.case_pictures import case_pictures
from diffuseg.reports.evaluate import evaluate
from diffuseg.reports.evaluation import Evaluation
from diffuseg.reports.page import write_page
from diffuseg.reports.tables import evaluation_table
from diffuseg.reports.titles import notes
from diffuseg.types import Image
from tests.inference.oracle import make_model

SPACING = (1.0, 2.0, 3.0)
AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])
LABELS = {"background": 0, "head": 1, "tail": 4}


def mask(seed: int) -> np.ndarray:
    """A box of two classes, somewhere."""
    random = np.random.default_rng(seed)
    array = np.zeros((12, 11, 10), np.int16)
    i, j, k = random.integers(1, 5, 3)
    array[i : i + 5, j : j + 4, k : k + 2] = 1
    array[i : i + 5, j : j + 4, k + 2 : k + 5] = 4
    return array


def put(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    write(file, array, Image(array[None], affine))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Five labelled cases in an nnU-Net folder, predictions moved by one voxel."""
    labels, predictions = tmp_path / "set" / "labelsTr", tmp_path / "predictions"
    description = {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz"}
    labels.mkdir(parents=True)
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(description))
    for number in range(5):
        put(labels / f"case_{number:04d}.nii.gz", mask(number))
        put(predictions / f"case_{number:04d}.nii.gz", np.roll(mask(number), 1, number % 3))
    return predictions, labels


def printed(evaluation: Evaluation) -> str:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    return console.export_text()


def test_each_number_is_that_of_its_case(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate(*folders, tmp_path / "out", nsd_tolerance=1.5)
    assert result.labels == {"head": 1, "tail": 4} and result.cases == [f"case_{n:04d}" for n in range(5)]
    with (tmp_path / "out" / "cases.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 10
    expected: dict[str, list[float]] = {"head": [], "tail": []}
    for number in range(5):
        truth, prediction = mask(number), np.roll(mask(number), 1, number % 3)
        for name, value in result.labels.items():
            row = next(r for r in rows if r["case"] == f"case_{number:04d}" and r["class"] == name)
            a, b = prediction == value, truth == value
            assert float(row["dice"]) == pytest.approx(dice(a, b), rel=1e-5)
            assert float(row["hd95_mm"]) == pytest.approx(hd95(a, b, SPACING), rel=1e-5)
            assert float(row["nsd"]) == pytest.approx(nsd(a, b, SPACING, 1.5), rel=1e-5)
            assert float(row["truth_ml"]) == pytest.approx(b.sum() * 6 / 1000)
            expected[name].append(dice(a, b))
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, values in expected.items():
        found = written["classes"][name]["dice"]
        assert (found["mean"], found["low"], found["high"]) == pytest.approx(bootstrap_mean(values))
        assert found["n"] == 5
    overall = np.mean([expected["head"], expected["tail"]], axis=0)
    assert written["overall"]["dice"]["mean"] == pytest.approx(overall.mean())
    assert result.per_case("dice") == pytest.approx(overall)
    assert written["nsd_tolerance_mm"] == 1.5 and written["rule"]["empty"] == "nan"
    assert {"diffuseg", "monai", "numpy", "scipy"} <= set(written["versions"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cases.csv", "summary.json"}


def test_what_is_read_is_what_was_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """To the six digits of cases.csv; and the files it was made from are found again, unless they are gone."""
    predictions, _ = folders
    put(predictions / "case_0003.nii.gz", np.zeros((12, 11, 10), np.int16))
    (predictions / "case_0001.json").write_text('{"volume_ml_90": {"head": [0.1, 0.9]}}')
    computed = evaluate(*folders, tmp_path / "out")
    read = Evaluation.load(tmp_path / "out")
    assert read.summary == computed.summary and read.name == computed.name == "out"
    assert read.predictions == computed.predictions and read.truths == computed.truths
    for one, other in zip(read.rows, computed.rows, strict=True):
        assert (one.case, one.label, one.patient, one.score.empty) == (
            other.case,
            other.label,
            other.patient,
            other.score.empty,
        )
        assert one.score.values == pytest.approx(other.score.values, rel=1e-5, nan_ok=True) and one.interval == other.interval
        assert one.score.truth_ml == pytest.approx(other.score.truth_ml, rel=1e-5)
    before = (tmp_path / "out" / "cases.csv").read_bytes(), (tmp_path / "out" / "summary.json").read_bytes()
    read.write()
    assert ((tmp_path / "out" / "cases.csv").read_bytes(), (tmp_path / "out" / "summary.json").read_bytes()) == before
    predictions.rename(tmp_path / "elsewhere")
    assert Evaluation.load(tmp_path / "out").predictions == {}


def test_what_is_missing_is_said_and_in_no_mean(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    every = evaluate(*folders, tmp_path / "every").per_case("dice")
    (predictions / "case_0001.nii.gz").unlink()
    put(predictions / "stranger.nii.gz", mask(0))
    result = evaluate(*folders, tmp_path / "out")
    assert result.missing == ["case_0001"] and result.unlabelled == ["stranger"] and not result.faults
    assert result.summary["labelled"] == 5 and result.summary["cases"] == 4
    assert result.summary["overall"]["dice"]["mean"] == pytest.approx(np.delete(every, 1).mean())
    text = printed(result)
    assert "1 of 5 labelled cases has no prediction" in text and "case_0001" in text and "stranger" in text


def test_what_is_written_beside_a_mask_is_no_prediction(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    before = evaluate(*folders, tmp_path / "out").summary
    for name in ("prob", "prob_head", "entropy", "mutual_information"):
        put(predictions / f"case_0000_{name}.nii.gz", np.full((12, 11, 10), 0.5, np.float32))
    (predictions / "case_0000.json").write_text("{}")
    (predictions / "._case_0000.nii.gz").write_bytes(b"rubbish")
    assert evaluate(*folders, tmp_path / "out").summary == before


def test_folders_that_are_given_the_other_way_round_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    for name in ("entropy", "expected_entropy", "prob_head"):  # beside a mask they are no labelled case
        put(predictions / f"case_0000_{name}.nii.gz", np.zeros((12, 11, 10), np.float32))
    put(predictions / "no_case_prob.nii.gz", mask(9))
    result = evaluate(labels, predictions, None)
    assert result.summary["labelled"] == 6 and result.summary["missing"] == ["no_case_prob"]
    record = {"model": "m", "draws": 2, "seed": 0, "steps": 2, "sampler": "ddim"}
    (predictions / "case_0000.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"predictions: the two folders look swapped.*`diffuseg evaluate PREDICTIONS LABELS`"):
        evaluate(labels, predictions, tmp_path / "out")
    assert evaluate(predictions, labels, None).summary["labelled"] == 5 and not list(tmp_path.glob("out/*"))
    assert evaluate(predictions, predictions, None).summary["labelled"] == 6  # records in both: two predictions are compared


def test_a_faulty_case_is_named_and_the_others_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    put(predictions / "case_0000.nii.gz", mask(0)[:-1])
    put(predictions / "case_0001.nii.gz", mask(1), AFFINE + np.array([[0, 0, 0, 5], [0] * 4, [0] * 4, [0] * 4]))
    put(predictions / "case_0002.nii.gz", np.where(mask(2) == 4, 3, mask(2)))
    broken = predictions / "case_0003.nii.gz"
    broken.write_bytes(broken.read_bytes()[:50])
    result = evaluate(*folders, tmp_path / "out")
    assert result.cases == ["case_0004"] and len(result.faults) == 4 and not result.missing
    for number, what in enumerate(("shape", "affine", "label values 3", "truncated")):
        assert f"case_{number:04d}" in result.faults[number] and what in result.faults[number]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["faults"] == result.faults


@pytest.mark.parametrize(("empty", "expected"), [("nan", 0.6), ("one", 0.7), ("zero", 0.45)])
def test_the_empty_mask_rule_decides_what_nobody_marked_is_worth(empty: str, expected: float, tmp_path: Path) -> None:
    one, none = np.zeros((4, 4, 4), np.int16), np.zeros((4, 4, 4), np.int16)
    one[1, 1, :4] = 1
    part = one.copy()
    part[1, 1, 1:] = 0  # 2 * 1 / (1 + 4) = 0.4
    pairs = {"a": (one, one), "b": (part, one), "c": (part, one), "d": (none, none)}
    for case, (prediction, truth) in pairs.items():
        put(tmp_path / "p" / f"{case}.nii.gz", prediction)
        put(tmp_path / "l" / f"{case}.nii.gz", truth)
    result = evaluate(tmp_path / "p", tmp_path / "l", tmp_path / "out", empty)  # type: ignore[arg-type]
    found = result.summary["classes"]["1"]
    assert found["dice"]["mean"] == pytest.approx(expected) and found["dice"]["n"] == (3 if empty == "nan" else 4)
    assert found["empty"] == {"both": 1, "truth": 0, "prediction": 0}
    assert "A class in neither mask" in printed(result) and "1 / 0 / 0" in printed(result)


def test_a_class_without_a_value_does_not_cost_its_case_the_others(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in folders:
        put(folder / "case_0000.nii.gz", np.where(mask(0) == 4, 0, mask(0)))
    result = evaluate(*folders, tmp_path / "out")
    assert result.per_case("dice")[0] == 1.0 and result.summary["overall"]["dice"]["n"] == 5
    assert result.summary["classes"]["tail"]["dice"]["n"] == 4


def test_misses_and_false_alarms_count_under_every_rule(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    put(predictions / "case_0000.nii.gz", np.where(mask(0) == 4, 0, mask(0)))
    put(labels / "case_0001.nii.gz", np.where(mask(1) == 4, 0, mask(1)))
    for empty in ("nan", "one", "zero"):
        result = evaluate(*folders, tmp_path / "out", empty)
        tail = result.summary["classes"]["tail"]
        assert tail["empty"] == {"both": 0, "truth": 1, "prediction": 1} and tail["dice"]["n"] == 5
        scores = {row.case: row.score for row in result.rows if row.label == "tail"}
        for case in ("case_0000", "case_0001"):
            assert scores[case].values["dice"] == 0
            assert scores[case].values["hd95"] == pytest.approx(np.linalg.norm(np.array([12, 11, 10]) * SPACING))


def test_volume_intervals_are_held_against_the_truth(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    for number in range(4):
        true = float((mask(number) == 1).sum()) * 6 / 1000
        interval = [true - 0.01, true + 0.01] if number < 3 else [true + 0.01, true + 0.02]
        content = {"volume_ml": {"head": true}, "volume_ml_90": {"head": interval}}
        (predictions / f"case_{number:04d}.json").write_text(json.dumps(content))
    (predictions / "case_0004.json").write_text('{"volume_ml_90": [1, 2]}')
    result = evaluate(*folders, tmp_path / "out")
    assert result.summary["classes"]["head"]["interval_coverage"] == {"fraction": 0.75, "n": 4}
    assert "interval_coverage" not in result.summary["classes"]["tail"]
    assert len(result.faults) == 1 and "case_0004.json" in result.faults[0] and len(result.cases) == 5
    assert "75% of 4" in printed(result)
    # a single draw has no interval, though one is written
    (predictions / "case_0000.json").write_text('{"draws": 1, "volume_ml_90": {"head": [0, 9]}}')
    assert evaluate(*folders, tmp_path / "out").summary["classes"]["head"]["interval_coverage"]["n"] == 3


def test_intervals_of_classes_that_the_labels_do_not_name_are_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    said = "Predicted volume intervals of head, tail are compared with no true volume"
    for number in range(5):
        content = {"draws": 4, "volume_ml_90": {"head": [0, 9], "tail": [0, 9]}}
        (predictions / f"case_{number:04d}.json").write_text(json.dumps(content))
    named = evaluate(*folders, tmp_path / "out")
    assert named.summary["unheld_intervals"] == "" and named.summary["overall"]["interval_coverage"]["n"] == 10
    (labels.parent / "dataset.json").rename(tmp_path / "dataset.json")
    result = evaluate(*folders, tmp_path / "out")
    text = " ".join(printed(result).split())
    assert said in text and "dataset.json is not there" in text and "interval_coverage" not in result.summary["overall"]
    other = json.loads((tmp_path / "dataset.json").read_text()) | {"labels": {"background": 0, "body": 1, "tail": 4}}
    (labels.parent / "dataset.json").write_text(json.dumps(other))
    text = " ".join(printed(evaluate(*folders, tmp_path / "out")).split())
    assert said.replace("head, tail", "head") in text and "names no such class" in text and "0.90" not in text
    for file in predictions.glob("*.json"):
        file.unlink()
    assert evaluate(*folders, tmp_path / "out").summary["unheld_intervals"] == ""


def test_cases_that_the_model_has_met_are_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    assert evaluate(*folders, tmp_path / "out").summary["seen"] == {
        "training": [],
        "validation": [],
        "neither": 0,
        "unknown": 5,
    }
    for number, side in enumerate(["training", "validation", "neither", "neither"]):
        (predictions / f"case_{number:04d}.json").write_text(json.dumps({"seen_in": side}))
    (predictions / "case_0004.json").write_text('{"seen_in": ["of", "another", "program"]}')
    result = evaluate(*folders, tmp_path / "out")
    expected = {"training": ["case_0000"], "validation": ["case_0001"], "neither": 2, "unknown": 1}
    assert result.summary["seen"] == expected and not result.faults
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["seen"] == expected
    assert "1 case was in the training of the model" in printed(result) and "case_0001" in printed(result)


def test_intervals_are_over_patients_where_they_are_known(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, labels = folders
    alone = evaluate(*folders, tmp_path / "a")
    file = labels.parent / "dataset.json"
    content = json.loads(file.read_text())
    of = {f"case_{n:04d}": "x" if n < 2 else "y" if n < 4 else "z" for n in range(5)}
    file.write_text(json.dumps(content | {"patients": of}))
    together = evaluate(*folders, tmp_path / "b")
    values = alone.per_case("dice")
    assert together.summary["overall"]["dice"]["low"] == pytest.approx(bootstrap_mean(values, [*of.values()]).low)
    assert together.summary["overall"]["dice"]["mean"] == pytest.approx(alone.summary["overall"]["dice"]["mean"])
    assert "over patients" in printed(together) and "over cases" in printed(alone)
    assert {row.case: row.patient for row in together.rows} == of
    # a list that knows other cases only (those of the training, say) is said, and does not forbid to measure
    file.write_text(json.dumps(content | {"patients": {"other": "x"}}))
    said = printed(evaluate(*folders, tmp_path / "c"))
    assert "no patient for" in " ".join(said.split())  # whose line breaks depend on how long the paths are


def test_pictures_of_another_lossless_ending_are_found(tmp_path: Path) -> None:
    picture = np.zeros((20, 30), np.uint8)
    picture[4:9, 5:20] = 255
    like = Image(picture[None])
    write(tmp_path / "l" / "x.png", picture, like)
    write(tmp_path / "p" / "x.tif", np.roll(picture, 1, 0), like)
    result = evaluate(tmp_path / "p", tmp_path / "l", tmp_path / "out")
    assert result.labels == {"255": 255}
    assert result.rows[0].score.values["dice"] == pytest.approx(0.8) and result.rows[0].score.values["hd95"] == 1.0
    assert any("1 mm is a pixel" in note for note in notes(result))
    shown = printed(result)
    assert "HD95 (pixels)" in shown and "area error (pixels)" in shown and "NSD at 1 pixel" in shown
    assert "(mm)" not in shown and "(ml)" not in shown
    error = next(line for line in shown.splitlines() if "area error" in line and "relative" not in line)
    assert re.search(r" 0 ", error), "75 pixels in both, in whole pixels"
    page = write_page([result], tmp_path / "page.html", pictures=()).file.read_text()
    assert "predicted (pixels)" in page and "<td>75</td>" in page and "(ml)" not in page


def test_the_truth_of_several_raters_is_their_majority(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels = folders[1]
    description = json.loads((labels.parent / "dataset.json").read_text()) | {"raters": 3}
    (labels.parent / "dataset.json").write_text(json.dumps(description))
    assert evaluate(*folders, tmp_path / "out").summary["truth"] == "the mask"  # no file says who made it
    for number in range(5):
        (labels / f"case_{number:04d}.nii.gz").unlink()
        for rater, shift in enumerate((0, 0, 2) if number < 4 else (0, 1)):
            put(labels / f"case_{number:04d}_rater{rater}.nii.gz", np.roll(mask(number), shift, 0))
    result = evaluate(*folders, tmp_path / "out")
    assert result.cases == [f"case_{n:04d}" for n in range(5)] and not result.missing
    for row in result.rows[:8]:
        number, value = int(row.case[-1]), LABELS[row.label]
        prediction = np.roll(mask(number), 1, number % 3)
        assert row.score.values["dice"] == dice(prediction == value, mask(number) == value)
    tied = [mask(4), np.roll(mask(4), 1, 0)]
    assert result.rows[8].score.truth_ml == pytest.approx(((tied[0] == 1) | (tied[1] == 1)).sum() * 6 / 1000)
    text = " ".join(printed(result).split())
    assert "The truth is the majority vote of the raters (a tie is foreground)." in text
    assert len(case_pictures([result])) == 3 and "1 mm is a pixel" not in text
    put(labels / "case_0000_rater1.nii.gz", mask(0) * 2)
    put(labels / "case_0001_rater2.nii.gz", mask(1)[:-1])
    faults = evaluate(*folders, tmp_path / "out").faults
    assert len(faults) == 2 and "case_0000_rater1.nii.gz: label values 2, 8" in faults[0]
    assert "case_0001_rater2.nii.gz: its shape (11, 11, 10)" in faults[1]


def test_many_classes_become_lines(tmp_path: Path) -> None:
    array = np.arange(7, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    put(tmp_path / "p" / "a.nii.gz", array)
    put(tmp_path / "l" / "a.nii.gz", array)
    found = evaluate(tmp_path / "p", tmp_path / "l", tmp_path / "out")
    text, page = printed(found), write_page([found], tmp_path / "page.html").file.read_text()
    assert "over 1 case\n" in re.sub(" +\n", "\n", text) and "<h1>Evaluation of 1 case</h1>" in page
    assert "mean of classes" in text.split("HD95 (mm)")[1] and text.count("1.000") >= 7 * 3


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda p, t: p.rename(p.with_name("gone")), "no such folder"),
        (lambda p, t: [f.unlink() for f in p.iterdir()], "no mask in this folder"),
        (lambda p, t: [f.rename(f.with_name("other" + f.name)) for f in p.iterdir()], "no prediction for any of 5 masks"),
        (lambda p, t: [f.write_bytes(b"") for f in p.iterdir()], "none of 5 cases could be compared"),
        (lambda p, t: (t.parent / "dataset.json").write_text("{"), "JSON"),
        (lambda p, t: (t.parent.parent / "out").write_text(""), "cannot be written"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(break_it: object, says: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    break_it(*folders)  # type: ignore[operator]
    with pytest.raises(UserError, match=says):
        evaluate(*folders, tmp_path / "out")
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob(".*"))


def test_impossible_settings_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="distance in mm"):
        evaluate(*folders, tmp_path / "out", nsd_tolerance=-1.0)


def test_predict_and_evaluate_mean_the_same_volume_on_a_sheared_grid(tmp_path: Path) -> None:
    """A gantry tilt of 20 degrees: slices lie askew, and a voxel is smaller than the product of its spacings."""
    tilt = np.deg2rad(20)
    affine = np.diag([0.8, 1.0, 2.0, 1.0])
    affine[:3, 2] = [0.0, 2.0 * np.sin(tilt), 2.0 * np.cos(tilt)]
    scan = np.zeros((12, 11, 10), np.float32)
    scan[3:9, 2:8, 3:7] = 10.0
    put(tmp_path / "images" / "a.nii.gz", scan, affine)
    predicted = make_model().predict(read_image(tmp_path / "images" / "a.nii.gz"), draws=2)
    predicted.save(tmp_path / "predictions")
    put(tmp_path / "labels" / "a.nii.gz", predicted.mask.astype(np.int16), affine)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 3}}))
    score = evaluate(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out").rows[0].score
    voxels = int((predicted.mask == 3).sum())
    assert score.truth_ml == pytest.approx(voxels * 0.8 * 2.0 * np.cos(tilt) / 1000, rel=1e-6) and voxels > 100
    # predict writes volumes to the sixth digit
    assert round(score.prediction_ml, 6) == pytest.approx(predicted.provenance["volume_ml"]["organ"], abs=1e-9)
    assert score.values["volume_error"] == 0


def test_what_nobody_has_annotated_is_not_measured(folders, tmp_path):
    predictions, labels = folders
    described = json.loads((labels.parent / "dataset.json").read_text())
    (labels.parent / "dataset.json").write_text(json.dumps(described | {"labels": LABELS | {"ignore": 9}}))
    for number in range(5):
        truth = mask(number)
        put(predictions / f"case_{number:04d}.nii.gz", np.where(np.arange(12)[:, None, None] < 6, 1, truth))
        truth[:6] = 9
        put(labels / f"case_{number:04d}.nii.gz", truth)
    rows = evaluate(predictions, labels, tmp_path / "out").rows
    assert {row.label for row in rows} == {"head", "tail"}
    assert all(row.score.values["dice"] == 1 for row in rows if not row.score.empty)
    assert any(not row.score.empty for row in rows)


@pytest.mark.parametrize("sign", "=+-@")
def test_names_that_a_spreadsheet_takes_for_formulas_are_read_back_exactly(tmp_path, sign):
    name = f"{sign}1+1"
    for folder in ("labels", "predictions"):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / f"{name}.nii.gz", mask(0))
    evaluate(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out")
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {name}
    assert Evaluation.load(tmp_path / "out").cases == [name]


def records(predictions: Path, labels: dict[str, int]) -> None:
    """As `predict` writes them, as far as classes go."""
    for number in range(5):
        (predictions / f"case_{number:04d}.json").write_text(json.dumps({"labels": labels}))


def test_a_class_that_two_values_call_so_is_refused_and_other_names_are_said(folders, caplog):
    records(folders[0], LABELS | {"head": 4, "tail": 1})
    with pytest.raises(UserError, match=r"none of 5 cases.*'head' has the value 4 in its record, and 1 in the labels"):
        evaluate(*folders, None)
    records(folders[0], {"bg": 0, "caput": 1, "tail": 4})
    assert evaluate(*folders, None).labels == {"head": 1, "tail": 4}
    assert "values are compared: 1 is 'caput' in its records" in caplog.text and "bg" not in caplog.text


def test_empty_masks_of_which_nothing_says_the_classes_are_refused(folders):
    predictions, labels = folders
    (labels.parent / "dataset.json").unlink()
    for path in (*predictions.iterdir(), *labels.iterdir()):
        put(path, 0 * mask(0))
    with pytest.raises(UserError, match=r"labelsTr: no mask.*which classes there are.*dataset\.json would name"):
        evaluate(*folders, None)


def test_a_case_of_which_nobody_has_annotated_a_voxel_is_no_case(folders):
    predictions, labels = folders
    described = json.loads((labels.parent / "dataset.json").read_text())
    (labels.parent / "dataset.json").write_text(json.dumps(described | {"labels": LABELS | {"ignore": 9}}))
    put(labels / "case_0002.nii.gz", 9 + 0 * mask(0))
    for empty in ("nan", "one", "zero"):
        found = evaluate(predictions, labels, None, empty)
        assert "case_0002" not in found.cases and len(found.cases) == 4
        assert any("case_0002" in fault and "nobody has annotated" in fault for fault in found.summary["faults"])
