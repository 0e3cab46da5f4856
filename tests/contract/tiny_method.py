"""A whole method in one file outside the package: the image is blurred by one layer, and noise shifts the answer a little.

What an author of a method writes: settings, phases, a loss, `encode` and `denoise`. The rest is inherited.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffuseg.data.plan import Plan
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.methods import Phase, register_method
from diffuseg.methods.base import MaskConfig, MaskMethod, mask_to_x, setting
from diffuseg.methods.training import randn_like, sample_timesteps, segmentation_loss
from diffuseg.networks.blocks import conv
from diffuseg.types import Batch


@dataclass(frozen=True)
class TinyConfig(MaskConfig):
    """T   number of timesteps"""

    T: int = setting(4, 1)


@register_method("tiny")
class Tiny(MaskMethod[TinyConfig]):
    """Class logits of the mask from the image and the noisy mask, by one convolution each."""

    config_class = TinyConfig

    def __init__(self, plan: Plan, config: TinyConfig) -> None:
        super().__init__(plan, config)
        self.schedule = NoiseSchedule.cosine(config.T)
        self.default_steps = min(2, config.T)
        self.network = nn.ModuleDict(
            {
                "image": conv(plan.dims, plan.image_channels, plan.classes),
                "mask": conv(plan.dims, plan.classes, plan.classes),
            }
        )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("network", ("network",), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        assert batch.mask is not None
        x_0 = mask_to_x(batch.mask)
        t = sample_timesteps(len(x_0), self.config.T, p_terminal=0.0, rng=rng).to(x_0.device)
        x_t = self.schedule.q_sample(x_0, t, randn_like(x_0, rng))
        terms = segmentation_loss(self._logits(x_t, self.encode(batch.image)), batch.mask)
        return terms["dice"] + terms["cross_entropy"], {name: value.detach() for name, value in terms.items()}

    def encode(self, image: Tensor) -> Tensor:
        return self.network["image"](image)

    def denoise(self, x_t: Tensor | None, t: int, features: Tensor, z: Tensor | None) -> Tensor:
        assert x_t is not None
        return 2 * self._logits(x_t, features).softmax(1) - 1

    def _logits(self, x_t: Tensor, features: Tensor) -> Tensor:
        return (self.network["mask"](x_t) + features).float()
