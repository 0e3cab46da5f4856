"""Images that are unlike those of a training are said to be, with figures; those that are like them are not."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from diffuseg.data.dataset import load_case, open_dataset
from diffuseg.data.plan import fingerprint, make_plan
from diffuseg.data.synthetic import make_dataset
from diffuseg.data.world import PART, _say, far_from_training, larger_than_training, outside_training, training_fingerprint


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Eight cases and a CT plan, ranges of the first six, and the last two to try."""
    folder = make_dataset(tmp_path_factory.mktemp("w") / "d", cases=8, shape=(20, 22, 18))
    for path in (folder / "imagesTr").iterdir():  # of one scale, as CT is
        image = nib.load(path)
        low, high = np.percentile(data := np.asarray(image.dataobj, np.float32), (1, 99))
        nib.save(nib.Nifti1Image(100 + 100 * (data - low) / (high - low), image.affine), path)
    dataset = open_dataset(folder)
    plan = make_plan(dataset, fingerprint(dataset))
    statistics = {"low": 0.0, "high": 2000.0, "mean": 500.0, "std": 200.0}
    plan = replace(plan, normalisation=("ct",) * len(plan.channels), intensity=(statistics,) * len(plan.channels))
    ranges = training_fingerprint(dataset, [case.id for case in dataset.cases[:6]], plan)
    return plan, ranges, [load_case(dataset, case) for case in dataset.cases[6:]]


def volumes(plan, image, mask):
    return {name: float((mask.data == value).sum()) * image.voxel_ml for name, value in plan.labels.items() if value}


def test_images_like_those_of_the_training_pass(known):
    plan, ranges, others = known
    for image, mask in others:
        assert outside_training(ranges, image, plan, volumes(plan, image, mask), mask.data[0]) == []
    assert outside_training(None, others[0][0], plan) == []


CHANGES = {
    "shifted": (lambda x: x + 4 * np.ptp(x), "percentile 50"),
    "zero to one": (lambda x: (x - x.min()) / np.ptp(x) / 1e3, "percentile"),
    "inverted": (lambda x: x.max() + x.min() - x, "level of"),
    "doubled": (lambda x: 4 * x, "percentile 99"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_intensities_are_named_with_figures(known, name):
    plan, ranges, ((image, mask), _) = known
    change, says = CHANGES[name]
    faults = outside_training(ranges, replace(image, data=change(image.data)), plan, None, mask.data[0])
    assert any(says in fault and "in training" in fault for fault in faults), faults


def test_other_spacing_extent_and_volumes_are_named(known):
    plan, ranges, ((image, mask), _) = known
    coarse = replace(image, affine=image.affine @ np.diag([3.0, 3, 3, 1]))
    faults = outside_training(ranges, coarse, plan, {name: 1e6 for name in volumes(plan, image, mask)})
    assert all(any(fault.startswith(kind) for fault in faults) for kind in ("spacing", "extent", "volume")), faults
    small = outside_training(ranges, image, plan, {name: 1e-6 for name in volumes(plan, image, mask)})
    assert any(fault.startswith("volume") for fault in small), small


def test_an_image_that_shows_far_more_says_what_to_do_and_one_that_shows_less_does_not(known):
    plan, ranges, ((image, _), _) = known
    whole = replace(image, data=np.tile(image.data, (1, 9, 9, 1)))
    large = larger_than_training(ranges, whole, plan)
    assert len(large) == 2 and large[1].endswith(f"({PART})") and "--region" in PART
    assert set(large) <= set(outside_training(ranges, whole, plan)), "the record says it too"
    less = outside_training(ranges, replace(image, data=image.data[:, ::1, :4]), plan)
    assert any(fault.startswith("extent") for fault in less) and not any(PART in fault for fault in less)
    assert larger_than_training(ranges, image, plan) == [] == larger_than_training(None, whole, plan)


def test_several_times_the_extent_and_other_units_are_far_and_twice_is_not(known):
    plan, ranges, ((image, _), _) = known
    sizes = lambda *times: replace(image, data=np.tile(image.data, (1, *times)))
    scaled = lambda by: replace(image, affine=image.affine @ np.diag([by, 1, by, 1]))
    lit = lambda by: replace(image, data=image.data + by * (image.data.max() - image.data.min()))
    slab = replace(image, data=image.data[..., :3])
    for near in (image, sizes(2, 1, 1), sizes(2, 2, 2), scaled(2.0), scaled(0.25), lit(1), slab):
        assert far_from_training(ranges, near, plan) == [], near
    thin = replace(image, affine=image.affine @ np.diag([0.1, 1, 1, 1]))
    for other, says in ((sizes(1, 9, 1), "extent"), (scaled(1000.0), "spacing"), (thin, "spacing"), (lit(9), "percentile")):
        far = far_from_training(ranges, other, plan)
        assert far and all(fault.startswith(says) or says == "spacing" for fault in far), far
        named = [fault.partition(" is ")[0] for fault in outside_training(ranges, other, plan)]
        assert {fault.partition(" is ")[0] for fault in far} <= set(named), "what is far is outside too"
    assert far_from_training(None, sizes(9, 9, 9), plan) == []


def test_of_a_picture_without_a_scale_sizes_are_pixels():
    assert _say("volume of lump in ml", 0.2, (0.01, 0.03), True) == "area of lump in pixels is 200, in training 10 to 30"
    assert (
        _say("extent of axis 0 in mm", 300.0, (64.0, 64.0), True) == "extent of axis 0 in pixels is 300, in training 64 to 64"
    )
    assert _say("volume of lump in ml", 0.2, (0.01, 0.03)) == "volume of lump in ml is 0.2, in training 0.01 to 0.03"
