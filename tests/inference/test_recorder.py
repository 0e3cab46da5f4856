"""What a prediction keeps of its draws: the draws themselves, their steps, on the image's voxels, finished as a whole."""

import dataclasses
import json
import os

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuseg.data import io
from diffuseg.data.dataset import evenly_spaced
from diffuseg.data.io import grid_fault, read_image
from diffuseg.data.outputs import records, sidecar_name
from diffuseg.inference import sampling
from diffuseg.inference.folder import find_cases, predict_folder
from diffuseg.inference.model import Model
from diffuseg.inference.prediction import save
from diffuseg.inference.recorder import MOST_STEPS
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import METHODS
from diffuseg.reports.evaluate import evaluate
from diffuseg.types import Image
from tests.inference.oracle import Certain, make_model, make_plan
from tests.inference.test_folder import AFFINE, PICTURE, THREE, index, names, write_scan

BOTH = {"keep_draws": True, "keep_steps": True}
COARSE = {"spacing": (1.8, 1.8, 3.0)}  # not that of AFFINE: predictions are resampled on their way back


def small(**changes) -> Model:
    """A real diffusion model of a few weights, never trained."""
    plan = make_plan(labels=THREE, patch=(6, 5, 4), widths=(8, 8), **changes)
    torch.manual_seed(0)
    method = METHODS["concat"](plan, METHODS["concat"].config_class(T=20))
    with torch.no_grad():  # the last layer starts at zero, where all draws are alike
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return dataclasses.replace(make_model(), method=method, plan=plan)


@pytest.mark.parametrize("changes", [{}, COARSE], ids=["as stored", "resampled"])
def test_what_is_kept_is_what_was_drawn(changes):
    """Each draw is that of a prediction of its own with this draw alone; the last step is the first draw."""
    model, image = small(**changes), Image(10.0 * index(classes=3)[None].astype(np.float32), AFFINE)
    p = model.predict(image, draws=3, steps=4, **BOTH)
    alone = model.predict(image, draws=1, steps=4)
    assert p.draws.shape == (3, *image.shape) and p.draws.dtype == np.uint8
    np.testing.assert_array_equal(p.draws[0], alone.mask)
    assert all((p.draws[0] != p.draws[i]).any() for i in (1, 2)), "draws of one seed, or of a model without noise"
    assert p.steps.shape == (4, *image.shape) and p.steps.dtype == np.uint8
    np.testing.assert_allclose(p.steps[-1] / 100, 1 - alone.probability[0], atol=0.0051)
    assert (p.steps[0] != p.steps[-1]).any()
    assert p.provenance["kept"] == {"draws": 3, "steps": [20, 15, 10, 5]}


def test_the_steps_are_those_of_the_first_draw_however_many_are_made_at_a_time(monkeypatch):
    model, image = small(), Image(10.0 * index(classes=3)[None].astype(np.float32), AFFINE)
    together = model.predict(image, draws=3, steps=2, **BOTH)
    monkeypatch.setattr(sampling, "STATE_BYTES", 1)
    assert sampling.draws_at_a_time(model.plan, image.shape) == 1
    single = model.predict(image, draws=3, steps=2, **BOTH)
    assert abs(single.steps.astype(int) - together.steps).max() <= 1, "the last bit of a product of matrices may differ"
    assert (single.draws == together.draws).mean() > 0.99


def test_keeping_changes_nothing_else():
    model, image = small(), Image(10.0 * index(classes=3)[None].astype(np.float32), AFFINE)
    plain, kept = model.predict(image, draws=2, steps=2), model.predict(image, draws=2, steps=2, **BOTH)
    np.testing.assert_array_equal(plain.probability, kept.probability)
    np.testing.assert_array_equal(plain.mask, kept.mask)
    assert plain.draws is None and plain.steps is None and "kept" not in plain.provenance


def test_the_draws_vote_as_the_vote_does():
    image = Image(10.0 * index(classes=3)[None].astype(np.float32), AFFINE)
    p = make_model(noise=0.8, labels=THREE).predict(image, draws=9, fuse="vote", keep_draws=True)
    counts = np.stack([(p.draws == value).sum(0) for value in THREE.values()])
    clear = np.sort(counts, 0)[-1] > np.sort(counts, 0)[-2]
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(np.array([*THREE.values()])[counts.argmax(0)][clear], p.mask[clear])


def test_a_deterministic_method_has_one_draw_and_one_step():
    model = make_model(method=Certain)
    told = []
    model.method.draw = lambda image, seeds, **options: told.append(options) or iter([torch.full((2, *image.shape[1:]), 0.5)])
    p = model.predict(10.0 * index(), **BOTH)
    assert p.draws.shape[0] == 1 and p.provenance["kept"] == {"draws": 1, "steps": [0]} and "on_denoised" in told[0]


@given(st.integers(1, 1000))
def test_of_many_steps_some_are_kept_evenly_with_both_ends(n):
    levels = list(range(n, 0, -1))
    kept = evenly_spaced(levels, MOST_STEPS)
    assert len(kept) == len(set(kept)) == min(n, MOST_STEPS) and (kept[0], kept[-1]) == (n, 1)
    gaps = -np.diff(kept)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("draws", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".tif", ".png", ".jpg"])
def test_files_hold_the_draws_in_the_geometry_of_the_image(tmp_path, ending, draws):
    scan, volume = tmp_path / f"a{ending}", ending in (".nii.gz", ".nii", ".nrrd")
    data = 10.0 * index(classes=3) if volume else np.kron(10 * index((4, 5), 3), np.ones((8, 8), int))
    if volume:
        io.write(scan, data.astype(np.float32), Image(data[None], AFFINE))
    else:
        PIL.Image.fromarray(data.astype(np.uint8)).save(scan)
    model = make_model(noise=0.7, labels=THREE, **({} if volume else PICTURE))
    p = model.predict(scan, draws=draws, steps=3, **BOTH)
    mask = save(p, tmp_path / "out")
    of = lambda what: read_image(tmp_path / "out" / sidecar_name("a", what, io.ending_of(mask)))
    for what, kept in (("draws", p.draws), ("steps", p.steps)):
        np.testing.assert_array_equal(of(what).data, kept)
        assert grid_fault(read_image(scan), of(what)) is None
    if ending == ".nii.gz" and draws > 1:
        stored = nib.load(tmp_path / "out" / "a_draws.nii.gz")
        assert stored.shape == (6, 5, 4, draws) and stored.get_data_dtype() == np.uint8
    assert json.loads((tmp_path / "out" / "a.json").read_text())["kept"] == {"draws": draws, "steps": [4, 3, 1]}


def test_a_case_finished_without_what_is_now_asked_for_is_done_again(tmp_path):
    scan, out, model = write_scan(tmp_path / "a.nii.gz"), tmp_path / "out", make_model(noise=0.5)
    ask = lambda **how: predict_folder(model, [scan], out, SamplingOptions(draws=2, **how))
    ask()
    before = (out / "a_prob.nii.gz").read_bytes()
    assert ask(keep_draws=True).finished == ["a"] and "a_draws.nii.gz" in names(out)
    assert (out / "a_prob.nii.gz").read_bytes() == before, "the same seed is the same result"
    for enough in ({}, {"keep_draws": True}):
        assert ask(**enough).skipped == [("a", "already finished")]
    assert ask(keep_steps=True).finished == ["a"]
    assert {"a_draws.nii.gz", "a_steps.nii.gz"} <= set(names(out)), "what it had stays"
    (out / "a_draws.nii.gz").unlink()
    assert ask().skipped and ask(keep_draws=True).finished == ["a"], "a file that was removed is missing"
    (_, reason), *_ = predict_folder(model, [scan], out, SamplingOptions(draws=5, keep_draws=True)).skipped
    assert "draws 2, not 5" in reason


def test_draws_of_an_earlier_prediction_do_not_stay_beside_a_new_mask(tmp_path):
    scan, out, model = write_scan(tmp_path / "a.nii.gz"), tmp_path / "out", make_model()
    predict_folder(model, [scan], out, SamplingOptions(draws=2, **BOTH))
    predict_folder(model, [scan], out, SamplingOptions(draws=3), overwrite=True)
    assert names(out) == ["a.json", "a.nii.gz", "a_entropy.nii.gz", "a_prob.nii.gz"]


def test_a_file_of_somebody_else_with_such_a_name_stays(tmp_path):
    scan, out = write_scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    out.mkdir()
    (out / "a_draws.nii.gz").write_bytes(b"years of work")
    assert predict_folder(make_model(), [scan], out, SamplingOptions(draws=1)).finished == ["a"]
    assert (out / "a_draws.nii.gz").read_bytes() == b"years of work"


def test_the_record_comes_after_the_draws(tmp_path, monkeypatch):
    p = make_model().predict(write_scan(tmp_path / "a.nii.gz"), draws=2, **BOTH)
    p.save(tmp_path / "out")
    write = io.write

    def fails(path, *rest):
        if "_steps" in path.name:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(io, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        p.save(tmp_path / "out")
    assert "a.json" not in names(tmp_path / "out") and not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))


def test_results_are_neither_masks_nor_images(tmp_path):
    """evaluate passes over what stands beside a mask; predict of the folder it wrote into finds the images alone."""
    folder = tmp_path / "all"
    folder.mkdir()
    scans = [write_scan(folder / f"{case}_0000.nii.gz") for case in ("a", "b_draws")]
    (folder / "a_0000.json").write_text('{"RepetitionTime": 2}')  # of somebody else
    assert len(predict_folder(make_model(), [folder], folder, SamplingOptions(draws=2, **BOTH)).finished) == 2
    assert find_cases([folder], 1) == {"a": (scans[0],), "b_draws": (scans[1],)}
    assert list(records(folder)) == ["a", "b_draws"]
    truth = tmp_path / "labels"
    truth.mkdir()
    for case in ("a", "b_draws"):
        (truth / f"{case}.nii.gz").write_bytes((folder / f"{case}.nii.gz").read_bytes())
    found = evaluate(folder, truth, tmp_path / "scores")
    assert found.unlabelled == ["a_0000", "b_draws_0000"] and sorted(found.predictions) == ["a", "b_draws"]


def test_results_of_pictures_are_no_images_either(tmp_path):
    PIL.Image.fromarray(np.kron(10 * index((4, 5), 3), np.ones((8, 8), int)).astype(np.uint8)).save(tmp_path / "a.jpg")
    model = make_model(labels=THREE, **PICTURE)
    for _ in range(2):
        predict_folder(model, [tmp_path], tmp_path, SamplingOptions(draws=2, **BOTH), overwrite=True)
    assert find_cases([tmp_path], 1) == {"a": (tmp_path / "a.jpg",)}
