"""From a signed map of sensitivity to a mask, without a mask to learn from: which part, how smooth, where to cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from scipy.ndimage import label as components
from scipy.special import expit
from torch import Tensor

Part = Literal["signed", "positive", "negative", "absolute"]
Rule = Literal["border", "otsu", "triangle", "deviation", "quantile", "fixed"]
CANDIDATES = np.linspace(0.8, 0.995, 40)  # quantiles of the map that "border" tries
RIM = 2  # voxels on either side of a border
STEEP = 4.0  # of the logistic function: 0.018 where the map is 0, 0.982 where it is twice the threshold


@dataclass(frozen=True)
class Cut:
    """How a map becomes a mask.

    smooth     standard deviation of a Gaussian, in voxels of the plan's grid; 0 for none
    threshold  "quantile" of all voxels; "fixed": that share of the way from the smallest to the largest value; "deviation":
               so many robust standard deviations above the median; "otsu" and "triangle" choose by the map's histogram,
               "border" by the image
    largest    keep the largest connected component only (neighbours share a side)
    """

    smooth: float = 1.0
    threshold: Rule = "quantile"
    quantile: float = 0.97
    fixed: float = 0.5
    deviations: float = 4.0
    largest: bool = True


def part_of(change: Float[Tensor, "n c *s"], part: Part) -> Float[Tensor, "n *s"]:
    """One map from all channels: their mean (its positive or negative part), or the root mean square of them."""
    if part == "absolute":
        return change.square().mean(1).sqrt()
    mean = change.mean(1)
    if part == "signed":
        return mean
    return mean.clamp(min=0) if part == "positive" else (-mean).clamp(min=0)


def evidence(saliency: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """A map m as (1 + m / max|m|) / 2: in [0, 1], one half where the condition makes no difference, everywhere if m = 0."""
    largest = saliency.abs().max()
    return (1 + saliency / largest) / 2 if largest > 0 else torch.full_like(saliency, 0.5)


def cut(evidence: Float[Tensor, "*s"], how: Cut, image: Float[Tensor, "c *s"]) -> Float[Tensor, "*s"]:
    """A probability-like map in [0, 1]: a logistic function of the map that is one half at the threshold. Not calibrated.

    0.018 where the map is 0, 0.982 at twice the threshold, 0 everywhere if no value is above 0. With `largest`, what lies
    outside the largest component stays just below one half.
    """
    m = (2 * evidence.detach().double().cpu() - 1).numpy()
    if how.smooth:
        m = gaussian_filter(m, how.smooth, mode="nearest")
    if not m.max() > 1e-9:
        return torch.zeros_like(evidence)
    threshold = max(THRESHOLDS[how.threshold](m, how, image.detach().double().cpu().numpy()), 1e-3 * float(m.max()))
    p = expit(STEEP * (m - threshold) / threshold)
    if how.largest:
        p = np.where(largest_component(m > threshold) | (m <= threshold), p, np.minimum(p, 0.499))
    return torch.from_numpy(p).to(evidence)


def largest_component(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """The largest connected component, the first of equal ones; nothing of nothing."""
    labels = np.asarray(components(mask)[0])  # type: ignore[index]
    if not labels.any():
        return mask
    return labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def border(m: Float[np.ndarray, "*s"], how: Cut, image: Float[np.ndarray, "c *s"]) -> float:
    """The cut whose border the image itself shows best: largest difference of its intensities just inside and just outside.

    The difference is counted in its standard errors (Welch's t), so that a handful of voxels is not a border; the channel
    that shows it best counts. Without such a border it is a guess. Tries quantiles CANDIDATES of the map.
    """
    values, scores = np.quantile(m, CANDIDATES), []
    for value in values:
        inside: np.ndarray = largest_component(m > value) if how.largest else m > value
        outer = binary_dilation(inside, iterations=RIM) & ~inside
        inner = inside & ~binary_erosion(inside, iterations=RIM)
        if min(inner.sum(), outer.sum()) < 2:
            scores.append(-np.inf)
            continue
        a, b = image[:, inner], image[:, outer]
        error = np.sqrt(a.var(1, ddof=1) / a.shape[1] + b.var(1, ddof=1) / b.shape[1])
        scores.append(float((np.abs(a.mean(1) - b.mean(1)) / np.maximum(error, 1e-12)).max()))
    return float(values[int(np.argmax(scores))])


def otsu(m: Float[np.ndarray, "*s"], how: Cut, image: np.ndarray) -> float:
    """The cut with the largest variance between its two classes (Otsu 1979), over all values there are; exact."""
    values = np.sort(m, axis=None)
    n = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    lower, upper = below / n, (values.sum() - below) / (len(values) - n)
    between = n * (len(values) - n) * np.square(upper - lower)
    between[values[1:] == values[:-1]] = -1  # equal values are not parted
    best = int(between.argmax())
    return float((values[best] + values[best + 1]) / 2)


def triangle(m: Float[np.ndarray, "*s"], how: Cut, image: np.ndarray) -> float:
    """The corner of a histogram with one peak and a long upper tail: farthest from the line peak - end (Zack 1977)."""
    counts, edges = np.histogram(m, 256)
    peak, end = int(counts.argmax()), int(np.flatnonzero(counts)[-1])
    if end <= peak + 1:
        return float(edges[end])
    x = np.arange(peak, end + 1)
    line = counts[peak] + (counts[end] - counts[peak]) * (x - peak) / (end - peak)
    return float(edges[peak + int((line - counts[x]).argmax()) + 1])


def deviation(m: Float[np.ndarray, "*s"], how: Cut, image: np.ndarray) -> float:
    """So many robust standard deviations (1.4826 times the median absolute deviation) above the median."""
    median = np.median(m)
    return float(median + how.deviations * 1.4826 * np.median(np.abs(m - median)))


def quantile(m: Float[np.ndarray, "*s"], how: Cut, image: np.ndarray) -> float:
    """The value that this share of the voxels is below."""
    return float(np.quantile(m, how.quantile))


def fixed(m: Float[np.ndarray, "*s"], how: Cut, image: np.ndarray) -> float:
    """A share of the way from the smallest to the largest value."""
    return float(m.min() + how.fixed * (m.max() - m.min()))


THRESHOLDS: dict[str, Callable[[np.ndarray, Cut, np.ndarray], float]] = {
    "border": border,
    "otsu": otsu,
    "triangle": triangle,
    "deviation": deviation,
    "quantile": quantile,
    "fixed": fixed,
}
