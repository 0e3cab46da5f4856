"""Filters in the frequency plane: identity, real output, and one gain per physical frequency whatever the size."""

import math

import pytest
import torch

from diffuseg.errors import UserError
from diffuseg.networks.frequency import BandPass, FFParser, fitting, interpolation, radius

SIZES = [(16, 16), (7, 10), (1, 5), (33, 12), (8, 12, 9), (5, 4, 3), (1, 1, 2)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parser(dims: int, channels: int = 3, size: int = 16, seed: int = 0) -> FFParser:
    """A filter with random gains: nothing about it is symmetric or real."""
    module = FFParser(channels, (size,) * dims)
    with torch.no_grad():
        module.deviation.copy_(torch.randn(module.deviation.shape, generator=rng(seed)))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_it_starts_as_the_identity_to_the_last_bit(size, dtype):
    module, m = FFParser(3, (16,) * len(size)), torch.randn(2, 3, *size, generator=rng()).to(dtype)
    assert torch.equal(module(m), m)
    assert not module.change(size).any()


@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16)])
def test_at_its_reference_size_it_is_the_equations_as_they_stand(size):
    """M = F(m), M' = A . M, m' = F^-1(M') (eqs. 4-6), A made Hermitian where the transform of a real m is."""
    module, m = parser(len(size)), torch.randn(2, 3, *size, generator=rng(1))
    A = 1 + torch.complex(*module.deviation)
    expected = torch.fft.irfftn(A * torch.fft.rfftn(m, dim=module.axes), s=size, dim=module.axes)
    torch.testing.assert_close(module(m), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_resampled_it_is_the_spectrum_of_a_real_filter(size):
    """The impulse response, computed from the half spectrum, has that half spectrum: nothing was dropped on the way."""
    module = parser(len(size))
    A = 1 + module.change(size)
    response = torch.fft.irfftn(A, s=size, dim=module.axes)
    torch.testing.assert_close(torch.fft.rfftn(response, dim=module.axes), A, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 32), (48, 16), (24, 40)])
def test_a_wave_is_scaled_and_shifted_the_same_in_images_of_any_size(size):
    """cos(2 pi f x) comes out as |A(f)| cos(2 pi f x + arg A(f)), with the A of the reference grid at that f."""
    module = parser(2, channels=1)
    A = 1 + torch.complex(*module.deviation)[0]
    for f in ((0.125, 0.125), (-0.25, 0.125), (0.375, 0.25), (0.0, 0.25)):
        rows, columns = torch.arange(size[0]), torch.arange(size[1])
        phase = 2 * math.pi * (f[0] * rows[:, None] + f[1] * columns)
        gain = A[round(f[0] * 16) % 16, round(f[1] * 16)]
        if f[1] == 0:
            partner = A[round(-f[0] * 16) % 16, 0].conj()
            gain = (gain + partner) / 2
        got = module(phase.cos()[None, None])[0, 0]
        torch.testing.assert_close(got, gain.abs() * (phase + gain.angle()).cos(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("nyquist", [(0.5, 0.5), (0.25, 0.5), (0.5, 0.0)])
def test_the_highest_frequencies_keep_their_gain_too(nyquist):
    """At half a cycle per voxel a real filter has a gain that belongs to itself and to its partner at -f."""
    module = parser(2, channels=1)
    found = []
    for size in ((16, 16), (8, 32), (24, 48)):
        phase = 2 * math.pi * (nyquist[0] * torch.arange(size[0])[:, None] + nyquist[1] * torch.arange(size[1]))
        got = module(phase.cos()[None, None])[0, 0]
        found.append((got * phase.cos()).mean() / phase.cos().square().mean())
    torch.testing.assert_close(torch.stack(found), found[0].expand(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 12, 16, 31, 64])
def test_interpolation_is_exact_for_linear_parts_and_at_the_reference(n, half):
    weights = interpolation(n, 16, half)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
    assert weights.min() >= 0
    if n == 16:
        assert torch.equal(weights, torch.eye(len(weights), dtype=torch.float64))
    reference = torch.arange(9) / 16.0 if half else torch.fft.fftfreq(16).abs()
    wanted = torch.arange(n // 2 + 1) / n if half else torch.fft.fftfreq(n).abs()  # |f| is linear between its points
    torch.testing.assert_close(weights @ reference.double(), wanted.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (32, 19), (5, 4), (2, 7), (3, 12), (6, 2, 5)])
def test_every_part_of_the_filter_learns(shape):
    """Also on maps smaller than what is asked for: the filter is then made smaller."""
    size = fitting(8, shape)
    module, m = FFParser(2, size), torch.randn(1, 2, *shape, generator=rng())
    (module(m) * torch.randn(1, 2, *shape, generator=rng(1))).sum().backward()
    gradient = module.deviation.grad
    still = (gradient == 0).nonzero().tolist()  # only the imaginary parts of gains that belong to themselves
    alone = [{0, n // 2} for n in size]
    assert all(i[0] == 1 and all(k in own for k, own in zip(i[2:], alone, strict=True)) for i in still)


def test_a_filter_fits_maps_that_read_all_of_it():
    assert [fitting(16, (n,)) for n in (1, 2, 3, 5, 8, 15, 16, 17, 300)] == [(n,) for n in (2, 2, 2, 4, 8, 14, 16, 16, 16)]
    assert fitting(6, (64, 4, 3)) == (6, 4, 2)
    for n in range(2, 20):
        for half in (False, True):
            assert (interpolation(n, fitting(16, (n,))[0], half).sum(0) > 0).all()
    assert (interpolation(4, 16, False).sum(0) == 0).sum() == 12  # the comb that a filter of another size would be


def test_a_gain_that_was_learnt_at_one_size_is_that_gain_at_every_size():
    """Trained on 6 x 5 voxels to halve and, in the second channel, to double."""
    module, wanted = FFParser(2, fitting(16, (6, 5))), torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    optimiser = torch.optim.Adam(module.parameters(), 0.05)
    for i in range(250):
        m = torch.randn(4, 2, 6, 5, generator=rng(i))
        optimiser.zero_grad()
        (module(m) - wanted * m).square().mean().backward()
        optimiser.step()
    for size in ((6, 5), (12, 10), (7, 33), (4, 2)):
        m = torch.randn(1, 2, *size, generator=rng())
        torch.testing.assert_close(module(m), wanted * m, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_odd_reference_sizes_are_refused(size):
    with pytest.raises(UserError, match="even"):
        FFParser(3, (4, size))


@pytest.mark.parametrize("size", [(8, 6), (5, 4, 7)])
def test_the_radius_is_that_of_the_frequency(size):
    r = radius(size)
    assert r.flatten()[0] == 0 and r.shape == size and r.max() <= 1
    assert radius((2, 2, 2))[1, 1, 1] == 1
    last = 2 * torch.fft.fftfreq(size[-1]).abs() / len(size) ** 0.5
    torch.testing.assert_close(r[(0,) * (len(size) - 1)], last)


@pytest.mark.parametrize("size", [(8, 6), (5, 4, 7)])
def test_the_band_starts_open_and_keeps_real_signals_real(size):
    band, time = BandPass(3, 5), torch.randn(2, 5, generator=rng())
    assert band(size, time).min() > 0.85
    with torch.no_grad():
        band.edges.weight.normal_(generator=rng())
    gain = band(size, time)
    assert gain.shape == (2, 3, *size)
    axes = tuple(range(-len(size), 0))
    m = torch.randn(2, 3, *size, generator=rng(1))
    assert torch.fft.ifftn(gain * torch.fft.fftn(m, dim=axes), dim=axes).imag.abs().max() < 1e-5


def test_the_band_moves_with_the_timestep_and_passes_only_what_lies_in_it():
    band = BandPass(1, 1)
    with torch.no_grad():  # low(t) = t, high(t) = t + 0.4
        band.edges.weight.copy_(torch.ones(2, 1))
        band.edges.bias.copy_(torch.tensor([0.0, 0.4]))
        band.softness = 0.01
    r = radius((32, 32))
    for t in (0.1, 0.4):
        gain = band((32, 32), torch.tensor([[t]]))[0, 0]
        inside, outside = (r > t + 0.05) & (r < t + 0.35), (r < t - 0.05) | (r > t + 0.45)
        assert gain[inside].min() > 0.95 and gain[outside].max() < 0.05
