"""Schedules and their posterior against closed forms, the papers' formulas, and an independent library.

Everything here is linear in (x_0, x_t, noise), so that a coefficient is read off exactly by putting in ones and zeros.
"""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule
from diffuseg.errors import UserError

GRIDS = {"2d": (3, 2, 6, 5), "3d": (3, 2, 4, 3, 5)}
ROOT = 3e-8  # the square root of a difference that is exact to 1e-16
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

# DDGAN's released discretisation for T = 2 and 4, from its closed form: c_0..c_T, and per step p (of x_0), r (of x_t), v
DDGAN = {
    2: ([1, 0.28049, 0.00657], [1, 0.28035], [0, 0.02159], [0, 0.92086]),
    4: (
        [1, 0.72232, 0.28049, 0.05856, 0.00657],
        [1, 0.66578, 0.26919, 0.05782],
        [0, 0.20158, 0.19300, 0.11185],
        [0, 0.44082, 0.88420, 0.98406],
    ),
}

names = st.sampled_from(sorted(SCHEDULES))
etas = st.floats(0, 1)


@st.composite
def timesteps(draw, first: int = 0):
    """A schedule and two of its timesteps, first <= s < t."""
    schedule = SCHEDULES[draw(names)](draw(st.sampled_from([2, 4, 10, 50, 1000])))
    if draw(st.booleans()):
        schedule = schedule.scaled(draw(st.floats(0.1, 2)))
    t = draw(st.integers(first + 1, schedule.T))
    return schedule, draw(st.integers(first, t - 1)), t


def coefficients(schedule: NoiseSchedule, t: int, s: int, eta: float) -> tuple[float, float, float]:
    """Of x_0, x_t and the noise in the posterior."""
    parts = [(ONE, ZERO, ZERO), (ZERO, ONE, ZERO), (ZERO, ZERO, ONE)]
    a, b, c = (float(schedule.posterior(x_0, x_t, t, s, eta, noise)) for x_0, x_t, noise in parts)
    return a, b, c


def close(*expected: float, tolerance: float = 1e-10):
    return pytest.approx(expected, abs=tolerance, rel=tolerance)


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_run_from_clean_to_noise_for_every_number_of_timesteps(name):
    for T in [*range(1, 60), 100, 250, 1000, 4000]:
        schedule = SCHEDULES[name](T)
        assert schedule.T == T and schedule.alpha_bar[0] == 1
        assert (schedule.alpha_bar.diff() < 0).all() and schedule.alpha_bar[-1] > 0
        assert schedule.alpha_bar[-1].sqrt() < 0.04  # what is left of the mask at timestep T


def test_linear_is_the_product_of_ho_et_al():
    product, table = 1.0, NoiseSchedule.linear(1000).alpha_bar
    for t in range(1, 1001):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        assert float(table[t]) == pytest.approx(product, rel=1e-12)
    assert product == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_is_the_ratio_of_nichol_and_dhariwal():
    T = 1000
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    table = NoiseSchedule.cosine(T).alpha_bar
    for t in range(T):  # the last beta is the one that is cut at 0.999
        assert float(table[t]) == pytest.approx(f[t] / f[0], rel=1e-9)
    assert float(table[T] / table[T - 1]) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("T", [1, 2, 4, 8, 37])
def test_variance_preserving_is_the_integral_of_beta(T):
    table = NoiseSchedule.variance_preserving(T, 0.2, 15.0).alpha_bar
    for t in range(T + 1):
        integral, _ = quad(lambda u: 0.2 + (15.0 - 0.2) * u, 1e-3, 1e-3 + (1 - 1e-3) * t / T)
        assert float(table[t]) == pytest.approx(math.exp(-integral), rel=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("T", [50, 200, 1000])
def test_tables_are_those_of_diffusers(name, theirs, T):
    scheduler = DDPMScheduler(T, beta_start=1e-4 * 1000 / T, beta_end=0.02 * 1000 / T, beta_schedule=theirs)
    # Convention: their index i is our timestep i + 1; they have no clean timestep and float32 tables.
    torch.testing.assert_close(SCHEDULES[name](T).alpha_bar[1:], scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("T", DDGAN)
def test_few_step_coefficients_are_those_of_ddgan(T):
    schedule, (c, p, r, v) = NoiseSchedule.variance_preserving(T), DDGAN[T]
    assert schedule.alpha_bar.sqrt().tolist() == pytest.approx(c, abs=6e-6)
    for i in range(T):  # their index i is the step from timestep i + 1 to timestep i
        found = coefficients(schedule, i + 1, i, 1.0)
        assert (found[0], found[1], found[2] ** 2) == pytest.approx((p[i], r[i], v[i]), abs=6e-6)


@given(name=names, T=st.sampled_from([1, 2, 10, 1000]), b=st.floats(0.05, 4))
def test_scaling_the_mask_shifts_every_log_snr_by_2_log_b(name, T, b):
    schedule = SCHEDULES[name](T)
    inside = torch.arange(1, T + 1)
    shift = schedule.scaled(b).snr(inside).log() - schedule.snr(inside).log()
    torch.testing.assert_close(shift, torch.full_like(shift, 2 * math.log(b)), rtol=0, atol=1e-8)


def test_scaled_noises_like_a_multiplied_mask():
    """b x_0 noised by the plain schedule, brought back to unit variance, is x_0 noised by the scaled one."""
    schedule, b, t = NoiseSchedule.linear(1000), 0.3, 400
    signal, noise = (float(schedule.q_sample(b * x_0, t, z)) for x_0, z in ((ONE, ZERO), (ZERO, ONE)))
    scale = math.hypot(signal, noise)
    hard = schedule.scaled(b)
    found = [float(hard.q_sample(x_0, t, z)) for x_0, z in ((ONE, ZERO), (ZERO, ONE))]
    assert found == pytest.approx([signal / scale, noise / scale], rel=1e-12)


def test_snr_falls_from_infinity():
    snr = NoiseSchedule.cosine(20).snr(torch.arange(21))
    assert torch.isinf(snr[0]) and (snr[1:].diff() < 0).all()
    assert float(NoiseSchedule(torch.tensor([1.0, 0.8, 0.2])).snr(1)) == pytest.approx(4)


@pytest.mark.parametrize(
    "table",
    [[1.0], [0.9, 0.5], [1.0, 0.5, 0.5], [1.0, 0.2, 0.4], [1.0, 0.5, -0.1], [1.0, math.nan], [math.nan, 0.5]],
    ids=["one timestep", "no clean timestep", "flat", "rising", "negative", "nan", "nan at 0"],
)
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(UserError, match="decrease strictly"):
        NoiseSchedule(torch.tensor(table))


def test_a_mask_scaled_to_nothing_is_refused():
    with pytest.raises(UserError):
        NoiseSchedule.linear(10).scaled(0.0)


# -- noising -------------------------------------------------------------------------------------------------------


@given(case=timesteps())
def test_noising_in_two_steps_has_the_marginal_of_one(case):
    schedule, s, t = case
    mean = float(schedule.q_step(schedule.q_sample(ONE, s, ZERO), s, t, ZERO))
    first = float(schedule.q_step(schedule.q_sample(ZERO, s, ONE), s, t, ZERO))
    second = float(schedule.q_step(ZERO, s, t, ONE))
    ab = float(schedule.alpha_bar[t])
    assert (mean, first**2 + second**2) == close(math.sqrt(ab), 1 - ab)


@given(case=timesteps())
def test_noising_keeps_unit_variance(case):
    schedule, s, t = case
    signal, noise = float(schedule.q_sample(ONE, t, ZERO)), float(schedule.q_sample(ZERO, t, ONE))
    kept, added = float(schedule.q_step(ONE, s, t, ZERO)), float(schedule.q_step(ZERO, s, t, ONE))
    assert (signal**2 + noise**2, kept**2 + added**2) == close(1, 1)


# -- posterior -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 4, 1000])
def test_one_level_down_with_eta_1_is_the_ddpm_posterior(name, T):
    """mean = sqrt(ab_s) beta_t / (1 - ab_t) x_0 + sqrt(alpha_t) (1 - ab_s) / (1 - ab_t) x_t; variance beta~ (Ho, eqs. 6-7)."""
    schedule = SCHEDULES[name](T)
    ab = schedule.alpha_bar.tolist()
    for t in range(1, T + 1):
        alpha = ab[t] / ab[t - 1]
        of_x_0 = math.sqrt(ab[t - 1]) * (1 - alpha) / (1 - ab[t])
        of_x_t = math.sqrt(alpha) * (1 - ab[t - 1]) / (1 - ab[t])
        variance = (1 - alpha) * (1 - ab[t - 1]) / (1 - ab[t])
        a, b, c = coefficients(schedule, t, t - 1, 1.0)
        assert (a, b, c * c) == close(of_x_0, of_x_t, variance, tolerance=ROOT)


@given(case=timesteps(first=1))
def test_eta_1_is_bayes_for_any_pair_of_levels(case):
    """The product of two Gaussians in x_s: q(x_s | x_0) and q(x_t | x_s)."""
    schedule, s, t = case
    ab_s, ratio = float(schedule.alpha_bar[s]), float(schedule.alpha_bar[t] / schedule.alpha_bar[s])
    variance = 1 / (1 / (1 - ab_s) + ratio / (1 - ratio))
    a, b, c = coefficients(schedule, t, s, 1.0)
    of_x_0, of_x_t = variance * math.sqrt(ab_s) / (1 - ab_s), variance * math.sqrt(ratio) / (1 - ratio)
    assert (a, b, c * c) == close(of_x_0, of_x_t, variance, tolerance=ROOT)


@given(case=timesteps(first=1), eta=etas, v=st.floats(0, 1))
def test_a_learned_variance_lies_between_those_of_the_posterior_and_of_the_step_upwards(case, eta, v):
    """log variance = v log beta + (1 - v) log beta~ for any two levels; the mean stays that of the posterior."""
    schedule, s, t = case
    ab_t, ab_s = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
    beta = 1 - ab_t / ab_s
    fixed = (1 - ab_s) / (1 - ab_t) * beta
    step = lambda *parts, v: float(schedule.posterior(*parts[:2], t, s, eta, parts[2], v))
    for learned, expected in ((0.0, fixed), (1.0, beta), (v, beta**v * fixed ** (1 - v))):
        told = torch.tensor(learned, dtype=torch.float64)
        assert step(ZERO, ZERO, ONE, v=told) ** 2 == pytest.approx(eta**2 * expected, rel=1e-9, abs=1e-15)
        for parts in ((ONE, ZERO, ZERO), (ZERO, ONE, ZERO)):
            assert step(*parts, v=told) == step(*parts, v=None)


@given(case=timesteps(first=1), x_0=st.floats(-1, 1), x0_hat=st.floats(-1, 1), v=st.floats(0, 1))
def test_the_divergence_is_that_of_two_gaussians(case, x_0, x0_hat, v):
    schedule, s, t = case
    x_0, x0_hat, told = (torch.tensor(value, dtype=torch.float64) for value in (x_0, x0_hat, v))
    normal = lambda x, v: torch.distributions.Normal(
        schedule.posterior(x, ONE, t, s, 1.0, ZERO), schedule.posterior(ZERO, ZERO, t, s, 1.0, ONE, v)
    )
    expected = torch.distributions.kl_divergence(normal(x_0, None), normal(x0_hat, told))
    assert float(schedule.posterior_divergence(x_0, x0_hat, t, s, told)) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


@given(case=timesteps(), eta=etas)
def test_a_step_down_has_the_marginal_of_the_lower_level(case, eta):
    """x_t ~ q(x_t | x_0), then x_s ~ posterior with the true x_0: exactly q(x_s | x_0), whatever s < t and eta."""
    schedule, s, t = case
    mean = float(schedule.posterior(ONE, schedule.q_sample(ONE, t, ZERO), t, s, eta, ZERO))
    first = float(schedule.posterior(ZERO, schedule.q_sample(ZERO, t, ONE), t, s, eta, ZERO))
    second = float(schedule.posterior(ZERO, ZERO, t, s, eta, ONE))
    ab = float(schedule.alpha_bar[s])
    assert (mean, first**2 + second**2) == close(math.sqrt(ab), 1 - ab)


@given(case=timesteps(), eta=etas)
def test_noise_grows_in_proportion_to_eta(case, eta):
    schedule, s, t = case
    assert coefficients(schedule, t, s, eta)[2] == pytest.approx(eta * coefficients(schedule, t, s, 1.0)[2], abs=1e-15)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_eta_0_is_ddim_and_ignores_the_noise(name, grid):
    """Song et al. 2021, eq. 12 with sigma = 0: the same eps at another level."""
    schedule, (x_0, eps, noise) = SCHEDULES[name](50), torch.randn(3, *GRIDS[grid], dtype=torch.float64)
    for t, s in ((50, 31), (31, 30), (30, 1), (1, 0), (50, 0)):
        x_s = schedule.posterior(x_0, schedule.q_sample(x_0, t, eps), t, s, 0.0, noise)
        torch.testing.assert_close(x_s, schedule.q_sample(x_0, s, eps), rtol=1e-7, atol=1e-7)
        assert torch.equal(x_s, schedule.posterior(x_0, schedule.q_sample(x_0, t, eps), t, s, 0.0, torch.zeros_like(noise)))


@given(name=names, T=st.integers(1, 50), eta=etas, data=st.data())
def test_the_step_to_level_0_is_x_0_itself(name, T, eta, data):
    t = data.draw(st.integers(1, T))
    assert coefficients(SCHEDULES[name](T), t, 0, eta) == (1, 0, 0)


# -- tensors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_per_element_equal_single_levels(grid, dtype):
    schedule, (x, y, noise) = NoiseSchedule.linear(50), torch.randn(3, *GRIDS[grid], dtype=dtype)
    t, s = torch.tensor([50, 1, 23]), torch.tensor([49, 0, 4])
    together = schedule.q_sample(x, t, noise), schedule.q_step(x, s, t, noise), schedule.posterior(x, y, t, s, 0.7, noise)
    for i in range(3):
        one, ti, si = slice(i, i + 1), int(t[i]), int(s[i])
        alone = (
            schedule.q_sample(x[one], ti, noise[one]),
            schedule.q_step(x[one], si, ti, noise[one]),
            schedule.posterior(x[one], y[one], ti, si, 0.7, noise[one]),
        )
        for a, b in zip(together, alone, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a[one], b)


def test_half_precision_masks_get_float32_coefficients():
    schedule = NoiseSchedule.linear(1000)
    ab = schedule.at(1, torch.zeros(1, dtype=torch.bfloat16))  # bfloat16 would round 0.9999 to 1: no noise at all
    assert ab.dtype == torch.float32 and float(ab) == pytest.approx(0.9999, abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=20)
@given(eta=etas)
def test_float32_is_good_enough_at_a_thousand_levels(name, eta):
    schedule, t = SCHEDULES[name](1000), torch.arange(1, 1001)
    x = torch.randn(3, 1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = schedule.posterior(x[0], x[1], t, t - 1, eta, x[2])
    single = schedule.posterior(*(v.float() for v in x[:2]), t, t - 1, eta, x[2].float())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-3)
