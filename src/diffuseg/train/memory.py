"""A training in less memory, or in all of it: features that are computed twice, and the largest batch that fits."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.methods import Method
from diffuseg.networks.blocks import BatchNorm, ResidualBlock
from diffuseg.train.trial import trial_step

AUTO = "auto"
SHARE = 0.9  # of the free memory of a GPU that a batch may take: what is allocated later lies less tightly
MOST = 256  # elements of a batch


def recompute_blocks(method: nn.Module) -> None:
    """Gradient checkpointing: of a residual block its input is kept, and what is inside is computed again for the gradients.

    Gradients are the same. Blocks with a batch norm stay as they are, since a second pass would count in its statistics.
    """
    for block in method.modules():
        if isinstance(block, ResidualBlock) and not any(isinstance(part, BatchNorm) for part in block.modules()):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def batch_that_fits(method: Method, precision: Precision, device: torch.device, most: int = MOST) -> int:
    """The largest batch whose steps fit into the free memory of a GPU, by steps on made-up data.

    Raises:
        UserError: The training is not on a GPU, or not even one element fits.
    """
    if device.type != "cuda":
        do = "Give a number; without it the plan's is taken"
        raise UserError(f"--batch auto measures the memory of a GPU, and this training is on {device.type}", do=do)

    def needed(batch: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            trial_step(method, batch, precision, device)
        except torch.cuda.OutOfMemoryError:
            return float("inf")
        return torch.cuda.max_memory_allocated(device)

    free, _ = torch.cuda.mem_get_info(device)
    averages = 3 * sum(p.numel() * p.element_size() for p in method.parameters())  # two of AdamW's, and the average weights
    found = largest(needed, SHARE * (free + torch.cuda.memory_reserved(device)) - averages, most)
    torch.cuda.empty_cache()
    return found


def largest(needed: Callable[[int], float], room: float, most: int) -> int:
    """The largest batch up to `most` that needs no more than the room; what is needed grows about evenly with the batch.

    Raises:
        UserError: A batch of one needs more.
    """
    one = needed(1)
    if one > room:
        raise UserError("not even a batch of one fits into the memory of this GPU", do="Give a smaller --set plan.patch=...")
    each = max(needed(2) - one, 1.0)
    batch = most if each * most < room - one else 1 + int((room - one) / each)
    batch = max(min(batch, most), 1)
    while batch > 1 and needed(batch) > room:
        batch -= max(batch // 8, 1)
    return batch
