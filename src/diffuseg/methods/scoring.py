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

Distance = Callable[[Float[Tensor, "b n k *s"], Float[Tensor, "b n k *s"]], Float[Tensor, "b n"]]


def soft_jaccard(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b n k *s"]) -> Float[Tensor, "b n"]:
    """1 - (sum min(a, b) + 1) / (sum max(a, b) + 1), mean over the foreground classes.

    The one in both sums is a voxel that every mask has: two empty masks are alike.
    """
    axes = tuple(range(3, a.ndim))
    both, either = torch.minimum(a, b)[:, :, 1:].sum(axes), torch.maximum(a, b)[:, :, 1:].sum(axes)
    return (1 - (both + 1) / (either + 1)).mean(2)


def euclidean(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b n k *s"]) -> Float[Tensor, "b n"]:
    """Root of the summed squared differences over all classes and voxels, divided by the root of their number."""
    difference = (a - b).flatten(2)
    return (difference.square().mean(2) + 1e-12).sqrt()


def absolute(a: Float[Tensor, "b n k *s"], b: Float[Tensor, "b n k *s"]) -> Float[Tensor, "b n"]:
    """Mean absolute difference over all classes and voxels: the energy score is then the CRPS of each voxel."""
    return (a - b).abs().flatten(2).mean(2)


DISTANCES: dict[str, Distance] = {"jaccard": soft_jaccard, "euclidean": euclidean, "crps": absolute}


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
        raise UserError(f"unknown distance {distance!r}", do=f"Known: {', '.join(DISTANCES)}")
    d, m, r = DISTANCES[distance], draws.shape[1], truths.shape[1]
    if spread and m < 2:
        raise UserError("an energy score compares draws with one another: at least two are needed", do="Give train_draws=2")
    i, j = (index.flatten().to(draws.device) for index in torch.meshgrid(torch.arange(m), torch.arange(r), indexing="ij"))
    score = d(draws[:, i], truths[:, j]).mean(1)
    if spread:
        i, k = torch.triu_indices(m, m, offset=1, device=draws.device)
        score = score - spread / 2 * d(draws[:, i], draws[:, k]).mean(1)
    return score
