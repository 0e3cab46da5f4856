"""All folds by one command, exact over interruptions, and every case predicted by the fold that has not seen it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffuseg.checkpoint import amend_meta, read_meta, weights_hash
from diffuseg.data.io import read_mask
from diffuseg.errors import UserError
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.reports.evaluate import evaluate
from diffuseg.studies.crossval import cross_validate
from diffuseg.train import folds as all_folds
from diffuseg.train import loop
from diffuseg.train.folds import train_folds
from diffuseg.train.loop import train
from diffuseg.train.validate import Result
from tests.train.tiny import call, options, refused, same_weights, settings

STEPS = 2


@pytest.fixture(scope="module")
def halves(data, tmp_path_factory) -> Path:
    """The four volumes in two folds."""
    folder = tmp_path_factory.mktemp("halves") / "data"
    shutil.copytree(data, folder)
    names = sorted(path.name.removesuffix("_0000.nii.gz") for path in (folder / "imagesTr").iterdir())
    sides = [{"train": names[:2], "val": names[2:]}, {"train": names[2:], "val": names[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(sides))
    return folder


@pytest.fixture(scope="module")
def run(halves, tmp_path_factory) -> Path:
    """Both folds, trained one after the other."""
    out = tmp_path_factory.mktemp("run") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", lambda method, batches, validation: Result({"head": 0.5, "tail": 0.25}, 1))
        done = call(*options(halves, out, steps=STEPS, method="unet"), "--fold", "all")
    assert done.exit_code == 0, done.output
    assert "fold 0 of 0 to 1" in done.output and "fold 1 of 0 to 1" in done.output and "crossval" in done.output
    return out


def test_every_fold_is_what_it_would_be_alone(run, halves, tmp_path, quick):
    train(settings(halves, tmp_path / "1", steps=STEPS, fold=1))
    assert same_weights(tmp_path / "1/last.safetensors", run / "fold_1/last.safetensors")
    assert not same_weights(run / "fold_0/last.safetensors", run / "fold_1/last.safetensors")
    assert [read_meta(run / f"fold_{fold}/last.safetensors")["fold"] for fold in (0, 1)] == [0, 1]


def test_an_interrupted_row_of_folds_is_resumed_to_the_same_end(run, halves, tmp_path, quick, monkeypatch):
    asked = settings(halves, tmp_path / "out", steps=STEPS)

    def stops(each):
        if each.fold == 1 and not each.resume:
            raise KeyboardInterrupt
        return train(each)

    monkeypatch.setattr(all_folds, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        train_folds(asked)
    monkeypatch.undo()
    with pytest.raises(UserError, match="already holds a run"):
        train_folds(asked)
    train_folds(replace(asked, resume=True))
    for fold in (0, 1):
        assert same_weights(tmp_path / f"out/fold_{fold}/last.safetensors", run / f"fold_{fold}/last.safetensors")
    with pytest.raises(UserError, match="no fold to resume"):
        train_folds(replace(asked, out=tmp_path / "other", resume=True))


def test_a_fold_that_is_none_is_refused(halves, tmp_path):
    for fold in ("-1", "some", "0.5"):
        refused(call(*options(halves, tmp_path / "out"), f"--fold={fold}"), f"--fold {fold}: expected", "or all")


def test_out_of_fold_predictions_are_those_of_the_fold_that_has_not_seen_the_case(run, halves, tmp_path):
    done = call("crossval", run, halves, "--out", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "4 finished" in done.stdout and "diffuseg evaluate" in done.stdout
    for fold in (0, 1):
        file = run / f"fold_{fold}/last.safetensors"
        meta = read_meta(file)
        for case in meta["validation_cases"]:
            record = json.loads((tmp_path / f"out/{case}.json").read_text())
            assert record["model"] == weights_hash(file) and record["seen_in"] == "validation"
            own = load(file, "cpu").predict(halves / f"imagesTr/{case}_0000.nii.gz")
            np.testing.assert_array_equal(read_mask(tmp_path / f"out/{case}.nii.gz").data[0], own.mask)
    summary = evaluate(tmp_path / "out", halves / "labelsTr", tmp_path / "scores").summary
    assert summary["cases"] == 4 and not summary["seen"]["training"] and len(summary["seen"]["validation"]) == 4


def test_one_fold_alone_leaves_cases_out_and_says_so(run, halves, tmp_path):
    found = cross_validate(run / "fold_0", halves, tmp_path / "out", SamplingOptions(), "cpu")
    meta = read_meta(run / "fold_0/last.safetensors")
    assert found.result.finished == list(meta["validation_cases"]) and found.left == list(meta["training_cases"])


def test_what_would_not_be_honest_is_refused(run, halves, tmp_path):
    where = {"out": tmp_path / "out", "device": "cpu"}
    shutil.copytree(run, tmp_path / "run")
    last = tmp_path / "run/fold_1/last.safetensors"
    shutil.copy(run / "fold_0/last.safetensors", last)
    with pytest.raises(UserError, match="fold_0 was validated on too"):
        cross_validate(tmp_path / "run", halves, **where)
    meta = read_meta(run / "fold_1/last.safetensors")
    shutil.copy(run / "fold_1/last.safetensors", last)
    amend_meta(last, {"training_cases": meta["validation_cases"]}, weights_hash(last))
    with pytest.raises(UserError, match="trained on cases it was validated on"):
        cross_validate(tmp_path / "run", halves, **where)
    other = tmp_path / "other"
    shutil.copytree(halves, other)
    images = sorted((other / "imagesTr").iterdir())
    shutil.copy(images[0], images[1])
    with pytest.raises(UserError, match=f"other images of {images[1].name.removesuffix('_0000.nii.gz')}"):
        cross_validate(run, other, **where)
    with pytest.raises(UserError, match=r"there is no last\.safetensors here"):
        cross_validate(tmp_path, halves, **where)
    assert not (tmp_path / "out").exists()
