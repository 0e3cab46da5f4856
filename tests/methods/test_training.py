"""What methods share in training, against numbers that can be worked out by hand: losses, timesteps, recycling."""

import dataclasses
import math
from typing import get_args

import pytest
import torch

from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.diffusion.schedule import SCHEDULES, NoiseSchedule, ScheduleName
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.methods.training import (
    cross_entropy,
    recycled_input,
    sample_timesteps,
    segmentation_loss,
    soft_dice_loss,
    squared_error,
)
from tests.contract.test_methods import build

SCHEDULED = [name for name, cls in METHODS.items() if any(f.name == "schedule" for f in dataclasses.fields(cls.config_class))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks() -> torch.Tensor:
    """Two elements of four voxels and three classes, one-hot; the second is background alone."""
    index = torch.tensor([[0, 1, 1, 2], [0, 0, 0, 0]])
    return torch.nn.functional.one_hot(index, 3).movedim(-1, 1)[..., None].float()


@pytest.mark.parametrize("method", SCHEDULED)
def test_every_schedule_can_be_set_by_name(method):
    assert get_args(ScheduleName) == tuple(SCHEDULES)
    for name, schedule in SCHEDULES.items():
        built = build(method, "2d", "T=7", f"schedule={name}")
        table = schedule(7).scaled(getattr(built.config, "input_scale", 1.0)).alpha_bar
        assert torch.equal(built.schedule.alpha_bar, table)


def test_the_methods_that_diffuse_have_a_schedule_to_set():
    assert set(SCHEDULED) >= {"concat", "cdal", "distributional", "medsegdiff", "medsegdiff_v2", "cdm"}


def test_rates_of_another_schedule_are_refused():
    with pytest.raises(UserError, match="schedule=cosine: beta_min and beta_max"):
        build("distributional", "2d", "schedule=cosine", "beta_max=10")
    table = build("cdal", "2d", "T=3", "beta_max=10").schedule.alpha_bar
    assert torch.equal(table, NoiseSchedule.variance_preserving(3, 0.1, 10.0).alpha_bar)


def test_soft_dice_by_hand():
    """(2 overlap + 1) / (sum + sum + 1) of each foreground class, by element; the background has no part in it."""
    p = torch.tensor([[[0.7, 0.2, 0.1, 0.0], [0.2, 0.6, 0.9, 0.1], [0.1, 0.2, 0.0, 0.9]], [[0.5] * 4, [0.5] * 4, [0.0] * 4]])
    one = (2 * 1.5 + 1) / (1.8 + 2 + 1), (2 * 0.9 + 1) / (1.2 + 1 + 1)
    other = 1 / (2 + 1), 1.0  # half of each voxel where there is nothing; nothing where there is nothing
    expected = torch.tensor([1 - sum(one) / 2, 1 - sum(other) / 2])
    torch.testing.assert_close(soft_dice_loss(p[..., None], masks()), expected)
    changed = torch.cat([torch.rand(2, 1, 4, generator=rng()), p[:, 1:]], dim=1)
    torch.testing.assert_close(soft_dice_loss(changed[..., None], masks()), expected)


def test_soft_dice_ends():
    """Nothing is lost by the mask itself, and next to everything by the other class of a large mask."""
    torch.testing.assert_close(soft_dice_loss(masks(), masks()), torch.zeros(2))
    large = torch.zeros(1, 2, 100, 100)
    large[:, 1] = 1
    assert float(soft_dice_loss(large.flip(1), large)) == pytest.approx(1 - 1 / 10_001)


@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_is_nats_per_voxel(classes):
    """Equal logits cost log k at every voxel, whatever k and the size."""
    mask = torch.zeros(2, classes, 3, 4)
    mask[0, 1], mask[1, 0] = 1, 1
    torch.testing.assert_close(cross_entropy(torch.zeros_like(mask), mask), torch.full((2,), math.log(classes)))


def test_cross_entropy_by_hand():
    """-log p of the true class, mean over the voxels of each element; logits may be shifted."""
    p = torch.tensor([[0.7, 0.2, 0.1, 0.1], [0.2, 0.6, 0.8, 0.4], [0.1, 0.2, 0.1, 0.5]])[None, ..., None].expand(2, -1, -1, -1)
    by_hand = [-sum(map(math.log, voxels)) / 4 for voxels in ((0.7, 0.6, 0.8, 0.5), (0.7, 0.2, 0.1, 0.1))]
    torch.testing.assert_close(cross_entropy(p.log() + 3, masks()), torch.tensor(by_hand))


def test_squared_error_is_a_mean_over_everything_but_elements():
    a, b = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    b[1] *= -3
    torch.testing.assert_close(squared_error(a, b), torch.tensor([1.0, 9.0]))


def test_the_loss_of_a_segmentation_is_the_mean_over_elements_of_both():
    logits = torch.randn(2, 3, 4, 1, generator=rng())
    terms = segmentation_loss(logits, masks())
    assert set(terms) == {"dice", "cross_entropy"}
    torch.testing.assert_close(terms["dice"], soft_dice_loss(logits.softmax(1), masks()).sum() / 2)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy(logits, masks()).sum() / 2)


@pytest.mark.parametrize("p_terminal", [0.0, 0.3, 1.0])
def test_timesteps_are_uniform_but_for_the_share_of_the_last(p_terminal):
    n, T = 20_000, 5
    share = sample_timesteps(n, T, p_terminal, rng()).bincount(minlength=T + 1) / n
    expected = torch.full((T + 1,), (1 - p_terminal) / T)
    expected[0], expected[T] = 0, p_terminal + (1 - p_terminal) / T
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_a_share_of_batches_is_recycled_whole_and_never_at_the_last_timestep():
    schedule, t = NoiseSchedule.variance_preserving(4), torch.tensor([1, 3, 4, 2])
    x_t, generator, count = torch.full((4, 2, 3), 7.0), rng(), 0
    for _ in range(600):
        denoiser = lambda x, T: ModelOutput(torch.zeros_like(x))
        x = recycled_input(x_t, t, torch.zeros_like(x_t), schedule, 0.25, denoiser, generator)
        same = (x == 7).flatten(1).all(1)
        assert same.tolist() in ([True] * 4, [False, False, True, False])
        count += not bool(same.all())
    assert count / 600 == pytest.approx(0.25, abs=0.05)
