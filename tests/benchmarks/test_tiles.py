"""Seams are where tiles meet, and the clock of a training leaves validations out."""

import signal
import time

import numpy as np
import pytest

from benchmarks.tiles import count, seams
from benchmarks.time_to_dice import Clock, first


def test_seams_are_where_tiles_without_overlap_meet():
    """Three tiles of 4 cover 10 voxels from 0, 3 and 6 on: they meet between 3 and 4, and between 6 and 7."""
    found = seams((10, 4), (4, 4), near=1)
    assert np.flatnonzero(found[:, 0]).tolist() == [2, 3, 4, 5, 6, 7]
    assert (found == found[:, :1]).all(), "along the second axis one tile is enough"


def test_a_picture_of_1000_by_1000_is_49_tiles_of_256_that_overlap_by_half():
    assert [count((1000, 1000), (256, 256), overlap) for overlap in (0.0, 0.25, 0.5)] == [16, 25, 49]
    assert count((100, 300), (256, 256), 0.0) == 2


def test_time_to_a_dice_leaves_validations_out_and_ends_when_it_is_enough(monkeypatch):
    now = iter([10, 13, 113, 118, 218])
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without it
    clock = Clock(0.9)
    clock.log({"network/loss": 1.0}, 1)
    clock.log({"validation/dice": 0.5}, 1)
    clock.log({"network/loss": 0.5}, 2)
    with pytest.raises(KeyboardInterrupt):
        clock.log({"validation/dice": 0.9}, 2)
    assert clock.points == [(1, 3, 0.5), (2, 8, 0.9)]
    assert (first(clock.points, 0.4), first(clock.points, 0.6), first(clock.points, 0.95)) == ((1, 3), (2, 8), None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
