"""DICOM series become images at the right place: against the definition in the standard, and against SimpleITK."""

import locale
import logging

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from diffuseg.data import dicom, geometry
from diffuseg.data.dicom import read_dicom
from diffuseg.data.io import read_image
from diffuseg.errors import UserError
from tests.data import dicom_phantom as phantoms
from tests.data.dicom_phantom import CR, CT, ORIENTATIONS, Phantom, enhanced, slices, write, write_series

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(autouse=True)
def own_locale():
    """SimpleITK's GDCM, with which files are written here, sets the locale of the process."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def warn_again():
    geometry._WARNED.clear()


def by_simpleitk(folder) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [i, j, k] and affine to RAS mm of the only series of a folder, by SimpleITK alone."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    affine = np.eye(4)
    for axis in range(3):
        unit = [float(n == axis) for n in range(3)]
        affine[:3, axis] = np.subtract(image.TransformContinuousIndexToPhysicalPoint(unit), image.GetOrigin())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_lies_where_the_standard_and_simpleitk_have_it(tmp_path, name):
    phantom = Phantom(orientation=ORIENTATIONS[name])
    write_series(tmp_path / "scan", phantom)
    image = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(image.data[0], phantom.data)
    np.testing.assert_allclose(image.affine, phantom.affine(), atol=1e-9)
    data, affine = by_simpleitk(tmp_path / "scan")
    np.testing.assert_array_equal(image.data[0], data)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_a_mark_lies_at_a_place_that_was_worked_out_by_hand(tmp_path):
    """Axial, head first, supine: columns go to the left, rows to the back, slices to the head; RAS turns the first two."""
    phantom = Phantom(spacing=(0.5, 2.0), gap=3.0, origin=(10.0, 20.0, 30.0))
    write_series(tmp_path / "scan", phantom)
    image = read_image(tmp_path / "scan")
    i, j, k = (int(n[0]) for n in np.nonzero(image.data[0] == 600))
    assert (i, j, k) == (0, 0, 1)
    np.testing.assert_allclose(image.affine @ [6, 4, 1, 1], [-(10 + 6 * 2.0), -(20 + 4 * 0.5), 33.0, 1])


def test_slices_in_reverse_give_the_same_world(tmp_path):
    """Whatever the order of files, names and instance numbers: each voxel keeps its place."""
    phantom = Phantom(orientation=ORIENTATIONS["oblique"])
    made = slices(phantom)
    for n, ds in enumerate(made):
        ds.InstanceNumber = n  # and now they rise
    write(made[::-1], tmp_path / "a", seed=1)
    image = read_image(tmp_path / "a")
    np.testing.assert_allclose(image.affine, phantom.affine(), atol=1e-9)
    np.testing.assert_array_equal(image.data[0], phantom.data)


def rotation(values) -> np.ndarray:
    """A rotation from four numbers, as a unit quaternion."""
    w, x, y, z = np.array(values) / np.linalg.norm(values)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


size = st.floats(0.3, 6.0)
part = st.floats(-1.0, 1.0)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.tuples(part, part, part, part).filter(lambda q: np.linalg.norm(q) > 0.1), st.tuples(size, size, size), st.data())
def test_any_orientation_spacing_and_order_agrees_with_simpleitk(tmp_path_factory, quaternion, spacing, data):
    turn = rotation(quaternion)
    shape = data.draw(st.permutations([4, 3, 2]))
    origin = data.draw(st.tuples(*[st.floats(-300, 300)] * 3))
    phantom = Phantom(phantoms.blocks(tuple(shape)), (*turn[:, 0], *turn[:, 1]), spacing[:2], spacing[2], origin)
    folder = tmp_path_factory.mktemp("any")
    write(slices(phantom), folder, seed=data.draw(st.integers(0, 99)))
    image = read_image(folder)
    voxels, affine = by_simpleitk(folder)
    np.testing.assert_array_equal(image.data[0], voxels)
    corners = np.array([[*(np.array(shape) - 1) * pick, 1] for pick in np.ndindex(2, 2, 2)]).T
    np.testing.assert_allclose((image.affine @ corners)[:3], (affine @ corners)[:3], atol=1e-4)
    np.testing.assert_allclose((image.affine @ corners)[:3], (phantom.affine() @ corners)[:3], atol=1e-4)


def test_gantry_tilt_is_a_sheared_grid_that_is_exact(tmp_path):
    """Slices of a tilted gantry lie along the table, not along their normal: every voxel is where its own header has it."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    phantom = Phantom(orientation=(1, 0, 0, 0, c, -s), step=(0.0, 0.0, 3.0))
    write_series(tmp_path / "scan", phantom, sop=CT)
    image = read_image(tmp_path / "scan")
    np.testing.assert_allclose(image.affine, phantom.affine(), atol=1e-9)
    for k in range(5):
        corner = image.affine @ [0, 0, k, 1]
        np.testing.assert_allclose((LPS_TO_RAS @ corner)[:3], phantom.position(k), atol=1e-9)
    axes = image.affine[:3, :3] / image.spacing
    assert abs(axes[:, 1] @ axes[:, 2]) == pytest.approx(s, abs=1e-9), "the shear is the tilt"
    straight = by_simpleitk(tmp_path / "scan")[1][:3, :3]
    assert abs(straight[:, 1] @ straight[:, 2]) < 1e-6, "SimpleITK takes it for a straight one"
    assert image.voxel_ml == pytest.approx(1.3 * 0.7 * 3.0 * c / 1000, rel=1e-9)


def test_each_slice_has_its_own_scale(tmp_path):
    phantom = Phantom()
    made = slices(phantom, sop=CT)
    for k, ds in enumerate(made):
        ds.RescaleSlope, ds.RescaleIntercept = f"{0.5 + 0.25 * k}", f"{-1000 + 10 * k}"
    write(made, tmp_path / "scan")
    image = read_image(tmp_path / "scan")
    for k in range(5):
        np.testing.assert_allclose(image.data[0, :, :, k], (0.5 + 0.25 * k) * phantom.data[:, :, k] - 1000 + 10 * k)
    np.testing.assert_allclose(image.data[0], by_simpleitk(tmp_path / "scan")[0], rtol=1e-6)


def test_inverted_display_changes_no_value_of_a_volume_and_turns_a_picture_over(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "diffuseg")
    write_series(tmp_path / "volume", photometric="MONOCHROME1")
    np.testing.assert_array_equal(read_image(tmp_path / "volume").data[0], phantoms.blocks())
    assert "MONOCHROME1" in caplog.text and "as they are stored" in caplog.text
    caplog.clear()
    ds = phantoms.header(CR)
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    phantoms.set_pixels(ds, pixels, "MONOCHROME1")
    ds.BitsStored, ds.HighBit, ds.ImagerPixelSpacing = 12, 11, [0.2, 0.4]
    write([ds], tmp_path / "picture")
    image = read_image(tmp_path / "picture")
    np.testing.assert_array_equal(image.data[0], 4095.0 - pixels)
    assert image.dims == 2 and image.spacing == (0.2, 0.4)
    assert "turned over" in caplog.text


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_compressed_pixels(tmp_path, syntax):
    made = slices(Phantom(phantoms.blocks((64, 48, 2)).astype(np.uint16)))
    for ds in made:
        ds.compress(syntax)
    write(made, tmp_path / "scan")
    np.testing.assert_array_equal(read_image(tmp_path / "scan").data[0], phantoms.blocks((64, 48, 2)))


def test_the_lossless_jpeg_of_most_scanners(tmp_path):
    """JPEG Lossless SV1, encoded by GDCM through SimpleITK."""
    write_series(tmp_path / "plain", Phantom(phantoms.blocks((16, 12, 2)).astype(np.uint16)))
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "plain").iterdir():
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(tmp_path / "packed" / f"{path.name}.dcm"))
        writer.Execute(sitk.ReadImage(str(path)))
    stack = dicom.open_series(tmp_path / "packed")[0]
    from pydicom import dcmread

    assert dcmread(stack.files[0]).file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
    locale.setlocale(locale.LC_ALL, before := "C.UTF-8")
    dicom.read_stack(stack)
    assert locale.setlocale(locale.LC_CTYPE) == before  # GDCM sets its own
    np.testing.assert_array_equal(read_image(tmp_path / "packed").data[0], phantoms.blocks((16, 12, 2)))


def test_an_enhanced_multi_frame_file_is_a_volume(tmp_path):
    phantom = Phantom(orientation=ORIENTATIONS["sagittal"])
    order, slopes = [3, 0, 4, 1, 2], [1.0, 2.0, 0.5, 3.0, 1.5]
    write([enhanced(phantom, order, slopes)], tmp_path / "scan")
    image = read_image(tmp_path / "scan")
    np.testing.assert_allclose(image.affine, phantom.affine(), atol=1e-9)
    np.testing.assert_allclose(image.data[0], phantom.data * np.array(slopes))
    write([enhanced(phantom)], tmp_path / "in order")
    data, affine = by_simpleitk_file(next((tmp_path / "in order").iterdir()))
    np.testing.assert_array_equal(read_image(tmp_path / "in order").data[0], data)
    np.testing.assert_allclose(phantom.affine(), affine, atol=1e-5)


def by_simpleitk_file(file) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine


def test_old_files_without_a_preamble(tmp_path):
    made = slices(Phantom())
    for k, ds in enumerate(made):
        (tmp_path / "scan").mkdir(exist_ok=True)
        del ds.file_meta
        ds.preamble = None
        ds.save_as(tmp_path / "scan" / f"{k}", implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read_image(tmp_path / "scan").data[0], phantoms.blocks())


def test_colour_is_three_channels(tmp_path):
    ds = phantoms.header("1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    phantoms.set_pixels(ds, pixels)
    write([ds], tmp_path / "scan")
    np.testing.assert_array_equal(read_image(tmp_path / "scan").data, np.moveaxis(pixels, -1, 0))


def test_a_file_stands_for_its_series(tmp_path):
    paths = write_series(tmp_path / "mixed")
    write_series(tmp_path / "mixed" / "other", Phantom(gap=1.0))
    write(slices(Phantom(gap=4.0), SeriesNumber=9), tmp_path / "mixed", names="OTHER{}")
    for some in (paths[2], paths, [str(path) for path in paths[1:3]]):
        np.testing.assert_allclose(read_image(some).affine, Phantom().affine(), atol=1e-9)
    with pytest.raises(UserError, match="3 image series"):
        read_image(tmp_path / "mixed")
    assert read_dicom(tmp_path / "mixed", series="9").spacing[2] == pytest.approx(4.0)


def test_a_broken_file_is_named_and_not_passed_over(tmp_path):
    paths = write_series(tmp_path / "scan")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-30])
    with pytest.raises(UserError, match=f"{paths[1].name}.*cannot be decoded"):
        read_image(tmp_path / "scan")
    paths[1].write_bytes(content[:300])
    with pytest.raises(UserError, match=paths[1].name):
        read_image(tmp_path / "scan")


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    write_series(tmp_path / "scan")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r'pip install "diffuseg\[dicom\]"'):
        read_image(tmp_path / "scan")
