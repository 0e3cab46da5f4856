"""Of many cases some are broken: the others are done, each broken one has its reason, and the command says it with code 3."""

import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from tests.inference.oracle import make_model


def broken(kind: int, good: bytes) -> bytes:
    """A file that is no image, in one of several ways."""
    nan = nib.Nifti1Image(np.full((4, 4, 3), np.nan, np.float32), np.eye(4))
    picture = nib.Nifti1Image(np.zeros((4, 4, 1, 1, 3), np.float32), np.eye(4))
    ways = (b"", b"no image", good[: len(good) // 2], gzip.compress(b"x" * 400), gzip.compress(nan.to_bytes()))
    return (*ways, gzip.compress(picture.to_bytes()))[kind % (len(ways) + 1)]


@pytest.mark.parametrize(("cases", "bad"), [(40, 6), pytest.param(1000, 50, marks=pytest.mark.slow)])
def test_broken_cases_are_named_and_the_others_are_done(tmp_path, monkeypatch, cases, bad):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    good = gzip.compress(nib.Nifti1Image(np.zeros((4, 4, 3), np.float32), np.eye(4)).to_bytes())
    wrong = [f"case{number:04}" for number in range(0, cases, cases // bad)][:bad]
    for number in range(cases):
        case = f"case{number:04}"
        (scans / f"{case}.nii.gz").write_bytes(broken(wrong.index(case), good) if case in wrong else good)
    monkeypatch.setattr("diffuseg.inference.several.load_models", lambda *_: make_model())
    arguments = ["predict", "MODEL", str(scans), "--out", str(out), "--draws", "1", "--no-prob"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3, done.output
    masks = [path.name for path in out.glob("*.nii.gz") if "entropy" not in path.name]
    assert len(masks) == cases - bad and f"{cases - bad} finished, {bad} failed" in done.stdout
    reasons = re.findall(r"^failed (case\d+): (.{10,})$", done.stderr, re.M)
    assert [case for case, _ in reasons] == wrong, "each with its reason, in a line of its own"
    assert not any(f"{case}.json" in {path.name for path in out.iterdir()} for case in wrong)


@pytest.mark.parametrize(("cases", "bad"), [(40, 6), pytest.param(1000, 50, marks=pytest.mark.slow)])
def test_broken_predictions_are_named_and_the_others_are_measured(tmp_path, cases, bad):
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    predictions.mkdir()
    labels.mkdir()
    voxels = np.zeros((4, 4, 3), np.uint8)
    voxels[1:3, 1:3] = 1
    good = gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes())
    names = [f"case{number:04}" for number in range(cases)]
    wrong = names[:: cases // bad][:bad]
    for case in names:
        (labels / f"{case}.nii.gz").write_bytes(good)
        (predictions / f"{case}.nii.gz").write_bytes(broken(wrong.index(case), good) if case in wrong else good)
    done = CliRunner().invoke(app, ["evaluate", str(predictions), str(labels), "--json"])
    assert done.exit_code == 3, done.output
    assert json.loads(done.stdout)["cases"] == cases - bad
    reasons = re.findall(r"(case\d+)\.nii\.gz: ([^/]{10,})", " ".join(done.stderr.split()))
    assert sorted({case for case, _ in reasons}) == wrong, "each with its reason"
