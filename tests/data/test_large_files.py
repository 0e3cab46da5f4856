"""Files that are read and written a part at a time hold what they hold when they are read and written whole."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from diffuseg import blocks, scratch
from diffuseg.data import tiff_tiles
from diffuseg.data.io import read_image, read_mask, read_planes, smallest_dtype, write
from diffuseg.errors import UserError
from diffuseg.types import Image

AFFINE = np.array([[0.0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])


def small(monkeypatch):
    """From now on nothing but a few values is held."""
    monkeypatch.setattr(scratch, "IN_MEMORY", 400)
    monkeypatch.setattr(blocks, "VOXELS", 8)
    monkeypatch.setattr(tiff_tiles, "SIDE", 16)


def bytes_of(path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(13, 11, 7), (3, 13, 11, 7), (2, 31, 17)])
def test_a_nifti_file_is_the_same_byte_for_byte(tmp_path, monkeypatch, ending, dtype, shape):
    planes = np.random.default_rng(0).uniform(0, 200, shape).astype(dtype)
    like = Image(np.zeros((1, *(shape[1:] if shape[0] < 5 else shape))), AFFINE)
    whole, parts = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    write(whole, planes, like)
    small(monkeypatch)
    write(parts, planes, like)
    assert bytes_of(parts) == bytes_of(whole)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [None, 0.5])
@pytest.mark.parametrize("shape", [(13, 11, 7), (13, 11, 7, 2), (13, 11, 7, 1, 2), (31, 17)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_nifti_file_is_read_as_a_whole_one(tmp_path, monkeypatch, ending, slope, shape, kind):
    image = kind(np.random.default_rng(0).integers(-300, 300, shape, np.int16), AFFINE, dtype=np.int16)
    image.header.set_slope_inter(slope, None if slope is None else -7)
    nib.save(image, tmp_path / f"x{ending}")
    whole = [read(tmp_path / f"x{ending}") for read in (read_image, read_planes)]
    small(monkeypatch)
    for one, read in zip(whole, (read_image, read_planes), strict=True):
        found = read(tmp_path / f"x{ending}")
        assert found.data.dtype == one.data.dtype
        np.testing.assert_array_equal(found.data, one.data)
        np.testing.assert_array_equal(found.affine, one.affine)
        assert found.header.binaryblock == one.header.binaryblock


@pytest.mark.parametrize("cut", [200, 9])
def test_a_packed_file_with_a_broken_end_is_refused(tmp_path, monkeypatch, cut):
    file = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 255, (13, 11, 7), np.uint8), AFFINE), file)
    small(monkeypatch)
    assert read_image(file).shape == (13, 11, 7)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"x\.nii\.gz: cannot be read, broken or truncated"):
        read_image(file)


def test_channels_of_several_files_are_joined(tmp_path, monkeypatch):
    for number in range(2):
        nib.save(nib.Nifti1Image(np.full((13, 11, 7), number + 1, np.int16), AFFINE), tmp_path / f"x_000{number}.nii")
    small(monkeypatch)
    data = read_image([tmp_path / f"x_000{number}.nii" for number in range(2)]).data
    assert data.shape == (2, 13, 11, 7) and (data[0] == 1).all() and (data[1] == 2).all()


def test_a_value_that_is_none_is_counted_in_a_large_file_too(tmp_path, monkeypatch):
    data = np.zeros((13, 11, 7), np.float32)
    data[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "x.nii")
    small(monkeypatch)
    with pytest.raises(UserError, match="NaN or infinite values: 1 of 1001"):
        read_image(tmp_path / "x.nii")


LAYOUTS = list(itertools.product((None, "zlib"), ({}, {"rowsperstrip": 7}, {"tile": (16, 32)}), (False, True)))


@pytest.mark.parametrize(("compression", "layout", "colour"), LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.float32])
def test_a_tiff_is_read_as_by_tifffile(tmp_path, monkeypatch, compression, layout, colour, dtype):
    shape = (45, 37, 3) if colour else (45, 37)
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    kind = {"photometric": "rgb" if colour else "minisblack", "byteorder": ">" if dtype == ">u2" else "<"}
    tifffile.imwrite(tmp_path / "x.tif", data, compression=compression, **layout, **kind)
    small(monkeypatch)
    found = read_image(tmp_path / "x.tif").data
    np.testing.assert_array_equal(found, np.moveaxis(data, -1, 0) if colour else data[None])


@pytest.mark.parametrize("planes", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_tiff_in_tiles_holds_what_was_written(tmp_path, monkeypatch, planes, dtype):
    data = np.random.default_rng(0).integers(-200 * (dtype == np.int16), 200, (planes, 45, 37)).astype(dtype)
    small(monkeypatch)
    write(tmp_path / "x.tif", data, Image(np.zeros((1, 45, 37))))
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        page = file.pages[0]
        assert page.is_tiled
        found = page.asarray()
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0) if page.axes == "YXS" else found.reshape(data.shape), data)
    again = read_planes(tmp_path / "x.tif").data
    np.testing.assert_array_equal(again, data)
    assert again.dtype == data.dtype


def test_other_programs_read_the_tiles_of_a_mask(tmp_path, monkeypatch):
    data = np.random.default_rng(0).integers(0, 4, (45, 37), np.uint8)
    small(monkeypatch)
    write(tmp_path / "x.tif", data, Image(np.zeros((1, 45, 37))))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "x.tif")), data)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif").data[0], data)


@pytest.mark.parametrize("values", [[0, 255], [-1, 255], [0, 70000], [0.5, 1.5]])
def test_the_smallest_type_is_the_same(monkeypatch, values):
    data = np.resize(np.array(values), (3, 20, 10))
    whole = smallest_dtype(data)
    small(monkeypatch)
    found = smallest_dtype(data)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole)
