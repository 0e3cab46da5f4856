"""The number type follows the hardware, unless it is asked for."""

import pytest
import torch

from diffuseg.device import choose_precision
from diffuseg.errors import UserError

CPU = torch.device("cpu")


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
