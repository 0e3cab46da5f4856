"""Results as files: complete, in the image's geometry, and one bad case does not cost the others."""

import dataclasses
import json
import math
import os

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

from diffuseg.checkpoint import amend_meta, image_digest, model_hash, save_checkpoint, weights_hash
from diffuseg.data import io
from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError
from diffuseg.inference import folder as files
from diffuseg.inference.folder import Callbacks, find_cases, predict_folder
from diffuseg.inference.model import load
from diffuseg.inference.prediction import save
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import METHODS
from diffuseg.types import Image
from tests.inference.oracle import make_model, make_plan

THREE = {"background": 0, "near": 2, "far part": 5}
AFFINE = np.array([[0, -1.5, 0, 7], [0.9, 0, 0, -3], [0, 0, -2.0, 11], [0, 0, 0, 1.0]])
PICTURE = {"dims": 2, "orientation": None, "patch": (8, 8), "file_ending": ".png"}


def index(shape: tuple[int, ...] = (6, 5, 4), classes: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape)


def write_scan(path, data=None):
    nib.save(nib.Nifti1Image(10.0 * (index() if data is None else data).astype(np.float32), AFFINE), path)
    return path


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        write_scan(folder / f"case{number}_0000.nii.gz", index(seed=number))
    return folder


def test_a_volume_becomes_four_files_in_its_own_geometry(tmp_path):
    scan = write_scan(tmp_path / "a_0000.nii.gz", index(classes=3))
    p = make_model(noise=0.5, labels=THREE).predict(scan, draws=3)
    mask = p.save(tmp_path / "out")
    assert mask == tmp_path / "out" / "a.nii.gz"
    assert names(mask.parent) == ["a.json", "a.nii.gz", "a_entropy.nii.gz", "a_prob.nii.gz"]
    stored = read_mask(mask)
    np.testing.assert_array_equal(stored.data[0], p.mask)
    assert nib.load(mask).get_data_dtype() == np.uint8
    probability = read_image(tmp_path / "out" / "a_prob.nii.gz")
    np.testing.assert_array_equal(probability.data, p.probability[1:])
    assert nib.load(tmp_path / "out" / "a_prob.nii.gz").shape == (6, 5, 4, 2), "classes are the last axis"
    entropy = read_image(tmp_path / "out" / "a_entropy.nii.gz")
    np.testing.assert_array_equal(entropy.data[0], p.uncertainty["entropy"])
    for written in (stored, probability, entropy):
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["case"] == "a" and record["entropy_unit"] == "nats" and record["source"] == str(scan)
    assert {**p.provenance, "case": "a", "entropy_unit": "nats"} == record


def test_one_foreground_class_is_a_plain_volume(tmp_path):
    scan = write_scan(tmp_path / "a.nii")
    make_model().predict(scan, draws=1).save(tmp_path / "out")
    assert nib.load(tmp_path / "out" / "a_prob.nii").shape == (6, 5, 4)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_pictures(tmp_path, ending):
    data = np.kron(index((4, 5), 3), np.ones((8, 8), int))  # blocks survive the losses of .jpg
    PIL.Image.fromarray((10 * data).astype(np.uint8)).save(tmp_path / f"a{ending}")
    p = make_model(noise=0.3, labels=THREE, **PICTURE).predict(tmp_path / f"a{ending}", draws=2)
    mask = save(p, tmp_path / "out")
    out = ".png" if ending == ".jpg" else ending
    probabilities = [f"a_prob{out}"] if out == ".tif" else ["a_prob_far_part.png", "a_prob_near.png"]
    assert names(tmp_path / "out") == sorted(["a.json", f"a{out}", f"a_entropy{out}", "a_preview.png", *probabilities])
    np.testing.assert_array_equal(read_mask(mask).data[0], p.mask)
    entropy = read_image(tmp_path / "out" / f"a_entropy{out}").data[0]
    if out == ".png":
        near = read_image(tmp_path / "out" / "a_prob_near.png").data[0]
        np.testing.assert_allclose(near / 65535, p.probability[1], atol=1e-5)
        np.testing.assert_allclose(entropy / 65535 * math.log(3), p.uncertainty["entropy"], atol=2e-5)
        assert json.loads((tmp_path / "out" / "a.json").read_text())["entropy_unit"] == "fraction of log(3) nats"
    else:
        np.testing.assert_array_equal(entropy, p.uncertainty["entropy"])


def test_a_prediction_of_an_array_has_a_name_too(tmp_path):
    mask = make_model().predict(10 * index(), draws=1).save(tmp_path)
    assert mask.name == "prediction.nii.gz"


def test_a_mask_never_takes_the_place_of_its_image(tmp_path, scans):
    scan = write_scan(tmp_path / "a.nii.gz")
    before = scan.read_bytes()
    p = make_model().predict(scan, draws=1)
    with pytest.raises(UserError, match="place of the image"):
        p.save(tmp_path)
    with pytest.raises(UserError, match="place of this input"):
        predict_folder(make_model(), [scan], tmp_path, SamplingOptions(draws=1))
    assert scan.read_bytes() == before


def test_the_record_is_written_last_and_removed_first(tmp_path, monkeypatch):
    """Whatever is interrupted, a case with a record is complete."""
    p = make_model().predict(write_scan(tmp_path / "a.nii.gz"), draws=1)
    p.save(tmp_path / "out")

    def fails(path, *_):
        if "entropy" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(io, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        p.save(tmp_path / "out")
    assert "a.json" not in names(tmp_path / "out")


def test_a_folder_case_by_case(scans, tmp_path):
    seen = []
    told = Callbacks(on_case=lambda *now: seen.append(now))
    report = predict_folder(make_model(), [scans], tmp_path / "out", SamplingOptions(draws=2), callbacks=told)
    assert report.finished == ["case0", "case1", "case2"] and not report.failed and not report.skipped
    assert seen == [("case0", 0, 3), ("case1", 1, 3), ("case2", 2, 3)]
    for number in range(3):
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / f"case{number}.nii.gz").data[0], 3 * index(seed=number))


def test_finished_cases_are_skipped_until_they_are_to_be_overwritten(scans, tmp_path):
    out, model = tmp_path / "out", make_model(noise=0.5)
    predict_folder(model, [scans / "case1_0000.nii.gz"], out, SamplingOptions(draws=2))
    kept = (out / "case1.json").stat().st_mtime_ns
    again = predict_folder(model, [scans], out, SamplingOptions(draws=2))
    assert again.finished == ["case0", "case2"] and again.skipped == [("case1", "already finished")]
    other = predict_folder(model, [scans], out, SamplingOptions(draws=3, seed=5))
    assert not other.finished and all("draws 2, not 3; seed 0, not 5" in reason for _, reason in other.skipped)
    assert (out / "case1.json").stat().st_mtime_ns == kept
    assert len(predict_folder(model, [scans], out, SamplingOptions(draws=3), overwrite=True).finished) == 3
    assert json.loads((out / "case1.json").read_text())["draws"] == 3


def test_the_fusion_is_a_setting_and_results_from_before_there_was_one_are_means(tmp_path):
    scan, out, model = write_scan(tmp_path / "a.nii.gz"), tmp_path / "out", make_model()
    predict_folder(model, [scan], out, SamplingOptions(draws=2, fuse="vote"))
    assert json.loads((out / "a.json").read_text())["fuse"] == "vote"
    (_, reason), *_ = predict_folder(model, [scan], out, SamplingOptions(draws=2)).skipped
    assert "fuse vote, not mean" in reason
    predict_folder(model, [scan], out, SamplingOptions(draws=2), overwrite=True)
    record = json.loads((out / "a.json").read_text())
    del record["fuse"]
    (out / "a.json").write_text(json.dumps(record))
    assert predict_folder(model, [scan], out, SamplingOptions(draws=2)).skipped == [("a", "already finished")]


def test_a_record_of_another_program_is_not_touched(scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "case1.json").write_text("{}")
    report = predict_folder(make_model(), [scans], out, SamplingOptions(draws=1))
    assert report.finished == ["case0", "case2"] and [case for case, _ in report.failed] == ["case1"]
    assert (out / "case1.json").read_text() == "{}" and not (out / "case1.nii.gz").exists()


def test_bad_cases_are_named_and_the_others_kept(scans, tmp_path, monkeypatch):
    whole = (scans / "case1_0000.nii.gz").read_bytes()
    (scans / "case1_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    hurt = index().astype(float)
    hurt[0, 0, 0] = np.nan
    write_scan(scans / "case3_0000.nii.gz", hurt)
    write_scan(scans / "case4_0000.nii.gz", index((6, 5, 4, 2)))
    (scans / "case5_0000.nii.gz").touch()
    model = make_model()
    plain = type(model.method).draw

    def breaks(self, image, seeds, **options):
        if image.shape[1:] == (7, 7, 7):
            raise RuntimeError("network on fire")
        return plain(self, image, seeds, **options)

    monkeypatch.setattr(type(model.method), "draw", breaks)
    write_scan(scans / "case6_0000.nii.gz", index((7, 7, 7)))
    report = predict_folder(model, [scans], tmp_path / "out", SamplingOptions(draws=1))
    assert report.finished == ["case0", "case2"]
    reasons = dict(report.failed)
    says = {
        "case1": "truncated",
        "case3": "NaN",
        "case4": "2 channels",
        "case5": "empty",
        "case6": "RuntimeError: network on fire",
    }
    assert reasons.keys() == says.keys()
    for case, text in says.items():
        assert text in reasons[case] and f"{case}_0000.nii.gz" in reasons[case]
    assert names(tmp_path / "out") == sorted(
        f"{case}{rest}" for case in ("case0", "case2") for rest in (".json", ".nii.gz", "_entropy.nii.gz", "_prob.nii.gz")
    )


def test_an_interrupt_leaves_finished_cases_and_no_half_files(scans, tmp_path, monkeypatch):
    out, write = tmp_path / "out", nib.save

    def interrupted(image, path):
        write(image, path)
        if "case1_entropy" in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(make_model(), [scans], out, SamplingOptions(draws=1))
    monkeypatch.undo()
    assert names(out) == ["case0.json", "case0.nii.gz", "case0_entropy.nii.gz", "case0_prob.nii.gz", "case1_prob.nii.gz"]
    assert predict_folder(make_model(), [scans], out, SamplingOptions(draws=1)).skipped == [("case0", "already finished")]


def test_another_image_of_a_finished_name_is_not_taken_for_finished(tmp_path):
    out, ours, theirs = tmp_path / "out", tmp_path / "p1" / "scan.nii.gz", tmp_path / "p2" / "scan.nii.gz"
    for seed, path in enumerate((ours, theirs)):
        path.parent.mkdir()
        write_scan(path, index(seed=seed))
    model = make_model()
    assert predict_folder(model, [ours], out, SamplingOptions(draws=1)).finished == ["scan"]
    before = (out / "scan.nii.gz").read_bytes()
    assert predict_folder(model, [ours], out, SamplingOptions(draws=1)).skipped == [("scan", "already finished")]
    report = predict_folder(model, [theirs], out, SamplingOptions(draws=1))
    [(case, reason)] = report.failed
    assert case == "scan" and "another image" in reason and str(ours) in reason and not report.skipped
    assert (out / "scan.nii.gz").read_bytes() == before
    assert predict_folder(model, [theirs], out, SamplingOptions(draws=1), overwrite=True).finished == ["scan"]


def touch(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("channels", "there", "cases"),
    [
        (2, ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"], {"a": 2, "b": 1}),
        (1, ["a_0000.nii.gz", "b.nii.gz"], {"a": 1, "b": 1}),
        (3, ["a_0000.png", "b_0000.png"], {"a": 1, "b": 1}),
        (1, ["p_0000.png", "p_0001.png", "p_0002.png"], {"p_0000": 1, "p_0001": 1, "p_0002": 1}),
        (1, ["p_0042.png", "notes.txt", ".p_0000.png"], {"p_0042": 1}),
        (2, ["a.nii.gz", "a_0000.nii.gz"], {"a": 1, "a_0000": 1}),
    ],
)
def test_files_are_grouped_into_cases(tmp_path, channels, there, cases):
    found = find_cases([touch(tmp_path, *there)], channels)
    assert {case: len(paths) for case, paths in found.items()} == cases
    assert all(list(paths) == sorted(paths) for paths in found.values())


@pytest.mark.parametrize(("channels", "files", "said"), [(1, 2, True), (2, 4, True), (2, 2, False), (1, 9, False)])
def test_channels_that_a_model_does_not_have_are_said_to_be_images_of_their_own(tmp_path, caplog, channels, files, said):
    find_cases([touch(tmp_path, *(f"p_{n:04d}.png" for n in range(files)))], channels)
    assert ("each is taken for an image of its own" in caplog.text) == said


def test_files_and_folders_may_be_mixed_and_named_twice(tmp_path):
    touch(tmp_path, "x/a_0001.nii.gz", "x/a_0000.nii.gz", "y/b.nii")
    found = find_cases([tmp_path / "x" / "a_0001.nii.gz", tmp_path / "x", tmp_path / "y" / "b.nii"], 2)
    assert {case: [p.name for p in paths] for case, paths in found.items()} == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b.nii"],
    }


@pytest.mark.parametrize(
    ("there", "inputs", "says"),
    [
        (["x/notes.txt"], ["x"], "no image in this folder. Known endings: "),
        (
            ["x/imagesTs/a.png", "x/labelsTs/a.png"],
            ["x"],
            "no image in this folder. There are some in imagesTs: name the folder",
        ),
        ([], ["x/a.nii.gz"], "no such file"),
        ([], ["nofolder"], "no such file or folder"),
        (["x/a.doc"], ["x/a.doc"], "ending is not known"),
        (["x/a.nii.gz", "y/a.nii.gz"], ["x", "y"], "the same case"),
        (["x/a.png", "x/a.tif"], ["x"], "the same case"),
        (["x/a.nii.gz", "x/a_prob.nii.gz"], ["x"], "both write a_prob.nii.gz"),
    ],
)
def test_inputs_that_make_no_sense_are_refused_before_any_work(tmp_path, there, inputs, says):
    touch(tmp_path, *there)
    with pytest.raises(UserError, match=says):
        predict_folder(make_model(), [tmp_path / item for item in inputs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_refused_before_any_work(scans, tmp_path):
    for wrong in ({"sampler": "no"}, {"steps": 99}, {"draws": 0}):
        with pytest.raises(UserError):
            predict_folder(make_model(), [scans], tmp_path / "out", SamplingOptions(**wrong))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(scans, tmp_path):
    model, blocked = make_model(), tmp_path / "file"
    blocked.touch()
    for out in (blocked, blocked / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            predict_folder(model, [scans], out)
    assert not model.method.calls


def test_png_probabilities_of_classes_with_like_names_do_not_overwrite_each_other(tmp_path):
    labels = {"background": 0, "a b": 1, "a/b": 2}
    p = make_model(labels=labels, **PICTURE).predict(10 * index((9, 9), 3), draws=1)
    save(p, tmp_path, "x", ".png")
    assert {"x_prob_1.png", "x_prob_2.png"} <= set(names(tmp_path))


def test_formats_that_cannot_hold_the_image_are_refused(tmp_path):
    p = make_model().predict(Image(10.0 * index()[None].astype(np.float32)), draws=1)
    with pytest.raises(UserError, match="volume"):
        save(p, tmp_path, "x", ".png")
    assert not names(tmp_path) and files.FolderResult().finished == []


def test_an_image_that_the_training_has_met_is_recognised_by_its_content(tmp_path):
    scans = {
        side: write_scan(tmp_path / f"{side}.nii", index(seed=n)) for n, side in enumerate(("training", "validation", "new"))
    }
    model = make_model()
    assert model.predict(scans["training"], draws=1).provenance["seen_in"] == "unknown", "the checkpoint tells no cases"
    met = {f"{side}_cases": {"another name": image_digest(scans[side])} for side in ("training", "validation")}
    model = dataclasses.replace(model, meta=model.meta | met)
    moved = scans["training"].rename(tmp_path / "moved.nii")
    for scan, expected in ((moved, "training"), (scans["validation"], "validation"), (scans["new"], "neither")):
        model.predict(scan, draws=1).save(tmp_path / "out")
        assert json.loads((tmp_path / "out" / f"{scan.stem}.json").read_text())["seen_in"] == expected
    assert model.predict(index().astype(float), draws=1).provenance["seen_in"] == "unknown", "an array has no file"
    gone = Image(index()[None].astype(np.float32), source=tmp_path / "gone.nii")
    assert model.predict(gone, draws=1).provenance["seen_in"] == "unknown", "what is in memory outlives its file"


def test_masks_of_somebody_else_are_not_replaced(scans, tmp_path):
    """As when --out is the folder of the labels, whose names are those of the cases."""
    case = predict_folder(make_model(), [scans], tmp_path / "first").finished[0]
    precious = tmp_path / "labels" / f"{case}.nii.gz"
    precious.parent.mkdir()
    precious.write_bytes(b"years of work")
    report = predict_folder(make_model(), [scans], precious.parent)
    assert [name for name, _ in report.failed] == [case] and str(precious) in report.failed[0][1]
    assert precious.read_bytes() == b"years of work"
    assert case in predict_folder(make_model(), [scans], precious.parent, overwrite=True).finished


def test_a_mask_that_was_taken_away_is_made_again(scans, tmp_path):
    out, model = tmp_path / "out", make_model()
    predict_folder(model, [scans], out, SamplingOptions(draws=1))
    (out / "case0.nii.gz").unlink()
    assert (
        predict_folder(model, [scans], out, SamplingOptions(draws=1)).finished == ["case0"] and (out / "case0.nii.gz").exists()
    )


LEARNT = {
    "temperature": 1.5, "widening": {}, "threshold": 0.5, "fraction": 0.2, "dataset": "made", "fold": 0, "cases": 9,
    "patients": 9,
    "settings": {"draws": 2, "steps": 2, "sampler": "ddim", "fuse": "mean"},
}  # fmt: skip


def test_what_is_learnt_about_a_model_does_not_make_it_another(tmp_path, scans):
    path = tmp_path / "best.safetensors"
    plan = make_plan(patch=(8, 8, 8), widths=(4, 4), normalisation=("zscore",), intensity=())
    save_checkpoint(path, METHODS["concat"](plan, METHODS["concat"].config_class(T=8, steps=2)), {"name": "made"})
    before, file, scan, out = load(path, "cpu"), model_hash(path), scans / "case0_0000.nii.gz", tmp_path / "out"
    again = lambda: predict_folder(load(path, "cpu"), [scan], out, SamplingOptions(2, 2))
    assert again().finished == ["case0"]
    amend_meta(path, {"recommended": {"steps": 2, "draws": 2, "sampler": "ddim"}}, before.hash)
    assert load(path, "cpu").hash == before.hash and model_hash(path) != file
    assert again().skipped == [("case0", "already finished")]
    record = json.loads((out / "case0.json").read_text())
    (out / "case0.json").write_text(json.dumps(record | {"model": file}))  # as an earlier version called the same weights
    assert again().skipped == [("case0", "already finished")]
    amend_meta(path, {"calibration": LEARNT}, before.hash)
    learnt = load(path, "cpu").calibration
    assert learnt is not None
    ((_, reason),) = again().skipped
    assert f"(calibration none, not {learnt.id})" in reason and "model" not in reason
    predict_folder(load(path, "cpu"), [scan], out, SamplingOptions(2, 2), overwrite=True)
    record = json.loads((out / "case0.json").read_text())
    assert record["model"] == before.hash and record["calibration"]["id"] == learnt.id
    del record["calibration"]["id"]
    (out / "case0.json").write_text(json.dumps(record))  # an earlier version did not write it
    assert again().skipped == [("case0", "already finished")]
    amend_meta(path, {"calibration": LEARNT | {"temperature": 1.25}}, before.hash)
    assert "calibration" in again().skipped[0][1]
    settings = SamplingOptions(3, 2)  # with other settings nothing is applied, so nothing depends on it
    predict_folder(load(path, "cpu"), [scan], tmp_path / "three", settings)
    amend_meta(path, {"calibration": LEARNT}, before.hash)
    assert predict_folder(load(path, "cpu"), [scan], tmp_path / "three", settings).skipped == [("case0", "already finished")]


def test_other_weights_are_another_model(tmp_path):
    path, plan = tmp_path / "best.safetensors", make_plan(patch=(8, 8, 8), widths=(4, 4))
    method = METHODS["concat"](plan, METHODS["concat"].config_class(T=8, steps=2))
    save_checkpoint(path, method, {"name": "made"})
    first = weights_hash(path)
    save_checkpoint(path, METHODS["concat"](plan, METHODS["concat"].config_class(T=8, steps=3)).eval(), {"name": "made"})
    other = weights_hash(path)
    with torch.no_grad():
        next(method.parameters()).view(-1)[0] += 1e-3
    save_checkpoint(path, method, {"name": "made"})
    assert len({first, other, weights_hash(path)}) == 3
