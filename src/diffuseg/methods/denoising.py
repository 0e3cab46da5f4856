"""What both versions of MedSegDiff share: noise on a mask, a network that takes it away, and the loss between them.

A network may output the noise (as published), the mask, or v, and is sampled as it was trained: the same schedule, the
same parameterization, and no variance of its own that a sampler could forget.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES
from diffuseg.inference.tiles import Features
from diffuseg.methods.base import MaskConfig, MaskMethod, draw_levels, randn_like, recycled
from diffuseg.methods.losses import cross_entropy, soft_dice_loss, squared_error


@dataclass(frozen=True)
class DenoisingConfig(MaskConfig):
    """Noise levels, what the network outputs, and how it is trained; the defaults are for few steps.

    T, schedule      number of levels, and how they are spread
    input_scale      below 1: a harder schedule, as if the mask were multiplied by it before noising
    predict          "x0": class logits of the mask, coupled by a softmax; "v"; "eps", the noise, as published
    steps, sampler   of a draw, where none are asked for: any number up to T
    noise            weight of the squared error of what the network predicts
    dice, cross_entropy   weights of the terms on class probabilities; only where the network predicts x0
    recycle          share of batches whose x_t (t < T) comes from the model's own prediction, not from the mask
    hardest          share of elements at the noisiest level T, the others uniform over 1..T
    """

    ranges: ClassVar = MaskConfig.ranges | {
        "T": (1, inf),
        "steps": (1, inf),
        "input_scale": (1e-3, inf),
        "recycle": (0, 1),
        "hardest": (0, 1),
    }

    T: int = 4
    schedule: Literal["linear", "cosine", "variance_preserving"] = "variance_preserving"
    input_scale: float = 0.5
    predict: Literal["eps", "x0", "v"] = "x0"
    steps: int = 2
    sampler: str = "ancestral"
    noise: float = 1.0
    dice: float = 1.0
    cross_entropy: float = 1.0
    recycle: float = 1.0
    hardest: float = 0.5


class MaskDenoising(MaskMethod):
    """A method that learns x_t -> noise, mask or v by regression; subclasses say how the network meets the image."""

    config_class = DenoisingConfig
    config: DenoisingConfig

    def __init__(self, plan: Plan, config: Any) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T).scaled(config.input_scale)
        self.default_steps, self.default_sampler = min(config.steps, config.T), config.sampler

    @abstractmethod
    def output(self, x_t: Tensor, t: Tensor, features: Features) -> Tensor:
        """What the network says about x_t [b, k, *s] at levels t [b]: noise, v, or class logits of the mask; float32."""

    def denoising_loss(
        self, x_0: Tensor, mask: Tensor, features: Features, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """|| target - output ||^2, plus Dice and cross-entropy where the output is a mask; and each term to log."""
        c = self.config
        t = draw_levels(len(x_0), c.T, c.hardest, rng).to(x_0.device)
        x_t = self.training_input(x_0, t, features, rng)
        output = self.output(x_t, t, features)
        ab = self.schedule.at(t, x_0)
        if c.predict == "x0":
            x0_hat = 2 * output.softmax(1) - 1
            terms = {"noise": squared_error(x0_hat, x_0).mean(), "dice": soft_dice_loss((x0_hat + 1) / 2, mask).mean()}
            terms["cross_entropy"] = cross_entropy(output, mask).mean()
        else:
            noise = (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt()  # the noise that leads from x_0 to x_t, whatever made x_t
            terms = {"noise": squared_error(output, target(c.predict, x_0, noise, ab)).mean()}
        total = torch.stack([getattr(c, name) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def training_input(self, x_0: Tensor, t: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """x_t ~ q(x_t | x_0); recycled (Fu et al. 2023): below T, one jump of the sampler from the network's own answer."""
        noise = randn_like(x_0, rng)
        x_t = self.schedule.q_sample(x_0, t, noise)
        answer = lambda x_T, T: self._mask(self.output(x_T, T, features), x_T, T)
        return recycled(x_t, t, noise, self.schedule, self.config.recycle, answer, rng)

    def denoise(self, x_t: Tensor | None, t: int, features: Features, z: Tensor | None) -> Tensor:
        assert x_t is not None
        levels = torch.full((len(x_t),), t, device=x_t.device)
        return self._mask(self.output(x_t, levels, features), x_t, levels)

    def _mask(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat in [-1, 1] from what the network said."""
        if self.config.predict == "x0":
            return 2 * output.softmax(1) - 1
        return to_x0(self.config.predict, output, x_t, self.schedule.at(t, x_t)).clamp(-1, 1)
