"""A classifier of images: the encoder of a U-Net, a mean over positions, and a linear layer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.networks.blocks import BatchNorm, ResidualBlock, TimeEmbedding, conv, halve, pad_to_multiple


class Stage(nn.Module):
    """The residual blocks of one stage, after halving where it is not the first; then norm and ReLU, as maps expect them."""

    def __init__(self, dims: int, inputs: int, outputs: int, blocks: int, time: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        sizes = [inputs] + [outputs] * blocks
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.blocks = nn.ModuleList(ResidualBlock(dims, a, b, time, norm=BatchNorm) for a, b in pairs)
        self.norm = BatchNorm(outputs)

    def forward(self, h: Float[Tensor, "b c *s"], t: Tensor | None = None) -> Tensor:
        h = halve(h) if self.halves else h
        for block in self.blocks:
            h = block(h, t)
        return F.relu(self.norm(h))


class Classifier(nn.Module):
    """x [b, c, *s] of any size -> logits [b, k]; with `time` it is given how noisy x is.

    Its norms are over batches: a norm over the positions of an image would tell each of them what the others see, and a map of
    where the class is would be about everywhere; one over channels would not let a position know how bright it is.
    """

    def __init__(
        self, dims: int, channels: int, classes: int, widths: tuple[int, ...], blocks: int = 1, time: bool = False
    ) -> None:
        super().__init__()
        size = 4 * widths[0] if time else 0
        self.time = TimeEmbedding(widths[0], size) if time else None
        self.multiple = 2 ** (len(widths) - 1)
        self.first = conv(dims, channels, widths[0])
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.stages = nn.ModuleList(Stage(dims, a, b, blocks, size, stage > 0) for stage, (a, b) in enumerate(pairs))
        self.last = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c *s"], t: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b k"]:
        """t in [0, 1000]."""
        return self.onward(self.upto(x, len(self.stages), t), len(self.stages), t)

    def upto(self, x: Float[Tensor, "b c *s"], stages: int, t: Float[Tensor, " b"] | None = None) -> Tensor:
        """The activations [b, w, *s'] after the first so many stages; x is padded to a multiple of 2**(stages - 1).

        Args:
            x: Images.
            stages: How many stages.
            t: Time in [0, 1000]; None of a classifier that sees no noise.
        """
        h = self.first(pad_to_multiple(x, self.multiple))
        for stage in self.stages[:stages]:
            h = stage(h, None if self.time is None else self.time(t))
        return h

    def onward(self, h: Tensor, stages: int, t: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b k"]:
        """Logits from what `upto` gave.

        Args:
            h: What `upto` gave.
            stages: After how many stages.
            t: Time in [0, 1000]; None of a classifier that sees no noise.
        """
        for stage in self.stages[stages:]:
            h = stage(h, None if self.time is None else self.time(t))
        return self.last(h.flatten(2).mean(2))
