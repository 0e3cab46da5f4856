"""What is particular to MedSegDiff: its equations, its switches, its sizes, and what is computed once per image."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from diffuseg.config import from_dict, override
from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import Kind, target
from diffuseg.diffusion.samplers import SAMPLERS, ModelOutput, ancestral
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import dice
from diffuseg.methods import METHODS
from diffuseg.methods.medsegdiff import (
    SIZES,
    DynamicConditionalEncoding,
    MedSegDiff,
    MedSegDiffConfig,
    ReleasedGate,
    TwinEncoderUNet,
    middle,
)
from diffuseg.methods.presets import PRESETS
from diffuseg.methods.training import cross_entropy, sample_timesteps, soft_dice_loss, squared_error
from diffuseg.networks.blocks import ChannelNorm, halve
from diffuseg.networks.frequency import FFParser
from tests.contract.test_methods import CHEAP, build, make_batch

NOISE = "predict=eps T=1000 schedule=linear input_scale=1 recycle=0 p_terminal_timestep=0 steps=100"  # as published
VERSIONS = ["medsegdiff", "medsegdiff_v2"]
BOTH = pytest.mark.parametrize("name", VERSIONS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(*settings: str, widths: tuple[int, ...] = (8, 8, 16), grid: str = "2d") -> MedSegDiff:
    """As it is before training, unlike `build`, which shakes all parameters."""
    plan = build("unet", grid).plan
    torch.manual_seed(0)
    return MedSegDiff(plan, override(MedSegDiffConfig(widths=widths), list(settings)))


def parameters(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


# -- sampling: whatever the network outputs --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("variance", ["fixed", "learned"])
@pytest.mark.parametrize("timesteps", ["T=4", "T=1000"])
def test_a_network_that_knows_the_mask_draws_that_mask(name, sampler, kind, timesteps, variance):
    """The test that the released DPM-Solver path would have failed: what comes out is the mask and nothing else."""
    method = build(name, "2d", f"predict={kind}", timesteps, f"variance={variance}", "schedule=linear", "recycle=0")
    index = torch.randint(0, method.plan.classes, (1, *method.plan.patch), generator=rng())
    mask = torch.nn.functional.one_hot(index, method.plan.classes).movedim(-1, 1).float()

    def output(x_t, t, features):
        prediction = told(x_t, t)
        ramp = torch.linspace(-3, 3, method.plan.patch[1]).expand_as(x_t)
        return prediction if variance == "fixed" else torch.cat([prediction, ramp], dim=1)

    def told(x_t, t):
        if kind == "x0":
            return 50 * mask.expand_as(x_t)  # logits
        x_0, ab = (2 * mask - 1).double(), method.schedule.at(int(t[0]), x_t.double())
        noise = (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt()
        return target(kind, x_0, noise, ab).float()

    method.output = output
    image = torch.randn(len(method.plan.channels), *method.plan.patch)
    for steps in (1, 2, 4) if timesteps == "T=4" else (1, 2, 10):
        for p in method.draw(image, seeds=[0, 1], steps=steps, sampler=sampler):
            torch.testing.assert_close(p, mask[0], atol=2e-2, rtol=0)  # eps at T: a division by sqrt(alpha_bar)
            assert torch.equal(p.argmax(0), index[0])


@BOTH
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_loss_vanishes_for_a_network_that_knows_the_mask(name, kind):
    """Recycled or not, the target is what leads from x_t to the true mask."""
    for recycle in (0, 1) if kind == "x0" else (0,):
        method = build(name, "2d", f"predict={kind}", f"recycle={recycle}", "T=4")
        batch = make_batch(method)
        x_0 = 2 * batch.mask - 1

        def output(x_t, t, features, method=method, batch=batch, x_0=x_0):
            if kind == "x0":
                return 50 * batch.mask
            ab = method.schedule.at(t, x_t)
            return target(kind, x_0, (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt(), ab)

        method.output = output
        total, log = method.denoising_loss(x_0, batch.mask, method.encode(batch.image), rng(1))
        assert float(total) < 1e-6
        assert set(log) == ({"noise", "dice", "cross_entropy"} if kind == "x0" else {"noise"})


@BOTH
def test_recycled_inputs_do_not_depend_on_the_mask(name):
    method = build(name, "2d", "recycle=1", "T=3")
    batch, t = make_batch(method), torch.tensor([1, 2, 3])
    features, noise = method.encode(batch.image), torch.randn(batch.mask.shape, generator=rng(3))
    a, b = (method.training_input(sign * (2 * batch.mask - 1), t, noise, features, rng(4)) for sign in (1, -1))
    torch.testing.assert_close(a[:2], b[:2])
    assert not torch.allclose(a[2], b[2])


@BOTH
@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_recycled_inputs_are_those_that_sampling_meets(name, variance):
    """One step of the ancestral sampler, with the variance that it takes."""
    method = build(name, "2d", "recycle=1", "T=2", f"variance={variance}")
    batch, t = make_batch(method), torch.ones(3, dtype=torch.long)
    features, g, noise = method.encode(batch.image), rng(4), torch.randn(batch.mask.shape, generator=rng(3))
    torch.rand((), generator=g)
    x_T = torch.randn(batch.mask.shape, generator=g)
    denoiser = lambda x, t: method.predict_x0(x, t, features, None)
    expected = ancestral(denoiser, x_T, [(2, 1)], method.schedule, lambda: noise)
    torch.testing.assert_close(method.training_input(2 * batch.mask - 1, t, noise, features, rng(4)), expected)


@BOTH
def test_published_training_noises_the_mask(name):
    method = build(name, "2d", "recycle=0", "T=1000")
    batch, t = make_batch(method), torch.tensor([1, 500, 1000])
    x_0 = 2 * batch.mask - 1
    noise = torch.randn(x_0.shape, generator=rng(3))
    x_t = method.training_input(x_0, t, noise, method.encode(batch.image), rng(4))
    torch.testing.assert_close(x_t, method.schedule.q_sample(x_0, t, noise))


@BOTH
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_recycling_is_for_a_network_that_predicts_the_mask(name, kind):
    with pytest.raises(UserError, match=f"predict={kind}: .*Give recycle=0 too"):
        build(name, "2d", f"predict={kind}")
    assert build(name, "2d", f"predict={kind}", "recycle=0").config.predict == kind


@BOTH
def test_the_terminal_timestep_has_its_share(name):
    t = sample_timesteps(20000, 4, 0.5, rng())
    shares = torch.bincount(t, minlength=5)[1:] / len(t)
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=0.01, rtol=0)
    for p_terminal, timesteps in ((0, {1, 2, 3, 4}), (1, {4})):
        method = build(name, "2d", f"p_terminal_timestep={p_terminal}", "recycle=0", "T=4")
        output, seen = method.output, []
        method.output = lambda x_t, t, features, output=output, seen=seen: seen.extend(t.tolist()) or output(x_t, t, features)
        batch = make_batch(method, n=40)
        method.denoising_loss(2 * batch.mask - 1, batch.mask, method.encode(batch.image), rng())
        assert set(seen) == timesteps


@BOTH
def test_the_mask_is_noised_as_one_hot_values_of_minus_one_and_one(name):
    method, seen = build(name, "2d", "recycle=0"), []
    training_input = method.training_input
    method.training_input = lambda x_0, *rest: seen.append(x_0) or training_input(x_0, *rest)
    batch = make_batch(method)
    method.loss(batch, method.phases[-1], rng())
    assert torch.equal(seen[0], 2 * batch.mask - 1) and (seen[0].sum(1) == 2 - method.plan.classes).all()


@BOTH
def test_each_weight_scales_its_term(name):
    """Terms again from the network's output, each with a weight of its own."""
    method, seen = build(name, "2d", "noise=2", "dice=3", "cross_entropy=5", "recycle=0"), []
    output, batch = method.output, make_batch(method)
    method.output = lambda *asked: seen.append(output(*asked)) or seen[-1]
    total, log = method.denoising_loss(2 * batch.mask - 1, batch.mask, method.encode(batch.image), rng())
    p = seen[0].softmax(1)
    expected = {
        "noise": squared_error(2 * p - 1, 2 * batch.mask - 1).mean(),
        "dice": soft_dice_loss(p, batch.mask).mean(),
        "cross_entropy": cross_entropy(seen[0], batch.mask).mean(),
    }
    assert set(log) == set(expected)
    for term, value in expected.items():
        torch.testing.assert_close(log[term], value.detach())
    torch.testing.assert_close(total, 2 * expected["noise"] + 3 * expected["dice"] + 5 * expected["cross_entropy"])


# -- a learned variance --------------------------------------------------------------------------------------------------

LEARNED = ["variance=learned", "T=10", "steps=3", "recycle=0"]


@BOTH
@pytest.mark.parametrize("grid", ["2d", "3d"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_variance_is_learnt_and_drawn_with(name, grid, kind):
    method = build(name, grid, *LEARNED, f"predict={kind}", "p_terminal_timestep=0")
    loss, log = method.loss(make_batch(method, n=6), method.phases[-1], rng())
    loss.backward()
    k, gradient = method.plan.classes, method.network.last.weight.grad
    assert torch.isfinite(loss) and "vlb" in log and len(gradient) == 2 * k
    assert gradient[:k].any() and gradient[k:].any() and torch.isfinite(gradient).all()
    image = torch.randn(len(method.plan.channels), *(n + 7 for n in method.plan.patch), generator=rng())  # several tiles
    for p in method.draw(image, seeds=[0, 1]):
        assert p.shape == (k, *image.shape[1:]) and torch.isfinite(p).all()


@BOTH
def test_the_variance_reaches_the_ancestral_sampler_alone_and_its_noise_alone(name):
    method = build(name, "2d", *LEARNED)
    image = torch.randn(1, *method.plan.patch, generator=rng())
    draw = lambda **how: next(iter(method.draw(image, seeds=[0], **how)))
    ways = [{"sampler": s, "steps": n} for s in SAMPLERS for n in (1, 3)] + [{"sampler": "ancestral", "steps": 3, "eta": 0.0}]
    before = [draw(**how) for how in ways]
    with torch.no_grad():
        method.network.last.bias[method.plan.classes :] += 2.0
    same = [torch.equal(a, draw(**how)) for a, how in zip(before, ways, strict=True)]
    assert same == [how != {"sampler": "ancestral", "steps": 3} for how in ways]


@BOTH
def test_a_learned_variance_at_its_lower_end_is_the_fixed_one(name):
    method = build(name, "2d", *LEARNED)
    image = torch.randn(1, *method.plan.patch, generator=rng())
    with torch.no_grad():
        method.network.last.bias[method.plan.classes :] = -200.0  # v = 0
    learned = next(iter(method.draw(image, seeds=[0])))
    predict_x0 = method.predict_x0
    method.predict_x0 = lambda *inputs: ModelOutput(predict_x0(*inputs).x_0)
    torch.testing.assert_close(learned, next(iter(method.draw(image, seeds=[0]))))


@BOTH
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_bound_is_the_divergence_of_the_samplers_step_from_the_true_one(name, kind):
    """Mean and spread of both are read off the sampler; the gradient of the bound moves the variance alone."""
    gradients = []
    for weight in (0.001, 5):
        method, seen = (
            build(
                name, "2d", "variance=learned", "T=6", "recycle=0", f"predict={kind}", f"vlb={weight}", "p_terminal_timestep=0"
            ),
            [],
        )
        batch = make_batch(method, n=12)
        x_0 = 2 * batch.mask - 1
        prediction = torch.randn(12, 4, *method.plan.patch, generator=rng(9)).requires_grad_()
        method.output = lambda x_t, t, features, seen=seen, prediction=prediction: seen.append((x_t, t)) or prediction
        total, log = method.denoising_loss(x_0, batch.mask, method.encode(batch.image), rng(1))
        total.backward()
        gradients.append(prediction.grad)
    (x_t, t), v = seen[0], prediction[:, 2:].sigmoid()
    x0_hat, bound = method._to_x0(prediction[:, :2], x_t, t), []
    for i, timestep in enumerate(t.tolist()):
        if timestep == 1:
            bound.append(torch.zeros(()))
            continue
        step = lambda x, z, v=None, i=i, timestep=timestep: method.schedule.posterior(
            x[i : i + 1].double(), x_t[i : i + 1].double(), timestep, timestep - 1, 1.0, z * torch.ones(1).double(), v
        )
        true, own, own_v = step(x_0, 0), step(x0_hat, 0), v[i : i + 1].double()
        q = torch.distributions.Normal(true, step(x_0, 1) - true)
        p = torch.distributions.Normal(own, step(x0_hat, 1, own_v) - own)
        bound.append(torch.distributions.kl_divergence(q, p).mean())
    assert {1, 6} < set(t.tolist())
    torch.testing.assert_close(log["vlb"].double(), 6 * torch.stack(bound).mean().double().detach(), atol=1e-5, rtol=1e-4)
    others = sum(value for name, value in log.items() if name != "vlb")
    torch.testing.assert_close(total, others + 5 * log["vlb"])
    torch.testing.assert_close(gradients[0][:, :2], gradients[1][:, :2])
    torch.testing.assert_close(5000 * gradients[0][:, 2:], gradients[1][:, 2:], atol=1e-6, rtol=1e-4)
    assert gradients[1][:, 2:].any()


# -- what is computed once ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("grid", ["2d", "3d", "binary"])
def test_features_of_one_image_serve_many_states(name, grid):
    method = build(name, grid)
    size = tuple(n + 3 for n in method.plan.patch)
    features = method.encode(torch.randn(1, method.plan.image_channels, *size, generator=rng()))
    x_t = torch.randn(3, method.plan.classes, *size, generator=rng(1))
    together = method.denoise(x_t, 2, features, None)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], method.denoise(x_t[i : i + 1], 2, features, None), atol=1e-5, rtol=1e-4)
    repeated = tuple(f.repeat(3, *[1] * (f.ndim - 1)) for f in features)
    torch.testing.assert_close(together, method.denoise(x_t, 2, repeated, None), atol=1e-5, rtol=1e-4)


@BOTH
def test_an_image_is_encoded_once_whatever_the_draws_and_steps(name):
    method, calls = build(name, "2d"), []
    encode = method.encode
    method.encode = lambda image: calls.append(image.shape) or encode(image)
    list(method.draw(torch.randn(1, *method.plan.patch), seeds=[1, 2, 3], steps=4, chunk=2))
    assert calls == [(1, 1, *method.plan.patch)]


def test_without_coupling_the_whole_image_branch_is_computed_once():
    for dce, kept in (("off", 4), ("residual", 2), ("released", 2)):
        method = fresh(f"dce={dce}", widths=(4, 4, 8, 8, 8))
        features = method.encode(torch.randn(1, 1, 32, 16))
        assert [tuple(f.shape[2:]) for f in features] == [(32 >> k, 16 >> k) for k in range(kept)]


# -- V1's equations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dce", ["residual", "off"])
def test_the_image_branch_is_told_t_where_asked(dce):
    """E_t^I: its first stage changes with t, one linear layer per block more; without it only m_x brings t."""
    told, plain = (build("medsegdiff", "2d", f"dce={dce}", f"image_time={told}") for told in ("true", "false"))
    more = parameters(told) - parameters(plain)
    assert more and all(name.startswith("network.image.stages.") and ".time." in name for name in more)
    image, x_t = torch.randn(1, 1, 20, 24), torch.randn(2, 2, 20, 24)
    features, t = told.encode(image), torch.tensor([1.0, 900.0])
    assert len(features) == 1 and features[0].shape[1] == 1
    _, branch = told.network(x_t, t, features)
    first = told.network.image.stage(0, features[0].expand(2, -1, -1, -1), told.network.time(t))
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    if dce == "off":
        torch.testing.assert_close(branch[0], first)
    one = told.output(x_t[:1], torch.tensor([3]), features)
    torch.testing.assert_close(told.output(x_t, torch.tensor([3, 1]), features)[:1], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 3, 4, 2, 5)])
def test_dynamic_conditional_encoding_by_hand(shape):
    """Eq. 3, A = (LN(m_I) * LN(m_x)) * m_I, with layer norms over channels written out in numpy."""
    dims, channels = len(shape) - 2, shape[1]
    A = DynamicConditionalEncoding(dims, channels, torch.nn.Identity(), residual=False)
    residual = DynamicConditionalEncoding(dims, channels, torch.nn.Identity(), residual=True)
    with torch.no_grad():
        for norm in (A.norm_I.norm, A.norm_x.norm):
            norm.weight.copy_(torch.randn(channels, generator=rng(1)))
            norm.bias.copy_(torch.randn(channels, generator=rng(2)))
    m_I, m_x = torch.randn(shape, generator=rng(3)), torch.randn(shape, generator=rng(4))

    def norm(m, layer):
        m = m.double().numpy()
        centred = m - m.mean(1, keepdims=True)
        bend = lambda v: v.detach().double().numpy().reshape(1, -1, *[1] * dims)
        return centred / (m.var(1, keepdims=True) + 1e-6) ** 0.5 * bend(layer.weight) + bend(layer.bias)

    expected = norm(m_I, A.norm_I.norm) * norm(m_x, A.norm_x.norm) * m_I.double().numpy()
    torch.testing.assert_close(A(m_I, m_x), torch.tensor(expected).float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(residual(m_I, m_x), m_I)  # gamma starts at zero
    with torch.no_grad():
        residual.load_state_dict(A.state_dict() | {"gamma": torch.full_like(residual.gamma, 0.5)})
    torch.testing.assert_close(residual(m_I, m_x), m_I + 0.5 * A(m_I, m_x))


def test_the_mask_passes_the_filter_before_it_meets_the_image():
    parser = FFParser(4, (8, 8))
    A = DynamicConditionalEncoding(2, 4, parser, residual=False)
    with torch.no_grad():
        parser.deviation.normal_(generator=rng(5))
    m_I, m_x = torch.randn(2, 1, 4, 8, 6, generator=rng())
    plain = DynamicConditionalEncoding(2, 4, torch.nn.Identity(), residual=False)
    torch.testing.assert_close(A(m_I, m_x), plain(m_I, parser(m_x)))


def test_layer_norm_is_that_of_each_position():
    m = torch.randn(2, 6, 4, 5, generator=rng())
    normed = ChannelNorm(6)(m)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed[..., :2, 1:], ChannelNorm(6)(m[..., :2, 1:]))


def test_the_released_gate_by_hand():
    """Projected, filtered, and then both gates are made of it."""
    gate = ReleasedGate(2, 3, FFParser(3, (4, 4)))
    with torch.no_grad():
        gate.parser.deviation.normal_(generator=rng(5))
    m_I, m_x = torch.randn(2, 2, 3, 5, 4, generator=rng())
    h = gate.parser(gate.project(m_x))
    s = (gate.space.weight.reshape(1, 3, 1, 1) * h).sum(1, keepdim=True) + gate.space.bias
    torch.testing.assert_close(gate(m_I, m_x), m_I * s * h.mean((2, 3))[..., None, None])


def test_middle_stages():
    assert [middle(n) for n in range(1, 7)] == [(0,), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]


def test_at_the_start_the_residual_coupling_is_the_sum_of_two_encoders():
    """gamma = 0 and A = 1: with the same weights, dce=residual and dce=off say the same."""
    coupled, plain = fresh("dce=residual"), fresh("dce=off")
    missing = plain.load_state_dict(coupled.state_dict(), strict=False)
    assert not missing.missing_keys and all(".couplings." in key for key in missing.unexpected_keys)
    image, x_t = torch.randn(2, 1, 20, 24, generator=rng()), torch.randn(2, 2, 20, 24, generator=rng(1))
    a, b = (m.denoise(x_t, 2, m.encode(image), None) for m in (coupled, plain))
    torch.testing.assert_close(a, b)


# -- switches and sizes ------------------------------------------------------------------------------------------------


def test_switches_add_and_remove_exactly_what_they_name():
    full = parameters(fresh())
    without = full - parameters(fresh("ff_parser=false"))
    assert without == {f"network.couplings.{k}.parser.deviation" for k in (0, 1)}
    off = parameters(fresh("dce=off"))
    assert off < full and all(".couplings." in name for name in full - off)
    assert full - parameters(fresh("dce=published")) == {f"network.couplings.{k}.gamma" for k in (0, 1)}
    released = parameters(fresh("dce=released"))
    assert released - off == {
        f"network.couplings.{k}.{name}"
        for k in (0, 1)
        for name in ("parser.deviation", "project.weight", "project.bias", "space.weight", "space.bias")
    }
    head = parameters(fresh("calibration=10")) - full
    assert head == {f"network.calibration.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")}
    assert parameters(fresh("skips=mask")) == full


@pytest.mark.parametrize(("size", "millions"), [("S", 13), ("B", 25), ("L", 41)])
def test_sizes_have_the_published_numbers_of_parameters(size, millions):
    """Table 3 of the paper, within a tenth, for a colour image and two classes; nothing is allocated."""
    plan = Plan(
        "made", ("r", "g", "b"), {"background": 0, "lesion": 1}, ".png", 2, normalisation=("unit",) * 3, patch=(256, 256)
    )
    widths, blocks = SIZES[size]
    with torch.device("meta"):
        network = TwinEncoderUNet(plan, widths, blocks, MedSegDiffConfig(size=size))
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.1)
    assert network.stages == {"S": 4, "B": 5, "L": 6}[size]


@pytest.mark.parametrize("settings", [("dce=published",), ("dce=released", "calibration=1"), ("dce=off", "skips=mask")])
@pytest.mark.parametrize("grid", ["2d", "3d"])
def test_every_reading_trains_and_draws(settings, grid):
    method = build("medsegdiff", grid, *settings)
    loss, log = method.loss(make_batch(method), method.phases[0], rng())
    loss.backward()
    assert torch.isfinite(loss) and ("calibration" in log) == ("calibration=1" in settings)
    assert all(p.grad is not None for p in method.parameters())
    p = next(iter(method.draw(torch.randn(len(method.plan.channels), *method.plan.patch), seeds=[0])))
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("grid", ["2d", pytest.param("3d", marks=pytest.mark.slow), "many"])
def test_a_published_size_trains_and_draws(grid):
    method = build("medsegdiff", grid, "size=S", "widths=4,4,4,4,4")
    assert [len(stage) for stage in method.network.image.stages] == [3, 4, 6, 3]
    assert [len(stage) for stage in method.network.mask.stages] == [3, 4, 6, 3]
    loss, _ = method.loss(make_batch(method), method.phases[0], rng())
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in method.parameters())
    size = (31, 26, 11)[: method.plan.dims]
    p = next(iter(method.draw(torch.randn(len(method.plan.channels), *size, generator=rng()), seeds=[0])))
    assert p.shape == (method.plan.classes, *size) and torch.isfinite(p).all()


def branches(network: TwinEncoderUNet) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """m_x and m_I of every stage, of one pass."""
    m_x, stage = [], network.mask.stage
    network.mask.stage = lambda *asked: m_x.append(stage(*asked)) or m_x[-1]
    image, x_t = torch.randn(1, 1, 20, 24, generator=rng()), torch.randn(1, 2, 20, 24, generator=rng(1))
    _, m_I = network(x_t, torch.ones(1), network.encode(image))
    return m_x, m_I


@pytest.mark.parametrize("skips", ["both", "mask"])
def test_the_decoder_is_given_the_branches_of_its_setting(skips):
    """m_x + m_I of every stage, or m_x alone."""
    network, given = build("medsegdiff", "2d", f"skips={skips}").network, []
    network.decoder.register_forward_pre_hook(lambda module, inputs: given.extend(inputs[1]))
    m_x, m_I = branches(network)
    assert len(given) == network.stages == len(m_I)
    for skip, x, i in zip(given, m_x, m_I, strict=True):
        torch.testing.assert_close(skip, x + i if skips == "both" else x)
        assert i.abs().max() > 0.1


@pytest.mark.parametrize("dce", ["residual", "off"])
def test_the_bottom_is_given_the_sum_of_both_encoders(dce):
    """E^I + E^x (eq. 2), halved once more."""
    network, given = build("medsegdiff", "2d", f"dce={dce}").network, []
    network.bottom.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    m_x, m_I = branches(network)
    torch.testing.assert_close(given[0], halve(m_I[-1] + m_x[-1]))
    for one in (m_I[-1], m_x[-1]):
        assert not torch.allclose(given[0], halve(one), atol=0.1)


@BOTH
def test_levels_are_told_as_thousandths_of_the_whole(name):
    """So that an embedding made for a thousand timesteps tells four of them apart."""
    for T, t, told in ((4, 3, 750.0), (1000, 3, 3.0)):
        method, given = build(name, "2d", f"T={T}", "steps=2"), []
        method.network.time.register_forward_pre_hook(lambda module, inputs, given=given: given.append(inputs[0]))
        image, x_t = torch.randn(1, 1, 20, 24, generator=rng()), torch.randn(1, 2, 20, 24, generator=rng(1))
        method.output(x_t, torch.full((1,), t), method.encode(image))
        assert given[0].tolist() == [told]


@pytest.mark.parametrize(("asked", "found"), [(16, [(16, 16), (8, 8)]), (10, [(10, 10), (8, 8)]), (4, [(4, 4), (4, 4)])])
def test_a_filter_is_no_larger_than_the_patch_at_its_stage(asked, found):
    """A patch of 20 x 24, padded to 32 x 32, at half and at a quarter of its size."""
    method = fresh(f"filter_size={asked}", widths=(4, 4, 4, 4, 4))
    assert [module.size for module in method.modules() if isinstance(module, FFParser)] == found


def test_calibration_is_trained_on_the_image_beside_noise_alone():
    """A second call of the network at timestep T, with an x_T that no mask has touched; the weight scales the squared error."""
    method, calls = build("medsegdiff", "2d", "calibration=7", "T=5", "recycle=0"), []
    network, batch = method._network, make_batch(method)
    method._network = lambda x_t, t, features: calls.append((x_t, t, found := network(x_t, t, features))) or found
    total, log = method.loss(batch, method.phases[0], rng(3))
    _, (x_T, T, (_, branch)) = calls
    assert (T == 5).all()
    p = method.network.calibrate(branch, batch.mask.shape[2:]).softmax(1)
    torch.testing.assert_close(log["calibration"], (p - batch.mask).square().mean().detach())
    torch.testing.assert_close(total, log["noise"] + log["dice"] + log["cross_entropy"] + 7 * log["calibration"])
    batch.mask = batch.mask.flip(1)
    method.loss(batch, method.phases[0], rng(3))
    assert torch.equal(calls[3][0], x_T) and not torch.equal(calls[2][0], calls[0][0])


def test_calibration_is_never_mixed_into_a_draw():
    method = build("medsegdiff", "2d", "calibration=10")
    image = torch.randn(1, *method.plan.patch, generator=rng())
    before = next(iter(method.draw(image, seeds=[0])))
    with torch.no_grad():
        for p in method.network.calibration.parameters():
            p.add_(1.0)
    assert torch.equal(before, next(iter(method.draw(image, seeds=[0]))))


def test_widths_that_do_not_fit_the_size_are_refused():
    with pytest.raises(UserError, match="'B' needs 6 widths"):
        build("medsegdiff", "2d", "size=B", "widths=8,16")
    with pytest.raises(UserError, match="at least 2"):
        build("medsegdiff", "2d", "widths=8")


REFUSED = {
    "noise=-1": "noise=-1.0: expected 0 or more",
    "dice=-1": "dice=-1.0",
    "cross_entropy=-1": "cross_entropy=-1.0",
    "vlb=-1": "vlb=-1.0",
    "noise=0 dice=0 cross_entropy=0": "noise=0, dice=0, cross_entropy=0: nothing would be learnt",
    "predict=eps recycle=0 noise=0": "noise=0: nothing would be learnt",
    "T=4 steps=10": "steps=10: more than T=4. Choose between 1 and 4",
    "variance=learned T=1": "variance=learned: T=1",
    "variance=learned vlb=0": "vlb=0",
}


@BOTH
@pytest.mark.parametrize("wishes", REFUSED)
def test_settings_that_would_do_nothing_are_refused(name, wishes):
    with pytest.raises(UserError, match=REFUSED[wishes]):
        build(name, "2d", *wishes.split())


def test_settings_of_the_first_version_that_would_do_nothing_are_refused():
    for wishes, says in (
        ("calibration=-1", "calibration=-1.0: expected 0 or more"),
        ("filter_size=7", "filter_size=7: expected an even number"),
        ("filter_size=0", "filter_size=0: expected 2 or more"),
        ("size=B encoder_blocks=2", "encoder_blocks=2: size=B has its own"),
    ):
        with pytest.raises(UserError, match=says):
            build("medsegdiff", "2d", *wishes.split())


@BOTH
def test_defaults_are_few_timesteps_of_a_harder_schedule(name):
    c = METHODS[name].config_class()
    assert (c.T, c.schedule, c.input_scale, c.predict, c.variance) == (4, "variance_preserving", 0.5, "x0", "fixed")
    assert (c.noise, c.dice, c.cross_entropy, c.recycle, c.p_terminal_timestep, c.sampler) == (
        1.0,
        1.0,
        1.0,
        1.0,
        0.5,
        "ancestral",
    )
    known, plain = build(name, "2d").schedule, NoiseSchedule.variance_preserving(4)
    torch.testing.assert_close(known.snr(torch.arange(1, 5)), plain.snr(torch.arange(1, 5)) / 4)


@BOTH
def test_a_draw_takes_two_steps_where_there_are_two_timesteps(name):
    steps = {wishes: build(name, "2d", *wishes.split()).default_steps for wishes in ("T=4", "T=1", "T=4 steps=4", "T=1000")}
    assert steps == {"T=4": 2, "T=1": 1, "T=4 steps=4": 4, "T=1000": 2}


def test_the_published_preset_is_what_the_paper_says():
    preset = PRESETS["medsegdiff/as_published"]
    config = from_dict(MedSegDiffConfig, preset["config"])
    assert (config.T, config.schedule, config.variance, config.sampler) == (1000, "linear", "fixed", "ancestral")
    assert config.image_time
    assert (config.skips, config.filter_size, preset["train"]) == ("mask", 64, {"ema": 0.9999})
    published = {"dims": 2, "context": 0, "patch": (256, 256), "batch": 32, "steps": 100_000, "augmentation": "none"}
    assert preset["plan"] == published
    assert (config.predict, config.dce, config.ff_parser, config.size) == ("eps", "published", True, "B")
    assert (config.steps, config.learning_rate, config.recycle, config.p_terminal_timestep) == (100, 1e-4, 0.0, 0.0)
    assert (config.noise, config.input_scale, config.calibration) == (1.0, 1.0, 0.0)
    from_dict(Plan, {"dataset": "x", "channels": ("a",), "labels": {"b": 0, "c": 1}, "file_ending": ".png"} | preset["plan"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@BOTH
@pytest.mark.parametrize("how", ["predict=x0", "predict=x0 variance=learned", "predict=v recycle=0", NOISE])
def test_one_case_is_learnt_by_heart(name, how):
    """A disc and a bar whose outlines the image shows faintly under noise: above 0.97 Dice after some hundred tiny steps.

    A predicted noise takes more of them, and a hundred steps of sampling.
    """
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    truth = (((rows - 8) ** 2 + (columns - 9) ** 2) < 25) | ((rows > 14) & (columns > 4))
    last = {"medsegdiff": 800, "medsegdiff_v2": 1200}[name] if how == NOISE else 300
    learnt_by_heart(name, "2d", how.split(), truth.long(), last)


@pytest.mark.slow
@pytest.mark.timeout(900)
@BOTH
def test_a_volume_is_learnt_by_heart(name):
    """A ball and a slab, two classes, two channels."""
    i, j, k = torch.meshgrid(*(torch.arange(float(n)) for n in (8, 12, 9)), indexing="ij")
    truth = (((i - 3) ** 2 + (j - 4) ** 2 + (k - 4) ** 2) < 10).long()
    truth[(j > 8) & (i > 1)] = 2
    learnt_by_heart(name, "3d", [], truth, 300)


def learnt_by_heart(name: str, grid: str, settings: list[str], truth: torch.Tensor, last: int) -> None:
    """Train on one case for so many steps; each class of each draw overlaps with the truth above 0.97."""
    cls = METHODS[name]
    method = cls(build(name, grid).plan, override(cls.config_class(), [*CHEAP[name], *settings]))
    mask = torch.nn.functional.one_hot(truth, method.plan.classes).movedim(-1, 0).float()
    image = 0.5 * truth.float()[None] + 0.5 * torch.randn(len(method.plan.channels), *truth.shape, generator=rng(1))
    batch = make_batch(method, n=1)
    batch.image, batch.mask = (x[None].expand(8, *x.shape) for x in (image, mask))
    trained = lambda phase: [p for m in phase.modules for p in method.get_submodule(m).parameters()]
    optimisers = {phase.name: torch.optim.Adam(trained(phase), 3e-3) for phase in method.phases}
    for i in range(last):
        for phase in method.phases:
            if i % phase.every:
                continue
            for group in optimisers[phase.name].param_groups:
                group["lr"] = 3e-3 * (1 - i / last)
            method.zero_grad(set_to_none=True)
            method.loss(batch, phase, rng(i))[0].backward()
            optimisers[phase.name].step()
    for p in method.draw(image, seeds=[0, 1, 2]):
        found = p.argmax(0)
        for c in range(1, method.plan.classes):
            assert dice((found == c).numpy(), (truth == c).numpy()) > 0.97


@BOTH
def test_a_predicted_noise_leaves_the_network_with_all_digits(name):
    """Its error is divided by sqrt(alpha_bar): the last convolution is done in float32, the others are not."""
    for how, exact in (("predict=eps recycle=0", True), ("predict=x0", False)):
        method = build(name, "2d", *how.split())
        image, x_t = torch.randn(1, 1, 20, 24, generator=rng()), torch.randn(1, 2, 20, 24, generator=rng(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = method.output(x_t, torch.full((1,), 3), method.encode(image))
        assert torch.equal(found, found.bfloat16().float()) != exact


@BOTH
@pytest.mark.parametrize("grid", ["2d", "3d"])
def test_half_the_digits_are_enough_for_convolutions_and_never_used_for_spectra(name, grid):
    """bfloat16 trains and draws, and a draw stays near that of float32."""
    method = build(name, grid)
    image = torch.randn(len(method.plan.channels), *method.plan.patch, generator=rng())
    exact = next(iter(method.draw(image, seeds=[0])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for phase in method.phases:
            loss, _ = method.loss(make_batch(method), phase, rng())
            loss.backward()
            assert torch.isfinite(loss) and loss.dtype == torch.float32
        near = next(iter(method.draw(image, seeds=[0])))
    assert near.dtype == torch.float32 and (near - exact).detach().abs().mean() < 0.03


@BOTH
def test_slices_with_neighbours_of_a_volume(name):
    """2.5-D: one slice's features serve that slice of every draw, and no other."""
    plan = replace(build(name, "2d").plan, context=1, patch=(8, 6))
    torch.manual_seed(0)
    method = METHODS[name](plan, override(METHODS[name].config_class(), CHEAP[name]))
    volume = torch.randn(1, 9, 7, 5, generator=rng())
    maps = list(method.draw(volume, seeds=[0, 1]))
    assert all(p.shape == (2, 9, 7, 5) for p in maps) and not torch.equal(*maps)
    torch.testing.assert_close(next(iter(method.draw(volume, seeds=[1]))), maps[1], atol=1e-5, rtol=0)
