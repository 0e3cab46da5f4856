"""A prediction that is made in blocks is the one that is made of whole arrays: those are written out here, in float64."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuseg import blocks, scratch
from diffuseg.data.transforms import content_digest, grid_transform, to_grid
from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.inference.fusion import best_overlap
from diffuseg.methods.tiles import Tiling, gaussian, windows
from diffuseg.types import Image
from tests.inference.oracle import make_model, make_plan

LABELS = {"background": 0, "organ": 3, "other": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(blocks, "VOXELS", 40)  # so that even the smallest image is many blocks
    monkeypatch.setattr(scratch, "IN_MEMORY", 100)  # and a file


def model_of(dims: int, resampled: bool):
    changes = {"orientation": None, "dims": 2, "patch": (8, 8)} if dims == 2 else {}
    spacing = ((0.7, 1.3) if dims == 2 else (0.7, 1.3, 1.0)) if resampled else None
    return make_model(noise=0.6, labels=LABELS, spacing=spacing, **changes)


def image_of(dims: int) -> Image:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 3, (3, 4, 3)[:dims])
    data = np.kron(coarse, np.ones((4, 3, 3)[:dims])) * 10.0
    affine = np.diag([-1.0, 1.0, 1.0, 1.0]) if dims == 3 else np.eye(4)  # the first axis is stored the other way round
    return Image(data[None].astype(np.float32), affine)


def back(maps: np.ndarray, image: Image, plan) -> np.ndarray:
    """Maps on the grid as whole arrays on the image's voxels."""
    transform = grid_transform(image, plan)
    x = torch.from_numpy(np.ascontiguousarray(maps))[None]
    if maps.shape[1:] != transform.oriented:
        x = F.interpolate(x, transform.oriented, mode="bilinear" if image.dims == 2 else "trilinear", align_corners=False)
    array = x[0].numpy()
    return array if image.dims == 2 else array[:, ::-1]


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(0)


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_that_of_whole_arrays(dims, resampled, draws):
    model, image = model_of(dims, resampled), image_of(dims)
    found = model.predict(image, draws=draws, keep_draws=True)
    stack = np.stack([draw.numpy() for draw in model.prepare(image, model.resolve(_options(draws))).draw()]).astype(np.float64)
    mean = stack.mean(0)
    probability = back(mean, image, model.plan)
    values = np.array(sorted(LABELS.values()))
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    np.testing.assert_array_equal(found.mask, values[probability.argmax(0)])
    expected = np.stack([entropy(p) for p in stack]).mean(0)
    for name, grid in {
        "entropy": entropy(mean),
        "expected_entropy": expected,
        "mutual_information": (entropy(mean) - expected).clip(0),
        "variance": stack.var(0).sum(0),
    }.items():
        np.testing.assert_allclose(found.uncertainty[name], back(grid[None], image, model.plan)[0], atol=2e-6, err_msg=name)
    np.testing.assert_array_equal(found.draws, [values[back(p, image, model.plan).argmax(0)] for p in stack])
    ml = {name: (found.mask == value).sum() / 1000 for name, value in LABELS.items() if value}
    assert found.provenance["volume_ml"] == pytest.approx(ml)
    doubt = [
        (2 * p[found.mask == v].sum() + 1) / ((found.mask == v).sum() + p.sum() + 1)
        for v, p in zip((3, 4), np.where(probability < 0.01, 0, probability)[1:], strict=True)
    ]
    assert found.provenance["uncertainty_score"] == pytest.approx(1 - np.mean(doubt), abs=2e-6)


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("fuse", ["vote", "dice"])
def test_so_are_the_masks_of_fusions(dims, resampled, fuse):
    model, image = model_of(dims, resampled), image_of(dims)
    found = model.predict(image, draws=5, fuse=fuse)
    stack = np.stack([draw.numpy() for draw in model.prepare(image, model.resolve(_options(5))).draw()])
    mean, hard = stack.mean(0), stack.argmax(1)
    votes = np.stack([(hard == k).sum(0) for k in range(3)])
    labels = (votes + 1e-3 * mean).argmax(0) if fuse == "vote" else best_overlap(hard, 3)
    shares = mean.copy()  # what the mean says, with the two classes exchanged
    most = mean.argmax(0)
    for place in np.ndindex(labels.shape):
        a, b = labels[place], most[place]
        shares[(a, *place)], shares[(b, *place)] = mean[(b, *place)], mean[(a, *place)]
    values = np.array(sorted(LABELS.values()))
    np.testing.assert_array_equal(found.mask, values[back(shares, image, model.plan).argmax(0)])


def test_without_the_kinds_of_uncertainty_all_else_is_the_same():
    model, image = model_of(3, True), image_of(3)
    whole, lean = (model.predict(image, draws=3, spread=spread) for spread in (True, False))
    assert set(lean.uncertainty) == {"entropy"} and len(whole.uncertainty) == 4
    np.testing.assert_array_equal(whole.uncertainty["entropy"], lean.uncertainty["entropy"])
    np.testing.assert_array_equal(whole.probability, lean.probability)
    assert {**whole.provenance, "seconds": 0} == {**lean.provenance, "seconds": 0}


def _options(draws: int):
    from diffuseg.inference.sampling import SamplingOptions

    return SamplingOptions(draws)


@pytest.mark.parametrize(
    "data",
    [
        np.arange(-7, 53, dtype=np.float32).reshape(1, 5, 3, 4) // 3,
        np.linspace(-1, 1, 60, dtype=np.float32).reshape(1, 5, 3, 4),
        np.stack([np.full((5, 4), 0.5), np.full((5, 4), -0.0)]).astype(np.float32),  # halves; minus zero is zero
        np.array([[0.5, 7.5, -1.5], [2.0, -0.0, 0.0]], np.float32)[None],
        np.array([[2.0**24, 2.0**24 + 2], [2.0**24 + 4, 2.0**24]], np.float32)[None],
        np.array([[0.0, 1e9], [3.0, 70000.0]], np.float32)[None],
        np.array([[200, 3], [3, 0]], np.uint8)[None],
        np.array([[-30000, 30000], [5, 5]], np.int16)[None],
    ],
)
def test_the_digest_is_that_of_all_values_sorted(data):
    image = Image(data)
    dims = image.dims
    plan = make_plan(dims=dims, orientation=None, channels=tuple("ab"[: len(data)]), normalisation=("zscore",) * len(data))
    transform = grid_transform(image, plan)
    values = np.sort(data.astype(np.float32).reshape(len(data), -1) + 0.0, axis=1)
    expected = hashlib.sha256(repr((values.shape, transform.grid)).encode() + values.tobytes()).hexdigest()
    assert content_digest(image, transform) == expected


@pytest.mark.parametrize("clip", [True, False])
def test_intensities_are_scaled_as_by_the_whole_image(clip):
    data = np.random.default_rng(2).gamma(2, 100, (1, 9, 8, 7)).astype(np.float32) * (np.indices((9, 8, 7))[0] > 2)
    plan = make_plan(normalisation=("zscore",), intensity=(), clip=clip)
    inside = data[data != 0]
    low, high = np.percentile(inside, (0.5, 99.5))
    clipped = inside.clip(low, high).astype(np.float64)
    whole = data.clip(low, high) if clip else data
    np.testing.assert_allclose(to_grid(Image(data), plan)[0], (whole - clipped.mean()) / clipped.std(), atol=1e-6)


@pytest.mark.parametrize("size", [(19, 14, 11), (8, 8, 8), (9, 30, 8)])
def test_rows_are_divided_by_the_weights_of_all_their_tiles(size):
    patch = (8, 8, 8)
    tiling = Tiling(torch.randn(1, *size), make_plan(patch=patch), encode=lambda x: x)
    answers = iter([torch.rand(1, 2, *patch, generator=torch.Generator().manual_seed(i)) for i in range(999)])
    found = tiling.denoise(lambda *_: ModelOutput(next(answers)), None, 0, None, 1).x_0
    total, weights = np.zeros((2, *size)), np.zeros(size)
    for i, window in enumerate(windows(size, patch, 0.5)):
        answer = torch.rand(1, 2, *patch, generator=torch.Generator().manual_seed(i))[0].double().numpy()
        total[(slice(None), *window)] += answer * gaussian(patch).double().numpy()
        weights[window] += gaussian(patch).double().numpy()
    np.testing.assert_allclose(found[0], total / weights, atol=1e-6)


@pytest.mark.parametrize(("again", "encoded"), [(False, 2), (True, 1)])
def test_features_of_a_tile_are_kept_only_for_another_time(again, encoded):
    calls = []
    tiling = Tiling(torch.randn(1, 19, 14, 11), make_plan(patch=(8, 8, 8)), lambda x: calls.append(1) or x, again)
    tiles = math.prod(math.ceil((n - 8) / 4) + 1 for n in (19, 14, 11))
    for _ in range(2):
        tiling.denoise(lambda tile, t, features, z: ModelOutput(features), None, 0, None, 1)
    assert len(calls) == encoded * tiles
