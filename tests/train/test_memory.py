"""Less memory and less time with the same result: features computed twice, compiled networks, batches that fit."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from diffuseg.data.plan import Plan
from diffuseg.device import choose_precision
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.networks.blocks import BatchNorm, ResidualBlock
from diffuseg.train import compiled, setup
from diffuseg.train.loop import step
from diffuseg.train.memory import batch_that_fits, largest, recompute_blocks
from diffuseg.train.trial import trial_step
from tests.train.tiny import METHOD, call, options, refused, start

CPU = torch.device("cpu")


@pytest.fixture
def unchecked(monkeypatch):
    """Without the checks of shapes that tests put round every function, which cannot be translated; nothing is remembered."""
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


WISHES = {"cdal": ["dropout=0.3"], "unet": ["dropout=0.3"]}


def trained(state, steps: int = 2) -> dict[str, torch.Tensor]:
    """Weights, buffers and average after a few steps."""
    for batch in state.batches.iterate(0, steps, 0, 1):
        step(state, batch, 0.0)
        state.step += 1
    average = {f"average.{name}": value for name, value in state.average.state_dict().items()}
    return {**state.method.state_dict(), **average}


def kept_bytes(state) -> int:
    """What the loss of the last phase keeps for its gradients."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = next(iter(state.batches.iterate(0, 1, 0, 1)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = state.method.loss(batch, state.method.phases[-1], torch.Generator().manual_seed(0))
    del loss
    return sum(found.values())


@pytest.mark.parametrize("name", METHOD)
def test_features_that_are_computed_twice_change_nothing_but_the_memory(data, tmp_path, name):
    """Bit for bit: weights after steps of all phases, dropout and the gradient of a gradient (r1) included."""
    wishes = WISHES.get(name, [])
    plain = start(data, tmp_path / "plain", name, *wishes)
    less = start(data, tmp_path / "less", name, *wishes, "train.checkpointing=true")
    assert kept_bytes(less) < 0.7 * kept_bytes(plain)
    one, other = trained(plain), trained(less)
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_statistics_of_a_batch_norm_count_each_batch_once():
    blocks = nn.ModuleDict({"plain": ResidualBlock(2, 4, 4), "normed": ResidualBlock(2, 4, 4, norm=BatchNorm)})
    recompute_blocks(blocks)
    for block in blocks.values():
        block(torch.randn(2, 4, 4, 4, requires_grad=True)).sum().backward()
    tracked = dict(blocks["normed"].named_buffers())["norm_1.norm.num_batches_tracked"]
    assert tracked == 1 and "forward" in vars(blocks["plain"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the translator, about tensors that it looks at
@pytest.mark.parametrize("name", ["unet", "cdal"])
def test_compiled_networks_compute_the_same(data, tmp_path, name, monkeypatch, unchecked):
    """By a translation that writes no code, so in little time; cDAL differentiates its discriminator twice."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    plain = start(data, tmp_path / "plain", name)
    fast = start(data, tmp_path / "fast", name, "train.checkpointing=true", compile=True)
    names = ["encoder", "network"] if name == "unet" else ["encoder", "generator", "mapping"]
    assert fast.notes == (f"compiled: {', '.join(names)}",)
    one, other = trained(plain), trained(fast)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_computes_the_same(data, tmp_path, unchecked):
    one = trained(start(data, tmp_path / "plain"))
    other = trained(start(data, tmp_path / "fast", compile=True))
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-4)


def test_where_nothing_can_be_compiled_it_is_refused(data, tmp_path, monkeypatch):
    def broken(*inputs):
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: setattr(self, "forward", broken))
    refused(call(*options(data, tmp_path / "run"), "--compile"), "--compile does not work here", "no C++ compiler")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["unet", "cam"])
def test_a_trial_leaves_no_trace(name):
    """The statistics of batch norms (cam) included."""
    plan = Plan("made", ("a",), {"background": 0, "a": 1}, ".nii.gz", patch=(8, 8, 8), widths=(4, 8))
    method = METHODS[name](plan, METHODS[name].config_class())
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    trial_step(method, 3, choose_precision(CPU, "fp32"), CPU)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


@pytest.mark.parametrize(("first", "each", "bend", "room"), [(5, 2, 0, 100), (5, 2, 0.01, 100), (5, 2, 0.5, 31), (1, 1, 0, 2)])
def test_the_largest_batch_is_the_largest_that_fits(first, each, bend, room):
    """What is needed may grow faster than evenly; then it may be an eighth too small, and never too large."""
    asked = []

    def needed(batch: int) -> float:
        asked.append(batch)
        return float(first + each * (batch - 1) + bend * (batch - 1) ** 2)

    found = largest(needed, float(room), 64)
    best = max(batch for batch in range(1, 65) if needed(batch) <= room)
    assert found <= best and found >= (best if bend == 0 else math.floor(best * 7 / 8))
    assert largest(lambda batch: 1.0, 1e6, 64) == 64


def test_a_batch_that_cannot_be_measured_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="not even a batch of one"):
        largest(lambda batch: math.inf, 100.0, 64)
    with pytest.raises(UserError, match="memory of a GPU, and this training is on cpu"):
        batch_that_fits(start(data, tmp_path / "run").method, choose_precision(CPU, "fp32"), CPU)
    refused(call(*options(data, tmp_path / "auto"), "--batch", "auto"), "--batch auto", "GPU")
    refused(call(*options(data, tmp_path / "many"), "--batch", "many"), "--batch many", "auto")
    assert not (tmp_path / "auto").exists()


def test_the_batch_is_the_one_that_was_asked_for_or_measured_and_stays_it(data, tmp_path, monkeypatch):
    assert start(data, tmp_path / "three", batch="3").batches.plan.batch == 3
    monkeypatch.setattr(setup, "batch_that_fits", lambda method, precision, device: 5)
    state = start(data, tmp_path / "run", batch="auto")
    assert state.plan.batch == state.batches.plan.batch == state.method.plan.batch == state.average.plan.batch == 5
    monkeypatch.setattr(setup, "batch_that_fits", lambda method, precision, device: 7)
    assert start(data, tmp_path / "run", batch="auto", resume=True).plan.batch == 5
