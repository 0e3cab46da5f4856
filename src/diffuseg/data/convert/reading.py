"""Any image or mask that `convert` takes, as planes: what `data/io.py` reads, arrays, further pictures, masks in colours."""

import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data import geometry, io, itk, pictures
from diffuseg.data.claimed_size import DEFLATE, Claim, check_claim
from diffuseg.data.convert.analyze import read_analyze
from diffuseg.data.dicom import read_dicom
from diffuseg.errors import UserError
from diffuseg.text import pluralize
from diffuseg.types import Image

ARRAYS = (".npy", ".npz")
PICTURES = (*pictures.LOSSLESS, *pictures.LOSSY, ".bmp", ".gif", ".webp", ".ppm", ".pgm")
IN_NPZ = {"image": ("image", "img", "data", "x", "arr_0"), "mask": ("mask", "label", "labels", "seg", "gt", "y", "arr_0")}
KNOWN = (*ARRAYS, *PICTURES, *io.ENDINGS, ".nhdr", ".hdr")  # all else is DICOM
FEW = 8  # channels of an array, at most


@dataclass(frozen=True)
class Painted:
    """A mask as it is stored.

    Attributes:
        image: Planes [c, *s] and their grid.
        geometry: Whether the file says where its voxels lie.
        palette: Index -> colour, of a palette picture.
        names: Value -> name, where the file itself says it.
        lossy: Whether its values are not exact.
        colour: Whether three planes are red, green and blue.
    """

    image: Image
    geometry: bool = True
    palette: dict[int, tuple[int, int, int]] | None = None
    names: dict[int, str] | None = None
    lossy: bool = False
    colour: bool = False


def read_picture(path: Path, spacing: Sequence[float] = ()) -> Image:
    """One image file of any kind that is read here, values as stored.

    An array of two axes is a picture, and of three with at most four at its end too: (rows, columns, colours). Any other array
    of three axes is a volume, of four a volume with channels.

    Args:
        path: The file.
        spacing: Size of the voxels of an array in mm, per axis.

    Raises:
        UserError: It cannot be read, or is a segmentation of 3D Slicer.
    """
    name = path.name.lower()
    if path.is_dir() or not name.endswith(KNOWN):
        return attempt(path, lambda: _whole(read_dicom(path)))
    if name.endswith(ARRAYS):
        return _array_image(_array(path, "image"), path, spacing)
    if name.endswith(PICTURES) and not name.endswith(pictures.LOSSLESS + pictures.LOSSY):
        return Image(attempt(path, lambda: _other_picture(path)[0]), source=path)
    if name.endswith((".nhdr", ".hdr")):
        return _other_volume(path)
    if io.ending_of(path) == itk.SLICER:
        raise UserError("is a segmentation of 3D Slicer, no image", file=path)
    return io.read_planes(path) if not name.endswith(PICTURES) else _planes_as_image(path)


def read_painted(path: Path, shape: Sequence[int]) -> Painted:
    """A mask of any kind for an image of this shape; an array may have one plane per class, at its end or its beginning.

    Args:
        path: The file.
        shape: Of the image, without channels.

    Raises:
        UserError: It cannot be read, or is an array of another shape.
    """
    name = path.name.lower()
    if name.endswith(ARRAYS):
        array = _array(path, "mask")
        array = array.astype(np.uint8) if array.dtype == bool else array
        if array.shape == tuple(shape):
            array = array[None]
        elif array.shape[:-1] == tuple(shape):
            array = np.moveaxis(array, -1, 0)
        elif array.shape[1:] != tuple(shape):
            raise UserError(f"its shape {array.shape} is not that of the image, {tuple(shape)}", file=path)
        return Painted(Image(array, source=path), geometry=False)
    if name.endswith(PICTURES):
        return attempt(path, lambda: _painted_picture(path))
    if name.endswith((".nhdr", ".hdr")):
        return Painted(_other_volume(path))
    if name.endswith(itk.SLICER):
        return attempt(path, lambda: _slicer(path))  # its fields are text that anyone may have written
    return Painted(io.read_planes(path))


def attempt(path: Path, read: Callable[[], Any]) -> Any:
    """What is read of a file; whatever a decoder raises over a broken one is a refusal."""
    if path.is_file() and path.stat().st_size == 0:
        raise UserError("the file is empty (0 bytes)", file=path, do="Copy or export it again")
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # decoders raise anything at all on a broken file
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"cannot be read, broken or truncated ({reason})", file=path, do="Copy or export it again") from None


def _planes_as_image(path: Path) -> Image:
    return _whole(io.read_image(path))  # float32 holds what pictures store; a palette gives its colours


def _whole(image: Image) -> Image:
    """Whole numbers as such, in the fewest bits."""
    low, high = image.data.min(), image.data.max()
    kind = next((k for k in (np.uint8, np.uint16, np.int16) if np.iinfo(k).min <= low and high <= np.iinfo(k).max), None)
    return replace(image, data=image.data.astype(kind)) if kind and (image.data == np.rint(image.data)).all() else image


def _painted_picture(path: Path) -> Painted:
    name = path.name.lower()
    lossy = name.endswith((*pictures.LOSSY, ".webp"))
    if name.endswith((".tif", ".tiff")):
        try:
            planes = pictures.read(path, mask=not _kind_of_tiff(path)[1])
        except UserError as fault:
            pages = re.search(r"(\d+) pages in one file", str(fault))
            if not pages:
                raise
            planes = _pages(path)
        colour, lossy = _kind_of_tiff(path)
        same = colour and all((planes[0] == plane).all() for plane in planes[1:])
        return Painted(Image(planes[:1] if same else planes, source=path), False, _palette(path), lossy=lossy, colour=colour)
    planes, palette = _other_picture(path, palette=True)
    return Painted(Image(planes, source=path), False, palette, lossy=lossy, colour=len(planes) == 3)


def _kind_of_tiff(path: Path) -> tuple[bool, bool]:
    """Whether a TIFF is in colour, and whether it is JPEG inside."""
    import tifffile

    with tifffile.TiffFile(path) as pages:
        page: Any = pages.pages[0]
        return page.photometric.name in ("RGB", "YCBCR"), "JPEG" in page.compression.name


def _pages(path: Path) -> np.ndarray:
    """The pages of a TIFF as planes: one per class."""
    import tifffile

    with tifffile.TiffFile(path) as pages:
        page: Any = pages.pages[0]
        check_claim(path, Claim((len(pages.pages), *map(int, page.shape)), max(page.bitspersample // 8, 1)), 2**62)
        array = np.asarray(pages.asarray())
    if array.ndim != 3 or len(array) > FEW * 8:
        raise UserError(f"pages of shape {array.shape} are no mask", file=path, do="Store volumes as .nii.gz")
    return array


def _palette(path: Path) -> dict[int, tuple[int, int, int]] | None:
    with warnings.catch_warnings(action="ignore"):
        try:
            with pictures.open_picture(path) as picture:
                return _colours_of(picture)
        except OSError:  # a kind of TIFF that tifffile alone reads
            return None


def _colours_of(picture: Any) -> dict[int, tuple[int, int, int]] | None:
    if picture.mode != "P":
        return None
    flat = picture.getpalette("RGB") or []
    return {n: (flat[3 * n], flat[3 * n + 1], flat[3 * n + 2]) for n in range(len(flat) // 3)}


def _other_picture(path: Path, palette: bool = False) -> tuple[np.ndarray, dict[int, tuple[int, int, int]] | None]:
    """Planes [c, h, w], and the palette if indices are asked for; grey stored as three equal planes is one."""
    with warnings.catch_warnings(action="ignore"), pictures.open_picture(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise UserError(f"{picture.n_frames} frames in one file", file=path, do="Store each as a picture")
        if palette and picture.mode == "P":
            return np.asarray(picture)[None], _colours_of(picture)
        if picture.mode in ("P", "CMYK", "YCbCr"):
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        if picture.mode == "1":
            return np.asarray(picture, np.uint8)[None], None
        array = np.asarray(picture)
    if array.ndim == 2:
        return array[None], None
    planes = np.moveaxis(array, -1, 0)
    if len(planes) in (2, 4):
        opaque = np.iinfo(planes.dtype).max
        if (planes[-1] != opaque).any() and not palette:
            raise UserError(
                "it is partly transparent, so its colours are not defined", file=path, do="Remove the alpha channel"
            )
        planes = np.where(planes[-1] == 0, 0, planes[:-1])  # what is painted on nothing: the rest is background
    same = all((planes[0] == plane).all() for plane in planes[1:])
    return (planes[:1] if same else planes), None


def _array(path: Path, role: str) -> np.ndarray:
    """The array of a .npy file, or that of an .npz file which is called after its role; nothing is unpickled."""

    def load() -> np.ndarray:
        if path.name.lower().endswith(".npy"):
            with path.open("rb") as stream:
                _check_array(path, stream, path.stat().st_size)
            return np.load(path, allow_pickle=False)
        with zipfile.ZipFile(path) as packed:
            names = [name.removesuffix(".npy") for name in packed.namelist()]
            found = [name for name in IN_NPZ[role] if name in names] or (names if len(names) == 1 else [])
            if not found:
                raise UserError(f"it holds {', '.join(names)}: which is the {role}?", file=path, do=f"Call it {role!r}")
            entry = packed.getinfo(f"{found[0]}.npy")
            with packed.open(entry) as stream:
                _check_array(path, stream, min(entry.file_size, entry.compress_size * DEFLATE))
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[found[0]]

    array = attempt(path, load)
    if array.dtype.kind not in "iufb" or not 2 <= array.ndim <= 4 or not array.size:
        raise UserError(f"an array of {array.dtype} with shape {array.shape} is no image", file=path)
    return array


def _check_array(path: Path, stream: Any, size: int) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    check_claim(path, Claim(tuple(int(n) for n in shape), dtype.itemsize), size)


def _array_image(array: np.ndarray, path: Path, spacing: Sequence[float]) -> Image:
    array = array.astype(np.uint8) if array.dtype == bool else array
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] <= 4):
        return Image(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), source=path)
    if array.ndim == 4:
        last = array.shape[-1] <= FEW
        if not last and array.shape[0] > FEW:
            raise UserError(f"shape {array.shape} has no axis of channels", file=path, do=f"At most {FEW}, first or last")
        array = np.moveaxis(array, -1, 0) if last else array
    else:
        array = array[None]
    if len(spacing) != 3:
        do = "Say --spacing 1,1,3: mm along each axis of the array, in its order"
        raise UserError(f"an array says no voxel size, and this one is a volume of shape {array.shape[1:]}", file=path, do=do)
    return Image(array, np.diag([*spacing, 1.0]), source=path)


def _other_volume(path: Path) -> Image:
    """A volume in two files, .nhdr or .hdr."""
    read = itk.read if path.name.lower().endswith(".nhdr") else read_analyze
    planes, affine = attempt(path, lambda: read(path))
    if planes.dtype.kind not in "iuf" or planes.ndim not in (3, 4) or not planes.size:
        what = f"voxels of type {planes.dtype} and shape {planes.shape} are no image"
        raise UserError(what, file=path, do="Store it as .nii.gz")
    geometry.check_sizes(affine, path)
    return Image(planes, affine, source=path)


def _slicer(path: Path) -> Painted:
    """A segmentation of 3D Slicer: its segments lie in one or more layers, and its grid is cut to what is drawn."""
    image = io.read_planes(path)
    text = itk.header_of(path)
    fields = dict(re.findall(r"(?m)^(Segment\d+_\w+):=(.*?)\s*$", text))
    names: dict[int, str] = {}
    labels = np.zeros(image.shape, np.int32)
    numbers = sorted({int(re.findall(r"\d+", key)[0]) for key in fields})
    for value, number in enumerate(numbers, 1):
        layer = int(fields.get(f"Segment{number}_Layer", 0))
        inside = image.data[layer] == int(fields.get(f"Segment{number}_LabelValue", 1))
        both = int((inside & (labels > 0)).sum())
        if both:
            first = names[int(labels[inside & (labels > 0)][0])]
            what = f"segments {first} and {fields.get(f'Segment{number}_Name', number)} share {pluralize(both, 'voxel')}"
            raise UserError(what, file=path, do="A voxel has one class: take one of them away in 3D Slicer")
        labels[inside] = value
        names[value] = fields.get(f"Segment{number}_Name", f"segment_{number}")
    if not numbers:
        return Painted(image)
    return Painted(replace(image, data=labels[None]), names=names)


def onto_grid(mask: Image, image: Image, file: Path) -> np.ndarray:
    """The planes of a mask on the grid of its image, voxel by voxel: turned, mirrored, cut or padded, never resampled.

    Raises:
        UserError: Its voxels do not lie on those of the image.
    """
    if io.grid_fault(image, mask) is None:
        return mask.data
    fault = UserError(
        f"its {io.grid_fault(image, mask)}", file=file, do="Image and mask must lie on one grid; resample the mask"
    )
    if image.dims != 3 or mask.dims != 3:
        raise fault
    way = np.linalg.solve(image.affine, mask.affine)
    turn, start = np.rint(way[:3, :3]).astype(int), np.rint(way[:3, 3]).astype(int)
    last = np.array(mask.shape) - 1
    corners = np.array([last * pick for pick in np.ndindex(2, 2, 2)]).T
    off = np.abs(way[:3, :3] @ corners + way[:3, 3:] - turn @ corners - start[:, None]).max()
    if off > 0.1 or not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        raise fault
    axes = np.abs(turn).argmax(1)  # axis of the mask along each axis of the image
    signs = turn[range(3), axes]
    data = np.moveaxis(mask.data, [1 + int(axis) for axis in axes], [1, 2, 3])
    data = data[(slice(None), *(slice(None, None, int(sign)) for sign in signs))]
    first = np.array([start[i] if signs[i] > 0 else start[i] - (data.shape[1 + i] - 1) for i in range(3)])
    result = np.zeros((len(data), *image.shape), data.dtype)
    low, high = np.maximum(first, 0), np.minimum(first + data.shape[1:], image.shape)
    if (low >= high).any():
        raise fault
    inside = tuple(slice(int(a - f), int(b - f)) for a, b, f in zip(low, high, first, strict=True))
    if np.count_nonzero(data) != np.count_nonzero(data[(slice(None), *inside)]):
        raise UserError("part of what it marks lies outside of the image", file=file, do="Is it the mask of this image?")
    result[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))] = data[(slice(None), *inside)]
    return result
