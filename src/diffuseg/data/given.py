"""A case as a program has it, to an `Image` and back: arrays, tensors, and images of nibabel, SimpleITK and MONAI.

    path, paths        files, one per channel; results are arrays
    array, tensor      [*s] or channels first [c, *s], with `affine` (voxel -> RAS mm) or `spacing` (mm per axis)
    nibabel            RAS and (i, j, k), channels last, as its files
    SimpleITK          LPS and arrays (k, j, i); its components are channels
    MetaTensor         channels first, with its own affine, RAS unless its `space` is LPS

What brings a geometry of its own takes neither affine nor spacing. Nothing here imports a package that the caller does not use.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage

from diffuseg.data import geometry, io, itk, nifti
from diffuseg.data.dicom_series import Stack
from diffuseg.errors import UserError
from diffuseg.types import Image

Kind = Literal["path", "Image", "array", "tensor", "nibabel", "SimpleITK", "MetaTensor"]
TAKEN = "a path, a list of paths, an array, a tensor, an image of nibabel or SimpleITK, a MetaTensor or a diffuseg.Image"
PLAIN = ("array", "tensor")  # what has no geometry of its own


@dataclass(frozen=True)
class MetaHeader:
    """What a MetaTensor carries besides its values; results that go back as MetaTensors carry it too."""

    meta: dict[str, Any]  # its affine too
    applied_operations: list[Any]


def kind_of(given: Any) -> Kind | None:
    """What a case is given as; None for what is no single image."""
    if isinstance(given, str | os.PathLike | Stack):
        return "path"
    if isinstance(given, Image):
        return "Image"
    if isinstance(given, torch.Tensor):
        return "MetaTensor" if hasattr(given, "meta") and hasattr(given, "affine") else "tensor"
    if isinstance(given, np.ndarray):
        return "array"
    if isinstance(given, SpatialImage):
        return "nibabel"
    if type(given).__module__.startswith("SimpleITK") and hasattr(given, "GetDirection"):
        return "SimpleITK"
    return None


def paths_of(given: Any) -> list[Path | Stack]:
    """The files or DICOM series of a case that is given by paths; [] of a case that is in memory."""
    parts = given if isinstance(given, list | tuple) else [given]
    if not all(kind_of(part) == "path" for part in parts):
        return []
    return [part if isinstance(part, Stack) else Path(part) for part in parts]


def receive(given: Any, axes: int, affine: Any = None, spacing: Any = None) -> tuple[Image, Kind]:
    """A case as an `Image`, and what it was given as.

    Args:
        given: What the module's first lines list, or a list of images that bring a geometry, one per channel.
        axes: Spatial axes that the model's images have, 2 or 3: what an array means without saying.
        affine: Voxel -> world in mm (RAS) of an array or tensor, [4, 4], of a picture [3, 3] too.
        spacing: Size of its voxels in mm per axis, in place of an affine.

    Raises:
        UserError: No image, one that cannot be read or has no real numbers, and a geometry that is none or given twice.
    """
    paths = paths_of(given)
    if isinstance(given, list | tuple) and not paths:
        return _receive_channels(given, axes, affine, spacing)
    kind = kind_of(paths[0] if paths else given)
    if kind is None:
        what = "None" if given is None else f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
        raise UserError(f"this is no image: {what}", do=f"Give {TAKEN}")
    if kind not in PLAIN and (affine is not None or spacing is not None):
        name = "affine" if affine is not None else "spacing"
        raise UserError(f"{name}= is for arrays and tensors: a {kind} brings its own geometry", do="Leave it out")
    if kind == "path":
        return io.read_image(paths), kind
    image = _image_of(given, kind, axes, affine, spacing)
    _check_values(image)
    return image, kind


def _receive_channels(parts: Sequence[Any], axes: int, affine: Any = None, spacing: Any = None) -> tuple[Image, Kind]:
    """Images of one channel each, on one grid, as a single one."""
    if not parts:
        raise UserError("this is no image: an empty list", do=f"Give {TAKEN}")
    kinds = {kind_of(part) for part in parts}
    if kinds & {*PLAIN, None}:
        do = "Stack the channels of one case, np.stack(arrays); predict_many takes several cases"
        raise UserError(f"a list of {type(parts[0]).__qualname__}", do=do)
    images = [receive(part, axes, affine, spacing) for part in parts]
    first, kind = images[0]
    for number, (other, _) in enumerate(images[1:], 1):
        fault = io.grid_fault(first, other)
        if fault is not None:
            do = "The channels of one case lie on one grid; predict_many takes several cases"
            raise UserError(f"image {number} of the list: its {fault} (of image 0)", do=do)
    data = np.concatenate([image.data for image, _ in images])
    return Image(data, first.affine, first.source, first.header), kind


def _image_of(given: Any, kind: Kind, axes: int, affine: Any, spacing: Any) -> Image:
    if kind == "Image":
        return given
    if kind == "nibabel":
        return _from_nibabel(given)
    if kind == "SimpleITK":
        values, affine = itk.contents(given, None)
        geometry.check_sizes(affine, None)
        return Image(values, affine)
    data = _channels_first(_array_of(given), axes)
    if kind == "MetaTensor":
        return _with_meta(data, given, axes)
    return Image(data, _affine_of(axes, affine, spacing))


def _from_nibabel(given: Any) -> Image:
    file = given.get_filename()
    source = Path(file) if file and nib.is_proxy(given.dataobj) and str(file).lower().endswith(io.NIFTI) else None
    if isinstance(given, nib.Nifti1Pair):
        contents = io.FileContents(*nifti.contents(given, np.asanyarray(given.dataobj), source))
    else:  # of another format: lengths are mm, as nibabel says
        data = np.asanyarray(given.dataobj)
        contents = io.FileContents(np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None], np.asarray(given.affine))
    geometry.check_sizes(contents.affine, source)
    return Image(contents.data, contents.affine, source, contents.header)


def _with_meta(data: np.ndarray, given: Any, axes: int) -> Image:
    """With the affine of a MetaTensor: in mm by the unit of the header that it remembers, and RAS."""
    meta = dict(given.meta)
    affine = _whole_affine(np.asarray(given.affine, np.float64), axes)
    if "xyzt_units" in meta:
        affine = geometry.in_mm(affine, geometry.nifti_scale({"xyzt_units": np.asarray(meta["xyzt_units"])}))
    if str(getattr(meta.get("space"), "value", meta.get("space"))).upper() == "LPS":
        affine = geometry.LPS_TO_RAS @ affine
    geometry.check_sizes(affine, None)
    return Image(data, affine, header=MetaHeader(meta, list(given.applied_operations)))


def _array_of(given: Any) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        tensor = given.detach().cpu()
        plain: Any = tensor
        tensor = plain.as_tensor() if hasattr(plain, "as_tensor") else tensor
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise UserError("a masked array: what its masked voxels are is not said", do="Fill them: array.filled(0)")
    return np.asarray(given)


def _channels_first(array: np.ndarray, axes: int) -> np.ndarray:
    """[*s] or [c, *s] as [c, *s]."""
    if array.dtype.kind == "b":
        do = "Give the intensities of the image; array.astype(np.uint8) if they are 0 and 1"
        raise UserError(f"a boolean array of shape {array.shape} is a mask, and no image", do=do)
    if array.ndim in (axes, axes + 1) and array.dtype.kind in "iuf" and array.size:
        return array if array.ndim == axes + 1 else array[None]
    do = f"This model takes real numbers with {axes} axes, or channels and {axes} axes"
    if array.ndim == axes + 2:
        do += ": one case at a time, without an axis for several"
    raise UserError(f"an array of shape {array.shape} and type {array.dtype}", do=do)


def _affine_of(axes: int, affine: Any, spacing: Any) -> np.ndarray:
    """Of an array: 1 mm voxels along right, anterior and superior where nothing is said."""
    if affine is not None and spacing is not None:
        raise UserError("both affine= and spacing= are given", do="The affine holds the spacing: leave that out")
    if affine is not None:
        try:
            array = np.asarray(affine, np.float64)
        except (TypeError, ValueError):
            raise UserError(f"affine={affine!r} is no matrix", do="Give 4 x 4 numbers, voxel -> mm (RAS)") from None
        whole = _whole_affine(array, axes)
    elif spacing is not None:
        try:
            sizes = np.asarray(spacing, np.float64).reshape(-1)
        except (TypeError, ValueError):
            sizes = np.zeros(0)
        if len(sizes) != axes or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise UserError(f"spacing={spacing!r}", do=f"Give {axes} sizes of a voxel in mm, one per axis")
        whole = np.diag([*sizes, *[1.0] * (4 - axes)])
    else:
        return np.eye(4)
    geometry.check_sizes(whole, None)
    return whole


def _whole_affine(affine: np.ndarray, axes: int) -> np.ndarray:
    """[4, 4] from itself, or of a picture from [3, 3]."""
    if affine.shape == (3, 3) and axes == 2:
        whole = np.eye(4)
        whole[:2, :2], whole[:2, 3] = affine[:2, :2], affine[:2, 2]
        affine, last = whole, affine[2]
        if not np.allclose(last, [0, 0, 1]):
            affine[3, :3] = np.nan  # refused below, as any other last row
    if affine.shape != (4, 4) or not np.allclose(affine[3], [0, 0, 0, 1]):
        what = f"an affine of shape {affine.shape}" + (" with another last row" if affine.shape == (4, 4) else "")
        raise UserError(what, do="Give 4 x 4 numbers, voxel -> mm (RAS), the last row 0, 0, 0, 1")
    return affine


def _check_values(image: Image) -> None:
    """Refuse what is no real number, also once it is float32."""
    if image.data.dtype.kind not in "iuf" or image.data.size == 0:
        what = f"an image of shape {image.shape} and type {image.data.dtype}"
        raise UserError(what, file=image.source, do="Images have real numbers")
    with np.errstate(over="ignore"):
        bad = image.data.size - int(np.isfinite(np.asarray(image.data, np.float32)).sum())
    if bad:
        what = f"there are NaN or infinite values in the image: {bad} of {image.data.size}"
        raise UserError(what, file=image.source, do="Replace them")


def give_back(planes: np.ndarray, image: Image, kind: Kind) -> Any:
    """A result on the grid of an image, [*s] or [n, *s], as `kind`; a path or an array gives an array.

    Args:
        planes: Label values or maps.
        image: What it lies on.
        kind: What is wanted; a MetaTensor always has a first axis for channels.
    """
    channels = planes[None] if planes.shape == image.shape else planes
    if kind == "Image":
        return Image(channels, image.affine, None, image.header)
    if kind == "nibabel":
        return nifti.image_of(io.smallest_dtype(channels), image)
    if kind == "SimpleITK":
        return itk.itk_image(io.smallest_dtype(channels), image)
    if kind == "tensor":
        return torch.from_numpy(np.ascontiguousarray(planes))
    if kind == "MetaTensor":
        return _meta_tensor(channels, image)
    return planes


def _meta_tensor(channels: np.ndarray, image: Image) -> Any:
    from monai.data.meta_tensor import MetaTensor

    values, header = torch.from_numpy(np.ascontiguousarray(channels)), image.header
    if isinstance(header, MetaHeader):
        return MetaTensor(values, meta=dict(header.meta), applied_operations=list(header.applied_operations))
    meta = {} if image.source is None else {"filename_or_obj": str(image.source)}
    return MetaTensor(values, affine=torch.from_numpy(np.array(image.affine)), meta=meta)
