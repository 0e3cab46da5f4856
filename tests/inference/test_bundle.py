"""A MONAI bundle, loaded and run by MONAI."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.inference.model import Model, load
from diffuseg.methods import METHODS
from tests.inference.oracle import make_plan

ZSCORE = {"normalisation": ("zscore",), "intensity": ({},)}


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    plan = make_plan(patch=(8, 8, 8), widths=(4, 8), orientation="RAS", **ZSCORE)
    method = METHODS["concat"](plan, METHODS["concat"].config_class(T=10, steps=2))
    save_checkpoint(tmp_path / "run" / "best.safetensors", method, {"training_cases": {"miller_anna": "0" * 16}})
    return tmp_path / "run"


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--format", "monai"])


def test_monai_runs_the_bundle_and_its_masks_are_those_of_predict(run, tmp_path):
    done = export(run, "--out", tmp_path / "bundle", "--draws", 3)
    assert done.exit_code == 0, done.output
    scans, affine = tmp_path / "scans", np.array([[0, -2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]], float)
    scans.mkdir()
    voxels = np.random.default_rng(0).normal(100, 20, (9, 10, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), scans / "a.nii.gz")
    configs = tmp_path / "bundle" / "configs"
    places = {"bundle_root": str(tmp_path / "bundle"), "dataset_dir": str(scans), "output_dir": str(tmp_path / "masks")}
    workflow = ConfigWorkflow(str(configs / "inference.json"), str(configs / "metadata.json"), workflow_type=None, **places)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    written = nib.load(tmp_path / "masks" / "a_seg.nii.gz")
    alone = load(run / "best.safetensors", "cpu").predict(scans / "a.nii.gz", draws=3, seed=0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), alone.mask)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    assert {0, 3} == set(np.unique(alone.mask))  # the class of the plan has the value 3
    outputs = json.loads((configs / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "3": "organ"}


@pytest.mark.parametrize("anyway", [False, True])
def test_what_a_bundle_is_told_reaches_predict(run, tmp_path, monkeypatch, anyway):
    """Images far outside of the training are refused unless `anyway` is set: in the file, or when it is run."""
    told = []
    monkeypatch.setattr(Model, "predict", lambda self, image, **asked: told.append(asked))
    assert export(run, "--out", tmp_path / "bundle", "--draws", 3).exit_code == 0
    inference = tmp_path / "bundle" / "configs" / "inference.json"
    given = {"bundle_root": str(tmp_path / "bundle")} | ({"anyway": True} if anyway else {})
    workflow = ConfigWorkflow(str(inference), workflow_type=None, meta_file=None, **given)
    workflow.initialize()
    with pytest.raises(AttributeError):  # no prediction is made here that could be brought to a grid
        workflow.parser.get_parsed_content("inferer")(torch.zeros(1, 8, 8, 8))
    assert told == [{"draws": 3, "steps": 2, "sampler": "ddim", "seed": 0, "anyway": anyway}]


def test_a_bundle_has_no_names_of_cases_and_replaces_nothing(run, tmp_path):
    assert export(run, "--out", tmp_path / "bundle").exit_code == 0
    files = {str(path.relative_to(tmp_path / "bundle")): path for path in (tmp_path / "bundle").rglob("*") if path.is_file()}
    assert set(files) == {"configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.safetensors"}
    assert not any(b"anna" in path.read_bytes() for path in files.values())
    again = export(run, "--out", tmp_path / "bundle")
    assert again.exit_code == 2 and "there already" in again.stderr


def test_a_model_of_several_files_per_case_is_refused(tmp_path):
    plan = make_plan(patch=(8, 8, 8), widths=(4, 8), channels=("T1", "T2"), normalisation=("zscore",) * 2, intensity=({}, {}))
    save_checkpoint(tmp_path / "x.safetensors", METHODS["unet"](plan, METHODS["unet"].config_class()), {})
    refused = export(tmp_path / "x.safetensors", "--out", tmp_path / "bundle")
    assert refused.exit_code == 2 and "one channel" in refused.stderr and not (tmp_path / "bundle").exists()
