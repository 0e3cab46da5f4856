"""The plain conditional DDPM: noisy mask and image concatenated at the input (as EnsemDiff, Wolleb et al., MIDL 2022).

The plain diffusion baseline, and the file to copy for a new method.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES, ScheduleName
from diffuseg.methods.base import Loss, MaskConfig, MaskMethod, Phase, mask_to_x, setting
from diffuseg.methods.training import annotated, randn_like, sample_timesteps, squared_error
from diffuseg.networks.unet import UNet
from diffuseg.types import Batch


@dataclass(frozen=True)
class ConcatConfig(MaskConfig):
    """What of the plain DDPM can be chosen.

    predict      what the network outputs: v, the mask, or the noise. The noise is what is published, and needs far longer
                 training: at high timesteps it is nearly x_t itself, and the image adds next to nothing to the loss
    input_scale  below 1: a harder schedule, as if the mask were multiplied by it before noising
    """

    T: int = setting(1000, 1)
    schedule: ScheduleName = "linear"
    predict: Literal["eps", "x0", "v"] = "v"
    input_scale: float = setting(1.0, 1e-3)
    steps: int = setting(10, 1)
    sampler: str = "ddim"


class Concat(MaskMethod[ConcatConfig]):
    """Plain diffusion: a U-Net sees image and noisy mask together and takes the noise away step by step, anew for each draw.

    One U-Net of (x_t (+) I, t), mean squared error of v or of what `predict` says, a thousand timesteps.
    """

    config_class = ConcatConfig

    def __init__(self, plan: Plan, config: ConcatConfig) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T).scaled(config.input_scale)
        self.default_steps, self.default_sampler = min(config.steps, config.T), config.sampler
        inputs = plan.classes + plan.image_channels
        self.network = UNet(plan.dims, inputs, plan.classes, self.widths, config.blocks)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        x_0 = mask_to_x(batch.mask)
        t = sample_timesteps(len(x_0), self.schedule.T, p_terminal=0.0, rng=rng).to(x_0.device)
        noise = randn_like(x_0, rng)
        x_t = self.schedule.q_sample(x_0, t, noise)
        output = self._output(x_t, t, batch.image)
        aim = target(self.config.predict, x_0, noise, self.schedule.at(t, x_0))
        error = squared_error(output, aim, annotated(batch.mask)).mean()
        return error, {"mse": error.detach()}

    def encode(self, image: Tensor) -> Tensor:
        return image

    def denoise(self, x_t: Tensor | None, t: int, features: Tensor, z: Tensor | None) -> Tensor:
        assert x_t is not None
        output = self._output(x_t, torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0]), features)
        return to_x0(self.config.predict, output, x_t, self.schedule.at(t, x_t)).clamp(-1, 1)

    def _output(self, x_t: Tensor, t: Tensor, image: Tensor) -> Tensor:
        joined = torch.cat([x_t, image.expand(x_t.shape[0], *image.shape[1:])], dim=1)
        return self.network(joined, t * (1000 / self.schedule.T)).float()
