"""Noise, clean data and v say the same: from any of them comes the x_0 that made x_t."""

import math
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from diffuseg.diffusion.parameterization import Kind, target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule

KINDS = get_args(Kind)
GRIDS = {"2d": (4, 2, 6, 5), "3d": (4, 2, 4, 3, 5)}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_x0_comes_back_from_every_target(name, kind, grid):
    schedule, (x_0, noise) = SCHEDULES[name](1000), torch.randn(2, *GRIDS[grid], dtype=torch.float64)
    for t in (torch.tensor([1, 20, 500, 1000]), 1, 500, 1000):
        ab, x_t = schedule.at(t, x_0), schedule.q_sample(x_0, t, noise)
        torch.testing.assert_close(to_x0(kind, target(kind, x_0, noise, ab), x_t, ab), x_0, rtol=0, atol=1e-10)


@given(kind=st.sampled_from(KINDS), ab=st.floats(1e-3, 1 - 1e-3), x_t=st.floats(-4, 4), output=st.floats(-4, 4))
def test_every_output_is_the_target_of_the_x0_it_stands_for(kind, ab, x_t, output):
    """The other way round: a network's output -> x_0 -> the noise that goes with it -> the same output."""
    ab, x_t, output = (torch.tensor(v, dtype=torch.float64) for v in (ab, x_t, output))
    x_0 = to_x0(kind, output, x_t, ab)
    noise = (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt()
    torch.testing.assert_close(target(kind, x_0, noise, ab), output, rtol=0, atol=1e-8)


@given(angle=st.floats(0.01, math.pi / 2 - 0.01), x_0=st.floats(-3, 3), noise=st.floats(-3, 3))
def test_v_is_the_velocity_along_the_circle(angle, x_0, noise):
    """With x(phi) = cos(phi) x_0 + sin(phi) eps, v = dx / dphi (Salimans and Ho 2022, appendix D)."""
    h = 1e-5
    x = lambda phi: math.cos(phi) * x_0 + math.sin(phi) * noise
    ab = torch.tensor(math.cos(angle) ** 2, dtype=torch.float64)
    v = target("v", *torch.tensor([x_0, noise], dtype=torch.float64), ab)
    assert float(v) == pytest.approx((x(angle + h) - x(angle - h)) / (2 * h), abs=1e-8)


def test_v_is_that_of_diffusers():
    x_0, noise = torch.randn(2, *GRIDS["2d"])
    t = torch.tensor([1, 20, 500, 1000])
    theirs = DDPMScheduler(1000).get_velocity(x_0, noise, t - 1)  # their index i is our level i + 1
    torch.testing.assert_close(target("v", x_0, noise, NoiseSchedule.linear(1000).at(t, x_0)), theirs, rtol=0, atol=1e-4)


def test_at_pure_noise_v_still_knows_x0():
    x_0, noise = torch.randn(2, *GRIDS["2d"])
    nothing = torch.zeros(())
    torch.testing.assert_close(to_x0("v", target("v", x_0, noise, nothing), noise, nothing), x_0)
    assert torch.equal(target("v", x_0, noise, nothing), -x_0)
