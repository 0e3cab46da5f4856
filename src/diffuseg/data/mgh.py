"""FreeSurfer's volumes, .mgh and .mgz: nibabel reads and writes them; frames are channels."""

import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from diffuseg.data.claimed_size import Claim, checked_claim, read_claimed
from diffuseg.errors import UserError
from diffuseg.types import Image

ENDINGS = (".mgz", ".mgh")


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [c, i, j, k] as stored, and voxel -> RAS mm [4, 4].

    Raises:
        UserError: Its header says no orientation, or claims more than the file holds.
    """
    raw = read_claimed(file, checked_claim(file, _claim))
    image = nib.MGHImage.from_bytes(raw)
    if raw[28:30] != b"\0\1":  # goodRASFlag, which nibabel sets by itself
        raise UserError(
            "its header says no orientation (goodRASFlag is 0)", file=file, do="mri_convert --in_orientation mends it"
        )
    data = np.asanyarray(image.dataobj)
    return np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None], np.asarray(image.affine, np.float64)


def write(aside: Path, planes: np.ndarray, like: Image, packed: bool) -> None:
    """Write planes [c, i, j, k] of uint8, int16, int32 or float32.

    Args:
        aside: Where to.
        planes: Several are frames.
        like: On whose grid.
        packed: As .mgz.

    Raises:
        UserError: They are of a picture.
    """
    if planes.ndim != 4:
        raise UserError("FreeSurfer's formats hold volumes", file=aside, do="Choose .nii.gz")
    data: Any = planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, -1)
    content = nib.MGHImage(data, like.affine).to_bytes()
    if packed:
        import gzip

        content = gzip.compress(content, mtime=0)  # the same bytes each time
    aside.write_bytes(content)


def _claim(head: bytes) -> Claim:
    kind: Any = nib.MGHImage.header_class
    header = kind.from_fileobj(io.BytesIO(head), check=False)
    return Claim(tuple(int(n) for n in header["dims"]), header.get_data_dtype().itemsize, 284)
