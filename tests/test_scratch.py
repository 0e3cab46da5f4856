"""Arrays that are files: they behave as arrays, and leave nothing behind."""

import gc
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

from diffuseg import blocks, scratch
from diffuseg.errors import UserError
from diffuseg.methods import base


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 100)
    monkeypatch.setattr(blocks, "VOXELS", 40)


def test_values_stay_when_their_pages_are_released(small):
    array, tensor = scratch.zeros((70, 90), np.int16), scratch.tensor((50, 60))
    assert not array.any() and not tensor.any()
    array[:] = np.arange(6300).reshape(70, 90)
    tensor += 2
    scratch.release()
    np.testing.assert_array_equal(array.ravel(), np.arange(6300))
    assert (tensor == 2).all()


def resident(array) -> int:
    """Bytes of the file of an array that are in the memory of this process."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if line.partition("-")[0] == f"{address:x}":
                return next(1024 * int(each.split()[1]) for each in lines if each.startswith("Rss:"))
    raise LookupError(hex(address))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system decides which pages are in memory")
def test_pages_stay_until_so_many_were_used(monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 2**16)
    monkeypatch.setattr(scratch, "KEPT", 1000)
    monkeypatch.setattr(scratch, "_used", 0)
    array = scratch.zeros((2**18,))
    for used, stay in ((600, True), (399, True), (1, False), (999, True), (None, False), (999, True), (1, False)):
        array += 1
        scratch.release(used)
        assert (resident(array) > 0) == stay, used
    assert (array == 7).all()


def test_no_file_is_left_behind(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    arrays = [scratch.zeros((100,)) for _ in range(5)]
    assert not list(tmp_path.iterdir())  # not even while they are there
    maps = len(scratch._maps)
    del arrays
    gc.collect()
    assert len(scratch._maps) == maps - 5
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_no_room_is_a_fault_that_says_where(small, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_reserve", full)
    with pytest.raises(UserError, match=r"no room for 4.0 GB .*No space left.*TMPDIR") as fault:
        scratch.zeros((10**9,))
    assert str(tmp_path) in str(fault.value)


def test_where_room_cannot_be_reserved_it_is_written(small, monkeypatch):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unknown)
    monkeypatch.setattr(scratch, "PIECE", 1000)
    array = scratch.zeros((999,))
    array += 1
    assert array.sum() == 999


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system decides which pages are in memory")
def test_memory_is_that_of_a_block():
    code = """
import resource, numpy as np
from diffuseg import scratch
from diffuseg.blocks import blocks
scratch.IN_MEMORY = 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = scratch.zeros((2**9, 2**16))
for part in blocks(x.shape):
    x[part] += 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 16000  # kB, of an array of 131000


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_copies_are_equal_whatever_the_order_of_the_axes(small, axes, flip):
    source = np.arange(7 * 11 * 13, dtype=np.float32).reshape(7, 11, 13).transpose(axes)
    source = np.flip(source, 1) if flip else source
    target = scratch.zeros(source.shape, np.int32)
    blocks.copy(source, target)
    np.testing.assert_array_equal(target, source)
    turned = scratch.zeros(source.shape[::-1]).T
    blocks.copy(target, turned)
    np.testing.assert_array_equal(turned, source)
    np.testing.assert_array_equal(blocks.as_type(source, np.int16), source)


@pytest.mark.parametrize("n", [1, 2, 17, 1001])
def test_percentiles_are_those_of_numpy_and_rising_values_are_sorted(n, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    rng = np.random.default_rng(n)
    for values in (rng.normal(size=n), rng.integers(-2, 3, n), rng.gamma(2, 100, n) * (rng.random(n) > 0.5), np.full(n, -0.0)):
        values = values.astype(np.float32)
        shown = values[values != 0]
        count, found = blocks.percentiles(values, (0.5, 50.0, 99.5))
        assert count == shown.size
        assert found == (np.percentile(shown, (0.5, 50.0, 99.5)).tolist() if shown.size else [])
        monkeypatch.setattr(blocks, "TOGETHER", n // 3)
        sorted_values = np.concatenate(list(blocks.rising(values)))
        assert sorted_values.tobytes() == (np.sort(values) + np.float32(0)).tobytes()


@pytest.mark.parametrize("size", [5, 31, 64, 65, 1003])
def test_noise_is_the_same_in_pieces(size, monkeypatch):
    whole = [torch.randn((3, size), generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    monkeypatch.setattr(base, "NOISE", 32)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    found = base.noise_of(generators, (3, size))
    assert torch.equal(found, torch.stack(whole))
    after = torch.Generator().manual_seed(4)
    torch.randn((3, size), generator=after)
    assert torch.equal(generators[0].get_state(), after.get_state())
