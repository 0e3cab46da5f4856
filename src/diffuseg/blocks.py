"""Work on large arrays a part at a time: what is computed in between never has the size of the whole."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Integer, Num

VOXELS = 2**19  # of a block, or of one row of it where that is more


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the first axis that cover an array of this shape, in order."""
    if not shape:
        return
    rows = max(1, VOXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def largest(values: Num[np.ndarray, "k *s"]) -> Integer[np.ndarray, "*s"]:
    """The index of the largest of k values, of equals the first; in the smallest unsigned type that holds it."""
    shape = values.shape[1:]
    found = np.empty(shape, np.uint8 if len(values) <= 256 else np.uint16)
    for part in blocks(shape):
        best, index = values[0, part].copy(), np.zeros_like(found[part])
        for k in range(1, len(values)):
            index[values[k, part] > best] = k
            np.maximum(best, values[k, part], out=best)
        found[part] = index
    return found


def take(values: Num[np.ndarray, " k"], index: Integer[np.ndarray, "*s"]) -> Num[np.ndarray, "*s"]:
    """values[index]."""
    found = np.empty(index.shape, values.dtype)
    for part in blocks(index.shape):
        found[part] = values[index[part]]
    return found


def all_finite(values: Num[np.ndarray, "k *s"]) -> bool:
    """Whether there is neither NaN nor infinity."""
    return all(bool(np.isfinite(values[:, part]).all()) for part in blocks(values.shape[1:]))


def counts(index: Integer[np.ndarray, "*s"], k: int) -> list[int]:
    """How often each of 0 .. k - 1 is there."""
    total = np.zeros(k, np.int64)
    for part in blocks(index.shape):
        total += np.bincount(index[part].ravel(), minlength=k)
    return total.tolist()
