"""Whole slides from the file to the results: glass is passed over, and where there is tissue nothing else is different."""

import json

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F

from diffuseg.checkpoint import save_checkpoint
from diffuseg.data.io import read_mask, read_planes
from diffuseg.data.plan import Plan
from diffuseg.device import Precision
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.inference.model import Model
from diffuseg.inference.wording import amounts
from diffuseg.methods import METHODS
from diffuseg.methods.base import MaskConfig, MaskMethod
from tests.data.slide_phantom import GLASS, HEIGHT, WIDTH, picture, write_slide
from tests.inference.oracle import make_model
from tests.test_cli import call, refused

TISSUE = np.zeros((HEIGHT, WIDTH), bool)
TISSUE[32:224, 64:128] = TISSUE[160:224, 64:256] = True


def plan(**changes) -> Plan:
    known = {"dims": 2, "orientation": None, "patch": (96, 96), "widths": (4, 4), "normalisation": ("unit",) * 3}
    known |= {"intensity": ({"low": 0.0, "high": 255.0},) * 3, "flips": (0, 1)}
    return Plan("made", ("R", "G", "B"), {"background": 0, "red": 1}, ".tif", **(known | changes))


class Near(MaskMethod):
    """Red where its surroundings are, and as the noise says; counts the tiles that it is asked about."""

    default_steps, phases = 1, ()
    schedule = NoiseSchedule.variance_preserving(4, 0.1, 20.0)

    def loss(self, batch, phase, rng):
        raise AssertionError

    def encode(self, image):
        self.tiles = getattr(self, "tiles", 0) + 1
        return F.avg_pool2d(image[:, :1] - image[:, 1:2], 9, 1, 4)

    def denoise(self, x_t, t, features, z):
        red = features - 0.9 + 0.1 * F.avg_pool2d(x_t[:, 1:], 5, 1, 2)
        return torch.cat([-red, red], 1).tanh()


def model(**changes) -> Model:
    made = plan(**changes)
    precision = Precision(torch.float32, "fp32, for a test")
    return Model(Near(made, MaskConfig()), made, {"method": "near"}, "near", "0" * 12, torch.device("cpu"), precision)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "x.svs"
    write_slide(path, picture())
    return path


@pytest.mark.parametrize("options", [{}, {"mirror": True}, {"region": "32:320,64:480"}])
def test_where_there_is_tissue_nothing_is_different_bit_for_bit(slide, options):
    own, other = model(), model()
    found = own.predict(slide, magnification=20, draws=2, keep_draws=True, **options)
    whole = other.predict(slide, magnification=20, draws=2, keep_draws=True, all_tiles=True, **options)
    for name in ("mask", "probability", "draws", "entropy"):
        one, two = found.values(name), whole.values(name)
        np.testing.assert_array_equal(one[..., TISSUE], two[..., TISSUE], err_msg=name)
    assert found.mask[72:88, 104:120].all() and found.provenance["seeds"] == whole.provenance["seeds"]
    tiles, skipped = (found.provenance["slide"][name] for name in ("tiles", "tiles_skipped"))
    every = whole.provenance["slide"]
    assert every["tiles"] == tiles + skipped and every["tiles_skipped"] == 0 and 0 < tiles < 0.7 * (tiles + skipped)
    turns = 4 if "mirror" in options else 1
    assert own.method.tiles == turns * tiles and other.method.tiles == turns * every["tiles"]


def test_what_is_passed_over_is_background_for_sure(slide):
    found = model().predict(slide, magnification=20, draws=2, steps=2, keep_draws=True, keep_steps=True)
    away = (slice(330, None), slice(360, None))  # farther from tissue than a tile
    assert (found.probability[0][away] == 1).all() and (found.probability[1][away] == 0).all()
    assert not found.mask[away].any() and not found.uncertainty["entropy"][away].any()
    assert not found.draws[:, *away].any() and not found.steps[:, *away].any()
    whole = model().predict(slide, magnification=20, draws=2, steps=2, all_tiles=True)
    assert (whole.probability[1][away] > 0).all()
    inner = TISSUE & np.roll(TISSUE, 20, 0) & np.roll(TISSUE, -20, 0) & np.roll(TISSUE, 20, 1) & np.roll(TISSUE, -20, 1)
    np.testing.assert_allclose(found.probability[:, inner], whole.probability[:, inner], atol=1e-3)


def test_a_plan_with_a_spacing_says_the_level_and_sees_its_grid(slide):
    known = model(spacing=(0.002, 0.002)).predict(slide)
    asked = model().predict(slide, mpp=2.0)
    np.testing.assert_array_equal(known.mask, asked.mask)
    assert known.provenance["slide"]["level"] == 1 and known.mask.shape == (HEIGHT // 4, WIDTH // 4)
    finer = model(spacing=(0.002, 0.002)).predict(slide, mpp=1.0)
    assert finer.mask.shape == (HEIGHT // 2, WIDTH // 2) and finer.provenance["grid"]["shape"] == [HEIGHT // 4, WIDTH // 4]


def test_from_the_command_to_files_and_again(tmp_path, slide):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "best.safetensors", METHODS["unet"](plan(patch=(16, 16)), METHODS["unet"].config_class()), {})
    arguments = ("predict", tmp_path / "best.safetensors", slide, "--out", tmp_path / "out")
    silent = call(*arguments)
    assert silent.exit_code == 2 and "x.svs: at which magnification?" in silent.stderr and "Give --magnif" in silent.stderr
    done = call(*arguments, "--magnification", "5")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/x.json").read_text())
    said = record["slide"]
    area = said["tissue_mm2"] / (TISSUE.sum() * 0.0005**2)
    assert (
        1 < area < 1.5 and said.items() >= {"level": 1, "levels": 2, "magnification": 5.0, "um_per_pixel": [2.0, 2.0]}.items()
    )
    assert said["tiles_skipped"] > 0 and record["options"]["magnification"] == 5
    mask = read_mask(tmp_path / "out/x.tif").data[0]
    assert record["volume_ml"]["red"] == pytest.approx(mask.sum() * 0.002**2 / 1000, abs=1e-6)
    assert amounts(record)[0].split()[2] == "mm2"
    assert read_planes(tmp_path / "out/x_prob.tif").shape == mask.shape == (HEIGHT // 4, WIDTH // 4)
    with tifffile.TiffFile(tmp_path / "out/x.tif") as file:
        assert 1 / np.array(file.pages[0].get_resolution("MICROMETER")) == pytest.approx((2.0, 2.0))
    assert (tmp_path / "out/x_preview.png").is_file()
    assert "already finished\n" in call(*arguments, "--magnification", "5").stdout
    assert "already finished with other settings" in call(*arguments, "--mpp", "2").stdout
    page = call("view", tmp_path / "out", "--export", tmp_path / "page.html")
    assert page.exit_code == 0 and "Whole slides are not shown here" in (tmp_path / "page.html").read_text()


def test_what_is_no_slide_or_not_for_a_slide_is_refused(tmp_path, slide):
    seen = model()
    with pytest.raises(UserError, match=r"--magnification and --mpp: one says what the other does"):
        seen.predict(slide, magnification=20, mpp=0.5)
    with pytest.raises(UserError, match=r"--mpp -1\. It is above 0"):
        seen.predict(slide, mpp=-1)
    picture_ = np.full((3, 64, 64), 200, np.uint8)
    with pytest.raises(UserError, match=r"--magnification and --mpp are for whole slides, and this is none"):
        seen.predict(picture_, magnification=20)
    with pytest.raises(UserError, match=r"--all-tiles is for whole slides"):
        seen.predict(picture_, all_tiles=True)
    with pytest.raises(
        UserError, match=r"x\.svs: a whole slide is a picture in red, green and blue; oracle sees volumes of 1 ch"
    ):
        make_model().predict(slide, magnification=20)
    with pytest.raises(UserError, match=r"holds its three colours in one file"):
        seen.predict([slide, slide], magnification=20)
    glass = tmp_path / "glass.svs"
    write_slide(glass, np.full((HEIGHT, WIDTH, 3), GLASS, np.uint8))
    with pytest.raises(UserError, match=r"glass\.svs: no tissue was found, nothing but glass\. --all-tiles segments all of it"):
        seen.predict(glass, magnification=20)
    assert seen.predict(glass, magnification=20, all_tiles=True).provenance["slide"]["tissue_mm2"] == 0


def test_tiles_are_counted_at_the_overlap_that_was_asked_for(slide):
    own = model()
    counts = []
    for overlap in (0.0, 0.5):
        found = own.predict(slide, magnification=20, all_tiles=True, overlap=overlap)
        sides = zip(found.mask.shape, own.plan.patch, strict=True)
        true = np.prod([1 if n <= p else -(-(n - p) // max(int(p * (1 - overlap)), 1)) + 1 for n, p in sides])
        counts.append(found.provenance["slide"]["tiles"])
        assert counts[-1] == true
    assert counts[0] < counts[1]


def test_many_slides_are_read_at_what_is_asked_for(slide):
    for _, prediction, error in model().predict_many([slide], magnification=5):
        assert error is None and prediction.mask.shape == (HEIGHT // 4, WIDTH // 4)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_training_and_converting_say_that_slides_are_not_for_them(tmp_path, slide, command):
    if command == "plan":
        for place in ("imagesTr/x_0000.svs", "labelsTr/x.tif"):
            (tmp_path / place).parent.mkdir()
            (tmp_path / place).write_bytes(slide.read_bytes())
        known = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "red": 1}, "file_ending": ".svs"}
        (tmp_path / "dataset.json").write_text(json.dumps(known))
        refused(call("plan", tmp_path), "whole slides are read by `diffuseg predict` alone", "Cut it into pictures")
    else:
        (tmp_path / "images").mkdir()
        (tmp_path / "images/x.svs").write_bytes(slide.read_bytes())
        said = call("convert", tmp_path / "images", "--images-only", "--out", tmp_path / "set")
        refused(said, "whole slides are read by `diffuseg predict` alone")
