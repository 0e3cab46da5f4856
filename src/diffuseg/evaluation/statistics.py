"""What a mean over few cases is worth: bootstrap intervals, over patients where one has several cases."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported where they are used first
from jaxtyping import Float, Int

CONFIDENCE = 0.95
RESAMPLES = 2000
EQUAL = 1e-9  # a spread that is rounding, in units of Dice, mm and ml alike
METHOD = "BCa bootstrap, widened for small n"


class Interval(NamedTuple):
    """A mean and the interval that covers the true one at the stated confidence."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, entry: Mapping[str, float | None]) -> "Interval":
        """That of an entry with mean, low and high, such as a summary.json has; None, which stands for NaN there, is NaN."""
        return cls(*(math.nan if (value := entry[end]) is None else float(value) for end in cls._fields))

    def text(self, digits: int, sign: str = "") -> str:
        """The mean with its interval; "-" without a value.

        Args:
            digits: After the point.
            sign: "+" to show both signs.
        """
        if math.isnan(self.mean):
            return "-"
        mean, low, high = (f"{number:{sign}.{digits}f}" for number in self)
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


def bootstrap_mean(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of values with its bootstrap interval (BCa, widened for small n); NaN values are left out.

    With `groups` (the patient of each case) whole groups are resampled, because cases of one patient tell less than as many
    patients. The mean is that over cases. The random numbers are its own: equal values give equal intervals, in whatever
    order they come. Of one group there is no interval: low and high are NaN.

    Args:
        values: [n].
        groups: The patient of each case; None: each is its own.

    Raises:
        ValueError: Groups are of another length.
    """
    array = np.asarray(values, np.float64)
    keys = list(range(len(array))) if groups is None else list(groups)
    if array.ndim != 1 or len(keys) != len(array):
        raise ValueError(f"values of shape {array.shape} and {len(keys)} groups")
    finite = np.isfinite(array)
    array, keys = array[finite], [key for key, keep in zip(keys, finite.tolist(), strict=True) if keep]
    if len(array) == 0:
        return Interval(math.nan, math.nan, math.nan)
    # Sorted first, so that neither the draws nor the rounding of a sum depend on the order.
    ordered: dict[Hashable, list[float]] = {}
    for value, key in sorted(zip(array.tolist(), keys, strict=True), key=lambda item: item[0]):
        ordered.setdefault(key, []).append(value)
    sums = np.array(sorted((sum(members), len(members)) for members in ordered.values()))
    mean = float(array[0]) if np.ptp(array) == 0 else float(sums[:, 0].sum() / sums[:, 1].sum())
    if len(sums) == 1:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(sums[:, 0] / sums[:, 1]) < EQUAL:  # every resample has this mean, and BCa nothing to correct
        return Interval(mean, mean, mean)
    return Interval(mean, *_interval(sums))


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of first - second over the same cases with its interval; pairs with a NaN are left out.

    Two results differ at CONFIDENCE where the interval does not contain 0.

    Args:
        first: Values [n].
        second: Values of the same cases.
        groups: The patient of each case; None: each is its own.

    Raises:
        ValueError: Lengths differ.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs are needed, not shapes {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, groups)


def bootstrap_of(statistics: Callable[[Int[np.ndarray, " m"]], Sequence[float]], groups: Sequence[Hashable]) -> list[Interval]:
    """Any statistics of cases and their percentile intervals: `statistics(chosen)` gets the numbers of the cases.

    Whole groups (the patient of each case) are drawn with replacement, so a case may be chosen several times; widened for
    few groups like the interval of a mean. Of one group there is no interval: low and high are NaN. All statistics see the
    same resamples.

    Args:
        statistics: (numbers of cases [m]) -> values, always as many.
        groups: The patient of each case.

    Raises:
        ValueError: There is no case.
    """
    names = list(dict.fromkeys(groups))
    if not names:
        raise ValueError("a statistic of no case")
    members = [np.array([i for i, key in enumerate(groups) if key == name]) for name in names]
    values = statistics(np.arange(len(groups)))
    if len(names) == 1:
        return [Interval(value, math.nan, math.nan) for value in values]
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    resampled = [statistics(np.concatenate([members[g] for g in chosen])) for chosen in drawn]
    tail = 50 * (1 - _confidence_level(len(names)))
    lows, highs = np.percentile(resampled, (tail, 100 - tail), axis=0)
    return [Interval(*map(float, found)) for found in zip(values, lows, highs, strict=True)]


def group_folds(groups: Sequence[Hashable], folds: int) -> Int[np.ndarray, " n"]:
    """The fold of each case, 0 .. folds - 1: groups shuffled and dealt out, so that none is in two folds.

    Args:
        groups: The patient of each case.
        folds: How many.

    Raises:
        ValueError: Folds are not 2 .. the number of groups.
    """
    names = list(dict.fromkeys(groups))
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} groups")
    places = np.random.default_rng(0).permutation(len(names)) % folds
    numbers = dict(zip(names, places.tolist(), strict=True))
    return np.array([numbers[key] for key in groups])


def _interval(sums: Float[np.ndarray, "n 2"]) -> tuple[float, float]:
    """Interval of the ratio of two sums: over groups, the sum of their values and the number of them."""
    interval = scipy.stats.bootstrap(
        (sums[:, 0], sums[:, 1]),
        lambda total, count, axis=-1: total.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=_confidence_level(len(sums)),
        method="BCa",
        batch=500,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _confidence_level(n: int) -> float:
    """The confidence to ask of a bootstrap over n groups so that it keeps CONFIDENCE.

    Resampling knows the spread of n values as if n were large: at n = 10, 95 % intervals cover the truth 89 % of the time.
    This is the expanded percentile interval of Hesterberg (2015): Student's t and sqrt(n / (n - 1)) in place of the normal.
    """
    t = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * math.sqrt(n / (n - 1))
    return min(1 - 2 * float(scipy.stats.norm.sf(t)), 0.9999)
