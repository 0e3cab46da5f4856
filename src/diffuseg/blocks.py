"""Work on large arrays a block at a time, so that no intermediate array has the size of the whole."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from diffuseg import scratch

VOXELS = 2**19  # of a block, or of one row of it where that is more
SLAB = 8  # blocks that are turned at a time
TOGETHER = 2**25  # values that are sorted at a time
SIGN, HALF, ZERO = np.uint32(2**31), 2**16, 2**15  # bits of float32 as ordered numbers; ZERO: the upper half of 0


def blocks(shape: Sequence[int], times: int = 1) -> Iterator[slice]:
    """Slices of the first axis that cover an array of this shape, in order, of VOXELS voxels or so many times that.

    After each, `scratch.release`.
    """
    if not shape:
        return
    rows = max(1, times * VOXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))
        scratch.release()


def flat(array: np.ndarray) -> np.ndarray:
    """A view of all values in the order in which they lie in memory, for what does not depend on their places.

    With one axis, unless there are gaps between them.
    """
    ordered = array.transpose(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))
    return ordered.reshape(-1) if ordered.flags.c_contiguous else ordered


def copy(source: Num[np.ndarray, "*s"], target: Num[np.ndarray, "*s"]) -> None:
    """target[...] = source, where either may be large and their axes may lie in memory in another order."""
    if not source.ndim or not source.size:
        target[...] = source
        return
    ours, theirs = _slowest(target), _slowest(source)
    if source.size > SLAB * VOXELS * source.shape[ours] > 0 and source.ndim > 1:  # a row is too large
        for row in range(source.shape[ours]):
            copy(source.swapaxes(0, ours)[row], target.swapaxes(0, ours)[row])
        return
    rows = target.shape[ours : ours + 1] + target.shape[:ours] + target.shape[ours + 1 :]
    for slab in blocks(rows, 1 if ours == theirs else SLAB):
        index = [slice(None)] * source.ndim
        index[ours] = slab
        if ours == theirs:
            target[tuple(index)] = source[tuple(index)]
            continue
        inner = source[tuple(index)].swapaxes(0, theirs)
        for part in blocks(inner.shape, SLAB // 4):
            target[tuple(index)].swapaxes(0, theirs)[part] = inner[part]


def _slowest(array: np.ndarray) -> int:
    """The axis along which neighbours lie farthest apart in memory."""
    return max(range(array.ndim), key=lambda axis: abs(array.strides[axis]) * (array.shape[axis] > 1))


def as_type(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The values in another type, as `astype`: a large array in rows, any other as it lies in memory."""
    if not scratch.is_large(array.shape, dtype) or (array.dtype == dtype and array.flags.c_contiguous):
        return np.asarray(array, dtype)
    found = scratch.zeros(array.shape, dtype)
    copy(array, found)
    return found


def smallest_dtype(array: np.ndarray) -> np.ndarray:
    """Floats as float32; integers and booleans in the smallest of uint8, int16 and int32 that holds them.

    Raises:
        ValueError: Whole numbers need more than 32 bits.
    """
    if np.issubdtype(array.dtype, np.floating):
        return as_type(array, np.float32)
    low, high = map(int, extremes(array))
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return as_type(array, dtype)
    raise ValueError(f"values from {low} to {high} do not fit 32 bits")


def extremes(array: Num[np.ndarray, "*s"]) -> tuple[Any, Any]:
    """The smallest and the largest value."""
    values = flat(array)
    ends = [(values[part].min(), values[part].max()) for part in blocks(values.shape)]
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)


def percentiles(values: Float[np.ndarray, "*s"], q: Sequence[float]) -> tuple[int, list[float]]:
    """How many of the float32 values are not 0, and `np.percentile(..., q)` of those; no percentiles of none.

    Exact: of large arrays their order is found by counting, first by the upper half of their bits and then by the lower one.
    """
    if not scratch.is_large(values.shape):
        shown = values[values != 0]
        return shown.size, np.percentile(shown, q, overwrite_input=True).tolist() if shown.size else []
    values = flat(values)
    upper = upper_counts(values)
    upper[ZERO] -= sum(int((values[part] == 0).sum()) for part in blocks(values.shape))
    n, ends = int(upper.sum()), upper.cumsum()
    if not n:
        return 0, []
    places = [(n - 1) * (one / 100) for one in q]
    found: dict[int, float] = {}
    counts_of = cache(lambda half: counted(values, half))
    for rank in sorted({min(math.floor(place) + d, n - 1) for place in places for d in (0, 1)}):
        half = int(np.searchsorted(ends, rank, side="right"))
        lower = counts_of(half).copy()
        lower[0] *= half != ZERO
        low = int(np.searchsorted(lower.cumsum(), rank - (ends[half] - upper[half]), side="right"))
        found[rank] = float(_value(np.array([half * HALF + low], np.uint32))[0])
    return n, [_between(place, *(found[min(math.floor(place) + d, n - 1)] for d in (0, 1))) for place in places]


def _between(place: float, low: float, high: float) -> float:
    """Linear interpolation as numpy has it: the difference in single precision."""
    share, apart = place - math.floor(place), float(np.float32(high) - np.float32(low))
    return high - apart * (1 - share) if share >= 0.5 else low + apart * share


def rising(values: Float[np.ndarray, "*s"]) -> Iterator[Float[np.ndarray, " n"]]:
    """All float32 values by rising size, a part at a time; -0 is 0."""
    values = flat(values)
    upper, first = upper_counts(values), 0
    while first < HALF:
        last, total = first + 1, int(upper[first])
        while last < HALF and total + upper[last] <= TOGETHER:
            total += int(upper[last])
            last += 1
        if total > TOGETHER:
            for low, count in enumerate(counted(values, first).tolist()):
                bits = np.array([first * HALF + low], np.uint32)
                yield from (_value(bits).repeat(min(VOXELS, count - start)) for start in range(0, count, VOXELS))
        elif total:
            bits = np.concatenate([_within(values[part], first, last) for part in blocks(values.shape)])
            bits.sort()
            yield _value(bits)
        first = last


def upper_counts(values: Float[np.ndarray, "*s"]) -> Integer[np.ndarray, " n"]:
    """How often each upper half of the bits is there, by rising value."""
    found = np.zeros(HALF, np.int64)
    for part in blocks(values.shape):
        found += np.bincount(_ordered(values[part]) >> 16, minlength=HALF)
    return found


def counted(values: Float[np.ndarray, "*s"], half: int) -> Integer[np.ndarray, " n"]:
    """How often each lower half is there among the values with this upper half of the bits.

    Args:
        values: float32.
        half: Upper half of the bits, as an ordered number.
    """
    found = np.zeros(HALF, np.int64)
    for part in blocks(values.shape):
        found += np.bincount(_within(values[part], half, half + 1) & (HALF - 1), minlength=HALF)
    return found


def _within(values: np.ndarray, first: int, last: int) -> np.ndarray:
    bits = _ordered(values)
    return bits[(bits >> 16 >= first) & (bits >> 16 < last)]


def _ordered(values: np.ndarray) -> Integer[np.ndarray, " n"]:
    """The bits of float32 values as whole numbers that rise with them; -0 is 0."""
    bits = (values.astype(np.float32).ravel() + np.float32(0)).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(bits: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.where(bits & SIGN, bits ^ SIGN, ~bits).view(np.float32)


def largest(values: Num[np.ndarray, "k *s"]) -> Integer[np.ndarray, "*s"]:
    """The index of the largest of k values, of equals the first; in the smallest unsigned type that holds it."""
    shape = values.shape[1:]
    found = scratch.zeros(shape, np.uint8 if len(values) <= 256 else np.uint16)
    for part in blocks(shape):
        best, index = values[0, part].copy(), np.zeros_like(found[part])
        for k in range(1, len(values)):
            index[values[k, part] > best] = k
            np.maximum(best, values[k, part], out=best)
        found[part] = index
    return found


def take(values: Num[np.ndarray, " k"], index: Integer[np.ndarray, "*s"]) -> Num[np.ndarray, "*s"]:
    """values[index]."""
    found = scratch.zeros(index.shape, values.dtype)
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
