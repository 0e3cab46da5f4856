"""The time-conditioned discriminator of denoising-diffusion GANs, and the features that cDAL's attention is made of."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.networks.blocks import TimeEmbedding, conv, halve


class DiscriminatorBlock(nn.Module):
    """LReLU-conv, + time, LReLU-halve-conv; (skip + h) / sqrt 2. Halving an axis of one voxel is left out.

    early    the first convolution already has the block's outputs, not its inputs
    halves   whether the block halves the resolution at all
    """

    def __init__(self, dims: int, inputs: int, outputs: int, time: int, early: bool = False, halves: bool = True) -> None:
        super().__init__()
        middle = outputs if early else inputs
        self.conv_1, self.conv_2 = conv(dims, inputs, middle), conv(dims, middle, outputs)
        self.time = nn.Linear(time, middle)
        self.skip = conv(dims, inputs, outputs, kernel=1)
        self.halves = halves

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv_1(F.leaky_relu(x, 0.2))
        h = F.leaky_relu(h + self.time(t).to(h.dtype).reshape(*h.shape[:2], *[1] * (h.ndim - 2)), 0.2)
        shrink = halve if self.halves and min(h.shape[2:]) > 1 else lambda a: a
        return (self.skip(shrink(x)) + self.conv_2(shrink(h))) * 0.5**0.5


class Discriminator(nn.Module):
    """D(x_s, x_t, t [, I]) -> one logit per element: is x_s a true, less noisy version of x_t (for this image)?

    inputs     channels of x_s, x_t and, by option, the image together
    widths     channels per stage; features[0] is the first convolution, features[i] the i-th block's output
    released   as in cDAL's released hippocampus training: the first block keeps the resolution, the first convolution of
               each block has its outputs, the embedding of the time is as wide as the first stage, and the logit is made of the
               sum over positions
    """

    def __init__(self, dims: int, inputs: int, widths: tuple[int, ...], released: bool = False) -> None:
        super().__init__()
        time = widths[0] if released else 4 * widths[0]
        self.time = TimeEmbedding(widths[0], time)
        self.first = conv(dims, inputs, widths[0], kernel=1)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(dims, a, b, time, released, not released or i > 0) for i, (a, b) in enumerate(pairs)
        )
        self.head = conv(dims, widths[-1] + 1, widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        self.summed = released

    def features(self, inputs: Float[Tensor, "b c *s"], t: Float[Tensor, " b"], stage: int) -> Float[Tensor, "b f *r"]:
        """Activations after block `stage`, before any nonlinearity.

        Args:
            inputs: The pair, and the image where the discriminator sees it, as channels.
            t: Time in [0, 1000].
            stage: How many blocks are run.
        """
        time, h = self.time(t), self.first(inputs)
        for block in self.blocks[:stage]:  # type: ignore[union-attr]
            h = block(h, time)
        return h

    def forward(self, inputs: Float[Tensor, "b c *s"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        h = self.features(inputs, t, len(self.blocks))
        # Minibatch standard deviation: one channel that says how much the batch varies (zero for a batch of one).
        spread = (h - h.mean(0, keepdim=True)).square().mean(0, keepdim=True).add(1e-8).sqrt().mean()
        h = torch.cat([h, spread.expand(h.shape[0], 1, *h.shape[2:])], dim=1)
        h = F.leaky_relu(self.head(h), 0.2).flatten(2)
        # The mean over positions (DDGAN sums) keeps the logit's scale the same for any patch size.
        return self.logit(h.sum(2) if self.summed else h.mean(2))[:, 0]
