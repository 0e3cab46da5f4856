"""Filters in the frequency plane: MedSegDiff's FF-Parser, and the band-pass of its second version.

A filter is a function of the physical frequency f, in cycles per voxel and per axis, so that one filter serves any size:
it is stored on a reference grid of frequencies and read between its points. All transforms are done in float32, and
like every product of spectra they are circular: what leaves the image on one side enters it on the other.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from diffuseg.errors import UserError


class FFParser(nn.Module):
    """M = F(m), M' = A . M, m' = F^-1(M'): a learnable complex gain per frequency and channel (MedSegDiff V1, eqs. 4-6).

    m [b, c, *s] -> m' [b, c, *s] for any *s of as many axes as `size` has: the number of reference frequencies per axis. At
    s = size they are the frequencies of the transform themselves; maps smaller than that read only some of them and leave
    the others as they are, so a filter should not be larger than the maps that it learns from (`fitting`). What is learned
    is A - 1, which starts at zero: the filter starts as the identity to the last bit, and weight decay draws it there.

    Raises:
        UserError: a size that is odd or below 2.
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        if any(n < 2 or n % 2 for n in size):
            raise UserError(f"a filter of size {tuple(size)}", do="Choose even numbers of frequencies, 2 or more.")
        self.size, self.axes = tuple(size), tuple(range(-len(size), 0))
        # Real and imaginary part; the last axis holds f = 0 .. 1/2 only, the other half follows from m being real.
        self.deviation = nn.Parameter(torch.zeros(2, channels, *size[:-1], size[-1] // 2 + 1))

    def forward(self, m: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        with torch.autocast(m.device.type, enabled=False):
            M = torch.fft.rfftn(m.float(), dim=self.axes)
            added = torch.fft.irfftn(self.change(m.shape[2:]) * M, s=m.shape[2:], dim=self.axes)
        return m + added.to(m.dtype)

    def change(self, shape: tuple[int, ...]) -> Complex[Tensor, "c *half"]:
        """A - 1 at the frequencies of `torch.fft.rfftn`: made the spectrum of a real filter, linearly interpolated over f."""
        D = torch.complex(*self.deviation.float())
        # A(-f) = conj A(f) must hold within the two planes that the half spectrum holds whole: f = 0 and f = 1/2.
        D = torch.cat([self._hermitian(D[..., :1]), D[..., 1:-1], self._hermitian(D[..., -1:])], dim=-1)
        for axis, n, size in zip(self.axes, shape, self.size, strict=True):
            weights = interpolation(n, size, half=axis == -1).to(D.dtype).to(D.device)
            D = (D.movedim(axis, -1) @ weights.T).movedim(-1, axis)
        return D

    def _hermitian(self, plane: Tensor) -> Tensor:
        rest = self.axes[:-1]
        return (plane + plane.flip(rest).roll([1] * len(rest), rest).conj()) / 2  # index i of f -> index -i of -f


def fitting(size: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Per axis the even number of reference frequencies, `size` at most, of which maps of this shape read every one."""
    return tuple(max(min(size, n) // 2 * 2, 2) for n in shape)


@lru_cache(maxsize=256)
def interpolation(n: int, size: int, half: bool) -> Float[Tensor, "frequencies reference"]:
    """Weights that read a function of f, given at `size` frequencies, at the n of a transform.

    Linear, periodic over the whole axis (f = -1/2 is f = 1/2); `half`: f from 0 to 1/2 only, as in the last axis of rfftn.

    Args:
        n: Frequencies of the transform along the axis.
        size: Frequencies that are given, even.
        half: The axis has f from 0 to 1/2 only, as the last one of rfftn.
    """
    k = torch.arange(n // 2 + 1) if half else torch.fft.fftfreq(n, 1 / n).round()
    position = k.double() * size / n
    lower = position.floor()
    weights = torch.zeros(len(k), size // 2 + 1 if half else size, dtype=torch.float64)
    rows, share = torch.arange(len(k)), position - lower
    wrap = (lambda i: i.clamp(max=size // 2)) if half else (lambda i: i % size)
    weights.index_put_((rows, wrap(lower.long())), 1 - share, accumulate=True)
    weights.index_put_((rows, wrap(lower.long() + 1)), share, accumulate=True)
    return weights


def radius(shape: tuple[int, ...], device: torch.device | None = None) -> Float[Tensor, "*s"]:
    """|f| at the frequencies of `torch.fft.fftn`, from 0 (the mean) to 1 (the corner, half a cycle per voxel on all axes)."""
    squares = torch.zeros((), device=device)
    for n in shape:
        squares = squares[..., None] + (2 * torch.fft.fftfreq(n, device=device)).square()
    return (squares / len(shape)).sqrt()


class BandPass(nn.Module):
    """A band per channel whose edges move with the timestep: our reading of V2's neural band-pass (NBP) filter.

    gain(r, t) = sigmoid((r - low(t)) / w) sigmoid((high(t) - r) / w), r = |f| in [0, 1], w = 0.1; low and high are linear
    in the time embedding and start outside [0, 1], so that (nearly) everything passes. The gain is real and depends on
    |f| alone: it shifts nothing and keeps real signals real. The paper's own form is not known to us.
    """

    softness = 0.1

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.edges = nn.Linear(time, 2 * channels)
        nn.init.normal_(self.edges.weight, std=1e-3)
        with torch.no_grad():
            self.edges.bias.copy_(torch.cat([torch.full((channels,), -0.25), torch.full((channels,), 1.25)]))

    def forward(self, shape: tuple[int, ...], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c *s"]:
        """The gain at the frequencies of `torch.fft.fftn` for this spatial shape."""
        r = radius(shape, time.device)
        edges = self.edges(time).float().reshape(time.shape[0], -1, *[1] * len(shape))
        low, high = edges.chunk(2, dim=1)
        return torch.sigmoid((r - low) / self.softness) * torch.sigmoid((high - r) / self.softness)
