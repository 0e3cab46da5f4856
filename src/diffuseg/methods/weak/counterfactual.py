"""Counterfactual maps: the image minus what it would be without the object.

The image is encoded to noise without chance (DDIM upwards) and decoded again as "none"; where the two differ is the object.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.diffusion.samplers import ModelOutput, ddim, ddim_inversion, timesteps
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.methods.weak.sensitivity import Condition, Denoiser, start_timestep


def guided(
    plain: Denoiser, guide: Denoiser, none: Condition, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule,
    steps: int, depth: float,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """CG-Diff: encoded as "none" without guidance, decoded with the classifier's gradient to "none".

    Args:
        plain: (x_t, t, condition) -> x0_hat.
        guide: The same with the classifier's gradient.
        none: The condition y0, no object.
        x_0: Scaled images.
        schedule: How noise grows.
        steps: Upwards, and as many downwards.
        depth: log-SNR up to which they are encoded.

    Returns:
        x_0 minus what is decoded.

    References:
        Wolleb et al. 2022, "Diffusion models for medical anomaly detection".
    """
    y0 = none.rows(len(x_0))
    return x_0 - _decoded(lambda x, t: plain(x, t, y0), lambda x, t: guide(x, t, y0), x_0, schedule, steps, depth)


def classifier_free(
    plain: Denoiser, none: Condition, unlabelled: Condition, weight: float, x_0: Float[Tensor, "n c *s"],
    schedule: NoiseSchedule, steps: int, depth: float,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Without a classifier: encoded without a label, decoded away from it towards "none".

    x0_hat = x0_hat(no label) + weight (x0_hat(y0) - x0_hat(no label)), both in one batch; unlike there not normalised.

    Args:
        plain: (x_t, t, condition) -> x0_hat.
        none: The condition y0, no object.
        unlabelled: The condition without a label.
        weight: Of the guidance.
        x_0: Scaled images.
        schedule: How noise grows.
        steps: Upwards, and as many downwards.
        depth: log-SNR up to which they are encoded.

    Returns:
        x_0 minus what is decoded.

    References:
        After Diff-SCM, Sanchez et al. 2022, "What is healthy?".
    """
    n = len(x_0)
    free = unlabelled.rows(n)
    both = unlabelled.beside(none, n)

    def decode(x: Tensor, t: int) -> Tensor:
        nothing, healthy = plain(torch.cat([x, x]), t, both).chunk(2)
        return torch.lerp(nothing, healthy, weight)

    return x_0 - _decoded(lambda x, t: plain(x, t, free), decode, x_0, schedule, steps, depth)


def _decoded(
    encode: Callable[[Tensor, int], Tensor], decode: Callable[[Tensor, int], Tensor], x_0: Tensor,
    schedule: NoiseSchedule, steps: int, depth: float,
) -> Tensor:  # fmt: skip
    """x_0 encoded to the log-SNR `depth`, and decoded."""
    L = start_timestep(schedule, depth, steps)
    grid = timesteps(L, steps)
    x_L = ddim_inversion(lambda x, t: ModelOutput(encode(x, t)), x_0, grid, schedule)
    return ddim(lambda x, t: ModelOutput(decode(x, t)), x_L, grid, schedule, lambda: torch.zeros_like(x_L))
