"""An image far outside of the training is refused, and where it is asked for anyway nothing about it is called calibrated."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference import several
from diffuseg.inference.folder import Callbacks, predict_folder
from diffuseg.inference.sampling import SamplingOptions
from tests.inference.oracle import make_model
from tests.inference.test_several import LEARNT

NAMES = ("percentile 1 of MR", "percentile 50 of MR", "percentile 99 of MR")
RANGES = {f"extent of axis {axis} in mm": [8.0, 9.0] for axis in range(3)} | dict(
    zip(NAMES, ([0.0, 1.0], [0.0, 9.0], [9.0, 10.0]), strict=True)
)
MARGIN = {"margin": 0.5, "scale": "relative", "alpha": 0.1, "smallest": 0.001, "cases": 9}
OPTIONS = SamplingOptions(draws=2, steps=2)


@pytest.fixture
def model():
    learnt = replace(LEARNT, settings=LEARNT.settings | {"steps": 2}, widening={"organ": MARGIN})
    made = make_model(patch=(8, 8, 8), noise=0.6)
    return replace(made, meta=made.meta | {"calibration": asdict(learnt), "fingerprint": {"cases": 9, "ranges": RANGES}})


def scan(folder: Path, name: str, side: int = 8) -> Path:
    """Noise of the range of the training, 8 voxels wide along two axes."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(0).uniform(0, 10, size=(8, 8, side)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_a_far_case_is_refused_by_name_before_its_draws_and_the_others_are_done(model, tmp_path):
    files = [scan(tmp_path / "in", "a"), scan(tmp_path / "in", "head", 60), scan(tmp_path / "in", "z")]
    heard: list[str] = []
    said = Callbacks(on_large=lambda case, faults: heard.append(case))
    found = predict_folder(model, files, tmp_path / "out", OPTIONS, callbacks=said)
    assert found.finished == ["a", "z"] and [case for case, _ in found.failed] == ["head"]
    reason = found.failed[0][1]
    for part in (str(files[1]), "refused", "axis 2 in mm is 60, in training 8 to 9", "Crop it", "--region", "--anyway"):
        assert part in reason, reason
    assert heard == [] and not list((tmp_path / "out").glob("head*")) and len(model.method.calls) == 2
    assert read(tmp_path / "out/a.json")["calibration"]["applied"] is True


def test_with_anyway_the_draws_stay_as_they_are_and_the_record_says_why(model, tmp_path):
    file, heard = scan(tmp_path / "in", "head", 60), []
    anyway = replace(OPTIONS, anyway=True)
    said = Callbacks(on_large=lambda case, faults: heard.append(faults))
    predict_folder(model, [file], tmp_path / "out", anyway, callbacks=said)
    record = read(tmp_path / "out/head.json")
    assert len(heard) == 1 and "axis 2 in mm is 60" in heard[0][0]
    assert record["anyway"] and record["needs_review"] and record["outside_training"]
    assert record["calibration"]["applied"] is False and "axis 2 in mm is 60" in record["calibration"]["reason"]
    assert "raw: not calibrated" in record["volume_note"] and "volume_ml_90_raw" not in record
    plain = replace(model, meta={key: value for key, value in model.meta.items() if key != "calibration"})
    ours, raw = model.predict(file, anyway), plain.predict(file, anyway)
    np.testing.assert_array_equal(ours.probability, raw.probability)
    assert ours.provenance["volume_ml_90"] == raw.provenance["volume_ml_90"]
    for again in (anyway, OPTIONS):
        assert predict_folder(model, [file], tmp_path / "out", again).skipped == [
            ("head", "already finished with --anyway: the image is far outside of the training, its intervals are raw")
        ]


def test_in_python_it_is_the_same_refusal(model, tmp_path):
    file = scan(tmp_path / "in", "head", 60)
    with pytest.raises(UserError, match=r"head\.nii\.gz: refused.*anyway=True"):
        model.predict(file, OPTIONS)
    assert [name for name, prediction, error in model.predict_many([file], OPTIONS) if isinstance(error, UserError)] == ["head"]
    assert model.predict(file, OPTIONS, anyway=True).provenance["anyway"]
    near = model.predict(scan(tmp_path / "in", "a"), OPTIONS, anyway=True).provenance
    assert near["calibration"]["applied"] is True and "anyway" not in near, "only what is far is left uncalibrated"
    assert "anyway" not in model.predict(scan(tmp_path / "in", "b", 20), OPTIONS).provenance, "twice as long is a warning"


def test_of_a_region_its_own_intensities_and_extent_count(model, tmp_path):
    file = scan(tmp_path / "in", "head", 60)
    image = nib.load(file)
    values = np.asarray(image.dataobj).copy()
    values[..., 8:] += 900  # far brighter than anything of the training
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    with pytest.raises(UserError, match="percentile 99 of MR"):
        model.predict(file, OPTIONS)
    record = model.predict(file, OPTIONS, region="0:8,0:8,0:8").provenance
    assert record["calibration"]["applied"] is True and "outside_training" not in record
    with pytest.raises(UserError, match=r"percentile 1 of MR is 9\d\d.*Is this the model for it\?"):
        model.predict(file, OPTIONS, region="0:8,0:8,20:28")
    with pytest.raises(UserError, match="extent of axis 2"):
        model.predict(file, OPTIONS, region="0:8,0:8,0:60")  # all of it


def test_on_the_command_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(several, "load_models", lambda *_: model)
    files = [str(scan(tmp_path / "in", name, side)) for name, side in (("a", 8), ("head", 60))]
    call = lambda *asked: CliRunner().invoke(app, ["predict", "oracle", *asked, "--draws", "2", "--steps", "2"])
    done = call(*files, "--out", str(tmp_path / "out"))
    assert done.exit_code == 3 and "failed head: " in done.stderr and "1 finished, 1 failed" in done.stdout, done.output
    assert " raw" not in done.stdout
    alone = call(files[1], "--out", str(tmp_path / "alone"))
    assert alone.exit_code == 2 and "refused" in alone.stderr
    forced = call(*files, "--out", str(tmp_path / "out"), "--anyway")
    assert forced.exit_code == 0 and "1 finished, 1 skipped" in forced.stdout, forced.output
    assert "head: organ" in forced.stdout and "] raw" in forced.stdout
    assert "larger than the images of the training" in forced.stderr
    assert forced.stderr.count("axis 2 in mm is 60") == 1, "what is said before the draws is not said again"
    assert "head needs review by a person: it is unlike the images of the training" in forced.stdout
    again = call(*files, "--out", str(tmp_path / "out"), "--anyway")
    assert "head is unlike" in again.stderr and again.stderr.count("axis 2 in mm is 60") == 1, "no draws: nothing was said yet"
    assert "skipped head: already finished with --anyway" in again.stdout
