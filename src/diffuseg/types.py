"""The types that packages hand to one another."""

# numpy does not say what np.prod returns here
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num

from diffuseg.text import by

Steps = Sequence[float] | Float[np.ndarray, "3 d"]  # spacing in mm per axis, or the way to the next voxel as a column per axis
RIGHT = 1e-3  # cosine of the angle between axes below which it counts as a right one: distances are off by no more


def steps_of(axes: Float[np.ndarray, "3 d"]) -> Steps:
    """The spacing per axis where the axes are at right angles, else the matrix itself."""
    spacing = np.linalg.norm(axes, axis=0)
    cosines = axes.T @ axes / np.outer(spacing, spacing)
    if np.abs(cosines - np.eye(len(spacing))).max() <= RIGHT:
        return tuple(float(v) for v in spacing)
    return axes


def is_sheared(steps: Steps) -> bool:
    """Whether steps are those of a sheared grid: a matrix."""
    return isinstance(steps, np.ndarray) and steps.ndim == 2


def spacing_of(steps: Steps) -> tuple[float, ...]:
    """Size of a voxel along each axis in mm."""
    return tuple(float(v) for v in (np.linalg.norm(steps, axis=0) if is_sheared(steps) else steps))


@dataclass(frozen=True, repr=False)
class Image:
    """Voxels of one case in file order, and where they lie in the world.

    data    [c, *s] with two (h, w) or three (i, j, k) spatial axes; any real dtype
    affine  [4, 4], voxel index -> world position in mm (RAS+, as NIfTI); the identity for plain 2-D pictures
    source  the first file it was read from, None if it was made in memory
    header  what the file format needs to write the same geometry and header back
    """

    data: Num[np.ndarray, "c *s"]
    affine: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    source: Path | None = None
    header: Any = None

    def __repr__(self) -> str:
        """One line, without the voxels."""
        size, spacing = by(self.shape), by(self.spacing)
        where = "" if self.source is None else f", {self.source}"
        return f"Image({len(self.data)} of {size}, {self.data.dtype}, voxels of {spacing} mm{where})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape *s."""
        return tuple(self.data.shape[1:])

    @property
    def dims(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return self.data.ndim - 1

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each spatial axis, in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, : self.dims], axis=0))

    @property
    def steps(self) -> Steps:
        """What distances are measured with: the spacing, or on a sheared grid the way to the next voxel along each axis."""
        return steps_of(self.affine[:3, : self.dims])

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml, by the determinant of the affine; a pixel of a picture is taken to be 1 mm thick."""
        return voxel_ml(self.affine, self.dims)


def voxel_ml(affine: Float[np.ndarray, "4 4"], dims: int) -> float:
    """Volume of a voxel of a grid in ml, right on sheared grids too; the pixel of a picture is taken to be 1 mm thick."""
    if dims == 3:
        return float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    axes = affine[:3, :dims]
    if not is_sheared(steps_of(axes)):
        return float(np.prod(np.linalg.norm(axes, axis=0))) / 1000
    return float(np.sqrt(np.linalg.det(axes.T @ axes))) / 1000


@dataclass
class Batch:
    """What one training step sees, on the grid of the plan.

    image  [b, c, *s] normalised intensities (2.5-D: the neighbouring slices are further channels)
    mask   [b, k, *s] one-hot in {0, 1}, class 0 is background; all 0 where nobody has annotated; None where only image-level
           labels exist
    raters [b, r, k, *s] the masks of all raters, where the plan says raters=all; `mask` is that of one of them
    label  [b] image-level class; None where masks exist
    cases  the case of each element
    """

    image: Float[torch.Tensor, "b c *s"]
    mask: Float[torch.Tensor, "b k *s"] | None = None
    label: Num[torch.Tensor, " b"] | None = None
    cases: tuple[str, ...] = ()
    raters: Float[torch.Tensor, "b r k *s"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=True)
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        raters = None if self.raters is None else self.raters.to(device, non_blocking=True)
        return Batch(self.image.to(device, non_blocking=True), mask, label, self.cases, raters)
