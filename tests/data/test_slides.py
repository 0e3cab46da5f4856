"""Whole slides: which level is read and how large its pixels are, where there is tissue, and what is refused."""

import numpy as np
import PIL.Image
import pytest
import tifffile

from diffuseg import blocks, scratch
from diffuseg.data import slides, tiff_tiles
from diffuseg.data.io import read_image, read_mask, read_planes, read_slide, write
from diffuseg.data.region import tissue_on_grid
from diffuseg.data.slides import Scale, Slide, averaged, is_slide
from diffuseg.data.tissue import find_tissue, otsu
from diffuseg.data.transforms import grid_transform
from diffuseg.errors import UserError
from diffuseg.types import Image
from tests.data.slide_phantom import APERIO, HEIGHT, SQUARE, WIDTH, centre, picture, smaller, write_slide
from tests.data.test_claimed_size import refused_cheaply
from tests.inference.oracle import make_plan


def channels_first(data) -> np.ndarray:
    return np.moveaxis(data, -1, 0)


@pytest.mark.parametrize(
    ("scale", "level", "made_one", "um"),
    [
        (Scale(20), 0, 1, 0.5),
        (Scale(5), 1, 1, 2.0),
        (Scale(10), 0, 2, 1.0),
        (Scale(2.5), 1, 2, 4.0),
        (Scale(mpp=2.0), 1, 1, 2.0),
        (Scale(mpp=2.06), 1, 1, 2.0),  # within a twentieth: as it is
        (Scale(mpp=1.9), 0, 3.8, 1.9),
        (Scale(plan=(0.002, 0.002)), 1, 1, 2.0),
        (Scale(mpp=1.0, plan=(0.002, 0.002)), 0, 2, 1.0),  # what is asked for comes before the plan
    ],
)
def test_the_level_and_the_size_of_its_pixels(tmp_path, scale, level, made_one, um):
    stored = write_slide(tmp_path / "x.svs", picture())
    image = read_slide(tmp_path / "x.svs", scale)
    head = image.header
    assert (head.level, head.levels, image.data.dtype) == (level, 2, np.uint8)
    assert head.averaged == pytest.approx(made_one, rel=0.01)
    assert head.mpp == pytest.approx((um, um), rel=0.01) and head.magnification == pytest.approx(10 / um, rel=0.01)
    np.testing.assert_allclose(image.spacing, np.array(head.mpp) / 1000)
    np.testing.assert_allclose(np.array(image.shape) * image.spacing, np.array([HEIGHT, WIDTH]) * 0.0005)  # one extent
    if made_one == 1:
        np.testing.assert_array_equal(image.data, channels_first(stored[level]))
    truth = [(part.start + part.stop) / 2 * 0.0005 for part in SQUARE]
    np.testing.assert_allclose(centre(image.data) * image.spacing, truth, atol=0.6 * um / 1000)


@pytest.mark.parametrize("steps", [(1, 2), (1, 4, 2), (1, 2, 4, 8)])
def test_all_levels_of_aperio_are_found_where_no_overview_is_stored(tmp_path, steps):
    """The page after the finest level is the next one, and no overview; levels go by their size, whatever their order."""
    stored = write_slide(tmp_path / "x.svs", picture(), steps, overview=False)
    for step, pixels in zip(steps, stored, strict=True):
        image = read_slide(tmp_path / "x.svs", Scale(20 / step))
        assert (image.header.level, image.header.levels, image.header.averaged) == (sorted(steps).index(step), len(steps), 1)
        np.testing.assert_array_equal(image.data, channels_first(pixels))


def test_a_picture_among_the_levels_of_aperio_does_not_end_them(tmp_path):
    tiled = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}
    levels = [smaller(picture(), n) for n in (1, 2, 4)]
    with tifffile.TiffWriter(tmp_path / "x.svs") as file:
        for number, level in enumerate(levels):
            file.write(level, description=POWER, **tiled)
            if number == 1:
                file.write(smaller(picture(), 8), photometric="rgb", description=POWER, metadata=None)
    for number, level in enumerate(levels):
        image = read_slide(tmp_path / "x.svs", Scale(20 / 2**number))
        assert (image.header.level, image.header.levels) == (number, 3)
        np.testing.assert_array_equal(image.data, channels_first(level))


@pytest.mark.parametrize(
    ("shape", "description", "tile"),
    [
        ((128, 128), "Aperio Image Library v12|AppMag = 20", (64, 64)),  # a label: other sides
        ((192, 256), "Aperio Image Library v12|AppMag = 20", None),  # an overview: not tiled
        ((192, 256), "something else", (64, 64)),
    ],
)
def test_other_second_pages_of_aperio_are_no_levels(tmp_path, shape, description, tile):
    with tifffile.TiffWriter(tmp_path / "x.svs") as file:
        first = POWER + "|MPP = 0.5"
        file.write(picture(), photometric="rgb", tile=(64, 64), compression="zlib", description=first, metadata=None)
        other = np.zeros((*shape, 3), np.uint8)
        file.write(other, photometric="rgb", tile=tile, compression="zlib", description=description, metadata=None)
    header = read_slide(tmp_path / "x.svs", Scale(10)).header
    assert (header.levels, header.level, header.averaged) == (1, 0, pytest.approx(2))


def test_pixels_between_levels_are_means(tmp_path):
    data = picture()
    write_slide(tmp_path / "x.svs", data)
    found = read_slide(tmp_path / "x.svs", Scale(10)).data.astype(float)
    inner = (slice(None), slice(4, 28), slice(4, 28))  # of the glass, where all weights sum up the same
    np.testing.assert_allclose(found[inner], channels_first(smaller(data, 2))[inner], atol=2)
    np.testing.assert_allclose(found.mean((1, 2)), data.mean((0, 1)), atol=0.3)


@pytest.mark.parametrize("shape", [(192, 256), (101, 67), (384, 256), (384, 512)])
def test_averaged_in_strips_is_averaged_as_a_whole(monkeypatch, shape):
    planes = channels_first(picture())
    whole = averaged(planes, shape)
    for plane, one in zip(planes, whole, strict=True):
        shrunk = PIL.Image.fromarray(np.ascontiguousarray(plane)).resize(shape[::-1], PIL.Image.Resampling.HAMMING)
        np.testing.assert_array_equal(one, np.asarray(shrunk))
    monkeypatch.setattr(slides, "STRIP", 5000)
    found = averaged(planes, shape)
    assert np.abs(found.astype(int) - whole).max() <= 1 and (found != whole).mean() < 1e-3  # rounding of the rows' places


@pytest.mark.parametrize("scale", [Scale(20), Scale(10)])
def test_what_memory_is_not_to_hold_is_read_as_the_whole(tmp_path, monkeypatch, scale):
    write_slide(tmp_path / "x.svs", picture())
    whole = read_slide(tmp_path / "x.svs", scale)
    monkeypatch.setattr(scratch, "IN_MEMORY", 400)
    monkeypatch.setattr(blocks, "VOXELS", 1000)
    monkeypatch.setattr(slides, "STRIP", 5000)
    found = read_slide(tmp_path / "x.svs", scale)
    np.testing.assert_array_equal(found.data, whole.data)
    np.testing.assert_array_equal(found.header.tissue, whole.header.tissue)


def test_jpeg_is_decoded_to_the_colours_that_were_meant(tmp_path):
    pytest.importorskip("imagecodecs")
    data = picture()
    write_slide(tmp_path / "x.svs", data, compression="jpeg", compressionargs={"level": 95})
    found = read_slide(tmp_path / "x.svs", Scale(20)).data
    assert np.abs(found.astype(int) - channels_first(data)).mean() < 3


def test_a_tile_that_is_not_stored_is_glass(tmp_path):
    tiles = (np.full((64, 64, 3), 100, np.uint8) if n != 5 else None for n in range(16))
    kind = {"shape": (256, 256, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "x.svs", tiles, description="Aperio Image Library|AppMag = 20", metadata=None, **kind)
    found = read_slide(tmp_path / "x.svs", Scale(20)).data
    assert (found[:, 64:128, 64:128] == 255).all() and (found == 100).sum() == 3 * 15 * 64 * 64


def test_a_pyramid_without_a_scanner_says_its_pixels_in_tags(tmp_path):
    """Centimetres and inches alike; 72 pixels per inch are what programs write that know nothing."""
    path = tmp_path / "x.tif"
    for unit, down, right in ((3, 0.5, 0.25), (2, 0.5, 0.25)):
        per = tuple((1e4 if unit == 3 else 25400) / um for um in (right, down))
        write_slide(path, picture(), description="", resolution=per, resolutionunit=unit)
        image = read_slide(path, Scale(mpp=(0.5 * 0.25) ** 0.5))
        assert image.header.mpp == pytest.approx((down, right), rel=1e-6) and image.header.magnification is None
    write_slide(path, picture(), description="", resolution=(72, 72), resolutionunit=2)
    with pytest.raises(UserError, match=r"x\.tif: --mpp 0\.5: its file says neither .*Export it"):
        read_slide(path, Scale(mpp=0.5))


POWER, SIZE = "Aperio Image Library v12|AppMag = 20", "Aperio Image Library v12|MPP = 0.5"


@pytest.mark.parametrize(
    ("description", "scale", "words"),
    [
        (APERIO, Scale(), r"at which magnification\? .*20 and pixels of 0\.5 x 0\.5 micro.* Give --magnification or --mpp"),
        (APERIO, Scale(40), r"2 times as fine .* magnification of 20 .*lower --magnification"),
        (APERIO, Scale(mpp=0.1), r"5 times as fine .*larger --mpp"),
        (APERIO, Scale(plan=(0.0001, 0.0001)), r"5 times as fine"),
        (APERIO, Scale(plan=(1.0, 1.0)), r"next to nothing is left.* Give --magnification or --mpp"),
        (POWER, Scale(mpp=0.5), r"--mpp 0\.5: its file says a magnification of 20\. Give --magnification, at most 20"),
        (POWER, Scale(plan=(0.001, 0.001)), r"plan has pixels of 1 micrometres: its file .* Give --magnification, at most 20"),
        (SIZE, Scale(20), r"--magnification 20: its file says pixels of 0\.5 x 0\.5 micrometres\. Give --mpp"),
        ("Aperio Image Library v12", Scale(20), r"says neither magnification nor size of pixels\. Export it with"),
        ("Aperio Image Library v12|AppMag = 1.2.3|MPP = 0", Scale(20), r"says neither magnification nor size of pixels"),
    ],
)
def test_what_a_file_does_not_have_is_said_with_what_to_do(tmp_path, description, scale, words):
    write_slide(tmp_path / "x.svs", picture(), description=description)
    with pytest.raises(UserError, match=r"x\.svs: .*" + words):
        read_slide(tmp_path / "x.svs", scale)


def test_without_the_size_of_its_pixels_a_slide_is_read_by_its_magnification(tmp_path):
    write_slide(tmp_path / "x.svs", picture(), description=POWER)
    image = read_slide(tmp_path / "x.svs", Scale(5))
    assert image.header.level == 1 and image.header.mpp is None and np.array_equal(image.affine, np.eye(4))
    assert image.header.record(image.shape)["tissue_mm2"] is None


def test_without_its_decoder_a_slide_names_the_extra(tmp_path, monkeypatch):
    write_slide(tmp_path / "x.svs", picture())
    with tifffile.TiffFile(tmp_path / "x.svs", mode="r+b") as file:
        file.pages[0].tags[259].overwrite(7)  # JPEG
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused_cheaply(
        tmp_path / "x.svs", lambda path: read_slide(path, Scale(20)), r"packed as JPEG\. pip install 'diffuseg\[wsi\]'"
    )


@pytest.mark.parametrize(("tag", "value"), [(259, 33003), (262, 5), (262, 6)])  # Aperio's YCbCr, CMYK, YCbCr in deflate
def test_colours_that_would_not_become_red_green_and_blue_are_refused(tmp_path, tag, value):
    write_slide(tmp_path / "x.svs", picture())
    with tifffile.TiffFile(tmp_path / "x.svs", mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)
    with pytest.raises(UserError, match=r"x\.svs: (its colours are stored as|no slide in colours)"):
        read_slide(tmp_path / "x.svs", Scale(20))


@pytest.mark.parametrize(("side", "words"), [(2**20, r"claims .*lower magnification"), (2**14, "broken or truncated.*claims")])
def test_a_slide_that_claims_what_it_does_not_hold(tmp_path, side, words):
    write_slide(tmp_path / "x.svs", picture())
    with tifffile.TiffFile(tmp_path / "x.svs", mode="r+b") as file:
        for code in (256, 257):
            file.pages[0].tags[code].overwrite(side)
    refused_cheaply(tmp_path / "x.svs", lambda path: read_slide(path, Scale(20)), words)


@pytest.mark.parametrize("kind", ["grey", "deep", "nothing", "text"])
def test_what_is_no_slide_in_colours_is_refused(tmp_path, kind):
    path, data = tmp_path / "x.svs", picture()
    if kind in ("grey", "deep"):
        data = data[..., 0] if kind == "grey" else data.astype(np.uint16)
        tifffile.imwrite(path, data, tile=(64, 64), photometric="minisblack" if kind == "grey" else "rgb")
    else:
        path.write_bytes(b"" if kind == "nothing" else b"II*\0 this is none")
    with pytest.raises(UserError, match=r"x\.svs: (no slide in colours|the file is empty|cannot be read)"):
        read_slide(path, Scale(20))


def test_only_what_is_meant_to_be_a_slide_is_one(tmp_path):
    write_slide(tmp_path / "pyramid.tif", picture(), description="")
    write(tmp_path / "flat.tif", np.zeros((9, 8), np.uint8), Image(np.zeros((1, 9, 8))))
    asked, planned, silent = Scale(20), Scale(plan=(0.001, 0.001)), Scale()
    found = {name: [is_slide(tmp_path / name, s) for s in (asked, planned, silent)] for name in ("pyramid.tif", "flat.tif")}
    assert found == {"pyramid.tif": [True, True, False], "flat.tif": [True, False, False]}
    assert is_slide(tmp_path / "x.SVS", silent) and not is_slide(tmp_path / "x.png", asked)
    with pytest.raises(UserError, match=r"pyramid\.tif: 2 pages in one file.*--magnification or --mpp"):
        read_image(tmp_path / "pyramid.tif")


def test_readers_of_images_and_masks_say_who_reads_slides(tmp_path):
    write_slide(tmp_path / "x.svs", picture())
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=r"x\.svs: whole slides are read by `diffuseg predict` alone\. Cut it into"):
            read(tmp_path / "x.svs")
    with pytest.raises(UserError, match=r"x\.svs: \.svs is read, and not written\. Choose \.tif"):
        write(tmp_path / "x.svs", np.zeros((9, 8), np.uint8), Image(np.zeros((1, 9, 8))))


@pytest.mark.parametrize("stain", [(190, 120, 185), (226, 208, 228), (90, 60, 40), (110, 110, 112)])  # H&E, faint, DAB, dark
def test_all_tissue_is_found_and_most_glass_is_not(stain):
    data = picture()
    data[(data.astype(int) - (190, 120, 185)).__abs__().max(-1) <= 3] = stain
    tissue = find_tissue(channels_first(data))
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[32:224, 64:128] = truth[160:224, 64:256] = True
    assert tissue[truth].all() and (tissue & ~truth).sum() < 0.2 * truth.sum()


def test_glass_alone_has_no_tissue():
    glass = np.clip(np.random.default_rng(0).normal((236, 233, 238), 1.5, (200, 300, 3)), 0, 255).astype(np.uint8)
    assert not find_tissue(channels_first(glass)).any()


def test_the_threshold_is_that_of_all_pairs_of_groups():
    values = np.random.default_rng(0).choice([3, 9, 40, 41, 200], 500).astype(np.uint8)

    def within(t):
        groups = [values[values <= t], values[values > t]]
        return sum(len(g) * g.var() for g in groups if len(g))

    assert within(otsu(values)) == pytest.approx(min(within(t) for t in range(255)))


def test_tissue_on_the_grid_lies_where_it_does_on_the_thumbnail(monkeypatch):
    monkeypatch.setattr(blocks, "VOXELS", 100)
    tissue = np.zeros((12, 10), bool)
    tissue[3:6, 2:4] = True
    image = Image(np.zeros((1, 48, 60), np.uint8))
    whole = np.zeros((48, 60), bool)
    whole[12:24, 12:24] = True
    plain = make_plan(dims=2, orientation=None, patch=(8, 8))
    np.testing.assert_array_equal(tissue_on_grid(tissue, grid_transform(image, plain)), whole)
    cropped = make_plan(dims=2, orientation=None, patch=(8, 8), crop=(32, 40))
    np.testing.assert_array_equal(tissue_on_grid(tissue, grid_transform(image, cropped)), whole[8:40, 10:50])


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mpp", [(0.5, 0.25), None])
def test_results_are_pyramids_with_the_size_of_their_pixels(tmp_path, monkeypatch, planes, dtype, mpp):
    monkeypatch.setattr(tiff_tiles, "SIDE", 16)
    data = np.random.default_rng(0).integers(0, 200, (planes, 90, 70)).astype(dtype)
    like = Image(np.zeros((3, 90, 70), np.uint8), header=Slide(0, 1, 1.0, None, mpp, np.ones((9, 7), bool)))
    for name in ("a.tif", "b.tif"):
        write(tmp_path / name, data, like)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    np.testing.assert_array_equal(read_planes(tmp_path / "a.tif").data, data)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        levels = file.series[0].levels
        assert [level.shape[-2:] for level in levels] == [(90, 70), (23, 18)] and levels[0].keyframe.is_tiled
        np.testing.assert_array_equal(levels[1].asarray().reshape(planes, 23, 18), data[:, ::4, ::4])
        if mpp is not None:
            assert 1 / np.array(levels[0].keyframe.get_resolution("MICROMETER")) == pytest.approx((0.25, 0.5), rel=1e-6)
            assert 1 / np.array(levels[1].keyframe.get_resolution("MICROMETER")) == pytest.approx((1.0, 2.0), rel=1e-6)
        assert ('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"' in file.ome_metadata) == (mpp is not None)
