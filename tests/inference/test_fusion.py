"""Fusion of draws: closed cases, ties, and STAPLE against an expectation maximisation written down here."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import dice
from diffuseg.inference.fusion import FUSIONS, best_overlap, fusion
from diffuseg.inference.model import Model
from diffuseg.types import Image
from tests.inference.oracle import Oracle, make_model

needs_itk = pytest.mark.skipif(find_spec("SimpleITK") is None, reason="STAPLE needs SimpleITK")
EVERY = [pytest.param(name, marks=needs_itk if name == "staple" else ()) for name in FUSIONS]


def certain(labels: np.ndarray, k: int) -> torch.Tensor:
    """A label map as probabilities 0 and 1."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), k).movedim(-1, 0).float()


def fused(name: str, draws: list[torch.Tensor]) -> torch.Tensor:
    one = fusion(name)
    for p in draws:
        one.add(p)
    return one.shares(torch.stack(draws).mean(0))


def raters(truth: np.ndarray, k: int, accuracies: tuple[float, ...], seed: int = 0) -> list[np.ndarray]:
    """Raters who are right with a probability each, and otherwise say any class."""
    rng = np.random.default_rng(seed)
    said = []
    for accuracy in accuracies:
        wrong = rng.random(truth.shape) > accuracy
        said.append(np.where(wrong, rng.integers(0, k, truth.shape), truth))
    return said


def staple(said: list[np.ndarray], k: int, most: int = 1000) -> np.ndarray:
    """Posterior [k, voxels] by EM with confusion matrices theta[r][said, true], from voting; the prior is what was said."""
    L = np.stack([s.ravel() for s in said])
    prior = np.bincount(L.ravel(), minlength=k) / L.size
    votes = np.stack([(c == L).sum(0) for c in range(k)])
    clear = (votes == votes.max(0)).sum(0) == 1
    W = np.where(clear, np.eye(k)[votes.argmax(0)].T, 0.0)
    for _ in range(most):
        theta = np.stack([np.stack([W[:, one == c].sum(1) for c in range(k)]) for one in L])
        theta /= np.maximum(theta.sum(1, keepdims=True), 1e-300)
        likelihood = np.prod([theta[r][one].T for r, one in enumerate(L)], axis=0)
        new = prior[:, None] * likelihood
        new /= np.maximum(new.sum(0), 1e-300)
        if np.abs(new - W).max() < 1e-10:
            break
        W = new
    return W


@pytest.mark.parametrize("name", EVERY)
def test_of_equal_draws_the_mask_is_that_of_each(name):
    p = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    p = p / p.sum(0)
    for n in (1, 2, 3):
        assert torch.equal(fused(name, [p] * n).argmax(0), p.argmax(0))


@pytest.mark.parametrize("name", EVERY)
def test_a_border_between_two_voxels_stays_where_the_mean_has_it(name):
    """A slope sampled at every third place: enlarged, draws that agree have its border to a third of a voxel."""
    fine = torch.sigmoid(0.4 * (torch.arange(30.0) - 13.2))
    coarse = torch.stack([1 - fine, fine])[:, 1::3]
    draws = [(coarse + 0.001 * n).clamp(0, 1) for n in (-1, 0, 1)]
    shares = torch.nn.functional.interpolate(fused(name, draws)[None], size=30, mode="linear")[0]
    assert torch.equal(shares.argmax(0), (fine > 0.5).long())


@pytest.mark.parametrize("name", EVERY)
def test_shares_are_shares(name):
    draws = [torch.rand(3, 7, 8, generator=torch.Generator().manual_seed(i)).softmax(0) for i in range(4)]
    shares = fused(name, draws)
    assert shares.shape == (3, 7, 8) and shares.min() >= 0
    torch.testing.assert_close(shares.sum(0), torch.ones(7, 8))


def test_the_mean_is_the_mean_and_a_vote_counts_heads():
    """Two lukewarm voices against a sure one: the mean follows the sure one, the vote the two.

    Where a vote says what the mean says, its shares are those of the mean, else those with the two classes exchanged.
    """
    lukewarm, sure = torch.tensor([[0.4], [0.6]]), torch.tensor([[0.95], [0.05]])
    draws = [lukewarm, lukewarm, sure]
    torch.testing.assert_close(fused("mean", draws), torch.stack(draws).mean(0))
    assert fused("mean", draws).argmax(0).item() == 0
    torch.testing.assert_close(fused("vote", draws), torch.stack(draws).mean(0).flip(0))
    draws = [lukewarm, lukewarm, lukewarm]
    torch.testing.assert_close(fused("vote", draws), lukewarm)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_votes_are_those_counted_by_hand_and_the_mean_only_breaks_ties(k):
    draws = [torch.randn(k, 9, 11, generator=torch.Generator().manual_seed(i)).mul(3).softmax(0) for i in range(6)]
    mask, mean = fused("vote", draws).argmax(0).numpy(), torch.stack(draws).mean(0).numpy()
    heads = np.stack([p.argmax(0).numpy() for p in draws])
    ties = 0
    for place in np.ndindex(*mask.shape):
        counts = np.bincount(heads[:, *place], minlength=k)
        best = np.flatnonzero(counts == counts.max())
        ties += len(best) > 1
        assert mask[place] == max(best, key=lambda c: mean[c, *place])
    assert ties > 0


@needs_itk
@pytest.mark.parametrize(
    ("k", "accuracies"), [(2, (0.95, 0.9, 0.6, 0.85, 0.7)), (3, (0.95, 0.9, 0.6, 0.8)), (4, (0.9, 0.8, 0.7, 0.6, 0.95, 0.5))]
)
def test_staple_is_the_fixed_point_of_expectation_maximisation(k, accuracies):
    truth = np.sort(np.random.default_rng(1).integers(0, k, (12, 15, 10)).ravel()).reshape(12, 15, 10)
    said = raters(truth, k, accuracies)
    W = staple(said, k)
    found = fused("staple", [certain(s, k) for s in said]).argmax(0).numpy().ravel()
    clear = np.sort(W, axis=0)[-1] - np.sort(W, axis=0)[-2] > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], W.argmax(0)[clear])


@needs_itk
def test_staple_trusts_the_reliable_where_a_majority_is_wrong():
    """Two good raters against three bad ones who know next to nothing: fewer errors than by voting."""
    truth = np.sort(np.random.default_rng(1).integers(0, 3, 4000)).reshape(40, 100)
    draws = [certain(s, 3) for s in raters(truth, 3, (0.95, 0.95, 0.35, 0.3, 0.35))]
    errors = {name: (fused(name, draws).argmax(0).numpy() != truth).mean() for name in FUSIONS}
    assert errors["staple"] < 0.6 * errors["vote"]


@needs_itk
def test_where_staple_cannot_decide_the_mean_does():
    """Two raters who disagree on every voxel of two classes are equally right."""
    a = np.array([[0, 0, 1, 1]])
    draws = [certain(a, 2) * 0.8 + 0.1, certain(1 - a, 2) * 0.6 + 0.2]
    shares = fused("staple", draws)
    assert torch.equal(shares.argmax(0), torch.stack(draws).mean(0).argmax(0))


@needs_itk
def test_a_class_that_only_one_rater_sees_does_no_harm():
    truth = np.zeros((6, 7), int)
    truth[2:4, 2:5] = 1
    stray = truth.copy()
    stray[0, 0] = 3
    shares = fused("staple", [certain(s, 4) for s in (truth, truth, stray)])
    assert shares.shape == (4, 6, 7)
    np.testing.assert_array_equal(shares.argmax(0).numpy(), truth)


@needs_itk
def test_memory_is_a_byte_per_draw_and_voxel_for_staple_and_a_count_per_class_for_votes():
    draws = [torch.rand(3, 5, 6, 7, generator=torch.Generator().manual_seed(i)).softmax(0) for i in range(4)]
    one = fusion("staple")
    for p in draws:
        one.add(p)
    assert sum(labels.nbytes for labels in one._labels) == 4 * 5 * 6 * 7
    vote = fusion("vote")
    for p in draws:
        vote.add(p)
    assert vote._counts.shape == (3, 5, 6, 7)


def test_unknown_names_and_a_missing_library_are_refused(monkeypatch):
    with pytest.raises(UserError, match="mean, vote, dice, staple"):
        fusion("median")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UserError, match=r"diffuseg\[itk\]"):
        make_model().settings(fuse="staple")
    assert fusion("vote").draws == 0
    with pytest.raises(UserError, match="255"):
        monkeypatch.undo()
        fusion("dice").add(torch.rand(256, 2, 2))


class Quarrel(Oracle):
    """Two of three draws say class 1 with 0.6, the third class 0 with 0.95."""

    def draw(self, image, seeds, **options):
        for i, _ in enumerate(seeds):
            p = 0.05 if i % 3 == 2 else 0.6
            yield torch.stack([torch.full(image.shape[1:], 1 - p), torch.full(image.shape[1:], p)])


def quarrel() -> Model:
    return make_model(method=Quarrel)


@pytest.mark.parametrize(("fuse", "label"), [("mean", 0), ("vote", 3), pytest.param("staple", 3, marks=needs_itk)])
def test_prediction_fuses_as_asked_and_says_so_and_keeps_the_mean_probability(fuse, label):
    p = quarrel().predict(Image(np.zeros((1, 5, 6, 7), np.float32)), draws=3, fuse=fuse)
    assert (p.mask == label).all() and p.provenance["fuse"] == fuse
    np.testing.assert_allclose(p.probability[1], 1.25 / 3, atol=1e-6)


def expected(mask: np.ndarray, draws: np.ndarray) -> float:
    return float(np.mean([dice(mask, one, "one") for one in draws]))


@given(hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6))))
def test_it_is_the_best_of_all_level_sets_and_never_worse_than_the_majority(draws):
    found = expected(best_overlap(draws.astype(np.uint8), 2) == 1, draws)
    count = draws.sum(0)
    levels = [count >= tau for tau in range(1, len(draws) + 2)]
    assert found == pytest.approx(max(expected(level, draws) for level in levels))
    assert found >= expected(count > len(draws) / 2, draws) - 1e-12


def test_where_draws_disagree_about_the_size_the_best_mask_is_not_the_majority():
    draws = np.zeros((4, 12), np.uint8)
    for one, size in zip(draws, (0, 4, 6, 12), strict=True):
        one[:size] = 1
    chosen = best_overlap(draws, 2)
    assert chosen.sum() == 6 and expected(chosen == 1, draws == 1) > expected(draws.sum(0) > 2, draws == 1)
    assert best_overlap(np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0]], np.uint8), 2).sum() == 0  # two of three see nothing


class Reluctant(Oracle):
    """Every third draw shows the class, the others nothing; the mean probability is nevertheless above one half."""

    @torch.no_grad()
    def draw(self, image, seeds, **options):
        for number, _ in enumerate(seeds):
            p = torch.full(image.shape[1:], 0.99 if number % 3 == 0 else 0.45)
            yield torch.stack([1 - p, p])


def test_a_mask_of_the_best_overlap_is_empty_where_most_draws_are():
    """Two of three draws are empty: no mask at all agrees with them best, whatever the mean says."""
    draws = [torch.tensor([[0.55] * 3, [0.45] * 3])] * 2 + [torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])]
    assert fused("dice", draws).argmax(0).tolist() == [0, 0, 0]
    assert fused("mean", draws).argmax(0).tolist() == [1, 1, 0]
    model, image = make_model(method=Reluctant), Image(np.zeros((1, 5, 6, 7), np.float32))
    assert (model.predict(image, draws=3, fuse="mean").mask > 0).all()
    assert not model.predict(image, draws=3, fuse="dice").mask.any()


def test_where_the_sets_of_two_classes_meet_the_more_frequent_one_wins():
    """The third voxel is in the best set of the first class, with one draw, and in that of the second, with two."""
    draws = np.array([[1, 1, 2, 2], [1, 1, 1, 2], [0, 2, 2, 0]], np.uint8)
    assert best_overlap(draws, 3).tolist() == [1, 1, 2, 2]
    assert best_overlap(np.where(draws == 2, 0, draws), 3).tolist() == [1, 1, 1, 0]
