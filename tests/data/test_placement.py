"""Where voxels lie, by our reader and by an independent one, for random affines and axis orders in every format of volumes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from diffuseg.data.io import read_image, write
from diffuseg.errors import UserError
from diffuseg.types import Image

SHAPE = (4, 3, 2)
LAST = np.array(SHAPE) - 1
CORNERS = np.array([[*(LAST * pick), 1] for pick in np.ndindex(2, 2, 2)], float).T
DATA = np.arange(24, dtype=np.int16).reshape(SHAPE)
LPS = np.diag([-1.0, -1.0, 1.0])
FEW, MANY, NEAR = 8, 500, 1e-4  # affines per format, in the fast tests and in the slow ones; mm
counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def random_affine(rng: np.random.Generator) -> np.ndarray:
    """Any turn, axes in any order and direction, spacing of 0.2 to 5 mm, origin up to 300 mm away."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() if rng.random() < 0.8 else np.eye(3)
    return nib.affines.from_matvec(turn @ axes * rng.uniform(0.2, 5, 3), rng.uniform(-300, 300, 3))


def itk_image(affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(DATA.T)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel())
    image.SetOrigin(LPS @ affine[:3, 3])
    return image


def itk_corners(image: sitk.Image) -> np.ndarray:
    return np.array([LPS @ image.TransformContinuousIndexToPhysicalPoint(corner[:3].tolist()) for corner in CORNERS.T]).T


def same_places(path: Path, expected: np.ndarray) -> None:
    ours = read_image(path)
    np.testing.assert_allclose((ours.affine @ CORNERS)[:3], expected, rtol=0, atol=NEAR)
    np.testing.assert_array_equal(ours.data[0], DATA)


@counts
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_what_simpleitk_wrote_lies_where_simpleitk_reads_it(tmp_path, ending, count):
    rng, path = np.random.default_rng(5), tmp_path / f"x{ending}"
    for _ in range(count):
        sitk.WriteImage(itk_image(random_affine(rng)), str(path))
        same_places(path, itk_corners(sitk.ReadImage(str(path))))


@counts
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_we_wrote_lies_where_simpleitk_reads_it(tmp_path, ending, count):
    rng, path = np.random.default_rng(6), tmp_path / f"x{ending}"
    for _ in range(count):
        write(path, DATA, Image(DATA[None], random_affine(rng)))
        same_places(path, itk_corners(sitk.ReadImage(str(path))))


@counts
@pytest.mark.parametrize("ending", [".mgh", ".mgz", ".nii"])
def test_sheared_or_not_it_lies_where_nibabel_reads_it(tmp_path, ending, count):
    """SimpleITK reads no .mgz, and holds no shear."""
    rng, path = np.random.default_rng(7), tmp_path / f"x{ending}"
    for number in range(count):
        shear = np.eye(4)
        shear[0, 1] = rng.uniform(-0.4, 0.4)
        affine = random_affine(rng) @ shear
        if number % 2:
            write(path, DATA, Image(DATA[None], affine))
        else:
            nib.save((nib.Nifti1Image if ending == ".nii" else nib.MGHImage)(DATA, affine), path)
        # from bytes: nibabel leaves a .mgh open
        theirs = nib.MGHImage.from_bytes(path.read_bytes()) if ending == ".mgh" else nib.load(path)
        np.testing.assert_allclose(theirs.affine, affine, atol=1e-3)
        same_places(path, (theirs.affine @ CORNERS)[:3])


def test_freesurfer_volumes_go_and_return(tmp_path):
    two = np.stack([DATA, DATA + 100]).astype(np.float32)
    for ending in (".mgh", ".mgz"):
        write(tmp_path / f"x{ending}", two, Image(two, np.diag([1, 2, 3, 1.0])))
        np.testing.assert_array_equal(read_image(tmp_path / f"x{ending}").data, two)  # frames are channels
    nib.save(nib.MGHImage(DATA, np.eye(4)), tmp_path / "y.mgh")
    raw = bytearray((tmp_path / "y.mgh").read_bytes())
    raw[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "y.mgh").write_bytes(raw)
    with pytest.raises(UserError, match="no orientation"):
        read_image(tmp_path / "y.mgh")
