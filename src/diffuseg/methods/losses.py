"""Losses on class probabilities, shared by every method that predicts the mask itself."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
