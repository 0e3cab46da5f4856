"""One noise schedule for every method: a table alpha_bar[0..T], and one posterior for any s < t and eta."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import UserError

ScheduleName = Literal["linear", "cosine", "variance_preserving"]  # those of SCHEDULES
Timestep = int | Tensor  # t in 0..T, one for all or one per element of the batch


class NoiseSchedule:
    """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise, with ab = alpha_bar [T + 1]: index 0 is clean data (1), T is noise.

    The table is kept in float64 and must decrease strictly inside [0, 1].
    """

    def __init__(self, alpha_bar: Float[Tensor, " timesteps"]) -> None:
        table = alpha_bar.detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2 or table[0] != 1 or not (table[1:] < table[:-1]).all() or table[-1] < 0:
            raise UserError("alpha_bar must start at 1 and decrease strictly inside [0, 1]")
        self.alpha_bar = table

    @property
    def T(self) -> int:
        """The last timestep, which is the noisiest."""
        return len(self.alpha_bar) - 1

    @classmethod
    def linear(cls, T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> "NoiseSchedule":
        """Ho et al. 2020: beta grows linearly; for T other than 1000 it is rescaled, so that timestep T is as noisy.

        Args:
            T: The last timestep.
            beta_1: Variance of the first step where T is 1000.
            beta_T: That of the last.
        """
        beta = torch.linspace(beta_T, beta_1, T, dtype=torch.float64).flip(0) * (1000 / T)  # T = 1 gets beta_T
        return cls(_from_beta(beta.clamp(max=0.999)))

    @classmethod
    def cosine(cls, T: int, offset: float = 0.008) -> "NoiseSchedule":
        """Nichol and Dhariwal 2021: alpha_bar = cos^2, with every beta at most 0.999.

        Args:
            T: The last timestep.
            offset: s of the paper; it keeps the first beta from being tiny.
        """
        u = (torch.arange(T + 1, dtype=torch.float64) / T + offset) / (1 + offset)
        f = torch.cos(u * math.pi / 2).square()
        return cls(_from_beta((1 - f[1:] / f[:-1]).clamp(max=0.999)))

    @classmethod
    def variance_preserving(cls, T: int, beta_min: float = 0.1, beta_max: float = 20.0) -> "NoiseSchedule":
        """Denoising-diffusion GANs (Xiao et al. 2022): the continuous VP process at T + 1 times from 0.001 to 1.

        Their timestep 0 keeps 1e-8 of noise; ours is clean.

        Args:
            T: The last timestep.
            beta_min: Rate at time 0.
            beta_max: Rate at time 1.
        """
        u = 1e-3 + (1 - 1e-3) * torch.arange(T + 1, dtype=torch.float64) / T
        log_alpha_bar = -0.5 * (beta_max - beta_min) * u.square() - beta_min * u
        return cls((log_alpha_bar - log_alpha_bar[0]).exp())

    def scaled(self, b: float) -> "NoiseSchedule":
        """The schedule of a mask multiplied by b: every log-SNR is shifted by 2 log b (b < 1 is harder)."""
        if b == 1:
            return self
        ab = self.alpha_bar * b * b
        return NoiseSchedule(ab / (ab + (1 - self.alpha_bar)))  # the inner brackets keep timestep 0 at exactly 1

    def at(self, t: Timestep, like: Tensor) -> Tensor:
        """alpha_bar_t, shaped to multiply `like` [b, ...]; float32 at least.

        Args:
            t: One for all elements, or [b].
            like: What it is to multiply: its device, and its number of axes.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)  # before the device, which may not have float64
        if isinstance(t, int):
            return self.alpha_bar[t].to(dtype).to(like.device)
        return self.alpha_bar.to(dtype).to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))

    def snr(self, t: Timestep) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
        ab = self.alpha_bar[t]
        return ab / (1 - ab)

    def timestep(self, log_snr: float) -> int:
        """The timestep t in 1..T whose log-SNR is nearest."""
        log_snrs = self.snr(torch.arange(1, self.T + 1)).log()
        return 1 + int((log_snrs - log_snr).abs().nan_to_num(math.inf).argmin())

    def q_sample(self, x_0: Tensor, t: Timestep, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0), for noise ~ N(0, 1) of the shape of x_0."""
        ab = self.at(t, x_0)
        return ab.sqrt() * x_0 + (1 - ab).sqrt() * noise

    def q_step(self, x_s: Tensor, s: Timestep, t: Timestep, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_s).

        Args:
            x_s: Noisy data at timestep s.
            s: Its timestep.
            t: A higher one.
            noise: ~ N(0, 1) of the shape of x_s.
        """
        ratio = self.at(t, x_s) / self.at(s, x_s)
        return ratio.sqrt() * x_s + (1 - ratio).sqrt() * noise

    def posterior(
        self, x_0: Tensor, x_t: Tensor, t: Timestep, s: Timestep, eta: float, noise: Tensor, v: Tensor | None = None
    ) -> Tensor:
        """x_s given x_t and x_0, for any s < t: eta = 1 is DDPM's (and DDGAN's) posterior, eta = 0 is DDIM.

        x_s = sqrt(ab_s) x_0 + sqrt(1 - ab_s - sigma^2) eps + sigma noise,  eps = (x_t - sqrt(ab_t) x_0) / sqrt(1 - ab_t),
        sigma = eta sqrt((1 - ab_s) / (1 - ab_t)) sqrt(1 - ab_t / ab_s)

        Args:
            x_0: Clean data, or its prediction.
            x_t: The state.
            t: Its timestep.
            s: A lower one.
            eta: Scale of the noise, in [0, 1].
            noise: ~ N(0, 1) of the shape of x_t.
            v: In [0, 1], for s > 0 only: a learned variance, see `log_variance_ratio`. It scales the noise; the mean stays.

        References:
            Song et al. 2021, eqs. 12 and 16.
        """
        ab_t, ab_s = self.at(t, x_t), self.at(s, x_t)
        eps = (x_t - ab_t.sqrt() * x_0) / (1 - ab_t).sqrt()
        sigma = eta * ((1 - ab_s) / (1 - ab_t)).sqrt() * (1 - ab_t / ab_s).sqrt()
        mean = ab_s.sqrt() * x_0 + (1 - ab_s - sigma.square()).clamp(min=0).sqrt() * eps
        return mean + sigma * (noise if v is None else (self.log_variance_ratio(t, s, v) / 2).exp() * noise)

    def log_variance_ratio(self, t: Timestep, s: Timestep, v: Tensor) -> Tensor:
        """v (log beta - log beta~): log of a learned variance over the posterior's, 0 < s < t.

        beta = 1 - ab_t / ab_s is the variance of the step upwards, beta~ = (1 - ab_s) / (1 - ab_t) beta that of the posterior,
        for neighbouring timesteps as for distant ones; v = 0 is beta~, v = 1 is beta.

        Args:
            t: The upper timestep.
            s: The lower one.
            v: In [0, 1].

        References:
            Nichol and Dhariwal 2021, eq. 15.
        """
        return v * ((1 - self.at(t, v)) / (1 - self.at(s, v))).log()

    def posterior_divergence(self, x_0: Tensor, x0_hat: Tensor, t: Timestep, s: Timestep, v: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || q(x_s | x_t, x0_hat) with the learned variance), 0 < s < t, in nats per value.

        Both means are linear in x_0 with the same coefficient, so x_t cancels.

        Args:
            x_0: Clean data [b, ...].
            x0_hat: Its prediction.
            t: The upper timestep.
            s: The lower one.
            v: The learned variance, in [0, 1], of the shape of x_0.
        """
        ab_t, ab_s = self.at(t, x_0), self.at(s, x_0)
        beta = 1 - ab_t / ab_s
        variance = (1 - ab_s) / (1 - ab_t) * beta
        mean_difference = ab_s.sqrt() * beta / (1 - ab_t) * (x_0 - x0_hat)
        log_ratio = self.log_variance_ratio(t, s, v)
        return (log_ratio - 1 + (1 + mean_difference.square() / variance) * (-log_ratio).exp()) / 2


def _from_beta(beta: Float[Tensor, " T"]) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])


SCHEDULES: dict[ScheduleName, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "variance_preserving": NoiseSchedule.variance_preserving,
}
