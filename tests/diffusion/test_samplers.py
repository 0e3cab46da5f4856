"""Samplers with denoisers whose answer is known: the data itself, and the best possible guess for Gaussian data.

The second has a closed form, and so has the flow that DDIM and DPM-Solver++ follow: orders can be measured.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffuseg.diffusion.parameterization import Kind, target, to_x0
from diffuseg.diffusion.samplers import (
    SAMPLERS,
    Grid,
    ModelOutput,
    ancestral,
    ddim,
    ddim_inversion,
    dpm_solver_pp_2m,
    timesteps,
)
from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule
from diffuseg.errors import UserError

GRIDS = {"2d": (2, 3, 6, 5), "3d": (2, 2, 4, 3, 5)}
EVERY = pytest.mark.parametrize("sampler", SAMPLERS)
ORDER = {"ancestral": 1, "ddim": 1, "dpm-solver++(2m)": 2}  # of convergence: a new sampler has its line here
DETERMINISTIC = ["ddim", "dpm-solver++(2m)"]


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def mask(shape: tuple[int, ...]) -> Tensor:
    """One-hot in {-1, 1}."""
    index = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return 2 * torch.nn.functional.one_hot(index, shape[1]).movedim(-1, 1).double() - 1


class Gaussian:
    """Data ~ N(mean, std^2) with several stds side by side: E[x_0 | x_t], and the flow that keeps the marginals."""

    mean, std = 0.6, torch.tensor([0.25, 0.5, 0.8, 1.5], dtype=torch.float64)

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def marginal(self, t: int) -> tuple[Tensor, Tensor]:
        ab = self.schedule.alpha_bar[t]
        return ab.sqrt() * self.mean, (ab * self.std**2 + 1 - ab).sqrt()

    def denoiser(self, x: Tensor, t: int) -> ModelOutput:
        center, spread = self.marginal(t)
        return ModelOutput(self.mean + self.schedule.alpha_bar[t].sqrt() * self.std**2 / spread**2 * (x - center))

    def flow(self, x: Tensor, t: int, s: int) -> Tensor:
        """A Gaussian flow only moves and stretches: a quantile at timestep t is the same quantile at timestep s."""
        (c_t, d_t), (c_s, d_s) = self.marginal(t), self.marginal(s)
        return c_s + d_s * (x - c_t) / d_t


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def order(steps: list[int], errors: list[float]) -> float:
    """The slope of the error over the number of steps, both in logarithms."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def between(t: int, s: int, steps: int) -> Grid:
    inner = [round(t - i * (t - s) / steps) for i in range(steps + 1)]
    return list(zip(inner[:-1], inner[1:], strict=True))


# -- grids ---------------------------------------------------------------------------------------------------------


@given(T=st.integers(1, 5000), data=st.data())
def test_grids_lead_from_T_to_0_without_a_gap(T, data):
    steps = data.draw(st.integers(1, T))
    grid = timesteps(T, steps)
    assert len(grid) == steps and grid[0][0] == T and grid[-1][1] == 0
    assert all(t > s for t, s in grid)
    assert all(above[1] == below[0] for above, below in zip(grid[:-1], grid[1:], strict=True))
    assert all(abs(t - s - T / steps) <= 1 for t, s in grid)  # evenly, up to rounding


@pytest.mark.parametrize("T", [1, 2, 4, 1000])
def test_all_steps_visit_all_levels(T):
    assert timesteps(T, T) == [(t, t - 1) for t in range(T, 0, -1)]


@pytest.mark.parametrize(("T", "steps"), [(10, 0), (10, -1), (10, 11), (1, 2)])
def test_more_steps_than_levels_are_refused(T, steps):
    with pytest.raises(UserError, match=f"this model has {T} timestep"):
        timesteps(T, steps)


def test_where_there_is_one_level_no_choice_is_offered():
    with pytest.raises(UserError, match=r"2 steps: this model has 1 timestep\. Choose 1\.$"):
        timesteps(1, 2)


@pytest.mark.parametrize("steps", range(1, 9))
def test_few_steps_start_at_pure_noise(steps):
    """A known defect elsewhere: with "leading" spacing the first step takes pure noise for a timestep that still has signal."""
    schedule = NoiseSchedule.linear(1000)
    theirs = DDIMScheduler(1000, timestep_spacing="leading")
    theirs.set_timesteps(steps)
    ours = timesteps(1000, steps)[0][0]
    assert int(theirs.timesteps[0]) + 1 < ours == schedule.T  # their index i is our timestep i + 1
    assert schedule.alpha_bar[ours].sqrt() < 0.01


# -- the oracle that knows x_0 ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_knowing_the_mask_gives_the_mask(sampler, name, grid):
    x_0 = mask(GRIDS[grid]).float()
    for T in (1, 2, 3, 4, 10, 25):
        schedule = SCHEDULES[name](T)
        for steps in range(1, T + 1, 1 if T < 25 else 6):
            x = SAMPLERS[sampler](
                lambda x, t: ModelOutput(x_0),
                torch.randn_like(x_0),
                timesteps(T, steps),
                schedule,
                lambda: torch.randn_like(x_0),
            )
            assert torch.equal(x, x_0), (T, steps)


def comes_back(sampler: str, kind: Kind, name: str, shape: tuple[int, ...], T: int, steps: int) -> None:
    """A network that is always right about its target leads to the mask."""
    x_0, schedule = mask(shape), SCHEDULES[name](T)

    def denoiser(x: Tensor, t: int) -> ModelOutput:
        ab = schedule.at(t, x)
        noise = (x - ab.sqrt() * x_0) / (1 - ab).sqrt()
        return ModelOutput(to_x0(kind, target(kind, x_0, noise, ab), x, ab))

    x = SAMPLERS[sampler](denoiser, torch.randn_like(x_0), timesteps(T, steps), schedule, lambda: torch.randn_like(x_0))
    torch.testing.assert_close(x, x_0, rtol=0, atol=1e-9)


@EVERY
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_whatever_the_network_outputs_the_mask_comes_back(sampler, kind, name, grid):
    for T, counts in ((4, range(1, 5)), (1000, (1, 2, 3, 10, 50))):
        for steps in counts:
            comes_back(sampler, kind, name, GRIDS[grid], T, steps)


@EVERY
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_mask_comes_back_after_a_thousand_steps_too(sampler, kind):
    comes_back(sampler, kind, "linear", GRIDS["2d"], 1000, 1000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_knowing_the_mask_gives_the_mask_whatever_variance_was_learnt(name):
    x_0 = mask(GRIDS["2d"])
    for T, steps in ((2, 2), (4, 1), (4, 4), (1000, 10), (1000, 100)):
        denoiser = lambda x, t: ModelOutput(x_0, torch.rand_like(x_0))
        x = ancestral(denoiser, torch.randn_like(x_0), timesteps(T, steps), SCHEDULES[name](T), lambda: torch.randn_like(x_0))
        assert torch.equal(x, x_0), (T, steps)


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_one_evaluation_per_step_and_the_last_is_the_result(sampler, steps):
    schedule, x_0, seen = NoiseSchedule.cosine(20), mask(GRIDS["2d"]), []

    def denoiser(x: Tensor, t: int) -> ModelOutput:
        seen.append((t, x))
        return ModelOutput(x_0)

    grid = timesteps(20, steps)
    x_T = torch.randn_like(x_0)
    x = SAMPLERS[sampler](denoiser, x_T, grid, schedule, lambda: torch.randn_like(x_0))
    assert [t for t, _ in seen] == [t for t, _ in grid]
    assert torch.equal(seen[0][1], x_T)
    torch.testing.assert_close(x, x_0)


# -- randomness ----------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_noise_is_drawn_as_claimed_and_never_for_the_last_step(sampler, steps):
    schedule, x_T, drawn = NoiseSchedule.linear(1000), torch.randn(GRIDS["3d"], dtype=torch.float64), []

    def noise() -> Tensor:
        drawn.append(torch.randn_like(x_T))
        return drawn[-1]

    denoiser = lambda x, t: ModelOutput(x.tanh())
    results = [SAMPLERS[sampler](denoiser, x_T, timesteps(1000, steps), schedule, noise) for _ in range(2)]
    stochastic = sampler not in DETERMINISTIC
    assert len(drawn) == (2 * (steps - 1) if stochastic else 0)
    assert torch.equal(*results) == (not stochastic or steps == 1)


def test_eta_leads_from_ddim_to_ancestral():
    schedule, x_T, z = NoiseSchedule.linear(100), *torch.randn(2, *GRIDS["2d"], dtype=torch.float64)
    walk = lambda sampler, **options: sampler(
        lambda x, t: ModelOutput(x.tanh()), x_T, timesteps(100, 5), schedule, lambda: z, **options
    )
    assert torch.equal(walk(ancestral, eta=0.0), walk(ddim)) and torch.equal(walk(ddim, eta=1.0), walk(ancestral))
    assert not torch.allclose(walk(ddim), walk(ancestral))


# -- the oracle of Gaussian data -----------------------------------------------------------------------------------

STEPS = [32, 64, 128, 256]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_have_the_claimed_order(sampler, name):
    """Between two inner timesteps, where the log-SNR is smooth: cosine jumps at T, and at 0 it is infinite."""
    schedule = SCHEDULES[name](25600)
    data, start, end = Gaussian(schedule), 23040, 6400
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(5, 4)
    exact = data.flow(x, start, end)
    found = [SAMPLERS[sampler](data.denoiser, x, between(start, end, n), schedule, no_noise) for n in STEPS]
    errors = [rms(y - exact) for y in found]
    assert order(STEPS, errors) == pytest.approx(ORDER[sampler], abs=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_from_noise_to_data_they_converge_to_the_flow(sampler, name):
    schedule = SCHEDULES[name](25600)
    data = Gaussian(schedule)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(5, 4)
    exact = data.flow(x, schedule.T, 0)
    grids = [timesteps(schedule.T, n) for n in STEPS]
    errors = [rms(SAMPLERS[sampler](data.denoiser, x, grid, schedule, no_noise) - exact) for grid in grids]
    assert errors == sorted(errors, reverse=True) and order(STEPS, errors) > 0.75 * ORDER[sampler]
    assert errors[-1] < {1: 1e-2, 2: 1e-3}[ORDER[sampler]]


@pytest.mark.parametrize("name", SCHEDULES)
def test_second_order_beats_first_order_at_equal_cost(name):
    schedule = SCHEDULES[name](1000)
    data, x = Gaussian(schedule), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(5, 4)
    for steps in (10, 20, 50):
        grid, exact = timesteps(1000, steps), data.flow(x, 1000, 0)
        first, second = (f(data.denoiser, x, grid, schedule, no_noise) for f in (ddim, dpm_solver_pp_2m))
        assert rms(second - exact) < 0.7 * rms(first - exact)


def moments(schedule: NoiseSchedule, grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ancestral sampling without sampling: it is affine in its start and in each noise.

    Row 0 gets a unit start, row i the unit noise of step i, the last row nothing.
    """
    data, calls = Gaussian(schedule), iter(range(1, len(grid)))
    center, spread = data.marginal(grid[0][0])
    x = center.expand(len(grid) + 1, 4).clone()
    x[0] += spread

    def noise() -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(next(calls)), len(grid) + 1).double()[:, None].expand(-1, 4)

    y = ancestral(data.denoiser, x, grid, schedule, noise)
    return y[-1], (y[:-1] - y[-1]).square().sum(0).sqrt()


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_reproduces_mean_and_variance(name):
    schedule, steps = SCHEDULES[name](25600), [128, 256, 512]
    found = [moments(schedule, timesteps(schedule.T, n)) for n in steps]
    for mean, _ in found:
        torch.testing.assert_close(mean, torch.full((4,), Gaussian.mean, dtype=torch.float64), rtol=0, atol=1e-9)
    errors = [rms(std / Gaussian.std - 1) for _, std in found]
    assert errors[-1] < 0.05 and order(steps, errors) == pytest.approx(ORDER["ancestral"], abs=0.15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_goes_back_where_inversion_came_from(name):
    schedule = SCHEDULES[name](25600)
    data = Gaussian(schedule)
    x_0 = data.mean + data.std * torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    there, back = [], []
    for n in (64, 128, 256, 512):
        grid = timesteps(schedule.T, n)
        x_T = ddim_inversion(data.denoiser, x_0, grid, schedule)
        there.append(rms(x_T - data.flow(x_0, 0, schedule.T)))
        back.append(rms(ddim(data.denoiser, x_T, grid, schedule, no_noise) - x_0))
    assert back[-1] < 0.02 and order([64, 128, 256, 512], back) == pytest.approx(1, abs=0.2)
    assert there[-1] < 0.02 and there == sorted(there, reverse=True)


def test_inversion_asks_at_the_lower_end_and_never_about_clean_data():
    schedule, (x_0, eps), asked = NoiseSchedule.linear(100), torch.randn(2, *GRIDS["3d"], dtype=torch.float64), []

    def same_noise_everywhere(x: Tensor, t: int) -> ModelOutput:
        asked.append(t)
        return ModelOutput(to_x0("eps", eps, x, schedule.at(t, x)))

    x_T = ddim_inversion(same_noise_everywhere, x_0, [(100, 60), (60, 25), (25, 0)], schedule)
    assert asked == [25, 25, 60]
    torch.testing.assert_close(x_T, schedule.q_sample(x_0, 100, eps))


# -- an independent library ----------------------------------------------------------------------------------------
# Conventions of diffusers: index i is our timestep i + 1, there is no clean timestep (what follows the last step is set apart),
# tables are float32, and only "trailing" spacing has our grid. Its DDIM goes T // steps down whatever its grid says, so
# that the two can agree only where steps divides T. Ours walk in float64, so that what is left is their rounding.


def options(schedule: NoiseSchedule) -> dict:
    beta = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    common = {"prediction_type": "sample", "timestep_spacing": "trailing"}
    return {"num_train_timesteps": schedule.T, "trained_betas": beta.tolist()} | common


def assert_same_walk(sampler, scheduler, schedule: NoiseSchedule, steps: int, grid: str, ours: dict, theirs: dict) -> None:
    torch.manual_seed(steps)
    x, pairs = torch.randn(GRIDS[grid]), timesteps(schedule.T, steps)
    found = sampler(lambda x, t: ModelOutput(torch.tanh(1.5 * x)), x.double(), pairs, schedule, **({"noise": no_noise} | ours))
    scheduler.set_timesteps(steps)
    assert (scheduler.timesteps + 1).tolist() == [t for t, _ in pairs]
    for i in scheduler.timesteps:
        x = scheduler.step(torch.tanh(1.5 * x), int(i), x, **theirs).prev_sample
    torch.testing.assert_close(found, x.double(), rtol=0, atol=5e-4)


# Their DDIM loses all digits of 1 - ab_s - sigma^2 on cosine at eta = 1 (NaN at five steps); their DDPM covers that case.
@pytest.mark.parametrize(("name", "eta"), [("linear", 0.0), ("linear", 0.4), ("linear", 1.0), ("cosine", 0.0), ("cosine", 0.4)])
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 50])
def test_steps_are_those_of_diffusers_ddim(name, eta, steps):
    schedule, z = SCHEDULES[name](1000), torch.randn(GRIDS["2d"])
    scheduler = DDIMScheduler(**options(schedule), clip_sample=False)
    ours, theirs = {"eta": eta, "noise": z.double}, {"eta": eta, "variance_noise": z}
    assert_same_walk(ddim, scheduler, schedule, steps, "2d", ours, theirs)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 3, 8, 30])
def test_steps_are_those_of_diffusers_ddpm(name, steps):
    schedule = SCHEDULES[name](1000)
    ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    scheduler = DDPMScheduler(**options(schedule), clip_sample=False, variance_type="fixed_small")
    noise = lambda: torch.randn(GRIDS["3d"], generator=ours).double()
    assert_same_walk(ancestral, scheduler, schedule, steps, "3d", {"noise": noise}, {"generator": theirs})


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 3, 8, 30])
def test_steps_with_a_learned_variance_are_those_of_diffusers_ddpm(name, steps):
    """Theirs is told 2 v - 1 in a second half of the channels. It adds noise in the last step too, which is left out here."""
    schedule, v = SCHEDULES[name](1000), torch.rand(GRIDS["2d"])
    ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    scheduler = DDPMScheduler(**options(schedule), clip_sample=False, variance_type="learned_range")
    noise = lambda: torch.randn(GRIDS["2d"], generator=ours).double()
    torch.manual_seed(steps)
    x = torch.randn(GRIDS["2d"])
    states = []
    learned = lambda x, t: states.append(x) or ModelOutput(torch.tanh(1.5 * x), v.double())
    ancestral(learned, x.double(), timesteps(1000, steps), schedule, noise)
    scheduler.set_timesteps(steps)
    for i, found in zip(scheduler.timesteps[:-1], states[1:], strict=True):
        x = scheduler.step(torch.cat([torch.tanh(1.5 * x), 2 * v - 1], dim=1), int(i), x, generator=theirs).prev_sample
        torch.testing.assert_close(found, x.double(), rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 14, 25])
def test_steps_are_those_of_diffusers_dpm_solver(name, steps):
    """Theirs with solver_order 2, midpoint, and a last sigma of zero, whose step is first order as ours."""
    schedule = SCHEDULES[name](1000)
    how = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler(**options(schedule), **how)
    assert_same_walk(dpm_solver_pp_2m, scheduler, schedule, steps, "2d", {}, {})


def test_dpm_solver_starts_from_a_level_without_any_signal():
    """alpha_bar_T = 0: log-SNR is minus infinity there, and the first step is still a DDIM step."""
    schedule, x = NoiseSchedule(torch.tensor([1.0, 0.7, 0.3, 0.0])), torch.randn(GRIDS["2d"], dtype=torch.float64)
    states: dict[str, list[Tensor]] = {"ddim": [], "dpm-solver++(2m)": []}
    for name, seen in states.items():
        denoiser = lambda x, t, seen=seen: seen.append(x) or ModelOutput(x.tanh())
        seen.append(SAMPLERS[name](denoiser, x, timesteps(3, 3), schedule, no_noise))
    torch.testing.assert_close(states["ddim"][1], states["dpm-solver++(2m)"][1])
    assert states["dpm-solver++(2m)"][-1].isfinite().all()
