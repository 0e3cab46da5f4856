"""What both versions of MedSegDiff share: noise on a mask, a network that takes it away, and the loss between them.

A network may output the noise (as published), the mask, or v, and is sampled as it was trained: the same schedule, the
same parameterization. A learned variance is a second half of the output's channels; `said` alone parts the two.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import parted, target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES
from diffuseg.errors import UserError
from diffuseg.methods.base import MaskConfig, MaskMethod, randn_like, recycled, sample_timesteps
from diffuseg.methods.losses import cross_entropy, soft_dice_loss, squared_error, variational_bound
from diffuseg.methods.tiles import Features


@dataclass(frozen=True)
class DenoisingConfig(MaskConfig):
    """Noise levels, what the network outputs, and how it is trained; the defaults are for few steps.

    T, schedule      number of levels, and how they are spread
    input_scale      below 1: a harder schedule, as if the mask were multiplied by it before noising
    predict          "x0": class logits of the mask, coupled by a softmax; "v"; "eps", the noise, as published
    variance         of a step of the ancestral sampler: "fixed", that of the posterior; "learned", between it and that of the
                     step upwards, voxel by voxel (Nichol and Dhariwal 2021)
    steps, sampler   of a draw, where none are asked for: any number up to T, left out 2 as far as there are levels
    noise            weight of the squared error of what the network predicts
    dice, cross_entropy   weights of the terms on class probabilities; only where the network predicts x0
    vlb              weight of the variational bound, summed over the levels, in nats per value; only for a learned variance
    recycle          share of batches whose x_t (t < T) comes from the model's own prediction, not from the mask; above 0
                     only where the network predicts x0: any other target would be divided by next to no noise
    hardest          share of elements at the noisiest level T, the others uniform over 1..T
    """

    ranges: ClassVar = MaskConfig.ranges | {
        "T": (1, inf),
        "steps": (1, inf),
        "input_scale": (1e-3, inf),
        "noise": (0, inf),
        "dice": (0, inf),
        "cross_entropy": (0, inf),
        "vlb": (0, inf),
        "recycle": (0, 1),
        "hardest": (0, 1),
    }

    T: int = 4
    schedule: Literal["linear", "cosine", "variance_preserving"] = "variance_preserving"
    input_scale: float = 0.5
    predict: Literal["eps", "x0", "v"] = "x0"
    variance: Literal["fixed", "learned"] = "fixed"
    steps: int | None = None
    sampler: str = "ancestral"
    noise: float = 1.0
    dice: float = 1.0
    cross_entropy: float = 1.0
    vlb: float = 1e-3
    recycle: float = 1.0
    hardest: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recycle and self.predict != "x0":
            raise UserError(
                f"predict={self.predict}: x_t of the model's own making (recycle={self.recycle:g}) is for predict=x0",
                do="Give recycle=0 too.",
            )
        weights = ("noise", "dice", "cross_entropy") if self.predict == "x0" else ("noise",)
        if not any(getattr(self, name) for name in weights):
            raise UserError(f"{', '.join(f'{name}=0' for name in weights)}: nothing would be learnt of the mask")
        if self.variance == "learned" and (self.T < 2 or not self.vlb):
            raise UserError(f"variance=learned: T={self.T}, vlb={self.vlb:g}", do="It needs T=2 or more and vlb above 0.")
        if self.steps is not None and self.steps > self.T:
            raise UserError(f"steps={self.steps}: more than T={self.T}", do=f"Choose between 1 and {self.T}.")

    def outputs(self, classes: int) -> int:
        """Channels of the network's output."""
        return 2 * classes if self.variance == "learned" else classes


class MaskDenoising(MaskMethod):
    """A method that learns x_t -> noise, mask or v by regression; subclasses say how the network meets the image."""

    config_class = DenoisingConfig
    config: DenoisingConfig

    def __init__(self, plan: Plan, config: Any) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T).scaled(config.input_scale)
        self.default_steps, self.default_sampler = config.steps or min(2, config.T), config.sampler

    @abstractmethod
    def output(self, x_t: Tensor, t: Tensor, features: Features) -> Tensor:
        """All that the network outputs for x_t [b, k, *s] at levels t [b], float32: k channels, 2 k with a learned variance."""

    def said(self, x_t: Tensor, t: Tensor, features: Features) -> tuple[Tensor, Tensor | None]:
        """What the network says about x_t: noise, v, or class logits of the mask; and v in (0, 1) of a learned variance."""
        output = self.output(x_t, t, features)
        return (output, None) if self.config.variance == "fixed" else parted(output)

    def denoising_loss(
        self, x_0: Tensor, mask: Tensor, features: Features, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """|| target - output ||^2, plus Dice and cross-entropy where the output is a mask; and each term to log."""
        c = self.config
        t, noise = sample_timesteps(len(x_0), c.T, c.hardest, rng).to(x_0.device), randn_like(x_0, rng)
        x_t = self.training_input(x_0, t, noise, features, rng)
        output, v = self.said(x_t, t, features)
        if c.predict == "x0":
            x0_hat = 2 * output.softmax(1) - 1
            terms = {"noise": squared_error(x0_hat, x_0).mean(), "dice": soft_dice_loss((x0_hat + 1) / 2, mask).mean()}
            terms["cross_entropy"] = cross_entropy(output, mask).mean()
        else:
            terms = {"noise": squared_error(output, target(c.predict, x_0, noise, self.schedule.at(t, x_0))).mean()}
        if v is not None:
            terms["vlb"] = variational_bound(self.schedule, x_0, self._mask(output, x_t, t).detach(), t, v)
        total = torch.stack([getattr(c, name) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def training_input(self, x_0: Tensor, t: Tensor, noise: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """x_t ~ q(x_t | x_0); recycled (Fu et al. 2023): below T, one jump of the sampler from the network's own answer."""
        x_t = self.schedule.q_sample(x_0, t, noise)
        return recycled(x_t, t, noise, self.schedule, self.config.recycle, lambda x, T: self._belief(x, T, features), rng)

    def belief(self, x_t: Tensor, t: int, features: Features, z: Tensor | None) -> tuple[Tensor, ...]:
        return self._belief(x_t, torch.full((len(x_t),), t, device=x_t.device), features)

    def denoise(self, x_t: Tensor | None, t: int, features: Features, z: Tensor | None) -> Tensor:
        assert x_t is not None
        return self.belief(x_t, t, features, z)[0]

    def _belief(self, x_t: Tensor, t: Tensor, features: Features) -> tuple[Tensor, ...]:
        output, v = self.said(x_t, t, features)
        x0_hat = self._mask(output, x_t, t)
        return (x0_hat,) if v is None else (x0_hat, v)

    def _mask(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat in [-1, 1] from what the network said."""
        if self.config.predict == "x0":
            return 2 * output.softmax(1) - 1
        return to_x0(self.config.predict, output, x_t, self.schedule.at(t, x_t)).clamp(-1, 1)
