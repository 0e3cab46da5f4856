"""A prediction's memory grows by a bounded number of bytes for each further voxel."""

import pytest

from benchmarks.memory import measure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "large", "most"),
    [((64, 64, 64), (128, 128, 96), 110), ((500, 500), (1500, 1000), 110)],
)
def test_bytes_of_each_further_voxel(small, large, most):
    """Two draws of three classes made together: 76 bytes beside what is read and written."""
    few, many = (measure(shape) for shape in (small, large))
    assert (many["peak_mb"] - few["peak_mb"]) * 1e6 / (many["voxels"] - few["voxels"]) < most
