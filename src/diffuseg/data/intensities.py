"""Intensities as a plan wants them: by the image itself, or by what the training images are like."""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffuseg.blocks import blocks, percentiles
from diffuseg.data.plan import Plan


def normalise(x: Float[Tensor, "*s"], plan: Plan, channel: int) -> None:
    """Scale the intensities of one channel as the plan says, in their place.

    Args:
        x: float32; is changed.
        plan: Has the statistics of the channel.
        channel: Its number.
    """
    how = plan.normalisation[channel]
    if how == "zscore":
        return _zscore(x, plan.clip)
    statistics = plan.intensity[channel]
    for part in blocks(x.shape):
        if how == "ct":
            one = x[part].clamp(statistics["low"], statistics["high"]) if plan.clip else x[part]
            x[part] = (one - statistics["mean"]) / max(statistics["std"], 1e-6)
        else:
            low, high = statistics["low"], statistics["high"]
            x[part] = (2 * (x[part] - low) / (high - low) - 1).clamp(-1, 1)


def _zscore(x: Float[Tensor, "*s"], clip: bool = True) -> None:
    """Mean 0, deviation 1 of the voxels that are not 0 (often cut away), after clipping to their 0.5..99.5 percentiles.

    Without the clipping, these percentiles still decide mean and deviation: a hot spot does not darken the rest. In its place.
    """
    values = x.numpy()
    n, ends = percentiles(values, (0.5, 99.5))
    low, high = ends or (0.0, 0.0)
    shown = lambda part: values[part][values[part] != 0].astype(np.float64).clip(low, high)
    mean = sum(float(shown(part).sum()) for part in blocks(x.shape)) / max(n, 1)
    deviation = math.sqrt(sum(float(np.square(shown(part) - mean).sum()) for part in blocks(x.shape)) / max(n, 1))
    constant = deviation <= 1e-9 * max(abs(low), abs(high))  # up to rounding
    for part in blocks(x.shape):
        wide = x[part].double()
        x[part] = 0 if constant else (((wide.clamp_(low, high) if clip else wide) - mean) / deviation).float()
