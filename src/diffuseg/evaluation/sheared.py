"""Distances in mm on grids whose axes are not at right angles, such as a CT with gantry tilt.

There a spacing per axis says too little: what is needed are the steps, a matrix [3, d] whose columns are the ways in mm from a
voxel to the next one along each axis. Measures take either; definitions are those of `metrics.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its parts are imported where they are used first
from jaxtyping import Bool, Float

from diffuseg.types import Steps, is_sheared, spacing_of


def diagonal(shape: Sequence[int], steps: Steps) -> float:
    """The longest diagonal of a grid in mm."""
    if not is_sheared(steps):
        return math.hypot(*(n * mm for n, mm in zip(shape, spacing_of(steps), strict=True)))
    signs = np.array(list(np.ndindex(*[2] * len(shape)))) * 2 - 1
    return float(np.linalg.norm((signs * np.array(shape)) @ np.asarray(steps).T, axis=1).max())


def hd95(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], steps: np.ndarray) -> float:
    """The larger 95th percentile of the distances from the border voxels of one mask to those of the other, in mm.

    Args:
        prediction: Mask with at least one voxel.
        truth: Another.
        steps: Ways to the next voxel in mm, one column [3] per axis.
    """
    one, other = (
        np.argwhere(mask & ~np.asarray(scipy.ndimage.binary_erosion(mask), bool)) @ steps.T for mask in (prediction, truth)
    )
    there, back = scipy.spatial.KDTree(other).query(one)[0], scipy.spatial.KDTree(one).query(other)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def nsd(prediction: Bool[np.ndarray, "*s"], truth: Bool[np.ndarray, "*s"], steps: np.ndarray, within: float) -> float:
    """The part of both surfaces, by area in mm2 (length in 2-D), that lies near the other one.

    Args:
        prediction: Mask with at least one voxel.
        truth: Another.
        steps: Ways to the next voxel in mm, one column [3] per axis.
        within: mm that are near.
    """
    (one, one_area), (other, other_area) = (_surface(mask, steps) for mask in (prediction, truth))
    near = (
        one_area[scipy.spatial.KDTree(other).query(one)[0] <= within].sum()
        + other_area[scipy.spatial.KDTree(one).query(other)[0] <= within].sum()
    )
    return float(near / (one_area.sum() + other_area.sum()))


def depth(inside: Bool[np.ndarray, "*s"], steps: np.ndarray, most: float) -> Float[np.ndarray, "*s"]:
    """Distance of each inner voxel's centre to the nearest voxel outside; infinite beyond `most` mm, 0 outside.

    Args:
        inside: A mask.
        steps: Ways to the next voxel in mm, one column [3] per axis.
        most: mm.
    """
    result = np.zeros(inside.shape)
    points, outside = np.argwhere(inside), np.argwhere(~inside)
    if len(points):
        found = (
            scipy.spatial.KDTree(outside @ steps.T).query(points @ steps.T, distance_upper_bound=most) if len(outside) else None
        )
        result[inside] = math.inf if found is None else found[0]
    return result


def _surface(mask: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pieces of the surface lie, one in each cell between neighbouring voxels that differ, and their areas."""
    padded, dims = np.pad(mask, 1).astype(np.int64), mask.ndim
    corners = list(np.ndindex(*[2] * dims))
    cell = tuple(n - 1 for n in padded.shape)
    code = np.zeros(cell, np.int64)
    for bit, corner in enumerate(reversed(corners)):
        code += padded[tuple(slice(c, c + n) for c, n in zip(corner, cell, strict=True))] << bit
    areas = _areas(steps) if dims == 3 else _lengths(steps)
    here = np.argwhere((code > 0) & (code < len(areas) - 1))
    return here @ steps.T, areas[code[tuple(here.T)]]


def _areas(steps: np.ndarray) -> np.ndarray:
    """Area of the marching-cubes surface of each of the 256 cells; an area maps by the cofactors of the matrix."""
    from monai.metrics import utils

    normals = np.asarray(utils._get_neighbour_code_to_normals_table("cpu"), np.float64)  # [256, 4, 3], of unit cubes
    cofactors = np.linalg.det(steps) * np.linalg.inv(steps).T
    return np.linalg.norm(normals @ cofactors.T, axis=-1).sum(-1)


def _lengths(steps: np.ndarray) -> np.ndarray:
    """Length of the contour in each of the 16 cells of a picture, corners (0, 0), (0, 1), (1, 0), (1, 1) as bits 8, 4, 2, 1."""
    e0, e1 = steps.T
    minus, plus = np.linalg.norm(e0 - e1) / 2, np.linalg.norm(e0 + e1) / 2  # about corners (0, 0) or (1, 1); about the others
    first, second = np.linalg.norm(e0), np.linalg.norm(e1)
    half = [0, minus, plus, second, plus, first, 2 * plus, minus]
    return np.array([*half, *half[::-1]])
