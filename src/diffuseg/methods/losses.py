"""Losses that methods share: on class probabilities, on what a denoiser says, and the bound that trains a variance."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffuseg.diffusion.schedule import NoiseSchedule


def soft_dice_loss(probability: Float[Tensor, "b k *s"], mask: Float[Tensor, "b k *s"]) -> Float[Tensor, " b"]:
    """1 - soft Dice of each element, mean over the foreground classes, in [0, 1].

    A class that is absent from mask and prediction counts as agreement (smoothing of one voxel).
    """
    axes = tuple(range(2, mask.ndim))
    p, m = probability[:, 1:], mask[:, 1:]
    overlap = (p * m).sum(axes)
    return 1 - ((2 * overlap + 1) / (p.sum(axes) + m.sum(axes) + 1)).mean(1)


def cross_entropy(logits: Float[Tensor, "b k *s"], mask: Float[Tensor, "b k *s"]) -> Float[Tensor, " b"]:
    """Cross-entropy of each element in nats per voxel."""
    return -(mask * F.log_softmax(logits, dim=1)).sum(1).flatten(1).mean(1)


def squared_error(a: Float[Tensor, "b k *s"], b: Float[Tensor, "b k *s"]) -> Float[Tensor, " b"]:
    """Mean squared error of each element."""
    return (a - b).square().flatten(1).mean(1)


def variational_bound(schedule: NoiseSchedule, x_0: Tensor, x0_hat: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The variational bound on the levels drawn, T times their mean, in nats per value; v in [0, 1]: see `widening`.

    Its gradient moves v alone where x0_hat has none (Nichol and Dhariwal 2021). The step from level 1 to what is clean has no
    share in it: no noise is added there.
    """
    t_2 = t.clamp(min=2)
    divergence = schedule.posterior_divergence(x_0, x0_hat, t_2, t_2 - 1, v)
    return schedule.T * (divergence.flatten(1).mean(1) * (t > 1)).mean()
