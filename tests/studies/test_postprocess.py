"""Rules that clean masks: learnt where they help for certain, stored beside the weights, used by predict."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from diffuseg.checkpoint import image_digest, read_meta, save_checkpoint, weights_hash
from diffuseg.data.io import read_image, write
from diffuseg.errors import UserError
from diffuseg.inference.postprocessing import ALL, Postprocessing, Rule, clean, read_postprocessing
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.inference.several import load_models
from diffuseg.methods import METHODS
from diffuseg.studies.crossval import Crossval, cross_validate
from diffuseg.studies.postprocess import candidates, learn_postprocessing, try_rules
from diffuseg.types import Image
from tests.inference.oracle import make_model, make_plan
from tests.test_cli import call

SHAPE, CASES = (12, 11, 10), 8
NAMES = ["background", "organ"]
SETTINGS = {"draws": 2, "steps": 2, "sampler": "ancestral", "fuse": "mean"}
LARGEST = {"what": "largest", "of": "organ"}
LEARNT = Postprocessing([LARGEST], SETTINGS, "made", 0, CASES, CASES)


def organ(*, satellite: int = 0, hole: bool = False) -> np.ndarray:
    """A box, so many voxels of another one far from it, and a hole in the first."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:7, 2:7, 2:7] = 1
    mask[10, 1 : 1 + satellite, 9] = 1
    mask[4, 4, 4] = not hole
    return mask


def pair(wrong: bool, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask with a satellite that is wrong, or right."""
    predicted = organ(satellite=1 + number % 4)
    return predicted, organ() if wrong else predicted


def put(folder, wrong: bool):
    """A data set whose images show the predicted masks to the oracle; all cases but the first are in fold 0's "val"."""
    names = [f"case_{number:02d}" for number in range(CASES + 1)]
    for number, name in enumerate(names):
        predicted, truth = pair(wrong, number)
        write(folder / "imagesTr" / f"{name}_0000.nii.gz", 10.0 * predicted.astype(np.float32), Image(truth[None]))
        write(folder / "labelsTr" / f"{name}.nii.gz", 3 * truth, Image(truth[None]))
    labels = {"background": 0, "organ": 3}
    described = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz", "name": "made"}
    (folder / "dataset.json").write_text(json.dumps(described | {"numTraining": len(names)}))
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:1], "val": names[1:]}]))
    return folder


def learnt_about(model, learnt: Postprocessing):
    return replace(model, meta=model.meta | {"postprocessing": asdict(learnt)})


def test_a_satellite_that_is_wrong_is_removed_and_one_that_is_right_is_not():
    groups = [str(number) for number in range(CASES)]
    tried, after = try_rules([pair(True, number) for number in range(CASES)], NAMES, groups)
    assert [asdict(one.rule) for one in tried if one.kept] == [LARGEST] and after == [1.0] * CASES
    assert tried[0].difference.low > 0 and tried[0].changed == CASES and tried[1].changed == 0
    tried, after = try_rules([pair(False, number) for number in range(CASES)], NAMES, groups)
    assert not any(one.kept for one in tried) and tried[0].difference.high < 0 and after == [1.0] * CASES


def test_what_helps_in_one_case_or_in_too_few_patients_is_chance():
    good, bad = pair(False, 3)[1], pair(True, 3)
    one_of_many = [bad] + [(organ(), organ())] * (CASES - 1)
    tried, _ = try_rules(one_of_many, NAMES, [str(number) for number in range(CASES)])
    assert tried[0].difference.mean > 0 and not tried[0].kept
    assert good.any()
    for patients in (5, 6):
        tried, _ = try_rules([pair(True, n) for n in range(CASES)], NAMES, [str(n % patients) for n in range(CASES)])
        assert tried[0].difference.low > 0 and tried[0].kept == (patients == 6)


def test_a_hole_is_filled_and_each_rule_stands_on_those_that_were_kept():
    """Both errors at once: the second rule is measured on masks that the first has cleaned, and the end is right everywhere."""
    pairs = [(organ(satellite=1 + n % 3, hole=True), organ()) for n in range(CASES)]
    tried, after = try_rules(pairs, NAMES, [str(n) for n in range(CASES)])
    assert [one.rule.what for one in tried if one.kept] == ["largest", "fill"] and after == [1.0] * CASES
    assert tried[1].before == tried[0].after


def test_what_counts_as_connected_as_closed_in_and_as_nearest():
    corner = np.zeros((4, 4), np.uint8)
    corner[0, 0] = corner[1, 1] = 1
    assert clean(corner, Rule("largest", "organ"), NAMES) is corner  # voxels that touch at a corner are one component
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = ring[0, 0] = 0
    filled = clean(ring, Rule("fill", "organ"), NAMES)
    assert filled[1, 1] == 1 and filled[0, 0] == 0 and ring[1, 1] == 0  # the corner is open, and the input stays
    two = np.ones((5, 6), np.uint8)
    two[:, 3:] = 2
    two[2, 1] = two[2, 4] = 0
    names = [*NAMES, "tail"]
    assert np.array_equal(clean(two, Rule("fill", ALL), names), np.where(np.arange(6) < 3, 1, 2) * np.ones((5, 1)))
    lesion = np.ones((3, 3), np.uint8)
    lesion[1, 1] = 2
    assert clean(lesion, Rule("fill", "organ"), names) is lesion  # what is closed in is another class, not background
    assert clean(np.zeros((3, 3), np.uint8), Rule("largest", ALL), names).sum() == 0
    assert [rule.of for rule in candidates(names)] == [ALL, ALL, "organ", "organ", "tail", "tail"]


def test_of_all_foreground_a_small_class_that_touches_the_large_one_stays():
    classes = np.zeros((6, 6), np.uint8)
    classes[0:3, 0:3], classes[3, 2], classes[5, 5] = 1, 2, 2
    names = [*NAMES, "tail"]
    kept = clean(classes, Rule("largest", ALL), names)
    assert kept[3, 2] == 2 and kept[5, 5] == 0
    assert (clean(classes, Rule("largest", "tail"), names) == 1).sum() == 9  # of one class, others are not touched


def test_predict_cleans_the_mask_and_nothing_else_and_says_so():
    plain, image = make_model(noise=0.3), Image(10.0 * organ(satellite=3)[None].astype(np.float32))
    model = learnt_about(plain, LEARNT)
    raw, cleaned = plain.predict(image, draws=2, keep_draws=True), model.predict(image, draws=2, keep_draws=True)
    assert np.array_equal(raw.mask, 3 * organ(satellite=3)) and np.array_equal(cleaned.mask, 3 * organ())
    assert np.array_equal(raw.probability, cleaned.probability) and np.array_equal(raw.draws, cleaned.draws)
    assert np.array_equal(raw.uncertainty["entropy"], cleaned.uncertainty["entropy"])
    before, after = raw.provenance, cleaned.provenance
    assert "postprocessing" not in before and before["uncertainty_score"] == after["uncertainty_score"]
    assert (before["volume_ml"]["organ"], after["volume_ml"]["organ"]) == (0.128, 0.125)
    assert after["volume_ml_90"]["organ"][0] <= 0.125
    said = after["postprocessing"]
    assert (said["applied"], said["changed_voxels"], said["rules"], said["id"]) == (True, 3, [LARGEST], LEARNT.id)
    for changes, why in (({"postprocess": False}, "asked for without"), ({"draws": 3}, "draws 2, now 3")):
        other = model.predict(image, **({"draws": 2} | changes))
        assert np.array_equal(other.mask, raw.mask) and not other.provenance["postprocessing"]["applied"]
        assert why in other.provenance["postprocessing"]["reason"]
    assert model.settings(draws=2) == plain.settings(draws=2)


def test_learning_draws_without_the_rules_that_are_stored_already(tmp_path):
    model = learnt_about(make_model(), LEARNT)
    found = learn_postprocessing(model, put(tmp_path, wrong=True), SamplingOptions(draws=2))
    assert found.postprocessing is not None and found.postprocessing == replace(LEARNT, cases=CASES, patients=CASES)
    assert all(row["before"] < row["after"] == 1 for row in found.scores.values()) and len(found.scores) == CASES


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint; whoever loads it gets the oracle with its header."""
    path, method = tmp_path / "best.safetensors", METHODS["concat"]
    save_checkpoint(path, method(make_plan(patch=(8, 8, 8), widths=(4, 4)), method.config_class(T=8, steps=2)), {"fold": 0})

    def load(model, *arguments):
        return replace(make_model(), meta=read_meta(path), hash=weights_hash(path), file_hashes=(weights_hash(path),))

    monkeypatch.setattr("diffuseg.inference.model.load", load)
    monkeypatch.setattr("diffuseg.inference.several.load", load)
    return path


def test_from_the_command_to_cleaned_masks_and_back(tmp_path, checkpoint):
    wrong, right = put(tmp_path / "wrong", True), put(tmp_path / "right", False)
    before = weights_hash(checkpoint)
    nothing = call("postprocess", checkpoint, right, "--draws", 2)
    assert nothing.exit_code == 0 and "no rule helps for certain" in nothing.stdout, nothing.output
    assert "postprocessing" not in read_meta(checkpoint) and "amended" not in read_meta(checkpoint)
    done = call("postprocess", checkpoint, wrong, "--draws", 2)
    assert done.exit_code == 0 and "largest component of organ" in done.stdout and "remembers" in done.stdout, done.output
    written = json.loads((tmp_path / "postprocessing" / "postprocessing.json").read_text())
    assert written["learnt"] == read_meta(checkpoint)["postprocessing"] and written["learnt"]["rules"] == [LARGEST]
    assert weights_hash(checkpoint) == before and len(written["tried"]) == 2
    scan, out = wrong / "imagesTr" / "case_03_0000.nii.gz", tmp_path / "out"
    arguments = ("predict", checkpoint, scan, "--out", out, "--draws", 2)
    done = call(*arguments)
    assert "masks are post-processed (largest component of organ)" in done.stdout, done.output
    assert np.array_equal(read_image([out / "case_03.nii.gz"]).data[0], 3 * organ())
    assert "1 skipped" in call(*arguments).stdout
    other = call(*arguments, "--no-postprocess")
    assert "already finished with other settings" in other.stdout and "not post-processed" in other.stdout
    done = call(*arguments, "--no-postprocess", "--overwrite")
    assert np.array_equal(read_image([out / "case_03.nii.gz"]).data[0], 3 * organ(satellite=4)), done.output
    forgotten = call("postprocess", checkpoint, right, "--draws", 2)
    assert "forgets the rules" in forgotten.stdout and read_meta(checkpoint)["postprocessing"] is None


def test_out_of_fold_predictions_are_without_rules_that_were_learnt_from_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("diffuseg.studies.crossval.predict_folder", lambda *a, **k: asked.append(a[3]) or Crossval().result)
    method, data = METHODS["concat"], put(tmp_path / "data", True)
    scans = {path.name.replace("_0000.nii.gz", ""): path for path in (data / "imagesTr").iterdir()}
    meta = {"fold": 0, "validation_cases": {case: image_digest(path) for case, path in scans.items()}, "training_cases": {}}
    (tmp_path / "run").mkdir()
    tiny = method(make_plan(patch=(8, 8, 8), widths=(4, 4)), method.config_class())
    save_checkpoint(tmp_path / "run" / "last.safetensors", tiny, meta)
    cross_validate(tmp_path / "run", data, tmp_path / "out")
    assert [chosen.postprocess for chosen in asked] == [False]


def test_rules_of_a_stranger_and_of_several_models(tmp_path, checkpoint):
    for rule in ({"what": "burn", "of": "organ"}, {"what": "fill", "of": "liver"}):
        with pytest.raises(UserError, match="not known"):
            read_postprocessing({"postprocessing": asdict(replace(LEARNT, rules=[rule]))}, NAMES)
    from diffuseg.checkpoint import KINDS
    from diffuseg.inference.several import _joint_header

    for value in ({}, {"rules": [1], "settings": {}}, {"rules": [{"what": 1, "of": "x"}], "settings": {}}, []):
        assert not KINDS["postprocessing"](value)
    assert KINDS["postprocessing"](asdict(LEARNT)) and KINDS["postprocessing"](None)
    assert "postprocessing" not in _joint_header([{"postprocessing": asdict(LEARNT)}] * 2)
    assert load_models([checkpoint]).postprocessing is None
