"""Geometry: a voxel keeps its place in the world on the way to the grid, and comes back to where it was."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.data.plan import Plan
from diffuseg.data.transforms import argmax_maps, class_indices, maps_to_native, mask_to_grid, to_grid, to_native
from diffuseg.errors import UserError
from diffuseg.types import Image

LABELS = {"background": 0, "b": 5, "a": 2}
AS_IS = {"low": -1e6, "high": 1e6, "mean": 0.0, "std": 1.0}
TURNS = [(p, s) for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]


def plan(**changes):
    """A plan whose normalisation changes nothing, so that intensities tell where they came from."""
    settings = {"normalisation": ("ct",), "intensity": (AS_IS,), "spacing": (1.0, 1.5, 2.0)}
    return Plan("made", ("CT",), LABELS, ".nii.gz", **(settings | changes))


def affine_of(turn, spacing, oblique=0.0, origin=(10.0, -20.0, 30.0)):
    """Voxel -> world: file axis i points along world axis permutation[i], with that axis' spacing, turned by `oblique`."""
    permutation, signs = turn
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[permutation[axis], axis] = signs[axis] * spacing[permutation[axis]]
    c, s = np.cos(oblique), np.sin(oblique)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation @ matrix, origin
    return affine


def world(affine, shape):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return voxels @ affine[:3, : len(shape)].T + affine[:3, 3]


def one_hot(classes, k=3):
    return F.one_hot(classes, k).movedim(-1, 0).float()


@settings(max_examples=60, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    oblique=st.floats(-0.25, 0.25),
    seed=st.integers(0, 2**31),
)
def test_a_mask_comes_back_exactly_however_the_file_is_turned(turn, shape, oblique, seed):
    mask = np.random.default_rng(seed).choice([0, 2, 5], (1, *shape)).astype(np.int16)
    affine = affine_of(turn, (1.0, 1.5, 2.0), oblique)
    _, transform = to_grid(Image(mask.astype(np.float32), affine), plan())
    on_grid = mask_to_grid(Image(mask, affine), plan(), transform)
    back = to_native(one_hot(on_grid), transform)
    assert set(np.unique(back)) <= {0.0, 1.0}
    assert np.array_equal(np.array([0, 2, 5])[back.argmax(0)], mask[0])


@settings(max_examples=60, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    shape=st.tuples(*[st.integers(4, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    oblique=st.floats(-0.35, 0.35),
)
def test_every_grid_voxel_shows_what_lies_at_its_place_in_the_world(turn, shape, spacing, oblique):
    # A field that is linear in the world is interpolated exactly wherever there are voxels on both sides.
    affine, slope = affine_of(turn, spacing, oblique), np.array([1.0, 10.0, -3.0])
    x, transform = to_grid(Image((world(affine, shape) @ slope)[None].astype(np.float32), affine), plan())
    places = world(transform.grid_affine, x.shape[1:])
    native = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((native >= -1e-6) & (native <= np.array(shape) - 1 + 1e-6)).all(-1)
    assert inside.any() or min(x.shape[1:]) < 2
    np.testing.assert_allclose(x[0].numpy()[inside], (places @ slope)[inside], atol=5e-3)


def test_the_grid_has_the_orientation_and_the_spacing_of_the_plan():
    affine = affine_of(((1, 2, 0), (-1, 1, -1)), (0.5, 3.0, 1.0))
    x, transform = to_grid(Image(np.zeros((1, 20, 40, 60), np.float32), affine), plan(spacing=(1.0, 1.5, 2.0)))
    assert tuple(x.shape[1:]) == (30, 40, 20)  # 60 * 0.5 / 1, 20 * 3 / 1.5, 40 * 1 / 2
    np.testing.assert_allclose(transform.grid_affine[:3, :3], np.diag([1.0, 1.5, 2.0]), atol=1e-12)


def test_a_spacing_that_no_memory_holds_is_refused_before_it_is_tried():
    with pytest.raises(UserError, match=r"10000 x 10000 x 10000 voxels at the plan's spacing, of 10 x 10 x 10"):
        to_grid(Image(np.zeros((1, 10, 10, 10), np.float32), np.eye(4)), plan(spacing=(0.001, 0.001, 0.001)))


# A crop about the middle


@settings(max_examples=60, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    crop=st.tuples(*[st.integers(1, 10)] * 3),
    spacing=st.sampled_from([(1.0, 1.5, 2.0), (1.3, 1.0, 2.9)]),
    oblique=st.floats(-0.25, 0.25),
)
def test_a_crop_is_the_middle_of_the_grid_and_keeps_its_place_in_the_world(turn, shape, crop, spacing, oblique):
    affine, slope = affine_of(turn, spacing, oblique), np.array([1.0, 10.0, -3.0])
    image = Image((world(affine, shape) @ slope)[None].astype(np.float32), affine)
    mask = Image(np.random.default_rng(sum(shape)).choice([0, 2, 5], (1, *shape)).astype(np.int16), affine)
    whole, everything = to_grid(image, plan())
    x, transform = to_grid(image, plan(crop=crop))
    n, kept = np.array(whole.shape[1:]), np.minimum(crop, whole.shape[1:])
    assert tuple(x.shape[1:]) == transform.kept == tuple(kept)
    start = (n - kept) // 2
    assert (np.abs(2 * start + kept - n) <= 1).all()  # as much on one side as on the other
    window = tuple(slice(a, a + k) for a, k in zip(start, kept, strict=True))
    assert torch.equal(x, whole[(slice(None), *window)])
    assert torch.equal(mask_to_grid(mask, plan(crop=crop), transform), mask_to_grid(mask, plan(), everything)[window])
    places = world(everything.grid_affine, whole.shape[1:])[window]
    np.testing.assert_allclose(world(transform.grid_affine, transform.kept), places, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(turn=st.sampled_from(TURNS), shape=st.tuples(*[st.integers(2, 7)] * 3), crop=st.tuples(*[st.integers(1, 7)] * 3))
def test_what_a_crop_leaves_out_comes_back_as_certain_background(turn, shape, crop):
    affine = affine_of(turn, (1.0, 1.5, 2.0))
    x, transform = to_grid(Image(np.zeros((1, *shape), np.float32), affine), plan(crop=crop))
    p = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(0)).softmax(0)
    back, entropy = to_native(p, transform), maps_to_native(torch.ones(2, *x.shape[1:]), transform)
    inside = entropy[1] == 1
    assert inside.sum() == x[0].numel() and back.shape == (3, *shape) and np.array_equal(entropy[0], entropy[1])
    assert (back[0][~inside] == 1).all() and (back[1:, ~inside] == 0).all() and (entropy[:, ~inside] == 0).all()
    assert sorted(back[:, inside].ravel()) == sorted(p.flatten().tolist())
    again, _ = to_grid(Image(back[1:2], affine), plan(crop=crop))
    assert torch.equal(again[0], p[1])


def test_a_cropped_and_resampled_probability_still_sums_to_one():
    x, transform = to_grid(Image(np.zeros((1, 11, 12, 13), np.float32)), plan(spacing=(1.7, 0.8, 2.0), crop=(4, 20, 3)))
    p = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(0)).softmax(0)
    back = to_native(p, transform)
    np.testing.assert_allclose(back.sum(0), 1, atol=1e-5)
    assert back[0, 0].min() == 1 and back[0].min() < 0.9


def test_turning_agrees_with_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    for turn in TURNS:
        affine = affine_of(turn, (1.0, 1.0, 1.0), oblique=0.1)
        x, transform = to_grid(Image(data[None], affine), plan(spacing=None))
        lps = np.diag([-1, -1, 1, 1]) @ affine
        image = sitk.GetImageFromArray(data.T)
        image.SetDirection(lps[:3, :3].ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        turned = sitk.DICOMOrient(image, "RAS")
        assert np.array_equal(sitk.GetArrayFromImage(turned).T, x[0].numpy())
        origin = np.array(turned.GetOrigin()) * (-1, -1, 1)
        np.testing.assert_allclose(origin, transform.grid_affine[:3, 3], atol=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 2.2, 1.4), (2.0, 0.8, 0.9)])
def test_smooth_shapes_survive_resampling_there_and_back(spacing):
    affine = affine_of(((2, 0, 1), (1, -1, -1)), spacing)
    places = world(affine, (40, 40, 40))
    middle = places.reshape(-1, 3).mean(0)
    size = 40 * np.array(spacing)
    ball = ((((places - middle) / size) ** 2).sum(-1) < 0.3**2).astype(np.int16) * 2
    ball[(((places - middle - 0.25 * size) / size) ** 2).sum(-1) < 0.15**2] = 5
    coarse = plan(spacing=(1.1, 1.3, 1.2))
    _, transform = to_grid(Image(ball[None].astype(np.float32), affine), coarse)
    back = to_native(one_hot(mask_to_grid(Image(ball[None], affine), coarse, transform)), transform).argmax(0)
    for k, value in ((1, 2), (2, 5)):
        a, b = back == k, ball == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > (0.97 if k == 1 else 0.93)


@pytest.mark.parametrize("wished", [(1.0, 1.0, 1.0), (2.0, 1.0, 3.0), (0.5, 0.8, 0.7)])
def test_a_landmark_stays_within_half_a_voxel(wished):
    affine = affine_of(((1, 0, 2), (-1, 1, -1)), (1.0, 1.5, 2.0), oblique=0.2)
    places = world(affine, (24, 20, 16))
    landmark = places[13, 8, 9]
    bright = np.exp(-((places - landmark) ** 2).sum(-1) / (2 * 3.0**2)).astype(np.float32)
    x, transform = to_grid(Image(bright[None], affine), plan(spacing=wished))
    centre = (world(transform.grid_affine, x.shape[1:]) * x[0].numpy()[..., None]).sum((0, 1, 2)) / float(x.sum())
    assert np.linalg.norm(centre - landmark) < 0.5 * min(wished)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 12)] * 3), spacing=st.tuples(*[st.floats(0.5, 3)] * 3), seed=st.integers(0, 99))
def test_probabilities_stay_probabilities_on_the_way_back(shape, spacing, seed):
    affine = affine_of(((1, 2, 0), (1, -1, 1)), spacing)
    x, transform = to_grid(Image(np.zeros((1, *shape), np.float32), affine), plan())
    p = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(seed)).softmax(0)
    back = to_native(p, transform)
    assert back.shape == (3, *shape) and back.dtype == np.float32
    assert back.min() >= 0
    np.testing.assert_allclose(back.sum(0), 1, atol=1e-5)


def test_a_single_slice_stays_single_whatever_its_thickness():
    affine = affine_of(((0, 1, 2), (1, 1, 1)), (1.0, 1.5, 8.0))
    x, _ = to_grid(Image(np.zeros((1, 6, 7, 1), np.float32), affine), plan())
    assert tuple(x.shape) == (1, 6, 7, 1)


def test_spacing_that_differs_only_by_rounding_is_not_resampled():
    noise = np.random.default_rng(0).normal(size=(1, 1200, 3, 3)).astype(np.float32)
    for width, length in ((1.0005, 1200), (1.002, 1202)):
        affine = affine_of(((0, 1, 2), (1, 1, 1)), (width, 1.4995, 2.0))
        x, _ = to_grid(Image(noise, affine), plan())
        assert x.shape[1] == length
        assert np.array_equal(x.numpy(), noise) == (length == 1200)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 5), seed=st.integers(0, 999))
def test_the_largest_share_wins_and_the_first_of_equals(k, seed):
    shares = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (k, 4, 5)).astype(np.float32))
    assert np.array_equal(argmax_maps(shares).numpy(), shares.numpy().argmax(0))


# Pictures


def test_pictures_stay_as_they_are():
    picture = np.random.default_rng(0).integers(0, 256, (3, 7, 5)).astype(np.float32)
    colour = Plan("made", ("R", "G", "B"), LABELS, ".png", dims=2, orientation=None, patch=(16, 16),
                  normalisation=("unit",) * 3, intensity=({"low": 0.0, "high": 255.0},) * 3)  # fmt: skip
    x, transform = to_grid(Image(picture), colour)
    np.testing.assert_allclose(x.numpy(), picture / 127.5 - 1, atol=1e-6)
    assert np.array_equal(to_native(x, transform), x.numpy())
    mask = np.random.default_rng(1).choice([0, 2, 5], (1, 7, 5))
    assert np.array_equal(mask_to_grid(Image(mask), colour, transform).numpy(), np.searchsorted([0, 2, 5], mask[0]))


def test_slices_from_nifti_files_can_be_resampled():
    affine = np.diag([0.5, 2.0, 1.0, 1.0])
    flat = plan(dims=2, orientation=None, patch=(16, 16), spacing=(1.0, 1.0))
    slopes = (world(affine, (12, 6)) @ np.array([1.0, 1.0, 0.0])).astype(np.float32)
    x, transform = to_grid(Image(slopes[None], affine), flat)
    assert tuple(x.shape) == (1, 6, 12)
    np.testing.assert_allclose(
        x[0, 1:-1, 1:-1], (world(transform.grid_affine, (6, 12))[..., :2].sum(-1))[1:-1, 1:-1], atol=1e-5
    )
    assert to_native(x, transform).shape == (1, 12, 6)


# Intensities


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 999))
def test_zscore_does_not_see_the_scale_of_intensities(scale, seed):
    noise = np.random.default_rng(seed).gamma(3.0, size=(1, 8, 8, 8)).astype(np.float32)
    by_volume = plan(normalisation=("zscore",), intensity=({},), spacing=None)
    one, _ = to_grid(Image(noise), by_volume)
    other, _ = to_grid(Image((noise * scale).astype(np.float32)), by_volume)
    assert abs(float(one.mean())) < 1e-4 and float(one.std(correction=0)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_zscore_is_robust_to_a_glaring_voxel_and_to_what_was_cut_away():
    by_volume = plan(normalisation=("zscore",), intensity=({},), spacing=None)
    tissue = np.random.default_rng(0).normal(100, 10, (1, 10, 10, 10)).astype(np.float32)
    expected, _ = to_grid(Image(tissue), by_volume)
    glaring = tissue.copy()
    glaring[0, 0, 0, 0] = 1.7e6
    np.testing.assert_allclose(to_grid(Image(glaring), by_volume)[0].numpy()[0, 1:], expected.numpy()[0, 1:], atol=0.1)
    cut = np.zeros((1, 20, 10, 10), np.float32)
    cut[:, :10] = tissue
    np.testing.assert_allclose(to_grid(Image(cut), by_volume)[0].numpy()[:, :10], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_image_becomes_zero(value):
    by_volume = plan(normalisation=("zscore",), intensity=({},), spacing=None)
    x, _ = to_grid(Image(np.full((1, 5, 5, 5), value, np.float32)), by_volume)
    assert (x == 0).all()


def test_ct_is_clipped_and_scaled_by_the_numbers_of_the_data_set():
    ct = plan(intensity=({"low": -100.0, "high": 300.0, "mean": 50.0, "std": 20.0},), spacing=None)
    values = np.array([-1000.0, -100.0, 50.0, 70.0, 2000.0], np.float32).reshape(1, 5, 1, 1)
    x, _ = to_grid(Image(values), ct)
    np.testing.assert_allclose(x.flatten(), [-7.5, -7.5, 0, 1, 12.5])


# What is refused


def test_labels_become_class_indices_by_rising_value_and_others_are_refused():
    assert class_indices(Image(np.array([[[0, 5], [2, 2]]])), plan()).tolist() == [[0, 2], [1, 1]]
    for stranger in (1, 6, -1):
        with pytest.raises(UserError, match=f"label value {stranger} "):
            class_indices(Image(np.array([[[0, stranger]]])), plan())


def test_images_of_another_kind_are_refused():
    with pytest.raises(UserError, match=r"plan is for volumes\. Give volumes"):
        to_grid(Image(np.zeros((1, 4, 4), np.float32)), plan())
    with pytest.raises(UserError, match=r"2 channels, but the plan has 1 \(.*\)\. Give images with these channels"):
        to_grid(Image(np.zeros((2, 4, 4, 4), np.float32)), plan())
    with pytest.raises(UserError, match=r"spacing for 2\. Give images"):
        to_grid(Image(np.zeros((1, 4, 4, 4), np.float32)), plan(dims=2, orientation=None, spacing=(1.0, 1.0)))
    with pytest.raises(UserError, match=r"crop of 2\. Give images"):
        to_grid(Image(np.zeros((1, 4, 4, 4), np.float32)), plan(dims=2, spacing=None, crop=(2, 2)))


@pytest.mark.parametrize("size", [0.001, 0.01])
def test_an_image_of_which_next_to_nothing_is_left_is_refused(size):
    tiny = Image(np.zeros((1, 16, 16, 16), np.float32), np.diag([size, size, size, 1]))
    with pytest.raises(UserError, match="next to nothing"):
        to_grid(tiny, plan(normalisation=("zscore",), spacing=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("how", ["zscore", "ct"])
def test_without_clipping_a_hot_spot_is_kept(how):
    data = np.random.default_rng(0).normal(100, 5, (1, 20, 20, 20)).astype(np.float32)
    data[0, 3, 3, 3], data[0, 5, 5, 5] = 1000, 2000
    numbers = ({"low": 90.0, "high": 110.0, "mean": 100.0, "std": 5.0},)
    made = lambda clip: plan(normalisation=(how,), intensity=numbers, spacing=None, clip=clip)
    cut, kept = (to_grid(Image(data), made(clip))[0][0] for clip in (True, False))
    assert cut[3, 3, 3] == cut[5, 5, 5] < 5 and kept[5, 5, 5] > 1.9 * kept[3, 3, 3] > 100
