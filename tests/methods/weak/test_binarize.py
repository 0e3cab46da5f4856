"""From a map to a mask: thresholds against their definitions, and what a cut promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from diffuseg.errors import UserError
from diffuseg.methods.weak.binarize import (
    Binarization,
    largest_component,
    logistic_mask,
    normalized_saliency,
    otsu,
    part_of,
    threshold_of,
)
from diffuseg.methods.weak.likelihood_ratio import supported_change

MAPS = arrays(np.float64, (5, 6), elements=st.integers(-50, 50).map(lambda v: v / 10))
RULES = ["fixed", "otsu", "otsu_twice", "quantile"]
PLAIN = Binarization(smooth=0.0, image=False, largest=False)


def to_saliency(m: np.ndarray) -> torch.Tensor:
    return normalized_saliency(torch.from_numpy(m))


def cut_plain(m: np.ndarray, how: Binarization) -> torch.Tensor:
    """With an image that shows nothing."""
    return logistic_mask(to_saliency(m), how, torch.zeros(1, *m.shape))


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_otsu_is_the_cut_with_the_least_variance_within_its_classes(m):
    values = np.unique(m)
    if len(values) < 2:
        return
    within = lambda t: sum(part.var() * part.size for part in (m[m <= t], m[m > t]))
    best = min(within((a + b) / 2) for a, b in zip(values[:-1], values[1:], strict=True))
    assert within(otsu(m)) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_otsu_twice_is_not_fooled_by_what_is_small():
    rng = np.random.default_rng(0)
    m = rng.normal(0, 0.3, (60, 60))
    m[5:11, 7:13] += 4
    spread = m + 1.2 * (np.hypot(*(np.mgrid[:60, :60] - 25)) < 20)  # a large, faint response around nothing
    assert not 1.5 < otsu(spread) < 3
    assert 1.5 < threshold_of(spread, "otsu_twice", PLAIN) < 3.5
    assert threshold_of(np.array([0.0, 0.0, 1.0]), "otsu_twice", PLAIN) == 0.5


def test_other_rules_are_their_formulas():
    m = np.random.default_rng(1).normal(0, 1, 100_000)
    assert (m > threshold_of(m, "quantile", Binarization(quantile=0.9))).mean() == pytest.approx(0.1, abs=1e-4)
    assert threshold_of(np.array([-1.0, 0.0, 3.0]), "fixed", Binarization(fixed=0.25)) == 0


@settings(max_examples=60, deadline=None)
@given(MAPS, st.sampled_from(RULES))
def test_a_mask_is_what_is_above_the_threshold_and_scale_does_not_matter(m, rule):
    how = Binarization(smooth=0.0, threshold=rule, quantile=0.8, image=False, largest=False)
    p = cut_plain(m, how)
    assert p.min() >= 0 and p.max() <= 1
    if m.max() <= 0:
        assert not p.any()
        return
    kept = threshold_of(m, rule, how)
    clear = (np.abs(m - kept) > 1e-6) & (m > 2e-3 * m.max())  # ties, and the floor of the threshold
    assert np.array_equal((p.numpy() > 0.5)[clear], (m > kept)[clear])
    assert not (p.numpy() > 0.5)[m <= 0].any()
    torch.testing.assert_close(cut_plain(7.5 * m, how), p)


def test_with_the_image_the_edge_is_where_the_image_has_one():
    """A map that falls off smoothly from the middle, cut too far out or in, and an image with a disc of some radius."""
    rows, columns = np.mgrid[:48, :48]
    radius = np.hypot(rows - 22, columns - 25)
    m, rng = np.exp(-radius / 10), np.random.default_rng(0)
    size = lambda how, image: np.sqrt((logistic_mask(to_saliency(m), how, torch.from_numpy(image)).numpy() > 0.5).sum() / np.pi)
    for true in (6, 8, 10):
        image = (radius < true) * 2.0 + rng.normal(0, 0.4, (2, 48, 48)) * np.array([1, 20]).reshape(2, 1, 1)
        for shown in (image, -image, image[:1], 1000 * image[:1]):
            for at in (7, 8.5):
                how = Binarization(smooth=0.0, threshold="fixed", fixed=float(np.exp(-at / 10)), image=False)
                assert size(how, shown) == pytest.approx(at, abs=0.6)
                assert size(replace(how, image=True), shown) == pytest.approx(true, abs=1)
    plain = Binarization(smooth=0.0, threshold="fixed", fixed=0.5, image=False)
    nothing = rng.normal(0, 1, (1, 48, 48))
    assert size(replace(plain, image=True), nothing) == pytest.approx(size(plain, nothing), rel=0.15)
    flat = np.zeros((1, 48, 48))
    assert size(replace(plain, image=True), flat) == size(plain, flat)


def test_where_the_probability_stands():
    m = np.array([[0.0, 0.25, 0.5, 1.0], [-1.0, 0.0, 0.0, 0.0]])
    p = cut_plain(m, Binarization(smooth=0.0, threshold="fixed", fixed=0.75, largest=False))  # a threshold of 0.5
    expected = torch.tensor([[0.018, 0.119, 0.5, 0.982], [0.0, 0.018, 0.018, 0.018]], dtype=torch.float64)
    torch.testing.assert_close(p, expected, atol=1e-3, rtol=0)


def test_nothing_gives_an_empty_mask():
    for m in (np.zeros((4, 5)), -np.ones((4, 5))):
        for rule in RULES:
            assert not cut_plain(m, Binarization(threshold=rule)).any()
    assert torch.equal(normalized_saliency(torch.zeros(4, 5)), torch.full((4, 5), 0.5))


def test_evidence_keeps_order_and_zero():
    m = torch.tensor([-2.0, 0.0, 1.0, 4.0])
    torch.testing.assert_close(normalized_saliency(m), torch.tensor([0.25, 0.5, 0.625, 1.0]))


def test_evidence_with_a_border_is_in_its_units_whatever_the_largest_value():
    m = torch.tensor([-1e9, -6.0, -2.0, 0.0, 1.0, 2.0, 6.0, 1e9], dtype=torch.float64)
    expected = torch.tensor([0, 1 / 8, 1 / 4, 1 / 2, 2 / 3, 3 / 4, 7 / 8, 1], dtype=torch.float64)
    torch.testing.assert_close(normalized_saliency(m, 2.0), expected, atol=1e-8, rtol=0)
    assert (normalized_saliency(m, 2.0).diff() > 0).all()
    torch.testing.assert_close(normalized_saliency(m[:-1], 2.0), normalized_saliency(m, 2.0)[:-1])
    torch.testing.assert_close(normalized_saliency(5 * m, 10.0), normalized_saliency(m, 2.0))
    assert torch.equal(normalized_saliency(torch.zeros(4, 5), 0.3), torch.full((4, 5), 0.5))


@pytest.mark.parametrize("null_threshold", [0.0, -1.0, math.nan])
def test_a_null_threshold_is_above_zero(null_threshold):
    with pytest.raises(ValueError, match="above 0"):
        normalized_saliency(torch.ones(2, 2), null_threshold)


@settings(max_examples=60, deadline=None)
@given(MAPS, st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([0.0, 0.7]), st.sampled_from(["null_quantile", "auto"]))
def test_with_a_border_a_mask_is_where_smoothed_evidence_is_above_one_half_of_its_range(m, c, smooth, rule):
    how = Binarization(smooth, rule, image=False, largest=False)
    p = logistic_mask(normalized_saliency(torch.from_numpy(m), c), how, torch.zeros(1, *m.shape), True).numpy()
    share = gaussian_filter(m / (np.abs(m) + c), smooth, mode="nearest") if smooth else m / (np.abs(m) + c)
    clear = np.abs(share - 0.5) > 1e-9
    assert np.array_equal((p > 0.5)[clear], (share > 0.5)[clear])
    if share.max() > 0.01:  # a logistic function of the share
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-4 * (share - 0.5) / 0.5)), atol=1e-9)
    if smooth == 0:
        assert np.array_equal(p[m != c] > 0.5, m[m != c] > c)


def test_one_threshold_for_all_images_leaves_those_below_it_empty_and_a_quantile_none():
    """Maps of one shape, from far below the threshold to far above it; the image may move an edge, not make one."""
    m, rng = np.exp(-(np.hypot(*(np.mgrid[:24, :24] - 11)) ** 2) / 40), np.random.default_rng(0)
    image = torch.from_numpy(10 * (m > 0.5) + rng.normal(0, 1, (1, 24, 24)))
    for with_image in (False, True):
        how, maps = Binarization(smooth=0.5, image=with_image), [torch.from_numpy(scale * m) for scale in (0.1, 0.9, 1.5, 6.0)]
        bordered = [int((logistic_mask(normalized_saliency(m, 1.0), how, image, True) > 0.5).sum()) for m in maps]
        alone = [int((logistic_mask(normalized_saliency(m), how, image) > 0.5).sum()) for m in maps]
        assert bordered[:2] == [0, 0] and all(alone)
        assert with_image or (0 < 2 * bordered[2] < bordered[3] and len(set(alone)) == 1)
        assert bordered[2] > 0


def test_auto_is_the_border_where_there_is_one_and_else_the_quantile():
    m, image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (20, 20))), torch.zeros(1, 20, 20)
    made = {bordered: normalized_saliency(m, 0.4 if bordered else None) for bordered in (False, True)}
    by = lambda rule, bordered: logistic_mask(made[bordered], Binarization(threshold=rule, quantile=0.8), image, bordered)
    assert torch.equal(by("auto", True), by("null_quantile", True)) and torch.equal(by("auto", False), by("quantile", False))
    for bordered in (False, True):
        masks = [by(rule, bordered) > 0.5 for rule in ("auto", "quantile", "otsu")]
        assert torch.equal(masks[0], masks[1]) == (not bordered) and not torch.equal(masks[1], masks[2])
    with pytest.raises(UserError, match=r"null_quantile.*diffuseg calibrate-saliency"):
        by("null_quantile", False)


def test_of_two_blobs_the_larger_one_stays():
    m = np.zeros((12, 12))
    m[1:3, 1:3], m[6:10, 6:10] = 1.0, 0.9
    p = cut_plain(m, Binarization(smooth=0.0, threshold="fixed", fixed=0.5))
    assert np.array_equal(p.numpy() > 0.5, m == 0.9)
    both = cut_plain(m, Binarization(smooth=0.0, threshold="fixed", fixed=0.5, largest=False))
    assert np.array_equal(both.numpy() > 0.5, m > 0)
    corners = np.eye(4, dtype=bool)
    assert largest_component(corners).sum() == 1 and not largest_component(np.zeros((2, 2), bool)).any()


def test_smoothing_joins_what_noise_parts():
    rng = np.random.default_rng(2)
    truth = np.zeros((40, 40), bool)
    truth[10:22, 12:26] = True
    m = truth + 0.8 * rng.normal(0, 1, truth.shape)
    share = 1 - truth.mean()
    agree = lambda smooth: np.mean((cut_plain(m, Binarization(smooth, "quantile", share)).numpy() > 0.5) == truth)
    assert agree(2.0) > 0.95 > agree(0.0)


def test_parts_of_several_channels():
    change = torch.tensor([[[3.0, -1.0]], [[4.0, -3.0]]]).permute(1, 0, 2)[None].reshape(1, 2, 2)
    torch.testing.assert_close(part_of(change, "signed"), torch.tensor([[3.5, -2.0]]))
    torch.testing.assert_close(part_of(change, "negative"), torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(part_of(change, "absolute"), torch.tensor([[12.5**0.5, 5**0.5]]))


def test_a_bright_and_a_dark_channel_cancel_in_the_signed_map_alone():
    change = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 5)
    for m in (change, supported_change(change, change, 1e-6)):  # the image sides with both channels
        means = {part: part_of(m, part).unique().tolist() for part in ("signed", "negative", "absolute")}
        assert means == {"signed": [0.0], "negative": [0.5], "absolute": [1.0]}
    several = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(part_of(-several, "negative") - part_of(several, "negative"), part_of(several, "signed"))
    one = several[:, :1]
    assert torch.equal(part_of(one, "signed"), one[:, 0])
    assert torch.equal(part_of(one, "negative"), (-one[:, 0]).clamp(min=0))
