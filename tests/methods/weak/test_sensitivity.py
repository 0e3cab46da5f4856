"""Maps of sensitivity in a world whose denoiser is known, and of a real network against other ways to compute them."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.methods.weak.binarize import normalized_saliency
from diffuseg.methods.weak.cdm import published
from diffuseg.methods.weak.counterfactual import classifier_free, guided
from diffuseg.methods.weak.likelihood_ratio import likelihood_ratio, supported_change, unit
from diffuseg.methods.weak.sensitivity import Condition, Contrast
from tests.contract.test_methods import build
from tests.methods.weak import discs
from tests.methods.weak.discs import SCHEDULE, condition, contrast, disc, image, noise

WALKS = {"likelihood_ratio": likelihood_ratio, "published": published}
CURVED = lambda e: (e + e.square()) / 2  # the embedding acts nonlinearly, so that tau matters


def draw(walk: str, how: Contrast, x_0: torch.Tensor, steps: int = 4, seed: int = 1) -> torch.Tensor:
    return WALKS[walk](how, x_0, SCHEDULE, noise(len(x_0), seed), steps, (0.6, -1.0))


@pytest.mark.parametrize("tau", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("brightness", [0.8, -0.8])
def test_the_map_is_the_disc_with_the_sign_of_its_brightness(walk, tau, brightness):
    for m in draw(walk, contrast(brightness, tau, CURVED), image(brightness)):
        m = m[0] / m.abs().max()
        torch.testing.assert_close(m, math.copysign(1, brightness) * disc(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("walk", WALKS)
def test_equal_conditions_give_a_map_of_zeros(walk, tau):
    same = Contrast(discs.denoiser(0.8), condition(1.0), condition(1.0), tau)
    assert not draw(walk, same, image(0.8)).any()


def test_what_is_odd_in_the_noise_cancels_in_the_likelihood_ratio():
    plain = Contrast(lambda x, t, condition: condition.e.reshape(-1, 1, 1, 1) * x, condition(1.0), condition(0.0), 0.0)
    x_0 = image(0.8)
    torch.testing.assert_close(likelihood_ratio(plain, x_0, SCHEDULE, noise(), 1, (0.6, -1.0)), unit(x_0))


def test_support_is_how_much_better_the_object_explains_a_voxel():
    """Unsmoothed: half of |x_0 - x0_hat(y0)|^2 - |x_0 - x0_hat(y1)|^2 where that is above zero, with the sign of the change."""
    x_0, one, none = torch.randn(3, 2, 1, 12, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    better = ((x_0 - none).square() - (x_0 - one).square()) / 2
    expected = (one - none).sign() * better.clamp(min=0)
    torch.testing.assert_close(supported_change(one - none, x_0 - (one + none) / 2, 1e-6), expected)


def test_a_timestep_counts_by_its_signal_to_noise_ratio():
    """By hand: mean over timesteps of SNR sign(D) max(D . (G_2 * R), 0), D and R each the mean over a noise and its mirror."""
    curved = lambda x, t, condition: torch.tanh(x) * (1 + condition.e.reshape(-1, 1, 1, 1)) ** 2 - x.square() / (5 + t)
    x_0, generator = image(0.8, n=2), torch.Generator().manual_seed(1)
    expected = torch.zeros_like(x_0)
    for log_snr in (2.0, 0.5, -1.0):
        fresh, t = torch.randn(2, 1, 24, 24, generator=generator, dtype=torch.float64), SCHEDULE.timestep(log_snr)
        ab = float(SCHEDULE.alpha_bar[t])
        seen = [math.sqrt(ab) * x_0 + sign * math.sqrt(1 - ab) * fresh for sign in (1, -1)]
        one, none = (sum(curved(x, t, condition(e)) for x in seen) / 2 for e in (1.0, 0.0))
        residual = torch.from_numpy(gaussian_filter((x_0 - (one + none) / 2).numpy(), (0, 0, 2, 2), mode="nearest"))
        agrees = (one - none) * residual
        assert 0.1 < (agrees > 0).double().mean() < 0.9
        expected += ab / (1 - ab) / 3 * torch.where(agrees > 0, agrees * (one - none).sign(), 0)
    found = likelihood_ratio(
        Contrast(curved, condition(1.0), condition(0.0), 0.0), x_0, SCHEDULE, noise(2, 1), 3, (2.0, -1.0), 2.0
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("brightness", [0.8, -0.8])
def test_over_all_timesteps_it_is_the_log_likelihood_ratio(brightness):
    """Unsmoothed, of a perfect denoiser: log p(x | object) - log p(x | none) of each pixel where it is above 0."""
    high, low, n = 12.0, -8.0, 400
    schedule = NoiseSchedule(torch.cat([torch.ones(1), torch.linspace(high, low, n, dtype=torch.float64).sigmoid()]))
    how = Contrast(discs.denoiser(brightness, schedule=schedule), condition(1.0), condition(0.0), 0.0)
    x = torch.cat([image(brightness, n=1), image(0.0, n=1, seed=5)])
    found = (high - low) * likelihood_ratio(how, x, schedule, noise(2), n, (high, low), 1e-6)
    shown, none = (torch.distributions.Normal(mean, discs.SIGMA) for mean in (brightness * disc(), torch.zeros_like(disc())))
    ratio = shown.log_prob(x) - none.log_prob(x)
    assert (ratio.flatten(1).amax(1) > 1).all() and (ratio.flatten(1).amin(1) < 0).all()
    torch.testing.assert_close(found, math.copysign(1, brightness) * ratio.clamp(min=0), atol=1e-9, rtol=0.005)


@pytest.mark.parametrize("tau", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("brightness", [0.8, -0.8])
def test_what_the_image_does_not_show_has_no_support(tau, brightness):
    """The change alone is the disc whatever the image shows; with support only where the image has it, in the right sign."""
    how = contrast(brightness, tau)
    for shown in (brightness, -brightness):
        change, backed = (likelihood_ratio(how, image(shown), SCHEDULE, noise(), 3, (0.6, -1.0), s)[0, 0] for s in (0.0, 2.0))
        torch.testing.assert_close(unit(change[None, None])[0, 0].sign(), math.copysign(1, brightness) * disc())
        share = (backed * change > 0)[disc() > 0].double().mean()
        assert share > 0.95 if shown == brightness else share < 0.05
        assert not backed[disc() == 0].any()


@pytest.mark.parametrize("walk", WALKS)
def test_after_normalisation_tau_is_a_constant_where_the_embedding_acts_linearly(walk):
    maps = [draw(walk, contrast(0.8, tau), image(0.8)) for tau in (0.0, 0.7, 0.95, 1.0)]
    for m in maps[1:]:
        torch.testing.assert_close(normalized_saliency(m[0, 0]), normalized_saliency(maps[0][0, 0]), atol=1e-9, rtol=0)


def paths(how: Contrast, x_0: torch.Tensor, n: torch.Tensor, Q: int, R: int) -> torch.Tensor:
    """Algorithm 1 as the paper writes it: with noise predictions, one path after the other."""
    ab = SCHEDULE.alpha_bar
    total, a, b = torch.zeros_like(x_0), *[ab[Q].sqrt() * x_0 + (1 - ab[Q]).sqrt() * n] * 2
    for t in range(Q, Q - R, -1):
        step = []
        for x, c in ((a, how.one), (b, how.between)):
            e = (x - ab[t].sqrt() * how.denoise(x, t, c.rows(len(x)))) / (1 - ab[t]).sqrt()
            x = ab[t - 1].sqrt() * (x - (1 - ab[t]).sqrt() * e) / ab[t].sqrt() + (1 - ab[t - 1]).sqrt() * e
            step.append(x)
        a, b = step
        total = total + (a - b) / (1 - how.tau)
    return total


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.95])
def test_published_is_algorithm_1(tau):
    how, x_0 = contrast(0.8, tau, CURVED), image(0.8)
    expected = paths(how, x_0, noise()(), SCHEDULE.timestep(0.6), 7)
    torch.testing.assert_close(draw("published", how, x_0, steps=7), expected, rtol=1e-9, atol=1e-12)


def network() -> tuple[Contrast, torch.Tensor, object]:
    method = build("cdm", "2d", "T=200").double()
    ask = lambda x, t, c: method.denoise(x, t, c).double()
    method.output = lambda x, t, e: (method.network(x, t * (1000 / 200), e), None)  # in float64 to the end
    x_0 = torch.randn(2, 1, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        one, none = (Condition(c.e.double(), c.w.double()) for c in (method.condition(1, "cpu"), method.condition(0, "cpu")))
    return Contrast(ask, one, none, 1.0), x_0, method


@pytest.mark.parametrize("walk", WALKS)
def test_the_derivative_is_what_the_quotient_tends_to(walk):
    how, x_0, method = network()
    g = lambda: torch.Generator().manual_seed(5)

    def run(tau: float) -> torch.Tensor:
        generator = g()
        fresh = lambda: torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        return WALKS[walk](Contrast(how.denoise, how.one, how.none, tau), x_0, method.schedule, fresh, 3, (0.6, -1.0))

    with torch.no_grad():
        exact, rough, fine = run(1.0), run(1 - 1e-3), run(1 - 1e-4)
    size = exact.abs().max()
    errors = [float((m - exact).abs().max() / size) for m in (rough, fine)]
    assert size > 1e-6 and errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)  # the error of a one-sided quotient is linear in 1 - tau


def test_both_paths_in_one_batch_are_what_they_are_apart():
    how, x_0, _ = network()
    half = Contrast(how.denoise, how.one, how.none, 0.5)
    with torch.no_grad():
        one, change = half.at(x_0, 50)
        torch.testing.assert_close(one, how.denoise(x_0, 50, how.one.rows(2)))
        other = how.denoise(x_0, 50, half.between.rows(2))
    torch.testing.assert_close(change, 2 * (one - other))
    torch.testing.assert_close(half.between.e, (how.one.e + how.none.e) / 2)


def test_guidance_turns_the_whole_label_while_the_embedding_turns_in_part():
    between = Contrast(discs.denoiser(1.0), condition(1.0), condition(0.0), 0.9).between
    assert between.w.tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(between.e, torch.tensor([[0.9]], dtype=torch.float64))


def test_more_steps_than_timesteps_are_refused():
    Q = SCHEDULE.timestep(0.6)
    assert draw("published", contrast(0.8, 0.0), image(0.8), steps=Q).isfinite().all()
    with pytest.raises(UserError, match=f"between 1 and {Q}"):
        draw("published", contrast(0.8, 0.0), image(0.8), steps=Q + 1)


def test_a_timestep_is_found_by_its_noise_whatever_the_schedule():
    for schedule in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000), NoiseSchedule.cosine(100)):
        for t in (1, 30, schedule.T - 1):
            assert schedule.timestep(float(schedule.snr(t).log())) == t
        assert schedule.timestep(99.0) == 1 and schedule.timestep(-99.0) == schedule.T


def test_unit_size_and_the_size_of_nothing():
    x = torch.randn(3, 2, 5, 7) * torch.tensor([1.0, 100.0, 0.0]).reshape(3, 1, 1, 1)
    size = unit(x).square().mean((1, 2, 3))
    torch.testing.assert_close(size, torch.tensor([1.0, 1.0, 0.0]))


# Counterfactuals of the same world. Encoding and decoding under one condition is the way there and back.


def test_there_and_back_under_one_condition_is_the_image_itself():
    x_0, ask = image(0.8), discs.denoiser(0.8)
    errors = [
        float(guided(ask, ask, condition(0.0), x_0, SCHEDULE, steps, -1.0).abs().max())
        for steps in (25, 50, SCHEDULE.timestep(-1.0))
    ]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] and errors[2] < 0.03  # first order, and small


@pytest.mark.parametrize("brightness", [0.8, -0.8])
def test_counterfactuals_lose_the_disc(brightness):
    x_0, ask = image(brightness), discs.denoiser(brightness)
    steps = SCHEDULE.timestep(-3.0)

    def towards_none(x: torch.Tensor, t: int, c: Condition) -> torch.Tensor:
        """With the gradient of the exact log p(none | x_t) of this world."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            ab = SCHEDULE.at(t, x)
            square = lambda mean: (y - ab.sqrt() * mean).square().sum((1, 2, 3)) / (2 * (ab * discs.SIGMA**2 + 1 - ab))
            odds = square(brightness * disc()) - square(torch.zeros_like(disc()))
            pull = torch.autograd.grad(torch.nn.functional.logsigmoid(odds).sum(), y)[0]
        return ask(x, t, c) + (1 - ab) / ab.sqrt() * pull

    # Encoded without a label (as halfway between), or encoded as the object and decoded as none.
    free = classifier_free(ask, condition(0.0), condition(0.5), 1.0, x_0, SCHEDULE, steps, -3.0)
    further = classifier_free(ask, condition(0.0), condition(0.5), 2.0, x_0, SCHEDULE, steps, -3.0)
    pulled = guided(ask, towards_none, condition(1.0), x_0, SCHEDULE, steps, -3.0)
    inside = disc() > 0
    for m in (free, further, pulled):
        signed = m[0, 0] * math.copysign(1, brightness)
        assert signed[inside].mean() > 20 * signed[~inside].abs().mean()
    assert (further[0, 0][inside].mean() / free[0, 0][inside].mean()).item() == pytest.approx(2, rel=0.1)


def test_a_classifier_free_counterfactual_is_neither_normalised_nor_clamped():
    """Of a denoiser that says 4 without a label and 5 for "none", whatever it sees; every image is decoded from one depth."""
    asked = []

    def constant(x: torch.Tensor, t: int, c: Condition) -> torch.Tensor:
        asked.append((t, c.e.flatten().tolist()))
        return 5 - c.e.reshape(-1, 1, 1, 1).expand_as(x)

    for x_0 in (image(0.8, n=1), 10 * image(0.8, n=1)):
        m = classifier_free(constant, condition(0.0), condition(1.0), 3.0, x_0, SCHEDULE, 2, -2.5)
        torch.testing.assert_close(m, x_0 - 7)  # 4 + 3 (5 - 4)
    L = SCHEDULE.timestep(-2.5)
    assert asked == 2 * [(L // 2, [1.0]), (L // 2, [1.0]), (L, [1.0, 0.0]), (L // 2, [1.0, 0.0])]
