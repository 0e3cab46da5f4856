"""What the network is shown: noise, another case's mask, one latent; and dropout. With methods that answer what they see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffuseg.config import from_dict, override
from diffuseg.data.transforms import grid_transform
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.inference.sampling import ImageDraws
from diffuseg.methods import METHODS
from diffuseg.methods.ablations import CONTROLS
from diffuseg.methods.base import MaskConfig, MaskMethod
from diffuseg.studies.audit.controls import controlled, draw_row, dropping
from diffuseg.types import Image
from tests.inference.oracle import make_plan

SHAPE = (8, 7, 6)
PLAN = make_plan(patch=SHAPE, widths=(4, 8), labels={"background": 0, "head": 1, "tail": 2})
IMAGE = torch.zeros(1, *SHAPE)


class Seen(MaskMethod):
    """Answers with what it is shown, and keeps it."""

    default_steps, phases = 2, ()

    def __init__(self, plan: Any = PLAN) -> None:
        super().__init__(plan, MaskConfig())
        self.schedule, self.seen = NoiseSchedule.variance_preserving(8, 0.1, 20.0), []

    def loss(self, batch, phase, rng):
        raise AssertionError

    def encode(self, image: Tensor) -> Tensor:
        return image

    def denoise(self, x_t, t, features, z):
        self.seen.append((t, x_t))
        return x_t.clamp(-1, 1)


class Ignoring(Seen):
    """Knows its answer whatever it is shown."""

    def denoise(self, x_t, t, features, z):
        return torch.linspace(-1, 1, x_t[0].numel()).reshape(1, *x_t.shape[1:]).expand_as(x_t)


class Latent(Seen):
    """Answers with its latent and keeps x_t."""

    def latent(self, generators):
        return torch.stack([torch.randn(3, generator=g) for g in generators])

    def denoise(self, x_t, t, features, z):
        super().denoise(x_t, t, features, z)
        return z.tanh()[:, :, None, None, None].expand_as(x_t)


def ready(method: MaskMethod, image: Tensor, seeds=(1, 2), steps: int = 4) -> ImageDraws:
    return ImageDraws(method, image, grid_transform(Image(image.numpy()), PLAN), tuple(seeds), steps, None, torch.device("cpu"))


def drawn(method: MaskMethod, sampling: str, seeds=(1, 2), other: Tensor | None = None, steps: int = 4) -> list[Tensor]:
    mask = torch.zeros(SHAPE, dtype=torch.long) if other is None else other
    return list(draw_row(ready(method, IMAGE, seeds, steps), [method], sampling, mask))


def test_a_network_that_ignores_x_t_answers_the_same_without_it():
    plain = drawn(Ignoring(), "")
    for sampling in ("noise", "other_case"):
        assert all(torch.equal(a, b) for a, b in zip(plain, drawn(Ignoring(), sampling), strict=True))


def test_noise_hides_the_walk():
    """Every state that is shown is standard normal and another one each time; without the control the last is nearly clean."""
    method, plain = Seen(), Seen()
    drawn(method, "noise", range(8), steps=8)
    drawn(plain, "", range(8), steps=8)
    states = [x for _, x in method.seen]
    assert len(states) == 8 and all(x.std().item() == pytest.approx(1, abs=0.05) for x in states)
    correlation = lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
    assert all(abs(correlation(a, b)) < 0.1 for a, b in zip(states[:-1], states[1:], strict=True))
    assert correlation(plain.seen[-2][1], plain.seen[-1][1]) > 0.5


def test_the_mask_of_another_case_is_what_such_a_network_answers():
    other = torch.randint(0, 3, SHAPE, generator=torch.Generator().manual_seed(0))
    method = Seen()
    for p in drawn(method, "other_case", other=other, steps=8):
        assert (p.argmax(0) == other).float().mean() > 0.95
    assert [t for t, _ in method.seen] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert "state" not in vars(method), "afterwards, everything is as it was"


@pytest.mark.parametrize(
    ("shape", "inside"), [((4, 7, 10), (slice(2, 6), slice(None), slice(None))), (SHAPE, (slice(None),) * 3)]
)
def test_masks_of_other_sizes_are_laid_about_the_middle(shape, inside):
    method, x_t = Seen(), torch.zeros(2, 3, *SHAPE)
    shown = controlled(method, "other_case", torch.full(shape, 2))
    clean = method.schedule.alpha_bar[1].sqrt() * torch.ones(())
    seen = shown.state(x_t, 1, lambda: torch.zeros_like(x_t)) / clean
    expected = torch.zeros(SHAPE, dtype=torch.long)
    expected[inside] = 2
    assert torch.equal(seen[0].argmax(0), expected) and seen.abs().sub(1).abs().max() < 1e-5


def test_slices_of_a_volume_are_where_tiles_hold_them():
    plan = make_plan(patch=(8, 7), dims=2, widths=(4, 8), slice_axis=2, labels=PLAN.labels)
    other = torch.zeros(SHAPE, dtype=torch.long)
    other[:, :, 4] = 1
    method = Seen(plan)
    (p,) = draw_row(ready(method, IMAGE, [3], 8), [method], "other_case", other)
    assert (p.argmax(0) == other).float().mean() > 0.95


def test_one_latent_makes_draws_equal_and_leaves_their_noise():
    plain, fixed = Latent(), Latent()
    a, b = drawn(plain, "")
    assert not torch.allclose(a, b)
    c, d = drawn(fixed, "latent")
    assert torch.equal(c, d)
    assert all(torch.equal(x[1], y[1]) for x, y in zip(plain.seen[:1], fixed.seen[:1], strict=True))


def test_dropout_acts_only_where_it_is_asked_for_and_follows_the_seed():
    torch.manual_seed(0)
    method = METHODS["unet"](PLAN, METHODS["unet"].config_class(dropout=0.5))
    with torch.no_grad():
        for parameter in method.parameters():  # the last layer starts near zero
            parameter.add_(0.3 * torch.randn(parameter.shape))
    image = torch.randn(1, *SHAPE)
    other = torch.zeros(SHAPE, dtype=torch.long)
    passes = lambda *seeds: list(draw_row(ready(method, image, seeds, 1), [method], "dropout", other))
    before = torch.random.get_rng_state()
    a, b, c = passes(1, 2, 1)
    assert torch.equal(a, c) and not torch.allclose(a, b)
    assert torch.equal(torch.random.get_rng_state(), before)
    plain = list(method.draw(image, [1, 2]))
    assert torch.equal(plain[0], plain[1]) and not torch.allclose(plain[0], a)
    with dropping(method):
        pass
    assert torch.equal(next(method.draw(image, [1])), plain[0])


def test_members_draw_once_each():
    methods = [Ignoring(), Ignoring()]
    found = list(draw_row(ready(methods[0], IMAGE, [1, 2], 1), methods, "members", torch.zeros(SHAPE, dtype=torch.long)))
    assert len(found) == 2


@pytest.mark.parametrize(("method", "control"), [(m, c) for m, controls in CONTROLS.items() for c in controls])
def test_every_control_is_a_setting_that_changes_its_method(method, control):
    cls = METHODS[method].config_class
    config = from_dict(cls, {})
    what, settings = CONTROLS[method][control]
    changed = override(config, settings.split())
    assert what and changed != config
    METHODS[method](PLAN, changed)
