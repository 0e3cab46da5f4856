"""Distances on grids whose axes are not at right angles: millimetres of the world, not of the axes."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from diffuseg.evaluation import sheared
from diffuseg.evaluation.calibration_metrics import band
from diffuseg.evaluation.metrics import hd95, nsd
from diffuseg.types import Image, steps_of, voxel_ml

TILT = np.array([[1.0, 0, 0], [0, 1.2, 1.5], [0, 0, 2.0]])  # columns are the steps: slices 2 mm apart, tilted


def blob(shape, steps, radius, centre=None):
    """A ball in the world, on a grid with these steps."""
    where = np.moveaxis(np.indices(shape), 0, -1) @ np.asarray(steps).T
    centre = where[tuple(n // 2 for n in shape)] if centre is None else centre
    return np.linalg.norm(where - centre, axis=-1) <= radius


@pytest.mark.parametrize("shape", [(12, 11, 9), (14, 12)])
def test_a_matrix_without_shear_measures_as_a_spacing_does(shape):
    spacing = (0.8, 1.0, 2.0)[: len(shape)]
    steps = np.eye(3)[:, : len(shape)] * spacing
    random = np.random.default_rng(0)
    for _ in range(5):
        one, other = (random.random(shape) < 0.2 for _ in range(2))
        assert sheared.hd95(one, other, steps) == pytest.approx(hd95(one, other, spacing), rel=1e-5)
        for within in (0.9, 1.1):
            assert sheared.nsd(one, other, steps, within) == pytest.approx(nsd(one, other, spacing, within), rel=1e-5)


def test_hausdorff_distance_on_a_sheared_grid_is_that_of_the_world():
    one = blob((20, 20, 14), TILT, 5)
    other = np.roll(one, 2, 2)
    points = [np.argwhere(mask & ~binary_erosion(mask)) @ TILT.T for mask in (one, other)]
    apart = cdist(*points)
    expected = max(np.percentile(apart.min(0), 95), np.percentile(apart.min(1), 95))
    assert hd95(one, other, TILT) == pytest.approx(expected)
    assert abs(hd95(one, other, tuple(np.linalg.norm(TILT, axis=0))) - expected) > 0.1  # by spacing alone it is another


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_face_of_a_sheared_block_has_the_area_of_its_parallelogram(axis):
    p, q = (a for a in range(3) if a != axis)

    def area(more_p: int, more_q: int) -> float:
        sides = np.array([4, 5, 6])
        sides[[p, q]] += more_p, more_q
        return sheared._surface(np.ones(sides, bool), TILT)[1].sum()

    grown = area(1, 1) - area(1, 0) - area(0, 1) + area(0, 0)  # of the two faces; walls and rims cancel
    assert grown == pytest.approx(2 * np.linalg.norm(np.cross(TILT[:, p], TILT[:, q])))


def test_the_surface_of_a_ball_hardly_depends_on_how_its_grid_leans():
    areas = []
    for lean in (0.0, 0.5, -0.5):
        steps = np.array([[1.0, 0, 0], [0, 1.0, lean], [0, 0, 1.0]])
        areas.append(sheared._surface(blob((34, 60, 34), steps, 12), steps)[1].sum())
    assert np.ptp(areas) < 0.03 * areas[0]


def test_the_outline_of_a_disc_does_not_depend_on_how_its_grid_leans():
    lengths = []
    for lean in (0.0, 0.7, -0.7):
        steps = np.array([[1.0, lean], [0, 1.0], [0, 0]])
        disc = blob((70, 44), steps, 14)
        assert disc.sum() == pytest.approx(math.pi * 14**2, rel=0.03)
        lengths.append(sheared._surface(disc, steps)[1].sum())
    assert np.ptp(lengths) < 0.06 * lengths[0]


def test_the_band_of_a_sheared_grid_is_measured_in_the_world():
    truth = blob((20, 22, 14), TILT, 6).astype(int)
    where = np.moveaxis(np.indices(truth.shape), 0, -1) @ TILT.T
    inside, outside = where[truth == 1], where[truth == 0]
    expected = np.zeros(truth.shape, bool)
    expected[truth == 1] = cdist(inside, outside).min(1) <= 3.0
    expected[truth == 0] = cdist(outside, inside).min(1) <= 3.0
    np.testing.assert_array_equal(band(truth, TILT), expected)


def test_only_a_grid_that_leans_is_a_matrix_and_volumes_are_by_determinant():
    affine = np.eye(4)
    affine[:3, :3] = TILT
    image = Image(np.zeros((1, 2, 2, 2)), affine)
    assert isinstance(image.steps, np.ndarray)
    assert image.voxel_ml == pytest.approx(1.2 * 2 / 1000)
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    assert steps_of(turned * (1, 2, 3)) == pytest.approx((1, 2, 3))
    flat = np.eye(4)
    flat[:2, :2] = [[1, 0.5], [0, 1]]
    assert voxel_ml(flat, 2) == pytest.approx(1 / 1000)
