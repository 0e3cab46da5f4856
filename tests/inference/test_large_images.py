"""An image that memory is not to hold is segmented as any other: the same files, draw for draw."""

import json

import numpy as np
import pytest
import torch

from benchmarks.memory import model
from diffuseg import blocks, scratch
from diffuseg.data.io import read_planes, write
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import base
from diffuseg.methods.tiles import Tiling
from diffuseg.types import Image
from tests.inference.oracle import make_plan


def images(folder, dims):
    """A box in noise, as a file."""
    data = np.random.default_rng(0).integers(0, 100, (40, 33, 20)[:dims], np.uint8)
    data[tuple(slice(n // 4, n // 2) for n in data.shape)] += 100
    path = folder / f"case{'.tif' if dims == 2 else '.nii.gz'}"
    affine = np.eye(4) if dims == 2 else np.diag([-1.0, 1, 1.2, 1])
    write(path, data, Image(data[None], affine))
    return path


def results(folder, case, dims, options, resampled):
    predict_folder(model(dims, resampled, patch=(16, 16, 16)[:dims]), [case], folder, options)
    found = {path.name: read_planes(path).data for path in folder.iterdir() if path.suffix not in (".json", ".png")}
    record = json.loads((folder / "case.json").read_text())
    return found, {key: value for key, value in record.items() if key != "seconds"}


@pytest.mark.parametrize(
    ("dims", "resampled", "options"),
    [
        (2, False, SamplingOptions(3, 2)),
        (2, True, SamplingOptions(2, 1, fuse="vote")),
        (3, False, SamplingOptions(2, 3, keep_draws=True, keep_steps=True)),
        (3, True, SamplingOptions(2, 2, "ddim")),
        (3, False, SamplingOptions(1, 4, "dpm-solver++(2m)")),
    ],
)
def test_files_are_the_same(tmp_path, monkeypatch, dims, resampled, options):
    case = images(tmp_path, dims)
    whole, record = results(tmp_path / "whole", case, dims, options, resampled)
    monkeypatch.setattr(scratch, "IN_MEMORY", 1000)
    monkeypatch.setattr(blocks, "VOXELS", 300)
    monkeypatch.setattr(base, "NOISE", 160)
    found, again = results(tmp_path / "parts", case, dims, options, resampled)
    assert found.keys() == whole.keys()
    for name, planes in whole.items():
        assert found[name].dtype == planes.dtype
        if resampled:
            np.testing.assert_allclose(found[name].astype(float), planes.astype(float), atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], planes, err_msg=name)
    assert again["seeds"] == record["seeds"]
    assert again["volume_ml"] == pytest.approx(record["volume_ml"])
    if not resampled:
        assert again == record


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_cut_from_the_volume_as_from_a_stack_of_all(axis):
    from diffuseg.data.batches import slice_stack

    plan = make_plan(dims=2, patch=(8, 16), slice_axis=axis, context=1)
    image, seen = torch.randn(1, 12, 11, 10), []
    tiling = Tiling(image, plan, lambda x: seen.append(x) or x)
    tiling.denoise(lambda tile, t, features, z: base.ModelOutput(features[:, :1]), None, 0, None, 1)
    stack = slice_stack(image, plan)
    missing = [max(p - n, 0) for p, n in zip(plan.patch, stack.shape[2:], strict=True)]
    padding = [v for m in reversed(missing) for v in (m // 2, m - m // 2)]
    padded = torch.nn.functional.pad(stack, padding, value=float(stack.min()))
    assert len(seen) == len(tiling.windows)
    for window, tile in zip(tiling.windows, seen, strict=True):
        assert torch.equal(tile, padded[(slice(None), slice(None), *window)])
