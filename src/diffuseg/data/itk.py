"""NRRD and MetaImage by SimpleITK, the extra `diffuseg[itk]`."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data import geometry
from diffuseg.data.claimed_size import DEFLATE, Claim, check_claim
from diffuseg.data.geometry import LPS_TO_RAS
from diffuseg.errors import UserError
from diffuseg.text import by
from diffuseg.types import Image

SLICER = ".seg.nrrd"  # segmentations of 3D Slicer
ENDINGS = (SLICER, ".nrrd", ".mha", ".mhd")

VOXELS_IN = re.compile(r"^\s*(?:data ?file:|ElementDataFile\s*[=:])\s*(.+?)\s*$", re.I | re.M)
PACKED = re.compile(r"^encoding:(?!\s*raw)|^\s*CompressedData\s*[=:]\s*T", re.I | re.M)
AXES = re.compile(r"^\s*NDims\s*[=:]?[ \t]*(.*?)\s*$", re.I | re.M)  # of a MetaImage; what is no small number ends the process
SIZES = re.compile(r"^\s*(?:spacings:|Element(?:Spacing|Size)\s*[=:])\s*(.+?)\s*$", re.I | re.M)
VECTORS = re.compile(r"^space ?directions:\s*(.+?)\s*$", re.I | re.M)
UNITS = re.compile(r"^\s*(?:(?:space ?)?units:|DistanceUnits\s*[=:])[ \t]*(.*?)\s*$", re.I | re.M)
ENDS = re.compile(r"^axis ?(?:mins|maxs):", re.I | re.M)
WORLD = re.compile(
    r"^space:\s*(?:(?:right|left)-(?:anterior|posterior)-superior(?:-time)?|[RL][AP]ST?)\s*$|^\s*(?:TransformMatrix|Orientation|"
    r"Rotation)\s*[=:]", re.I | re.M,
)  # fmt: skip
FIELD = re.compile(r"^(?!#|content:)(?!.*:=).{900,}$", re.M)  # of an NRRD; its library ends the process over a wrong one of 980
HEADER = 2**22  # bytes of a header, at most: a segmentation of a hundred structures has as many kilobytes
FARTHEST = 1e15  # of what lies in a header of geometry: the decomposition of a matrix of larger numbers does not end


def sitk() -> Any:
    """SimpleITK.

    Raises:
        UserError: It is not installed; the message names the extra.
    """
    try:
        import SimpleITK
    except ImportError:
        raise UserError("reading and writing .nrrd, .mha and .mhd needs SimpleITK", do="pip install 'diffuseg[itk]'") from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters comes as an exception
    return SimpleITK


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [c, *s] as stored, and voxel -> RAS mm [4, 4]."""
    check_header(file)
    data, affine = contents(sitk().ReadImage(str(file)), file)
    return data, geometry.in_mm(affine, _scale(header_of(file), affine, data.ndim - 1, file))


def _scale(head: str, affine: np.ndarray, axes: int, file: Path) -> float:
    """Millimetres per unit of length of a header; SimpleITK does not look at units, and makes up sizes that are not there."""
    vectors, sizes = VECTORS.search(head), [size for found in SIZES.findall(head) for size in _numbers(found)]
    if any(not size > 0 for size in sizes):
        raise UserError(f"voxel sizes {by(sizes)} in its header", file=file, do="Mend them")
    if vectors and vectors[1].count("(") < axes:
        what = f"its header says a direction of {vectors[1].count('(')} of {axes} axes"
        raise UserError(what, file=file, do="Mend its space directions")
    if ENDS.search(head) and not vectors and not sizes:
        raise UserError("its voxel sizes are said by axis mins and maxs alone", file=file, do="Store spacings")
    if not vectors and not sizes:
        geometry.warn_once(file, "its header says no voxel sizes: 1 mm is assumed")
    elif axes == 3 and not WORLD.search(head):
        geometry.warn_once(file, "its header does not say which way is left: its axes are taken for those of LPS")
    named = UNITS.search(head)
    return geometry.unit_in_mm(named[1].encode("latin-1").decode("utf-8", "ignore") if named else "", file)


def _numbers(text: str) -> list[float]:
    """Numbers of a line; what is none counts as one that is none."""
    return [float(one) if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", one, re.I) else math.nan for one in text.split()]


def contents(image: Any, file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The same of an image of SimpleITK, whose world is LPS and whose arrays are [k, j, i]; `file` stands in messages.

    Raises:
        UserError: It has more than three axes, or complex values.
    """
    dims = image.GetDimension()
    if dims > 3 or "complex" in image.GetPixelIDTypeAsString():
        raise UserError(f"{dims}-D image of {image.GetPixelIDTypeAsString()} is not supported", file=file)
    data = sitk().GetArrayFromImage(image)  # [k, j, i] and components last
    components = image.GetNumberOfComponentsPerPixel()
    data = data.T if components > 1 else data.T[None]
    affine, turn = np.eye(4), np.array(image.GetDirection()).reshape(dims, dims)
    affine[:dims, :dims] = turn * image.GetSpacing()
    stretch = np.linalg.norm(turn, axis=0)
    if (np.abs(stretch - 1) > geometry.SAME).any():
        what = f"its directions are not of length 1, so that voxels of {by(image.GetSpacing())} mm"
        geometry.warn_once(file, f"{what} are {by(stretch * image.GetSpacing())} mm apart; volumes and distances depend on it")
    affine[:dims, 3] = image.GetOrigin()
    return data, LPS_TO_RAS @ affine


def write(aside: Path, planes: np.ndarray, like: Image) -> None:
    """Write planes [c, *s] on the grid of `like`, packed."""
    try:
        sitk().WriteImage(itk_image(planes, like), str(aside), useCompression=True)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split()).rpartition("ITK ERROR: ")[2][:160]) from None


def itk_image(planes: np.ndarray, like: Image) -> Any:
    """Planes [c, *s] on the grid of `like` as a SimpleITK image, several as its components."""
    vector = len(planes) > 1
    image = sitk().GetImageFromArray(planes.T if vector else planes[0].T, isVector=vector)
    dims, affine = like.dims, LPS_TO_RAS @ like.affine
    image.SetSpacing(like.spacing)
    image.SetDirection((affine[:dims, :dims] / like.spacing).ravel().tolist())
    image.SetOrigin(affine[:dims, 3].tolist())
    return image


def header_of(file: Path) -> str:
    """The text of a header."""
    with file.open("rb") as stream:
        head = stream.read(HEADER).decode("latin-1").replace("\r\n", "\n")
    end = re.search(r"\n\n" if head.startswith("NRRD") else r"ElementDataFile.*\n?", head)
    return head[: end.end()] if end else head


def check_header(file: Path) -> None:
    """Compare what a header claims with its file, or with the file of voxels that it names; only one beside it is read.

    Raises:
        UserError: It claims more than the file holds, numbers that place voxels nowhere, or voxels that are not beside it.
    """
    head, reader = header_of(file), sitk().ImageFileReader()
    for axes in AXES.findall(head):
        if not re.fullmatch(r"[1-9]", axes):
            raise UserError(f"its header says NDims = {axes[:20]}", file=file, do="Copy or export it again")
    if head.startswith("NRRD") and len(head) == HEADER:
        raise UserError(f"its header does not end within {HEADER} bytes", file=file, do="Copy or export it again")
    if head.startswith("NRRD") and (long := FIELD.search(head)):
        what = f"its header has a line of {len(long[0])} characters, {long[0][:20]}..."
        raise UserError(what, file=file, do="Copy or export it again")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    geometry_of = (*reader.GetDirection(), *reader.GetSpacing(), *reader.GetOrigin())
    if not all(abs(value) < FARTHEST for value in geometry_of):
        do = "Mend the header's spacing, origin and orientation"
        raise UserError("its header places voxels nowhere: numbers that are none, or far too large", file=file, do=do)
    bits = re.search(r"(\d+)-bit", sitk().GetPixelIDValueAsString(reader.GetPixelID()))
    claim = Claim((*reader.GetSize(), reader.GetNumberOfComponents()), int(bits[1]) // 8 if bits else 1)
    named = VOXELS_IN.search(head)
    voxels = file
    if named and named[1].upper() != "LOCAL":
        voxels = file.parent / named[1]
        if "%" in named[1] or named[1].upper().startswith("LIST"):
            raise UserError("its voxels are in several files", file=file, do="Store it as one file, .mha or .nii.gz")
        if Path(named[1]).is_absolute() or ".." in Path(named[1]).parts:
            raise UserError(f"its header names {named[1]}, outside of its folder", file=file, do="Keep the two files together")
        if not voxels.is_file():
            raise UserError(f"its voxels should be in {named[1]}, which is not there", file=file, do="Copy both files")
    check_claim(file, claim, voxels.stat().st_size, DEFLATE if PACKED.search(head) else 1)
