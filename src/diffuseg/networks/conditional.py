"""A U-Net over images that is given the time and a class, the class as an embedding that may lie between classes."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuseg.networks.blocks import sinusoid
from diffuseg.networks.unet import UNet


class ClassConditionalUNet(nn.Module):
    """x_t, t and e -> `outputs` channels for x_t; w = SiLU(MLP(sin t) + e) scales and shifts every norm.

    e is a row of the table (`embed`), or anything between rows: condition sensitivity takes derivatives along it. The last
    row is "no label", so that one network is conditional and unconditional (classifier-free).
    """

    def __init__(
        self, dims: int, channels: int, classes: int, widths: tuple[int, ...], blocks: int, attention: tuple[int, ...],
        dropout: float, outputs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, size = widths[0], 4 * widths[0]
        self.no_label = classes
        self.table = nn.Embedding(classes + 1, size)
        self.time = nn.Sequential(nn.Linear(self.width, size), nn.SiLU(), nn.Linear(size, size))
        self.unet = UNet(dims, channels, outputs, widths, blocks, False, size, attention, dropout=dropout)

    def embed(self, label: Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Rows of the table for classes 0..k-1, and k for no label."""
        return self.table(label)

    def forward(self, x_t: Float[Tensor, "b c *s"], t: Float[Tensor, " b"], e: Float[Tensor, "b e"]) -> Float[Tensor, "b o *s"]:
        """t in [0, 1000]."""
        time = self.time(sinusoid(t, self.width).to(e.dtype))
        return self.unet(x_t, w=F.silu(time + e))
