"""Part of an image: a box of its voxels, the box round the foreground of a mask on the same grid, or the tissue of a slide."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.data import io
from diffuseg.data.plan import Plan
from diffuseg.data.transforms import GridTransform
from diffuseg.errors import UserError
from diffuseg.text import by
from diffuseg.types import Image

Box = tuple[slice, ...]  # of the voxels of a file, in the order of its axes
_SHAPE = re.compile(r"\d*:\d*(,\d*:\d*){1,2}")
_FORM = "Give first:end of each axis in voxels, such as 10:60,0:48,5:30, or a mask file"


def region_name(text: str) -> str:
    """What tells a region from others: the box as it was asked for, or name and digest of a mask file.

    Raises:
        UserError: Neither a box nor a file.
    """
    if _SHAPE.fullmatch(text):
        return text
    with _mask_file(text).open("rb") as file:
        return f"{Path(text).name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def box_of(text: str, image: Image, plan: Plan, transform: GridTransform) -> Box:
    """The voxels of an image that a region means; round a mask so many more that the network sees as far as in training.

    Args:
        text: As `SamplingOptions.region` has it.
        image: As in its file.
        plan: Says how far the network sees.
        transform: Between the image's voxels and the grid.

    Raises:
        UserError: A box of other axes, without a voxel or beyond the image; a mask on another grid, or without foreground.
    """
    if _SHAPE.fullmatch(text):
        return _as_asked(text, image)
    from scipy import ndimage

    mask = io.read_mask(_mask_file(text))
    fault = io.grid_fault(mask, image)
    if fault:
        raise UserError(f"--region: not on the grid of {image.source or 'the image'}: {fault}", file=text)
    found = ndimage.find_objects((mask.data[0] > 0).astype(np.uint8))
    if not found:
        raise UserError("--region: this mask has no foreground", file=text, do="Leave out --region, or mark something")
    pairs = zip(found[0], _margin(plan, transform), image.shape, strict=True)
    return tuple(slice(max(part.start - more, 0), min(part.stop + more, n)) for part, more, n in pairs)


def _mask_file(text: str) -> Path:
    if not os.path.isfile(text):  # False of any text that is no name of a file
        raise UserError(f"--region {text}: neither a box nor a file", do=_FORM)
    return Path(text)


def cut(
    x: Float[Tensor, "c *s"], transform: GridTransform, box: Box, source: Path | None = None
) -> tuple[Float[Tensor, "c *s2"], GridTransform]:
    """The part of an image on the grid that covers a box, and its way back; all of it where the box is the whole image.

    Args:
        x: The image on the grid.
        transform: Between its voxels and the grid.
        box: In its voxels.
        source: Its file, for messages.

    Raises:
        UserError: The plan crops the box away.
    """
    if all(part == slice(0, n) for part, n in zip(box, transform.native, strict=True)):
        return x, transform
    covers = [slice(0, 0)] * len(box)
    for part, n, (axis, flip) in zip(box, transform.native, _axes(transform), strict=True):
        low, high = (part.start, part.stop) if flip > 0 else (n - part.stop, n - part.start)
        scale, end = transform.grid[axis] / n, transform.grid[axis]
        more = int(transform.grid[axis] != n)  # the way back looks at the next voxel too
        covers[axis] = slice(max(math.floor(low * scale) - more, 0), min(math.ceil(high * scale) + more, end))
    pairs = list(zip(covers, transform.window, strict=True))
    kept = [slice(max(one.start, other.start), min(one.stop, other.stop)) for one, other in pairs]
    if any(part.stop <= part.start for part in kept):
        raise UserError("--region: the model's plan looks at the middle of an image only, and this is beside it", file=source)
    inner = tuple(slice(p.start - s, p.stop - s) for p, s in zip(kept, transform.start, strict=True))
    shift = np.eye(4)
    shift[: len(inner), 3] = [part.start for part in inner]
    start, size = tuple(p.start for p in kept), tuple(p.stop - p.start for p in kept)
    narrow = replace(transform, start=start, kept=size, grid_affine=transform.grid_affine @ shift, shown=box)
    return x[(slice(None), *inner)].contiguous(), narrow


def tissue_on_grid(tissue: Bool[np.ndarray, "h w"], transform: GridTransform) -> Bool[np.ndarray, "*s"]:
    """A map of tissue that covers a whole slide, on the grid of its image.

    Args:
        tissue: On the thumbnail.
        transform: Between the image's pixels and the grid, of which it may keep a part.
    """
    pairs = zip(transform.start, transform.kept, transform.grid, tissue.shape, strict=True)
    rows, columns = (((start + np.arange(n) + 0.5) * small / grid).astype(int) for start, n, grid, small in pairs)
    found = scratch.zeros(transform.kept, bool)
    for part in blocks(transform.kept):
        found[part] = tissue[rows[part]][:, columns]
    return found


def _as_asked(text: str, image: Image) -> Box:
    ends = [part.split(":") for part in text.split(",")]
    if len(ends) != image.dims:
        what = f"--region {text}: {len(ends)} axes, the image has {image.dims}"
        raise UserError(what, file=image.source, do=_FORM)
    box = tuple(slice(int(low or 0), int(high or n)) for (low, high), n in zip(ends, image.shape, strict=True))
    if any(not part.start < part.stop <= n for part, n in zip(box, image.shape, strict=True)):
        raise UserError(f"--region {text}: no part of an image of {by(image.shape)} voxels", file=image.source, do=_FORM)
    return box


def _axes(transform: GridTransform) -> list[tuple[int, int]]:
    """Per axis of the file, the axis of the grid and 1, or -1 where it is flipped."""
    if transform.reorientation is None:
        return [(axis, 1) for axis in range(len(transform.native))]
    return [(int(axis), int(flip)) for axis, flip in transform.reorientation]


def _margin(plan: Plan, transform: GridTransform) -> Sequence[int]:
    """Voxels of the file, per axis: half a patch, and along the slices that a 2-D network sees those that it sees with them."""
    sizes = [math.ceil(size / 2) for size in plan.patch]
    if len(sizes) < len(transform.grid):
        sizes.insert(plan.slice_axis, plan.context)
    axes = enumerate(_axes(transform))
    return [math.ceil(sizes[grid] * transform.native[own] / transform.grid[grid]) for own, (grid, _) in axes]
