"""The few types that travel between the rooms of the house."""

# numpy does not say what np.prod returns here
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num


@dataclass(frozen=True)
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
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml, by the determinant of the affine; a pixel of a picture is taken to be 1 mm thick."""
        return voxel_ml(self.affine, self.dims)


def voxel_ml(affine: Float[np.ndarray, "4 4"], dims: int) -> float:
    """Volume of a voxel of a grid in ml, right on sheared grids too; the pixel of a picture is taken to be 1 mm thick."""
    if dims == 3:
        return float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    return float(np.prod(np.linalg.norm(affine[:3, :dims], axis=0))) / 1000


@dataclass
class Batch:
    """What one training step sees, on the grid of the plan.

    image  [b, c, *s] normalised intensities (2.5-D: the neighbouring slices are further channels)
    mask   [b, k, *s] one-hot in {0, 1}, class 0 is background; None where only image-level labels exist
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
