"""What methods share in training: timesteps, recycling, losses, and the loss of a denoiser of masks."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import split_learned_variance, target, to_x0
from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule, ScheduleName
from diffuseg.errors import UserError
from diffuseg.methods.base import Loss, MaskConfig, MaskMethod, setting
from diffuseg.methods.tiles import Features

Terms = dict[str, Tensor]

# -- what a step of training draws -----------------------------------------------------------------------------------


def sample_timesteps(b: int, T: int, p_terminal: float, rng: torch.Generator) -> Tensor:
    """Timesteps t in 1..T of a batch: uniform, except that each element is at T with probability `p_terminal`.

    Args:
        b: Number of elements.
        T: The last timestep.
        p_terminal: Probability of each element to be at T.
        rng: Source of randomness, on the CPU.
    """
    t = torch.randint(1, T + 1, (b,), generator=rng)
    return torch.where(torch.rand(b, generator=rng) < p_terminal, T, t)


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Noise of x's shape from a CPU generator, so that every device trains on the same numbers."""
    return torch.randn(x.shape, generator=rng).to(x)


def recycled_input(
    x_t: Float[Tensor, "b k *s"], t: Tensor, noise: Float[Tensor, "b k *s"], schedule: NoiseSchedule, p_recycle: float,
    denoiser: Callable[[Tensor, Tensor], ModelOutput], rng: torch.Generator,
) -> Float[Tensor, "b k *s"]:  # fmt: skip
    """Recycling: x_t below T from the model's own prediction, not from the mask, in a share `p_recycle` of batches.

    Sampling reaches t < T from pure noise through the model's own x0_hat, never from the true mask: one jump of the sampler
    from `denoiser(x_T, T)`, without gradient. Elements at timestep T stay as they are.

    Args:
        x_t: Noisy masks from the true ones.
        t: Timesteps [b].
        noise: Is added again on the way from x0_hat to x_t.
        schedule: How noise grows.
        p_recycle: Share of batches that are recycled.
        denoiser: (x_T, T [b]) -> x0_hat.
        rng: Source of randomness, on the CPU.

    References:
        Fu et al. 2023, "A recycling training strategy for medical image segmentation with diffusion denoising models".
    """
    T = schedule.T
    if not (p_recycle and torch.rand((), generator=rng) < p_recycle and bool((t < T).any())):
        return x_t
    with torch.no_grad():
        x_T, terminal = randn_like(x_t, rng), torch.full_like(t, T)
        x_0, v = denoiser(x_T, terminal)
        own = schedule.posterior(x_0, x_T, terminal, t.clamp(max=T - 1), 1.0, noise, v)
    return torch.where((t < T).reshape(-1, *[1] * (x_t.ndim - 1)), own, x_t)


def annotated(mask: Float[Tensor, "b k *s"]) -> Float[Tensor, "b 1 *s"]:
    """1 where a one-hot mask names a class, 0 where nobody has annotated: there no loss counts."""
    return mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class FewStepsConfig(MaskConfig):
    """How noise grows over a handful of timesteps, for a denoiser that jumps from x_t to a mask.

    T                    number of timesteps
    schedule             how noise grows over them, a name in SCHEDULES
    beta_min, beta_max   rates of schedule=variance_preserving
    """

    T: int = setting(4, 1)
    schedule: ScheduleName = "variance_preserving"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = (self.beta_min, self.beta_max)
        if self.schedule != "variance_preserving" and rates != (FewStepsConfig.beta_min, FewStepsConfig.beta_max):
            what = f"schedule={self.schedule}: beta_min and beta_max are rates of schedule=variance_preserving"
            raise UserError(what, do="Leave them out.")

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule of this name with T timesteps."""
        if self.schedule == "variance_preserving":
            return NoiseSchedule.variance_preserving(self.T, self.beta_min, self.beta_max)
        return SCHEDULES[self.schedule](self.T)


# -- losses ------------------------------------------------------------------------------------------------------------


def soft_dice_loss(probability: Float[Tensor, "b k *s"], mask: Float[Tensor, "b k *s"]) -> Float[Tensor, " b"]:
    """1 - soft Dice of each element, mean over the foreground classes, in [0, 1].

    A class that is absent from mask and prediction counts as agreement (smoothing of one voxel). What is predicted where
    nobody has annotated does not count.

    Args:
        probability: Of the classes, class 0 is background.
        mask: One-hot; all zero where nobody has annotated.
    """
    axes = tuple(range(2, mask.ndim))
    p, m = probability[:, 1:] * annotated(mask), mask[:, 1:]
    overlap = (p * m).sum(axes)
    return 1 - ((2 * overlap + 1) / (p.sum(axes) + m.sum(axes) + 1)).mean(1)


def cross_entropy(logits: Float[Tensor, "b k *s"], mask: Float[Tensor, "b k *s"]) -> Float[Tensor, " b"]:
    """Cross-entropy of each element in nats per voxel, of all voxels; those that nobody has annotated add nothing.

    Args:
        logits: Of the classes.
        mask: One-hot; all zero where nobody has annotated.
    """
    return -(mask * F.log_softmax(logits, dim=1)).sum(1).flatten(1).mean(1)


def squared_error(
    a: Float[Tensor, "b k *s"], b: Float[Tensor, "b k *s"], known: Float[Tensor, "b 1 *s"] | float = 1.0
) -> Float[Tensor, " b"]:
    """Mean squared error of each element.

    Args:
        a: What is compared with `b`.
        b: Of the same shape.
        known: 0 where a voxel adds nothing, 1 elsewhere.
    """
    return ((a - b) * known).square().flatten(1).mean(1)


def segmentation_loss(logits: Tensor, mask: Tensor, probability: Tensor | None = None) -> Terms:
    """Dice and cross-entropy of class logits, mean over the batch.

    Args:
        logits: [b, k, *s].
        mask: One-hot [b, k, *s].
        probability: Their softmax, where it is there already.
    """
    p = logits.softmax(1) if probability is None else probability
    return {"dice": soft_dice_loss(p, mask).mean(), "cross_entropy": cross_entropy(logits, mask).mean()}


def weighted(terms: Terms, config: Any) -> Tensor:
    """The sum of the terms, each times the setting of its name."""
    return torch.stack([getattr(config, name) * value for name, value in terms.items()]).sum()


def detached(terms: Terms) -> dict[str, float | Tensor]:
    """The terms to log."""
    return {name: value.detach() for name, value in terms.items()}


def variational_bound(
    schedule: NoiseSchedule, x_0: Tensor, x0_hat: Tensor, t: Tensor, v: Tensor, known: Tensor | float = 1.0
) -> Tensor:
    """The variational bound at the timesteps drawn, T times their mean, in nats per value; trains v in [0, 1] alone.

    The step from timestep 1 to what is clean has no share in it: no noise is added there; nor have voxels that are not known.

    Args:
        schedule: How noise grows.
        x_0: One-hot masks in [-1, 1], [b, k, *s].
        x0_hat: Their prediction, without gradient.
        t: Timesteps [b].
        v: The learned variance, [b, k, *s].
        known: 0 where a voxel adds nothing, 1 elsewhere.

    References:
        Nichol and Dhariwal 2021, eqs. 4 and 15; x0_hat has no gradient, as in their L_hybrid (eq. 16).
    """
    t_2 = t.clamp(min=2)
    divergence = schedule.posterior_divergence(x_0, x0_hat, t_2, t_2 - 1, v)
    return schedule.T * ((divergence * known).flatten(1).mean(1) * (t > 1)).mean()


# -- denoisers of masks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenoisingConfig(MaskConfig):
    """Timesteps, what the network outputs, and how it is trained; the defaults are for few steps.

    T, schedule      number of timesteps, and how noise grows over them
    input_scale      below 1: a harder schedule, as if the mask were multiplied by it before noising
    predict          "x0": class logits of the mask, coupled by a softmax; "v"; "eps", the noise, as published
    variance         of a step of the ancestral sampler: "fixed", that of the posterior; "learned", between it and that of the
                     step upwards, voxel by voxel (Nichol and Dhariwal 2021)
    steps, sampler   of a draw, where none are given: any number up to T; left out, 2 as far as there are timesteps
    noise            weight of the squared error of what the network predicts
    dice, cross_entropy   weights of the terms on class probabilities; only where the network predicts x0
    vlb              weight of the variational bound, summed over the timesteps, in nats per value; only for a learned variance
    recycle          share of batches whose x_t (t < T) comes from the model's own prediction, not from the mask; above 0
                     only where the network predicts x0: any other target would be divided by next to no noise
    p_terminal_timestep   share of elements at the noisiest timestep T, the others uniform over 1..T
    """

    aliases: ClassVar = {"hardest": "p_terminal_timestep"}

    T: int = setting(4, 1)
    schedule: ScheduleName = "variance_preserving"
    input_scale: float = setting(0.5, 1e-3)
    predict: Literal["eps", "x0", "v"] = "x0"
    variance: Literal["fixed", "learned"] = "fixed"
    steps: int | None = setting(None, 1)
    sampler: str = "ancestral"
    noise: float = setting(1.0, 0)
    dice: float = setting(1.0, 0)
    cross_entropy: float = setting(1.0, 0)
    vlb: float = setting(1e-3, 0)
    recycle: float = setting(1.0, 0, 1)
    p_terminal_timestep: float = setting(0.5, 0, 1)

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


DenoisingSettings = TypeVar("DenoisingSettings", bound=DenoisingConfig)


class MaskDenoising(MaskMethod[DenoisingSettings]):
    """A method that learns x_t -> noise, mask or v by regression; subclasses say how the network meets the image.

    It is sampled as it is trained: the same schedule, the same parameterization.
    """

    config_class = DenoisingConfig

    def __init__(self, plan: Plan, config: DenoisingSettings) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T).scaled(config.input_scale)
        self.default_steps, self.default_sampler = config.steps or min(2, config.T), config.sampler

    @abstractmethod
    def output(self, x_t: Tensor, t: Tensor, features: Features) -> Tensor:
        """The network's output for x_t [b, k, *s] at timesteps t [b], float32: k channels, 2 k with a learned variance."""

    def denoising_loss(self, x_0: Tensor, mask: Tensor, features: Features, rng: torch.Generator) -> Loss:
        """|| target - output ||^2, plus Dice and cross-entropy where the output is a mask; and each term to log.

        Args:
            x_0: One-hot masks in [-1, 1], [b, k, *s].
            mask: The same in [0, 1].
            features: What `encode` made of the images.
            rng: Source of all randomness, on the CPU.
        """
        c, known = self.config, annotated(mask)
        t, noise = sample_timesteps(len(x_0), c.T, c.p_terminal_timestep, rng).to(x_0.device), randn_like(x_0, rng)
        x_t = self.training_input(x_0, t, noise, features, rng)
        prediction, v = self._predict(x_t, t, features)
        if c.predict == "x0":
            x0_hat = 2 * prediction.softmax(1) - 1
            terms = {"noise": squared_error(x0_hat, x_0, known).mean()} | segmentation_loss(prediction, mask, (x0_hat + 1) / 2)
        else:
            aim = target(c.predict, x_0, noise, self.schedule.at(t, x_0))
            terms = {"noise": squared_error(prediction, aim, known).mean()}
        if v is not None:
            terms["vlb"] = variational_bound(self.schedule, x_0, self._to_x0(prediction, x_t, t).detach(), t, v, known)
        return weighted(terms, c), detached(terms)

    def training_input(self, x_0: Tensor, t: Tensor, noise: Tensor, features: Features, rng: torch.Generator) -> Tensor:
        """x_t ~ q(x_t | x_0), or recycled.

        Args:
            x_0: One-hot masks in [-1, 1], [b, k, *s].
            t: Timesteps [b].
            noise: Of the shape of x_0.
            features: What `encode` made of the images.
            rng: Source of randomness, on the CPU.
        """
        x_t = self.schedule.q_sample(x_0, t, noise)
        denoiser = lambda x, T: self.predict_x0(x, T, features)
        return recycled_input(x_t, t, noise, self.schedule, self.config.recycle, denoiser, rng)

    def predict_x0(self, x_t: Tensor | None, t: int | Tensor, features: Features, z: Tensor | None = None) -> ModelOutput:
        assert x_t is not None
        ts = torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0])
        prediction, v = self._predict(x_t, ts, features)
        return ModelOutput(self._to_x0(prediction, x_t, ts), v)

    def denoise(self, x_t: Tensor | None, t: int, features: Features, z: Tensor | None) -> Tensor:
        return self.predict_x0(x_t, t, features, z).x_0

    def _predict(self, x_t: Tensor, t: Tensor, features: Features) -> tuple[Tensor, Tensor | None]:
        """Noise, v, or class logits of the mask; and v in (0, 1) of a learned variance."""
        output = self.output(x_t, t, features)
        return (output, None) if self.config.variance == "fixed" else split_learned_variance(output)

    def _to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat in [-1, 1]."""
        if self.config.predict == "x0":
            return 2 * prediction.softmax(1) - 1
        return to_x0(self.config.predict, prediction, x_t, self.schedule.at(t, x_t)).clamp(-1, 1)
