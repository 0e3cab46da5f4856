"""A prediction's memory grows by a bounded number of bytes for each further voxel."""

import pytest

from benchmarks.memory import measure, packaged, together
from benchmarks.tables.memory import further, slope


def test_a_slope_is_that_between_the_image_that_is_named_and_the_largest():
    """100 MB, then 4 bytes for each of 10 million voxels, then 2 for each of 100 million more."""
    rows = [(1, 100.0), (111, 340.0), (11, 140.0)]
    found = [{"label": "now", "voxels": voxels * 10**6, "peak_mb": peak} for voxels, peak in rows]
    assert (slope(found, "now", -2), slope(found[::2], "now"), slope(found, "before")) == ("2.0 bytes", "4.0 bytes", "-")


def test_the_time_of_a_further_voxel_leaves_the_start_out():
    """3 s for the start and 0.5 microseconds for each voxel."""
    rows = [{"label": "now", "voxels": n, "cpu_seconds": 3 + 0.5e-6 * n} for n in (10**4, 10**6, 10**7)]
    assert {further(rows, row) for row in rows[1:]} == {"0.50 µs"}
    rounds = [{"peak_mb": peak, "seconds": s, "cpu_seconds": s / 2} for peak, s in ((5.0, 2.0), (7.0, 4.0))]
    assert together(rounds) == {"peak_mb": 7.0, "seconds": 3.0, "cpu_seconds": 1.5, "rounds": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "large", "most"),
    [((64, 64, 64), (256, 256, 96), 40), ((500, 500), (3000, 2000), 80)],
)
def test_bytes_of_each_further_voxel(small, large, most):
    """Two draws of three classes made together: 76 bytes beside what is read and written, were they not in files.

    The preview of a picture has 4 million pixels at most, and is held.
    """
    few, many = (measure(shape) for shape in (small, large))
    assert (many["peak_mb"] - few["peak_mb"]) * 1e6 / (many["voxels"] - few["voxels"]) < most


@pytest.mark.slow
def test_32_draws_of_the_packaged_model_need_less_than_half_as_much_memory_again():
    """Mean and votes are gathered as draws are made: 8 of them are held at a time, whatever their number."""
    one, many = (packaged(draws)["peak_mb"] for draws in (1, 32))
    assert many < 1.5 * one
