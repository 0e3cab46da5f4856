"""What headers of NRRD and MetaImage say of lengths and places is followed, and what they leave out is said."""

import numpy as np
import pytest

from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError

VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
WORLD = "space: left-posterior-superior\n"
GRID = "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\n"
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"


def nrrd(folder, text):
    path = folder / "x.nrrd"
    head = f"NRRD0005\ntype: short\ndimension: 3\nsizes: 5 4 3\nendian: little\nencoding: raw\n{text}\n"
    path.write_bytes(head.encode() + VOXELS.tobytes("F"))
    return path


def mha(folder, text):
    path = folder / "x.mha"
    head = f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{text}DimSize = 5 4 3\nElementType = MET_SHORT\n"
    path.write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + VOXELS.tobytes("F"))
    return path


UNITS = (("mm", 1.0), ("um", 1e-3), ("\u00b5m", 1e-3), ("cm", 10.0), ("microns", 1e-3))


@pytest.mark.parametrize(
    ("write", "text", "mm"),
    [*((nrrd, f'{WORLD}space units: "{unit}" "{unit}" "{unit}"\n{GRID}', mm) for unit, mm in UNITS),
     (nrrd, 'spacings: 2 3 4\nunits: "cm" "cm" "cm"\n', 10.0),
     *((mha, f"{MATRIX}DistanceUnits = {unit}\nElementSpacing = 2 3 4\n", mm) for unit, mm in (*UNITS[:2], ("cm", 10.0)))],
)  # fmt: skip
def test_lengths_are_in_mm_whatever_the_unit_of_the_header(tmp_path, write, text, mm):
    path = write(tmp_path, text)
    for read in (read_image, read_mask):
        np.testing.assert_allclose(read(path).spacing, (2 * mm, 3 * mm, 4 * mm))
        np.testing.assert_array_equal(read(path).data[0], VOXELS)
    if "origin" in text:
        np.testing.assert_allclose(read_image(path).affine[:3, 3], (-10 * mm, -20 * mm, 30 * mm))


@pytest.mark.parametrize(
    ("write", "text", "words"),
    [
        (nrrd, f'{WORLD}space units: "mm" "mm" "um"\n{GRID}', "units of length are mm, um"),
        (nrrd, f'{WORLD}space units: "in" "in" "in"\n{GRID}', "units of length are in"),
        (nrrd, f"{WORLD}space directions: (2,0,0) none (0,0,4)\nspace origin: (0,0,0)\n", "a direction of 2 of 3 axes"),
        (nrrd, "axis mins: 0 0 0\naxis maxs: 10 12 12\n", "axis mins and maxs alone"),
        (nrrd, "spacings: 2 nan 4\n", "voxel sizes 2 x nan x 4"),
        (mha, f"{MATRIX}ElementSpacing = 2 -3 4\n", "voxel sizes 2 x -3 x 4"),
    ],
)
def test_lengths_that_are_none_are_refused_and_not_made_up(tmp_path, write, text, words):
    with pytest.raises(UserError, match=rf"x\.(nrrd|mha).*{words}"):
        read_image(write(tmp_path, text))


@pytest.mark.parametrize(
    ("write", "text", "words"),
    [
        (nrrd, "", "says no voxel sizes: 1 mm is assumed"),
        (mha, MATRIX, "says no voxel sizes: 1 mm is assumed"),
        (nrrd, f"space: scanner-xyz\n{GRID}", "does not say which way is left"),
        (nrrd, "spacings: 2 3 4\n", "does not say which way is left"),
        (mha, "ElementSpacing = 2 3 4\n", "does not say which way is left"),
        (mha, "TransformMatrix = 2 0 0 0 1 0 0 0 1\nElementSpacing = 2 3 4\n", "voxels of 2 x 3 x 4 mm are 4 x 3 x 4 mm apart"),
    ],
)
def test_what_a_header_leaves_out_or_contradicts_is_said(tmp_path, caplog, write, text, words):
    read_image(write(tmp_path, text))
    assert words in caplog.text and "x." in caplog.text


@pytest.mark.parametrize(("write", "text"), [(nrrd, WORLD + GRID), (mha, f"{MATRIX}ElementSpacing = 2 3 4\n")])
def test_a_header_that_says_all_is_not_warned_of(tmp_path, caplog, write, text):
    read_image(write(tmp_path, text))
    assert not caplog.text
