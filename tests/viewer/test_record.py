"""Records of another kind than predict writes: never a traceback, and never a silence."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffuseg.atomic_io import nan_to_none
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.viewer.cases import find_cases

ODD = [1, "x", True, [], [1, [2]], {}, {"near": "x"}, {"near": [1]}, {"near": [1, "x"]}, {"near": True}, math.nan, math.inf]
ODD += [10**400, {"draws": "3"}, {"draws": -1}, {"draws": 10**9}, {"steps": 4}, {"steps": ["a"]}, "a" * 10_000, "a\0b"]
ANY = dict.fromkeys(("seen_in", "draws", "model_name", "look_at", "needs_review"), range(len(ODD)))
FITS = ANY | {  # which of the above predict might have written
    "volume_ml": [5, 14, 15, 16], "volume_ml_90": [5], "kept": [5, 6, 7, 8, 9], "doubt": [0], "look_at_threshold": [0],
    "volume_note": [1, 18, 19], "source": [1, 18, 19], "uncertainty_score": [0], "review_threshold": [0],
    "grid": [], "outside_training": [3], "calibration": [5, 6, 7, 8, 9, 13, 14, 15, 16, 17],
}  # fmt: skip


def change(folder, **parts) -> None:
    record = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps(record | parts))


@pytest.mark.parametrize("key", FITS)
def test_an_odd_part_is_left_out_and_named(volumes, key):
    change(volumes, look_at=True)
    before = (volumes / "a.json").read_text()
    for number, value in enumerate(ODD):
        (volumes / "a.json").write_text(before)
        change(volumes, **{key: value})
        (case,) = find_cases(volumes, only="a")
        about = json.loads(json.dumps(nan_to_none(case.describe()), allow_nan=False))
        named = any(f"record is odd there: {key}." in remark for remark in about["remarks"])
        assert named is (number not in FITS[key]), (value, about["remarks"])
        for _, ml, low, high, _ in about["volumes"]:  # what the page calculates with
            assert isinstance(ml, int | float) and (low is None or isinstance(low + high, int | float))
        assert isinstance(about["note"], str) and all(isinstance(text, str) for text in about["about"].values())
        assert {"mask", "prob0", "prob1", "entropy"} <= {layer.key for layer in case.layers}


def test_a_record_whose_labels_are_odd_costs_its_case_alone(volumes):
    for value in (*ODD, None, {"background": 0}, {"a": 0, "b": 0}, {"background": 0, "near": 2.5}):
        change(volumes, labels=value)
        a, b = find_cases(volumes)
        assert not a.layers and b.layers and "a.json" in a.faults[0] and "label" in a.faults[0], value
        assert str(volumes) not in json.dumps([a.describe(), b.describe()])
        with pytest.raises(UserError, match="nothing to show of case a"):
            find_cases(volumes, only="a")


def test_a_relative_image_is_looked_for_from_here_and_from_the_record(volumes, tmp_path, monkeypatch):
    scans = tmp_path / "scans"
    other = tmp_path / "elsewhere"
    other.mkdir()

    def image(source: str) -> Path | None:
        change(volumes, source=source)
        case = find_cases(volumes, only="a")[0]
        return case.layers[0].file.resolve() if case.image_found else None

    monkeypatch.chdir(tmp_path)
    assert image("scans/a_0000.nii.gz") == scans / "a_0000.nii.gz"
    monkeypatch.chdir(other)
    assert image("scans/a_0000.nii.gz") is None
    assert image("../scans/a_0000.nii.gz") == image(str(scans / "a_0000.nii.gz")) == scans / "a_0000.nii.gz"
    shutil.copytree(scans, volumes / "scans")
    assert image("scans/a_0000.nii.gz") == volumes / "scans" / "a_0000.nii.gz"
    monkeypatch.chdir(tmp_path)
    assert image("scans/a_0000.nii.gz") == scans / "a_0000.nii.gz"
    assert image("scans") is None and image("") is None and image("out/a.json") is None


def test_an_image_that_is_not_found_is_said_on_the_page_and_in_the_terminal(volumes, tmp_path):
    call = lambda *more: CliRunner().invoke(app, ["view", str(volumes), "--export", str(tmp_path / "x.html"), *more])
    assert call().stderr == ""
    change(volumes, source="gone/a.nii.gz")
    done = call()
    assert done.exit_code == 0 and "no image found for 1 case: a; --images FOLDER" in done.stderr
    said = "The image was not found: a.nii.gz, looked for from the working directory and from the folder of the results"
    assert said in (tmp_path / "x.html").read_text()
    (tmp_path / "none").mkdir()
    done = call("--images", str(tmp_path / "none"))
    assert "no image found for 2 cases: a, b" in done.stderr
    assert "not found: b or b_0000 in the folder of --images" in (tmp_path / "x.html").read_text()


UNREAD = {
    "[]": "it holds no object", "null": "it holds no object", "{}": "it lacks model, draws, seed",
    "{": "cannot be read as JSON", '{"draws": 1, "seed": 0, "steps": 1, "sampler": "x"}': "it lacks model",
    "[" * 100_000: "cannot be read as JSON",
}  # fmt: skip


@pytest.mark.parametrize("content", UNREAD, ids=lambda content: content[:20])
def test_a_case_whose_record_cannot_be_read_is_named_beside_the_others(volumes, tmp_path, content):
    (volumes / "a.json").write_text(content)
    a, b = find_cases(volumes)
    assert (a.name, a.layers, b.name) == ("a", (), "b") and b.layers
    assert "a.json" in a.faults[0] and UNREAD[content] in a.faults[0] and str(volumes) not in a.faults[0]
    for path in volumes.glob("b*"):
        path.unlink()
    for more in ((), ("--case", "a")):
        done = CliRunner().invoke(app, ["view", str(volumes), "--export", str(tmp_path / "x.html"), *more])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and UNREAD[content] in done.stderr, done.output
    assert not (tmp_path / "x.html").exists()


def test_a_case_that_needs_review_says_so_in_plain_words_under_its_present_and_its_former_names(volumes):
    before = json.loads((volumes / "a.json").read_text())
    names = ("needs_review", "uncertainty_score", "review_threshold", "look_at", "doubt", "look_at_threshold")
    plain = {key: value for key, value in before.items() if key not in names}

    def remarks(**parts) -> list[str]:
        (volumes / "a.json").write_text(json.dumps(plain | parts))
        return find_cases(volumes, only="a")[0].describe()["remarks"]

    said = "Needs review by a person: its draws expect a Dice of 0.810 (uncertainty score 0.190, review begins above 0.150)."
    assert remarks(needs_review=True, uncertainty_score=0.19, review_threshold=0.15) == [said]
    assert remarks(look_at=True, doubt=0.19, look_at_threshold=0.15) == [said]
    present = {"needs_review": True, "uncertainty_score": 0.19, "review_threshold": 0.15}
    assert remarks(**present, look_at=False, doubt=0.5, look_at_threshold=0.9) == [said], "the present names come first"
    assert remarks(needs_review=True, uncertainty_score=0.19) == [said.replace(", review begins above 0.150", "")]
    assert remarks(needs_review=True) == ["Needs review by a person."]
    assert remarks(needs_review=False, look_at=True) == remarks() == []
    assert remarks(outside_training=["a", "b"]) == ["Unlike the images of the training: a; b."]


def test_sizes_are_in_the_unit_that_a_person_expects(volumes, pictures):
    unit = lambda folder: [(about["unit"], about["scale"]) for about in (case.describe() for case in find_cases(folder))]
    assert unit(volumes) == [("ml", 1.0)] * 2 and unit(pictures) == [("pixels", 1000.0)]


def test_the_truth_is_found_beside_the_image_or_in_the_folder_that_is_named(volumes, tmp_path):
    truths = lambda **more: [x.file for x in find_cases(volumes, only="a", **more)[0].layers if x.key == "truth"]
    scans = tmp_path / "imagesTs"
    shutil.copytree(tmp_path / "scans", scans)
    change(volumes, source=str(scans / "a_0000.nii.gz"))
    assert truths() == []
    labels, named = tmp_path / "labelsTs" / "a.nii.gz", tmp_path / "drawn" / "a.nii.gz"
    for file in (labels, named):
        file.parent.mkdir()
        shutil.copy(volumes / "a.nii.gz", file)
    assert truths() == [labels] and truths(labels=named.parent) == [named]
    change(volumes, source=str(tmp_path / "scans" / "a_0000.nii.gz"))
    assert truths() == [], "scans is no folder of a data set"
    (tmp_path / "none").mkdir()
    case = find_cases(volumes, only="a", labels=tmp_path / "none")[0]
    assert "The truth was not found: a in the folder of --labels." in case.faults
    with pytest.raises(UserError, match="no such folder"):
        find_cases(volumes, labels=tmp_path / "gone")


def test_no_word_of_the_page_is_known_to_its_makers_alone(volumes):
    from diffuseg.viewer.page import text

    shown = json.dumps([case.describe() for case in find_cases(volumes)]) + text("page.html")
    for word in ("doubt", "levels", "look_at", "looked at", "noise level"):
        assert word not in shown.lower(), word


def test_a_file_that_is_gone_is_named_once(volumes):
    """Both classes have their probabilities in it."""
    (volumes / "a_prob.nii.gz").unlink()
    assert find_cases(volumes, only="a")[0].faults == ("a_prob.nii.gz is not in the folder.",)
