"""A prediction's memory grows by a bounded number of bytes for each further voxel."""

import pytest

from benchmarks.memory import measure


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
