"""A part at a time gives what the whole array gives."""

import numpy as np
import pytest

from diffuseg import blocks


@pytest.fixture(autouse=True, params=[1, 7, 2**19])
def size(monkeypatch, request):
    monkeypatch.setattr(blocks, "VOXELS", request.param)


@pytest.mark.parametrize("shape", [(1,), (5, 3), (4, 3, 2), (0, 3)])
def test_blocks_cover_the_first_axis_once_and_in_order(shape):
    rows = [row for part in blocks.blocks(shape) for row in range(shape[0])[part]]
    assert rows == list(range(shape[0]))
    assert not list(blocks.blocks(()))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_they_say_what_numpy_says(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (4, 6, 5, 2)).astype(dtype)  # many are equal
    index = blocks.largest(values)
    np.testing.assert_array_equal(index, values.argmax(0))
    assert index.dtype == np.uint8
    assert blocks.counts(index, 5) == np.bincount(index.ravel(), minlength=5).tolist()
    names = np.array([7, 0, 300, -2], np.int32)
    found = blocks.take(names, index)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, names[index])


def test_a_single_nan_is_found_wherever_it_is():
    values = np.zeros((2, 3, 4), np.float32)
    assert blocks.all_finite(values)
    for place in np.ndindex(values.shape):
        spoilt = values.copy()
        spoilt[place] = np.nan
        assert not blocks.all_finite(spoilt)
