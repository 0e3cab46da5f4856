"""The two halves of a U-Net as stages that a method can join as its paper does: an encoder, and a decoder.

The plain U-Net (unet.py) is not made of them: docs/adr/0008-two-u-nets.md.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.networks.blocks import ResidualBlock, SelfAttention, conv, double, halve


class Encoder(nn.Module):
    """Residual stages, each at half the resolution of the one before; spatial sizes must be multiples of 2**(stages - 1).

    inputs   channels of what stage 0 is given
    widths   channels per stage, full resolution first; blocks: residual blocks per stage
    time     size of the time embedding, 0 for an encoder that is not given t
    """

    def __init__(self, dims: int, inputs: int, widths: Sequence[int], blocks: Sequence[int], time: int = 0) -> None:
        super().__init__()
        self.first = conv(dims, inputs, widths[0])
        before = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(dims, a if i == 0 else b, b, time) for i in range(n))
            for a, b, n in zip(before, widths, blocks, strict=True)
        )

    def stage(self, k: int, h: Float[Tensor, "b c *s"], t: Tensor | None = None) -> Tensor:
        """Stage k of what it is given: x itself at k = 0, the output of stage k - 1 elsewhere."""
        h = self.first(h) if k == 0 else halve(h)
        for block in self.stages[k]:  # type: ignore[union-attr]
            h = block(h, t)
        return h

    def forward(self, x: Float[Tensor, "b c *s"], t: Tensor | None = None) -> list[Tensor]:
        """The output of every stage."""
        outputs: list[Tensor] = []
        for k in range(len(self.stages)):
            outputs.append(self.stage(k, outputs[-1] if k else x, t))
        return outputs


class Bottom(nn.Module):
    """The last encoding stage: residual blocks with self-attention after the first, as in the plain U-Net."""

    def __init__(self, dims: int, inputs: int, width: int, blocks: int = 2, time: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(dims, inputs if i == 0 else width, width, time) for i in range(blocks))
        self.attention = SelfAttention(dims, width)

    def forward(self, h: Float[Tensor, "b c *s"], t: Tensor | None = None) -> Float[Tensor, "b w *s"]:
        for i, block in enumerate(self.blocks):
            h = block(h, t)
            if i == 0:
                h = self.attention(h)
        return h


class Decoder(nn.Module):
    """From the bottom to full resolution: narrowed, enlarged, joined with the skip of its stage, `blocks` residual blocks.

    widths   as the encoder's, with the bottom's own width last; a skip has the width of its stage
    """

    def __init__(self, dims: int, widths: Sequence[int], blocks: int = 1, time: int = 0) -> None:
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.narrow = nn.ModuleList(conv(dims, b, a, kernel=1) for a, b in pairs)
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(dims, 2 * a if i == 0 else a, a, time) for i in range(blocks)) for a, _ in pairs
        )

    def forward(self, h: Float[Tensor, "b c *s"], skips: Sequence[Tensor], t: Tensor | None = None) -> Tensor:
        """`skips` full resolution first, as encoders give them; returns features at full resolution."""
        for k in reversed(range(len(self.stages))):
            h = torch.cat([double(self.narrow[k](h)), skips[k]], dim=1)
            for block in self.stages[k]:  # type: ignore[union-attr]
                h = block(h, t)
        return h
