"""Batches: a pure function of seed, step and rank; patches that show what the case holds."""

import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from diffuseg.data.batches import Batches, _points, slice_stack
from diffuseg.data.dataset import open_dataset
from diffuseg.data.plan import Plan
from diffuseg.data.transforms import to_native
from diffuseg.errors import UserError

AS_IS = {"low": -1e6, "high": 1e6, "mean": 0.0, "std": 1.0}
LABELS = {"background": 0, "rare": 1, "common": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five volumes whose intensities tell the voxel, exactly in float16. Label 1 is a single voxel."""
    folder = tmp_path_factory.mktemp("set")
    for room in ("imagesTr", "labelsTr"):
        (folder / room).mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        shape = (12 + index, 14, 10)
        image = np.arange(np.prod(shape)).reshape(shape) - 1200
        mask = np.zeros(shape, np.uint8)
        mask[2:5, 3:6, 4:7] = 2
        mask[tuple(rng.integers(7, 9, 3))] = 1
        for channel in range(2):
            path = folder / "imagesTr" / f"case{index}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image((image * (-1 if channel else 1)).astype(np.float32), np.diag([-1.0, 1, 1, 1])), path)
        nib.save(nib.Nifti1Image(mask, np.diag([-1.0, 1, 1, 1])), folder / "labelsTr" / f"case{index}.nii.gz")
    description = {"name": "set", "channel_names": {"0": "A", "1": "B"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def plan(**changes):
    settings = {"normalisation": ("ct", "ct"), "intensity": (AS_IS, AS_IS), "patch": (8, 8, 8), "augmentation": "none"}
    return Plan("set", ("A", "B"), LABELS, ".nii.gz", **(settings | changes))


def batches(folder, seed=0, cases=range(5), cache_bytes=2**30, **changes):
    return Batches(open_dataset(folder), [f"case{i}" for i in cases], plan(**changes), seed, cache_bytes)


def same(a, b):
    return torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask) and a.cases == b.cases


@pytest.mark.parametrize("kind", ["none", "mr"])
def test_a_batch_depends_on_seed_step_and_rank_and_on_nothing_else(folder, kind):
    one, other = batches(folder, augmentation=kind), batches(folder, augmentation=kind, cache_bytes=0)
    for step in (7, 0, 3):
        other.batch(step + 1)  # what was asked for before leaves no trace
        assert same(one.batch(step), other.batch(step))
    assert not same(one.batch(1), one.batch(2))
    assert not same(one.batch(1), batches(folder, seed=1, augmentation=kind).batch(1))
    ranks = [one.batch(1, rank, world=2) for rank in range(2)]
    assert not same(*ranks) and not torch.equal(ranks[0].image, ranks[1].image)


def test_going_on_from_a_step_is_the_same_as_never_having_stopped(folder):
    through = list(batches(folder, augmentation="mr").iterate(0, 6))
    resumed = list(batches(folder, augmentation="mr").iterate(4, 6))
    assert len(through) == 6
    assert all(same(a, b) for a, b in zip(through[4:], resumed, strict=True))


def test_every_pass_shows_every_case_once_whatever_the_number_of_ranks(folder):
    source = batches(folder, batch=1)
    first, second = ([source.batch(step).cases[0] for step in range(n, n + 5)] for n in (0, 5))
    assert sorted(first) == sorted(second) == [f"case{i}" for i in range(5)]
    together = [source.batch(step, rank, world=5).cases[0] for step in range(1) for rank in range(5)]
    assert together == first
    orders = {tuple(source.batch(step).cases[0] for step in range(5 * lap, 5 * lap + 5)) for lap in range(6)}
    assert len(orders) > 1


def test_patches_are_pieces_of_the_case_with_its_mask(folder):
    source = batches(folder, batch=5)
    for step in range(4):
        batch = source.batch(step)
        assert batch.image.shape == (5, 2, 8, 8, 8) and batch.mask.shape == (5, 3, 8, 8, 8)
        assert torch.equal(batch.mask.sum(1), torch.ones(5, 8, 8, 8)) and set(batch.mask.unique().tolist()) == {0.0, 1.0}
        for image, mask, case in zip(batch.image, batch.mask, batch.cases, strict=True):
            whole = source.whole(case)
            place = np.unravel_index(int((whole.image[0] == image[0, 0, 0, 0]).flatten().nonzero()[0]), whole.mask.shape)
            piece = tuple(slice(p, p + 8) for p in place)
            assert torch.equal(image, whole.image[(slice(None), *piece)])
            assert torch.equal(mask.argmax(0), whole.mask[piece])


def test_a_case_smaller_than_the_patch_lies_in_the_middle_of_its_lowest_value(folder):
    source = batches(folder, cases=[0], batch=1, patch=(16, 15, 16))
    batch, whole = source.batch(0), source.whole("case0")
    inside = (slice(2, 14), slice(0, 14), slice(3, 13))  # 12 x 14 x 10 in 16 x 15 x 16
    assert torch.equal(batch.image[0][(slice(None), *inside)], whole.image)
    assert torch.equal(batch.mask[0].argmax(0)[inside], whole.mask)
    outside = torch.ones(16, 15, 16, dtype=torch.bool)
    outside[inside] = False
    assert (batch.image[0][:, outside] == whole.image.min()).all()
    assert (batch.mask[0][0][outside] == 1).all()


def test_a_third_of_the_patches_is_centred_on_foreground_with_equal_chances_for_classes(folder):
    source = batches(folder, batch=1, patch=(1, 1, 1))
    seen = torch.stack([source.batch(step).mask[0].flatten() for step in range(1500)]).mean(0)
    by_chance = 28 / (14 * 14 * 10)  # a random voxel is foreground by itself in 1 to 2 %
    assert seen[1:].sum() == pytest.approx(1 / 3 + 2 / 3 * by_chance, abs=0.04)
    assert seen[1] == pytest.approx(1 / 6, abs=0.03) and seen[2] == pytest.approx(1 / 6 + 2 / 3 * by_chance, abs=0.03)


def test_the_chosen_voxel_lies_in_the_middle_of_its_patch(folder):
    volumes, slices = batches(folder, batch=1, patch=(3, 3, 3)), batches(folder, batch=1, dims=2, patch=(3, 3), slice_axis=0)
    middle = torch.stack([volumes.batch(step).mask[0, :, 1, 1, 1] for step in range(600)]).mean(0)
    assert middle[1] == pytest.approx(1 / 6, abs=0.05) and middle[2] == pytest.approx(1 / 6, abs=0.06)
    middle = torch.stack([slices.batch(step).mask[0, :, 1, 1] for step in range(600)]).mean(0)
    assert middle[1] == pytest.approx(1 / 4, abs=0.06) and middle[2] == pytest.approx(1 / 4, abs=0.07)


def test_half_of_the_slices_shows_foreground_at_least(folder):
    source = batches(folder, batch=1, dims=2, patch=(16, 16))
    hits = np.mean([float(source.batch(step).mask[0, 1:].sum() > 0) for step in range(600)])
    assert hits == pytest.approx(0.5 + 0.5 * 0.4, abs=0.06)  # 4 of 10 slices of each case hold a label


def test_patches_of_a_cropped_case_lie_in_its_middle(folder):
    source, whole = batches(folder, batch=5, crop=(6, 7, 20), patch=(4, 7, 10)), batches(folder, batch=5)
    corners = set()
    for step in range(30):
        batch = source.batch(step)
        for image, mask, case in zip(batch.image, batch.mask, batch.cases, strict=True):
            full = whole.whole(case)
            place = np.unravel_index(int((full.image[0] == image[0, 0, 0, 0]).flatten().nonzero()[0]), full.mask.shape)
            piece = tuple(slice(p, p + n) for p, n in zip(place, (4, 7, 10), strict=True))
            assert torch.equal(image, full.image[(slice(None), *piece)]) and torch.equal(mask.argmax(0), full.mask[piece])
            corners.add(place[0] - (full.mask.shape[0] - 6) // 2)
            assert place[1:] == ((14 - 7) // 2, 0)
    assert corners == {0, 1, 2}
    assert source.whole("case0").image.shape == (2, 6, 7, 10) and source.whole("case0").truth.shape == (12, 14, 10)


def test_rotations_of_a_cropped_case_turn_in_what_lies_around_it(folder):
    """The image is what a crop leaves plus a margin, not what it leaves on a ground of its lowest value."""
    source = batches(folder, cases=[0], batch=1, crop=(8, 8, 8), patch=(8, 8, 8), augmentation="mr")
    plain = batches(folder, cases=[0])
    prepared, whole = source._prepared("case0"), plain.whole("case0")
    assert prepared.image.shape == (2, 10, 10, 10) and prepared.start == (1, 1, 1) and prepared.size == (8, 8, 8)
    assert torch.equal(prepared.image.float(), whole.image[:, 1:11, 2:12, :])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_cropped_volume_come_from_its_middle(folder, axis):
    crop = tuple(3 if a == axis else 40 for a in range(3))
    source = batches(folder, cases=[0], batch=4, dims=2, patch=(20, 20), slice_axis=axis, crop=crop)
    whole = batches(folder, cases=[0], dims=2, patch=(20, 20), slice_axis=axis).whole("case0")
    middle, depth = slice_stack(whole.image, source.plan), whole.image.shape[1 + axis]
    h, w = middle.shape[2:]
    inside = (slice((20 - h) // 2, (20 - h) // 2 + h), slice((20 - w) // 2, (20 - w) // 2 + w))
    seen = {
        next(z for z in range(depth) if torch.equal(image[(slice(None), *inside)], middle[z]))
        for step in range(10)
        for image in source.batch(step).image
    }
    first = (depth - 3) // 2
    assert seen == {first, first + 1, first + 2}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("context", [0, 1, 2])
def test_slices_come_with_their_neighbours_channel_by_channel(axis, context):
    volume = torch.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    stack = slice_stack(volume, plan(dims=2, patch=(8, 8), slice_axis=axis, context=context))
    planes = volume.unbind(1 + axis)
    for z in range(len(planes)):
        near = [planes[min(max(z + offset, 0), len(planes) - 1)] for offset in range(-context, context + 1)]
        expected = [plane[channel] for channel in range(2) for plane in near]
        assert torch.equal(stack[z], torch.stack(expected))
    assert len(stack) == len(planes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_training_slices_are_those_that_a_prediction_sees(folder, axis):
    source = batches(folder, batch=2, dims=2, patch=(20, 20), slice_axis=axis, context=1)
    batch = source.batch(3)
    assert batch.image.shape == (2, 6, 20, 20) and batch.mask.shape == (2, 3, 20, 20)
    for image, mask, case in zip(batch.image, batch.mask, batch.cases, strict=True):
        whole = source.whole(case)
        stack, masks = slice_stack(whole.image, source.plan), whole.mask.movedim(axis, 0)
        h, w = stack.shape[2:]
        inside = (slice((20 - h) // 2, (20 - h) // 2 + h), slice((20 - w) // 2, (20 - w) // 2 + w))
        found = [z for z in range(len(stack)) if torch.equal(image[(slice(None), *inside)], stack[z])]
        assert len(found) == 1 and torch.equal(mask.argmax(0)[inside], masks[found[0]])


def test_whole_cases_come_as_in_the_file_and_on_the_grid(folder):
    source = batches(folder)
    whole = source.whole("case3")
    stored = np.asarray(nib.load(folder / "labelsTr" / "case3.nii.gz").dataobj)
    assert np.array_equal(whole.truth, stored)
    assert np.array_equal(whole.mask.numpy(), stored[::-1])  # the file is LAS, the grid RAS
    one_hot = torch.nn.functional.one_hot(whole.mask, 3).movedim(-1, 0)
    assert np.array_equal(to_native(one_hot.float(), whole.transform).argmax(0), stored)
    assert whole.native.shape == (15, 14, 10) and np.array_equal(to_native(whole.image, whole.transform), whole.native.data)
    assert source.whole("case3") is whole
    assert source.of(["case3"]).whole("case3") is whole


def test_memory_is_used_up_to_its_limit_and_not_beyond(folder):
    one = 2 * 2 * 12 * 14 * 10 + 12 * 14 * 10  # two channels of float16, and a mask
    source = batches(folder, cache_bytes=3 * one)
    for step in range(8):
        source.batch(step)
    assert 0 < source._cache.used <= 3 * one and 0 < len(source._cache.values) < 5


def test_waiting_is_measured_and_the_loader_leaves_the_threads_of_the_training_alone(folder):
    source, threads = batches(folder), torch.get_num_threads()
    quick = source.batch

    def late(*arguments):
        time.sleep(0.05)
        return quick(*arguments)

    source.batch = late
    for _ in source.iterate(0, 4):
        assert torch.get_num_threads() == threads
    assert 0.15 < source.waited <= source.total
    source.waited = source.total = 0.0
    for _ in source.iterate(0, 4):
        time.sleep(0.1)
    assert source.waited < 0.5 * source.total


def test_a_bad_case_is_named_also_from_the_thread(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    bad = tmp_path / "set" / "imagesTr" / "case2_0000.nii.gz"
    bad.write_bytes(bad.read_bytes()[:200])
    source = Batches(open_dataset(tmp_path / "set"), ["case2"], plan())
    for read in (lambda: source.batch(0), lambda: source.whole("case2"), lambda: list(source.iterate(0, 2))):
        with pytest.raises(UserError, match=r"case2_0000\.nii\.gz"):
            read()


def test_points_of_a_long_picture_do_not_wrap():
    mask = np.zeros((40000, 4), bool)
    mask[36000:36003, 2] = True
    np.testing.assert_array_equal(_points(mask, (0, 0), mask.shape), [[36000, 2], [36001, 2], [36002, 2]])
