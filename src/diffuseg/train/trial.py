"""One step of a training on made-up data, forward and backward, before the training begins: it changes nothing."""

import copy
from dataclasses import replace

import torch

from diffuseg.device import Precision
from diffuseg.methods import Method
from diffuseg.train.precision import made_up_batch


def train_only(method: Method, modules: tuple[str, ...]) -> None:
    """Gradients reach exactly these children of a method."""
    for name, module in method.named_children():
        module.requires_grad_(name in modules)


def trial_step(method: Method, batch: int, precision: Precision, device: torch.device) -> None:
    """Pass noise forward and backward through every phase of a method, so many elements at a time.

    Weights, buffers and the random numbers that follow stay as they are, and no gradient is left, whatever happens.
    """
    buffers = copy.deepcopy(dict(method.named_buffers()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        made_up = made_up_batch(replace(method.plan, batch=batch), method.supervision == "mask").to(device)
        method.train()
        try:
            for phase in method.phases:
                train_only(method, phase.modules)
                with precision.autocast(device):
                    loss, _ = method.loss(made_up, phase, torch.Generator().manual_seed(0))
                loss.backward()
        finally:
            method.zero_grad(set_to_none=True)
            method.requires_grad_(True)
            for name, buffer in method.named_buffers():
                buffer.data.copy_(buffers[name])
