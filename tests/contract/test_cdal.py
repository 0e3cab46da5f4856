"""What is particular to cDAL: its pairs, its penalty, its attention, recycling and the controls."""

import math

import pytest
import torch

from diffuseg.config import from_dict, to_dict
from diffuseg.data.plan import Plan, check_plan
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.methods.presets import FORMER, PRESETS, method_of, preset_of
from diffuseg.train.settings import TrainConfig
from tests.contract.test_methods import build, make_batch

NO_ATTENTION = ("attention=off",)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_real_pairs_have_the_marginals_of_the_schedule():
    method = build("cdal", "2d", "T=4")
    x_0 = torch.ones(1, 2, 200, 200)
    for t in range(1, 5):
        x_s, x_t = method._real_pair(x_0, torch.tensor([t]), rng(t))
        for x, timestep in ((x_s, t - 1), (x_t, t)):
            ab = float(method.schedule.alpha_bar[timestep])
            assert float(x.mean()) == pytest.approx(ab**0.5, abs=0.02)
            assert float(x.var()) == pytest.approx(1 - ab, abs=0.03)


def test_the_lazy_penalty_equals_the_full_one_on_average():
    """gamma/2 |grad|^2 every n-th step, times n: compared with a gradient taken by finite differences."""
    method = build("cdal", "2d", "r1=0.7", "r1_every=5", "discriminator_every=1").double()
    batch = make_batch(method, n=2)
    x_0, image = 2 * batch.mask.double() - 1, batch.image.double()
    total, _ = method._r1(x_0, image, rng(3))
    g = rng(3)
    t = torch.randint(1, method.config.T + 1, (2,), generator=g)
    x_s, x_t = method._real_pair(x_0, t, g)
    direction = torch.randn(x_s.shape, generator=rng(9), dtype=torch.float64)
    f = lambda h: method._discriminate(x_s + h * direction, x_t, t, image).double().sum().detach()
    x_s.requires_grad_(True)
    (gradient,) = torch.autograd.grad(method._discriminate(x_s, x_t, t, image).sum(), x_s)
    assert float((gradient * direction).sum()) == pytest.approx(float((f(1e-3) - f(-1e-3)) / 2e-3), rel=1e-2)
    expected = 0.7 / 2 * 5 * gradient.square().sum() / 2
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert [p.every for p in method.phases] == [1, 5, 1]


# -- the adversary, by value and by sign -------------------------------------------------------------------------------


def seen_pairs(method) -> list[tuple[torch.Tensor, ...]]:
    """(x_s, x_t, t, logit) of each call of the discriminator from here on, in order."""
    calls, asked = [], method._discriminate

    def spy(x_s, x_t, t, *rest):
        logit = asked(x_s, x_t, t, *rest)
        calls.append((x_s, x_t, t, logit.detach()))
        return logit

    method._discriminate = spy
    return calls


def test_a_step_of_the_generator_raises_what_the_discriminator_says_of_its_fakes():
    """The adversarial term alone, softplus(-D(fake)): its gradient makes fakes pass for true ones."""
    method = build("cdal", "2d", "adversarial=1", "dice=0", "cross_entropy=0", "recycle=0")
    batch, phase, pairs = make_batch(method), method.phases[-1], seen_pairs(method)
    loss, _ = method.loss(batch, phase, rng(3))
    torch.testing.assert_close(loss.detach(), torch.nn.functional.softplus(-pairs[0][-1]).mean())
    loss.backward()
    moved = [p for m in phase.modules for p in method.get_submodule(m).parameters() if p.grad is not None]
    length = sum(p.grad.square().sum() for p in moved).sqrt()
    with torch.no_grad():
        for p in moved:
            p.sub_(0.3 * p.grad / length)
    method.loss(batch, phase, rng(3))
    assert float(pairs[1][-1].mean()) > float(pairs[0][-1].mean()) + 1e-4


def test_the_discriminator_learns_that_masks_are_true_and_answers_are_not():
    """At T = 1 the less noisy end of the true pair is the mask itself, and of the other the generator's answer."""
    method = build("cdal", "2d", "T=1", "steps=1")
    batch = make_batch(method)
    truth, answer = 2 * batch.mask - 1, torch.full_like(batch.mask, 0.25)
    method._mask = lambda logits: (answer, (answer + 1) / 2)
    said = lambda x_s, *_: torch.full((3,), 2.0 if torch.equal(x_s, truth) else -0.5 if torch.equal(x_s, answer) else 99.0)
    method._discriminate = said
    loss, log = method.loss(batch, method.phases[0], rng())
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-0.5)))
    assert (float(log["D(real)"]), float(log["D(fake)"])) == (2.0, -0.5)


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_fakes_are_drawn_from_the_posterior_given_the_generators_answer(phase):
    """Of q(x_s | x_t, x0_hat) by DDPM's coefficients: residuals of mean 0 and variance 1 at each timestep above 1."""
    method = build("cdal", "2d", "T=3", "steps=3", "recycle=0", "adversarial=1")
    n = 60
    batch, pairs = make_batch(method, n=n), seen_pairs(method)
    x0_hat = torch.full_like(batch.mask, 0.3)
    method._mask = lambda logits: (x0_hat, (x0_hat + 1) / 2)
    method.loss(batch, next(p for p in method.phases if p.name == phase), rng(1))
    x_s, x_t, t, _ = pairs[-1]
    ab = method.schedule.alpha_bar.tolist()
    for level in (1, 2, 3):
        beta = 1 - ab[level] / ab[level - 1]
        by_answer = ab[level - 1] ** 0.5 * beta / (1 - ab[level])
        by_state = (1 - beta) ** 0.5 * (1 - ab[level - 1]) / (1 - ab[level])
        spread = (beta * (1 - ab[level - 1]) / (1 - ab[level])) ** 0.5
        rest = (x_s - by_answer * x0_hat - by_state * x_t)[t == level]
        assert len(rest) > 5
        if level == 1:
            torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-5, rtol=0)
        else:
            assert float(rest.mean() / spread) == pytest.approx(0, abs=0.05)
            assert float(rest.std() / spread) == pytest.approx(1, abs=0.05)
    assert all(torch.equal(one[1], x_t) for one in pairs)  # D compares a true and a made x_s of one and the same x_t


def test_half_of_the_generators_timesteps_are_the_noisiest_and_the_others_uniform():
    """The discriminator's are uniform."""
    method = build("cdal", "2d", "T=4", "recycle=0", "adversarial=0", "attention=off", "p_terminal_timestep=0.5")
    x_0, image, seen = torch.ones(8000, 2, 1, 1), torch.zeros(8000, 1, 1, 1), []

    def logits(x_t, t, features, z):
        seen.append(t)
        return torch.zeros_like(x_t)

    method._logits, method.encode = logits, lambda image: image
    method._generator_loss(x_0, x_0, image, rng())
    share = seen[0].bincount(minlength=5)[1:] / 8000
    torch.testing.assert_close(share, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=0.02, rtol=0)
    method._discriminate = lambda x_s, *_: torch.zeros(8000)
    method._discriminator_loss(x_0, image, rng())
    torch.testing.assert_close(seen[1].bincount(minlength=5)[1:] / 8000, torch.full((4,), 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_equal_images_of_a_batch_get_latents_of_their_own(phase):
    """Image, state and timestep are the same for both: only z can make their answers differ."""
    method, answers = build("cdal", "2d", "T=1", "steps=1", "adversarial=1"), []
    batch = make_batch(method, n=1)
    batch.image, batch.mask = (x.expand(2, *x.shape[1:]) for x in (batch.image, batch.mask))
    asked = method._logits

    def logits(x_t, t, features, z):
        answers.append(asked(x_t[:1].expand_as(x_t), t, features, z))
        return answers[-1]

    method._logits = logits
    method.loss(batch, next(p for p in method.phases if p.name == phase), rng())
    assert (answers[0][0] - answers[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("level", [0, 1, 2])
def test_attention_is_the_mean_of_the_named_block_of_the_discriminator(level):
    """By hand: the first convolution, so many blocks, the mean over channels, enlarged."""
    method = build("cdal", "2d", "attention=input", "attention_norm=none", f"attention_level={level}", "T=4")
    x, t = torch.randn(2, 2, 20, 24, generator=rng()), torch.tensor([1, 4])
    inputs, D = method._pair_inputs(x, x, torch.randn(2, 1, 20, 24, generator=rng(1))), method.discriminator
    h = D.first(inputs)
    for block in D.blocks[:level]:
        h = block(h, D.time(t * 250.0))
    mean = h.sum(1, keepdim=True) / h.shape[1]
    A = torch.nn.functional.interpolate(mean, size=(20, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(method._attention(inputs, t, x), A)
    method = build("cdal", "2d", "attention=input", "attention_norm=mean", f"attention_level={level}", "T=4")
    torch.testing.assert_close(
        method._attention(inputs, t, x), A.abs() / A.abs().mean((1, 2, 3), keepdim=True), atol=1e-3, rtol=1e-3
    )


def test_attention_on_the_input_multiplies_the_image_features():
    method = build("cdal", "2d", "attention=input")
    x, t, seen = torch.randn(2, 2, 20, 24, generator=rng()), torch.tensor([1, 2]), []
    image = torch.randn(1, 1, 20, 24, generator=rng(1))
    features = method.encode(image)
    method.generator.forward = lambda x_t, t, f, w: seen.append(f) or x_t
    method._logits(x, t, features, torch.randn(2, 8, generator=rng(2)))
    A = method._attention(method._pair_inputs(x, x, image.expand(2, -1, -1, -1)), t, x)
    torch.testing.assert_close(seen[0], A * method.encoder(image))


@pytest.mark.parametrize("norm", ["sigmoid", "mean"])
def test_normalised_attention_is_positive_with_mean_one(norm):
    method = build("cdal", "2d", "attention=label", f"attention_norm={norm}")
    batch = make_batch(method)
    x_0 = 2 * batch.mask - 1
    t = torch.tensor([1, 2, 1])
    A = method._attention(method._pair_inputs(x_0, x_0, batch.image), t, x_0)
    assert A.shape == (3, 1, *x_0.shape[2:])
    assert A.min() >= 0
    torch.testing.assert_close(A.mean((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert A.std() > 1e-4


def test_released_attention_is_signed_and_multiplies_the_label():
    """x_t is that of the mask times A, the mean of D's features of a true pair, with its sign and without any norm."""
    method = build("cdal", "2d", "T=3", "attention=label", "attention_norm=none", "recycle=0")
    for p in method.discriminator.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=rng(7))
    batch, t = make_batch(method), torch.tensor([1, 2, 3])
    x_0 = 2 * batch.mask - 1
    x_t = method._training_input(x_0, t, batch.image, method.encode(batch.image), rng(1))
    g = rng(1)
    noise = torch.randn(x_0.shape, generator=g)
    pair = method._pair_inputs(*method._real_pair(x_0, t, g), batch.image)
    mean = method.discriminator.features(pair, t * (1000 / 3), method.config.attention_level).mean(1, keepdim=True).detach()
    A = torch.nn.functional.interpolate(mean, size=x_0.shape[2:], mode="bilinear", align_corners=False)
    assert float(A.min()) < -0.01 and float(A.max()) > 0.01
    ab = torch.tensor([float(method.schedule.alpha_bar[level]) for level in (1, 2, 3)]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(x_t, ab.sqrt() * A * x_0 + (1 - ab).sqrt() * noise)


# -- the generator's loss, by hand -------------------------------------------------------------------------------------


def loss_of_an_answer(*settings: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, logits, mask): the generator's loss where its answer is known, without adversary, recycling and attention."""
    method = build("cdal", "2d", "adversarial=0", "recycle=0", *NO_ATTENTION, *settings)
    batch = make_batch(method)
    logits = 2 * torch.randn(batch.mask.shape, generator=rng(5))
    method._logits = lambda *_: logits
    loss, _ = method.loss(batch, method.phases[-1], rng(3))
    return loss, logits, batch.mask


def test_squared_error_is_that_of_masks_from_minus_one_to_one():
    """The released loss: |x_0 - tanh|^2, mean over classes and voxels; nothing else counts."""
    loss, logits, m = loss_of_an_answer("output=tanh", "mse=2", "dice=0", "cross_entropy=0")
    torch.testing.assert_close(loss, 2 * (logits.tanh() - (2 * m - 1)).square().mean())


def test_the_generators_loss_is_the_weighted_sum_of_its_terms():
    loss, logits, m = loss_of_an_answer("output=softmax", "dice=0.5", "cross_entropy=2", "mse=3")
    p = logits.softmax(1)
    overlap, sizes = (p * m)[:, 1:].sum((2, 3)), (p + m)[:, 1:].sum((2, 3))
    dice, nats = 1 - ((2 * overlap + 1) / (sizes + 1)).mean(), -(m * p.log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.5 * dice + 2 * nats + 3 * ((2 * p - 1) - (2 * m - 1)).square().mean())


def test_recycled_masks_of_equal_images_have_latents_of_their_own():
    """Image, x_T and the noise of the jump are the same for both."""
    method = build("cdal", "2d", "T=2", "recycle=1", *NO_ATTENTION)
    image = torch.randn(1, 1, *method.plan.patch, generator=rng(2)).expand(2, -1, -1, -1)
    x_0, t, answers = torch.ones(2, 2, *method.plan.patch), torch.tensor([1, 1]), []
    asked = method._logits

    def logits(x_T, t, features, z):
        answers.append(asked(x_T[:1].expand_as(x_T), t, features, z))
        return answers[-1]

    method._logits = logits
    method._training_input(x_0, t, image, method.encode(image), rng())
    assert len(answers) == 1 and (answers[0][0] - answers[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_each_element_of_a_batch_is_answered_from_its_own_image(phase):
    method, answers = build("cdal", "2d", "adversarial=1"), []
    asked = method._logits
    method._logits = lambda *given: answers.append(asked(*given)) or answers[-1]
    batch = make_batch(method, n=2)
    for image in (batch.image, torch.cat([batch.image[:1], -batch.image[1:]])):
        batch.image = image
        method.loss(batch, next(p for p in method.phases if p.name == phase), rng())
    before, after = answers[: len(answers) // 2], answers[len(answers) // 2 :]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a[0], b[0])
        assert (a[1] - b[1]).abs().max() > 1e-3


def test_attention_on_the_input_acts_in_sampling():
    method = build("cdal", "2d", "attention=input")
    image = torch.randn(1, *method.plan.patch)
    before = next(iter(method.draw(image, seeds=[0])))
    with torch.no_grad():
        for p in method.discriminator.parameters():
            p.add_(torch.randn(p.shape, generator=rng(p.numel())))
    assert not torch.allclose(before, next(iter(method.draw(image, seeds=[0]))), atol=1e-4)


def test_attention_on_the_label_does_not_act_in_sampling():
    method = build("cdal", "2d", "attention=label")
    image = torch.randn(1, *method.plan.patch)
    before = next(iter(method.draw(image, seeds=[0])))
    with torch.no_grad():
        for p in method.discriminator.parameters():
            p.add_(1.0)
    assert torch.equal(before, next(iter(method.draw(image, seeds=[0]))))


def test_recycled_inputs_do_not_depend_on_the_mask():
    """At t < T a recycled x_t is made of image and noise alone; at T it is the usual noised mask."""
    method = build("cdal", "2d", "recycle=1", "T=3", *NO_ATTENTION)
    batch, t = make_batch(method), torch.tensor([1, 2, 3])
    features = method.encode(batch.image)
    a = method._training_input(2 * batch.mask - 1, t, batch.image, features, rng(4))
    b = method._training_input(1 - 2 * batch.mask, t, batch.image, features, rng(4))
    torch.testing.assert_close(a[:2], b[:2])
    assert not torch.allclose(a[2], b[2])


def test_recycled_inputs_have_the_distribution_that_sampling_meets():
    """One jump T -> t with the model's own x0_hat is exactly the sampler's own step."""
    method = build("cdal", "2d", "recycle=1", "T=2", "latent=0", *NO_ATTENTION)
    batch, t = make_batch(method), torch.ones(3, dtype=torch.long)
    features = method.encode(batch.image)
    g = rng(4)
    noise = torch.randn(batch.mask.shape, generator=g)
    torch.rand((), generator=g)
    x_T = torch.randn(batch.mask.shape, generator=g)
    expected = method.schedule.posterior(method.denoise(x_T, 2, features, None), x_T, 2, 1, 1.0, noise)
    got = method._training_input(2 * batch.mask - 1, t, batch.image, features, rng(4))
    torch.testing.assert_close(got, expected)


def test_control_noise_hides_the_mask_in_training_and_the_state_in_sampling():
    method = build("cdal", "2d", "x_t=noise", *NO_ATTENTION)
    batch, t = make_batch(method), torch.ones(3, dtype=torch.long)
    features = method.encode(batch.image)
    a = method._training_input(2 * batch.mask - 1, t, batch.image, features, rng(4))
    assert torch.equal(a, torch.randn(a.shape, generator=rng(4)))
    fresh = torch.full_like(a, 3.0)
    assert torch.equal(method.state(a, 1, lambda: fresh), fresh)


def test_control_other_case_is_refused_where_recycling_would_undo_it():
    with pytest.raises(UserError, match="recycle=0"):
        build("cdal", "2d", "x_t=other_case", "recycle=0.5")


def test_control_other_case_takes_the_neighbours_mask():
    method = build("cdal", "2d", "x_t=other_case", "recycle=0", *NO_ATTENTION)
    batch, t = make_batch(method), torch.ones(3, dtype=torch.long)
    x_0 = 2 * batch.mask - 1
    a = method._training_input(x_0, t, batch.image, method.encode(batch.image), rng(4))
    noise = torch.randn(x_0.shape, generator=rng(4))
    torch.testing.assert_close(a, method.schedule.q_sample(x_0.roll(1, 0), t, noise))


def test_no_gradient_from_discriminator_to_generator_as_released_and_one_when_adversarial():
    """Released: squared error alone, so that scaling D changes nothing for G. Ours: it does."""
    for weight, differs in ((0.0, False), (0.5, True)):
        method = build("cdal", "2d", f"adversarial={weight}", "attention=label", "attention_norm=none", "recycle=0",
                       "mse=1", "dice=0", "cross_entropy=0", "p_terminal_timestep=0")  # fmt: skip
        batch, phase = make_batch(method), method.phases[-1]
        first, _ = method.loss(batch, phase, rng(2))
        with torch.no_grad():
            method.discriminator.logit.weight.mul_(3)
            method.discriminator.logit.bias.add_(1)
        second, _ = method.loss(batch, phase, rng(2))
        assert (abs(float(first.detach()) - float(second.detach())) > 1e-6) == differs


@pytest.mark.parametrize("T", [1, 2, 3, 8])
def test_every_number_of_timesteps_trains_and_draws(T):
    method = build("cdal", "binary", f"T={T}")
    for phase in method.phases:
        loss, _ = method.loss(make_batch(method), phase, rng())
        assert torch.isfinite(loss)
    for steps in {1, T}:
        p = next(iter(method.draw(torch.randn(3, 20, 20), seeds=[0], steps=steps)))
        assert torch.isfinite(p).all()


def test_the_latent_changes_the_answer_for_one_and_the_same_state():
    method = build("cdal", "2d")
    x, features = torch.randn(1, 2, 20, 24), method.encode(torch.randn(1, 1, 20, 24))
    a, b = (method.denoise(x, 1, features, torch.randn(1, 8, generator=rng(i))) for i in range(2))
    assert not torch.allclose(a, b, atol=1e-4)
    scaled = torch.randn(1, 8, generator=rng(0))
    torch.testing.assert_close(method.denoise(x, 1, features, 5 * scaled), method.denoise(x, 1, features, scaled))


def test_attention_on_the_label_is_refused_in_training_where_recycling_would_undo_it():
    """x_t below T would be made without the label. A checkpoint that was trained like this still loads and draws."""
    for settings in (("recycle=1",), ("recycle=0.5",)):
        with pytest.raises(UserError, match="recycle=0"):
            build("cdal", "2d", "attention=label", *settings).check_training()
    for settings in (("attention=label", "recycle=0"), ("attention=input",), ()):
        build("cdal", "2d", *settings).check_training()


PRESET_SIZES = [
    # channels, classes, millions of parameters of generator and of discriminator in the released networks
    ("cdal/ours_hippocampus", 1, 3, 2.692, None),
    ("cdal/ours_monuseg", 3, 2, 41.667, None),
    ("cdal/ours_cxr", 1, 2, 8.844, None),
    ("cdal/as_released", 1, 3, 2.692, 12.463),
]


@pytest.mark.parametrize("preset, channels, classes, generator, discriminator", PRESET_SIZES)
def test_presets_fit_together_and_have_about_the_published_number_of_parameters(
    preset, channels, classes, generator, discriminator
):
    known = Plan("made", tuple("RGB"[:channels]), {f"class{i}": i for i in range(classes)}, ".png")
    plan = from_dict(Plan, to_dict(known) | {"normalisation": ("zscore",) * channels} | PRESETS[preset]["plan"])
    check_plan(plan)
    from_dict(TrainConfig, PRESETS[preset]["train"])
    method = METHODS["cdal"](plan, from_dict(METHODS["cdal"].config_class, PRESETS[preset]["config"]))
    method.check_training()
    count = lambda modules: sum(p.numel() for module in modules for p in module.parameters()) / 1e6
    parts = [child for name, child in method.named_children() if name != "discriminator"]
    assert count(parts) == pytest.approx(generator, rel=0.1)
    if discriminator is not None:
        assert count([method.discriminator]) == pytest.approx(discriminator, rel=0.001)


def test_timesteps_are_told_as_thousandths_of_the_whole():
    """To the generator in drawing, and to the discriminator of pairs: so that one embedding serves any T."""
    method, told = build("cdal", "2d", "T=4"), []
    for network in (method.generator, method.discriminator):
        network.time.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0].tolist()))
    image, x = torch.randn(1, 1, 20, 24), torch.randn(1, 2, 20, 24)
    method.denoise(x, 3, method.encode(image), torch.randn(1, 8))
    method._discriminate(x, x, torch.tensor([1]), image)
    assert told == [[750.0], [250.0]]


def test_a_mask_has_a_channel_for_each_class():
    """Of two classes two: the generator and the discriminator see background and object."""
    method, given = build("cdal", "2d"), []
    assert method.plan.classes == 2
    method.generator.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].shape[1]))
    method.discriminator.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].shape[1]))
    for phase in method.phases:
        method.loss(make_batch(method), phase, rng())
    assert set(given) == {2, 2 * 2 + method.plan.image_channels}


def test_former_names_of_presets_mean_the_same():
    assert {name: preset_of(name) for name in FORMER} == {name: PRESETS[new] for name, new in FORMER.items()}
    assert all(method_of(name) == "cdal" for name in FORMER) and preset_of("cdal/nobody") is None
    assert {name.partition("/")[2].partition("_")[0] for name in PRESETS} == {"ours", "as"}  # whose training it is
