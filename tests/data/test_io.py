"""Files keep every value and every millimetre; broken ones are named."""

import gzip
import os
import stat
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diffuseg.data.io import case_of, ending_of, grid_fault, read_image, read_mask, write
from diffuseg.errors import UserError
from diffuseg.types import Image

SHAPE = (5, 4, 3)
LPS = np.diag([-1.0, -1.0, 1.0])
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any rotation, any axes flipped and exchanged, spacing from 0.1 to 5 mm, far from the origin or at it."""
    number = lambda low, high: draw(st.floats(low, high, allow_nan=False, allow_subnormal=False))
    rotation = Rotation.from_rotvec([number(-3, 3) for _ in range(3)]).as_matrix()
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * [number(0.1, 5) for _ in range(3)]
    affine[:3, 3] = [number(-500, 500) for _ in range(3)]
    return affine


def voxels(dtype=np.float32, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 200, shape).astype(dtype)


def world_of_itk(path, index) -> np.ndarray:
    """Where SimpleITK says that a voxel lies, in RAS."""
    return LPS @ sitk.ReadImage(str(path)).TransformContinuousIndexToPhysicalPoint([float(i) for i in index])


@quick
@given(affine=affines())
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_what_we_write_lies_where_simpleitk_looks(tmp_path, ending, affine):
    path = tmp_path / f"x{ending}"
    data = voxels()
    write(path, data, Image(data[None], affine))
    for index in ([0, 0, 0], [4, 0, 0], [0, 3, 0], [1, 2, 2]):
        np.testing.assert_allclose(world_of_itk(path, index), affine[:3] @ [*index, 1], atol=2e-3, rtol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, data)
    again = read_image(path)
    np.testing.assert_allclose(again.affine, affine, rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(again.data[0], data)


@quick
@given(affine=affines())
@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_what_simpleitk_writes_lies_where_it_says(tmp_path, ending, affine):
    path = tmp_path / f"x{ending}"
    image = sitk.GetImageFromArray(voxels(np.int16).T)
    image.SetSpacing(np.linalg.norm(affine[:3, :3], axis=0))
    image.SetDirection((LPS @ affine[:3, :3] / image.GetSpacing()).ravel())
    image.SetOrigin(LPS @ affine[:3, 3])
    sitk.WriteImage(image, str(path))
    ours = read_image(path)
    for index in ([0, 0, 0], [4, 3, 2]):
        expected = LPS @ image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(ours.affine[:3] @ [*index, 1], expected, atol=2e-3)
    np.testing.assert_array_equal(ours.data[0], voxels(np.int16))


@quick
@given(affine=affines(), shear=st.floats(-0.5, 0.5))
def test_nibabel_reads_back_the_affine_and_ours_reads_nibabels(tmp_path, affine, shear):
    affine = affine @ np.array([[1, shear, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    data = voxels(np.uint8)
    write(tmp_path / "x.nii.gz", data, Image(data[None], affine))
    theirs = nib.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(theirs.affine, affine, rtol=1e-6, atol=1e-4)
    if theirs.header["qform_code"]:  # it must not contradict the sform: other software may look at it first
        np.testing.assert_allclose(theirs.get_qform(), affine, atol=0.02)
    assert theirs.header["qform_code"] or abs(shear) > 1e-7
    nib.save(nib.Nifti2Image(data, affine), tmp_path / "y.nii")
    np.testing.assert_allclose(read_image(tmp_path / "y.nii").affine, affine, rtol=1e-12)  # NIfTI-2 has float64


def scanner_file(path) -> nib.Nifti1Image:
    """A scan with everything in its header that a careless writer loses."""
    affine = nib.affines.from_matvec(
        Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() * [0.7, 0.8, 3], [9, 8, 7]
    )
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(SHAPE), affine)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header["descrip"], header["cal_min"], header["cal_max"] = b"T1 MPRAGE", 3, 40
    header["pixdim"][4] = 2.5
    image.set_sform(affine, code=4)
    image.set_qform(np.diag([0.7, 0.8, 3, 1]), code=1)
    nib.save(image, path)
    with open(path, "r+b") as file:  # stored = 2 x + 100, which nibabel alone does not let one write
        file.seek(112)
        file.write(np.array([2, 100], "<f4").tobytes())
    return nib.load(path)


def test_a_nifti_keeps_its_header(tmp_path):
    source = scanner_file(tmp_path / "scan.nii")
    image = read_image(tmp_path / "scan.nii")
    np.testing.assert_array_equal(image.data[0], 2 * np.arange(60).reshape(SHAPE) + 100)
    mask = (image.data[0] > 150).astype(np.int64) * 2
    write(tmp_path / "mask.nii.gz", mask, image)
    result = nib.load(tmp_path / "mask.nii.gz")
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(result.dataobj), mask)
    assert result.dataobj.slope == 1 and result.dataobj.inter == 0
    assert result.header["cal_min"] == result.header["cal_max"] == 0
    for key in ("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b"):
        np.testing.assert_array_equal(result.header[key], source.header[key], err_msg=key)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    image = Image(voxels()[None], np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        write(tmp_path / name, voxels(), image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_return_in_order(tmp_path, ending, channels):
    shape = SHAPE[:2] if ending == ".tif" else SHAPE
    data = voxels(shape=(channels, *shape))
    write(tmp_path / f"x{ending}", data, Image(data, np.eye(4)))
    np.testing.assert_array_equal(read_image(tmp_path / f"x{ending}").data, data)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("values", [[0, 1], [0, 255], [0, 300], [-5, 7], [0, 40000], [0, 100000]])
def test_integers_stay_what_they_are(tmp_path, ending, values):
    mask = np.resize(np.array(values, np.int64), (6, 5))
    like = Image(mask[None].astype(np.float32))
    if ending == ".png" and (values[0] < 0 or values[1] > 65535):
        with pytest.raises(UserError, match=r"0 to 65535.*\.tif"):
            write(tmp_path / "x.png", mask, like)
        return
    write(tmp_path / f"x{ending}", mask, like)
    result = read_mask(tmp_path / f"x{ending}")
    np.testing.assert_array_equal(result.data[0], mask)
    assert result.dims == 2 and np.issubdtype(result.data.dtype, np.signedinteger)


def test_axes_of_nifti_files(tmp_path):
    for shape, expected in {
        (5, 4): (1, 5, 4),
        (5, 4, 1): (1, 5, 4, 1),
        (5, 4, 3): (1, 5, 4, 3),
        (5, 4, 3, 1): (1, 5, 4, 3),
        (5, 4, 3, 2): (2, 5, 4, 3),
        (5, 4, 3, 1, 2): (2, 5, 4, 3),
    }.items():
        nib.save(nib.Nifti1Image(voxels(shape=shape), np.eye(4)), tmp_path / "x.nii")
        assert read_image(tmp_path / "x.nii").data.shape == expected
    nib.save(nib.Nifti1Image(voxels(shape=(5, 4, 3, 2, 2)), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(UserError, match=r"x\.nii.*\(5, 4, 3, 2, 2\)"):
        read_image(tmp_path / "x.nii")


def test_one_file_per_channel(tmp_path):
    for channel in range(3):
        nib.save(nib.Nifti1Image(voxels() + channel, np.eye(4)), tmp_path / f"x_{channel:04d}.nii")
    files = [tmp_path / f"x_{channel:04d}.nii" for channel in range(3)]
    image = read_image(files)
    assert image.source == files[0] and image.data.dtype == np.float32
    for channel in range(3):
        np.testing.assert_array_equal(image.data[channel], voxels() + channel)
    moved = np.diag([1, 1, 2, 1.0])
    nib.save(nib.Nifti1Image(voxels(), moved), files[2])
    with pytest.raises(UserError, match=r"x_0002\.nii: its affine .* is not .*x_0000\.nii"):
        read_image(files)
    nib.save(nib.Nifti1Image(voxels(shape=(5, 4, 4)), np.eye(4)), files[1])
    with pytest.raises(UserError, match=r"x_0001\.nii: its shape \(5, 4, 4\) is not \(5, 4, 3\)"):
        read_image(files)


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_colours_and_depths_of_pictures(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    planes = np.moveaxis(COLOURS, -1, 0)
    PIL.Image.fromarray(COLOURS).save(path)
    np.testing.assert_array_equal(read_image(path).data, planes)
    write(path, planes, Image(planes))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), COLOURS)  # rows and columns as Pillow has them
    grey = COLOURS[..., 0].astype(np.uint16) * 257
    PIL.Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path).data[0], grey)
    PIL.Image.fromarray(COLOURS[..., 0] > 99).save(path)
    np.testing.assert_array_equal(read_mask(path).data[0], COLOURS[..., 0] > 99)


def test_tif_of_any_kind(tmp_path):
    path = tmp_path / "x.tif"
    deep = COLOURS.astype(np.uint16) * 257
    tifffile.imwrite(path, deep, photometric="rgb")
    np.testing.assert_array_equal(read_image(path).data, np.moveaxis(deep, -1, 0))
    PIL.Image.fromarray(COLOURS).save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(path).data, np.moveaxis(COLOURS, -1, 0))
    tifffile.imwrite(path, 255 - COLOURS[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path).data[0], 255 - COLOURS[..., 0])  # as stored, whatever white is
    tifffile.imwrite(path, np.zeros((4, 6, 5), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="4 pages"):
        read_image(path)


def test_palette_is_colour_in_an_image_and_label_in_a_mask(tmp_path):
    indices = np.arange(6, dtype=np.uint8).reshape(2, 3)
    picture = PIL.Image.fromarray(indices)
    picture.putpalette([10 * value for value in range(18)])
    for name in ("x.png", "x.tif"):
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name).data[0], indices)
        expected = (30 * indices + np.array([0, 10, 20])[:, None, None]).astype(np.float32)
        np.testing.assert_array_equal(read_image(tmp_path / name).data, expected)


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("planes", [1, 3])
def test_alpha_is_dropped_if_opaque_and_refused_otherwise(tmp_path, ending, planes):
    path = tmp_path / f"x{ending}"
    alpha = np.full((6, 5, 1), 255, np.uint8)
    PIL.Image.fromarray(np.concatenate([COLOURS[..., :planes], alpha], -1)).save(path)
    np.testing.assert_array_equal(read_image(path).data, np.moveaxis(COLOURS[..., :planes], -1, 0))
    alpha[2, 2] = 254
    PIL.Image.fromarray(np.concatenate([COLOURS[..., :planes], alpha], -1)).save(path)
    with pytest.raises(UserError, match=r"x\..*transparent.*alpha"):
        read_image(path)


def test_sixteen_bit_colour_png_is_not_halved_in_silence(tmp_path):
    deep = sitk.GetImageFromArray(COLOURS.astype(np.uint16) * 257, isVector=True)
    sitk.WriteImage(deep, str(tmp_path / "x.png"))
    with pytest.raises(UserError, match=r"x\.png: 16-bit colour.*\.tif"):
        read_image(tmp_path / "x.png")


def test_lossy_files_are_images_but_no_masks(tmp_path):
    PIL.Image.fromarray(COLOURS).save(tmp_path / "x.jpg", quality=95)
    assert read_image(tmp_path / "x.jpg").data.shape == (3, 6, 5)
    PIL.Image.fromarray(COLOURS).save(tmp_path / "x.tif", compression="jpeg")
    for name in ("x.jpg", "x.tif"):
        with pytest.raises(UserError, match=f"{name}.*lossy"):
            read_mask(tmp_path / name)
    with pytest.raises(UserError, match=r"y\.jpg.*lossy"):
        write(tmp_path / "y.jpg", COLOURS[..., 0], Image(COLOURS[None, ..., 0]))


def test_fractions_in_a_png(tmp_path):
    fraction = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
    like = Image(fraction[None])
    write(tmp_path / "x.png", fraction, like)
    np.testing.assert_allclose(read_image(tmp_path / "x.png").data[0] / 65535, fraction, atol=0.5001 / 65535)
    with pytest.raises(UserError, match=r"x\.png: .*not 0 to 1\.5"):
        write(tmp_path / "x.png", fraction * 1.5, like)
    with pytest.raises(UserError, match=r"2 planes.*\.tif"):
        write(tmp_path / "x.png", np.stack([fraction, fraction]), like)
    with pytest.raises(UserError, match="volume"):
        write(tmp_path / "y.png", voxels(), Image(voxels()[None]))
    with pytest.raises(ValueError, match="grid"):
        write(tmp_path / "y.nii", fraction[1:], like)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".tif", ".jpg"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_truncated_files_are_one_clear_line(tmp_path, ending, share):
    path = tmp_path / f"x{ending}"
    picture = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    if ending == ".jpg":
        PIL.Image.fromarray(picture).save(path)
    else:
        write(path, picture, Image(picture[None]))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="empty" if share == 0 else "broken or truncated") as fault:
        read_image(path)
    assert str(path) in str(fault.value) and "\n" not in str(fault.value) and len(str(fault.value)) < 400


def test_a_flipped_bit_in_a_gz_is_found(tmp_path):
    path = tmp_path / "x.nii.gz"
    raw = nib.Nifti1Image(voxels(), np.eye(4)).to_bytes()
    packed = bytearray(gzip.compress(raw, compresslevel=0))  # stored: a changed byte still inflates
    packed[-40] ^= 1
    path.write_bytes(packed)
    with pytest.raises(UserError, match="CRC"):
        read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_none(tmp_path, value):
    data = voxels()
    data[1, 2, 0] = value
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "x.nii")
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=r"x\.nii: NaN or infinite values: 1 of 60"):
            read(tmp_path / "x.nii")


def test_too_large_for_float32(tmp_path):
    nib.save(nib.Nifti1Image(np.full(SHAPE, 1e300), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(UserError, match="infinite"):
        read_image(tmp_path / "x.nii")


def test_masks_that_are_none(tmp_path):
    nib.save(nib.Nifti1Image(np.float32([[[0, 1, 0.5]]]), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(UserError, match=r"integers.*0\.5"):
        read_mask(tmp_path / "x.nii")
    nib.save(nib.Nifti1Image(np.float32([[[0, 1, 2]]]), np.eye(4)), tmp_path / "x.nii")
    assert read_mask(tmp_path / "x.nii").data.tolist() == [[[[0, 1, 2]]]]
    PIL.Image.fromarray(COLOURS).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="one channel, this file has 3"):
        read_mask(tmp_path / "x.png")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(UserError, match="complex64"):
        read_image(tmp_path / "x.nii")


def test_a_flat_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(voxels(), np.eye(4))
    image.set_sform(np.diag([1, 1, 0, 1.0]), code=1)
    nib.save(image, tmp_path / "x.nii")
    with pytest.raises(UserError, match="affine"):
        read_image(tmp_path / "x.nii")


def test_grids_are_compared_in_voxels():
    one = Image(voxels()[None], np.diag([0.5, 0.5, 0.5, 1]))
    shifted = lambda mm: Image(one.data, nib.affines.from_matvec(one.affine[:3, :3], [0, mm, 0]))
    assert grid_fault(one, shifted(0.04)) is None
    assert "0.06 mm" in str(grid_fault(one, shifted(0.06)))


def test_names_and_endings(tmp_path):
    assert ending_of("a/b.c.NII.GZ") == ".nii.gz" and case_of("a/b.c.NII.GZ", ".nii.gz") == "b.c"
    assert ending_of("b.nii") == ".nii" and case_of("x_0001.tif", ".tif") == "x_0001"
    for name in ("x.dcm", ".nii", "x.gz", "nii"):
        with pytest.raises(UserError, match=r"ending.*Known: .*\.nii\.gz"):
            ending_of(name)
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "x.nii")


def test_without_simpleitk_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "x.nrrd").write_text("NRRD0004")
    with pytest.raises(UserError, match=r"diffuseg\[itk\]"):
        read_image(tmp_path / "x.nrrd")


def test_nothing_half_written(tmp_path, monkeypatch):
    image = Image(voxels()[None])
    path = tmp_path / "x.nii.gz"
    write(path, voxels(), image)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"x\.nii\.gz: cannot be written \(No space left"):
        write(path, voxels() + 1, image)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".tif", ".png"])
def test_a_folder_that_cannot_be_written(tmp_path, ending):
    picture = np.zeros((4, 4), np.uint8)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"x{ending}: cannot be written"):
        write(tmp_path / "file" / f"x{ending}", picture, Image(picture[None]))
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if not os.access(closed, os.W_OK):  # the superuser may write anywhere
        with pytest.raises(UserError, match=f"x{ending}: cannot be written"):
            write(closed / f"x{ending}", picture, Image(picture[None]))


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_of_a_nifti_are_in_mm_whatever_its_unit_and_go_back_so(tmp_path, unit, mm):
    stored = np.diag([0.5, 0.6, 0.7, 1.0]) / mm
    stored[:, 3] = [3 / mm, -4 / mm, 5 / mm, 1]
    image = nib.Nifti1Image(voxels(), stored)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "x.nii")
    read = read_image(tmp_path / "x.nii")
    np.testing.assert_allclose(read.spacing, (0.5, 0.6, 0.7), rtol=1e-5)
    assert read.voxel_ml == pytest.approx(0.21 / 1000, rel=1e-5)
    write(tmp_path / "y.nii", read.data[0], read)
    np.testing.assert_allclose(nib.load(tmp_path / "y.nii").affine, stored, rtol=1e-5)
    np.testing.assert_allclose(read_image(tmp_path / "y.nii").affine, read.affine, rtol=1e-5)


@pytest.mark.parametrize(
    ("sform", "qform", "words"),
    [
        (np.diag([1, 1, 0.8, 1]), np.diag([1, 1, 0.6, 1]), "0.8 mm by its sform"),
        (np.eye(4) + np.pad([[30.0], [0], [0]], ((0, 1), (3, 0))), np.eye(4), "30 mm apart"),
    ],
)
def test_a_header_that_contradicts_itself_is_warned_of(tmp_path, caplog, sform, qform, words):
    image = nib.Nifti1Image(voxels(), sform)
    image.set_qform(qform, 1, update_affine=False)
    image.set_sform(sform, 1, update_affine=False)
    nib.save(image, tmp_path / "x.nii")
    read_image(tmp_path / "x.nii")
    assert words in caplog.text and "x.nii" in caplog.text


def stored(path: Path, codes=(1, 0), **fields) -> Path:
    """A NIfTI whose header says what no library would write."""
    image = nib.Nifti1Image(voxels(), np.diag([1, 1, 2, 1.0]))
    image.set_sform(image.affine, code=codes[0])
    image.set_qform(image.affine, code=codes[1])
    nib.save(image, path)
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(header.binaryblock + raw[348:])
    return path


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_voxel_sizes_that_are_none_are_refused_and_not_mended(tmp_path, caplog, size):
    pixdim = [1, size, 1, 2, 0, 0, 0, 0]
    for codes in ((0, 1), (0, 0)):  # of these, the grid would be made
        with pytest.raises(UserError, match=rf"voxel sizes {size:g} x 1 x 2 in its header"):
            read_image(stored(tmp_path / "x.nii", codes, pixdim=pixdim))
    assert read_image(stored(tmp_path / f"{size}.nii", pixdim=pixdim)).spacing == (1, 1, 2)
    assert f"(pixdim) {size:g} x 1 x 2" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "words"), [("scl_slope", np.inf, "scaled by inf"), ("vox_offset", 0, "inside of its header")]
)
def test_what_a_header_cannot_mean_is_refused(tmp_path, field, value, words):
    with pytest.raises(UserError, match=words):
        read_image(stored(tmp_path / "x.nii", **{field: value}))


def test_results_do_not_carry_what_a_header_says_of_the_scan(tmp_path):
    scan = nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(SHAPE), np.eye(4))
    scan.header["descrip"], scan.header["aux_file"], scan.header["db_name"] = b"A. Patient", b"A. Patient", b"A. Patient"
    scan.header.set_intent("vector")
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"A. Patient"))
    nib.save(scan, tmp_path / "scan.nii")
    write(tmp_path / "mask.nii", np.ones(SHAPE, np.uint8), read_image(tmp_path / "scan.nii"))
    assert b"Patient" in (tmp_path / "scan.nii").read_bytes()
    assert b"Patient" not in (tmp_path / "mask.nii").read_bytes()
    assert nib.load(tmp_path / "mask.nii").header.get_intent()[0] == "none"
