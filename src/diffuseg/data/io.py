"""Image files to arrays and back, with their geometry.

    .nii .nii.gz       nibabel      3-D and 2-D; a 4-D file is a volume with channels, see nifti.py
    .png .tif .tiff    Pillow, tifffile    8 and 16 bit, grey and colour; .tif also float
    .jpg .jpeg         Pillow       images only: a lossy mask has no exact border
    .nrrd .mha .mhd    SimpleITK    if the extra `diffuseg[itk]` is installed; .seg.nrrd (3D Slicer) masks only
    .mgz .mgh          nibabel      FreeSurfer's volumes; frames are channels
    .svs .ndpi .scn    tifffile     whole slides, for predictions only, by `read_slide`; see slides.py
    DICOM              pydicom      images only, folders and files by content; the extra `diffuseg[dicom]`, see dicom.py

The axes of an array are the file's own voxel axes (i, j, k); those of a picture are rows and columns. Whatever is wrong
with a file is a UserError that names it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffuseg import scratch
from diffuseg.atomic_io import atomic_path
from diffuseg.blocks import as_type, blocks, copy, flat, smallest_dtype
from diffuseg.data import dicom, geometry, itk, mgh, nifti, pictures, slides, tiff_tiles
from diffuseg.data.dicom_series import Stack
from diffuseg.errors import UserError
from diffuseg.text import pluralize
from diffuseg.timing import timed
from diffuseg.types import Image

NIFTI = nifti.ENDINGS
VOLUMES = NIFTI + itk.ENDINGS + mgh.ENDINGS
ENDINGS = NIFTI + pictures.LOSSLESS + pictures.LOSSY + pictures.SLIDES + itk.ENDINGS + mgh.ENDINGS
LOSSLESS = NIFTI + pictures.LOSSLESS + itk.ENDINGS + mgh.ENDINGS
WRITTEN_AS = {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", itk.SLICER: ".nrrd"}  # what is read, and not written
WRITTEN_AS |= dict.fromkeys(pictures.SLIDES, ".tif")
CONVERTED = (".npy", ".npz", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".nhdr", ".hdr")  # read by `diffuseg convert` alone

Contents = TypeVar("Contents")


class FileContents(NamedTuple):
    """What one file holds: voxels [c, *s], voxel -> RAS mm, and the header to write it back with."""

    data: np.ndarray
    affine: np.ndarray
    header: Any = None


def ending_of(path: Path | str) -> str:
    """The supported ending of a file name, in lower case (".nii.gz"); a UserError refuses any other."""
    name = Path(path).name.lower()
    for ending in ENDINGS:
        if name.endswith(ending) and len(name) > len(ending):
            return ending
    if name.endswith(CONVERTED):
        do = "`diffuseg convert FOLDER --out DATASET` makes files of a known ending of it (--images-only without masks)"
        raise UserError(f"{Path(name).suffix} is not read here", file=path, do=do)
    raise UserError("this file ending is not known", file=path, do=f"Known: {' '.join(ENDINGS)}")


def case_of(path: Path | str, ending: str) -> str:
    """The file name without folder and ending; a channel number (_0000) stays, as it may be part of the case's name."""
    return Path(path).name[: -len(ending)]


def sources(paths: Path | str | Stack | Sequence[Path | str | Stack]) -> list[Path | Stack]:
    """What a case is read from: files, and in place of DICOM paths their series; one entry per channel, or one for all.

    Raises:
        UserError: What `dicom.open_series` refuses, and several pictures in one DICOM folder.
    """
    listed = [paths] if isinstance(paths, (str, Path, Stack)) else paths
    given = [item if isinstance(item, Stack) else Path(item) for item in listed]
    is_series = lambda item: not item.name.lower().endswith(ENDINGS) and dicom.holds_series(item)
    series = [item for item in given if isinstance(item, Path) and is_series(item)]
    found = [item for item in given if item not in series]
    for group in dicom.group_paths(series):
        stacks = dicom.open_series(group)
        if len(stacks) > 1 and group[0].is_dir():
            what = f"{len(stacks)} pictures in one folder are no image"
            raise UserError(what, file=group[0], do="Name the file of one of them")
        found += stacks
    return found


@timed("read")
def read_image(paths: Path | str | Stack | Sequence[Path | str | Stack]) -> Image:
    """Read one case as float32 [c, *s], its channels in one file or one file each; intensities as stored.

    Args:
        paths: Files, in the order of the channels: planes of a colour picture, the last axis of a 4-D NIfTI, or components of
            a vector image, then file after file. A DICOM folder or file stands for its series, see `dicom.open_series`.

    Raises:
        UserError: A file is unreadable, truncated or empty, has NaN or infinite values or colour with transparency, or
            channels differ in shape or geometry.
    """
    files = sources(paths)
    if not files:
        raise ValueError("read_image: no file given")
    for file in files:
        if isinstance(file, Path) and ending_of(file) == itk.SLICER:
            raise UserError("is a segmentation of 3D Slicer, no image", file=file, do="Give the image that it belongs to")
    parts = [_read(file, mask=False) for file in files]
    places = [file.place if isinstance(file, Stack) else file for file in files]
    arrays = []
    for place, part in zip(places, parts, strict=True):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            array = as_type(part.data, np.float32)
        _check_finite(array, place)
        arrays.append(array)
    image = Image(arrays[0], parts[0].affine, places[0], parts[0].header)
    for place, part, array in zip(places[1:], parts[1:], arrays[1:], strict=True):
        fault = grid_fault(image, Image(array, part.affine))
        if fault is not None:
            raise UserError(f"its {fault} (of {places[0].name})", file=place, do="Channels must lie on one grid")
    if len(arrays) == 1:
        return image
    return Image(_joined(arrays), image.affine, image.source, image.header)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Channels of several arrays in one."""
    joined = scratch.zeros((sum(map(len, arrays)), *arrays[0].shape[1:]))
    for place, channel in enumerate(channel for array in arrays for channel in array):
        copy(channel, joined[place])
    return joined


def read_mask(path: Path | str) -> Image:
    """Read a mask as integers [1, *s] (int16, or int32 where values need it): label values as stored, indices of a palette.

    Raises:
        UserError: The file cannot be read, is lossy, has colour or several channels, or values that are no integers.
    """
    file = Path(path)
    if ending_of(file) in pictures.LOSSY:
        raise UserError("a mask in a lossy format has no exact values", file=file, do="Store masks as .png or .tif")
    part = _read(file, mask=True)
    data = part.data
    if len(data) != 1:
        do = "Store label values as grey; `diffuseg convert` makes them of colours, and of one channel per class"
        raise UserError(f"a mask has one channel, this file has {len(data)}", file=file, do=do)
    if not np.issubdtype(data.dtype, np.integer):
        _check_finite(data, file)
        odd = data[data != np.rint(data)]
        if odd.size:
            raise UserError(
                f"a mask holds integers, this file {pluralize(odd.size, 'other value')} such as {odd.flat[0]}",
                file=file,
                do="Was it resampled? Use nearest neighbours",
            )
    low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
    if not -(2**31) <= low <= high < 2**31:
        raise UserError(f"values from {low} to {high} are no labels", file=file)
    fits = low >= -(2**15) and high < 2**15
    return Image(data.astype(np.int16 if fits else np.int32), part.affine, file, part.header)


def read_planes(path: Path | str) -> Image:
    """One file of maps or masks, [c, *s] in the type in which it is stored; a UserError where it cannot be read."""
    file = Path(path)
    part = _read(file, mask=True)
    return Image(part.data, part.affine, file, part.header)


@timed("write")
def write(path: Path | str, array: np.ndarray, like: Image, slope: float = 1.0) -> None:
    """Write an array on the grid of an image, with its geometry and, from NIfTI to NIfTI, its kind of header.

    Description, intent, extensions and whatever else a header says of the scan stay behind. Integers and booleans are stored
    exactly in the smallest of uint8, int16, int32 that holds them; floats as float32, in .png as 16-bit fractions of 1
    (value = pixel / 65535). The file is written aside and then renamed, so it is never there in part.

    Args:
        path: The file; its ending is the format.
        array: [*s], or planes [c, *s].
        like: On whose grid.
        slope: By which a reader has to multiply the values; NIfTI says so in its header, the other formats cannot.

    Raises:
        UserError: The format cannot hold it: lossy endings, volumes in pictures, several planes in a .png (three of uint8 are
            colour), floats outside [0, 1] in a .png; or the file cannot be written.
        ValueError: The array does not lie on the grid.
    """
    path, ending = Path(path), ending_of(path)
    if ending in WRITTEN_AS:
        why = "results are not written to lossy files" if ending in pictures.LOSSY else f"{ending} is read, and not written"
        raise UserError(why, file=path, do=f"Choose {WRITTEN_AS[ending]}")
    if array.shape != like.shape and array.shape[1:] != like.shape:
        raise ValueError(f"array {array.shape} does not lie on the grid {like.shape}")
    planes = smallest_dtype(array[None] if array.shape == like.shape else array)
    if isinstance(like.header, slides.Slide) and ending in (".tif", ".tiff"):
        mpp = like.header.mpp
        save: Callable[[Path], None] = lambda aside: tiff_tiles.write_pyramid(aside, planes, mpp)
    elif ending in pictures.LOSSLESS:
        save = lambda aside: pictures.write(aside, planes, path)
    elif ending in itk.ENDINGS:
        save = lambda aside: itk.write(aside, planes, like)
    elif ending in mgh.ENDINGS:
        save = lambda aside: mgh.write(aside, planes, like, packed=ending == ".mgz")
    else:
        save = lambda aside: nifti.write(aside, planes, like, slope)
    with atomic_path(path) as aside:
        save(aside)


def grid_fault(one: Image, other: Image) -> str | None:
    """How the grid of the second image differs from that of the first, both named; None if they are the same.

    Grids are the same if shapes are equal and no corner of the volume is more than a tenth of a voxel elsewhere: NIfTI's
    two ways of storing one orientation do not agree any better on large volumes.
    """
    if one.shape != other.shape:
        return f"shape {other.shape} is not {one.shape}"
    shift = geometry.corner_distance(one.affine, other.affine, one.shape)
    if shift <= 0.1 * min(one.spacing):
        return None
    text = lambda affine: np.array2string(affine[:3], precision=4, suppress_small=True).replace("\n", "")
    return f"affine {text(other.affine)} is not {text(one.affine)}: up to {shift:.3g} mm apart"


def _read(file: Path | Stack, mask: bool) -> FileContents:
    if isinstance(file, Stack):
        try:
            return FileContents(*dicom.read_stack(file), file)
        except MemoryError:
            raise _too_large(file.place) from None
    ending = ending_of(file)
    if ending in pictures.SLIDES:
        do = "Cut it into pictures (.png, .tif) to convert, to train or to evaluate, such as by QuPath"
        raise UserError("whole slides are read by `diffuseg predict` alone", file=file, do=do)
    if ending in NIFTI:
        contents = _decoded(file, lambda: FileContents(*nifti.read(file)))
    elif ending in itk.ENDINGS:
        contents = _decoded(file, lambda: FileContents(*itk.read(file)))
    elif ending in mgh.ENDINGS:
        contents = _decoded(file, lambda: FileContents(*mgh.read(file)))
    else:
        contents = _decoded(file, lambda: FileContents(pictures.read(file, mask), np.eye(4)))
    if contents.data.size == 0:
        raise UserError(f"there is no voxel in it: shape {contents.data.shape[1:]}", file=file)
    geometry.check_sizes(contents.affine, file)
    return contents


@timed("read")
def read_slide(file: Path, scale: slides.Scale) -> Image:
    """A whole slide as uint8 [3, h, w], see `slides.read`; what is wrong with its file is a UserError too."""
    return _decoded(file, lambda: slides.read(file, scale))


def _decoded(file: Path, read: Callable[[], Contents]) -> Contents:
    """What a reader makes of a file; what a decoder raises is a UserError."""
    if not file.is_file():
        raise UserError("no such file", file=file)
    if file.stat().st_size == 0:
        raise UserError("the file is empty (0 bytes)", file=file, do="Copy or export it again")
    try:
        return read()
    except UserError:
        raise
    except MemoryError:
        raise _too_large(file) from None
    except Exception as error:  # decoders raise anything at all on a broken file
        reason = " ".join(str(error).split()).rpartition("ITK ERROR: ")[2][:160] or type(error).__name__
        raise UserError(f"cannot be read, broken or truncated ({reason})", file=file, do="Copy or export it again") from None


def _too_large(file: Path) -> UserError:
    what = "its decoder got no memory: broken, or too large for this machine"
    return UserError(what, file=file, do="Copy or export it again")


def _check_finite(array: np.ndarray, file: Path) -> None:
    values = flat(array)
    bad = array.size - sum(int(np.isfinite(values[part]).sum()) for part in blocks(values.shape))
    if bad:
        raise UserError(f"NaN or infinite values: {bad} of {array.size}", file=file, do="Replace them")
