"""A U-Net that runs once per image, and a light network that turns its features and noise into a draw.

`FeaturePyramid` is the U-Net behind the image's encoder; it gives the features of its decoder at every resolution, narrowed to
the few channels of the light part. `LightDecoder` goes from the coarsest of them to the finest, and is all that runs per draw
and step.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.networks.blocks import Norm, ResidualBlock, TimeEmbedding, conv, crop, double, halve, pad_to_multiple
from diffuseg.networks.unet import UNet


class FeaturePyramid(UNet):
    """The plain U-Net on the features of an image, and 1x1 projections of its decoder at every resolution, coarsest first."""

    def __init__(
        self, dims: int, widths: tuple[int, ...], light_widths: tuple[int, ...], blocks: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__(dims, 0, 1, widths, blocks, time=False, dropout=dropout)
        del self.norm, self.last
        self.project = nn.ModuleList(conv(dims, a, b, kernel=1) for a, b in zip(widths[::-1], light_widths[::-1], strict=True))

    def forward(self, features: Float[Tensor, "b w *s"]) -> tuple[Tensor, ...]:  # type: ignore[override]
        decoded = self._decoded(self._pad(features))
        return tuple(project(h) for project, h in zip(self.project, decoded, strict=True))


class LightDecoder(nn.Module):
    """Features of an image at every resolution, the noisy mask x_t, t and a latent to class scores at full resolution.

    x_t enters at every resolution, averaged over blocks and rescaled so that pure noise keeps its unit variance: draws can
    differ in whole objects as well as in voxels. The latent w is in every norm.
    """

    def __init__(self, dims: int, classes: int, widths: tuple[int, ...], latent: int, time: bool, noise: bool = True) -> None:
        super().__init__()
        embedding = 4 * max(widths[0], 8) if time else 0
        coarse_first = widths[::-1]
        self.dims, self.stages = dims, len(widths)
        self.time = TimeEmbedding(max(widths[0], 8), embedding) if time else None
        self.state = nn.ModuleList(conv(dims, classes, w, kernel=1) for w in coarse_first) if noise else None
        pairs = zip(coarse_first[:-1], coarse_first[1:], strict=True)
        self.narrow = nn.ModuleList(conv(dims, a, b, kernel=1) for a, b in pairs)
        self.blocks = nn.ModuleList(ResidualBlock(dims, w, w, embedding, latent) for w in coarse_first)
        self.norm, self.last = Norm(widths[0], latent), conv(dims, widths[0], classes)

    def forward(
        self, features: tuple[Tensor, ...], x_t: Float[Tensor, "b k *s"], t: Tensor | None, w: Tensor | None
    ) -> Float[Tensor, "b k *s"]:
        """Features of one image serve all elements of x_t; features of n images serve b / n consecutive ones each."""
        size, b = x_t.shape[2:], x_t.shape[0]
        x_t = pad_to_multiple(x_t, 2 ** (self.stages - 1))
        time = None if self.time is None or t is None else self.time(t)
        states = [] if self.state is None else self._pooled(x_t)
        h = None
        for i, feature in enumerate(features):
            here = feature.repeat_interleave(b // feature.shape[0], dim=0) if 1 < feature.shape[0] < b else feature
            if self.state is not None:
                here = here + self.state[i](states[i])
            h = here if h is None else double(self.narrow[i - 1](h)) + here
            h = self.blocks[i](h.expand(b, *h.shape[1:]), time, w)
        assert h is not None
        return crop(self.last(F.silu(self.norm(h, w))), size)

    def _pooled(self, x_t: Tensor) -> list[Tensor]:
        """x_t at every resolution, coarsest first."""
        states = [x_t]
        for _ in range(self.stages - 1):
            states.append(halve(states[-1]))
        return [x * 2 ** (times * self.dims / 2) for times, x in enumerate(states)][::-1]
