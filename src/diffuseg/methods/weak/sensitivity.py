"""Condition sensitivity: how the denoising of one image changes with the class it is conditioned on.

A denoiser (x_t, t, condition) -> x0_hat is run under "object", y1, and under tau y1 + (1 - tau) y0, at the same noise.
Their difference over 1 - tau tends to the derivative along f(y1) - f(y0) as tau -> 1; tau = 1 is that limit itself, by
forward-mode differentiation. All maps are signed: positive where the object makes the image brighter. Shapes: n draws at a
time, each with noise of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.text import pluralize


class Condition(NamedTuple):
    """A class as an embedding e for the denoiser, and as w, the labels that guidance is towards."""

    e: Float[Tensor, "b d"]
    w: Float[Tensor, "b k"]

    def rows(self, n: int) -> "Condition":
        """One condition for n elements."""
        return Condition(self.e.expand(n, -1), self.w.expand(n, -1))

    def beside(self, other: "Condition", n: int) -> "Condition":
        """This one for n elements and another for n more, in one batch."""
        return Condition(*(torch.cat(pair) for pair in zip(self.rows(n), other.rows(n), strict=True)))


Denoiser = Callable[[Tensor, int, Condition], Tensor]


@dataclass(frozen=True)
class Contrast:
    """Two conditions to compare, and how: the conditions have a batch of one. Guidance turns from y1 to y0 as a whole."""

    denoise: Denoiser
    one: Condition
    none: Condition
    tau: float

    @property
    def between(self) -> Condition:
        """tau y1 + (1 - tau) y0."""
        return Condition(torch.lerp(self.none.e, self.one.e, self.tau), self.none.w)

    def at(self, x: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat under y1, and its change with the condition, both at one x_t: the partial derivative, or its quotient."""
        if self.tau < 1:
            one, other = self.apart(x, x, t)
            return one, (one - other) / (1 - self.tau)
        return self.moving(x, torch.zeros_like(x), t)

    def apart(self, x: Float[Tensor, "n c *s"], other: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat of two paths, the second under the condition between, in one batch."""
        one, between = self.denoise(torch.cat([x, other]), t, self.one.beside(self.between, len(x))).chunk(2)
        return one, between

    def moving(self, x: Float[Tensor, "n c *s"], dx: Float[Tensor, "n c *s"], t: int) -> tuple[Tensor, Tensor]:
        """x0_hat under y1 and its derivative where the condition moves along f(y1) - f(y0) and x_t along dx."""
        one = self.one.rows(len(x))
        along = (self.one.e - self.none.e).expand_as(one.e)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward mode
            x_0, change, *_ = jvp(lambda x, e: self.denoise(x, t, Condition(e, one.w)), (x, one.e), (dx, along))
        return x_0, change


def start_timestep(schedule: NoiseSchedule, log_snr: float, steps: int) -> int:
    """The timestep Q of a log-SNR, from which so many steps are taken.

    Args:
        schedule: How noise grows.
        log_snr: Natural logarithm of the signal-to-noise ratio.
        steps: How many are taken, down to 0.

    Raises:
        UserError: more steps than there are timesteps below it.
    """
    Q = schedule.timestep(log_snr)
    if not 1 <= steps <= Q:
        raise UserError(
            f"{pluralize(steps, 'step')}, but {pluralize(Q, 'timestep')} below a log-SNR of {log_snr}",
            do=f"Choose between 1 and {Q}.",
        )
    return Q
