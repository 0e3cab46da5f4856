"""From what a header says to millimetres: the one place that knows units, and looks whether a header contradicts itself.

NIfTI has a unit of length, and up to three accounts of its grid: the sform, the qform, and the voxel sizes (pixdim). The sform
is followed where it has a code, else the qform, as nibabel does; programs on ITK's side may follow the qform. Where two of them
differ by more than rounding, a warning names the file and how far they are apart. NRRD and MetaImage may name units too.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.errors import UserError
from diffuseg.text import by

# The world of NIfTI is RAS, that of ITK and DICOM is LPS: x and y point the other way.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's units of length: none said, metre, millimetre, micrometre
UNITS_MM = {  # by the names in headers of NRRD and MetaImage
    "": 1.0, "?": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0,
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "um": 0.001, "µm": 0.001, "μm": 0.001, "micron": 0.001, "microns": 0.001,
    "micrometer": 0.001, "micrometers": 0.001, "nm": 1e-6, "nanometer": 1e-6,
}  # fmt: skip
LARGEST, SMALLEST = 100.0, 1e-6  # mm: nothing is imaged with larger or smaller voxels
SAME = 0.01  # relative difference of voxel sizes that rounding may make

_log = logging.getLogger("diffuseg")
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its lines name no file; what matters is said here
_WARNED: set[str] = set()


def warn_once(file: Path | None, what: str) -> None:
    """One line of warning about a file, once in a process: files are read many times.

    Args:
        file: Named before the text; None: no file is.
        what: The text.
    """
    text = what if file is None else f"{file}: {what}"
    if text not in _WARNED:
        _WARNED.add(text)
        _log.warning("%s", text)


def nifti_scale(header: Any) -> float:
    """Millimetres per unit of length of a NIfTI header.

    Raises:
        UserError: A unit that NIfTI does not know.
    """
    code = int(header["xyzt_units"]) & 7
    if code not in MM:
        raise UserError(f"its unit of length has the code {code}, which NIfTI does not know", do="Set xyzt_units to 2, mm")
    return MM[code]


def nifti_affine(image: Any, file: Path | None) -> np.ndarray:
    """Voxel -> RAS mm [4, 4] of a NIfTI; warns where its header contradicts itself.

    Raises:
        UserError: Its unit is not one of NIfTI's, or it has no voxel sizes.
    """
    try:
        scale = nifti_scale(image.header)
    except UserError as fault:
        raise UserError(str(fault), file=file) from None
    affine = np.asarray(image.affine, np.float64)
    _compare_accounts(image.header, affine, scale, min(3, len(image.shape)), image.shape, file)
    return in_mm(affine, scale)


def check_stored_header(header: Any, file: Path) -> None:
    """Check what nibabel would mend or pass over in a NIfTI header as it is stored.

    Voxel sizes of 0, negative ones and such as are no numbers are warned of where a sform says the grid.

    Raises:
        UserError: There are no voxel sizes and no sform, values are scaled by infinity, or voxels begin inside the header.
    """
    axes = min(3, int(header["dim"][0]))
    sizes = np.asarray(header["pixdim"][1 : 1 + axes], np.float64)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        if int(header["sform_code"]) <= 0:
            raise UserError(f"voxel sizes {by(sizes)} in its header", file=file, do="Mend pixdim")
        warn_once(file, f"voxel sizes (pixdim) {by(sizes)} in its header are none; the sform is followed")
    if np.isinf([header["scl_slope"], header["scl_inter"]]).any():
        what = f"its values are to be scaled by {header['scl_slope']:g} and moved by {header['scl_inter']:g}"
        raise UserError(what, file=file, do="Mend scl_slope and scl_inter")
    if int(header["vox_offset"]) < header.sizeof_hdr:
        what = f"its voxels begin at byte {int(header['vox_offset'])}, inside of its header"
        raise UserError(what, file=file, do="Mend vox_offset, 352 in NIfTI-1")


def in_mm(affine: np.ndarray, scale: float) -> np.ndarray:
    """An affine whose lengths are in another unit, in millimetres."""
    return affine if scale == 1 else np.diag([scale, scale, scale, 1.0]) @ affine


def unit_in_mm(units: str, file: Path | None) -> float:
    """Millimetres per unit named in a header, for all axes or each, '"mm" "mm" "mm"'; refuses unknown units and mixed ones."""
    named = {unit.strip().lower() for unit in units.replace('"', " ").split()} or {""}
    unknown = sorted(named - set(UNITS_MM))
    if unknown or len({UNITS_MM[unit] for unit in named}) > 1:
        raise UserError(f"its units of length are {', '.join(sorted(named))}", file=file, do="Store lengths in mm")
    return UNITS_MM[named.pop()]


def check_sizes(affine: np.ndarray, file: Path | None) -> None:
    """Check that an affine maps voxels to a volume; warns of voxels of a size that nothing is imaged with.

    Raises:
        UserError: It does not.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine / _typical(affine))) < 1e-9:
        raise UserError("its affine does not map voxels to a volume", file=file, do="Mend the header's spacing and orientation")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.max() > LARGEST or sizes.min() < SMALLEST:
        warn_once(file, f"voxels of {by(sizes)} mm: are spacing and unit of length in its header right?")


def _typical(affine: np.ndarray) -> np.ndarray:
    """What brings the axes of an affine to about one: a determinant of tiny voxels is tiny, and no fault."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return np.array([*np.where(sizes > 0, sizes, 1.0), 1.0])


def _compare_accounts(
    header: Any, affine: np.ndarray, scale: float, axes: int, shape: tuple[int, ...], file: Path | None
) -> None:
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        if axes == 3:
            warn_once(file, "its header says no orientation (sform and qform codes are 0): left and right are NIfTI's default")
        return
    pixdim = np.asarray(header["pixdim"][1 : 1 + axes], np.float64)
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        if not sform:
            raise UserError(f"voxel sizes {by(pixdim)} in its header", file=file, do="Mend pixdim")
        warn_once(file, f"voxel sizes (pixdim) {by(pixdim)} in its header are none; the sform is followed")
        return
    if not sform:
        return
    sizes = np.linalg.norm(affine[:3, :axes], axis=0)
    if (np.abs(sizes - np.abs(pixdim)) > SAME * np.maximum(sizes, np.abs(pixdim))).any():
        what = f"voxels of {by(sizes * scale)} mm by its sform, {by(np.abs(pixdim) * scale)} mm by its pixdim"
        warn_once(file, f"{what}; the sform is followed: volumes and distances depend on it")
    elif qform:
        apart = corner_distance(affine, np.asarray(header.get_qform(), np.float64), shape[:axes])
        if apart > 0.5 * sizes.min():
            what = f"its sform and its qform are up to {apart * scale:.3g} mm apart; the sform is followed"
            warn_once(file, f"{what}, other programs may follow the qform")


def corner_distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart two affines [4, 4] place a corner of a grid of this shape, at most, in their unit of length."""
    last = np.array([*shape, *[1] * (3 - len(shape))]) - 1
    corners = np.array([[*(last * pick), 1] for pick in np.ndindex(2, 2, 2)]).T
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
