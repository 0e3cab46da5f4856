"""Statistics over draws, one draw at a time: n volumes are never held.

p_i is what is concluded from draw i (for most methods the draw itself), p what is concluded from their mean.

mean           p, the mean of p_i where nothing is concluded from draws     [k, *s]
entropy        H(p) = -sum_k p log p                      nats, 0 .. log k: all the uncertainty there is
expected       mean of H(p_i)                             the part that each draw has by itself
mutual         H(p) - mean of H(p_i)                      nats: the part in which draws contradict each other
variance       sum over classes of the variance of p_i    0 .. 1 - 1/k; population variance, 0 for one draw
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Ensemble:
    """Running statistics of probability maps [k, *s]; memory does not grow with the number of draws.

    conclude  how a draw, or the mean of draws, becomes a probability map, where draws are raw evidence; None: they are one
    counts    per draw, the number of voxels in which each class is the most probable one
    """

    def __init__(self, conclude: Callable[[Tensor], Tensor] | None = None) -> None:
        self.draws, self.conclude = 0, conclude
        self.counts: list[list[int]] = []
        self._mean = self._expected = self._squares = torch.zeros(())

    def add(self, probability: Float[Tensor, "k *s"]) -> None:
        """Take in one draw; float32 on the draw's own device. Refuses draws of different shapes."""
        p = probability.detach().float()
        if self.draws and p.shape != self._mean.shape:
            raise ValueError(f"a draw of shape {tuple(p.shape)} among draws of shape {tuple(self._mean.shape)}")
        self.draws += 1
        before = p - self._mean  # Welford: exact for equal draws, and no cancellation for nearly equal ones
        self._mean = self._mean + before / self.draws
        self._squares = self._squares + (before * (p - self._mean)).sum(0)
        self._expected = self._expected + (_entropy(p) - self._expected) / self.draws
        self.counts.append(torch.bincount(p.argmax(0).flatten(), minlength=len(p)).tolist())

    @property
    def mean(self) -> Float[Tensor, "k *s"]:
        """Mean probability over the draws."""
        return self._mean

    def uncertainty(self) -> dict[str, Float[Tensor, "*s"]]:
        """Maps by name: entropy, expected_entropy, mutual_information (all in nats, >= 0), variance (>= 0)."""
        entropy = _entropy(self._mean)
        return {
            "entropy": entropy,
            "expected_entropy": self._expected,
            "mutual_information": (entropy - self._expected).clamp(min=0),
            "variance": (self._squares / max(self.draws, 1)).clamp(min=0),
        }


def interval(values: list[float], confidence: float = 0.9) -> tuple[float, float]:
    """The central interval of values over draws, percentiles interpolated linearly; of one value it is that point."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def _entropy(p: Float[Tensor, "k *s"]) -> Float[Tensor, "*s"]:
    return torch.special.entr(p).sum(0)
