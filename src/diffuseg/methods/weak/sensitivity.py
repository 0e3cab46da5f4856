"""Condition sensitivity: how the denoising of one image changes with what it is said to show.

A denoiser (x_t, t, condition) -> x0_hat is asked under "object", y1, and under tau y1 + (1 - tau) y0, at the same noise.
Their difference over 1 - tau tends to the derivative along f(y1) - f(y0) as tau -> 1; tau = 1 is that limit itself, by
forward-mode differentiation. All maps are signed: positive where the object makes the image brighter. Shapes: n draws at a
time, each with noise of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.text import pluralize

OnStep = Callable[[int, Tensor], None] | None


class Condition(NamedTuple):
    """What the image is said to show: an embedding e for the denoiser, and w, the labels that guidance is towards."""

    e: Float[Tensor, "b d"]
    w: Float[Tensor, "b k"]

    def rows(self, n: int) -> "Condition":
        """One condition for n elements."""
        return Condition(self.e.expand(n, -1), self.w.expand(n, -1))


Denoiser = Callable[[Tensor, int, Condition], Tensor]


@dataclass(frozen=True)
class Contrast:
    """Two conditions to compare, and how: the conditions have a batch of one.

    switch  guidance of the second path is towards y0 ("full", as published) or tau y1 + (1 - tau) y0 ("scaled")
    """

    denoise: Denoiser
    one: Condition
    none: Condition
    tau: float
    switch: Literal["full", "scaled"] = "full"

    @property
    def between(self) -> Condition:
        """tau y1 + (1 - tau) y0."""
        mixed = Condition(*(torch.lerp(b, a, self.tau) for a, b in zip(self.one, self.none, strict=True)))
        return mixed if self.switch == "scaled" else Condition(mixed.e, self.none.w)

    def at(self, x: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat under y1, and its change with the condition, both at one x_t: the partial derivative, or its quotient."""
        if self.tau < 1:
            one, other = self.apart(x, x, t)
            return one, (one - other) / (1 - self.tau)
        return self.moving(x, torch.zeros_like(x), t)

    def apart(self, x: Float[Tensor, "n c *s"], other: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat of two paths, the second under the condition between, in one batch."""
        n = len(x)
        both = Condition(*(torch.cat(pair) for pair in zip(self.one.rows(n), self.between.rows(n), strict=True)))
        one, between = self.denoise(torch.cat([x, other]), t, both).chunk(2)
        return one, between

    def moving(self, x: Float[Tensor, "n c *s"], dx: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat under y1 and its derivative where the condition moves along f(y1) - f(y0) and x_t along dx."""
        one = self.one.rows(len(x))
        along = (self.one.e - self.none.e).expand_as(one.e)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward mode
            x_0, change, *_ = jvp(lambda x, e: self.denoise(x, t, Condition(e, one.w)), (x, one.e), (dx, along))
        return x_0, change


def levels(
    contrast: Contrast, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule, noise: Callable[[], Tensor],
    steps: int, log_snr: tuple[float, float], support: float = 0.0, on_step: OnStep = None,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Mean over noise levels, log-SNR evenly from the first to the last, of how much better the object explains a voxel.

    SNR |x_0 - x0_hat|^2 / 2 per unit of log-SNR is the variational bound's part of -log p(x_0 | y) (Kingma et al., 2021), so
    SNR D . R, see `supported`, is that of the log-likelihood ratio (tau = 0), but for three liberties: reconstructions are
    averaged before the product, R is smoothed, and what speaks against the object is left out. Nothing is walked: each level
    has fresh noise on the true image, and the same noise with the other sign, so that what is odd in the noise cancels.
    support = 0: the change alone, at each level brought to unit size.
    """
    n, total = len(x_0), torch.zeros_like(x_0)
    for i in range(steps):
        share = i / (steps - 1) if steps > 1 else 0.5
        t = schedule.level(log_snr[0] + share * (log_snr[1] - log_snr[0]))
        fresh = noise()
        x_t = schedule.q_sample(torch.cat([x_0, x_0]), t, torch.cat([fresh, -fresh]))
        one, change = (x.unflatten(0, (2, n)).mean(0) for x in contrast.at(x_t, t))
        if support:
            middle = one - change / 2  # between y1 and y0; exact for tau = 0, else as if the label acted linearly
            total = total + schedule.snr(t).to(x_0) * supported(change, x_0 - middle, support)
        else:
            total = total + unit(change)
        if on_step is not None:
            on_step(t, x_t[:n])
    return total / steps


def supported(change: Float[Tensor, "n c *s"], residual: Float[Tensor, "n c *s"], s: float) -> Float[Tensor, "n c *s"]:
    """sign(D) max(D . (G_s * R), 0): the change D where the image differs from both reconstructions in its direction.

    |x_0 - x0_hat(y0)|^2 - |x_0 - x0_hat(y1)|^2 = 2 D . R, with D = x0_hat(y1) - x0_hat(y0) and R = x_0 minus their mean:
    summed over an image and the levels that is the evidence of a diffusion classifier (Li et al., ICCV 2023), here kept
    apart for each voxel. The residual is smoothed by a Gaussian of s voxels: by itself it is mostly texture and noise.
    """
    smooth = gaussian_filter(residual.double().cpu().numpy(), (0, 0, *[s] * (residual.ndim - 2)), mode="nearest")
    return change.sign() * (change * torch.from_numpy(smooth).to(change)).clamp(min=0)


def accumulated(
    contrast: Contrast, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule, noise: Callable[[], Tensor],
    steps: int, log_snr: tuple[float, float], on_step: OnStep = None,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Algorithm 1 of the paper: two deterministic paths from one x_Q drift apart; the sum of (x_s - x'_s) / (1 - tau).

    tau = 1: one path and its tangent, which is what the second path tends to. Q is the first log-SNR.
    """
    Q = start(schedule, log_snr[0], steps)
    x = schedule.q_sample(x_0, Q, noise())
    still = torch.zeros_like(x)
    other, total = (x, still) if contrast.tau < 1 else (still, still)  # the second path, or the tangent
    for t in range(Q, Q - steps, -1):
        ask = contrast.apart if contrast.tau < 1 else contrast.moving
        x_hat, other_hat = ask(x, other, t)
        x = schedule.posterior(x_hat, x, t, t - 1, 0.0, still)
        other = schedule.posterior(other_hat, other, t, t - 1, 0.0, still)  # linear, so it carries a tangent too
        total = total + ((x - other) / (1 - contrast.tau) if contrast.tau < 1 else other)
        if on_step is not None:
            on_step(t - 1, x)
    return total


def shared(
    contrast: Contrast, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule, noise: Callable[[], Tensor],
    steps: int, log_snr: tuple[float, float], on_step: OnStep = None,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """As `accumulated`, but both conditions meet one x_t at each step, that of y1's path: a sum of partial derivatives."""
    Q = start(schedule, log_snr[0], steps)
    x = schedule.q_sample(x_0, Q, noise())
    total = still = torch.zeros_like(x)
    for t in range(Q, Q - steps, -1):
        x_hat, change = contrast.at(x, t)
        total = total + schedule.posterior(change, still, t, t - 1, 0.0, still)
        x = schedule.posterior(x_hat, x, t, t - 1, 0.0, still)
        if on_step is not None:
            on_step(t - 1, x)
    return total


def start(schedule: NoiseSchedule, log_snr: float, steps: int) -> int:
    """The level Q of a log-SNR; refuses more steps than there are levels below it."""
    Q = schedule.level(log_snr)
    if not 1 <= steps <= Q:
        raise UserError(
            f"{pluralize(steps, 'step')}, but {pluralize(Q, 'level')} below a log-SNR of {log_snr}",
            do=f"Choose between 1 and {Q}.",
        )
    return Q


def unit(x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """Each element divided by its root mean square; zero stays zero."""
    size = x.square().flatten(1).mean(1).sqrt()
    return x / torch.where(size > 0, size, math.inf).reshape(-1, *[1] * (x.ndim - 1))
