"""From a file's voxels to the grid of a plan, and back.

Turning and flipping (nibabel) only moves voxels. Resampling keeps the extent of the volume: n voxels become
round(n * spacing / target spacing), so the way back is the same map and ends on exactly n voxels. MONAI's Spacing keeps
the centre of the first voxel instead, so its grid covers another extent and the way back has to guess at its border.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import SLAB, VOXELS, blocks, copy, extremes, flat, rising
from diffuseg.data.decisions import SAME
from diffuseg.data.geometry import warn_once
from diffuseg.data.intensities import normalise
from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.text import by, pluralize
from diffuseg.timing import timed
from diffuseg.types import Image

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
LEVELS = 2**16  # whole numbers of a range up to this are counted, not sorted
MOST_VOXELS = 2**31  # of one channel of a resampled case: 8 GB


@dataclass(frozen=True)
class GridTransform:
    """Where a case on the plan's grid came from.

    native    spatial shape of the file; affine: its voxel -> world map
    reorientation  per file axis: the grid axis that it becomes, and 1 or -1 where it is flipped; None for 2-D pictures
    oriented  shape after reorientation; grid: shape after resampling
    start     first voxel of what is kept of that (plan.crop, a region); kept: its shape; grid_affine: its voxel -> world map
    shown     the voxels of the file that results are about: all others are background; None for all
    """

    native: tuple[int, ...]
    affine: np.ndarray
    reorientation: np.ndarray | None
    oriented: tuple[int, ...]
    grid: tuple[int, ...]
    start: tuple[int, ...]
    kept: tuple[int, ...]
    grid_affine: np.ndarray
    shown: tuple[slice, ...] | None = None

    @property
    def window(self) -> tuple[slice, ...]:
        """What is kept of the grid."""
        return tuple(slice(start, start + n) for start, n in zip(self.start, self.kept, strict=True))


def grid_transform(image: Image, plan: Plan) -> GridTransform:
    """How a case comes to the plan's grid.

    Raises:
        UserError: The image has other axes or channels than the plan was made for, or the grid keeps next to nothing of it.
    """
    _check_kind(image, plan)
    affine, shape, reorientation = image.affine, image.shape, None
    if plan.orientation is not None:
        ornt = nib.orientations
        reorientation = ornt.ornt_transform(ornt.io_orientation(affine), ornt.axcodes2ornt(tuple(plan.orientation)))
        affine = affine @ ornt.inv_ornt_aff(reorientation, shape)
        shape = tuple(int(shape[axis]) for axis in np.argsort(reorientation[:, 0]))
    oriented, grid = shape, shape
    if plan.spacing is not None:
        spacing = np.linalg.norm(affine[:3, : len(shape)], axis=0)
        target = np.array(plan.spacing)
        if (np.abs(spacing / target - 1) > SAME).any():
            grid = tuple(_samples(n, s / w) for n, s, w in zip(shape, spacing.tolist(), target.tolist(), strict=True))
            affine = affine @ _zoom(shape, grid)
            _check_kept(shape, grid, image, plan)
    start, kept = central_window(grid, plan.crop)
    shift = np.eye(4)
    shift[: len(start), 3] = start
    return GridTransform(image.shape, image.affine, reorientation, oriented, grid, start, kept, affine @ shift)


def central_window(shape: Sequence[int], crop: Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel and size of the middle `crop` voxels of a grid; an axis that is not longer is kept whole."""
    if crop is None:
        return (0,) * len(shape), tuple(shape)
    kept = tuple(min(n, target) for n, target in zip(shape, crop, strict=True))
    return tuple((n - k) // 2 for n, k in zip(shape, kept, strict=True)), kept


@timed("resample")
def to_grid(image: Image, plan: Plan) -> tuple[Float[Tensor, "c *s"], GridTransform]:
    """A case on the plan's grid, float32, and what undoes it: normalised, turned, resampled linearly, cropped as planned.

    Raises:
        UserError: What `grid_transform` refuses, and a grid of more than `MOST_VOXELS`.
    """
    transform = grid_transform(image, plan)
    _check_size(transform.oriented, transform.grid)
    found = scratch.tensor((len(image.data), *transform.kept))
    for number in range(len(image.data)):
        turned = _turned(image.data[number : number + 1], transform.reorientation)[0]
        x = scratch.tensor(turned.shape)
        copy(turned, x.numpy())
        normalise(x, plan, number)
        copy(_resize(x[None], transform.grid)[0][transform.window].numpy(), found[number].numpy())
    return found, transform


@timed("digest")
def content_digest(image: Image, transform: GridTransform) -> str:
    """A digest of the intensities of an image, as read, and of its size on the model's grid.

    Values are sorted: an image that is stored turned or flipped gives the same noise on the grid. What is read is exact,
    unlike what is resampled, whose last bits differ between processors.
    """
    shape = (len(image.data), image.data[0].size)
    digest = hashlib.sha256(repr((shape, transform.grid)).encode())
    for channel in image.data:
        for values in _sorted(channel):
            digest.update(values.data)
    return digest.hexdigest()


def _sorted(channel: Num[np.ndarray, "*s"]) -> Iterator[Float[np.ndarray, " n"]]:
    """All values of a channel as float32 by rising size, a part at a time; whole numbers of a small range are counted."""
    low, high = map(float, extremes(channel))
    found = np.zeros(LEVELS, np.int64)
    whole = flat(channel)
    for part in blocks(whole.shape) if high - low < LEVELS and abs(low) < 2**23 else ():
        values = whole[part].astype(np.float32).ravel()
        levels = (values - np.float32(low)).astype(np.int64)
        if not np.array_equal(levels + low, values):
            break
        found += np.bincount(levels, minlength=LEVELS)
    if found.sum() != channel.size:
        yield from rising(channel)
        return
    for level in np.flatnonzero(found):
        for start in range(0, int(found[level]), VOXELS):
            yield np.full(min(VOXELS, int(found[level]) - start), level + low, np.float32)


def class_indices(mask: Image, plan: Plan) -> Int[np.ndarray, "*s"]:
    """Label values of a mask [1, *s] as class indices 0..k-1, by rising label value.

    Voxels that nobody has annotated (plan.ignore) get k, the number of classes.

    Raises:
        UserError: A value is not in the plan.
    """
    return rater_indices(mask, plan)[0]


def rater_indices(masks: Image, plan: Plan) -> Int[np.ndarray, "m *s"]:
    """The same for the masks of m raters [m, *s]."""
    values = np.array(sorted(plan.labels.values()) + ([] if plan.ignore is None else [plan.ignore]))
    indices = np.searchsorted(values, masks.data).clip(max=len(values) - 1)
    unknown = masks.data[values[indices] != masks.data]
    if unknown.size:
        raise UserError(f"label value {unknown.flat[0]} is not one of the plan's ({values.tolist()})", file=masks.source)
    return indices


def mask_to_grid(mask: Image, plan: Plan, transform: GridTransform) -> Int[Tensor, "*s"]:
    """Class indices 0..k-1 [*s] on the grid, k where nobody has annotated.

    Where it is resampled, the class whose linear interpolation is largest.

    Raises:
        UserError: A label value is not in the plan.
    """
    classes = torch.from_numpy(_reorient(class_indices(mask, plan)[None], transform.reorientation)[0])
    if transform.grid == transform.oriented:
        return classes[transform.window]
    # One class at a time: all of them would be k volumes of float32.
    numbers = range(plan.classes + (plan.ignore is not None))
    return argmax_maps(_resize((classes == k).float()[None], transform.grid)[0][transform.window] for k in numbers)


def argmax_maps(shares: Iterable[Float[Tensor, "*s"]]) -> Int[Tensor, "*s"]:
    """The number of the largest of several maps at each voxel, the first where they are equal; much faster than argmax(0)."""
    maps = iter(shares)
    best = next(maps)
    result = torch.zeros(best.shape, dtype=torch.int64)
    for k, share in enumerate(maps, 1):
        result = torch.where(share > best, k, result)
        best = torch.maximum(share, best)
    return result


def to_native(probability: Float[Tensor, "k *s"], transform: GridTransform) -> Float[np.ndarray, "k *n"]:
    """Probabilities from the grid to the file's voxels: linear where the grid was resampled, otherwise bit for bit.

    What the plan crops away is background.
    """
    return _resample_to_native(probability, transform, background=1.0)


def maps_to_native(maps: Float[Tensor, "m *s"], transform: GridTransform) -> Float[np.ndarray, "m *n"]:
    """The same for maps that are no probabilities, such as an entropy; 0 in what the plan crops away."""
    return _resample_to_native(maps, transform, background=0.0)


@timed("back")
def _resample_to_native(x: Tensor, transform: GridTransform, background: float) -> np.ndarray:
    """Map after map: beside the result, no more than one of them is held."""
    turned = transform.reorientation is not None and not np.array_equal(transform.reorientation, _STRAIGHT)
    if transform.kept == transform.grid == transform.oriented and not turned and transform.shown is None:
        return x.detach().float().cpu().numpy()
    back = None if transform.reorientation is None else nib.orientations.ornt_transform(_STRAIGHT, transform.reorientation)
    found = scratch.zeros((len(x), *transform.native))
    for number, one in enumerate(x.detach()):
        one = one.float().cpu()
        if transform.kept != transform.grid:
            whole = scratch.tensor(transform.grid)
            for part in blocks(transform.grid) if background and number == 0 else ():
                whole[part] = background
            copy(one.numpy(), whole[transform.window].numpy())
            one = whole
        copy(_turned(_resize(one[None], transform.oriented).numpy(), back)[0], found[number])
        _hide(found[number], transform.shown, background if number == 0 else 0.0)
    return found


def _hide(values: np.ndarray, shown: tuple[slice, ...] | None, background: float) -> None:
    """Background in what is not shown, one axis after the other."""
    for axis, part in enumerate(shown or ()):
        for beyond in (slice(0, part.start), slice(part.stop, None)):
            values[(slice(None),) * axis + (beyond,)] = background


_STRAIGHT = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def _check_kind(image: Image, plan: Plan) -> None:
    volumes = plan.orientation is not None or plan.dims == 3
    if volumes and image.dims != 3:
        what = f"a picture of shape {image.shape}, but the plan is for volumes"
        raise UserError(what, file=image.source, do="Give volumes, or take a model that was trained on pictures")
    if plan.spacing is not None and len(plan.spacing) != image.dims:
        what = f"an image with {image.dims} axes, but the plan has a spacing for {len(plan.spacing)}"
        raise UserError(what, file=image.source, do="Give images like those of the training")
    if plan.crop is not None and len(plan.crop) != image.dims:
        what = f"an image with {image.dims} axes, but the plan has a crop of {len(plan.crop)}"
        raise UserError(what, file=image.source, do="Give images like those of the training")
    if len(image.data) != len(plan.channels):
        what = f"{pluralize(len(image.data), 'channel')}, but the plan has {len(plan.channels)} ({', '.join(plan.channels)})"
        raise UserError(what, file=image.source, do="Give images with these channels, in this order")


def _check_kept(shape: tuple[int, ...], grid: tuple[int, ...], image: Image, plan: Plan) -> None:
    """Refuse an image of which the plan's grid keeps next to nothing, and warn of one that it changes very much."""
    change = math.prod(grid) / math.prod(shape)
    what = f"{by(shape)} voxels of {by(image.spacing)} mm become {by(grid)} on the plan's grid of {by(plan.spacing or ())} mm"
    do = "Are spacing and unit of length in its header right?"
    if change < 0.01 and max(grid) < 8:
        raise UserError(f"{what}: next to nothing is left", file=image.source, do=do)
    lost = any(n >= 8 and m == 1 for n, m in zip(shape, grid, strict=True))
    if change < 0.01 or change > 100 or lost:
        warn_once(image.source, f"{what}. {do}")


def _samples(n: int, factor: float) -> int:
    """Voxels along an axis after resampling; a single slice stays single, whatever its thickness."""
    return 1 if n == 1 else max(1, round(n * factor))


def _reorient(data: np.ndarray, reorientation: np.ndarray | None) -> np.ndarray:
    return data if reorientation is None else _turned(data, reorientation).copy()


def _turned(data: np.ndarray, reorientation: np.ndarray | None) -> np.ndarray:
    """A view of channels with their axes turned and flipped."""
    if reorientation is None:
        return data
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(data, 0, -1), reorientation), -1, 0)


def _zoom(before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Voxel of the resampled grid -> voxel of the grid before, both covering one extent."""
    matrix = np.eye(4)
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        matrix[axis, axis] = n / m
        matrix[axis, 3] = (n / m - 1) / 2
    return matrix


def _check_size(before: Sequence[int], after: Sequence[int]) -> None:
    if tuple(before) != tuple(after) and math.prod(after) > MOST_VOXELS:
        what = f"{by(after)} voxels at the plan's spacing, of {by(before)}"
        raise UserError(f"{what}: that is too fine", do="Give the plan a larger spacing, in mm.")


def _resize(x: Float[Tensor, "c *s"], shape: tuple[int, ...]) -> Float[Tensor, "c *s2"]:
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    _check_size(x.shape[1:], shape)
    mode = {"mode": LINEAR[len(shape)], "align_corners": False}
    if len(shape) == 1 or not (scratch.is_large(x.shape) or scratch.is_large(shape)):
        return F.interpolate(x[None], size=shape, **mode)[0]
    found = scratch.tensor((len(x), *shape))
    for part in blocks(shape, SLAB // 4):
        found[:, part] = _rows(x, shape, part)
    return found


def _rows(x: Float[Tensor, "c *s"], shape: tuple[int, ...], part: slice) -> Float[Tensor, "c *s2"]:
    """Some rows of what `F.interpolate` makes of x: the other axes by it, the first one in the same single precision."""
    n = x.shape[1]
    scale = torch.tensor(n, dtype=torch.float32) / shape[0]
    place = (scale * (torch.arange(part.start, part.stop, dtype=torch.float32) + 0.5) - 0.5).clamp(min=0)
    low = place.long().clamp(max=n - 1)
    high, share = (low + 1).clamp(max=n - 1), (place - low).reshape(-1, *[1] * (len(shape) - 1))
    first = int(low[0])
    near = x[:, first : int(high[-1]) + 1]
    slices = near.flatten(0, 1)[:, None]
    resized = F.interpolate(slices, size=shape[1:], mode=LINEAR[len(shape) - 1], align_corners=False)
    near = resized[:, 0].unflatten(0, near.shape[:2])
    return (1 - share) * near[:, low - first] + share * near[:, high - first]
