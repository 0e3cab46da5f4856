"""From a signed saliency map to a mask, without a mask to learn from: which part, how smooth, where to cut."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are imported where they are used first
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg.errors import UserError
from diffuseg.methods.base import setting

Part = Literal["signed", "negative", "absolute"]
Rule = Literal["auto", "null_quantile", "quantile", "otsu", "otsu_twice", "fixed"]
AROUND = 5  # voxels around an object with which its intensities are compared
ROUNDS = 3  # of that comparison
MOST = 3.0  # weight of the intensities of one voxel at most, as a log-likelihood ratio
AT_NULL_THRESHOLD = 0.5  # m / (|m| + c) where m = c
STEEP = 4.0  # of the logistic function: 0.018 where the map is 0, 0.982 where it is twice the threshold


@dataclass(frozen=True)
class Binarization:
    """How a map becomes a mask.

    smooth     standard deviation of a Gaussian, in voxels of the plan's grid; 0 for none
    threshold  "null_quantile": what 99 % of the voxels of training images without the object are below, one for all images;
               "quantile" of all voxels; "fixed": that share of the way from the smallest to the largest value; "otsu" and
               "otsu_twice" choose by the values of the map; "auto": "null_quantile" where that is known, else "quantile"
    image      let the intensities of the image itself move the threshold: see `intensities`
    largest    keep the largest connected component only (neighbours share a side)
    """

    smooth: float = setting(1.0, 0, 100)
    threshold: Rule = "auto"
    quantile: float = setting(0.97, 0, 1)
    fixed: float = setting(0.5, 0, 1)
    image: bool = True
    largest: bool = True


def part_of(change: Float[Tensor, "n c *s"], part: Part) -> Float[Tensor, "n *s"]:
    """One map from all channels: their mean, the mean of their negative parts, or their root mean square.

    Signed is the mean: where the object is brighter in one channel and darker in another they cancel.
    """
    if part == "absolute":
        return change.square().mean(1).sqrt()
    if part == "signed":
        return change.mean(1)
    return (-change).clamp(min=0).mean(1)


def normalized_saliency(saliency: Float[Tensor, "*s"], null_threshold: float | None = None) -> Float[Tensor, "*s"]:
    """A map m as (1 + m / (|m| + c)) / 2, c the null threshold: in (0, 1), one half where m = 0, three quarters where m = c.

    Without one (1 + m / max|m|) / 2, each map by itself; one half everywhere if m = 0.

    Args:
        saliency: m, of any scale; 0 where the class makes no difference.
        null_threshold: c, of the calibration; None: there is none.

    Raises:
        ValueError: a null threshold that is not above 0.
    """
    if null_threshold is not None:
        if not null_threshold > 0:
            raise ValueError(f"a null threshold is above 0, not {null_threshold}")
        return (1 + saliency / (saliency.abs() + null_threshold)) / 2
    largest = saliency.abs().max()
    return (1 + saliency / largest) / 2 if largest > 0 else torch.full_like(saliency, 0.5)


def smoothed(saliency: Float[Tensor, "*s"], sigma: float) -> Float[np.ndarray, "*s"]:
    """Normalized saliency as a map in [-1, 1], after a Gaussian of so many voxels (0: none)."""
    m = (2 * saliency.detach().cpu().double() - 1).numpy()
    return scipy.ndimage.gaussian_filter(m, sigma, mode="nearest") if sigma else m


def logistic_mask(
    saliency: Float[Tensor, "*s"], settings: Binarization, image: Float[Tensor, "c *s"], calibrated: bool = False
) -> Float[Tensor, "*s"]:
    """A probability-like map in [0, 1]: a logistic function of the map that is one half at the threshold. Not calibrated.

    Without `settings.image` 0.018 where the map is 0, 0.982 at twice the threshold. The threshold is above 0; 0 everywhere if
    no value is. With `settings.largest`, what lies outside the largest component stays just below one half.

    Args:
        saliency: normalized.
        settings: threshold, smoothing, and what else makes a mask of a map.
        image: what the map is of.
        calibrated: whether it was normalized with a null threshold.

    Raises:
        UserError: the rule "null_quantile" without a null threshold.
    """
    rule = settings.threshold if settings.threshold != "auto" else "null_quantile" if calibrated else "quantile"
    if rule == "null_quantile" and not calibrated:
        raise UserError(
            "threshold=null_quantile: nothing is known about maps with these settings of images without the object",
            do="Give the settings of the training, another threshold, or `diffuseg calibrate-saliency MODEL DATASET --set ...`",
        )
    m = smoothed(saliency, settings.smooth)
    if not m.max() > 1e-9:
        return torch.zeros_like(saliency)
    if rule == "null_quantile":
        threshold = AT_NULL_THRESHOLD
    else:
        threshold = max(threshold_of(m, rule, settings), 1e-3 * float(m.max()))
    z = STEEP * (m - threshold) / threshold
    if settings.image and (z > 0).any():
        z = z + intensities(z, image.detach().cpu().double().numpy(), settings.largest)
    p = scipy.special.expit(z)
    if settings.largest:
        p = np.where(largest_component(z > 0) | (z <= 0), p, np.minimum(p, 0.499))
    return torch.from_numpy(p).to(saliency)


def intensities(z: Float[np.ndarray, "*s"], image: Float[np.ndarray, "c *s"], largest: bool) -> Float[np.ndarray, "*s"]:
    """Log-likelihood ratio of the object (z > 0) from the image: log p(intensities | object) - log p(intensities | around).

    One Gaussian per channel inside, one in the AROUND voxels around, by expectation maximisation with the map's z as prior
    logit; at most MOST either way. Further away nothing is object. Where the intensities are the same it changes nothing.

    Args:
        z: Prior logit [*s] of the object.
        image: Of the channels.
        largest: Whether the object is the largest connected part of what z shows.
    """
    inside = largest_component(z > 0) if largest else z > 0
    near = np.asarray(scipy.ndimage.distance_transform_edt(~inside)) <= AROUND
    floor, weight, ratio = 0.05 * image.reshape(len(image), -1).std(1) + 1e-6, inside.astype(float), np.zeros_like(z)
    for _ in range(ROUNDS):
        a, b = (_log_gaussian(image, share * near, floor) for share in (weight, 1 - weight))
        ratio = np.clip((a - b).sum(0), -MOST, MOST)
        weight = scipy.special.expit(z + ratio)
    return np.where(near, ratio, -np.maximum(z, 0) - MOST)


def _log_gaussian(image: np.ndarray, weight: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Log density of each channel's weighted mean and deviation (at least `floor`, [c]) at each voxel, up to a constant."""
    axes, shape = tuple(range(1, image.ndim)), (-1, *[1] * weight.ndim)
    total = max(float(weight.sum()), 1e-9)
    mean = ((weight * image).sum(axes) / total).reshape(shape)
    deviation = np.sqrt((weight * (image - mean) ** 2).sum(axes) / total + floor**2).reshape(shape)
    return -((image - mean) ** 2) / (2 * deviation**2) - np.log(deviation)


def largest_component(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """The largest connected component, the first of equal ones; nothing of nothing."""
    labels = np.asarray(scipy.ndimage.label(mask)[0])  # type: ignore[index]
    if not labels.any():
        return mask
    return labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def threshold_of(m: Float[np.ndarray, "*s"], rule: Rule, settings: Binarization) -> float:
    """Where a rule that looks at this map alone cuts it: "quantile", "fixed", "otsu" or "otsu_twice".

    Args:
        m: A map in [-1, 1].
        rule: Its name.
        settings: Its quantile, or its fixed share of the map's range.
    """
    if rule == "quantile":
        return float(np.quantile(m, settings.quantile))
    if rule == "fixed":
        return float(m.min() + settings.fixed * (m.max() - m.min()))
    first = otsu(m)
    above = m[m > first]
    # Otsu's cut of what lies above Otsu's cut: for objects so small that the first cut separates nothing from little.
    return otsu(above) if rule == "otsu_twice" and above.max() > above.min() else first


def otsu(m: Float[np.ndarray, "*s"]) -> float:
    """The cut with the largest variance between its two classes, over all values there are; exact.

    References:
        Otsu 1979.
    """
    values = np.sort(m, axis=None)
    n = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    lower, upper = below / n, (values.sum() - below) / (len(values) - n)
    between = n * (len(values) - n) * np.square(upper - lower)
    between[values[1:] == values[:-1]] = -1  # equal values stay together
    best = int((between >= (1 - 1e-12) * between.max()).argmax())  # of equal ones the first, whatever the rounding
    return float((values[best] + values[best + 1]) / 2)
