"""The one plain conditional U-Net that every mask method shares, so that methods differ in method and not in network."""

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.networks.blocks import (
    Norm,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    conv,
    crop,
    double,
    halve,
    pad_to_multiple,
)


class ImageEncoder(nn.Module):
    """The image as features at full resolution and constant width: a convolution and some residual blocks (no time)."""

    def __init__(self, dims: int, inputs: int, width: int, blocks: int = 1) -> None:
        super().__init__()
        self.first = conv(dims, inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(dims, width, width) for _ in range(blocks))

    def forward(self, image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b w *s"]:
        h = self.first(image)
        for block in self.blocks:
            h = block(h)
        return h


class UNet(nn.Module):
    """A residual U-Net over (noisy mask, image features, time, latent), each of them optional but the features or the mask.

    inputs      channels of the noisy mask x_t; 0 for a network that sees only the image features
    outputs     channels of the result
    widths      channels per stage, full resolution first; each stage halves the resolution
    blocks      residual blocks per stage
    time        whether the network is given t; latent: size of w, 0 for none
    attention   stages with self-attention in the encoder (the bottom always has it)
    pyramid     carry x_t down beside the features and add it at each stage (NCSN++'s residual input pyramid)

    Any spatial size is accepted: it is padded to a multiple of 2**(stages - 1) and the result is cropped.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        widths: tuple[int, ...],
        blocks: int = 1,
        time: bool = True,
        latent: int = 0,
        attention: tuple[int, ...] = (),
        pyramid: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stages = len(widths)
        embedding = 4 * widths[0] if time else 0
        self.time = TimeEmbedding(widths[0], embedding) if time else None
        block = lambda a, b: ResidualBlock(dims, a, b, embedding, latent, dropout)
        self.first = conv(dims, inputs, widths[0]) if inputs else None
        self.pyramid = nn.ModuleList(conv(dims, inputs, w) for w in widths[1:]) if pyramid and inputs else None
        self.down, self.down_attention = nn.ModuleList(), nn.ModuleDict()
        width = widths[0]
        for stage, w in enumerate(widths):
            self.down.append(nn.ModuleList(block(width if i == 0 else w, w) for i in range(blocks)))
            if stage in attention:
                self.down_attention[str(stage)] = SelfAttention(dims, w)
            width = w
        self.middle = nn.ModuleList([block(width, width), SelfAttention(dims, width), block(width, width)])
        # Up: narrow before enlarging, so that the costly full-resolution convolutions see as few channels as can be.
        self.narrow = nn.ModuleList(conv(dims, b, a, kernel=1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.up = nn.ModuleList(nn.ModuleList(block(2 * w if i == 0 else w, w) for i in range(blocks)) for w in widths[:-1])
        self.norm, self.last = Norm(widths[0]), conv(dims, widths[0], outputs, zero=True)

    def forward(
        self,
        x_t: Float[Tensor, "b c *s"] | None,
        t: Float[Tensor, " b"] | None = None,
        features: Float[Tensor, "n w *s"] | None = None,
        w: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b o *s"]:
        """`features` with a batch of one serve all elements of x_t (the image is encoded once for many draws)."""
        given = x_t if self.first is not None and x_t is not None else features
        assert given is not None, "a U-Net needs a noisy mask, image features, or both"
        size = given.shape[2:]
        h = self.first(self._pad(x_t)) if self.first is not None and x_t is not None else None
        if features is not None:
            h = self._pad(features) if h is None else h + self._pad(features)
        assert h is not None
        pyramid = self._pad(x_t) if self.pyramid is not None and x_t is not None else None
        time = None if self.time is None else self.time(t)
        decoded = self._decoded(h, pyramid, time, w)
        del h  # the walk lets go of it when it can
        (finest,) = deque(decoded, maxlen=1)
        return crop(self.last(F.silu(self.norm(finest))), size)

    def _decoded(
        self, h: Tensor, pyramid: Tensor | None = None, time: Tensor | None = None, w: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The features of the bottom and of each stage of the decoder, coarsest first."""
        skips: list[Tensor] = []
        for stage, stage_blocks in enumerate(self.down):
            if stage:
                skips.append(h)
                h = halve(h)
                if pyramid is not None:
                    pyramid = halve(pyramid)
            for i, block in enumerate(stage_blocks):  # type: ignore[arg-type]
                h = block(h, time, w)
                if stage and i == 0 and pyramid is not None:
                    h = (h + self.pyramid[stage - 1](pyramid)) * 0.5**0.5  # type: ignore[index]
            if str(stage) in self.down_attention:
                h = self.down_attention[str(stage)](h)
        h = self.middle[2](self.middle[1](self.middle[0](h, time, w)), time, w)
        yield h
        for stage in reversed(range(self.stages - 1)):
            h = torch.cat([double(self.narrow[stage](h)), skips.pop()], dim=1)
            for block in self.up[stage]:  # type: ignore[union-attr]
                h = block(h, time, w)
            yield h

    def _pad(self, x: Tensor) -> Tensor:
        return pad_to_multiple(x, 2 ** (self.stages - 1))
