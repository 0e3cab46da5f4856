"""Proper scoring rules for sets of draws: the score is best, on average, for draws from the distribution of the true masks.

With a distance d of negative type, draws S_1..S_m and true masks Y_1..Y_r of one image,

    energy score = 1 / (m r) sum_ij d(S_i, Y_j) - spread / (2 m (m - 1)) sum_{i != k} d(S_i, S_k)

is an unbiased estimate of half the squared generalised energy distance, up to what no draw can change.

References:
    Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, JASA 2007.
    Wang et al., Jaccard metric losses, NeurIPS 2023 (the min / max form; the product form is not of negative type).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import UserError
from diffuseg.text import did_you_mean

Distance = Callable[[Float[Tensor, "b n k *s"], Float[Tensor, "b r k *s"]], Float[Tensor, "b n r"]]


def soft_jaccard(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b r k *s"]) -> Float[Tensor, "b n r"]:
    """1 - (sum min(a, b) + 1) / (sum max(a, b) + 1) of each a with each b, mean over the foreground classes.

    The one in both sums is a voxel that every mask has: two empty masks are alike. Both sums follow from min + max = a + b and
    max - min = |a - b|.
    """
    a, b = (x[:, :, 1:].flatten(3).movedim(2, 1) for x in (a, b))
    total = a.sum(3)[..., :, None] + b.sum(3)[..., None, :]
    apart = torch.cdist(a, b, p=1)
    return (2 * apart / (total + apart + 2)).mean(1)


def euclidean(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b r k *s"]) -> Float[Tensor, "b n r"]:
    """Root of the summed squared differences over all classes and voxels, divided by the root of their number."""
    difference = a.flatten(2)[:, :, None] - b.flatten(2)[:, None]
    return (difference.square().mean(3) + 1e-12).sqrt()


def absolute(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b r k *s"]) -> Float[Tensor, "b n r"]:
    """Mean absolute difference over all classes and voxels: the energy score is then the CRPS of each voxel."""
    return torch.cdist(a.flatten(2), b.flatten(2), p=1) / a[0, 0].numel()


def jaccard_and_volume(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b r k *s"]) -> Float[Tensor, "b n r"]:
    """`soft_jaccard`, and the difference of the logarithms of one voxel plus the volume, mean over the foreground classes.

    Draws whose borders move in and out together differ in volume, draws whose borders move at random do not; the Jaccard
    distance hardly tells them apart. The second term alone makes the score the CRPS of the logarithm of the volume.
    """
    volume_a, volume_b = ((x[:, :, 1:].flatten(3).sum(3) + 1).log() for x in (a, b))
    return soft_jaccard(a, b) + (volume_a[:, :, None] - volume_b[:, None]).abs().mean(3)


DISTANCES: dict[str, Distance] = {
    "jaccard": soft_jaccard,
    "jaccard_volume": jaccard_and_volume,
    "euclidean": euclidean,
    "crps": absolute,
}


def energy_score(
    draws: Float[Tensor, "b m k *s"], truths: Float[Tensor, "b r k *s"], distance: str = "jaccard", spread: float = 1.0
) -> Float[Tensor, " b"]:
    """The energy score of each element's draws against its true masks; lower is better.

    Args:
        draws: class probabilities of m draws.
        truths: one-hot masks of r raters.
        distance: a name in `DISTANCES`.
        spread: weight of the distances between draws; 1 is proper, less makes draws too much alike.

    Raises:
        UserError: the distance is not known, or a single draw is to be spread.
    """
    if distance not in DISTANCES:
        raise UserError(f"unknown distance {distance!r}", do=did_you_mean(distance, DISTANCES))
    d, m = DISTANCES[distance], draws.shape[1]
    if spread and m < 2:
        raise UserError("an energy score compares draws with one another: at least two are needed", do="Give train_draws=2")
    score = d(draws, truths.to(draws.dtype)).mean((1, 2))
    if spread:
        i, k = torch.triu_indices(m, m, offset=1, device=draws.device)
        score = score - spread / 2 * d(draws, draws)[:, i, k].mean(1)
    return score
