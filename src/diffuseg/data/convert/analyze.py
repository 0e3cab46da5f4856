"""ANALYZE 7.5, a header and its voxels in two files, as `convert` reads it."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from diffuseg.data.claimed_size import Claim, check_claim


def read_analyze(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Planes [c, *s] as stored, and voxel -> RAS mm [4, 4]."""
    image: Any = nib.load(path)
    shape = tuple(int(n) for n in image.shape)
    voxels = Path(image.file_map["image"].filename)
    check_claim(path, Claim(shape, image.get_data_dtype().itemsize), voxels.stat().st_size)
    data = np.asanyarray(image.dataobj)
    data = data.reshape(*shape[:3], *(n for n in shape[3:] if n != 1))
    return np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None], np.asarray(image.affine, np.float64)
