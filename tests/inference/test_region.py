"""`--region`: a part of an image is segmented, on the grid of the whole, and nothing is said of the rest."""

import json

import numpy as np
import pytest
import torch

from diffuseg.checkpoint import save_checkpoint
from diffuseg.data.io import read_image, write
from diffuseg.data.region import box_of, cut, region_name
from diffuseg.data.transforms import to_grid, to_native
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.types import Image
from tests.inference.oracle import make_model, make_plan
from tests.test_cli import call, refused

SHAPE = (9, 8, 7)
TURNED = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, -1.0, 9], [0, 0, 0, 1]])  # axes swapped, two of them flipped


def scan(affine=None) -> Image:
    mask = np.random.default_rng(0).integers(0, 2, SHAPE)
    return Image(10.0 * mask[None].astype(np.float32), np.eye(4) if affine is None else affine)


def outside(box) -> np.ndarray:
    found = np.ones(SHAPE, bool)
    found[box] = False
    return found


@pytest.mark.parametrize("affine", [None, TURNED])
@pytest.mark.parametrize("spacing", [None, (1.2, 0.8, 1.7)])
def test_the_whole_image_as_region_is_the_plain_prediction(affine, spacing):
    model, image = make_model(noise=0.4, spacing=spacing), scan(affine)
    plain = model.predict(image, draws=2, keep_draws=True)
    for region in (":,:,:", "0:9,0:8,0:7"):
        part = model.predict(image, draws=2, keep_draws=True, region=region)
        for name in ("mask", "probability", "draws", "entropy", "variance"):
            assert np.array_equal(plain.values(name), part.values(name)), name
        assert part.provenance["region"] == [[0, 9], [0, 8], [0, 7]] and "region" not in plain.provenance
        assert part.provenance["volume_ml_90"] == plain.provenance["volume_ml_90"]


@pytest.mark.parametrize("affine", [None, TURNED])
def test_inside_is_what_the_model_says_of_it_and_outside_is_nothing(affine):
    """The oracle looks at single voxels, so inside a box it says what it says of the whole; axes are those of the file."""
    image, box = scan(affine), (slice(2, 6), slice(0, 5), slice(3, 7))
    model = make_model()
    plain = model.predict(image, draws=2)
    part = model.predict(image, draws=2, region="2:6,:5,3:", keep_draws=True, keep_steps=True)
    rest = outside(box)
    assert part.mask.shape == SHAPE and np.array_equal(part.mask[box], plain.mask[box]) and part.mask[box].any()
    assert np.array_equal(part.probability[(slice(None), *box)], plain.probability[(slice(None), *box)])
    assert not part.mask[rest].any() and (part.probability[0][rest] == 1).all() and not part.probability[1][rest].any()
    assert not part.draws[:, rest].any() and not part.steps[:, rest].any() and part.steps.any()
    assert not any(values[rest].any() for values in part.uncertainty.values())
    record = part.provenance
    assert record["region"] == [[2, 6], [0, 5], [3, 7]] and record["options"]["region"] == "2:6,:5,3:"
    assert record["grid"]["shape"] != plain.provenance["grid"]["shape"] and np.prod(record["grid"]["shape"]) == 4 * 5 * 4
    ml = (plain.mask[box] > 0).sum() * image.voxel_ml
    assert record["volume_ml"]["organ"] == pytest.approx(ml) and record["volume_ml_90"]["organ"] == pytest.approx([ml, ml])


def test_the_part_of_a_resampled_grid_lies_where_it_does_in_the_whole():
    """The grid's own values, brought back: within the box they are those of the whole grid to the last bit."""
    image = scan(TURNED)
    plan = make_plan(spacing=(1.1, 0.7, 1.6))
    x, transform = to_grid(image, plan)
    box = (slice(3, 6), slice(2, 6), slice(1, 5))
    part, narrow = cut(x, transform, box)
    assert part.numel() < x.numel() and narrow.grid == transform.grid
    whole, back = (to_native(torch.cat([grid, grid]), way) for grid, way in ((x, transform), (part, narrow)))
    assert np.allclose(whole[(slice(None), *box)], back[(slice(None), *box)], atol=1e-5)
    assert (back[0][outside(box)] == 1).all() and not back[1][outside(box)].any()
    corner = narrow.grid_affine @ [0, 0, 0, 1]
    assert np.allclose(corner, transform.grid_affine @ [*(np.array(narrow.start) - transform.start), 1])


def test_round_a_mask_there_is_half_a_patch_within_the_image(tmp_path):
    marked = np.zeros(SHAPE, np.uint8)
    marked[4:6, 1:3, 3] = 2
    write(tmp_path / "mask.nii.gz", marked, Image(marked[None]))
    image, text = scan(), str(tmp_path / "mask.nii.gz")
    plan = make_plan(patch=(4, 2, 3))
    assert box_of(text, image, plan, to_grid(image, plan)[1]) == (slice(2, 8), slice(0, 4), slice(1, 6))
    flat = make_plan(dims=2, patch=(4, 2), context=1)  # slices along the last axis, each seen with its neighbours
    assert box_of(text, image, flat, to_grid(image, flat)[1]) == (slice(2, 8), slice(0, 4), slice(2, 5))
    fine = make_plan(patch=(4, 2, 3), spacing=(0.5, 1.0, 1.0))  # half a patch is one voxel of the file
    assert box_of(text, image, fine, to_grid(image, fine)[1])[0] == slice(3, 7)
    name = region_name(text)
    write(tmp_path / "mask.nii.gz", 1 - marked // 2, Image(marked[None]))
    assert name.startswith("mask.nii.gz ") and region_name(text) != name  # another mask of this name is another region


def test_what_is_no_region_is_refused_with_the_reason(tmp_path):
    model, image, empty = make_model(), scan(), np.zeros(SHAPE, np.uint8)
    write(tmp_path / "empty.nii.gz", empty, Image(empty[None]))
    write(tmp_path / "other.nii.gz", empty[1:] + 1, Image(empty[None, 1:]))
    refusals = {
        "1:2,3:4": "2 axes, the image has 3",
        "4:4,:,:": "no part of an image of 9 x 8 x 7",
        ":,:,6:8": "no part of an image",
        "-1:2,:,:": "neither a box nor a file",
        "nowhere.nii.gz": "neither a box nor a file",
        str(tmp_path / "empty.nii.gz"): "no foreground",
        str(tmp_path / "other.nii.gz"): "not on the grid",
    }
    for region, reason in refusals.items():
        with pytest.raises(UserError, match=reason):
            model.predict(image, region=region)
    with pytest.raises(UserError, match="the middle of an image only"):
        make_model(crop=(3, 3, 3)).predict(image, region="0:2,:,:")


def test_from_the_command_to_the_file(tmp_path):
    write(tmp_path / "a.nii.gz", scan().data[0], scan())
    plan = make_plan(patch=(8, 8, 8), widths=(4, 4))
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "best.safetensors", METHODS["unet"](plan, METHODS["unet"].config_class()), {})
    arguments = ("predict", tmp_path / "best.safetensors", tmp_path / "a.nii.gz", "--out", tmp_path / "out")
    done = call(*arguments, "--region", "2:8,1:7,0:5")
    assert done.exit_code == 0, done.output
    mask, record = read_image([tmp_path / "out" / "a.nii.gz"]).data[0], json.loads((tmp_path / "out" / "a.json").read_text())
    assert mask.shape == SHAPE and not mask[outside((slice(2, 8), slice(1, 7), slice(0, 5)))].any()
    assert record["region"] == [[2, 8], [1, 7], [0, 5]] and "region alone" in record["volume_note"]
    other = call(*arguments)
    assert "already finished with other settings" in other.stdout and "region" in other.stdout
    refused(call(*arguments, "--region", "2-8"), "neither a box nor a file")
