"""SSN: logits are the Gaussian that the maps say, the loss is the likelihood, and draws come out as readers do."""

import math

import torch
import torch.nn.functional as F

from diffuseg.methods.ssn import _logits
from diffuseg.types import Batch
from tests.contract.test_methods import build, make_batch


def test_logits_have_the_covariance_of_the_factors_and_the_diagonal():
    g = torch.Generator().manual_seed(0)
    mean, factors = torch.randn(1, 2, 3, generator=g), torch.randn(1, 4, 3, generator=g)  # two columns, two classes, 3 voxels
    deviation = torch.rand(1, 2, 3, generator=g)
    n = 100_000
    eta = _logits(
        mean, factors, deviation, torch.randn(n, 2, generator=g), torch.randn(n, 2, 3, generator=g)
    ).flatten(1)  # fmt: skip
    columns = torch.stack([factors[0, :2].flatten(), factors[0, 2:].flatten()], 1)  # [6, 2]
    expected = columns @ columns.T + torch.diag(deviation.flatten() ** 2)
    torch.testing.assert_close(torch.cov(eta.T), expected, atol=0.05, rtol=0.02)
    torch.testing.assert_close(eta.mean(0), mean.flatten(), atol=0.02, rtol=0)


def test_without_variance_the_loss_is_the_cross_entropy_of_each_reader(monkeypatch):
    method = build("ssn", "2d")
    batch = make_batch(method)
    mean, factors, deviation = method.encode(batch.image)
    monkeypatch.setattr(method, "encode", lambda image: (mean, 0 * factors, 0 * deviation))
    second = batch.mask.flip(-1)
    both = Batch(batch.image, batch.mask, raters=torch.stack([batch.mask, second], 1))
    loss, _ = method.loss(both, method.phases[0], torch.Generator().manual_seed(0))
    expected = (F.cross_entropy(mean, batch.mask.argmax(1)) + F.cross_entropy(mean, second.argmax(1))) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_the_likelihood_is_that_of_the_whole_mask(monkeypatch):
    """Two voxels that always agree: log 1/2 for each of the two masks, which no product over voxels reaches (2 log 1/2)."""
    method = build("ssn", "2d", "train_samples=4000", "rank=1")
    shape = (1, 2, 1, 2)
    mean, columns = torch.zeros(shape), 60 * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).expand(shape)
    monkeypatch.setattr(method, "encode", lambda image: (mean, columns, torch.zeros(shape)))
    mask = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(shape)
    loss, _ = method.loss(Batch(torch.zeros(1, 1, 1, 2), mask), method.phases[0], torch.Generator().manual_seed(0))
    assert abs(2 * loss - math.log(2)) < 0.05


def test_maps_come_from_one_pass_and_serve_all_draws():
    method, calls = build("ssn", "2d").eval(), []
    method.network.register_forward_hook(lambda *_: calls.append(1))
    image = torch.randn(3 if method.plan.image_channels == 3 else 1, *method.plan.patch)
    a, b = method.draw(image, seeds=[1, 2])
    assert len(calls) == 1 and not torch.equal(a, b)


def test_draws_come_out_as_often_as_readers_say():
    """Readers mark one half of an image or the other, 30 to 70: draws are halves, and about that often."""
    method = build("ssn", "2d", "rank=2", "widths=8")
    height, width = method.plan.patch
    left = torch.zeros(1, 2, height, width)
    left[:, 1, :, : width // 2], left[:, 0, :, width // 2 :] = 1, 1
    readers = torch.cat([left] * 3 + [left.flip(-1)] * 7)[None]
    image = torch.linspace(-1, 1, width).expand(1, method.plan.image_channels, height, width)
    optimiser, rng = torch.optim.Adam(method.parameters(), 2e-2), torch.Generator().manual_seed(0)
    for _ in range(120):
        loss, _ = method.loss(Batch(image, left, raters=readers), method.phases[0], rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    draws = torch.stack(list(method.draw(image[0], seeds=range(200)))).argmax(1)
    on_the_left = (draws == left[0].argmax(0)).flatten(1).float().mean(1)
    assert ((on_the_left > 0.95) | (on_the_left < 0.05)).float().mean() > 0.8  # a half, not a mixture
    assert 0.2 < (on_the_left > 0.5).float().mean() < 0.45
