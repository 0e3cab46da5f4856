"""Augmentation moves image and mask together, in mm, and changes nothing that the plan does not allow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuseg.data import augment as module
from diffuseg.data.augment import CHANGES, DEGREES, INTENSITY, augment
from diffuseg.data.plan import Plan

PLAN = Plan("made", ("MR",), {"background": 0, "a": 1, "b": 2}, ".nii.gz", patch=(20, 24, 16), spacing=(1.0, 1.0, 2.5))
FLAT = replace(PLAN, dims=2, patch=(24, 24), orientation=None, spacing=None)
KINDS = list(DEGREES)


def only_geometry(monkeypatch, affine=1.0):
    monkeypatch.setattr(module, "AFFINE", affine)
    monkeypatch.setattr(module, "INTENSITY", dict.fromkeys(INTENSITY, ()))


def coordinates(shape):
    """One channel per axis: the distance from the middle, in voxels."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def background(shape, k=3):
    mask = torch.zeros(k, *shape)
    mask[0] = 1
    return mask


def fitted(image, region):
    """The affine map from patch voxels to region voxels that the coordinate channels tell, and its largest error."""
    inside = (image.abs() < (torch.tensor(region).reshape(-1, *[1] * len(region)) - 1) / 2 - 1e-3).all(0)
    source = coordinates(image.shape[1:])[:, inside].T.double()
    design = torch.cat([source, torch.ones(len(source), 1)], 1)
    target = image[:, inside].T.double()
    solution = torch.linalg.lstsq(design, target).solution
    return solution[:-1].T.numpy(), solution[-1].numpy(), float((design @ solution - target).abs().max())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_geometry_is_a_rotation_and_a_zoom_in_millimetres(monkeypatch, seed, kind):
    only_geometry(monkeypatch)
    plan, region = replace(PLAN, augmentation=kind), (30, 32, 24)
    image, _ = augment(coordinates(region), background(region), plan, np.random.default_rng(seed))
    voxels, shift, error = fitted(image, region)
    assert error < 1e-3
    spacing = np.array(plan.spacing)
    millimetres = voxels * spacing[:, None] / spacing[None]
    zoom = np.linalg.svd(millimetres)[1]
    assert (zoom > 1 / (1.2 * 1.05) - 1e-3).all() and (zoom < 1 / (0.85 * 0.95) + 1e-3).all()
    rotation = np.linalg.svd(millimetres)[0] @ np.linalg.svd(millimetres)[2]
    assert np.linalg.det(rotation) == pytest.approx(1)  # turned, never mirrored
    assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) < 30
    assert (np.abs(shift) <= 0.05 * np.array(plan.patch) + 1e-3).all()


def test_there_is_a_rotation_about_every_axis_at_all(monkeypatch):
    only_geometry(monkeypatch)
    image, _ = augment(coordinates((30, 32, 24)), background((30, 32, 24)), PLAN, np.random.default_rng(1))
    voxels = fitted(image, (30, 32, 24))[0]
    assert (np.abs(voxels[~np.eye(3, dtype=bool)]) > 1e-3).all()


def test_thick_slices_are_only_turned_within_their_planes(monkeypatch):
    only_geometry(monkeypatch)
    thick = replace(PLAN, spacing=(1.0, 1.0, 3.5))
    for seed in range(5):
        image, _ = augment(coordinates((30, 32, 24)), background((30, 32, 24)), thick, np.random.default_rng(seed))
        voxels = fitted(image, (30, 32, 24))[0]
        assert np.abs(voxels[2, :2]).max() < 1e-4 and np.abs(voxels[:2, 2]).max() < 1e-4
        assert abs(voxels[0, 1]) > 1e-4


def test_image_and_mask_move_together(monkeypatch):
    only_geometry(monkeypatch)
    region, middle = (50, 54, 46), torch.tensor([8.0, -10, 4]).reshape(3, 1, 1, 1)
    place = coordinates(region)
    distance = torch.stack([((place - middle) ** 2).sum(0).sqrt(), ((place + middle) ** 2).sum(0).sqrt()])
    one, two = distance[0] < 10, distance[1] < 8  # they do not touch
    mask = torch.stack([~one & ~two, one, two]).float()
    plan = replace(PLAN, flips=(0, 1, 2), spacing=(1.0, 1.0, 1.0), patch=(44, 46, 40))
    for seed in range(10):
        x, m = augment(distance, mask, plan, np.random.default_rng(seed))
        assert torch.equal(m.sum(0), torch.ones(plan.patch)) and set(m.unique().tolist()) <= {0.0, 1.0}
        for a, b in ((m[1] > 0.5, x[0] < 10), (m[2] > 0.5, x[1] < 8)):
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


@pytest.mark.parametrize("flips", [(), (1,), (0, 1, 2)])
def test_mirrors_only_along_the_axes_of_the_plan(monkeypatch, flips):
    only_geometry(monkeypatch, affine=0.0)
    plan, image = replace(PLAN, flips=flips), coordinates(PLAN.patch)
    seen = set()
    for seed in range(80):
        x, _ = augment(image, background(PLAN.patch), plan, np.random.default_rng(seed))
        signs = tuple(int(torch.sign(x[axis].select(axis, -1).mean())) for axis in range(3))
        assert torch.equal(x, image * torch.tensor(signs).reshape(3, 1, 1, 1))
        seen.add(signs)
    allowed = [(1, -1) if axis in flips else (1,) for axis in range(3)]
    assert seen == {(a, b, c) for a in allowed[0] for b in allowed[1] for c in allowed[2]}


def test_pictures_without_up_and_left_are_seen_in_all_eight_positions(monkeypatch):
    only_geometry(monkeypatch, affine=0.0)
    picture = torch.arange(9.0).reshape(1, 3, 3)
    plan, seen = replace(FLAT, patch=(3, 3), flips=(0, 1)), set()
    for seed in range(100):
        x, m = augment(
            picture, torch.cat([1 - (picture == 1).float(), (picture == 1).float()]), plan, np.random.default_rng(seed)
        )
        assert torch.equal(m[1:], (x == 1).float())
        seen.add(tuple(x.flatten().tolist()))
    assert len(seen) == 8


def test_none_is_the_middle_of_the_region():
    image = torch.randn(1, 24, 28, 18)
    x, m = augment(image, background(image.shape[1:]), replace(PLAN, augmentation="none"), np.random.default_rng(0))
    assert torch.equal(x, image[:, 2:22, 2:26, 1:17]) and m.shape == (3, *PLAN.patch)


def test_flips_are_mirrors_and_nothing_else():
    image, plan = torch.randn(1, *PLAN.patch), replace(PLAN, augmentation="flips", flips=(2,))
    seen = {augment(image, image[:0], plan, np.random.default_rng(seed))[0].numpy().tobytes() for seed in range(20)}
    assert seen == {image.numpy().tobytes(), image.flip(3).contiguous().numpy().tobytes()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_patch_and_another_one_does_not(kind):
    region = (26, 30, 20)
    image, plan = torch.randn(2, *region), replace(PLAN, augmentation=kind)
    one, two, three = (augment(image, background(region), plan, np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 16, 16)])
def test_changes_of_intensity_are_finite_moderate_and_never_in_place(change, shape):
    waves = torch.stack([torch.sin(coordinates(shape[1:]).sum(0) / (3 + c)) for c in range(shape[0])])
    image = waves + 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    for seed in range(10):
        x = change(image, np.random.default_rng(seed))
        assert torch.equal(image, before)
        assert x.shape == image.shape and x.dtype == torch.float32 and torch.isfinite(x).all()
        assert torch.corrcoef(torch.stack([x.flatten(), image.flatten()]))[0, 1] > 0.9
        assert not torch.equal(x, image)
    assert torch.isfinite(change(torch.zeros(shape), np.random.default_rng(0))).all()


def test_unit_pictures_stay_within_their_range():
    plan = replace(FLAT, normalisation=("unit",), intensity=({"low": 0.0, "high": 255.0},), augmentation="colour")
    image = torch.rand(1, 30, 30) * 2 - 1
    for seed in range(20):
        x, _ = augment(image, background((30, 30)), plan, np.random.default_rng(seed))
        assert x.min() >= -1 and x.max() <= 1
