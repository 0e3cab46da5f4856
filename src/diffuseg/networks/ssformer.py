"""The spectrum-space transformer of MedSegDiff V2: two embeddings attend to each other in the frequency domain.

The paper's text and figure leave open how spectra, affinity and value meet. Our reading, one direction of it:

    q = B_t F(W_q LN(query)),  k = B_t F(W_k LN(key)),  v = F(W_v LN(key))         spectra over the n positions
    M = sin(omega q k^H / sqrt(c))                       [n, n], a periodic activation of its real and imaginary part
    h = F^-1(M v) / sqrt(n)                              the affinity acts on the value, then back to space
    stream <- stream + MLP((1 + scale(t)) LN(h) + shift(t))

A linear map K of positions is F K F^-1 between spectra, so M is such a map, written where noise and anatomy lie apart.
B_t is the band-pass that the timestep moves. Real embeddings have Hermitian spectra, and the sine of both parts keeps M so:
h is real without anything being cut off.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from diffuseg.networks.blocks import Norm, conv
from diffuseg.networks.frequency import BandPass


class SpectralAttention(nn.Module):
    """One direction: `query` asks, `key` answers, and the answer is added to `stream`; all [b, c, *s] of one size.

    band   whether the spectra of query and key pass a band-pass that the timestep moves
    Memory and time grow with the square of the number of positions: it belongs at the bottom of a U-Net.
    """

    def __init__(self, dims: int, channels: int, time: int, band: bool = True) -> None:
        super().__init__()
        self.norm_query, self.norm_key, self.norm = Norm(channels), Norm(channels), Norm(channels)
        self.query, self.key, self.value = (conv(dims, channels, channels, kernel=1) for _ in range(3))
        self.band = BandPass(channels, time) if band else None
        self.omega = nn.Parameter(torch.ones(()))
        self.modulation = nn.Linear(time, 2 * channels)
        nn.init.zeros_(self.modulation.bias)
        self.widen, self.narrow = conv(dims, channels, 2 * channels, kernel=1), conv(dims, 2 * channels, channels, kernel=1)

    def affinity(
        self, query: Float[Tensor, "b c *s"], key: Float[Tensor, "b c *s"], time: Float[Tensor, "b d"]
    ) -> Complex[Tensor, "b n n"]:
        """M, from frequencies of the key to frequencies of the query; its parts lie within [-1, 1].

        Args:
            query: Embedding whose frequencies ask.
            key: Embedding whose frequencies answer.
            time: Embedding of the timestep.
        """
        q, k = self._spectrum(self.query(self.norm_query(query))), self._spectrum(self.key(self.norm_key(key)))
        if self.band is not None:
            gain = self.band(query.shape[2:], time)
            q, k = gain * q, gain * k
        product = torch.einsum("bcu,bcw->buw", q.flatten(2), k.flatten(2).conj()) / q.shape[1] ** 0.5
        return torch.complex(torch.sin(self.omega * product.real), torch.sin(self.omega * product.imag))

    def answer(self, query: Float[Tensor, "b c *s"], key: Float[Tensor, "b c *s"], time: Float[Tensor, "b d"]) -> Tensor:
        """h, complex as computed: its imaginary part is rounding."""
        v = self._spectrum(self.value(self.norm_key(key))).flatten(2)
        h = torch.einsum("buw,bcw->bcu", self.affinity(query, key, time), v).unflatten(2, query.shape[2:])
        return torch.fft.ifftn(h, dim=tuple(range(2, query.ndim)), norm="ortho") / v.shape[2] ** 0.5

    def forward(self, query: Tensor, key: Tensor, stream: Tensor, time: Tensor) -> Float[Tensor, "b c *s"]:
        with torch.autocast(query.device.type, enabled=False):
            query, key, time = query.float(), key.float(), time.float()
            h = self.norm(self.answer(query, key, time).real)
            scale, shift = self.modulation(time).reshape(time.shape[0], -1, *[1] * (h.ndim - 2)).chunk(2, dim=1)
            h = (1 + scale) * h + shift
        return stream + self.narrow(F.silu(self.widen(h)))

    def _spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")


class SSFormer(nn.Module):
    """Blocks of two directions: the noise embedding e asks the condition c, then the new condition asks e.

    In each block c~ = c + [query e; key, value c] and c = c~ + [query c~; key, value e]; e itself stays. `blocks` >= 1.
    """

    def __init__(self, dims: int, channels: int, time: int, blocks: int = 1, band: bool = True) -> None:
        super().__init__()
        pair = lambda: nn.ModuleList(SpectralAttention(dims, channels, time, band) for _ in range(2))
        self.blocks = nn.ModuleList(pair() for _ in range(blocks))

    def forward(self, e: Float[Tensor, "b c *s"], c: Float[Tensor, "b c *s"], time: Float[Tensor, "b d"]) -> Tensor:
        """The condition as it stands after it has met the noise, [b, c, *s]."""
        for noise_asks, condition_asks in self.blocks:  # type: ignore[misc]
            c = noise_asks(query=e, key=c, stream=c, time=time)
            c = condition_asks(query=c, key=e, stream=c, time=time)
        return c
