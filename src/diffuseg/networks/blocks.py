"""Building blocks in two and three dimensions: embeddings, adaptive norm, residual block, attention, resampling."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.errors import UserError


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Module:
    """A padded convolution over `dims` axes; `zero` starts it at (almost) nothing, so that a residual starts as identity.

    Args:
        dims: 2 or 3.
        inputs: Channels.
        outputs: Channels.
        kernel: Size along each axis, odd.
        zero: Weights of nearly nothing.
    """
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims](inputs, outputs, kernel, padding=kernel // 2)
    if zero:
        nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def groups(channels: int) -> int:
    """The number of groups of a GroupNorm: at most 32, at least 4 channels in each (as DDGAN), always a divisor."""
    return math.gcd(channels, min(max(channels // 4, 1), 32))


def halve(x: Float[Tensor, "b c *s"]) -> Tensor:
    """Half the resolution, by averaging."""
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, 2)


def double(x: Float[Tensor, "b c *s"]) -> Tensor:
    """Twice the resolution, nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def pad_to_multiple(x: Float[Tensor, "b c *s"], multiple: int) -> Tensor:
    """Each axis lengthened at its end to a multiple, by its edge values (by zeros where it is shorter than the padding)."""
    missing = [-n % multiple for n in x.shape[2:]]
    if not any(missing):
        return x
    mode = "replicate" if all(m < n for m, n in zip(missing, x.shape[2:], strict=True)) else "constant"
    return F.pad(x, [v for m in reversed(missing) for v in (0, m)], mode=mode)


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of x in float32, inside autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def crop(x: Float[Tensor, "b c *s"], size: Sequence[int]) -> Tensor:
    """Without what `pad_to_multiple` added: the first `size` of each axis."""
    return x[(..., *(slice(n) for n in size))]


def sinusoid(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sinusoidal embedding of a time in [0, 1000] (base 10000)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angle = t[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoid, then two linear layers; the time is the timestep scaled to [0, 1000] so that T may change."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, outputs), nn.SiLU(), nn.Linear(outputs, outputs), nn.SiLU())

    def forward(self, t: Float[Tensor, " b"]) -> Tensor:
        return self.layers(sinusoid(t, self.width).to(self.layers[0].weight.dtype))  # type: ignore[arg-type]


class Mapping(nn.Module):
    """z -> w: PixelNorm (divide by the root mean square over the entries), then 1 + `depth` linear layers with SiLU."""

    def __init__(self, latent: int, outputs: int, depth: int = 3) -> None:
        super().__init__()
        sizes = [latent] + [outputs] * (depth + 1)
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.SiLU())))

    def forward(self, z: Float[Tensor, "b latent"]) -> Tensor:
        return self.layers(z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8))


class Norm(nn.Module):
    """Group norm; with a latent it is adaptive: AdaGN(h, w) = gamma(w) GN(h) + beta(w), starting at gamma 1, beta 0."""

    def __init__(self, channels: int, latent: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels, eps=1e-6, affine=latent == 0)
        self.affine = nn.Linear(latent, 2 * channels) if latent else None
        if self.affine is not None:
            nn.init.normal_(self.affine.weight, std=0.02)
            with torch.no_grad():
                self.affine.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, h: Float[Tensor, "b c *s"], w: Tensor | None = None) -> Tensor:
        if self.affine is None or w is None:
            return self.norm(h)
        gamma, beta = self.affine(w).to(h.dtype).reshape(w.shape[0], -1, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        return torch.addcmul(beta, gamma, self.norm(h).to(h.dtype))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position: unlike a group norm it mixes no positions."""

    def __init__(self, channels: int, latent: int = 0) -> None:
        super().__init__()
        assert not latent, "a norm over channels is not adaptive"
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, h: Float[Tensor, "b c *s"], w: Tensor | None = None) -> Tensor:
        return self.norm(h.movedim(1, -1)).movedim(-1, 1)


class BatchNorm(nn.Module):
    """Each channel by its mean and variance over the training's batches: once trained, no position knows of the others.

    It keeps how bright a position is, which a norm over the channels of each position divides away.
    """

    def __init__(self, channels: int, latent: int = 0) -> None:
        super().__init__()
        assert not latent, "a batch norm is not adaptive"
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, h: Float[Tensor, "b c *s"], w: Tensor | None = None) -> Tensor:
        if self.training and h[:, 0].numel() == 1:
            raise UserError("one voxel of one image has no variance to be normed by", do="Give a larger batch, or fewer widths")
        return self.norm(h.flatten(2)).reshape(h.shape)


class ResidualBlock(nn.Module):
    """norm-SiLU-conv, + time, norm-SiLU-(dropout)-conv, then (skip + h) / sqrt 2; both norms see the latent."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, time: int = 0, latent: int = 0, dropout: float = 0.0,
        norm: type[Norm] | type[BatchNorm] = Norm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm_1, self.norm_2 = norm(inputs, latent), norm(outputs, latent)
        self.conv_1, self.conv_2 = conv(dims, inputs, outputs), conv(dims, outputs, outputs, zero=True)
        self.time = nn.Linear(time, outputs) if time else None
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = conv(dims, inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x, w)))
        if self.time is not None:
            h = h + self.time(t).to(h.dtype).reshape(*h.shape[:1], -1, *[1] * (h.ndim - 2))
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h, w))))
        return (self.skip(x) + h) * 0.5**0.5


class SelfAttention(nn.Module):
    """Single-head attention over all positions, with an output projection that starts at nothing."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.qkv = conv(dims, channels, 3 * channels, kernel=1)
        self.out = conv(dims, channels, channels, kernel=1, zero=True)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return (x + self.out(h)) * 0.5**0.5
