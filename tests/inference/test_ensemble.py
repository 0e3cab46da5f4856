"""Streaming statistics are those of the stacked draws."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.inference.ensemble import Ensemble, interval, winners


def collect(draws) -> Ensemble:
    ensemble = Ensemble()
    for p in draws:
        ensemble.add(p)
    return ensemble


def entropy(p: np.ndarray) -> np.ndarray:
    """Over axis -4 of [..., k, i, j, l], with 0 log 0 = 0."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-4)


@given(n=st.integers(1, 7), k=st.integers(2, 4), sharpness=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_streaming_equals_numpy_on_the_stack(n, k, sharpness, seed):
    draws = (sharpness * torch.randn(n, k, 3, 4, 5, generator=torch.Generator().manual_seed(seed))).softmax(1)
    ensemble, stack = collect(draws), draws.double().numpy()
    mean = stack.mean(0)
    found = {name: values.numpy() for name, values in ensemble.uncertainty().items()}
    np.testing.assert_allclose(ensemble.mean.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], entropy(mean), atol=1e-5)
    np.testing.assert_allclose(found["expected_entropy"], entropy(stack).mean(0), atol=1e-5)
    np.testing.assert_allclose(found["mutual_information"], entropy(mean) - entropy(stack).mean(0), atol=1e-5)
    np.testing.assert_allclose(found["variance"], stack.var(0).sum(0), atol=1e-6)
    assert min(values.min() for values in found.values()) >= 0
    hard = stack.argmax(1)
    assert ensemble.counts == [[int((mask == c).sum()) for c in range(k)] for mask in hard]


@given(k=st.integers(1, 5), levels=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_of_equal_classes_the_first_one_wins_as_in_argmax(k, levels, seed):
    p = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (k, 4, 5)).astype(np.float32))
    wanted = torch.nn.functional.one_hot(torch.from_numpy(p.numpy().argmax(0)), k).movedim(-1, 0)
    assert torch.equal(winners(p), wanted.bool())


def test_one_draw_has_no_variance_and_tells_nothing_by_disagreement():
    p = torch.rand(3, 6, 7).softmax(0)
    found = collect([p]).uncertainty()
    assert not found["mutual_information"].any() and not found["variance"].any()
    assert torch.equal(found["entropy"], found["expected_entropy"]) and found["entropy"].min() > 0


def test_equal_draws_disagree_nowhere():
    p = torch.rand(3, 6, 7).softmax(0)
    found = collect([p] * 9).uncertainty()
    assert not found["variance"].any()
    torch.testing.assert_close(found["mutual_information"], torch.zeros(6, 7), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_opposite_one_hot_draws_disagree_by_log_k(k):
    found = collect(torch.eye(k)[:, :, None, None].expand(k, k, 2, 2)).uncertainty()
    for name in ("entropy", "mutual_information"):
        torch.testing.assert_close(found[name], torch.full((2, 2), math.log(k)))
    assert not found["expected_entropy"].any()
    torch.testing.assert_close(found["variance"], torch.full((2, 2), 1 - 1 / k))


def test_memory_does_not_grow_with_the_draws():
    ensemble = collect(torch.rand(2, 2, 8, 8).softmax(1))
    size = lambda: sum(v.numel() for v in vars(ensemble).values() if isinstance(v, torch.Tensor))
    before = size()
    for p in torch.rand(20, 2, 8, 8).softmax(1):
        ensemble.add(p)
    assert size() == before == (2 + 1 + 1 + 2) * 64  # mean, entropy, variance; votes


def test_draws_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        collect([torch.rand(2, 4, 4), torch.rand(2, 4, 5)])


def test_the_interval_is_that_of_interpolated_percentiles():
    assert interval([float(v) for v in range(21)]) == pytest.approx((1.0, 19.0))
    assert interval([0.0, 10.0]) == pytest.approx((0.5, 9.5))
    assert interval([4.0]) == (4.0, 4.0)


def test_agreement_is_the_dice_of_all_pairs_of_draws_together():
    draws = torch.rand(5, 3, 6, 7).softmax(1)
    masks = torch.nn.functional.one_hot(draws.argmax(1), 3).bool().movedim(-1, 1)
    for k, found in enumerate(collect(draws).agreement()):
        pairs = [(a[k], b[k]) for a, b in combinations(masks, 2)]
        both, sizes = sum(int((a & b).sum()) for a, b in pairs), sum(int(a.sum() + b.sum()) for a, b in pairs)
        assert found == pytest.approx(2 * both / sizes)
    same = collect(torch.rand(1, 3, 6, 7).softmax(1).expand(4, 3, 6, 7)).agreement()
    assert all(v in (1.0, None) for v in same) and 1.0 in same
    assert collect(draws[:1]).agreement() == [None, None, None]


def test_what_is_concluded_from_draws_is_concluded_from_their_mean():
    evidence = torch.rand(4, 2, 6, 7)
    square = lambda p: p.square() / p.square().sum(0)
    ensemble, plain = Ensemble(square), collect([square(p) for p in evidence])
    given = [ensemble.add(p) for p in evidence]
    assert all(torch.equal(a, square(b)) for a, b in zip(given, evidence, strict=True))
    torch.testing.assert_close(ensemble.mean, square(evidence.mean(0)))
    assert ensemble.counts == plain.counts and ensemble.agreement() == plain.agreement()
    maps, expected = ensemble.uncertainty(), plain.uncertainty()
    for name in ("expected_entropy", "variance"):
        torch.testing.assert_close(maps[name], expected[name])
    torch.testing.assert_close(maps["entropy"], torch.special.entr(square(evidence.mean(0))).sum(0))
