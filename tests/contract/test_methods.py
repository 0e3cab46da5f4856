"""The contract: every registered method goes through the same tests. A new one is enrolled by METHODS alone."""

import copy

import pytest
import torch
import torch.nn.functional as F

from diffuseg.checkpoint import load_checkpoint, save_checkpoint
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import timesteps
from diffuseg.methods import METHODS, Method
from diffuseg.methods.base import x_to_probability
from diffuseg.types import Batch

GRIDS = {
    "2d": (2, 1, 2, (20, 24)),
    "3d": (3, 2, 3, (8, 12, 9)),
    "binary": (2, 3, 2, (17, 23)),
    "many": (2, 5, 5, (19, 26)),
}  # dims, channels, classes with the background
CHEAP = {
    "cdal": ["latent=8", "latent_width=16", "discriminator_widths=8,8,16", "adversarial=0.1"],
    "concat": ["T=50"],
    "distributional": ["T=3", "steps=2"],
    "cdm": ["T=50", "decide=present"],
    "cam": ["decide=present"],
    "medsegdiff": ["filter_size=4"],
    "medsegdiff_v2": ["alpha=2"],
}


def build(name: str, grid: str = "3d", *settings: str) -> Method:
    dims, channels, classes, patch = GRIDS[grid]
    plan = Plan(
        dataset="made",
        channels=tuple(f"c{i}" for i in range(channels)),
        labels={"background": 0} | {f"class{i}": i for i in range(1, classes)},
        file_ending=".nii.gz",
        dims=dims,
        normalisation=("zscore",) * channels,
        patch=patch,
        widths=(8, 8, 16) if grid == "many" else (8, 16),
    )
    torch.manual_seed(0)
    cls = METHODS[name]
    method = cls(plan, override(cls.config_class(), CHEAP.get(name, []) + list(settings)))
    with torch.no_grad():  # last layers start near zero: shake them, or parity tests compare nothing with nothing
        for p in method.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


def make_batch(method: Method, n: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    plan = method.plan
    index = torch.randint(0, plan.classes, (n, *plan.patch), generator=g)
    image = torch.randn(n, plan.image_channels, *plan.patch, generator=g)
    if method.supervision == "image_label":
        return Batch(image, label=torch.arange(n) % plan.classes)
    return Batch(image, F.one_hot(index, plan.classes).movedim(-1, 1).float())


pytestmark = pytest.mark.parametrize("name", sorted(METHODS))


@pytest.mark.parametrize("grid", GRIDS)
def test_draws_are_probabilities_for_any_size(name, grid):
    method = build(name, grid)
    size = tuple(n + d for n, d in zip(method.plan.patch, (5, -3, 2), strict=False))  # larger and smaller than the patch
    maps = list(method.draw(torch.randn(len(method.plan.channels), *size), seeds=[1, 2], steps=method.default_steps))
    assert len(maps) == 2
    for p in maps:
        assert p.shape == (method.plan.classes, *size)
        assert p.min() >= 0
        torch.testing.assert_close(p.sum(0), torch.ones(size))


def test_same_seed_same_draw_alone_or_among_others(name):
    method = build(name)
    image = torch.randn(2, 11, 12, 9)
    alone = next(iter(method.draw(image, seeds=[7])))
    among = list(method.draw(image, seeds=[3, 7, 5]))
    other = list(method.draw(image, seeds=[4, 7, 6], chunk=2))
    torch.testing.assert_close(alone, among[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, other[1], atol=1e-4, rtol=0)
    assert method.generative == (not torch.equal(among[0], among[1]))


def test_a_draw_is_the_last_thing_the_network_made_of_its_states(name):
    """x0_hat is reported at each timestep of the grid, over the whole image without padding; the last one is the draw."""
    method, told = build(name), []
    if method.supervision == "image_label":
        pytest.skip("its states are images")
    image = torch.randn(2, 11, 5, 9)
    steps = min(2, method.schedule.T) if method.generative else None
    maps = list(method.draw(image, seeds=[3, 4], steps=steps, on_denoised=lambda t, x_0: told.append((t, x_0.clone()))))
    assert [t for t, _ in told] == ([t for t, _ in timesteps(method.schedule.T, steps)] if method.generative else [0])
    assert all(x_0.shape[1:] == (method.plan.classes, 11, 5, 9) and x_0.abs().max() <= 1 for _, x_0 in told)
    final = x_to_probability(told[-1][1])
    torch.testing.assert_close(final, torch.stack(maps)[: len(final)], atol=1e-5, rtol=0)


def test_gradients_reach_exactly_the_modules_of_the_phase(name):
    method = build(name)
    for phase in method.phases:
        method.zero_grad(set_to_none=True)
        for child, module in method.named_children():
            module.requires_grad_(child in phase.modules)
        loss, _ = method.loss(make_batch(method), phase, torch.Generator().manual_seed(0))
        loss.backward()
        touched = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == set(phase.modules), phase.name


def test_a_loss_is_a_function_of_batch_and_generator(name):
    method, batch = build(name), None
    batch = make_batch(method)
    for phase in method.phases:
        state = torch.get_rng_state()
        losses = [float(method.loss(batch, phase, torch.Generator().manual_seed(5))[0].detach()) for _ in range(2)]
        assert losses[0] == losses[1]
        assert torch.equal(state, torch.get_rng_state()), "the global generator was used"


def test_state_dict_round_trip_through_a_checkpoint(name, tmp_path):
    method = build(name).eval()
    save_checkpoint(tmp_path / "m.safetensors", method, {"steps_trained": 3})
    loaded, plan, meta = load_checkpoint(tmp_path / "m.safetensors")
    assert plan == method.plan and meta["steps_trained"] == 3 and meta["method"] == name
    image = torch.randn(2, 8, 12, 9)
    a, b = (next(iter(m.draw(image, seeds=[1]))) for m in (method, loaded))
    assert torch.equal(a, b)


def test_a_few_steps_of_training_lower_the_loss(name):
    method = build(name, "2d")
    batch = make_batch(method, n=2)
    if batch.mask is not None:
        batch.image[:, :1] = batch.mask[:, 1:2] * 2 - 1  # the answer is in the image
    else:
        batch.image[:] = 2.0 + batch.label.reshape(-1, 1, 1, 1)  # images that are easily learned
    phase = method.phases[-1]
    parameters = [p for m in phase.modules for p in method.get_submodule(m).parameters()]
    optimiser = torch.optim.Adam(parameters, 3e-3)
    losses = []
    for i in range(40):
        loss, _ = method.loss(batch, phase, torch.Generator().manual_seed(i))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_drawing_leaves_the_model_and_the_image_alone(name):
    method = build(name)
    before, image = copy.deepcopy(method.state_dict()), torch.randn(2, 8, 12, 9)
    kept = image.clone()
    list(method.draw(image, seeds=[0]))
    assert torch.equal(image, kept)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
