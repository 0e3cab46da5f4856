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
ANY = dict.fromkeys(("seen_in", "draws", "model_name", "look_at"), range(len(ODD)))
FITS = ANY | {  # which of the above predict might have written
    "volume_ml": [5, 14, 15, 16], "volume_ml_90": [5], "kept": [5, 6, 7, 8, 9], "doubt": [0], "look_at_threshold": [0],
    "volume_note": [1, 18, 19], "source": [1, 18, 19],
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
        for _, ml, low, high in about["volumes"]:  # what the page calculates with
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
