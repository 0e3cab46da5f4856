"""Counterfactual maps: the image minus what it would be without the object.

The image is encoded to noise without chance (DDIM upwards) and decoded again as "none"; where the two differ is the object.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.diffusion.samplers import ancestral, ddim_inversion
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.methods.weak.sensitivity import Condition, Denoiser, OnStep
from diffuseg.text import pluralize


def guided(
    plain: Denoiser, towards: Denoiser, none: Condition, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule,
    steps: int, depth: float, on_step: OnStep = None,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """CG-Diff (Wolleb et al. 2022): encoded as "none" without guidance, decoded with the classifier's gradient to "none"."""
    y0 = none.rows(len(x_0))
    encode: Callable = lambda x, t: plain(x, t, y0)
    decode: Callable = lambda x, t: towards(x, t, y0)
    return x_0 - _there_and_back(encode, decode, x_0, schedule, steps, depth, on_step)


def classifier_free(
    plain: Denoiser, none: Condition, unlabelled: Condition, weight: float, x_0: Float[Tensor, "n c *s"],
    schedule: NoiseSchedule, steps: int, depth: float, on_step: OnStep = None,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Without a classifier (after Diff-SCM, Sanchez et al. 2022): encoded without a label, decoded away from it towards "none".

    x0_hat = x0_hat(no label) + weight (x0_hat(y0) - x0_hat(no label)), both in one batch; unlike there not normalised.
    """
    n = len(x_0)
    free = unlabelled.rows(n)
    both = Condition(*(torch.cat(pair) for pair in zip(free, none.rows(n), strict=True)))

    def decode(x: Tensor, t: int) -> Tensor:
        nothing, healthy = plain(torch.cat([x, x]), t, both).chunk(2)
        return torch.lerp(nothing, healthy, weight)

    return x_0 - _there_and_back(lambda x, t: plain(x, t, free), decode, x_0, schedule, steps, depth, on_step)


def _there_and_back(
    encode: Callable[[Tensor, int], Tensor], decode: Callable[[Tensor, int], Tensor], x_0: Tensor,
    schedule: NoiseSchedule, steps: int, depth: float, on_step: OnStep,
) -> Tensor:  # fmt: skip
    L = schedule.level(depth)
    if not 1 <= steps <= L:
        raise UserError(
            f"{pluralize(steps, 'step')}, but {pluralize(L, 'level')} below a log-SNR of {depth}",
            do=f"Choose between 1 and {L}.",
        )
    ends = [round(L - i * L / steps) for i in range(steps)] + [0]
    grid = list(zip(ends[:-1], ends[1:], strict=True))
    x_L = ddim_inversion(encode, x_0, grid, schedule)
    return ancestral(decode, x_L, grid, schedule, lambda: torch.zeros_like(x_L), eta=0.0, on_step=on_step)
