"""Tiles divide the work and must not be seen in the result."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg import blocks, scratch
from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.methods.tiles import SLICES, Pages, Tiling, gaussian, pages, windows


def answering(denoise):
    """A denoiser whose x0_hat is this function."""
    return lambda *inputs: ModelOutput(denoise(*inputs))


def plan(**changes) -> Plan:
    return Plan("made", ("MR",), {"background": 0, "a": 1, "b": 2}, ".nii.gz", **({"patch": (8, 6, 10)} | changes))


@given(
    size=st.tuples(*[st.integers(4, 40)] * 2),
    patch=st.tuples(*[st.integers(4, 16)] * 2),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_windows_cover_everything_inside_and_overlap_as_asked(size, patch, overlap):
    size = tuple(max(n, p) for n, p in zip(size, patch, strict=True))
    seen = torch.zeros(size)
    for window in windows(size, patch, overlap):
        assert all(w.start >= 0 and w.stop <= n and w.stop - w.start == p for w, n, p in zip(window, size, patch, strict=True))
        seen[window] += 1
    assert seen.min() >= 1
    for axis in range(2):
        starts = sorted({window[axis].start for window in windows(size, patch, overlap)})
        assert all(b - a <= patch[axis] * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("size", [(8, 6, 10), (19, 14, 11), (5, 4, 30)])
def test_a_pointwise_denoiser_gives_the_same_with_and_without_tiles(size, overlap, monkeypatch):
    """x0_hat = f(x_t, image) voxel by voxel: blending any tiles of it, a few rows at a time, is the identity."""
    monkeypatch.setattr(blocks, "VOXELS", 20)
    image = torch.randn(1, *size)
    tiling = Tiling(image, plan(), lambda x: 2 * x, overlap=overlap)
    x_t = torch.randn(2, 3, *tiling.shape)
    denoise = lambda x, t, features, z: torch.tanh(x + features) * t
    got = tiling.crop(tiling.denoise(answering(denoise), x_t, 3, None, 2).x_0)
    expected = torch.tanh(tiling.crop(x_t) + 2 * image) * 3
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(61, 43), (5, 70), (8, 6)])
def test_windows_without_what_is_asked_for_are_background_and_the_others_as_ever(size):
    """Whatever rows and columns are left out in between, at the beginning and at the end."""
    image, inside = torch.randn(1, *size), np.zeros(size, bool)
    inside[size[0] // 3, size[1] // 2] = inside[-2, 4] = True
    flat = plan(dims=2, patch=(8, 6))
    whole, tiling = Tiling(image, flat, lambda x: 2 * x), Tiling(image, flat, lambda x: 2 * x, inside=inside)
    x_t, calls = torch.randn(2, 3, *tiling.shape), []
    denoise = lambda x, t, f, z: calls.append(1) or ModelOutput(torch.tanh(x + f), x.square() * f)
    found, every = (one.denoise(denoise, x_t, 3, None, 2) for one in (tiling, whole))
    cut = lambda w, o: slice(max(w.start - o, 0), w.stop - o)
    holding = [bool(inside[tuple(map(cut, window, tiling.offset))].any()) for window in tiling.windows]
    assert tiling.asked == holding and len(calls) == sum(holding) + len(whole.windows)
    x_0, ever = (one.crop(output.x_0).numpy() for one, output in ((tiling, found), (whole, every)))
    np.testing.assert_array_equal(x_0[..., inside], ever[..., inside])
    hidden = np.zeros(size, bool) if tiling.seen is None else ~tiling.seen
    assert hidden.any() == (not all(holding)) and not (hidden & inside).any() and bool(found.v.isfinite().all())
    np.testing.assert_allclose(x_0[..., ~hidden], ever[..., ~hidden], atol=1e-6)
    assert (x_0[:, 0, hidden] == 1).all() and (x_0[:, 1:, hidden] == -1).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_x0_and_its_variance_are_each_blended_for_themselves(dims):
    p = plan(dims=dims, patch=(8,) * dims)
    tiling = Tiling(torch.randn(1, 9, 12, 11), p, encode=lambda x: x)
    x_t = torch.randn(2, 3, *tiling.shape)
    one, other = lambda x, t, f, z: x + f.mean(), lambda x, t, f, z: x.square() * f
    both = tiling.denoise(lambda *inputs: ModelOutput(one(*inputs), other(*inputs)), x_t, 1, None, 2)
    for blended, alone in zip(both, (one, other), strict=True):
        torch.testing.assert_close(blended, tiling.denoise(answering(alone), x_t, 1, None, 2).x_0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("context", [0, 1])
def test_a_two_dimensional_network_on_a_volume_keeps_the_axes(axis, context):
    image = torch.randn(1, 9, 12, 11)
    p = plan(dims=2, context=context, patch=(8, 8), slice_axis=axis)
    tiling = Tiling(image, p, encode=lambda x: x[:, context : context + 1])
    x_t = torch.randn(2, 3, *tiling.shape)
    got = tiling.crop(tiling.denoise(answering(lambda x, t, f, z: x * f), x_t, 1, None, 2).x_0)
    torch.testing.assert_close(got, tiling.crop(x_t) * image)


@pytest.mark.parametrize("dims", [2, 3])
def test_features_may_be_several_tensors_of_any_sizes(dims, monkeypatch):
    """Kept or computed again, repeated for the draws or not: the same as one tensor."""
    image = torch.randn(1, 9, 12, 11)
    p = plan(dims=dims, patch=(8, 8, 6)[:dims])
    several = lambda x: (x, x.mean(tuple(range(2, x.ndim)), keepdim=True))
    joined = lambda x: torch.cat([x, several(x)[1].expand_as(x)], dim=1)
    for kept in (2**31, 0):
        monkeypatch.setattr("diffuseg.methods.tiles.FEATURES_KEPT", kept)
        a, b = (Tiling(image, p, encode=encode) for encode in (several, joined))
        x_t = torch.randn(2, 3, *a.shape)
        for t in (1, 2):
            got = a.denoise(answering(lambda x, t, f, z: x * f[0] + f[1]), x_t, t, None, 2).x_0
            expected = b.denoise(answering(lambda x, t, f, z: x * f[:, :1] + f[:, 1:]), x_t, t, None, 2).x_0
            torch.testing.assert_close(got, expected)
        assert bool(a._features) == bool(kept)


def test_every_tile_of_a_draw_gets_the_draws_own_latent():
    tiling = Tiling(torch.randn(1, 19, 14, 11), plan(), encode=lambda x: x)
    z = torch.tensor([[1.0], [2.0]])
    x_t = torch.zeros(2, 3, *tiling.shape)
    got = tiling.denoise(answering(lambda x, t, f, z: x + z.reshape(-1, 1, 1, 1, 1)), x_t, 1, z, 2).x_0
    torch.testing.assert_close(got[0], torch.ones_like(got[0]))
    torch.testing.assert_close(got[1], 2 * torch.ones_like(got[1]))


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("kept", [2**31, 0])
def test_a_volume_of_many_slices_is_the_same_as_each_slice(kept, context, monkeypatch):
    """More slices than a network sees at a time: each meets its own features, and its own neighbours', at every timestep."""
    monkeypatch.setattr("diffuseg.methods.tiles.FEATURES_KEPT", kept)
    n = 2 * SLICES + 7
    image = torch.arange(n, dtype=torch.float32).reshape(1, n, 1, 1).expand(1, n, 8, 8)
    tiling = Tiling(image, plan(dims=2, context=context, patch=(8, 8), slice_axis=0), encode=lambda x: x[:, [0, -1]])
    x_t = torch.randn(3, 3, *tiling.shape)
    before, after = ((image + step).clamp(0, n - 1) for step in (-context, context))  # a slice's value is its number
    for t in (2, 1):
        got = tiling.crop(tiling.denoise(answering(lambda x, t, f, z: t * (x + f[:, :1] - 2 * f[:, 1:])), x_t, t, None, 3).x_0)
        torch.testing.assert_close(got, t * (tiling.crop(x_t) + before - 2 * after))


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("slices", [5, SLICES + 3])
def test_every_slice_of_a_draw_gets_the_draws_own_latent(context, slices):
    tiling = Tiling(torch.randn(1, slices, 12, 8), plan(dims=2, context=context, patch=(8, 8), slice_axis=0), lambda x: x)
    z = torch.tensor([[1.0], [2.0], [3.0]])
    x_t = torch.zeros(3, 3, *tiling.shape)
    got = tiling.crop(tiling.denoise(answering(lambda x, t, f, z: x + z.reshape(-1, 1, 1, 1)), x_t, 1, z, 3).x_0)
    torch.testing.assert_close(got, z.reshape(3, 1, 1, 1, 1).expand_as(got))


def test_weights_trust_the_centre():
    w = gaussian((9, 13))
    assert w.argmax() == 4 * 13 + 6 and w[4, 6] == 1 and w.min() > 0
    torch.testing.assert_close(w, w.flip(0, 1))


@pytest.mark.parametrize("length", [1, 25, 1024, 3000])
def test_of_rows_that_begin_anywhere_in_a_page_pages_are_exact_on_average(length):
    x = torch.zeros(1024, 4097)  # each row begins one value further in its page
    part = x[:, :length]
    bytes_at = 4 * torch.arange(x.numel()).reshape(x.shape)[:, :length]
    true = len(torch.unique(bytes_at // scratch.PAGE)) * scratch.PAGE
    assert pages(part[None]) == pytest.approx(true, rel=0.01)


@given(st.integers(1, 3), st.integers(8, 90), st.integers(8, 3000), st.data())
@settings(max_examples=60, deadline=None)
def test_pages_of_a_part_are_those_that_its_values_lie_on(n, h, w, data):
    """Counted one by one: about as many, by two for each plane and one for each row, which may begin anywhere in a page."""
    h0, w0 = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    window = (slice(None), slice(h0, data.draw(st.integers(h0 + 1, h))), slice(w0, data.draw(st.integers(w0 + 1, w))))
    x = torch.zeros(n, h, w)
    bytes_at = 4 * torch.arange(x.numel()).reshape(x.shape)[window]
    true = len(torch.unique(bytes_at // scratch.PAGE)) * scratch.PAGE
    part = x[window]
    assert abs(pages(part) - true) <= (part.shape[1] + 2) * n * scratch.PAGE


def test_tiles_of_a_row_count_a_page_once(monkeypatch):
    """Short rows share pages, so a further tile along them adds next to nothing; another row of tiles counts in full."""
    used = []
    monkeypatch.setattr(scratch, "release", used.append)
    kept, total = Pages(), torch.zeros(2, 1, 3, 16, 64, 96)
    row = [(slice(0, 16), slice(0, 32), slice(start, start + 32)) for start in (0, 32, 64)]
    for window in [*row, (slice(0, 16), slice(32, 64), slice(0, 32))]:
        kept.add([total], slice(0, 1), window)
    whole = 2 * total[:, :, :, :, :32].numel() * 4  # of x_t and of the total
    assert used == [whole, 0, 0, whole]
    used.clear()
    kept, total = Pages(), torch.zeros(2, 1, 3, 32, 10_000)
    for start in (0, 5000):
        kept.add([total], slice(0, 1), (slice(0, 32), slice(start, start + 5000)))
    ends = 2 * 2 * 3 * 32 * scratch.PAGE
    assert used == [2 * 2 * 3 * 32 * 5000 * 4 + ends, 2 * 2 * 3 * 32 * 5000 * 4 - ends], (
        "both ends are on one page, counted once"
    )


@pytest.mark.parametrize("slices", [0, 2 * SLICES + 1])
def test_what_tiles_used_is_in_all_the_whole_of_state_and_result(slices, monkeypatch):
    """Where they are one row of a volume, or of each slice of a volume that a 2-D network sees: no page is left uncounted."""
    used = []
    monkeypatch.setattr(scratch, "release", lambda size=None: used.append(size or 0))
    flat = {"dims": 2, "patch": (6, 10), "slice_axis": 0}
    tiling = Tiling(torch.randn(1, slices or 8, 6, 35), plan(**flat) if slices else plan(), lambda x: x)
    x_t = torch.randn(2, 3, *tiling.native)
    tiling.denoise(answering(lambda x, *_: x), x_t, 1, None, 2)
    assert len(tiling.windows) > 3
    assert sum(used) >= 2 * 4 * x_t.numel() and (slices or sum(used) == 2 * 4 * x_t.numel())
