"""What is particular to MedSegDiff V2: the anchor, the transformer between spectra, and the bracket every alpha steps."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuseg.config import from_dict, override
from diffuseg.data.plan import Plan
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.methods.medsegdiff_v2 import Anchor, ConditionUNet, DiffusionUNet, MedSegDiffV2, MedSegDiffV2Config
from diffuseg.methods.presets import PRESETS
from diffuseg.methods.training import cross_entropy, soft_dice_loss
from diffuseg.networks.ssformer import SpectralAttention, SSFormer
from diffuseg.train.loop import TrainSettings, train
from tests.contract.test_methods import build, make_batch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=rng(i)))
    return module


# -- the anchor ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(9, 12), (6, 7, 8)])
def test_smoothing_is_one_convolution_with_a_gaussian(size):
    dims = len(size)
    anchor = Anchor(dims, 2)
    with torch.no_grad():
        anchor.mean.copy_(torch.tensor([0.7, -0.4, 0.2])[:dims])
        anchor.log_sigma.copy_(torch.tensor([0.5, 1.6, 0.9])[:dims].log())
    x = torch.arange(-3.0, 4.0)
    kernel = torch.ones(())
    for mean, sigma in zip((0.7, -0.4, 0.2)[:dims], (0.5, 1.6, 0.9), strict=False):
        kernel = kernel[..., None] * torch.exp(-0.5 * ((x - mean) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    f = torch.randn(2, 2, *size, generator=rng())
    padded = F.pad(f.flatten(0, 1)[:, None], (3, 3) * dims, mode="replicate")
    expected = (F.conv2d if dims == 2 else F.conv3d)(padded, kernel).reshape(f.shape)
    torch.testing.assert_close(anchor.smooth(f), expected, atol=1e-5, rtol=1e-4)
    constant = torch.full((1, 2, *size), 3.0)
    torch.testing.assert_close(anchor.smooth(constant), constant)
    anchor.smooth(f).square().mean().backward()
    for parameter in (anchor.mean, anchor.log_sigma):
        assert parameter.grad is not None and parameter.grad.abs().min() > 0


def test_the_gate_by_hand():
    """f_anc = max(f_c * k_Gauss, f_c), gate = sigmoid(f_anc * k_1x1)."""
    anchor, f_c = shaken(Anchor(2, 3)), torch.randn(2, 3, 8, 9, generator=rng())
    f_anc = torch.maximum(anchor.smooth(f_c), f_c)
    logit = (anchor.point.weight.reshape(1, 3, 1, 1) * f_anc).sum(1, keepdim=True) + anchor.point.bias
    torch.testing.assert_close(anchor(f_c), 1 / (1 + (-logit).exp()))


def test_a_closed_gate_changes_nothing_and_an_open_one_doubles_the_first_features():
    """f_d <- gate f_d + f_d."""
    method = build("medsegdiff_v2", "2d")
    network, x_t, t = method.network, torch.randn(1, 2, 20, 24, generator=rng()), torch.ones(1)
    c, _ = method.condition(torch.randn(1, 1, 20, 24))
    torch.testing.assert_close(network(x_t, t, c, torch.zeros(1, 1, 20, 24)), network(x_t, t, c, None))
    seen = []
    network.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1][0]))
    network(x_t, t, c, None)
    network(x_t, t, c, torch.ones(1, 1, 20, 24))
    torch.testing.assert_close(seen[1], 2 * seen[0])


@pytest.mark.parametrize("ss_former", ["true", "false"])
def test_the_condition_is_added_to_the_bottom_by_a_convolution(ss_former):
    """e + W c', c' from the transformer or the condition as it is; the decoder starts from there."""
    network, seen = build("medsegdiff_v2", "2d", f"ss_former={ss_former}").network, {}
    network.bottom.register_forward_hook(lambda module, inputs, e: seen.update(e=e))
    network.join.register_forward_pre_hook(lambda module, inputs: seen.update(c=inputs[0]))
    network.decoder.register_forward_pre_hook(lambda module, inputs: seen.update(joined=inputs[0]))
    c, t = torch.randn(1, 16, 10, 12, generator=rng(1)), torch.full((1,), 250.0)
    network(torch.randn(1, 2, 20, 24, generator=rng()), t, c, None)
    W, b = network.join.weight[:, :, 0, 0], network.join.bias
    moved = torch.einsum("oi,bihw->bohw", W, seen["c"]) + b.reshape(1, -1, 1, 1)
    torch.testing.assert_close(seen["joined"], seen["e"] + moved)
    expected = c if network.former is None else network.former(seen["e"], c, network.time(t))
    torch.testing.assert_close(seen["c"], expected)
    assert moved.abs().max() > 0.01


# -- the transformer -----------------------------------------------------------------------------------------------------


def dft(size: tuple[int, ...]) -> np.ndarray:
    """The orthonormal transform over all positions as one matrix."""
    matrix = np.ones((1, 1))
    for n in size:
        k = np.arange(n)
        matrix = np.kron(matrix, np.exp(-2j * np.pi * np.outer(k, k) / n) / n**0.5)
    return matrix


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
@pytest.mark.parametrize("band", [True, False])
def test_one_direction_by_matrices(size, band):
    """M = sin(q k^H / sqrt c) part by part, h = F^-1 M F v / sqrt n, with the transform written as a matrix."""
    attention = shaken(SpectralAttention(len(size), 4, 6, band))
    e, c, time = torch.randn(1, 4, *size, generator=rng(1)), torch.randn(1, 4, *size, generator=rng(2)), torch.randn(1, 6)
    flat = lambda x: x.detach().double().numpy()[0].reshape(4, -1)
    W = dft(size)
    gain = flat(attention.band(size, time)) if band else 1.0
    q = gain * (flat(attention.query(attention.norm_query(e))) @ W.T)
    k = gain * (flat(attention.key(attention.norm_key(c))) @ W.T)
    v = flat(attention.value(attention.norm_key(c))) @ W.T
    product, omega = q.T @ k.conj() / 2, attention.omega.item()
    M = np.sin(omega * product.real) + 1j * np.sin(omega * product.imag)
    h = (v @ M.T) @ W.conj() / W.shape[0] ** 0.5
    np.testing.assert_allclose(attention.affinity(e, c, time)[0].detach().numpy(), M, atol=1e-4)
    found = attention.answer(e, c, time)[0].detach().numpy().reshape(4, -1)
    np.testing.assert_allclose(found, h, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 5), (6, 6), (1, 7), (2, 3, 4)])
def test_real_embeddings_give_a_real_answer(size):
    attention = shaken(SpectralAttention(len(size), 4, 6))
    e, c = (torch.randn(2, 4, *size, generator=rng(i)) for i in (1, 2))
    h = attention.answer(e, c, torch.randn(2, 6, generator=rng(3)))
    assert h.imag.abs().max() < 1e-5 < h.real.abs().max()


def test_the_activation_is_periodic():
    """A key whose product is a whole number of periods away has the same affinity."""
    attention, omega = SpectralAttention(2, 1, 6, band=False), 1.7
    with torch.no_grad():
        attention.omega.fill_(omega)
    k = torch.complex(*torch.randn(2, 1, 1, 3, 3, generator=rng()))

    def affinity(shift: complex) -> torch.Tensor:
        spectra = iter((torch.ones_like(k), k + shift))  # the product is the conjugate of the key's spectrum
        attention._spectrum = lambda x: next(spectra)
        return attention.affinity(*torch.zeros(2, 1, 1, 3, 3), torch.zeros(1, 6))

    period, M = 2 * np.pi / omega, affinity(0)
    torch.testing.assert_close(M, torch.complex((omega * k.real).sin(), (-omega * k.imag).sin()).flatten(2).expand(1, 9, 9))
    for shift in (period, period * 1j, 3 * period - 2j * period):
        torch.testing.assert_close(affinity(shift), M, atol=1e-5, rtol=0)
    torch.testing.assert_close(affinity(period / 2).real, -M.real, atol=1e-5, rtol=0)


def test_both_directions_in_order():
    """c~ answers e, then the new condition answers c~; e stays as it is."""
    former = shaken(SSFormer(2, 4, 6, blocks=2))
    e, c, time = torch.randn(2, 4, 3, 4, generator=rng(1)), torch.randn(2, 4, 3, 4, generator=rng(2)), torch.randn(2, 6)
    expected = c
    for first, second in former.blocks:
        expected = first(e, expected, expected, time)
        expected = second(expected, e, expected, time)
    assert torch.equal(former(e, c, time), expected)
    for changed in ((2 * e.flip(2), c, time), (e, c.flip(2), time), (e, c, time + 1)):
        assert not torch.allclose(former(*changed), expected, atol=1e-3)


def test_scale_and_shift_come_from_the_timestep():
    attention = shaken(SpectralAttention(2, 4, 6, band=False))
    e, c, time = torch.randn(1, 4, 3, 4, generator=rng(1)), torch.randn(1, 4, 3, 4, generator=rng(2)), torch.randn(1, 6)
    scale, shift = (p.reshape(1, 4, 1, 1) for p in attention.modulation(time).chunk(2, dim=1))
    h = (1 + scale) * attention.norm(attention.answer(e, c, time).real) + shift
    expected = c + attention.narrow(F.silu(attention.widen(h)))
    torch.testing.assert_close(attention(e, c, c, time), expected)


# -- training ----------------------------------------------------------------------------------------------------------


def touched(method, phase) -> set[str]:
    method.zero_grad(set_to_none=True)
    method.loss(make_batch(method), phase, rng())[0].backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_bracket_trains_the_condition_and_the_noise_trains_everything():
    """The condition is not detached: L_noise reaches it through anchor and transformer, but not its segmentation's head."""
    method = build("medsegdiff_v2", "3d", "alpha_counts=training_steps")
    bracket, noise = method.phases
    everything = {name for name, _ in method.named_parameters()}
    head = {f"condition.{part}.{name}" for part in ("head", "norm.norm") for name in ("weight", "bias")}
    assert touched(method, bracket) == {name for name in everything if name.startswith("condition.")}
    assert touched(method, noise) == everything - head


def test_without_the_anchor_only_the_bracket_trains_the_condition_decoder():
    method = build("medsegdiff_v2", "2d", "anchor=false", "alpha_counts=training_steps")
    assert not any(name.startswith("condition.decoder") for name in touched(method, method.phases[1]))
    assert any(name.startswith("condition.decoder") for name in touched(method, method.phases[0]))
    assert any(name.startswith("condition.encoder") for name in touched(method, method.phases[1]))


def test_the_bracket_is_dice_and_beta_cross_entropy_of_the_conditions_segmentation():
    method = build("medsegdiff_v2", "2d", "beta=3", "alpha_counts=training_steps")
    batch = make_batch(method)
    logits = method.condition.segment(batch.image)
    assert logits.shape == batch.mask.shape
    expected = soft_dice_loss(logits.softmax(1), batch.mask).mean() + 3 * cross_entropy(logits, batch.mask).mean()
    total, log = method.loss(batch, method.phases[0], rng())
    torch.testing.assert_close(total, expected)
    assert set(log) == {"dice", "cross_entropy"}


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_bracket_counts_for_the_elements_whose_timestep_is_a_multiple_of_alpha(seed):
    """L_t = L_noise + [t = 0 mod alpha] (Dice + beta CE), element by element, of the timesteps that the noise was drawn at."""
    method = build("medsegdiff_v2", "2d", "alpha=2", "beta=3", "T=4", "recycle=0")
    batch, seen, asked = make_batch(method, n=6), [], method.output
    method.output = lambda x_t, t, features: (seen.append(t), asked(x_t, t, features))[1]
    (phase,) = method.phases
    total, log = method.loss(batch, phase, rng(seed))
    counts = seen[0] % 2 == 0
    assert 0 < int(counts.sum()) < 6
    logits = method.condition.segment(batch.image)[counts]
    each = soft_dice_loss(logits.softmax(1), batch.mask[counts]) + 3 * cross_entropy(logits, batch.mask[counts])
    torch.testing.assert_close(log["bracket"], each.sum().detach() / 6)
    alone, _ = build("medsegdiff_v2", "2d", "T=4", "recycle=0", "alpha_counts=training_steps").loss(batch, phase, rng(seed))
    torch.testing.assert_close(total, alone + each.sum() / 6)


def test_a_bracket_at_no_timestep_is_refused_and_alpha_is_five_where_it_can_be():
    with pytest.raises(UserError, match="alpha=5: none of T=4"):
        build("medsegdiff_v2", "2d", "alpha=5", "T=4").check_training()
    build("medsegdiff_v2", "2d", "alpha=5", "T=4", "alpha_counts=training_steps").check_training()
    assert [MedSegDiffV2Config(T=T).interval for T in (1, 4, 5, 1000)] == [1, 4, 5, 5]
    assert MedSegDiffV2Config(alpha_counts="training_steps").interval == 5


def test_the_loop_runs_the_bracket_every_alpha_steps(tmp_path):
    data = make_dataset(tmp_path / "data", cases=3, shape=(10, 12, 9))
    sets = [
        "alpha=3",
        "alpha_counts=training_steps",
        "widths=8,8",
        "plan.patch=8,8,8",
        "plan.batch=1",
        "train.log_every=1",
        "train.validation_cases=1",
    ]
    train(TrainSettings(data, "medsegdiff_v2", tmp_path / "run", steps=7, set=sets, device="cpu", precision="fp32"))
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("noise/loss")]
    assert [int(row["step"]) for row in rows] == list(range(1, 8))
    assert [bool(row["condition/loss"]) for row in rows] == [True, False, False, True, False, False, True]


# -- switches ------------------------------------------------------------------------------------------------------------


def test_switches_add_and_remove_exactly_what_they_name():
    names = lambda *settings: {name for name, _ in build("medsegdiff_v2", "2d", *settings).named_parameters()}
    full = names()
    assert {name.split(".")[0] for name in full - names("anchor=false")} == {"anchor"}
    gone = full - names("ss_former=false")
    assert gone and all(name.startswith("network.former.") for name in gone) and names("ss_former=false") < full
    assert full - names("band_pass=false") == {n for n in full if ".band." in n}
    assert all(name.startswith("network.former.blocks.1.") for name in names("former_blocks=2") - full)
    assert names("alpha=1", "beta=2") == full


@pytest.mark.parametrize("settings", [("anchor=false",), ("ss_former=false",), ("anchor=false", "ss_former=false")])
def test_every_ablation_trains_and_draws(settings):
    method = build("medsegdiff_v2", "2d", *settings)
    for phase in method.phases:
        assert torch.isfinite(method.loss(make_batch(method), phase, rng())[0])
    p = next(iter(method.draw(torch.randn(1, *method.plan.patch), seeds=[0])))
    assert torch.isfinite(p).all()


def test_what_makes_no_sense_is_refused():
    for settings, says in (
        (("widths=8",), "2 widths"),
        (("alpha=0",), "alpha=0: expected 1"),
        (("former_blocks=0",), "former_blocks=0"),
        (("beta=-1",), "beta=-1.0: expected 0"),
    ):
        with pytest.raises(UserError, match=says):
            build("medsegdiff_v2", "2d", *settings)


def test_the_published_preset():
    """Noise prediction, the bracket, all parts on; 46 million parameters is second-hand, for a colour image."""
    preset = PRESETS["medsegdiff_v2/as_published"]
    config = from_dict(MedSegDiffV2Config, preset["config"])
    assert (config.predict, config.anchor, config.ss_former, config.band_pass) == ("eps", True, True, True)
    assert (config.recycle, config.p_terminal_timestep, config.input_scale, config.steps) == (0.0, 0.0, 1.0, 100)
    assert (config.T, config.schedule, config.variance, config.sampler) == (1000, "linear", "fixed", "ancestral")
    assert (config.beta, config.former_blocks, config.noise, config.learning_rate) == (1.0, 1, 1.0, 1e-4)
    assert (config.interval, config.alpha_counts) == (5, "timesteps")
    assert (config.widths, config.blocks, config.encoder_blocks) == ((64, 128, 256, 384, 512), 1, 1)
    published = {"dims": 2, "context": 0, "patch": (256, 256), "batch": 32, "steps": 100_000, "augmentation": "none"}
    assert preset["plan"] == published and preset["train"] == {"ema": 0.9999}
    plan = Plan("made", ("r", "g", "b"), {"background": 0, "cup": 1}, ".png", dims=2, normalisation=("unit",) * 3)
    with torch.device("meta"):
        parts = [ConditionUNet(plan, config.widths, config.blocks, config.encoder_blocks), Anchor(2, config.widths[0])]
        parts.append(DiffusionUNet(plan, config.widths, config))
    assert sum(p.numel() for part in parts for p in part.parameters()) / 1e6 == pytest.approx(46, rel=0.1)


def test_defaults_are_those_of_the_plan():
    method = MedSegDiffV2(build("unet", "2d").plan, override(MedSegDiffV2Config(), []))
    assert method.widths == method.plan.widths and method.default_steps == 2
