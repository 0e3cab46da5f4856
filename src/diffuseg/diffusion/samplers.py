"""Short functions that walk a grid of explicit (t, s) pairs with a denoiser (x_t, t) -> x0_hat.

The ancestral sampler alone may be given a denoiser that has learnt a variance: (x_t, t) -> (x0_hat, v).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.text import pluralize

Denoiser = Callable[[Tensor, int], Tensor]
Belief = Tensor | tuple[Tensor, ...]  # x0_hat, or (x0_hat,), or (x0_hat, v) with v in [0, 1], see `NoiseSchedule.widening`
Grid = list[tuple[int, int]]
OnStep = Callable[[int, Tensor], None] | None


def timesteps(T: int, steps: int) -> Grid:
    """Evenly spread pairs (t, s): the first t is T, each s is the next t, the last s is 0. Refuses steps outside 1..T."""
    if not 1 <= steps <= T:
        raise UserError(f"{steps} steps: this model has {pluralize(T, 'level')}", do=f"Choose between 1 and {T}.")
    levels = [round(T - i * T / steps) for i in range(steps)] + [0]
    return list(zip(levels[:-1], levels[1:], strict=True))


def believed(said: Belief) -> tuple[Tensor, Tensor | None]:
    """x0_hat, and v where there is one."""
    x_0, *v = said if isinstance(said, tuple) else (said,)
    return x_0, v[0] if v else None


def ancestral(
    denoiser: Callable[[Tensor, int], Belief], x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor],
    eta: float = 1.0, on_step: OnStep = None,
) -> Tensor:  # fmt: skip
    """x_s ~ q(x_s | x_t, x0_hat), its variance learned where the denoiser says one; eta scales the noise (1: DDPM, 0: DDIM)."""
    for t, s in grid:
        x_0, v = believed(denoiser(x, t))
        x = schedule.posterior(x_0, x, t, s, eta, noise() if eta and s else torch.zeros_like(x), v if s else None)
        if on_step is not None:
            on_step(s, x)
    return x


def ddim(
    denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor],
    eta: float = 0.0, on_step: OnStep = None,
) -> Tensor:  # fmt: skip
    """The deterministic member of the same family (Song et al. 2021)."""
    return ancestral(denoiser, x, grid, schedule, noise, eta, on_step)


def ddim_inversion(denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule) -> Tensor:
    """DDIM upwards: from clean data to the noise that leads back to it.

    Each step s -> t takes x0_hat at its lower end; at s = 0 data is clean, so the network is asked at the grid's first level.
    """
    for t, s in reversed(grid):
        asked = s or t
        ab_s, ab_t, ab = schedule.at(s, x), schedule.at(t, x), schedule.at(asked, x)
        x_0 = denoiser(x, asked)
        eps = (x - ab.sqrt() * x_0) / (1 - ab).sqrt()
        x = ((x - (1 - ab_s).sqrt() * eps) / ab_s.sqrt()) * ab_t.sqrt() + (1 - ab_t).sqrt() * eps
    return x


def dpm_solver_pp_2m(
    denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor],
    on_step: OnStep = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M): second order, data prediction, the previous x0_hat as the second point (Lu et al. 2022, alg. 2).

    lambda = log(alpha / sigma); the step to s = 0 (lambda infinite) is x0_hat itself.
    """
    ab = schedule.alpha_bar
    alpha, sigma = ab.sqrt(), (1 - ab).sqrt()
    lam = (alpha / sigma).log()
    previous: tuple[Tensor, float] | None = None
    for t, s in grid:
        x_0 = denoiser(x, t)
        if s == 0:
            x = x_0
        else:
            h = float(lam[s] - lam[t])
            D = x_0
            if previous is not None:
                r = previous[1] / h
                D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous[0]
            x = float(sigma[s] / sigma[t]) * x - float(alpha[s]) * math.expm1(-h) * D
            previous = (x_0, h)
        if on_step is not None:
            on_step(s, x)
    return x


@dataclass(frozen=True)
class Sampler:
    """A sampler with what it claims: its order of convergence, and whether it draws noise on the way."""

    function: Callable[..., Tensor]
    order: int
    stochastic: bool


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(ancestral, 1, True),
    "ddim": Sampler(ddim, 1, False),
    "dpm-solver++(2m)": Sampler(dpm_solver_pp_2m, 2, False),
}


def check_sampling(schedule: NoiseSchedule, steps: int, sampler: str) -> None:
    """Refuse a sampler that is not known and more steps than the schedule has levels, before anything is computed."""
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}", do=f"Known: {', '.join(SAMPLERS)}")
    timesteps(schedule.T, steps)
