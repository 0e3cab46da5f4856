"""Statistics over draws, one draw at a time, so that memory never holds n volumes.

p_i is the probability map of draw i (for most methods the draw itself), p that of their mean.

mean           p, the mean of p_i where draws are probabilities     [k, *s]
entropy        H(p) = -sum_k p log p                      nats, 0 .. log k: all the uncertainty there is
expected       mean of H(p_i)                             the part that each draw has by itself
mutual         H(p) - mean of H(p_i)                      nats: the part in which draws contradict each other
variance       sum over classes of the variance of p_i    0 .. 1 - 1/k; population variance, 0 for one draw
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.timing import timed


class Ensemble:
    """Running statistics of probability maps [k, *s]; memory does not grow with the number of draws.

    All is done a block of voxels at a time: beside the statistics nothing has the size of the image.

    finalize  how a draw, or the mean of draws, becomes a probability map, where draws are saliency maps
    spread    whether expected entropy and variance are kept too; without them there is the entropy alone
    counts    per draw, the number of voxels in which each class is the most probable one
    """

    def __init__(self, finalize: Callable[[Tensor], Tensor] = lambda p: p, spread: bool = True) -> None:
        self.draws, self.finalize, self.spread = 0, finalize, spread
        self.counts: list[list[int]] = []
        self._mean = self._expected = self._squares = torch.zeros(())
        self._raw: Tensor | None = None
        self._votes = torch.zeros((), dtype=torch.uint8)

    @timed("statistics")
    def add(self, draw: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        """Take in one draw, float32 on its own device; returns its probabilities.

        Raises:
            ValueError: It has another shape than those before.
        """
        draw = draw.detach().float()
        p = self.finalize(draw)
        if self.draws and p.shape != self._mean.shape:
            raise ValueError(f"a draw of shape {tuple(p.shape)} among draws of shape {tuple(self._mean.shape)}")
        if not self.draws:
            self._start(p)
        self.draws += 1
        if self.draws == 2**8:
            self._widen()
        count = torch.zeros(len(p), dtype=torch.int64, device=p.device)
        for part in blocks(p.shape[1:]):
            count += self._add(p, part)
        self.counts.append(count.tolist())
        if p is not draw:
            raw = scratch.tensor(draw.shape, draw.device) if self._raw is None else self._raw
            self._raw = raw
            for part in blocks(draw.shape[1:]):
                known = raw[:, part]
                known += (draw[:, part] - known) / self.draws
        return p

    def _start(self, p: Tensor) -> None:
        self._mean = scratch.tensor(p.shape, p.device)
        self._votes = scratch.tensor(p.shape, p.device, np.uint8)
        if self.spread:
            self._expected, self._squares = (scratch.tensor(p.shape[1:], p.device) for _ in range(2))

    def _widen(self) -> None:
        """Votes of more draws than a byte counts."""
        few = self._votes
        self._votes = scratch.tensor(few.shape, few.device, np.int16)
        for part in blocks(few.shape[1:]):
            self._votes[:, part] = few[:, part]

    def _add(self, whole: Tensor, part: slice) -> Tensor:
        """One block of a draw; returns how often each class is its most probable one."""
        p, mean = whole[:, part], self._mean[:, part]
        before = p - mean  # Welford: exact for equal draws, and no cancellation for nearly equal ones
        mean += before / self.draws
        if self.spread:
            self._squares[part] += (before * (p - mean)).sum(0)
            expected = self._expected[part]
            expected += (_entropy(p) - expected) / self.draws
        won, votes = winners(p), self._votes[:, part]
        votes += won
        return won.flatten(1).sum(1)

    @property
    def mean(self) -> Float[Tensor, "k *s"]:
        """Mean probability over the draws, or that of their mean map."""
        return self._mean if self._raw is None else self.finalize(self._raw)

    def uncertainty(self) -> dict[str, Float[Tensor, "*s"]]:
        """Maps by name: entropy, expected_entropy, mutual_information (all in nats, >= 0), variance (>= 0)."""
        mean = self.mean
        maps = {"entropy": scratch.tensor(mean.shape[1:], mean.device)}
        if self.spread:
            maps |= {"expected_entropy": self._expected}
            maps |= {name: scratch.tensor(mean.shape[1:], mean.device) for name in ("mutual_information", "variance")}
        for part in blocks(mean.shape[1:]):
            maps["entropy"][part] = entropy = _entropy(mean[:, part])
            if self.spread:
                maps["mutual_information"][part] = (entropy - self._expected[part]).clamp_(min=0)
                maps["variance"][part] = (self._squares[part] / max(self.draws, 1)).clamp_(min=0)
        return maps

    def agreement(self) -> list[float | None]:
        """Per class, the Dice of pairs of draws' own masks, all pairs taken together: in [0, 1]; None of one draw or no voxel.

        With v(x) votes for the class at x among n draws: the sum of v (v - 1) over (n - 1) times the sum of v.
        """
        found: list[float | None] = []
        for v in self._votes:
            total = sum(int(v[part].sum(dtype=torch.int64)) for part in blocks(v.shape))
            pairs = sum(int((v[part].long() * (v[part].long() - 1)).sum()) for part in blocks(v.shape))
            found.append(pairs / ((self.draws - 1) * total) if self.draws > 1 and total else None)
        return found


def winners(p: Float[Tensor, "k *s"]) -> Bool[Tensor, "k *s"]:
    """Where each class is the largest, the first of equal ones: the one-hot argmax, which takes a processor longer."""
    won, largest = torch.empty(p.shape, dtype=torch.bool, device=p.device), p.amax(0)
    left = torch.ones_like(largest, dtype=torch.bool)
    for k, each in enumerate(p):
        won[k] = (each == largest) & left
        left &= ~won[k]
    return won


def interval(values: list[float], confidence: float = 0.9) -> tuple[float, float]:
    """The central interval of values over draws, percentiles interpolated linearly; of one value it is that point.

    Args:
        values: One per draw.
        confidence: Share of them inside.
    """
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def _entropy(p: Float[Tensor, "k *s"]) -> Float[Tensor, "*s"]:
    return torch.special.entr(p).sum(0)
