"""Device and number type follow the hardware, unless they are asked for."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diffuseg.cli
from diffuseg.device import choose_device, choose_precision
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.methods.weak.binarize import smoothed
from diffuseg.train.distributed import join_processes
from tests.contract.test_methods import build, make_batch

CPU = torch.device("cpu")


@pytest.fixture(params=[(False, False), (False, True), (True, True)])
def gpus(request, monkeypatch):
    """Whether there is a GPU of NVIDIA, and one of Apple."""
    nvidia, apple = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: nvidia)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    return nvidia, apple


def test_a_gpu_is_taken_before_the_processor(gpus):
    nvidia, apple = gpus
    assert choose_device().type == ("cuda" if nvidia else "mps" if apple else "cpu")
    if apple:
        assert choose_device("mps") == torch.device("mps")
    else:
        with pytest.raises(UserError, match="no GPU of Apple"):
            choose_device("mps")


def test_the_gpu_of_apple_is_left_alone_by_a_pytorch_that_has_no_number_types_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    assert choose_device().type != "mps"


def test_the_gpu_of_apple_says_that_it_is_untested_and_is_not_shared(monkeypatch):
    chosen = choose_precision(torch.device("mps"))
    assert chosen.dtype == torch.float32 and "nothing was tested on Apple's GPU" in chosen.reason
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert join_processes("mps").device.type == "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cpu"):
        join_processes("mps")


def test_the_processor_does_what_the_gpu_of_apple_cannot(monkeypatch):
    monkeypatch.setattr(diffuseg.cli, "app", lambda **options: None)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    diffuseg.cli.main()
    assert diffuseg.cli.os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the device that stands for a GPU without it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                assert x.dtype not in (torch.float64, torch.complex128), f"{function}: {x.dtype}"
        return found


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nothing_is_computed_in_float64_on_a_gpu(name, monkeypatch):
    """Apple's have none. The device "meta" stands for one: it refuses what mixes it with the processor, and has no values."""
    settings = ["recycle=0"] if hasattr(METHODS[name].config_class(), "recycle") else []  # which asks for values
    method = build(name, "2d", *settings).to("meta")
    batch = make_batch(method).to(torch.device("meta"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know "meta"
    with NoFloat64():
        for phase in method.phases:
            method.loss(batch, phase, torch.Generator().manual_seed(0))[0].backward()
        if method.supervision == "mask":
            assert len(list(method.draw(batch.image[0], seeds=[1, 2], steps=1))) == 2
        with pytest.raises(NotImplementedError, match="meta"):  # it leaves the device first
            smoothed(batch.image[0, 0], 1.0)


@pytest.mark.parametrize(
    ("bf16", "amx", "dtype"),
    [(True, True, torch.bfloat16), (False, True, torch.bfloat16), (True, False, torch.bfloat16), (False, False, torch.float32)],
)
def test_a_processor_with_bf16_uses_it(monkeypatch, bf16, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    found = choose_precision(CPU)
    assert found.dtype == dtype
    assert ("AMX" in found.reason) == (amx or not bf16)


def test_a_pytorch_that_cannot_tell_means_no(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert choose_precision(CPU).dtype == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bf16_does_not_use_it(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_precision(torch.device("cuda")).dtype == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(("wish", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_wish_is_obeyed_by_every_product(wish, dtype):
    precision = choose_precision(CPU, wish)
    with precision.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype == precision.dtype


def test_other_wishes_are_refused():
    with pytest.raises(UserError, match="Known: auto, bf16, fp32"):
        choose_precision(CPU, "fp16")
