"""A plan follows from the fingerprint, says why, can be edited, and refuses what does not fit."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.config import from_dict, to_dict
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import open_dataset
from diffuseg.data.layout import Dataset
from diffuseg.data.plan import Fingerprint, Plan, check_plan, explain, fingerprint, load_plan, make_plan, save_plan
from diffuseg.errors import UserError

SEEN = {"minimum": 0.0, "maximum": 200.0, "low": 5.0, "median": 80.0, "high": 180.0, "mean": 90.0, "std": 30.0}


def data_set(channels=("MRI",), labels=("organ",), ending=".nii.gz"):
    values = {"background": 0} | {name: 1 + i for i, name in enumerate(labels)}
    return Dataset(Path("made"), "made", tuple(channels), values, ending, (), {})


def seen(size=(35, 50, 36), spacing=(1.0, 1.0, 1.0), **changes):
    """The fingerprint of volumes (or pictures) that are all alike."""
    settings = {
        "cases": 200, "patients": 200, "patient_rule": "", "dims": len(size), "size_median": tuple(map(float, size)),
        "size_smallest": tuple(size), "size_largest": tuple(size), "spacing_median": spacing, "spacing_smallest": spacing,
        "spacing_largest": spacing, "orientations": {"LPS": 200} if len(size) == 3 else {}, "integer": True,
        "intensity": (SEEN,), "frequency": {}, "present": {},
    }  # fmt: skip
    return Fingerprint(**(settings | changes))


def pictures(size=(1000, 900), channels=3, **changes):
    return seen(size, (1.0, 1.0), intensity=(SEEN,) * channels, **changes)


def test_small_isotropic_mr_is_trained_whole_in_3d():
    plan = make_plan(data_set(), seen())
    assert (plan.dims, plan.context, plan.patch, plan.orientation) == (3, 0, (40, 56, 40), "RAS")
    assert (plan.spacing, plan.normalisation, plan.augmentation, plan.flips) == ((1.0, 1.0, 1.0), ("zscore",), "mr", ())
    assert plan.widths == (16, 32, 64, 128)


def test_thick_slices_become_2_5d_along_the_thick_axis():
    for axis in range(3):
        spacing = tuple(5.0 if a == axis else 0.8 for a in range(3))
        size = tuple(20 if a == axis else 300 for a in range(3))
        plan = make_plan(data_set(), seen(size, spacing))
        assert (plan.dims, plan.context, plan.slice_axis, plan.patch) == (2, 1, axis, (256, 256))
    assert make_plan(data_set(), seen((300, 300, 20), (0.8, 0.8, 2.0))).dims == 3


def test_a_file_with_a_single_slice_is_a_picture_whatever_its_spacing():
    plan = make_plan(data_set(), seen((200, 1, 180), (2.0, 0.1, 2.0)))
    assert (plan.dims, plan.context, plan.slice_axis, plan.patch) == (2, 0, 1, (208, 192))


def test_ct_is_recognised_by_its_channel():
    plan = make_plan(data_set(["CT"]), seen())
    assert plan.normalisation == ("ct",) and plan.augmentation == "ct"
    assert plan.intensity == ({"low": 5.0, "high": 180.0, "mean": 90.0, "std": 30.0},)
    both = make_plan(data_set(["PET", "CT (HU)"]), seen(intensity=(SEEN, SEEN)))
    assert both.normalisation == ("zscore", "ct") and both.intensity[0] == {}
    assert make_plan(data_set(["ACTH"]), seen()).normalisation == ("zscore",)


def test_colour_pictures_keep_their_grid_and_may_be_mirrored():
    plan = make_plan(data_set("RGB", ["nucleus"], ".png"), pictures())
    assert (plan.dims, plan.orientation, plan.spacing, plan.patch) == (2, None, None, (256, 256))
    assert plan.normalisation == ("unit",) * 3 and plan.intensity == ({"low": 0.0, "high": 255.0},) * 3
    assert plan.augmentation == "colour" and plan.flips == (0, 1)


@pytest.mark.parametrize("maximum, high", [(1.0, 255.0), (255.0, 255.0), (256.0, 1023.0), (4095.0, 4095.0), (65535.0, 65535.0)])
def test_grey_pictures_are_scaled_by_the_depth_of_their_files(maximum, high):
    f = replace(pictures(channels=1), intensity=(SEEN | {"maximum": maximum},))
    plan = make_plan(data_set(["CXR"], ["lung"], ".png"), f)
    assert plan.intensity == ({"low": 0.0, "high": high},)
    assert plan.augmentation == "xray" and plan.flips == ()


def test_only_what_has_no_side_is_mirrored():
    assert make_plan(data_set(labels=["lesion"]), seen()).flips == (0,)
    assert make_plan(data_set(labels=["left lesion", "right lesion"]), seen()).flips == ()
    assert make_plan(data_set(labels=["liver", "liver tumour"]), seen()).flips == ()
    assert make_plan(data_set(["FLAIR"], ["tumour"], ".png"), pictures(channels=1)).flips == (1,)
    # Sagittal slices do not hold the axis from left to right; axial ones have it first.
    assert make_plan(data_set(labels=["lesion"]), seen((20, 300, 300), (5.0, 0.8, 0.8))).flips == ()
    assert make_plan(data_set(labels=["lesion"]), seen((300, 300, 20), (0.8, 0.8, 5.0))).flips == (0,)
    assert make_plan(data_set("RGB", ["left", "right"], ".png"), pictures()).flips == ()


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 600)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    channels=st.sampled_from([("CT",), ("T1", "T2"), ("PET", "CT")]),
    cases=st.integers(2, 5000),
)
def test_any_volumes_give_a_plan_that_fits_together(size, spacing, channels, cases):
    f = seen(size, tuple(round(s, 4) for s in spacing), cases=cases, intensity=(SEEN,) * len(channels))
    plan = make_plan(data_set(channels), f)
    check_plan(plan)
    assert from_dict(Plan, json.loads(json.dumps(to_dict(plan)))) == plan
    if plan.dims == 3:
        assert all(side % 8 == 0 for side in plan.patch) and math.prod(plan.patch) <= 100_000
        assert all(side < n + 8 for side, n in zip(plan.patch, size, strict=True))
    else:
        plane = [n for axis, n in enumerate(size) if axis != plan.slice_axis]
        assert all(side % 16 == 0 and side <= 256 for side in plan.patch)
        assert all(side >= min(n, 256) for side, n in zip(plan.patch, plane, strict=True))
    assert 1000 <= plan.steps <= 8000
    assert all(reason for _, _, reason in explain(plan))


def test_every_setting_is_explained_and_a_wish_changes_what_depends_on_it():
    plan = make_plan(data_set(), seen(), dims=2, batch=7)
    rows = {name: (value, reason) for name, value, reason in explain(plan)}
    assert set(rows) == {f.name for f in fields(Plan)} - {"reasons"}
    assert rows["dims"] == ("2", "as asked for") and rows["batch"] == ("7", "as asked for")
    assert plan.context == 1 and plan.patch == (48, 64)
    finer = make_plan(data_set(), seen(), spacing=(0.5, 1.0, 1.0))
    assert finer.patch[0] == make_plan(data_set(), seen((70, 50, 36), (0.5, 1.0, 1.0))).patch[0]


def test_a_crop_decides_about_patch_batch_and_steps():
    f = pictures((128, 128), 1, cases=2146)
    whole, cropped = make_plan(data_set(["CT"]), f), make_plan(data_set(["CT"]), f, crop=(64, 60))
    assert whole.crop is None and whole.patch == (128, 128) and cropped.patch == (64, 64)
    assert cropped.batch == 32 and "crop leaves" in cropped.reasons["patch"] and cropped.reasons["crop"] == "as asked for"
    sliced = make_plan(data_set(), seen((300, 300, 20), (0.8, 0.8, 5.0)), crop=(100, 64, 9))
    assert sliced.slice_axis == 2 and sliced.patch == (112, 64)
    for crop in ((0, 4), (4,), (4, 4, 4)):
        with pytest.raises(UserError, match="crop"):
            make_plan(data_set(["CT"]), f, crop=crop)


def test_wishes_that_do_not_exist_or_do_not_fit_are_refused():
    with pytest.raises(UserError, match="unknown setting 'pach'; did you mean 'patch'"):
        make_plan(data_set(), seen(), pach=(8, 8, 8))
    with pytest.raises(UserError, match="patch needs 3 sides of 4 voxels or more"):
        make_plan(data_set(), seen(), patch=(8, 8))


def test_a_plan_survives_its_file_and_may_be_edited(tmp_path):
    plan = make_plan(data_set(), seen())
    save_plan(plan, tmp_path / "deep" / "plan.json")
    assert load_plan(tmp_path / "deep" / "plan.json") == plan
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["plan.json"]
    text = (tmp_path / "deep" / "plan.json").read_text()
    values = json.loads(text)
    values["patch"] = [16, 16, 16]
    (tmp_path / "edited.json").write_text(json.dumps(values))
    assert load_plan(tmp_path / "edited.json") == replace(plan, patch=(16, 16, 16))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pathc": [8, 8, 8]}, "did you mean 'patch'"),
        ({"patch": [8, 8]}, "patch needs 3 sides of 4 voxels or more"),
        ({"patch": [8, 8, 0]}, "patch needs 3 sides of 4 voxels or more"),
        ({"spacing": [1.0, -1.0, 1.0]}, "spacing is one positive number"),
        ({"orientation": "RAX"}, "orientation is one letter each"),
        ({"orientation": "RLS"}, "orientation is one letter each"),
        ({"normalisation": ["zscore", "ct"]}, "normalisation needs one entry per channel"),
        ({"normalisation": ["ct"]}, "intensity of channel 0 lacks low, high, mean, std"),
        ({"normalisation": ["unit"], "intensity": [{"low": 3.0, "high": 3.0}]}, "low must be below high"),
        ({"normalisation": ["other"]}, "expected one of zscore, ct, unit"),
        ({"flips": [3]}, "flips are axes of the patch"),
        ({"crop": [8, 8]}, "crop is one positive number of voxels per axis, or null"),
        ({"crop": [8, 0, 8]}, "crop is one positive number"),
        ({"raters": "mean"}, "expected one of random, all, majority, union, intersection"),
        ({"context": 1}, "context is 0 to 100, and 0 for a 3-D network"),
        ({"dims": 4}, "dims is 2 or 3"),
        ({"widths": []}, "widths are 12 at most, of 1 to 4096"),
        ({"batch": 0}, "batch is at least 1"),
        ({"labels": {"organ": 1}}, "labels need a background"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused_by_name(tmp_path, change, message):
    values = to_dict(make_plan(data_set(), seen())) | change
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as fault:
        load_plan(tmp_path / "plan.json")
    assert "plan.json" in str(fault.value)


def test_a_plan_that_is_no_json_or_missing_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{'dims': 3}")
    (tmp_path / "list.json").write_text("[]")
    for name in ("plan.json", "list.json", "none.json"):
        with pytest.raises(UserError, match=name):
            load_plan(tmp_path / name)


# Fingerprints


@pytest.fixture
def volumes(tmp_path):
    """Three volumes of known numbers, the last without a label; axes of the files are z, x, y with x flipped."""
    for room in ("imagesTr", "labelsTr"):
        (tmp_path / room).mkdir()
    affine = np.array([[0, -0.5, 0, 0], [0, 0, 1.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    for index in range(3):
        image = np.zeros((4, 6, 5 + index), np.float32)
        mask = np.zeros(image.shape, np.uint8)
        if index < 2:
            mask[:2, :3, 0], image[:2, :3, 0] = 1, 100 + index
        if index == 0:
            mask[3, 3, 3], image[3, 3, 3] = 2, -7
        image[0, 5, 4] = 1000
        nib.save(nib.Nifti1Image(image, affine), tmp_path / "imagesTr" / f"c{index}_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / "labelsTr" / f"c{index}.nii.gz")
    description = {"name": "v", "channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return open_dataset(tmp_path)


def test_a_fingerprint_says_what_is_there(volumes):
    f = fingerprint(volumes)
    assert (f.cases, f.patients, f.dims, f.integer) == (3, 3, 3, True)
    assert f.size_median == (6.0, 6.0, 4.0) and f.size_smallest == (6, 5, 4) and f.size_largest == (6, 7, 4)
    assert f.spacing_median == f.spacing_smallest == f.spacing_largest == (0.5, 1.0, 2.0)
    assert f.orientations == {"SLA": 3}
    total = 4 * 6 * (5 + 6 + 7)
    assert f.frequency == {"background": 1 - 13 / total, "a": 12 / total, "b": 1 / total}
    assert f.present == {"background": 3, "a": 2, "b": 1}
    values = [100.0] * 6 + [101.0] * 6 + [-7.0]
    channel = f.intensity[0]
    assert (channel["minimum"], channel["maximum"], channel["median"]) == (-7.0, 1000.0, 100.0)
    assert channel["mean"] == pytest.approx(np.mean(values), rel=1e-5)
    assert channel["std"] == pytest.approx(np.std(values), rel=1e-5)
    assert from_dict(Fingerprint, json.loads(json.dumps(to_dict(f)))) == f


def test_the_plan_of_a_folder_makes_batches(volumes):
    plan = make_plan(volumes, fingerprint(volumes), batch=2)
    batch = Batches(volumes, ["c0", "c1", "c2"], plan).batch(0)
    assert batch.image.shape == (2, plan.image_channels, *plan.patch) and batch.mask.shape == (2, 3, *plan.patch)


def test_pictures_and_volumes_are_not_mixed(volumes):
    flat = nib.Nifti1Image(np.zeros((6, 5), np.float32), np.eye(4))
    nib.save(flat, volumes.cases[1].images[0])
    nib.save(nib.Nifti1Image(np.zeros((6, 5), np.uint8), np.eye(4)), volumes.cases[1].mask)
    with pytest.raises(UserError, match=r"c1_0000\.nii\.gz: it has 2 axes, other cases have 3"):
        fingerprint(volumes)


def test_a_folder_of_colour_pictures_makes_batches(tmp_path):
    for room in ("imagesTr", "labelsTr"):
        (tmp_path / room).mkdir()
    for index in range(2):
        picture = np.random.default_rng(index).integers(0, 200, (40, 30, 3)).astype(np.uint8)
        PIL.Image.fromarray(picture).save(tmp_path / "imagesTr" / f"p{index}_0000.png")
        PIL.Image.fromarray((picture[..., 0] > 150).astype(np.uint8)).save(tmp_path / "labelsTr" / f"p{index}.png")
    names = {"0": "R", "1": "G", "2": "B"}
    description = {"channel_names": names, "labels": {"background": 0, "spot": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(tmp_path)
    plan = make_plan(dataset, fingerprint(dataset))
    assert plan.augmentation == "colour" and plan.patch == (48, 32) and plan.intensity[2] == {"low": 0.0, "high": 255.0}
    batch = Batches(dataset, ["p0", "p1"], plan).batch(0)
    assert batch.image.shape == (32, 3, 48, 32) and float(batch.image.abs().max()) <= 1
