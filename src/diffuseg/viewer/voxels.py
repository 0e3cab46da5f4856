"""Voxels for the page: one plain NIfTI-1 file per layer, small types, window and scale in its header.

    image   int16, with a slope; cal_min and cal_max are its window
    labels  uint8, the index of the class, background 0
    scale   uint8, 0 to 255 for 0 to the layer's top

Everything is read by the reader of this program and written anew, so that the page meets only what it was made for. Frames
are the fourth axis, and so are the colours of a picture. What is very large is thinned out: every n-th voxel along each axis.
"""

import math

import nibabel as nib
import numpy as np
from jaxtyping import Num

from diffuseg.data.io import grid_fault, read_image, read_planes
from diffuseg.errors import UserError
from diffuseg.reports.folders import ignored_label
from diffuseg.text import pluralize
from diffuseg.types import Image
from diffuseg.viewer.cases import Case, Layer

SERVED, EXPORTED = 2**28, 2**24  # voxels of a layer beyond which it is thinned out
DEPTHS = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))  # largest values that a camera or scanner gives
FRAMES = 8  # so many frames count as one volume: masks of draws are flat, and differ little


def encode(case: Case, layer: Layer, most: int) -> bytes:
    """A layer as a NIfTI file of at most about `most` voxels, whose description says so where it was thinned out.

    Args:
        case: Whose layer it is.
        layer: What to show.
        most: About how many voxels the file may hold.

    Raises:
        UserError: It does not lie on the grid of the mask, does not have the planes that the record names, or has label values
            that the record does not know.
    """
    image = _read(layer)
    mask = next((other for other in case.layers if other.key == "mask"), layer)
    fault = grid_fault(_read(mask), image) if layer.key in ("image", "truth") or case.picture else None
    if fault is not None:
        raise UserError(f"not shown: its {fault} (of the mask)", file=layer.file)
    planes = image.data if layer.plane is None else image.data[layer.plane : layer.plane + 1]
    if not len(planes) or (layer.kind != "image" and len(planes) != max(len(layer.frames), 1)):
        raise UserError(
            f"not shown: it has {pluralize(len(image.data), 'plane')}, not those that the record names", file=layer.file
        )
    frames = 1 if layer.kind == "image" or case.picture else len(planes)  # layers of a picture are of one size
    n = thinning(planes.shape[1:], frames, most)
    planes, affine = thinned(planes, image.affine, n)
    slope, inter, window = 1.0, 0.0, (0.0, layer.top)
    if layer.kind == "labels":
        if layer.key == "truth":
            planes = np.where(planes == ignored_label(layer.file.parent), 0, planes)
        planes = _classes(planes, case, layer)
    elif layer.kind == "scale":
        planes = np.rint(planes.clip(0, layer.stored) * np.float32(255 / layer.stored)).astype(np.uint8)
        slope = layer.top / 255
    else:
        window = _colours(planes) if case.picture and len(planes) == 3 else _window(planes)
        planes, slope, inter = _short(planes)
    header = nib.Nifti1Header()
    header.set_slope_inter(slope, inter)
    header["cal_min"], header["cal_max"] = window
    header["descrip"] = f"Only one voxel in {n} along each axis is shown; volumes count all of them." if n > 1 else ""
    return _nifti(planes, affine, case.picture, header)


def thinning(shape: tuple[int, ...], frames: int, most: int) -> int:
    """The smallest n for which every n-th voxel along each axis gives at most `most` voxels."""
    voxels = math.prod(shape) * max(1.0, frames / FRAMES)
    n = 1
    while voxels / n ** len(shape) > most:
        n += 1
    return n


def thinned(planes: Num[np.ndarray, "c *s"], affine: np.ndarray, n: int) -> tuple[Num[np.ndarray, "c *m"], np.ndarray]:
    """Every n-th voxel along each axis (at least one), from the middle of the first n on; and the affine of what is left."""
    first = [min((n - 1) // 2, size - 1) for size in planes.shape[1:]]
    placed = np.eye(4)
    for axis, start in enumerate(first):
        placed[axis, axis], placed[axis, 3] = n, start
    return planes[(slice(None), *(slice(start, None, n) for start in first))], affine @ placed


def _read(layer: Layer) -> Image:
    return read_image(layer.file) if layer.kind == "image" else read_planes(layer.file)


def _classes(planes: np.ndarray, case: Case, layer: Layer) -> np.ndarray:
    values = np.array(sorted(case.record["labels"].values()))
    if len(values) > 256:
        raise UserError(f"not shown: {len(values)} classes, the page has room for 256", file=layer.file)
    small = planes.dtype == np.uint8
    met = np.arange(256, dtype=np.uint8) if small else planes  # of bytes it is enough to look up each value once
    found = np.searchsorted(values, met).clip(max=len(values) - 1)
    known, found = values[found] == met, found.astype(np.uint8)
    if small:
        known, found = known[planes], found[planes]
    if not known.all():
        raise UserError(f"label value {planes[~known].flat[0]} is not in the record", file=layer.file)
    return found


def _window(planes: np.ndarray) -> tuple[float, float]:
    """Where black and white of an image lie at first: percentiles of every voxel, or its range where those are equal."""
    low, high = np.percentile(planes, (0.5, 99.5)).tolist()
    if low < high:
        return low, high
    return float(planes.min()), max(float(planes.max()), float(planes.min()) + 1)


def _colours(planes: np.ndarray) -> tuple[float, float]:
    """Where black and full colour of a picture lie, so that it is seen as it was taken: the range of its kind of numbers."""
    whole = (planes == np.rint(planes)).all()
    top = next((top for top in (DEPTHS if whole else (1,)) if planes.max() <= top), None)
    return _window(planes) if top is None or planes.min() < 0 else (0.0, float(top))


def _short(planes: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Intensities as int16, their slope and intercept: as they are where they are such integers, else in 65535 parts."""
    low, high = float(planes.min()), float(planes.max())
    if low >= -32768 and high <= 32767 and (planes == np.rint(planes)).all():
        return planes.astype(np.int16), 1.0, 0.0
    slope = max((high - low) / 65535, float(np.finfo(np.float32).tiny))
    return (np.rint((planes.astype(np.float64) - low) / slope) - 32768).astype(np.int16), slope, low + 32768 * slope


def _nifti(planes: np.ndarray, affine: np.ndarray, picture: bool, header: nib.Nifti1Header) -> bytes:
    """NIfTI-1; rows of a picture run downwards, and its columns are the first axis."""
    array = np.moveaxis(planes, 0, -1)
    if picture:
        array = np.swapaxes(array, 0, 1)
    if array.ndim == 3:
        array = array[:, :, None]
    if array.shape[-1] == 1:
        array = array[..., 0]
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4) + array.tobytes(order="F")
