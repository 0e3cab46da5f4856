"""Short functions that walk a grid of explicit (t, s) pairs with a denoiser (x_t, t) -> `ModelOutput`."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.text import did_you_mean, pluralize


class ModelOutput(NamedTuple):
    """What a denoiser makes of x_t.

    x_0  x0_hat
    v    in [0, 1], one for each value of x_0, from a network that has learnt a variance: `NoiseSchedule.log_variance_ratio`
    """

    x_0: Tensor
    v: Tensor | None = None


Denoiser = Callable[[Tensor, int], ModelOutput]
Grid = list[tuple[int, int]]


def timesteps(T: int, steps: int) -> Grid:
    """Evenly spread pairs (t, s): the first t is T, each s is the next t, the last s is 0.

    Args:
        T: The last timestep.
        steps: Number of pairs.

    Raises:
        UserError: steps outside 1..T.
    """
    if not 1 <= steps <= T:
        do = f"Choose between 1 and {T}." if T > 1 else "Choose 1."
        raise UserError(f"{steps} steps: this model has {pluralize(T, 'timestep')}", do=do)
    ends = [round(T - i * T / steps) for i in range(steps)] + [0]
    return list(zip(ends[:-1], ends[1:], strict=True))


def ancestral(
    denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor], eta: float = 1.0
) -> Tensor:
    """x_s ~ q(x_s | x_t, x0_hat), with a learned variance where the denoiser has one.

    Args:
        denoiser: (x_t, t) -> `ModelOutput`.
        x: x_T, noise [n, k, *s].
        grid: Pairs (t, s), see `timesteps`.
        schedule: How noise grows.
        noise: Makes fresh noise of the shape of x.
        eta: Scale of the noise in each step.

    Returns:
        x0_hat of the last step.

    References:
        Ho et al. 2020, eqs. 6 and 7 (eta = 1, DDPM); Song et al. 2021, eq. 12 (any eta; 0 is DDIM).
    """
    for t, s in grid:
        x_0, v = denoiser(x, t)
        if not s:
            return x_0
        fresh = noise() if eta else x.new_zeros(()).expand_as(x)

        def step(x_0: Tensor, x: Tensor, fresh: Tensor, v: Tensor | None, t: int = t, s: int = s) -> Tensor:
            return schedule.posterior(x_0, x, t, s, eta, fresh, v)

        x = in_blocks(step, x_0, x, fresh, v)
    return x


def in_blocks(compute: Callable[..., Tensor], first: Tensor, *others: Tensor | None) -> Tensor:
    """What is computed for each value by itself, of states [n, k, *s]: a block of voxels at a time where they are large.

    Args:
        compute: Is given a block of each state.
        first: A state.
        others: More of the same shape; None stays None.
    """
    if first.device.type != "cpu" or not scratch.is_large(first.shape):
        return compute(first, *others)
    found = scratch.tensor(first.shape)
    for part in blocks((first.shape[2], first[:, :, 0].numel())):
        found[:, :, part] = compute(*(None if x is None else x[:, :, part] for x in (first, *others)))
    return found


def ddim(
    denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor], eta: float = 0.0
) -> Tensor:
    """The deterministic member of the same family; a learned variance has no part in it. Arguments are those of `ancestral`.

    References:
        Song et al. 2021, eq. 12.
    """
    return ancestral(lambda x, t: ModelOutput(denoiser(x, t).x_0), x, grid, schedule, noise, eta)


def ddim_inversion(denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule) -> Tensor:
    """DDIM upwards: from clean data to the noise that leads back to it.

    Each step s -> t takes x0_hat at its lower end; at s = 0 data is clean, so the network is run at the grid's first timestep.

    Args:
        denoiser: (x_t, t) -> `ModelOutput`.
        x: Clean data [n, k, *s].
        grid: Pairs (t, s) as for sampling; they are walked upwards.
        schedule: How noise grows.

    References:
        Song et al. 2021, section 4.3.
    """
    for t, s in reversed(grid):
        run_at = s or t
        ab_s, ab_t, ab = schedule.at(s, x), schedule.at(t, x), schedule.at(run_at, x)
        x_0 = denoiser(x, run_at).x_0
        eps = (x - ab.sqrt() * x_0) / (1 - ab).sqrt()
        x = ((x - (1 - ab_s).sqrt() * eps) / ab_s.sqrt()) * ab_t.sqrt() + (1 - ab_t).sqrt() * eps
    return x


def dpm_solver_pp_2m(denoiser: Denoiser, x: Tensor, grid: Grid, schedule: NoiseSchedule, noise: Callable[[], Tensor]) -> Tensor:
    """DPM-Solver++(2M): second order, data prediction, the previous x0_hat as the second point.

    lambda = log(alpha / sigma); the step to s = 0 (lambda infinite) is x0_hat itself.

    Args:
        denoiser: (x_t, t) -> `ModelOutput`.
        x: x_T, noise [n, k, *s].
        grid: Pairs (t, s), see `timesteps`.
        schedule: How noise grows.
        noise: Not used: the solver is deterministic.

    Returns:
        x0_hat of the last step.

    References:
        Lu et al. 2022, algorithm 2.
    """
    ab = schedule.alpha_bar
    alpha, sigma = ab.sqrt(), (1 - ab).sqrt()
    lam = (alpha / sigma).log()
    previous: tuple[Tensor, float] | None = None
    for t, s in grid:
        x_0 = D = denoiser(x, t).x_0
        if s == 0:
            return x_0
        h = float(lam[s] - lam[t])
        if previous is not None:
            r = previous[1] / h

            def second(x_0: Tensor, before: Tensor, r: float = r) -> Tensor:
                return (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before

            D = in_blocks(second, x_0, previous[0])  # pyright: ignore[reportConstantRedefinition]
        a, b = float(sigma[s] / sigma[t]), float(alpha[s]) * math.expm1(-h)

        def advance(x: Tensor, D: Tensor, a: float = a, b: float = b) -> Tensor:
            return a * x - b * D

        x = in_blocks(advance, x, D)
        previous = (x_0, h)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm-solver++(2m)": dpm_solver_pp_2m,
}


def check_sampling(schedule: NoiseSchedule, steps: int, sampler: str) -> None:
    """Check sampler and steps before anything is computed.

    Args:
        schedule: Has the timesteps.
        steps: How many are asked for.
        sampler: A name in SAMPLERS.

    Raises:
        UserError: an unknown sampler, or steps that the schedule does not have.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}", do=did_you_mean(sampler, SAMPLERS))
    timesteps(schedule.T, steps)
