"""What the blocks and networks promise: how they start, what they depend on, and the sizes they accept."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffuseg.networks.blocks import (
    BatchNorm,
    Mapping,
    Norm,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    double,
    groups,
    halve,
    sinusoid,
)
from diffuseg.networks.classifier import Classifier
from diffuseg.networks.discriminator import Discriminator, DiscriminatorBlock
from diffuseg.networks.unet import ImageEncoder, UNet

SIZES = {2: (6, 7), 3: (4, 5, 6)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(net: nn.Module) -> nn.Module:
    """Last layers start at nothing: without this, comparisons of outputs compare nothing with nothing."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_sinusoid_in_closed_form():
    t = torch.tensor([0.0, 1.0, 250.0, 1000.0])
    expected = [
        [f(float(x) * 10000 ** (-i / 3)) for f in (math.sin, math.cos) for i in range(3)] for x in t
    ]  # width 6: three sines, then three cosines
    torch.testing.assert_close(sinusoid(t, 6), torch.tensor(expected), atol=1e-4, rtol=0)
    assert TimeEmbedding(6, 10)(t).unique(dim=0).shape == (4, 10)


def test_groups_divide_and_hold_four_channels():
    for channels in range(1, 300):
        n = groups(channels)
        assert channels % n == 0 and n <= 32 and (channels // n >= 4 or n == 1)
    assert [groups(c) for c in (4, 8, 16, 64, 128, 256)] == [1, 2, 4, 16, 32, 32]


def test_mapping_does_not_see_the_scale_of_z():
    mapping, z = Mapping(5, 8, depth=2), torch.randn(3, 5)
    torch.testing.assert_close(mapping(z), mapping(10 * z))
    assert not torch.allclose(mapping(z), mapping(-z), atol=1e-3)
    assert sum(isinstance(layer, nn.Linear) for layer in mapping.layers) == 3  # 1 + depth


@pytest.mark.parametrize("dims", [2, 3])
def test_adaptive_norm_starts_as_group_norm(dims):
    norm, h = Norm(8, latent=5), 3 + 2 * torch.randn(2, 8, *SIZES[dims])
    plain = F.group_norm(h, 2, eps=1e-6)
    assert norm.norm.weight is None  # the latent's gamma and beta are the only ones
    torch.testing.assert_close(norm(h, torch.zeros(2, 5)), plain)  # gamma 1, beta 0
    assert (norm(h, torch.randn(2, 5)) - plain).abs().max() < 1
    w = torch.randn(2, 5)
    gamma, beta = (part.reshape(2, 8, *[1] * dims) for part in norm.affine(w).chunk(2, dim=1))
    torch.testing.assert_close(norm(h, w), gamma * plain + beta)
    torch.testing.assert_close(Norm(8)(h), plain)


def used(net: nn.Module) -> nn.Module:
    """As after some training: batch statistics that are none of a single batch."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return shaken(net)


@pytest.mark.parametrize("dims", [2, 3])
def test_once_trained_a_batch_norm_tells_a_position_nothing_of_the_others(dims):
    norm, h = used(BatchNorm(8)), 3 + 2 * torch.randn(2, 8, *SIZES[dims])
    by = lambda mean, variance: (h - mean.reshape(8, *[1] * dims)) / (variance.reshape(8, *[1] * dims) + 1e-5).sqrt()
    affine = lambda x: x * norm.norm.weight.reshape(8, *[1] * dims) + norm.norm.bias.reshape(8, *[1] * dims)
    change = torch.zeros_like(h)
    change[(0, slice(None), *[1] * dims)] = 5
    elsewhere = (change == 0).expand_as(h)
    one, other = norm.eval()(h), norm(h + change)
    torch.testing.assert_close(one, affine(by(norm.norm.running_mean, norm.norm.running_var)))
    assert torch.equal(one[elsewhere], other[elsewhere]) and (one != other)[~elsewhere].all()
    axes = (0, *range(2, 2 + dims))
    one, other = norm.train()(h), norm(h + change)
    torch.testing.assert_close(one, affine(by(h.mean(axes), h.var(axes, correction=0))), atol=1e-5, rtol=1e-5)
    assert (one != other)[elsewhere].double().mean() > 0.9


@pytest.mark.parametrize("time", [False, True])
def test_an_activation_of_a_classifier_sees_its_surroundings_alone(time):
    net = used(Classifier(2, 1, 2, (4, 8), time=time)).eval()
    x, t = torch.randn(1, 1, 24, 24), torch.tensor([300.0]) if time else None
    other = x.clone()
    other[..., 4, 4] += 3
    moved = (net.upto(x, 1, t) != net.upto(other, 1, t)).any(1)[0]
    assert moved.any() and not moved[8:].any() and not moved[:, 8:].any()  # three convolutions of three pixels
    moved = (net.upto(x, 2, t) != net.upto(other, 2, t)).any(1)[0]
    assert moved.any() and not moved[7:].any() and not moved[:, 7:].any()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("outputs", [8, 4])
def test_a_residual_block_starts_as_its_skip_over_root_two(dims, outputs):
    block, x = ResidualBlock(dims, 8, outputs, time=6, latent=5), torch.randn(2, 8, *SIZES[dims])
    h = block(x, torch.randn(2, 6), torch.randn(2, 5))
    torch.testing.assert_close(h, block.skip(x) / math.sqrt(2), atol=1e-3, rtol=0)
    assert isinstance(block.skip, nn.Identity) == (outputs == 8)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("outputs", [8, 4])
def test_a_residual_block_by_hand(dims, outputs):
    """Time enters between the convolutions, the latent both norms, each with an affine map of its own."""
    block, x = shaken(ResidualBlock(dims, 8, outputs, time=6, latent=5)), torch.randn(2, 8, *SIZES[dims])
    t, w, axes = torch.randn(2, 6), torch.randn(2, 5), [1] * dims

    def adaptive(h, norm):
        gamma, beta = (part.reshape(2, -1, *axes) for part in norm.affine(w).chunk(2, dim=1))
        return gamma * F.group_norm(h, groups(h.shape[1]), eps=1e-6) + beta

    h = block.conv_1(F.silu(adaptive(x, block.norm_1))) + block.time(t).reshape(2, -1, *axes)
    h = block.conv_2(F.silu(adaptive(h, block.norm_2)))
    torch.testing.assert_close(block(x, t, w), (block.skip(x) + h) / math.sqrt(2), atol=1e-5, rtol=1e-5)
    for norm in (block.norm_1, block.norm_2):
        assert torch.autograd.grad(block(x, t, w).square().sum(), norm.affine.weight)[0].abs().max() > 1e-4


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_starts_as_identity_and_is_the_textbook_formula(dims):
    layer, x = SelfAttention(dims, 8), torch.randn(2, 8, *SIZES[dims])
    torch.testing.assert_close(layer(x), x / math.sqrt(2), atol=1e-3, rtol=0)
    shaken(layer)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # [b, c, positions]
    h = torch.einsum("bij,bcj->bci", (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8)).softmax(2), v)
    torch.testing.assert_close(layer(x), (x + layer.out(h.reshape(x.shape))) / math.sqrt(2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_halving_undoes_doubling(dims):
    x = torch.randn(2, 3, *SIZES[dims])
    torch.testing.assert_close(halve(double(x)), x)
    assert halve(x).shape[2:] == tuple(n // 2 for n in x.shape[2:])


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 4), (9, 13), (1, 1, 1), (2, 7, 3), (4, 8, 12)])
def test_unet_accepts_any_size(size, pyramid):
    dims = len(size)
    net = shaken(UNet(dims, 2, 3, (4, 4, 8), latent=5, attention=(1,), pyramid=pyramid))
    y = net(torch.randn(2, 2, *size), torch.tensor([1.0, 500.0]), torch.randn(2, 4, *size), torch.randn(2, 5))
    assert y.shape == (2, 3, *size) and torch.isfinite(y).all() and y.std() > 0


@pytest.mark.parametrize("others", [(6,), (5, 3)])
def test_padding_moves_nothing(others):
    """An image and an odd piece of it, which is padded, agree where the network does not see the cut."""
    net = shaken(UNet(1 + len(others), 1, 2, (4, 4), time=False))
    net.middle[1] = nn.Identity()  # attention, and the statistics of norms, see everything
    for norm in [m for m in net.modules() if isinstance(m, Norm)]:
        norm.norm = nn.Identity()
    x = torch.randn(1, 1, 40, *others)
    near, reach = 8, 2 * 6 + 8  # six convolutions of three voxels at half the resolution, six at the full
    torch.testing.assert_close(net(x[:, :, : near + reach + 1])[:, :, :near], net(x)[:, :, :near])
    assert not torch.allclose(net(x[:, :, : near + 1])[:, :, :near], net(x)[:, :, :near])


def test_features_of_one_image_serve_many_draws():
    net = shaken(UNet(2, 2, 3, (4, 8), latent=5, pyramid=True))
    x, t, w = torch.randn(4, 2, 7, 9), torch.tensor([1.0, 2.0, 500.0, 1000.0]), torch.randn(4, 5)
    features = ImageEncoder(2, 1, 4)(torch.randn(1, 1, 7, 9))
    torch.testing.assert_close(net(x, t, features, w), net(x, t, features.repeat(4, 1, 1, 1), w))


def test_an_element_is_the_same_alone_and_in_a_batch():
    net = shaken(UNet(3, 2, 3, (4, 8), latent=5))
    inputs = (torch.randn(3, 2, 4, 6, 5), torch.tensor([1.0, 500.0, 9.0]), torch.randn(3, 4, 4, 6, 5), torch.randn(3, 5))
    together = net(*inputs)
    for i in range(3):
        torch.testing.assert_close(net(*(v[i : i + 1] for v in inputs)), together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_the_output_depends_on_each_input():
    net = shaken(UNet(2, 2, 3, (4, 8), latent=5))
    given = {"x_t": torch.randn(1, 2, 8, 8), "t": torch.tensor([250.0]), "features": torch.randn(1, 4, 8, 8)}
    given["w"] = torch.randn(1, 5)
    y = net(**given)
    others = {"x_t": torch.randn(1, 2, 8, 8), "t": torch.tensor([251.0]), "features": None, "w": torch.randn(1, 5)}
    for name, other in others.items():
        assert (net(**given | {name: other}) - y).abs().max() > 1e-3, name
    assert torch.equal(net(**given), y)


def test_a_network_without_a_noisy_mask_sees_the_features_alone():
    net = UNet(2, 0, 3, (4, 8), time=False)
    features = torch.randn(2, 4, 8, 8)
    assert net(None, features=features).abs().max() < 1e-2  # the last convolution starts at nothing
    shaken(net)
    assert not torch.allclose(net(None, features=features)[0], net(None, features=features)[1])
    with pytest.raises(AssertionError, match="needs a noisy mask"):
        UNet(2, 1, 3, (4, 8), time=False)(None)


def test_parameters_counted_by_hand():
    """2-D, mask of 1 channel, 2 classes, widths 4 and 8; a convolution a -> b has (9 a + 1) b parameters, 1 x 1: (a + 1) b."""
    conv, point = lambda a, b: (9 * a + 1) * b, lambda a, b: (a + 1) * b
    block = lambda a, b: 2 * a + conv(a, b) + 2 * b + conv(b, b) + (point(a, b) if a != b else 0)
    attention = 2 * 8 + point(8, 24) + point(8, 8)
    down, middle, up = block(4, 4) + block(4, 8), block(8, 8) + attention + block(8, 8), point(8, 4) + block(8, 4)
    bare = conv(1, 4) + down + middle + up + 2 * 4 + conv(4, 2)
    assert bare == 4618
    shape = (2, 1, 2, (4, 8))
    assert count(UNet(*shape, time=False)) == bare
    # Time: sinusoid of 4 -> 16 -> 16, and 16 -> b in each of the five blocks.
    time = point(4, 16) + point(16, 16) + sum(point(16, b) for b in (4, 8, 8, 8, 4))
    assert count(UNet(*shape)) == bare + time
    # A latent of 5: in both norms of each block 2 c entries (gamma, beta) become 5 -> 2 c, which is 10 c more.
    channels = (4 + 4) + (4 + 8) + (8 + 8) + (8 + 8) + (8 + 4)
    assert count(UNet(*shape, time=False, latent=5)) == bare + 10 * channels
    assert count(UNet(*shape, latent=5)) == bare + time + 10 * channels
    # The pyramid adds a convolution of x_t per lower level; attention at level 0 one more layer, of 4 channels.
    assert count(UNet(*shape, time=False, pyramid=True)) == bare + conv(1, 8)
    assert count(UNet(*shape, time=False, attention=(0,))) == bare + 2 * 4 + point(4, 12) + point(4, 4)
    assert count(ImageEncoder(2, 3, 4, 2)) == conv(3, 4) + 2 * block(4, 4)


@pytest.mark.parametrize("size", [(8, 8), (1, 5), (4, 6, 5), (1, 1, 1)])
def test_logits_follow_their_elements(size):
    judge = shaken(Discriminator(len(size), 3, (4, 8, 8)))
    x, t = torch.randn(4, 3, *size), torch.tensor([250.0, 500.0, 750.0, 1000.0])
    logits, order = judge(x, t), torch.tensor([2, 0, 3, 1])
    assert logits.shape == (4,) and logits.std() > 0
    torch.testing.assert_close(judge(x[order], t[order]), logits[order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(judge(x, t.flip(0)), logits)


def test_the_spread_of_a_batch_is_one_channel_and_nothing_for_equal_elements():
    judge, seen = shaken(Discriminator(2, 3, (4, 8, 8))), []
    judge.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1]))
    x, t = torch.randn(3, 3, 8, 8), torch.full((3,), 500.0)
    judge(x, t)
    by_hand = judge.features(x, t, 2).std(0, unbiased=False).mean()
    torch.testing.assert_close(seen[0], by_hand.expand(3, 2, 2))
    equal, one = judge(x[:1].repeat(3, 1, 1, 1), t), judge(x[:1], t[:1])
    assert max(s.abs().max() for s in seen[1:]) < 1e-3 < by_hand
    torch.testing.assert_close(equal, one.expand(3), atol=1e-4, rtol=1e-4)


def test_features_of_the_discriminator_by_level():
    judge = shaken(Discriminator(3, 2, (4, 8, 6)))
    x, t = torch.randn(2, 2, 8, 9, 4), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(judge.features(x, t, 0), judge.first(x))
    assert [tuple(judge.features(x, t, i).shape[1:]) for i in (1, 2)] == [(8, 4, 4, 2), (6, 2, 2, 1)]


def test_the_released_discriminator_keeps_the_first_resolution_and_sums_over_positions():
    """Features of a 32 x 32 slice as released: 32, 32, 16, 8, 4 pixels; a sum is so many means."""
    judge = shaken(Discriminator(2, 2, (4, 4, 8, 8, 8), released=True))
    x, t = torch.randn(2, 2, 32, 32), torch.tensor([250.0, 1000.0])
    assert [judge.features(x, t, i).shape[-1] for i in range(5)] == [32, 32, 16, 8, 4]
    assert [(b.conv_1.out_channels, b.conv_2.out_channels) for b in judge.blocks] == [(4, 4), (8, 8), (8, 8), (8, 8)]
    ours = Discriminator(2, 2, (4, 4, 8, 8, 8))
    assert [ours.features(x, t, i).shape[-1] for i in range(5)] == [32, 16, 8, 4, 2]
    seen = []
    judge.head.register_forward_hook(lambda module, inputs, output: seen.append(F.leaky_relu(output, 0.2)))
    logit = judge(x, t)
    torch.testing.assert_close(logit, judge.logit(seen[0].sum((2, 3)))[:, 0])
    ours.head.register_forward_hook(lambda module, inputs, output: seen.append(F.leaky_relu(output, 0.2)))
    logit = ours(x, t)
    torch.testing.assert_close(logit, ours.logit(seen[1].mean((2, 3)))[:, 0])


@pytest.mark.parametrize("early", [False, True])
def test_a_block_of_the_discriminator_by_hand(early):
    block = shaken(DiscriminatorBlock(2, 4, 8, 6, early))
    x, t = torch.randn(2, 4, 6, 8), torch.randn(2, 6)
    h = block.conv_1(F.leaky_relu(x, 0.2)) + block.time(t)[:, :, None, None]
    by_hand = (block.skip(F.avg_pool2d(x, 2)) + block.conv_2(F.avg_pool2d(F.leaky_relu(h, 0.2), 2))) / math.sqrt(2)
    torch.testing.assert_close(block(x, t), by_hand)
