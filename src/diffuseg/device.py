"""The device that computes, and the number type it computes in, with the reason that is printed."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from diffuseg.errors import UserError
from diffuseg.text import did_you_mean, pluralize

PrecisionName = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """The number type of convolutions and matrix products (weights stay float32), and a one-line reason to print."""

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """A context in which the operations on `device` work in this precision."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_device(name: str | None = None) -> torch.device:
    """The device of this name; without one, the first NVIDIA GPU if there is one, else Apple's, else the processor.

    Raises:
        UserError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _apple() else "cpu")
    name = str(name)  # a torch.device, too
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        known = ["cpu", "mps", "cuda", "cuda:0", "cuda:1"]
        raise UserError(f"unknown device {name!r}", do=did_you_mean(name, known) + ", ...")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r}: {pluralize(torch.cuda.device_count(), 'GPU')} found", do="Choose cpu")
    if kind == "mps" and not _apple():
        raise UserError(f"there is no device {name!r}: this PyTorch finds no GPU of Apple", do="Choose cpu")
    return torch.device(name)


def choose_precision(device: torch.device, name: str = "auto") -> Precision:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere; a name other than "auto" is obeyed.

    Raises:
        UserError: A name that is not "auto", "bf16" or "fp32".
    """
    if name not in get_args(PrecisionName):
        raise UserError(f"unknown precision {name!r}", do=did_you_mean(name, get_args(PrecisionName)))
    if name == "bf16":
        return Precision(torch.bfloat16, "bf16, as asked for")
    if name == "fp32":
        return Precision(torch.float32, "fp32, as asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16: the GPU has it")
        return Precision(torch.float32, "fp32: the GPU has no bf16")
    if device.type == "cpu":
        features = [name for name, query in _CPU_BF16.items() if getattr(torch.cpu, query, lambda: False)()]
        if features:
            return Precision(torch.bfloat16, f"bf16: the processor has {' and '.join(features)}")
        return Precision(torch.float32, "fp32: the processor has neither AVX512-BF16 nor AMX")
    return Precision(torch.float32, "fp32: nothing was tested on Apple's GPU; --device cpu is")


def _apple() -> bool:
    """Whether there is a GPU of Apple, and a PyTorch (2.5 or later) that can be told its number type."""
    return torch.backends.mps.is_available() and torch.amp.is_autocast_available("mps")


# Names of queries that PyTorch has had since 2.4 or later; where one is missing its answer counts as no.
_CPU_BF16 = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
