"""Distributional diffusion: draws come out as often as readers say so, and the image is looked at once."""

import pytest
import torch
import torch.nn.functional as F

from diffuseg.data.plan import Plan
from diffuseg.methods.distributional import Distributional, DistributionalConfig
from diffuseg.networks.light import FeaturePyramid, LightDecoder
from diffuseg.types import Batch
from tests.contract.test_methods import build

FIRST, SECOND = (slice(1, 7), slice(1, 7)), (slice(9, 15), slice(8, 14))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(place: tuple[slice, slice]) -> torch.Tensor:
    mask = torch.zeros(16, 16, dtype=torch.long)
    mask[place] = 1
    return F.one_hot(mask, 2).movedim(-1, 0).float()


def make(**settings: object) -> Distributional:
    plan = Plan(
        dataset="made", channels=("c",), labels={"background": 0, "one": 1}, file_ending=".png", dims=2,
        normalisation=("zscore",), patch=(16, 16), widths=(8, 16, 16),
    )  # fmt: skip
    torch.manual_seed(0)
    return Distributional(plan, DistributionalConfig(light_widths=(8, 8, 8), **settings))  # type: ignore[arg-type]


def trained(method: Distributional, steps: int) -> Distributional:
    """On one image that three readers in ten mark here and seven there."""
    raters = torch.stack([square(FIRST)] * 3 + [square(SECOND)] * 7)[None].expand(2, -1, -1, -1, -1)
    image = torch.zeros(2, 1, 16, 16)
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for step in range(steps):
        one = torch.randint(10, (2,), generator=rng(10_000 + step))
        batch = Batch(image, raters[torch.arange(2), one], raters=raters)
        loss, _ = method.loss(batch, method.phases[0], rng(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return method.eval()


def share_of_first(method: Distributional, draws: int = 200) -> tuple[float, float]:
    """How many draws are nearer to the first square, and how many of all are a square at all (Dice above 0.8)."""
    with torch.no_grad():
        masks = torch.stack([p[1] > 0.5 for p in method.draw(torch.zeros(1, 16, 16), range(draws), chunk=100)])
    overlap = []
    for place in (FIRST, SECOND):
        truth = square(place)[1] > 0
        overlap.append(2 * (masks & truth).flatten(1).sum(1) / (masks.flatten(1).sum(1) + truth.sum()))
    small, large = overlap
    return float((small > large).float().mean()), float((torch.maximum(small, large) > 0.8).float().mean())


@pytest.mark.parametrize(("T", "steps", "m"), [(1, 250, 4), pytest.param(2, 600, 8, marks=pytest.mark.slow)])
def test_draws_come_out_as_often_as_readers_say(T, steps, m):
    method = make(T=T, steps=T, train_draws=m, p_terminal_timestep=0.8)
    first, sound = share_of_first(trained(method, steps))
    assert first == pytest.approx(0.3, abs=0.12)
    assert sound > 0.8


def test_the_value_of_the_loss_by_hand():
    """Distances to every reader, minus the kept share of half of those between draws, plus the cross-entropy of the mean."""
    method = make(train_draws=3, spread=0.8, fair=0.5, cross_entropy=0.25)
    p = torch.rand(3, 1, 16, 16, generator=rng(1))
    draws, readers = torch.cat([1 - p, p], 1), torch.stack([square(FIRST), square(SECOND)])
    method._logits = lambda *_: draws.log()

    def d(a: torch.Tensor, b: torch.Tensor) -> float:  # of the foreground alone
        return float(1 - (torch.minimum(a[1], b[1]).sum() + 1) / (torch.maximum(a[1], b[1]).sum() + 1))

    near = sum(d(one, truth) for one in draws for truth in readers) / 6
    apart = sum(d(draws[i], draws[k]) for i in range(3) for k in range(3) if i != k) / 6
    entropy = float(-(readers.mean(0) * draws.mean(0).log()).sum(0).mean())
    batch = Batch(torch.zeros(1, 1, 16, 16), readers[:1], raters=readers[None])
    loss, log = method.loss(batch, method.phases[0], rng())
    assert float(log["energy_score"]) == pytest.approx(near - 0.8 * 0.5 / 2 * apart, abs=1e-5)
    assert float(loss) == pytest.approx(near - 0.8 * 0.5 / 2 * apart + 0.25 * entropy, abs=1e-5)


def test_without_the_spread_term_all_draws_are_the_majority():
    first, _ = share_of_first(trained(make(spread=0.0, cross_entropy=0.0), 60))
    assert first == 0


def test_the_image_is_encoded_once_for_all_draws_and_steps(monkeypatch):
    method, calls = build("distributional", "2d", "T=3", "steps=3"), []
    forward = FeaturePyramid.forward
    monkeypatch.setattr(FeaturePyramid, "forward", lambda self, image: calls.append(len(image)) or forward(self, image))
    list(method.draw(torch.randn(1, 20, 24), seeds=range(6), steps=3, chunk=2))
    assert calls == [1]


def test_the_light_part_is_light():
    """Of a usual plan: the decoder that runs per draw has less than a twentieth of the parameters."""
    method = build("distributional", "3d", "widths=16,32,64,128")
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(method.generator) + count(method.mapping) < count(method.network) / 20


def test_noise_keeps_its_variance_at_every_resolution():
    """x_t is averaged over blocks; rescaled, pure noise has unit variance everywhere, in 2-D and 3-D."""
    for dims, size in ((2, (64, 64)), (3, (32, 32, 32))):
        decoder = LightDecoder(dims, 2, (4, 4, 4), 8, time=False)
        noise = torch.randn(8, 2, *size, generator=rng())
        coarse_first = decoder._pooled(noise)
        for times in range(3):
            assert float(coarse_first[-1 - times].var()) == pytest.approx(1, abs=0.05)


def test_features_of_several_images_go_to_their_own_draws():
    """What a batch of images gives is what each of them gives alone."""
    method = build("distributional", "2d").eval()
    images, x_t, z = torch.randn(3, 1, 20, 24), torch.randn(6, 2, 20, 24), torch.randn(6, method.config.latent)
    t, G = torch.full((6,), 500.0), method.generator
    with torch.no_grad():
        w = method.mapping(z)
        together = G(method.encode(images), x_t, t, w)
        alone = [
            G(method.encode(images[i : i + 1]), x_t[own], t[own], w[own])
            for i, own in enumerate([slice(0, 2), slice(2, 4), slice(4, 6)])
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_below_the_last_timestep_only_the_mask_of_x_t_counts():
    """At t < T, x_t is made from one reader's mask; the others are no samples of p(x_0 | x_t, I)."""
    method = make(T=2, p_terminal_timestep=0.0)
    raters = torch.stack([square(FIRST), square(SECOND)])[None].expand(8, -1, -1, -1, -1)
    images = torch.zeros(8, 1, 16, 16)
    both = Batch(images, raters[:, 0], raters=raters)
    one = Batch(images, raters[:, 0], raters=raters[:, [0, 0]])
    seed = next(s for s in range(10_000) if (torch.randint(1, 3, (8,), generator=rng(s)) == 1).all())
    with torch.no_grad():
        losses = [float(method.loss(batch, method.phases[0], rng(seed))[0]) for batch in (both, one)]
    assert losses[0] == losses[1]


def inputs_of_loss(monkeypatch, T: int, t: int) -> tuple[Distributional, dict[str, torch.Tensor]]:
    """What the light part sees in training when every element is at timestep t."""
    method, seen = make(T=T, p_terminal_timestep=1.0 if t == T else 0.0, train_draws=3), {}
    forward = method._logits

    def spied(x_t, t, features, z):
        seen.update(x_t=x_t.unflatten(0, (4, 3)), z=z.unflatten(0, (4, 3)))
        return forward(x_t, t, features, z)

    monkeypatch.setattr(method, "_logits", spied)
    light = method.generator.forward
    monkeypatch.setattr(method.generator, "forward", lambda f, x, told, w: seen.update(told=told) or light(f, x, told, w))
    masks = torch.stack([square(FIRST)] * 4)
    seed = next(s for s in range(10_000) if t == T or (torch.randint(1, T + 1, (4,), generator=rng(s)) == t).all())
    with torch.no_grad():
        method.loss(Batch(torch.zeros(4, 1, 16, 16), masks), method.phases[0], rng(seed))
    return method, seen


def test_at_the_last_timestep_every_draw_has_its_own_noise_and_latent(monkeypatch):
    _, seen = inputs_of_loss(monkeypatch, T=1, t=1)
    for name in ("x_t", "z"):
        flat = seen[name].flatten(2).flatten(0, 1)
        assert torch.cdist(flat, flat)[~torch.eye(12, dtype=torch.bool)].min() > 1, name
    assert seen["x_t"].mean().abs() < 0.05 and float(seen["x_t"].var()) == pytest.approx(1, abs=0.05)


def test_below_it_all_draws_of_an_image_share_one_x_t_made_of_its_mask(monkeypatch):
    method, seen = inputs_of_loss(monkeypatch, T=2, t=1)
    x_t = seen["x_t"]
    assert torch.equal(x_t[:, 0], x_t[:, 1]) and torch.equal(x_t[:, 0], x_t[:, 2]) and not torch.equal(x_t[0], x_t[1])
    signal = float((x_t[:, 0, 1] * (2 * square(FIRST)[1] - 1)).mean())
    assert signal == pytest.approx(float(method.schedule.alpha_bar[1]) ** 0.5, abs=0.1)
    assert not torch.equal(seen["z"][:, 0], seen["z"][:, 1])  # draws differ by their latents
    assert seen["told"].unique().item() == 500  # of 1000: timestep 1 of 2


def test_features_are_expanded_and_not_copied(monkeypatch):
    """Of one image, no block of the light part is given its features once for each draw."""
    method, widths = make(noise=False), []
    for block in method.generator.blocks[:1]:
        monkeypatch.setattr(block, "forward", lambda h, *rest, f=block.forward: widths.append(h.stride(0)) or f(h, *rest))
    with torch.no_grad():
        method.generator(
            method.encode(torch.zeros(1, 1, 16, 16)), torch.zeros(9, 2, 16, 16), None, method.mapping(torch.zeros(9, 16))
        )
    assert widths == [0]
