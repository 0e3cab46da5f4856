"""NIfTI files, .nii and .nii.gz: nibabel reads and writes them, and what memory cannot hold nifti_slabs.py does."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from diffuseg import scratch
from diffuseg.data import geometry, nifti_slabs
from diffuseg.data.claimed_size import Claim, checked_claim, read_claimed
from diffuseg.errors import UserError
from diffuseg.types import Image

ENDINGS = (".nii.gz", ".nii")
Contents = tuple[np.ndarray, np.ndarray, Any]  # voxels [c, *s], voxel -> RAS mm [4, 4], header


def read(file: Path) -> Contents:
    """Voxels [c, *s], voxel -> RAS mm [4, 4], and the header to write them back with.

    Raises:
        UserError: What `contents` refuses, and a header that claims more than the file holds.
    """

    def kind_of(head: bytes) -> Any:
        kind = _kind(head)
        # Before nibabel mends it: a voxel size of 0 would become 1 mm.
        geometry.check_stored_header(kind.header_class(head[: kind.header_class.sizeof_hdr], check=False), file)
        return kind

    claimed = checked_claim(file, _claim)
    if claimed.bytes > scratch.IN_MEMORY:
        return contents(*nifti_slabs.read(file, claimed, kind_of), file)
    raw = read_claimed(file, claimed)
    image = kind_of(raw).from_bytes(raw)
    return contents(image, np.asanyarray(image.dataobj), file)


def contents(image: Any, data: np.ndarray, file: Path | None) -> Contents:
    """Voxels, geometry and header of a nibabel image; `file` stands in messages.

    Raises:
        UserError: Voxels are no real numbers, axes are not 2 or 3, or what `geometry.nifti_affine` refuses.
    """
    if data.dtype.kind not in "iuf":
        raise UserError(f"voxels of type {data.dtype} are not supported", file=file, do="Store real numbers")
    while 1 in data.shape[3:]:  # (i, j, k, 1) is a volume; a vector image is (i, j, k, 1, c)
        data = data.squeeze(3 + data.shape[3:].index(1))
    if not 2 <= data.ndim <= 4:
        raise UserError(f"an image has 2 or 3 axes and channels, this file has shape {image.shape}", file=file)
    channels_first = np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None]
    return channels_first, geometry.nifti_affine(image, file), image.header


def write(aside: Path, planes: np.ndarray, like: Image, slope: float) -> None:
    """Write planes [c, *s].

    Args:
        aside: Where to.
        planes: Of a type that NIfTI has; several are channels.
        like: On whose grid, with whose kind of header.
        slope: By which a reader has to multiply the values.
    """
    if scratch.is_large(planes.shape, planes.dtype):
        hollow = np.broadcast_to(np.zeros((), planes.dtype), planes.shape)  # takes no memory, and makes the header
        nifti_slabs.write(aside, image_of(hollow, like), planes, slope)
    else:
        image = image_of(planes, like)
        if slope != 1:
            image.header.set_slope_inter(slope, 0)
        nib.save(image, aside)


def image_of(planes: np.ndarray, like: Image) -> Any:
    """Planes [c, *s] on the grid of `like` as a nibabel image, channels last; of its header only the geometry."""
    data = planes[0] if len(planes) == 1 else _channels_last(planes)
    header = like.header if isinstance(like.header, nib.Nifti1Header) else None
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    affine = like.affine if header is None else geometry.in_mm(like.affine, 1 / geometry.nifti_scale(header))
    image = kind(data, affine, header, dtype=data.dtype)
    if header is None:
        image.header.set_xyzt_units("mm")
        axes = like.affine[:3, :3] / np.linalg.norm(like.affine[:3, :3], axis=0)
        image.set_sform(like.affine, code=1)
        # A qform can only turn and flip: a sheared grid is left to the sform alone.
        image.set_qform(like.affine, code=int(np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)))
    _only_geometry(image.header)
    return image


def _kind(head: bytes) -> Any:
    # The first field is the header's size: 540 in NIfTI-2, in either byte order.
    second = head[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    return nib.Nifti2Image if second else nib.Nifti1Image


def _claim(head: bytes) -> Claim:
    kind = _kind(head).header_class
    header = kind(head[: kind.sizeof_hdr], check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    return Claim(shape, header.get_data_dtype().itemsize, max(int(header["vox_offset"]), kind.sizeof_hdr))


def _only_geometry(header: Any) -> None:
    """Take out what a header says of the scan and not of the new file: who it is of, what its values mean, how it was taken.

    Slope and intercept nibabel resets by itself.
    """
    header.extensions.clear()
    header.set_intent("none")
    header["descrip"], header["aux_file"] = b"diffuseg", b""
    for field in ("cal_min", "cal_max", "slice_code", "slice_start", "slice_end", "slice_duration", "toffset"):
        header[field] = 0
    for field in {"data_type", "db_name", "extents", "session_error", "regular"} & set(header.keys()):  # of NIfTI-1 alone
        header[field] = np.zeros_like(header[field])


def _channels_last(planes: np.ndarray) -> np.ndarray:
    """[c, *s] -> [i, j, k, c]; a 2-D image gets the third axis that NIfTI has before channels."""
    return np.moveaxis(planes if planes.ndim == 4 else planes[..., None], 0, -1)
