"""The energy score: unbiased, proper where the optimum is known, half of GED on hard masks, finite where draws are equal."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuseg.errors import UserError
from diffuseg.evaluation.multirater import pairwise_iou
from diffuseg.methods.scoring import DISTANCES, energy_score, jaccard_and_volume, soft_jaccard


def one_hot(masks: np.ndarray, classes: int = 2) -> torch.Tensor:
    """[..., h, w] class indices to [..., k, h, w]."""
    return F.one_hot(torch.from_numpy(masks).long(), classes).movedim(-1, -3).float()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed)).softmax(2)


def test_jaccard_by_hand():
    a = one_hot(np.array([[[[1, 1], [0, 0]]]]))
    b = one_hot(np.array([[[[0, 1], [1, 1]]]]))
    assert soft_jaccard(a, b).item() == pytest.approx(1 - (1 + 1) / (4 + 1))
    soft = torch.tensor([[[[[0.5, 1.0]], [[0.5, 0.0]]]]])  # background first: it must not count
    other = torch.tensor([[[[[0.8, 0.1]], [[0.2, 0.9]]]]])
    assert soft_jaccard(soft, other).item() == pytest.approx(1 - (0.2 + 0 + 1) / (0.5 + 0.9 + 1))
    empty = one_hot(np.zeros((1, 1, 2, 2), int))
    assert soft_jaccard(empty, empty).item() == 0


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_one(name):
    d = DISTANCES[name]
    a, b = probabilities(2, 3, 3, 5, 4), probabilities(2, 3, 3, 5, 4, seed=1)
    torch.testing.assert_close(d(a, b), d(b, a).mT)
    assert (d(a, b) > 0.01).all() and d(a, a).diagonal(dim1=1, dim2=2).max() < 2e-6


def test_jaccard_is_minimum_over_maximum():
    """Of each draw with each mask, as its formula says it, in double precision."""
    a, b = probabilities(2, 3, 3, 5, 4).double(), probabilities(2, 4, 3, 5, 4, seed=1).double()
    for n, i, j in itertools.product(range(2), range(3), range(4)):
        low, high = (f(a[n, i, 1:], b[n, j, 1:]).sum((1, 2)) for f in (torch.minimum, torch.maximum))
        assert soft_jaccard(a, b)[n, i, j].item() == pytest.approx((1 - (low + 1) / (high + 1)).mean().item(), abs=1e-12)


def test_volumes_are_those_of_the_foreground():
    """Of 3 and 1 voxels of 8, and of 1 and 4: the mean of |log(4/2)| and |log(2/5)| on top of the Jaccard distance."""
    a, b = (one_hot(np.array([[[mask]]])[0], 3) for mask in ([[1, 1, 1, 2], [0, 0, 0, 0]], [[1, 2, 2, 2], [2, 0, 0, 0]]))
    apart = (np.log(4 / 2) + np.log(5 / 2)) / 2
    assert (jaccard_and_volume(a, b) - soft_jaccard(a, b)).item() == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_negative_type(name):
    """sum_ij c_i c_j d(x_i, x_j) <= 0 for sum c = 0: the condition for a proper score, which product Jaccard breaks."""
    x = torch.cat([probabilities(1, 12, 2, 3, 3, seed=s) ** 3 for s in range(3)], 1)
    x = x / x.sum(2, keepdim=True)
    D = DISTANCES[name](x, x)[0].double()
    centre = torch.eye(36, dtype=torch.float64) - 1 / 36
    assert torch.linalg.eigvalsh(centre @ D @ centre).max() < 1e-5


def test_half_of_ged_on_hard_masks():
    """On large hard masks the smoothing vanishes: the score plus half the raters' own distances is half of GED."""
    g = np.random.default_rng(0)
    grid = np.add.outer((np.arange(200) - 100) ** 2, (np.arange(200) - 100) ** 2)
    draws = np.stack([grid < r**2 for r in g.uniform(40, 90, 5)])
    raters = np.stack([grid < r**2 for r in g.uniform(40, 90, 4)])
    cross, own = 1 - pairwise_iou(draws, raters), 1 - pairwise_iou(draws, draws)
    expected = cross.mean() - own.sum() / (2 * 5 * 4)
    assert energy_score(one_hot(draws[None]), one_hot(raters[None])).item() == pytest.approx(expected, abs=2e-3)


def test_unbiased():
    """Over all pairs of draws from a known set, the mean score is that of the set itself."""
    population = probabilities(1, 5, 2, 4, 4)
    truth = one_hot(np.random.default_rng(1).integers(0, 2, (1, 2, 4, 4)))
    pairs = [energy_score(population[:, list(pair)], truth).item() for pair in itertools.product(range(5), repeat=2)]
    cross, own = soft_jaccard(population, truth).mean(), soft_jaccard(population, population).mean()
    assert np.mean(pairs) == pytest.approx((cross - own / 2).item(), abs=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_proper_on_two_readers(name):
    """One mask is true in 30 % of cases, another in 70 %: a free choice of the draws' frequency comes out as 30 %.

    Trained without the spread term it goes to one of the ends.
    """
    masks = one_hot(np.array([[[0, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 0]]]))
    truths, d = masks[torch.tensor([0] * 3 + [1] * 7)][None], DISTANCES[name]
    apart = d(masks[None, :1], masks[None, 1:]).item()

    def expected(p: float, spread: float) -> float:
        """By linearity: draws are mask 0 with probability p; pairs of draws differ with probability 2 p (1 - p)."""
        both = [energy_score(masks[None, [k]], truths, name, spread=0.0).item() for k in (0, 1)]
        return p * both[0] + (1 - p) * both[1] - spread / 2 * 2 * p * (1 - p) * apart

    grid = np.linspace(0, 1, 101)
    assert grid[np.argmin([expected(p, 1.0) for p in grid])] == pytest.approx(0.3)
    assert grid[np.argmin([expected(p, 0.0) for p in grid])] in (0.0, 1.0)
    pair = energy_score(masks[None], truths, name).item()  # one draw of each
    alone = [energy_score(masks[None, [k, k]], truths, name).item() for k in (0, 1)]
    chances = {(0, 1): 2 * 0.3 * 0.7, (0, 0): 0.09, (1, 1): 0.49}
    sampled = chances[0, 1] * pair + chances[0, 0] * alone[0] + chances[1, 1] * alone[1]
    assert sampled == pytest.approx(expected(0.3, 1.0), abs=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_are_finite(name):
    """Of equal draws, of empty masks, and of certain ones."""
    for logits in (torch.zeros(1, 2, 2, 3, 3), torch.tensor([50.0, -50.0]).reshape(1, 1, 2, 1, 1).expand(1, 2, 2, 3, 3)):
        logits = logits.clone().requires_grad_(True)
        score = energy_score(logits.softmax(2), one_hot(np.zeros((1, 1, 3, 3), int)), name)
        score.sum().backward()
        assert torch.isfinite(score).all() and torch.isfinite(logits.grad).all()


def test_what_is_refused():
    draws = probabilities(1, 1, 2, 3, 3)
    with pytest.raises(UserError, match="at least two"):
        energy_score(draws, draws)
    with pytest.raises(UserError, match="unknown distance"):
        energy_score(draws, draws, "dice")
