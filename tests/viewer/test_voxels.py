"""Layers as the page gets them: the values and places of the files, in small types."""

import json
import math

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffuseg.data import io
from diffuseg.data.io import read_image
from diffuseg.errors import UserError
from diffuseg.types import Image
from diffuseg.viewer.cases import Case, Layer, find_cases
from diffuseg.viewer.voxels import SERVED, encode, thinned, thinning
from tests.viewer.conftest import AFFINE, LABELS, organs

VALUES = np.array(sorted(LABELS.values()))


def shown(case: Case, key: str, most: int = SERVED) -> nib.Nifti1Image:
    layer = next(layer for layer in case.layers if layer.key == key)
    return nib.Nifti1Image.from_bytes(encode(case, layer, most))


def test_a_volume_is_shown_with_the_values_and_places_of_its_files(volumes):
    case = find_cases(volumes, only="a")[0]
    of = lambda name: read_image(volumes / name).data
    image = shown(case, "image")
    np.testing.assert_array_equal(np.asarray(image.dataobj), organs(6, 5, 4))
    np.testing.assert_array_equal(VALUES[np.asarray(shown(case, "mask").dataobj)], of("a.nii.gz")[0])
    for number, key in enumerate(("prob0", "prob1")):
        np.testing.assert_allclose(shown(case, key).get_fdata(), of("a_prob.nii.gz")[number], atol=0.5 / 255 + 1e-6)
    entropy = shown(case, "entropy")
    np.testing.assert_allclose(entropy.get_fdata(), of("a_entropy.nii.gz")[0], atol=math.log(3) * 0.5 / 255 + 1e-6)
    assert float(entropy.header["cal_max"]) == pytest.approx(math.log(3))
    draws = np.asarray(shown(case, "draws").dataobj)
    np.testing.assert_array_equal(VALUES[np.moveaxis(draws, -1, 0)], of("a_draws.nii.gz"))
    steps = np.moveaxis(shown(case, "steps").get_fdata(), -1, 0)
    np.testing.assert_allclose(steps, of("a_steps.nii.gz"), atol=0.2)
    for layer in case.layers:
        header = shown(case, layer.key).header
        np.testing.assert_allclose(header.get_best_affine(), AFFINE, atol=1e-6)
        assert header.get_data_dtype() == (np.int16 if layer.kind == "image" else np.uint8)


def test_a_picture_is_shown_column_by_column(pictures):
    """Its rows run along the second axis of NIfTI: the bytes are those of the picture, row after row."""
    case = find_cases(pictures)[0]
    assert case.picture and [layer.key for layer in case.layers][:4] == ["image", "mask", "prob0", "prob1"]
    data = np.asarray(PIL.Image.open(pictures.parent / "p.png"))
    image = shown(case, "image")
    assert image.shape[:2] == data.shape[::-1]
    np.testing.assert_array_equal(np.asarray(image.dataobj).reshape(data.shape[::-1]).T, data)
    far = np.asarray(PIL.Image.open(pictures / "p_prob_far_part.png")) / 65535
    np.testing.assert_allclose(shown(case, "prob1").get_fdata().reshape(data.shape[::-1]).T, far, atol=0.5 / 255 + 1e-6)
    draws = np.asarray(shown(case, "draws").dataobj)[:, :, 0]
    np.testing.assert_array_equal(VALUES[draws.T], read_image(pictures / "p_draws.tif").data)
    raw = encode(case, next(x for x in case.layers if x.key == "image"), SERVED)
    np.testing.assert_array_equal(np.frombuffer(raw[352:], "<i2").reshape(data.shape), data)


def test_colours_are_three_frames(tmp_path, pictures):
    colour = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    (tmp_path / "colours").mkdir()
    PIL.Image.fromarray(colour).save(tmp_path / "colours" / "p_0000.png")
    image = np.asarray(shown(find_cases(pictures, tmp_path / "colours")[0], "image").dataobj)
    np.testing.assert_array_equal(image[:, :, 0].swapaxes(0, 1), colour)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 4095), (np.uint16, 65535), (np.float32, 1)])
def test_a_colour_picture_is_seen_in_its_own_colours_at_first(tmp_path, pictures, dtype, top):
    """Stretching a pale picture over all of the screen's range would give it colours that nobody saw."""
    pale = np.random.default_rng(0).uniform(0.4, 0.6, (16, 20, 3)) * top
    (tmp_path / "colours").mkdir()
    tifffile.imwrite(tmp_path / "colours" / "p_0000.tif", pale.astype(dtype), photometric="rgb")
    header = shown(find_cases(pictures, tmp_path / "colours")[0], "image").header
    assert (header["cal_min"], header["cal_max"]) == (0, top)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (1, 3, 4, 2), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_intensities_of_any_kind_lose_at_most_half_a_step_of_65535(data):
    from diffuseg.viewer.voxels import _short, _window

    stored, slope, inter = _short(data)
    assert stored.dtype == np.int16
    span = float(data.max()) - float(data.min())
    np.testing.assert_allclose(stored * slope + inter, data, atol=0.5 * span / 65535 * 1.001 + 1e-30)
    low, high = _window(data)
    assert low < high


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=3), st.integers(1, 20), st.integers(1, 5000))
def test_thinning_is_the_least_that_is_enough(shape, frames, most):
    n = thinning(tuple(shape), frames, most)
    size = math.prod(shape) * max(1, frames / 8)
    assert size / n ** len(shape) <= most and (n == 1 or size / (n - 1) ** len(shape) > most)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(1, 5))
def test_what_is_left_after_thinning_stays_where_it_was(shape, n):
    """The world positions of what is left are those that it had among all voxels."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")).astype(float)
    left, affine = thinned(index, AFFINE, n)
    assert all(len(set(np.diff(axis))) <= 1 for axis in (np.unique(left[i]) for i in range(len(shape))))
    columns = AFFINE[:, [*range(len(shape)), 3]]  # of as many axes as there are
    world = lambda places, of: of[:, :-1] @ places.reshape(len(shape), -1) + of[:, -1:]
    places = np.indices(left.shape[1:])
    np.testing.assert_allclose(world(places, affine[:, [*range(len(shape)), 3]]), world(left, columns), atol=1e-9)


def test_a_thinned_layer_says_so(volumes):
    case = find_cases(volumes, only="a")[0]
    small = shown(case, "mask", most=40)
    assert "one voxel in 2" in bytes(small.header["descrip"]).decode() and small.shape == (3, 3, 2)
    assert not bytes(shown(case, "mask").header["descrip"]).strip(b"\0")


def test_what_does_not_belong_together_is_not_shown(volumes, tmp_path):
    case = find_cases(volumes, only="a")[0]
    image = next(layer for layer in case.layers if layer.key == "image")
    other = tmp_path / "other.nii.gz"
    io.write(other, organs(6, 5, 3).astype(np.float32), Image(organs(6, 5, 3)[None], AFFINE))
    with pytest.raises(UserError, match="not shown: its shape"):
        encode(case, Layer("image", "", "image", other, 0), SERVED)
    with pytest.raises(UserError, match="4 planes, not those"):
        io.write(tmp_path / "d.nii.gz", np.zeros((4, 6, 5, 4)), read_image(image.file))
        encode(case, Layer("draws", "", "labels", tmp_path / "d.nii.gz", frames=("1", "2")), SERVED)
    with pytest.raises(UserError, match="label value 9"):
        io.write(tmp_path / "m.nii.gz", np.full((6, 5, 4), 9), read_image(image.file))
        encode(case, Layer("x", "", "labels", tmp_path / "m.nii.gz"), SERVED)


def test_what_a_folder_lacks_is_named(volumes, tmp_path):
    (volumes / "a_draws.nii.gz").unlink()
    (volumes / "b_prob.nii.gz").unlink()
    (volumes / "b_prob.nii.gz").symlink_to(tmp_path / "scans" / "b_0000.nii.gz")
    (volumes / "notes.json").write_text('{"by": "somebody else"}')
    for scan in (tmp_path / "scans").iterdir():
        scan.rename(scan.with_name("moved_" + scan.name))
    a, b = find_cases(volumes)
    assert [layer.key for layer in a.layers] == ["mask", "prob0", "prob1", "entropy", "steps"]
    assert any("a_draws.nii.gz" in fault for fault in a.faults) and any("a_0000.nii.gz" in fault for fault in a.faults)
    assert "prob0" not in [layer.key for layer in b.layers], "a link leads out of the folder"
    again = find_cases(volumes, images=tmp_path / "scans")
    assert not any(layer.key == "image" for case in again for layer in case.layers)
    (tmp_path / "scans" / "moved_a_0000.nii.gz").rename(tmp_path / "scans" / "a.nii.gz")
    assert find_cases(volumes, tmp_path / "scans")[0].layers[0].key == "image"


def test_folders_without_results_are_refused(volumes, tmp_path):
    for wrong, says in (((tmp_path / "none",), "no such folder"), ((tmp_path,), "no result"), ((volumes, None, "c"), "a, b")):
        with pytest.raises(UserError, match=says):
            find_cases(*wrong)


def test_a_description_holds_what_the_record_says(volumes):
    record = json.loads((volumes / "a.json").read_text())
    about = find_cases(volumes, only="a")[0].describe()
    assert [row[:2] for row in about["volumes"]] == [[name, record["volume_ml"][name]] for name in ("near", "far part")]
    assert [row[2:4] for row in about["volumes"]] == [record["volume_ml_90"][name] for name in ("near", "far part")]
    assert [one["name"] for one in about["classes"]] == ["near", "far part"]
    frames = {layer["key"]: layer["frames"] for layer in about["layers"]}
    assert len(frames["draws"]) == 3 and frames["steps"][0] == "step 1 of 3, timestep 4" and not frames["mask"]


def test_an_interval_of_one_draw_is_not_shown_unless_calibration_widened_it(volumes):
    record = json.loads((volumes / "a.json").read_text()) | {"draws": 1}
    shown_of = lambda content: (
        (volumes / "a.json").write_text(json.dumps(content)),
        find_cases(volumes, only="a")[0].describe()["volumes"][0][2:4],
    )[1]
    assert shown_of(record) == [None, None], "a point, which claims nothing"
    learnt = {"applied": True, "widening": {"near": {"shift": 0.5}}}
    assert shown_of(record | {"calibration": learnt}) == record["volume_ml_90"]["near"]


def test_what_a_reader_has_to_know_is_remarked(volumes):
    record = json.loads((volumes / "a.json").read_text())
    remarks = lambda: find_cases(volumes, only="a")[0].describe()["remarks"]
    assert not remarks()
    record |= {"seen_in": "training", "needs_review": True, "uncertainty_score": 0.25, "review_threshold": 0.125}
    (volumes / "a.json").write_text(json.dumps(record))
    first, second = remarks()
    assert "in the training" in first and "a Dice of 0.750 (uncertainty score 0.250, review begins above 0.125)" in second


def test_a_truth_has_to_lie_on_the_grid_of_the_mask_and_unannotated_voxels_are_no_class(volumes, tmp_path):
    (tmp_path / "labels").mkdir()
    mask = io.read_mask(volumes / "a.nii.gz")
    drawn = mask.data[0].astype(np.uint8)
    drawn[0, 0, 0] = 9
    io.write(tmp_path / "labels" / "a.nii.gz", drawn, mask)
    case = find_cases(volumes, only="a", labels=tmp_path / "labels")[0]
    with pytest.raises(UserError, match="label value 9 is not in the record"):
        shown(case, "truth")
    labels = {**LABELS, "ignore": 9}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    expected = np.where(drawn == 9, 0, drawn)
    np.testing.assert_array_equal(VALUES[np.asarray(shown(case, "truth").dataobj)], expected)
    io.write(tmp_path / "labels" / "a.nii.gz", drawn[1:], Image(drawn[1:][None], AFFINE))
    with pytest.raises(UserError, match="not shown: its"):
        shown(case, "truth")
