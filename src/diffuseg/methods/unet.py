"""The deterministic U-Net of the same width: the bar that every diffusion method has to clear."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.methods.base import Loss, MaskConfig, MaskMethod, Phase, setting
from diffuseg.methods.training import detached, segmentation_loss, weighted
from diffuseg.networks.unet import ImageEncoder, UNet
from diffuseg.types import Batch


@dataclass(frozen=True)
class UNetConfig(MaskConfig):
    """Weights of the two terms of its loss; the share of features that dropout sets to zero in training."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    dropout: float = setting(0.0, 0, 0.99)


class UNetMethod(MaskMethod[UNetConfig]):
    """No diffusion: a U-Net gives one mask in one pass. The bar that the others have to clear.

    image -> mask: the encoder and the U-Net of the diffusion methods, without noisy mask, time and latent.
    """

    generative: ClassVar[bool] = False
    config_class = UNetConfig

    def __init__(self, plan: Plan, config: UNetConfig) -> None:
        super().__init__(plan, config)
        self.encoder = ImageEncoder(plan.dims, plan.image_channels, self.widths[0], config.encoder_blocks)
        self.network = UNet(plan.dims, 0, plan.classes, self.widths, config.blocks, time=False, dropout=config.dropout)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("network", ("encoder", "network"), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        logits = self.network(None, features=self.encoder(batch.image)).float()
        terms = segmentation_loss(logits, batch.mask)
        return weighted(terms, self.config), detached(terms)

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image)

    def denoise(self, x_t: Tensor | None, t: int, features: Tensor, z: Tensor | None) -> Tensor:
        return 2 * self.network(None, features=features).float().softmax(1) - 1
